"""What the tensors of the released SDXL unCLIP are called, here and there, and how large they are.

    model.diffusion_model.                  unet          diffusers' `UNet2DConditionModel`
    first_stage_model.                      vae           diffusers' `AutoencoderKL`
    conditioner.embedders.0.model.visual.   image_tower   `visual` of OpenCLIP's ViT-bigG/14

A file is understood from its names and shapes alone, before a number of it is read. The released
file could not be had; a test compares these rules with the list of its 2,519 keys. Used by
`unclip_released`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

PARTS = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "image_tower": "conditioner.embedders.0.model.visual.",
}

Shapes = dict[str, tuple[int, ...]]


# ---- names -------------------------------------------------------------------------------------

_UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE = {
    r"\bdown\.(\d+)\.block\.": r"down_blocks.\1.resnets.",
    r"\bdown\.(\d+)\.downsample\.": r"down_blocks.\1.downsamplers.0.",
    r"\bup\.(\d+)\.block\.": r"up_blocks.\1.resnets.",
    r"\bup\.(\d+)\.upsample\.": r"up_blocks.\1.upsamplers.0.",
    r"\bmid\.block_1\.": "mid_block.resnets.0.",
    r"\bmid\.block_2\.": "mid_block.resnets.1.",
    r"\bmid\.attn_1\.norm\.": "mid_block.attentions.0.group_norm.",
    r"\bmid\.attn_1\.([qkv])\.": r"mid_block.attentions.0.to_\1.",
    r"\bmid\.attn_1\.proj_out\.": "mid_block.attentions.0.to_out.0.",
    r"\bnin_shortcut\.": "conv_shortcut.",
    r"coder\.norm_out\.": "coder.conv_norm_out.",
}


def target(key: str, vae_levels: int = 4, per_level: int = 3) -> tuple[str, str] | None:
    """The part that a released tensor belongs to, and its name there; None if it is not needed.

    `per_level`: blocks of a level of the UNet, one more than it has residual ones. Not needed
    are the 1,000 noise levels, which are computed, and six tensors of the text tower.
    """
    for part, prefix in PARTS.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            if part == "unet":
                return part, _unet_name(name, per_level)
            return part, _vae_name(name, vae_levels) if part == "vae" else name
    return None


def _unet_name(name: str, per_level: int) -> str:
    place, rest = _unet_place(name, per_level)
    for old, new in _RESNET.items():
        if rest.startswith(f"{old}."):
            rest = rest.replace(old, new, 1)
    return f"{place}.{rest}"


def _unet_place(name: str, per_level: int) -> tuple[str, str]:
    """The block or layer in diffusers, and what follows: sgm numbers the blocks of all levels."""
    for old, new in _UNET.items():
        if name.startswith(f"{old}."):
            return new, name.removeprefix(f"{old}.")
    if not (match := re.fullmatch(r"(in|out)put_blocks\.(\d+)\.(\d)\.(.+)", name)):
        return "unknown", name
    side, block, inside, rest = match.groups()
    level, i = divmod(int(block) - (side == "in"), per_level)  # the first input block is conv_in
    if rest.startswith("op."):
        return f"down_blocks.{level}.downsamplers.0.conv", rest.removeprefix("op.")
    if rest.startswith("conv."):
        return f"up_blocks.{level}.upsamplers.0.conv", rest.removeprefix("conv.")
    kind = "attentions" if inside == "1" else "resnets"
    return f"{'down' if side == 'in' else 'up'}_blocks.{level}.{kind}.{i}", rest


def _vae_name(name: str, levels: int) -> str:
    for pattern, new in _VAE.items():
        name = re.sub(pattern, new, name)
    if match := re.search(r"\bup_blocks\.(\d+)\.", name):  # sgm counts from the finest level
        name = name.replace(match[0], f"up_blocks.{levels - 1 - int(match[1])}.")
    return name


# ---- sizes -------------------------------------------------------------------------------------


def unet_config(
    shapes: Mapping[str, tuple[int, ...]], head_size: int = 64, norm_groups: int = 32
) -> dict[str, Any]:
    """Arguments of `UNet2DConditionModel`, read off its tensors' shapes (diffusers' names).

    Shapes do not tell the width of an attention head, 64 in SDXL, and the groups of norms, 32.
    """
    levels = range(_count(shapes, "down_blocks"))
    depths = [_count(shapes, f"down_blocks.{i}.attentions.0.transformer_blocks") for i in levels]
    kinds = ["CrossAttn" if depth else "" for depth in depths]
    widths = tuple(shapes[f"down_blocks.{i}.resnets.0.conv2.weight"][0] for i in levels)
    if any(width % head_size for width in widths):
        raise ValueError(f"heads {head_size} wide do not divide the UNet's widths {widths}")
    transformer = "mid_block.attentions.0"
    vector = shapes["add_embedding.linear_1.weight"][1]
    return {
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, "down_blocks.0.resnets"),
        "transformer_layers_per_block": tuple(max(depth, 1) for depth in depths),
        "attention_head_dim": tuple(width // head_size for width in widths),
        "norm_num_groups": norm_groups,
        "use_linear_projection": len(shapes[f"{transformer}.proj_in.weight"]) == 2,
        "cross_attention_dim": shapes[f"{transformer}.transformer_blocks.0.attn2.to_k.weight"][1],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": vector // 4,  # height, width, crop top, crop left
        "projection_class_embeddings_input_dim": vector,
    }


def vae_config(shapes: Mapping[str, tuple[int, ...]], norm_groups: int = 32) -> dict[str, Any]:
    """Arguments of `AutoencoderKL`, read off its tensors' shapes (diffusers' names)."""
    levels = range(_count(shapes, "encoder.down_blocks"))
    widths = (shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in levels)
    return {
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * len(levels),
        "up_block_types": ("UpDecoderBlock2D",) * len(levels),
        "layers_per_block": _count(shapes, "encoder.down_blocks.0.resnets"),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "norm_num_groups": norm_groups,
        "mid_block_add_attention": "decoder.mid_block.attentions.0.to_q.weight" in shapes,
    }


def _count(names: Iterable[str], stem: str) -> int:
    """How many numbered children a module has."""
    start = f"{stem}."
    return len({n.removeprefix(start).split(".")[0] for n in names if n.startswith(start)})


def on_meta(part: str, config: Mapping[str, Any]) -> nn.Module:
    """The "unet" or "vae" of that configuration, without any memory for its weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    with torch.device("meta"):
        return kind(**config)


