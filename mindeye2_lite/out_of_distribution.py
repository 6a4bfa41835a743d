"""Pictures unlike any that the model was trained on: what "limited to its distribution" looks like.

| set | pictures | what higher cortex is told of them |
|---|---|---|
| `photographs()` | eight from scikit-image and scikit-learn, as shipped in their wheels | nothing |
| `unseen_kinds()` | scenes of the cohort's sort, whose main object is of a kind it has not got | all but the kind, of which the seven features of `voxel_model.TAXONOMY` |
| `familiar()` | the same scenes with an object of a kind that the cohort has | all |

The cohort's higher voxels hear attributes and cannot hear a thing that has no code (responses.py);
its encoder, decoder and captioner were trained on the cohort's sort of scenes alone. So this is a
model of a limit, and harder than the paper's: real cortex answers to what it never saw. Scenes have
a seed of their own, that neither cohorts nor miniatures use. Read with notebook 12.
"""  # noqa: E501

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mindeye2_lite import metrics, nsd, painting, pipeline, scenes, sprites
from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2
from mindeye2_lite.responses import responses
from mindeye2_lite.sprites import Brush

FIRST_SEED = 3 * scenes.TRAINING_SEED  # cohorts, miniatures and strangers use seeds below it
SIDE = 64  # pixels
# as scikit-image names them, and with .jpg as scikit-learn does: word -> name
PHOTOGRAPHS = {
    "astronaut": "astronaut",
    "camera": "camera",
    "cat": "chelsea",
    "coffee": "coffee",
    "rocket": "rocket",
    "motorcycle": "stereo_motorcycle",
    "temple": "china.jpg",
    "flower": "flower.jpg",
}


@dataclass(frozen=True)
class Set:
    """Pictures, what they show in a word, and what higher cortex is told of them."""

    names: list[str]
    pictures: Float[Tensor, "pictures 3 64 64"]  # in [0, 1]
    attributes: dict[str, np.ndarray] | None = None  # as scenes.attributes; None: nothing
    taxonomy: Float[np.ndarray, "pictures 7"] | None = None  # of kinds that have no code


def photographs() -> Set:
    """Eight photographs, the square in their middle, averaged down to 64 pixels.

    Only files that lie in the wheels of scikit-image and scikit-learn: nothing is downloaded.
    """
    pictures = [_square(_photograph(name)) for name in PHOTOGRAPHS.values()]
    return Set(list(PHOTOGRAPHS), torch.cat(pictures))


def familiar(n: int = 8, seed: int = 0) -> Set:
    """n scenes that nobody has seen, of things that everybody knows."""
    drawn = _scenes(n, seed)
    return Set(
        [scene.kind for scene in drawn], _tensor(scenes.render(drawn)), scenes.attributes(drawn)
    )


def unseen_kinds(n: int = 8, seed: int = 0) -> Set:
    """The scenes of `familiar`, their main objects replaced by those of UNSEEN in turn."""
    drawn, kinds = _scenes(n, seed), [list(UNSEEN)[i % len(UNSEEN)] for i in range(n)]
    with _more_kinds():
        painted = [
            painting.paint(SimpleNamespace(**vars(scene) | {"kind": kind}), SIDE)
            for scene, kind in zip(drawn, kinds, strict=True)
        ]
    told = scenes.attributes(drawn) | {"kind": np.full(n, -1)}
    features = np.array([TAXONOMY[kind] for kind in kinds], np.float32)
    return Set(kinds, _tensor(np.stack(painted)), told, features)


def reconstruct(
    model: MindEye2,
    shown: Set,
    root: str | Path,
    config: Config,
    *,
    subject: int = 1,
    repeats: int = 3,
    seed: int = 0,
    steps: int = 38,
    device: str | None = None,
    progress: bool = True,
) -> pipeline.Reconstructions:
    """What the model makes of a cohort person's noisy voxels before these pictures.

    The person is shown each picture `repeats` times in new sessions, z-scored as the files are.
    The rest as in `pipeline.reconstruct`; picture i has image_id i. Synthetic cohort only.
    """
    found = responses(root, subject, shown.pictures, shown.attributes, shown.taxonomy)
    trials = found.measured(repeats=repeats, seed=seed)
    how = {"subject": subject, "seed": seed, "steps": steps, "device": device}
    pictures = _InMemory(shown.pictures)
    return pipeline.reconstruct(model, trials, pictures, config, progress=progress, **how)


class _InMemory(nsd.Images):
    """Pictures that no file holds, by number."""

    def __init__(self, pictures: Tensor):
        self.pictures, self.shape = pictures, tuple(pictures.shape)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, ids: nsd.Indices) -> Tensor:
        return self.pictures[torch.as_tensor(ids)]


def games(
    judge: metrics.Judge,
    pictures: Float[Tensor, "pictures 3 _ _"],
    seen: Float[Tensor, "pictures 3 _ _"],
    rivals: Float[Tensor, "rivals 3 _ _"],
) -> Float[np.ndarray, " pictures"]:
    """Two-way identification against rivals from elsewhere: the share of them that each beats.

    A reconstruction wins where it is more like the picture seen (Pearson's r of the judge's
    features, strictly) than like a rival. Chance is 1/2 where seen and rivals are of one sort.
    """
    with torch.no_grad():
        recon, own, other = (judge(x).flatten(1) for x in (pictures, seen, rivals))
    right = np.diag(metrics.correlations(own, recon))
    return (metrics.correlations(other, recon) < right).mean(axis=0)


