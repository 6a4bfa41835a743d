"""One point of every table, curve and ablation, so small that a test can measure it again.

A few training steps of a narrow model, a cohort of three sessions with a handful of test pictures,
a few steps of unCLIP: the way is that of the sweeps, the numbers say nothing about the method.

    mindeye2-lite sweep small-points       writes results/small_points.json, five seeds of each
    scores("backbone", root, seed=0)       stage and metric -> mean over the test pictures
    interval(values)                       where another seed's value is to be expected
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from mindeye2_lite import executors, experiments, grids, nsd, paths, sources, sweeps, synthetic
from mindeye2_lite.config import Config

SCALE = 0.07  # of the cohort: three sessions, eight test pictures
STEPS = 3  # of unCLIP
TRAINING = {"max_steps": 12, "batch": 8, "pretrain_batch": 8}
SMALLEST = 0.02  # half an interval, where seeds hardly differ: other machines round otherwise
RIGHT_OR_WRONG = 0.13  # the same of retrieval, where one of eight pictures more is 0.125
ONE = {"sessions": 1, "start": [5]}  # from one person, as far as pretraining is needed
POINTS: dict[str, dict[str, Any]] = {  # sweep -> what of `grids.ablation_key` is changed
    "data-amount": {"sessions": 1, "minutes": 30},
    "pretraining-people": ONE,
    "input-layer": {"sessions": 2, "first_layer": "mlp"},
    "clip-target": {"sessions": 2, "encoder": "mini-L"},
    "loss-terms": {"sessions": 2, "terms": "retrieval"},
    "backbone": {"sessions": 2, "backbone": "residual"},
    "statistics": ONE | {"normalize": "all"},
    "prompts": ONE,
}


def config() -> Config:
    """`lite`, narrow, without its low-level head, after a dozen steps."""
    return replace(Config.lite(), hidden=128, prior_depth=1, low_level=False, **TRAINING)


def key(name: str, seed: int) -> grids.Key:
    """The cell of subject 1 that stands for a sweep."""
    if name == "paper-table":
        return {"system": "MindEye2", "sessions": 1, "subject": 1, "seed": seed}
    if name == "unclip-ceiling":
        return {"encoder": "mini-L", "seed": seed}
    return grids.ablation_key(config(), 1, seed, **POINTS[name])


def scores(name: str, root: Path, seed: int) -> dict[str, float]:
    """ "stage, metric" -> mean over the test pictures, of one seed. ValueError where it fails."""
    measure = partial(grids.SWEEPS[name].measure, steps=STEPS)
    cell = sweeps.measure(sweeps.Task(measure, config(), root, key(name, seed), os.getpid()))
    if "error" in cell:
        raise ValueError(f"small point of {name}, seed {seed}: {cell['error']}")
    rows = cell["rows"]
    return {f"{row['stage']}, {row['metric']}": float(np.mean(row["values"])) for row in rows}


def interval(values: Sequence[float], smallest: float = SMALLEST) -> tuple[float, float]:
    """Where the next seed's value lies with 99%: mean ± t s √(1 + 1/n), a prediction interval.

    It is wider than a confidence interval of the mean, by about √n, because one seed is compared
    and not a mean; s is the standard deviation over the n seeds, t Student's with n - 1 degrees of
    freedom. Never narrower than `smallest` to either side.
    """
    from scipy.stats import t

    n, middle = len(values), float(np.mean(values))
    half = t.ppf(0.995, n - 1) * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / n)
    half = max(float(half), smallest)
    return middle - half, middle + half


def smallest(score: str) -> float:
    """The least half of the interval of a score, by its "stage, metric"."""
    return RIGHT_OR_WRONG if score.startswith("brain, ") else SMALLEST


def run(seeds: Sequence[int] = range(5), *, executor: str = "local", progress: bool = True) -> Path:
    """Measure all points and keep them in results/small_points.json: its path."""
    began, root = time.monotonic(), cohort(progress=progress)
    pairs = [(name, seed) for seed in seeds for name in grids.SWEEPS]
    with executors.workers(executor) as workers:
        done = workers(partial(_scored, root), pairs)
        found = dict(tqdm(done, "small points", total=len(pairs), disable=not progress))
    made = experiments.origin("", config(), list(seeds), began)
    made["command"] = f"mindeye2-lite sweep small-points --seeds {len(seeds)}"
    made["source"] = sources.source(config(), root)
    made["points"] = {
        name: {
            "cell": {n: v for n, v in key(name, 0).items() if n != "seed"},
            "scores": _points([found[name, seed] for seed in seeds]),
        }
        for name in grids.SWEEPS
    }
    return experiments.write("small_points", made)


def cohort(progress: bool = True) -> Path:
    """The small cohort in the training layout, in the cache folder, made where it is missing."""
    root = paths.cohort("small-points")
    if not root.exists():
        beside = root.with_name(f".{root.name}.{os.getpid()}.part")
        synthetic.write_cohort(beside / "raw", scale=SCALE, progress=progress)
        nsd.prepare(beside / "raw", beside, progress=progress)
        beside.rename(root)
    return root


def _scored(root: Path, pair: tuple[str, int]) -> tuple[tuple[str, int], dict[str, float]]:
    return pair, scores(pair[0], root, pair[1])


def _points(found: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Every seed's value and the interval of each score."""
    points = {}
    for name in found[0]:
        values = [round(of[name], sweeps.DIGITS) for of in found]
        low, high = interval(values, smallest(name))
        points[name] = {"values": values, "low": round(low, 4), "high": round(high, 4)}
    return points
