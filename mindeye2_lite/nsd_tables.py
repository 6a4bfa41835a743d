"""NSD's tables: who was to see what (design), who did what (responses), which picture is which.

Indices count from 0 here and from 1 in NSD's files. 73k index: of all pictures. 10k index: of one
person's pictures, in the order of the design. Read with notebook 01.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy.io import loadmat

from mindeye2_lite.layout import COLUMNS, there

MADE = {"image_id", "global_trial", "shared"}  # columns of records that responses.tsv has not
WHOLE = ("SUBJECT", "SESSION", "RUN", "TRIAL", "73KID", "10KID")  # numbers from 1, never empty
READ = tuple(dict.fromkeys((*WHOLE, *(name for name in COLUMNS if name not in MADE))))


@dataclass(frozen=True, eq=False)
class Design:
    """nsd_expdesign.mat: pictures by 73k index, trials in the order in which they came."""

    path: Path
    ordering: np.ndarray  # (trials,) 10k index, the same for all people
    shown: np.ndarray  # (people, pictures of a person) 73k index
    shared: np.ndarray  # (images,) bool: seen by all
    runs: np.ndarray | None  # (sessions, runs): trials of each; None where the file says nothing

    def own_index(self, subject: int) -> np.ndarray:
        """(images,): the person's 10k index of every picture, -1 for those never shown."""
        index = np.full(len(self.shared), -1)
        index[self.shown[subject - 1]] = np.arange(self.shown.shape[1])
        return index


# -- design ----------------------------------------------------------------------------------------


def design(path: Path, images: int) -> Design:
    """Read the design of an experiment with so many pictures, from MATLAB 5 or 7.3.

    FileNotFoundError, ValueError in one line where the file is damaged or an array is missing.
    """
    arrays = _matlab_73(path) if h5py.is_hdf5(there(path)) else _matlab_5(path)
    ordering = _indices(path, arrays, "masterordering").ravel()
    shown = np.atleast_2d(_indices(path, arrays, "subjectim"))
    shared = np.zeros(images, bool)
    common = _indices(path, arrays, "sharedix").ravel()
    for name, indices, end in (
        ("masterordering", ordering, shown.shape[1]),
        ("subjectim", shown, images),
        ("sharedix", common, images),
    ):
        if indices.size and not (indices.min() >= 0 and indices.max() < end):
            raise ValueError(
                f"{path}: {name} has numbers from {indices.min() + 1} to {indices.max() + 1}, "
                f"expected 1 to {end}"
            )
    for person, own in enumerate(shown, 1):
        if not np.isin(common, own).all():
            strange = common[~np.isin(common, own)][0] + 1
            raise ValueError(
                f"{path}: sharedix has picture {strange}, which row {person} of subjectim has not"
            )
    shared[common] = True
    pattern = arrays.get("stimpattern")  # (sessions, runs, slots): is there a trial?
    runs = None if pattern is None or pattern.ndim != 3 else (pattern > 0).sum(2)
    return Design(path, ordering, shown, shared, runs)


NAMES = ("masterordering", "subjectim", "sharedix", "stimpattern")


def _matlab_5(path: Path) -> dict[str, np.ndarray]:
    try:
        content = loadmat(path, variable_names=NAMES)
        return {name: content[name] for name in NAMES if name in content}
    except Exception as error:  # scipy has a dozen kinds
        why = " ".join(str(error).split())
        raise ValueError(f"{path} is cut short or not a MATLAB file ({why})") from error


def _matlab_73(path: Path) -> dict[str, np.ndarray]:
    """MATLAB 7.3 is HDF5, in which arrays lie the other way round."""
    try:
        with h5py.File(path) as file:
            return {name: file[name][()].T for name in NAMES if name in file}
    except Exception as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path} is cut short or not a MATLAB file ({why})") from error


