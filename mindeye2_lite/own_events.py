"""Which picture each trial showed, from BIDS-like tables of events.

A table has a line per event, tabs or commas, with columns `onset`, `stim_file` (or `trial_type`)
and perhaps `session` and `run`; otherwise these two come from the file's name
(`sub-1_ses-02_task-x_run-3_events.tsv`). Read with notebook 14.
"""

import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mindeye2_lite.own_pictures import Pictures

PICTURE_COLUMNS = ("stim_file", "trial_type")


def matching(what: str | Path | Sequence[str | Path], kind: str) -> list[Path]:
    """The files of a name, a pattern (sorted, 2 before 10), a list of them, or a folder's events.

    FileNotFoundError in one line where there is none.
    """
    if isinstance(what, str | Path):
        path = Path(what)
        if path.is_dir():
            found = path.rglob("*events.tsv" if kind == "events" else "*.nothing")
        elif path.exists() or not re.search(r"[*?\[]", str(what)):
            return [path]
        else:
            base = Path(path.anchor) if path.anchor else Path()
            found = base.glob(str(path.relative_to(base)))
        files = sorted(found, key=lambda path: natural(path.as_posix()))
        if not files:
            raise FileNotFoundError(f"no {kind} in {what}")
        return files
    files = [file for one in what for file in matching(one, kind)]
    if not files:
        raise FileNotFoundError(f"no {kind}: the list is empty")
    return files


def natural(text: str) -> list:
    """A key that sorts 2 before 10."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", text)]


def check_order(labels: Sequence[str], what: str, where: str) -> None:
    """ValueError where blocks of labels come in another order than that in which they are sorted.

    Betas have no labels: whoever lists pre before post, and 10 before 2, would get the pictures of
    another session. Labels that come in turn, as in a table sorted by picture, are only sorted.
    """
    blocks = [one for one, before in zip(labels, [None, *labels], strict=False) if one != before]
    in_order = sorted(blocks, key=natural)
    if len(set(blocks)) == len(blocks) and blocks != in_order:
        place = next(i for i, (a, b) in enumerate(zip(blocks, in_order, strict=True)) if a != b)
        raise ValueError(
            f"{what} {where} come with {blocks[place]!r} before {in_order[place]!r}: number them "
            "and list them in the order of time (a pattern such as *.npy in quotes)"
        )


def read_events(
    what: str | Path | Sequence[str | Path],
    pictures: Pictures,
    image_column: str | None = None,
    ignore: Collection[str] = (),
) -> pd.DataFrame:
    """Trials in the order of session, run and onset: `picture`, `session`, `run` (None: unknown).

    Lines whose picture is in `ignore` are left out. ValueError in one line where another line's
    picture is not there, or the order cannot be known.
    """
    files = matching(what, "events")
    tables = [_table(path, pictures, image_column, ignore) for path in files]
    for name in ("session", "run"):
        known = [table[name].notna().all() for table in tables]
        if any(known) and not all(known):
            lacks = files[known.index(False)]
            raise ValueError(f"{lacks} says nothing of its {name}, other events do: add a column")
        if name == "run" and not any(known) and len(tables) > 1:
            tables = [table.assign(run=str(i)) for i, table in enumerate(tables, 1)]
    _check_apart(files, tables)
    whole = pd.concat(tables, ignore_index=True)
    if not len(whole):
        raise ValueError(f"{files[0]} has no line with a picture")
    sessions, runs = list(map(str, whole.session)), np.array(list(map(str, whole.run)))
    check_order(sessions, "sessions", f"of {files[0]}")
    for session in dict.fromkeys(sessions):
        here = runs[np.array(sessions) == session].tolist()
        check_order(here, "runs", f"of session {session} in {files[0]}")
    keys = [
        (natural(str(session)), natural(str(run)), onset)
        for session, run, onset in zip(whole.session, whole.run, whole.onset, strict=True)
    ]
    return whole.iloc[sorted(range(len(whole)), key=keys.__getitem__)].reset_index(drop=True)


def _table(
    path: Path, pictures: Pictures, image_column: str | None, ignore: Collection[str]
) -> pd.DataFrame:
    table = _read(path)
    column = _picture_column(path, table, image_column)
    table = table[~table[column].isin(set(ignore))]
    known = table[column].map(lambda name: pictures.has(_number(name, pictures)))
    strange = table.index[~known.astype(bool)].tolist()
    if strange:
        names = ", ".join(repr(name) for name in table[column][strange].unique()[:3])
        raise ValueError(
            f"{path} line {strange[0] + 2}: {column} {table[column][strange[0]]!r} is no picture "
            f"of {pictures.where} ({len(strange)} such lines: {names}); if no betas belong to "
            "them, name them in ignore (a command: --ignore NAME)"
        )
    said = {"picture": [_number(name, pictures) for name in table[column]]}
    said["onset"] = _onsets(path, table)
    for name, short in (("session", "ses"), ("run", "run")):
        said[name] = table[name] if name in table else _in_name(path, short)
        empty = table.index[table[name] == ""] if name in table else []
        if 0 < len(empty) < len(table):
            raise ValueError(f"{path} line {empty[0] + 2}: {name} is empty, elsewhere it is not")
    events = pd.DataFrame(said, index=table.index)
    same = (events.session == events.session.shift()) | events.session.isna()
    goes_back = (events.onset.diff() < 0) & same
    if events.run.isna().all() and goes_back.any():
        back = int(events.index[goes_back][0])
        raise ValueError(
            f"{path} line {back + 2}: onset goes back, and there is no column run: add one, or "
            "sort the lines"
        )
    return events


def _read(path: Path) -> pd.DataFrame:
    """All cells as text; lines counted from 0 below the header."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        separator = "\t" if "\t" in text.partition("\n")[0] else ","
        how = {"dtype": str, "keep_default_na": False, "skip_blank_lines": False}
        table = pd.read_csv(io.StringIO(text), sep=separator, index_col=False, **how)
    except FileNotFoundError:
        raise FileNotFoundError(f"there are no events {path}") from None
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path} is no table of events ({why})") from error
    table.columns = [str(name).strip() for name in table.columns]
    table = table.fillna("").map(str.strip)
    return table[(table != "").any(axis=1)]


