"""Retrieval knows both directions apart, its chance, and the paper's way of drawing pools."""

import numpy as np
import pytest
import torch

from mindeye2_lite.retrieval import retrieval, similarities


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(60, 4, 8, generator=torch.Generator().manual_seed(0))


def test_brains_that_equal_their_pictures_are_always_found(image):
    found = retrieval(3 * image, image, pool=20)
    assert found.image_to_brain.value == found.brain_to_image.value == 1
    assert found.image_to_brain.chance == 1 / 20 and found.image_to_brain.n == 60


def test_shuffled_brains_are_found_at_chance():
    many = torch.randn(1000, 16, generator=torch.Generator().manual_seed(1))
    other = torch.randn(1000, 16, generator=torch.Generator().manual_seed(2))
    for score in retrieval(other, many, pool=10, draws=300).scores().values():
        assert score.value == pytest.approx(score.chance, abs=0.03)


def test_the_two_directions_are_told_apart():
    image = torch.eye(3)
    brain = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0.8, 0.0, 0.6]])
    found = retrieval(brain, image)
    # brains 1 and 2 both look at picture 0; but every picture's nearest brain is its own
    assert found.brain_to_image.value == pytest.approx(1 / 3)
    assert found.image_to_brain.value == 1
    assert found.brain_to_image.per_image.tolist() == [1, 0, 0]


def test_similarities_have_brains_in_rows_and_pictures_in_columns(image):
    matrix = similarities(image[:2], image[:3])
    cosine = torch.cosine_similarity(image[1].flatten(), image[2].flatten(), dim=0)
    assert matrix.shape == (2, 3) and matrix[1, 2] == pytest.approx(float(cosine), abs=1e-6)


def test_pools_are_the_ones_of_the_released_seed(image):
    brain = image + 2.0 * torch.randn(image.shape, generator=torch.Generator().manual_seed(3))
    similarity, hits = similarities(brain, image).numpy(), []
    rng = np.random.RandomState(42)
    for _ in range(30):
        chosen = rng.choice(np.arange(60), size=25, replace=False)
        hits.append((similarity[np.ix_(chosen, chosen)].argmax(1) == np.arange(25)).mean())
    score = retrieval(brain, image, pool=25, seed=42).brain_to_image
    half = 1.96 * np.std(hits) / np.sqrt(30)
    assert score.value == pytest.approx(np.mean(hits))
    assert (score.low, score.high) == pytest.approx((np.mean(hits) - half, np.mean(hits) + half))
    assert 0.1 < score.value < 0.9


def test_a_cohort_smaller_than_the_pool_gets_an_interval_over_pictures(image):
    brain = image + 2.0 * torch.randn(image.shape, generator=torch.Generator().manual_seed(3))
    score = retrieval(brain, image).image_to_brain
    assert score.chance == 1 / 60 and score.low < score.value < score.high
    assert score.value == pytest.approx(score.per_image.mean())


def test_brains_without_their_pictures_are_refused_in_one_line(image):
    with pytest.raises(ValueError, match="59 brains, 60 pictures"):
        retrieval(image[:59], image)
    with pytest.raises(ValueError, match="1 brains"):
        retrieval(image[:1], image[:1])
    with pytest.raises(ValueError, match="draws 0"):
        retrieval(image, image, draws=0)


def test_a_brain_that_holds_nan_is_named_in_one_line(image):
    brain = image.clone()
    brain[7, 1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"^brain 7 \(counted from 0\) holds NaN[^\n]*$"):
        retrieval(brain, image)
    with pytest.raises(ValueError, match=r"^picture 7 \(counted from 0\) holds NaN[^\n]*$"):
        retrieval(image, brain)
