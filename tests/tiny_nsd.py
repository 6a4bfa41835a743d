"""Raw NSD trees and own data of a few voxels and trials, in milliseconds, for tests.

Written apart from `synthetic.py`, from NSD's Data Manual: what the package reads must not depend on
what the package writes. Betas and pictures identify themselves: the mask's first voxel holds the
image's index, the second the number of the trial; a picture's first pixel holds its index.
"""

import json
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pandas as pd
from PIL import Image
from scipy.io import savemat

B3 = "betas_fithrf_GLMdenoise_RR"
RESPONSES = (  # the columns of NSD's responses.tsv, in its order
    *("SUBJECT", "SESSION", "RUN", "TRIAL", "73KID", "10KID", "TIME", "ISOLD", "ISCORRECT", "RT"),
    *("CHANGEMIND", "MEMORYRECENT", "MEMORYFIRST", "ISOLDCURRENT", "ISCORRECTCURRENT"),
    *("TOTAL1", "TOTAL2", "BUTTON", "MISSINGDATA"),
)


@dataclass(frozen=True)
class Plan:
    """What a tree holds; everything random in it comes from `seed`."""

    subjects: tuple[int, ...] = (1,)
    sessions: int = 3
    trials: int = 8  # of a session; NSD has 750
    shared: float = 0.3  # about this share of a person's images was shown to all
    volume: tuple[int, int, int] = (5, 6, 7)
    form: str = "nsd"  # of the betas: nsd, volumes, contiguous (all .hdf5), or nii.gz
    mat: str = "5"  # MATLAB's version of the design: 5 or 7.3
    version: str = B3
    space: str = "func1pt8mm"
    side: int = 8  # of a picture, in pixels
    seed: int = 0


