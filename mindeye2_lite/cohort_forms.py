"""The forms in which a synthetic cohort is written: NSD's own, and the released layout directly.

| sessions as | what `betas_sessionNN` is (all int16 = percent x 300) |
|---|---|
| `hdf5` | h5py sees (trials, z, y, x), in compressed chunks of 15 trials: small, quickly written |
| `nsd-hdf5` | the same, uncompressed in chunks (trials, 1, 1, 1): one per voxel, as in real NSD |
| `nii.gz` | (x, y, z, trials) |

The design is MATLAB 5 (`mat5`) or MATLAB 7.3 (`mat7.3`, HDF5 behind 512 bytes of its own). Source:
NSD Data Manual. The second half writes the files of the MindEye2 release without looking at how
`nsd_raw` and `layout_writing` make them, so that one can be tested against the other.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
from scipy.io import savemat

from mindeye2_lite.voxel_model import SHAPE, Anatomy

ISOTROPIC = np.diag([1.8, 1.8, 1.8, 1]).astype(np.float64)  # mm per voxel, as func1pt8mm
PERCENT = 300  # int16 steps in one percent signal change


# -- NSD's own files -------------------------------------------------------------------------------


def write_volume(path: Path, volume: np.ndarray) -> None:
    """A NIfTI file of 1.8 mm voxels, (x, y, z) or (x, y, z, trials)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, ISOTROPIC), path)


def write_session(
    folder: Path, session: int, stored: np.ndarray, where: Anatomy, form: str = "hdf5"
) -> None:
    """A session's int16 betas (trials, V) as volumes that are 0 outside nsdgeneral."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix, write = SESSION_FORMS[form]
    write(folder / f"betas_session{session:02d}{suffix}", stored, where)


def _hdf5(path: Path, stored: np.ndarray, where: Anatomy) -> None:
    x, y, z = where.places.T
    volumes = np.zeros((len(stored), *SHAPE[::-1]), np.int16)
    volumes[:, z, y, x] = stored
    with h5py.File(path, "w") as file:
        chunks = (15, *volumes.shape[1:])
        file.create_dataset(
            "betas", data=volumes, chunks=chunks, compression="gzip", compression_opts=1
        )


def _nsd_hdf5(path: Path, stored: np.ndarray, where: Anatomy) -> None:
    """Chunks outside the mask are never allocated: they read as 0."""
    shape, chunks = (len(stored), *SHAPE[::-1]), (len(stored), 1, 1, 1)
    little_endian = np.ascontiguousarray(stored.T, "<i2")
    with h5py.File(path, "w") as file:
        betas = file.create_dataset("betas", shape, "<i2", chunks=chunks)
        for (x, y, z), series in zip(where.places, little_endian, strict=True):
            betas.id.write_direct_chunk((0, int(z), int(y), int(x)), series.tobytes())


def _nii_gz(path: Path, stored: np.ndarray, where: Anatomy) -> None:
    volumes = np.zeros((*SHAPE, len(stored)), np.int16)
    volumes[tuple(where.places.T)] = stored.T
    write_volume(path, volumes)


SESSION_FORMS: dict[str, tuple[str, Callable]] = {
    "hdf5": (".hdf5", _hdf5),
    "nsd-hdf5": (".hdf5", _nsd_hdf5),
    "nii.gz": (".nii.gz", _nii_gz),
}


def write_design(path: Path, variables: Mapping[str, np.ndarray], form: str = "mat5") -> None:
    """`nsd_expdesign.mat` with matrices as MATLAB shows them, (rows, columns)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    DESIGN_FORMS[form](path, variables)


