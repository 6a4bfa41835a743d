"""Eight of the paper's ten scores: how much a reconstruction is like the picture that was seen.

Two look at pixels (PixCorr, SSIM), four ask a judge network which picture was meant (two-way
identification), two measure how far apart the judge's features are. The last two scores of the
paper's Table 1 are in retrieval.py. Everything here comes with what chance would score, the number
of pictures and a 95% interval. Read with notebook 10.

    pictures  (images, 3, height, width) in [0, 1]      features  (images, features) of a judge
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mindeye2_lite import paths, pixels
from mindeye2_lite.pixels import (
    SIZE,
    check_pairs,
    pixcorr,
    pixcorr_per_image,
    resize,
    resized,
    ssim,
    ssim_per_image,
)

__all__ = ["SIZE", "pixcorr", "pixcorr_per_image", "resize", "resized", "ssim", "ssim_per_image"]
TWO_WAY = ("Alex(2)", "Alex(5)", "Incep", "CLIP")
DISTANCE = ("Eff", "SwAV")
DISTRACTORS = ("images", "reconstructions")  # as in the released code; as the paper's A.9 words it

Judge = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Score:
    """One number and what is needed to read it: 95% interval, chance, n, and which way is better.

    `per_image` holds one value per picture (or per brain) and averages to `value`.
    """

    name: str
    value: float
    low: float
    high: float
    chance: float | None
    n: int
    better: str = "higher"
    per_image: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    def __str__(self) -> str:
        n = f"n {self.n}" + ("" if self.chance is None else f", chance {self.chance:.3f}")
        return f"{self.name} {self.value:.3f} [{self.low:.3f}, {self.high:.3f}] ({n})"


def bootstrap(per_image: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the mean over pictures drawn again with replacement.

    It says how much the score owes to the choice of test pictures, not to the training seed.
    Source: ours; the released code gives no interval for these scores.
    """
    rng, n = np.random.default_rng(seed), len(per_image)
    means = [per_image[rng.integers(n, size=n)].mean() for _ in range(draws)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


# --- features of a judge


def two_way_identification(
    features_true: Float[Tensor, "images ..."],
    features_recon: Float[Tensor, "others ..."],
    *,
    distractors: str = "images",
) -> float:
    """How often a reconstruction is more like its own picture than like another. Chance is 1/2.

    With r_ij = Pearson's r of picture i and reconstruction j: for every j the share of the n − 1
    other pictures i with r_ij strictly below r_jj; then the mean over j. So the released code has
    it. The paper's A.9 words it the other way round, which is `distractors` "reconstructions": for
    every picture i the share of the other reconstructions j with r_ij strictly below r_ii.
    """
    how = {"distractors": distractors}
    return float(two_way_per_image(features_true, features_recon, **how).mean())


def two_way_per_image(
    features_true: Float[Tensor, "images ..."],
    features_recon: Float[Tensor, "others ..."],
    *,
    distractors: str = "images",
) -> Float[np.ndarray, " images"]:
    """`two_way_identification` of each pair among the others' pictures or reconstructions.

    In [0, 1]. ValueError in one line if the sides do not pair up, if features are NaN (which?), or
    for other `distractors` than "images" and "reconstructions".
    """
    _check_distractors(distractors)
    check_pairs(features_recon, features_true, "features")
    r = correlations(features_true, features_recon)
    r = r if distractors == "images" else r.T
    return (r < np.diag(r)).sum(axis=0) / (len(r) - 1)  # column j against its own r_jj


def correlation_distance(
    features_true: Float[Tensor, "images ..."], features_recon: Float[Tensor, "others ..."]
) -> float:
    """1 − r between the features of a picture and of its reconstruction, averaged over pairs.

    0 is a perfect match, 1 is unrelated; lower is better.
    """
    return float(correlation_distance_per_image(features_true, features_recon).mean())


def correlation_distance_per_image(
    features_true: Float[Tensor, "images ..."], features_recon: Float[Tensor, "others ..."]
) -> Float[np.ndarray, " images"]:
    """`correlation_distance` of each pair. ValueError as in `two_way_per_image`."""
    check_pairs(features_recon, features_true, "features")
    true, recon = features_true.flatten(1), features_recon.flatten(1)
    return 1 - (_standard(true) * _standard(recon)).sum(1).numpy()


def correlations(
    features_true: Float[Tensor, "images ..."], features_recon: Float[Tensor, "others ..."]
) -> Float[np.ndarray, "images others"]:
    """r_ij of picture i and reconstruction j in float64, as `numpy.corrcoef` of flattened features.

    Done in blocks, so that 1,000 pictures with AlexNet's 184,512 features need no 3 GB.
    """
    rows = []
    for true in features_true.flatten(1).split(128):
        kept = _standard(true)
        blocks = [kept @ _standard(b).T for b in features_recon.flatten(1).split(128)]
        rows.append(torch.cat(blocks, dim=1))
    return torch.cat(rows).numpy()


# --- all of them


def evaluate(
    reconstruction: Float[Tensor, "images 3 height width"],
    seen: Float[Tensor, "others 3 _ _"],
    judges: Mapping[str, Judge],
    *,
    seed: int = 0,
    size: int = SIZE,
    through: int | None = None,
    batch: int = 32,
    distractors: str = "images",
) -> dict[str, Score]:
    """PixCorr, SSIM and the judges' six scores, each with chance, n and a 95% interval.

    Both sides are first brought to `through` pixels; the released evaluation does so with 256, for
    seen pictures of 224 as for reconstructions of 768, and without antialiasing. Where `through`
    is None, `seen` is brought to the reconstruction's size, which stays as it is. A judge takes
    pictures in [0, 1], does its own resizing and normalizing, and returns (b, features); it is
    shown `batch` of them at once, on which no score depends. Judges that are absent are left out.
    `distractors` as in `two_way_identification`. ValueError in one line if the pictures do not pair
    up, hold NaN, or are fewer than two: without a second picture nothing can be identified.
    """
    _check_distractors(distractors)
    check_pairs(reconstruction, seen)
    if through is None:
        seen = resized(seen, reconstruction.shape[-2:])
    scores = _pixel_scores(reconstruction, seen, size, seed, through)
    judges = {name: judges[name] for name in (*TWO_WAY, *DISTANCE) if name in judges}
    true, recon = (_features(judges, x, batch, through) for x in (seen, reconstruction))
    for name in judges:
        pair = true.pop(name), recon.pop(name)  # the largest come first, and go first
        if name in TWO_WAY:
            each = two_way_per_image(*pair, distractors=distractors)
            scores[name] = score(name, each, chance=0.5, seed=seed)
        else:
            each, far = correlation_distance_per_image(*pair), _stranger_distance(*pair)
            scores[name] = score(name, each, chance=far, seed=seed, better="lower")
    return scores


def score(
    name: str, per_image: np.ndarray, *, chance: float | None, seed: int = 0, better: str = "higher"
) -> Score:
    """A `Score` whose value is the mean of `per_image` and whose interval is `bootstrap`'s."""
    low, high = bootstrap(per_image, seed)
    value = float(per_image.mean())
    return Score(name, value, low, high, chance, len(per_image), better, per_image)


def table(scores: Mapping[str, Score], source: str = "miniature judges") -> pd.DataFrame:
    """One row per score: value, 95% interval, chance, n, better, and who judged.

    `source` names the networks behind the features. PixCorr and SSIM have no judge but pixels, and
    the two retrieval scores compare brain and image embeddings.
    """
    judged = {"PixCorr": "pixels", "SSIM": "pixels"} | dict.fromkeys((*TWO_WAY, *DISTANCE), source)
    rows = [
        {
            "metric": name,
            "value": s.value,
            "95% low": s.low,
            "95% high": s.high,
            "chance": np.nan if s.chance is None else s.chance,
            "n": s.n,
            "better": s.better,
            "judged by": judged.get(name, "embeddings"),
        }
        for name, s in scores.items()
    ]
    return pd.DataFrame(rows).set_index("metric")


def published() -> pd.DataFrame:
    """The paper's own numbers, one row each, with the table they are quoted from.

    `quoted` is as printed, `value` is in our units (percent become shares of 1). The columns that
    the paper calls "Image" and "Brain" are here under what they measure (retrieval.py says why).
    """
    data = json.loads(paths.results("published").read_text(encoding="utf-8"))
    rows = [
        {
            "system": row["system"],
            "sessions": row["sessions"],
            "subject": row["subject"],
            "metric": metric,
            "value": quoted / 100 if metric in data["percent"] else quoted,
            "quoted": quoted,
            "source": f"{data['quoted_from']}, {part['source']}",
        }
        for part in data["tables"]
        for row in part["rows"]
        for metric, quoted in row["values"].items()
    ]
    return pd.DataFrame(rows).astype({"sessions": "Int64"})


def _pixel_scores(
    reconstruction: Tensor, seen: Tensor, size: int, seed: int, through: int | None
) -> dict[str, Score]:
    """PixCorr and SSIM in one pass. Chance: all wrong pairs for PixCorr, one shuffle for SSIM."""
    r, wrong = pixels.pixcorr_and_chance(reconstruction, seen, size, through)
    structure = pixels.similarities(reconstruction, seen, size, through)
    shuffled = pixels.ssim_chance(reconstruction, seen, size, through, seed)
    return {
        "PixCorr": score("PixCorr", r, chance=wrong, seed=seed),
        "SSIM": score("SSIM", structure, chance=shuffled, seed=seed),
    }


def _stranger_distance(true: Tensor, recon: Tensor) -> float:
    r = correlations(true, recon)
    return float(1 - (r.sum() - np.trace(r)) / (len(r) * (len(r) - 1)))


@torch.no_grad()
def _features(
    judges: Mapping[str, Judge], images: Tensor, batch: int, through: int | None
) -> dict[str, Tensor]:
    """What each judge makes of the pictures, which are resized once, and a batch at a time."""
    found: dict[str, Tensor] = {}
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        some = some if through is None else resize(some, through)
        for name, judge in judges.items():
            rows = judge(some).flatten(1).float().cpu()
            if name not in found:  # once, at its full size: joining parts would take it twice
                found[name] = rows.new_empty(len(images), rows.shape[1])
            found[name][start : start + batch] = rows
    return found


def _check_distractors(distractors: str) -> None:
    if distractors not in DISTRACTORS:
        raise ValueError(f"distractors {distractors!r}: choose one of {', '.join(DISTRACTORS)}")


def _standard(rows: Tensor) -> Tensor:
    """Rows with mean 0 and length 1 in float64, so that a dot product is r; constant rows are 0."""
    rows = rows.detach().cpu().flatten(1).double()
    rows = rows - rows.mean(1, keepdim=True)
    length = rows.norm(dim=1, keepdim=True)
    return torch.where(length > 0, rows / length.clamp_min(1e-300), 0.0)
