"""How the shipped miniatures are made: one command each, resumable, on a CPU or a GPU.

    mindeye2-lite miniatures mini-vae          # or any other name, or several, or all
    mindeye2-lite miniatures --measure         # held-out quality, into results/miniatures.json

They learn from scenes that are in no cohort (`scenes.TRAINING_SEED`). Each is a `Recipe`: a
network, a loss on a random batch, and numbers. One loop trains them all: AdamW, a short warm-up, a
cosine to zero, and an average of the weights where that helps. See book/miniatures.md.
"""

import copy
import functools
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite import captions, encoders, experiments, paths, scenes, unclip

SCENES = 100_000  # training scenes; the held-out ones have a seed of their own
HELD_OUT_SEED = scenes.TRAINING_SEED + 1
JUDGES = ("alex", "incep", "eff", "swav")
ATTRIBUTES = ("kind", "color", "ground", "light")  # what the judges' heads name, in this order


# ---- data --------------------------------------------------------------------------------------


@dataclass
class Pictures:
    """Training scenes as tensors on one device, and what frozen networks make of them, on demand.

    images uint8 (n, 3, 64, 64); words int16 (n, 5, context); labels int64 (n, 4).
    """

    images: Tensor
    words: Tensor
    labels: Tensor
    kept: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> str:
        return str(self.images.device)

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Row numbers of a random batch; drawn on the CPU, so that a run can be resumed."""
        return torch.randint(len(self), (batch,), generator=generator).to(self.images.device)

    def pixels(self, rows: Tensor) -> Tensor:
        return self.images[rows].float() / 255

    def all(self, name: str, compute: Callable[[Tensor], Tensor], batch: int = 1000) -> Tensor:
        """`compute(pixels)` of every picture, as float16, computed once."""
        if name not in self.kept:
            rows = torch.arange(len(self), device=self.images.device).split(batch)
            with torch.no_grad():
                parts = [compute(self.pixels(part)).half() for part in rows]
            self.kept[name] = torch.cat(parts)
        return self.kept[name]


def training_pictures(
    n: int, seed: int, device: str = "cpu", workers: int | None = None
) -> Pictures:
    """Render n scenes (kept in the cache folder) with their captions and labels."""
    path = paths.cache() / "miniatures" / f"scenes-{seed}-{n}-{_scenes_key()}.npz"
    if not path.exists():
        made = _draw_scenes(n, seed, workers or os.cpu_count())
        with paths.write_beside(path) as beside, open(beside, "wb") as file:
            np.savez(file, **made)
    with np.load(path) as kept:
        return Pictures(**{name: torch.from_numpy(kept[name]).to(device) for name in kept.files})


def _draw_scenes(n: int, seed: int, workers: int | None) -> dict[str, np.ndarray]:
    drawn = scenes.sample(n, seed)
    words = encoders.word_ids([text for scene in drawn for text in scenes.captions(scene)])
    true = scenes.attributes(drawn)
    return {
        "images": scenes.render(drawn, workers=workers).transpose(0, 3, 1, 2).copy(),
        "words": words.reshape(n, 5, -1).short().numpy(),
        "labels": np.stack([true[name].astype(np.int64) for name in ATTRIBUTES], axis=1),
    }


def _scenes_key() -> str:
    """A short hash of a few pictures: when scenes change, so does the cache file's name."""
    import hashlib

    probe = scenes.render(scenes.sample(8, scenes.TRAINING_SEED))
    return hashlib.sha256(probe.tobytes()).hexdigest()[:10]


# ---- losses ------------------------------------------------------------------------------------

Loss = Callable[[nn.Module, Pictures, int, torch.Generator], Tensor]


def washed(pixels: Tensor, generator: torch.Generator, least: float = 0.5) -> Tensor:
    """Half of the pictures paler, towards the range [0.5, 1] in which the pipeline shows them."""
    draws = torch.rand(2, len(pixels), generator=generator).to(pixels.device)
    share = torch.where(draws[0] < 0.5, 1, least + (1 - least) * draws[1])[:, None, None, None]
    return pixels * share + 1 - share


def vae_loss(vae: nn.Module, data: Pictures, batch: int, generator: torch.Generator) -> Tensor:
    """Squared error and a little absolute error, with a whisper of KL."""
    pixels = 2 * washed(data.pixels(data.draw(batch, generator)), generator) - 1
    posterior = vae.network.encode(pixels).latent_dist
    z = posterior.mean + posterior.std * _normal(posterior.mean, generator)
    decoded = vae.network.decode(z).sample.float()
    error = F.mse_loss(decoded, pixels) + 0.05 * F.l1_loss(decoded, pixels)
    return error + 1e-6 * posterior.kl().mean()


