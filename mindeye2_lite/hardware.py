"""How a machine trains: precision, memory saved for time, and models in pieces over several GPUs.

None of it belongs to the recipe, so none of it stands in `Config`. `accumulate` and `checkpointing`
change no number beyond rounding; `precision` and `eight_bit` change results a little, so what is
kept of a run is kept under another name. Not run on a GPU by us: bf16, 8-bit states and FSDP.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from mindeye2_lite.model import MindEye2

PRECISIONS = ("fp32", "bf16", "fp16")
PATIENCE = timedelta(hours=24)  # others wait while one computes targets or writes a checkpoint
UNITS = ("SharedSubjectRidge", "Backbone", "PriorNetwork")  # FSDP puts one together at a time


@dataclass(frozen=True)
class Hardware:
    """What to trade for memory. `precision=None`: bf16 where the GPU computes in it, else fp32.

    Official: fp16, which overflows now and then (its users report NaNs). `accumulate` cuts a
    process's batch into that many micro-batches. `checkpointing` computes the prior's layers and
    the low-level upsampler twice and keeps only their inputs in between. `eight_bit` keeps
    AdamW's moments in 8 bits (bitsandbytes). ValueError in one line for a bad value.
    """

    precision: str | None = None
    accumulate: int = 1
    checkpointing: bool = False
    eight_bit: bool = False

    def __post_init__(self):
        if self.precision not in (None, *PRECISIONS):
            known = ", ".join(PRECISIONS)
            raise ValueError(f"precision {self.precision!r} is unknown: choose one of {known}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be 1 or more micro-batches, got {self.accumulate}")

    def outcome(self) -> tuple[Any, ...] | None:
        """What of it changes the weights that come out; None where that is nothing.

        The precision is the one that training has here, whoever chose it.
        """
        precision = mixed_precision(self)
        changed = (None if precision == "no" else precision, self.eight_bit)
        return None if changed == (None, False) else changed


def accelerator(hardware: Hardware) -> Accelerator:
    """accelerate, in the precision asked for, the launcher's, or the best that there is.

    ValueError where a launcher started several processes and accelerate knows of one only, where
    these change to another precision, or for bf16 on a GPU that does not compute in it.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    # Without this, processes on CPUs would each train alone and write over each other's files.
    cpu = started > 1 and not torch.accelerator.is_available()
    view = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # no second copy
    precision = mixed_precision(hardware)
    if precision == "bf16" and torch.cuda.is_available() and not computes_bf16():
        raise ValueError("this GPU does not compute in bf16: take --precision fp32, or fp16")
    _make_way(precision, started)
    handlers = [view, InitProcessGroupKwargs(timeout=PATIENCE)]
    made = Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=handlers)
    if made.num_processes != started:
        raise ValueError(
            f"{started} processes were started, but accelerate sees {made.num_processes}: launch "
            "with torchrun, or with accelerate launch and a file of configs/accelerate"
        )
    if made.is_fsdp2:
        precision_by_autocast(made.state.fsdp_plugin)
    return made


def precision_by_autocast(fsdp: Any) -> None:
    """Pieces stay in float32, and half precision is left to autocast, as on one GPU.

    accelerate's own policy casts weights, activations, losses and gradients alike, norms and the
    prior's times among them. Ours sends twice the bytes between GPUs.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    fsdp.mixed_precision_policy = MixedPrecisionPolicy()


def _make_way(precision: str, processes: int) -> None:
    """accelerate has one precision per Python process: where it is another, forget that."""
    before = AcceleratorState._shared_state.get("_mixed_precision", precision)
    if before == precision:
        return
    if processes > 1:
        raise ValueError(
            f"these processes have trained with precision {before!r} and cannot change to "
            f"{precision!r}: start them anew"
        )
    AcceleratorState._reset_state()


def mixed_precision(hardware: Hardware) -> str:
    """accelerate's word for the precision asked for, the launcher's, or the best that there is."""
    if hardware.precision is not None:
        return {"fp32": "no"}.get(hardware.precision, hardware.precision)
    best = "bf16" if computes_bf16() else "no"
    return os.environ.get("ACCELERATE_MIXED_PRECISION", best).lower()


def computes_bf16() -> bool:
    """Is there a GPU that computes in bf16 (Ampere and later) and does not only emulate it?"""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def adamw(groups: list[dict[str, Any]], lr: float, hardware: Hardware) -> torch.optim.Optimizer:
    """AdamW, with moments in 8 bits where asked for. ValueError without bitsandbytes."""
    if not hardware.eight_bit:
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            "8-bit optimizer states need bitsandbytes, which is not installed: "
            "pip install bitsandbytes, or train without them"
        ) from error
    return AdamW8bit(groups, lr=lr)


def heavy(model: MindEye2) -> list[nn.Module]:
    """The modules that keep much and are cheap to compute again. None of them draws randomly."""
    modules = [block for layer in model.prior.net.causal_transformer.layers for block in layer]
    upsampler = getattr(model.backbone, "bupsampler", None)
    if upsampler is not None:
        modules += [upsampler.mid_block, *upsampler.up_blocks]
    return modules


@contextmanager
def recomputed(model: MindEye2, hardware: Hardware) -> Iterator[None]:
    """Inside, heavy modules forget what they computed on the way and compute it again."""
    modules = heavy(model) if hardware.checkpointing else []
    for module in modules:
        module.forward = _again(module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _again(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    checkpoint = partial(
        torch.utils.checkpoint.checkpoint, use_reentrant=False, preserve_rng_state=False
    )
    return lambda *args: checkpoint(forward, *args) if torch.is_grad_enabled() else forward(*args)


class Pieces:
    """A model that FSDP 2 has cut up over the processes: its state as if it were whole.

    Read from and written to all processes at once; rank 0 alone gets the whole.
    """

    def __init__(self, objective: nn.Module, optimizer: torch.optim.Optimizer):
        self.objective = objective
        self.optimizer = getattr(optimizer, "optimizer", optimizer)  # out of accelerate's wrapper

    @staticmethod
    def of(model: nn.Module) -> bool:
        """Has FSDP cut this model up?"""
        from torch.distributed.tensor import DTensor

        return any(isinstance(p, DTensor) for p in model.parameters())

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Weights and optimizer state on the CPU; empty but on rank 0."""
        from torch.distributed.checkpoint.state_dict import get_state_dict

        return get_state_dict(self.objective, self.optimizer, options=self._options())

    def load(self, model: dict[str, Any], optimizer: dict[str, Any]) -> None:
        """Give every process its piece of what `state` returned."""
        from torch.distributed.checkpoint.state_dict import set_state_dict

        # Weights in several places (the prior's rotary angles) are cut up under their first name
        # only; under another, torch would mix a whole tensor with pieces.
        both = (*self.objective.named_parameters(), *self.objective.named_buffers())
        set_state_dict(
            self.objective,
            self.optimizer,
            model_state_dict={name: model[name] for name, _ in both},
            optim_state_dict=optimizer,
            options=self._options(strict=False),
        )

    def whole(self, like: MindEye2) -> MindEye2:
        """The model in one piece on rank 0's CPU; elsewhere the pieces as they are."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        state = get_model_state_dict(self.objective, options=self._options())
        if not state:
            return like
        state = {key.removeprefix("model."): value for key, value in state.items()}
        return MindEye2.from_released(state, subjects=like.subjects)

    @staticmethod
    def _options(**more: Any):
        from torch.distributed.checkpoint.state_dict import StateDictOptions

        return StateDictOptions(full_state_dict=True, cpu_offload=True, **more)
