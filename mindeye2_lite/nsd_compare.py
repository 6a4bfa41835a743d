"""How do two builds of the same betas differ? Order, scale, offset, normalization, rounding.

    print(compare("ours", "released", subject=1))

First it is found out which trial and which voxel of the other build are ours: the same, shifted,
in Fortran order, of another mask, or nothing at all. Then a session at a time: per voxel the
correlation, and `scale` and `offset` of released = scale * ours + offset. From the same sums, and
the statistics that our files keep, follows how far each normalization of ours is from what was
released, without reading anything again. V = voxels of nsdgeneral. Read with notebook 01.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mindeye2_lite.nsd_match import SAME, Build, Match, both, find_match, match_trials
from mindeye2_lite.nsd_statistics import EXPECTED_TRIALS

EXACT, HALF = 1e-4, 2e-3  # residuals of float32 and float16 rounding, in deviations
NOTEBOOK_THRESHOLD = 0.15  # of ncsnr, in dataset_creation.ipynb


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `str()` of it is the verdict, in a few lines.

    Sessions and voxels are ours. NaN where a voxel is constant or not in the other build.
    """

    subject: int
    shapes: tuple[tuple[int, ...], tuple[int, ...]]  # (trials, V) of both
    correlation: np.ndarray  # (sessions, V)
    scale: np.ndarray  # (sessions, V): released = scale * ours + offset
    offset: np.ndarray  # (sessions, V), in the units of released
    trial_order: np.ndarray  # (trials,) row of released with our trial; -1: there is none
    voxel_order: np.ndarray  # (V,) column of released with our voxel; -1: there is none
    voxels: str  # "same", "fortran", "permuted", "subset" or "unknown"
    trials: str  # "same", "shifted", "permuted" or "unknown"
    identical: bool  # every number
    float16: tuple[bool, bool]  # do the numbers of each fit into float16?
    residual: dict[str, float]  # normalization of ours -> RMS difference, in deviations
    verdict: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.verdict)

    @property
    def best(self) -> str | None:
        """The normalization of ours that is closest to what was released."""
        return min(self.residual, key=self.residual.get) if self.residual else None

    def table(self) -> pd.DataFrame:
        """A row per session and voxel of ours: correlation, scale, offset."""
        sessions, voxels = self.correlation.shape
        return pd.DataFrame(
            {
                "session": np.repeat(np.arange(1, sessions + 1), voxels),
                "voxel": np.tile(np.arange(voxels), sessions),
                "correlation": self.correlation.ravel(),
                "scale": self.scale.ravel(),
                "offset": self.offset.ravel(),
            }
        )


def compare(ours: Any, released: Any, subject: int = 1) -> Comparison:
    """How the betas of one person differ between two training layouts.

    Both are folders, betas files, or `nsd.Subject`s. Memory holds two sessions. FileNotFoundError
    or ValueError in one line where there are no betas. Ours has to keep statistics of its sessions
    (what `nsd.prepare` writes) for normalizations to be told apart, and `voxels.hdf5` for Fortran
    order to be recognized; released files need neither.
    """
    a, b = Build(ours, subject), Build(released, subject)
    match = find_match(a, b)
    sums = _sums(a, b, match)
    if match.trials_are == "same" and (odd := sums.odd()):
        again = match_trials(a, b, match)  # sessions that changed places, perhaps
        rows = np.concatenate([again.trials[slice(*a.sessions[s - 1])] for s in odd])
        if again.score >= SAME and (rows >= 0).mean() > 0.5:
            match, sums = again, _sums(a, b, again)
    residual = _residuals(a, sums) if match.found else {}
    return Comparison(
        subject=subject,
        shapes=(a.betas.shape, b.betas.shape),
        **sums.fit(),
        trial_order=match.trials,
        voxel_order=match.voxels,
        voxels=match.voxels_are,
        trials=match.trials_are,
        identical=sums.identical and a.betas.shape == b.betas.shape and match.plain,
        float16=tuple(sums.half),
        residual=residual,
        verdict=tuple(_verdict(a, b, match, sums, residual)),
    )


def _sums(a: Build, b: Build, match: Match) -> "Sums":
    sums = Sums(len(a.sessions), a.voxels)
    for session, (first, last) in enumerate(a.sessions):
        sums.add(session, *both(a, b, match, first, last))
    return sums


# -- how they differ -------------------------------------------------------------------------------


