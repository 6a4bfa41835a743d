"""The verdict: silent where nothing is, sure where much is, and honest about how few n are."""

import numpy as np
import pytest
import torch
from scipy import stats

from mindeye2_lite.retrieval import retrieval, similarities
from mindeye2_lite.verdict import answers, hits_needed, pictures_needed, verdict


def table(n, shift, seed=0):
    """Similarities of n brains and n pictures; their own stands out by `shift` deviations."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, n)) + shift * np.eye(n)


@pytest.fixture
def no_intervals(monkeypatch):
    """Hundreds of verdicts whose intervals nobody reads."""
    monkeypatch.setattr("mindeye2_lite.verdict.bootstrap", lambda each, seed: (0.0, 1.0))


def share_beyond(n, shift, name="two-way", times=200):
    told = (verdict(table(n, shift, seed), shuffles=400)[name] for seed in range(times))
    return np.mean([finding.beyond for finding in told])


@pytest.mark.parametrize("name", ["top-1", "two-way"])
def test_of_brains_that_saw_nothing_one_in_twenty_passes_and_no_more(name, no_intervals):
    assert share_beyond(20, 0, name) <= 0.1


def test_strong_data_pass_and_every_brain_counts():
    told = verdict(table(30, 9))
    assert told["top-1"].value == told["two-way"].value == 1
    assert all(told[name].beyond and told[name].p < 0.001 for name in told.findings)
    assert "30 of 30" in str(told) and "p < 0.001" in str(told)


def test_null_data_are_told_plainly_what_would_be_needed():
    told = verdict(table(30, 0, seed=3))
    assert not told["two-way"].beyond and "Not beyond chance" in str(told)
    assert "cannot tell this from guessing" in told.advice()
    assert str(pictures_needed(0.55)) in told.advice()


def test_a_perfect_score_brings_a_warning_of_leaks():
    assert "trained on" in verdict(table(30, 9)).advice()


def test_scores_are_those_of_retrieval_and_of_counting():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(12, 3, 4, generator=generator)
    brain = image + 2 * torch.randn(12, 3, 4, generator=generator)
    cosine = similarities(brain, image)
    told = verdict(cosine)
    assert told["top-1"].value == pytest.approx(retrieval(brain, image).brain_to_image.value)
    wins = [[cosine[i, i] > cosine[i, j] for j in range(12) if j != i] for i in range(12)]
    assert told["two-way"].value == pytest.approx(np.mean(wins))


def test_shuffled_scores_lie_around_chance_and_needed_is_their_upper_end():
    for finding in verdict(table(25, 1)).findings.values():
        assert finding.shuffled.mean() == pytest.approx(finding.chance, abs=0.01)
        assert (finding.shuffled >= finding.needed - 1e-9).mean() < 0.05
        just_below = finding.shuffled[finding.shuffled < finding.needed - 1e-9].max()
        assert (finding.shuffled >= just_below - 1e-9).mean() >= 0.05


def test_whoever_always_names_the_same_picture_is_not_beyond_chance():
    hub = np.zeros((20, 20))
    hub[:, 7] = 1
    told = verdict(hub)
    assert told["top-1"].value == 1 / 20 and told["top-1"].p == 1
    assert not told["two-way"].beyond


def test_of_equal_similarities_none_is_nearer():
    assert answers(np.ones((4, 4)))["two-way"].max() == 0
    assert verdict(np.ones((4, 4)))["top-1"].value == 0


def test_with_three_pictures_nothing_would_be_enough():
    told = verdict(np.eye(3))["top-1"]
    assert told.value == 1 and not told.beyond
    assert "no score would be beyond chance" in str(told)


@pytest.mark.parametrize("two_way", [0.6, 0.7])
def test_the_promised_number_of_pictures_shows_the_effect_four_times_in_five(two_way, no_intervals):
    shift = np.sqrt(2) * stats.norm.ppf(two_way)
    n = pictures_needed(two_way)
    assert 0.7 < share_beyond(n, shift) < 0.95
    assert share_beyond(n // 3, shift) < 0.65


def test_smaller_effects_need_more_pictures_and_none_at_all_cannot_be_shown():
    assert pictures_needed(0.51) > pictures_needed(0.55) > pictures_needed(0.8) >= 3
    with pytest.raises(ValueError, match="above 0.5"):
        pictures_needed(0.5)


def test_hits_needed_is_the_least_that_luck_hardly_reaches():
    for n, candidates in ((100, None), (30, 10), (8, 2)):
        hits = hits_needed(n, candidates)
        chance = 1 / (candidates or n)
        assert stats.binom.sf(hits - 1, n, chance) < 0.05 <= stats.binom.sf(hits - 2, n, chance)
    assert hits_needed(3, 2) == 4, "three coin flips convince nobody"


def test_the_same_seed_gives_the_same_verdict():
    first, again = verdict(table(15, 0.5), seed=2), verdict(table(15, 0.5), seed=2)
    assert str(first) == str(again)
    assert np.array_equal(first["top-1"].shuffled, again["top-1"].shuffled)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (np.zeros((3, 4)), r"shape \(3, 4\)"),
        (np.eye(2), "at least three"),
        (np.full((4, 4), np.nan), "no numbers"),
    ],
)
def test_tables_that_cannot_be_judged_cost_one_line(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        verdict(wrong)
