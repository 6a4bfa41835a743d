"""Captions are marked against the truth, beside what chance would get."""

import numpy as np
import pytest

from mindeye2_lite import captions_metrics, scenes


def test_wilsons_interval_is_the_published_formula_and_stays_inside():
    n, p, z = 40, 0.9, 1.959964
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = captions_metrics.share("right", np.arange(n) < p * n)
    expected = np.array([middle - half, middle + half]) / (1 + z**2 / n)
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-5)
    perfect = captions_metrics.share("right", np.ones(40))
    assert perfect.low < 0.95 and perfect.value == perfect.high == 1


def test_true_captions_are_all_right_and_shuffled_ones_are_at_chance():
    drawn = scenes.sample(400, seed=5)
    truth = {name: [getattr(s, name) for s in drawn] for name in ("kind", "color", "ground")}
    said = [dict(zip(truth, values, strict=True)) for values in zip(*truth.values(), strict=True)]
    right = captions_metrics.grade(said, truth)
    assert {score.value for score in right.values()} == {1.0}
    assert abs(right["kind"].chance - 1 / len(scenes.KINDS)) < 0.01
    order = np.random.default_rng(0).permutation(400)
    shuffled = captions_metrics.grade([said[i] for i in order], truth)
    for score in shuffled.values():
        assert score.low - 0.01 < score.chance < score.high + 0.01, score


def test_what_a_caption_leaves_out_is_wrong():
    said = [{"kind": "cat", "color": None}, {"kind": "boat", "color": "red"}]
    found = captions_metrics.grade(said, {"kind": ["cat", "boat"], "color": ["red", "red"]})
    assert [score.value for score in found.values()] == [1.0, 0.5, 0.5]
    assert found["color"].per_image.tolist() == [0, 1]


def test_captions_without_their_pictures_are_refused_in_one_line():
    with pytest.raises(ValueError, match="^1 captions but 2 true values of kind[^\n]*$"):
        captions_metrics.grade([{"kind": "cat"}], {"kind": ["cat", "boat"]})
    with pytest.raises(ValueError, match="^no answers to take the share 'right' of[^\n]*$"):
        captions_metrics.share("right", np.array([]))
