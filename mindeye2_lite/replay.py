"""A session once more, trial by trial, as if it came from the scanner now; every stage is timed.

    told = replay(model, person, session=6, config=config, known=5)
    told.latency()                   per stage the median and the 95th percentile, in seconds
    told.running()                   accuracy after every scored trial, with interval and chance
    told.steps[0].picture            what was decoded from the first trial

| stage | does |
|---|---|
| scale | z-scores one trial by what is known so far, never by what comes later |
| backbone | ridge and backbone, for one trial: there is no repeat to average over yet |
| retrieval | ranks the candidates |
| prior, unCLIP, caption | picture and sentence, of the first `pictures` scored trials |

A rehearsal of the decoder, not of an experiment. Betas of GLMsingle, and NSD's, come from a model
fitted to the whole session (noise regressors, ridge fractions), so they are not known while it
lasts: an online system would need other, noisier betas. Not in the times either: reconstruction of
the scanner's images, motion correction, transfer, and the about six seconds by which blood flow
lags behind the picture. Low-level picture and refinement are left out. Read with notebook 14.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from mindeye2_lite import captions, encoders, nsd, pipeline, retrieval, unclip
from mindeye2_lite.config import Config
from mindeye2_lite.layout import GLOBAL_TRIAL, SHARED

PACE = 4.0  # seconds from one picture to the next in NSD: 3 s of picture, 1 s of gap
STAGES = ("scale", "backbone", "retrieval", "prior", "unCLIP", "caption")
ANCHOR = 20  # trials that the known statistics weigh as much as, in a running update


@dataclass(frozen=True)
class Step:
    """What one trial gave. `rank` (1: the nearest) is None where its picture is no candidate."""

    trial: int  # within the session, from 1
    image_id: int
    rank: int | None
    nearest: int  # image_id of the nearest candidate
    seconds: dict[str, float]
    picture: Tensor | None = None  # (3, height, width) in [0, 1]
    caption: str | None = None


@dataclass(frozen=True)
class Replay:
    """A session's steps, in the order of time, among how many candidates."""

    steps: list[Step] = field(repr=False)
    candidates: int
    statistics: str

    @property
    def scored(self) -> list[Step]:
        """The trials whose picture is among the candidates."""
        return [step for step in self.steps if step.rank is not None]

    def latency(self) -> pd.DataFrame:
        """Per stage: seconds, median and 95th percentile, and on how many trials it was timed.

        `all stages` counts only trials that went through all.
        """
        times = {
            name: [s.seconds[name] for s in self.steps if name in s.seconds] for name in STAGES
        }
        whole = [sum(s.seconds.values()) for s in self.steps if s.picture is not None]
        times = {name: found for name, found in (times | {"all stages": whole}).items() if found}
        return pd.DataFrame(
            {
                "median (s)": {name: np.median(found) for name, found in times.items()},
                "95% (s)": {name: np.percentile(found, 95) for name, found in times.items()},
                "trials": {name: len(found) for name, found in times.items()},
            }
        ).rename_axis("stage")

    def running(self, within: int = 1) -> pd.DataFrame:
        """After every scored trial: the share whose picture was among the `within` nearest.

        With its 95% interval (Wilson) and chance, `within` / candidates. Nothing is averaged over
        repeats, so it lies below what the same model scores on three.
        """
        hits = np.array([step.rank <= within for step in self.scored])
        rows = []
        for n, right in enumerate(np.cumsum(hits), start=1):
            interval = stats.binomtest(int(right), n).proportion_ci(method="wilson")
            rows.append((self.scored[n - 1].trial, n, right / n, interval.low, interval.high))
        table = pd.DataFrame(rows, columns=["trial", "n", "share", "low", "high"])
        return table.assign(chance=within / self.candidates).set_index("trial")

    def __str__(self) -> str:
        table = self.latency()
        whole = "all stages" if "all stages" in table.index else table.index[-1]
        median, late = table.loc[whole, ["median (s)", "95% (s)"]]
        verb = "keeps" if late < PACE else "does not keep"
        return (
            f"{len(self.steps)} trials, {len(self.scored)} of them scored among "
            f"{self.candidates} candidates; {whole}: {median:.2f} s (95%: {late:.2f} s), which "
            f"{verb} NSD's pace of a trial every {PACE:.0f} s, scanner and GLM not counted"
        )


class Scale:
    """z-scores by the mean and deviation known so far, per voxel.

    `update` takes one more trial into account, beside the statistics of the start, which weigh as
    much as `anchor` trials.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray, anchor: int = ANCHOR):
        self.count = float(anchor)
        self.mean = mean.astype(np.float64)
        self.squares = std.astype(np.float64) ** 2 * anchor

    def update(self, betas: np.ndarray) -> None:
        self.count += 1
        apart = betas - self.mean
        self.mean = self.mean + apart / self.count
        self.squares = self.squares + apart * (betas - self.mean)

    def __call__(self, betas: np.ndarray) -> np.ndarray:
        std = np.sqrt(self.squares / self.count)
        return ((betas - self.mean) / np.where(std > 0, std, 1)).astype(np.float32)


def known_statistics(person: nsd.Subject, sessions: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (V,) of the first sessions' training trials together, percent signal."""
    mean, std = (array[:sessions].astype(np.float64) for array in person.session_statistics)
    counts = person.train(sessions=sessions).session.bincount(minlength=sessions + 1)[1:].numpy()
    share = (counts / counts.sum())[:, None]
    together = (share * mean).sum(0)
    return together, np.sqrt((share * (std**2 + (mean - together) ** 2)).sum(0))


