"""The memory of one training step, counted without paying for it.

A model of full size is built from tensors that have shapes but no numbers (`FakeTensorMode`), and
a real training step runs on it: forward, losses, backward, micro-batch after micro-batch, under
autocast. Every tensor that comes into being is counted while it lives. So nothing here is typed in,
and nothing is measured either: not yet on a GPU.

Assumed: the plain form of attention, to which CUDA falls back in half precision for heads of 52
channels (in float32 it has a leaner one); and norms in float32, as autocast does them on GPUs.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mindeye2_lite import prior
from mindeye2_lite.config import Config
from mindeye2_lite.feed import Batch
from mindeye2_lite.hardware import Hardware, recomputed
from mindeye2_lite.loop import CONTRASTIVE, Objective, total
from mindeye2_lite.model import MindEye2
from mindeye2_lite.parts import Part, rows_of, weigh

TEMPERATURE = 0.005  # any will do


@lru_cache
def peak(
    config: Config, subjects: tuple[tuple[int, int], ...], each: int, hardware: Hardware
) -> tuple[int, int]:
    """Most bytes alive at once in a step, and those alive after its forward pass; with weights.

    The step has `each` trials of every (subject, voxels). The first two micro-batches are run.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with fake(), Living() as living:
        model = MindEye2.from_config(config, dict(subjects)).train()
        _norms_in_float(model)
        objective = Objective(model)
        # The first micro-batch makes the gradients, the second finds them there.
        batches = _batches(config, dict(subjects), each, hardware.accumulate)[:2]
        others = _others(config, batches[0]) if batches[0].part else None
        with recomputed(model, hardware), sdpa_kernel(SDPBackend.MATH):
            for batch in batches:
                with _autocast(hardware):
                    terms = objective(batch, TEMPERATURE, torch.Generator(), others)
                    loss = total(weigh(terms, batch.part, CONTRASTIVE, parts=1))
                kept = living.now
                loss.backward()
                del terms, loss
    return living.peak, kept


def _batches(config: Config, subjects: Mapping[int, int], each: int, cut: int) -> list[Batch]:
    whole = each * len(subjects)
    side, places = config.latent_size, (config.latent_size // 4) ** 2
    shapes = {"tokens": (config.tokens, config.dim)}
    if config.low_level:
        shapes |= {"latents": (4, side, side)}
        shapes |= dict.fromkeys(("aux", "aux_augmented"), (places, config.aux_dim))
    targets = {name: torch.empty(whole, *shape) for name, shape in shapes.items()}
    voxels = {s: torch.empty(each, n) for s, n in subjects.items()}
    if cut == 1:
        return [Batch(voxels, targets, None)]
    batches = []
    for rows in rows_of(len(subjects), each, rank=0, world=1, cut=cut):
        few = len(rows) // len(subjects)
        own = {name: values[: few * len(subjects)] for name, values in targets.items()}
        part = Part(torch.empty(len(rows), dtype=torch.long), whole, 1, targets)
        batches.append(Batch({s: v[:few] for s, v in voxels.items()}, own, None, part))
    return batches


def _others(config: Config, batch: Batch) -> dict[str, torch.Tensor]:
    places = (config.latent_size // 4) ** 2
    others = {"brain": torch.empty(batch.part.whole, config.tokens * config.dim)}
    if config.low_level:
        others["features"] = torch.empty(batch.part.whole, places, config.aux_dim)
    return others


@contextmanager
def fake() -> Iterator[None]:
    """Inside, tensors have shapes and types but no numbers and no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        yield


def _autocast(hardware: Hardware) -> torch.autocast:
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(hardware.precision)
    return torch.autocast("cpu", dtype=half, enabled=half is not None)


def _norms_in_float(model: nn.Module) -> None:
    """Norms take and give float32 under CUDA's autocast, unlike under the CPU's."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | prior.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


class Living(TorchDispatchMode):
    """Counts the bytes of all tensors that were made inside and are alive."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self.known:
            return
        self.known.add(id(storage))
        weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _gone(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size
