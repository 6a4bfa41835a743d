"""Is what a caption says true? Marks against known attributes, with chance and Wilson's interval.

    said    one mapping per caption, e.g. {"kind": "cat", "color": None, "ground": "sand"}
    truth   one list of names per attribute, in the order of the captions

Photographs have no known truth, so the paper compares sentences (its Table 2); our scenes have one
(`scenes.mentioned` reads the names off a sentence). Read with notebook 09.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import binomtest

from mindeye2_lite.metrics import Score

ALL = "all of them"


def share(name: str, right: np.ndarray, chance: float | None = None) -> Score:
    """The share of right answers with Wilson's 95% interval (Wilson 1927).

    Unlike p ± 1.96 √(p(1−p)/n) it stays in [0, 1] and has a width at p = 1. ValueError if there is
    no answer.
    """
    right = np.asarray(right, dtype=bool)
    if not len(right):
        raise ValueError(f"no answers to take the share {name!r} of: give at least one")
    limits = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    value, each = float(right.mean()), right.astype(float)
    return Score(name, value, limits.low, limits.high, chance, len(right), per_image=each)


def grade(
    said: Sequence[Mapping[str, str | None]], truth: Mapping[str, Sequence[str]]
) -> dict[str, Score]:
    """Per attribute, and for all of them at once, how often the caption names it rightly.

    What is not named is wrong. Chance gives every caption to every other picture. ValueError if
    captions and pictures do not pair up or are fewer than two. Source: ours.
    """
    for name, names in truth.items():
        if len(names) != len(said) or len(said) < 2:
            raise ValueError(
                f"{len(said)} captions but {len(names)} true values of {name}: "
                "give one caption per picture, at least two"
            )
    agree = {  # row: caption, column: picture
        name: np.array([one[name] for one in said], object)[:, None] == np.array(names, object)
        for name, names in truth.items()
    }
    agree[ALL] = np.all(list(agree.values()), axis=0)
    return {name: share(name, np.diag(m), _off_diagonal(m)) for name, m in agree.items()}


def _off_diagonal(matrix: np.ndarray) -> float:
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))
