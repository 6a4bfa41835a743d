"""How fast and how small reading and scoring are, also against the original's way.

    mindeye2-lite bench prepare   # a full-size person from raw NSD: memory, seconds, after a kill
    mindeye2-lite bench reading   # 24 random trials from full-size files: the first, then many
    mindeye2-lite bench metrics   # the ten scores of 1,000 pairs of pictures: seconds, memory

The first two write a person of NSD's size made of random numbers (`full_size.py`), the third writes
pictures; each measures every way in the same run on the same files, and deletes them. What the
system remembers of a file is forgotten before each measurement that says so, for all ways alike,
where the system can forget (Linux).
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import h5py
import numpy as np

from mindeye2_lite import full_size, nsd_sessions, paths
from mindeye2_lite.full_size import SUBJECT, Size
from mindeye2_lite.layout import betas_file, betas_name
from mindeye2_lite.measuring import Watched, alone, forget, machine, room, watch
from mindeye2_lite.ways_of_scoring import Pairs

LIMIT = 3e9  # bytes of memory that preparing a full-size person may take
KILLED_AFTER = 7  # sessions


Value = int | float | bool | None  # None where the system does not tell
Row = dict[str, Value | str]  # what, value, unit


def prepare(folder: Path, size: Size, seed: int = 0, keep: bool = False) -> list[Row]:
    """`mindeye2-lite prepare` on a person of that size below `folder`, and what bounds it.

    Peak memory, seconds a session and what reading its bytes alone takes; NSD's own form, that
    with the whole volume, and `.nii.gz`; blocks of trials, as before; a kill after session 7.
    OSError in one line where the disk is too small.
    """
    volume = size.trials * int(np.prod(size.shape)) * 2
    with room(folder, 12 * size.rows * size.voxels + volume + 2**29, keep) as place:
        raw = full_size.write_raw(place / "raw", size, seed)
        rows = _uninterrupted(raw, place / "at-once", size)
        digest = _digest(betas_file(place / "at-once", SUBJECT))
        shutil.rmtree(place / "at-once")
        rows += _killed(raw, place / "killed", min(KILLED_AFTER, size.sessions - 1), digest)
        return rows + _forms(raw, place, size, seed)


def reading(
    folder: Path,
    size: Size,
    seed: int = 0,
    keep: bool = False,
    batches: int = 51,
    batch: int = 24,
    rounds: int = 3,
) -> list[Row]:
    """The first batch and those after it, by the original's way and by `nsd.Pairs`.

    Each in a process of its own that has imported everything before the clock starts, in turn,
    `rounds` times; the median counts. The original's way draws the trials; ours reads the same
    ones. OSError in one line where the disk is too small.
    """
    from mindeye2_lite import ways_of_reading as ways

    needed = 4 * size.rows * size.voxels + (batches + 2) * batch * 3 * 224 * 224 * 2 + 2**29
    with room(folder, needed, keep) as place:
        full_size.write_released(place, size, seed)
        full_size.write_pictures(place, size, ways.images(place, SUBJECT, batches, batch), seed)
        original, ours = [], []
        for _ in range(rounds):
            cold = forget(place.rglob("*"))
            original.append(alone(ways.original, place, SUBJECT, batches, batch))
            forget(place.rglob("*"))
            ours.append(alone(ways.ours, place, SUBJECT, original[-1]["trials"]))
        return [*compared(original, ours), _row("files forgotten by the system first", cold)]


def metrics(
    folder: Path, size: Pairs, seed: int = 0, keep: bool = False, rounds: int = 3
) -> list[Row]:
    """The ten scores of pairs of pictures, by the original's way and by `metrics.evaluate`.

    With the same miniature networks, on the processor, in one thread; each in a process of its own
    that has imported everything and read the pictures before the clock starts, in turn, `rounds`
    times; the median counts. Memory is all that the process ever held, its pictures included.
    OSError in one line where the disk is too small.
    """
    from mindeye2_lite import ways_of_scoring as ways

    with room(folder, size.bytes + size.pairs * 2**15 + 2**28, keep) as place:
        ways.write(place, size, seed)
        original, ours = [], []
        with ways.one_thread():
            for _ in range(rounds):
                original.append(alone(ways.original, place))
                ours.append(alone(ways.ours, place))
    return [
        _row("pairs of pictures", size.pairs),
        _row("bytes of the pictures", size.bytes, "bytes"),
        *scored(original, ours),
    ]


BENCHMARKS = {"prepare": prepare, "reading": reading, "metrics": metrics}
SIZES = {"prepare": Size, "reading": Size, "metrics": Pairs}
MADE_OF = {"metrics": "lite: miniature networks, drawn scenes with noise"}


def run(name: str, folder: Path | None = None, size: Size | Pairs | None = None, seed: int = 0,
        **how: Any) -> dict:  # fmt: skip
    """What a results file holds: the rows of a benchmark, and where they come from.

    ValueError in one line for a name that there is not.
    """
    from mindeye2_lite import experiments

    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}: choose from {', '.join(BENCHMARKS)}")
    began, source, size = time.monotonic(), experiments.commit(), size or SIZES[name]()
    folder = Path(folder or paths.runs("bench")) / name
    rows = BENCHMARKS[name](folder, size, seed, **how)
    return {
        "command": f"mindeye2-lite bench {name}",
        "commit": source,
        "profile": MADE_OF.get(name, "none: random numbers"),
        "seed": seed,
        "device": experiments.device_name(),
        "seconds": round(time.monotonic() - began, 1),
        "machine": machine(),
        "size": asdict(size),
        "rows": rows,
    }


def table(content: dict) -> str:
    """The rows of a benchmark as text, a line each."""
    width = max(len(row["what"]) for row in content["rows"])
    return "\n".join(f"{row['what']:{width}s}  {_shown(**row)}" for row in content["rows"])


def _shown(what: str, value: Value, unit: str) -> str:
    if value is None:
        return "not known here"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == "bytes":
        return f"{value / 1e9:.3f} GB"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g} {unit}".strip()


def _row(what: str, value: Value, unit: str = "") -> Row:
    return {"what": what, "value": value, "unit": unit}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- preparing -------------------------------------------------------------------------------------


def _uninterrupted(raw: Path, out: Path, size: Size) -> list[Row]:
    cold = forget(full_size.betas_folder(raw).iterdir())
    seen = _prepared(raw, out)
    each = np.diff(seen.moments)
    files = [full_size.session_file(raw, s) for s in range(1, size.sessions + 1)]
    floors = [bytes_alone(path, full_size.brain(size)) for path in files]
    session, floor = float(np.mean(each)), float(np.mean(floors))
    return [
        _row("prepare, all", seen.seconds, "s"),
        _row("until the first session is kept", float(seen.moments[0]), "s"),
        _row("a session", session, "s"),
        _row("its bytes alone", floor, "s"),
        _row("the bytes' share of a session", floor / session),
        _row("after the last session", seen.seconds - float(seen.moments[-1]), "s"),
        _row("peak memory", seen.peak, "bytes"),
        _row("limit of memory", int(LIMIT), "bytes"),
        _row("bytes of the sessions", sum(p.stat().st_size for p in files), "bytes"),
        _row("bytes of the prepared betas", betas_file(out, SUBJECT).stat().st_size, "bytes"),
        _row("files forgotten by the system first", cold),
    ]


def _prepared(raw: Path, out: Path, kill_after: int | None = None) -> Watched:
    words = ["prepare", str(raw), str(out), "--subjects", str(SUBJECT)]
    staged = out / f".{betas_name(SUBJECT)}.sessions"
    return watch(["-m", "mindeye2_lite.cli", *words], staged, "session*.npz", kill_after)


def _killed(raw: Path, out: Path, after: int, digest: str) -> list[Row]:
    """Killed without warning, started again: is the rest done, and only the rest?"""
    first, second = _prepared(raw, out, after), _prepared(raw, out)
    same = [name for name in first.kept if second.kept.get(name) == first.kept[name]]
    return [
        _row("sessions kept at the kill", len(first.kept)),
        _row("of these done again", len(first.kept) - len(same)),
        _row("sessions done after it", len(second.kept) - len(same)),
        _row("seconds after the kill", second.seconds, "s"),
        _row("the same betas, byte for byte", _digest(betas_file(out, SUBJECT)) == digest),
    ]


def _forms(raw: Path, folder: Path, size: Size, seed: int) -> list[Row]:
    """One session in three forms, and as it was read before."""
    mask, betas = full_size.brain(size), full_size.stored(size, 1, seed)
    own, whole = full_size.session_file(raw, 1), folder / "whole_session01.hdf5"
    nifti = folder / "betas_session01.nii.gz"
    full_size.write_session(whole, mask, betas, whole=True)
    full_size.write_session_nifti(nifti, mask, betas)
    rows, digests = [], set()
    for what, path, read in (
        ("own form", own, nsd_sessions.read),
        ("own form, the whole volume", whole, nsd_sessions.read),
        ("own form, the whole volume, by blocks of trials", whole, blocks_of_trials),
        (".nii.gz", nifti, nsd_sessions.read),
    ):
        forget([path])
        found = alone(read_session, read, path, mask)
        digests.add(found["digest"])
        rows.append(_row(f"one session, {what}", found["seconds"], "s"))
        rows.append(_row(f"one session, {what}: peak memory", found["peak"], "bytes"))
        if path == whole and read is nsd_sessions.read:
            floor = bytes_alone(whole, mask)
            rows.append(_row("one session, the whole volume: its bytes alone", floor, "s"))
    for path in (whole, nifti):
        path.unlink()
    return [*rows, _row("all forms give the same betas", len(digests) == 1)]


def read_session(read: Callable, path: Path, mask: np.ndarray) -> dict:
    """Seconds that reading one session takes, and what came out."""
    began = time.perf_counter()
    betas = read(path, mask)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "digest": hashlib.sha256(betas.tobytes()).hexdigest()}


def blocks_of_trials(path: Path, mask: np.ndarray, block: int = 150) -> np.ndarray:
    """A session as `nsd.prepare` read it at first: whole volumes, so every chunk in every block."""
    with h5py.File(path) as file:
        betas = file["betas"]
        parts = [
            betas[first : first + block].transpose(0, 3, 2, 1)[:, mask]
            for first in range(0, len(betas), block)
        ]
    return np.concatenate(parts).astype(np.float32) / nsd_sessions.SCALE


def bytes_alone(path: Path, mask: np.ndarray) -> float:
    """Seconds that reading the chunks of the mask's voxels takes, in the file's order, no more."""
    inside, found = mask.T, []

    def note(chunk) -> None:
        if inside[chunk.chunk_offset[1:]]:
            found.append((chunk.byte_offset, chunk.size))

    with h5py.File(path) as file:
        file["betas"].id.chunk_iter(note)
    forget([path])
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        read_pieces(file, sorted(found))
    return time.perf_counter() - began


def read_pieces(file: BinaryIO, pieces: list[tuple[int, int]]) -> None:
    """Read (offset, length) after (offset, length), and keep nothing."""
    for offset, length in pieces:
        file.seek(offset)
        file.read(length)


# -- reading ---------------------------------------------------------------------------------------


def compared(original: list[dict], ours: list[dict]) -> list[Row]:
    """Rows of both ways, medians over rounds, and their ratios."""
    rows, rates = [], {}
    for name, rounds in (("original", original), ("ours", ours)):
        rows.append(_row(f"{name}: until the first batch", _median(rounds, "first"), "s"))
        for part, what in (
            ("loaded", "all betas to memory"),
            ("first_records", "waiting for its stream of trials"),
            ("opened", "files opened, trials known"),
        ):
            if part in rounds[0]:
                rows.append(_row(f"{name}: of these, {what}", _median(rounds, part), "s"))
        for part, what in (
            ("each", "batches a second, files cold"),
            ("each_without_records", "the same without its stream of trials"),
            ("again", "batches a second, files in memory, without a stream"),
        ):
            if part in rounds[0]:
                rates[name, part] = 1 / median(float(np.mean(one[part])) for one in rounds)
                rows.append(_row(f"{name}: {what}", rates[name, part], "1/s"))
        rows.append(_row(f"{name}: peak memory", _median(rounds, "peak"), "bytes"))
    first = _median(ours, "first") / _median(original, "first")
    without = _median(original, "first") - _median(original, "first_records")
    steady = {part: rates["ours", "each"] / rates["original", part] for part in
              ("each", "each_without_records")}  # fmt: skip
    digests = {tuple(one["digests"]) for one in (*original, *ours)}
    return [
        *rows,
        _row("first batch, ours over the original's", first),
        _row("the same, its stream of trials left out", _median(ours, "first") / without),
        _row("batches a second, ours over the original's", steady["each"]),
        _row("the same, its stream of trials left out", steady["each_without_records"]),
        _row("the same, files in memory", rates["ours", "again"] / rates["original", "again"]),
        _row("batches compared", len(original[0]["digests"])),
        _row("batches that the original threw away", original[0]["thrown"]),
        _row("both read the same values", len(digests) == 1),
        _row("rounds", len(ours)),
    ]


# -- scoring ---------------------------------------------------------------------------------------


def scored(original: list[dict], ours: list[dict]) -> list[Row]:
    """Rows of both ways, medians over rounds, their ratios, and how far their scores are apart."""
    rows, names = [], original[0]["scores"]
    for name, rounds in (("original", original), ("ours", ours)):
        rows += [
            _row(f"{name}: seconds", _median(rounds, "seconds"), "s"),
            _row(f"{name}: seconds of the processor", _median(rounds, "busy"), "s"),
            _row(f"{name}: peak memory", _median(rounds, "peak"), "bytes"),
        ]
    if names.keys() != ours[0]["scores"].keys():
        raise ValueError(f"not the same scores: {list(names)}, {list(ours[0]['scores'])}")
    apart = [abs(names[name] - one["scores"][name]) for one in ours for name in names]
    return [
        *rows,
        _row("seconds, the original's over ours", _over(original, ours, "seconds")),
        _row("of the processor, the original's over ours", _over(original, ours, "busy")),
        _row("memory, ours over the original's", _over(ours, original, "peak")),
        _row("scores compared", len(names)),
        _row("largest difference of a score", float(max(apart))),
        _row("rounds", len(ours)),
    ]


def _over(above: list[dict], below: list[dict], part: str) -> float | None:
    one, other = _median(above, part), _median(below, part)
    return None if one is None or other is None else one / other


def _median(rounds: list[dict], part: str) -> float | None:
    values = [one[part] for one in rounds]
    return None if None in values else float(median(values))
