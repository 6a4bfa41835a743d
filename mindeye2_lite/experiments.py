"""Runs too long for a notebook: each writes one `results/*.json` that the book draws from.

    mindeye2-lite results one_hour      # three seeds: one hour with and without seven others; forty

A file says what made it (command, commit, profile, seed, device, seconds) and holds one row per
score, with chance, n and a 95% interval, so that no number in the book is typed by hand.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mindeye2_lite import encoders, nsd, paths, pipeline, synthetic, train
from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2

SETTINGS = (("pretrained", 1), ("scratch", 1), ("pretrained", None))


def one_hour(
    config: Config,
    *,
    subject: int = 1,
    seeds: Sequence[int] = (0, 1, 2),
    settings: Sequence[tuple[str, int | None]] = SETTINGS,
    pictures: bool = False,
    jobs: int = 1,
    progress: bool = True,
) -> dict:
    """One session or all, from seven others' model or from scratch: retrieval for every seed.

    With `pictures` also the other eight scores, of every stage: a minute more for each. `jobs`
    seeds run side by side, each in a process of its own.
    """
    from joblib import Parallel, delayed

    began, source = time.monotonic(), commit()
    root = synthetic.open_cohort(config, progress=progress)
    seed_rows = Parallel(n_jobs=jobs)(
        delayed(_seed_rows)(config, root, subject, settings, seed, pictures, progress)
        for seed in seeds
    )
    rows = [row for part in seed_rows for row in part]
    command = f"one_hour --seeds {' '.join(map(str, seeds))}" + " --pictures" * pictures
    made = origin(command, config, list(seeds), began, source)
    return made | {"subject": subject, "rows": rows}


def _seed_rows(
    config: Config, root: Path, subject: int, settings: Sequence, seed: int, pictures: bool,
    progress: bool,
) -> list[dict]:  # fmt: skip
    rows, person = [], nsd.Subject(root, subject)
    for start, sessions in settings:
        run = pipeline.tuned(
            config, root, subject, sessions, seed=seed, pretrained=start == "pretrained",
            progress=progress,
        )  # fmt: skip
        about = {"start": start, "sessions": sessions or person.sessions, "seed": seed}
        test = person.test(sessions=sessions)
        rows += [about | row for row in _brain_rows(run.model, test, person, config)]
        if pictures:
            rows += [about | row for row in _picture_rows(run.model, test, person, config, seed)]
    return rows


def _brain_rows(model: MindEye2, test: nsd.Trials, person: nsd.Subject, config: Config):
    device = str(next(model.parameters()).device)
    targets = encoders.targets(person.images, test.image_id, config, device=device, progress=False)
    found = train.evaluate_retrieval(model, test, person.subject, targets).scores()
    return [{"stage": "brain", "metric": name, **_numbers(s)} for name, s in found.items()]


def _picture_rows(
    model: MindEye2, test: nsd.Trials, person: nsd.Subject, config: Config, seed: int
) -> list[dict]:
    device = str(next(model.parameters()).device)
    made = pipeline.reconstruct(
        model, test, person.images, config, subject=person.subject, seed=seed, progress=False
    )
    return [
        {"stage": stage, "metric": name, **_numbers(found)}
        for stage in dict(made.pictures())
        if stage != "seen"
        for name, found in pipeline.score(made, config, stage=stage, device=device).items()
        if name not in ("image_to_brain", "brain_to_image")
    ]


def _numbers(score) -> dict:
    names = ("value", "low", "high", "chance", "n", "better")
    return {name: getattr(score, name) for name in names}


def origin(
    name: str, config: Config, seeds: Iterable[int], began: float, source: str | None = None
) -> dict:
    """What a results file says about where it comes from; `source`: the commit at the start."""
    return {
        "command": f"mindeye2-lite results {name}",
        "commit": source or commit(),
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
