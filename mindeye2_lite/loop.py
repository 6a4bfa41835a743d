"""The one training loop: what a step sees, what it minimizes, and how a killed run goes on.

Everything random in step k follows from (seed, k): which trials, how they are mixed, dropout,
times and noise of the prior. So a run that goes on from step k needs no generator's state, and
repeats to the last bit (on a CPU) what it would have done.

    loss = 30 · prior + 1 · contrastive + 0.5 · (low_level + 0.1 · aux)      (released code)
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite import paths
from mindeye2_lite.config import Config
from mindeye2_lite.losses import (
    Mix,
    bimixco_loss,
    draw_mix,
    low_level_contrastive_loss,
    soft_clip_loss,
    soft_clip_temperatures,
)
from mindeye2_lite.model import MindEye2

SCALES = {"prior": 30.0, "contrastive": 1.0, "low_level": 0.5, "aux": 0.05}
MIX_UNTIL = 0.33  # share of the epochs with BiMixCo; SoftCLIP after that
WEIGHT_DECAY = 1e-2
PEAK_EPOCH = 2  # the learning rate rises until here
RECORDS = 2000  # most rows of a history
TARGETS = ("tokens", "latents", "aux", "aux_augmented")


@dataclass(frozen=True)
class Plan:
    """How many steps, and what each is for."""

    steps_per_epoch: int
    epochs: int
    max_lr: float

    @classmethod
    def of(cls, config: Config, trials: int, batch: int) -> "Plan":
        """`trials` seen per epoch in batches of `batch`, at most `config.max_steps` steps in all.

        ValueError where that leaves too few steps for a schedule.
        """
        most = config.max_steps or 10**9
        steps = min(max(1, trials // batch), most)
        plan = cls(steps, min(config.epochs, most // steps), config.max_lr)
        if plan.steps < 4:
            raise ValueError(
                f"{config.epochs} epochs and max_steps={config.max_steps} leave {plan.steps} "
                "training steps: 4 is the least that the schedule can work with"
            )
        return plan

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def temperature(self, step: int) -> float | None:
        """SoftCLIP's temperature, or None while voxels are still mixed (BiMixCo)."""
        mixed, epoch = int(MIX_UNTIL * self.epochs), step // self.steps_per_epoch
        if epoch < mixed:
            return None
        return float(soft_clip_temperatures(self.epochs - mixed)[epoch - mixed])


class Batch(NamedTuple):
    """Voxels per subject, and the targets of all of them end to end in the same order."""

    voxels: dict[int, Tensor]
    targets: dict[str, Tensor]
    mix: Mix | None


