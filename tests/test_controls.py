"""Controls show what they say, from training pictures only, and the same for the same seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mindeye2_lite import controls, encoders, nsd, overlap, pipeline
from mindeye2_lite.config import Config

LITE = replace(Config.lite(), low_level=False)
FEW = {"steps": 3, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def person(small_root):
    return nsd.Subject(small_root, 1)


@pytest.fixture(scope="module")
def out(person):
    """Three test pictures whose brains say the tokens of three known training pictures."""
    ids = person.test().image_ids[:3]
    seen, known = person.images[ids], overlap.own_training_images(person)[[5, 2, 9]]
    encoder = encoders.image_encoder(LITE.encoder)
    brain, tokens = encoder(person.images[known]), encoder(seen)
    pictures = [seen.flip(-1), seen, (seen + seen.flip(-1)) / 2]
    return pipeline.Reconstructions(ids, seen, *pictures, ["a cat"] * 3, brain, tokens, tokens)


@pytest.fixture(scope="module")
def made(out, person):
    return controls.pictures(out, person.root, 1, LITE, **FEW)


def test_they_come_by_name_one_picture_for_each_test_picture(made, out):
    assert tuple(made) == controls.NAMES
    for name, pictures in made.items():
        assert pictures.shape == out.seen.shape, name
        assert pictures.min() >= 0 and pictures.max() <= 1, name


def test_shuffled_brains_are_the_refined_pictures_and_none_is_in_its_place(made, out):
    order = controls.derangement(3)
    assert torch.equal(made["shuffled brains"], out.refined[order])
    assert (order != torch.arange(3)).all()


@pytest.mark.parametrize("n", [2, 3, 100])
def test_nobody_keeps_their_place_and_everybody_has_one(n):
    order = controls.derangement(n, seed=1)
    assert (order != torch.arange(n)).all() and order.sort().values.tolist() == list(range(n))


def test_one_picture_cannot_be_shuffled():
    with pytest.raises(ValueError, match="^1 pictures cannot be shuffled"):
        controls.derangement(1)


def test_the_mean_is_that_of_the_persons_training_pictures_each_once(made, person):
    ids = person.train().image_ids
    mean = person.images[ids].double().mean(0).float()
    torch.testing.assert_close(made["mean picture"][0], mean)
    assert torch.equal(made["mean picture"][0], made["mean picture"][2])


def test_the_album_finds_the_training_picture_that_the_brain_speaks_of(made, person):
    known = overlap.own_training_images(person)[[5, 2, 9]]
    assert torch.equal(made["nearest training picture"], person.images[known])


def test_true_tokens_give_what_unclip_makes_of_them_and_no_brain_something_else(made, out, person):
    again = controls.pictures(out, person.root, 1, LITE, **FEW)
    other = controls.pictures(out, person.root, 1, LITE, **FEW, seed=1)
    for name in ("generator without the brain", "true image tokens"):
        assert torch.equal(made[name], again[name])
        assert not torch.equal(made[name], other[name])


def test_the_generator_without_a_brain_hears_nothing_of_the_test(made, out, person):
    deaf = replace(out, retrieval_tokens=out.retrieval_tokens + 1, refined=out.refined * 0)
    again = controls.pictures(deaf, person.root, 1, LITE, **FEW)
    name = "generator without the brain"
    assert torch.equal(made[name], again[name])


def test_shuffled_brains_find_nothing_where_the_brain_says_it_all(out):
    told = replace(out, retrieval_tokens=out.image_tokens)
    assert [score.value for score in controls.brain(told).values()] == [0, 0]


def test_best_middle_and_worst_follow_the_score_and_then_the_tie():
    scores = np.array([0.5, 0.9, 0.9, 0.1, 0.5, 0.2])
    ties = np.array([0.1, 0.2, 0.3, 0.0, 0.2, 0.0])
    assert controls.extremes(scores, ties, each=2) == {
        "best": [2, 1], "middle": [4, 0], "worst": [5, 3],
    }  # fmt: skip
    with pytest.raises(ValueError, match="^6 pictures have no 3 best"):
        controls.extremes(scores, ties)
