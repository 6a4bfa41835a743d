"""The released SDXL unCLIP, taken apart into diffusers' networks and OpenCLIP's image tower.

    unclip6_epoch0_step110000.ckpt   2,519 tensors under sgm's names, about 18 GB
    FOLDER/unet                      `UNet2DConditionModel`, 2,501,272,324 parameters
    FOLDER/vae                       SDXL's `AutoencoderKL`, 83,653,863 parameters
    FOLDER/image_tower               `visual` of OpenCLIP's ViT-bigG/14, 584 tensors

Conversion changes names and never a number; tensors keep the file's dtype. They go over shard by
shard, so it takes about one gigabyte of memory, and a second run goes on where the first stopped.
The released file itself could not be had: the names are tested against the list of its keys, the
numbers on a small network of the same build. Used by `unclip.load_released`.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from tqdm.auto import tqdm

from mindeye2_lite import paths, released
from mindeye2_lite.unclip_names import PARTS, Plan, Shapes, plan

SHARD = 2**28  # numbers in a file: one gigabyte of float32
STEM = "diffusion_pytorch_model"  # what diffusers looks for in a folder

Read = Callable[[str], Tensor]


# ---- reading -----------------------------------------------------------------------------------


def open_weights(path: Path) -> tuple[Shapes, Read]:
    """The shapes of all tensors of a file, and a function that reads one of them by name.

    Files are mapped, so nothing but names is read before a tensor is asked for, and no code in
    them is run. ValueError in one line if it cannot be read so.
    """
    if not path.is_file():
        raise ValueError(f"there is no weights file {path}")
    if path.suffix != ".safetensors":
        return _open_pickle(path)
    try:
        return _open_safetensors(path)
    except Exception as error:
        line = " ".join(str(error).split(". ")[0].split())
        raise ValueError(
            f"cannot read {path.name} as weights alone ({line}): is it whole? Download it again"
        ) from error


def _open_safetensors(path: Path) -> tuple[Shapes, Read]:
    from safetensors import safe_open

    file = safe_open(path, "pt")
    shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return shapes, file.get_tensor


def _open_pickle(path: Path) -> tuple[Shapes, Read]:
    state = released.read(path)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path.name} holds a {type(state).__name__}, not named tensors")
    state = state.get("state_dict", state)
    shapes = {k: tuple(v.shape) for k, v in state.items() if isinstance(v, Tensor)}
    return shapes, state.__getitem__


def fingerprint(path: Path) -> str:
    """A file's size and both its ends, hashed: 18 GB need not be read to know it again."""
    end = 2**22
    with path.open("rb") as file:
        said = hashlib.sha256(str(size := path.stat().st_size).encode() + file.read(end))
        file.seek(max(size - end, 0))
        said.update(file.read())
    return said.hexdigest()


# ---- converting --------------------------------------------------------------------------------


def convert(
    path: str | Path,
    out: str | Path | None = None,
    *,
    parts: Iterable[str] = tuple(PARTS),
    head_size: int = 64,
    norm_groups: int = 32,
    shard: int = SHARD,
) -> Path:
    """Write the released file's networks as folders of safetensors, and return where they are.

    `shard` is how many numbers one file, and so memory, holds at most. What an earlier, perhaps
    interrupted, conversion of the same file has written is kept. `path` may be .ckpt, .safetensors
    or a folder that was converted already. ValueError in one line for anything else, and OSError
    if the disk is too small, before anything is written.
    """
    path = Path(path)
    if path.is_dir():
        return path
    shapes, read = open_weights(path)
    try:
        planned = plan(shapes, head_size, norm_groups)
    except ValueError as error:
        raise ValueError(f"{path.name} is not the released unCLIP: {error}") from error
    source = fingerprint(path)
    folder = Path(out or paths.cache() / "released" / f"{path.stem}-{source[:8]}")
    parts = [part for part in parts if planned.keys[part]]
    wanted = [shape for part in parts for shape in planned.shapes[part].values()]
    _room(folder, path, _numbers(wanted) / _numbers(shapes.values()))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "conversion.lock"):  # a second process waits for what the first makes
        for stray in folder.rglob(".*.part"):  # of a run that was killed
            stray.unlink()
        written = [_write_part(folder / p, p, planned, read, source, shard) for p in parts]
    did = f"converted now, {sum(written)} files" if sum(written) else "converted earlier"
    counts = ", ".join(f"{part} {len(planned.keys[part]):,}" for part in parts)
    print(f"{path.name}: {counts} of {len(shapes):,} tensors, {did}, in {folder}")
    return folder