def _picture_column(path: Path, table: pd.DataFrame, asked: str | None) -> str:
    for name in [asked] if asked else PICTURE_COLUMNS:
        if name in table:
            return name
    wanted = asked or " or ".join(PICTURE_COLUMNS)
    raise ValueError(
        f"{path} has no column {wanted}, only {', '.join(table.columns)}: name the one that says "
        "which picture was shown in image_column (a command: --image-column)"
    )


def _number(name: str, pictures: Pictures) -> str | int:
    """Pictures of an array are called by numbers."""
    return int(name) if name.isdecimal() and not isinstance(pictures.names[0], str) else name


def _onsets(path: Path, table: pd.DataFrame) -> np.ndarray:
    if "onset" not in table:
        return np.arange(len(table), dtype=float)
    onsets = pd.to_numeric(table.onset, errors="coerce")
    wrong = ~np.isfinite(onsets)
    if wrong.any():
        row = onsets.index[wrong][0]
        raise ValueError(f"{path} line {row + 2}: onset {table.onset[row]!r} is no number")
    return onsets.to_numpy(float)


def _in_name(path: Path, short: str) -> str | None:
    found = re.search(rf"(?:^|[_/]){short}-([A-Za-z0-9]+)", path.name)
    found = found or (short == "ses" and re.fullmatch(r"ses-([A-Za-z0-9]+)", path.parent.name))
    found = found or (
        short == "ses" and re.fullmatch(r"ses-([A-Za-z0-9]+)", path.parent.parent.name)
    )
    return found[1] if found else None


def _check_apart(files: list[Path], tables: list[pd.DataFrame]) -> None:
    seen: dict[tuple, Path] = {}
    for path, table in zip(files, tables, strict=True):
        for key in set(zip(table.session, table.run, strict=True)):
            if key in seen:
                raise ValueError(
                    f"{seen[key]} and {path} are both session {key[0]}, run {key[1]}: give one "
                    "person's events, with columns session and run"
                )
            seen[key] = path
