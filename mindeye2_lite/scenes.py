"""Everyday scenes whose truth is known: what NSD's photographs are to the real experiment.

A `Scene` is a handful of attributes; its picture and its five captions follow from them and from
nothing else, on every machine. So it is known what there was to decode, and a caption can be
marked right or wrong. Kinds, colors and grounds have one word each, the same in attributes and
captions.

    sample(n, seed)      n scenes
    render(scenes)       uint8 (n, 64, 64, 3)
    captions(scene)      five sentences
    attributes(scenes)   arrays of n codes and numbers

Seeds from `TRAINING_SEED` on are for scenes that train the miniatures; cohorts use seeds below it.
Read with notebook 01.
"""

import multiprocessing
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from . import painting
from .backdrops import EARTHS, SKIES
from .sprites import DIRECTED, FLYING, PAINTS, SPRITES, extent

KINDS = tuple(SPRITES)
COLORS = tuple(PAINTS)
GROUNDS = tuple(EARTHS)
LIGHTS = tuple(SKIES)
FACINGS = ("left", "right")
PATTERNS = ("plain", "stripes", "spots")
SIZES = (0.42, 0.53)  # square root of the share of the picture that the main object covers
HORIZONS = (0.46, 0.62)  # share of the picture above the horizon
TRAINING_SEED = 1_000_000

_CHOICES = {
    "kind": KINDS,
    "color": COLORS,
    "ground": GROUNDS,
    "light": LIGHTS,
    "facing": FACINGS,
    "pattern": PATTERNS,
    "companion": KINDS,
    "companion_color": COLORS,
}
_RANGES = {"size": (0.1, 0.6), "x": (0.2, 0.8), "horizon": (0.3, 0.7)}


@dataclass(frozen=True)
class Scene:
    """What is in a picture. Lengths are shares of the picture's side."""

    kind: str
    color: str
    ground: str
    light: str
    size: float  # square root of the share of the picture that the object covers
    x: float  # middle of the object, 0 at the left
    facing: str = "right"
    companion: str | None = None  # a smaller object of another kind
    companion_color: str | None = None
    pattern: str = "plain"
    horizon: float = 0.55  # from the top
    seed: int = 0  # clouds, texture, place in depth

    def __post_init__(self):
        """ValueError in one line for a name that does not exist or a length out of range."""
        for field, names in _CHOICES.items():
            value, optional = getattr(self, field), field.startswith("companion")
            if value not in names and not (optional and value is None):
                raise ValueError(f"{field} {value!r} is unknown: choose one of {', '.join(names)}")
        if (self.companion is None) != (self.companion_color is None) or (
            self.companion == self.kind
        ):
            raise ValueError("a companion needs a companion_color and another kind than the scene")
        for field, (low, high) in _RANGES.items():
            value = getattr(self, field)
            if not low <= value <= high:
                raise ValueError(f"{field} is {value}: it must lie between {low} and {high}")


def sample(n: int, seed: int) -> list[Scene]:
    """n scenes; the first m of them are `sample(m, seed)`.

    Kind, color, ground and light go through all 2,304 combinations in random order before any
    comes again. The rest is drawn independently: size uniform; place uniform where the object is
    whole in the picture; facing a fair coin; a companion in 40% of scenes, then of any other kind
    and of any other color; pattern plain in 60%, stripes and spots in 20% each; horizon
    uniform. With a companion the object stands off the middle, to leave it room.
    """
    combinations = list(product(KINDS, COLORS, GROUNDS, LIGHTS))
    scenes = []
    for start in range(0, n, len(combinations)):
        order = np.random.default_rng([seed, start]).permutation(len(combinations))
        for index, pick in enumerate(order[: n - start], start):
            rng = np.random.default_rng([seed, start, index + 1])
            scenes.append(_draw(*combinations[pick], rng))
    return scenes


def _draw(kind, color, ground, light, rng):
    size = round(rng.uniform(*SIZES), 4)
    has_companion = rng.random() < 0.4
    companion = companion_color = None
    if has_companion:
        companion = _other(KINDS, kind, rng)
        companion_color = _other(COLORS, color, rng)
    return Scene(
        kind=kind,
        color=color,
        ground=ground,
        light=light,
        size=size,
        x=_x(kind, size, has_companion, rng),
        facing=FACINGS[rng.integers(2)],
        companion=companion,
        companion_color=companion_color,
        pattern=PATTERNS[max(0, int(rng.integers(5)) - 2)],
        horizon=round(rng.uniform(*HORIZONS), 4),
        seed=int(rng.integers(2**63)),
    )