def clip_loss(clip: nn.Module, data: Pictures, batch: int, generator: torch.Generator) -> Tensor:
    """Contrastive, both ways; captions with the same words count as one another's."""
    rows = data.draw(batch, generator)
    pixels = washed(data.pixels(rows), generator)
    mean, std = (
        pixels.new_tensor(v)[:, None, None] for v in (encoders.CLIP_MEAN, encoders.CLIP_STD)
    )
    which = torch.randint(5, (batch,), generator=generator).to(rows.device)
    words = data.words[rows, which].long()
    out = clip(image=(pixels - mean) / std, text=words)
    logits = out[2] * out[0].float() @ out[1].float().T
    same = (words[:, None] == words[None]).all(dim=-1).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def judge_loss(judge: nn.Module, data: Pictures, batch: int, generator: torch.Generator) -> Tensor:
    """Name the kind, color, ground and light of a jittered picture."""
    rows = data.draw(batch, generator)
    pixels = jittered(data.pixels(rows), generator, crop=0.15)
    heads = judge(pixels).float().split(_label_sizes(), dim=1)
    return sum(F.cross_entropy(h, data.labels[rows, i]) for i, h in enumerate(heads))


def twin_loss(
    pair: nn.ModuleDict, data: Pictures, batch: int, generator: torch.Generator
) -> Tensor:
    """Contrastive and without labels: two views of a picture find each other among the others'.

    The views differ in crop, light and color, so that form is what is left to be recognized by.
    """
    pixels = data.pixels(data.draw(batch, generator))
    both = torch.cat(
        [recolored(jittered(pixels, generator, crop=0.5), generator) for _ in range(2)]
    )
    views = F.normalize(pair["projector"](pair["cnn"].pooled(both)).float(), dim=1)
    logits = views @ views.T / 0.2
    logits = logits - 1e4 * torch.eye(2 * batch, device=logits.device)
    twin = torch.arange(2 * batch, device=logits.device).roll(batch)
    return F.cross_entropy(logits, twin)


def build_twins(name: str) -> nn.ModuleDict:
    """A network and the projector that its contrastive loss looks through; only the first ships."""
    cnn = encoders.build_cnn(name)
    width = encoders.CNNS[name][-1]
    projector = nn.Sequential(
        nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 128)
    )
    return nn.ModuleDict({"cnn": cnn, "projector": projector})


