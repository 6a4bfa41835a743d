"""One loop trains, goes on after a kill as if nothing had been, and says clearly why it stops."""

import json
from dataclasses import replace
from functools import cache, cached_property
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from mindeye2_lite import loop, paths, train
from mindeye2_lite.config import Config
from mindeye2_lite.layout import betas_name
from mindeye2_lite.loop import Feed, Plan, parameter_groups
from mindeye2_lite.losses import soft_clip_temperatures
from mindeye2_lite.model import MindEye2
from mindeye2_lite.nsd import Subject, Trials

TINY = replace(
    Config.lite(),
    trials_per_session=16,
    hidden=16,
    tokens=4,
    dim=16,
    latent_size=8,
    aux_dim=8,
    prior_depth=1,
    prior_dim_head=8,
    epochs=6,
    max_steps=12,
    batch=8,
    pretrain_batch=8,
    max_lr=1e-3,
)
CPU = torch.device("cpu")
VOXELS, IMAGES, SHARED = {1: 20, 2: 24, 3: 28}, 60, 6


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trials(subject: int, image_id: torch.Tensor) -> Trials:
    """Voxels that follow linearly from what was seen, and a little noise."""
    seen = normal(0, IMAGES, 8)[image_id] @ normal(subject, 8, VOXELS[subject])
    n, count = len(image_id), torch.arange(len(image_id))
    noise = 0.1 * normal(n, n, VOXELS[subject])
    return Trials(seen + noise, image_id, count % 3, count // 16 + 1, torch.zeros(n, 17).double())


class FakeSubject(Subject):
    """Two sessions without files."""

    images = None

    def __init__(self, root, subject: int):
        self.subject, self.sessions, self.num_voxels = subject, 2, VOXELS[subject]

    def train(self, sessions=None, normalize="sessions") -> Trials:
        return trials(self.subject, torch.arange(SHARED, SHARED + 16 * (sessions or self.sessions)))

    def test(self, sessions=None, normalize="sessions") -> Trials:
        return trials(self.subject, torch.arange(SHARED).repeat_interleave(3))


class FakeTargets:
    @cached_property
    def tokens(self) -> torch.Tensor:
        return (normal(0, IMAGES, 8) @ normal(9, 8, 64)).view(IMAGES, 4, 16)

    latents = normal(1, IMAGES, 4, 8, 8)
    aux = normal(2, IMAGES, 4, 8)
    aux_augmented = normal(3, IMAGES, 4, 8)

    def index(self, image_ids: torch.Tensor) -> torch.Tensor:
        return image_ids


@pytest.fixture(autouse=True)
def cohort(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "Subject", FakeSubject)
    monkeypatch.setattr(train.encoders, "targets", lambda *a, **k: FakeTargets())
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path / "cache"))


def pretrain(config: Config = TINY, **how) -> train.Run:
    return train.pretrain(config, "root", (2, 3), progress=False, **how)


@cache
def pretrained() -> MindEye2:
    """What `pretrain()` gives, trained once: do not change it."""
    return pretrain().model


def fine_tune(config: Config = TINY, **how) -> train.Run:
    return train.fine_tune(config, "root", progress=False, **how)


def same_weights(a: MindEye2, b: MindEye2) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Killed(Exception):
    """Stands for the power cord."""


def killed_at(step: int):
    def callback(now: int, terms: dict[str, float]) -> None:
        if now == step:
            raise Killed

    return callback


# -- the whole run --------------------------------------------------------------------------------


def test_training_lowers_every_term_and_leaves_inert_mixers_alone():
    config = replace(TINY, epochs=60, max_steps=60, low_level=False, max_lr=3e-3)
    fresh = MindEye2.from_config(config, {2: 24, 3: 28})
    run = pretrain(config)
    first, last = run.history["steps"][0], run.history["steps"][-1]
    assert last["prior"] < 0.8 * first["prior"] and last["contrastive"] < first["contrastive"]
    before, after = fresh.state_dict(), run.model.state_dict()
    still = {key for key in after if torch.equal(before[key], after[key])}
    assert {key for key in still if ".mixer_blocks1." in key} == {
        key for key in after if ".mixer_blocks1." in key
    }
    assert not {key for key in still if key.startswith("ridge")}


def test_a_killed_run_goes_on_to_the_last_bit(tmp_path):
    whole = pretrain(folder=tmp_path / "whole", checkpoint_every=5)
    with pytest.raises(Killed):
        pretrain(folder=tmp_path / "killed", checkpoint_every=5, callback=killed_at(7))
    assert (tmp_path / "killed" / "last.pt").exists()
    seen = []
    resumed = pretrain(
        folder=tmp_path / "killed", checkpoint_every=5, callback=lambda k, _: seen.append(k)
    )
    assert seen == list(range(5, 12))
    assert same_weights(whole.model, resumed.model)
    for part in ("steps", "checks"):
        assert whole.history[part] == resumed.history[part]
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == [
        "history.json",
        "model.safetensors",
    ]


