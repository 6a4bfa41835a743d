"""Refinement: image-to-image with a text-to-image model and the caption, then the blend.

    reconstruction   (batch, 3, height, width) in [0, 1], from unCLIP
    captions         one per picture, predicted from the brain
    refined          the same shape; sharper, and nearer to what SDXL thinks a picture is
    blurry           from the low-level head; a quarter of it is mixed in at the end

Read with notebook 09.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite.encoders import Vae, precision_of, text_encoder, vae
from mindeye2_lite.unclip import conditioned, euler, load_unet, sigmas, timesteps

STEPS, SKIPPED = 25, 13  # the released "img2img_timepoint": the last 12 of 25 steps
BLENDS = {"released": 0.75, "paper": 0.8}  # share of the refined picture; the paper says 4:1
BLEND = BLENDS["released"]
Text = Callable[[list[str]], tuple[Tensor, Tensor]]  # prompts -> word tokens, pooled vector


@dataclass(frozen=True)
class Refiner:
    """A text-to-image UNet, its VAE, its text towers, and the sizes that it is told.

    `negative_text` reads the negative prompt where another network than `text` does so. Pictures
    are first cut down to `through` pixels, as the released code keeps them; None leaves them.
    `batch` is how many pictures `refine` works on at once, if it is not told otherwise.
    """

    unet: nn.Module
    vae: Vae
    text: Text
    size_ids: tuple[int, ...] = (64, 64, 0, 0, 64, 64)  # original, crop, target
    negative_prompt: str = ""
    name: str = "mini-sdxl"
    negative_text: Text | None = None
    through: int | None = None
    batch: int = 32

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device


def load(name: str = "mini-sdxl", device: str = "cpu") -> Refiner:
    """The refiner of that name: "mini-sdxl", or whatever `sdxl.py` reads ("sdxl", a path)."""
    if name != "mini-sdxl":
        from mindeye2_lite import sdxl

        return sdxl.load(name, device)
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
    batch: int | None = None,
    progress: bool = True,
) -> Float[Tensor, "n 3 side side"]:
    """Noise the picture half-way, and let the caption lead it back.

    z + n σ₀, then the last `num_inference_steps - skipped_steps` Euler steps, at the size that the
    refiner works at: 64 pixels here, 768 for SDXL. ValueError if there is not one caption per
    picture. Official: `enhanced_recon_inference`, one picture at a time.
    """
    if len(captions) != len(images):
        raise ValueError(f"{len(images)} pictures but {len(captions)} captions: give one for each")
    times = timesteps(num_inference_steps)[skipped_steps:]
    rows = torch.arange(len(images)).split(batch or refiner.batch)
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
    images = _resized(_resized(images, refiner.through or side), side)
    positive, pooled = refiner.text(prompts)
    unwanted = refiner.negative_text or refiner.text
    negative, pooled_negative = unwanted([refiner.negative_prompt] * len(prompts))
    latents = refiner.vae.encode(images.to(device), _like(generator, device))
    noise = torch.randn(latents.shape, generator=generator).to(device)
    with precision_of(refiner.unet):  # latents and their sums stay float32
        latents = euler(
            conditioned(refiner.unet, refiner.size_ids, torch.cat([pooled_negative, pooled])),
            latents + noise * sigmas()[times[0]].to(device),
            times,
            positive,
            negative,
            guidance_scale=guidance_scale,
        )
    return refiner.vae.decode(latents).cpu()


def _resized(images: Tensor, side: int) -> Tensor:
    """Bilinear and without antialiasing, as the released code (spec of torchvision 0.16)."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, side, mode="bilinear", align_corners=False)


def _like(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator itself on the CPU; on another device one seeded from it."""
    if device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def blend(
    refined: Float[Tensor, "n 3 height width"],
    blurry: Float[Tensor, "n 3 _ _"] | None,
    share: float | int | str = "released",
) -> Float[Tensor, "n 3 height width"]:
    """share · refined + (1 − share) · blurry; the refined picture where there is no blurry one.

    `share` is a number, or a name of `BLENDS`: "released" is the 0.75 of the evaluation notebook,
    "paper" the 4:1 of the text. Official: all pictures are brought to 256 pixels and blended there;
    blending at 768 and then bringing the blend to 256, as `metrics.evaluate(..., through=256)`
    does, gives the same. ValueError for another name.
    """
    if isinstance(share, str):
        if share not in BLENDS:
            raise ValueError(f"blend {share!r} is unknown: choose {', '.join(BLENDS)} or a number")
        share = BLENDS[share]
    if blurry is None:
        return refined
    return share * refined + (1 - share) * _resized(blurry, refined.shape[-1])