def _other(names, name, rng):
    rest = [other for other in names if other != name]
    return rest[rng.integers(len(rest))]


def _x(kind, size, has_companion, rng):
    whole = extent(kind)
    half = (whole.right - whole.left) / 2 * size / whole.area**0.5
    reach = max(0.0, min(0.2, 0.49 - half))
    shift = reach * (rng.uniform(0.75, 1.0) if has_companion else rng.uniform(0, 1))
    return round(float(0.5 + shift * (1 if rng.integers(2) else -1)), 4)


def render(scenes: Sequence[Scene], size: int = 64, workers: int | None = None) -> np.ndarray:
    """Pictures of the scenes, uint8 (n, size, size, 3); `workers` processes share the work."""
    return _each(painting.paint, scenes, size, workers, np.empty((0, size, size, 3), np.uint8))


def object_masks(scenes: Sequence[Scene], size: int = 64, workers: int | None = None) -> np.ndarray:
    """How much of each pixel the main object covers, float32 (n, size, size) in [0, 1]."""
    return _each(painting.object_mask, scenes, size, workers, np.empty((0, size, size), np.float32))


def _each(paint, scenes, size, workers, none):
    if not len(scenes):
        return none
    one = partial(paint, size=size)
    if workers is None or workers < 2:
        return np.stack([one(scene) for scene in scenes])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        return np.stack(list(pool.map(one, scenes, chunksize=64)))


