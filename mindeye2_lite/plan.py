"""What a training step needs, before one is paid for: parameters, memory, disk, and what to switch.

Memory is counted on models that have shapes but no numbers (see `step_memory`); the rest follows
from shapes, too. So nothing here is typed in, and nothing is measured either: not yet on a GPU.

    print(report(plan(Config.paper(), gpu_gb=16, sessions=1)))
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import nn

from mindeye2_lite import assets
from mindeye2_lite.config import Config
from mindeye2_lite.hardware import UNITS, Hardware
from mindeye2_lite.loop import Plan, parameter_groups
from mindeye2_lite.model import MindEye2
from mindeye2_lite.step_memory import Living, fake, peak

__all__ = [
    "CARDS", "NOT_MEASURED", "OVERHEAD", "Living", "Need", "Planned", "command", "fake", "need",
    "parameters", "parameters_of", "plan", "report", "verdict",
]  # fmt: skip
NOT_MEASURED = "computed from shapes, not yet measured on a GPU"
CARDS = (16, 24, 40, 80)  # GB
OVERHEAD = 1.0  # GB for CUDA's own context and the gaps between tensors: a choice
BLOCK, SMALL = 256, 4096  # bitsandbytes: one scale per block; smaller tensors stay in float32
GPUS = 8  # in one node
MATRICES = 7  # of (places, places) in float32 that the low-level contrastive term has at its peak
TARGETS = "image tokens and latents, float16"
NEW_IMAGES = 9000  # at most so many that a subject alone saw


@dataclass(frozen=True)
class Need:
    """Memory of one training step on one GPU, in GB (1e9 bytes).

    `activations` is everything else that lives at the worst moment: what the backward pass needs,
    half-precision copies of weights, and what passes. With `offload`, weights, gradients and
    optimizer states lie in the host's memory (`host`) and the GPU holds the largest part at a time
    with its gradient (`layer`); at the `start`, that part and its largest weight twice (FSDP).
    Micro-batches may cost more than they save: from the second on, a new gradient of the widest
    layer lies beside the sum of those before.
    """

    name: str
    config: Config
    hardware: Hardware
    weights: float
    gradients: float
    optimizer: float
    activations: float
    layer: float
    start: float
    offload: bool = False

    @property
    def gpu(self) -> float:
        """All that the GPU must hold."""
        if self.offload:
            return OVERHEAD + max(self.start, self.layer + self.activations)
        return OVERHEAD + self.activations + self._kept

    @property
    def host(self) -> float:
        """What offload keeps in the host's memory, pinned: the system cannot swap it out."""
        return self._kept if self.offload else 0.0

    @property
    def _kept(self) -> float:
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Planned:
    """What `plan` found: parameters by part, needs from the plainest to the most saving, disk."""

    config: Config
    who: str  # the options of `mindeye2-lite train` that say on whom
    subjects: Mapping[int, int]  # their voxels
    batch: int
    steps: int
    gpu_gb: int | float
    parameters: dict[str, int]
    trained: int
    needs: tuple[Need, ...]
    disk: dict[str, float]  # GB
    host: float  # GB of voxels in the memory of each process; image tokens stay on disk

    @property
    def fits(self) -> Need | None:
        """The first that fits: the one that saves least."""
        return self.first()

    def first(self, precision: str | None = None) -> Need | None:
        """The first that fits, in that precision or in any."""
        of = [n for n in self.needs if precision in (None, n.hardware.precision)]
        return next((need for need in of if need.gpu <= self.gpu_gb), None)