def noise_loss(
    unet: nn.Module, latents: Tensor, tokens: Tensor, size_ids: tuple, pooled: Tensor | None,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Predict the noise, with the offset and the schedule that sampling uses; min-SNR weights."""
    batch = len(latents)
    t = torch.randint(unclip.TRAIN_STEPS, (batch,), generator=generator).to(latents.device)
    noise = _normal(latents, generator)
    offset = torch.randn(batch, 1, 1, 1, generator=generator).to(latents)
    noise = noise + unclip.NOISE_OFFSET * offset
    sigma = unclip.sigmas().to(latents.device)[t][:, None, None, None]
    noisy = (latents + sigma * noise) / (sigma**2 + 1).sqrt()
    predicted = unclip.conditioned(unet, size_ids, pooled)(noisy, t, tokens).float()
    weight = (5 * sigma**2).clamp(max=1)  # min(SNR, 5) / SNR
    weight = 0.5 + 0.5 * weight  # keep half of the plain loss: fine detail matters at 64 pixels
    return (weight * (predicted - noise) ** 2).mean()


def sdxl_loss(unet: nn.Module, data: Pictures, batch: int, generator: torch.Generator) -> Tensor:
    """Text to image; one prompt in ten is empty, for guidance."""
    rows = data.draw(batch, generator)
    latents = _latents(data)[rows].float()
    which = torch.randint(5, (batch,), generator=generator).to(rows.device)
    words = data.words[rows, which].long()
    empty = encoders.word_ids([""]).to(words)
    dropped = torch.rand(batch, generator=generator).to(rows.device) < 0.1
    tokens, pooled = _text("mini-bigG", data.device, torch.where(dropped[:, None], empty, words))
    return noise_loss(unet, latents, tokens, (64, 64, 0, 0, 64, 64), pooled, generator)


def unclip_loss(
    unet: nn.Module,
    data: Pictures,
    batch: int,
    generator: torch.Generator,
    encoder: str = "mini-bigG",
) -> Tensor:
    """Image tokens to image; one set of tokens in ten is noise, as sampling has it for guidance.

    The target is the pale picture that the released rescale, 0.8 y + 0.2, makes the true one.
    """
    rows = data.draw(batch, generator)
    latents = _latents(data, for_unclip=True)[rows].float()
    tokens = _image_tokens(data, encoder)[rows].float()
    dropped = torch.rand(batch, 1, 1, generator=generator).to(tokens) < 0.1
    tokens = torch.where(dropped, _normal(tokens, generator), tokens)
    return noise_loss(unet, latents, tokens, (64, 64, 0, 0), None, generator)


def git_loss(pair: nn.ModuleDict, data: Pictures, batch: int, generator: torch.Generator) -> Tensor:
    """The converter imitates mini-L's tokens; GIT learns to caption from both kinds of tokens."""
    rows = data.draw(batch, generator)
    small = _image_tokens(data, "mini-L")[rows].float()
    converted = pair["converter"](_image_tokens(data, "mini-bigG")[rows].float())
    true = torch.rand(batch, 1, 1, generator=generator).to(small) < 0.25
    seen = torch.where(true, small, converted.detach())
    which = torch.randint(1, 4, (batch,), generator=generator).to(rows.device)
    words = data.words[rows, which].long()  # these name kind, color and ground; 0 and 4 may not
    logits = pair["git"](input_ids=words, pixel_values=seen[:, None]).logits.float()
    logits = logits[:, -words.shape[1] : -1]
    naming = F.cross_entropy(
        logits.flatten(0, 1), words[:, 1:].flatten(), ignore_index=captions.PAD
    )
    return naming + F.mse_loss(converted, small)


def _label_sizes() -> list[int]:
    return [len(scenes.KINDS), len(scenes.COLORS), len(scenes.GROUNDS), len(scenes.LIGHTS)]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=_on(generator, like.device), device=like.device)


_DEVICE_GENERATORS: dict[int, torch.Generator] = {}


