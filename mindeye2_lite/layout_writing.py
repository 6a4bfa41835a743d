"""Writes the training layout of `layout.py`, session by session, whatever the data came from.

Each session is scaled and kept in a hidden folder beside the result; when all are there they are
put together and renamed. So memory holds a session per process, a run that was killed goes on
where it was, and the bytes do not depend on who wrote which session.

    with workers("local") as run:
        write_person(out, Person(1, table, read), run)

Read with notebook 01.
"""

import hashlib
import io
import json
import os
import platform
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from mindeye2_lite import paths
from mindeye2_lite.executors import Run
from mindeye2_lite.layout import (
    COLUMNS,
    IMAGE,
    SESSION,
    SHARED,
    betas_file,
    betas_name,
    hdf5_beside,
    open_hdf5,
    reading,
    records_folder,
)

HELD_BACK = 3  # the older NSD release ended three sessions earlier for everyone (37 of 40)
MADE_FROM = "made_from.json"  # says what the sessions of a hidden folder were made from
STATISTICS = ("session_mean", "session_std", "session_mean_with_test", "session_std_with_test")


@dataclass(frozen=True)
class Person:
    """What there is to write of one person.

    `table`: (trials, 17) float64 records as in `layout.COLUMNS`, in order of time; sessions count
    from 1 without gaps, `shared` = 1 marks test trials. `read(session)`: that session's (trials,
    V) betas in percent signal change, all finite; picklable. `ncsnr`: (V,), None where it is not
    known. `recipe`: choices that make other betas of the same data, kept with the result.
    `sources`: what the hidden sessions were made from; others are thrown away.
    """

    subject: int
    table: np.ndarray
    read: Callable[[int], np.ndarray]
    ncsnr: np.ndarray | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    sources: Any = None
    held_back: int = HELD_BACK

    @property
    def sessions(self) -> range:
        """Their numbers, from 1."""
        return range(1, int(self.table[:, SESSION].max()) + 1)

    @property
    def trials(self) -> list[int]:
        """How many each session has."""
        return [int((self.table[:, SESSION] == s).sum()) for s in self.sessions]


def is_written(out: Path, person: Person) -> bool:
    """Are the person's betas there already? ValueError where choices or trials were others."""
    path = betas_file(out, person.subject)
    if not path.exists():
        return False
    with open_hdf5(path) as file, reading(path):
        found = json.loads(file.attrs.get("recipe", "{}"))
        trials = file["session_trials"][()].tolist() if "session_trials" in file else person.trials
    asked = json.loads(json.dumps(dict(person.recipe)))
    differ = [k for k in {*found, *asked} if found.get(k) != asked.get(k)] if found else []
    if differ:
        what = ", ".join(f"{k} {found.get(k)!r}, not {asked.get(k)!r}" for k in sorted(differ))
        raise ValueError(f"{path} was made with {what}: choose another folder, or delete it")
    if trials != person.trials:  # sessions were loaded since
        raise ValueError(
            f"{path} was made of {len(trials)} sessions ({sum(trials)} trials), now there are "
            f"{len(person.trials)} ({sum(person.trials)}): choose another folder, or delete it"
        )
    return True


def write_person(
    out: Path,
    person: Person,
    run: Run = map,
    done: Callable[[int], Any] = lambda session: None,
    first: Callable[[], Any] = lambda: None,
) -> None:
    """Betas and records of one person; `done(session)` is called for every session that is there.

    `first()` writes what else belongs to the person, while no other process may.

    Finished people and finished sessions are left as they are. Errors: ValueError in one line
    where another process writes the same person or the data are bad; OSError where the disk is
    full or read-only. After an error nothing half-written stays; after a kill, whole sessions do.
    """
    out = Path(out)
    with alone(out, f"subj{person.subject:02d}"):
        finished = is_written(out, person)
        first()
        if finished:
            for session in person.sessions:
                done(session)
            return
        _clear_parts(out, person.subject)
        staged = _staging(out, person)
        try:
            _write_sessions(staged, person, run, done)
            write_records(out, person)
            _assemble(out, person, staged)
        except Exception:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        shutil.rmtree(staged, ignore_errors=True)


def _clear_parts(out: Path, subject: int) -> None:
    """What a killed run had begun to put together; whoever holds the lock may remove it."""
    folder = records_folder(out, subject)
    for path in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(path, ignore_errors=True)
    for path in out.glob(f".{betas_name(subject)}.hdf5.*.part"):
        path.unlink(missing_ok=True)