def plan(
    config: Config,
    *,
    gpu_gb: int | float,
    sessions: int | None = 1,
    subject: int = 1,
    pretrain: bool = False,
) -> Planned:
    """What training this config takes on a GPU of so many GB: seconds, no GPU, little memory.

    `pretrain`: on the seven others instead of `subject`. `sessions=None`: all. ValueError in one
    line for a subject, a number of sessions or a size that there is not.
    """
    subjects = _subjects(subject, pretrain)
    own = assets.SESSIONS[subject]
    if sessions is not None and not 1 <= sessions <= own:
        raise ValueError(f"subject {subject} has 1 to {own} sessions, got {sessions}")
    if gpu_gb <= 0:
        raise ValueError(f"a GPU of {gpu_gb} GB: give its memory in GB, for instance 16")
    visits = {s: assets.SESSIONS[s] if pretrain else sessions or own for s in subjects}
    each = max(1, (config.pretrain_batch if pretrain else config.batch) // len(subjects))
    whole = each * len(subjects)
    model = _model(config, tuple(subjects.items()))
    trials = config.trials_per_session * max(visits.values())
    return Planned(
        config,
        _who(subject, sessions, pretrain),
        subjects,
        whole,
        Plan.of(config, trials, whole).steps,
        gpu_gb,
        parameters(model),
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        tuple(_needs(config, tuple(subjects.items()), each)),
        _disk(config, model, subjects, visits),
        _host(config, subjects, visits),
    )


@lru_cache
def _model(config: Config, subjects: tuple[tuple[int, int], ...]) -> MindEye2:
    with fake():
        return MindEye2.from_config(config, dict(subjects))


def parameters(model: nn.Module) -> dict[str, int]:
    """Numbers in each part and, first, in all."""
    named = model.named_children()
    parts = {name: parameters_of(part) for name, part in named}
    return {"all": sum(parts.values())} | parts


def parameters_of(module: nn.Module) -> int:
    """How many numbers it holds that training may change, or that are frozen."""
    return sum(p.numel() for p in module.parameters())


def _subjects(subject: int, pretrain: bool) -> dict[int, int]:
    if subject not in assets.VOXELS:
        raise ValueError(f"there is no subject {subject}: choose from 1 to 8")
    if not pretrain:
        return {subject: assets.VOXELS[subject]}
    return {s: voxels for s, voxels in assets.VOXELS.items() if s != subject}


def _who(subject: int, sessions: int | None, pretrain: bool) -> str:
    words = [f"--subject {subject}"]
    words += ["--pretrain"] if pretrain else []
    return " ".join(words + ([] if pretrain or sessions is None else [f"--sessions {sessions}"]))


# ---- memory ------------------------------------------------------------------------------------


def _needs(config: Config, subjects: tuple[tuple[int, int], ...], each: int) -> Iterator[Need]:
    """From float32 as it comes to everything that saves memory, then a smaller model."""
    half = Hardware("bf16")
    again = replace(half, checkpointing=True)
    cut = replace(again, accumulate=min(4, each))
    small, saving = replace(again, eight_bit=True), replace(cut, eight_bit=True)
    full = replace(again, precision="fp32")  # for GPUs without bf16
    parts = f"{cut.accumulate} micro-batches"
    rungs = [
        ("fp32", Hardware("fp32"), False),
        ("bf16", half, False),
        ("bf16, checkpointing", again, False),
        (f"bf16, checkpointing, {parts}", cut, False),
        ("bf16, checkpointing, 8-bit states", small, False),
        (f"bf16, checkpointing, 8-bit states, {parts}", saving, False),
        ("fp32, checkpointing", full, False),
        ("fp32, checkpointing, 8-bit states", replace(full, eight_bit=True), False),
        ("bf16, checkpointing, offload", again, True),
    ]
    for name, hardware, offload in rungs:
        yield need(config, subjects, each, hardware, name=name, offload=offload)
    if config.low_level:
        smaller = replace(config, low_level=False)
        name = "bf16, checkpointing, 8-bit states, no low-level head"
        yield need(smaller, subjects, each, small, name=name)


@lru_cache
def need(
    config: Config,
    subjects: tuple[tuple[int, int], ...],
    each: int,
    hardware: Hardware,
    *,
    name: str = "",
    offload: bool = False,
) -> Need:
    """The memory of a step with `each` trials of every (subject, voxels), in that way."""
    model = _model(config, subjects)
    trained = [p for group in parameter_groups(model) for p in group["params"]]
    weights = sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
    gradients = sum(p.nbytes for p in trained)
    most, kept = peak(config, subjects, each, replace(hardware, eight_bit=False))
    # In pieces, gradients leave as they come: what counts is what the forward pass keeps.
    activations = kept - weights if offload else most - weights - gradients
    units = [m for m in model.modules() if type(m).__name__ in UNITS]
    return Need(
        name,
        config,
        hardware,
        weights / 1e9,
        gradients / 1e9,
        sum(_state_bytes(p, hardware.eight_bit) for p in trained) / 1e9,
        activations / 1e9,
        max(map(_with_gradient, units)) / 1e9,
        max(map(_at_start, units)) / 1e9,
        offload,
    )


def _with_gradient(unit: nn.Module) -> int:
    """Bytes of a part in one piece, in float32 (see `hardware.precision_by_autocast`)."""
    return sum(p.nbytes * (1 + p.requires_grad) for p in unit.parameters())


def _at_start(unit: nn.Module) -> int:
    """FSDP brings a part to the GPU whole, and copies its weights there one by one."""
    sizes = [p.nbytes for p in unit.parameters()]
    return sum(sizes) + max(sizes)


def _state_bytes(parameter: nn.Parameter, eight_bit: bool) -> int | float:
    """AdamW's two moments of every number."""
    if eight_bit and parameter.numel() >= SMALL:
        return 2 * (parameter.numel() + 4 * parameter.numel() / BLOCK)
    return 2 * parameter.nbytes


# ---- disk --------------------------------------------------------------------------------------


def _disk(config: Config, model: MindEye2, subjects: Iterable[int], visits: Mapping) -> dict:
    """GB of what is downloaded, of targets, of a model and of a checkpoint to go on from."""
    weights = sum(p.nbytes for p in model.parameters())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    wanted = assets.needed(config, list(subjects), stages=("data", "training"))
    targets = 2 * _target_numbers(config, visits) / 1e9
    return {
        "files to fetch for training": sum((asset.gigabytes for asset in wanted), 0.0),
        TARGETS: targets,
        "the same again while they are computed": targets,
        "checkpoint while training": (weights + 2 * trained) / 1e9,
        "the same again while it is written": (weights + 2 * trained) / 1e9,
        "model": weights / 1e9,
    }


def _host(config: Config, subjects: Mapping[int, int], visits: Mapping[int, int]) -> float:
    """Voxels in float32. Targets are mapped from disk (see `feed`) and count as the system's."""
    return 4 * sum(config.trials_per_session * visits[s] * n for s, n in subjects.items()) / 1e9


def _target_numbers(config: Config, visits: Mapping[int, int]) -> int:
    """Of all images of these sessions: at most one per trial."""
    images = sum(min(config.trials_per_session * n, NEW_IMAGES) for n in visits.values())
    head = 4 * config.latent_size**2 + 2 * (config.latent_size // 4) ** 2 * config.aux_dim
    return images * (config.tokens * config.dim + head * config.low_level)


# ---- words -------------------------------------------------------------------------------------


def report(planned: Planned) -> str:
    """All of it as text of a fixed width."""
    who = ", ".join(map(str, planned.subjects))
    head = (
        f"{planned.config.profile}: subject{'s' * (len(planned.subjects) > 1)} {who}, batch "
        f"{planned.batch}, {planned.steps:,} steps. {NOT_MEASURED[0].upper()}{NOT_MEASURED[1:]}."
    )
    lines = [head, "", "parameters"]
    lines += [f"  {name:20} {count:>15,}" for name, count in planned.parameters.items()]
    lines += [f"  {'trained':20} {planned.trained:>15,}", "", _memory(planned)]
    lines += ["", "GB on disk"]
    lines += [f"  {name:40} {size:>6.1f}" for name, size in planned.disk.items()]
    lines += ["", f"GB in each process's memory: {planned.host:.1f}, voxels; at first the model"]
    lines += ["Image tokens are read from disk, batch by batch: free memory makes it faster."]
    return "\n".join([*lines, "", verdict(planned), _without_bf16(planned)])


def _without_bf16(planned: Planned) -> str:
    need = planned.first("fp32")
    return f"On a GPU without bf16 (T4, V100): {need.name if need else 'nothing of this'}."


def _memory(planned: Planned) -> str:
    wide = max(len(need.name) for need in planned.needs)
    columns = ("weights", "gradients", "optimizer", "activations")
    first = f"{'GB on the GPU':{wide}}  {'  '.join(columns)}  {'all':>5}  fits {planned.gpu_gb:g}"
    lines = [first]
    for need in planned.needs:
        here = [0.0 if need.offload and c != "activations" else getattr(need, c) for c in columns]
        if need.offload:
            here[0] = need.layer
        cells = "  ".join(f"{v:>{len(c)}.1f}" for c, v in zip(columns, here, strict=True))
        fits = "yes" if need.gpu <= planned.gpu_gb else "no"
        lines.append(f"{need.name:{wide}}  {cells}  {need.gpu:>5.1f}  {fits}")
    lines += [f"({OVERHEAD:g} GB more in each row for CUDA itself)"]
    host = max(need.host for need in planned.needs)
    lines += [f"Offload keeps {host:.1f} GB in the host's memory, pinned."]
    if planned.config.low_level:
        each = _compared(planned.config, planned.batch * GPUS)
        lines += [
            f"On {GPUS} GPUs, each compares low-level places of all their trials: {each:.1f}."
        ]
    return "\n".join(lines)


def _compared(config: Config, trials: int) -> float:
    """GB that the low-level contrastive term takes on every GPU for so many trials of all GPUs."""
    places = trials * (config.latent_size // 4) ** 2
    return MATRICES * 4 * places**2 / 1e9


def verdict(planned: Planned) -> str:
    """One line: what to switch."""
    need = planned.fits
    if need is None:
        return f"Nothing here fits into {planned.gpu_gb:g} GB: take a narrower model or more GPUs."
    return f"Fits into {planned.gpu_gb:g} GB: {need.name}. Type: {command(planned, need)}"


def command(planned: Planned, need: Need) -> str:
    """What to type to train like this."""
    hardware = need.hardware
    words = ["mindeye2-lite train", f"--profile {planned.config.profile}", planned.who]
    words += [f"--precision {hardware.precision}"]
    words += [f"--accumulate {hardware.accumulate}"] * (hardware.accumulate > 1)
    words += ["--checkpointing"] * hardware.checkpointing + ["--eight-bit"] * hardware.eight_bit
    words += ["--no-low-level"] * (planned.config.low_level and not need.config.low_level)
    if need.offload:
        words[0] = "accelerate launch --config_file configs/accelerate/offload.yaml " + (
            "-m mindeye2_lite.cli train"
        )
    return " ".join(words)
