"""Trials of the Natural Scenes Dataset: voxels, image, repeat, session.

`Subject` reads the files of the MindEye2 release and nothing else; `prepare` makes the same files
from raw data. So released, prepared and synthetic data look alike to everything that follows.

    subject = Subject(root, 1)
    subject.train(sessions=1).voxels     (trials, V): the non-shared trials of the first session
    subject.test(sessions=1).repeats()   (images, 3, V): the shared images, always the same

V = voxels of nsdgeneral, 15,724 for NSD's subject 1. Read with notebook 01.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mindeye2_lite.layout import (
    COLUMNS,
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
)
from mindeye2_lite.nsd_raw import prepare
from mindeye2_lite.own_data import from_arrays
from mindeye2_lite.own_files import from_files

__all__ = ["Images", "Subject", "Trials", "from_arrays", "from_files", "prepare"]


@dataclass(frozen=True)
class Trials:
    """Trials of one person in the order in which they happened."""

    voxels: Tensor  # (trials, V) float32, in standard deviations
    image_id: Tensor  # (trials,) int64, NSD's 73k index from 0
    repeat: Tensor  # (trials,) int64, 0 at the first showing of that image in the split
    session: Tensor  # (trials,) int64, from 1
    behavior: Tensor  # (trials, 17) float64, columns as in COLUMNS

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def image_ids(self) -> Tensor:
        """The images seen, ascending, each once: "image i" everywhere below."""
        return self.image_id.unique()

    def repeats(self, n: int = 3) -> Tensor:
        """Voxels as (images, n, V), images ascending.

        Where an image was shown fewer than n times its first showing fills the gap: (a, a, a) or
        (a, a, b), as in the released code.
        """
        order = torch.argsort(self.image_id, stable=True)
        _, counts = self.image_id.unique(return_counts=True)
        rows = [
            [*[int(group[0])] * (n - len(group)), *group.tolist()][:n]
            for group in order.split(counts.tolist())
        ]
        return self.voxels[torch.tensor(rows, dtype=torch.long)]


class Images:
    """Pictures by 73k index: `images[ids]` -> (n, 3, H, W) float32 in [0, 1]."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open_hdf5(self.path) as file:
            self.shape = tuple(file["images"].shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: int | Sequence[int] | np.ndarray | Tensor) -> Tensor:
        ids = np.atleast_1d(np.asarray(ids, dtype=np.int64))
        if len(ids) and not (0 <= ids.min() and ids.max() < len(self)):
            raise ValueError(f"{self.path} has images 0 to {len(self) - 1}; asked for {ids.max()}")
        out = np.empty((len(ids), *self.shape[1:]), np.float32)
        with open_hdf5(self.path) as file, reading(self.path):
            images = file["images"]
            for row, image in enumerate(ids):  # faster than h5py's own fancy indexing
                out[row] = images[int(image)]
        return torch.from_numpy(out)


