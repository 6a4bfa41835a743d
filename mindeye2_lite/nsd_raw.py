"""From the Natural Scenes Dataset's own files to the files of the MindEye2 release.

`prepare` reads the raw tree (or a cohort of the same form) and writes the training layout that
`nsd.Subject` reads:

| file | content |
|---|---|
| `betas_all_subj01_fp32_renorm.hdf5` | `betas` (trials, V), z-scored per session |
| | ours also: `session_mean`, `session_std`, `session_trials`, `ncsnr` |
| `coco_images_224_float16.hdf5` | `images` (73000, 3, 224, 224) in [0, 1], row = NSD's 73k index |
| `wds/subj01/train/0.tar` ... | behavior of the non-shared trials of session 1 ..., 17 columns |
| `wds/subj01/new_test/0.tar` | behavior of the trials of shared images, all sessions |
| `wds/subj01/test/0.tar` | the same without the last three sessions: NSD's older release |
| `brain_region_masks.hdf5`, `captions.json`, `shared1000.npy` | regions, captions, shared images |

V = voxels of nsdgeneral, in C order of (x, y, z). Read with notebook 01.
"""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
import torch
from scipy.io import loadmat
from tqdm.auto import tqdm

from mindeye2_lite import paths

BETAS = "betas_fithrf_GLMdenoise_RR"  # NSD's third preparation ("b3")
SCALE = 300  # NSD stores percent signal change x 300 as int16
HELD_BACK = 3  # the older NSD release ended three sessions earlier for everyone (37 of 40)
COLUMNS = (  # of a behavior record; -1 where NSD has no value
    *("image_id", "SUBJECT", "SESSION", "RUN", "TRIAL", "global_trial", "TIME", "ISOLD"),
    *("ISCORRECT", "RT", "CHANGEMIND", "ISOLDCURRENT", "ISCORRECTCURRENT", "TOTAL1", "TOTAL2"),
    *("BUTTON", "shared"),
)
IMAGE, SESSION, GLOBAL_TRIAL, SHARED = 0, 2, 5, 16
# Labels in NSD's prf-visualrois and streams volumes.
VISUAL = {"V1": (1, 2), "V2": (3, 4), "V3": (5, 6), "V4": (7,)}
STREAMS = {"ventral": (5,), "lateral": (6,), "parietal": (7,)}


def prepare(
    raw_root: str | Path,
    out_root: str | Path,
    subjects: Iterable[int] | None = None,
    progress: bool = True,
    image_size: int | None = None,
) -> Path:
    """Turn NSD's own files into the training layout; returns its root.

    Finished subjects are skipped, so a stopped run goes on. `image_size` defaults to 224, or to
    the stimuli's own size where they are smaller. Statistics are those of each session's training
    trials. Errors: FileNotFoundError, ValueError in one line; nothing half-written stays behind.
    Official (`dataset_creation.ipynb`): differs from the published files; see book/differences.md.
    """
    raw, out = Path(raw_root), Path(out_root)
    subjects = _subjects(raw, subjects)
    shared = _shared(raw)
    tables = {s: _behavior(raw, s, shared) for s in subjects}
    for subject in subjects:
        _check_sessions(raw, subject, tables[subject])
    _write_common(raw, out, tables, shared)
    with tqdm(total=len(subjects) + 1, desc="prepare", disable=not progress) as bar:
        _write_images(raw, out, image_size)
        bar.update()
        for subject in subjects:
            if not (out / f"{betas_name(subject)}.hdf5").exists():
                _write_tars(out, subject, tables[subject])
                _write_betas(raw, out, subject, tables[subject])
            bar.update()
    return out


def _subjects(raw: Path, subjects: Iterable[int] | None) -> list[int]:
    folder = raw / "nsddata_betas" / "ppdata"
    found = sorted(int(p.name[4:]) for p in folder.glob("subj[0-9][0-9]"))
    if not found:
        raise FileNotFoundError(f"no subjects in {folder}: is {raw} the root of an NSD tree?")
    missing = sorted(set(subjects or []) - set(found))
    if missing:
        raise FileNotFoundError(f"no subject {missing} in {folder}: there are {found}")
    return found if subjects is None else sorted(subjects)


