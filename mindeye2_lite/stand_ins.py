"""Stand-ins: small files under the released names and in the released formats.

    here = where(Config.paper(), subject=1)        the real files, or stand-ins where they are not
    here.say()                                     which of the two
    here.checkpoint(sessions=40)                   .../final_subj01_pretrained_40sess_24bs/last.pth
    here.unclip, here.converter, here.data, here.config

| file | holds, as a stand-in | form |
|---|---|---|
| train_logs/.../last.pth | a lite model of the cohort | a pickle that names DeepSpeed |
| unclip6_epoch0_step110000.ckpt | mini-unclip, mini-vae, mini-bigG's eye | a pickle, names of sgm |
| bigG_to_L_epoch8.pth | the converter of mini-git | a pickle |

The data are the synthetic cohort, which has NSD's released layout already. GIT-large, SDXL, the
VAE of the blurry picture and the teacher are only stood for by the miniatures themselves. What
stands in says nothing about NSD, brains, or the real networks. Read with notebook 13.
"""

import hashlib
import re
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from mindeye2_lite import assets, captions, encoders, paths, pipeline, synthetic, unclip
from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2
from mindeye2_lite.released_networks import FILES, UNCLIP
from mindeye2_lite.unclip_names import PARTS

SIZES = {"pixels": 64, "head_size": 16, "norm_groups": 16}  # what the stand-in unCLIP is told
EPOCHS = 150  # of the released fine-tuned models
CONVERTER = FILES["bigG_to_L"]
NOTE = "STAND-IN: synthetic cohort, miniature networks"
LINE = f"{NOTE}, files of the released form"


@dataclass(frozen=True)
class Where:
    """Where the files are, which sizes they have, and whether they are the real ones.

    `config` names the networks that fit them; `unclip_options` is what `unclip.load_released` must
    be told beyond the file: nothing for the real one.
    """

    folder: Path
    data: Path
    config: Config
    subject: int
    real: bool
    unclip_options: Mapping[str, Any]

    @property
    def note(self) -> str:
        """For the corner of a figure; nothing where the files are real."""
        return "" if self.real else NOTE

    def say(self) -> None:
        """Say which it is: at the top of every output."""
        print(f"released files in {self.folder}" if self.real else LINE)

    @property
    def unclip(self) -> Path:
        """The SDXL unCLIP, in one file."""
        return self.folder / UNCLIP

    @property
    def converter(self) -> Path:
        """From the larger CLIP's tokens to those that GIT looks at."""
        return self.folder / CONVERTER

    def checkpoint(self, sessions: int = 40, subject: int | None = None) -> Path:
        """The fine-tuned model of that many sessions (1 or 40 were released)."""
        return self.folder / checkpoint_name(subject or self.subject, sessions)


def checkpoint_name(subject: int, sessions: int) -> str:
    """The released path of a fine-tuned model. ValueError if none of that kind was released."""
    wanted = f"train_logs/final_subj{subject:02d}_pretrained_{sessions}sess_24bs/last.pth"
    names = [asset.name for asset in assets.table() if "_pretrained_" in asset.name]
    if wanted not in names:
        raise ValueError(
            f"no model of subject {subject} with {sessions} sessions was released: there are "
            "subjects 1, 2, 5, 7 with 1 and with 40 sessions"
        )
    return wanted


def needed_first(config: Config, subject: int = 1, sessions: int = 40) -> list[assets.Asset]:
    """The real files without which nothing can begin: one subject's data and fine-tuned model.

    These models were released at the paper's size only, whatever the config says.
    """
    full, stages = Config.paper(), ("data", "released")
    config = replace(config, hidden=full.hidden, low_level=full.low_level)
    found = assets.needed(config, (subject,), sessions=sessions, stages=stages)
    return [a for a in found if a.stage == "data" or "_pretrained_" in a.name]


def where(
    config: Config, subject: int = 1, sessions: int = 40, *, seed: int = 0, progress: bool = True
) -> Where:
    """The real files if the subject's data and checkpoint are there, else stand-ins; says which.

    Further networks are looked for when they are used: a line names the file that is missing then.
    Stand-ins are made in the cache, from lite models that are kept or trained now.
    """
    first = needed_first(config, subject, sessions)
    if first and all(assets.state(asset) == "here" for asset in first):
        # The paper's judges are not built here: pixel scores and retrieval need none.
        real = replace(config, judges="none")
        found = Where(paths.assets(), paths.assets(), real, subject, True, {})
        found.say()
        return found
    print(LINE)
    lite = Config.lite()
    data = synthetic.open_cohort(lite, progress=progress)
    runs = {
        n: pipeline.tuned(lite, data, subject, None if n == 40 else n, seed=seed, progress=progress)
        for n in (1, 40)
    }
    made_of = [run.folder.name for run in runs.values()] + sorted(
        entry["sha256"] for entry in encoders.manifest().values()
    )
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
    folder = paths.cache() / "stand-ins" / key
    write(folder, {(subject, n): run.model for n, run in runs.items()})
    apart = {"out": folder / "converted"}  # never to be taken for the real one
    return Where(folder, data, lite, subject, False, SIZES | apart)


