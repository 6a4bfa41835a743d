"""Variants differ from the model in the one thing that they name, and say so where they cannot."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_train import TINY, VOXELS, FakeSubject, cohort, normal, pretrain, same_weights

from mindeye2_lite import encoders, loop, paths, pipeline, train, unclip, variants
from mindeye2_lite.backbone import Backbone
from mindeye2_lite.config import Config
from mindeye2_lite.layout import GLOBAL_TRIAL, SESSION
from mindeye2_lite.nsd import Subject

__all__ = ["cohort"]  # the fixture


class TimedSubject(FakeSubject):
    """Trials 1 and 4 of session 1 are test trials, the rest of those come after all training."""

    def train(self, sessions=None, normalize="sessions"):
        made = super().train(sessions, normalize)
        when = [n for n in range(34) if n not in (1, 4)][: len(made)]
        made.behavior[:, GLOBAL_TRIAL] = torch.tensor(when).double()
        return made

    def test(self, sessions=None, normalize="sessions"):
        made = super().test(sessions, normalize)
        made.behavior[:, GLOBAL_TRIAL] = torch.tensor([1, 4, *range(34, 50)]).double()
        made.session[:] = torch.tensor([1, 1, *[2] * 16])
        return made


@pytest.fixture
def seen(monkeypatch):
    """Every training: its trials, its plan and its history."""
    kept, real = [], loop.Trainer.run

    def run(self, *args):
        history = real(self, *args)
        kept.append(SimpleNamespace(feed=self.feed, plan=self.plan, history=history))
        return history

    monkeypatch.setattr(loop.Trainer, "run", run)
    return kept


def fit(config=TINY, **how):
    return variants.fit(config, "root", 1, **{"sessions": 1, "progress": False} | how)


# -- loss terms -----------------------------------------------------------------------------------


def test_naming_all_terms_is_the_training_without_a_word_about_them(tmp_path):
    named = pretrain(terms=("aux", "low_level", "contrastive", "prior"))
    assert same_weights(named.model, (plain := pretrain()).model)
    assert named.history["steps"] == plain.history["steps"]
    assert named.history["made"] == plain.history["made"]
    assert pretrain(terms=["prior"]).history["made"] != plain.history["made"]
    keys = [
        train.fingerprint(TINY, tmp_path, subject=1, seed=0, **how)
        for how in ({}, {"terms": loop.TERMS}, {"terms": ("prior",)})
    ]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("words", variants.TERMS)
def test_what_is_left_out_stands_in_no_history_and_trains_nothing(words, seen):
    terms = variants.TERMS[words]
    fresh = train.MindEye2.from_config(TINY, {1: VOXELS[1]}).state_dict()
    model = fit(terms=words)
    row = seen[0].history["steps"][0]
    assert set(row) == {"step", "loss", "lr", *terms}
    weighed = sum(loop.SCALES[name] * row[name] for name in terms)
    assert row["loss"] == pytest.approx(weighed, rel=1e-4)
    after = model.state_dict()
    moved = {key for key in after if not torch.equal(after[key], fresh[key])}

    def trained(*starts: str) -> bool:
        return any(key.startswith(starts) for key in moved)

    assert trained("ridge.")
    assert trained("diffusion_prior.") == ("prior" in terms)
    assert trained("backbone.clip_proj.") == ("contrastive" in terms)
    head = ("backbone.blin1", "backbone.bupsampler", "backbone.b_maps")
    assert trained(*head) == ("low_level" in terms)


def test_terms_that_stay_begin_as_they_were(seen):
    for words in ("all", "prior + retrieval"):
        fit(terms=words)
    rows = [run.history["steps"][0] for run in seen]
    assert all(rows[0][name] == rows[1][name] for name in ("prior", "contrastive"))


def test_the_low_level_head_is_asked_for_nothing_where_no_term_needs_it(monkeypatch):
    asked = []
    real = Backbone.low_level

    def head(self, latent):
        asked.append(self.training)
        return real(self, latent)

    monkeypatch.setattr(Backbone, "low_level", head)
    model = fit(terms="prior + retrieval")
    assert asked and True not in asked, "only the look at held-out pictures runs it"
    assert "low_level" not in vars(model.backbone)


def test_what_can_be_scored_follows_from_the_terms():
    assert variants.stages("all") == ("unrefined", "brain")
    assert variants.stages("prior + low level") == ("unrefined",)
    assert variants.stages("retrieval + low level") == ("brain",)


# -- how much data --------------------------------------------------------------------------------


def test_minutes_are_the_first_trials_in_time_without_the_test_trials_among_them(small_root):
    person = Subject(small_root, 1)
    records = torch.tensor(person.records("train", 1)).double()
    both = torch.cat([records, torch.tensor(person.records("new_test")).double()])
    both = both[both[:, SESSION] == 1]
    for count in (3, 12, 20):
        few = train.first_trials(person.train(sessions=1), person.test(sessions=1), count)
        shown = both[both[:, GLOBAL_TRIAL].argsort()][:count, GLOBAL_TRIAL]
        own = records[torch.isin(records[:, GLOBAL_TRIAL], shown)]
        assert torch.equal(few.behavior, own) and len(few) <= count
        assert torch.equal(few.image_id, own[:, 0].long())
        assert torch.equal(few.voxels, person.train(sessions=1).voxels[: len(few)])


@pytest.mark.parametrize(("minutes", "shown", "trials"), [(10, 3, 2), (30, 8, 6)])
def test_few_trials_make_small_batches_and_as_many_epochs(
    monkeypatch, seen, minutes, shown, trials
):
    monkeypatch.setattr(train, "Subject", TimedSubject)
    model = fit(minutes=minutes, sessions=None)
    feed, plan = seen[0].feed, seen[0].plan
    assert (len(feed.voxels[1]), feed.batch) == (trials, trials)
    assert (plan.steps_per_epoch, plan.epochs) == (max(1, shown // trials), 6)
    everything = TimedSubject("root", 1).train(1).voxels
    assert torch.equal(feed.voxels[1], everything[:trials])
    assert not model.training and all(p.isfinite().all() for p in model.parameters())


def test_minutes_without_a_trial_to_train_on_are_an_error():
    person = TimedSubject("root", 1)
    with pytest.raises(ValueError, match="^no trial to train on is among the first 0[^\n]*$"):
        train.first_trials(person.train(), person.test(), 0)


# -- from whom ------------------------------------------------------------------------------------


def test_one_pretrained_model_serves_every_order_and_the_pipeline(tmp_path, capsys, monkeypatch):
    config, root = replace(TINY, low_level=False), tmp_path
    first = variants.fit(config, root, 1, sessions=1, start=(3, 2), progress=False)
    assert "pretrained: training now" in capsys.readouterr().out
    again = variants.fit(config, root, 1, sessions=1, start=(2, 3), progress=False)
    assert "pretrained: kept from an earlier run" in capsys.readouterr().out
    assert same_weights(first, again) and first.subjects == (1,) and not first.training
    assert len(list(paths.runs("lite").iterdir())) == 1, "the fine-tuned model is kept nowhere"
    asked = []
    monkeypatch.setattr(train, "load_or_train", lambda *a, **k: asked.append((a, k)) or first_run)
    first_run = train.Run(first, {}, None)
    for normalize in ("sessions", "all", "global"):
        how = {"seed": 4, "normalize": normalize, "progress": False}
        pipeline.tuned(config, root, 1, 1, **how)
        variants.pretrained(config, root, 1, tuple(range(2, 9)), **how)
    assert asked[0::3] == asked[2::3], "the pretraining calls of both"


def test_it_differs_from_scratch_and_follows_from_the_seed(tmp_path):
    how = {"sessions": 1, "progress": False}
    scratch = [variants.fit(TINY, tmp_path, 1, seed=s, **how) for s in (0, 0, 1)]
    assert same_weights(*scratch[:2]) and not same_weights(*scratch[1:])
    assert same_weights(scratch[0], train.fine_tune(TINY, tmp_path, 1, 1, progress=False).model)
    assert not same_weights(scratch[0], variants.fit(TINY, tmp_path, 1, start=(2,), **how))


# -- parts ----------------------------------------------------------------------------------------


def test_the_mlp_takes_the_place_of_the_linear_map_and_is_trained():
    config = replace(TINY, max_lr=1e-2)
    model, again = fit(config, first_layer="mlp"), fit(config, first_layer="mlp")
    assert isinstance(model.ridge, variants.ResidualInput) and model.subjects == (1,)
    assert same_weights(model, again)
    fresh = train._fresh(variants.ResidualInput, TINY, {1: VOXELS[1]}, 0).state_dict()
    trained = model.ridge.state_dict()
    assert fresh.keys() == trained.keys()
    assert not [key for key in fresh if torch.equal(fresh[key], trained[key])]
    out, _ = train.brain_outputs(model, FakeSubject("root", 1).test(), 1)
    assert out.tokens.shape == (6, TINY.tokens, TINY.dim)


def test_the_mlp_bends_and_drops_and_adds():
    layer = train._fresh(variants.ResidualInput, TINY, {1: 20, 2: 24}, 0)
    voxels = normal(0, 5, 24)
    assert layer(voxels, 2).shape == (5, TINY.hidden)
    assert not torch.equal(layer(voxels, 2), layer(voxels, 2)), "dropout"
    layer.eval()
    step = layer(voxels, 2) - layer(-voxels, 2)
    assert not torch.allclose(layer(2 * voxels, 2) - layer(-2 * voxels, 2), 2 * step, atol=1e-3)
    for block in layer.blocks:
        torch.nn.init.zeros_(block[1][0].weight)  # LayerNorm: its block adds nothing
    expected = layer.bend(layer.linear(2)(voxels))
    torch.testing.assert_close(layer(voxels, 2), expected)
    with pytest.raises(ValueError, match="^no ridge map for subject 3"):
        layer(voxels, 3)


def test_of_the_mlp_biases_behind_the_linear_map_are_not_decayed():
    layer = train._fresh(variants.ResidualInput, TINY, {1: 20}, 0)
    names = {id(p): name for name, p in layer.named_parameters()}
    model = torch.nn.ModuleDict({"ridge": layer})
    decayed, others = (
        {names[id(p)] for p in group["params"]} for group in loop.parameter_groups(model)
    )
    assert "linears.0.bias" in decayed and "blocks.0.0.weight" in decayed
    assert {"bend.0.bias", "blocks.3.0.bias"} <= others


def test_the_working_backbone_comes_by_the_config():
    model = fit(replace(TINY, backbone="residual"))
    assert model.backbone.kind == "residual"


def test_the_smaller_clip_s_tokens_are_those_of_its_networks():
    small = variants.smaller_clip(Config.lite())
    tokens = encoders.image_encoder(small.encoder)(torch.rand(2, 3, 64, 64))
    assert tokens.shape == (2, small.tokens, small.dim)
    assert unclip.UNETS[small.decoder]["cross_attention_dim"] == small.dim
    assert variants.smaller_clip(Config.paper()).encoder == "ViT-L-14"
    back = {name: getattr(Config.lite(), name) for name in variants.SMALLER["mini-bigG"]}
    assert replace(small, **back) == Config.lite(), "nothing else is changed"


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"terms": "posterior"}, "terms 'posterior' is unknown: choose one of all, prior, "),
        ({"first_layer": "cnn"}, "first_layer 'cnn' is unknown: choose one of ridge, mlp"),
        ({"minutes": 20}, "minutes=20 with sessions=1: minutes are 10 or 30, of session 1"),
        ({"minutes": 10, "sessions": 2}, "minutes=10 with sessions=2: minutes are 10 or 30"),
        ({"start": (2,), "first_layer": "mlp"}, "first_layer 'mlp' is trained from scratch only"),
        ({"start": ()}, "start is nobody for subject 1: name one or more other people"),
        ({"start": (1, 2)}, r"start is \(1, 2\) for subject 1: name one or more other people"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(how, line):
    with pytest.raises(ValueError, match=f"^{line}[^\n]*$"):
        fit(**how)


def test_words_that_nobody_knows_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match="^loss terms posterior: choose from prior, contrastive"):
        pretrain(terms=["posterior"])
    with pytest.raises(ValueError, match=r"^loss terms \(none\): choose from"):
        pretrain(terms=[])
    with pytest.raises(ValueError, match="^encoder 'mini-L' is unknown: choose one of mini-bigG"):
        variants.smaller_clip(variants.smaller_clip(Config.lite()))
    with pytest.raises(ValueError, match="^another first layer is trained from scratch only"):
        train.fine_tune(TINY, "root", folder=tmp_path, first_layer=variants.ResidualInput)