def _mat73(path: Path, variables: Mapping[str, np.ndarray]) -> None:
    """HDF5 behind a user block; arrays transposed, numbers double as MATLAB has them by default."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, matrix in variables.items():
            kind = "uint8" if matrix.dtype == np.uint8 else "double"
            file[name] = np.ascontiguousarray(matrix.T, np.uint8 if kind == "uint8" else "<f8")
            file[name].attrs["MATLAB_class"] = np.bytes_(kind)
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 ."
    with path.open("r+b") as file:  # text, offset of subsystem data, version 2.0, byte order
        file.write(header.ljust(116) + bytes(8) + b"\x00\x02IM")


DESIGN_FORMS: dict[str, Callable] = {"mat5": savemat, "mat7.3": _mat73}


def check_forms(sessions_as: str, design_as: str) -> None:
    """ValueError in one line where a form is unknown."""
    for what, asked, known in (
        ("sessions_as", sessions_as, SESSION_FORMS),
        ("design_as", design_as, DESIGN_FORMS),
    ):
        if asked not in known:
            raise ValueError(f"{what} {asked!r} is unknown: choose {', '.join(known)}")


# -- the released layout, directly -----------------------------------------------------------------

HELD_BACK = 3  # sessions of which the older `test` split knows nothing
# Of responses.tsv; the image counts from 0, then come the trial of all and whether it is shared.
BEFORE = ("73KID", "SUBJECT", "SESSION", "RUN", "TRIAL")
AFTER = ("TIME", "ISOLD", "ISCORRECT", "RT", "CHANGEMIND", "ISOLDCURRENT", "ISCORRECTCURRENT")
LAST = ("TOTAL1", "TOTAL2", "BUTTON")


def write_released_person(
    root: Path, subject: int, stored: np.ndarray, answers: pd.DataFrame, where: Anatomy, shared
) -> None:
    """One person's released files: z-scored betas, behavior tars, regions, image indices.

    `stored`: (trials, V) int16. `answers`: responses.tsv. `shared`: (images,) bool.
    """
    name, records = f"subj{subject:02d}", _released_records(answers, shared)
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / f"betas_all_{name}_fp32_renorm.hdf5", "w") as file:
        file["betas"] = _released_betas(stored, records)
    _write_released_tars(root / "wds" / name, records)
    with h5py.File(root / "brain_region_masks.hdf5", "a") as file:
        for region, mask in _released_regions(where).items():
            file[f"{name}/{region}"] = mask
    with h5py.File(root / "COCO_73k_subj_indices.hdf5", "a") as file:
        file[name] = records[:, 0].astype(np.int64)


def write_released_common(
    root: Path, pictures: np.ndarray, shared: np.ndarray, captions: Iterable[list[str]]
) -> None:
    """What belongs to all people. `pictures`: (images, H, W, 3) uint8; `captions` per image."""
    root.mkdir(parents=True, exist_ok=True)
    number, size = pictures.shape[:2]
    with h5py.File(root / f"coco_images_{size}_float16.hdf5", "w") as file:
        images = file.create_dataset("images", (number, 3, size, size), np.float16)
        for image, picture in enumerate(pictures):
            images[image] = np.moveaxis(picture.astype(np.float32) / 255, -1, 0)
    np.save(root / "shared1000.npy", shared)
    by_index = {str(image): texts for image, texts in enumerate(captions)}
    (root / "captions.json").write_text(json.dumps(by_index))


def _released_records(answers: pd.DataFrame, shared: np.ndarray) -> np.ndarray:
    """(trials, 17): no answer takes 0 ms, days are whole, whatever else is missing is -1."""
    seconds = answers.assign(RT=answers.RT.fillna(0), TIME=np.floor(answers.TIME))
    image = answers["73KID"].to_numpy() - 1
    columns = [image, *(seconds[name] for name in BEFORE[1:]), np.arange(len(answers))]
    columns += [seconds[name] for name in (*AFTER, *LAST)] + [shared[image]]
    records = np.stack([np.asarray(column, np.float64) for column in columns], axis=1)
    return np.where(np.isnan(records), -1, records)


def _released_betas(stored: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Percent signal change, z-scored per session by its trials of images that are not shared."""
    betas = stored.astype(np.float64) / PERCENT
    for session in np.unique(records[:, 2]):
        here = records[:, 2] == session
        train = here & (records[:, 16] == 0)
        betas[here] = (betas[here] - betas[train].mean(0)) / betas[train].std(0)
    return betas.astype(np.float32)


def _released_regions(where: Anatomy) -> dict[str, np.ndarray]:
    x, y, z = where.places.T
    label = where.visual[x, y, z]
    regions = {"V1": (label == 1) | (label == 2), "V2": (label == 3) | (label == 4)}
    regions |= {"V3": (label == 5) | (label == 6), "V4": label == 7, "higher_vis": label == 0}
    return {"nsd_general": np.ones(len(label), bool), **regions}


def _write_released_tars(folder: Path, records: np.ndarray) -> None:
    session, shared = records[:, 2], records[:, 16] == 1
    sessions = int(session.max())
    own = [np.flatnonzero((session == s) & ~shared) for s in range(1, sessions + 1)]
    early = session <= max(sessions - HELD_BACK, 1)
    splits = {"train": own, "new_test": [np.flatnonzero(shared)]}
    splits["test"] = [np.flatnonzero(shared & early)]
    for split, tars in splits.items():
        (folder / split).mkdir(parents=True)
        key = 0
        for number, rows in enumerate(tars):
            key = _write_tar(folder / split / f"{number}.tar", records, rows, key)


def _write_tar(path: Path, records: np.ndarray, rows: np.ndarray, key: int) -> int:
    """The samples of these trials; returns the key after the last."""
    from webdataset import TarWriter

    with TarWriter(str(path), mtime=0) as tar:
        for number, row in enumerate(rows, key):
            tar.write({"__key__": f"sample{number:09d}", **_released_sample(records, int(row))})
    return key + len(rows)


def _released_sample(records: np.ndarray, row: int) -> dict[str, np.ndarray]:
    def of_session(trials: range) -> list[int]:
        inside = (trial for trial in trials if 0 <= trial < len(records))
        return [trial for trial in inside if records[trial, 2] == records[row, 2]]

    again = np.flatnonzero(records[:, 0] == records[row, 0])
    return {
        "behav.npy": records[[row]],
        "past_behav.npy": _padded(records[of_session(range(row - 1, row - 16, -1))], 15),
        "future_behav.npy": _padded(records[of_session(range(row + 1, row + 16))], 15),
        "olds_behav.npy": _padded(records[again[again != row]], 3),
    }


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    return np.pad(rows, ((0, length - len(rows)), (0, 0)), constant_values=-1)
