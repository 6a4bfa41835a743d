"""The training layout: names, columns, and how its files are opened. All data end up in it.

| file | content |
|---|---|
| `betas_all_subj01_fp32_renorm.hdf5` | `betas` (trials, V), z-scored per session |
| | ours also: `session_mean`, `session_std`, `session_trials`, `ncsnr` |
| `coco_images_224_float16.hdf5` | `images` (73000, 3, 224, 224) in [0, 1], row = NSD's 73k index |
| `wds/subj01/train/0.tar` ... | behavior of the non-shared trials of session 1 ..., 17 columns |
| `wds/subj01/new_test/0.tar` | behavior of the trials of shared images, all sessions |
| `wds/subj01/test/0.tar` | the same without the last three sessions: NSD's older release |
| `brain_region_masks.hdf5`, `captions.json`, `shared1000.npy` | regions, captions, shared images |
| ours only: `voxels.hdf5`, `stimuli.csv` | where voxels lie and their labels; COCO ids of images |

The first six are the files of the MindEye2 release. V = voxels of nsdgeneral, in C order of
(x, y, z). Read with notebook 01.
"""

import io
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from mindeye2_lite import paths
from mindeye2_lite.tar_records import read_alike

COLUMNS = (  # of a behavior record; -1 where NSD has no value
    *("image_id", "SUBJECT", "SESSION", "RUN", "TRIAL", "global_trial", "TIME", "ISOLD"),
    *("ISCORRECT", "RT", "CHANGEMIND", "ISOLDCURRENT", "ISCORRECTCURRENT", "TOTAL1", "TOTAL2"),
    *("BUTTON", "shared"),
)
IMAGE, SESSION, GLOBAL_TRIAL, SHARED = 0, 2, 5, 16
BEHAVIOR = ".behav.npy"  # how a record is named in a tar


def betas_name(subject: int) -> str:
    """The stem of a person's betas file, as in the release."""
    return f"betas_all_subj{subject:02d}_fp32_renorm"


def betas_file(root: Path, subject: int) -> Path:
    """Where a person's betas lie below the root of a training layout."""
    return Path(root) / f"{betas_name(subject)}.hdf5"


def records_folder(root: Path, subject: int) -> Path:
    """Where a person's behavior tars lie: `train/0.tar` ..., `new_test/0.tar`, `test/0.tar`."""
    return Path(root) / "wds" / f"subj{subject:02d}"


def subjects(root: Path) -> list[int]:
    """Whose betas there are, ascending."""
    found = Path(root).glob("betas_all_subj[0-9][0-9]_fp32_renorm.hdf5")
    return sorted(int(path.name[14:16]) for path in found)


# -- reading, with errors that say which file ------------------------------------------------------


def there(path: Path) -> Path:
    """The path itself; FileNotFoundError in one line where nothing is there."""
    try:
        found = path.exists()
    except OSError as error:  # a loop of links
        raise ValueError(f"{path} cannot be opened: {error.strerror or error}") from error
    if not found:
        raise FileNotFoundError(f"{path} is missing")
    return path


def open_hdf5(path: Path) -> h5py.File:
    """An HDF5 file for reading; ValueError in one line where it is cut short or something else."""
    try:
        return h5py.File(there(path))
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        why = " ".join(str(error).split())
        raise ValueError(f"{path} is cut short or not an HDF5 file ({why})") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever cannot be read is the fault of that file, also while another one is written."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, EOFError, KeyError, RuntimeError, MemoryError, zlib.error) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is damaged: it cannot be read ({why})") from error


def entry(file: h5py.Group, name: str) -> h5py.Dataset | h5py.Group:
    """What a file or group has under that name; ValueError in one line lists what else it has."""
    try:
        if name in file and not isinstance(file[name], h5py.Datatype):
            return file[name]
        there_are = sorted(file)
    except (KeyError, OSError, RuntimeError) as error:  # h5py's words for damage
        why = " ".join(str(error).split())
        raise ValueError(f"{file.file.filename} is damaged at {name!r} ({why})") from error
    raise ValueError(f"{file.file.filename} has no {name!r}, only {there_are}")


# -- writing ---------------------------------------------------------------------------------------


@contextmanager
def hdf5_beside(path: Path, keep: bool = False) -> Iterator[tuple[h5py.File, "Disk"]]:
    """An HDF5 file to fill (`keep`: with what it has), renamed to `path` only if all went well.

    OSError in one line where the disk is full, at the end or at a `disk.check()` before. HDF5
    itself must not hear of it: a file that it could not close ends the process some time later.
    """
    path, old = Path(path), keep and Path(path).exists()
    if old:
        open_hdf5(path).close()
    with paths.write_beside(path) as beside:
        if old:
            shutil.copyfile(path, beside)
        with Disk(beside, "r+" if old else "w+") as disk:
            with h5py.File(disk, "r+" if old else "w") as file:
                yield file, disk
            disk.check()


class Disk(io.FileIO):
    """A file that keeps its first error until it is asked for."""

    error: OSError | None = None

    def write(self, content) -> int:
        rest = memoryview(content).cast("B")
        try:
            while rest and not self.error:  # one call may write a part
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return memoryview(content).nbytes

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        if self.error:
            raise self.error


# -- records ---------------------------------------------------------------------------------------


def read_records(path: Path) -> np.ndarray:
    """The `behav` records of a tar, (trials, 17) float64. No member is ever written to disk."""
    with reading(path):
        content = np.fromfile(there(path), np.uint8)
    rows = read_alike(content, BEHAVIOR, len(COLUMNS))
    return _one_by_one(path) if rows is None else rows


def _one_by_one(path: Path) -> np.ndarray:
    try:
        with there(path).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = (m for m in tar if m.name.endswith(".behav.npy"))
            rows = [_record(path, m, _content(path, tar, m)) for m in members]
            file.seek(tar.offset)  # tarfile takes a damaged header for the end
            rest = file.read()
            if not rest or rest.strip(b"\0"):
                raise EOFError(f"no empty block at its end, byte {tar.offset}")
    except (tarfile.TarError, OSError, EOFError, MemoryError, OverflowError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is cut short or not a tar file ({why})") from error
    return np.concatenate(rows) if rows else np.empty((0, len(COLUMNS)))


def _content(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if not member.isfile():
        raise ValueError(f"{path}: {member.name} is a link or a folder, expected a record")
    return tar.extractfile(member).read()


def _record(path: Path, member: tarfile.TarInfo, content: bytes) -> np.ndarray:
    try:
        row = np.load(io.BytesIO(content), allow_pickle=False)
        if not isinstance(row, np.ndarray):
            raise ValueError("an archive")
    except Exception as error:  # numpy has many kinds
        raise ValueError(f"{path}: {member.name} is no array of numbers") from error
    if row.shape != (1, len(COLUMNS)) or row.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: {member.name} has shape {row.shape} of {row.dtype}, expected "
            f"{(1, len(COLUMNS))} numbers"
        )
    return row.astype(np.float64)
