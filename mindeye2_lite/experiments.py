"""Runs too long for a notebook: each writes one `results/*.json` that the book draws from.

    mindeye2-lite results one_hour        # three seeds: one hour, from seven others or not; forty
    mindeye2-lite results prior_samplers  # the released sampler beside one without fresh noise
    mindeye2-lite results departures      # working blocks, released partners: what they change

A file says what made it (command, commit, profile, seed, device, seconds) and holds one row per
score, with chance, n and a 95% interval, so that no number in the book is typed by hand.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mindeye2_lite import (
    captions,
    encoders,
    metrics,
    nsd,
    paths,
    pipeline,
    scenes,
    synthetic,
    train,
)
from mindeye2_lite.captions_metrics import grade
from mindeye2_lite.config import Config
from mindeye2_lite.metrics import Score
from mindeye2_lite.model import MindEye2
from mindeye2_lite.prior import DiffusionPrior
from mindeye2_lite.retrieval import retrieval

Sampler = Callable[[DiffusionPrior, Tensor, torch.Generator], Tensor]
SAMPLERS: dict[str, Sampler] = {
    "released, 19 calls": lambda prior, z, g: prior.sample(z, generator=g),
    "released, all 100 steps": lambda prior, z, g: prior.sample(z, None, generator=g),
    "deterministic, 10 calls": lambda prior, z, g: prior.sample_deterministic(z, 10, generator=g),
    "deterministic, 5 calls": lambda prior, z, g: prior.sample_deterministic(z, 5, generator=g),
}
# What departs from this book's training: settings of the config, and of pretraining.
DEPARTURES: dict[str, tuple[dict, dict]] = {
    "as in this book": ({}, {}),
    "working blocks": ({"backbone": "residual"}, {}),
    "released partners": ({}, {"partners": "released"}),
}
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


def prior_samplers(
    config: Config,
    *,
    subject: int = 1,
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int = 1,
    progress: bool = True,
) -> dict:
    """What the prior's samplers make of the same brains, after all sessions.

    Of every sampler: squared error of the tokens (1: no better than the mean of all test pictures),
    retrieval by these tokens, and whether a caption made of them names the right things. Values
    are means over seeds, intervals over pictures.
    """
    from joblib import Parallel, delayed

    began, source = time.monotonic(), commit()
    root = synthetic.open_cohort(config, progress=progress)
    found = Parallel(n_jobs=jobs)(
        delayed(_sampled)(config, root, subject, seed, progress) for seed in seeds
    )
    pooled = {
        sampler: {
            measure: _numbers(score)
            for measure, score in pool_seeds([one[sampler] for one in found]).items()
        }
        for sampler in SAMPLERS
    }
    command = f"prior_samplers --seeds {' '.join(map(str, seeds))}"
    made = origin(command, config, list(seeds), began, source)
    return made | {"subject": subject, "found": pooled}


def _sampled(
    config: Config, root: Path, subject: int, seed: int, progress: bool
) -> dict[str, dict[str, Score]]:
    """The scores of every sampler with the model of one seed."""
    model = pipeline.tuned(config, root, subject, None, seed=seed, progress=progress).model
    person = nsd.Subject(root, subject)
    brain, ids = train.brain_outputs(model, person.test(), subject)
    targets = encoders.targets(person.images, ids, config, progress=False)
    true = targets.tokens[targets.index(ids)].float()
    codes = synthetic.true_attributes(root)
    names = {"kind": scenes.KINDS, "color": scenes.COLORS, "ground": scenes.GROUNDS}
    truth = {name: [words[i] for i in codes[name][ids]] for name, words in names.items()}
    captioner, found = captions.load(config.captioner), {}
    for name, sample in SAMPLERS.items():
        with torch.no_grad():
            tokens = sample(model.prior, brain.tokens, torch.Generator().manual_seed(seed))
        said = [scenes.mentioned(sentence) for sentence in captions.caption(captioner, tokens)]
        graded = {name: score for name, score in grade(said, truth).items() if name in truth}
        error = {"squared error": _error(tokens, true)}
        found[name] = error | retrieval(tokens, true).scores() | graded
    return found


def _error(tokens: Tensor, true: Tensor) -> Score:
    """Squared error of each picture's tokens over that of the mean of all."""
    nothing = (true - true.mean(0)).square().mean()
    each = ((tokens - true).square().mean((1, 2)) / nothing).numpy()
    return metrics.score("squared error", each, chance=1.0, better="lower")


