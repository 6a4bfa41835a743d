"""The twelve kinds of object, drawn from a few shapes each.

A kind is a function that moves a `Brush`. It draws in its own units: x from about -1 to 1, facing
right, y from 0 at the ground upwards. The brush turns them into pixels (scale, place, mirror) and
tones into colors: `base`, `light`, `dark`, `deep` are shades of the object's own color, everything
else is what the part is made of. `extent` measures a kind once, so that sizes can be asked for in
shares of the picture.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

PAINTS = {
    "red": (218, 54, 50),
    "orange": (244, 134, 36),
    "yellow": (250, 206, 56),
    "green": (38, 156, 92),
    "blue": (52, 116, 214),
    "purple": (134, 78, 182),
    "pink": (246, 136, 178),
    "white": (246, 243, 234),
}
MATERIALS = {
    "black": (44, 40, 50),
    "cream": (252, 240, 214),
    "glass": (176, 220, 238),
    "gold": (250, 196, 70),
    "honey": (206, 132, 40),
    "iron": (88, 86, 98),
    "lamp": (255, 232, 150),
    "leaf": (92, 158, 66),
    "beak": (242, 152, 44),
    "rose": (240, 160, 160),
    "slate": (92, 84, 104),
    "silver": (206, 208, 216),
    "smoke": (236, 234, 236),
    "stem": (70, 130, 56),
    "tusk": (252, 246, 228),
    "wood": (146, 94, 56),
}
OWN_TONES = ("base", "light", "glow", "dark", "deep")
# the shaded side, where a plain darker shade would change the color's name or look dirty
SHADES = {
    "orange": (212, 98, 30),
    "yellow": (230, 168, 42),
    "pink": (220, 98, 150),
    "white": (202, 204, 218),
}


@lru_cache
def tones(color: str) -> dict[str, tuple[int, int, int]]:
    """RGB of every tone of an object of this color."""
    base = np.array(PAINTS[color], float)
    shade = np.array(SHADES.get(color, base * (0.72, 0.70, 0.78)))
    own = (base, base * 0.62 + 255 * 0.38, base * 0.84 + 255 * 0.16, shade, shade * 0.74)
    return MATERIALS | {
        name: tuple(int(c) for c in rgb) for name, rgb in zip(OWN_TONES, own, strict=True)
    }


class Brush:
    """Draws shapes given in an object's own units on an image and, if there is one, marks on
    `painted` where the object's own color shows (patterns go there and nowhere else)."""

    def __init__(self, image, scale, origin, mirror=False, color="red", painted=None):
        self.scale = scale
        self.stretch = np.array((-scale if mirror else scale, -scale))
        self.shift = np.array(origin) + 0.5
        self.tones = tones(color)
        self.draw = ImageDraw.Draw(image)
        self.mark = ImageDraw.Draw(painted) if painted is not None else None

    def shape(self, points, tone):
        """A filled polygon."""
        self._polygon(np.asarray(points, float), tone)

    def blob(self, points, tone):
        """A filled smooth curve through the points."""
        self._polygon(_smooth(tuple(points)), tone)

    def oval(self, x, y, rx, ry, tone, tilt=0.0):
        """A filled ellipse; `tilt` in degrees turns it against the clock."""
        self._polygon(_oval(x, y, rx, ry, tilt), tone)

    def box(self, left, bottom, right, top, tone):
        """A filled rectangle."""
        self.shape([(left, bottom), (right, bottom), (right, top), (left, top)], tone)

    def line(self, points, width, tone):
        """A thick line with round joints and ends."""
        corners = self._pixels(np.asarray(points, float))
        pixels = max(2, round(width * self.scale))
        self.draw.line(corners, fill=self.tones[tone], width=pixels, joint="curve")
        if self.mark:
            fill = 255 * (tone in OWN_TONES)
            self.mark.line(corners, fill=fill, width=pixels, joint="curve")
        if width * self.scale > 6:
            for x, y in (points[0], points[-1]):
                self.oval(x, y, width / 2, width / 2, tone)

    def curve(self, points, width, tone):
        """A thick smooth line through the points."""
        self.line(_smooth(tuple(points), closed=False), width, tone)

    def _polygon(self, points, tone):
        corners = self._pixels(points)
        self.draw.polygon(corners, fill=self.tones[tone])
        if self.mark:
            self.mark.polygon(corners, fill=255 * (tone in OWN_TONES))

    def _pixels(self, points):
        # the drawing cuts fractions off: half a pixel makes it round
        return (points * self.stretch + self.shift).ravel().tolist()