def _shared(raw: Path) -> np.ndarray:
    """Which images all people saw: (images,) bool."""
    design = raw / "nsddata" / "experiments" / "nsd" / "nsd_expdesign.mat"
    indices = loadmat(there(design))["sharedix"].ravel().astype(int) - 1  # MATLAB counts from 1
    with open_hdf5(_stimuli(raw)) as file:
        shared = np.zeros(len(entry(file, "imgBrick")), bool)
    shared[indices] = True
    return shared


def _behavior(raw: Path, subject: int, shared: np.ndarray) -> np.ndarray:
    """responses.tsv of the sessions that have betas, as (trials, 17) records."""
    path = raw / "nsddata" / "ppdata" / f"subj{subject:02d}" / "behav" / "responses.tsv"
    table = pd.read_csv(there(path), sep="\t")
    table = table[table.SESSION <= len(_session_files(raw, subject))].reset_index(drop=True)
    table["image_id"] = table["73KID"] - 1
    table["global_trial"] = np.arange(len(table))
    table["shared"] = shared[table.image_id]
    table["TIME"] = np.floor(table.TIME)  # the released records keep whole days
    table["RT"] = table.RT.fillna(0)  # 0 = no answer, as in the released records
    return table[list(COLUMNS)].fillna(-1).to_numpy(np.float64)


def _session_files(raw: Path, subject: int) -> list[Path]:
    folder = raw / "nsddata_betas" / "ppdata" / f"subj{subject:02d}" / "func1pt8mm" / BETAS
    found = sorted(folder.glob("betas_session[0-9][0-9].hdf5"))
    if not found:
        raise FileNotFoundError(f"no betas_sessionNN.hdf5 in {folder}")
    last = int(found[-1].stem[-2:])
    return [there(folder / f"betas_session{n:02d}.hdf5") for n in range(1, last + 1)]


def _check_sessions(raw: Path, subject: int, table: np.ndarray) -> None:
    mask = _volume(raw, subject, "nsdgeneral") == 1
    for number, path in enumerate(_session_files(raw, subject), 1):
        trials = int((table[:, SESSION] == number).sum())
        expected = (trials, *mask.shape[::-1])
        with open_hdf5(path) as file:
            found = entry(file, "betas").shape
        if found[0] != trials:
            raise ValueError(
                f"{path} is cut short or of another run: expected {trials} trials as in "
                f"responses.tsv, shape {expected}, found shape {found}"
            )
        if found != expected:
            raise ValueError(f"{path} has volumes {found[1:]}, nsdgeneral has {expected[1:]}")


def _write_common(raw: Path, out: Path, tables: dict[int, np.ndarray], shared: np.ndarray) -> None:
    """What belongs to all subjects: shared images, regions, indices, captions, true attributes."""
    with paths.write_beside(out / "shared1000.npy") as beside, beside.open("wb") as file:
        np.save(file, shared)
    regions = {f"subj{s:02d}": _regions(raw, s) for s in tables}
    _update_hdf5(out / "brain_region_masks.hdf5", regions)
    indices = {f"subj{s:02d}": t[:, IMAGE].astype(np.int64) for s, t in tables.items()}
    _update_hdf5(out / "COCO_73k_subj_indices.hdf5", indices)
    _write_captions(raw, out)
    for path in (_stimuli(raw).with_name("attributes.npz"), raw / "provenance.json"):
        if path.exists():
            with paths.write_beside(out / path.name) as beside:
                shutil.copyfile(path, beside)


def _update_hdf5(path: Path, entries: dict) -> None:
    """Write entries into a small file, keeping those of other subjects that it has."""
    with paths.write_beside(path) as beside:
        if path.exists():
            shutil.copyfile(path, beside)
        with h5py.File(beside, "a") as file:
            for name, entry in entries.items():
                file.pop(name, None)
                if isinstance(entry, dict):
                    for key, value in entry.items():
                        file[f"{name}/{key}"] = value
                else:
                    file[name] = entry