def departures(
    config: Config,
    *,
    subject: int = 1,
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int = 1,
    progress: bool = True,
) -> dict:
    """Retrieval where training departs from this book's: working blocks, or released partners.

    Of seven people's model: by the first of them, and by the six others, whom the released
    partners mislead. Then of `subject`, after one session and after all. Values are means over
    seeds, intervals over pictures; `difference` is to this book's training, picture by picture.
    """
    from joblib import Parallel, delayed

    began, source = time.monotonic(), commit()
    root = synthetic.open_cohort(config, progress=progress)
    found = Parallel(n_jobs=jobs)(
        delayed(_departed)(name, config, root, subject, seed, progress)
        for seed in seeds
        for name in DEPARTURES
    )
    of = {name: found[i :: len(DEPARTURES)] for i, name in enumerate(DEPARTURES)}
    compared = compare_with_first({name: pool_seeds(scores) for name, scores in of.items()})
    command = f"departures --seeds {' '.join(map(str, seeds))}"
    made = origin(command, config, list(seeds), began, source)
    return made | {"subject": subject, "found": compared}


def _departed(
    name: str, config: Config, root: Path, subject: int, seed: int, progress: bool
) -> dict[str, Score]:
    """Retrieval of one way of training with one seed, before and after fine-tuning."""
    settings, of_pretraining = DEPARTURES[name]
    config = replace(config, **settings)
    others = tuple(s for s in range(1, 9) if s != subject)
    start = train.load_or_train(
        "pretrained", config, root, subjects=others, seed=seed, progress=progress, **of_pretraining
    ).model
    each = [_found(start, root, s, None, config) for s in others]
    found = {f"seven people, first: {n}": score for n, score in each[0].items()}
    for n, first in each[0].items():
        pictures = np.concatenate([one[n].per_image for one in each[1:]])
        found[f"seven people, others: {n}"] = metrics.score(n, pictures, chance=first.chance)
    for sessions, when in ((1, "one hour"), (None, "all hours")):
        how = {"subject": subject, "sessions": sessions, "seed": seed, "progress": progress}
        tuned = train.load_or_train("fine-tuned", config, root, start=start, **how).model
        scores = _found(tuned, root, subject, sessions, config)
        found |= {f"{when}: {n}": score for n, score in scores.items()}
    return found


def _found(
    model: MindEye2, root: Path, subject: int, sessions: int | None, config: Config
) -> dict[str, Score]:
    person = nsd.Subject(root, subject)
    test = person.test(sessions=sessions)
    targets = encoders.targets(person.images, test.image_id, config, progress=False)
    return train.evaluate_retrieval(model, test, subject, targets).scores()


def compare_with_first(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, dict]]:
    """By measure, every way's score and its difference to the first way's, picture by picture."""
    first = next(iter(scores.values()))
    found: dict[str, dict[str, dict]] = {measure: {} for measure in first}
    for way, of in scores.items():
        for measure, score in of.items():
            apart = np.asarray(score.per_image) - np.asarray(first[measure].per_image)
            low, high = metrics.bootstrap(apart)
            difference = {"value": float(apart.mean()), "low": low, "high": high}
            found[measure][way] = _numbers(score) | {"difference": difference}
    return found


def pool_seeds(scores: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    """Per measure the mean over seeds, with an interval over pictures of each picture's mean."""
    pooled = {}
    for name, first in scores[0].items():
        each = np.mean([one[name].per_image for one in scores], axis=0)
        chance = None if first.chance is None else float(np.mean([s[name].chance for s in scores]))
        pooled[name] = metrics.score(name, each, chance=chance, better=first.better)
    return pooled


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
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores"


EXPERIMENTS = {"one_hour": one_hour, "prior_samplers": prior_samplers, "departures": departures}