@lru_cache(maxsize=4096)
def _smooth(points: tuple, closed: bool = True, steps: int = 6) -> np.ndarray:
    """Catmull-Rom curve through the points."""
    p = np.array(points, float)
    before, after = np.roll(p, 1, 0), np.roll(p, -1, 0)
    if not closed:
        before[0], after[-1] = p[0], p[-1]
    slope = (after - before) / 2
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    start, end = p[None], np.roll(p, -1, 0)[None]
    path = (2 * t**3 - 3 * t**2 + 1) * start + (3 * t**2 - 2 * t**3) * end
    path = path + (t**3 - 2 * t**2 + t) * slope + (t**3 - t**2) * np.roll(slope, -1, 0)
    path = path.transpose(1, 0, 2).reshape(-1, 2)
    return path if closed else np.vstack([path[: -steps + 1], p[-1]])


@lru_cache(maxsize=4096)
def _oval(x, y, rx, ry, tilt) -> np.ndarray:
    angle = np.arange(24) * (2 * np.pi / 24)
    turn = np.deg2rad(tilt)
    along, across = rx * np.cos(angle), ry * np.sin(angle)
    return np.stack(
        [
            x + along * np.cos(turn) - across * np.sin(turn),
            y + along * np.sin(turn) + across * np.cos(turn),
        ],
        1,
    )


def car(b: Brush) -> None:
    b.shape([(-0.86, 0.14), (0.9, 0.14), (0.9, 0.3), (-0.86, 0.3)], "black")
    b.blob(
        [(-0.97, 0.25), (-1.0, 0.52), (-0.84, 0.7), (-0.62, 0.76), (-0.38, 1.13), (0.02, 1.2)]
        + [(0.36, 1.1), (0.6, 0.74), (0.88, 0.66), (1.01, 0.46), (0.98, 0.23), (0.0, 0.2)],
        "base",
    )
    b.blob(
        [(-0.99, 0.3), (-0.5, 0.34), (0.5, 0.34), (1.0, 0.3), (0.97, 0.2), (0, 0.19), (-0.96, 0.2)],
        "dark",
    )
    b.shape([(-0.5, 0.74), (-0.3, 1.06), (-0.04, 1.09), (-0.04, 0.74)], "glass")
    b.shape([(0.06, 0.74), (0.06, 1.09), (0.3, 1.03), (0.49, 0.74)], "glass")
    b.line([(0.01, 0.7), (0.01, 0.36)], 0.035, "dark")
    b.line([(-0.24, 0.6), (-0.1, 0.6)], 0.05, "cream")
    b.oval(0.88, 0.5, 0.1, 0.1, "lamp")
    b.box(0.86, 0.2, 1.04, 0.29, "silver")
    b.box(-1.04, 0.2, -0.86, 0.29, "silver")
    for x in (-0.55, 0.56):
        b.oval(x, 0.24, 0.29, 0.29, "deep")
        b.oval(x, 0.21, 0.24, 0.23, "black")
        b.oval(x, 0.21, 0.11, 0.11, "silver")


