"""The one training loop: what a step sees, what it minimizes, and how a killed run goes on.

Everything random in step k follows from (seed, k): which trials, how they are mixed, dropout,
times and noise of the prior. So a run that goes on from step k needs no generator's state, and
repeats to the last bit (on a CPU) what it would have done. Processes and micro-batches are parts of
one batch (see `parts`): the losses are those of one process that does it all at once.

    loss = 30 · prior + 1 · contrastive + 0.5 · (low_level + 0.1 · aux)      (released code)
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite import parts, paths
from mindeye2_lite.config import Config
from mindeye2_lite.feed import Batch, Feed, derive
from mindeye2_lite.hardware import Hardware, Pieces, adamw, recomputed
from mindeye2_lite.losses import (
    Mix,
    bimixco_loss,
    low_level_contrastive_loss,
    soft_clip_loss,
    soft_clip_temperatures,
)
from mindeye2_lite.model import MindEye2
from mindeye2_lite.parts import Part

SCALES = {"prior": 30.0, "contrastive": 1.0, "low_level": 0.5, "aux": 0.05}
MIX_UNTIL = 0.33  # share of the epochs with BiMixCo; SoftCLIP after that
WEIGHT_DECAY = 1e-2
PEAK_EPOCH = 2  # the learning rate rises until here
RECORDS = 2000  # most rows of a history
CONTRASTIVE = ("contrastive", "aux")  # terms that compare trials with each other
TERMS = tuple(SCALES)  # all of them
LOW_LEVEL = {"low_level", "aux"}  # those of the low-level head


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


class Objective(nn.Module):
    """The loss terms of a batch in one forward pass, as distributed training needs it.

    `terms` says which; what no term needs is not computed, as far as it is a head of its own.
    """

    def __init__(self, model: MindEye2, terms: tuple[str, ...] = TERMS):
        super().__init__()
        self.model, self.terms = model, terms

    def forward(
        self,
        batch: Batch,
        temperature: float | None,
        generator: torch.Generator | None,
        others: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The terms by name, not yet scaled, in float32.

        Without a generator: what the contrastive terms compare, in its rows of the whole batch.
        `others` is the sum of these over all parts; a part that is a process's whole share need
        not be given it.
        """
        with parts.shared_dropout(batch.part), _heads(self.model.backbone, self.terms):
            latents = [self.model.ridge(voxels, s) for s, voxels in batch.voxels.items()]
            out = self.model.backbone(torch.cat(latents))
        seen = _compared(out)
        if generator is None:
            return batch.part.spread(seen)
        targets = batch.targets
        if batch.part is not None:
            targets, part = batch.part.targets, batch.part
            others = others or parts.add_up([part.spread(seen)], part.world)
            seen = part.among(others, seen)
        # The order of these lines is that of the gradients' sums: kept, to the last bit.
        found, wanted = {}, set(self.terms)
        if out.low_level is None:
            wanted -= LOW_LEVEL
        if "contrastive" in wanted:
            found["contrastive"] = _contrastive(seen["brain"], targets, batch.mix, temperature)
        if "prior" in wanted:
            found["prior"] = self.model.prior.loss(
                out.tokens, batch.targets["tokens"], generator=generator, **_rows(batch.part)
            )
        if "aux" in wanted:
            found["aux"] = _aux(seen["features"], targets)
        if "low_level" in wanted:
            found["low_level"] = F.l1_loss(out.low_level.float(), batch.targets["latents"])
        return {name: found[name] for name in TERMS if name in found}


@contextmanager
def _heads(backbone: nn.Module, terms: tuple[str, ...]) -> Iterator[None]:
    """Inside, the low-level head is not computed where no term asks for it."""
    if LOW_LEVEL & set(terms):
        yield
        return
    backbone.low_level = lambda latent: (None, None)
    try:
        yield
    finally:
        del backbone.low_level


def _contrastive(
    brain: Tensor, targets: Mapping[str, Tensor], mix: Mix | None, temperature: float | None
) -> Tensor:
    image = _unit(targets["tokens"].flatten(1))
    if mix is None:
        return soft_clip_loss(brain, image, temperature)
    return bimixco_loss(brain, image, mix)


