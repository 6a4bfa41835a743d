"""Ridge regression from voxels to anything; cross-validation over pictures sets the penalty.

    x   voxels, standardized by the training trials     (trials, V)
    y   what a network makes of the picture, flattened  (trials, outputs)
    W   (xᵀx + α)⁻¹ xᵀ(y − ȳ), one α for all outputs

What the systems before MindEye2 learn from a brain is nothing but such maps (see `baselines`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

ALPHAS = tuple(10 ** (half / 2) for half in range(2, 15))  # 10 to 10 million
FOLDS = 5


@dataclass(frozen=True)
class RidgeMap:
    """A fitted map: voxels (n, V) to (n, *shape)."""

    mean: Float[Tensor, " voxels"]
    std: Float[Tensor, " voxels"]
    weight: Float[Tensor, "voxels outputs"]
    bias: Float[Tensor, " outputs"]
    shape: tuple[int, ...]
    alpha: float

    def __call__(self, voxels: Float[Tensor, "n voxels"]) -> Float[Tensor, "n ..."]:
        """ValueError in one line for another number of voxels than it was fitted to."""
        if voxels.shape[1] != len(self.mean):
            raise ValueError(
                f"this map takes {len(self.mean)} voxels, got {voxels.shape[1]}: pass the same ones"
            )
        standard = (voxels.float() - self.mean) / self.std
        return (standard @ self.weight + self.bias).unflatten(1, self.shape)


class Spectrum(NamedTuple):
    """All that is needed to solve for any penalty: xᵀx = basis · values · basisᵀ, and basisᵀxᵀy."""

    values: Float[Tensor, " rank"]
    basis: Float[Tensor, "voxels rank"]
    response: Float[Tensor, "rank outputs"]

    @classmethod
    def of(cls, x: Float[Tensor, "n voxels"], y: Float[Tensor, "n outputs"]) -> "Spectrum":
        """From the smaller of xᵀx and xxᵀ, in double precision."""
        if len(x) >= x.shape[1]:
            values, basis = torch.linalg.eigh((x.T @ x).double())
            basis = basis.float()
        else:
            values, rows = torch.linalg.eigh((x @ x.T).double())
            kept = values > values[-1] * 1e-9  # centered trials are one short of full rank
            values, rows = values[kept], rows[:, kept]
            basis = x.T @ (rows / values.sqrt()).float()
        return cls(values.float().clamp(min=0), basis, basis.T @ (x.T @ y))

    def solve(self, alpha: float) -> Float[Tensor, "rank outputs"]:
        """The weights in the basis."""
        return self.response / (self.values + alpha)[:, None]


def fit(
    voxels: Float[Tensor, "trials voxels"],
    targets: Float[Tensor, "rows ..."],
    groups: Int[Tensor, " pictures"],
    *,
    alphas: tuple[float, ...] = ALPHAS,
    folds: int = FOLDS,
) -> RidgeMap:
    """The map of least squared error on held-out pictures, fitted again to all of them.

    `groups` says whose picture a row is of: rows of one picture are held out together, as repeats
    would give one another away. Voxels without any variance count as zero. ValueError in one line
    where there are fewer pictures than folds, or other numbers of rows.
    """
    if not len(voxels) == len(targets) == len(groups):
        raise ValueError(
            f"{len(voxels)} rows of voxels, {len(targets)} of targets, {len(groups)} pictures: "
            "give one of each for every trial"
        )
    fold = groups.unique(return_inverse=True)[1] % folds
    if len(fold.unique()) < folds:
        raise ValueError(f"{len(groups.unique())} pictures are too few for {folds} folds")
    mean, std = voxels.float().mean(0), voxels.float().std(0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    x, y = (voxels.float() - mean) / std, targets.float().flatten(1)
    alpha = alphas[0] if len(alphas) == 1 else chosen(x, y, fold, alphas)
    found = Spectrum.of(x, y - y.mean(0))
    weight = found.basis @ found.solve(alpha)
    return RidgeMap(mean, std, weight, y.mean(0), tuple(targets.shape[1:]), alpha)


def chosen(
    x: Float[Tensor, "n voxels"],
    y: Float[Tensor, "n outputs"],
    fold: Int[Tensor, " n"],
    alphas: tuple[float, ...],
) -> float:
    """The penalty whose predictions of the folds left out have the least squared error."""
    error = torch.zeros(len(alphas))
    for out in fold.unique():
        rest, held = fold != out, fold == out
        middle, level = x[rest].mean(0), y[rest].mean(0)
        found = Spectrum.of(x[rest] - middle, y[rest] - level)
        seen, wanted = (x[held] - middle) @ found.basis, y[held] - level
        error += torch.stack([((seen @ found.solve(a) - wanted) ** 2).sum() for a in alphas])
    return alphas[int(error.argmin())]