def _regions(raw: Path, subject: int) -> dict[str, np.ndarray]:
    """Region masks over the V voxels, named as in the release, and NSD's three streams."""
    mask = _volume(raw, subject, "nsdgeneral") == 1
    visual = _volume(raw, subject, "prf-visualrois")[mask]
    streams = _volume(raw, subject, "streams")[mask]
    regions = {"nsd_general": np.ones(int(mask.sum()), bool)}
    regions |= {name: np.isin(visual, labels) for name, labels in VISUAL.items()}
    regions["higher_vis"] = ~np.isin(visual, [v for labels in VISUAL.values() for v in labels])
    return regions | {name: np.isin(streams, labels) for name, labels in STREAMS.items()}


def _write_captions(raw: Path, out: Path) -> None:
    """COCO's annotations -> captions.json: 73k index -> captions. Left out where there are none."""
    files = sorted((raw / "annotations").glob("captions_*.json"))
    if not files:
        return
    info = raw / "nsddata" / "experiments" / "nsd" / "nsd_stim_info_merged.csv"
    table = pd.read_csv(there(info), usecols=["cocoId", "nsdId"])
    image_of = dict(zip(table.cocoId, table.nsdId, strict=True))
    captions: dict[str, list[str]] = {}
    for file in files:
        for annotation in json.loads(file.read_text())["annotations"]:
            if annotation["image_id"] in image_of:
                index = str(image_of[annotation["image_id"]])
                captions.setdefault(index, []).append(annotation["caption"])
    with paths.write_beside(out / "captions.json") as beside:
        beside.write_text(json.dumps(captions))


def _write_images(raw: Path, out: Path, image_size: int | None, block: int = 256) -> None:
    with open_hdf5(_stimuli(raw)) as source:
        bricks = entry(source, "imgBrick")  # (images, height, width, 3) uint8
        size = image_size or min(224, bricks.shape[1])
        path = out / f"coco_images_{size}_float16.hdf5"
        if path.exists():
            return
        with paths.write_beside(path) as beside, h5py.File(beside, "w") as file:
            images = file.create_dataset("images", (len(bricks), 3, size, size), np.float16)
            for first in range(0, len(bricks), block):
                with reading(_stimuli(raw)):
                    pixels = bricks[first : first + block]
                images[first : first + block] = _resized(pixels, size)


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    if images.shape[-1] != size:
        images = torch.nn.functional.interpolate(
            images, size=(size, size), mode="bilinear", antialias=True
        ).clamp(0, 1)
    return images.half().numpy()


def _write_betas(raw: Path, out: Path, subject: int, table: np.ndarray) -> None:
    mask = _volume(raw, subject, "nsdgeneral") == 1
    ncsnr = _ncsnr(raw, subject, mask)
    files = _session_files(raw, subject)
    counts = np.array([(table[:, SESSION] == s).sum() for s in range(1, len(files) + 1)])
    with paths.write_beside(out / f"{betas_name(subject)}.hdf5") as beside:
        with h5py.File(beside, "w") as file:
            betas = file.create_dataset("betas", (len(table), int(mask.sum())), np.float32)
            means, stds, row = [], [], 0
            for path, count in zip(files, counts, strict=True):
                train = table[row : row + count, SHARED] == 0
                scaled, mean, std = _normalized(_read_betas(path, mask), train)
                betas[row : row + count] = scaled
                means, stds, row = [*means, mean], [*stds, std], row + count
            file["session_mean"], file["session_std"] = np.stack(means), np.stack(stds)
            file["session_trials"], file["ncsnr"] = counts, ncsnr


def _read_betas(path: Path, mask: np.ndarray, block: int = 150) -> np.ndarray:
    """One session as (trials, V) in percent signal change.

    h5py sees NSD's volumes as (trials, z, y, x), the NIfTI masks are (x, y, z).
    """
    with open_hdf5(path) as file:
        betas = file["betas"]
        with reading(path):
            parts = [
                betas[first : first + block].transpose(0, 3, 2, 1)[:, mask]
                for first in range(0, len(betas), block)
            ]
    return np.concatenate(parts).astype(np.float32) / SCALE