def _indices(path: Path, arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"{path} has no {name!r}, only {sorted(arrays)}")
    array = arrays[name]
    if array.dtype.kind not in "iuf" or not (array == np.floor(array)).all():
        raise ValueError(f"{path}: {name} holds no whole numbers")
    return array.astype(np.int64) - 1


# -- responses -------------------------------------------------------------------------------------


def responses(path: Path, subject: int, sessions: int, plan: Design) -> np.ndarray:
    """responses.tsv of the first `sessions` sessions, as (trials, 17) records; -1 = no value.

    ValueError in one line (with the line of the file) where columns are missing, trials are
    doubled or out of order, numbers are none, or the design has another picture there.
    """
    table = _table(path)
    table = table[table.SESSION <= sessions]  # NSD held sessions back for years
    _check_order(path, subject, table)
    _check_design(path, subject, table, plan)
    table = table.reset_index(drop=True)
    table["image_id"] = table["73KID"] - 1
    table["global_trial"] = np.arange(len(table))
    table["shared"] = plan.shared[table.image_id.astype(int)]
    table["TIME"] = np.floor(table.TIME)  # the released records keep whole days
    table["RT"] = table.RT.fillna(0)  # 0 = no answer, as in the released records
    return table[list(COLUMNS)].fillna(-1).to_numpy(np.float64)


def last_session(path: Path) -> int:
    """The last session that responses.tsv knows, whether its betas are there or not."""
    return int(_table(path).SESSION.max())


def _table(path: Path) -> pd.DataFrame:
    """Numbers in every column that is read; row i of the index is line i + 2 of the file."""
    table = read_csv(path, READ, sep="\t", skip_blank_lines=False).dropna(how="all")
    for name in READ:
        column = table[name]
        if column.dtype.kind not in "iuf":
            numbers = pd.to_numeric(column.astype(str), errors="coerce")
            _complain(path, numbers.isna() & column.notna(), name, column, "expected a number")
            raise ValueError(f"{path}: column {name} is of type {column.dtype}, expected numbers")
        _complain(path, np.isinf(column), name, column, "expected a finite number")
    for name in WHOLE:
        column = table[name]
        wrong = ~((column >= 1) & (column == np.floor(column)))
        _complain(path, wrong, name, column, "expected a whole number from 1")
    return table


def read_csv(path: Path, columns: tuple[str, ...], **how) -> pd.DataFrame:
    """A table that has these columns; ValueError in one line where it has not, or is none."""
    try:
        table = pd.read_csv(there(path), **how)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        why = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as a table ({why})") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}, only {list(table.columns)}")
    return table


def _complain(path: Path, wrong, name: str, values, why: str) -> None:
    """ValueError with the line of the first that is wrong."""
    wrong = np.asarray(wrong)
    if wrong.any():
        row = int(np.argmax(wrong))
        line = values.index[row] + 2
        raise ValueError(f"{path} line {line}, column {name}: {values.iloc[row]}, {why}")


def _check_order(path: Path, subject: int, table: pd.DataFrame) -> None:
    wrong = table.SUBJECT != subject
    _complain(path, wrong, "SUBJECT", table.SUBJECT, f"expected {subject}")
    doubled = table.duplicated(["SESSION", "RUN", "TRIAL"])
    why = "a trial of that session, run and number stands further up"
    _complain(path, doubled, "TRIAL", table.TRIAL, why)
    previous = table.shift(1)
    back = table.SESSION < previous.SESSION
    _complain(path, back, "SESSION", table.SESSION, "after a later one: trials out of order")
    here = table.SESSION == previous.SESSION
    back = here & (table.RUN < previous.RUN)
    _complain(path, back, "RUN", table.RUN, "after a later one: trials out of order")
    back = here & (table.RUN == previous.RUN) & (table.TRIAL < previous.TRIAL)
    _complain(path, back, "TRIAL", table.TRIAL, "after a later one: trials out of order")


