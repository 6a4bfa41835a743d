"""MindEye1 (Scotti et al. 2023): one person's own network, CLIP ViT-L, and the best of 16 pictures.

    voxels            (batch, V)             of one trial; of a test picture, averaged over repeats
    tokens            (batch, tokens, dim)   17 x 96 here, 257 x 768: condition of the prior
    retrieval         (batch, tokens, dim)   the same after a projector, compared with CLIP's tokens
    low_level         (batch, 4, 16, 16)     VAE latent, from a second network of its own

Unlike MindEye2 it shares nothing between people, bends voxels at once (`variants.ResidualInput`),
keeps the low-level pipeline apart, and has no caption and no refinement. It paints 16 candidates
from the low-level picture and shows the one that its own projector likes best.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite import encoders, nsd, pipeline, unclip, variants
from mindeye2_lite.baselines import Made, begin, last, scaled, walk
from mindeye2_lite.config import Config
from mindeye2_lite.feed import Batch, Feed, derive
from mindeye2_lite.hardware import Hardware, adamw
from mindeye2_lite.loop import SCALES, Plan, one_cycle
from mindeye2_lite.losses import bimixco_loss, low_level_contrastive_loss, soft_clip_loss
from mindeye2_lite.low_level import GRID_CHANNELS, Upsampler, features_projector
from mindeye2_lite.prior import DiffusionPrior

CANDIDATES = 16
STEPS, STRENGTH, GUIDANCE = 20, 0.85, 3.5  # the released code's, with UniPC
DRAFT_EVERY = 6  # candidates take every sixth step; a choice, see `best_of`
AUX_SHARE = 0.1  # of the contrastive term of the low-level pipeline, as released
WEIGHT_DECAY = 1e-2
Pictures = Float[Tensor, "images 3 height width"]
Tokens = Float[Tensor, "images tokens dim"]


# ---- networks ----------------------------------------------------------------------------------


class HighLevel(nn.Module):
    """Residual MLP to CLIP tokens, the projector for retrieval, and the diffusion prior."""

    mixes = True  # voxels, in the first third of training

    def __init__(self, subject: int, num_voxels: int, config: Config):
        super().__init__()
        self.subject, self.shape = subject, (config.tokens, config.dim)
        self.first = variants.ResidualInput({subject: num_voxels}, config.hidden)
        self.out = nn.Linear(config.hidden, config.tokens * config.dim)
        self.projector = _projector(config.dim, wide=8 * config.dim // 3)  # 2048 for 768
        sizes = {"depth": config.prior_depth, "dim_head": config.prior_dim_head}
        self.prior = DiffusionPrior(config.tokens, config.dim, **sizes)

    def forward(
        self, voxels: Float[Tensor, "batch voxels"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"]]:
        """Tokens for the prior, and tokens for retrieval."""
        tokens = self.out(self.first(voxels, self.subject)).unflatten(1, self.shape)
        return tokens, self.projector(tokens)

    def loss(
        self, batch: Batch, temperature: float | None, generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """BiMixCo or SoftCLIP, and 30 times the prior's squared error (released code)."""
        tokens, retrieval = self(batch.voxels[self.subject])
        image = batch.targets["tokens"]
        brain, true = (F.normalize(x.flatten(1), dim=-1) for x in (retrieval, image))
        if temperature is None:
            contrastive = bimixco_loss(brain, true, batch.mix)
        else:
            contrastive = soft_clip_loss(brain, true, temperature)
        return contrastive + SCALES["prior"] * self.prior.loss(tokens, image, generator=generator)


