"""What a score means with so few pictures: chance, an interval, p, and how many would be needed.

    told = verdict(similarities(brain, image))
    print(told)                      plain sentences
    told["two-way"].beyond           True where shuffled pairs hardly ever do as well

Two questions to the same n brains and n pictures. *Top-1*: how many brains are nearest to their own
picture of all n? Chance is 1/n. *Two-way*: how often is a brain nearer to its own picture than to
one other? Chance is 1/2 whatever n is, and every answer counts, so it needs fewer pictures.

p comes from pairing brains and pictures anew, at random, and asking again: what chance looks like
with these brains, these pictures and this n. It knows nothing of leaks: a model that has seen the
test pictures passes. Read with notebook 14.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from mindeye2_lite.metrics import bootstrap

LEVEL, POWER = 0.05, 0.8  # how often chance may pass; how often a true effect should
SPREAD = 1 / np.sqrt(12)  # deviation of a brain's two-way score under chance: ranks are uniform
NAMES = ("top-1", "two-way")


@dataclass(frozen=True)
class Finding:
    """One score beside what chance gives with the same brains and pictures.

    `needed`: the smallest score that fewer than 5% of the shuffled pairings reach. `shuffled`: the
    score of each of them. `per_image`: of each brain.
    """

    name: str
    value: float
    low: float
    high: float
    chance: float
    p: float
    needed: float
    n: int
    per_image: np.ndarray = field(repr=False, compare=False)
    shuffled: np.ndarray = field(repr=False, compare=False)

    @property
    def beyond(self) -> bool:
        """Is it more than chance does in all but 5% of cases?"""
        return self.p < LEVEL

    def __str__(self) -> str:
        what = {
            "top-1": f"{round(self.value * self.n)} of {self.n} brains were nearest to their own "
            f"picture, {self.value:.1%}",
            "two-way": f"of two pictures the right one was nearer in {self.value:.1%}",
        }[self.name]
        word = "Beyond chance" if self.beyond else "Not beyond chance"
        p = f"p = {self.p:.3f}" if self.p >= 0.001 else "p < 0.001"
        interval = f"[{self.low:.1%}, {self.high:.1%}]"
        return f"{word}: {what} {interval}; chance is {self.chance:.1%}, {p}. {self._bar()}"

    def _bar(self) -> str:
        if self.needed > 1:
            return f"With {self.n} pictures no score would be beyond chance."
        return f"With {self.n} pictures {self.needed:.1%} is the least that would be beyond chance."


@dataclass(frozen=True)
class Verdict:
    """Both findings, and in plain sentences what they do and do not say."""

    findings: Mapping[str, Finding]

    def __getitem__(self, name: str) -> Finding:
        return self.findings[name]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.findings.values()), self.advice()])

    def advice(self) -> str:
        """What to do next, judged by the two-way score, which needs fewer pictures."""
        two_way = self["two-way"]
        if not two_way.beyond:
            more = pictures_needed(0.55)
            return (
                f"{two_way.n} pictures cannot tell this from guessing; that is not to say that "
                f"nothing is there. A true two-way score of 55% would need about {more} pictures."
            )
        if two_way.low > 0.9:
            return (
                "Very good. Before believing it, make sure that no test picture, and no near copy "
                "of one, was trained on: the test above cannot notice."
            )
        return (
            f"The pairing of brains and pictures is no accident. How good the model is, these "
            f"{two_way.n} pictures say only as closely as the interval."
        )


def verdict(
    similarity: Float[Tensor, "brains pictures"] | Float[np.ndarray, "brains pictures"],
    *,
    seed: int = 0,
    shuffles: int = 10_000,
) -> Verdict:
    """Top-1 and two-way scores of n brains (rows) among their n pictures, and what chance gives.

    Row i belongs to column i. Intervals are 95% bootstraps over pictures. Of equal similarities
    none is nearer. ValueError if brains and pictures do not pair up, are fewer than three, or a
    similarity is no number.
    """
    table = np.asarray(similarity, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 3:
        raise ValueError(
            f"similarity has shape {table.shape}: give one brain per picture, at least three"
        )
    if not np.isfinite(table).all():
        raise ValueError("similarity has values that are no numbers")
    scores = answers(table)
    rng, n = np.random.default_rng(seed), len(table)
    orders = rng.permuted(np.tile(np.arange(n), (shuffles, 1)), axis=1)
    found = {}
    for name, chance in zip(NAMES, (1 / n, 0.5), strict=True):
        each = scores[name]
        shuffled = each[np.arange(n), orders].mean(axis=1)
        found[name] = _finding(name, np.diag(each).copy(), chance, shuffled, seed)
    return Verdict(found)


def answers(table: np.ndarray) -> dict[str, np.ndarray]:
    """What each brain (row) would score if each picture (column) were its own, (n, n) each.

    Two-way: the share of the other pictures that are less similar. Top-1: whether that is all.
    """
    less = np.stack([np.searchsorted(np.sort(row), row, side="left") for row in table])
    return {"top-1": (less == len(table) - 1).astype(float), "two-way": less / (len(table) - 1)}


def _finding(
    name: str, each: np.ndarray, chance: float, shuffled: np.ndarray, seed: int
) -> Finding:
    value = float(each.mean())
    reached = (shuffled >= value - 1e-9).sum()
    low, high = bootstrap(each, seed)
    p = float((1 + reached) / (1 + len(shuffled)))
    return Finding(
        name, value, low, high, chance, p, _needed(shuffled, len(each)), len(each), each, shuffled
    )


def _needed(shuffled: np.ndarray, n: int) -> float:
    """The smallest score that can occur and that fewer than 5% of shuffled pairings reach."""
    possible = np.unique(np.round(shuffled, 9))
    tail = np.array([(shuffled >= score - 1e-9).mean() for score in possible])
    below = possible[tail < LEVEL]
    return float(below[0]) if len(below) else float(possible[-1] + 1 / n)


def pictures_needed(
    two_way: float, *, power: float = POWER, level: float = LEVEL, most: int = 1_000_000
) -> int:
    """How many test pictures show a true two-way score beyond chance in `power` of experiments.

    n = ((z_level + z_power) s / (score − ½))², one-sided, with s = 1/√12, what the scores of single
    brains spread by chance; they spread less where the score is high, so this is on the safe side.
    ValueError for a score that is not above one half.
    """
    if not 0.5 < two_way <= 1:
        raise ValueError(f"two_way is {two_way}: give a score above 0.5, at most 1")
    z = stats.norm.isf(level) + stats.norm.ppf(power)
    return int(min(most, max(3, np.ceil((z * SPREAD / (two_way - 0.5)) ** 2))))


def hits_needed(n: int, candidates: int | None = None, level: float = LEVEL) -> int:
    """The fewest right answers of n that guessing among `candidates` reaches in under 5% of cases.

    `candidates` is n if not said. Guesses are taken as independent. More than n: no number of
    right answers is enough, for n is too small.
    """
    chance = 1 / (candidates or n)
    return next(h for h in range(n + 2) if stats.binom.sf(h - 1, n, chance) < level)
