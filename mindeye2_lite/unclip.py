"""From CLIP image tokens to pixels: a latent diffusion model conditioned on tokens.

    image_tokens   (batch, tokens, dim)        what the brain predicted
    latents        (batch, 4, side, side)      16 x 16 here, 96 x 96 in the paper
    images         (batch, 3, height, width)   in [0, 1]

The sampling loop is the released one to the letter: 38 Euler steps over explicit timesteps,
guidance 5 against *random* unconditional tokens, offset noise, and 0.8 y + 0.2 at the end, which
undoes the encoder's washed-out range. Any of diffusers' schedulers for noise prediction can take
its place. `load` gives a miniature, `load_released` the real SDXL unCLIP. Read with notebook 08.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite import unclip_released
from mindeye2_lite.encoders import Vae, _known, frozen, load_weights, vae
from mindeye2_lite.unclip_sampling import TRAIN_STEPS as TRAIN_STEPS
from mindeye2_lite.unclip_sampling import (
    Denoiser,
    build_scheduler,
    euler,
    scheduled,
    sigmas,
    timesteps,
)

RELEASED = "sdxl-unclip"
VAE_SCALE = 0.13025  # SDXL's: latents of unit variance
NOISE_OFFSET = 0.04  # one scalar per picture, added to all of its noise
CONTRAST, BRIGHTNESS = 0.8, 0.2  # the released rescale of the decoded picture

_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
_UP = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
_WIDE = {"block_out_channels": (64, 80, 96), "attention_head_dim": (4, 5, 6)}
_NARROW = {"block_out_channels": (48, 64, 64), "attention_head_dim": (3, 4, 4)}
SIZE_DIM = 32  # width of each sinusoidal size embedding; 256 in SDXL
UNETS = {  # as SDXL's, smaller: what differs from one to the next
    "mini-sdxl": _WIDE
    | {"cross_attention_dim": 128, "projection_class_embeddings_input_dim": 128 + 6 * SIZE_DIM},
    "mini-unclip": _WIDE
    | {"cross_attention_dim": 128, "projection_class_embeddings_input_dim": 4 * SIZE_DIM},
    "mini-vd": _NARROW
    | {"cross_attention_dim": 96, "projection_class_embeddings_input_dim": 4 * SIZE_DIM},
}


# ---- networks ----------------------------------------------------------------------------------


def build_unet(name: str) -> nn.Module:
    """An untrained diffusers `UNet2DConditionModel` of that name's size."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=_DOWN,
        up_block_types=_UP,
        layers_per_block=1,
        transformer_layers_per_block=1,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_DIM,
        norm_num_groups=16,
        **UNETS[name],
    )


@functools.cache
def load_unet(name: str, device: str = "cpu") -> nn.Module:
    """The frozen UNet of that name."""
    _known("decoder", name, UNETS)
    unet = build_unet(name)
    unet.load_state_dict(load_weights(name))
    return frozen(unet, device)


@dataclass(frozen=True)
class Decoder:
    """A UNet, its VAE, and the picture's sizes that it is told (height, width, crop top, left).

    `batch` is how many pictures `decode` makes at once, if it is not told otherwise.
    """

    unet: nn.Module
    vae: Vae
    size_ids: tuple[int, ...] = (64, 64, 0, 0)
    side: int = 16  # of the latents
    name: str = "mini-unclip"
    batch: int = 32

    @property
    def device(self) -> torch.device:
        """Where it computes; with offloading, its weights may be elsewhere."""
        hook = getattr(self.unet, "_hf_hook", None)
        return torch.device(hook.execution_device) if hook else next(self.unet.parameters()).device


def load(name: str = "mini-unclip", device: str = "cpu") -> Decoder:
    """The decoder of that name: a miniature, or "sdxl-unclip", the released file in the assets.

    On a GPU the released UNet computes in float16. FileNotFoundError in one line where the file is
    not on this machine.
    """
    _known("decoder", name, [*UNETS, RELEASED])
    if name == RELEASED:
        from mindeye2_lite import released_networks

        half = torch.float16 if torch.device(device).type == "cuda" else torch.float32
        return load_released(released_networks.unclip_source(), device, half)
    return Decoder(load_unet(name, device), vae("mini-vae", device), name=name)