@contextmanager
def alone(out: Path, what: str, wait: bool = False) -> Iterator[None]:
    """No other process writes `what` below `out` meanwhile; ValueError if one does (or wait).

    The lock falls with its process, also when that is killed.
    """
    path = Path(out) / ".locks" / f"{what}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=-1 if wait else 0)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another process is writing {what} in {out}: wait until it is done, or choose "
            "another folder"
        ) from error
    except OSError as error:
        raise OSError(f"cannot write to {out}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


# -- betas -----------------------------------------------------------------------------------------


def _staging(out: Path, person: Person) -> Path:
    """The hidden folder of sessions; emptied where it was made from something else."""
    folder = out / f".{betas_name(person.subject)}.sessions"
    table = hashlib.sha256(np.ascontiguousarray(person.table).tobytes()).hexdigest()
    key = json.dumps([dict(person.recipe), person.sources, table], sort_keys=True, default=str)
    note = folder / MADE_FROM
    if folder.exists() and not (note.exists() and note.read_text() == key):
        shutil.rmtree(folder)
    if not note.exists():
        with paths.write_beside(note) as beside:
            beside.write_text(key)
    return folder


def _write_sessions(staged: Path, person: Person, run: Run, done: Callable[[int], Any]) -> None:
    tasks = []
    for session in person.sessions:
        if _kept(staged, session).exists():
            done(session)
        else:
            rows = person.table[:, SESSION] == session
            tasks.append((session, person.table[rows, SHARED] == 0))
    made_from = (staged / MADE_FROM).read_text()
    work = partial(_write_session, staged.absolute(), made_from, person.read)
    for session in run(work, tasks):
        done(session)


def _kept(staged: Path, session: int) -> Path:
    return staged / f"session{session:02d}.npz"


def _write_session(
    staged: Path, made_from: str, read: Callable, task: tuple[int, np.ndarray]
) -> int:
    """One session, scaled: a piece of work that any process can do.

    A worker can outlive the run that sent it: what another run has begun there is not its own.
    """
    session, train = task
    betas = read(session)
    note = staged / MADE_FROM
    if not note.exists():
        raise ValueError(
            f"there is no {staged} on {platform.node()}: every worker must see the same folders"
        )
    if note.read_text() != made_from:
        raise ValueError(f"{staged} was begun anew with other choices: session {session} is late")
    if len(betas) != len(train):
        raise ValueError(f"session {session} has {len(betas)} trials, its records {len(train)}")
    scaled, *known = normalized(betas, train)
    statistics = dict(zip(STATISTICS, (*known, *moments(betas)), strict=True))
    with paths.write_beside(_kept(staged, session)) as beside, beside.open("wb") as file:
        np.savez(file, betas=scaled, **statistics)
    return session


def normalized(betas: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z-scores by the session's training trials alone; their mean and deviation, (V,).

    A session without training trials is scaled by all it has: there is nothing else that belongs
    to it. Constant voxels become 0.
    """
    mean, std = moments(betas[train] if train.any() else betas)
    return (betas - mean) / std, mean, std


def moments(betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per voxel in float32, computed in float64; 1 where nothing varies."""
    mean, std = betas.mean(0, dtype=np.float64), betas.std(0, dtype=np.float64)
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def _assemble(out: Path, person: Person, staged: Path) -> None:
    statistics: dict[str, list] = {name: [] for name in STATISTICS}
    with hdf5_beside(betas_file(out, person.subject)) as (file, disk):
        row, betas = 0, None
        for session, count in zip(person.sessions, person.trials, strict=True):
            with _read_kept(_kept(staged, session)) as kept:
                scaled = kept["betas"]
                if betas is None:
                    shape = (len(person.table), scaled.shape[1])
                    betas = file.create_dataset("betas", shape, np.float32)
                if scaled.shape[1] != shape[1]:
                    voxels = f"{scaled.shape[1]} voxels, session 1 has {shape[1]}"
                    raise ValueError(f"session {session} has {voxels}")
                betas[row : row + count] = scaled
                for name in STATISTICS:
                    statistics[name].append(kept[name])
            disk.check()
            row += count
        for name, values in statistics.items():
            file[name] = np.stack(values)
        file["session_trials"] = np.array(person.trials)
        if person.ncsnr is not None:
            file["ncsnr"] = person.ncsnr
        file.attrs["recipe"] = json.dumps(dict(person.recipe), sort_keys=True)


@contextmanager
def _read_kept(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    try:
        with reading(path), np.load(path, allow_pickle=False) as kept:
            yield kept
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is damaged: it cannot be read ({error})") from error


# -- records ---------------------------------------------------------------------------------------


def write_records(out: Path, person: Person) -> None:
    """The behavior tars, in a folder written beside and then renamed."""
    table, folder = person.table, records_folder(out, person.subject)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        _write_split(beside / "train", _train_rows(table, person.sessions), table)
        shared = np.flatnonzero(table[:, SHARED] == 1)
        _write_split(beside / "new_test", [shared], table)
        older = table[shared, SESSION] <= max(len(person.sessions) - person.held_back, 1)
        _write_split(beside / "test", [shared[older]], table)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)
    except OSError as error:
        raise OSError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _train_rows(table: np.ndarray, sessions: range) -> list[np.ndarray]:
    return [np.flatnonzero((table[:, SESSION] == s) & (table[:, SHARED] == 0)) for s in sessions]


def _write_split(folder: Path, tars: list[np.ndarray], table: np.ndarray) -> None:
    folder.mkdir(parents=True)
    others = pd.Series(np.arange(len(table))).groupby(table[:, IMAGE]).indices
    key = 0
    for number, rows in enumerate(tars):
        # What webdataset.TarWriter writes, three times as fast.
        with tarfile.open(folder / f"{number}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in rows:
                for name, array in _record(table, int(row), others[table[row, IMAGE]]).items():
                    _add(tar, f"sample{key:09d}.{name}.npy", array)
                key += 1


def _add(tar: tarfile.TarFile, name: str, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    info = tarfile.TarInfo(name)
    info.size = content.tell()
    content.seek(0)
    tar.addfile(info, content)


def _record(table: np.ndarray, row: int, showings: np.ndarray) -> dict[str, np.ndarray]:
    """This trial; the 15 before and after it in the session, nearest first; the image's others."""
    same = np.flatnonzero(table[:, SESSION] == table[row, SESSION])
    return {
        "behav": table[row : row + 1],
        "past_behav": _filled(table[max(same[0], row - 15) : row][::-1], 15),
        "future_behav": _filled(table[row + 1 : min(same[-1], row + 15) + 1], 15),
        "olds_behav": _filled(table[showings[showings != row]], 3),
    }


def _filled(rows: np.ndarray, length: int) -> np.ndarray:
    out = np.full((length, len(COLUMNS)), -1.0)
    out[: len(rows)] = rows[:length]
    return out


# -- what belongs to all people --------------------------------------------------------------------


def update_hdf5(path: Path, entries: Mapping[str, Any]) -> None:
    """Write entries (arrays, or groups as mappings) into a small file, keeping what else it has.

    In a group "a/b" lies deeper, and "@" is a mapping of the group's attributes. Waits while
    another process does so: both want their entries kept.
    """
    with alone(path.parent, path.name, wait=True), hdf5_beside(path, keep=True) as (file, _):
        for name, content in entries.items():
            file.pop(name, None)
            group = content if isinstance(content, Mapping) else {"": content}
            for key, value in group.items():
                if key != "@":
                    file[f"{name}/{key}".rstrip("/")] = value
            if "@" in group:
                file[name].attrs.update(group["@"])


def write_images(
    out: Path,
    read: Callable[[int, int], np.ndarray],
    number: int,
    size: int,
    done: Callable[[int], Any] = lambda images: None,
    block: int = 256,
) -> Path:
    """`coco_images_{size}_float16.hdf5` from `read(first, last)`: uint8 (images, H, W, 3).

    Resized with antialiasing where they are of another size; left alone where the file is there.
    `done(images)` is called after every block.
    """
    path = Path(out) / f"coco_images_{size}_float16.hdf5"
    if path.exists():
        done(number)
        return path
    with hdf5_beside(path) as (file, disk):
        images = file.create_dataset("images", (number, 3, size, size), np.float16)
        for first in range(0, number, block):
            last = min(first + block, number)
            images[first:last] = resized(read(first, last), size)
            disk.check()
            done(last - first)
    return path


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 (images, H, W, 3) -> float16 (images, 3, size, size) in [0, 1]."""
    import torch

    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    if images.shape[-2:] != (size, size):
        images = torch.nn.functional.interpolate(
            images, size=(size, size), mode="bilinear", antialias=True
        ).clamp(0, 1)
    return images.half().numpy()
