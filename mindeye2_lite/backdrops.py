"""Sky, far scenery and ground: six places at four hours.

Gradients and perspective texture are numpy on the small picture; clouds, hills, houses, blades and
leaves are drawn on an image `OVERSAMPLING` times as large.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

OVERSAMPLING = 3

# stops of the sky's gradient, from the zenith to the horizon
SKIES = {
    "noon": ((64, 150, 224), (132, 198, 238), (222, 242, 246)),
    "sunset": ((98, 88, 158), (240, 132, 112), (255, 214, 140)),
    "night": ((16, 22, 62), (38, 52, 112), (92, 106, 162)),
    "overcast": ((132, 146, 162), (170, 180, 190), (214, 218, 218)),
}
# color of the ground far away and near
EARTHS = {
    "meadow": ((172, 210, 108), (92, 162, 64)),
    "sand": ((250, 232, 182), (230, 190, 120)),
    "snow": ((240, 246, 252), (206, 222, 242)),
    "water": ((130, 206, 218), (26, 112, 170)),
    "street": ((158, 158, 166), (98, 100, 114)),
    "leaves": ((222, 166, 84), (172, 96, 46)),
}
TINTS = {
    "noon": (1.0, 1.0, 1.0),
    "sunset": (1.02, 0.85, 0.78),
    "night": (0.5, 0.53, 0.76),
    "overcast": (0.84, 0.87, 0.9),
}
AUTUMN = ((226, 92, 44), (244, 176, 60), (190, 58, 44), (250, 206, 96), (140, 78, 44))
PETALS = ((255, 244, 236), (255, 222, 110), (246, 150, 180), (180, 150, 230))


@lru_cache
def _tile() -> np.ndarray:
    """A seamless patch of smooth noise with mean 0 and standard deviation 1, (128, 128)."""
    noise = np.random.default_rng(7).integers(-1000, 1001, (128, 128)).astype(float)
    for reach in (1, 2, 3):
        noise = sum(np.roll(noise, k, 0) for k in range(-reach, reach + 1))
        noise = sum(np.roll(noise, k, 1) for k in range(-reach, reach + 1))
    return (noise - noise.mean()) / noise.std()


@lru_cache
def axes(size):
    middles = np.arange(size, dtype=np.float32) + np.float32(0.5)
    return middles[:, None], middles[None]


def background(scene, size, sun, rng):
    """Sky, far scenery and ground, as an image `OVERSAMPLING` times the size."""
    small = np.empty((size, size, 3))
    edge = round(scene.horizon * size)
    small[:edge] = _sky(scene, size, edge, sun)
    small[edge:] = _ground(scene, size, edge, sun, rng)
    small = np.rint(small.clip(0, 255)).astype(np.uint8)
    canvas = Image.fromarray(small).resize((size * OVERSAMPLING,) * 2, Image.Resampling.NEAREST)
    pen = Pen(canvas, size)
    _decorate_sky(pen, scene, edge, sun, rng)
    FAR[scene.ground](pen, scene, edge, rng)
    NEAR[scene.ground](pen, scene, edge, rng)
    return canvas


def _sky(scene, size, edge, sun):
    rows, columns = axes(size)
    stops = np.array(SKIES[scene.light], float)
    height = rows[:edge, 0] / edge
    color = np.stack([np.interp(height, (0, 0.6, 1), stops[:, c]) for c in range(3)], 1)
    sky = np.repeat(color[:, None], size, 1)
    x, y = _sun(scene, size, sun)
    far = (columns - x) ** 2 + (rows[:edge] - y) ** 2
    glow = {"noon": 0.55, "sunset": 0.75, "night": 0.35, "overcast": 0.25}[scene.light]
    glow = glow / (1 + far / (0.16 * size) ** 2)
    warm = {"sunset": (255, 226, 150), "night": (170, 182, 226)}.get(scene.light, (255, 252, 236))
    return sky + glow[:, :, None] * (np.array(warm) - sky)


def _sun(scene, size, sun):
    height = {"noon": 0.14, "sunset": scene.horizon - 0.08, "night": 0.15, "overcast": 0.12}
    return sun * size, height[scene.light] * size


def _ground(scene, size, edge, sun, rng):
    rows, columns = axes(size)
    depth = (rows[edge:] - edge) / (size - edge)  # 0 at the horizon, 1 at the lower rim
    far, near = (np.array(c, float) for c in EARTHS[scene.ground])
    ground = (
        far
        + (near - far) * (1.25 * depth - 0.25 * depth * depth)[:, :, None]
        + np.zeros((1, size, 1))
    )
    stretch, weight = {
        "meadow": ((60, 70), 0.07),
        "sand": ((16, 110), 0.05),
        "snow": ((24, 60), 0.03),
        "water": ((14, 130), 0.10),
        "street": ((70, 70), 0.025),
        "leaves": ((110, 120), 0.10),
    }[scene.ground]
    away = 1 / (depth + 0.35)
    across, along = rng.integers(0, 128, 2)
    u = ((columns / size - 0.5) * away * stretch[0] + across).astype(int) % 128
    w = (away * stretch[1] + along).astype(int) % 128
    texture = 1 + weight * (0.35 + 0.65 * depth) * _tile()[np.broadcast_to(w, u.shape), u]
    ground = ground * texture[:, :, None] * TINTS[scene.light]
    if scene.ground == "water":
        ground = _sky_on_water(ground, scene, size, depth, columns, sun)
    return ground


def _sky_on_water(ground, scene, size, depth, columns, sun):
    """Water takes color from the sky, most of all far away and below the sun."""
    stops = np.array(SKIES[scene.light], float)
    sunset = scene.light == "sunset"
    share = (0.66 if sunset else 0.42) * (1 - depth[:, :, None] * 0.75)
    color = stops[1] * 0.55 + stops[2] * 0.45 if sunset else stops[2]
    ground = ground + share * (color - ground)
    path = bell(((columns - sun * size) / (0.1 * size)) ** 2) * (1 - 0.7 * depth)
    bright = {"noon": 50, "sunset": 90, "night": 60, "overcast": 14}[scene.light]
    return ground + bright * path[:, :, None] * (1, 0.9, 0.7 if sunset else 1)


def bell(square):
    """A bell over a squared distance, by division alone: the same bits on every machine."""
    return 1 / (1 + 0.5 * square) ** 2


class Pen:
    """Draws translucent shapes, given in pixels of the small picture, on the large canvas."""

    def __init__(self, canvas, size):
        self.draw = ImageDraw.Draw(canvas, "RGBA")
        self.size = size

    def oval(self, x, y, rx, ry, color, alpha=255):
        k = OVERSAMPLING
        box = ((x - rx) * k, (y - ry) * k, (x + rx) * k, (y + ry) * k)
        self.draw.ellipse(box, fill=(*color, alpha))

    def shape(self, points, color, alpha=255):
        k = OVERSAMPLING
        self.draw.polygon([(x * k, y * k) for x, y in points], fill=(*color, alpha))

    def line(self, points, width, color, alpha=255):
        k = OVERSAMPLING
        corners = [(x * k, y * k) for x, y in points]
        self.draw.line(corners, fill=(*color, alpha), width=max(1, round(width * k)))


@lru_cache(maxsize=512)
def lit(color, light, strength=1.0):
    tint = [1 + strength * (t - 1) for t in TINTS[light]]
    return tuple(min(255, int(c * t)) for c, t in zip(color, tint, strict=True))


def _hazy(color, scene, share=0.4):
    """Far things fade into the horizon's color."""
    here = lit(color, scene.light)
    air = SKIES[scene.light][2]
    return tuple(int(c + share * (a - c)) for c, a in zip(here, air, strict=True))


