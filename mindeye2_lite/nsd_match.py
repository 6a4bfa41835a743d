"""Which trial and which voxel of another build of the betas is which of ours?

Tried in turn: everything in the same place; voxels in Fortran order, where `voxels.hdf5` says how
they lie; trials found by their pattern over voxels; voxels found by their series over trials, also
where the other mask is larger or smaller. For `nsd_compare`. Read with notebook 01.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mindeye2_lite.layout import SESSION, betas_file, open_hdf5, read_records, records_folder
from mindeye2_lite.trial_access import Rows

SAME = 0.9  # from this correlation on two series are taken for the same measurement
RELATED = 0.3  # from this one on for the same trials, analyzed otherwise
PROBES, COLUMNS_READ = 64, 256  # trials or voxels tried first; voxels that tell trials apart


class Build:
    """A person's betas and what else is known of them."""

    def __init__(self, where: Any, subject: int):
        if not isinstance(where, str | Path):  # a Subject
            where, subject = where.root, where.subject
        path = Path(where)
        self.path = path if path.is_file() else betas_file(path, subject)
        self.root, self.subject = self.path.parent, subject
        self.betas = Rows(self.path, "betas", kind="trials")
        if len(self.betas.shape) != 2 or 0 in self.betas.shape:
            raise ValueError(f"{self.path} has betas of shape {self.betas.shape}, not (trials, V)")
        self.voxels = self.betas.shape[1]

    def entry(self, name: str) -> np.ndarray | None:
        """What the betas file keeps under that name."""
        with open_hdf5(self.path) as file:
            return file[name][:] if name in file else None

    @cached_property
    def sessions(self) -> list[tuple[int, int]]:
        """First and last row of each; where nothing says so, 750 trials as in NSD."""
        counts, trials = self.entry("session_trials"), len(self.betas)
        if counts is None or counts.sum() != trials:
            tars = len(list((records_folder(self.root, self.subject) / "train").glob("*.tar")))
            each = trials // tars if tars and trials % tars == 0 else min(750, trials)
            counts = np.diff([*range(0, trials, each), trials])
        ends = np.cumsum(counts).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @cached_property
    def statistics(self) -> list[np.ndarray] | None:
        """session_mean, session_std and both with test trials: (sessions, V) each."""
        names = ("session_mean", "session_std")
        found = [self.entry(name) for name in (*names, *(f"{name}_with_test" for name in names))]
        shape = (len(self.sessions), self.voxels)
        known = [x if x is not None and x.shape == shape else None for x in found]
        return None if known[0] is None or known[1] is None else known

    def training_trials(self) -> np.ndarray:
        """How many each session has."""
        counts = np.array([last - first for first, last in self.sessions])
        path = records_folder(self.root, self.subject) / "new_test" / "0.tar"
        if path.exists():
            test = read_records(path)[:, SESSION].astype(int)
            counts = counts - np.bincount(test, minlength=len(counts) + 1)[1 : len(counts) + 1]
        return counts

    def fortran(self) -> np.ndarray | None:
        """Our voxel at each place of Fortran order, (V,); None where positions are not known."""
        path = self.root / "voxels.hdf5"
        if not path.exists():
            return None
        with open_hdf5(path) as file:
            name = f"subj{self.subject:02d}/position"
            position = file[name][:] if name in file else np.empty((0, 3))
        return np.lexsort(position.T) if position.shape == (self.voxels, 3) else None

    def regions(self) -> dict[str, np.ndarray]:
        """Region name -> (V,) bool, where there are any."""
        path = self.root / "brain_region_masks.hdf5"
        if not path.exists():
            return {}
        with open_hdf5(path) as file:
            group = file.get(f"subj{self.subject:02d}", {})
            masks = {name: group[name][:].astype(bool) for name in group}
        return {name: mask for name, mask in masks.items() if mask.shape == (self.voxels,)}


@dataclass
class Match:
    """Row and column of the other build for each of ours; -1 where there is none."""

    trials: np.ndarray
    voxels: np.ndarray
    trials_are: str = "same"
    voxels_are: str = "same"
    score: float = 0.0  # the typical correlation by which they were found

    @property
    def found(self) -> bool:
        """Is it the same experiment at all?"""
        return self.score >= RELATED

    @property
    def plain(self) -> bool:
        """Is everything where it was?"""
        return (self.trials_are, self.voxels_are) == ("same", "same")


def find_match(a: Build, b: Build) -> Match:
    """The order of trials and voxels under which two builds agree best."""
    spans = _enough(a, min(len(a.betas), len(b.betas)))
    first, second = ([*_standard_sessions(x, spans)] for x in (a, b))
    trials = np.where(np.arange(len(a.betas)) < len(b.betas), np.arange(len(a.betas)), -1)
    tried = []
    for name, order in _known_orders(a, b):
        scores = [_middle((x * y[:, order]).mean(0)) for x, y in zip(first, second, strict=True)]
        score = float(np.median(scores))  # one strange session is not another order
        tried.append(Match(trials, order, "same", name, score))
        if score >= SAME:
            return tried[-1]
    for match in list(tried):
        tried.append(match_trials(a, b, match))
        if tried[-1].score >= SAME:
            return tried[-1]
    tried.append(_match_voxels(np.concatenate(first), np.concatenate(second), trials))
    best = max(tried, key=lambda match: match.score)
    if best.found:
        return best
    best = tried[0] if a.voxels == b.voxels else tried[-1]
    return Match(trials, best.voxels, "unknown", "unknown", best.score)


