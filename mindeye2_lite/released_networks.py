"""The real frozen networks that the miniatures stand for, from files that lie on this machine.

| name | file in `paths.assets()` | images (batch, 3, 224, 224) to |
|---|---|---|
| ViT-bigG-14 | open_clip's own, or the released unCLIP's | tokens (batch, 256, 1664) |
| sd-image-variations-vae | sd_image_var_autoenc.pth | latents (batch, 4, 28, 28) |
| convnext-xl-vicregl | convnext_xlarge_alpha0.75_fullckpt.pth | features (batch, 49, 512) |

Nothing is loaded from the network unless MINDEYE2_LITE_DOWNLOAD=1. We have none of these weights:
sizes, names of parameters and small random instances are tested, the files themselves are not.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mindeye2_lite import paths, released, unclip_released
from mindeye2_lite.encoders import ImageEncoder, Vae, frozen

FILES = {
    "ViT-bigG-14": "open_clip_model.safetensors",
    "sd-image-variations-vae": "sd_image_var_autoenc.pth",
    "convnext-xl-vicregl": "convnext_xlarge_alpha0.75_fullckpt.pth",
    "bigG_to_L": "bigG_to_L_epoch8.pth",
}
REPOSITORIES = {
    "ViT-bigG-14": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",  # open_clip's laion2b_s39b_b160k
    "git-large-coco": "microsoft/git-large-coco",
    "sdxl-base": "stabilityai/stable-diffusion-xl-base-1.0",
}
FETCH = {  # the stage of `mindeye2-lite fetch` that gets it
    "ViT-bigG-14": "training",
    "sd-image-variations-vae": "training",
    "convnext-xl-vicregl": "training",
    "bigG_to_L": "captions",
    "git-large-coco": "captions",
    "sdxl-unclip": "decoding",
    "sdxl": "refinement",
}
UNCLIP = "unclip6_epoch0_step110000.ckpt"  # holds the whole bigG image tower
IN_UNCLIP = "conditioner.embedders.0.model.visual."
PREPROCESSING = "224 bicubic, (x+1)/2; 2x-1; 0.485 0.228; augment 1"  # in the key of targets
IMAGENET_MEAN = (0.485, 0.456, 0.406)
TEACHER_STD = (0.228, 0.224, 0.225)  # the released typo for 0.229
SD_SCALE = 0.18215

# ---- files -------------------------------------------------------------------------------------


def asset(name: str) -> Path:
    """The file of that network. FileNotFoundError says which file is expected where."""
    path = paths.assets(FILES[name])
    if path.is_file():
        return path
    raise FileNotFoundError(
        f"{name}: no file {path}: get it with `{fetching(name)}`, or name the folder that holds "
        f"{FILES[name]} in MINDEYE2_LITE_ASSETS"
    )


def fetching(name: str) -> str:
    """What to type to get that network."""
    stage = f" --stages {FETCH[name]}" if name in FETCH else ""
    return f"mindeye2-lite fetch --profile paper{stage} --accept-nsd-terms"


def look_for(name: str) -> None:
    """Are that network's files on this machine? FileNotFoundError in one line if not.

    Only names are looked at. Miniatures are passed over: they come with the package.
    """
    if name == "ViT-bigG-14":
        bigg_source()
    elif name == "sdxl-unclip":
        unclip_source()
    elif name == "git-large-coco":
        asset("bigG_to_L")
        there(name, "config.json")
    elif name in FILES:
        asset(name)


def there(name: str, file: str) -> Path:
    """A file of the folder of that name in the assets, or in the Hub's cache: as `from_hub`."""

    def find(source: str, **options) -> Path:
        from huggingface_hub import hf_hub_download

        inside = Path(source, file)
        return inside if inside.is_file() else Path(hf_hub_download(source, file, **options))

    return from_hub(find, name)


def unclip_source() -> Path:
    """The released unCLIP among the assets, or the folder that it was converted to.

    FileNotFoundError in one line if there is neither.
    """
    if (path := paths.assets(UNCLIP)).is_file():
        return path
    for index in sorted((paths.cache() / "released").glob("unclip6*/unet/*.index.json")):
        return index.parents[1]
    raise FileNotFoundError(
        f"sdxl-unclip: no file {path}: get it with `{fetching('sdxl-unclip')}`, or name the folder "
        f"that holds {UNCLIP} in MINDEYE2_LITE_ASSETS"
    )