class Subject:
    """One person's voxels, images and regions from the training layout below `root`.

    FileNotFoundError or ValueError in one line where a file is missing, cut short or of the wrong
    size.
    """

    def __init__(self, root: str | Path, subject: int):
        self.root, self.subject = Path(root), subject
        self._betas_file = betas_file(self.root, subject)
        if not self._betas_file.exists():
            others = subjects(self.root)
            raise FileNotFoundError(
                f"no subject {subject} in {self.root}: "
                + (f"there are {others}" if others else "run nsd.prepare, or synthetic.open_cohort")
            )
        self._tars = records_folder(self.root, subject)
        self.sessions = len(list((self._tars / "train").glob("[0-9]*.tar")))
        with open_hdf5(self._betas_file) as file:
            rows, self.num_voxels = file["betas"].shape
        self._check(rows)

    def _check(self, rows: int) -> None:
        if self.sessions == 0:
            raise FileNotFoundError(f"no behavior records in {self._tars}/train: run nsd.prepare")
        expected = 1 + int(max(self._train(self.sessions)[:, GLOBAL_TRIAL].max(), self._last_test))
        if rows < expected:
            raise ValueError(
                f"{self._betas_file} is cut short: expected at least {expected} trials "
                f"({self.sessions} sessions), found shape {(rows, self.num_voxels)}"
            )
        for name, mask in self.rois.items():
            if len(mask) != self.num_voxels:
                raise ValueError(
                    f"region {name} of subject {self.subject} has {len(mask)} voxels, but "
                    f"{self._betas_file.name} has {self.num_voxels}: they are of different masks"
                )

    @cached_property
    def rois(self) -> dict[str, np.ndarray]:
        """Region name -> (V,) bool; `nsd_general` is all of them, `higher_vis` what no V1-V4 is."""
        with open_hdf5(self.root / "brain_region_masks.hdf5") as file:
            group = entry(file, f"subj{self.subject:02d}")
            return {name: group[name][:].astype(bool) for name in group}

    @cached_property
    def ncsnr(self) -> np.ndarray:
        """NSD's noise ceiling signal-to-noise ratio, (V,): see `noise_ceiling`."""
        with open_hdf5(self._betas_file) as file:
            return entry(file, "ncsnr")[:]

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
        return self._captions[str(int(image_id))]

    @cached_property
    def _captions(self) -> dict[str, list[str]]:
        path = self.root / "captions.json"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run nsd.prepare with NSD's annotations")
        return json.loads(path.read_text())

    def train(self, sessions: int | None = None, normalize: str = "sessions") -> Trials:
        """The non-shared trials of the first `sessions` sessions (None: of all)."""
        sessions = self._checked(sessions)
        behavior = np.concatenate([self._train(s) for s in range(1, sessions + 1)])
        return self._trials(behavior, sessions, normalize)

    def test(
        self, sessions: int | None = None, normalize: str = "sessions", split: str = "new_test"
    ) -> Trials:
        """The trials of shared images, always the same ones.

        With `normalize="sessions"` only the first `sessions` sessions are known: test trials of
        later ones are scaled by the mean and deviation of the known training trials together.
        `normalize="all"` scales each session by its own training trials. Official: always "all",
        also where only one session is trained on.
        """
        if split not in ("new_test", "test"):
            raise ValueError(f"split {split!r} is unknown: choose new_test or test")
        return self._trials(self._test(split), self._checked(sessions), normalize)

    @cached_property
    def session_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each session's training trials, (sessions, V), percent signal."""
        with open_hdf5(self._betas_file) as file:
            if "session_mean" not in file:
                raise ValueError(
                    f"{self._betas_file.name} has no session_mean (a released file): "
                    'pass normalize="all" (a command: --normalize all), or run nsd.prepare on the '
                    "raw data"
                )
            return file["session_mean"][:], file["session_std"][:]

    def _checked(self, sessions: int | None) -> int:
        sessions = self.sessions if sessions is None else sessions
        if not 1 <= sessions <= self.sessions:
            raise ValueError(
                f"subject {self.subject} has sessions 1 to {self.sessions}; asked for {sessions}"
            )
        return sessions

    def _train(self, session: int) -> np.ndarray:
        if session not in self._read:
            self._read[session] = read_records(self._tars / "train" / f"{session - 1}.tar")
        return self._read[session]

    def _test(self, split: str) -> np.ndarray:
        if split not in self._read:
            self._read[split] = read_records(self._tars / split / "0.tar")
        return self._read[split]

    @cached_property
    def _read(self) -> dict:
        return {}

    @property
    def _last_test(self) -> float:
        return self._test("new_test")[:, GLOBAL_TRIAL].max(initial=-1)

    def _trials(self, behavior: np.ndarray, sessions: int, normalize: str) -> Trials:
        if normalize not in ("sessions", "all"):
            raise ValueError(f"normalize {normalize!r} is unknown: choose sessions or all")
        session = behavior[:, SESSION].astype(np.int64)
        voxels = self._voxels(behavior[:, GLOBAL_TRIAL].astype(np.int64), session)
        later = session > sessions
        if normalize == "sessions" and later.any():
            voxels[later] = self._by_known_sessions(voxels[later], session[later], sessions)
        image_id = behavior[:, IMAGE].astype(np.int64)
        repeat = pd.Series(image_id).groupby(image_id).cumcount().to_numpy(np.int64)
        rest = (torch.tensor(array) for array in (image_id, repeat, session, behavior))
        return Trials(torch.from_numpy(voxels), *rest)  # no second copy of gigabytes

    def _voxels(self, rows: np.ndarray, session: np.ndarray) -> np.ndarray:
        """Rows of the betas, a session at a time, so that memory holds what is asked for."""
        out = np.empty((len(rows), self.num_voxels), np.float32)
        with open_hdf5(self._betas_file) as file, reading(self._betas_file):
            for number in np.unique(session):
                here = np.flatnonzero(session == number)
                first, last = rows[here].min(), rows[here].max() + 1
                out[here] = file["betas"][first:last][rows[here] - first]
        return out

    def _by_known_sessions(
        self, voxels: np.ndarray, session: np.ndarray, sessions: int
    ) -> np.ndarray:
        mean, std = self.session_statistics
        raw = voxels * std[session - 1] + mean[session - 1]
        trials = np.array([len(self._train(s)) for s in range(1, sessions + 1)])
        known_mean, known_std = _pooled(mean[:sessions], std[:sessions], trials)
        return (raw - known_mean) / known_std


def _pixels(path: Path) -> int:
    """The side of a file's pictures, from its name: as text, 64 would come after 224."""
    size = path.name.split("_")[2]
    return int(size) if size.isdecimal() else 0


def _pooled(mean: np.ndarray, std: np.ndarray, trials: np.ndarray) -> tuple:
    """Mean and deviation of all trials together from those of each session."""
    share = (trials / trials.sum())[:, None]
    together = (share * mean).sum(0)
    variance = (share * (std**2 + (mean - together) ** 2)).sum(0)
    return together.astype(np.float32), np.sqrt(variance).astype(np.float32)


