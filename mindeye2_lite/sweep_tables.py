"""Results of sweeps as data frames: every value, then estimates with intervals, then the table.

    frame = read("paper_table")        a line per cell, stage and metric; `values`: one per picture
    estimates(frame, by=["system"])    a line per group and metric: all people together, and each
    differences(frame, one, other)     of two groups, paired by person, seed and picture
    paper_rows()                       the rows of the paper's Table 1, and the controls below

A sweep that has not been finished gives what there is; `complete(frame)` says how much that is.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mindeye2_lite import grids, intervals, sweeps
from mindeye2_lite.config import Config

MEAN = "mean"  # what stands for all people together in the column "subject"
MEASURED = ("value", "low", "high", "chance", "better", "n", "people", "seeds")
BRAIN = ("image_to_brain", "brain_to_image")
# name in published.json, system and sessions of the cells, stage of pictures, stage of retrieval
ROWS = (
    ("MindEye2, refined", "MindEye2", grids.ALL, "refined", "brain"),
    ("MindEye2, unrefined", "MindEye2", grids.ALL, "unrefined", None),
    ("MindEye2, low-level", "MindEye2", grids.ALL, "low-level", None),
    ("MindEye2, refined", "MindEye2", 1, "refined", "brain"),
    ("MindEye1", "MindEye1", grids.ALL, "pictures", "brain"),
    ("Ozcelik & VanRullen 2023", "Ozcelik & VanRullen", grids.ALL, "pictures", "brain"),
    ("Takagi & Nishimoto 2023", "Takagi & Nishimoto", grids.ALL, "pictures", None),
)
CONTROLS = (
    "shuffled brains",
    "mean picture",
    "nearest training picture",
    "generator without the brain",
    "true image tokens",
)


def read(name: str, *, seeds: int = 5) -> pd.DataFrame:
    """A line per cell, stage and metric: the key's fields, stage, metric, chance, better, values.

    `start` is a tuple or None; ablations also have `hours` (1/6, 1/2, or the sessions) and
    `start_people` (how many; 0 from scratch). `attrs` say profile, commit, device, and how many of
    the cells of so many `seeds` are done. Without a file the frame has no lines.
    """
    sweep = sweeps.of(name.replace("_", "-"))
    content = sweeps.read(sweeps.file_of(name))
    lines = [
        _key(cell["cell"]) | _row(r) for cell in content.get("cells", ()) for r in cell["rows"]
    ]
    columns = [*_key(dict.fromkeys(sweep.fields)), "stage", "metric", "chance", "better", "values"]
    frame = _frame(lines, columns)
    about = {what: content.get(what) for what in ("profile", "source", "commit", "device")}
    config = Config.of(content.get("profile", "lite"))
    wanted = {sweeps.name_of(key) for key in sweep.keys(config, range(seeds), sweep.subjects)}
    there = {sweeps.name_of(cell["cell"]) for cell in content.get("cells", ())}
    frame.attrs = about | {"name": name, "done": len(there), "of": len(wanted | there)}
    return frame


def complete(frame: pd.DataFrame) -> str:
    """For instance "60 of 100 cells"."""
    return f"{frame.attrs['done']} of {frame.attrs['of']} cells"


def estimates(frame: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Mean and 95% interval per group, stage and metric: of all people together, and of each.

    `by` names columns whose values make a group: all of the key but subject and seed where it is
    empty. Columns: by, stage, metric, subject ("mean" or a number), value, low, high, chance,
    better, n (pictures), people, seeds. With one person there is no line "mean" beside that
    person's. ValueError for a column that is not there.
    """
    lines = []
    for group, part in _groups(frame, [*_by(frame, by), "stage", "metric"]):
        values = _values(part)
        for subject, chosen in _people(values):
            own = part[part["subject"] == subject] if len(chosen) < len(values) else part
            about = {"chance": _chance(own["chance"]), "better": part["better"].iloc[0]}
            lines.append(group | {"subject": subject} | _numbers(intervals.mean(chosen)) | about)
    return _frame(lines, [*_by(frame, by), "stage", "metric", "subject", *MEASURED])


def differences(
    frame: pd.DataFrame, first: Mapping[str, Any], second: Mapping[str, Any]
) -> pd.DataFrame:
    """First minus second per metric, paired by person, seed and picture: what both have.

    `first` and `second` map columns to what they must be, for instance {"stage": "refined"}.
    Columns: metric, subject, value, low, high, better, n, people, seeds.
    """
    lines = []
    of_second = dict(_metrics(select(frame, **second)))
    for metric, part in _metrics(select(frame, **first)):
        if metric not in of_second:
            continue
        one, other = _common(_models(part), _models(of_second[metric]))
        for subject, chosen in _people(one):
            found = intervals.difference(chosen, {s: other[s] for s in chosen})
            about = {"metric": metric, "subject": subject, "better": part["better"].iloc[0]}
            lines.append(about | _numbers(found))
    columns = ["metric", "subject", *(name for name in MEASURED if name != "chance")]
    return _frame(lines, columns)