def _decorate_sky(pen, scene, edge, sun, rng):
    size = pen.size
    x, y = _sun(scene, size, sun)
    if scene.light == "night":
        for _ in range(16):
            r = rng.uniform(0.3, 0.75)
            pen.oval(rng.uniform(0, size), rng.uniform(0, edge * 0.8), r, r, (255, 250, 220), 230)
        pen.oval(x, y, 0.085 * size, 0.085 * size, (252, 246, 214))
        pen.oval(x - 0.03 * size, y - 0.02 * size, 0.02 * size, 0.02 * size, (228, 222, 196))
        pen.oval(x + 0.02 * size, y + 0.03 * size, 0.015 * size, 0.015 * size, (228, 222, 196))
        return
    if scene.light == "noon":
        pen.oval(x, y, 0.085 * size, 0.085 * size, (255, 240, 160))
        pen.oval(x, y, 0.07 * size, 0.07 * size, (255, 226, 92))
    if scene.light == "sunset":
        pen.oval(x, y, 0.12 * size, 0.12 * size, (255, 190, 96))
        pen.oval(x, y, 0.1 * size, 0.1 * size, (255, 222, 130))
    count = {"noon": 2, "sunset": 2, "overcast": 5}[scene.light]
    tops = {"noon": (255, 255, 255), "sunset": (255, 190, 160), "overcast": (226, 230, 234)}
    unders = {"noon": (222, 236, 246), "sunset": (206, 122, 142), "overcast": (176, 184, 194)}
    for k in range(count):
        cx = size * (k + rng.uniform(0.1, 0.9)) / count
        cy = edge * rng.uniform(0.12, 0.55)
        _cloud(pen, cx, cy, size * rng.uniform(0.08, 0.13), tops[scene.light], unders[scene.light])