def percent(person: nsd.Subject, session: int) -> tuple[np.ndarray, Tensor, Tensor]:
    """A session as it came: betas (trials, V) in percent, image ids, and which trials are test's.

    Undoes the layout's z-scores, which a scanner could not have known.
    """
    parts = []
    for trials in (person.train(), person.test(normalize="all")):
        here = trials.session == session
        parts.append((trials.voxels[here], trials.image_id[here], trials.behavior[here]))
    voxels, image_id, behavior = (torch.cat(column) for column in zip(*parts, strict=True))
    order = behavior[:, GLOBAL_TRIAL].argsort()
    mean, std = (array[session - 1] for array in person.session_statistics)
    betas = voxels[order].numpy().astype(np.float64) * std + mean
    return betas, image_id[order], behavior[order, SHARED] == 1


def replay(
    model: nn.Module,
    person: nsd.Subject,
    session: int,
    config: Config,
    *,
    known: int | None = None,
    statistics: str = "training",
    pictures: int = 4,
    steps: int = 38,
    seed: int = 0,
    device: str | None = None,
) -> Replay:
    """Decode a session trial by trial; `model`, a MindEye2, must not have been trained on it.

    `known`: the sessions, from the first, whose statistics scale the trials (None: all before this
    one). `statistics`: "training", theirs as they are, or "running", updated with every trial of
    the session as it comes. Candidates are all test pictures. The first `pictures` scored trials
    are decoded to a picture in `steps` steps, and to a caption. Each network runs once before the
    clock starts. The model is moved to `device` and back. ValueError in one line for a session
    that is not there, or where no session comes before it.
    """
    known = session - 1 if known is None else known
    _check(person, session, known, statistics, pictures)
    betas, image_ids, tested = percent(person, session)
    scale = Scale(*known_statistics(person, known))
    device, home = device or pipeline.best_device(), model.backbone.backbone_linear.weight.device
    chain = Chain(model.to(device).eval(), person, config, steps, seed, device)
    chain.warm(len(scale.mean), pictures > 0)
    made, left = [], pictures
    for trial, (row, image_id) in enumerate(zip(betas, image_ids.tolist(), strict=True), start=1):
        scored = bool(tested[trial - 1])
        if statistics == "running":
            scale.update(row)
        made.append(chain.step(trial, row, image_id, scale, scored, decode=scored and left > 0))
        left -= made[-1].picture is not None
    model.to(home)
    return Replay(made, len(chain.ids), statistics)


def _check(person: nsd.Subject, session: int, known: int, statistics: str, pictures: int) -> None:
    if not 1 <= session <= person.sessions:
        raise ValueError(
            f"subject {person.subject} has sessions 1 to {person.sessions}; asked for {session}"
        )
    if not 1 <= known < session:
        raise ValueError(
            f"known is {known}: to replay session {session}, statistics must come from sessions "
            "before it, at least one"
        )
    if statistics not in ("training", "running"):
        raise ValueError(f"statistics {statistics!r} is unknown: choose training or running")
    if pictures < 0:
        raise ValueError(f"pictures is {pictures}: it must not be negative")


class Chain:
    """Every network of the way, loaded once, and a clock for each."""

    def __init__(
        self, model: nn.Module, person: nsd.Subject, config: Config, steps: int, seed: int,
        device: str,
    ):  # fmt: skip
        self.model, self.subject, self.config = model, person.subject, config
        self.steps, self.device = steps, device
        self.generator = torch.Generator().manual_seed(seed)
        self.ids = person.test().image_ids
        encoder = encoders.image_encoder(config.encoder, device)
        seen = person.images[self.ids]
        self.gallery = pipeline.encode_seen(encoder, seen, device, through=config.score_size)

    def warm(self, voxels: int, decode: bool) -> None:
        """Load everything and run it once: the first call of a network is slower than the rest."""
        state = self.generator.get_state()
        nothing = Scale(np.zeros(voxels), np.ones(voxels))
        self.step(0, np.zeros(voxels), int(self.ids[0]), nothing, True, decode)
        self.generator.set_state(state)

    @torch.no_grad()
    def step(
        self, trial: int, betas: np.ndarray, image_id: int, scale: Scale, scored: bool, decode: bool
    ) -> Step:
        """One trial, from betas in percent to a rank and, if asked for, to picture and caption."""
        seconds: dict[str, float] = {}
        with _timed(seconds, "scale"):
            voxels = torch.from_numpy(scale(betas))[None]
        with _timed(seconds, "backbone"):
            out = self.model(voxels.to(self.device), self.subject)
            tokens, asking = out.tokens.cpu(), out.retrieval.cpu()
        with _timed(seconds, "retrieval"):
            near = retrieval.similarities(asking, self.gallery)[0]
            nearest = int(self.ids[near.argmax()])
            rank = self._rank(near, image_id) if scored else None
        if not decode:
            return Step(trial, image_id, rank, nearest, seconds)
        return Step(trial, image_id, rank, nearest, seconds, *self._decode(tokens, seconds))

    def _rank(self, near: Tensor, image_id: int) -> int:
        own = near[self.ids == image_id]
        return 1 + int((near > own).sum())

    def _decode(self, tokens: Tensor, seconds: dict[str, float]) -> tuple[Tensor, str]:
        decoder = unclip.load(self.config.decoder, self.device)
        captioner = captions.load(self.config.captioner, self.device)
        how = {"guidance_scale": self.config.guidance_scale, "num_inference_steps": self.steps}
        with _timed(seconds, "prior"):
            image_tokens = pipeline.sample_prior(self.model, tokens, self.generator)
        with _timed(seconds, "unCLIP"):
            made = pipeline.decode(decoder, image_tokens, self.generator, progress=False, **how)
        with _timed(seconds, "caption"):
            (sentence,) = captions.caption(captioner, image_tokens.to(self.device))
        return made[0], sentence


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """All results come back to the CPU inside the block, so that a GPU has finished its work."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