def train(b: Brush) -> None:
    b.oval(0.3, 1.66, 0.2, 0.15, "smoke")
    b.oval(0.02, 1.78, 0.22, 0.16, "smoke")
    b.oval(0.5, 1.5, 0.13, 0.11, "smoke")
    b.shape(
        [(0.46, 0.8), (0.7, 0.8), (0.66, 1.22), (0.74, 1.38), (0.42, 1.38), (0.5, 1.22)], "iron"
    )
    b.oval(0.1, 0.98, 0.15, 0.15, "gold")
    b.blob(
        [
            (-0.4, 0.42),
            (-0.4, 0.98),
            (0.6, 0.98),
            (0.88, 0.94),
            (0.93, 0.7),
            (0.88, 0.44),
            (0.6, 0.4),
        ],
        "base",
    )
    b.box(-0.4, 0.42, 0.78, 0.54, "dark")
    b.box(-0.4, 0.8, 0.76, 0.87, "light")
    b.oval(0.86, 0.7, 0.1, 0.25, "iron")
    b.oval(0.92, 0.74, 0.09, 0.1, "lamp")
    b.box(-0.96, 0.34, -0.3, 1.3, "base")
    b.box(-0.96, 0.34, -0.3, 0.5, "dark")
    b.shape([(-1.06, 1.24), (-0.2, 1.24), (-0.26, 1.4), (-1.0, 1.4)], "deep")
    b.box(-0.84, 0.8, -0.44, 1.14, "glass")
    b.box(-0.84, 0.94, -0.44, 0.98, "dark")
    b.box(-1.0, 0.28, 0.86, 0.4, "iron")
    b.shape([(0.74, 0.36), (0.9, 0.36), (1.08, 0.04), (0.74, 0.04)], "gold")
    for x, r in ((-0.7, 0.26), (-0.13, 0.26), (0.42, 0.2)):
        b.oval(x, r, r, r, "black")
        b.oval(x, r, r * 0.66, r * 0.66, "base")
        b.oval(x, r, r * 0.3, r * 0.3, "gold")
    b.line([(-0.7, 0.2), (-0.13, 0.2), (0.42, 0.18)], 0.07, "silver")


def boat(b: Brush) -> None:
    b.line([(-0.06, 0.4), (-0.06, 1.86)], 0.075, "wood")
    b.blob([(0.02, 0.56), (0.05, 1.78), (0.32, 1.42), (0.62, 0.98), (0.86, 0.58)], "base")
    b.shape([(0.02, 0.56), (0.04, 1.0), (0.62, 1.0), (0.86, 0.57)], "base")
    b.shape([(0.02, 0.86), (0.03, 1.02), (0.6, 1.02), (0.7, 0.86)], "light")
    b.shape([(-0.13, 0.58), (-0.13, 1.66), (-0.42, 1.2), (-0.74, 0.6)], "cream")
    b.shape([(-0.06, 1.86), (-0.06, 2.02), (-0.32, 1.94)], "base")
    b.blob(
        [
            (-1.0, 0.5),
            (-0.5, 0.43),
            (0.4, 0.43),
            (1.04, 0.54),
            (0.9, 0.25),
            (0.66, 0.02),
            (0, 0),
            (-0.66, 0.02),
            (-0.88, 0.2),
        ],
        "base",
    )
    b.blob(
        [(-0.92, 0.26), (0, 0.2), (0.92, 0.28), (0.8, 0.12), (0.6, 0.02), (0, 0), (-0.66, 0.02)],
        "dark",
    )
    b.line([(-0.96, 0.45), (-0.4, 0.4), (0.4, 0.4), (0.98, 0.48)], 0.08, "cream")
    for x in (-0.4, 0.0, 0.4):
        b.oval(x, 0.24, 0.07, 0.07, "lamp")


