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
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

COLUMNS = (  # of a behavior record; -1 where NSD has no value
    *("image_id", "SUBJECT", "SESSION", "RUN", "TRIAL", "global_trial", "TIME", "ISOLD"),
    *("ISCORRECT", "RT", "CHANGEMIND", "ISOLDCURRENT", "ISCORRECTCURRENT", "TOTAL1", "TOTAL2"),
    *("BUTTON", "shared"),
)
IMAGE, SESSION, GLOBAL_TRIAL, SHARED = 0, 2, 5, 16


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
    except OSError as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path} is cut short or not an HDF5 file ({why})") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever cannot be read is the fault of that file, also while another one is written."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, EOFError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged: it cannot be read ({why})") from error


def entry(file: h5py.Group, name: str) -> h5py.Dataset | h5py.Group:
    """What a file or group has under that name; ValueError in one line lists what else it has."""
    if name not in file:
        raise ValueError(f"{file.file.filename} has no {name!r}, only {sorted(file)}")
    return file[name]


def read_records(path: Path) -> np.ndarray:
    """The `behav` records of a tar, (trials, 17) float64. No member is ever written to disk."""
    try:
        with tarfile.open(there(path)) as tar:
            members = (m for m in tar if m.isfile() and m.name.endswith(".behav.npy"))
            rows = [_record(path, m, tar.extractfile(m).read()) for m in members]
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is cut short or not a tar file ({error})") from error
    return np.concatenate(rows) if rows else np.empty((0, len(COLUMNS)))


def _record(path: Path, member: tarfile.TarInfo, content: bytes) -> np.ndarray:
    try:
        row = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: {member.name} is no array of numbers") from error
    if row.shape != (1, len(COLUMNS)) or row.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: {member.name} has shape {row.shape} of {row.dtype}, expected "
            f"{(1, len(COLUMNS))} numbers"
        )
    return row.astype(np.float64)