def read_state(path: Path, *, inside: str | None = None, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file whose names begin with `prefix`, without it.

    `inside` is the key under which a torch file holds them; a folder holds safetensors. Runs no
    code of the file. ValueError in one line if it is cut short or holds none with that prefix.
    """
    path = Path(path)
    if path.suffix == ".safetensors" or path.is_dir():
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        state = {k: v for file in files for k, v in _safetensors(file, prefix).items()}
    else:
        state = released.read(path)
    state = state.get(inside, state) if isinstance(state, dict) and inside else state
    found = {
        key.removeprefix(prefix): value
        for key, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(value, Tensor) and key.startswith(prefix)
    }
    if not found:
        raise ValueError(f"{path} holds no tensors named {prefix}*: it is another file")
    return found


def _safetensors(path: Path, prefix: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:  # reads the wanted tensors and no others
            return {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as a file of tensors ({str(error)[:120]}): it is cut short or "
            "not the released file; get it again with `mindeye2-lite fetch`"
        ) from None


def fill(network: nn.Module, state: dict[str, Tensor], source: str | Path) -> nn.Module:
    """The network with exactly these weights, as float32; it may have been built on meta.

    ValueError in one line with the first name that is missing, left over or of another shape.
    """
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"{source} does not fit {type(network).__name__}: {len(wrong)} names differ, first "
            f"{first} (expected {wanted.get(first)}, found {found.get(first)})"
        )
    network.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    return network


def from_hub(load: Callable, name: str, **options) -> Any:
    """`load(folder or repository, ...)`: the folder of that name in the assets, else the Hub's.

    Without MINDEYE2_LITE_DOWNLOAD=1 only the Hub's cache on this machine is looked at.
    FileNotFoundError in one line if it is in neither.
    """
    folder, downloads = paths.assets(name), paths.may_download()
    source = str(folder) if folder.is_dir() else REPOSITORIES.get(name, name)
    try:
        return load(source, local_files_only=not downloads, **options)
    except (OSError, ValueError) as error:
        told = downloads or folder.is_dir()  # else it is simply not there
        why = f" ({(str(error).splitlines() or [''])[0][:120]})" if told else ""
        fetched = f"get it with `{fetching(name)}`, " if name in FETCH else ""
        raise FileNotFoundError(
            f"{name}: cannot be loaded from {source}{why}: {fetched}copy the repository "
            f"{REPOSITORIES.get(name, name)} to {folder}, or allow downloads with "
            "MINDEYE2_LITE_DOWNLOAD=1"
        ) from error


def fingerprint(name: str) -> str:
    """What tells one version of a network's weights from another: names of files, sizes, ends.

    Not times of change: a copy, or the same file fetched again, gives the same.
    """
    path = bigg_source()[0] if name == "ViT-bigG-14" else asset(name)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    kept = [f"{file.name} {unclip_released.fingerprint(file)}" for file in files]
    return " ".join([name, *kept, PREPROCESSING])


# ---- the image tower ---------------------------------------------------------------------------


def build_visual(name: str = "ViT-bigG-14") -> nn.Module:
    """An untrained image tower of open_clip, with the sizes of open_clip's own configuration."""
    from open_clip import get_model_config
    from open_clip.model import CLIP

    sizes = get_model_config(name)
    text = sizes["text_cfg"] | {"layers": 1}  # of no use here
    return CLIP(sizes["embed_dim"], sizes["vision_cfg"], text).visual


def bigg_source() -> tuple[Path, str]:
    """A file or folder with bigG's image tower, and what its names begin with there.

    In this order: open_clip's file among the assets; the released unCLIP, taken apart or as it is;
    open_clip's file in the Hub's cache. FileNotFoundError in one line if there is none of them.
    """
    if (path := paths.assets(FILES["ViT-bigG-14"])).is_file():
        return path, "visual."
    for index in sorted((paths.cache() / "released").glob("unclip6*/image_tower/*.index.json")):
        return index.parent, ""
    if (path := paths.assets(UNCLIP)).is_file():
        return path, IN_UNCLIP
    return _from_open_clips_repository(), "visual."


def _from_open_clips_repository() -> Path:
    from huggingface_hub import hf_hub_download

    def either(repository: str, **options) -> str:
        try:
            return hf_hub_download(repository, "open_clip_model.safetensors", **options)
        except OSError:
            return hf_hub_download(repository, "open_clip_pytorch_model.bin", **options)

    try:
        return Path(from_hub(either, "ViT-bigG-14"))
    except FileNotFoundError as error:
        if paths.may_download():
            raise
        raise FileNotFoundError(
            f"ViT-bigG-14: no file {paths.assets(FILES['ViT-bigG-14'])}, no {UNCLIP} beside it, "
            f"and none in the Hub's cache: get it with `{fetching('ViT-bigG-14')}`, or allow "
            "downloads with MINDEYE2_LITE_DOWNLOAD=1"
        ) from error


def image_encoder(name: str = "ViT-bigG-14", device: str = "cpu") -> ImageEncoder:
    """The frozen bigG image tower: 256 x 1664 tokens, in the released washed-out range.

    On a GPU it computes in float16, as the released code always does; elsewhere in float32.
    """
    path, prefix = bigg_source()
    with torch.device("meta"):
        visual = build_visual(name)
    visual = fill(visual, read_state(path, inside="state_dict", prefix=prefix), path)
    if torch.device(device).type == "cuda":
        halve(visual)
    return frozen(ImageEncoder(visual), device)


def halve(network: nn.Module) -> nn.Module:
    """Matrices as float16; vectors (biases, norms) stay float32, as under autocast."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half()
    return network


# ---- the VAE of the blurry picture -------------------------------------------------------------


def build_vae(name: str = "sd-image-variations-vae") -> Vae:
    """An untrained autoencoder of Stable Diffusion's size: 83,653,863 parameters."""
    from diffusers import AutoencoderKL

    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=256,
    )
    return Vae(network, SD_SCALE)


