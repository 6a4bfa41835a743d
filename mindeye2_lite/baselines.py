"""Two older systems from voxels to pictures: ridge maps in front of frozen generators.

| | Takagi & Nishimoto 2023 | Ozcelik & VanRullen 2023, "Brain-Diffuser" |
|---|---|---|
| voxels | early regions for z, higher ones for c | all of nsdgeneral, for everything |
| rows of the regression | every trial | every picture, averaged over its repeats |
| low-level picture from | z, the VAE's latent | VDVAE's latents; here the VAE's |
| then image-to-image with | text-to-image, by c | image variation, by vision and text |
| steps | the last 40 of 50 | the last 37 of 50 |
| retrieval | none | predicted vision tokens |

Both learn without gradients. Test voxels are averaged over the repeats of a picture. MindEye1, the
third of the older systems, is in `mindeye1`; the paper of MindEye2 compares all (its Table 1).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite import encoders, nsd, pipeline, refine, ridge_maps, unclip, variants
from mindeye2_lite.config import Config

Pictures = Float[Tensor, "images 3 height width"]
Tokens = Float[Tensor, "images tokens dim"]
STEPS = 50  # of both papers' samplers (DDIM; here Euler's method, see `unclip_sampling`)
TAKAGI_STRENGTH, TAKAGI_GUIDANCE = 0.8, 5.0  # the released code's
OZCELIK_STRENGTH, OZCELIK_GUIDANCE = 0.75, 7.5
VISION_SHARE = 0.6  # of vision in dual guidance; the rest is text
RELEASED_GUIDANCE = 5.0  # MindEye2's; see `scaled`


@dataclass(frozen=True)
class Made:
    """What a system makes of a person's test trials; images in ascending id.

    The two kinds of tokens are for `retrieval.retrieval`; None where the system has no retrieval.
    """

    image_ids: Int[Tensor, " images"]
    pictures: Pictures
    low_level: Float[Tensor, "images 3 _ _"] | None = None  # what image-to-image started from
    retrieval_tokens: Tokens | None = None  # the brain's
    image_tokens: Tokens | None = None  # of the true pictures


# ---- Takagi & Nishimoto ------------------------------------------------------------------------


def takagi_nishimoto(
    root: str | Path, subject: int, config: Config, *, sessions: int | None = None, seed: int = 0,
    limit: int | None = None, device: str | None = None, progress: bool = True,
    steps: int = STEPS, refiner: refine.Refiner | None = None,
) -> Made:  # fmt: skip
    """Pictures of the test images, the first `limit` of them: z from V1 to V4, c from higher areas.

    z is the VAE's latent of the picture, from `V1` to `V4`; c the text conditioning averaged over
    the picture's captions, from the ventral region (the released masks have no such region: there
    it is `higher_vis`). z is decoded, noised for the last four fifths of the `steps`, and led back
    by c with guidance 5. `refiner` takes the place of the config's. Departures: SDXL (here
    mini-sdxl) for Stable Diffusion 1.4, whose pooled text vector is predicted just like c; one
    penalty for all outputs, by cross-validation over pictures, where himalaya chose one per output;
    one sample per picture. ValueError or FileNotFoundError in one line where something is missing.
    """
    device = device or pipeline.best_device()
    person, trials, test, image_ids = _read(root, subject, sessions)
    refiner = refiner or refine.load(config.refiner, device)
    generator = torch.Generator().manual_seed(seed)
    seen, place = trials.image_ids, torch.searchsorted(trials.image_ids, trials.image_id)
    early, higher = early_and_higher(person)
    vae = encoders.vae(config.vae, device)
    latents = _encoded(vae.encode, person.images, seen, device, progress)
    tokens, pooled = conditioning(person, seen, refiner.text)
    shown = trials.image_id  # rows of one picture are held out together
    z = ridge_maps.fit(trials.voxels[:, early], latents[place], shown)(test[:, early])
    both = torch.cat([tokens.flatten(1), pooled], dim=1)
    c = ridge_maps.fit(trials.voxels[:, higher], both[place], shown)(test[:, higher])
    z, c, image_ids = z[:limit], c[:limit].to(device), image_ids[:limit]
    words = c[:, : tokens[0].numel()].unflatten(1, tokens.shape[1:])
    led = replace(
        refiner,
        text=_by_row(words, c[:, tokens[0].numel() :]),
        negative_text=refiner.negative_text or refiner.text,
    )
    low_level = pipeline.decode_blurry(vae, z, device)
    pictures = pipeline.refine_pictures(
        led, low_level, [str(i) for i in range(len(z))], generator, num_inference_steps=steps,
        skipped_steps=steps - int(TAKAGI_STRENGTH * steps), guidance_scale=TAKAGI_GUIDANCE,
        progress=progress,
    )  # fmt: skip
    return Made(image_ids, pictures, low_level)


def early_and_higher(person: nsd.Subject) -> tuple[Tensor, Tensor]:
    """Masks (V,) of V1 to V4 together, and of the ventral region or else all higher areas.

    ValueError in one line where the person's regions are other ones.
    """
    rois, early = person.rois, ("V1", "V2", "V3", "V4")
    later = next((name for name in ("ventral", "higher_vis") if name in rois), None)
    if later is None or not set(early) <= set(rois):
        raise ValueError(
            f"subject {person.subject} has regions {', '.join(rois)}: V1, V2, V3, V4 and ventral "
            "or higher_vis are needed in brain_region_masks.hdf5"
        )
    masks = torch.stack([torch.from_numpy(rois[name]) for name in early])
    return masks.any(dim=0), torch.from_numpy(rois[later])


def _by_row(words: Tensor, pooled: Tensor) -> refine.Text:
    """Predicted conditioning in place of a text tower: prompts are the numbers of rows."""

    def text(prompts: list[str]) -> tuple[Tensor, Tensor]:
        rows = [int(prompt) for prompt in prompts]
        return words[rows], pooled[rows]

    return text


# ---- Ozcelik & VanRullen -----------------------------------------------------------------------


def ozcelik_vanrullen(
    root: str | Path, subject: int, config: Config, *, sessions: int | None = None, seed: int = 0,
    limit: int | None = None, device: str | None = None, progress: bool = True,
    steps: int = STEPS, decoder: unclip.Decoder | None = None,
) -> Made:  # fmt: skip
    """Pictures of the test images, the first `limit` of them, and retrieval by vision tokens.

    Three ridge maps from all of nsdgeneral: to the VAE's latent, to the smaller CLIP's vision
    tokens (`variants.smaller_clip`) and to its text tokens, averaged over captions. Image variation
    starts from the low-level picture and takes the last three quarters of the `steps`. `decoder`
    takes the place of that config's.

    As in the released code, predictions are brought to the mean and deviation that training
    pictures have, over all test images together: ridge alone would shrink them to the mean.
    Departures: the VAE for VDVAE; penalties by cross-validation for its 5e4, 6e4 and 1e5; guidance
    as in `scaled`. Our variation network has no text path of its own: text tokens go through one
    more ridge map, from the captions of training pictures to their vision tokens, and its
    cross-attention then mixes the two, .6 vision and .4 text, as Versatile Diffusion's dual
    guidance does. ValueError or FileNotFoundError in one line where something is missing.
    """
    device, smaller = device or pipeline.best_device(), variants.smaller_clip(config)
    person, trials, test, image_ids = _read(root, subject, sessions)
    decoder = decoder or unclip.load(smaller.decoder, device)
    encoder, vae = encoders.image_encoder(smaller.encoder, device), encoders.vae(config.vae, device)
    text = encoders.text_encoder(smaller.encoder, device)
    generator = torch.Generator().manual_seed(seed)
    seen, voxels = trials.image_ids, averaged(trials)

    def predicted(targets: Tensor) -> Tensor:
        return as_spread(ridge_maps.fit(voxels, targets, seen)(test), targets)

    how = {"device": device, "progress": progress}
    known = encoders.targets(person.images, seen, replace(smaller, low_level=True), **how)
    tokens, latents = known.tokens.float(), predicted(known.latents)
    words, _ = conditioning(person, seen, text)
    vision, said = predicted(tokens), predicted(words)
    to_vision = ridge_maps.fit(words.flatten(1), tokens, seen)
    from_text = as_spread(to_vision(said.flatten(1)), tokens)
    low_level = pipeline.decode_blurry(vae, latents[:limit], device)
    both = torch.cat([vision, from_text], dim=1)[:limit]
    with dual_guidance(decoder.unet, VISION_SHARE, vision.shape[1]):
        pictures = vary(
            decoder, both, low_level, generator=generator, strength=OZCELIK_STRENGTH,
            num_inference_steps=steps, guidance_scale=scaled(OZCELIK_GUIDANCE, config),
            progress=progress,
        )  # fmt: skip
    true = person.images[image_ids[:limit]]
    true = pipeline.encode_seen(encoder, true, device, through=config.score_size)
    return Made(image_ids[:limit], pictures, low_level, vision[:limit], true)


def as_spread(
    predicted: Float[Tensor, "n ..."], targets: Float[Tensor, "m ..."]
) -> Float[Tensor, "n ..."]:
    """Predictions with the mean and deviation that the targets have, number by number."""
    std = predicted.std(0, unbiased=False).clamp(min=1e-6)
    standard = (predicted - predicted.mean(0)) / std
    return standard * targets.std(0, unbiased=False) + targets.mean(0)


@contextmanager
def dual_guidance(unet: nn.Module, share: float, first: int) -> Iterator[None]:
    """Inside, cross-attention looks at the first tokens and at the others apart, and mixes both.

    What it returns is share · (of the first `first` tokens) + (1 − share) · (of the rest).
    """
    before = dict(unet.attn_processors)
    mixed = {k: _Mixed(p, share, first) if ".attn2." in k else p for k, p in before.items()}
    unet.set_attn_processor(dict(mixed))
    try:
        yield
    finally:
        unet.set_attn_processor(before)


class _Mixed:
    def __init__(self, attend: Callable, share: float, first: int):
        self.attend, self.share, self.first = attend, share, first

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None, temb: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        both = encoder_hidden_states[:, : self.first], encoder_hidden_states[:, self.first :]
        one, other = (self.attend(attn, hidden_states, c, attention_mask, temb) for c in both)
        return self.share * one + (1 - self.share) * other


# ---- image variation from a low-level picture --------------------------------------------------


@torch.no_grad()
def vary(
    decoder: unclip.Decoder,
    tokens: Tokens,
    pictures: Pictures,
    *,
    generator: torch.Generator,
    strength: float,
    num_inference_steps: int,
    guidance_scale: float,
    batch: int | None = None,
    progress: bool = True,
) -> Float[Tensor, "images 3 _ _"]:
    """Image-to-image led by image tokens: the last share `strength` of the steps, in [0, 1]."""
    times, made = last(num_inference_steps, strength), []
    rows = torch.arange(len(tokens)).split(batch or decoder.batch)
    for chosen in tqdm(rows, "image variation", disable=not progress, mininterval=1):
        start = begin(decoder, tokens[chosen].shape, pictures[chosen], generator)
        made.append(walk(decoder, tokens[chosen], *start, times, guidance_scale))
    return pipeline.no_larger(torch.cat(made))


def last(num_inference_steps: int, strength: float) -> Int[Tensor, " steps"]:
    """The times of the last steps: 37 of 50 at strength .75, 17 of 20 at .85."""
    return unclip.timesteps(num_inference_steps)[
        num_inference_steps - int(strength * num_inference_steps) :
    ]


def begin(
    decoder: unclip.Decoder, shape: torch.Size, pictures: Pictures, generator: torch.Generator,
    copies: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Latents of what the decoder is to start from, noise, and unconditional tokens of that shape.

    The decoder's own pictures come out of 0.8 y + 0.2 (see `unclip`): it gets the y of a picture.
    Of every picture there are so many `copies` in a row, each with noise of its own.
    """
    y = (pictures.to(decoder.device) - unclip.BRIGHTNESS) / unclip.CONTRAST
    latents = decoder.vae.encode((y + 1) / 2).repeat_interleave(copies, 0)
    unconditional = torch.randn(shape, generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    offset = torch.randn(len(latents), 1, 1, 1, generator=generator)
    noise = noise + unclip.NOISE_OFFSET * offset
    return latents, noise.to(decoder.device), unconditional.to(decoder.device)


def walk(
    decoder: unclip.Decoder, tokens: Tokens, latents: Tensor, noise: Tensor,
    unconditional: Tensor, times: Tensor, guidance_scale: float | None,
) -> Float[Tensor, "images 3 _ _"]:  # fmt: skip
    """From the noised latents down to pictures in [0, 1], on the CPU.

    Without guidance (None) the network is asked once per step, not twice.
    """
    noisy = latents + noise * unclip.sigmas()[times[0]].to(noise.device)
    denoiser = unclip.conditioned(decoder.unet, decoder.size_ids)
    if guidance_scale is None:
        denoiser, guidance_scale = _once(denoiser), 1.0
    led = tokens.to(noise.device), unconditional
    clean = unclip.euler(denoiser, noisy, times, *led, guidance_scale=guidance_scale)
    # This order of numbers in memory takes our VAE a third less time on a CPU.
    y = decoder.vae.decode_raw(clean.contiguous(memory_format=torch.channels_last))
    return (unclip.CONTRAST * y + unclip.BRIGHTNESS).clamp(0, 1).cpu()


def _once(denoiser: Callable) -> Callable:
    """Of a doubled batch, unconditional rows first: the other rows' answer for both halves."""

    def answer(noisy: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        noise = denoiser(*(x[len(x) // 2 :] for x in (noisy, t, tokens)))
        return torch.cat([noise, noise])

    return answer


def scaled(guidance: float, config: Config) -> float:
    """A paper's guidance, smaller by as much as the config's is than the released 5.

    The miniature decoders keep colors at 2 better than at 5 (see `Config.lite`).
    """
    return guidance * config.guidance_scale / RELEASED_GUIDANCE


# ---- trials and what networks make of their pictures -------------------------------------------


def averaged(trials: nsd.Trials) -> Float[Tensor, "images voxels"]:
    """Voxels of every picture, averaged over however many repeats there are; pictures ascending."""
    _, row, count = trials.image_id.unique(return_inverse=True, return_counts=True)
    total = torch.zeros(len(count), trials.voxels.shape[1]).index_add_(0, row, trials.voxels)
    return total / count[:, None]


def conditioning(
    person: nsd.Subject, image_ids: Int[Tensor, " n"], text: refine.Text, *, batch: int = 50
) -> tuple[Float[Tensor, "n words width"], Float[Tensor, "n embedding"]]:
    """Word tokens and pooled vector of every picture, averaged over its captions."""
    tokens, pooled = [], []
    for ids in image_ids.split(batch):
        said = [person.captions(int(i)) for i in ids]
        made = text([sentence for sentences in said for sentence in sentences])
        counts = [len(sentences) for sentences in said]
        for kept, rows in zip((tokens, pooled), made, strict=True):
            kept.extend(part.mean(0).float().cpu() for part in rows.split(counts))
    return torch.stack(tokens), torch.stack(pooled)


def _read(
    root: str | Path, subject: int, sessions: int | None
) -> tuple[nsd.Subject, nsd.Trials, Tensor, Tensor]:
    """The person, training trials, test voxels averaged over repeats, and test image ids."""
    person = nsd.Subject(root, subject)
    trials, test = person.train(sessions=sessions), person.test(sessions=sessions)
    return person, trials, test.repeats(3).mean(1), test.image_ids


def _encoded(
    network: Callable[[Tensor], Tensor], images: nsd.Images, image_ids: Tensor, device: str,
    progress: bool,
) -> Tensor:  # fmt: skip
    rows = image_ids.split(32)
    bar = tqdm(rows, "what networks see", disable=not progress, mininterval=1)
    return torch.cat([network(images[ids].to(device)).float().cpu() for ids in bar])
