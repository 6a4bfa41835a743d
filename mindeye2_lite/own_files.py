"""Your own files into the training layout: betas in any common form, events, a folder of pictures.

| betas | which |
|---|---|
| `.npy` | (trials, V), or a volume per trial; GLMsingle's `TYPED_FITHRF_GLMDENOISE_RR.npy` |
| `.h5` `.hdf5` `.mat` | `betas`, `betasmd`, `modelmd`, the only array, or `FILE#NAME` |
| `.nii` `.nii.gz` | (X, Y, Z, trials) |

One file, or one per session. V = voxels inside the mask, in C order of (x, y, z); without a mask
those that ever change. Read with notebook 14.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np

from mindeye2_lite.glmsingle import read_results
from mindeye2_lite.layout import open_hdf5, reading, there
from mindeye2_lite.own_checks import BLOCK, Stored
from mindeye2_lite.own_data import from_arrays
from mindeye2_lite.own_events import check_order, matching, read_events
from mindeye2_lite.own_pictures import open_pictures
from mindeye2_lite.own_split import Split

NAMES = ("betas", "betasmd", "modelmd")  # NSD's, Python's and MATLAB's GLMsingle
Files = str | Path | Sequence[str | Path]


def from_files(
    root: str | Path,
    betas: Files,
    events: Files,
    images: Any,
    *,
    mask: str | Path | None = None,
    captions: Any = None,
    image_column: str | None = None,
    ignore: Collection[str] = (),
    sessions_from: str | None = None,
    image_size: int = 224,
    **how: Any,
) -> Split:
    """Write one person's data below `root`, and say how they were divided.

    `betas`, `events`: a file, a pattern (`ses-*/*.npy`) or a list; of several files of betas each
    is a session unless the events name theirs. `images`: a folder, or as for `from_arrays`.
    `mask`: a NIfTI or `.npy` volume, not 0 inside. `captions`: a mapping, or a JSON file of one.
    `image_column`: where events name pictures (`stim_file`, `trial_type`); lines whose picture is
    in `ignore` (`n/a`, `blank`) have no betas. `sessions_from`: "files" or "events" where both
    could say; None: the events. `how`: `subject`, `test`, `regions`, `position`,
    `ncsnr`, `executor`, `progress`, `seed`. Errors: ValueError or FileNotFoundError in one line.
    """
    pictures = open_pictures(images, image_size)
    trials = read_events(events, pictures, image_column, ignore)
    found = open_betas(betas, len(trials), mask)
    how.setdefault("position", found.position)
    sessions = _sessions(found, trials, sessions_from)
    if isinstance(captions, str | Path):
        captions = _json(Path(captions))
    runs = trials.run.to_numpy() if trials.run.notna().all() else None
    with _of_files(found):
        return from_arrays(
            root, found, trials.picture.tolist(), images, sessions=sessions, runs=runs,
            captions=captions, image_size=image_size, **how,
        )  # fmt: skip


@contextmanager
def _of_files(found: "Betas") -> Iterator[None]:
    """What is said of betas names their file."""
    path = found.parts[0].path
    where = str(path) if len(found.parts) == 1 else f"{path} ... {found.parts[-1].path.name}"
    try:
        yield
    except MemoryError as error:
        raise ValueError(f"{where} holds more than fits into memory: is it damaged?") from error
    except ValueError as error:
        if not str(error).startswith("betas "):
            raise
        raise ValueError(f"{where}: {error}") from error


def _sessions(found: "Betas", trials: Any, source: str | None) -> np.ndarray | None:
    """A label per trial, None for one session. ValueError where files and events disagree."""
    if source not in (None, "files", "events"):
        raise ValueError(f"sessions_from is {source!r}: choose files or events")
    counts = [len(part) for part in found.parts]
    said = trials.session.to_numpy() if trials.session.notna().all() else None
    if source == "events" and said is None:
        raise ValueError("the events say nothing of sessions: add a column, or ses- to their names")
    if source == "files" or said is None:
        return np.repeat(np.arange(1, len(counts) + 1), counts)
    starts = np.flatnonzero(np.r_[True, said[1:] != said[:-1]])
    lengths = np.diff(np.r_[starts, len(said)]).tolist()
    if len(lengths) == len(counts) and lengths != counts:
        wrong = [a == b for a, b in zip(lengths, counts, strict=True)].index(False)
        raise ValueError(
            f"{found.parts[wrong].path} has {counts[wrong]} trials, but the events of session "
            f"{said[starts[wrong]]} are {lengths[wrong]}: are the files in the order of sessions?"
        )
    return said


def _json(path: Path) -> Any:
    try:
        content = json.loads(there(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path} is no JSON ({why})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no mapping from pictures to captions")
    for name, texts in content.items():
        if not isinstance(texts, str | list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path}: the captions of {name!r} are {texts!r}: expected sentences")
    return content


# -- arrays in files -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reversed:
    """An array of MATLAB's, whose axes h5py sees in reverse."""

    stored: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[::-1]

    @property
    def dtype(self) -> np.dtype:
        return self.stored.dtype

    def __getitem__(self, index: tuple) -> np.ndarray:
        return self.stored[index[::-1]].T