def _aux(features: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    teacher = (_unit(targets[name]).flatten(0, 1) for name in ("aux", "aux_augmented"))
    return low_level_contrastive_loss(features.flatten(0, 1), *teacher)


def chosen_terms(names: Iterable[str]) -> tuple[str, ...]:
    """These terms of the loss, in the order of SCALES. ValueError for none or an unknown one."""
    names = set(names)
    if not names or not names <= set(TERMS):
        raise ValueError(
            f"loss terms {', '.join(sorted(names)) or '(none)'}: choose from {', '.join(TERMS)}"
        )
    return tuple(name for name in TERMS if name in names)


def _compared(out: Any) -> dict[str, Tensor]:
    """What the contrastive terms compare, of unit length."""
    brain = {"brain": _unit(out.retrieval.flatten(1))}
    if out.low_level is None:
        return brain
    return brain | {"features": _unit(out.low_level_features)}


def _rows(part: Part | None) -> dict[str, Any]:
    return {} if part is None else {"rows": part.rows, "whole": part.whole}


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The loss: every term times its scale."""
    return sum(SCALES[name] * term for name, term in terms.items())


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weight decay as in the released code: all of the ridge, elsewhere what is not named "bias".

    So gains of norms are decayed, and the prior's `rel_pos_bias` is not. Frozen parts are left
    out. Of an input layer that is more than linear maps, the rest is treated as the backbone.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decayed = [p for n, p in named if n.startswith("ridge.linears") or "bias" not in n]
    others = [p for n, p in named if not (n.startswith("ridge.linears") or "bias" not in n)]
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
    hardware: Hardware = Hardware()
    terms: tuple[str, ...] = TERMS
    history: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        optimizer = adamw(parameter_groups(self.model), self.plan.max_lr, self.hardware)
        objective = Objective(self.model, self.terms)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        # Not prepared: accelerate would step it once per process.
        self.scheduler = one_cycle(optimizer, self.plan)
        in_pieces = Pieces.of(self.model)
        self.pieces = Pieces(self.objective, self.optimizer) if in_pieces else None
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
        device = self.accelerator.device
        with _own_randomness(device), recomputed(self.model, self.hardware):
            for step in bar:
                terms = self.step(step)
                self._record(step, terms, bar)
                if (step + 1) % self.checkpoint_every == 0:
                    self._checkpoint(step + 1)
        self._clock()
        return self.history

    def trained(self) -> MindEye2:
        """The model in one piece on the CPU, as a kept one is (FSDP: on the main process)."""
        return self.pieces.whole(self.model) if self.pieces else self.model.cpu()

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step; the loss and its terms as numbers."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        cut, temperature = self.hardware.accumulate, self.plan.temperature(step)
        mixed = temperature is None
        batches = self.feed.parts(step, mixed=mixed, rank=rank, world=world, cut=cut)
        others = self._others(batches, step) if cut > 1 else None
        found = []
        for number, batch in enumerate(batches, 1):
            with self._sync(number == cut):
                terms = self._terms(batch, temperature, self._draws(step), others)
                # The gradient is the mean over processes. A part's contrastive terms are the
                # whole batch's, with the gradient of its own rows: they count in full.
                own = parts.weigh(terms, batch.part, CONTRASTIVE, parts=1)
                self.accelerator.backward(world * total(own))
            terms = {name: term.detach() for name, term in terms.items()}
            found.append(parts.weigh(terms, batch.part, CONTRASTIVE, parts=cut * world))
        terms = parts.add_up(found, world)
        numbers = _finite(step, {"loss": total(terms)} | terms)
        self.optimizer.step()
        self.optimizer.zero_grad()
        numbers["lr"] = self.scheduler.get_last_lr()[0]
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        return numbers

    def _terms(self, *args: Any) -> dict[str, Tensor]:
        """What the objective returns. In pieces, accelerate puts no autocast around it: we do."""
        with self.accelerator.autocast() if self.pieces else nullcontext():
            return self.objective(*args)

    def _draws(self, step: int) -> torch.Generator:
        """Where the noise of this step comes from; dropout's generator is set back, too."""
        torch.manual_seed(derive(self.seed, "dropout", step, 0))
        generator = torch.Generator(self.accelerator.device)
        return generator.manual_seed(derive(self.seed, "noise", step, 0))

    def _sync(self, last: bool) -> AbstractContextManager:
        """Processes exchange gradients once, after the last micro-batch."""
        return nullcontext() if last else self.accelerator.no_sync(self.objective)

    @torch.no_grad()
    def _others(self, batches: list[Batch], step: int) -> dict[str, Tensor]:
        """What the contrastive terms compare, of all parts: one look ahead without the prior."""
        seen = []
        for batch in batches:
            self._draws(step)
            seen.append(self._terms(batch, None, None))
        return parts.add_up(seen, self.accelerator.num_processes)

    def _record(self, step: int, numbers: dict[str, float], bar: tqdm) -> None:
        if step % -(-self.plan.steps // RECORDS) == 0:
            self.history["steps"].append({"step": step} | numbers)
        # In pieces, the model cannot be called from outside of training: no checks on the way.
        checks = self.check is not None and self.pieces is None
        if checks and step + 1 in {self.plan.steps * tenth // 10 for tenth in range(1, 11)}:
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
        if self._last is None or not (self.pieces or self.accelerator.is_main_process):
            return
        self._clock()
        model, optimizer = self._state()
        if not self.accelerator.is_main_process:
            return
        state = {
            "how": self.how,
            "step": step,
            "model": model,
            "optimizer": optimizer,
            "scheduler": self.scheduler.state_dict(),
            "history": json.dumps(self.history),
        }
        if self.accelerator.scaler is not None:  # fp16: the scale that gradients have by now
            state["scaler"] = self.accelerator.scaler.state_dict()
        with paths.write_beside(self._last) as beside:
            torch.save(state, beside)

    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.pieces:
            return self.pieces.state()
        return self.model.state_dict(), self.optimizer.state_dict()

    def _resume(self) -> int:
        if self._last is None or not self._last.exists():
            return 0
        # Every process reads the same large file: mapped, it is in memory once. On a CPU, what is
        # loaded may be what trains from then on.
        mapped = self.pieces is not None or self.accelerator.device.type != "cpu"
        state = torch.load(self._last, map_location="cpu", weights_only=True, mmap=mapped)
        if state["how"] != self.how:
            raise ValueError(
                f"{self._last} belongs to a run with other settings: give another folder, or "
                "delete it to start again"
            )
        if self.pieces:
            self.pieces.load(state["model"], state["optimizer"])
        else:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.history = json.loads(state["history"])
        return state["step"]


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


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Dropout draws from the global generators: borrow them, and give them back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