class Tree:
    """Where the files of a tree lie, and what is in them."""

    def __init__(self, root: Path, plan: Plan):
        self.root, self.plan = Path(root), plan
        self.rng = np.random.default_rng(plan.seed)

    # -- what is in it

    @cached_property
    def ordering(self) -> np.ndarray:
        """(trials,) which of a person's images, the same for all; each shown up to three times."""
        n = self.plan.sessions * self.plan.trials
        rng = np.random.default_rng([self.plan.seed, 1])
        showings = np.repeat(np.arange(n), rng.integers(1, 4, n))[: max(n, 1)]
        return rng.permutation(showings)

    @cached_property
    def num_shared(self) -> int:
        """The shared images come first in everybody's list, as in NSD."""
        return round(self.plan.shared * self.num_shown)

    @property
    def num_shown(self) -> int:
        return int(self.ordering.max()) + 1

    @cached_property
    def shown(self) -> np.ndarray:
        """(8, images of a person): index among all pictures, from 0."""
        own = self.num_shown - self.num_shared
        index = np.random.default_rng([self.plan.seed, 2]).permutation(self.num_shared + 8 * own)
        common = np.sort(index[: self.num_shared])
        rest = index[self.num_shared :].reshape(8, own)
        return np.stack([np.concatenate([common, row]) for row in rest])

    @property
    def num_images(self) -> int:
        return self.num_shared + 8 * (self.num_shown - self.num_shared)

    @cached_property
    def coco(self) -> np.ndarray:
        """(images,) COCO's id of every picture."""
        rng = np.random.default_rng([self.plan.seed, 3])
        return rng.choice(581_929, self.num_images, replace=False) + 1

    @property
    def is_shared(self) -> np.ndarray:
        return np.isin(np.arange(self.num_images), self.shown[0, : self.num_shared])

    def images(self, subject: int = 1) -> np.ndarray:
        """(trials,) index of the picture that was seen."""
        return self.shown[subject - 1, self.ordering]

    @property
    def session_of(self) -> np.ndarray:
        """(trials,) from 1."""
        return np.arange(len(self.ordering)) // self.plan.trials + 1

    def mask(self, subject: int = 1) -> np.ndarray:
        """nsdgeneral as NSD stores it: 1 inside, 0 other cortex, -1 no cortex."""
        rng = np.random.default_rng([self.plan.seed, 4, subject])
        mask = rng.choice([-1, 0, 1], self.plan.volume, p=[0.3, 0.4, 0.3]).astype(np.int16)
        mask[-1, -1, -3:] = 1
        return mask

    def labels(self, name: str, subject: int = 1) -> np.ndarray:
        """prf-visualrois (1 to 7), streams (1 to 7), floc-faces (1 to 5); -1 where no cortex is."""
        rng = np.random.default_rng([self.plan.seed, 5, subject, sum(map(ord, name))])
        high = 6 if name.startswith("floc") else 8
        labels = rng.integers(0, high, self.plan.volume).astype(np.int16)
        return np.where(self.mask(subject) == -1, np.int16(-1), labels)

    def signal_to_noise(self, subject: int = 1) -> np.ndarray:
        rng = np.random.default_rng([self.plan.seed, 6, subject])
        return rng.uniform(0, 1.5, self.plan.volume).astype(np.float32)

    def volumes(self, session: int, subject: int = 1) -> np.ndarray:
        """(trials, x, y, z) int16 = percent signal change x 300."""
        rng = np.random.default_rng([self.plan.seed, 7, subject, session])
        here = self.session_of == session
        drift = rng.integers(-400, 400, self.plan.volume)
        noise = rng.normal(0, 600, (here.sum(), *self.plan.volume))
        volumes = np.clip(drift + noise, -32768, 32767).astype(np.int16)
        places = np.argwhere(self.mask(subject) == 1)
        for place, mark in zip(places, (self.images(subject), np.arange(len(here))), strict=False):
            volumes[(slice(None), *place)] = mark[here]
        return volumes

    def voxels(self, subject: int = 1) -> np.ndarray:
        """(trials, V) int16, all sessions: what the betas inside the mask must come to."""
        inside = self.mask(subject) == 1
        sessions = range(1, self.plan.sessions + 1)
        return np.concatenate([self.volumes(s, subject)[:, inside] for s in sessions])

    def pictures(self) -> np.ndarray:
        """(images, side, side, 3) uint8; the first pixel holds the index."""
        rng = np.random.default_rng([self.plan.seed, 8])
        side = self.plan.side
        pictures = rng.integers(0, 256, (self.num_images, side, side, 3), np.uint8)
        index = np.arange(self.num_images)
        pictures[:, 0, 0, 0], pictures[:, 0, 0, 1] = index % 256, index // 256
        return pictures

    def responses(self, subject: int = 1) -> pd.DataFrame:
        """What the person pressed, a row per trial; NaN where there was no answer."""
        rng = np.random.default_rng([self.plan.seed, 9, subject])
        images, n = self.images(subject), len(self.ordering)
        within = np.arange(n) % self.plan.trials
        showing = pd.Series(images).groupby(images).cumcount().to_numpy()
        answered = rng.random(n) < 0.9
        table = {
            "SUBJECT": subject,
            "SESSION": self.session_of,
            "RUN": within // 4 + 1,
            "TRIAL": within % 4 + 1,
            "73KID": images + 1,
            "10KID": self.ordering + 1,
            "TIME": 0.4 + self.session_of * 7 + within / 8640,
            "ISOLD": (showing > 0).astype(int),
            "RT": np.where(answered, rng.uniform(300, 3000, n).round(3), np.nan),
            "BUTTON": np.where(answered, rng.integers(1, 3, n), np.nan),
            "MISSINGDATA": 0,
        }
        rest = [name for name in RESPONSES if name not in table]
        table |= {name: np.where(answered, rng.integers(0, 2, n), np.nan) for name in rest}
        return pd.DataFrame(table)[list(RESPONSES)]

    # -- where it lies

    def ppdata(self, subject: int = 1) -> Path:
        return self.root / "nsddata" / "ppdata" / f"subj{subject:02d}"

    def roi(self, name: str, subject: int = 1) -> Path:
        return self.ppdata(subject) / self.plan.space / "roi" / f"{name}.nii.gz"

    def behavior(self, subject: int = 1) -> Path:
        return self.ppdata(subject) / "behav" / "responses.tsv"

    def betas(self, subject: int = 1) -> Path:
        below = Path("nsddata_betas", "ppdata", f"subj{subject:02d}")
        return self.root / below / self.plan.space / self.plan.version

    def session(self, session: int, subject: int = 1) -> Path:
        suffix = "nii.gz" if self.plan.form == "nii.gz" else "hdf5"
        return self.betas(subject) / f"betas_session{session:02d}.{suffix}"

    def ncsnr(self, subject: int = 1) -> Path:
        return self.betas(subject) / "ncsnr.nii.gz"

    @property
    def experiment(self) -> Path:
        return self.root / "nsddata" / "experiments" / "nsd"

    @property
    def design(self) -> Path:
        return self.experiment / "nsd_expdesign.mat"

    @property
    def info(self) -> Path:
        return self.experiment / "nsd_stim_info_merged.csv"

    @property
    def stimuli(self) -> Path:
        return self.root / "nsddata_stimuli" / "stimuli" / "nsd" / "nsd_stimuli.hdf5"

    @property
    def captions(self) -> Path:
        return self.root / "annotations" / "captions_train2017.json"