def airplane(b: Brush) -> None:
    b.shape([(0.1, 0.8), (0.4, 0.8), (0.02, 1.22), (-0.24, 1.22)], "dark")
    b.shape([(-0.96, 0.76), (-0.46, 0.8), (-0.68, 1.36), (-1.0, 1.38)], "base")
    b.shape([(-0.98, 1.08), (-0.56, 1.08), (-0.68, 1.36), (-1.0, 1.38)], "dark")
    b.blob(
        [(-1.0, 0.82), (-0.6, 0.94), (0.1, 1.0), (0.6, 0.96), (0.9, 0.8), (1.02, 0.58)]
        + [(0.9, 0.4), (0.5, 0.28), (-0.1, 0.3), (-0.6, 0.5)],
        "base",
    )
    b.blob(
        [(-0.84, 0.66), (0.2, 0.54), (0.99, 0.52), (0.88, 0.38), (0.5, 0.28), (-0.1, 0.3)]
        + [(-0.6, 0.5)],
        "cream",
    )
    b.shape([(0.6, 0.72), (0.66, 0.92), (0.88, 0.78), (0.96, 0.66)], "glass")
    for x in (-0.48, -0.24, 0.0, 0.24, 0.46):
        b.oval(x, 0.76, 0.085, 0.1, "glass")
    b.blob([(-0.84, 0.74), (-0.56, 0.76), (-0.76, 0.46), (-1.06, 0.4), (-1.04, 0.5)], "dark")
    b.shape([(-0.06, 0.6), (0.46, 0.56), (-0.16, -0.06), (-0.58, -0.06)], "base")
    b.shape([(-0.06, 0.6), (0.08, 0.6), (-0.44, -0.06), (-0.58, -0.06)], "dark")
    b.oval(0.2, 0.24, 0.22, 0.14, "silver")
    b.oval(0.37, 0.24, 0.07, 0.12, "iron")


def balloon(b: Brush) -> None:
    for x in (-0.18, 0.18):
        b.line([(x, 0.64), (x * 0.8, 0.24)], 0.03, "iron")
    b.line([(0, 0.6), (0, 0.24)], 0.03, "iron")
    outline = [(0.17, 0.56), (0.5, 0.86), (0.74, 1.24), (0.76, 1.6), (0.52, 1.96), (0, 2.12)]
    whole = outline + [(-x, y) for x, y in reversed(outline[:-1])]
    for width, tone in ((1.0, "base"), (0.72, "cream"), (0.42, "base"), (0.14, "cream")):
        b.blob([(x * width, y) for x, y in whole], tone)
    band = [(-0.74, 1.3), (-0.7, 1.12), (0, 1.04), (0.7, 1.12), (0.74, 1.3), (0, 1.24)]
    b.blob(band, "dark")
    b.shape([(-0.18, 0.54), (0.18, 0.54), (0.15, 0.63), (-0.15, 0.63)], "deep")
    b.shape([(-0.2, 0.27), (0.2, 0.27), (0.16, 0.0), (-0.16, 0.0)], "wood")
    b.box(-0.22, 0.22, 0.22, 0.3, "gold")


def house(b: Brush) -> None:
    b.oval(0.56, 1.78, 0.13, 0.09, "smoke")
    b.oval(0.68, 1.94, 0.17, 0.11, "smoke")
    b.box(0.38, 1.1, 0.6, 1.66, "deep")
    b.box(0.35, 1.58, 0.63, 1.68, "slate")
    b.shape([(-0.78, 0), (0.78, 0), (0.78, 0.88), (0, 1.5), (-0.78, 0.88)], "base")
    b.box(-0.78, 0, 0.78, 0.1, "dark")
    b.shape([(-1.0, 0.78), (0, 1.66), (0, 1.42), (-0.86, 0.68)], "slate")
    b.shape([(1.0, 0.78), (0, 1.66), (0, 1.42), (0.86, 0.68)], "slate")
    b.box(-0.17, 0, 0.19, 0.58, "wood")
    b.oval(0.01, 0.58, 0.18, 0.13, "wood")
    b.oval(0.11, 0.3, 0.035, 0.035, "gold")
    for x in (-0.49, 0.5):
        b.box(x - 0.2, 0.3, x + 0.2, 0.72, "cream")
        b.box(x - 0.15, 0.35, x + 0.15, 0.67, "lamp")
        b.box(x - 0.02, 0.35, x + 0.02, 0.67, "cream")
        b.box(x - 0.15, 0.49, x + 0.15, 0.53, "cream")
    b.oval(0, 1.06, 0.17, 0.17, "cream")
    b.oval(0, 1.06, 0.12, 0.12, "lamp")


