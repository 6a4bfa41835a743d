"""Somebody from another lab, as files: betas, an events table, a folder of PNGs. A simulation.

Not in the cohort: another brain, fewer voxels, other pictures, another design, no shared pictures
and no captions, and nothing in NSD's forms. So notebook 14 can go the whole way from files to a
verdict before the reader's own have come. What voxels do is in `voxel_model.py`.

| file | content |
|---|---|
| `betas.npy`, or `betas.nii.gz` and `mask.nii.gz` | percent: (trials, V) or (x, y, z, trials) |
| `events.tsv` | onset, duration, trial_type, stim_file, run, session; a row per trial, as in BIDS |
| `pictures/` | one PNG per picture, named in `stim_file` |
| `provenance.json` | that all this is a simulation, and how it was drawn |

Scenes: seeds below one million are for cohorts, those from one million for the miniatures'
training (`scenes.TRAINING_SEED`); a stranger's begin at two million, so nobody has seen theirs.
Read with notebook 14.
"""

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
from PIL import Image

from mindeye2_lite import scenes, voxel_model

NOTE = "a simulated stranger: a model of an experiment, not data about a brain"
FIRST_SEED = 2 * scenes.TRAINING_SEED
BODY = 1  # whose number of voxels is thinned out: the shape is drawn anew
WORLD = 400  # scenes that responses are standardized over, so that a scale does not hang on few
PAUSE, LENGTH, RUNS = 6.0, 3.0, 3  # seconds from picture to picture, of a picture; runs a session
MM = np.diag([2.5, 2.5, 2.5, 1.0])  # a coarser grid than NSD's


def write(
    folder: str | Path,
    seed: int = 0,
    voxels: int = 500,
    sessions: int = 6,
    trials: int = 75,
    repeated: int = 50,
    showings: int = 3,
    quality: float | int = 0.7,
    form: str = "npy",
) -> Path:
    """Write the files of a person who is not in the cohort; returns the folder.

    `repeated` pictures are shown `showings` times and the rest of `sessions` x `trials` once, in
    random order. `quality` multiplies every voxel's signal-to-noise ratio: 0.7 is a weaker scanner
    than the cohort's, 0 a brain that saw nothing. `form`: "npy", (trials, V), or "nii", a volume
    and its mask. The same arguments give the same files; a folder that they made is left as it is.
    ValueError in one line for arguments that do not fit, or a folder with other things in it.
    """
    folder, quality = Path(folder), float(quality)
    asked = {"seed": seed, "voxels": voxels, "sessions": sessions, "trials": trials}
    asked |= {"repeated": repeated, "showings": showings, "quality": quality, "form": form}
    _check(**asked)
    if folder.exists() and any(folder.iterdir()):
        _check_same(folder, asked)
        return folder
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        _write(beside, asked)
        if folder.exists():
            folder.rmdir()
        os.replace(beside, folder)
    except OSError as error:
        raise OSError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _check(seed, voxels, sessions, trials, repeated, showings, quality, form) -> None:
    most = voxel_model.VOXELS[BODY]
    rules = (
        (seed >= 0, f"seed is {seed}: it must not be negative"),
        (10 <= voxels <= most, f"voxels is {voxels}: between 10 and {most}"),
        (min(sessions, trials, showings) >= 1, "sessions, trials and showings are at least 1"),
        (trials >= RUNS, f"trials is {trials}: a session has {RUNS} runs"),
        (0 <= repeated * showings <= sessions * trials, f"{repeated} pictures, {showings} times "
         f"each, do not fit into {sessions} sessions of {trials} trials"),
        (quality >= 0, f"quality is {quality}: it must not be negative"),
        (form in ("npy", "nii"), f"form {form!r} is unknown: choose npy or nii"),
    )  # fmt: skip
    for holds, complaint in rules:
        if not holds:
            raise ValueError(complaint)


def _check_same(folder: Path, asked: dict) -> None:
    path = folder / "provenance.json"
    made = json.loads(path.read_text()).get("arguments") if path.exists() else None
    if made != asked:
        raise ValueError(f"{folder} has other files in it: choose another folder, or delete it")