def write(root: Path, plan: Plan | None = None, **choices) -> Tree:
    """Write the tree of a plan below `root`: `write(root, sessions=2, form="nii.gz")`."""
    tree = Tree(root, replace(plan or Plan(), **choices))
    write_design(tree)
    write_info(tree)
    write_stimuli(tree)
    write_captions(tree)
    for subject in tree.plan.subjects:
        for name in ("prf-visualrois", "streams", "floc-faces"):
            write_volume(tree.roi(name, subject), tree.labels(name, subject))
        write_volume(tree.roi("nsdgeneral", subject), tree.mask(subject))
        write_volume(tree.ncsnr(subject), tree.signal_to_noise(subject))
        write_responses(tree.behavior(subject), tree.responses(subject))
        for session in range(1, tree.plan.sessions + 1):
            volumes = tree.volumes(session, subject)
            write_session(tree.session(session, subject), volumes, tree.plan.form)
    return tree


# -- single files, which tests also write wrongly --------------------------------------------------


def write_volume(path: Path, volume: np.ndarray) -> None:
    """A NIfTI volume (x, y, z) or (x, y, z, trials)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.8, 1.8, 1.8, 1])), path)


def write_session(path: Path, volumes: np.ndarray, form: str = "nsd", name: str = "betas") -> None:
    """(trials, x, y, z) as NSD stores a session; h5py sees (trials, z, y, x)."""
    if form == "nii.gz":
        return write_volume(path, np.moveaxis(volumes, 0, -1))
    seen = volumes.transpose(0, 3, 2, 1)
    options = {"nsd": {"chunks": (len(seen), 1, 1, 1)}, "contiguous": {}}
    options["volumes"] = {"chunks": (1, *seen.shape[1:]), "compression": "gzip"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=seen, **options[form])
    return None


def write_responses(path: Path, table: pd.DataFrame, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, **{"sep": "\t", "index": False, "na_rep": "NaN"} | options)


def design_of(tree: Tree) -> dict[str, np.ndarray]:
    """The arrays of nsd_expdesign.mat as MATLAB sees them, counted from 1."""
    shared = tree.shown[:1, : tree.num_shared] + 1
    slots = np.arange(4 * -(-tree.plan.trials // 4)).reshape(-1, 4) < tree.plan.trials
    return {
        "masterordering": tree.ordering[None] + 1,
        "basiccnt": np.zeros((3, tree.plan.sessions)),
        "sharedix": shared,
        "subjectim": tree.shown + 1,
        # (sessions, runs, slots): is there a trial?
        "stimpattern": np.stack([slots.astype(np.uint8)] * tree.plan.sessions),
    }


def write_design(tree: Tree, **changes) -> None:
    arrays = design_of(tree) | changes
    arrays = {name: array for name, array in arrays.items() if array is not None}
    tree.design.parent.mkdir(parents=True, exist_ok=True)
    if tree.plan.mat == "5":
        savemat(tree.design, arrays)
    else:
        write_mat73(tree.design, arrays)


def write_mat73(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """MATLAB 7.3: HDF5 behind a block of 512 bytes; arrays are stored transposed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            kind = "uint8" if array.dtype == np.uint8 else "double"
            stored = np.ascontiguousarray(array.T, np.uint8 if kind == "uint8" else np.float64)
            file[name] = stored
            file[name].attrs["MATLAB_class"] = np.bytes_(kind)
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Thu Jan 1 1970 HDF5 schema 1.00 ."
    with path.open("r+b") as file:
        file.write(text.ljust(124, b" ") + b"\x00\x02IM")


def info_of(tree: Tree) -> pd.DataFrame:
    """nsd_stim_info_merged.csv: a row per picture, `nsdId` from 0."""
    index = np.arange(tree.num_images)
    table = {
        "cocoId": tree.coco,
        "cocoSplit": np.where(index % 4, "train2017", "val2017"),
        "cropBox": "(0, 0, 0.125, 0.125)",
        "loss": 0.125,
        "nsdId": index,
        "flagged": False,
        "BOLD5000": False,
        "shared1000": tree.is_shared,
    }
    for subject in range(1, 9):
        table[f"subject{subject}"] = np.isin(index, tree.shown[subject - 1]).astype(int)
    for subject in range(1, 9):
        images = tree.images(subject)
        showing = pd.Series(images).groupby(images).cumcount().to_numpy()
        for repeat in range(3):
            column = np.zeros(tree.num_images, int)
            here = np.flatnonzero(showing == repeat)
            column[images[here]] = here + 1
            table[f"subject{subject}_rep{repeat}"] = column
    return pd.DataFrame(table)