class Feed:
    """Batches by number of the step. No workers, no state: any step can be drawn again.

    Each subject gives the same number of trials; each of them is a walk through permutation after
    permutation of that subject's trials. Official: batches with replacement, cut from shards.
    """

    def __init__(
        self, trials: Mapping[int, Any], targets: Any, batch: int, seed: int, device: torch.device
    ):
        fewest = min(len(t.image_id) for t in trials.values())
        self.each, self.seed, self.device = min(max(1, batch // len(trials)), fewest), seed, device
        self.rows = {s: targets.index(t.image_id) for s, t in trials.items()}
        self.voxels = {s: _near(t.voxels.float(), device) for s, t in trials.items()}
        kept = {name: getattr(targets, name, None) for name in TARGETS}
        self.targets = {k: _near(v.float(), device) for k, v in kept.items() if v is not None}

    @property
    def batch(self) -> int:
        """Trials of all subjects together."""
        return self.each * len(self.voxels)

    def __call__(self, step: int, *, mixed: bool, rank: int = 0, world: int = 1) -> Batch:
        chosen = {s: self.chosen(s, step * world + rank) for s in self.voxels}
        voxels = {s: self._take(self.voxels[s], rows) for s, rows in chosen.items()}
        images = torch.cat([self.rows[s][rows] for s, rows in chosen.items()])
        targets = {name: self._take(values, images) for name, values in self.targets.items()}
        if not mixed:
            return Batch(voxels, targets, None)
        generator = torch.Generator().manual_seed(derive(self.seed, "mix", step, rank))
        mixes = [draw_mix(len(rows), generator=generator) for rows in chosen.values()]
        mixes = [Mix(*(x.to(self.device) for x in mix)) for mix in mixes]
        pairs = zip(voxels.items(), mixes, strict=True)
        return Batch({s: mix.apply(x) for (s, x), mix in pairs}, targets, Mix.join(mixes))

    def chosen(self, subject: int, number: int) -> Tensor:
        """Rows of that subject's trials in its batch of that number."""
        n, start = len(self.voxels[subject]), number * self.each
        passes = range(start // n, (start + self.each - 1) // n + 1)
        walk = torch.cat([self._permutation(subject, n, once) for once in passes])
        return walk[start % n : start % n + self.each]

    def _permutation(self, subject: int, n: int, once: int) -> Tensor:
        seed = derive(self.seed, "order", subject, once)
        return torch.randperm(n, generator=torch.Generator().manual_seed(seed))

    def _take(self, values: Tensor, rows: Tensor) -> Tensor:
        return values[rows.to(values.device)].to(self.device, non_blocking=True)


class Objective(nn.Module):
    """All loss terms of a batch in one forward pass, as distributed training needs it."""

    def __init__(self, model: MindEye2):
        super().__init__()
        self.model = model

    def forward(
        self, batch: Batch, temperature: float | None, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The terms by name, not yet scaled, in float32."""
        latents = [self.model.ridge(voxels, s) for s, voxels in batch.voxels.items()]
        out = self.model.backbone(torch.cat(latents))
        brain, image = (_unit(x.flatten(1)) for x in (out.retrieval, batch.targets["tokens"]))
        if batch.mix is None:
            contrastive = soft_clip_loss(brain, image, temperature)
        else:
            contrastive = bimixco_loss(brain, image, batch.mix)
        prior = self.model.prior.loss(out.tokens, batch.targets["tokens"], generator=generator)
        return {"prior": prior, "contrastive": contrastive} | _low_level(out, batch.targets)


def _low_level(out: Any, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if out.low_level is None:
        return {}
    features = (out.low_level_features, targets["aux"], targets["aux_augmented"])
    aux = low_level_contrastive_loss(*(_unit(x).flatten(0, 1) for x in features))
    return {"low_level": F.l1_loss(out.low_level.float(), targets["latents"]), "aux": aux}


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The loss: every term times its scale."""
    return sum(SCALES[name] * term for name, term in terms.items())


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weight decay as in the released code: all of the ridge, elsewhere what is not named "bias".

    So gains of norms are decayed, and the prior's `rel_pos_bias` is not. Frozen parts are left
    out.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decayed = [p for n, p in named if n.startswith("ridge") or "bias" not in n]
    others = [p for n, p in named if not (n.startswith("ridge") or "bias" not in n)]
    return [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]


def one_cycle(optimizer: torch.optim.Optimizer, plan: Plan) -> torch.optim.lr_scheduler.OneCycleLR:
    """From max/25 up to max at the end of epoch two, then down a cosine to max/25,000."""
    rise = min(PEAK_EPOCH / plan.epochs, 0.5)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.max_lr, total_steps=plan.steps, pct_start=rise, final_div_factor=1000
    )


@dataclass
class Trainer:
    """One run: its parts, its history, and the checkpoint in `folder` from which it can go on.

    `how` names what the run depends on; a checkpoint made another way is refused. `check` looks
    at the model now and then and returns numbers for the progress bar and the history.
    """

    model: MindEye2
    feed: Feed
    plan: Plan
    accelerator: Accelerator
    seed: int
    how: str = ""
    folder: Path | None = None
    check: Callable[[MindEye2], dict[str, float]] | None = None
    checkpoint_every: int = 500
    callback: Callable[[int, dict[str, float]], None] | None = None
    history: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        optimizer = torch.optim.AdamW(parameter_groups(self.model), lr=self.plan.max_lr, fused=True)
        self.objective, self.optimizer = self.accelerator.prepare(Objective(self.model), optimizer)
        # Not prepared: accelerate would step it once per process.
        self.scheduler = one_cycle(optimizer, self.plan)
        self.history = self.history or {"seconds": 0.0, "steps": [], "checks": []}

    def run(self, progress: bool = True, name: str = "training") -> dict[str, Any]:
        """Train to the end, from the checkpoint if there is one; return the history."""
        first, self._since = self._resume(), time.perf_counter()
        self.model.train()
        bar = tqdm(
            range(first, self.plan.steps),
            name,
            initial=first,
            total=self.plan.steps,
            mininterval=1,
            disable=None if progress and self.accelerator.is_main_process else True,
        )
        with _own_randomness(self.accelerator.device):
            for step in bar:
                terms = self.step(step)
                self._record(step, terms, bar)
                if (step + 1) % self.checkpoint_every == 0:
                    self._checkpoint(step + 1)
        self._clock()
        return self.history

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step; the loss and its terms as numbers."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed(derive(self.seed, "dropout", step, rank))
        generator = torch.Generator(self.accelerator.device)
        generator.manual_seed(derive(self.seed, "noise", step, rank))
        temperature = self.plan.temperature(step)
        batch = self.feed(step, mixed=temperature is None, rank=rank, world=world)
        terms = self.objective(batch, temperature, generator)
        loss = total(terms)
        numbers = _finite(step, {"loss": loss} | terms)
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        numbers["lr"] = self.scheduler.get_last_lr()[0]
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        return numbers

    def _record(self, step: int, numbers: dict[str, float], bar: tqdm) -> None:
        if step % -(-self.plan.steps // RECORDS) == 0:
            self.history["steps"].append({"step": step} | numbers)
        if self.check and step + 1 in {self.plan.steps * tenth // 10 for tenth in range(1, 11)}:
            self.history["checks"].append({"step": step + 1} | self.check(self.model))
        if step % 10 == 0 or step + 1 == self.plan.steps:
            latest = self.history["checks"][-1] if self.history["checks"] else {}
            shown = {"loss": numbers["loss"]} | {k: v for k, v in latest.items() if k != "step"}
            bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items()}, refresh=False)
        if self.callback:
            self.callback(step, numbers)

    def _clock(self) -> None:
        now = time.perf_counter()
        self.history["seconds"] += now - self._since
        self._since = now

    @property
    def _last(self) -> Path | None:
        return self.folder and Path(self.folder) / "last.pt"

    def _checkpoint(self, step: int) -> None:
        """Everything that the next step needs, in one file that opens without running code."""
        if self._last is None or not self.accelerator.is_main_process:
            return
        self._clock()
        state = {
            "how": self.how,
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": json.dumps(self.history),
        }
        with paths.write_beside(self._last) as beside:
            torch.save(state, beside)

    def _resume(self) -> int:
        if self._last is None or not self._last.exists():
            return 0
        state = torch.load(self._last, map_location="cpu", weights_only=True)
        if state["how"] != self.how:
            raise ValueError(
                f"{self._last} belongs to a run with other settings: give another folder, or "
                "delete it to start again"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history = json.loads(state["history"])
        return state["step"]


def derive(*parts: Any) -> int:
    """A seed that follows from these parts and from nothing else."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def _finite(step: int, terms: Mapping[str, Tensor]) -> dict[str, float]:
    """The terms as numbers, rounded as a history needs them; one that is not finite stops us."""
    values = torch.stack([term.detach().float() for term in terms.values()]).tolist()
    numbers = dict(zip(terms, values, strict=True))
    bad = [f"{name} is {value}" for name, value in numbers.items() if not abs(value) < math.inf]
    if bad:
        what = ", ".join(bad[1:] or bad)  # the terms come after their sum
        raise FloatingPointError(
            f"training stopped at step {step}: {what}. Lower max_lr, or look for values that are "
            "not finite in voxels and targets; the last checkpoint is from before this step"
        )
    return {name: float(f"{value:.6g}") for name, value in numbers.items()}


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


def _near(values: Tensor, device: torch.device) -> Tensor:
    """On the device if it fits into half of what is free there, else where it is."""
    if device.type != "cuda":
        return values.to(device)
    free, _ = torch.cuda.mem_get_info(device)
    return values.to(device) if values.nbytes < free / 2 else values


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Dropout draws from the global generators: borrow them, and give them back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