def vae(name: str = "sd-image-variations-vae", device: str = "cpu") -> Vae:
    """The frozen autoencoder of Stable Diffusion's image variations: 224 pixels to 4 x 28 x 28."""
    path, result = asset(name), build_vae(name)
    fill(result.network, read_state(path), path)
    return frozen(result, device)


# ---- the low-level teacher ---------------------------------------------------------------------


class Teacher(nn.Module):
    """VICRegL's ConvNeXt-XL and its projector: images in [0, 1] to (batch, places, 512).

    timm's ConvNeXt without layer scale, final norm before pooling. Pixels are normalized as the
    released code does, red's deviation 0.228 included.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 3, 27, 3),
        widths: tuple[int, ...] = (256, 512, 1024, 2048),
        projected: int = 512,
    ):
        super().__init__()
        from timm.models.convnext import ConvNeXt

        self.backbone = ConvNeXt(
            depths=depths, dims=widths, ls_init_value=None, num_classes=0, head_norm_first=True
        )
        self.maps_projector = nn.Sequential(
            nn.Linear(widths[-1], projected),
            nn.LayerNorm(projected),
            nn.ReLU(),
            nn.Linear(projected, projected),
            nn.LayerNorm(projected),
            nn.ReLU(),
            nn.Linear(projected, projected, bias=False),
        )
        for part, values in (("mean", IMAGENET_MEAN), ("std", TEACHER_STD)):
            self.register_buffer(part, torch.tensor(values)[:, None, None], persistent=False)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch places aux"]:
        maps = self.backbone.forward_features((images - self.mean) / self.std)
        return self.maps_projector(maps.flatten(2).transpose(1, 2))


TEACHER_NAMES = (  # VICRegL's names and timm's, in this order
    (r"^backbone\.downsample_layers\.0\.", "backbone.stem."),
    (r"^backbone\.downsample_layers\.(\d)\.", r"backbone.stages.\1.downsample."),
    (r"^backbone\.stages\.(\d)\.(\d+)\.", r"backbone.stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"^backbone\.norm\.", "backbone.norm_pre."),
)


def teacher_name(name: str) -> str:
    """VICRegL's name of a parameter as timm's ConvNeXt calls it."""
    return functools.reduce(lambda key, pair: re.sub(*pair, key), TEACHER_NAMES, name)


@functools.cache
def teacher(name: str = "convnext-xl-vicregl", device: str = "cpu") -> Teacher:
    """The frozen teacher. Official: loaded in a bare `try`, so that a wrong file goes unnoticed."""
    path, result = asset(name), Teacher()
    state = read_state(path, inside="model", prefix="module.")
    used = ("backbone.", "maps_projector.")  # the file also holds what VICRegL trained with
    kept = {teacher_name(k): v for k, v in state.items() if k.startswith(used)}
    return frozen(fill(result, kept, path), device)


def augment(
    pictures: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, "batch 3 height width"]:
    """The teacher's second view as kornia draws it; the same for the same batch.

    Color jitter, gray, solarize, a slight zoom. kornia's solarize first adds up to ±0.1 and then
    inverts above a threshold between 0.4 and 0.6; torchvision's has one threshold and adds nothing.
    """
    from torchvision.transforms import v2

    jitter = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.1),
            v2.RandomApply([solarize], p=0.1),
            v2.RandomResizedCrop(pictures.shape[-1], scale=(0.9, 0.9), ratio=(1, 1)),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # torchvision draws from the global generator
        return torch.stack([jitter(picture) for picture in pictures])


def solarize(picture: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 height width"]:
    """Shift the brightness, then invert what is bright, by amounts from the global generator."""
    addition = torch.empty(()).uniform_(-0.1, 0.1).item()
    threshold = torch.empty(()).uniform_(0.4, 0.6).item()
    shifted = (picture + addition).clamp(0, 1)
    return torch.where(shifted < threshold, shifted, 1 - shifted)
