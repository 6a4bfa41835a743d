"""Paints one scene: the backdrop, then the objects with light and shadow.

Flat shapes are drawn three times too large and averaged down, so edges are smooth. Everything that
light does (tint, rounded shading, rim, soft shadow, mirror image on water) is numpy on the small
picture, in plain arithmetic (no exp or pow), so machines agree about every pixel.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from .backdrops import OVERSAMPLING, Pen, axes, background, bell, lit
from .sprites import FLYING, SPRITES, Brush, extent, tones

# objects take less of the hour's tint than the ground, so that their color keeps its name
GENTLE_TINTS = {
    "noon": (1.0, 1.0, 1.0),
    "sunset": (1.01, 0.95, 0.91),
    "night": (0.86, 0.87, 0.98),
    "overcast": (0.93, 0.95, 0.96),
}
PALE = ("yellow", "white", "pink")  # their patterns are darker than they are


def paint(scene, size: int = 64) -> np.ndarray:
    """The picture of one scene, uint8 (size, size, 3)."""
    picture, _ = _compose(scene, size)
    return picture


def object_mask(scene, size: int = 64) -> np.ndarray:
    """The share of each pixel that the main object covers, float32 (size, size)."""
    _, mask = _compose(scene, size)
    return mask


def _compose(scene, size):
    rng = np.random.default_rng(scene.seed)
    sun = rng.uniform(0.12, 0.88)
    canvas = background(scene, size, sun, rng)
    placed = [_place_main(scene, size, rng)]
    if scene.companion is not None:
        placed.insert(0, _place_companion(scene, size))
    for at in placed:
        _stage(canvas, scene, at)
    picture = np.asarray(canvas.reduce(OVERSAMPLING), dtype=np.float32).copy()
    mask = np.zeros((size, size), np.float32)
    for at in placed:
        window, own, alpha = _object(at, size)
        _shadow(picture, at, scene, sun)
        if scene.ground == "water":
            _mirror(picture[:, window[1]], own, alpha, at, window[0].start)
        _blend(picture[window], own, alpha, scene.light, sun)
    mask[window] = alpha  # the last one is the main object
    return np.rint(picture.clip(0, 255)).astype(np.uint8), mask


# where things are


class Placed:
    """One object on the canvas: kind, looks, pixels per unit, and the pixel of its origin."""

    def __init__(self, kind, color, pattern, scale, x, y, mirror):
        self.kind, self.color, self.pattern, self.mirror = kind, color, pattern, mirror
        whole = extent(kind)
        middle = (whole.left + whole.right) / 2 * (-1 if mirror else 1)
        self.scale = scale
        self.origin = (x - middle * scale, y)  # pixels of the small picture
        self.x, self.y = x, y
        self.half = (whole.right - whole.left) / 2 * scale
        self.height = whole.top * scale
        self.shadow_y = y


def _place_main(scene, size, rng):
    whole = extent(scene.kind)
    scale = scene.size * size / np.sqrt(whole.area)
    floor = size * (scene.horizon + (1 - scene.horizon) * rng.uniform(0.62, 0.84))
    tall = (whole.top - whole.bottom) * scale
    y = np.clip(floor, tall + 0.03 * size, 0.95 * size)
    if scene.kind in FLYING:
        y = np.clip(size * rng.uniform(0.60, 0.72), tall + 0.03 * size, 0.8 * size)
    mirror = scene.facing == "left"
    placed = Placed(scene.kind, scene.color, scene.pattern, scale, scene.x * size, y, mirror)
    placed.shadow_y = max(floor, y + 0.08 * size) if scene.kind in FLYING else y
    return placed


def _place_companion(scene, size):
    rng = np.random.default_rng([scene.seed, 2])  # own: without it, the rest stays as it is
    whole = extent(scene.companion)
    scale = rng.uniform(0.21, 0.24) * size / np.sqrt(whole.area)
    half = (whole.right - whole.left) / 2 * scale
    outer = rng.uniform(0.01, 0.05) * size + half
    x = size - outer if scene.x < 0.5 else outer
    floor = size * (scene.horizon + (1 - scene.horizon) * rng.uniform(0.28, 0.42))
    y = floor
    if scene.companion in FLYING:
        y = size * rng.uniform(0.16, 0.24) + whole.top * scale / 2
    mirror = bool(rng.integers(2))
    placed = Placed(scene.companion, scene.companion_color, "plain", scale, x, y, mirror)
    placed.shadow_y = floor
    return placed


# objects


def _stage(canvas, scene, at):
    """What lets an object stand where it could not: an islet on water, trestles for a boat."""
    pen = Pen(canvas, canvas.width / OVERSAMPLING)
    if scene.ground == "water" and at.kind not in FLYING + ("boat",):
        w = at.half * 1.12 + 1
        h = max(2.0, at.half * 0.24)
        pen.oval(at.x, at.y + h * 0.45, w * 1.06, h, lit((236, 250, 250), scene.light, 0.8), 150)
        pen.oval(at.x, at.y + h * 0.2, w, h * 0.9, lit((206, 164, 104), scene.light))
        pen.oval(at.x, at.y - h * 0.1, w * 0.97, h * 0.8, lit((140, 190, 86), scene.light))
    if scene.ground != "water" and at.kind == "boat":
        wood = lit((120, 76, 48), scene.light, 0.7)
        for side in (-1, 1):
            x, s = at.x + side * at.half * 0.55, at.half
            pen.line(
                [(x - s * 0.16, at.y + 1), (x + side * s * 0.14, at.y - s * 0.3)], s * 0.1, wood
            )
            pen.line([(x + s * 0.2, at.y + 1), (x, at.y - s * 0.2)], s * 0.1, wood)


@lru_cache
def _pattern(name: str, side: int) -> Image.Image:
    """Where a pattern covers an object, as a mask image of `side` pixels."""
    y, x = np.mgrid[:side, :side]
    pitch = side // 9
    if name == "stripes":
        covered = (2 * x + y) % (2 * pitch) < pitch
    else:
        across = (x + (y // pitch % 2) * (pitch // 2)) % pitch - pitch // 2
        covered = across**2 + (y % pitch - pitch // 2) ** 2 < (0.3 * pitch) ** 2
    return Image.fromarray((covered * 215).astype(np.uint8))


def _object(at, size):
    """The object alone: its window in the picture, and there color and coverage in [0, 1]."""
    k, margin = OVERSAMPLING, size // 12
    left, right = (int(at.x + side * at.half + side * margin) for side in (-1, 1))
    top, bottom = int(at.y - at.height - margin), int(at.y + margin + 2)
    window = (slice(max(0, top), min(size, bottom)), slice(max(0, left), min(size, right)))
    rows, columns = window
    box = ((columns.stop - columns.start) * k, (rows.stop - rows.start) * k)
    layer = Image.new("RGBA", box)
    painted = Image.new("L", box) if at.pattern != "plain" else None
    origin = ((at.origin[0] - columns.start) * k, (at.origin[1] - rows.start) * k)
    SPRITES[at.kind](Brush(layer, at.scale * k, origin, at.mirror, at.color, painted))
    if painted is not None:
        cover = _pattern(at.pattern, size * k).crop((0, 0, *box))
        tone = tones(at.color)["dark" if at.color in PALE else "light"]
        layer.paste(tone, mask=ImageChops.multiply(painted, cover))
    small = np.asarray(layer.reduce(k), dtype=np.float32)
    return window, small[:, :, :3], small[:, :, 3] / 255


def _shadow(picture, at, scene, sun):
    size = len(picture)
    rows, columns = axes(size)
    lean = (0.5 - sun) * 0.5 * (scene.light != "overcast")
    wide = at.half * (0.8 if at.kind in FLYING else 1.05)
    first = max(0, int(at.shadow_y - 0.2 * size))
    square = ((columns - at.x - lean * at.half) / wide) ** 2
    square = square + ((rows[first:] - at.shadow_y) / max(1.5, wide * 0.2)) ** 2
    strength = {"noon": 0.42, "sunset": 0.36, "night": 0.4, "overcast": 0.26}[scene.light]
    picture[first:] *= (1 - strength * bell(2 * square))[:, :, None]


def _mirror(strip, own, alpha, at, top):
    """The object upside down on the water below it, fading."""
    base, feet = round(at.shadow_y), round(at.y) - top
    count = min(len(strip) - base, feet)
    fade = 0.38 * np.linspace(1, 0.3, count, dtype=np.float32)[:, None]
    share = (fade * alpha[:feet][::-1][:count])[:, :, None]
    patch = strip[base : base + count]
    patch += share * (own[:feet][::-1][:count] * 0.85 - patch)


def _blend(patch, own, alpha, light, sun):
    """Puts the object on its patch of the picture, with a dark rim and rounded by the light."""
    soft, near = _soften(alpha, 3), _soften(alpha, 1)
    side = 2 if sun > 0.5 else -2
    # two copies of the blurred silhouette, moved apart, differ where the surface would turn away
    turned = np.roll(soft, (2, -side), (0, 1)) - np.roll(soft, (-2, side), (0, 1))
    shade = 1 + 0.24 * turned
    rim = np.minimum(near * 1.8, 1) * 0.32
    patch *= 1 - (rim * (1 - alpha))[:, :, None]
    shaded = np.minimum(own * shade[:, :, None] * np.float32(GENTLE_TINTS[light]), 255)
    patch += alpha[:, :, None] * (shaded - patch)


def _soften(alpha, radius):
    image = Image.fromarray((alpha * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.BoxBlur(radius)), dtype=np.float32) / 255
