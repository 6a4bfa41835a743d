"""The pictures of a study: by name from a folder, a mapping or an array, cut to equal squares.

    pictures = open_pictures("stimuli/", size=64)
    pictures.names                 sorted; a picture's place among them is its image_id
    pictures.index(["cat.png"])    image_ids of names; a name may lack its folder or its ending
    pictures(0, 8)                 (8, 64, 64, 3) uint8

Read with notebook 14.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageOps

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2", ".ppm")
BEHIND = (255, 255, 255)  # what shows through transparent pixels


@dataclass(frozen=True)
class Pictures:
    """Pictures by `image_id`, the place of their name among all names, sorted."""

    names: list
    open: Callable[[Any], Image.Image]
    size: int
    where: str  # for messages

    def __call__(self, first: int, last: int) -> np.ndarray:
        """(last - first, size, size, 3) uint8. ValueError names a picture that cannot be read."""
        return np.stack([self._one(name) for name in self.names[first:last]])

    def _one(self, name: Any) -> np.ndarray:
        try:
            return fitted(self.open(name), self.size)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            why = " ".join(str(error).split())
            raise ValueError(f"picture {name!r} of {self.where} cannot be read ({why})") from error

    def index(self, shown: Iterable) -> np.ndarray:
        """image_id of each name, int64. ValueError names the first that fits none, or several."""
        shown = [_plain(name) for name in shown]
        found = {name: self._find(name) for name in dict.fromkeys(shown)}
        return np.array([found[name] for name in shown], np.int64)

    def has(self, name: Any) -> bool:
        """Is there a picture of that name?"""
        return len(self._known.get(_plain(name), ())) == 1

    def _find(self, name: Any) -> int:
        fit = self._known.get(name, ())
        if len(fit) == 1:
            return fit[0]
        if fit:
            several = ", ".join(repr(self.names[i]) for i in fit[:3])
            raise ValueError(f"{name!r} fits several pictures of {self.where}: {several}")
        raise ValueError(
            f"no picture {name!r} in {self.where}: it has {len(self.names)}, "
            f"the first is {self.names[0]!r}"
        )

    @cached_property
    def _known(self) -> dict[Any, list[int]]:
        known: dict[Any, list[int]] = {}
        for aliases in (_shorter, _whole):  # a whole name goes before a shortened one
            found: dict[Any, list[int]] = {}
            for index, name in enumerate(self.names):
                for alias in aliases(name):
                    found.setdefault(alias, []).append(index)
            known |= found
        return known


def _whole(name: Any) -> set:
    return {name}


def _shorter(name: Any) -> set:
    """What else a name may be called: without folders, without its ending."""
    if not isinstance(name, str):
        return set()
    path = PurePosixPath(name)
    return {path.name, path.stem, path.with_suffix("").as_posix()} if path.name else set()


def _plain(name: Any) -> Any:
    """str and int as Python has them; whole numbers in floats, as MATLAB keeps them, are ints."""
    name = name.item() if isinstance(name, np.generic) else name
    name = name.decode() if isinstance(name, bytes) else name
    whole = isinstance(name, float) and name.is_integer()
    return int(name) if whole else name


def open_pictures(images: Any, size: int) -> Pictures:
    """Pictures of a folder, a mapping name -> (H, W, 3) uint8, or an array (images, H, W, 3) uint8.

    They are cut to the middle square and resized with antialiasing; transparent pixels show white,
    a camera's note on rotation is followed. ValueError or FileNotFoundError in one line.
    """
    if not isinstance(size, int | np.integer) or size < 8:
        raise ValueError(f"image_size is {size!r}: give a number of pixels, 8 or more")
    if isinstance(images, str | Path):
        return _of_folder(Path(images), int(size))
    if isinstance(images, Mapping):
        return _of_mapping(images, int(size))
    return _of_array(images, int(size))


def _of_folder(folder: Path, size: int) -> Pictures:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of pictures {folder}")
    files = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    names = sorted(path.relative_to(folder).as_posix() for path in files if path.is_file())
    names = [name for name in names if not any(part[0] == "." for part in name.split("/"))]
    if not names:
        raise FileNotFoundError(f"no pictures in {folder} (looked for {', '.join(ENDINGS)})")

    def read(name: str) -> Image.Image:
        with Image.open(folder / name) as image:
            image.load()
            return image

    return Pictures(names, read, size, str(folder))


def _of_mapping(images: Mapping, size: int) -> Pictures:
    if not images:
        raise ValueError("images is empty: give at least two pictures")
    of = {_plain(name): array for name, array in images.items()}
    try:
        names = sorted(of)
    except TypeError as error:
        raise ValueError("images has names and numbers as keys: use one kind") from error
    return Pictures(names, lambda name: _image(of[name], name), size, "images")


def _of_array(images: Any, size: int) -> Pictures:
    shape = getattr(images, "shape", ())
    if len(shape) != 4 or shape[3] != 3 or not shape[0]:
        raise ValueError(
            f"images has shape {tuple(shape)}: give a folder, a mapping name -> (H, W, 3) uint8, "
            "or an array (images, H, W, 3) uint8"
        )
    return Pictures(list(range(shape[0])), lambda i: _image(images[i], i), size, "images")


def _image(array: Any, name: Any) -> Image.Image:
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(
            f"picture {name!r} of images is {array.dtype} of shape {array.shape}: "
            "expected uint8 (H, W, 3), 0 to 255"
        )
    return Image.fromarray(array)


def fitted(image: Image.Image, size: int) -> np.ndarray:
    """The middle square in RGB, resized with antialiasing: (size, size, 3) uint8."""
    image = _rgb(ImageOps.exif_transpose(image))
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    image = image.crop((left, top, left + side, top + side))  # first: else the rest would blend in
    if side != size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: PIL would clip, not scale
        gray = np.asarray(image).clip(0, 65535) / 257
        image = Image.fromarray(gray.round().astype(np.uint8))
    if image.mode == "F":
        raise OSError("its pixels are fractions")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, (*BEHIND, 255)), above)
    return image.convert("RGB")
