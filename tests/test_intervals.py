"""Intervals cover what they should, are as wide as theory says, and pairing makes them narrower."""

import numpy as np
import pytest

from mindeye2_lite import intervals


def simulated(rng, people=1, seeds=5, images=100, *, person=0.0, model=0.0, picture=0.0, noise=1.0):
    """Sums of what people, their models, the pictures all see, and chance contribute."""
    shared = picture * rng.standard_normal(images)
    return {
        number: person * rng.standard_normal()
        + model * rng.standard_normal((seeds, 1))
        + shared
        + noise * rng.standard_normal((seeds, images))
        for number in range(1, people + 1)
    }


def width(estimate):
    return estimate.high - estimate.low


def test_the_value_is_the_mean_of_the_peoples_means():
    values = {5: np.full((1, 4), 2.0), 1: np.array([[0.0, 1, 0, 1], [0, 1, 0, 1]])}
    found = intervals.mean(values)
    assert found.value == pytest.approx(1.25)
    assert (found.n_images, found.n_people, found.n_seeds) == (4, 2, 1)
    assert found.low <= found.value <= found.high
    assert str(found).startswith("1.250 [")


def test_the_same_seed_gives_the_same_interval():
    values = simulated(np.random.default_rng(0), people=3)
    assert intervals.mean(values) == intervals.mean(values) != intervals.mean(values, seed=1)


def test_constant_values_have_an_interval_without_width():
    found = intervals.mean({s: np.full((5, 10), 0.25) for s in (1, 2, 5, 7)})
    assert found[:3] == pytest.approx((0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    "shape, parts, error",
    [
        ((1, 1, 400), {}, 400**-0.5),  # pictures alone
        ((1, 40, 50), {"model": 1.0, "noise": 0.0}, 40**-0.5),  # models alone
        ((60, 1, 50), {"person": 1.0, "noise": 0.0}, 60**-0.5),  # people alone
        ((4, 5, 400), {"picture": 1.0, "noise": 0.0}, 400**-0.5),  # pictures that all see
    ],
)
def test_the_width_is_that_of_theory_where_one_thing_varies(shape, parts, error):
    widths = [
        width(intervals.mean(simulated(np.random.default_rng(seed), *shape, **parts)))
        for seed in range(8)
    ]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_about_ninety_five_of_hundred_intervals_hold_the_truth():
    rng = np.random.default_rng(0)
    parts = {"model": 0.3, "picture": 0.5, "noise": 1.0}
    held = 0
    for _ in range(200):
        found = intervals.mean(simulated(rng, 1, 10, 60, **parts), draws=400)
        held += found.low <= 0 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_pairing_makes_a_difference_narrower_than_its_two_parts():
    rng = np.random.default_rng(0)
    first = simulated(rng, 4, 5, 100, picture=1.0, noise=0.2)
    second = {s: x - 0.3 + 0.1 * rng.standard_normal(x.shape) for s, x in first.items()}
    apart = intervals.difference(first, second)
    assert apart.value == pytest.approx(0.3, abs=0.02)
    assert 0.25 < apart.low < apart.high < 0.35
    assert width(apart) < width(intervals.mean(first)) / 5


def test_people_may_have_unequally_many_models():
    found = intervals.mean({1: np.zeros((5, 10)), 2: np.ones((2, 10))})
    assert found.value == 0.5 and found.n_seeds == 2
    assert (found.low, found.high) == (0, 1), "one of two people, drawn twice"


@pytest.mark.parametrize(
    "values, words",
    [
        ({}, "no values"),
        ({1: np.zeros((0, 3))}, "no values"),
        ({2: np.array([[0.0, np.nan]])}, "person 2: 1 of 2 values are absent"),
        ({1: np.zeros((1, 3)), 2: np.zeros((1, 4))}, r"\[3, 4\] pictures"),
    ],
)
def test_what_cannot_be_averaged_is_said_in_one_line(values, words):
    with pytest.raises(ValueError, match=words) as said:
        intervals.mean(values)
    assert "\n" not in str(said.value)


def test_only_the_same_people_seeds_and_pictures_are_compared():
    with pytest.raises(ValueError, match=r"people \[1\] and \[2\]"):
        intervals.difference({1: np.zeros((1, 2))}, {2: np.zeros((1, 2))})
    with pytest.raises(ValueError, match="person 1 has"):
        intervals.difference({1: np.zeros((1, 2))}, {1: np.zeros((2, 2))})
