"""Could a score be luck? The pairing of reconstructions and pictures is shuffled, again and again.

Every score of the paper is the mean of one number per pair. Work it out once for all pairs, right
and wrong, and a shuffle costs a few look-ups:

    pairs[i, j]     what reconstruction (or brain) j would score if it belonged to picture i
    pairs[j, j]     what it does score; their mean is the score
    test(pairs)     the score, its p, the mean and the 95% interval of shuffled scores

If reconstructions said nothing about their pictures, every pairing would be as good as ours: so p
is the share of pairings, ours included, that score at least as well. It speaks about these
pictures and this model. Ours: the released code tests nothing. Read with notebook 12.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mindeye2_lite import metrics, pixels
from mindeye2_lite.retrieval import similarities

BLOCK = 500  # shuffles at once
SLACK = 1e-12  # sums in another order are still the same score
OWN = 64  # pixels at which all pairs are compared by SSIM; 425 would take minutes

Pairs = Float[np.ndarray, "pictures reconstructions"]


@dataclass(frozen=True)
class Result:
    """A score beside what shuffled pairings score; `low` and `high` are their middle 95%."""

    value: float
    p: float
    null: float
    low: float
    high: float
    n: int
    permutations: int


def test(
    pairs: Pairs, *, permutations: int = 10_000, seed: int = 0, better: str = "higher"
) -> Result:
    """The mean of the diagonal against means of shuffled pairings, all from one matrix.

    p = (1 + #{shuffled at least as good}) / (1 + permutations), so it is never 0: 10,000 shuffles
    can say p = .0001 and no less (Phipson and Smyth 2010). `better` is "higher" or "lower".
    ValueError in one line for a matrix that is not square, has fewer than two pairs or holds NaN,
    or for no permutations.
    """
    _check(pairs, permutations, better)
    n, rng = len(pairs), np.random.default_rng(seed)
    columns, shuffled = np.arange(n), []
    for start in range(0, permutations, BLOCK):
        rows = np.tile(columns, (min(BLOCK, permutations - start), 1))
        shuffled.append(pairs[rng.permuted(rows, axis=1), columns].mean(axis=1))
    null, value = np.concatenate(shuffled), float(np.diag(pairs).mean())
    as_good = null >= value - SLACK if better == "higher" else null <= value + SLACK
    low, high = (float(x) for x in np.percentile(null, [2.5, 97.5]))
    p = (1 + int(as_good.sum())) / (1 + permutations)
    return Result(value, p, float(null.mean()), low, high, n, permutations)


def table(pairs: Mapping[str, Pairs], *, permutations: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """A row per score: value, p, mean and 95% interval of shuffled pairings, n.

    "holm" is p corrected for the number of rows (Holm 1979), so that ten tests are not ten chances
    to be lucky once. Distances (Eff, SwAV) are better when lower.
    """
    rows = {}
    for name, matrix in pairs.items():
        better = "lower" if name in metrics.DISTANCE else "higher"
        found = test(matrix, permutations=permutations, seed=seed, better=better)
        rows[name] = {
            "value": found.value,
            "p": found.p,
            "shuffled": found.null,
            "95% low": found.low,
            "95% high": found.high,
            "n": found.n,
        }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("score")
    frame.insert(2, "holm", holm(frame["p"].to_numpy()))
    return frame


def holm(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """p-values such that the chance of one below .05 by luck, among all of them, is .05 at most."""
    order, count = np.argsort(p), len(p)
    raised = np.maximum.accumulate(p[order] * (count - np.arange(count)))
    out = np.empty(count)
    out[order] = np.minimum(raised, 1)
    return out


# --- all pairs, for each of the ten scores


def all_pairs(
    reconstruction: Float[Tensor, "images 3 _ _"],
    seen: Float[Tensor, "others 3 _ _"],
    judges: Mapping[str, metrics.Judge],
    *,
    through: int | None = None,
    size: int = metrics.SIZE,
    ssim_size: int = OWN,
) -> dict[str, Pairs]:
    """The matrices of the eight scores of pictures, by name; judges that are absent are left out.

    `through` and `size` as in `metrics.evaluate`, whose values the means of the diagonals are; only
    SSIM is taken at `ssim_size` pixels. ValueError if the pictures do not pair up.
    """
    pixels.check_pairs(reconstruction, seen)
    if through is None:
        seen = metrics.resized(seen, reconstruction.shape[-2:])
    pairs = {
        "PixCorr": pixcorr_pairs(reconstruction, seen, size, through),
        "SSIM": ssim_pairs(reconstruction, seen, ssim_size, through),
    }
    for name in (*metrics.TWO_WAY, *metrics.DISTANCE):
        if name in judges:
            true, recon = (_features(judges[name], x, through) for x in (seen, reconstruction))
            r = metrics.correlations(true, recon)
            pairs[name] = two_way_pairs(r) if name in metrics.TWO_WAY else 1 - r
    return pairs


def two_way_pairs(r: Pairs) -> Pairs:
    """From r_ij of picture i and reconstruction j: the share of other pictures that i would beat.

    Strictly, as in `metrics.two_way_identification`.
    """
    return np.stack([np.searchsorted(np.sort(row), row) for row in r.T], axis=1) / (len(r) - 1)


def retrieval_pairs(
    brain: Float[Tensor, "brains ..."], image: Float[Tensor, "images ..."]
) -> dict[str, Pairs]:
    """1 where picture i and brain j find each other, else 0: one matrix per direction.

    All pictures are one pool, also where `retrieval.retrieval` would draw pools of 300.
    """
    cosine = similarities(brain, image).numpy().T  # row = picture, column = brain
    places = np.arange(len(cosine))
    to_brain = places[None] == cosine.argmax(axis=1)[:, None]
    to_image = places[:, None] == cosine.argmax(axis=0)[None]
    return {"image_to_brain": to_brain.astype(float), "brain_to_image": to_image.astype(float)}


def pixcorr_pairs(
    reconstruction: Float[Tensor, "images 3 _ _"],
    seen: Float[Tensor, "others 3 _ _"],
    size: int = metrics.SIZE,
    through: int | None = None,
) -> Pairs:
    """PixCorr of every picture with every reconstruction, as `metrics.pixcorr` has it of pairs."""
    standard = pixels.Standard(reconstruction, seen, size, through)
    sides = (standard.of(x.detach().float()) for x in (seen, reconstruction))
    a, b = (x.flatten(1).double() * scale[:, None] for x, scale in sides)
    return (a @ b.T).cpu().numpy()


def ssim_pairs(
    reconstruction: Float[Tensor, "images 3 _ _"],
    seen: Float[Tensor, "others 3 _ _"],
    size: int = OWN,
    through: int | None = None,
) -> Pairs:
    """SSIM of every picture with every reconstruction at `size` pixels, as `metrics.ssim`.

    Means and variances are of one picture each; only covariances are worked out for every pair.
    """
    window = torch.tensor(pixels.WINDOW, dtype=torch.float64)
    inside = size - 2 * pixels.RADIUS
    blur = torch.zeros(inside, size, dtype=torch.float64)  # times a column: the Gaussian mean
    for row in range(inside):
        blur[row, row : row + len(window)] = window
    a, b = (pixels._gray(x.float().cpu(), size, through).double() for x in (seen, reconstruction))
    (mean_a, var_a), (mean_b, var_b) = _moments(a, blur), _moments(b, blur)
    columns = []
    for one, mean, variance in zip(b, mean_b, var_b, strict=True):
        covariance = blur @ (a * one) @ blur.T - mean_a * mean
        light = (2 * mean_a * mean + pixels.C1) / (mean_a**2 + mean**2 + pixels.C1)
        local = light * (2 * covariance + pixels.C2) / (var_a + variance + pixels.C2)
        columns.append(local.mean((1, 2)))
    return torch.stack(columns, dim=1).numpy()


def _moments(gray: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    mean = blur @ gray @ blur.T
    return mean, blur @ gray**2 @ blur.T - mean**2


@torch.no_grad()
def _features(judge: metrics.Judge, images: Tensor, through: int | None) -> Tensor:
    images = images if through is None else metrics.resize(images, through)
    return torch.cat([judge(some).flatten(1).float().cpu() for some in images.split(32)])


def _check(pairs: np.ndarray, permutations: int, better: str) -> None:
    rows, columns = pairs.shape
    if rows != columns or rows < 2:
        raise ValueError(
            f"{rows} pictures and {columns} reconstructions: give a square matrix of two or more"
        )
    if np.isnan(pairs).any():
        picture, other = np.argwhere(np.isnan(pairs))[0]
        raise ValueError(f"picture {picture} with reconstruction {other} is NaN: leave it out")
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}: ask for at least one")
    if better not in ("higher", "lower"):
        raise ValueError(f"better {better!r}: choose higher or lower")
