"""However a batch is cut up, and wherever a run is cut off, the same comes out."""

import json
import os
import signal
import subprocess
import sys
import types
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import train_worker
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from test_train import CPU, TINY, VOXELS, FakeSubject, FakeTargets, cohort, fine_tune, pretrain

from mindeye2_lite import hardware, loop, train
from mindeye2_lite.hardware import Hardware
from mindeye2_lite.loop import Feed
from mindeye2_lite.model import MindEye2

__all__ = ["cohort"]  # the fixture that stands in for files
WORKER = Path(train_worker.__file__)
SMALL = train_worker.TINY


def launch(folder: Path, *jobs: dict, processes: int = 1) -> subprocess.CompletedProcess:
    """Run the worker, through torchrun where there is more than one process."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(several if processes > 1 else []), str(WORKER), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[1])}
    lines = [json.dumps({"sizes": {}, "hardware": {}} | job) for job in jobs]
    return subprocess.run([*command, *lines], env=environment, capture_output=True, text=True)


def steps_of(folder: Path) -> list[dict]:
    return json.loads((folder / "found.json").read_text())["steps"]


def assert_same_losses(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected) == 20
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_two_processes_train_as_one_whole_or_in_pieces(tmp_path):
    half = {"kind": "pretrain", "sizes": {"pretrain_batch": 4}}
    pieces = half | {"folder": "pieces", "pieces": True}
    cut = half | {"folder": "cut", "hardware": {"accumulate": 2}}
    done = launch(tmp_path, half, cut, pieces | {"stop_at": 15}, pieces, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = pretrain(SMALL)
    for name in ("whole", "cut", "pieces"):
        found = json.loads((tmp_path / name / "found.json").read_text())
        assert found["processes"] == 2
        assert found["first"] == (10 if name == "pieces" else 0)
        assert_same_losses(found["steps"], alone.history["steps"])
        model = MindEye2.from_released(tmp_path / name / "model.safetensors")
        assert model.subjects == alone.model.subjects
        weight = "backbone.backbone_linear.weight"
        expected = alone.model.state_dict()[weight]
        torch.testing.assert_close(model.state_dict()[weight], expected, atol=1e-5, rtol=1e-3)
        assert not (tmp_path / name / "last.pt").exists()


def test_a_run_killed_at_step_15_ends_with_the_same_weights(tmp_path):
    done = launch(tmp_path, {"kind": "fine_tune", "kill_at": 15})
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["last.pt"]
    seen = []
    how = {"checkpoint_every": 10, "callback": lambda step, _: seen.append(step)}
    resumed = fine_tune(SMALL, folder=tmp_path / "whole", **how)
    assert seen == list(range(10, 20))
    whole = fine_tune(SMALL)
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.history["steps"] == whole.history["steps"]


@pytest.mark.parametrize("run", [pretrain, fine_tune], ids=["seven people", "one person"])
def test_micro_batches_give_the_losses_of_the_whole_batch(run):
    slow = replace(SMALL, max_lr=1e-4)  # rounding grows with the learning rate
    whole = run(slow).history["steps"]
    cut = run(slow, hardware=Hardware(accumulate=3)).history["steps"]
    assert_same_losses(cut, whole)


def test_computing_again_what_was_forgotten_changes_nothing():
    plain, again = (fine_tune(SMALL, hardware=Hardware(checkpointing=c)) for c in (False, True))
    assert plain.history["steps"] == again.history["steps"]
    assert not [m for m in again.model.modules() if "forward" in vars(m)]


class Counted:
    """Bytes that pass by."""

    total = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.total += x.nbytes
        return x


def test_checkpointing_keeps_less_for_the_backward_pass():
    model = MindEye2.from_config(TINY, {1: VOXELS[1]})
    kept = {}
    for checkpointing in (False, True):
        keep = Counted()
        with (
            hardware.recomputed(model, Hardware(checkpointing=checkpointing)),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        ):
            tokens = model(torch.randn(2, VOXELS[1]), 1).tokens
            model.prior.loss(tokens, torch.randn(2, 4, 16), generator=torch.Generator())
        kept[checkpointing] = keep.total
    assert kept[True] < kept[False]


# -- parts ----------------------------------------------------------------------------------------


@pytest.fixture
def feed() -> Feed:
    people = {s: FakeSubject("root", s).train() for s in (2, 3)}
    return Feed(people, FakeTargets(), batch=10, seed=0, device=CPU)


def test_parts_of_two_processes_make_up_one_whole_batch(feed):
    whole = Feed({s: FakeSubject("root", s).train() for s in (2, 3)}, FakeTargets(), 20, 0, CPU)
    whole = whole(3, mixed=True)
    parts = [p for r in (0, 1) for p in feed.parts(3, mixed=True, rank=r, world=2, cut=2)]
    rows = torch.cat([p.part.rows for p in parts])
    assert torch.equal(rows.sort().values, torch.arange(20))
    tokens = torch.cat([p.targets["tokens"] for p in parts])
    assert torch.equal(tokens, whole.targets["tokens"][rows])
    for s, first in ((2, 0), (3, 10)):
        own = rows[(rows >= first) & (rows < first + 10)] - first
        assert torch.equal(torch.cat([p.voxels[s] for p in parts]), whole.voxels[s][own])
    assert all(torch.equal(p.mix.partner, whole.mix.partner) for p in parts)


@pytest.fixture
def in_pieces(monkeypatch):
    """One process, and FSDP all the same."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(Accelerator, "prepare", train_worker.in_pieces)
    yield
    dist.destroy_process_group()