def write(folder: Path, models: Mapping[tuple[int, int], MindEye2]) -> Path:
    """Write what is not there yet: a checkpoint per (subject, sessions), unCLIP and converter."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "writing.lock"):
        for (subject, sessions), model in models.items():
            file = folder / checkpoint_name(subject, sessions)
            _save(file, lambda model=model: checkpoint(model))
        _save(folder / UNCLIP, lambda: {"state_dict": unclip_state()})
        _save(folder / CONVERTER, lambda: {"epoch": 8, "model_state_dict": _converter()})
    return folder


def _save(file: Path, content: Any) -> None:
    if not file.exists():
        made = content()
        with _deepspeed(), paths.write_beside(file) as beside:
            torch.save(made, beside)


# ---- the checkpoint ----------------------------------------------------------------------------


def checkpoint(model: MindEye2) -> dict[str, Any]:
    """What a released `last.pth` holds: the weights, and beside them what training was up to.

    It names a class of DeepSpeed; which ones the real files name is known from reports only.
    """
    state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    scaler = LossScaler()
    scaler.cur_scale = 65536.0
    return {
        "epoch": EPOCHS - 1,
        "model_state_dict": state,
        "optimizer_state_dict": {"loss_scaler": scaler, "zero_stage": 2},
        "lr_scheduler": {"total_steps": 0},
        "train_losses": [],
        "test_losses": [],
        "lrs": [],
    }


MODULE = "deepspeed.runtime.fp16.loss_scaler"


class LossScaler:
    """Only its name goes into the file: that of a class of DeepSpeed."""

    __module__ = MODULE


@contextmanager
def _deepspeed() -> Iterator[None]:
    """A module of DeepSpeed's name for as long as its class has to be found by pickle."""
    parts = MODULE.split(".")
    names = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    before = {name: sys.modules.get(name) for name in names}
    sys.modules |= {name: types.ModuleType(name) for name in names}
    sys.modules[MODULE].LossScaler = LossScaler
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


# ---- the other two -----------------------------------------------------------------------------


def _converter() -> dict[str, Tensor]:
    captioner = captions.load("mini-git")
    return {key: value.clone() for key, value in captioner.converter.state_dict().items()}


def unclip_state() -> dict[str, Tensor]:
    """mini-unclip, mini-vae and mini-bigG's image tower under the names of the released file.

    The VAE's scale goes into its weights, so that latents are those of SDXL's scale.
    """
    decoder = unclip.load("mini-unclip")
    tower = encoders.load_clip("mini-bigG").visual
    parts = {
        "unet": {_unet_name(k): v for k, v in decoder.unet.state_dict().items()},
        "vae": {_vae_name(k): v for k, v in _rescaled(decoder.vae).items()},
        "image_tower": tower.state_dict(),
    }
    named = {PARTS[p] + key: v.clone() for p, state in parts.items() for key, v in state.items()}
    return {"denoiser.sigmas": unclip.sigmas()} | named


def _rescaled(vae: encoders.Vae) -> dict[str, Tensor]:
    """The VAE's weights for latents that are to be multiplied by SDXL's scale, not by its own."""
    state = dict(vae.network.state_dict())
    ratio = unclip.VAE_SCALE / float(vae.scale)
    state["post_quant_conv.weight"] = state["post_quant_conv.weight"] * ratio
    shift = 2 * torch.tensor(ratio).log()  # of the logarithm of the variance
    for name in ("quant_conv.weight", "quant_conv.bias"):
        mean, log_variance = state[name].chunk(2)
        change = shift if name.endswith("bias") else 0
        state[name] = torch.cat([mean / ratio, log_variance - change])
    return state


# Back from diffusers' names to sgm's: the inverse of unclip_names.py, for these small networks.

_PLACES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE = {
    r"down_blocks\.(\d+)\.resnets\.": r"down.\1.block.",
    r"down_blocks\.(\d+)\.downsamplers\.0\.": r"down.\1.downsample.",
    r"up_blocks\.(\d+)\.resnets\.": r"up.\1.block.",
    r"up_blocks\.(\d+)\.upsamplers\.0\.": r"up.\1.upsample.",
    r"mid_block\.resnets\.0\.": "mid.block_1.",
    r"mid_block\.resnets\.1\.": "mid.block_2.",
    r"conv_shortcut\.": "nin_shortcut.",
    r"conv_norm_out\.": "norm_out.",
}
PER_LEVEL = 2  # blocks of a level of the miniature UNet: a residual one, and one that resizes
LEVELS = 3


def _unet_name(name: str) -> str:
    place, rest = _unet_place(name)
    first, dot, last = rest.rpartition(".")
    return f"{place}.{_RESNET.get(first, first)}{dot}{last}"


def _unet_place(name: str) -> tuple[str, str]:
    for ours, theirs in _PLACES.items():
        if name.startswith(f"{ours}."):
            return theirs, name.removeprefix(f"{ours}.")
    side, level, kind, i, rest = re.fullmatch(
        r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", name
    ).groups()
    first = int(level) * PER_LEVEL
    if kind == "downsamplers":
        return f"input_blocks.{first + PER_LEVEL}.0.op", rest.removeprefix("conv.")
    if kind == "upsamplers":
        return f"output_blocks.{first + PER_LEVEL - 1}.2.conv", rest.removeprefix("conv.")
    inside = 1 if kind == "attentions" else 0
    if side == "down":
        return f"input_blocks.{first + 1 + int(i)}.{inside}", rest
    return f"output_blocks.{first + int(i)}.{inside}", rest


def _vae_name(name: str) -> str:
    for pattern, theirs in _VAE.items():
        name = re.sub(pattern, theirs, name)
    if match := re.search(r"\bup\.(\d+)\.", name):  # sgm counts from the finest level
        name = name.replace(match[0], f"up.{LEVELS - 1 - int(match[1])}.")
    return name
