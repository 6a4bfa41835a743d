"""What is looked at in a stranger's arrays before a number of them is written.

Read with notebook 14.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm.auto import tqdm

from mindeye2_lite.layout import IMAGE, SESSION, SHARED, open_hdf5, reading
from mindeye2_lite.layout_writing import normalized

BLOCK = 2**25  # numbers looked at at once: 128 MB
MOST = 2**27  # numbers that the estimate of ncsnr keeps: 1 GB
REPEATED = 10  # so many pictures must repeat before ncsnr is estimated


@dataclass(frozen=True)
class Stored:
    """A dataset of an HDF5 file that every process opens for itself."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> "Stored":
        """The same numbers as an open dataset's."""
        return cls(Path(dataset.file.filename), dataset.name, dataset.shape, dataset.dtype)

    def __getitem__(self, rows: Any) -> np.ndarray:
        with open_hdf5(self.path) as file, reading(self.path):
            return file[self.name][rows]


def checked_shown(shown: Any) -> list:
    """One name or number per trial; ValueError in one line for anything else."""
    if isinstance(shown, str) or getattr(shown, "ndim", 1) != 1:
        what = repr(shown) if isinstance(shown, str) else f"of shape {shown.shape}"
        raise ValueError(f"shown is {what}: expected one name of a picture for each trial")
    return list(shown)


def checked_betas(betas: Any, trials: int, portable: bool = False) -> Any:
    """`betas` as something of shape (trials, V) that gives rows; ValueError says what is wrong.

    `portable`: other processes will read it, too.
    """
    if not isinstance(getattr(betas, "dtype", None), np.dtype):
        betas = np.asarray(betas)
    if betas.dtype.kind not in "fiu":
        raise ValueError(f"betas are {betas.dtype}: expected numbers")
    if len(betas.shape) != 2 or 0 in betas.shape:
        raise ValueError(f"betas has shape {tuple(betas.shape)}: expected (trials, voxels)")
    if len(betas) != trials:
        turned = " (turn it: betas.T)" if betas.shape[1] == trials else ""
        raise ValueError(
            f"betas has shape {tuple(betas.shape)}, so {len(betas)} trials, but shown has "
            f"{trials}{turned}"
        )
    return Stored.of(betas) if portable and isinstance(betas, h5py.Dataset) else betas


