"""What a step sees: batches drawn by the number of the step, so that any can be drawn again.

voxels    (batch, voxels)   per subject, mixed in the first third of training
targets   (batch, ...)      of all subjects' trials, end to end in the same order

Targets of the real networks are 60 GB of float16 that stay in their file (`encoders.targets` maps
it): only the rows of a batch are read, moved to the device and made float32 there.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mindeye2_lite.losses import PARTNERS, Mix, draw_mix
from mindeye2_lite.parts import Part, rows_of

TARGETS = ("tokens", "latents", "aux", "aux_augmented")


class Batch(NamedTuple):
    """Voxels per subject, and the targets of all of them end to end in the same order.

    Where it is a part of a larger batch, `part` says which; `mix` is always the whole batch's.
    """

    voxels: dict[int, Tensor]
    targets: dict[str, Tensor]
    mix: Mix | None
    part: Part | None = None


class Feed:
    """Batches by number of the step. No workers, no state: any step can be drawn again.

    Each subject gives the same number of trials; each of them is a walk through permutation after
    permutation of that subject's trials. Official: batches with replacement, cut from shards.
    Voxels and targets are taken as they are, without a copy, unless they are few enough to lie on
    the GPU. `partners` as in `losses.PARTNERS`; ValueError for another word.
    """

    def __init__(
        self,
        trials: Mapping[int, Any],
        targets: Any,
        batch: int,
        seed: int,
        device: torch.device,
        partners: str = "own",
    ):
        if partners not in PARTNERS:
            raise ValueError(f"partners is {partners!r}: choose one of {', '.join(PARTNERS)}")
        self.join = PARTNERS[partners].join
        fewest = min(len(t.image_id) for t in trials.values())
        self.each, self.seed, self.device = min(max(1, batch // len(trials)), fewest), seed, device
        self.rows = {s: targets.index(t.image_id) for s, t in trials.items()}
        kept = {name: getattr(targets, name, None) for name in TARGETS}
        self.voxels = {s: t.voxels for s, t in trials.items()}
        self.targets = {k: v for k, v in kept.items() if v is not None}
        if _fits_near((*self.voxels.values(), *self.targets.values()), device):
            self.voxels = {s: v.to(device) for s, v in self.voxels.items()}
            self.targets = {k: v.to(device) for k, v in self.targets.items()}

    @property
    def batch(self) -> int:
        """Trials of all subjects together."""
        return self.batch_of(self.each)

    def __call__(self, step: int, *, mixed: bool, rank: int = 0, world: int = 1) -> Batch:
        """One process's batch, in one part."""
        return self.parts(step, mixed=mixed, rank=rank, world=world)[0]

    def parts(
        self, step: int, *, mixed: bool, rank: int = 0, world: int = 1, cut: int = 1
    ) -> list[Batch]:
        """One process's batch in `cut` micro-batches. ValueError where it has too few trials."""
        numbers = range(step * world, (step + 1) * world)
        chosen = {s: torch.cat([self.chosen(s, n) for n in numbers]) for s in self.voxels}
        voxels = {s: self._take(self.voxels[s], rows) for s, rows in chosen.items()}
        images = torch.cat([self.rows[s][rows] for s, rows in chosen.items()])
        targets = {name: self._take(values, images) for name, values in self.targets.items()}
        whole = Batch(voxels, targets, None)
        if mixed:
            generator = torch.Generator().manual_seed(derive(self.seed, "mix", step, 0))
            mixes = [draw_mix(len(rows), generator=generator) for rows in chosen.values()]
            mixes = [Mix(*(x.to(self.device) for x in mix)) for mix in mixes]
            pairs = zip(voxels.items(), mixes, strict=True)
            whole = Batch({s: mix.apply(x) for (s, x), mix in pairs}, targets, self.join(mixes))
        if world * cut == 1:
            return [whole]
        shape = {"rank": rank, "world": world, "cut": cut}
        cuts = rows_of(len(self.voxels), self.each, **shape)
        return [self._part(whole, rows, self.each * world) for rows in cuts]

    def _part(self, whole: Batch, rows: Tensor, each: int) -> Batch:
        """These rows of a batch that holds `each` trials of every subject."""
        subjects = enumerate(whole.voxels.items())
        own = {i: rows[rows // each == i] - i * each for i in range(len(whole.voxels))}
        voxels = {s: self._take(values, own[i]) for i, (s, values) in subjects}
        targets = {name: self._take(values, rows) for name, values in whole.targets.items()}
        part = Part(rows.to(self.device), self.batch_of(each), each // self.each, whole.targets)
        return Batch(voxels, targets, whole.mix, part)

    def batch_of(self, each: int) -> int:
        """Trials of all subjects together where there are `each` of every one."""
        return each * len(self.voxels)

    def chosen(self, subject: int, number: int) -> Tensor:
        """Rows of that subject's trials in its batch of that number."""
        n, start = len(self.voxels[subject]), number * self.each
        passes = range(start // n, (start + self.each - 1) // n + 1)
        walk = torch.cat([self._permutation(subject, n, once) for once in passes])
        return walk[start % n : start % n + self.each]

    def _permutation(self, subject: int, n: int, once: int) -> Tensor:
        seed = derive(self.seed, "order", subject, once)
        return torch.randperm(n, generator=torch.Generator().manual_seed(seed))

    def _take(self, values: Tensor, rows: Tensor) -> Tensor:
        """These rows in float32. Half precision travels as it is: that is half the bytes."""
        return values[rows.to(values.device)].to(self.device, non_blocking=True).float()


def derive(*parts: Any) -> int:
    """A seed that follows from these parts and from nothing else."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def _fits_near(values: Iterable[Tensor], device: torch.device) -> bool:
    """Do all data take less than a tenth of what is free on the device? Training needs the rest."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(v.nbytes for v in values) < free / 10