def _on(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator, or a twin of it on the device, seeded afresh from it at every call."""
    if device.type == "cpu":
        return generator
    twin = _DEVICE_GENERATORS.setdefault(id(generator), torch.Generator(device))
    return twin.manual_seed(int(torch.randint(2**62, (), generator=generator)))


def jittered(pixels: Tensor, generator: torch.Generator, crop: float) -> Tensor:
    """A random crop down to a share 1 - crop, brightness, contrast, paleness, a little noise."""
    batch, device = len(pixels), pixels.device
    draws = torch.rand(6, batch, generator=generator).to(device)
    zoom = 1 - crop * draws[0]
    shift = (1 - zoom)[None] * (2 * draws[1:3] - 1)
    grid = torch.zeros(batch, 2, 3, device=device)
    grid[:, 0, 0] = grid[:, 1, 1] = zoom
    grid[:, :, 2] = shift.T
    grid = F.affine_grid(grid, list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    gain, lift = (0.7 + 0.6 * draws[3:5])[:, :, None, None, None]
    pixels = (pixels - 0.5) * gain + 0.5 * lift + 0.05 * _normal(pixels, generator)
    return washed(pixels.clamp(0, 1), generator)


def recolored(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Channels in a random order and strength for most pictures, gray for one in five."""
    batch = len(pixels)
    draws = torch.rand(3, batch, 3, generator=generator).to(pixels.device)
    order = draws[0].argsort(dim=1)[:, :, None, None].expand_as(pixels)
    mixed = pixels.gather(1, order) * (0.6 + 0.8 * draws[1])[:, :, None, None]
    gray = pixels.mean(dim=1, keepdim=True).expand_as(pixels)
    chosen = torch.where((draws[2, :, 0] < 0.2)[:, None, None, None], gray, mixed)
    return torch.where((draws[2, :, 1] < 0.85)[:, None, None, None], chosen, pixels).clamp(0, 1)


def _latents(data: Pictures, for_unclip: bool = False) -> Tensor:
    """VAE latents of all pictures; for unCLIP of y with 0.8 y + 0.2 = picture, y in [-1, 1]."""
    vae = encoders.vae("mini-vae", data.device)

    def compute(pixels: Tensor) -> Tensor:
        y = (pixels - unclip.BRIGHTNESS) / unclip.CONTRAST
        return vae.encode((y + 1) / 2 if for_unclip else pixels)

    return data.all(f"latents-{for_unclip}", compute)


def _image_tokens(data: Pictures, encoder: str) -> Tensor:
    """Image tokens in the range that the pipeline uses; mini-L's with its class token."""
    visual = encoders.load_clip(encoder, data.device).visual
    image_encoder = encoders.ImageEncoder(visual, class_token=encoder == "mini-L").to(data.device)
    return data.all(f"tokens-{encoder}", image_encoder)


@torch.no_grad()
def _text(name: str, device: str, words: Tensor) -> tuple[Tensor, Tensor]:
    clip = encoders.load_clip(name, device)
    out = clip.forward_intermediates(text=words, text_indices=2, normalize=False)
    return out["text_intermediates"][0], out["text_features"]


# ---- recipes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A miniature's network, its loss, and the numbers of its training."""

    build: Callable[[], nn.Module]
    loss: Loss
    steps: int
    batch: int
    lr: float
    weight_decay: float = 0.01
    average: float = 0.0  # decay of the weights' moving average; 0: none
    needs: tuple[str, ...] = ()  # miniatures that must be there first


def unclip_from_sdxl() -> nn.Module:
    """Start from mini-sdxl: new keys and values of cross-attention, the size part of its labels."""
    unet, trained = unclip.build_unet("mini-unclip"), encoders.load_weights("mini-sdxl")
    fresh = unet.state_dict()
    for key, value in trained.items():
        if ".attn2.to_k" in key or ".attn2.to_v" in key:
            continue
        fresh[key] = value[tuple(slice(n) for n in fresh[key].shape)]
    unet.load_state_dict(fresh)
    return unet


def _judge_recipe(name: str, **numbers) -> Recipe:
    numbers = {"steps": 6000, "batch": 256, "lr": 2e-3} | numbers
    if name in encoders.NO_LABELS:
        numbers |= {"batch": 512, "steps": 10_000}
        return Recipe(functools.partial(build_twins, name), twin_loss, **numbers)
    build = functools.partial(encoders.build_cnn, name, sum(_label_sizes()))
    return Recipe(build, judge_loss, **numbers)


def recipes() -> dict[str, Recipe]:
    """All miniatures, in the order in which they can be trained."""
    clip = {"loss": clip_loss, "batch": 512, "lr": 1e-3, "weight_decay": 0.1}
    unet = {"lr": 1e-3, "batch": 256, "average": 0.9995}
    return {
        "mini-vae": Recipe(encoders.build_vae, vae_loss, 12_000, 64, 1.5e-3, average=0.999),
        "mini-bigG": Recipe(
            functools.partial(encoders.build_clip, "mini-bigG"), steps=8000, **clip
        ),
        "mini-L": Recipe(functools.partial(encoders.build_clip, "mini-L"), steps=8000, **clip),
        **{name: _judge_recipe(name) for name in (*JUDGES, "mini-vicreg")},
        "mini-sdxl": Recipe(
            functools.partial(unclip.build_unet, "mini-sdxl"), sdxl_loss, 20_000,
            needs=("mini-vae", "mini-bigG"), **unet,
        ),
        "mini-unclip": Recipe(
            unclip_from_sdxl, unclip_loss, 30_000,
            needs=("mini-vae", "mini-bigG", "mini-sdxl"), **unet,
        ),
        "mini-vd": Recipe(
            functools.partial(unclip.build_unet, "mini-vd"),
            functools.partial(unclip_loss, encoder="mini-L"), 20_000,
            needs=("mini-vae", "mini-L"), **unet,
        ),
        "mini-git": Recipe(
            captions.build, git_loss, 8000, 256, 1e-3, needs=("mini-bigG", "mini-L")
        ),
    }  # fmt: skip


# ---- the loop ----------------------------------------------------------------------------------


def train(
    name: str, *, steps: int | None = None, minutes: float = math.inf, scene_count: int = SCENES,
    device: str | None = None, seed: int = 0, progress: bool = True,
) -> nn.Module:  # fmt: skip
    """Train one miniature and write its weights. A killed run goes on from its last checkpoint.

    `minutes` bounds the time: the learning rate then reaches zero at whichever comes first.
    """
    recipe = recipes()[name]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for needed in recipe.needs:
        encoders.load_weights(needed)
    data = training_pictures(scene_count, scenes.TRAINING_SEED, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = recipe.build().to(device)
    run = Run(recipe, network, steps or recipe.steps, minutes * 60, seed)
    run.resume(_checkpoint(name, seed))
    run.go(data, name, _checkpoint(name, seed), progress)
    ship(
        name,
        run.averaged,
        data,
        {"steps": run.step, "seconds": run.seconds, "seed": seed, "scenes": scene_count},
    )
    return run.averaged


class Run:
    """The state of one training: what a checkpoint holds."""

    def __init__(self, recipe: Recipe, network: nn.Module, steps: int, limit: float, seed: int):
        self.recipe, self.network, self.steps, self.limit = recipe, network, steps, limit
        self.averaged = copy.deepcopy(network).requires_grad_(False) if recipe.average else network
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.step, self.seconds = 0, 0.0

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint if there is one."""
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location="cpu")
        for part in ("network", "averaged", "optimizer"):
            getattr(self, part).load_state_dict(state[part])
        self.generator.set_state(state["generator"])
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self, path: Path) -> None:
        state = {
            **{p: getattr(self, p).state_dict() for p in ("network", "averaged", "optimizer")},
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        with paths.write_beside(path) as beside:
            torch.save(state, beside)

    def go(self, data: Pictures, name: str, path: Path, progress: bool) -> None:
        """Train to the end, with a checkpoint every two minutes."""
        began, before, saved = time.monotonic(), self.seconds, time.monotonic()
        bar = tqdm(
            total=self.steps, initial=self.step, desc=name, disable=not progress, mininterval=2
        )
        self.network.train()
        while (done := self.progress()) < 1:
            loss = self.one(data, done)
            self.step += 1
            self.seconds = before + time.monotonic() - began
            bar.update()
            if self.step % 100 == 0:
                bar.set_postfix(loss=f"{loss.item():.4f}")
            if time.monotonic() - saved > 120:
                self.save(path)
                saved = time.monotonic()
        self.save(path)

    def progress(self) -> float:
        return max(self.step / self.steps, self.seconds / self.limit)

    def one(self, data: Pictures, done: float) -> Tensor:
        """One step. Warm-up over the first 200 steps, then half a cosine to zero."""
        recipe = self.recipe
        rate = recipe.lr * min(1, (self.step + 1) / 200) * (1 + math.cos(math.pi * done)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(data.images.device.type, torch.bfloat16, enabled=data.images.is_cuda):
            loss = recipe.loss(self.network, data, recipe.batch, self.generator)
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"the loss is {loss.detach().item()} at step {self.step}: lower the rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        if recipe.average:
            self.average(min(recipe.average, (self.step + 1) / (self.step + 10)))
        return loss.detach()

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Move the averaged weights a little towards the present ones."""
        mean, now = list(self.averaged.parameters()), list(self.network.parameters())
        torch._foreach_lerp_(mean, [p.detach() for p in now], 1 - decay)
        for a, b in zip(self.averaged.buffers(), self.network.buffers(), strict=True):
            a.copy_(b)


def _checkpoint(name: str, seed: int) -> Path:
    return paths.cache() / "miniatures" / f"{name}-{seed}.pt"


# ---- shipping ----------------------------------------------------------------------------------


def ship(name: str, network: nn.Module, data: Pictures, facts: dict) -> None:
    """Write float16 weights and their line in the manifest; judges go into one file together."""
    from filelock import FileLock

    if name == "mini-vae":
        set_scale(network, data)
    with FileLock(paths.cache() / "miniatures" / "shipping.lock"):
        _ship(name, network, facts | {"device": _device_name(data.device)})
    for load in (
        encoders.load_clip,
        encoders.vae,
        encoders.load_cnn,
        unclip.load_unet,
        captions.load,
    ):
        load.cache_clear()


def _ship(name: str, network: nn.Module, facts: dict) -> None:
    from safetensors.torch import load_file, save_file

    if name in encoders.NO_LABELS:
        network = network["cnn"]
    state = {
        key: value.detach().half().cpu().contiguous() for key, value in network.state_dict().items()
    }
    shipped = "mini-judges" if name in JUDGES else name
    path = paths.weights(shipped)
    if shipped != name:
        others = load_file(path) if path.exists() else {}
        state = {k: v for k, v in others.items() if not k.startswith(f"{name}.")} | {
            f"{name}.{key}": value for key, value in state.items()
        }
    with paths.write_beside(path) as beside:
        save_file(state, beside)
    note_in_manifest(shipped, name, facts)


@torch.no_grad()
def set_scale(vae: nn.Module, data: Pictures) -> None:
    """Scale the latents to unit variance, over washed and plain pictures."""
    vae.scale.fill_(1.0)
    rows = torch.arange(0, len(data), max(1, len(data) // 2000), device=data.images.device)
    latents = torch.cat([vae.encode(data.pixels(part)) for part in rows.split(250)])
    vae.scale.fill_(1 / float(latents.std()))


def note_in_manifest(shipped: str, name: str, facts: dict) -> None:
    """Record SHA-256, bytes, parameters and how the file was made."""
    import hashlib

    from safetensors.torch import load_file

    path, known = paths.weights(shipped), encoders.manifest()
    entry = known.get(shipped, {})
    entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    entry["bytes"] = path.stat().st_size
    entry["parameters"] = sum(value.numel() for value in load_file(path).values())
    facts = {"command": f"mindeye2-lite miniatures {name}", **facts, "commit": experiments.commit()}
    entry.setdefault("made", {})[name] = facts
    with paths.write_beside(paths.PACKAGE / "weights" / "manifest.json") as beside:
        beside.write_text(json.dumps(known | {shipped: entry}, indent=1, sort_keys=True) + "\n")


def _device_name(device: str) -> str:
    return experiments.device_name() if device.startswith("cuda") else f"{os.cpu_count()} CPU cores"


# ---- how good they are -------------------------------------------------------------------------


def measure(n: int = 500, seed: int = 0, device: str = "cpu", decoded: int = 200) -> dict:
    """Held-out quality of every shipped miniature, on scenes that neither they nor a cohort saw.

    Shares carry n, the chance level and a 95% interval (Wilson's for shares, normal for means).
    """
    began = time.monotonic()
    data = training_pictures(n, HELD_OUT_SEED, device)
    truth = data.labels.cpu()
    pixels = data.pixels(torch.arange(n, device=data.images.device))
    found = {
        "mini-vae": {"PSNR": _mean(_psnr(encoders.vae("mini-vae", device), pixels), "dB")},
        "mini-bigG": {"kind, zero-shot": _kinds(encoders.zero_shot_kinds(pixels), truth)},
        "mini-L": {"kind, zero-shot": _kinds(encoders.zero_shot_kinds(pixels, "mini-L"), truth)},
        "mini-judges": {
            f"{name}: kind": _kinds(encoders.judged_kinds(pixels, name), truth)
            for name in ("alex", "incep", "eff")
        }
        | {
            f"{name}: kind, by a linear probe, no labels in training": _kinds(
                _probed_kinds(name, pixels, data), truth
            )
            for name in ("swav", "mini-vicreg")
        },
    }
    tokens = encoders.image_encoder("mini-bigG", device)(pixels)
    found["mini-git"] = _caption_quality(
        captions.caption(captions.load("mini-git", device), tokens), truth
    )
    few = slice(0, decoded)
    for name, encoder in (("mini-unclip", "mini-bigG"), ("mini-vd", "mini-L")):
        seen = _image_tokens(data, encoder)[few].float()
        found[name] = _decoder_quality(name, seen, pixels[few].cpu(), truth[few], seed, device)
    found["mini-sdxl"] = _text_quality(data, truth[few], seed, device)
    return {
        "command": "mindeye2-lite miniatures --measure",
        "profile": "lite",
        "commit": experiments.commit(),
        "seed": seed,
        "device": _device_name(data.device),
        "seconds": round(time.monotonic() - began, 1),
        "held-out scenes": n,
        "found": found,
    }


def write_measure(**how) -> Path:
    """Measure, and write `results/miniatures.json`."""
    path = paths.results("miniatures")
    with paths.write_beside(path) as beside:
        beside.write_text(json.dumps(measure(**how), indent=1) + "\n")
    return path


def _decoder_quality(
    name: str, tokens: Tensor, pixels: Tensor, truth: Tensor, seed: int, device: str
) -> dict[str, dict]:
    from mindeye2_lite import metrics

    generator = torch.Generator().manual_seed(seed)
    decoder = unclip.load(name, device)
    pictures = unclip.decode(decoder, tokens, generator=generator, progress=False)
    judge = encoders.judges(device=device)["CLIP"]
    two_way = metrics.two_way_per_image(judge(pixels), judge(pictures))
    return {
        "PixCorr": _mean(metrics.pixcorr_per_image(pictures, pixels)),
        "CLIP, two-way": _mean(two_way, chance=0.5),
        "kind kept, by a judge": _kinds(encoders.judged_kinds(pictures), truth),
        "color kept, by a judge": _kinds(_judged(pictures, 1), truth, column=1),
    }


def _text_quality(data: Pictures, truth: Tensor, seed: int, device: str) -> dict[str, dict]:
    """Text to image from the first caption, judged by kind: what refinement builds on."""
    from mindeye2_lite import refine

    refiner, n = refine.load("mini-sdxl", device), len(truth)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 4, 16, 16, generator=generator).to(device) * unclip.sigmas()[-1].to(
        device
    )
    tokens, pooled = _text("mini-bigG", device, data.words[:n, 0].long())
    empty, empty_pooled = refiner.text([""] * n)
    both = torch.cat([empty_pooled, pooled])
    denoiser = unclip.conditioned(refiner.unet, refiner.size_ids, both)
    with torch.no_grad():
        latents = unclip.euler(denoiser, noise, unclip.timesteps(25), tokens, empty)
    pictures = refiner.vae.decode(latents)
    return {"kind as asked, by a judge": _kinds(encoders.judged_kinds(pictures), truth)}


def _caption_quality(sentences: list[str], truth: Tensor) -> dict[str, dict]:
    """Does the sentence name what is there? A kind, color or ground left out is a miss."""
    names = {"kind": scenes.KINDS, "color": scenes.COLORS, "ground": scenes.GROUNDS}
    said = [scenes.mentioned(sentence) for sentence in sentences]
    right = {
        what: np.array([s[what] == words[t] for s, t in zip(said, truth[:, k], strict=True)])
        for k, (what, words) in enumerate(names.items())
    }
    silent = {what: np.array([s[what] is None for s in said]) for what in names}
    unwrong = {what: right[what] | silent[what] for what in names}
    return {
        "kind, color and ground all named and right": _share(np.all(list(right.values()), axis=0)),
        "nothing named wrongly": _share(np.all(list(unwrong.values()), axis=0)),
        **{f"{what} named and right": _share(right[what]) for what in names},
    }


@torch.no_grad()
def _judged(pictures: Tensor, column: int, judge: str = "incep") -> Tensor:
    heads = encoders.load_cnn(judge, str(pictures.device))(pictures).split(_label_sizes(), dim=1)
    return heads[column].argmax(dim=1)


@torch.no_grad()
def _probed_kinds(name: str, pixels: Tensor, data: Pictures, gallery: int = 4000) -> Tensor:
    """Kinds by a linear probe on frozen features: how networks that saw no labels are judged."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    cnn = encoders.load_cnn(name, data.device)
    known = training_pictures(gallery, scenes.TRAINING_SEED, data.device)
    shelves = torch.arange(gallery, device=pixels.device).split(500)
    shelf = torch.cat([cnn.pooled(known.pixels(rows)) for rows in shelves])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(shelf.cpu().numpy(), known.labels[:, 0].cpu().numpy())
    return torch.from_numpy(probe.predict(cnn.pooled(pixels).cpu().numpy()))


def _psnr(vae: nn.Module, pixels: Tensor) -> Tensor:
    error = (vae.decode(vae.encode(pixels)) - pixels).pow(2).mean(dim=(1, 2, 3))
    return -10 * error.log10()


def _kinds(found: Tensor, truth: Tensor, column: int = 0) -> dict:
    chance = 1 / _label_sizes()[column]
    return _share((found.cpu() == truth[:, column]).numpy(), chance)


def _share(right: np.ndarray, chance: float | None = None) -> dict:
    from scipy.stats import binomtest

    interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return {
        "value": float(right.mean()),
        "low": float(interval.low),
        "high": float(interval.high),
        "n": len(right),
        "chance": chance,
    }


def _mean(values, unit: str = "", chance: float | None = None) -> dict:
    values = values.cpu() if isinstance(values, Tensor) else values  # it may be on a GPU
    values = np.asarray(getattr(values, "per_image", values), dtype=float)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    mean = float(values.mean())
    found = {"value": mean, "low": mean - half, "high": mean + half, "n": len(values)}
    return found | {"chance": chance} | ({"unit": unit} if unit else {})