def numbered(
    name: str, labels: Any, trials: int, within: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels as numbers from 1 in order of appearance, and each trial's place in its group from 1.

    `within`: groups that the numbers begin anew in. None: all of a group have one label, number 1.
    ValueError where a label comes back after another: trials must be in order of time.
    """
    labels = np.ones(trials, int) if labels is None else np.asarray(labels)
    if labels.shape != (trials,):
        raise ValueError(f"{name} has shape {labels.shape}, but shown has {trials} trials")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError(f"{name} is NaN at trial {int(np.isnan(labels).argmax())} (from 0)")
    within = np.ones(trials, int) if within is None else within
    numbers, places, seen = np.empty(trials, int), np.empty(trials, int), {}
    before = None
    for trial, key in enumerate(zip(within.tolist(), labels.tolist(), strict=True)):
        if key != before:
            if key in seen:
                raise ValueError(
                    f"{name} comes back to {key[1]!r} at trial {trial} (from 0): put the trials "
                    "in order of time"
                )
            new = before is None or key[0] != before[0]
            seen[key], first, before = 1 if new else seen[before] + 1, trial, key
        numbers[trial], places[trial] = seen[key], trial - first + 1
    return numbers, places


@dataclass(frozen=True)
class PerVoxel:
    """What is known of each voxel, besides its betas."""

    regions: Mapping[str, np.ndarray]  # name -> (V,) bool
    position: np.ndarray | None  # (V, 3) places in a volume, from 0
    ncsnr: np.ndarray | None  # (V,)


def per_voxel(regions: Mapping | None, position: Any, ncsnr: Any, voxels: int) -> PerVoxel:
    """The same as arrays; ValueError in one line where one does not fit `voxels` voxels."""
    masks = {name: np.asarray(mask) for name, mask in (regions or {}).items()}
    for name, mask in masks.items():
        truths = mask.dtype.kind in "biuf" and np.isin(mask, (0, 1)).all()
        if mask.shape != (voxels,) or not truths:
            raise ValueError(
                f"region {name} is {mask.dtype} of shape {mask.shape}: expected {voxels} times "
                "True or False, one for each voxel of betas"
            )
        if not isinstance(name, str) or not name or "/" in name or name == "nsd_general":
            raise ValueError(f"a region is named {name!r}: choose a word (nsd_general is taken)")
    return PerVoxel(
        {name: mask.astype(bool) for name, mask in masks.items()},
        None if position is None else _places(position, voxels),
        None if ncsnr is None else _numbers("ncsnr", ncsnr, (voxels,)),
    )


def _numbers(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != shape or values.dtype.kind not in "fiu":
        raise ValueError(f"{name} is {values.dtype} of shape {values.shape}: expected {shape}")
    return values.astype(np.float32)


def _places(position: Any, voxels: int) -> np.ndarray:
    places = _numbers("position", position, (voxels, 3))
    if not (np.isfinite(places).all() and (places >= 0).all() and (places % 1 == 0).all()):
        raise ValueError("position must hold whole numbers from 0: x, y, z of each voxel's place")
    return places.astype(np.int64)


@dataclass(frozen=True)
class Voxels:
    """The voxels of someone's betas that have numbers, read session by session."""

    betas: Any
    rows: tuple[tuple[int, int], ...]  # first and last of each session
    keep: np.ndarray  # (V,) bool
    constant: int
    digest: str

    def __call__(self, session: int) -> np.ndarray:
        """(trials, kept voxels) float32 of a session, from 1."""
        rows = _float32(self.betas[slice(*self.rows[session - 1])])
        return rows if self.keep.all() else rows[:, self.keep]

    def notes(self) -> list[str]:
        """What is odd about them, in sentences."""
        text = f"Voxels that never change, kept as zeros: {self.constant}."
        return [text] * bool(self.constant)


def examined(betas: Any, session: np.ndarray, progress: bool) -> Voxels:
    """Reads all betas once. ValueError where a voxel has numbers in some trials only."""
    trials, voxels = betas.shape
    good = np.zeros(voxels, int)
    low, high = np.full(voxels, np.inf, np.float32), np.full(voxels, -np.inf, np.float32)
    gap = np.full(voxels, -1)  # the first trial without a number
    digest = hashlib.sha256()
    for first, block in _blocks(betas, progress):
        finite = np.isfinite(block)
        digest.update(np.ascontiguousarray(block))
        new = ~finite.all(0) & (gap < 0)
        gap[new] = first + (~finite[:, new]).argmax(0)
        good += finite.sum(0)
        low = np.minimum(low, np.where(finite, block, np.inf).min(0))
        high = np.maximum(high, np.where(finite, block, -np.inf).max(0))
    _check_gaps(good, gap, trials)
    keep = good == trials
    starts = np.flatnonzero(np.diff(session, prepend=0))
    rows = tuple(zip(starts.tolist(), [*starts[1:].tolist(), trials], strict=True))
    return Voxels(betas, rows, keep, int((low == high)[keep].sum()), digest.hexdigest()[:12])


def _check_gaps(good: np.ndarray, gap: np.ndarray, trials: int) -> None:
    if not good.any():
        raise ValueError("betas has no number at all: every value is NaN or infinite")
    some = np.flatnonzero((good > 0) & (good < trials))
    if len(some):
        more = f", and {len(some) - 1} other voxels have such gaps" * (len(some) > 1)
        raise ValueError(
            f"betas is NaN or infinite for voxel {some[0]} in trial {gap[some[0]]} (from 0), but "
            f"not in all trials{more}: leave such voxels or trials out, or set the voxels to NaN "
            "throughout to have them left out"
        )


def _blocks(betas: Any, progress: bool) -> Iterator[tuple[int, np.ndarray]]:
    trials, voxels = betas.shape
    step = max(1, BLOCK // voxels)
    starts = range(0, trials, step)
    for first in tqdm(starts, "checking", disable=not progress or len(starts) < 2):
        yield first, _float32(betas[first : first + step])


def _float32(rows: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # too large is infinite, which is checked
        return np.asarray(rows).astype(np.float32, copy=False)


def estimated_ncsnr(voxels: Voxels, table: np.ndarray) -> np.ndarray | None:
    """ncsnr (V,) from training trials alone; None where fewer than ten of their pictures repeat.

    As `nsd.estimate_ncsnr` does on what is written, but session by session. Of very many pictures
    that repeat the first are used, as many as fit into a gigabyte.
    """
    train = table[:, SHARED] == 0
    images, counts = np.unique(table[train, IMAGE], return_counts=True)
    images, counts = images[counts > 1], counts[counts > 1]
    if len(images) < REPEATED:
        return None
    number = int(voxels.keep.sum())
    most = max(REPEATED, MOST // number)
    images, counts = images[:most], counts[:most]
    sums = np.zeros((len(images), number))
    inside, whole, square = np.zeros((3, number))
    for session in range(1, len(voxels.rows) + 1):
        here = table[:, SESSION] == session
        scaled = normalized(voxels(session), train[here])[0][train[here]].astype(np.float64)
        whole, square = whole + scaled.sum(0), square + (scaled**2).sum(0)
        seen = table[here & train, IMAGE]
        repeats = np.isin(seen, images)
        np.add.at(sums, np.searchsorted(images, seen[repeats]), scaled[repeats])
        inside += (scaled[repeats] ** 2).sum(0)
    noise = (inside - (sums**2 / counts[:, None]).sum(0)) / (counts - 1).sum()
    n = train.sum()
    signal = np.maximum((square - whole**2 / n) / (n - 1) - noise, 0)
    known = noise > 1e-12  # not where a voxel never changes
    return np.sqrt(np.divide(signal, noise, out=np.zeros(number), where=known)).astype(np.float32)
