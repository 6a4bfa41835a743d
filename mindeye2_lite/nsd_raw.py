"""From the Natural Scenes Dataset's own files to the training layout of `layout.py`.

`prepare` reads the raw tree (or a cohort of the same form): betas of each session, masks and
regions, the button presses, the design, the pictures, COCO's captions. V = voxels of nsdgeneral,
in C order of (x, y, z). Read with notebook 01.
"""

import json
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
from scipy.io import loadmat
from tqdm.auto import tqdm

from mindeye2_lite import paths
from mindeye2_lite.layout import COLUMNS, IMAGE, SESSION, entry, open_hdf5, reading, there
from mindeye2_lite.layout_writing import Person, update_hdf5, write_images, write_person

BETAS = "betas_fithrf_GLMdenoise_RR"  # NSD's third preparation ("b3")
SCALE = 300  # NSD stores percent signal change x 300 as int16
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
            write_person(out, _person(raw, subject, tables[subject]))
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
    update_hdf5(out / "brain_region_masks.hdf5", regions)
    indices = {f"subj{s:02d}": t[:, IMAGE].astype(np.int64) for s, t in tables.items()}
    update_hdf5(out / "COCO_73k_subj_indices.hdf5", indices)
    _write_captions(raw, out)
    for path in (_stimuli(raw).with_name("attributes.npz"), raw / "provenance.json"):
        if path.exists():
            with paths.write_beside(out / path.name) as beside:
                shutil.copyfile(path, beside)


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


def _write_images(raw: Path, out: Path, image_size: int | None) -> None:
    with open_hdf5(_stimuli(raw)) as source:
        bricks = entry(source, "imgBrick")  # (images, height, width, 3) uint8

        def read(first: int, last: int) -> np.ndarray:
            with reading(_stimuli(raw)):
                return bricks[first:last]

        write_images(out, read, len(bricks), image_size or min(224, bricks.shape[1]))


def _person(raw: Path, subject: int, table: np.ndarray) -> Person:
    mask = _volume(raw, subject, "nsdgeneral") == 1
    files = _session_files(raw, subject)
    read = partial(_read_session, files, mask)
    return Person(subject, table, read, _ncsnr(raw, subject, mask))


def _read_session(files: list[Path], mask: np.ndarray, session: int) -> np.ndarray:
    return _read_betas(files[session - 1], mask)


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


# -- where things lie


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
