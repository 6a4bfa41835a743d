"""From CLIP image tokens to pixels: a latent diffusion model conditioned on tokens.

    image_tokens   (batch, tokens, dim)        what the brain predicted
    latents        (batch, 4, side, side)      16 x 16 here, 96 x 96 in the paper
    images         (batch, 3, height, width)   in [0, 1]

The sampling loop is the released one to the letter: 38 Euler steps over explicit timesteps,
guidance 5 against *random* unconditional tokens, offset noise, and 0.8 y + 0.2 at the end, which
undoes the encoder's washed-out range. Read with notebook 08.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite.encoders import Vae, _known, frozen, load_weights, vae

TRAIN_STEPS = 1000
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

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # noisy, timestep, condition -> noise


# ---- noise levels ------------------------------------------------------------------------------


@functools.cache
def sigmas() -> Float[Tensor, " 1000"]:
    """σ of the 1,000 training steps, ascending: √((1−ᾱ)/ᾱ) for β linear in its square root."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, dim=0)
    return ((1 - kept) / kept).sqrt().float()


def timesteps(num_inference_steps: int) -> Int[Tensor, " steps"]:
    """The released spacing, 999, 972, 946, ... for 38 steps: not one of diffusers' modes."""
    steps = torch.linspace(TRAIN_STEPS - 1, 0, num_inference_steps + 1, dtype=torch.float64)
    return steps[:-1].long()


def euler(
    denoiser: Denoiser,
    noisy: Float[Tensor, "batch channels height width"],
    times: Int[Tensor, " steps"],
    condition: Tensor,
    unconditional: Tensor,
    *,
    guidance_scale: float | int = 5.0,
    progress: bool = False,
    keep: list[Tensor] | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Euler's method along dx/dσ = (x − D(x, σ)) / σ, from σ of the first time down to zero.

    D = D_u + g (D_c − D_u) with D(x, σ) = x − σ ε(x / √(σ² + 1), t). Given a list, `keep` collects
    the predicted clean latents of every step.
    """
    levels = torch.cat([sigmas()[times], torch.zeros(1)]).tolist()
    both = torch.cat([unconditional, condition])
    bar = tqdm(times, disable=not progress)
    for t, sigma, following in zip(bar, levels[:-1], levels[1:], strict=True):
        scaled = noisy / math.sqrt(sigma**2 + 1)
        noise = denoiser(torch.cat([scaled, scaled]), t.expand(len(both)).to(noisy.device), both)
        away, towards = noise.chunk(2)
        guided = away + guidance_scale * (towards - away)
        if keep is not None:
            keep.append(noisy - sigma * guided)
        noisy = noisy + (following - sigma) * guided
    return noisy


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
    """A UNet, its VAE, and the picture's sizes that it is told (height, width, crop top, left)."""

    unet: nn.Module
    vae: Vae
    size_ids: tuple[int, ...] = (64, 64, 0, 0)
    side: int = 16  # of the latents
    name: str = "mini-unclip"

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device


def load(name: str = "mini-unclip", device: str = "cpu") -> Decoder:
    """The decoder of that name. Miniatures say that they are miniatures."""
    _known("decoder", name, UNETS)
    return Decoder(load_unet(name, device), vae("mini-vae", device), name=name)


def conditioned(
    unet: nn.Module, size_ids: tuple[int, ...], pooled: Tensor | None = None
) -> Denoiser:
    """The UNet as a function of (noisy, timestep, tokens), with its sizes and pooled text fixed."""

    def denoiser(noisy: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        batch = len(noisy)
        text = noisy.new_zeros(batch, 0) if pooled is None else pooled
        sizes = noisy.new_tensor(size_ids).expand(batch, -1)
        extra = {"text_embeds": text, "time_ids": sizes}
        return unet(noisy, t, tokens, added_cond_kwargs=extra, return_dict=False)[0]

    return denoiser


@torch.no_grad()
def decode(
    decoder: Decoder,
    image_tokens: Float[Tensor, "n tokens dim"],
    *,
    generator: torch.Generator,
    num_inference_steps: int = 38,
    guidance_scale: float | int = 5.0,
    batch: int = 32,
    progress: bool = True,
    keep: list[Tensor] | None = None,
) -> Float[Tensor, "n 3 height width"]:
    """Pictures in [0, 1] from image tokens, with noise from the (CPU) generator.

    Official: spec of the released `unclip_recon`, one picture at a time; here in batches.
    """
    pictures = []
    for tokens in tqdm(image_tokens.split(batch), "unCLIP", disable=not progress, mininterval=1):
        noisy, unconditional = _start(decoder, tokens.shape, generator)
        latents = euler(
            conditioned(decoder.unet, decoder.size_ids),
            noisy.to(decoder.device),
            timesteps(num_inference_steps),
            tokens.to(decoder.device),
            unconditional.to(decoder.device),
            guidance_scale=guidance_scale,
            keep=keep,
        )
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