# accelerate puts a scaled step in the place of the optimizer's own.
@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step:UserWarning")
def test_the_scale_of_fp16_gradients_goes_on_where_it_was(tmp_path, monkeypatch):
    scaler = None

    def with_scaler(hardware):
        nonlocal scaler
        made = Accelerator()
        made.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        return made

    monkeypatch.setattr(train, "accelerator", with_scaler)
    pretrain(folder=tmp_path / "whole")
    expected = scaler.get_scale()
    with pytest.raises(Killed):
        pretrain(folder=tmp_path / "killed", checkpoint_every=5, callback=killed_at(7))
    pretrain(folder=tmp_path / "killed", checkpoint_every=5)
    assert scaler.get_scale() == expected == 4.0 * 2**6


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_checkpoint_is_mapped_where_training_copies_it_to_a_gpu(tmp_path, monkeypatch, device):
    def load(path, **how):
        assert how["mmap"] == (device == "cuda")
        raise Killed

    (tmp_path / "last.pt").touch()
    monkeypatch.setattr(torch, "load", load)
    stopped = SimpleNamespace(
        _last=tmp_path / "last.pt",
        pieces=None,
        accelerator=SimpleNamespace(device=torch.device(device)),
    )
    with pytest.raises(Killed):
        loop.Trainer._resume(stopped)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    with pytest.raises(Killed):
        pretrain(folder=tmp_path, checkpoint_every=5, callback=killed_at(7))
    with pytest.raises(ValueError, match="^[^\n]*last.pt belongs to a run with other settings"):
        pretrain(folder=tmp_path, seed=1)


def test_a_stopped_run_goes_on_from_the_same_start_and_data_only(tmp_path):
    root, folder = tmp_path / "data", tmp_path / "run"
    root.mkdir()
    with pytest.raises(Killed):
        train.fine_tune(TINY, root, folder=folder, checkpoint_every=5, callback=killed_at(7))
    start = MindEye2.from_config(TINY, {2: 24})
    for other in ({"start": start}, {"start": start.save(tmp_path / "start.safetensors")}):
        with pytest.raises(ValueError, match="^[^\n]*last.pt belongs to a run with other settings"):
            train.fine_tune(TINY, root, folder=folder, **other)
    own, another = (root / f"{betas_name(s)}.hdf5" for s in (1, 2))
    own.write_bytes(b"other data")
    with pytest.raises(ValueError, match="^[^\n]*last.pt belongs to a run with other settings"):
        train.fine_tune(TINY, root, folder=folder)
    own.unlink()
    another.write_bytes(b"somebody else's data, fetched meanwhile")
    assert train.fine_tune(TINY, root, folder=folder).history["steps"]


def test_what_is_trained_already_is_said_and_never_written_over(tmp_path, capsys):
    first = fine_tune(folder=tmp_path)
    again = fine_tune(folder=tmp_path, callback=killed_at(0))
    assert capsys.readouterr().out == f"already trained: {tmp_path}\n"
    assert same_weights(first.model, again.model) and first.history == again.history
    start = MindEye2.from_config(TINY, {2: 24})
    for other in ({"start": start}, {"seed": 1}, {"normalize": "none"}, {"partners": "released"}):
        with pytest.raises(ValueError, match="^[^\n]* keeps a model [^\n]*give another folder"):
            fine_tune(folder=tmp_path, **other)
    with pytest.raises(ValueError, match="^[^\n]* keeps a model [^\n]*give another folder"):
        pretrain(folder=tmp_path)
    assert same_weights(first.model, MindEye2.from_released(tmp_path / "model.safetensors"))


def test_a_seed_gives_everything_and_borrows_no_global_randomness():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = pretrain()
    assert torch.equal(torch.rand(1), expected)
    assert same_weights(first.model, pretrained())
    assert not same_weights(first.model, pretrain(seed=1).model)


def test_a_loss_that_is_not_finite_stops_with_step_and_term(monkeypatch):
    broken = FakeTargets.latents.clone()
    broken[SHARED:] = float("nan")
    monkeypatch.setattr(FakeTargets, "latents", broken)
    with pytest.raises(FloatingPointError, match="^training stopped at step 0: low_level is nan"):
        pretrain()


def test_fine_tuning_starts_from_a_model_its_file_or_scratch(tmp_path):
    start = pretrained()
    path = start.save(tmp_path / "pretrained.safetensors")
    from_model, from_file = fine_tune(start=start), fine_tune(start=path)
    scratch = fine_tune(start=None)
    assert from_model.model.subjects == (1,)
    assert same_weights(from_model.model, from_file.model)
    assert not same_weights(from_model.model, scratch.model)
    losses = [run.history["steps"][0]["prior"] for run in (from_model, scratch)]
    assert losses[0] < losses[1]