def write_info(tree: Tree) -> None:
    info_of(tree).to_csv(tree.info)


def write_stimuli(tree: Tree, name: str = "imgBrick") -> None:
    tree.stimuli.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(tree.stimuli, "w") as file:
        file[name] = tree.pictures()


def captions_of(tree: Tree) -> dict:
    """COCO's annotations: two captions per picture, and one of a picture that NSD has not."""
    texts = [(int(c), f"picture {i}, words {w}") for i, c in enumerate(tree.coco) for w in "ab"]
    texts.append((900_000, "a picture that nobody saw"))
    ids = {c for c, _ in texts}
    return {
        "images": [{"id": c, "file_name": f"{c:012d}.jpg"} for c in sorted(ids)],
        "annotations": [{"image_id": c, "id": n, "caption": t} for n, (c, t) in enumerate(texts)],
    }


def write_captions(tree: Tree) -> None:
    tree.captions.parent.mkdir(parents=True, exist_ok=True)
    tree.captions.write_text(json.dumps(captions_of(tree)), encoding="utf-8")


# -- damage ----------------------------------------------------------------------------------------


def cut(path: Path, share: float) -> None:
    """Keep that share of a file's bytes; all but one for 1, one for a very small share."""
    content = path.read_bytes()
    path.write_bytes(content[: min(max(int(share * len(content)), share > 0), len(content) - 1)])


def flip(path: Path, share: float, bits: int = 0xFF) -> None:
    """Other bits in the byte at that share of a file."""
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= bits
    path.write_bytes(bytes(content))


def replaced(path: Path, by: str) -> None:
    """Something else where a file was: nothing, a folder, a loop of links, a link to nowhere."""
    path.unlink()
    if by == "folder":
        path.mkdir()
    elif by == "loop":
        other = path.with_name(f"other-{path.name}")
        path.symlink_to(other)
        other.symlink_to(path)
    elif by == "dangling link":
        path.symlink_to(path.with_name("nowhere"))


def changed_text(path: Path, change: Callable[[str], str], encoding: str = "utf-8") -> None:
    with path.open(encoding="utf-8", newline="") as file:
        text = file.read()
    path.write_bytes(change(text).encode(encoding))


def changed_array(path: Path, name: str, change: Callable[[np.ndarray], Any]) -> None:
    """Another dataset under the same name; `change` may also give None: then it goes."""
    with h5py.File(path, "a") as file:
        found = change(file[name][()])
        del file[name]
        if found is not None:
            file[name] = found


# -- how a call on bad input may end ---------------------------------------------------------------


def right_or_one_line(
    call: Callable[[], Any], out: Path, names: Sequence[str] = (), ends: str = "either"
) -> Any:
    """Run it: what it gives, or None after one clear line.

    `ends`: "right", "error" or "either". An error is a ValueError, FileNotFoundError or OSError
    that the package itself raised, in one line with all of `names`; below `out` nothing partial is
    left after it.
    """
    try:
        result = call()
    except Exception as error:
        assert ends != "right", f"expected a right result, not {type(error).__name__}: {error}"
        one_line(error, names)
        assert not partial(out)
        return None
    assert ends != "error", f"expected one line of error with {names}"
    return result


def one_line(error: Exception, names: Sequence[str]) -> None:
    said = f"{type(error).__name__}: {error}"
    assert type(error) in (ValueError, FileNotFoundError, OSError), said
    assert ours(error), f"raised by a library: {said}"
    assert "\n" not in str(error) and "Traceback" not in said and 10 < len(said) < 1500, said
    missing = [name for name in names if name not in str(error)]
    assert not missing, f"{missing} not in: {said}"


def ours(error: Exception) -> bool:
    """Was it raised by a line of the package?"""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    checks = ("jaxtyping", "beartype")
    files = [Path(f.f_code.co_filename) for f in frames]
    files = [file for file in files if not set(checks) & set(file.parts)]
    return files[-1].parent.name == "mindeye2_lite"