def tree(b: Brush) -> None:
    b.blob(
        [(-0.3, 0), (-0.16, 0.12), (-0.12, 0.7), (0.14, 0.7), (0.16, 0.12), (0.32, 0), (0, 0.05)],
        "wood",
    )
    b.line([(0.02, 0.5), (0.34, 0.86)], 0.1, "wood")
    for x, y, r in ((-0.46, 0.92, 0.4), (0.48, 0.92, 0.4), (0, 0.9, 0.42)):
        b.oval(x, y, r, r * 0.9, "dark")
    for x, y, r in ((-0.46, 1.08, 0.36), (0.46, 1.1, 0.36), (0, 1.36, 0.5), (0, 1.02, 0.4)):
        b.oval(x, y, r, r * 0.92, "base")
    for x, y, rx, ry in (
        (-0.14, 1.5, 0.28, 0.2),
        (-0.54, 1.18, 0.18, 0.12),
        (0.42, 1.2, 0.2, 0.13),
    ):
        b.oval(x, y, rx, ry, "glow", 15)
    for x, y in ((0.04, 1.16), (-0.3, 0.92), (0.34, 0.9)):
        b.oval(x, y, 0.12, 0.05, "dark", 8)


def flower(b: Brush) -> None:
    b.curve([(0.03, 0), (-0.03, 0.4), (0, 0.9)], 0.13, "stem")
    b.blob([(0, 0.06), (0.26, 0.2), (0.62, 0.5), (0.66, 0.64), (0.4, 0.58), (0.12, 0.34)], "leaf")
    b.blob(
        [(0, 0.06), (-0.26, 0.26), (-0.6, 0.58), (-0.62, 0.7), (-0.36, 0.62), (-0.1, 0.36)], "stem"
    )
    for k in range(8):
        angle = k * 45 + 22.5
        x, y = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        b.oval(0.46 * x, 1.3 + 0.46 * y, 0.33, 0.22, "dark", angle)
    for k in range(8):
        angle = k * 45
        x, y = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        b.oval(0.44 * x, 1.3 + 0.44 * y, 0.32, 0.19, "base", angle)
    b.oval(0, 1.3, 0.27, 0.27, "honey")
    b.oval(-0.03, 1.33, 0.2, 0.2, "gold")
    for x, y in ((-0.1, 1.4), (0.06, 1.42), (0.1, 1.28), (-0.04, 1.26)):
        b.oval(x, y, 0.03, 0.03, "honey")


def umbrella(b: Brush) -> None:
    b.line([(0, 0.16), (0, 1.9)], 0.09, "wood")
    b.curve([(0, 0.2), (0.02, 0.08), (0.13, 0.03), (0.25, 0.08), (0.26, 0.22)], 0.1, "wood")
    rim = [
        (-1.0, 0.82),
        (-0.66, 0.94),
        (-0.34, 0.8),
        (0, 0.92),
        (0.34, 0.8),
        (0.66, 0.94),
        (1.0, 0.82),
    ]
    dome = [
        (0.95, 1.14),
        (0.74, 1.5),
        (0.4, 1.74),
        (0, 1.82),
        (-0.4, 1.74),
        (-0.74, 1.5),
        (-0.95, 1.14),
    ]
    b.shape(rim + dome, "base")
    b.blob(
        [(0, 1.82), (-0.5, 1.62), (-0.84, 1.26), (-1.0, 0.82), (-0.66, 0.94), (-0.34, 1.4)], "light"
    )
    b.blob([(0, 1.82), (0.5, 1.62), (0.84, 1.26), (1.0, 0.82), (0.66, 0.94), (0.34, 1.4)], "dark")
    b.blob([(0, 1.82), (-0.22, 1.4), (-0.34, 0.8), (0, 0.92), (0.34, 0.8), (0.22, 1.4)], "base")
    b.curve([(0, 1.82), (-0.22, 1.4), (-0.34, 0.8)], 0.03, "deep")
    b.curve([(0, 1.82), (0.22, 1.4), (0.34, 0.8)], 0.03, "deep")
    b.oval(0, 1.88, 0.06, 0.08, "wood")