def test_a_start_of_other_sizes_is_refused_in_one_line():
    start = MindEye2.from_config(replace(TINY, hidden=32), {2: 24})
    with pytest.raises(ValueError, match="^the model to start from has other sizes[^\n]*$"):
        fine_tune(start=start)


def test_what_was_trained_once_is_taken_and_anything_else_is_trained(tmp_path, capsys):
    (tmp_path / "betas.hdf5").write_bytes(b"some betas")
    args = {"subjects": (2, 3), "progress": False}
    first = train.load_or_train("pretrained", TINY, tmp_path, **args)
    assert capsys.readouterr().out.startswith("pretrained: training now")
    judged_otherwise = replace(TINY, captioner="another")
    again = train.load_or_train("pretrained", judged_otherwise, tmp_path, **args)
    assert capsys.readouterr().out.startswith("pretrained: kept from an earlier run")
    assert same_weights(first.model, again.model) and first.history == again.history
    assert again.model.subjects == (2, 3) and not again.model.training
    keys = {
        train.fingerprint(TINY, tmp_path, **args),
        train.fingerprint(TINY, tmp_path, **args, seed=1),
        train.fingerprint(replace(TINY, hidden=32), tmp_path, **args),
    }
    (tmp_path / "betas.hdf5").write_bytes(b"other betas")
    keys.add(train.fingerprint(TINY, tmp_path, **args))
    assert len(keys) == 4


def test_a_model_just_trained_is_on_the_cpu_as_a_kept_one_is(monkeypatch):
    moved = []
    monkeypatch.setattr(MindEye2, "cpu", lambda self: moved.append("cpu") or self)
    after = len(fine_tune(replace(TINY, max_steps=4)).history["steps"])
    assert (moved, after) == (["cpu"], 4)


def test_load_or_train_is_refused_where_several_processes_were_started(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="^load_or_train is for one process[^\n]*$"):
        train.load_or_train("pretrained", TINY, tmp_path, subjects=(2, 3), progress=False)


def test_load_or_train_fine_tunes_where_a_subject_is_named(tmp_path):
    how = {"subject": 1, "sessions": 1, "start": pretrained(), "progress": False}
    run = train.load_or_train("one-hour", TINY, tmp_path, **how)
    assert run.model.subjects == (1,)
    assert run.folder.parent == paths.runs("lite")
    assert json.loads((run.folder / "history.json").read_text()) == run.history


# -- what a step sees -----------------------------------------------------------------------------


@pytest.fixture
def feed() -> Feed:
    people = {s: FakeSubject("root", s).train() for s in (2, 3)}
    return Feed(people, FakeTargets(), batch=10, seed=0, device=CPU)


def test_every_trial_comes_once_before_any_comes_again(feed):
    walk = torch.cat([feed.chosen(2, number) for number in range(64)])
    for once in walk.split(32):
        assert torch.equal(once.sort().values, torch.arange(32))
    assert not torch.equal(walk[:32], walk[32:64])


def test_processes_share_the_walk_out_between_them(feed):
    alone = [feed.chosen(2, number) for number in range(4)]
    for rank in (0, 1):
        for step in (0, 1):
            batch = feed(step, mixed=False, rank=rank, world=2)
            rows = alone[2 * step + rank]
            assert torch.equal(batch.voxels[2], feed.voxels[2][rows])