# ---- what goes where ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Per part, the released key and the new shape of each of its tensors; and its sizes."""

    keys: dict[str, dict[str, str]]
    shapes: dict[str, Shapes]
    configs: dict[str, dict[str, Any]]


def plan(shapes: Mapping[str, tuple[int, ...]], head_size: int = 64, norm_groups: int = 32) -> Plan:
    """What becomes of a file's tensors, from their shapes alone.

    ValueError in one line unless they are, to the last one, a UNet and a VAE of SDXL's build. The
    image tower may be absent, but not incomplete.
    """
    levels = _count(shapes, f"{PARTS['vae']}encoder.down")
    shrinking = re.compile(rf"{re.escape(PARTS['unet'])}input_blocks\.(\d+)\.0\.op\.")
    per_level = min((int(found[1]) for key in shapes if (found := shrinking.match(key))), default=3)
    keys: dict[str, dict[str, str]] = {part: {} for part in PARTS}
    for key in shapes:
        if found := target(key, levels, per_level):
            keys[found[0]][found[1]] = key
    new = {part: {n: _new_shape(n, shapes[k]) for n, k in keys[part].items()} for part in PARTS}
    try:
        unet = unet_config(new["unet"], head_size, norm_groups)
        configs = {"unet": unet, "vae": vae_config(new["vae"], norm_groups)}
    except KeyError as error:
        raise ValueError(f"it lacks tensors of the unCLIP model, among them {error}") from error
    for part, config in configs.items():
        expected = {n: tuple(t.shape) for n, t in on_meta(part, config).state_dict().items()}
        _check(part, new[part], expected)
    _check("image_tower", dict.fromkeys(new["image_tower"], ()), _tower(new["image_tower"]))
    return Plan(keys, new, configs)


def _new_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """sgm's VAE attends with 1 x 1 convolutions, diffusers' with linear maps."""
    squeezed = "mid_block.attentions.0.to_" in name and len(shape) == 4
    return tuple(shape[:2] if squeezed else shape)


def _tower(names: Iterable[str]) -> Shapes:
    """The tensors that an image tower with that many blocks has (without their shapes)."""
    stem = "transformer.resblocks"
    outer = {"class_embedding", "positional_embedding", "proj", "conv1.weight"}
    both = {f"{norm}.{kind}" for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")}
    layers = ("ln_1.", "ln_2.", "attn.in_proj_", "attn.out_proj.", "mlp.c_fc.", "mlp.c_proj.")
    inner = [f"{layer}{kind}" for layer in layers for kind in ("weight", "bias")]
    blocks = {f"{stem}.{i}.{name}" for i in range(_count(names, stem)) for name in inner}
    return dict.fromkeys(outer | both | blocks, ()) if names else {}


def _check(part: str, found: Shapes, expected: Shapes) -> None:
    """ValueError in one line unless both have the same names and shapes."""
    wrong = [n for n in found if n in expected and found[n] != expected[n]]
    for said, names in (
        ("lacks", expected.keys() - found.keys()),
        ("has too many", found.keys() - expected.keys()),
        ("has the wrong size for", wrong),
    ):
        if names:
            first = min(names)
            raise ValueError(f"it {said} {len(names):,} tensors of the {part}, first {first}")