def _write_part(folder: Path, part: str, planned: Plan, read: Read, source: str, shard: int) -> int:
    """Write the shards that are not there yet, and return how many those were."""
    shapes, keys = planned.shapes[part], planned.keys[part]
    groups = _groups(shapes, shard)
    names = [f"{STEM}-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    shards = {folder / name: group for name, group in zip(names, groups, strict=True)}
    missing = [
        file
        for file, group in shards.items()
        if not _is_there(file, {name: shapes[name] for name in group}, source)
    ]
    if missing:  # the index vouches for all shards: it goes first and comes back last
        _index(folder).unlink(missing_ok=True)
    for file in tqdm(missing, f"converting the {part}", disable=len(missing) < 2):
        _write_shard(
            file, {name: (keys[name], shapes[name]) for name in shards[file]}, read, source
        )
    for stray in set(folder.glob("*.safetensors")) - shards.keys():
        stray.unlink()
    if part in planned.configs:
        _write_json(folder / "config.json", planned.configs[part])
    index = {name: file.name for file, group in shards.items() for name in group}
    _write_json(_index(folder), {"metadata": {"source": source}, "weight_map": index})
    return len(missing)


def _write_shard(
    file: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], read: Read, source: str
) -> None:
    """One file, whole or not at all. A function of its own, so that its tensors are let go."""
    from safetensors.torch import save_file

    held = {
        name: read(key).detach().reshape(shape).contiguous()
        for name, (key, shape) in tensors.items()
    }
    with paths.write_beside(file) as beside:
        save_file(held, beside, metadata={"format": "pt", "source": source})


def _groups(shapes: Shapes, shard: int) -> list[list[str]]:
    """Names in order, cut so that no group holds more than `shard` numbers, or a single tensor."""
    groups, room = [], 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        if size > room:
            groups.append([])
            room = shard
        groups[-1].append(name)
        room -= size
    return groups


def _is_there(file: Path, shapes: Shapes, source: str) -> bool:
    """Whether a shard is there and whole, and of this very file."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return False
    try:
        with safe_open(file, "pt") as shard:
            found = {k: tuple(shard.get_slice(k).get_shape()) for k in shard.keys()}  # noqa: SIM118
            return found == shapes and (shard.metadata() or {}).get("source") == source
    except SafetensorError:
        return False


def _numbers(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _room(folder: Path, path: Path, share: float) -> None:
    """OSError in one line unless the disk has room for that share of the file."""
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    done = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    needed, free = share * path.stat().st_size - done, shutil.disk_usage(above).free
    if needed > free:
        raise OSError(
            f"converting {path.name} takes {needed / 1e9:.1f} GB in {folder}, where "
            f"{free / 1e9:.1f} GB are free: make room, or name another folder with `out`"
        )


def _index(folder: Path) -> Path:
    return folder / f"{STEM}.safetensors.index.json"


def _write_json(file: Path, content: dict[str, Any]) -> None:
    with paths.write_beside(file) as beside:
        beside.write_text(json.dumps(content, indent=1))


# ---- loading -----------------------------------------------------------------------------------


def networks(
    folder: Path, dtype: torch.dtype = torch.float32, *, channels_last: bool = False
) -> tuple[nn.Module, nn.Module]:
    """The converted UNet in that dtype and the VAE in float32, both frozen, on the CPU."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    how = {"use_safetensors": True, "local_files_only": True}
    for part in ("unet", "vae"):
        _finished(folder / part)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype, **how)
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32, **how)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return tuple(n.to(memory_format=layout).eval().requires_grad_(False) for n in (unet, vae))


def image_tower(
    path: str | Path,
    out: str | Path | None = None,
    *,
    head_size: int = 64,
    norm_groups: int = 32,
) -> dict[str, Tensor]:
    """The state dict of OpenCLIP's `visual` from the released file, or from its folder.

    Tensors are mapped from disk. ValueError in one line if there is no image tower in it.
    """
    from safetensors.torch import load_file

    sizes = {"head_size": head_size, "norm_groups": norm_groups}
    folder = convert(path, out, parts=("image_tower",), **sizes) / "image_tower"
    _finished(folder)
    shards = sorted(folder.glob("*.safetensors"))
    return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


def _finished(folder: Path) -> None:
    """ValueError in one line unless the folder is what a finished conversion left."""
    index = _index(folder)
    named = [index.name]
    if index.exists():
        named = json.loads(index.read_text())["weight_map"].values()
    if missing := sorted({name for name in named if not (folder / name).exists()}):
        raise ValueError(
            f"no whole {folder.name} in {folder.parent}: {missing[0]} is missing; "
            "convert the released file again"
        )
