"""Contrastive losses that pull brain embeddings towards CLIP image embeddings.

MindEye2 uses two, one after the other. BiMixCo, for the first third of training, mixes the voxels
of two trials and asks for both images in the right shares. SoftCLIP, for the rest, asks for the
similarities that the images have among themselves. A third teaches the low-level head. All are
computed in float32, also under mixed precision. Read with notebook 03.

    p_i   brain embedding of trial i     (unit length)
    t_j   CLIP embedding of image j      (unit length)
    τ     temperature                    .006 for BiMixCo, .004 to .0075 for SoftCLIP, .2 low level
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

MIXCO_TEMPERATURE = 0.006
SOFT_CLIP_TEMPERATURES = (0.004, 0.0075)  # first and last epoch of the SoftCLIP phase
LOW_LEVEL_TEMPERATURE = 0.2


class Mix(NamedTuple):
    """Which trial was mixed into which, and how much of the own trial was kept."""

    partner: Int[Tensor, " batch"]
    share: Float[Tensor, " batch"]  # λ_i in [0, 1]; exactly 1 where trial i was left alone

    @classmethod
    def join(cls, mixes: Sequence["Mix"]) -> "Mix":
        """One mix for the subjects' batches put end to end, each pointing into its own.

        Official: without the offsets, see `ReleasedMix`.
        """
        sizes = [len(mix.partner) for mix in mixes]
        starts = np.cumsum([0, *sizes])[:-1].tolist()
        partners = [mix.partner + start for mix, start in zip(mixes, starts, strict=True)]
        return cls(torch.cat(partners), torch.cat([mix.share for mix in mixes]))

    def apply(self, voxels: Float[Tensor, "batch voxels"]) -> Float[Tensor, "batch voxels"]:
        """x_i ← λ_i x_i + (1 − λ_i) x_k for partner k. The input stays as it is."""
        kept = self.share[:, None].to(voxels)
        return kept * voxels + (1 - kept) * voxels[self.partner]

    def target(self) -> Float[Tensor, "batch batch"]:
        """Row i has λ_i on the own image and 1 − λ_i on the partner's, so it sums to 1.

        Official: `utils.mixco_nce`, where a trial that is its own partner loses λ_i. Here the two
        add up. (See `ReleasedMix`.)
        """
        own = torch.diag(self.share)
        return own.scatter_add(1, self.partner[:, None], (1 - self.share)[:, None])


class ReleasedMix(Mix):
    """The targets as the released code has them, to measure what its two mistakes cost.

    Partners are counted from the start of the whole batch, so that those of all but the first
    subject are other people's images; and a trial that is its own partner keeps 1 − λ_i, which is
    nothing where it was left alone. (See book/differences.md, "Partners in mixed batches".)
    """

    @classmethod
    def join(cls, mixes: Sequence[Mix]) -> "ReleasedMix":
        """The subjects' mixes end to end, each still counting from its own start."""
        return cls(*(torch.cat(parts) for parts in zip(*mixes, strict=True)))

    def target(self) -> Float[Tensor, "batch batch"]:
        """Row i has λ_i on the own image, then 1 − λ_i is *written* at the partner's."""
        own = torch.diag(self.share)
        return own.scatter(1, self.partner[:, None], (1 - self.share)[:, None])


PARTNERS = {"own": Mix, "released": ReleasedMix}  # whose images a subject's partners are


def mixco(
    voxels: Float[Tensor, "batch voxels"],
    *,
    alpha: float = 0.15,
    prob: float = 0.5,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "batch voxels"], Mix]:
    """Mix about half of the trials with a random partner k: x_i ← λ_i x_i + (1 − λ_i) x_k.

    λ_i ~ Beta(alpha, alpha), which is mostly near 0 or near 1. Without a generator it draws from
    torch's own; training always passes one.
    """
    generator = generator or torch.default_generator
    mix = draw_mix(len(voxels), alpha=alpha, prob=prob, generator=generator)
    mix = Mix(*(x.to(voxels.device) for x in mix))
    return mix.apply(voxels), mix


def draw_mix(
    batch: int, *, alpha: float = 0.15, prob: float = 0.5, generator: torch.Generator
) -> Mix:
    """Random partners and shares for one subject's batch, on the generator's device."""
    on = {"generator": generator, "device": generator.device}
    partner = torch.randperm(batch, **on)
    # torch draws no Beta from a generator of one's own; numpy does, from a seed drawn here.
    seed = int(torch.randint(2**31, (), **on))
    beta = np.random.default_rng(seed).beta(alpha, alpha, batch)
    share = torch.as_tensor(beta, dtype=torch.float32, device=generator.device)
    mixed = torch.rand(batch, **on) < prob
    return Mix(partner, torch.where(mixed, share, torch.ones_like(share)))


def bimixco_loss(
    brain: Float[Tensor, "batch dim"],
    image: Float[Tensor, "batch dim"],
    mix: Mix,
    temperature: float = MIXCO_TEMPERATURE,
) -> Float[Tensor, ""]:
    """Cross-entropy, both ways, against the shares in which the trials were mixed."""
    target = mix.target()
    logits = _similarity(brain, image, temperature)  # (batch, batch): row = trial, column = image
    return (_soft_cross_entropy(logits, target) + _soft_cross_entropy(logits.T, target.T)) / 2


def soft_clip_loss(
    brain: Float[Tensor, "batch dim"], image: Float[Tensor, "batch dim"], temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy, both ways, against softmax_j(t_i · t_j / τ): the images grade themselves."""
    target = _similarity(image, image, temperature).softmax(dim=-1)
    logits = _similarity(brain, image, temperature)
    return (_soft_cross_entropy(logits, target) + _soft_cross_entropy(logits.T, target)) / 2


def soft_clip_temperatures(epochs: int) -> Float[Tensor, " epochs"]:
    """τ of every SoftCLIP epoch: half a cosine from .004 up to .0075, ever less strict."""
    first, last = SOFT_CLIP_TEMPERATURES
    progress = torch.arange(epochs) / max(epochs - 1, 1)
    return last + (first - last) / 2 * (1 + (math.pi * progress).cos())


def low_level_contrastive_loss(
    student: Float[Tensor, "places dim"],
    teacher: Float[Tensor, "places dim"],
    augmented: Float[Tensor, "places dim"],
    temperature: float = LOW_LEVEL_TEMPERATURE,
) -> Float[Tensor, ""]:
    """Cross-entropy, both ways: find the places of the augmented pictures as the teacher does.

    Rows are all places of all pictures of the batch, of unit length: the low-level head's
    features, the teacher's for the picture, and the teacher's for an augmented copy.
    """
    there = _similarity(student, augmented, temperature)
    target = _similarity(teacher, augmented, temperature)
    forth = _soft_cross_entropy(there, target.softmax(dim=-1))
    return (forth + _soft_cross_entropy(there.T, target.T.softmax(dim=-1))) / 2


def _similarity(a: Tensor, b: Tensor, temperature: float) -> Float[Tensor, "rows columns"]:
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float().T / temperature


def _soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