def partial(out: Path) -> list[str]:
    """What a preparation that failed must not leave: betas, records, halves, staged sessions."""
    left = [path.relative_to(out) for path in out.rglob("*")] if out.is_dir() else []
    bad = ("betas_all", ".betas_all")
    return [
        str(path)
        for path in left
        if path.name.endswith(".part") or path.name.startswith(bad) or path.parts[0] == "wds"
    ]


# -- somebody's own data ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Own:
    """A study of a few pictures: betas, a table of events, a folder of pictures."""

    root: Path
    form: str = "npy"  # npy, h5, mat5, mat73, nii.gz or glmsingle
    sessions: int = 2
    trials: int = 12  # of a session
    pictures: int = 6
    space: tuple[int, int, int] = (3, 4, 3)
    side: int = 8
    seed: int = 0

    @cached_property
    def shown(self) -> np.ndarray:
        """(trials,) index of the picture, in order of time; every picture is shown."""
        n = self.sessions * self.trials
        return np.random.default_rng(self.seed).permutation(np.arange(n) % self.pictures)

    @property
    def names(self) -> list[str]:
        return [f"picture{i:02d}.png" for i in range(self.pictures)]

    @cached_property
    def volumes(self) -> np.ndarray:
        """(trials, x, y, z) float32; the first voxel holds the picture, the second the trial."""
        rng = np.random.default_rng([self.seed, 1])
        volumes = rng.normal(size=(len(self.shown), *self.space)).astype(np.float32)
        volumes[:, 0, 0, 0], volumes[:, 0, 0, 1] = self.shown, np.arange(len(self.shown))
        return volumes

    @property
    def voxels(self) -> np.ndarray:
        """(trials, V)."""
        return self.volumes.reshape(len(self.shown), -1)

    @property
    def session_of(self) -> np.ndarray:
        return np.arange(len(self.shown)) // self.trials + 1

    @property
    def events_table(self) -> pd.DataFrame:
        onset = np.arange(len(self.shown)) % self.trials * 4.0
        return pd.DataFrame(
            {
                "onset": onset,
                "duration": 3.0,
                "trial_type": "picture",
                "stim_file": [self.names[i] for i in self.shown],
                "session": self.session_of,
                "run": 1,
            }
        )

    @property
    def betas(self) -> Path:
        names = {"mat5": "betas.mat", "mat73": "betas.mat", "nii.gz": "betas.nii.gz"}
        names["glmsingle"] = "TYPED_FITHRF_GLMDENOISE_RR.npy"
        return self.root / names.get(self.form, f"betas.{self.form}")

    @property
    def events(self) -> Path:
        return self.root / "events.tsv"

    @property
    def folder(self) -> Path:
        return self.root / "pictures"

    @property
    def mask(self) -> Path:
        return self.root / "mask.nii.gz"

    @property
    def captions(self) -> Path:
        return self.root / "captions.json"


def write_own(root: Path, **choices) -> Own:
    own = Own(Path(root), **choices)
    own.folder.mkdir(parents=True)
    write_own_betas(own, own.volumes)
    write_responses(own.events, own.events_table)
    rng = np.random.default_rng([own.seed, 2])
    for index, name in enumerate(own.names):
        pixels = rng.integers(0, 256, (own.side, own.side, 3), np.uint8)
        pixels[0, 0, 0] = index
        Image.fromarray(pixels).save(own.folder / name)
    write_volume(own.mask, np.ones(own.space, np.uint8))
    said = {name: [f"words of {name}"] for name in own.names}
    own.captions.write_text(json.dumps(said), encoding="utf-8")
    return own


def write_own_betas(own: Own, volumes: np.ndarray) -> None:
    """(trials, x, y, z), or (trials, V) for tables, in the form of the study."""
    last = np.moveaxis(volumes, 0, -1) if volumes.ndim else volumes
    rows = (
        volumes.reshape(len(volumes), math.prod(volumes.shape[1:])) if last.ndim == 4 else volumes
    )
    path = own.betas
    if own.form == "npy":
        np.save(path, rows)
    elif own.form == "h5":
        with h5py.File(path, "w") as file:
            file["betas"] = rows
    elif own.form == "mat5":
        savemat(path, {"modelmd": last})
    elif own.form == "mat73":
        write_mat73(path, {"modelmd": last})
    elif own.form == "nii.gz":
        write_volume(path, last)
    else:  # what Python's GLMsingle saves
        content = {"betasmd": last, "meanvol": last[..., 0], "pcnum": 3, "glmbadness": None}
        np.save(path, content, allow_pickle=True)
