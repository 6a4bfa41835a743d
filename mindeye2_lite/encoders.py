"""The frozen networks around the model: CLIP towers, the VAE, the low-level teacher, the judges.

    images         (batch, 3, height, width) in [0, 1]
    image_tokens   (batch, tokens, dim)      16 x 128 here, 256 x 1664 for OpenCLIP bigG
    latents        (batch, 4, side, side)    16 x 16 here, 28 x 28 in the paper

The miniatures are `open_clip` and `diffusers` classes with small configurations; their weights are
shipped with a SHA-256 each. None of them is trained here (see `training_miniatures.py`). The large
ones that they stand for come by name from `released_networks.py`.
"""

import functools
import hashlib
import json
import tempfile
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite import paths, released, scenes
from mindeye2_lite.config import Config

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CONTEXT = 28  # words in a miniature caption, with start and end

CLIPS = {
    "mini-bigG": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 64, "patch_size": 16, "width": 128, "layers": 6, "head_width": 32,
        },
        "text_cfg": {"width": 128, "heads": 4, "layers": 2},
    },
    "mini-L": {
        "embed_dim": 96,
        "vision_cfg": {
            "image_size": 64, "patch_size": 16, "width": 96, "layers": 4, "head_width": 32,
        },
        "text_cfg": {"width": 96, "heads": 3, "layers": 2},
    },
}  # fmt: skip
WITH_CLASS_TOKEN = ("mini-L",)  # mini-vd and the captioner were trained on 17 tokens
VAES = {
    "mini-vae": {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 16,
        "mid_block_add_attention": False,
        "sample_size": 64,
    },
}
CNNS = {  # width of each stage; every stage halves the picture
    "alex": (24, 32, 48, 64, 64),
    "incep": (24, 40, 80, 112),
    "eff": (16, 32, 64, 128),
    "swav": (24, 48, 80, 128),
    "mini-vicreg": (24, 48, 80, 64),
}
NO_LABELS = ("swav", "mini-vicreg")  # trained without labels; shipped without a head
RELEASED = ("ViT-bigG-14", "sd-image-variations-vae", "convnext-xl-vicregl")  # not shipped
FEW = 16  # pictures that these are given at once: a choice for cards of 16 GB, not measured


# ---- weights -----------------------------------------------------------------------------------


def manifest() -> dict[str, dict]:
    """What is shipped: per file its SHA-256, bytes, parameters, and the command that made it."""
    path = paths.PACKAGE / "weights" / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


def load_weights(name: str, path: Path | None = None) -> dict[str, Tensor]:
    """A shipped state_dict as float32, after its SHA-256 was checked. Runs no code of the file.

    ValueError if the file is not the one that was shipped, FileNotFoundError if there is none.
    """
    from safetensors.torch import load_file

    path = path or paths.weights(name)
    if not path.exists():
        raise FileNotFoundError(
            f"{name}: no weights at {path}. Reinstall the package, or make them again: "
            f"mindeye2-lite miniatures {name}"
        )
    expected = manifest().get(name, {}).get("sha256")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path}: SHA-256 is {found[:12]}..., the shipped {name} has "
            f"{(expected or 'none')[:12]}...: the file was changed or cut; reinstall the package"
        )
    return {key: value.float() for key, value in load_file(path).items()}


def frozen(network: nn.Module, device: str | torch.device = "cpu") -> nn.Module:
    """The network in eval mode, on the device, with nothing left to train."""
    return network.to(device).eval().requires_grad_(False)


def precision_of(network: nn.Module) -> AbstractContextManager:
    """Autocast for a network whose matrices are of half precision; nothing for float32."""
    weight = next(p for p in network.parameters() if p.ndim > 1)
    if weight.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(weight.device.type, weight.dtype)


