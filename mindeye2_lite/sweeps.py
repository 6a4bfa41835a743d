"""Runs the cells of a sweep and keeps each in results/NAME.json as soon as it is there.

    run("paper-table", Config.lite(), seeds=range(5), executor="local")

What the file holds is not computed again, so that a second start goes on where the first was
stopped: only the cells that were being computed are lost. A file is of one profile and of one
source (`source`: the code that measures, its weights, its data): with another one the run is
refused, unless it is to begin afresh. Ablations have cells in common; these are copied.

Every cell is computed in one thread, whoever computes it: sums depend on the number of threads.
"""

import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from mindeye2_lite import executors, experiments, grids, paths, sources, synthetic
from mindeye2_lite.config import Config

DIGITS = 4  # of a value
MOST_FAILED = 4  # cells that may fail before the others are given up
# Of worker processes: one thread each, and memory is kept instead of being asked for every time.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
ENVIRONMENT |= dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "4000000000")


@dataclass(frozen=True)
class Task:
    """A cell to compute, with everything that a worker process needs to know."""

    measure: Callable[..., grids.Rows]
    config: Config
    root: Path
    key: grids.Key
    parent: int  # the process that keeps the cells


class Table:
    """The results file of a sweep: its cells by key, written whole at every change."""

    def __init__(self, path: Path, about: dict[str, Any], cells: Sequence[dict] = ()):
        self.path, self.about = path, about
        self.cells = {name_of(cell["cell"]): cell for cell in cells}

    @classmethod
    def open(cls, path: Path, about: dict[str, Any], fresh: bool = False) -> "Table":
        """The file as it is, or an empty table where there is none, or `fresh` is asked for.

        ValueError in one line where its cells were made with another profile or source.
        """
        content = {} if fresh else read(path)
        for what in ("profile", "source"):
            if content.get("cells") and content.get(what) != about[what]:
                raise ValueError(
                    f"{path} has {len(content['cells'])} cells of {what} {content.get(what)!r}, "
                    f"this is {about[what]!r}: add --fresh to measure all of them again"
                )
        return cls(path, about, content.get("cells", ()))

    def add(self, *cells: dict) -> None:
        """Keep these cells, at once."""
        self.cells |= {name_of(cell["cell"]): cell for cell in cells}
        with paths.write_beside(self.path) as beside:
            beside.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """JSON, a line per cell."""
        kept = list(self.cells.values())
        commits = list(dict.fromkeys(cell["commit"] for cell in kept))
        made = {
            "command": self.about["command"],
            "commit": commits[0] if len(commits) == 1 else commits,
            "source": self.about["source"],
            "profile": self.about["profile"],
            "seed": sorted({cell["cell"]["seed"] for cell in kept}),
            "device": self.about["device"],
            "seconds": round(sum(cell["seconds"] for cell in kept), 1),  # of the CPU
        }
        lines = (json.dumps(cell, separators=(",", ":"), allow_nan=False) for cell in kept)
        head = json.dumps(made, indent=1).removesuffix("\n}")
        return head + ',\n "cells": [\n' + ",\n".join(lines) + "\n ]\n}\n"


def read(path: Path) -> dict[str, Any]:
    """What a results file holds; {} where there is none. ValueError in one line if it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete it, or add --fresh") from error


def name_of(key: grids.Key) -> str:
    """The same for equal keys, whatever the order of their fields."""
    return json.dumps(key, sort_keys=True)


def file_of(name: str) -> Path:
    """The results file of a sweep."""
    return paths.results(name.replace("-", "_"))


def of(name: str) -> grids.Sweep:
    """The sweep of that name. ValueError in one line names those there are."""
    if name not in grids.SWEEPS:
        raise ValueError(f"no sweep {name!r}: choose from {', '.join(grids.SWEEPS)}, ablations")
    return grids.SWEEPS[name]


def names(name: str) -> tuple[str, ...]:
    """The sweeps of that name: all but the paper's table where it is "ablations"."""
    return grids.ABLATIONS if name == "ablations" else (name,) if of(name) else ()


def listing(config: Config, seeds: Sequence[int] = range(5)) -> str:
    """A line per sweep: how many of its cells are done, and what it is about."""
    lines = []
    for name, sweep in grids.SWEEPS.items():
        there = {name_of(cell["cell"]) for cell in read(file_of(name)).get("cells", ())}
        wanted = [name_of(key) for key in sweep.keys(config, seeds, sweep.subjects)]
        done = sum(key in there for key in wanted)
        lines.append(f"{name:20s} {done:3d} of {len(wanted):3d} cells  {sweep.about}")
    return "\n".join(lines)


