"""Training runs as `torchrun` starts them, once per process; what they find goes into folders.

python train_worker.py FOLDER '{"kind": "pretrain", "sizes": {"batch": 4}}' ...
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import test_train as cohort  # noqa: E402

from mindeye2_lite import train  # noqa: E402
from mindeye2_lite.hardware import UNITS, Hardware, Pieces, precision_by_autocast  # noqa: E402

# Two layers, so that they share weights (the rotary angles) as those of full size do.
TINY = replace(cohort.TINY, epochs=20, max_steps=20, max_lr=3e-4, prior_depth=2)
RUNS = {"pretrain": cohort.pretrain, "fine_tune": cohort.fine_tune}


def main(folder: str, *jobs: str) -> None:
    train.Subject = cohort.FakeSubject
    train.encoders.targets = lambda *a, **k: cohort.FakeTargets()
    for job in map(json.loads, jobs):
        run_one(Path(folder) / job.pop("folder", "whole"), **job)
    if PartialState().num_processes > 1:
        PartialState().destroy_process_group()


class Stopped(Exception):
    """All processes at once."""


def run_one(
    folder: Path, kind: str, sizes: dict, hardware: dict,
    kill_at: int = -1, stop_at: int = -1, pieces: bool = False,
) -> None:  # fmt: skip
    def callback(step: int, terms: dict[str, float]) -> None:
        seen.append(step)
        if step + 1 == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step + 1 == stop_at:
            raise Stopped

    seen = []
    config = replace(TINY, **sizes)
    if pieces:
        Accelerator.prepare = in_pieces
    how = {"hardware": Hardware(**hardware), "checkpoint_every": 10}
    try:
        done = RUNS[kind](config, folder=folder, callback=callback, **how)
    except Stopped:
        return
    if PartialState().is_main_process:
        found = {"processes": PartialState().num_processes, "first": seen[0]}
        found["steps"] = done.history["steps"]
        (folder / "found.json").write_text(json.dumps(found))


def in_pieces(self, objective: nn.Module, optimizer):
    """Cut up model and optimizer as accelerate does under FSDP 2 (on CPUs it leaves that out)."""
    named = {p: name for name, p in objective.named_parameters()}
    names = [[named[p] for p in group["params"]] for group in optimizer.param_groups]
    mesh = init_device_mesh("cpu", (PartialState().num_processes,))
    fsdp = FullyShardedDataParallelPlugin(fsdp_version=2)
    fsdp.set_mixed_precision({"no": "fp32"}.get(self.mixed_precision, self.mixed_precision))
    precision_by_autocast(fsdp)
    units = [module for module in objective.modules() if type(module).__name__ in UNITS]
    for module in (*units, objective):
        fully_shard(module, mesh=mesh, mp_policy=fsdp.mixed_precision_policy)
    assert Pieces.of(objective)
    cut = dict(objective.named_parameters())
    for group, own in zip(optimizer.param_groups, names, strict=True):
        group["params"] = [cut[name] for name in own]
    return objective, optimizer


if __name__ == "__main__":
    main(*sys.argv[1:])