def cat(b: Brush) -> None:
    b.curve([(-0.4, 0.12), (-0.8, 0.16), (-0.94, 0.46), (-0.8, 0.74), (-0.62, 0.72)], 0.2, "dark")
    b.blob(
        [
            (-0.62, 0.04),
            (-0.64, 0.36),
            (-0.44, 0.76),
            (-0.1, 0.98),
            (0.4, 0.96),
            (0.52, 0.6),
            (0.5, 0.04),
            (0, 0),
        ],
        "base",
    )
    b.oval(-0.34, 0.26, 0.3, 0.27, "dark")
    b.oval(-0.36, 0.27, 0.26, 0.22, "base")
    b.blob([(0.18, 0.9), (0.44, 0.86), (0.48, 0.5), (0.34, 0.3), (0.18, 0.5)], "cream")
    for x in (0.16, 0.44):
        b.oval(x, 0.09, 0.17, 0.1, "light")
    for left, tip, right in (
        ((-0.22, 1.3), (-0.2, 1.86), (0.16, 1.62)),
        ((0.36, 1.62), (0.72, 1.86), (0.72, 1.3)),
    ):
        b.shape([left, tip, right], "base")
        middle = np.mean([left, tip, right], 0)
        b.shape(np.array([left, tip, right]) * 0.55 + middle * 0.45, "rose")
    b.oval(0.25, 1.24, 0.54, 0.44, "base")
    b.oval(0.27, 1.1, 0.27, 0.19, "cream")
    for x in (0.06, 0.48):
        b.oval(x, 1.3, 0.105, 0.125, "lamp")
        b.oval(x + 0.02, 1.3, 0.06, 0.115, "black")
    b.shape([(0.19, 1.2), (0.35, 1.2), (0.27, 1.1)], "rose")
    for side in (-1, 1):
        for rise in (0.06, -0.06):
            b.line([(0.27 + side * 0.24, 1.1), (0.27 + side * 0.62, 1.1 + rise)], 0.025, "black")
    for x in (0.13, 0.25, 0.37):
        b.line([(x, 1.66), (x, 1.52)], 0.05, "deep")


def elephant(b: Brush) -> None:
    b.curve([(-0.9, 0.9), (-1.06, 0.7), (-1.04, 0.5)], 0.07, "dark")
    for x in (-0.5, 0.22):
        b.box(x - 0.15, 0, x + 0.15, 0.6, "dark")
    b.blob(
        [
            (-0.98, 0.7),
            (-0.86, 1.12),
            (-0.4, 1.36),
            (0.1, 1.3),
            (0.4, 1.1),
            (0.4, 0.6),
            (-0.2, 0.42),
            (-0.8, 0.4),
        ],
        "base",
    )
    for x in (-0.72, 0.02):
        b.blob(
            [
                (x - 0.18, 0.6),
                (x + 0.18, 0.6),
                (x + 0.17, 0.06),
                (x + 0.1, 0),
                (x - 0.1, 0),
                (x - 0.17, 0.06),
            ],
            "base",
        )
        for toe in (-0.06, 0.07):
            b.oval(x + toe, 0.05, 0.05, 0.05, "tusk")
    b.curve(
        [(0.62, 1.0), (0.84, 0.78), (0.88, 0.46), (0.98, 0.3), (1.14, 0.36), (1.18, 0.52)],
        0.2,
        "base",
    )
    b.curve([(0.72, 0.62), (0.74, 0.46), (0.9, 0.44)], 0.09, "tusk")
    b.oval(0.52, 1.1, 0.36, 0.37, "base")
    b.blob(
        [(0.36, 1.46), (0.06, 1.5), (-0.16, 1.2), (-0.06, 0.78), (0.2, 0.68), (0.38, 0.96)], "dark"
    )
    b.blob([(0.3, 1.38), (0.08, 1.4), (-0.06, 1.18), (0.0, 0.88), (0.16, 0.8), (0.3, 1.0)], "light")
    b.oval(0.64, 1.18, 0.075, 0.085, "cream")
    b.oval(0.66, 1.17, 0.045, 0.06, "black")