class LowLevel(nn.Module):
    """Another residual MLP, and an upsampler to the VAE's latent: the blurry picture."""

    mixes = False

    def __init__(self, subject: int, num_voxels: int, config: Config):
        super().__init__()
        self.subject, self.side = subject, config.latent_size // 4
        self.first = variants.ResidualInput({subject: num_voxels}, config.hidden)
        self.out = nn.Linear(config.hidden, GRID_CHANNELS * self.side**2)
        self.norm = nn.GroupNorm(1, GRID_CHANNELS)
        self.upsampler = Upsampler(GRID_CHANNELS, 4, config.low_level_widths)
        self.features = features_projector(config.aux_dim)

    def grid(self, voxels: Float[Tensor, "batch voxels"]) -> Float[Tensor, "batch channels g g"]:
        """What the latent and the features for the contrastive term are made from."""
        latent = self.out(self.first(voxels, self.subject))
        return self.norm(latent.unflatten(1, (GRID_CHANNELS, self.side, self.side)))

    def forward(self, voxels: Float[Tensor, "batch voxels"]) -> Float[Tensor, "batch 4 size size"]:
        return self.upsampler(self.grid(voxels))

    def loss(
        self, batch: Batch, temperature: float | None, generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Absolute error of the latent, and a tenth of the teacher's contrastive term."""
        grid = self.grid(batch.voxels[self.subject])
        seen = self.features(grid).flatten(2).mT  # (batch, places, aux_dim)
        views = (seen, batch.targets["aux"], batch.targets["aux_augmented"])
        rows = (F.normalize(view, dim=-1).flatten(0, 1) for view in views)
        error = F.l1_loss(self.upsampler(grid), batch.targets["latents"])
        return error + AUX_SHARE * low_level_contrastive_loss(*rows)


def _projector(width: int, wide: int) -> nn.Sequential:
    sizes, layers = (width, wide, wide, width), []
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [nn.LayerNorm(before), nn.GELU(), nn.Linear(before, after)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class MindEye1:
    """Both networks of one person, in eval mode."""

    high: HighLevel
    low: LowLevel


# ---- training ----------------------------------------------------------------------------------


def fit(
    person: nsd.Subject, trials: nsd.Trials, config: Config, *, seed: int = 0,
    device: str = "cpu", progress: bool = True,
) -> MindEye1:  # fmt: skip
    """Both networks, trained one after the other on single trials.

    `config` names the smaller CLIP already (`variants.smaller_clip`). Steps, batches and the
    learning rate are those of MindEye2's fine-tuning; the second network takes half the epochs (as
    released: 120 against 240). Only training pictures are looked at.
    ValueError in one line without a low-level head in the config, or of `loop.Plan.of`.
    """
    if not config.low_level:
        raise ValueError("MindEye1 starts from a low-level picture: pass a config with low_level")
    ids = trials.image_ids
    targets = encoders.targets(person.images, ids, config, device=device, progress=progress)
    feed = Feed({person.subject: trials}, targets, config.batch, seed, torch.device(device))
    plan, made = Plan.of(config, len(trials), feed.batch), []
    half = replace(plan, epochs=max(1, plan.epochs // 2))
    for name, kind, steps in (("high level", HighLevel, plan), ("low level", LowLevel, half)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, name))
            network = kind(person.subject, person.num_voxels, config).to(device)
            _train(network, feed, steps, name, seed, progress)
        made.append(network.eval())
    return MindEye1(*made)


def _train(
    network: nn.Module, feed: Feed, plan: Plan, name: str, seed: int, progress: bool
) -> None:
    """AdamW and one cycle; what is random in step k follows from (seed, k)."""
    optimizer = adamw(_groups(network), plan.max_lr, Hardware())
    scheduler, generator = one_cycle(optimizer, plan), torch.Generator(feed.device)
    network.train()
    for step in tqdm(range(plan.steps), f"MindEye1, {name}", disable=not progress, mininterval=1):
        torch.manual_seed(derive(seed, "dropout", step, name))
        generator.manual_seed(derive(seed, "noise", step, name))
        temperature = plan.temperature(step)
        batch = feed(step, mixed=network.mixes and temperature is None)
        loss = network.loss(batch, temperature, generator)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"MindEye1, {name}: the loss of step {step} is {float(loss)}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def _groups(network: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for all but biases and the gains of norms."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]


# ---- pictures ----------------------------------------------------------------------------------


def mindeye1(
    root: str | Path, subject: int, config: Config, *, sessions: int | None = None, seed: int = 0,
    limit: int | None = None, device: str | None = None, progress: bool = True,
    candidates: int = CANDIDATES, decoder: unclip.Decoder | None = None,
) -> Made:  # fmt: skip
    """Train on a person's sessions, then paint the test images, the first `limit` of them.

    Voxels of a test picture are averaged over its repeats before they go in; one sample of the
    prior in all of its 100 steps; then `best_of` so many `candidates` from the low-level picture.
    `decoder` takes the place of the config's. Departures: the sizes and the length of training are
    MindEye2's; no augmentation of pictures, as their tokens are computed once; tokens as our
    variation network takes them, not scaled by their class token; guidance as in
    `baselines.scaled`; Euler's method for UniPC. ValueError or FileNotFoundError in one line where
    something is missing.
    """
    device, smaller = device or pipeline.best_device(), variants.smaller_clip(config)
    decoder = decoder or unclip.load(smaller.decoder, device)
    encoder = encoders.image_encoder(smaller.encoder, device)
    person = nsd.Subject(root, subject)
    trials, test = person.train(sessions=sessions), person.test(sessions=sessions)
    model = fit(person, trials, smaller, seed=seed, device=device, progress=progress)
    generator = torch.Generator().manual_seed(seed)
    voxels, image_ids = test.repeats(3).mean(1)[:limit].to(device), test.image_ids[:limit]
    with torch.no_grad():
        tokens, retrieval = model.high(voxels)
        latents = model.low(voxels)
    prior_tokens = model.high.prior.sample(tokens.cpu() if device == "cpu" else tokens, None,
                                           generator=generator)  # fmt: skip
    low_level = pipeline.decode_blurry(encoders.vae(config.vae, device), latents, device)
    pictures = best_of(
        decoder, prior_tokens.cpu(), low_level, retrieval.cpu(), encoder, generator=generator,
        candidates=candidates, guidance_scale=scaled(GUIDANCE, config), progress=progress,
    )  # fmt: skip
    seen = person.images[image_ids]
    true = pipeline.encode_seen(encoder, seen, device, through=config.score_size)
    return Made(image_ids, pictures, low_level, retrieval.cpu(), true)


@torch.no_grad()
def best_of(
    decoder: unclip.Decoder,
    tokens: Tokens,
    pictures: Pictures,
    wanted: Tokens,
    encoder: nn.Module,
    *,
    generator: torch.Generator,
    candidates: int = CANDIDATES,
    guidance_scale: float = GUIDANCE,
    num_inference_steps: int = STEPS,
    strength: float = STRENGTH,
    draft_every: int = DRAFT_EVERY,
    progress: bool = True,
) -> Float[Tensor, "images 3 _ _"]:
    """Of several pictures from other noise, the one whose tokens are nearest to the wanted ones.

    `wanted` are the projector's, compared by cosine. Official: all candidates in full. Here they
    are drafts, of every `draft_every`th step and without guidance, and the chosen one is painted
    again from the same noise in full, as 16 times 17 steps would take more time than all the rest.
    Of 24 test pictures of the synthetic cohort, 14 drafts chose as full candidates do; of the 16,
    the chosen was on average the second best. 1 is as released: what is compared is shown.
    """
    times, made = last(num_inference_steps, strength), []
    rows = torch.arange(len(tokens)).split(max(1, decoder.batch // candidates))
    for chosen in tqdm(rows, "candidates", disable=not progress, mininterval=1):
        many = tokens[chosen].repeat_interleave(candidates, 0)
        start = begin(decoder, many.shape, pictures[chosen], generator, copies=candidates)
        led = None if draft_every > 1 else guidance_scale
        drafts = walk(decoder, many, *start, times[::draft_every], led)
        best = nearest(encoder(drafts.to(decoder.device)).cpu(), wanted[chosen])
        if draft_every == 1:
            made.append(drafts[best])
            continue
        again = (part[best.to(part.device)] for part in start)
        made.append(walk(decoder, many[best], *again, times, guidance_scale))
    return pipeline.no_larger(torch.cat(made))


def nearest(
    tokens: Float[Tensor, "candidates n dim"], wanted: Float[Tensor, "images n dim"]
) -> Int[Tensor, " images"]:
    """Rows of the candidates, as many in a row for each image, that are nearest by cosine."""
    each = len(tokens) // len(wanted)
    unit, true = (F.normalize(x.flatten(1), dim=-1) for x in (tokens, wanted))
    cosine = (unit.unflatten(0, (-1, each)) * true[:, None]).sum(-1)  # (images, candidates)
    return cosine.argmax(1) + each * torch.arange(len(wanted))
