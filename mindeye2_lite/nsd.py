"""Trials of the Natural Scenes Dataset: voxels, image, repeat, session.

`Subject` reads the files of the MindEye2 release and nothing else; `prepare` makes the same files
from raw data. So released, prepared and synthetic data look alike to everything that follows.

    subject = Subject(root, 1)
    subject.train(sessions=1).voxels     (trials, V): the non-shared trials of the first session
    subject.test(sessions=1).repeats()   (images, 3, V): the shared images, always the same
    Pairs(subject)[[7, 3, 7]]            voxels and pictures of single trials, read when asked for

V = voxels of nsdgeneral, 15,724 for NSD's subject 1. Read with notebook 01.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch

from mindeye2_lite.config import NORMALIZE
from mindeye2_lite.layout import (
    GLOBAL_TRIAL,
    IMAGE,
    SESSION,
    betas_file,
    entry,
    open_hdf5,
    read_records,
    reading,
    records_folder,
    subjects,
    there,
)
from mindeye2_lite.nsd_compare import Comparison, compare
from mindeye2_lite.nsd_raw import prepare
from mindeye2_lite.nsd_statistics import (
    EXPECTED_TRIALS,
    PUBLISHED,
    behavior_summary,
    by_region,
    estimate_ncsnr,
    noise_ceiling,
    reliability,
)
from mindeye2_lite.own_data import from_arrays
from mindeye2_lite.own_files import from_files
from mindeye2_lite.trial_access import (
    Images,
    Indices,
    Pair,
    Pairs,
    Rows,
    Scales,
    Trials,
    check_order,
    check_records,
    repeats,
    rescale,
)

# fmt: off
__all__ = [
    "Comparison", "EXPECTED_TRIALS", "Images", "NORMALIZE", "PUBLISHED", "Pair", "Pairs", "SPLITS",
    "Subject", "Trials", "behavior_summary", "by_region", "compare", "estimate_ncsnr",
    "from_arrays", "from_files", "noise_ceiling", "prepare", "reliability", "session_drift",
]
# fmt: on

# How many trials each has of NSD's people: EXPECTED_TRIALS.
SPLITS = {
    "train": "trials of images that only this person saw; sessions may be chosen",
    "new_test": "all trials of the images that all people were to see (shared1000)",
    "shared1000": "another name of new_test. Who came to 40 sessions saw all 1000, each three "
    "times; in 32 sessions people saw 930 of them at least once, in 30 sessions 907",
    "test": "new_test without each person's last three sessions: NSD's older release",
    "shared982": "another name of test, as papers cite it: 982 images were shown at least once in "
    "the first 37 sessions of those who came to 40 (2770 trials, so not all three times). Who "
    "came to fewer has fewer images: at most 907, as that is what 30 sessions show",
}
_TARS = {"new_test": "new_test", "shared1000": "new_test", "test": "test", "shared982": "test"}


class Subject:
    """One person's voxels, images and regions from the training layout below `root`.

    Subjects may have any number from 1 to 99. FileNotFoundError or ValueError in one line where a
    file is missing, cut short or of the wrong size, or where records contradict each other; those
    of sessions between the first and the last are looked at when they are read.
    """

    def __init__(self, root: str | Path, subject: int):
        self.root, self.subject = Path(root), subject
        self._betas_file = betas_file(self.root, subject)
        if not self._betas_file.exists():
            if self._betas_file.is_symlink():
                there(self._betas_file)
            others = subjects(self.root)
            raise FileNotFoundError(
                f"no subject {subject} in {self.root}: "
                + (f"there are {others}" if others else "run nsd.prepare, or synthetic.open_cohort")
            )
        self._tars = records_folder(self.root, subject)
        self.sessions = len(list((self._tars / "train").glob("[0-9]*.tar")))
        self.betas = Rows(self._betas_file, "betas", kind="trials")
        if len(self.betas.shape) != 2:
            raise ValueError(
                f"{self._betas_file} has betas of shape {self.betas.shape}, expected (trials, V)"
            )
        self.num_voxels = self.betas.shape[1]
        self._check()

    def _check(self) -> None:
        if self.sessions == 0:
            raise FileNotFoundError(f"no behavior records in {self._tars}/train: run nsd.prepare")
        for session in sorted({1, self.sessions}):
            self._train(session)
        for name, mask in self.rois.items():
            if len(mask) != self.num_voxels:
                raise ValueError(
                    f"region {name} of subject {self.subject} has {len(mask)} voxels, but "
                    f"{self._betas_file.name} has {self.num_voxels}: they are of different masks"
                )

    # -- what belongs to voxels and images

    @cached_property
    def rois(self) -> dict[str, np.ndarray]:
        """Region name -> (V,) bool; `nsd_general` is all of them, `higher_vis` what no V1-V4 is."""
        path = self.root / "brain_region_masks.hdf5"
        with open_hdf5(path) as file, reading(path):
            group = entry(file, f"subj{self.subject:02d}")
            regions = {name: entry(group, name)[()] for name in group}
        for name, mask in regions.items():
            if mask.ndim != 1 or mask.dtype.kind not in "biuf":
                raise ValueError(
                    f"{path}: region {name} is {mask.dtype} of shape {mask.shape}, expected (V,)"
                )
        return {name: mask.astype(bool) for name, mask in regions.items()}

    @cached_property
    def ncsnr(self) -> np.ndarray:
        """NSD's noise ceiling signal-to-noise ratio, (V,): see `noise_ceiling`."""
        with open_hdf5(self._betas_file) as file:
            if "ncsnr" not in file:
                raise ValueError(
                    f"{self._betas_file.name} has no 'ncsnr' (released files): run nsd.prepare on "
                    "the raw data, or estimate it from repeats: nsd.estimate_ncsnr(subject.train())"
                )
            ncsnr = entry(file, "ncsnr")[()]
        if ncsnr.shape != (self.num_voxels,) or ncsnr.dtype.kind not in "iuf":
            raise ValueError(
                f"{self._betas_file} has ncsnr of shape {ncsnr.shape} ({ncsnr.dtype}), expected "
                f"{(self.num_voxels,)}"
            )
        return ncsnr

    @cached_property
    def position(self) -> np.ndarray:
        """Where each voxel lies in the functional volume: (V, 3) integers (x, y, z) from 0."""
        with self._voxels_file() as group:
            position = entry(group, "position")[:].astype(np.int64)
        if position.shape != (self.num_voxels, 3):
            raise ValueError(
                f"{self.root / 'voxels.hdf5'} has positions of shape {position.shape} for subject "
                f"{self.subject}, the betas have {self.num_voxels} voxels: they are of different "
                "masks"
            )
        return position

    @cached_property
    def volume(self) -> tuple[tuple[int, ...], np.ndarray]:
        """Shape (X, Y, Z) of the functional volume, and its affine (4, 4): voxel to mm."""
        with self._voxels_file() as group:
            known = {**group.attrs, **entry(group, "position").attrs}
        if missing := [name for name in ("shape", "affine") if name not in known]:
            raise ValueError(f"{self.root / 'voxels.hdf5'} does not say its {missing[0]}")
        return tuple(int(n) for n in known["shape"]), np.asarray(known["affine"])

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """Name of a labeled volume (`prf-visualrois`, `streams`, ...) -> label per voxel, (V,)."""
        with self._voxels_file() as group:
            labels = entry(group, "labels")
            return {name: labels[name][:] for name in labels}

    @contextmanager
    def _voxels_file(self) -> Iterator[h5py.Group]:
        path = self.root / "voxels.hdf5"
        self._only_ours(path)
        with open_hdf5(path) as file, reading(path):
            yield entry(file, f"subj{self.subject:02d}")

    @cached_property
    def stimuli(self) -> pd.DataFrame:
        """A row per image: image_id, coco_id, coco_split, shared1000, and each person's 10k index.

        Where NSD has no value, as in stimuli.csv.
        """
        path = self.root / "stimuli.csv"
        self._only_ours(path)
        try:
            table = pd.read_csv(path)
        except (OSError, ValueError) as error:  # also pandas' own, and text that is no UTF-8
            raise ValueError(f"{path} is no table ({' '.join(str(error).split())})") from error
        if "image_id" not in table:
            raise ValueError(f"{path} has no column 'image_id', only {list(table)}")
        return table

    def _only_ours(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: released files do not have it; run nsd.prepare on the raw data"
            )

    @cached_property
    def images(self) -> Images:
        """Every picture of the cohort, read by index; of several sizes the largest."""
        found = list(self.root.glob("coco_images_*_float16.hdf5"))
        if not found:
            raise FileNotFoundError(
                f"no coco_images_*_float16.hdf5 in {self.root}: run nsd.prepare"
            )
        return Images(max(found, key=_pixels))

    def captions(self, image_id: int) -> list[str]:
        """The captions that people (or the generator of the cohort) wrote for a picture."""
        found = self._captions.get(str(int(image_id)))
        if found is None:
            raise ValueError(f"{self.root / 'captions.json'} has no captions of image {image_id}")
        return found

    @cached_property
    def _captions(self) -> dict[str, list[str]]:
        path = self.root / "captions.json"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run nsd.prepare with NSD's annotations")
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            return {str(image): [str(text) for text in texts] for image, texts in content.items()}
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            why = " ".join(str(error).split())
            raise ValueError(f"{path} is no mapping from images to captions ({why})") from error

    # -- trials

    def train(self, sessions: int | None = None, normalize: str = "sessions") -> Trials:
        """The non-shared trials of the first `sessions` sessions (None: of all).

        `normalize` says who scales them, by name: see NORMALIZE.
        """
        return self._trials("train", sessions, normalize)

    def test(
        self, sessions: int | None = None, normalize: str = "sessions", split: str = "new_test"
    ) -> Trials:
        """The trials of shared images, always the same ones, or those of another of the SPLITS.

        `sessions` says which are known. With `normalize="sessions"` test trials of later ones are
        scaled by the mean and deviation of the known training trials together. `normalize="all"`
        scales each session by its own training trials. Official: always "all", also where only
        one session is trained on. The others: see NORMALIZE.
        """
        if split not in _TARS:
            raise ValueError(f"split {split!r} is unknown: choose {_listed(_TARS)}")
        return self._trials(split, sessions, normalize)

    def records(self, split: str = "train", sessions: int | None = None) -> np.ndarray:
        """The behavior of a split, (trials, 17) as in layout.COLUMNS; no betas are read.

        Of "train" the first `sessions` sessions, of the others always all. ValueError in one line
        where records double a trial, or put sessions into another order than time.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown: choose {_listed(SPLITS)}")
        sessions = self._checked(sessions)
        if split != "train":
            return self._test(_TARS[split])
        table = np.concatenate([self._train(s) for s in range(1, sessions + 1)])
        check_order(self._tars, np.concatenate([table, self._test("new_test")]))
        return table

    def voxels(self, rows: Indices) -> np.ndarray:
        """Betas of any trials as they are in the file: (n, V) float32.

        `rows` are global trials from 0 in any order, also several times the same; only those are
        read. ValueError in one line where there is no such trial.
        """
        return np.asarray(self.betas.read(rows), np.float32)

    @cached_property
    def session_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each session's training trials, (sessions, V), percent signal."""
        return self._statistics("session_mean", "session_std")

    @cached_property
    def session_statistics_with_test(self) -> tuple[np.ndarray, np.ndarray]:
        """The same of all trials of each session, test trials included."""
        return self._statistics("session_mean_with_test", "session_std_with_test")

    def _statistics(self, *names: str) -> tuple[np.ndarray, ...]:
        with open_hdf5(self._betas_file) as file:
            for name in names:
                if name not in file:
                    raise ValueError(
                        f"{self._betas_file.name} has no {name} (a released or an older file): "
                        'pass normalize="all" (a command: --normalize all), or run nsd.prepare on '
                        "the raw data"
                    )
                found = entry(file, name)
                shape, kind = getattr(found, "shape", "a group"), getattr(found, "dtype", None)
                if shape != (self.sessions, self.num_voxels) or kind.kind not in "iuf":
                    raise ValueError(
                        f"{self._betas_file} has {name} of shape {shape} ({kind}), expected "
                        f"{(self.sessions, self.num_voxels)}: it is not of these records"
                    )
            return tuple(file[name][:] for name in names)

    def _checked(self, sessions: int | None) -> int:
        sessions = self.sessions if sessions is None else sessions
        if not 1 <= sessions <= self.sessions:
            raise ValueError(
                f"subject {self.subject} has sessions 1 to {self.sessions}; asked for {sessions}"
            )
        return sessions

    def _train(self, session: int) -> np.ndarray:
        if session not in self._read:
            path = self._tars / "train" / f"{session - 1}.tar"
            table = self._read_checked(path, {session})
            both = np.intersect1d(table[:, IMAGE], self._test("new_test")[:, IMAGE])
            if len(both):
                raise ValueError(
                    f"{path} trains on image {int(both[0])}, which is in new_test/0.tar as well: "
                    "no image may be in both"
                )
            self._read[session] = table
        return self._read[session]

    def _test(self, split: str) -> np.ndarray:
        if split not in self._read:
            known = set(range(1, self.sessions + 1))
            self._read[split] = self._read_checked(self._tars / split / "0.tar", known)
        return self._read[split]

    def _read_checked(self, path: Path, sessions: set[int]) -> np.ndarray:
        table = read_records(path)
        check_records(path, table, sessions)
        last = int(table[:, GLOBAL_TRIAL].max(initial=-1))
        if last >= len(self.betas):
            raise ValueError(
                f"{self._betas_file} is cut short: expected at least {last + 1} trials, as in "
                f"{path}, found shape {self.betas.shape}"
            )
        return table

    @cached_property
    def _read(self) -> dict:
        return {}

    def _trials(self, split: str, sessions: int | None, normalize: str) -> Trials:
        behavior, scales = self.scaling(split, sessions, normalize)
        session = behavior[:, SESSION].astype(np.int64)
        voxels = self._scaled(behavior[:, GLOBAL_TRIAL].astype(np.int64), session, scales)
        image_id = behavior[:, IMAGE].astype(np.int64)
        rest = (image_id, repeats(image_id), session, behavior)
        # No second copy of gigabytes: the tensor is the array.
        return Trials(torch.from_numpy(voxels), *(torch.tensor(array) for array in rest))

    def _scaled(self, rows: np.ndarray, session: np.ndarray, scales: Scales) -> np.ndarray:
        """(n, V), a session at a time, so that memory holds what is asked for and little else."""
        out = np.empty((len(rows), self.num_voxels), np.float32)
        for number in np.unique(session):
            here = np.flatnonzero(session == number)
            block = self.voxels(rows[here])
            if not np.isfinite(block.sum(dtype=np.float64)):
                raise ValueError(
                    f"{self._betas_file} has betas in session {number} that are no finite numbers"
                )
            rescale(block, session[here], scales)
            out[here] = block
        return out

    def scaling(
        self, split: str, sessions: int | None, normalize: str
    ) -> tuple[np.ndarray, Scales]:
        """A split's records, and how to scale its sessions otherwise than in the file."""
        behavior = self.records(split, sessions)
        present = np.unique(behavior[:, SESSION].astype(np.int64))
        return behavior, self._scales(present, self._checked(sessions), normalize)

    def _scales(self, present: np.ndarray, sessions: int, normalize: str) -> Scales:
        """By session; those left out stay as they are."""
        if normalize not in NORMALIZE:
            raise ValueError(f"normalize {normalize!r} is unknown: choose {_listed(NORMALIZE)}")
        later = present[present > sessions]
        others = {"all": present[:0], "sessions": later}.get(normalize, present).tolist()
        if not others:
            return {}
        own = self.session_statistics
        if normalize == "notebook":
            new = self.session_statistics_with_test
            return {s: (*(x[s - 1] for x in own), *(x[s - 1] for x in new)) for s in others}
        known = self._pooled(self.sessions if normalize == "global" else sessions)
        return {s: (*(x[s - 1] for x in own), *known) for s in others}

    def _pooled(self, sessions: int) -> tuple[np.ndarray, np.ndarray]:
        mean, std = self.session_statistics
        trials = np.array([len(self._train(s)) for s in range(1, sessions + 1)])
        if not trials.any():
            raise ValueError(
                f"sessions 1 to {sessions} of subject {self.subject} have no training trials to "
                'scale by: pass more sessions or normalize="all"'
            )
        return _pooled(mean[:sessions], std[:sessions], trials)


def _pooled(mean: np.ndarray, std: np.ndarray, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of all trials together from those of each session."""
    share = (trials / trials.sum())[:, None]
    together = (share * mean).sum(0)
    variance = (share * (std**2 + (mean - together) ** 2)).sum(0)
    return together.astype(np.float32), np.sqrt(variance).astype(np.float32)


def _pixels(path: Path) -> int:
    """The side of a file's pictures, from its name: as text, 64 would come after 224."""
    size = path.name.split("_")[2]
    return int(size) if size.isdecimal() else 0


def _listed(names: Iterable[str]) -> str:
    *names, last = names
    return f"{', '.join(names)} or {last}"


def session_drift(subject: Subject) -> dict[str, np.ndarray]:
    """How far voxels move between sessions: `mean` and `gain`, (sessions, V).

    `mean`: the session's mean less the mean over sessions, in deviations of single trials.
    `gain`: the session's deviation over the median deviation. Both from training trials.
    """
    mean, std = subject.session_statistics
    return {"mean": (mean - mean.mean(0)) / std.mean(0), "gain": std / np.median(std, axis=0)}
