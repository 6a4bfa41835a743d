"""The paper's own judges: the networks behind six of its ten scores, from files on this machine.

| score | network, layer | pixels | features |
|---|---|---|---|
| Alex(2) | torchvision's AlexNet, ReLU after its second convolution | 256 | 184,512 |
| Alex(5) | the same, ReLU after its fifth | 256 | 57,600 |
| Incep | torchvision's Inception v3, `avgpool` | 342 | 2,048 |
| CLIP | OpenAI's CLIP ViT-L/14, projected image embedding | 224 | 768 |
| Eff | torchvision's EfficientNet-B1, `avgpool` | 255 | 1,280 |
| SwAV | SwAV's ResNet-50, `avgpool` | 224 | 2,048 |

Every picture is resized whole (no crop), bilinearly, without antialiasing. The released evaluation
has it so. We have none of these weights: layers, shapes and the reading of files are tested with
random ones. Files lie in `paths.assets("judges")`; no code in them is run. Read with notebook 10.
"""

import functools
import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mindeye2_lite import paths, released
from mindeye2_lite.encoders import CLIP_MEAN, CLIP_STD, frozen, precision_of
from mindeye2_lite.pixels import resize
from mindeye2_lite.released_networks import IMAGENET_MEAN, fill, halve, read_state

FILES = {  # as their publishers name them; `asset_table` says where they come from
    "alexnet": "alexnet-owt-7be5be79.pth",
    "inception": "inception_v3_google-0cc3c7bd.pth",
    "clip": "ViT-L-14.pt",
    "efficientnet": "efficientnet_b1-c27df63c.pth",
    "swav": "swav_800ep_pretrain.pth.tar",
}
IMAGENET_STD = (0.229, 0.224, 0.225)
LOOKS = {  # score: network, layer (None: its output), pixels a side
    "Alex(2)": ("alexnet", "features.4", 256),
    "Alex(5)": ("alexnet", "features.11", 256),
    "Incep": ("inception", "avgpool", 342),
    "CLIP": ("clip", None, 224),
    "Eff": ("efficientnet", "avgpool", 255),  # sic
    "SwAV": ("swav", "avgpool", 224),
}
FETCH = "mindeye2-lite fetch --profile paper --stages judging"
NOT_LOOKED_AT = ("projection_head.", "prototypes.")  # what SwAV was trained with

Judge = Callable[[Tensor], Tensor]


def load(device: str = "cpu") -> dict[str, Judge]:
    """The six judges by the paper's column names, with their published weights, frozen.

    On a GPU CLIP computes in float16, as OpenAI's own loader has it. FileNotFoundError in one line
    that names the first missing file and the command that gets it; ValueError for a wrong file.
    """
    for name in FILES:
        look_for(name)
    return judges({name: network(name, device) for name in FILES})


def look_for(name: str) -> Path:
    """The file of that network. FileNotFoundError in one line says how to get it."""
    path = paths.assets("judges", FILES[name])
    if path.is_file():
        return path
    raise FileNotFoundError(
        f"paper-judges: no file {path}: get it with `{FETCH}`, name the folder that holds "
        f'judges/{FILES[name]} in MINDEYE2_LITE_ASSETS, or set judges="none" for PixCorr, SSIM '
        "and retrieval alone"
    )


# ---- looking -----------------------------------------------------------------------------------


def judges(networks: Mapping[str, nn.Module]) -> dict[str, Judge]:
    """Six functions of pictures in [0, 1] from the five networks, named as in `FILES`.

    Each resizes, normalizes, and returns (batch, features) as float32.
    """
    return {
        score: judge(at_layer(networks[name], layer), size, *_normalizing(name))
        for score, (name, layer, size) in LOOKS.items()
    }