# What is known of the real data, to set beside a cohort's numbers: (what, values, source).
PUBLISHED = (
    (
        "voxels of nsdgeneral, subjects 1 to 8",
        (15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386),
        "MindEye2's released betas",
    ),
    ("sessions, subjects 1 to 8", (40, 40, 32, 30, 40, 32, 40, 30), "Allen et al. 2022"),
    (
        "mean ncsnr over cortex, subjects 1 to 7",
        (0.1637, 0.1654, 0.1201, 0.1226, 0.1685, 0.1606, 0.1281),
        "NSD's ncsnr.nii.gz (b3, 1.8 mm), as reported in cvnlab/nsddatapaper issue 1",
    ),
    (
        "largest ncsnr, subjects 1 to 7",
        (1.4188, 1.3350, 1.2693, 1.3528, 1.6371, 1.1553, 1.1764),
        "the same",
    ),
    ("mean ncsnr", (0.260,), "Allen et al. 2022, as quoted in the same issue; region not given"),
    (
        "median ceiling at three trials, V1, V2, V4 and ventral stream, percent: volume, surface",
        (24.2, 36.2),
        "Allen2022 notebooks of brain-score/vision",
    ),
)


# -- numbers that say how good the data are --------------------------------------------------------


def noise_ceiling(
    ncsnr: float | np.ndarray | Tensor, repeats: int = 3
) -> float | np.ndarray | Tensor:
    """Percent of variance that a perfect model could explain: 100 s² / (s² + 1/repeats).

    s = ncsnr, the deviation of the signal over that of the noise in single trials. Source: Allen
    et al. 2022, Methods, "Noise ceiling estimation".
    """
    return 100 * ncsnr**2 / (ncsnr**2 + 1 / repeats)


def estimate_ncsnr(trials: Trials) -> np.ndarray:
    """ncsnr (V,) from the spread between repeats of the same image, as NSD's own files have it.

    noise variance = mean over images of the variance between repeats; signal variance = total
    minus noise, at least 0.
    """
    voxels = trials.voxels.numpy().astype(np.float64)
    images, first, counts = np.unique(
        trials.image_id.numpy(), return_inverse=True, return_counts=True
    )
    sums = np.zeros((len(images), voxels.shape[1]))
    np.add.at(sums, first, voxels)
    within = ((voxels - (sums / counts[:, None])[first]) ** 2).sum(0)
    noise = within / max((counts - 1).sum(), 1)
    signal = np.maximum(voxels.var(0, ddof=1) - noise, 0)
    return np.sqrt(signal / noise)


def reliability(trials: Trials, first: int = 0, second: int = 1) -> np.ndarray:
    """Correlation over images between two showings of the same image, (V,)."""
    both = trials.image_id[trials.repeat == second]
    pair = []
    for repeat in (first, second):
        here = (trials.repeat == repeat) & torch.isin(trials.image_id, both)
        voxels = trials.voxels[here][trials.image_id[here].argsort()]
        pair.append((voxels - voxels.mean(0)) / voxels.std(0, correction=0))
    return (pair[0] * pair[1]).mean(0).numpy()


def session_drift(subject: Subject) -> dict[str, np.ndarray]:
    """How far voxels move between sessions: `mean` and `gain`, (sessions, V).

    `mean`: the session's mean less the mean over sessions, in deviations of single trials.
    `gain`: the session's deviation over the median deviation. Both from training trials.
    """
    mean, std = subject.session_statistics
    return {"mean": (mean - mean.mean(0)) / std.mean(0), "gain": std / np.median(std, axis=0)}


def by_region(values: np.ndarray, rois: dict[str, np.ndarray]) -> pd.DataFrame:
    """Voxel count, median and quartiles of a value per voxel in every region."""
    return pd.DataFrame(
        [
            (name, mask.sum(), *np.percentile(values[mask], (50, 25, 75)))
            for name, mask in rois.items()
        ],
        columns=["region", "voxels", "median", "lower quartile", "upper quartile"],
    ).set_index("region")


def behavior_summary(trials: Trials) -> pd.DataFrame:
    """Per session: share answered, hits (old called old), false alarms, median RT in ms."""
    table = pd.DataFrame(trials.behavior.numpy(), columns=list(COLUMNS))
    rows = {}
    for session, here in table.groupby("SESSION"):
        answered = here[here.ISCORRECT >= 0]
        old, new = answered[answered.ISOLD == 1], answered[answered.ISOLD == 0]
        rows[int(session)] = {
            "trials": len(here),
            "answered": len(answered) / len(here),
            "hits": old.ISCORRECT.mean(),
            "false alarms": 1 - new.ISCORRECT.mean(),
            "RT (ms)": answered.RT.median(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("session")