def test_targets_belong_to_the_trials_and_are_never_mixed(feed):
    plain, mixed = (feed(3, mixed=m) for m in (False, True))
    rows = torch.cat([feed.rows[s][feed.chosen(s, 3)] for s in (2, 3)])
    assert torch.equal(plain.targets["tokens"], FakeTargets().tokens[rows])
    assert torch.equal(plain.targets["tokens"], mixed.targets["tokens"])
    mix = mixed.mix
    assert torch.equal(mix.partner // 5, torch.arange(10) // 5)
    everyone = {s: plain.voxels[s] for s in (2, 3)}
    for i, s in enumerate((2, 3)):
        share = mix.share[5 * i : 5 * i + 5, None]
        partner = mix.partner[5 * i : 5 * i + 5] - 5 * i
        expected = share * everyone[s] + (1 - share) * everyone[s][partner]
        torch.testing.assert_close(mixed.voxels[s], expected)


# -- schedule and optimizer -----------------------------------------------------------------------


def test_released_partners_mix_the_same_voxels_and_mislead_all_but_the_first(feed):
    people = {s: FakeSubject("root", s).train() for s in (2, 3)}
    theirs = Feed(people, FakeTargets(), 10, 0, CPU, partners="released")(3, mixed=True)
    ours = feed(3, mixed=True)
    for s in (2, 3):
        assert torch.equal(theirs.voxels[s], ours.voxels[s])
    target = theirs.mix.target()
    assert target[5:, :5].sum() > 0, "the second person is pulled to the first person's pictures"
    assert ours.mix.target()[5:, :5].sum() == 0
    with pytest.raises(ValueError, match="partners is 'theirs': choose one of own, released"):
        Feed(people, FakeTargets(), 10, 0, CPU, partners="theirs")


def test_a_third_of_the_epochs_is_mixed_and_then_the_temperature_rises():
    plan = Plan(steps_per_epoch=31, epochs=150, max_lr=3e-4)
    taus = [plan.temperature(31 * epoch + 30) for epoch in range(150)]
    assert taus[:49] == [None] * 49
    torch.testing.assert_close(torch.tensor(taus[49:]), soft_clip_temperatures(101))


def test_steps_are_the_released_ones_unless_capped():
    paper = Config.paper()
    assert Plan.of(paper, trials=750, batch=24).steps == 4650
    assert Plan.of(paper, trials=30_000, batch=42).steps == 107_100
    capped = Plan.of(replace(paper, max_steps=1500), trials=3000, batch=42)
    assert (capped.steps_per_epoch, capped.epochs) == (71, 21)
    with pytest.raises(ValueError, match="4 is the least"):
        Plan.of(replace(paper, max_steps=2), trials=750, batch=24)


def test_the_learning_rate_peaks_after_two_epochs_and_ends_near_nothing():
    plan = Plan(steps_per_epoch=10, epochs=20, max_lr=3e-4)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    scheduler, rates, momenta = loop.one_cycle(optimizer, plan), [], []
    for _ in range(plan.steps):
        rates.append(scheduler.get_last_lr()[0])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(1.2e-5)
    assert max(rates) == pytest.approx(3e-4) == rates[19]
    assert rates[-1] == pytest.approx(1.2e-8)
    assert (momenta[0], min(momenta)) == (pytest.approx(0.95), pytest.approx(0.85))


def test_decay_falls_on_the_released_groups():
    model = MindEye2.from_config(TINY, {1: 20})
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model))
    layer = "diffusion_prior.net.causal_transformer"
    assert {"ridge.linears.0.bias", f"{layer}.norm.g", "backbone.clip_proj.0.weight"} <= decayed
    assert f"{layer}.rel_pos_bias.relative_attention_bias.weight" in others
    assert "backbone.blin1.bias" in others
    assert not any("mixer_blocks1" in name or "freqs" in name for name in decayed | others)


def test_the_terms_are_weighed_as_in_the_released_code():
    weights = {"prior": 30, "contrastive": 1, "low_level": 0.5, "aux": 0.5 * 0.1}
    one = torch.ones(())
    assert {name: float(loop.total({name: one})) for name in weights} == pytest.approx(weights)
    everything = dict.fromkeys(weights, one)
    assert float(loop.total(everything)) == pytest.approx(sum(weights.values()))


# -- what comes out -------------------------------------------------------------------------------


def test_outputs_are_averaged_over_repeats_and_not_the_voxels():
    model = MindEye2.from_config(TINY, {1: 20}).eval()
    test = FakeSubject("root", 1).test()
    out, image_ids = train.brain_outputs(model, test, 1, batch=4)
    assert image_ids.tolist() == list(range(SHARED))
    with torch.no_grad():
        for name in out._fields:
            each = torch.stack([getattr(model(v, 1), name) for v in test.repeats(3).unbind(1)])
            torch.testing.assert_close(getattr(out, name), each.mean(0), atol=1e-5, rtol=1e-4)


def test_looking_at_the_brain_leaves_the_model_s_mode_as_it_was():
    model = MindEye2.from_config(replace(TINY, low_level=False), {1: 20}).train()
    out, _ = train.brain_outputs(model, FakeSubject("root", 1).test(), 1)
    assert model.training and out.low_level is None


def test_of_several_people_the_progress_bar_looks_at_the_first(monkeypatch):
    looked_at = []

    def look(model, subject, trials, targets):
        looked_at.append((subject, trials.voxels.shape[1]))
        return {}

    monkeypatch.setattr(train, "_top1", look)
    pretrain(replace(TINY, low_level=False))
    assert set(looked_at) == {(2, VOXELS[2])}


def test_retrieval_of_a_trained_model_beats_chance():
    config = replace(TINY, epochs=100, max_steps=200, low_level=False, max_lr=3e-3)
    run, test = fine_tune(config), FakeSubject("root", 1).test()
    found = train.evaluate_retrieval(run.model, test, 1, FakeTargets())
    assert found.brain_to_image.value > 3 / SHARED
    last = run.history["checks"][-1]
    assert last["brain_to_image"] == pytest.approx(found.brain_to_image.value)