@dataclass(frozen=True)
class Nifti:
    """A NIfTI's numbers, read when they are asked for."""

    path: Path
    shape: tuple[int, ...]
    dtype = np.dtype(np.float32)

    def __getitem__(self, index: tuple) -> np.ndarray:
        with reading(self.path):
            try:
                found = np.asarray(nibabel.load(self.path).dataobj[index])
                if found.dtype.kind not in "fiu":
                    raise TypeError(f"{found.dtype}, no numbers")
                return found.astype(np.float32)
            except (ValueError, IndexError, TypeError) as error:
                raise OSError(str(error)) from error


@dataclass(frozen=True)
class Mapped:
    """A .npy file, mapped: every process opens it for itself."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index: tuple) -> np.ndarray:
        with reading(self.path):
            return np.load(self.path, mmap_mode="r", allow_pickle=False)[index]


def open_array(what: str | Path) -> Any:
    """The array of a file, or of `FILE#NAME`: has shape and dtype, and gives slices.

    No code of the file runs. ValueError or FileNotFoundError in one line.
    """
    name, path = None, Path(what)
    if not path.exists() and "#" in str(what):
        file, _, name = str(what).rpartition("#")
        path = Path(file)
    if there(path).is_dir():
        raise ValueError(f"{path} is a folder: give the file of betas, or a pattern")
    endings = {".npy": _npy, ".h5": _hdf5, ".hdf5": _hdf5, ".mat": _mat, ".nii": _nifti}
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    if ending not in endings or (path.suffix == ".gz" and ending != ".nii"):
        raise ValueError(f"{path}: unknown ending; known are {', '.join(endings)}, .nii.gz")
    array = endings[ending](path, name)
    if array.dtype.kind not in "fiub" or len(array.shape) < 2:
        raise ValueError(
            f"{path} holds {array.dtype} of shape {tuple(array.shape)}: expected numbers, (trials, "
            "voxels) or a volume per trial"
        )
    return array


def _npy(path: Path, name: str | None) -> Any:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise ValueError(f"{path} is damaged: it cannot be read ({error})") from error
    except (ValueError, EOFError) as error:
        if "Object arrays" not in str(error) and "Python objects" not in str(error):
            why = " ".join(str(error).split())
            raise ValueError(f"{path} is cut short or no file of np.save ({why})") from error
        return _result(path, read_results(path), name)
    if not isinstance(found, np.memmap):
        raise ValueError(f"{path} is no file of np.save")
    return Mapped(path, found.shape, found.dtype)


def _result(path: Path, content: Any, name: str | None) -> np.ndarray:
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no GLMsingle results and no numbers")
    arrays = {k: v for k, v in content.items() if isinstance(v, np.ndarray) and v.ndim > 1}
    return arrays[_chosen(path, arrays, name)]


def _chosen(path: Path, arrays: Collection[str], name: str | None) -> str:
    """Which array of a file holds betas."""
    known = [n for n in ([name] if name else NAMES) if n in arrays]
    known = known or ([] if name or len(arrays) != 1 else list(arrays))
    if not known:
        there_is = ", ".join(sorted(map(str, arrays))) or "no array of two or more axes"
        asked = name or " or ".join(NAMES)
        raise ValueError(f"{path} has no {asked}, only {there_is}: name one as {path.name}#NAME")
    return known[0]


def _hdf5(path: Path, name: str | None) -> Stored:
    found: dict[str, h5py.Dataset] = {}

    def look(key: str, item: Any) -> None:
        if (
            isinstance(item, h5py.Dataset)
            and len(item.shape or ()) > 1
            and item.dtype.kind in "fiu"
        ):
            found[key] = item

    with open_hdf5(path) as file, reading(path):
        file.visititems(look)
        return Stored.of(found[_chosen(path, found, name)])


def _mat(path: Path, name: str | None) -> Any:
    from scipy.io import loadmat, whosmat

    with path.open("rb") as file:
        is_hdf5 = b"MATLAB 7.3" in file.read(128)
    if is_hdf5 or h5py.is_hdf5(path):
        return Reversed(_hdf5(path, name))
    try:
        arrays = [key for key, shape, kind in whosmat(path) if len(shape) > 1]
        chosen = _chosen(path, arrays, name)
        return loadmat(path, variable_names=[chosen])[chosen]
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is cut short or no MATLAB file ({error})") from error
    except Exception as error:  # scipy's readers fail in many ways
        why = " ".join((str(error) or type(error).__name__).split())
        raise ValueError(f"{path} is cut short or no MATLAB file ({why})") from error


def _nifti(path: Path, _name: str | None = None) -> Nifti:
    try:
        image = nibabel.load(path)
        return Nifti(path, image.shape)
    except Exception as error:  # nibabel has a dozen kinds
        why = " ".join(str(error).split())
        raise ValueError(f"{path} is cut short or no NIfTI file ({why})") from error


# -- trials of a file ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Trials of one file as rows: `axis` counts trials; of the others `inside` chooses voxels."""

    path: Path
    array: Any
    axis: int
    inside: np.ndarray | None = None  # over the other axes; None: all of them, end to end

    def __len__(self) -> int:
        return self.array.shape[self.axis]

    @property
    def space(self) -> tuple[int, ...]:
        """The other axes."""
        return tuple(np.delete(self.array.shape, self.axis).tolist())

    def blocks(self, first: int, last: int):
        """(some trials, voxels) float32 from `first` to `last`, as many as fit into a block."""
        step = max(1, BLOCK // max(1, int(np.prod(self.space))))
        for start in range(first, last, step):
            index: list = [slice(None)] * len(self.array.shape)
            index[self.axis] = slice(start, min(start + step, last))
            block = np.moveaxis(np.asarray(self.array[tuple(index)]), self.axis, 0)
            flat = block.reshape(len(block), -1) if self.inside is None else block[:, self.inside]
            with np.errstate(over="ignore"):  # too large is infinite, which is checked
                yield flat.astype(np.float32)


@dataclass(frozen=True)
class Betas:
    """Trials of all files, end to end: (trials, V), read by slices of trials."""

    parts: tuple[Part, ...]
    position: np.ndarray | None  # (V, 3) places in the volume, from 0, where there is one
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        part = self.parts[0]
        voxels = np.prod(part.space) if part.inside is None else part.inside.sum()
        return sum(map(len, self.parts)), int(voxels)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        found, start = [], 0
        for part in self.parts:
            here = max(first - start, 0), min(last - start, len(part))
            found += part.blocks(*here) if here[0] < here[1] else []
            start += len(part)
        return np.concatenate(found)


def open_betas(what: Files, trials: int, mask: str | Path | None = None) -> Betas:
    """The betas of files that together have `trials` trials. ValueError where they have not."""
    paths = matching(what, "betas")
    check_order([path.as_posix() for path in paths], "betas", f"files beside {paths[0].parent}")
    arrays = [open_array(path) for path in paths]
    for path, array in zip(paths, arrays, strict=True):
        if array.dtype.kind == "b":
            raise ValueError(f"{path} holds truth values, no betas: is it a mask?")
    rank = _one_rank(paths, arrays)
    axis = _trial_axis(paths, arrays, trials, rank)
    parts = [Part(p, a, axis % rank) for p, a in zip(paths, arrays, strict=True)]
    for part in parts:
        if part.space != parts[0].space:
            raise ValueError(
                f"{part.path} has voxels {part.space}, {parts[0].path} has {parts[0].space}"
            )
    if mask is None:
        inside = _changing(parts) if rank > 2 else None
        return _betas(parts, inside, inside)
    volume = _volume(mask)
    if rank == 2:
        _check_count(mask, int(volume.sum()), parts[0].space[0])
        return _betas(parts, None, volume)
    return _betas([_turned(part, volume, mask) for part in parts], volume, volume)


def _check_count(mask: str | Path, inside: int, voxels: int) -> None:
    if inside != voxels:
        raise ValueError(f"{mask} has {inside} voxels inside, the betas have {voxels}")


def _betas(parts, inside, volume) -> Betas:
    where = np.argwhere(volume) if volume is not None and volume.ndim == 3 else None
    return Betas(tuple(Part(p.path, p.array, p.axis, inside) for p in parts), where)


def _one_rank(paths: list[Path], arrays: list[Any]) -> int:
    ranks = {len(array.shape): path for path, array in zip(paths, arrays, strict=True)}
    if len(ranks) > 1:
        one, other = list(ranks.values())[:2]
        raise ValueError(f"{one} and {other} have different numbers of axes: {sorted(ranks)}")
    return next(iter(ranks))


def _trial_axis(paths: list[Path], arrays: list[Any], trials: int, rank: int) -> int:
    """The axis that counts trials: the first or the last, whichever has as many as the events."""
    found = {axis: sum(array.shape[axis] for array in arrays) for axis in (0, -1)}
    fit = [axis for axis, count in found.items() if count == trials]
    shapes = ", ".join(str(tuple(array.shape)) for array in arrays[:3])
    what = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    if not fit:
        raise ValueError(
            f"the events have {trials} trials, but the betas have {found[0]} or {found[-1]}, "
            f"whichever axis counts trials: {what}, shape {shapes}"
        )
    if len(fit) > 1 and rank == 2:
        raise ValueError(
            f"{what} has shape {shapes}: both axes could be the {trials} trials; give betas of "
            "fewer voxels, or from_arrays an array (trials, voxels)"
        )
    return fit[-1] if rank > 2 else fit[0]


def _changing(parts: list[Part]) -> np.ndarray:
    """Voxels that are not the same in all trials, over the axes of space."""
    low, high = np.inf, -np.inf
    for part in parts:
        for block in part.blocks(0, len(part)):
            low, high = np.fmin(low, np.fmin.reduce(block)), np.fmax(high, np.fmax.reduce(block))
    inside = (high > low).reshape(parts[0].space)
    if not inside.any():
        raise ValueError(f"{parts[0].path}: no voxel ever changes")
    return inside


def _volume(mask: str | Path) -> np.ndarray:
    array = open_array(mask)
    volume = np.asarray(array[(slice(None),) * len(array.shape)])
    if volume.ndim == 4 and volume.shape[3] == 1:
        volume = volume[..., 0]
    volume = np.nan_to_num(volume) != 0
    if not volume.any():
        raise ValueError(f"{mask} is empty: no voxel is inside")
    return volume


def _turned(part: Part, volume: np.ndarray, mask: str | Path) -> Part:
    """The part with axes as its mask has them: h5py sees MATLAB's (trials, Z, Y, X)."""
    same, turned = volume.shape == part.space, volume.shape == part.space[::-1]
    if not same and not turned or (turned and not same and part.axis):
        raise ValueError(f"{mask} has shape {volume.shape}, the betas {part.path} {part.space}")
    if same and turned and not part.axis:
        raise ValueError(
            f"{part.path} has shape {tuple(part.array.shape)}: is that x, y, z or z, y, x? Give "
            "betas (X, Y, Z, trials)"
        )
    return part if same else Part(part.path, Reversed(part.array), len(volume.shape))