def _write(folder: Path, asked: dict) -> None:
    folder.mkdir(parents=True)
    shown = _design(asked)
    pictures = _draw(folder / "pictures", asked["seed"], int(shown.max()) + 1)
    betas, where = _betas(asked, shown, *pictures)
    if asked["form"] == "npy":
        np.save(folder / "betas.npy", betas)
    else:
        _write_volume(folder, betas, where)
    table = _events(asked, shown)
    table.to_csv(folder / "events.tsv", sep="\t", index=False, na_rep="n/a")
    content = {"note": NOTE, "arguments": asked}
    (folder / "provenance.json").write_text(json.dumps(content, indent=1))


def _design(asked: dict) -> np.ndarray:
    """Which picture every trial shows, (trials,)."""
    rng = np.random.default_rng([asked["seed"], 10])
    total = asked["sessions"] * asked["trials"]
    often = np.repeat(np.arange(asked["repeated"]), asked["showings"])
    once = asked["repeated"] + np.arange(total - len(often))
    names = rng.permutation(asked["repeated"] + len(once))  # a low number tells nothing
    return names[rng.permutation(np.concatenate([often, once]))]


def _draw(folder: Path, seed: int, number: int) -> tuple[np.ndarray, dict]:
    """Pictures and attributes of `WORLD` scenes or more; the first `number` as PNGs."""
    everything = scenes.sample(max(WORLD, number), FIRST_SEED + seed)
    pixels = scenes.render(everything)
    folder.mkdir()
    for index, picture in enumerate(pixels[:number]):
        Image.fromarray(picture).save(folder / _name(index))
    return pixels, scenes.attributes(everything)


def _name(index: int) -> str:
    return f"picture_{index + 1:04d}.png"


def _betas(
    asked: dict, shown: np.ndarray, pixels: np.ndarray, attributes: dict
) -> tuple[np.ndarray, voxel_model.Anatomy]:
    """Percent signal change, (trials, V) float32, and where the voxels lie."""
    rng = np.random.default_rng([asked["seed"], 11])
    where = _thinned(voxel_model.anatomy(BODY, rng), asked["voxels"], rng)
    signal = voxel_model.responses(voxel_model.features(pixels, attributes), where, rng)
    snr = asked["quality"] * voxel_model.ncsnr(BODY, where, rng)
    lengths = [asked["trials"]] * asked["sessions"]
    betas = voxel_model.measure(signal[shown], snr, lengths, where, rng)
    return betas.astype(np.float32), where


def _thinned(
    where: voxel_model.Anatomy, voxels: int, rng: np.random.Generator
) -> voxel_model.Anatomy:
    """A random part of the voxels: another lab's grid is coarser."""
    keep = np.sort(rng.permutation(len(where.places))[:voxels])
    places = where.places[keep]
    mask = np.zeros(where.nsdgeneral.shape, np.int16)
    mask[tuple(places.T)] = 1
    return voxel_model.Anatomy(mask, where.visual, where.streams, places, where.regions[keep])


def _write_volume(folder: Path, betas: np.ndarray, where: voxel_model.Anatomy) -> None:
    volume = np.zeros((*where.nsdgeneral.shape, len(betas)), np.float32)
    volume[tuple(where.places.T)] = betas.T
    nibabel.save(nibabel.Nifti1Image(volume, MM), folder / "betas.nii.gz")
    nibabel.save(nibabel.Nifti1Image(where.nsdgeneral, MM), folder / "mask.nii.gz")


def _events(asked: dict, shown: np.ndarray) -> pd.DataFrame:
    """A row per trial; onsets count from the start of the run, as in BIDS."""
    within = np.arange(len(shown)) % asked["trials"]
    starts = np.array([part[0] for part in np.array_split(np.arange(asked["trials"]), RUNS)])
    run = np.searchsorted(starts, within, side="right")
    return pd.DataFrame(
        {
            "onset": (within - starts[run - 1]) * PAUSE + PAUSE,
            "duration": LENGTH,
            "trial_type": "picture",
            "stim_file": [_name(int(index)) for index in shown],
            "run": run,
            "session": 1 + np.arange(len(shown)) // asked["trials"],
        }
    )