def test_pieces_compute_in_half_precision_as_one_gpu_does(request):
    few = replace(SMALL, max_steps=4, epochs=4)
    plain, whole = (fine_tune(few, hardware=Hardware(p)).history["steps"] for p in ("fp32", "bf16"))
    request.getfixturevalue("in_pieces")
    saving = Hardware("bf16", accumulate=2, checkpointing=True)
    pieces, cut = (fine_tune(few, hardware=h).history["steps"] for h in (Hardware("bf16"), saving))
    assert pieces == whole != plain
    assert cut[0] == pytest.approx(whole[0], rel=1e-5)


def test_accelerate_is_kept_from_casting_pieces(monkeypatch):
    class Cut(Accelerator):
        is_fsdp2, num_processes = True, 1
        state = types.SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))

        def __init__(self, **how):
            self.state.fsdp_plugin.set_mixed_precision("bf16")

    monkeypatch.setattr(hardware, "Accelerator", Cut)
    policy = hardware.accelerator(Hardware("bf16")).state.fsdp_plugin.mixed_precision_policy
    assert policy.param_dtype is policy.reduce_dtype is policy.output_dtype is None


def test_a_part_takes_its_place_among_others_of_another_precision():
    part = loop.Part(torch.tensor([1]), 2, 1, {})
    own = {"brain": torch.ones(1, 3)}
    among = part.among({"brain": torch.zeros(2, 3, dtype=torch.bfloat16)}, own)["brain"]
    assert among.dtype == torch.float32 and torch.equal(among.sum(1), torch.tensor([0.0, 3.0]))


def test_more_micro_batches_than_trials_are_refused_in_one_line(feed):
    with pytest.raises(ValueError, match="^accumulate=6 cuts a batch[^\n]*take 5 at most$"):
        feed.parts(0, mixed=False, cut=6)


# -- hardware -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [{"precision": "int4"}, {"accumulate": 0}])
def test_a_bad_setting_is_refused_in_one_line(bad):
    with pytest.raises(ValueError, match=r"^(precision 'int4'|accumulate)[^\n]*$"):
        Hardware(**bad)


def test_precision_is_the_one_asked_for_or_the_launchers_or_the_best(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert hardware.mixed_precision(Hardware(precision="fp32")) == "no"
    for able, word in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(hardware, "computes_bf16", lambda able=able: able)
        assert hardware.mixed_precision(Hardware()) == word
    for word in ("no", "fp16"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", word)
        assert hardware.mixed_precision(Hardware()) == word


def test_one_process_trains_in_one_precision_after_the_other_and_several_do_not(monkeypatch):
    for precision, word in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):
        assert hardware.accelerator(Hardware(precision)).mixed_precision == word
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="^these processes have trained with precision 'no'"):
        hardware.accelerator(Hardware("bf16"))


def test_processes_wait_a_day_for_the_one_that_computes_targets(monkeypatch):
    class Noted(Accelerator):
        def __init__(self, kwargs_handlers, **how):
            waits.extend(getattr(handler, "timeout", None) for handler in kwargs_handlers)
            super().__init__(kwargs_handlers=kwargs_handlers, **how)

    waits = []
    monkeypatch.setattr(hardware, "Accelerator", Noted)
    hardware.accelerator(Hardware())
    assert timedelta(days=1) in waits


def test_eight_bit_states_without_their_package_cost_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match="^8-bit optimizer states need bitsandbytes[^\n]*$"):
        fine_tune(SMALL, hardware=Hardware(eight_bit=True))


def test_eight_bit_states_come_from_bitsandbytes_with_the_released_groups(monkeypatch):
    class AdamW8bit(torch.optim.AdamW):
        pass

    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(AdamW8bit=AdamW8bit))
    groups = loop.parameter_groups(MindEye2.from_config(TINY, {1: 20}))
    made = hardware.adamw(groups, 1e-3, Hardware(eight_bit=True))
    assert isinstance(made, AdamW8bit)
    assert [group["weight_decay"] for group in made.param_groups] == [1e-2, 0.0]


def test_only_what_changes_the_outcome_changes_the_name_of_a_run(tmp_path):
    def key(**how):
        return train.fingerprint(TINY, tmp_path, **how)

    saving = Hardware(accumulate=4, checkpointing=True)
    assert key() == key(hardware=Hardware()) == key(hardware=saving)
    other = {key(hardware=Hardware(precision="bf16")), key(hardware=Hardware(eight_bit=True))}
    assert len(other | {key()}) == 3


def test_a_run_is_named_by_the_precision_that_it_has_and_not_by_who_chose_it(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert Hardware().outcome() is Hardware("fp32").outcome() is None  # on a CPU
    monkeypatch.setattr(hardware, "computes_bf16", lambda: True)
    assert Hardware().outcome() == Hardware("bf16").outcome() == ("bf16", False)
    assert Hardware("fp32").outcome() is None
    assert Hardware("fp32", eight_bit=True).outcome() == (None, True)


def test_bf16_on_a_gpu_that_does_not_compute_in_it_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(ValueError, match="^this GPU does not compute in bf16[^\n]*$"):
        hardware.accelerator(Hardware("bf16"))


def test_frozen_mixers_are_not_in_the_optimizer_and_get_no_gradient():
    model = MindEye2.from_config(TINY, {1: 20})
    trained = {p for group in loop.parameter_groups(model) for p in group["params"]}
    mixers = set(model.backbone.mixer_blocks1.parameters())
    assert mixers and not mixers & trained
    assert not any(p.requires_grad for p in mixers)


def test_processes_that_accelerate_does_not_see_stop_the_run(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    one = types.SimpleNamespace(num_processes=1)
    monkeypatch.setattr(hardware, "Accelerator", lambda **how: one)
    with pytest.raises(ValueError, match="^2 processes were started, but accelerate sees 1"):
        fine_tune(replace(TINY, max_steps=4))
