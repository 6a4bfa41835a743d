"""What the files of a training layout say of one person, and what they do not say.

Each function reads one file. Where it is absent, or says nothing of that person, the reason goes
into `unknown` (what -> why) and the value is None or empty; a damaged file, or one of another
mask, is a ValueError in one line. For `inspection.inspect`; read with notebook 01.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mindeye2_lite.layout import (
    COLUMNS,
    GLOBAL_TRIAL,
    IMAGE,
    SESSION,
    betas_file,
    entry,
    open_hdf5,
    read_records,
    records_folder,
)
from mindeye2_lite.nsd_statistics import EXPECTED_TRIALS

NSD_IMAGES = 73_000


def records(root: Path, subject: int, unknown: dict) -> dict[str, np.ndarray]:
    """Records of `train`, `new_test` and, where there is one, the older split `test`."""
    folder = records_folder(root, subject)
    tars = sorted((folder / "train").glob("[0-9]*.tar"), key=_number)
    if not tars:
        raise FileNotFoundError(f"no behavior records in {folder}/train: run mindeye2-lite prepare")
    found = {"train": np.concatenate([read_records(path) for path in tars])}
    found["new_test"] = np.empty((0, len(COLUMNS)))
    for name in ("new_test", "test"):
        if (folder / name / "0.tar").exists():
            found[name] = read_records(folder / name / "0.tar")
    if not len(found["new_test"]):
        unknown["split overlap"] = "new_test has no trials: there is no test split"
    return found


def _number(path: Path) -> int:
    if not path.stem.isdecimal():
        raise ValueError(f"{path} is no session's tar: expected 0.tar, 1.tar, ...")
    return int(path.stem)


def about_file(root: Path, subject: int, table: np.ndarray) -> dict[str, Any]:
    """What the betas file says of itself; ValueError where the records name trials it lacks."""
    path = betas_file(root, subject)
    with open_hdf5(path) as file:
        betas = entry(file, "betas")
        if len(betas.shape) != 2 or betas.dtype.kind != "f":
            raise ValueError(
                f"{path}: betas has shape {betas.shape} of {betas.dtype}, expected "
                "(trials, voxels) of floats"
            )
        rows, voxels = betas.shape
        recipe = json.loads(file.attrs.get("recipe", "{}"))
        given = {"ncsnr": file["ncsnr"][:].astype(float)} if "ncsnr" in file else {}
        ours = "session_mean" in file
    if not len(table) or table[:, GLOBAL_TRIAL].min() < 0:
        raise ValueError(f"the records of subject {subject} in {root} name no trials of the betas")
    needed = 1 + int(table[:, GLOBAL_TRIAL].max())
    if rows < needed:
        raise ValueError(f"{path} is cut short: the records name {needed} trials, it has {rows}")
    if len(given.get("ncsnr", np.empty(voxels))) != voxels:
        raise ValueError(f"{path}: ncsnr has {len(given['ncsnr'])} voxels, betas {voxels}")
    sessions = len(np.unique(table[:, SESSION]))
    kind = _kind(root, ours, np.unique(table[:, IMAGE]).size == len(table))
    about = {"kind": kind, "recipe": recipe, "voxels": voxels, "betas": rows}
    return about | {"sessions": sessions, "given": given}


def _kind(root: Path, ours: bool, once: bool) -> str:
    kind = "prepared, with the statistics of each session"
    if not ours:
        kind = "released form: z-scored betas without the statistics they were scaled by"
    kind += "; no image was shown twice" * once
    return kind + "; a synthetic cohort" * (root / "provenance.json").exists()


def places(root: Path, subject: int, voxels: int, unknown: dict) -> dict[str, np.ndarray]:
    """Where each voxel lies, (V, 3), and the shape of the volume, from voxels.hdf5."""
    path, name = root / "voxels.hdf5", f"subj{subject:02d}"
    if not path.exists():
        unknown["voxel positions"] = f"{path.name} is missing: released files have none"
        return {}
    with open_hdf5(path) as file:
        if name not in file or "position" not in file[name]:
            unknown["voxel positions"] = f"{path.name} has none for {name}"
            return {}
        position = file[name]["position"][:].astype(np.int64)
        shape = file[name].attrs.get("shape", position.max(0, initial=0) + 1)
    if position.shape != (voxels, 3):
        raise ValueError(
            f"{path}: position of {name} has shape {position.shape}, expected {(voxels, 3)}"
        )
    if (position < 0).any() or (position >= shape).any():
        raise ValueError(f"{path}: position of {name} leaves its volume of shape {tuple(shape)}")
    return {"position": position, "shape": np.asarray(shape)}


def rois(root: Path, subject: int, voxels: int, unknown: dict) -> dict[str, np.ndarray]:
    """Region name -> (V,) bool, from brain_region_masks.hdf5."""
    path, name = root / "brain_region_masks.hdf5", f"subj{subject:02d}"
    if not path.exists():
        unknown["regions"] = f"{path.name} is missing"
        return {}
    with open_hdf5(path) as file:
        if name not in file:
            unknown["regions"] = f"{path.name} has none for {name}"
            return {}
        masks = {region: file[name][region][:].astype(bool) for region in file[name]}
    for region, mask in masks.items():
        if len(mask) != voxels:
            raise ValueError(
                f"{path}: region {region} of {name} has {len(mask)} voxels, the betas {voxels}"
            )
    return masks


def images(root: Path, unknown: dict) -> dict[str, Any] | None:
    """The largest file of pictures, as `nsd.Subject` takes it."""
    found = root.glob("coco_images_*_float16.hdf5")
    path = max(found, key=lambda path: (len(path.name), path.name), default=None)
    if path is None:
        unknown["images"] = "no coco_images_*_float16.hdf5"
        return None
    with open_hdf5(path) as file:
        shape = entry(file, "images").shape
    size = path.stat().st_size / 1e9
    return {"file": path.name, "gigabytes": size, "number": shape[0], "pixels": shape[-1]}


def captions(root: Path, table: np.ndarray, unknown: dict) -> float | None:
    """The share of the images seen that have a caption."""
    path = root / "captions.json"
    if not path.exists():
        unknown["captions"] = f"{path.name} is missing"
        return None
    try:
        known = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error})") from error
    seen = np.unique(table[:, IMAGE]).astype(int)
    return sum(bool(known.get(str(image))) for image in seen) / len(seen)


def published(
    root: Path, subject: int, file: Mapping, splits: Mapping, unknown: dict
) -> dict[str, list] | None:
    """The counts beside those of NSD, where the layout has NSD's 73,000 images."""
    path, expected = root / "shared1000.npy", EXPECTED_TRIALS.get(subject)
    if expected is None or not path.exists() or _length(path) != NSD_IMAGES:
        unknown["published counts"] = "only NSD, with its 73,000 images, has them"
        return None
    found = {"voxels": file["voxels"], "sessions": file["sessions"]} | splits
    return {what: [found.get(what), number] for what, number in expected.items()}


def _length(path: Path) -> int:
    try:
        return len(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError, TypeError) as error:
        raise ValueError(f"{path} is cut short or no array ({error})") from error