def _enough(a: Build, trials: int) -> list[tuple[int, int]]:
    """The first sessions, some hundred trials: few make chance correlations large."""
    spans = []
    for first, last in a.sessions:
        spans.append((first, min(last, trials)))
        if spans[-1][1] >= min(300, trials):
            break
    return spans


def _standard_sessions(
    build: Build, spans: list[tuple[int, int]], columns: np.ndarray | slice = slice(None)
) -> Iterator[np.ndarray]:
    """Columns of mean 0 and deviation 1 in each session, float32; 0 where nothing varies."""
    for first, last in spans:
        betas = np.asarray(build.betas.read(np.arange(first, last))[:, columns], np.float32)
        betas -= betas.mean(0)
        std = betas.std(0)
        yield betas / np.where(std > 0, std, 1)


def _middle(correlation: np.ndarray) -> float:
    """The median of those that are not exactly 0: voxels that never vary say nothing."""
    correlation = correlation[correlation != 0]
    return float(np.median(correlation)) if len(correlation) else 0.0


def _known_orders(a: Build, b: Build) -> Iterator[tuple[str, np.ndarray]]:
    """Column of the other build per voxel of ours."""
    if a.voxels != b.voxels:
        return
    yield "same", np.arange(a.voxels)
    if (there := a.fortran()) is not None:
        yield "fortran", np.argsort(there)
    elif (there := b.fortran()) is not None:
        yield "fortran", there


def match_trials(a: Build, b: Build, match: Match) -> Match:
    """Compare patterns over some voxels: which of our trials looks like theirs?"""
    columns = np.unique(np.linspace(0, a.voxels - 1, COLUMNS_READ).astype(int))
    spans = a.sessions if len(a.betas) == len(b.betas) else b.sessions
    ours = _patterns(a, a.sessions, columns)
    theirs = _patterns(b, spans, match.voxels[columns])
    probes = np.unique(np.linspace(0, len(theirs) - 1, PROBES).astype(int))
    alike = theirs[probes] @ ours.T
    score, found = _middle(alike.max(1)), alike.argmax(1)
    rows = np.arange(len(ours))
    if score < SAME:
        return Match(match.trials, match.voxels, "unknown", match.voxels_are, 0.0)
    shift = found[alike.max(1) >= SAME] - probes[alike.max(1) >= SAME]
    if (shift == shift[0]).all():
        there = rows - shift[0]
        trials = np.where((there >= 0) & (there < len(theirs)), there, -1)
        return Match(trials, match.voxels, "shifted", match.voxels_are, score)
    trials = np.full(len(ours), -1)
    for first in range(0, len(theirs), 750):
        alike = theirs[first : first + 750] @ ours.T
        sure = alike.max(1) >= SAME
        trials[alike.argmax(1)[sure]] = first + np.flatnonzero(sure)
    return Match(trials, match.voxels, "permuted", match.voxels_are, score)


def _patterns(build: Build, spans: list[tuple[int, int]], columns: np.ndarray) -> np.ndarray:
    """(trials, columns) of mean 0 and length 1, read a session at a time."""
    table = np.concatenate([*_standard_sessions(build, spans, columns)])
    table -= table.mean(1, keepdims=True)
    length = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.where(length > 0, length, 1)


def _match_voxels(ours: np.ndarray, theirs: np.ndarray, trials: np.ndarray) -> Match:
    """Compare series over trials: which of their voxels behaves like each of ours?"""
    few, many = (ours, theirs) if ours.shape[1] <= theirs.shape[1] else (theirs, ours)
    probes = np.unique(np.linspace(0, few.shape[1] - 1, PROBES).astype(int))
    score = _middle((few[:, probes].T @ many / len(few)).max(1))
    voxels = np.full(ours.shape[1], -1)
    if score < RELATED:
        return Match(trials, voxels, "unknown", "unknown", score)
    for first in range(0, theirs.shape[1], 512):
        alike = ours.T @ theirs[:, first : first + 512] / len(ours)
        sure = alike.max(0) >= min(SAME, score * 0.9)
        voxels[alike.argmax(0)[sure]] = first + np.flatnonzero(sure)
    return Match(
        trials, voxels, "same", "permuted" if ours.shape == theirs.shape else "subset", score
    )


def both(a: Build, b: Build, match: Match, first: int, last: int) -> tuple[np.ndarray, ...]:
    """A session of both with the same trials and voxels, and which voxels of ours these are."""
    trials = match.trials[first:last]
    here = np.flatnonzero(match.voxels >= 0)
    ours = a.betas.read(first + np.flatnonzero(trials >= 0))
    theirs = b.betas.read(trials[trials >= 0])
    if not np.array_equal(match.voxels, np.arange(b.voxels)):  # a copy only where needed
        ours, theirs = ours[:, here], theirs[:, match.voxels[here]]
    return ours, theirs, here
