"""SDXL for refinement: its base weights, or any SDXL checkpoint in one file.

    words      (batch, 77, 2048)     both text towers, their last layer but one
    pooled     (batch, 1280)         of the larger tower
    latents    (batch, 4, 96, 96)    of the 768 pixels that are refined
    time ids   768, 768, 0, 0, 1024, 1024

| `refine.load(...)` | reads |
|---|---|
| "sdxl" | zavychromaxl_v30.safetensors in `paths.assets()`, as released; else "sdxl-base" |
| "sdxl-base" | SDXL base, as in the paper: a diffusers folder in the assets, or the Hub's cache |
| a path | a diffusers folder, or a .safetensors file with the original names |

We have none of these weights: calls are traced at full size, numbers checked on small instances.
"""

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mindeye2_lite import paths
from mindeye2_lite.encoders import Vae, frozen
from mindeye2_lite.refine import Refiner
from mindeye2_lite.released_networks import REPOSITORIES, fetching, from_hub, there

CHECKPOINT = "zavychromaxl_v30.safetensors"
BASE = "sdxl-base"
SCALE = 0.13025  # of SDXL's latents
SIZE_IDS = (768, 768, 0, 0, 1024, 1024)  # original, crop, target
THROUGH = 256  # pixels that the released code keeps of a reconstruction before it refines it
NEGATIVE = (
    "painting, extra fingers, mutated hands, poorly drawn hands, poorly drawn face, deformed, "
    "ugly, blurry, bad anatomy, bad proportions, extra limbs, cloned face, skinny, glitchy, "
    "double torso, extra arms, extra hands, mangled fingers, missing lips, ugly face, "
    "distorted face, extra legs, anime"
)
_CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
_BIG_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {  # per part, as in the config files of SDXL base
    "unet": {
        "sample_size": 128,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "sample_size": 1024,
        "scaling_factor": SCALE,
    },
    "text_encoder": _CLIP_L,
    "text_encoder_2": _BIG_G,
}
Parts = dict[str, nn.Module]


def classes() -> dict[str, type]:
    """The class of every part, by the name of its folder in diffusers."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    return {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }


def build(sizes: Mapping[str, Mapping[str, Any]] = SIZES) -> Parts:
    """Untrained parts of these sizes."""
    made = {}
    for name, part in classes().items():
        own = dict(sizes[name])
        made[name] = part(part.config_class(**own)) if "text" in name else part(**own)
    return made


# ---- words -------------------------------------------------------------------------------------


class SdxlText(nn.Module):
    """Prompts to what SDXL sees of them: both towers' last layer but one, and bigG's pooled vector.

    Neither has passed its tower's final LayerNorm; pooled has. The two towers see the same ids but
    pad them differently: CLIP-L with its end mark, bigG with 0.
    """

    def __init__(self, small: nn.Module, large: nn.Module, context: int = 77):
        super().__init__()
        self.small, self.large, self.context = small, large, context

    @torch.no_grad()
    def forward(
        self, prompts: list[str]
    ) -> tuple[Float[Tensor, "batch words width"], Float[Tensor, "batch embedding"]]:
        ids = word_ids(prompts, self.context).to(next(self.small.parameters()).device)
        end = ids.argmax(dim=1, keepdim=True)  # the end mark has the highest id
        after = torch.arange(self.context, device=ids.device) > end
        small = self.small(torch.where(after, ids.max(), ids), output_hidden_states=True)
        large = self.large(ids, output_hidden_states=True)
        both = torch.cat([small.hidden_states[-2], large.hidden_states[-2]], dim=-1)
        return both.float(), large.text_embeds.float()


def word_ids(prompts: list[str], context: int = 77) -> Int[Tensor, "prompts context"]:
    """CLIP's word pieces with start and end mark, then zeros; cut if too long.

    From open_clip's own vocabulary file, which comes with the package: no download.
    """
    return _pieces()(prompts, context_length=context)


@functools.cache
def _pieces() -> Callable:
    from open_clip import SimpleTokenizer

    return SimpleTokenizer()


# ---- weights -----------------------------------------------------------------------------------


def from_folder(source: str | Path, dtype: torch.dtype = torch.float32) -> Parts:
    """Parts from a diffusers folder or repository; the VAE as float32. FileNotFoundError."""
    full = {"vae": torch.float32}
    return {name: _part(source, name, full.get(name, dtype)) for name in classes()}


def _part(source: str | Path, name: str, dtype: torch.dtype) -> nn.Module:
    """One part, from files of its own precision where there are any, else from the others.

    Rounded to float16, the VAE's weights would not be those that it was trained with.
    """
    load, options = classes()[name].from_pretrained, {"subfolder": name, "torch_dtype": dtype}
    half, full = {"variant": "fp16"}, {}
    first, second = (full, half) if dtype == torch.float32 else (half, full)
    try:
        return from_hub(load, str(source), **first, **options)
    except FileNotFoundError:
        return from_hub(load, str(source), **second, **options)


def from_file(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    sizes: Mapping[str, Mapping[str, Any]] = SIZES,
) -> Parts:
    """Parts from one file with the original names, converted by diffusers. Needs no network.

    ValueError in one line if the file is cut short or no SDXL checkpoint.
    """
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    from mindeye2_lite.released_networks import read_state

    state = read_state(Path(path), inside="state_dict")
    parts = {}
    with tempfile.TemporaryDirectory() as folder:
        _write_sizes(Path(folder), sizes)
        for name, part in classes().items():
            where = {"config": folder, "subfolder": name, "local_files_only": True}
            wanted = torch.float32 if name == "vae" else dtype
            try:
                if "text" in name:
                    made = create_diffusers_clip_model_from_ldm(
                        part, dict(state), torch_dtype=wanted, **where
                    )
                else:
                    made = part.from_single_file(dict(state), torch_dtype=wanted, **where)
            except (KeyError, ValueError, RuntimeError) as error:
                raise ValueError(_not_sdxl(path, name, str(error))) from error
            empty = [key for key, value in made.state_dict().items() if value.is_meta]
            if empty:
                raise ValueError(_not_sdxl(path, name, f"no weights for {empty[0]}"))
            parts[name] = made
    return parts


def _not_sdxl(path: str | Path, part: str, why: str) -> str:
    first = (why.strip().splitlines() or ["unknown"])[0][:160]
    return f"{path} is not a whole SDXL checkpoint: its {part} does not load ({first})"


def _write_sizes(folder: Path, sizes: Mapping[str, Mapping[str, Any]]) -> None:
    """The configuration files that diffusers would else get from the network."""
    for name, part in classes().items():
        config = {"_class_name": part.__name__} | dict(sizes[name])
        if "text" in name:
            config["model_type"] = "clip_text_model"
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")


# ---- the refiner -------------------------------------------------------------------------------


def refiner(parts: Parts, words: SdxlText, device: str = "cpu", name: str = "sdxl") -> Refiner:
    """A refiner of these parts: `words` for the captions, the parts' own text for the negative.

    Official: the caption goes through the stock text towers, the negative prompt through those of
    the checkpoint.
    """
    own = SdxlText(parts["text_encoder"], parts["text_encoder_2"])
    parts["vae"].enable_slicing()  # one picture at a time, whatever `refine` is told
    return Refiner(
        frozen(parts["unet"], device),
        frozen(Vae(parts["vae"], SCALE), device),
        frozen(words, device),
        SIZE_IDS,
        NEGATIVE,
        name,
        frozen(own, device),
        THROUGH,
        batch=1,
    )


def look_for(name: str = "sdxl") -> None:
    """Are that refiner's files on this machine? FileNotFoundError in one line if not."""
    if Path(name).is_file() or (name == "sdxl" and paths.assets(CHECKPOINT).is_file()):
        return
    try:
        there(BASE if name == "sdxl" else name, "unet/config.json")
    except FileNotFoundError as error:
        raise error if name != "sdxl" else FileNotFoundError(_no_sdxl()) from error