def _cloud(pen, x, y, r, top, under):
    puffs = (
        (-1.1, 0, 0.55),
        (-0.4, -0.3, 0.75),
        (0.5, -0.2, 0.65),
        (1.15, 0.05, 0.5),
        (0.1, 0.1, 0.8),
    )
    for dx, dy, s in puffs:
        pen.oval(x + dx * r, y + dy * r + 0.22 * r, s * r * 1.1, s * r * 0.62, under)
    for dx, dy, s in puffs:
        pen.oval(x + dx * r, y + dy * r, s * r, s * r * 0.6, top)


# far scenery, one per ground


def _hills(pen, edge, rng, height, color, humps=3):
    size = pen.size
    phase = rng.uniform(0, 6.28)
    points = [
        (
            x,
            edge
            + 1
            - height * size * (0.6 + 0.4 * np.sin(phase + humps * 2 * np.pi * x / size / 2)),
        )
        for x in np.linspace(0, size, 17)
    ]
    pen.shape([(0, edge + 1), *points, (size, edge + 1)], color)


def _far_meadow(pen, scene, edge, rng):
    _hills(pen, edge, rng, 0.13, _hazy((92, 150, 132), scene, 0.5), 2)
    _hills(pen, edge, rng, 0.07, _hazy((112, 172, 92), scene, 0.25), 3)
    for x in rng.uniform(0, pen.size, 6):
        r = 0.022 * pen.size * rng.uniform(0.8, 1.5)
        pen.oval(x, edge - r, r, r * 1.2, _hazy((62, 128, 74), scene, 0.2))


def _far_sand(pen, scene, edge, rng):
    size = pen.size
    band = 0.06 * size
    pen.shape(
        [(0, edge - band), (size, edge - band), (size, edge + 1), (0, edge + 1)],
        _hazy((64, 158, 190), scene, 0.2),
    )
    for x in rng.uniform(0, size, 5):
        pen.line(
            [(x, edge - band * 0.5), (x + 0.1 * size, edge - band * 0.5)], 0.4, (255, 255, 255), 120
        )
    pen.line([(0, edge), (size, edge)], 0.016 * size, lit((255, 250, 240), scene.light, 0.7), 220)


def _far_snow(pen, scene, edge, rng):
    size = pen.size
    x = -0.1 * size
    while x < size:
        half, tall = size * rng.uniform(0.14, 0.22), size * rng.uniform(0.14, 0.25)
        peak = (x + half, edge - tall)
        rock, cap = _hazy((120, 138, 176), scene, 0.3), _hazy((250, 252, 255), scene, 0.1)
        pen.shape([(x, edge + 1), peak, (x + 2 * half, edge + 1)], rock)
        low = edge - tall * 0.55
        pen.shape(
            [
                (x + half * 0.55, low),
                peak,
                (x + half * 1.45, low),
                (x + half * 1.15, low - tall * 0.1),
                (x + half, low + tall * 0.06),
                (x + half * 0.8, low - tall * 0.1),
            ],
            cap,
        )
        x += half * rng.uniform(1.0, 1.5)
    for x in rng.uniform(0, size, 7):
        h = size * rng.uniform(0.06, 0.1)
        green = _hazy((46, 104, 98), scene, 0.15)
        for k in (0.0, 0.4):
            pen.shape(
                [
                    (x - h * 0.36 + k, edge + 1 - h * k),
                    (x, edge + 1 - h * (0.6 + k)),
                    (x + h * 0.36 - k, edge + 1 - h * k),
                ],
                green,
            )