def _normalized(betas: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z-scores by the session's training trials alone; their mean and deviation."""
    known = betas[train] if train.any() else betas
    mean, std = known.mean(0, dtype=np.float64), known.std(0, dtype=np.float64)
    mean, std = mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)
    return (betas - mean) / std, mean, std


def _write_tars(out: Path, subject: int, table: np.ndarray) -> None:
    """The behavior records, in a folder written beside and then renamed."""
    folder = out / "wds" / f"subj{subject:02d}"
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        _write_split(beside / "train", _train_rows(table), table)
        shared = np.flatnonzero(table[:, SHARED] == 1)
        _write_split(beside / "new_test", [shared], table)
        older = table[shared, SESSION] <= max(table[:, SESSION].max() - HELD_BACK, 1)
        _write_split(beside / "test", [shared[older]], table)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)
    except OSError as error:
        raise OSError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _train_rows(table: np.ndarray) -> list[np.ndarray]:
    sessions = range(1, int(table[:, SESSION].max()) + 1)
    return [np.flatnonzero((table[:, SESSION] == s) & (table[:, SHARED] == 0)) for s in sessions]


def _write_split(folder: Path, tars: list[np.ndarray], table: np.ndarray) -> None:
    folder.mkdir(parents=True)
    others = pd.Series(np.arange(len(table))).groupby(table[:, IMAGE]).indices
    key = 0
    for number, rows in enumerate(tars):
        # What webdataset.TarWriter writes, three times as fast.
        with tarfile.open(folder / f"{number}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in rows:
                for name, array in _record(table, int(row), others[table[row, IMAGE]]).items():
                    _add(tar, f"sample{key:09d}.{name}.npy", array)
                key += 1


def _add(tar: tarfile.TarFile, name: str, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    info = tarfile.TarInfo(name)
    info.size = content.tell()
    content.seek(0)
    tar.addfile(info, content)


def _record(table: np.ndarray, row: int, showings: np.ndarray) -> dict[str, np.ndarray]:
    """This trial; the 15 before and after it in the session, nearest first; the image's others."""
    same = np.flatnonzero(table[:, SESSION] == table[row, SESSION])
    return {
        "behav": table[row : row + 1],
        "past_behav": _filled(table[max(same[0], row - 15) : row][::-1], 15),
        "future_behav": _filled(table[row + 1 : min(same[-1], row + 15) + 1], 15),
        "olds_behav": _filled(table[showings[showings != row]], 3),
    }


def _filled(rows: np.ndarray, length: int) -> np.ndarray:
    out = np.full((length, len(COLUMNS)), -1.0)
    out[: len(rows)] = rows[:length]
    return out


# -- reading, with errors that say which file


def betas_name(subject: int) -> str:
    return f"betas_all_subj{subject:02d}_fp32_renorm"


def _stimuli(raw: Path) -> Path:
    return raw / "nsddata_stimuli" / "stimuli" / "nsd" / "nsd_stimuli.hdf5"


def _volume(raw: Path, subject: int, name: str) -> np.ndarray:
    folder = raw / "nsddata" / "ppdata" / f"subj{subject:02d}" / "func1pt8mm" / "roi"
    return np.asarray(nibabel.load(there(folder / f"{name}.nii.gz")).dataobj)


def _ncsnr(raw: Path, subject: int, mask: np.ndarray) -> np.ndarray:
    path = _session_files(raw, subject)[0].with_name("ncsnr.nii.gz")
    volume = np.asarray(nibabel.load(there(path)).dataobj, np.float32)
    if volume.shape != mask.shape:
        raise ValueError(f"{path} has shape {volume.shape}, nsdgeneral has {mask.shape}")
    return volume[mask]


def there(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    return path


def open_hdf5(path: Path) -> h5py.File:
    try:
        return h5py.File(there(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} is cut short or not an HDF5 file ({error})") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever cannot be read is the fault of that file, also while another one is written."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} is damaged: it cannot be read ({error})") from error


def entry(file: h5py.File, name: str) -> h5py.Dataset | h5py.Group:
    if name not in file:
        raise ValueError(f"{file.filename} has no {name!r}, only {sorted(file)}")
    return file[name]
