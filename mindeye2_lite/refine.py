"""Refinement: image-to-image with a text-to-image model and the caption, then the blend.

    reconstruction   (batch, 3, height, width) in [0, 1], from unCLIP
    captions         one per picture, predicted from the brain
    refined          the same shape; sharper, and nearer to what SDXL thinks a picture is
    blurry           from the low-level head; a quarter of it is mixed in at the end

Read with notebook 09.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite.encoders import TextEncoder, Vae, _known, text_encoder, vae
from mindeye2_lite.unclip import conditioned, euler, load_unet, sigmas, timesteps

STEPS, SKIPPED = 25, 13  # the released "img2img_timepoint": the last 12 of 25 steps
BLEND = 0.75  # share of the refined picture; the paper's text says 0.8


@dataclass(frozen=True)
class Refiner:
    """A text-to-image UNet, its VAE, its text tower, and the sizes that it is told."""

    unet: nn.Module
    vae: Vae
    text: TextEncoder
    size_ids: tuple[int, ...] = (64, 64, 0, 0, 64, 64)  # original, crop, target
    negative_prompt: str = ""
    name: str = "mini-sdxl"

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device


def load(name: str = "mini-sdxl", device: str = "cpu") -> Refiner:
    """The refiner of that name."""
    _known("refiner", name, ["mini-sdxl"])
    return Refiner(
        load_unet(name, device), vae("mini-vae", device), text_encoder("mini-bigG", device)
    )


@torch.no_grad()
def refine(
    refiner: Refiner,
    images: Float[Tensor, "n 3 height width"],
    captions: list[str],
    *,
    generator: torch.Generator,
    num_inference_steps: int = STEPS,
    skipped_steps: int = SKIPPED,
    guidance_scale: float | int = 5.0,
    batch: int = 32,
    progress: bool = True,
) -> Float[Tensor, "n 3 height width"]:
    """Noise the picture half-way, and let the caption lead it back.

    z + n σ₀, then the last `num_inference_steps - skipped_steps` Euler steps. ValueError if there
    is not one caption per picture. Official: `enhanced_recon_inference`.
    """
    if len(captions) != len(images):
        raise ValueError(f"{len(images)} pictures but {len(captions)} captions: give one for each")
    times = timesteps(num_inference_steps)[skipped_steps:]
    rows = torch.arange(len(images)).split(batch)
    pictures = []
    for chosen in tqdm(rows, "refinement", disable=not progress, mininterval=1):
        prompts = [captions[i] for i in chosen]
        pictures.append(_refine(refiner, images[chosen], prompts, times, guidance_scale, generator))
    return torch.cat(pictures)


def _refine(
    refiner: Refiner, images: Tensor, prompts: list[str], times: Tensor, guidance_scale: float,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    device, side = refiner.device, refiner.size_ids[0]
    if images.shape[-1] != side:
        images = F.interpolate(images, side, mode="bilinear", align_corners=False)
    positive, pooled = refiner.text(prompts)
    negative, pooled_negative = refiner.text([refiner.negative_prompt] * len(prompts))
    latents = refiner.vae.encode(images.to(device), _like(generator, device))
    noise = torch.randn(latents.shape, generator=generator).to(device)
    latents = euler(
        conditioned(refiner.unet, refiner.size_ids, torch.cat([pooled_negative, pooled])),
        latents + noise * sigmas()[times[0]].to(device),
        times,
        positive,
        negative,
        guidance_scale=guidance_scale,
    )
    return refiner.vae.decode(latents).cpu()


def _like(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator itself on the CPU; on another device one seeded from it."""
    if device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def blend(
    refined: Float[Tensor, "n 3 height width"],
    blurry: Float[Tensor, "n 3 _ _"] | None,
    share: float | int = BLEND,
) -> Float[Tensor, "n 3 height width"]:
    """share · refined + (1 − share) · blurry; the refined picture where there is no blurry one.

    Official: 0.75 in the evaluation notebook; the paper says 4:1, which is share=0.8.
    """
    if blurry is None:
        return refined
    if blurry.shape[-1] != refined.shape[-1]:
        blurry = F.interpolate(blurry, refined.shape[-1], mode="bilinear", align_corners=False)
    return share * refined + (1 - share) * blurry