def _far_water(pen, scene, edge, rng):
    size = pen.size
    for _ in range(2):
        x, wide, tall = (
            rng.uniform(0, size),
            size * rng.uniform(0.12, 0.3),
            size * rng.uniform(0.04, 0.09),
        )
        land = _hazy((74, 128, 138), scene, 0.45)
        pen.shape(
            [
                (x - wide, edge + 0.5),
                (x - wide * 0.5, edge - tall * 0.8),
                (x, edge - tall),
                (x + wide * 0.6, edge - tall * 0.5),
                (x + wide, edge + 0.5),
            ],
            land,
        )


def _far_street(pen, scene, edge, rng):
    size = pen.size
    walls = ((196, 128, 110), (222, 186, 140), (150, 160, 184), (186, 152, 164), (150, 176, 160))
    x = -rng.uniform(0, 0.08) * size
    while x < size:
        wide, tall = size * rng.uniform(0.1, 0.17), size * rng.uniform(0.14, 0.32)
        pen.shape(
            [(x, edge + 1), (x, edge - tall), (x + wide, edge - tall), (x + wide, edge + 1)],
            _hazy(walls[rng.integers(5)], scene, 0.25),
        )
        glass = (255, 222, 130) if scene.light == "night" else _hazy((226, 238, 244), scene, 0.1)
        step = 0.05 * size
        for wy in np.arange(edge - tall + 0.025 * size, edge - 0.04 * size, step):
            for wx in np.arange(x + 0.022 * size, x + wide - 0.03 * size, step):
                if scene.light != "night" or rng.random() < 0.6:
                    pen.shape(
                        [
                            (wx, wy),
                            (wx + 0.022 * size, wy),
                            (wx + 0.022 * size, wy + 0.028 * size),
                            (wx, wy + 0.028 * size),
                        ],
                        glass,
                        210,
                    )
        x += wide + rng.uniform(0, 0.015) * size


def _far_leaves(pen, scene, edge, rng):
    size = pen.size
    for row, share in ((0.13, 0.5), (0.07, 0.2)):
        for x in np.arange(rng.uniform(-3, 0), size + 4, size * 0.085):
            r = size * rng.uniform(0.055, 0.09)
            color = _hazy(AUTUMN[rng.integers(5)], scene, share)
            pen.line(
                [(x, edge + 1), (x, edge - row * size)],
                0.018 * size,
                _hazy((96, 64, 50), scene, share),
            )
            pen.oval(x, edge - row * size, r, r * 0.95, color)


# near details, one per ground


def _spots(pen, edge, rng, count):
    """Places on the ground with their nearness: even in perspective, the far ones first."""
    depth = np.sort(rng.uniform(0.0, 1.0, count))
    xs = rng.uniform(0, pen.size, count)
    return [
        (x, edge + (pen.size - edge) * (0.05 + 0.95 * d), 0.35 + 0.65 * d)
        for x, d in zip(xs, depth, strict=True)
    ]


def _near_meadow(pen, scene, edge, rng):
    size = pen.size
    for k, (x, y, near) in enumerate(_spots(pen, edge, rng, 34)):
        h = 0.05 * size * near
        green = lit((70, 138, 56) if k % 2 else (178, 214, 104), scene.light)
        pen.shape([(x - h * 0.5, y - h * 0.8), (x - h * 0.1, y), (x + h * 0.1, y)], green, 190)
        pen.shape([(x + h * 0.5, y - h * 0.9), (x - h * 0.1, y), (x + h * 0.15, y)], green, 190)
        if k % 3 == 0:
            r = 0.017 * size * near
            pen.oval(x, y - h, r, r, lit(PETALS[rng.integers(4)], scene.light, 0.6))