def run(
    name: str,
    config: Config,
    *,
    seeds: Sequence[int] = range(5),
    subjects: Sequence[int] | None = None,
    executor: str = "local",
    fresh: bool = False,
    limit: int | None = None,
    progress: bool = True,
) -> str:
    """Compute what is missing of a sweep, `limit` cells at most; says what is there now.

    `executor` as in `executors.workers`, `subjects` None: the sweep's own. A cell that fails is
    reported and the others go on. ValueError in one line for a file of another profile or source,
    where the same sweep is running already, where cells failed, and where the code that measures is
    changed meanwhile.
    """
    sweep, path = of(name), file_of(name)
    with _alone(name, path):
        root = synthetic.open_cohort(config, progress=progress)
        unchanged = sources.Watch(config, root)
        table = Table.open(path, _about(name, config, seeds, unchanged.source), fresh)
        wanted = grids.in_order(sweep.keys(config, seeds, subjects or sweep.subjects))
        if sweep.shares and (found := _elsewhere(name, table, wanted)):
            table.add(*found)
        missing = [key for key in wanted if name_of(key) not in table.cells]
        tasks = [Task(sweep.measure, config, root, key, os.getpid()) for key in missing[:limit]]
        bar = tqdm(
            total=len(wanted), initial=len(wanted) - len(missing), desc=name, unit="cell",
            disable=not progress, smoothing=0.1, mininterval=1,
        )  # fmt: skip
        with bar, _environment(), executors.workers(executor) as workers:
            failed = _keep(table, workers(measure, tasks), unchanged, bar)
    done = sum(name_of(key) in table.cells for key in wanted)
    if failed:
        raise ValueError(f"{len(failed)} cells of {name} failed, {done} are there: {failed[0]}")
    return f"{name}: {done} of {len(wanted)} cells in {path}"


def _keep(table: Table, cells: Iterator[dict], unchanged: sources.Watch, bar: tqdm) -> list[str]:
    """Add cells to the table as they come; what is said of those that failed."""
    failed = []
    for cell in cells:
        if "error" in cell:
            failed.append(f"{name_of(cell['cell'])}: {cell['error']}")
            tqdm.write(failed[-1], file=sys.stderr)
            if len(failed) == MOST_FAILED:
                break
            continue
        unchanged.check()
        table.add(cell | {"commit": experiments.commit()})
        bar.update()
    return failed


def measure(task: Task) -> dict[str, Any]:
    """One cell: its key, CPU seconds and rows, or the error that it ended with.

    What the computing prints is dropped.
    """
    if os.getpid() != task.parent and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a word
    began = time.process_time()
    try:
        with one_thread(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            found = task.measure(task.config, task.root, task.key)
    except Exception as error:
        place = _place(error)
        return {"cell": task.key, "error": f"{type(error).__name__}: {_line(error)} ({place})"}
    seconds = round(time.process_time() - began, 1)
    return {"cell": task.key, "seconds": seconds, "rows": [compact(row) for row in found]}


def compact(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its values rounded; NaN is None, whole numbers have no point."""
    return row | {"chance": _short(row["chance"]), "values": [_short(v) for v in row["values"]]}


def _short(value: Any) -> float | int | None:
    if value is None or math.isnan(value):
        return None
    rounded = round(float(value), DIGITS)
    return int(rounded) if rounded == int(rounded) else rounded


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _place(error: Exception) -> str:
    """File and line where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one thread, in torch and in what numpy and scikit-learn call."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _environment() -> Iterator[None]:
    """What worker processes find in their environment; what the user has set there stays."""
    new = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _alone(name: str, path: Path) -> Iterator[None]:
    """ValueError in one line if another process is at the same file."""
    folder = paths.cache() / "sweeps"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"sweep {name} is running already: wait for it, or stop it") from error
    try:
        yield
    finally:
        lock.release()


def _about(name: str, config: Config, seeds: Sequence[int], source: str) -> dict[str, Any]:
    return {
        "command": f"mindeye2-lite sweep {name} --profile {config.profile} --seeds {len(seeds)}",
        "source": source,
        "profile": config.profile,
        "device": experiments.device_name(),
    }


def _elsewhere(name: str, table: Table, wanted: Sequence[grids.Key]) -> list[dict]:
    """Wanted cells that another sweep of the same profile and source has, and this one has not."""
    missing = {name_of(key) for key in wanted} - table.cells.keys()
    found = {}
    for other, sweep in grids.SWEEPS.items():
        if other == name or not sweep.shares:
            continue
        content = read(file_of(other))
        if any(content.get(what) != table.about[what] for what in ("profile", "source")):
            continue
        cells = {name_of(cell["cell"]): cell for cell in content["cells"]}
        found |= {key: cell for key, cell in cells.items() if key in missing}
    return list(found.values())
