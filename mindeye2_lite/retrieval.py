"""Which of 300 pictures was seen? Nearest neighbors between brain and image embeddings.

Both are flattened and brought to unit length; the nearest of a pool of candidates, by cosine, is
right or wrong. There are two directions, and the paper's names for them are easily mixed up.
Read with notebook 03.

| ours | given | find | column in the paper's tables | released code |
|---|---|---|---|---|
| `image_to_brain` | a picture | the brain that saw it | "Image" | fwd |
| `brain_to_image` | a brain | the picture that it saw | "Brain" | bwd |
"""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mindeye2_lite.metrics import Score, bootstrap
from mindeye2_lite.pixels import check_pairs


@dataclass(frozen=True)
class Retrieval:
    """Top-1 accuracy both ways; `scores` gives them under the names that tables use."""

    image_to_brain: Score
    brain_to_image: Score

    def scores(self) -> dict[str, Score]:
        return {s.name: s for s in (self.image_to_brain, self.brain_to_image)}


def retrieval(
    brain: Float[Tensor, "brains ..."],
    image: Float[Tensor, "images ..."],
    pool: int = 300,
    draws: int = 30,
    seed: int = 0,
) -> Retrieval:
    """Top-1 accuracy among `pool` candidates, the mean of `draws` random pools. Chance is 1/pool.

    Names: the paper's column "Image" holds what the released code computes as image → brain (its
    "fwd"), and "Brain" holds brain → image ("bwd"), contrary to the caption of its Table 1. Set
    `image_to_brain` beside "Image" and `brain_to_image` beside "Brain".

    The 95% interval is the paper's: normal, with the standard deviation between draws over √draws.
    It says nothing about the choice of test pictures. With fewer pictures than `pool` all of them
    are one pool, every draw is the same, and the interval is a bootstrap over pictures instead.
    Official: numpy's global generator seeded with 42; `seed=42` draws the same pools.
    ValueError if brains and pictures do not pair up, are fewer than two, or hold NaN (which?).
    """
    if len(brain) != len(image) or len(image) < 2 or min(pool, draws) < 1:
        raise ValueError(
            f"{len(brain)} brains, {len(image)} pictures, pool {pool}, draws {draws}: give one "
            "brain per picture, at least two, and whole numbers above 0"
        )
    check_pairs(brain, image, "numbers", ("brain", "picture"))
    similarity = similarities(brain, image).numpy()  # row = brain, column = image
    pools = _pools(len(image), min(pool, len(image)), draws, seed)
    return Retrieval(
        _top1("image_to_brain", similarity.T, pools, seed),
        _top1("brain_to_image", similarity, pools, seed),
    )


def similarities(
    brain: Float[Tensor, "brains ..."], image: Float[Tensor, "images ..."]
) -> Float[Tensor, "brains images"]:
    """Cosine of every brain (row) with every picture (column), tokens flattened."""
    unit = [F.normalize(x.detach().cpu().float().flatten(1), dim=-1) for x in (brain, image)]
    return unit[0] @ unit[1].T


def _pools(n: int, pool: int, draws: int, seed: int) -> list[np.ndarray]:
    if pool == n:
        return [np.arange(n)]
    # the released code's generator, so that its seed gives its pools
    rng = np.random.RandomState(seed)
    return [rng.choice(np.arange(n), size=pool, replace=False) for _ in range(draws)]


def _top1(name: str, similarity: np.ndarray, pools: list[np.ndarray], seed: int) -> Score:
    # rows ask, columns answer; per_image: in which share of its pools a row was right (or NaN)
    n, pool = len(similarity), len(pools[0])
    right, asked, accuracy = np.zeros(n), np.zeros(n), []
    for chosen in pools:
        hit = similarity[np.ix_(chosen, chosen)].argmax(axis=1) == np.arange(pool)
        right[chosen] += hit
        asked[chosen] += 1
        accuracy.append(hit.mean())
    value, each = float(np.mean(accuracy)), right / np.where(asked > 0, asked, np.nan)
    low, high = _interval(accuracy) if len(pools) > 1 else bootstrap(each[asked > 0], seed)
    return Score(name, value, low, high, 1 / pool, n, "higher", each)


def _interval(accuracy: list[float]) -> tuple[float, float]:
    value, error = np.mean(accuracy), np.std(accuracy) / np.sqrt(len(accuracy))
    return max(0.0, float(value - 1.96 * error)), min(1.0, float(value + 1.96 * error))
