"""How sure a mean over people, training seeds and test pictures is: all three are drawn again.

    values   person -> (seeds, images), one number per test picture, of one model per seed
    mean(values)                 of one system
    difference(first, second)    of two, paired by person, seed and picture

A bootstrap over pictures alone says nothing about another training run, one over seeds nothing
about other pictures. Here every draw takes people, of each person models, and pictures, with
replacement; everybody sees the same test pictures, so a draw takes the same ones for all. With one
person or one seed there is nothing to draw from: the interval then says nothing about others.
Few seeds make it too narrow, by √(1 - 1/seeds) in the part that seeds contribute.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

DRAWS = 2000
LEVEL = 95  # percent
Values = Mapping[int, Float[np.ndarray, "_ _"]]


class Estimate(NamedTuple):
    """A mean, its 95% interval, and of how many pictures, people and models per person it is.

    Where people have unequally many models, `n_seeds` is the smallest number.
    """

    value: float
    low: float
    high: float
    n_images: int
    n_people: int
    n_seeds: int

    def __str__(self) -> str:
        n = f"{self.n_images} pictures, {self.n_people} people, {self.n_seeds} seeds"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] ({n})"


def mean(values: Values, *, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """The mean over people of the mean over seeds and pictures, with a bootstrap interval.

    The same `seed` gives the same interval. ValueError in one line where a value is absent, where
    nobody is, or where people have unequally many pictures.
    """
    people = _checked(values)
    drawn = _drawn(people, np.random.default_rng(seed), draws)
    low, high = np.percentile(drawn, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    value = np.mean([each.mean() for each in people])
    seeds = min(len(each) for each in people)
    images = people[0].shape[1]
    return Estimate(float(value), float(low), float(high), images, len(people), seeds)


def difference(first: Values, second: Values, *, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """`mean` of first - second, paired by person, seed and picture.

    ValueError in one line where the two have not the same people, seeds and pictures.
    """
    if sorted(first) != sorted(second):
        raise ValueError(
            f"people {sorted(first)} and {sorted(second)} do not pair up: compare the same ones"
        )
    apart = {}
    for person, one in first.items():
        other = second[person]
        if one.shape != other.shape:
            raise ValueError(
                f"person {person} has (seeds, pictures) {one.shape} and {other.shape}: "
                "compare the same ones"
            )
        apart[person] = np.asarray(one, float) - np.asarray(other, float)
    return mean(apart, seed=seed, draws=draws)


def _checked(values: Values) -> list[np.ndarray]:
    """The people's values, in ascending number of the person."""
    people = [np.asarray(values[person], float) for person in sorted(values)]
    if not people or min(each.size for each in people) == 0:
        raise ValueError("no values to take the mean of: give one person, seed and picture or more")
    for person, each in zip(sorted(values), people, strict=True):
        if absent := int(np.isnan(each).sum()):
            raise ValueError(
                f"person {person}: {absent} of {each.size} values are absent: leave out these "
                "pictures, or measure them again"
            )
    if len(counts := sorted({each.shape[1] for each in people})) > 1:
        raise ValueError(
            f"people have {counts} pictures: all must have been tested with the same ones"
        )
    return people


def _drawn(people: list[np.ndarray], rng: np.random.Generator, draws: int) -> np.ndarray:
    """(draws,) means of what was drawn."""
    images = people[0].shape[1]
    often = rng.multinomial(images, np.full(images, 1 / images), size=draws)  # (draws, images)
    of_model = [each @ often.T / images for each in people]  # (seeds, draws) each
    who = rng.integers(len(people), size=(len(people), draws))
    return np.mean([_models(of_model, chosen, rng) for chosen in who], axis=0)


def _models(of_model: list[np.ndarray], who: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(draws,) means over as many models as the person has, drawn from these."""
    found = np.empty(len(who))
    for person, means in enumerate(of_model):
        here = np.flatnonzero(who == person)
        models = rng.integers(len(means), size=(len(means), len(here)))
        found[here] = means[models, here].mean(axis=0)
    return found