def select(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The lines whose columns are what is wanted; None is a value like others."""
    if unknown := sorted(wanted.keys() - set(frame.columns)):
        raise ValueError(f"no column {unknown[0]!r}: choose from {', '.join(frame.columns)}")
    right = np.ones(len(frame), bool)
    for column, value in wanted.items():
        right &= np.array([_same(here, value) for here in frame[column]], bool)
    return frame[right]


def paper_rows(frame: pd.DataFrame | None = None) -> pd.DataFrame:
    """The paper's Table 1 as far as it is measured, in its order, with the controls below.

    Columns: system (as in published.json, or a control), sessions, subject, metric, value, low,
    high, chance, better, n, people, seeds. Retrieval stands in the rows where the paper has it.
    """
    frame = read("paper_table") if frame is None else frame
    found = estimates(frame)
    of_brain = found["metric"].isin(BRAIN)
    parts = []
    for name, system, sessions, pictures, brain in (*ROWS, *_control_rows()):
        own = (found["system"] == system) & (found["sessions"] == sessions)
        retrieved = own & (found["stage"] == brain) & of_brain
        part = found[own & (found["stage"] == pictures) & ~of_brain | retrieved]
        parts.append(part.assign(system=name))
    rows = pd.concat(parts, ignore_index=True).drop(columns="stage")
    rows.attrs = frame.attrs
    return rows


def _control_rows() -> list[tuple]:
    retrieval = {"shuffled brains": "shuffled brains"}
    return [(name, "MindEye2", grids.ALL, name, retrieval.get(name)) for name in CONTROLS]


# ---- parts ---------------------------------------------------------------------------------------


def _key(key: Mapping[str, Any]) -> dict[str, Any]:
    """The key's fields, as they can be compared, and what curves are drawn over."""
    fields = {n: tuple(v) if isinstance(v, list) else v for n, v in key.items()}
    if "minutes" in key:
        fields["hours"] = key["minutes"] / 60 if key["minutes"] else key["sessions"]
        fields["start_people"] = len(key["start"] or ())
    return fields


def _frame(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Columns of objects, in which None stays None, but numbers where there are only such."""
    frame = pd.DataFrame({c: pd.Series([x[c] for x in lines], dtype=object) for c in columns})
    numbers = {"value": float, "low": float, "high": float, "chance": float}
    numbers |= {"n": int, "people": int, "seeds": int}
    return frame.astype({name: kind for name, kind in numbers.items() if name in frame})


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "values": np.array(row["values"], float)}


def _by(frame: pd.DataFrame, by: Sequence[str]) -> list[str]:
    if unknown := [name for name in by if name not in frame.columns]:
        raise ValueError(f"no column {unknown[0]!r}: choose from {', '.join(frame.columns)}")
    last = list(frame.columns).index("stage")
    return list(by) or [n for n in frame.columns[:last] if n not in ("subject", "seed")]


def _groups(
    frame: pd.DataFrame, by: Sequence[str]
) -> Iterable[tuple[dict[str, Any], pd.DataFrame]]:
    """As pandas' groupby, in order of appearance, with None as a value of its own."""
    found: dict[tuple, list[int]] = {}
    for number, values in enumerate(zip(*(frame[name] for name in by), strict=True)):
        found.setdefault(values, []).append(number)
    for values, numbers in found.items():
        yield dict(zip(by, values, strict=True)), frame.iloc[numbers]


def _metrics(frame: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    return ((group["metric"], part) for group, part in _groups(frame, ["metric"]))


def _models(part: pd.DataFrame) -> dict[int, dict[int, np.ndarray]]:
    """person -> seed -> values. ValueError where a seed has several lines."""
    found: dict[int, dict[int, np.ndarray]] = {}
    subjects = part["subject"] if "subject" in part else [1] * len(part)
    for subject, seed, values in zip(subjects, part["seed"], part["values"], strict=True):
        if seed in found.setdefault(int(subject), {}):
            raise ValueError(
                f"subject {subject}, seed {seed} has several lines: group or select by what "
                "tells them apart"
            )
        found[int(subject)][seed] = values
    return found


def _values(part: pd.DataFrame) -> dict[int, np.ndarray]:
    return {person: np.stack(list(of.values())) for person, of in _models(part).items()}


def _people(values: Mapping[int, np.ndarray]) -> Iterable[tuple[Any, dict[int, np.ndarray]]]:
    """All together, then each alone; once only where there is one."""
    if len(values) > 1:
        yield MEAN, dict(values)
    for person in sorted(values):
        yield person, {person: values[person]}


def _common(first: Mapping, second: Mapping) -> tuple[dict, dict]:
    """What both have of each person, seed by seed."""
    both = {s: sorted(first[s].keys() & second[s].keys()) for s in first.keys() & second.keys()}
    both = {person: seeds for person, seeds in both.items() if seeds}
    one, other = (
        {person: np.stack([of[person][seed] for seed in seeds]) for person, seeds in both.items()}
        for of in (first, second)
    )
    return one, other


def _numbers(found: intervals.Estimate) -> dict[str, Any]:
    value, low, high, images, people, seeds = found
    numbers = {"value": value, "low": low, "high": high, "n": images}
    return numbers | {"people": people, "seeds": seeds}


def _chance(column: pd.Series) -> float:
    known = column.dropna()
    return float(known.mean()) if len(known) else float("nan")


def _same(here: Any, value: Any) -> bool:
    return here is None if value is None else here == value