@dataclass
class Sums:
    """Moments of both builds per session and voxel, from which everything follows."""

    sessions: int
    voxels: int
    identical: bool = True
    half: list[bool] = field(default_factory=lambda: [True, True])
    trials: int = 0

    def __post_init__(self):
        names = ("mean_a", "mean_b", "var_a", "var_b", "cov")
        self.of = {name: np.full((self.sessions, self.voxels), np.nan) for name in names}

    def add(self, session: int, ours: np.ndarray, theirs: np.ndarray, here: np.ndarray) -> None:
        """A session's (n, V') of both; `here` says which V' of our voxels these are."""
        if not ours.size:
            return
        self.trials += len(ours)
        self.identical &= bool(np.array_equal(ours, theirs))
        for i, betas in enumerate((ours, theirs)):
            self.half[i] &= _fits_float16(betas[:50])
        for first in range(0, len(here), 2048):  # float64 of a part, not of all
            part = slice(first, first + 2048)
            a, b = (np.asarray(x[:, part], np.float64) for x in (ours, theirs))
            means = a.mean(0), b.mean(0)
            a, b = a - means[0], b - means[1]
            found = (*means, (a * a).mean(0), (b * b).mean(0), (a * b).mean(0))
            for name, values in zip(self.of, found, strict=True):
                self.of[name][session, here[part]] = values

    def odd(self) -> list[int]:
        """Sessions, from 1, whose correlations are far below those of the others."""
        rows = [row[np.isfinite(row)] for row in self.fit()["correlation"]]
        middle = np.array([np.median(row) if len(row) else np.nan for row in rows])
        if not np.isfinite(middle).any():
            return []
        limit = min(SAME, np.nanmedian(middle) - 0.05)
        return (np.flatnonzero(middle < limit) + 1).tolist()

    def fit(self) -> dict[str, np.ndarray]:
        """correlation, scale and offset, (sessions, V)."""
        mean_a, mean_b, var_a, var_b, cov = self.of.values()
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.where(var_a > 0, cov / var_a, np.nan)
            correlation = np.where(var_a * var_b > 0, cov / np.sqrt(var_a * var_b), np.nan)
        return {
            "correlation": correlation,
            "scale": scale,
            "offset": mean_b - scale * mean_a,
        }


def _fits_float16(betas: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(betas, betas.astype(np.float16).astype(betas.dtype)))


def _residuals(a: Build, sums: Sums) -> dict[str, float]:
    """Normalization of ours -> RMS of released less ours so normalized, in released deviations."""
    mean_a, mean_b, var_a, var_b, cov = sums.of.values()
    out = {}
    for name, (scale, offset) in _variants(a).items():
        square = var_b + scale**2 * var_a - 2 * scale * cov
        square = np.maximum(square, 0) + (mean_b - scale * mean_a - offset) ** 2
        known = np.isfinite(square)
        if known.any() and var_b[known].mean() > 0:
            out[name] = float(np.sqrt(square[known].mean() / var_b[known].mean()))
    return out


def _variants(a: Build) -> dict[str, tuple]:
    """Name -> (scale, offset) that make it of what our file has, (sessions, V) or numbers."""
    if a.statistics is None:
        return {"all": (1.0, 0.0)}
    mean, std, mean_with_test, std_with_test = (
        None if x is None else x.astype(np.float64) for x in a.statistics
    )

    def by(other_mean, other_std) -> tuple:
        return std / other_std, (mean - other_mean) / other_std

    out = {"all": (1.0, 0.0), "global": by(*_together(mean, std, a.training_trials()))}
    if mean_with_test is not None and std_with_test is not None:
        out["notebook"] = by(mean_with_test, std_with_test)
        every = np.array([last - first for first, last in a.sessions])
        out["global, test trials included"] = by(*_together(mean_with_test, std_with_test, every))
    percent = by(0.0, 1.0)
    out["percent signal"] = percent
    out["percent signal x 300"] = tuple(300 * x for x in percent)
    # With all sessions in use two names each mean the same.
    return out | {"sessions": out["all"], "pooled": out["global"]}


def _together(mean: np.ndarray, std: np.ndarray, trials: np.ndarray) -> tuple:
    share = (trials / max(trials.sum(), 1))[:, None]
    middle = (share * mean).sum(0)
    return middle, np.sqrt((share * (std**2 + (mean - middle) ** 2)).sum(0))


# -- in words --------------------------------------------------------------------------------------


def _verdict(
    a: Build, b: Build, match: Match, sums: Sums, residual: dict[str, float]
) -> Iterator[str]:
    fit = sums.fit()
    correlation = fit["correlation"][np.isfinite(fit["correlation"])]
    typical = float(np.median(correlation)) if len(correlation) else 0.0
    yield _headline(a, b, match, sums, typical, residual)
    yield _about_voxels(a, b, match)
    yield _about_trials(a, b, match, sums)
    if not match.found:
        return
    yield _about_values(fit, correlation, sums.odd())
    if residual:
        yield _about_normalization(residual, sums.half)
    else:
        yield "normalization: nothing to compare"
    names = [name for name, half in zip(("ours", "released"), sums.half, strict=True) if half]
    if names and not sums.identical:
        yield f"rounding: {' and '.join(names)} went through float16"


def _headline(
    a: Build, b: Build, match: Match, sums: Sums, typical: float, residual: dict[str, float]
) -> str:
    if not match.found:
        return (
            f"Other data altogether: trials and voxels of {b.path.name} do not go together with "
            f"ours in any order that was tried (best correlation {match.score:.2f})."
        )
    if typical < 0.99:
        return (
            f"The same experiment, other betas: correlation {typical:.3f}. Another preparation "
            "(betas version, space, denoising), not another scale."
        )
    if sums.identical and match.plain and a.betas.shape == b.betas.shape:
        return "The same betas, number for number."
    if sums.identical:
        return "The same numbers in another order, or not as many."
    best = min(residual, key=residual.get) if residual else None
    if best and residual[best] <= (HALF if sums.half[1] else EXACT):
        return f"The same betas, normalized as {_by_name(best)}."
    return "The same betas on another scale."