@functools.cache
def load(name: str = "sdxl", device: str = "cpu") -> Refiner:
    """The refiner of that name or path; UNet and text in float16 on a GPU, the VAE in float32.

    Says in one line which weights it took where that was left open.
    """
    dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    if name == "sdxl":
        return _released(device, dtype)
    path = Path(name)
    if path.is_file():
        return _of_file(path, device, dtype)
    if name != BASE and not path.is_dir():
        raise FileNotFoundError(
            f"refiner {name!r}: there is no such file or folder; choose mini-sdxl, sdxl, {BASE}, a "
            "diffusers folder, or an SDXL checkpoint file"
        )
    parts = from_folder(name, dtype)
    return refiner(parts, SdxlText(parts["text_encoder"], parts["text_encoder_2"]), device, name)


def _released(device: str, dtype: torch.dtype) -> Refiner:
    path = paths.assets(CHECKPOINT)
    if path.is_file():
        return _of_file(path, device, dtype)
    try:
        found = load(BASE, device)
    except FileNotFoundError as error:
        raise FileNotFoundError(_no_sdxl()) from error
    print(f"refinement by SDXL base: {CHECKPOINT}, which the released code used, is not here")
    return found


def _no_sdxl() -> str:
    return (
        f"sdxl: no file {paths.assets(CHECKPOINT)}, and no SDXL base: get the file with "
        f"`{fetching('sdxl')}`, or copy the repository {REPOSITORIES[BASE]} to {paths.assets(BASE)}"
    )


def _of_file(path: Path, device: str, dtype: torch.dtype) -> Refiner:
    """A checkpoint's parts; stock text towers for the captions where SDXL base is at hand."""
    parts = from_file(path, dtype)
    own = SdxlText(parts["text_encoder"], parts["text_encoder_2"])
    try:
        stock = SdxlText(*(_part(BASE, name, dtype) for name in ("text_encoder", "text_encoder_2")))
    except FileNotFoundError:
        print(f"captions go through the text towers of {path.name}: the stock ones are not here")
        stock = own
    return refiner(parts, stock, device, path.name)