# --- photographs


def _photograph(name: str) -> np.ndarray:
    if "." in name:
        from sklearn.datasets import load_sample_image

        return load_sample_image(name)
    from skimage import data

    found = getattr(data, name)()
    return found[0] if isinstance(found, tuple) else found  # a stereo pair: its left half


def _square(picture: np.ndarray) -> Float[Tensor, "1 3 64 64"]:
    x = torch.from_numpy(picture.copy()).float() / 255
    x = x[:, :, None].expand(-1, -1, 3) if x.ndim == 2 else x
    side = min(x.shape[:2])
    top, left = ((length - side) // 2 for length in x.shape[:2])
    square = x[top : top + side, left : left + side].permute(2, 0, 1)[None]
    how = {"mode": "bilinear", "antialias": True, "align_corners": False}
    return F.interpolate(square, SIDE, **how).clamp(0, 1)


# --- scenes


def _scenes(n: int, seed: int) -> list[scenes.Scene]:
    """Without companions, whose kinds would be known, and plain: the object is what counts."""
    drawn = scenes.sample(n, FIRST_SEED + seed)
    alone = {"companion": None, "companion_color": None, "pattern": "plain", "x": 0.5}
    return [replace(scene, **alone) for scene in drawn]


def _tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


@contextmanager
def _more_kinds() -> Iterator[None]:
    """The painter knows the unseen kinds for a moment; scenes.KINDS never does."""
    sprites.SPRITES.update(UNSEEN)
    try:
        yield
    finally:
        for kind in UNSEEN:
            del sprites.SPRITES[kind]


def mushroom(b: Brush) -> None:
    b.blob([(-0.26, 0), (-0.2, 0.7), (0.2, 0.7), (0.26, 0), (0, -0.03)], "cream")
    b.oval(0.08, 0.35, 0.1, 0.3, "glass")
    rim = [(-0.95, 0.72), (-0.5, 0.6), (0, 0.56), (0.5, 0.6), (0.95, 0.72)]
    b.blob([*rim, (0.8, 1.2), (0.4, 1.5), (0, 1.58), (-0.4, 1.5), (-0.8, 1.2)], "base")
    b.blob([(-0.9, 0.74), (-0.4, 0.64), (0.4, 0.64), (0.9, 0.74), (0, 0.82)], "dark")
    for x, y, r in ((-0.45, 1.15, 0.16), (0.1, 1.34, 0.14), (0.5, 1.05, 0.15), (0.0, 0.98, 0.1)):
        b.oval(x, y, r, r * 0.8, "cream")


def lamp(b: Brush) -> None:
    b.oval(0, 0.07, 0.42, 0.09, "iron")
    b.line([(0, 0.1), (0, 1.2)], 0.1, "iron")
    b.oval(0, 0.98, 0.3, 0.1, "lamp")
    b.shape([(-0.72, 0.95), (0.72, 0.95), (0.38, 1.75), (-0.38, 1.75)], "base")
    b.shape([(0.3, 0.95), (0.72, 0.95), (0.38, 1.75), (0.16, 1.75)], "dark")
    b.shape([(-0.6, 0.95), (-0.4, 0.95), (-0.2, 1.75), (-0.32, 1.75)], "light")


def snowman(b: Brush) -> None:
    for x in (-1, 1):
        b.line([(x * 0.4, 1.0), (x * 0.85, 1.28)], 0.07, "wood")
    for y, r in ((0.42, 0.5), (1.06, 0.36), (1.54, 0.26)):
        b.oval(0, y, r, r * 0.92, "silver")
        b.oval(-0.05, y + 0.03, r * 0.88, r * 0.84, "cream")
    for y in (0.5, 0.98, 1.16):
        b.oval(0.05, y, 0.05, 0.05, "black")
    for x in (-0.06, 0.14):
        b.oval(x, 1.6, 0.04, 0.04, "black")
    b.shape([(0.04, 1.54), (0.04, 1.46), (0.36, 1.48)], "beak")
    b.box(-0.36, 1.72, 0.36, 1.8, "dark")
    b.box(-0.24, 1.76, 0.24, 2.06, "base")
    b.box(-0.3, 1.24, 0.32, 1.34, "base")


def chair(b: Brush) -> None:
    for x in (-0.5, 0.36):
        b.box(x, 0, x + 0.13, 0.75, "wood")
    b.box(-0.5, 0.75, -0.37, 1.9, "wood")
    b.shape([(-0.56, 0.7), (0.56, 0.7), (0.5, 0.9), (-0.5, 0.9)], "base")
    b.box(-0.56, 0.62, 0.56, 0.72, "dark")
    b.shape([(-0.52, 1.1), (-0.3, 1.1), (-0.3, 1.9), (-0.52, 1.9)], "base")
    b.box(-0.3, 1.15, -0.22, 1.9, "deep")


UNSEEN = {draw.__name__: draw for draw in (mushroom, lamp, snowman, chair)}
# animate, vehicle, building, plant, flies, real-world size, round; as voxel_model's: choices
TAXONOMY = {
    "mushroom": (0.2, 0, 0, 0.8, 0, 0.05, 0.7),
    "lamp": (0, 0, 0.2, 0, 0, 0.25, 0.3),
    "snowman": (0.4, 0, 0, 0, 0, 0.4, 0.9),
    "chair": (0, 0, 0.2, 0, 0, 0.3, 0.1),
}