def bird(b: Brush) -> None:
    for x in (-0.06, 0.2):
        b.line([(x, 0.34), (x + 0.02, 0.04)], 0.07, "beak")
        b.line([(x - 0.1, 0.03), (x + 0.16, 0.03)], 0.07, "beak")
    b.shape([(-0.4, 0.74), (-0.9, 1.06), (-1.0, 0.8), (-0.9, 0.6), (-0.4, 0.4)], "dark")
    b.line([(-0.92, 0.82), (-0.5, 0.62)], 0.04, "deep")
    b.shape([(0.74, 1.36), (1.12, 1.17), (0.76, 1.0)], "beak")
    b.line([(0.8, 1.16), (1.06, 1.16)], 0.03, "wood")
    b.blob(
        [
            (-0.7, 0.6),
            (-0.46, 0.94),
            (-0.1, 1.2),
            (0.12, 1.46),
            (0.44, 1.62),
            (0.76, 1.46),
            (0.84, 1.14),
        ]
        + [(0.78, 0.7), (0.5, 0.32), (0.04, 0.22), (-0.4, 0.34)],
        "base",
    )
    b.blob([(0.82, 1.04), (0.78, 0.66), (0.5, 0.34), (0.14, 0.26), (0.3, 0.6), (0.5, 0.9)], "cream")
    b.blob(
        [(-0.74, 0.64), (-0.3, 1.0), (0.1, 0.98), (0.24, 0.72), (0.0, 0.48), (-0.4, 0.46)], "dark"
    )
    for y in (0.76, 0.64):
        b.curve([(-0.56, y - 0.1), (-0.2, y), (0.08, y + 0.04)], 0.04, "light")
    b.oval(0.54, 1.28, 0.12, 0.12, "cream")
    b.oval(0.57, 1.28, 0.075, 0.085, "black")
    b.shape([(0.18, 1.46), (0.1, 1.72), (0.3, 1.68), (0.4, 1.8), (0.54, 1.56)], "base")


SPRITES = {
    draw.__name__: draw
    for draw in (car, train, boat, airplane, balloon, house)
    + (tree, flower, umbrella, cat, elephant, bird)
}
FLYING = ("airplane", "balloon")
DIRECTED = ("car", "train", "airplane", "elephant", "bird")  # which way they face can be seen


class Extent(NamedTuple):
    """What a kind covers, in its own units: area in square units, the rest in units."""

    area: float
    left: float
    right: float
    bottom: float
    top: float


@lru_cache
def extent(kind: str) -> Extent:
    """Measured once on a large drawing, facing right."""
    unit = 120
    layer = Image.new("RGBA", (4 * unit, 4 * unit))
    SPRITES[kind](Brush(layer, unit, (2 * unit, 3 * unit)))
    covered = np.asarray(layer)[:, :, 3] > 0
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    return Extent(
        int(covered.sum()) / unit**2,
        int(columns[0]) / unit - 2,
        int(columns[-1] + 1) / unit - 2,
        3 - int(rows[-1] + 1) / unit,
        3 - int(rows[0]) / unit,
    )