def _about_voxels(a: Build, b: Build, match: Match) -> str:
    if match.voxels_are == "same":
        return f"voxels: {a.voxels}, in the same order"
    if match.voxels_are == "fortran":
        return (
            f"voxels: {a.voxels}, one build in C order of (x, y, z), the other in Fortran order (C "
            "order of z, y, x)"
        )
    if match.voxels_are == "permuted":
        found = int((match.voxels >= 0).sum())
        return f"voxels: {found} of {a.voxels} found in another order: see voxel_order" + (
            "" if a.fortran() is not None or b.fortran() is not None else
            "; ours has no voxels.hdf5 that could name it"
        )  # fmt: skip
    counts = f"voxels: ours has {a.voxels}, released {b.voxels}"
    if match.voxels_are == "subset":
        found = match.voxels >= 0
        order = "in the same order" if (np.diff(match.voxels[found]) > 0).all() else "reordered"
        return f"{counts}; {int(found.sum())} are in both, {order}{_which_mask(a, found)}"
    if a.voxels == b.voxels:
        return f"voxels: {a.voxels} in both, in no order that was tried"
    owner = [s for s, n in EXPECTED_TRIALS.items() if n["voxels"] == b.voxels]
    return counts + (f" (nsdgeneral of NSD's subject {owner[0]})" if owner else "")


def _which_mask(a: Build, found: np.ndarray) -> str:
    """Can what is in both be said in words?"""
    if found.all():
        return ": released has a larger mask than ours"
    names = [name for name, mask in a.regions().items() if np.array_equal(mask, found)]
    if names:
        return f": region {names[0]} of ours"
    ncsnr = a.entry("ncsnr")
    if ncsnr is not None and found.any() and ncsnr[~found].max() <= ncsnr[found].min():
        low, high = ncsnr[~found].max(), ncsnr[found].min()
        at = NOTEBOOK_THRESHOLD if low < NOTEBOOK_THRESHOLD <= high else (low + high) / 2
        return f": released leaves out voxels with ncsnr below {at:.3g}"
    return ": another mask"


def _about_trials(a: Build, b: Build, match: Match, sums: Sums) -> str:
    counts = f"trials: ours has {len(a.betas)}, released {len(b.betas)}"
    counts = f"trials: {len(a.betas)}" if len(a.betas) == len(b.betas) else counts
    if match.trials_are == "same":
        return f"{counts}, in the same order" + (
            f"; {sums.trials} compared" if sums.trials < len(a.betas) else ""
        )
    if match.trials_are == "shifted":
        there = np.flatnonzero(match.trials >= 0)
        by = int(match.trials[there[0]] - there[0])
        side = "later" if by > 0 else "earlier"
        return f"{counts}; each lies {abs(by)} rows {side} in released"
    if match.trials_are == "permuted":
        moved = int((match.trials != np.arange(len(match.trials)))[match.trials >= 0].sum())
        lost = int((match.trials < 0).sum())
        return f"{counts}; {moved} lie in another row, {lost} are not there: see trial_order"
    return f"{counts}; nothing shows that they are the same"


def _about_values(fit: dict[str, np.ndarray], correlation: np.ndarray, odd: list[int]) -> str:
    scale, offset = (x[np.isfinite(x)] for x in (fit["scale"], fit["offset"]))
    line = (
        f"values: correlation {np.median(correlation):.6f} (lowest {correlation.min():.4f}), "
        f"released = {_spread(scale)} x ours + {_spread(offset)}"
    )
    return line + (f"; sessions that agree less: {', '.join(map(str, odd))}" if odd else "")


def _spread(values: np.ndarray) -> str:
    low, middle, high = np.percentile(values, (5, 50, 95))
    if high - low < 1e-4 * max(abs(middle), 1):
        return f"{middle:.5g}"
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"


def _about_normalization(residual: dict[str, float], half: Sequence[bool]) -> str:
    best = min(residual, key=residual.get)
    others = sorted((v, n) for n, v in residual.items() if n != best and n not in _same_as(best))
    listed = ", ".join(f"{name} {value:.2g}" for value, name in others[:3])
    away = f"(residual {residual[best]:.2g}" + (f"; {listed})" if listed else ")")
    if residual[best] <= EXACT:
        return f"normalization: {_by_name(best)} explains released to rounding {away}"
    if half[1] and residual[best] <= HALF:
        return f"normalization: {_by_name(best)} explains released to float16 rounding {away}"
    return f"normalization: none of ours explains released; closest is {_by_name(best)} {away}"


def _same_as(name: str) -> tuple[str, ...]:
    pairs = (("all", "sessions"), ("global", "pooled"))
    return next((pair for pair in pairs if name in pair), (name,))


def _by_name(name: str) -> str:
    return " = ".join(f'"{each}"' for each in _same_as(name))