def judge(
    network: nn.Module,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Judge:
    """Pictures to what that network returns of them, resized and normalized. Source: spec 5.1."""

    @torch.no_grad()
    def looked(
        images: Float[Tensor, "batch 3 height width"],
    ) -> Float[Tensor, "batch features"]:
        middle, width = (images.new_tensor(v)[:, None, None] for v in (mean, std))
        with precision_of(network):
            found = network((resize(images, size) - middle) / width)
        found = next(iter(found.values())) if isinstance(found, dict) else found
        return found.flatten(1).float()

    return looked


def at_layer(network: nn.Module, layer: str | None) -> nn.Module:
    """The network up to that layer, by torchvision's `create_feature_extractor`; None: all of it.

    What Inception does to its input before its first layer is a part of it.
    """
    if layer is None:
        return network
    from torchvision.models.feature_extraction import create_feature_extractor

    # in eval mode a layer less is run here or there (dropout, Inception's second head)
    return create_feature_extractor(network.eval(), [layer], suppress_diff_warning=True)


def _normalizing(name: str) -> tuple[tuple, tuple]:
    return (CLIP_MEAN, CLIP_STD) if name == "clip" else (IMAGENET_MEAN, IMAGENET_STD)


# ---- building and filling ----------------------------------------------------------------------


def build(name: str) -> nn.Module:
    """That network without its weights, in eval mode."""
    from torchvision import models

    builders = {
        "alexnet": models.alexnet,
        # as `weights=DEFAULT` builds it: it undoes ImageNet's normalization, for [-1, 1]
        "inception": functools.partial(
            models.inception_v3, transform_input=True, init_weights=False
        ),
        "clip": build_clip,
        "efficientnet": models.efficientnet_b1,
        "swav": headless_resnet,
    }
    return builders[name]().eval()


def build_clip() -> nn.Module:
    """The image tower of OpenAI's CLIP ViT-L/14, which ends with the projection to 768 numbers."""
    from open_clip import get_model_config
    from open_clip.model import CLIP

    sizes = get_model_config("ViT-L-14")
    text = sizes["text_cfg"] | {"layers": 1}  # of no use here
    # OpenAI's weights are for x σ(1.702 x); open_clip's own ones for the exact GELU
    return CLIP(sizes["embed_dim"], sizes["vision_cfg"], text, quick_gelu=True).visual


def headless_resnet() -> nn.Module:
    """A ResNet-50 of torchvision without its classifier, which SwAV's file does not hold."""
    from torchvision.models import resnet50

    network = resnet50()
    network.fc = nn.Identity()
    return network


@functools.cache
def network(name: str, device: str = "cpu") -> nn.Module:
    """That network with its published weights, frozen."""
    path = look_for(name)
    with torch.device("meta"):
        result = build(name)
    result = fill(result, complete(result, read(name, path)), path)
    if name == "clip" and torch.device(device).type == "cuda":
        halve(result)
    return frozen(result, device)


def read(name: str, path: Path) -> dict[str, Tensor]:
    """The weights in that network's file, under the names that `build` gives them."""
    if name == "clip":
        return {
            key.removeprefix("visual."): value
            for key, value in scripted(path).items()
            if key.startswith("visual.")
        }
    state = {key.removeprefix("module."): value for key, value in read_state(path).items()}
    return {key: v for key, v in state.items() if not key.startswith(NOT_LOOKED_AT)}


def complete(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, with the counters of batches that files from before torch 0.4.1 do not have."""
    counters = [key for key in network.state_dict() if key.endswith("num_batches_tracked")]
    return dict.fromkeys(counters, torch.tensor(0)) | dict(state)


# ---- OpenAI's file, which is a program of TorchScript ------------------------------------------


class _Held(released.Inert):
    """A module of a TorchScript file: what it holds, and none of what it does."""

    def __setstate__(self, state: Any) -> None:
        self.held = state if isinstance(state, dict) else {}


class _Unpickler(released._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Held if module.startswith("__torch__") else super().find_class(module, name)


def scripted(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `torch.jit.save`, by their names; its program is not looked at.

    torch's own way of reading such a file, `torch.jit.load`, compiles the program in it. ValueError
    in one line for another kind of file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(archive)

            def storage(dtype: torch.dtype, key: str, _location: Any, length: int) -> Tensor:
                raw = bytearray(archive.read(f"{root}data/{key}"))
                return torch.frombuffer(raw, dtype=dtype, count=length)

            content = archive.read(f"{root}data.pkl")
            return dict(_tensors(_Unpickler(io.BytesIO(content), storage).load()))
    except Exception as error:  # whatever a damaged or malicious file brings about
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as OpenAI's file of CLIP ({why[:120]}): it is cut short or "
            f"another file; get it again with `{FETCH}`"
        ) from error


def _root(archive: zipfile.ZipFile) -> str:
    found = [name for name in archive.namelist() if re.fullmatch("[^/]+/data.pkl", name)]
    if len(found) != 1:
        raise ValueError("another kind of zip file")
    return found[0].removesuffix("data.pkl")


def _tensors(module: Any, before: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a module and of those in it."""
    for name, value in getattr(module, "held", {}).items():
        if isinstance(value, Tensor):
            yield f"{before}{name}", value
        elif isinstance(value, _Held):
            yield from _tensors(value, f"{before}{name}.")
