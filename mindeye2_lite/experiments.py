"""Runs too long for a notebook: each writes one `results/*.json` that the book draws from.

    mindeye2-lite results one_hour      # three seeds, pretrained and from scratch, 1 and 40 hours

A file says what made it (command, commit, profile, seed, device, seconds) and holds one row per
score, with chance, n and a 95% interval, so that no number in the book is typed by hand.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mindeye2_lite import nsd, paths, pipeline, synthetic
from mindeye2_lite.config import Config

SETTINGS = (("pretrained", 1), ("scratch", 1), ("pretrained", None), ("scratch", None))


def one_hour(
    config: Config, *, subject: int = 1, seeds: Sequence[int] = (0, 1, 2),
    settings: Sequence[tuple[str, int | None]] = SETTINGS, jobs: int = 1, progress: bool = True,
) -> dict:  # fmt: skip
    """One session or all, from seven others' model or from scratch: all ten scores, every seed.

    `jobs` seeds run side by side, each in a process of its own.
    """
    from joblib import Parallel, delayed

    began = time.monotonic()
    root = synthetic.open_cohort(config, progress=progress)
    seed_rows = Parallel(n_jobs=jobs)(
        delayed(_seed_rows)(config, root, subject, settings, seed, progress) for seed in seeds
    )
    rows = [row for part in seed_rows for row in part]
    return origin("one_hour", config, list(seeds), began) | {"subject": subject, "rows": rows}


def _seed_rows(
    config: Config, root: Path, subject: int, settings: Sequence, seed: int, progress: bool
) -> list[dict]:
    parts = (_rows(config, root, subject, k, start, seed, progress) for start, k in settings)
    return [row for part in parts for row in part]


def _rows(
    config: Config, root: Path, subject: int, sessions: int | None, start: str, seed: int,
    progress: bool,
) -> list[dict]:  # fmt: skip
    run = pipeline.tuned(
        config, root, subject, sessions, seed=seed, pretrained=start == "pretrained",
        progress=progress,
    )  # fmt: skip
    person = nsd.Subject(root, subject)
    test = person.test(sessions=sessions)
    device = str(next(run.model.parameters()).device)
    made = pipeline.reconstruct(
        run.model, test, person.images, config, subject=subject, seed=seed, progress=progress
    )
    about = {"start": start, "sessions": sessions or person.sessions, "seed": seed}
    return [
        about | {"stage": stage, "metric": name, **_numbers(found)}
        for stage in dict(made.pictures())
        if stage != "seen"
        for name, found in pipeline.score(made, config, stage=stage, device=device).items()
    ]


def _numbers(score) -> dict:
    names = ("value", "low", "high", "chance", "n", "better")
    return {name: getattr(score, name) for name in names}


def origin(name: str, config: Config, seeds: Iterable[int], began: float) -> dict:
    """What a results file says about where it comes from."""
    return {
        "command": f"mindeye2-lite results {name}",
        "commit": commit(),
        "profile": config.profile,
        "seed": seeds,
        "device": device_name(),
        "seconds": round(time.monotonic() - began, 1),
    }


def write(name: str, content: dict) -> Path:
    """Keep a results file in the package."""
    path = paths.results(name)
    with paths.write_beside(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n")
    return path


def commit() -> str:
    """The commit of the working tree, or "unknown" outside of one."""
    command = ["git", "-C", str(paths.PACKAGE), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device_name() -> str:
    """The GPU's name, or the number of CPU cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores"


EXPERIMENTS = {"one_hour": one_hour}
