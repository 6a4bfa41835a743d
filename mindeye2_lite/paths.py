"""Where files live. Everything that is made goes below one cache folder, never beside a notebook.

`MINDEYE2_LITE_CACHE` moves the folder; otherwise it is the user's cache folder of the platform.
`MINDEYE2_LITE_ASSETS` names another folder for the large files of the real networks.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

PACKAGE = Path(__file__).parent


def cache() -> Path:
    """The cache folder, made if missing. OSError in one line if it cannot be written."""
    folder = Path(
        os.environ.get("MINDEYE2_LITE_CACHE") or platformdirs.user_cache_dir("mindeye2-lite")
    )
    return _folder(folder)


def runs(*parts: str) -> Path:
    """A folder for what training and notebooks keep, e.g. `runs("lite", "pretrained")`."""
    return _folder(cache().joinpath("runs", *parts))


def targets() -> Path:
    """The folder of image tokens and latents, computed once per image."""
    return _folder(cache() / "targets")


def cohort(profile: str = "lite") -> Path:
    """The folder of a synthetic cohort in the training layout (it may not exist yet)."""
    return cache() / "data" / profile


def data(profile: str) -> Path:
    """The folder of real data in the training layout: MINDEYE2_LITE_DATA if that is set.

    A synthetic cohort never lies there: it is made and replaced without asking.
    """
    return Path(os.environ.get("MINDEYE2_LITE_DATA") or cache() / "data" / profile)


def weights(name: str) -> Path:
    """A shipped weights file, e.g. `weights("mini-vae")`."""
    return PACKAGE / "weights" / f"{name}.safetensors"


def assets(*parts: str) -> Path:
    """Where downloaded files of the real networks lie, e.g. `assets("bigG_to_L_epoch8.pth")`."""
    return Path(os.environ.get("MINDEYE2_LITE_ASSETS") or cache() / "assets").joinpath(*parts)


def may_download() -> bool:
    """Did the user allow loading from the network, by MINDEYE2_LITE_DOWNLOAD=1?"""
    return os.environ.get("MINDEYE2_LITE_DOWNLOAD", "") not in ("", "0")


def results(name: str) -> Path:
    """A shipped results file, e.g. `results("one_hour")`."""
    return PACKAGE / "results" / f"{name}.json"


@contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` only if all went well.

    OSError in one line if the folder is read-only or full; nothing half-written stays behind. What
    the block reads from other files must say so itself: an OSError here is taken for the writing's.
    """
    path = Path(path)
    folder = _folder(path.parent)
    beside = folder / f".{path.name}.{os.getpid()}.part"
    try:
        yield beside
        beside.chmod(0o644)
        os.replace(beside, path)
    except Exception as error:
        if not _of_writing(error):
            raise
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OSError(
            f"cannot write {path}: {why}: free space or set MINDEYE2_LITE_CACHE"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def _of_writing(error: Exception) -> bool:
    """Did a write fail? safetensors and torch say so by errors of their own, not by OSError."""
    said = ("I/O error", "PytorchStreamWriter", "file write failed", "unexpected pos")
    return isinstance(error, OSError) or any(words in str(error) for words in said)


def _folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to {folder}: {error.strerror}. "
            "Set MINDEYE2_LITE_CACHE to a folder with free space that you may write to"
        ) from error
    return folder
