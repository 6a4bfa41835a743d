"""Trials, and single rows of large HDF5 files without loading them.

    rows = Rows("betas_all_subj01_fp32_renorm.hdf5", "betas")
    rows.read([29_999, 5, 5])            (3, V): any order, duplicates allowed

A contiguous dataset is read straight from its place in the file: h5py needs sorted indices without
duplicates, and is slower. Nothing stays open between two calls, so that a `Rows` can be pickled,
forked and used by several threads. Read with notebook 01.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mindeye2_lite.layout import GLOBAL_TRIAL, IMAGE, SESSION, entry, open_hdf5, reading

Indices = int | np.integer | Sequence | np.ndarray | Tensor


@dataclass(frozen=True)
class Trials:
    """Trials of one person in the order in which they happened."""

    voxels: Tensor  # (trials, V) float32, in standard deviations
    image_id: Tensor  # (trials,) int64, NSD's 73k index from 0
    repeat: Tensor  # (trials,) int64, 0 at the first showing of that image in the split
    session: Tensor  # (trials,) int64, from 1
    behavior: Tensor  # (trials, 17) float64, columns as in COLUMNS

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def image_ids(self) -> Tensor:
        """The images seen, ascending, each once: "image i" everywhere below."""
        return self.image_id.unique()

    def repeats(self, n: int = 3) -> Tensor:
        """Voxels as (images, n, V), images ascending.

        Where an image was shown fewer than n times its first showing fills the gap: (a, a, a) or
        (a, a, b), as in the released code.
        """
        order = torch.argsort(self.image_id, stable=True)
        _, counts = self.image_id.unique(return_counts=True)
        rows = [
            [*[int(group[0])] * (n - len(group)), *group.tolist()][:n]
            for group in order.split(counts.tolist())
        ]
        return self.voxels[torch.tensor(rows, dtype=torch.long).reshape(-1, n)]


class Rows:
    """Rows of a dataset of numbers; `kind` is what errors call them.

    ValueError or FileNotFoundError in one line where the file is missing, damaged, holds something
    else, or changes while it is in use.
    """

    def __init__(self, path: str | Path, name: str, kind: str = "rows"):
        self.path, self.name, self.kind = Path(path), name, kind
        with open_hdf5(self.path) as file:
            data = entry(file, name)
            numbers = isinstance(data, h5py.Dataset) and data.ndim and data.dtype.kind in "fiu"
            if not numbers:
                raise ValueError(f"{self.path}: {name} is no table of numbers")
            self.shape, self.dtype = data.shape, data.dtype
            self._offset = _offset(data)
        self._stamp = _stamp(self.path.stat())

    def __len__(self) -> int:
        return self.shape[0]

    def checked(self, rows: Indices) -> np.ndarray:
        """Row numbers as (n,) int64; ValueError in one line names one that is not there."""
        rows = np.atleast_1d(np.asarray(rows))
        if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
            raise ValueError(f"{self.kind} of {self.path} are asked for by a list of whole numbers")
        rows = rows.astype(np.int64)
        wrong = rows[(rows < 0) | (rows >= len(self))]
        if len(wrong):
            raise ValueError(
                f"{self.path} has {self.kind} 0 to {len(self) - 1}; asked for {wrong[0]}"
            )
        return rows

    def read(self, rows: Indices) -> np.ndarray:
        """(n, ...) in the type of the file, only those rows, in the order asked for."""
        rows = self.checked(rows)
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if out.size:
            with reading(self.path):
                (self._by_h5py if self._offset is None else self._straight)(rows, out)
        return out

    def _straight(self, rows: np.ndarray, out: np.ndarray) -> None:
        plain = out.reshape(len(rows), -1).view(np.uint8)
        ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        with self.path.open("rb", buffering=0) as file:
            if _stamp(os.fstat(file.fileno())) != self._stamp:
                raise ValueError(f"{self.path} has changed since it was opened: open it anew")
            first = 0
            for last in ends:  # neighbors in one go
                file.seek(self._offset + int(rows[first]) * plain.shape[1])
                _fill(file, plain[first:last].reshape(-1))
                first = last

    def _by_h5py(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Compressed or chunked: what lies in the same chunk is read together."""
        with open_hdf5(self.path) as file:
            data = file[self.name]
            together = min(data.chunks[0], 750) if data.chunks else 1
            for chunk in np.unique(rows // together):
                here = np.flatnonzero(rows // together == chunk)
                first = rows[here].min()
                out[here] = data[first : rows[here].max() + 1][rows[here] - first]


def _offset(data: h5py.Dataset) -> int | None:
    """Where the dataset's bytes begin in its file; None where they are not one piece of it."""
    if data.chunks or data.external or data.is_virtual:
        return None
    return data.id.get_offset()


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _fill(file, buffer: np.ndarray) -> None:
    view, done = memoryview(buffer), 0
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            raise EOFError("it ends too early")
        done += got


class Images:
    """Pictures by 73k index: `images[ids]` -> (n, 3, H, W) float32 in [0, 1]."""

    def __init__(self, path: str | Path):
        self._rows = Rows(path, "images", kind="images")
        self.path, self.shape = self._rows.path, self._rows.shape
        if len(self.shape) != 4 or self.shape[1] != 3:
            raise ValueError(f"{path} has images of shape {self.shape}, expected (images, 3, H, W)")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Indices) -> Tensor:
        return floats(self._rows.read(ids))


def floats(array: np.ndarray) -> Tensor:
    """float32 of any numbers; torch turns float16 into it several times faster than numpy."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array).float()


# -- single trials ---------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A trial and its picture; of a batch each field has one more axis in front."""

    voxels: Tensor  # (V,) float32
    image: Tensor  # (3, H, W) float32 in [0, 1]; (0,) where images were not asked for
    image_id: int | Tensor
    session: int | Tensor  # from 1
    repeat: int | Tensor  # 0 at the first showing of that image in the split
    trial: int | Tensor  # global, from 0


class Pairs(Dataset):
    """Trials of a split with their pictures, each read when it is asked for.

    `pairs[5]` is a Pair, `pairs[[5, 2, 5]]` a Pair of three trials at once. For a DataLoader with
    any number of workers: `DataLoader(pairs, 24, shuffle=True)`, or without the second copy that
    stacking makes, `DataLoader(pairs, sampler=BatchSampler(sampler, 24, False), batch_size=None)`.
    `subject` is an nsd.Subject, `sessions` and `normalize` are as in its `train` and `test`.
    IndexError where there is no such pair. Official: all betas in memory, images by sorted indices
    without duplicates.
    """

    def __init__(
        self, subject: Any, sessions: int | None = None, split: str = "train",
        normalize: str = "sessions", images: bool = True,
    ):  # fmt: skip
        # (pairs, 17) as in layout.COLUMNS
        self.behavior, self._scales = subject.scaling(split, sessions, normalize)
        columns = self.behavior[:, [IMAGE, SESSION, GLOBAL_TRIAL]].astype(np.int64).T
        self._image_id, self._session, self._trial = (column.copy() for column in columns)
        self._repeats = repeats(self._image_id)
        self._betas, self._images = subject.betas, subject.images if images else None

    def __len__(self) -> int:
        return len(self._trial)

    def __getitem__(self, index: Indices) -> Pair:
        if isinstance(index, int | np.integer):
            return self.__getitems__([index])[0]
        index = np.asarray(index, np.int64)
        wrong = index[(index < -len(self)) | (index >= len(self))]
        if len(wrong):
            raise IndexError(f"there are pairs 0 to {len(self) - 1}; asked for {wrong[0]}")
        voxels = floats(self._betas.read(self._trial[index])).numpy()
        rescale(voxels, self._session[index], self._scales)
        ids = self._image_id[index]
        images = torch.empty(len(index), 0) if self._images is None else self._images[ids]
        numbers = (ids, self._session[index], self._repeats[index], self._trial[index])
        return Pair(torch.from_numpy(voxels), images, *(torch.from_numpy(n) for n in numbers))

    def __getitems__(self, indices: Sequence[int]) -> list[Pair]:
        """Several pairs at once, for a DataLoader: views of one block of memory."""
        voxels, image, *numbers = self[list(indices)]
        rows = zip(voxels, image, *(n.tolist() for n in numbers), strict=True)
        return [Pair(*row) for row in rows]


def repeats(image_id: np.ndarray) -> np.ndarray:
    """How often each trial's image was shown before, (trials,): 0 at the first showing."""
    return pd.Series(image_id).groupby(image_id).cumcount().to_numpy(np.int64)


# -- scaling ---------------------------------------------------------------------------------------


# Session -> mean and deviation that the file took from it, and those to take instead: (V,) each.
Scales = dict[int, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]


def rescale(voxels: np.ndarray, session: np.ndarray, scales: Scales) -> None:
    """Scale (n, V) in place, each trial as its session says."""
    for number, (mean, std, new_mean, new_std) in scales.items():
        here = session == number
        if here.any():
            block = voxels[here]
            block *= std
            block += mean
            block -= new_mean
            block /= new_std
            voxels[here] = block


# -- records that cannot be ------------------------------------------------------------------------


def check_records(path: Path, table: np.ndarray, sessions: set[int]) -> None:
    """ValueError in one line where a tar's records are not those of these sessions."""
    numbers = table[:, [IMAGE, SESSION, GLOBAL_TRIAL]]
    names = ("image index", "session", "global trial")
    for name, column in zip(names, numbers.T, strict=True):
        wrong = column[~((column >= 0) & (column < 2**40) & (column == np.rint(column)))]
        if len(wrong):
            raise ValueError(f"{path} has {name} {wrong[0]:g}: expected a whole number from 0")
    strange = sorted(set(numbers[:, 1].astype(int).tolist()) - sessions)
    if strange:
        expected = f"session {min(sessions)}" + f" to {max(sessions)}" * (len(sessions) > 1)
        raise ValueError(
            f"{path} has records of session {strange[0]}, expected {expected}: tars are missing, "
            "or in another order"
        )
    trials, counts = np.unique(numbers[:, 2], return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{path} has global trial {int(trials[counts > 1][0])} more than once")


def check_order(folder: Path, table: np.ndarray) -> None:
    """ValueError in one line where splits share a trial, or a later session has earlier trials."""
    table = table[np.lexsort((table[:, GLOBAL_TRIAL], table[:, SESSION]))]
    step = np.diff(table[:, GLOBAL_TRIAL])
    if (step == 0).any():
        trial = int(table[:-1][step == 0][0, GLOBAL_TRIAL])
        raise ValueError(f"{folder} has global trial {trial} in two tars: none may be in both")
    if (step < 0).any():
        before, after = (int(x) for x in table[np.flatnonzero(step < 0)[0] + np.r_[0, 1], SESSION])
        raise ValueError(
            f"{folder}: session {after} has global trials before the last of session {before}: "
            "sessions are out of order"
        )