def _check_design(path: Path, subject: int, table: pd.DataFrame, plan: Design) -> None:
    """Is what they answered to what they were to see?"""
    people, pictures = plan.shown.shape
    if subject > people:
        raise ValueError(f"{plan.path}: subjectim has {people} people, no subject {subject}")
    known = len(plan.shared)
    _complain(path, table["73KID"] > known, "73KID", table["73KID"], f"expected 1 to {known}")
    _complain(path, table["10KID"] > pictures, "10KID", table["10KID"], f"expected 1 to {pictures}")
    planned = plan.shown[subject - 1, table["10KID"].astype(int) - 1] + 1
    _same_as_planned(path, "73KID", table["73KID"], planned, plan)
    if plan.runs is not None:
        index = _positions(path, table, plan)
        planned = plan.ordering[index] + 1
        _same_as_planned(path, "10KID", table["10KID"], planned, plan)


def _same_as_planned(path: Path, name: str, found, planned: np.ndarray, plan: Design) -> None:
    wrong = np.asarray(found) != planned
    why = f"but {plan.path.name} has {planned[np.argmax(wrong)]} there" if wrong.any() else ""
    _complain(path, wrong, name, found, why)


def _positions(path: Path, table: pd.DataFrame, plan: Design) -> np.ndarray:
    """Where in the ordering each row stands; where trials were lost, run and trial tell."""
    sessions, runs = plan.runs.shape
    _complain(
        path, table.SESSION > sessions, "SESSION", table.SESSION, f"the design ends at {sessions}"
    )
    session, run = table.SESSION.to_numpy(int) - 1, table.RUN.to_numpy(int) - 1
    starts = (np.cumsum(plan.runs) - plan.runs.ravel()).reshape(sessions, runs)
    number = table.groupby("SESSION").cumcount().to_numpy()
    whole = np.bincount(session, minlength=sessions) == plan.runs.sum(1)
    trial = table.TRIAL.to_numpy(int) - 1
    beyond = ~whole[session] & (
        (run >= runs) | (trial >= plan.runs[session, run.clip(0, runs - 1)])
    )
    _complain(path, beyond, "TRIAL", table.TRIAL, "the design has no such trial in that run")
    counted = starts[session, run.clip(0, runs - 1)] + trial
    index = np.where(whole[session], starts[session, 0] + number, counted)
    why = f"{plan.path.name} ends before it"
    _complain(path, index >= len(plan.ordering), "TRIAL", table.TRIAL, why)
    return index


# -- pictures --------------------------------------------------------------------------------------


def stimuli(path: Path, plan: Design) -> pd.DataFrame:
    """A row per picture: its 73k index, COCO id and split, who sees it, by nsd_stim_info_merged.

    Columns: image_id, coco_id, coco_split, shared1000, and subj01 ... with the person's own 10k
    index, -1 for pictures that the person is never shown.
    """
    table = read_csv(path, ("cocoId", "cocoSplit", "nsdId"))
    images = np.arange(len(plan.shared))
    for name in ("cocoId", "nsdId"):
        if table[name].dtype.kind not in "iu":
            raise ValueError(f"{path}: column {name} holds no whole numbers")
    table = table.sort_values("nsdId", kind="stable")
    if not np.array_equal(table.nsdId, images):
        raise ValueError(
            f"{path}: column nsdId has {table.nsdId.nunique()} pictures of {len(table)} rows, "
            f"expected each of 0 to {len(images) - 1} once, as nsd_stimuli.hdf5 has them"
        )
    twice = table.cocoId[table.cocoId.duplicated()]
    if len(twice):
        raise ValueError(f"{path}: column cocoId has {twice.iloc[0]} more than once")
    found = {"image_id": images, "coco_id": table.cocoId.to_numpy()}
    found |= {"coco_split": table.cocoSplit.to_numpy(), "shared1000": plan.shared}
    people = range(1, len(plan.shown) + 1)
    return pd.DataFrame(found | {f"subj{s:02d}": plan.own_index(s) for s in people})
