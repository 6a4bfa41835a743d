"""One session's betas out of NSD's volumes: HDF5 or NIfTI, only the mask's voxels, never whole.

| file | how it is read |
|---|---|
| NSD's own `.hdf5`: a chunk per voxel (NSD Data Manual) | the chunks of the mask's voxels alone |
| `.hdf5` in other chunks, or in none | chunks that hold voxels of the mask, in blocks of trials |
| `.nii`, `.nii.gz` | one pass through the stream, in blocks of trials |

Values are NSD's, whatever type holds them: percent signal change x 300. Memory: the result and a
block of 64 MB. h5py sees the volumes as (trials, z, y, x), NIfTI files and masks are (x, y, z).
Read with notebook 01.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import nibabel
import numpy as np

from mindeye2_lite.layout import entry, open_hdf5, reading, there

SCALE = 300  # NSD stores percent signal change x 300 as int16
ENDINGS = (".hdf5", ".nii.gz", ".nii")  # in order of preference
BLOCK = 64 * 2**20  # bytes of raw volumes in memory


def read(path: str | Path, mask: np.ndarray) -> np.ndarray:
    """One session, (trials, V) float32 in percent signal change; V in C order of (x, y, z).

    `mask`: (x, y, z) bool. Errors: FileNotFoundError, ValueError in one line where the file is
    damaged, has volumes of another size, or values that are no finite numbers.
    """
    path, mask = Path(path), np.asarray(mask, bool)
    trials = _numbers(path)[0]
    check(path, trials, mask.shape)
    if not mask.any():
        raise ValueError(f"the mask for {path} holds no voxel")
    places = np.argwhere(mask)
    betas = np.empty((trials, len(places)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below
        (_from_nifti if _is_nifti(path) else _from_hdf5)(path, places, betas)
    _finite(path, places, betas)
    betas /= SCALE
    return betas


def _finite(path: Path, places: np.ndarray, betas: np.ndarray) -> None:
    known = np.isfinite(betas)
    if not known.all():
        bad = np.argwhere(~known)
        raise ValueError(
            f"{path} has {len(bad)} betas that are no finite numbers, the first in trial "
            f"{bad[0, 0] + 1} at voxel {tuple(places[bad[0, 1]].tolist())}, counted from 0"
        )


def check(path: Path, trials: int, shape: tuple[int, ...], mask: str = "the mask") -> None:
    """Has a session that many volumes of that (x, y, z)? ValueError in one line; reads no betas.

    `mask` is what the message calls the volume that gave the shape.
    """
    found, expected = _numbers(path), (trials, *shape[::-1])
    if found == expected:
        return
    own = tuple(reversed(found)) if _is_nifti(path) else found
    wanted = tuple(reversed(expected)) if _is_nifti(path) else expected
    if sorted(found) == sorted(expected):
        raise ValueError(
            f"{path} has its axes in another order than {mask}: expected {wanted}, found {own}"
        )
    if len(found) != 4 or found[0] != trials:
        raise ValueError(
            f"{path} is cut short or of another run: expected {trials} trials as in "
            f"responses.tsv, shape {wanted}, found shape {own}"
        )
    axes = slice(0, 3) if _is_nifti(path) else slice(1, 4)
    raise ValueError(f"{path} has volumes {own[axes]}, {mask} has {wanted[axes]}")


def _is_nifti(path: Path) -> bool:
    return path.name.endswith(ENDINGS[1:])


def _numbers(path: Path) -> tuple[int, ...]:
    """The shape as h5py sees it, (trials, z, y, x); ValueError where these are no numbers."""
    if _is_nifti(path):
        proxy = open_nifti(path).dataobj
        shape, dtype = tuple(int(n) for n in proxy.shape[::-1]), proxy.dtype
    else:
        with open_hdf5(path) as file:
            betas = entry(file, "betas")
            if not isinstance(betas, h5py.Dataset):
                raise ValueError(f"{path}: betas is a group, expected volumes of int16")
            shape, dtype = betas.shape, betas.dtype
    if dtype.kind not in "if":  # betas have a sign
        raise ValueError(f"{path}: betas are of type {dtype}, expected int16 (percent x 300)")
    return shape


# -- HDF5 ------------------------------------------------------------------------------------------


def _from_hdf5(path: Path, places: np.ndarray, betas: np.ndarray) -> None:
    with open_hdf5(path) as file, reading(path):
        source = file["betas"]
        chunk = np.minimum(source.chunks or source.shape, source.shape)[1:]
        by = _by_voxel if (chunk == 1).all() else _by_chunk
        by(source, places[:, ::-1], chunk, betas)


def _by_voxel(
    source: h5py.Dataset, places: np.ndarray, chunk: np.ndarray, betas: np.ndarray
) -> None:
    """All trials of a voxel lie together: 512 of them at a time."""
    for first in range(0, len(places), 512):
        some = places[first : first + 512].tolist()
        columns = np.stack([source[:, z, y, x] for z, y, x in some])
        betas[:, first : first + len(some)] = columns.T


def _by_chunk(
    source: h5py.Dataset, places: np.ndarray, chunk: np.ndarray, betas: np.ndarray
) -> None:
    """Boxes of the volume that hold voxels of the mask, in blocks of trials."""
    volume = np.array(source.shape[1:])
    box = np.ravel_multi_index((places // chunk).T, -(-volume // chunk))
    order = np.argsort(box, kind="stable")
    trials = list(_blocks(source, math.prod(chunk.tolist())))
    for here in np.split(order, np.flatnonzero(np.diff(box[order])) + 1):
        corner = places[here[0]] // chunk * chunk
        sides = np.minimum(chunk, volume - corner)
        inside = np.ravel_multi_index((places[here] - corner).T, sides)
        where = tuple(map(slice, corner, corner + sides))
        for first, last in trials:
            block = source[(slice(first, last), *where)].reshape(last - first, -1)
            betas[first:last, here] = block[:, inside]


def _blocks(source: h5py.Dataset, voxels: int) -> Iterator[tuple[int, int]]:
    """Ranges of trials of about BLOCK bytes; whole chunks, so that none is unpacked twice."""
    trials, step = len(source), max(1, BLOCK // (voxels * source.dtype.itemsize))
    if source.chunks and source.compression:
        step = max(step // source.chunks[0], 1) * source.chunks[0]
    for first in range(0, trials, step):
        yield first, min(first + step, trials)


# -- NIfTI -----------------------------------------------------------------------------------------


def open_nifti(path: Path) -> nibabel.spatialimages.SpatialImage:
    """A NIfTI file whose values are not read yet; ValueError in one line where it is none."""
    try:
        return nibabel.load(there(path))
    except FileNotFoundError:
        raise
    except Exception as error:  # nibabel has a dozen kinds
        why = " ".join(str(error).split())
        raise ValueError(f"{path} is cut short or not a NIfTI file ({why})") from error


def volume(path: Path) -> np.ndarray:
    """One volume (x, y, z), scaled as its header says; ValueError in one line."""
    image = open_nifti(path)
    shape = image.shape
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)):
        raise ValueError(f"{path} has shape {shape}, expected one volume (x, y, z)")
    with _unpacking(path), reading(path):
        values = np.asarray(image.dataobj)
        if path.name.endswith(".gz"):
            _to_the_end(path)
    if values.dtype.kind not in "iufb":
        raise ValueError(f"{path} holds values of type {values.dtype}, expected numbers")
    return values.reshape(shape[:3])


def _from_nifti(path: Path, places: np.ndarray, betas: np.ndarray) -> None:
    proxy = open_nifti(path).dataobj
    x, y, z = proxy.shape[:3]
    # NIfTI counts x fastest, so a volume is (z, y, x) in C order
    inside = np.ravel_multi_index(places[:, ::-1].T, (z, y, x))
    size = x * y * z * proxy.dtype.itemsize
    step = max(1, BLOCK // size)
    opened = gzip.open if path.name.endswith(".gz") else open
    with _unpacking(path), reading(path), opened(path, "rb") as stream:
        stream.seek(proxy.offset)
        for first in range(0, len(betas), step):
            last = min(first + step, len(betas))
            content = stream.read((last - first) * size)
            if len(content) < (last - first) * size:
                trial = first + len(content) // size + 1
                raise ValueError(f"{path} is cut short: it ends in trial {trial} of {len(betas)}")
            block = np.frombuffer(content, proxy.dtype).reshape(last - first, -1)[:, inside]
            if (proxy.slope, proxy.inter) != (1, 0):
                block = block * float(proxy.slope) + float(proxy.inter)
            betas[first:last] = block
        while stream.read(BLOCK):  # gzip's checksum stands at the end
            pass


def _to_the_end(path: Path) -> None:
    """gzip's checksum stands at the end, where nibabel does not look."""
    with gzip.open(path) as stream:
        while stream.read(BLOCK):
            pass


@contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    try:
        yield
    except (zlib.error, EOFError) as error:
        raise ValueError(f"{path} is cut short or damaged ({error})") from error
    except MemoryError as error:  # what a damaged header promises
        raise ValueError(f"{path} holds more than fits into memory: is it damaged?") from error