def attributes(scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """One array of n per attribute: int64 codes (places in KINDS, COLORS, GROUNDS, LIGHTS, FACINGS
    and PATTERNS; -1 for no companion) and float64 size, x and horizon."""
    table = {
        name: np.array([_code(names, getattr(s, name)) for s in scenes], np.int64)
        for name, names in _CHOICES.items()
    }
    for name in _RANGES:
        table[name] = np.array([getattr(s, name) for s in scenes], np.float64)
    return table


def _code(names, name):
    return -1 if name is None else names.index(name)


# captions

_PLACES = {
    "meadow": ("in a meadow", "in the meadow", "in a grassy meadow", "in a meadow full of flowers"),
    "sand": ("on the sand", "on soft sand", "on the sand by the sea", "on flat sand"),
    "snow": ("in the snow", "in deep snow", "in the snow near the mountains", "in fresh snow"),
    "water": ("on the water", "on calm water", "on open water", "on the water of a lake"),
    "street": ("on a street", "on the street", "on a city street", "on a street in town"),
    "leaves": ("on autumn leaves", "on fallen leaves", "on the leaves", "on leaves near the woods"),
}
_OVER = {
    "meadow": ("over a meadow", "over the meadow", "over a grassy meadow", "above a meadow"),
    "sand": ("over the sand", "above the sand", "over soft sand", "over sand by the sea"),
    "snow": ("over the snow", "above the snow", "over deep snow", "over fresh snow"),
    "water": ("over the water", "above the water", "over calm water", "over open water"),
    "street": ("over a street", "above the street", "over a city street", "above a street in town"),
    "leaves": ("over autumn leaves", "above fallen leaves", "over the leaves", "above the leaves"),
}
_HOURS = {
    "noon": ("at noon", "under the noon sun", "in bright noon light", "at sunny noon"),
    "sunset": ("at sunset", "in the light of sunset", "under a sunset sky", "as the sunset glows"),
    "night": ("at night", "under the night sky", "by night under the moon", "on a quiet night"),
    "overcast": (
        "on an overcast day",
        "under an overcast sky",
        "in overcast weather",
        "below an overcast sky",
    ),
}
_VERBS = {
    "car": ("parked", "waits"),
    "train": ("stopped", "waits"),
    "boat": ("resting", "rests"),
    "airplane": ("flying", "flies"),
    "balloon": ("floating", "floats"),
    "house": ("standing", "stands"),
    "tree": ("growing", "grows"),
    "flower": ("blooming", "blooms"),
    "umbrella": ("standing", "stands"),
    "cat": ("sitting", "sits"),
    "elephant": ("standing", "stands"),
    "bird": ("standing", "stands"),
}
_PATTERNED = {"plain": "plain", "stripes": "striped", "spots": "spotted"}

_SHORT = (
    "{a_color} {kind} {place}",
    "{a_kind} {doing} {place}",
    "the {kind} is {color} and {does} {place}",
    "{a_size} {color} {kind} {place}",
)
_LONG = (
    "{a_color} {kind} {doing} {place} {hour}",
    "{hour} {a_color} {kind} {does} {place}",
    "a picture of {a_color} {kind} {place} {hour}",
    "there is {a_color} {kind} {doing} {place} {hour}",
    "a view of {a_size} {color} {kind} {doing} {place} {hour}",
)
_LOOKS = (
    "{a_pattern} {color} {kind} {doing} {place}",
    "{a_color} {kind} facing {facing} {place}",
    "one {pattern} {color} {kind} {place} {hour}",
    "{a_size} {pattern} {kind} painted {color} {place}",
)
_SIDES = (
    "{a_color} {kind} {side} of the picture {place}",
    "{side} {a_color} {kind} {does} {place}",
    "looking at {a_color} {kind} {side} {place} {hour}",
)
_ALONE = (
    "{a_kind} all alone {place} {hour}",
    "{a_size} {kind} and nothing else {hour}",
    "a lonely {color} {kind} {hour}",
    "nothing but {a_kind} {place}",
)
_COMPANY = (
    "{a_color} {kind} and a small {other_color} {other} {place}",
    "{a_color} {kind} {place} with a little {other} behind it",
    "{a_kind} with {an_other} in the background {hour}",
    "{a_color} {kind} next to a small {other} {hour}",
)


def captions(scene: Scene) -> list[str]:
    """Five different true sentences in COCO's manner; the same scene always gets the same five.

    Each names the kind, before any companion; at least three name color and ground. Which
    wordings a scene gets is drawn from its seed.
    """
    rng = np.random.default_rng([scene.seed, 1])
    last = _ALONE if scene.companion is None else _COMPANY
    texts = []
    for group in (_SHORT, _LONG, _looks(scene), _SIDES, last):
        texts.append(_fill(group[rng.integers(len(group))], scene, rng))
    return texts


def _looks(scene):
    """Which way a thing faces is said only where it can be seen."""
    return _LOOKS if scene.kind in DIRECTED else [t for t in _LOOKS if "facing" not in t]


def _fill(template, scene, rng):
    places = (_OVER if scene.kind in FLYING else _PLACES)[scene.ground]
    doing, does = _VERBS[scene.kind]
    words = {
        "kind": scene.kind,
        "color": scene.color,
        "a_kind": _a(scene.kind),
        "a_color": _a(scene.color),
        "place": places[rng.integers(4)],
        "hour": _HOURS[scene.light][rng.integers(4)],
        "doing": doing,
        "does": does,
        "facing": scene.facing,
        "side": _side(scene.x),
        "pattern": _PATTERNED[scene.pattern],
        "a_pattern": _a(_PATTERNED[scene.pattern]),
        "a_size": "a big" if scene.size > sum(SIZES) / 2 else "a rather small",
        "other": scene.companion,
        "other_color": scene.companion_color,
        "an_other": _a(scene.companion or ""),
    }
    return template.format(**words)


def _a(word):
    return f"an {word}" if word[:1] in tuple("aeiou") else f"a {word}"


def _side(x):
    if abs(x - 0.5) < 0.05:
        return "in the middle"
    return "on the left" if x < 0.5 else "on the right"


def mentioned(caption: str) -> dict[str, str | None]:
    """The kind, color and ground that a caption names first, or None for what it does not name.

    A color counts only if it can belong to the first kind: it is named before any second kind.
    """
    words = re.findall(r"[a-z]+", caption.lower())
    kinds = [i for i, word in enumerate(words) if word in KINDS]
    others = [i for i in kinds if words[i] != words[kinds[0]]]
    own = words[: others[0]] if others else words
    own = own[: _companion_start(own)] if others else own
    return {
        "kind": words[kinds[0]] if kinds else None,
        "color": next((word for word in own if word in COLORS), None),
        "ground": next((word for word in words if word in GROUNDS), None),
    }


def _companion_start(words):
    """Where the companion's own adjectives begin: after the last `and`, `with` or `to`."""
    joints = [i for i, word in enumerate(words) if word in ("and", "with", "to")]
    return joints[-1] if joints else len(words)


def vocabulary() -> list[str]:
    """Every word that a caption may use, sorted."""
    texts = [*_SHORT, *_LONG, *_LOOKS, *_SIDES, *_ALONE, *_COMPANY]
    texts = [re.sub(r"\{.*?\}", " ", text) for text in texts]
    texts += [
        text for table in (_PLACES, _OVER, _HOURS, _VERBS) for t in table.values() for text in t
    ]
    texts += [*KINDS, *COLORS, *_PATTERNED.values(), *FACINGS]
    texts += ["a an big rather small in the middle on the left right"]
    return sorted(set(re.findall(r"[a-z]+", " ".join(texts))))
