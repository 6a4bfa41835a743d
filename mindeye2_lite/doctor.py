"""What this machine has, in one screen: the first thing to look at, and to paste into an issue."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from mindeye2_lite import assets, paths
from mindeye2_lite.config import PROFILES, Config

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "open_clip_torch", "numpy")
MORE_PACKAGES = ("accelerate", "huggingface_hub", "bitsandbytes")  # for real data and large models
OLDEST_PYTHON = (3, 11)
MANIFEST = "manifest.json"  # beside the weights: name to SHA-256, and how each was made


@dataclass(frozen=True)
class Weights:
    """One shipped file: its size and whether it is the file that was shipped."""

    name: str
    megabytes: float
    sha256: str
    state: str  # "ok", "missing" or "wrong"


def check_weights(folder: Path | None = None) -> list[Weights]:
    """Compare every shipped weights file with the SHA-256 that it was shipped with."""
    folder = folder or paths.PACKAGE / "weights"
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} holds no {MANIFEST}: install mindeye2-lite again")
    shipped = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return [_check(folder, name, entry["sha256"]) for name, entry in sorted(shipped.items())]


def _check(folder: Path, name: str, expected: str) -> Weights:
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        return Weights(name, 0.0, expected, "missing")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    megabytes = path.stat().st_size / 1e6
    return Weights(name, megabytes, found, "ok" if found == expected else "wrong")


def report() -> dict[str, str]:
    """Versions, hardware, folders and shipped files, each in a few words."""
    return {
        "python": _python(),
        **{name: _version(name) for name in ("mindeye2-lite", *PACKAGES)},
        **{name: _version(name, "[paper]") for name in MORE_PACKAGES},
        "processor": f"{os.cpu_count()} cores, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS')}",
        "accelerator": _accelerator(),
        "cache": _cache(),
        "cohort": _cohort(),
        "weights": _weights(),
        "assets": str(paths.assets()),
        **{f"profile {name}": _profile(name) for name in PROFILES},
    }


def _python() -> str:
    found = f"{platform.python_version()} on {platform.platform()}"
    if sys.version_info < OLDEST_PYTHON:
        return f"{found}: too old, {'.'.join(map(str, OLDEST_PYTHON))} or later is needed"
    return found


def _version(package: str, extra: str = "") -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed: pip install -e .{extra}"


def _profile(name: str) -> str:
    """What the profile still needs for subject 1."""
    wanted = assets.needed(Config.of(name), subjects=(1,))
    lacking = [asset for asset in wanted if assets.state(asset) != "here"]
    if not lacking:
        return "ready" if wanted else "ready: needs nothing from outside"
    size = sum(asset.gigabytes for asset in lacking)
    first = ", ".join(asset.name for asset in lacking[:3])
    return (
        f"{len(lacking)} of {len(wanted)} assets missing for subject 1, {size:.0f} GB ({first}, "
        f"...): mindeye2-lite fetch --profile {name} --list"
    )


def _accelerator() -> str:
    import torch

    from mindeye2_lite import hardware

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        bf16 = "bf16" if hardware.computes_bf16() else "no bf16"
        found = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {bf16}, "
        memory = f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free, CUDA {torch.version.cuda}"
        return found + memory
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return f"none found (lite needs none); torch was built with {built}"


def _cache() -> str:
    folder = paths.cache()
    return f"{folder}, {shutil.disk_usage(folder).free / 1e9:.0f} GB free"


def _cohort() -> str:
    folder = paths.cohort("lite")
    return str(folder) if folder.is_dir() else "not made yet: mindeye2-lite prepare"


def _weights() -> str:
    try:
        files = check_weights()
    except ValueError as error:
        return str(error)
    bad = [file.name for file in files if file.state != "ok"]
    return f"{len(files)} files, " + (f"damaged: {', '.join(bad)}" if bad else "all as shipped")