def _known(kind: str, name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise ValueError(f"{kind} {name!r} is not available here: choose one of {', '.join(names)}")


# ---- words -------------------------------------------------------------------------------------


@functools.cache
def tokenizer():
    """A word-level `tokenizers.Tokenizer` over the captions' vocabulary.

    Ids: 0 padding, 1 start, 2 unknown; the end token has the highest id, as CLIP's pooling needs.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[pad]", "[start]", "[unknown]", *scenes.vocabulary(), "[end]"]
    ids = {word: i for i, word in enumerate(words)}
    result = Tokenizer(models.WordLevel(ids, unk_token="[unknown]"))
    result.normalizer = normalizers.Lowercase()
    result.pre_tokenizer = pre_tokenizers.Whitespace()
    result.post_processor = processors.TemplateProcessing(
        single="[start] $A [end]", special_tokens=[("[start]", 1), ("[end]", len(words) - 1)]
    )
    result.add_special_tokens(["[pad]", "[start]", "[unknown]", "[end]"])
    result.enable_padding(length=CONTEXT, pad_id=0, pad_token="[pad]")
    result.enable_truncation(CONTEXT)
    return result


def word_ids(prompts: list[str]) -> Int[Tensor, "batch context"]:
    """Prompts as padded word ids."""
    return torch.tensor([encoding.ids for encoding in tokenizer().encode_batch(prompts)])


# ---- CLIP --------------------------------------------------------------------------------------


def build_clip(name: str) -> nn.Module:
    """An untrained `open_clip.CLIP` of that name's size."""
    from open_clip.model import CLIP

    sizes = CLIPS[name]
    words = tokenizer().get_vocab_size()
    text = sizes["text_cfg"] | {"context_length": CONTEXT, "vocab_size": words}
    return CLIP(sizes["embed_dim"], sizes["vision_cfg"], text)


@functools.cache
def load_clip(name: str, device: str = "cpu") -> nn.Module:
    """The frozen CLIP of that name."""
    _known("CLIP", name, CLIPS)
    clip = build_clip(name)
    clip.load_state_dict(load_weights(name))
    return frozen(clip, device)


class ImageEncoder(nn.Module):
    """Images to the tokens that the model predicts: patch tokens after the final LayerNorm.

    They are neither projected nor normalized, and the class token is dropped unless asked for.
    The released code takes images in [0, 1] for images in [-1, 1], so that CLIP sees [0.5, 1]:
    all targets, galleries and predictions live in that washed-out range, and so do ours (spec
    of the released `FrozenOpenCLIPImageEmbedder`; book/differences.md, "range").
    """

    def __init__(self, visual: nn.Module, *, class_token: bool = False):
        super().__init__()
        self.visual, self.class_token = visual, class_token
        self.size = visual.image_size[0]
        self.register_buffer("mean", torch.tensor(CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD)[:, None, None], persistent=False)

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize bicubically if needed, then the range quirk, then CLIP's mean and deviation.

        Larger pictures are blurred before, with σ = (ratio − 1) / 2 pixels, as kornia does it.
        """
        if images.shape[-1] != self.size:
            images = _without_aliases(images, images.shape[-1] / self.size)
            images = F.interpolate(images, self.size, mode="bicubic", align_corners=True)
        return ((images + 1) / 2 - self.mean) / self.std

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        with precision_of(self.visual):
            return self.tokens(self.preprocess(images)).float()

    def tokens(self, pixels: Tensor) -> Tensor:
        """Tokens of pixels that are normalized already.

        Asked for by name of the layer: what `output_tokens=True` returns has changed between
        versions of open_clip (up to 2.22 it was taken before the final LayerNorm).
        """
        out = self.visual.forward_intermediates(
            pixels,
            indices=1,  # of the last block
            normalize_intermediates=True,  # by ln_post
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        (patches,), (first,) = out["image_intermediates"], out["image_intermediates_prefix"]
        return torch.cat([first, patches], dim=1) if self.class_token else patches


def _without_aliases(images: Tensor, ratio: float) -> Tensor:
    """Blur before shrinking by that ratio; nothing below σ = 0.1, where the kernel is one pixel."""
    from torchvision.transforms.v2.functional import gaussian_blur

    sigma = (ratio - 1) / 2
    if sigma < 0.1:
        return images
    size = max(int(4 * sigma), 3)
    return gaussian_blur(images, [size + (size + 1) % 2] * 2, [sigma, sigma])


class TextEncoder(nn.Module):
    """Prompts to what SDXL sees of them: tokens of the last layer but one, and a pooled vector.

    tokens (batch, words, width) without the final LayerNorm; pooled (batch, embedding) with it.
    """

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    @torch.no_grad()
    def forward(
        self, prompts: list[str]
    ) -> tuple[Float[Tensor, "batch words width"], Float[Tensor, "batch embedding"]]:
        ids = word_ids(prompts).to(self.clip.positional_embedding.device)
        out = self.clip.forward_intermediates(text=ids, text_indices=2, normalize=False)
        return out["text_intermediates"][0], out["text_features"]


@functools.cache
def image_encoder(name: str = "mini-bigG", device: str = "cpu") -> ImageEncoder:
    """The frozen image tower of that name: a miniature, or "ViT-bigG-14".

    "mini-L" keeps its class token, as the CLIP that it stands for does for Versatile Diffusion.
    """
    if name == "ViT-bigG-14":
        from mindeye2_lite import released_networks

        return released_networks.image_encoder(name, device)
    visual = load_clip(name, device).visual
    return frozen(ImageEncoder(visual, class_token=name in WITH_CLASS_TOKEN), device)


@functools.cache
def text_encoder(name: str = "mini-bigG", device: str = "cpu") -> TextEncoder:
    """The frozen text tower of that name."""
    return frozen(TextEncoder(load_clip(name, device)), device)


def clip_embedding(
    images: Float[Tensor, "batch 3 height width"], name: str = "mini-L"
) -> Float[Tensor, "batch embedding"]:
    """CLIP's pooled, projected embedding, of images in their proper range (for judging)."""
    clip = load_clip(name, str(images.device))
    mean, std = (images.new_tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    size = clip.visual.image_size[0]
    if images.shape[-1] != size:
        images = F.interpolate(images, size, mode="bilinear", align_corners=False)
    with torch.no_grad():
        out = clip.encode_image((images - mean) / std)
    return out[0] if isinstance(out, tuple) else out


# ---- the VAE -----------------------------------------------------------------------------------


class Vae(nn.Module):
    """A diffusers `AutoencoderKL` with its scaling: images in [0, 1] to unit-variance latents."""

    def __init__(self, network: nn.Module, scale: float):
        super().__init__()
        self.network = network
        self.register_buffer("scale", torch.tensor(scale))

    @torch.no_grad()
    def encode(
        self,
        images: Float[Tensor, "batch 3 height width"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch 4 side side"]:
        """The posterior's mode, or, given a generator, a sample from it."""
        posterior = self.network.encode(2 * images - 1).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return latents * self.scale

    @torch.no_grad()
    def decode_raw(
        self, latents: Float[Tensor, "batch 4 side side"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Pixels in about [-1, 1], not clamped."""
        return self.network.decode(latents / self.scale).sample

    def decode(
        self, latents: Float[Tensor, "batch 4 side side"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Pixels in [0, 1]."""
        return (self.decode_raw(latents) / 2 + 0.5).clamp(0, 1)


def build_vae(name: str = "mini-vae") -> Vae:
    """An untrained VAE of that name's size."""
    from diffusers import AutoencoderKL

    return Vae(AutoencoderKL(**VAES[name]), scale=1.0)


@functools.cache
def vae(name: str = "mini-vae", device: str = "cpu") -> Vae:
    """The frozen VAE of that name: a miniature, or "sd-image-variations-vae"."""
    _known("VAE", name, [*VAES, "sd-image-variations-vae"])
    if name not in VAES:
        from mindeye2_lite import released_networks

        return released_networks.vae(name, device)
    result = build_vae(name)
    result.load_state_dict(load_weights(name))
    return frozen(result, device)


# ---- the low-level teacher and the judges ------------------------------------------------------


class Cnn(nn.Module):
    """A small plain convolutional network: stages that halve the picture, then one linear head.

    With 0 classes it has no head, as the networks that were trained without labels.
    """

    def __init__(self, widths: tuple[int, ...], classes: int):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.Conv2d(after, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            for before, after in zip((3, *widths), widths, strict=False)
        )
        self.head = nn.Linear(widths[-1], classes) if classes else nn.Identity()

    def maps(self, images: Tensor) -> list[Tensor]:
        """The output of every stage, finest first."""
        maps, x = [], 2 * images - 1
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def pooled(self, images: Tensor) -> Tensor:
        return self.maps(images)[-1].mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pooled(images))


def build_cnn(name: str, classes: int = 0) -> Cnn:
    """An untrained judge or teacher; `classes` is the width of its head, if it has one."""
    return Cnn(CNNS[name], classes)


@functools.cache
def load_cnn(name: str, device: str = "cpu") -> Cnn:
    """One frozen judge ("alex", "incep", "eff", "swav") or the teacher ("mini-vicreg")."""
    shipped = name if name.startswith("mini-") else "mini-judges"
    part = "" if shipped == name else f"{name}."
    state = {
        k.removeprefix(part): v for k, v in load_weights(shipped).items() if k.startswith(part)
    }
    cnn = build_cnn(name, len(state.get("head.weight", ())))
    cnn.load_state_dict(state)
    return frozen(cnn, device)


Features = Callable[[Tensor], Tensor]


def teacher(name: str = "mini-vicreg", device: str = "cpu") -> Features:
    """Images to spatial features (batch, places, aux_dim), for the low-level head's aux loss."""
    _known("teacher", name, ["mini-vicreg", "convnext-xl-vicregl"])
    if name == "convnext-xl-vicregl":
        from mindeye2_lite import released_networks

        return released_networks.teacher(name, device)
    cnn = load_cnn(name, device)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return cnn.maps(images)[-1].flatten(2).transpose(1, 2)

    return features


def judges(name: str = "mini-judges", device: str = "cpu") -> dict[str, Features]:
    """The networks behind six of the metrics, by the paper's column names.

    Each takes images (batch, 3, height, width) in [0, 1] and returns features (batch, features).
    "paper-judges" are the paper's own, from files in `paths.assets("judges")`; FileNotFoundError in
    one line where one is missing. "none" is no network at all, for scores that need none: PixCorr,
    SSIM and retrieval. ValueError in one line for another name.
    """
    _known("set of judges", name, ["mini-judges", "paper-judges", "none"])
    if name == "paper-judges":
        from mindeye2_lite import paper_judges

        return paper_judges.load(device)
    if name == "none":
        return {}

    shrunk = _once(_small)

    def small(images: Tensor) -> Tensor:
        return images if images.shape[-1] == 64 else shrunk(images)

    alex = _once(torch.no_grad()(lambda images: load_cnn("alex", device).maps(small(images))))

    def pooled(cnn: str) -> Features:
        return torch.no_grad()(lambda images: load_cnn(cnn, device).pooled(small(images)))

    return {
        "Alex(2)": lambda images: alex(images)[1].flatten(1),
        "Alex(5)": lambda images: alex(images)[4].flatten(1),
        "Incep": pooled("incep"),
        "CLIP": lambda images: clip_embedding(images.to(device)),
        "Eff": pooled("eff"),
        "SwAV": pooled("swav"),
    }


def _small(images: Tensor) -> Tensor:
    """At the 64 pixels that the miniature judges were trained on."""
    return F.interpolate(images, 64, mode="bilinear", align_corners=False, antialias=False)


def _once(look: Callable) -> Callable:
    """`look` that remembers what it made of the pictures it saw last, as long as they are there.

    Several judges are shown the same pictures in turn. Changed pictures are looked at again.
    """
    last: list = []  # the pictures (they may go), how often they were changed, what came out

    def looked(images: Tensor) -> Any:
        if images.is_inference():  # nobody counts how often these change
            return look(images)
        if not last or last[0]() is not images or last[1] != images._version:
            found = look(images)
            last[:] = weakref.ref(images, lambda _: last.clear()), images._version, found
        return last[2]

    return looked


@torch.no_grad()
def judged_kinds(
    images: Float[Tensor, "batch 3 height width"], judge: str = "incep"
) -> Int[Tensor, " batch"]:
    """The kind of main object that a judge sees, as an index into `scenes.KINDS`."""
    return load_cnn(judge, str(images.device))(images)[:, : len(scenes.KINDS)].argmax(dim=1)


@torch.no_grad()
def zero_shot_kinds(
    images: Float[Tensor, "batch 3 height width"], name: str = "mini-bigG"
) -> Int[Tensor, " batch"]:
    """The kind whose sentence lies nearest in CLIP space, as an index into `scenes.KINDS`."""
    clip = load_clip(name, str(images.device))
    ids = word_ids([f"a {kind}" for kind in scenes.KINDS]).to(images.device)
    words = F.normalize(clip.encode_text(ids), dim=-1)
    return (F.normalize(clip_embedding(images, name), dim=-1) @ words.T).argmax(dim=1)


# ---- what training needs of every image, once ---------------------------------------------------


@dataclass(frozen=True)
class Targets:
    """Everything that training wants to know of an image, row by row; made once, kept on disk.

    The released code computes these again at every step. `aux_augmented` is the teacher's view of
    one fixed color-jittered copy per image, where the released code draws a new one each time.
    Those of the real networks are float16 and lie in their file, mapped: a row is read when asked
    for, processes of one machine share what is in memory, and who computes with it makes it
    float32. Those of the miniatures are small, and float32 already. Without a low-level head there
    are tokens alone.
    """

    image_ids: Int[Tensor, " images"]  # ascending
    tokens: Float[Tensor, "images tokens dim"]
    latents: Float[Tensor, "images 4 side side"] | None = None
    aux: Float[Tensor, "images places aux"] | None = None
    aux_augmented: Float[Tensor, "images places aux"] | None = None

    def index(self, image_ids: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Rows of these images. KeyError names the first image that is not here."""
        rows = torch.searchsorted(self.image_ids, image_ids).clamp(max=len(self.image_ids) - 1)
        missing = image_ids[self.image_ids[rows] != image_ids]
        if len(missing):
            raise KeyError(
                f"image {int(missing[0])} has no targets: {len(self.image_ids)} are kept"
            )
        return rows

    def to(self, device: str | torch.device) -> "Targets":
        kept = {name: value for name, value in vars(self).items() if value is not None}
        return Targets(**{name: value.to(device) for name, value in kept.items()})


def targets(
    images, image_ids: Int[Tensor, " n"], config: Config, *, device: str = "cpu",
    batch: int = 250, progress: bool = True,
) -> Targets:  # fmt: skip
    """Image tokens, VAE latents and teacher features of these images, computed once and cached.

    `images` is an `nsd.Images` (or any array-like that takes a tensor of ids and gives pictures in
    [0, 1]). The cache file's name holds a key of the networks' weights and of the pictures, so a
    change in either makes new targets. Without `config.low_level` only the image encoder is asked
    for. `batch` pictures are read and augmented at once; the real networks are given fewer.
    """
    from safetensors.torch import load_file

    image_ids = torch.unique(image_ids)
    path = paths.targets() / f"{_targets_key(images, image_ids, config)}.safetensors"
    if not path.exists():
        rows = image_ids.split(batch)
        bar = tqdm(rows, "image tokens and latents", disable=not progress, mininterval=1)
        made = (_targets_of(images[ids].to(device), config, device) for ids in bar)
        with paths.write_beside(path) as beside:
            _save_rows(made, image_ids, beside)
        if config.encoder in RELEASED:
            _forget_released()  # training needs the 6 GB that they take on a GPU
    if config.encoder in RELEASED:  # 0.9 MB per picture: nothing of it has been read yet
        return Targets(**released.lazily(path))
    kept = load_file(path)
    return Targets(**{k: v if k == "image_ids" else v.float() for k, v in kept.items()})


def _save_rows(parts: Iterable[dict[str, Tensor]], image_ids: Tensor, path: Path) -> None:
    """Parts end to end into one safetensors file; as they may be 60 GB, they wait on disk."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as folder:
        whole, done = {}, 0
        for part in parts:
            for name, rows in part.items():
                if name not in whole:
                    shape = (len(image_ids), *rows.shape[1:])
                    whole[name] = np.memmap(Path(folder, name), np.float16, "w+", shape=shape)
                whole[name][done : done + len(rows)] = rows.numpy()
            done += len(rows)
        tensors = {name: torch.from_numpy(rows) for name, rows in whole.items()}
        save_file({"image_ids": image_ids, **tensors}, path)


def _targets_of(pictures: Tensor, config: Config, device: str) -> dict[str, Tensor]:
    few = FEW if config.encoder in RELEASED else len(pictures)

    def of(network: Features, seen: Tensor) -> Tensor:
        return torch.cat([network(rows).half().cpu() for rows in seen.split(few)])

    made = {"tokens": of(image_encoder(config.encoder, device), pictures)}
    if not config.low_level:
        return made
    look, augmented = teacher(config.teacher, device), _augmentation(config.teacher)(pictures)
    return made | {
        "latents": of(vae(config.vae, device).encode, pictures),
        "aux": of(look, pictures),
        "aux_augmented": of(look, augmented),
    }


def _forget_released() -> None:
    from mindeye2_lite import released_networks

    for loader in (image_encoder, vae, released_networks.teacher):
        loader.cache_clear()


def _augmentation(teacher: str) -> Features:
    if teacher not in RELEASED:
        return augment
    from mindeye2_lite import released_networks

    return released_networks.augment


def augment(
    pictures: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, "batch 3 height width"]:
    """Color jitter and a slight zoom, the teacher's second view; the same for the same batch."""
    from torchvision.transforms import v2

    jitter = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.1),
            v2.RandomSolarize(0.5, 0.1),
            v2.RandomResizedCrop(pictures.shape[-1], scale=(0.9, 0.9), ratio=(1, 1)),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # torchvision draws from the global generator
        return torch.stack([jitter(picture) for picture in pictures])


def _targets_key(images, image_ids: Tensor, config: Config) -> str:
    names = (config.encoder, *((config.vae, config.teacher) if config.low_level else ()))
    probe = images[image_ids[:: max(1, len(image_ids) // 8)]]
    parts = [
        *(_weights_key(name) for name in names),
        hashlib.sha256(image_ids.numpy().tobytes()).hexdigest(),
        hashlib.sha256(probe.numpy().tobytes()).hexdigest(),
    ]
    if config.encoder in RELEASED and (file := getattr(images, "path", None)):
        parts.append(f"{Path(file).name} {Path(file).stat().st_size}")
    return f"{config.encoder}-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}"


def _weights_key(name: str) -> str:
    if name not in RELEASED:
        return manifest().get(name, {}).get("sha256", name)
    from mindeye2_lite import released_networks

    return released_networks.fingerprint(name)
