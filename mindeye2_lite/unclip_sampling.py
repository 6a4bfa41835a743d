"""Down the noise levels, from noise to clean latents: the released Euler loop, and diffusers'.

    sigmas       (1000,)                           the noise levels that SDXL was trained on
    timesteps    (steps,)                          those visited, 999, 972, 946, ...
    noisy        (batch, channels, height, width)  standard deviation √(σ² + 1) at level σ

Read with notebook 08; used by `unclip` and `refine`.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

TRAIN_STEPS = 1000
FIRST_BETA, LAST_BETA = 0.00085, 0.012  # linear between their square roots

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # noisy, timestep, condition -> noise


# ---- noise levels ------------------------------------------------------------------------------


@functools.cache
def sigmas() -> Float[Tensor, " 1000"]:
    """σ of the 1,000 training steps, ascending: √((1−ᾱ)/ᾱ) for β linear in its square root."""
    betas = torch.linspace(FIRST_BETA**0.5, LAST_BETA**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2
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
        guided = _guided(denoiser, noisy / math.sqrt(sigma**2 + 1), t, both, guidance_scale)
        if keep is not None:
            keep.append(noisy - sigma * guided)
        noisy = noisy + (following - sigma) * guided
    return noisy


def _guided(
    denoiser: Denoiser, scaled: Tensor, t: Tensor, both: Tensor, guidance: float | int
) -> Tensor:
    """The predicted noise, pushed away from what the unconditional tokens predict."""
    noise = denoiser(torch.cat([scaled, scaled]), t.expand(len(both)).to(scaled.device), both)
    away, towards = noise.chunk(2)
    return away + guidance * (towards - away)


# ---- diffusers' schedulers ---------------------------------------------------------------------


def build_scheduler(scheduler: Any, num_inference_steps: int, device: Any = "cpu") -> Any:
    """A diffusers scheduler that is ready to walk down the released noise levels.

    By class name, e.g. "DPMSolverMultistepScheduler": it visits the released timesteps where it
    takes a list of them, else its own "trailing" ones, which are the nearest. An instance keeps
    its own spacing. ValueError in one line if it cannot serve a network that predicts noise.
    """
    named = isinstance(scheduler, str)
    if named:
        scheduler = _scheduler_named(scheduler)
    _check_scheduler(scheduler)
    takes = inspect.signature(scheduler.set_timesteps).parameters
    if named and "timesteps" in takes and "original_inference_steps" not in takes:
        scheduler.set_timesteps(timesteps=timesteps(num_inference_steps).tolist(), device=device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)
    return scheduler


def _scheduler_named(name: str) -> Any:
    import diffusers

    settings = {
        "num_train_timesteps": TRAIN_STEPS,
        "beta_start": FIRST_BETA,
        "beta_end": LAST_BETA,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
        "clip_sample": False,  # latents are not pictures in [-1, 1]
        "skip_prk_steps": True,
    }
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ValueError(
            f"diffusers offers no scheduler {name!r} here: it offers 'DDIMScheduler' and others, "
            "some of them only with further packages"
        )
    known = inspect.signature(kind).parameters
    try:
        return kind(**{key: value for key, value in settings.items() if key in known})
    except Exception as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{name} cannot be set to the released noise levels: {why}") from error


def _check_scheduler(scheduler: Any) -> None:
    """ValueError in one line unless it steps from noise to picture by predicted noise."""
    name, released = type(scheduler).__name__, 1 / (1 + sigmas() ** 2)
    kept = getattr(scheduler, "alphas_cumprod", torch.zeros(0)).float().cpu()
    if getattr(getattr(scheduler, "config", None), "prediction_type", None) != "epsilon":
        raise ValueError(f"{name} is not one for predicted noise (prediction_type 'epsilon')")
    if kept.shape != released.shape or not torch.allclose(kept, released, rtol=1e-3):
        raise ValueError(
            f"{name} has other noise levels than the network was trained on: pass its name, or set "
            f"beta_start={FIRST_BETA}, beta_end={LAST_BETA}, beta_schedule='scaled_linear'"
        )
    if "Inverse" in name:
        raise ValueError(f"{name} goes from picture to noise, not from noise to picture")


def scheduled(
    denoiser: Denoiser,
    noisy: Float[Tensor, "batch channels height width"],
    scheduler: Any,
    condition: Tensor,
    unconditional: Tensor,
    *,
    generator: torch.Generator,
    guidance_scale: float | int = 5.0,
    keep: list[Tensor] | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Latents as `euler` makes them, by a scheduler from `build_scheduler`.

    `noisy` is what `euler` starts from. Schedulers that keep the variance at one get it divided
    by √(σ² + 1), which is the same start; those that draw noise draw it from the generator.
    """
    both = torch.cat([unconditional, condition])
    latents = noisy / math.sqrt(sigmas()[-1] ** 2 + 1)
    if float(scheduler.init_noise_sigma) != 1:
        latents = latents * math.sqrt(float(scheduler.sigmas[0]) ** 2 + 1)
    draws = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if draws else {}
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, t)
        guided = _guided(denoiser, scaled, t, both, guidance_scale)
        if keep is not None:
            sigma = _level(float(t))
            keep.append(scaled * math.sqrt(sigma**2 + 1) - sigma * guided)
        latents = scheduler.step(guided, t, latents, return_dict=False, **extra)[0]
    return latents


def _level(t: float) -> float:
    """σ at a time that may lie between two of the thousand."""
    below = min(int(t), TRAIN_STEPS - 2)
    return torch.lerp(sigmas()[below], sigmas()[below + 1], t - below).item()
