"""What a benchmark needs: room on the disk, a cold start, and eyes on another process.

Memory is read from /proc, so it is known on Linux and unknown (None) elsewhere; there and only
there the system can also be told to forget a file.
"""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BETWEEN = 0.02  # seconds between two looks at a process


@contextmanager
def room(folder: Path, needed: int, keep: bool = False) -> Iterator[Path]:
    """An empty folder with so many bytes free; deleted at the end, unless it is to be kept.

    ValueError where the folder holds anything, OSError where the disk is too small: one line.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: "
            "choose another folder (--folder)"
        )
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def forget(files: Iterable[Path]) -> bool:
    """Have the system forget what it keeps of these files; False where it cannot be asked to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def machine() -> dict:
    """Cores, bytes of memory (None where the system does not tell), and the system's name."""
    names = getattr(os, "sysconf_names", {})
    known = {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else None
    return {"cores": os.cpu_count(), "memory": memory, "system": sys.platform}


@dataclass
class Watched:
    """What was seen of a process: seconds, its files as they were kept, memory of all its parts."""

    seconds: float = 0.0
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)  # name: inode, time in ns
    began: int = 0  # ns
    peak: int | None = None  # bytes; None where the system does not tell

    @property
    def moments(self) -> np.ndarray:
        """Seconds from the start at which files were kept, ascending."""
        return np.sort([(at - self.began) / 1e9 for _, at in self.kept.values()])


def watch(words: list[str], folder: Path, pattern: str, kill_after: int | None = None) -> Watched:
    """Run Python with these words, and look at the files that come in `folder` meanwhile.

    Killed without warning once `kill_after` are there. ValueError in one line where it fails.
    """
    seen, began = Watched(began=time.time_ns()), time.perf_counter()
    command = [sys.executable, *words]
    with tempfile.TemporaryFile("w+") as said:  # a pipe that nobody reads would stop it
        process = subprocess.Popen(command, start_new_session=True, stdout=said, stderr=said)
        try:
            while process.poll() is None and (kill_after is None or len(seen.kept) < kill_after):
                _look(seen, folder, pattern, process.pid)
                time.sleep(BETWEEN)
        finally:
            _kill(process)
        said.seek(0)
        lines = said.read().strip().splitlines()
    seen.seconds = time.perf_counter() - began
    seen.kept |= _kept(folder, pattern)
    if process.returncode > 0:
        raise ValueError(f"{' '.join(words[:3])} failed: {lines[-1] if lines else '?'}")
    return seen


def _kill(process: subprocess.Popen) -> None:
    """The process and all that it started; nothing where it has ended by itself."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _look(seen: Watched, folder: Path, pattern: str, pid: int) -> None:
    seen.kept |= _kept(folder, pattern)
    peak = _memory_of_session(pid)
    if peak is not None:
        seen.peak = max(peak, seen.peak or 0)


def _kept(folder: Path, pattern: str) -> dict[str, tuple[int, int]]:
    found = {}
    for path in folder.glob(pattern):
        try:
            status = path.stat()
        except FileNotFoundError:  # deleted meanwhile
            continue
        found[path.name] = (status.st_ino, status.st_mtime_ns)
    return found


def _memory_of_session(leader: int) -> int | None:
    """Bytes that a process and its children hold, pages that they share counted for each.

    One alone counts with its highest mark, so that nothing between two looks is missed.
    """
    marks, now = [], []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == leader:
                status = (entry / "status").read_text()
                marks.append(_kilobytes(status, "VmHWM"))
                now.append(_kilobytes(status, "VmRSS"))
        except (OSError, IndexError, ValueError):  # it has ended meanwhile
            continue
    return 1024 * max(*marks, sum(now)) if marks else None


def _kilobytes(status: str, name: str) -> int:
    return int(status.partition(f"{name}:")[2].split()[0])


def alone(function: Callable[..., dict], *arguments: Any, **named: Any) -> dict:
    """What a function returns in a fresh process, and its highest mark of memory, `peak`."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(with_peak, (function, *arguments), named)


def with_peak(function: Callable[..., dict], *arguments: Any, **named: Any) -> dict:
    """What a function returns, and this process's highest mark of memory so far, `peak`."""
    found = function(*arguments, **named)
    status = Path("/proc/self/status")
    peak = 1024 * _kilobytes(status.read_text(), "VmHWM") if status.exists() else None
    return {**found, "peak": peak}
