"""A permutation test finds what there is to find, nothing else, and the scores of the book."""

import itertools

import numpy as np
import pytest
import torch

from mindeye2_lite import metrics, permutation, retrieval

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pair():
    """Twelve pictures, and reconstructions that are half of them."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.rand(12, 3, 24, 24, generator=generator)
    other = torch.rand(12, 3, 24, 24, generator=generator)
    return 0.3 * seen + 0.7 * other, seen


def judge(x):
    return x.flatten(1)[:, ::7] ** 2


JUDGES = {"CLIP": judge, "Eff": judge}


def test_the_diagonals_are_the_scores_of_the_book(pair):
    recon, seen = pair
    scores = metrics.evaluate(recon, seen, JUDGES, size=40)
    pairs = permutation.all_pairs(recon, seen, JUDGES, size=40, ssim_size=40)
    assert list(pairs) == list(scores)
    for name, score in scores.items():
        np.testing.assert_allclose(np.diag(pairs[name]), score.per_image, atol=1e-5, err_msg=name)


def test_the_diagonals_are_the_scores_of_the_book_also_through_another_size(pair):
    recon, seen = pair[0], torch.nn.functional.interpolate(pair[1], 20)
    how = {"size": 40, "through": 16}
    scores = metrics.evaluate(recon, seen, JUDGES, **how)
    pairs = permutation.all_pairs(recon, seen, JUDGES, ssim_size=40, **how)
    for name, score in scores.items():
        np.testing.assert_allclose(np.diag(pairs[name]), score.per_image, atol=1e-5, err_msg=name)


def test_off_the_diagonal_stands_what_another_pairing_would_score(pair):
    recon, seen = pair
    pairs = permutation.all_pairs(recon, seen, JUDGES, size=40, ssim_size=40)
    order = torch.from_numpy(RNG.permutation(12))
    moved = metrics.evaluate(recon, seen[order], JUDGES, size=40)
    for name, score in moved.items():
        there = pairs[name][order.numpy(), np.arange(12)]
        np.testing.assert_allclose(there, score.per_image, atol=1e-5, err_msg=name)


def test_retrieval_has_a_matrix_for_each_direction():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(9, 4, 5, generator=generator)
    brain = image + 1.3 * torch.randn(9, 4, 5, generator=generator)
    found = retrieval.retrieval(brain, image).scores()
    for name, matrix in permutation.retrieval_pairs(brain, image).items():
        np.testing.assert_array_equal(np.diag(matrix), found[name].per_image)
        assert matrix.sum() == 9, "everybody answers once"


def test_p_is_near_that_of_all_permutations_and_counts_our_own():
    pairs = RNG.standard_normal((5, 5)) + 0.8 * np.eye(5)
    orders = [list(order) for order in itertools.permutations(range(5))]
    every = [pairs[order, np.arange(5)].mean() for order in orders]
    exact = np.mean([value >= np.diag(pairs).mean() - 1e-12 for value in every])
    found = permutation.test(pairs, permutations=20_000)
    assert found.p == pytest.approx(exact, abs=0.01)
    assert found.null == pytest.approx(pairs.mean(), abs=0.02)
    assert permutation.test(np.eye(30), permutations=99).p == 0.01  # the least that 99 can say


def test_without_an_effect_p_is_below_a_tenth_in_about_one_of_ten():
    found = [permutation.test(RNG.standard_normal((12, 12)), permutations=199) for _ in range(300)]
    assert 0.06 < np.mean([f.p <= 0.1 for f in found]) < 0.15  # 3 standard errors: .048 to .152


def test_a_picture_that_is_always_the_same_proves_nothing():
    r = np.repeat(RNG.standard_normal((8, 1)), 8, axis=1)
    found = permutation.test(permutation.two_way_pairs(r))
    assert found.p == 1 and found.value == pytest.approx(0.5)


def test_lower_is_better_where_it_is_said():
    pairs = RNG.random((20, 20)) - 0.5 * np.eye(20)
    assert permutation.test(pairs, permutations=500, better="lower").p < 0.01
    assert permutation.test(pairs, permutations=500).p > 0.99


def test_the_table_turns_distances_round_and_corrects_for_its_length():
    near = 1 - np.eye(20) * 0.5 + 0.1 * RNG.random((20, 20))
    table = permutation.table({"Eff": near, "CLIP": np.eye(20)}, permutations=199)
    assert (table["p"] == 1 / 200).all() and (table["holm"] == 2 / 200).all()


def test_holm_raises_the_smallest_most_and_keeps_the_order():
    np.testing.assert_allclose(permutation.holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    assert permutation.holm(np.array([0.9, 0.8])).max() == 1


@pytest.mark.parametrize(
    ("pairs", "how", "line"),
    [
        (np.ones((2, 3)), {}, "2 pictures and 3 reconstructions"),
        (np.ones((1, 1)), {}, "1 pictures and 1 reconstructions"),
        (np.array([[1, np.nan], [0, 1]]), {}, "picture 0 with reconstruction 1 is NaN"),
        (np.eye(2), {"permutations": 0}, "permutations is 0"),
        (np.eye(2), {"better": "more"}, "better 'more'"),
    ],
)
def test_mistakes_are_named_in_one_line(pairs, how, line):
    with pytest.raises(ValueError, match=f"^{line}.*$"):
        permutation.test(pairs, **how)