def _near_sand(pen, scene, edge, rng):
    size = pen.size
    for k, (x, y, near) in enumerate(_spots(pen, edge, rng, 20)):
        w = 0.13 * size * near
        pen.line(
            [(x - w, y), (x - w * 0.3, y - w * 0.12), (x + w * 0.4, y + w * 0.06), (x + w, y)],
            0.011 * size * near,
            lit((202, 158, 96), scene.light),
            130,
        )
        if k % 5 == 4:
            r = 0.018 * size * near
            pen.oval(x, y + 0.05 * size, r * 1.2, r, lit((255, 236, 226), scene.light, 0.6))
            pen.oval(x, y + 0.05 * size, r * 0.5, r * 0.5, lit((236, 150, 140), scene.light, 0.6))


def _near_snow(pen, scene, edge, rng):
    size = pen.size
    for x, y, near in _spots(pen, edge, rng, 9):
        w = 0.2 * size * near
        pen.oval(x, y, w, w * 0.16, lit((186, 204, 234), scene.light), 110)
        pen.oval(x, y - w * 0.07, w * 0.95, w * 0.13, lit((252, 254, 255), scene.light), 150)
    if scene.light != "noon":
        for x, y in rng.uniform(0, size, (16, 2)):
            r = rng.uniform(0.4, 0.8)
            pen.oval(x, y, r, r, (255, 255, 255), 200)


def _near_water(pen, scene, edge, rng):
    size = pen.size
    crest = lit((226, 246, 250), scene.light, 0.75)
    for x, y, near in _spots(pen, edge, rng, 24):
        w = 0.1 * size * near
        pen.line(
            [(x - w, y), (x - w * 0.4, y - w * 0.2), (x + w * 0.2, y), (x + w, y - w * 0.1)],
            0.014 * size * near,
            crest,
            150,
        )


def _near_street(pen, scene, edge, rng):
    size = pen.size
    deep = size - edge
    curb = edge + 0.16 * deep
    pen.shape([(0, edge), (size, edge), (size, curb), (0, curb)], lit((206, 196, 186), scene.light))
    pen.line([(0, curb), (size, curb)], 0.016 * size, lit((120, 114, 118), scene.light))
    for x in np.arange(rng.uniform(0, 0.12) * size, size, 0.13 * size):
        pen.line(
            [(x, edge), (x + (x - size / 2) * 0.12, curb)], 0.4, lit((168, 158, 152), scene.light)
        )
    y = edge + 0.58 * deep
    paint = lit((250, 240, 206), scene.light, 0.7)
    for x in np.arange(rng.uniform(-0.3, 0) * size, size, 0.34 * size):
        a, b = (x - size / 2), (x + 0.19 * size - size / 2)
        pen.shape(
            [
                (size / 2 + a, y),
                (size / 2 + b, y),
                (size / 2 + b * 1.06, y + 0.035 * size),
                (size / 2 + a * 1.06, y + 0.035 * size),
            ],
            paint,
            225,
        )


def _near_leaves(pen, scene, edge, rng):
    size = pen.size
    kinds = rng.integers(0, 5, 60)
    leans = rng.uniform(-1, 1, 60)
    for (x, y, near), k, lean in zip(_spots(pen, edge, rng, 60), kinds, leans, strict=True):
        w = 0.036 * size * near
        color = lit(AUTUMN[k], scene.light)
        pen.shape(
            [
                (x - w, y - lean * w * 0.5),
                (x, y - w * 0.55),
                (x + w, y + lean * w * 0.5),
                (x, y + w * 0.55),
            ],
            color,
            235,
        )


FAR = {
    "meadow": _far_meadow,
    "sand": _far_sand,
    "snow": _far_snow,
    "water": _far_water,
    "street": _far_street,
    "leaves": _far_leaves,
}
NEAR = {
    "meadow": _near_meadow,
    "sand": _near_sand,
    "snow": _near_snow,
    "water": _near_water,
    "street": _near_street,
    "leaves": _near_leaves,
}