def load_released(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    out: str | Path | None = None,
    pixels: int = 768,
    head_size: int = 64,
    norm_groups: int = 32,
    channels_last: bool = False,
    offload: bool = False,
    tiling: bool = False,
) -> Decoder:
    """The real SDXL unCLIP, from `unclip6_epoch0_step110000.ckpt`, .safetensors or its folder.

    The first time it is converted into the folder `out`, below the cache if none is named (see
    `unclip_released.convert`). The UNet takes `dtype`: bfloat16 or float16 halve its 10 GB (the
    released code ran under float16 autocast). The VAE stays in float32, as SDXL's overflows in
    float16, and decodes one picture at a time. `channels_last` is often faster on a GPU. For small
    cards: `offload` keeps on the device only the network that is at work, and `tiling` lets the
    VAE decode in overlapping tiles, which changes pictures a little. `head_size` and
    `norm_groups` are the two sizes that the file does not tell. Not yet run on a GPU, or with the
    released file. ValueError in one line for another or an incomplete file.
    """
    sizes = {"head_size": head_size, "norm_groups": norm_groups}
    folder = unclip_released.convert(path, out, **sizes)
    unet, network = unclip_released.networks(folder, dtype, channels_last=channels_last)
    network.enable_slicing()
    side = _latent_side(network, pixels)
    if tiling:
        network.enable_tiling()
        network.tile_sample_min_size, network.tile_latent_min_size = pixels // 2, side // 2
    result = Vae(network, VAE_SCALE)
    _place(unet, result, torch.device(device), offload)
    return Decoder(unet, result, (pixels, pixels, 0, 0), side, RELEASED, batch=1)


def _latent_side(network: nn.Module, pixels: int) -> int:
    side, left = divmod(pixels, shrinks := 2 ** (len(network.config.block_out_channels) - 1))
    if left or side < 1:
        raise ValueError(f"pixels is {pixels}, which is not a multiple of the VAE's {shrinks}")
    return side


def _place(unet: nn.Module, vae: Vae, device: torch.device, offload: bool) -> None:
    """Both networks on the device, or each only while it works."""
    if not offload:
        unet.to(device)
        vae.to(device)
        return
    from accelerate import cpu_offload_with_hook

    _, first = cpu_offload_with_hook(unet, device)
    _, second = cpu_offload_with_hook(vae.network, device, prev_module_hook=first)
    first.hook.prev_module_hook = second  # the VAE makes room for the next batch


def conditioned(
    unet: nn.Module, size_ids: tuple[int, ...], pooled: Tensor | None = None
) -> Denoiser:
    """The UNet as a function of (noisy, timestep, tokens), with its sizes and pooled text fixed."""

    def denoiser(noisy: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        batch, dtype = len(noisy), next(unet.parameters()).dtype
        text = noisy.new_zeros(batch, 0) if pooled is None else pooled
        sizes = noisy.new_tensor(size_ids).expand(batch, -1)
        extra = {"text_embeds": text.to(dtype), "time_ids": sizes}
        noisy, tokens, kept = noisy.to(dtype), tokens.to(dtype), noisy.dtype  # σ needs float32
        return unet(noisy, t, tokens, added_cond_kwargs=extra, return_dict=False)[0].to(kept)

    return denoiser


@torch.no_grad()
def decode(
    decoder: Decoder,
    image_tokens: Float[Tensor, "n tokens dim"],
    *,
    generator: torch.Generator,
    num_inference_steps: int = 38,
    guidance_scale: float | int = 5.0,
    scheduler: Any | None = None,
    batch: int | None = None,
    progress: bool = True,
    keep: list[Tensor] | None = None,
) -> Float[Tensor, "n 3 height width"]:
    """Pictures in [0, 1] from image tokens, with noise from the (CPU) generator.

    `scheduler` takes the place of the released Euler loop: a diffusers scheduler or the name of
    its class (see `build_scheduler`). Noise is drawn batch by batch, so that another `batch` gives
    other pictures. Official: spec of the released `unclip_recon`, one picture at a time.
    ValueError in one line for tokens of another width than the decoder's.
    """
    width = decoder.unet.config.cross_attention_dim
    if image_tokens.shape[-1] != width:
        raise ValueError(
            f"image tokens are {image_tokens.shape[-1]} wide, {decoder.name} takes {width}"
        )
    pictures, device, how = [], decoder.device, {"guidance_scale": guidance_scale, "keep": keep}
    batches = image_tokens.split(batch or decoder.batch)
    for tokens in tqdm(batches, "unCLIP", disable=not progress, mininterval=1):
        noisy, unconditional = _start(decoder, tokens.shape, generator)
        denoiser, noisy = conditioned(decoder.unet, decoder.size_ids), noisy.to(device)
        both = tokens.to(device), unconditional.to(device)
        if scheduler is None:
            latents = euler(denoiser, noisy, timesteps(num_inference_steps), *both, **how)
        else:
            walk = build_scheduler(scheduler, num_inference_steps, device)
            latents = scheduled(denoiser, noisy, walk, *both, generator=generator, **how)
        y = decoder.vae.decode_raw(latents)
        pictures.append((CONTRAST * y + BRIGHTNESS).clamp(0, 1).cpu())
    return torch.cat(pictures)


def _start(
    decoder: Decoder, shape: torch.Size, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws in the released order: z, unconditional tokens, noise, offset; z + noise · σ_max."""
    latent = (shape[0], 4, decoder.side, decoder.side)
    z = torch.randn(latent, generator=generator)
    unconditional = torch.randn(shape, generator=generator)
    noise = torch.randn(latent, generator=generator)
    offset = torch.randn(shape[0], generator=generator)
    noise = noise + NOISE_OFFSET * offset[:, None, None, None]
    return z + noise * sigmas()[-1], unconditional
