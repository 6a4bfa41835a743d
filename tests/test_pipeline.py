"""Voxels go in and every stage's pictures come out, in order, the same for the same seed."""

import dataclasses
import functools

import pytest
import torch

from mindeye2_lite import encoders, metrics, nsd, pipeline, scenes
from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2

LITE = Config.lite()


@pytest.fixture(scope="module")
def person(small_root):
    return nsd.Subject(small_root, 1)


def reconstruct(person, config: Config = LITE, seed: int = 0, **how) -> pipeline.Reconstructions:
    model = MindEye2.from_config(config, {1: person.num_voxels}).eval()
    options = {"limit": 2, "steps": 3, "progress": False, "seed": seed} | how
    return pipeline.reconstruct(model, person.test(), person.images, config, **options)


@pytest.fixture(scope="module")
def made(person):
    return reconstruct(person)


def test_every_stage_has_a_picture_of_every_image(made):
    assert [name for name, _ in made.pictures()] == ["seen", "blurry", "reconstruction", "refined"]
    for name, pictures in made.pictures():
        assert pictures.shape == (2, 3, 64, 64), name
        assert pictures.min() >= 0 and pictures.max() <= 1, name
    assert made.prior_tokens.shape == made.image_tokens.shape == (2, LITE.tokens, LITE.dim)
    assert len(made.captions) == 2


def test_images_are_the_first_of_the_test_split_in_ascending_id(made, person):
    assert made.image_ids.tolist() == sorted(person.test().image_ids.tolist())[:2]
    torch.testing.assert_close(made.seen, person.images[made.image_ids])


def test_the_same_seed_gives_the_same_pictures_and_another_gives_others(made, person):
    again, other = reconstruct(person), reconstruct(person, seed=1)
    assert torch.equal(made.refined, again.refined) and made.captions == again.captions
    assert torch.equal(made.blurry, other.blurry), "no noise in the low-level picture"
    assert not torch.equal(made.prior_tokens, other.prior_tokens)
    assert not torch.equal(made.reconstruction, other.reconstruction)


def test_the_refined_picture_has_a_quarter_of_the_blurry_one(made, person):
    without = reconstruct(person, dataclasses.replace(LITE, low_level=False))
    assert without.blurry is None and "blurry" not in dict(without.pictures())
    unblended = (made.refined - 0.25 * made.blurry) / 0.75
    assert unblended.min() > -1e-4 and unblended.max() < 1 + 1e-4


def test_files_are_one_per_picture_and_stage_and_the_captions(made, tmp_path):
    pipeline.write(made, tmp_path)
    ids = [f"{i:05d}" for i in made.image_ids.tolist()]
    stages = [name for name, _ in made.pictures()]
    expected = {f"{i}_{stage}.png" for i in ids for stage in stages} | {"captions.txt"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    lines = (tmp_path / "captions.txt").read_text().splitlines()
    assert lines == [f"{i}\t{text}" for i, text in zip(ids, made.captions, strict=True)]


def test_the_gallery_is_of_the_pictures_that_are_scored(made, person):
    whole = reconstruct(person, dataclasses.replace(LITE, score_size=96))
    encoder = encoders.image_encoder()
    assert torch.equal(whole.image_tokens, encoder(metrics.resize(made.seen, 96)))
    assert torch.equal(made.image_tokens, encoder(made.seen)), "lite: as they are"
    assert not torch.equal(whole.image_tokens, made.image_tokens)
    assert torch.equal(whole.refined, made.refined)


def test_scores_are_of_pictures_of_the_config_s_size(perfect, monkeypatch):
    asked = []
    monkeypatch.setattr(metrics, "evaluate", lambda *_, **how: asked.append(how["through"]) or {})
    for config in (LITE, dataclasses.replace(LITE, score_size=256)):
        pipeline.score(perfect, config)
    assert asked == [None, 256]


# -- scores ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def perfect():
    """What a brain would give that missed nothing: every stage is what was seen, a bit paler."""
    n = 40
    seen = torch.from_numpy(scenes.render(scenes.sample(n, seed=6))).permute(0, 3, 1, 2) / 255
    tokens = encoders.image_encoder()(seen)
    pale = 0.1 + 0.8 * seen
    said = [scenes.captions(scene)[0] for scene in scenes.sample(n, seed=6)]
    return pipeline.Reconstructions(
        torch.arange(n), seen, pale, pale, pale, said, tokens, tokens, tokens
    )


def shuffled(out: pipeline.Reconstructions, seed: int) -> pipeline.Reconstructions:
    """The same brains, each before another's picture."""
    order = torch.randperm(len(out.seen), generator=torch.Generator().manual_seed(seed))
    brain = ("blurry", "reconstruction", "refined", "retrieval_tokens", "prior_tokens")
    return dataclasses.replace(out, **{name: getattr(out, name)[order] for name in brain})


@pytest.fixture
def coarse_pixels(monkeypatch):
    """PixCorr and SSIM of 64 pixels instead of 425, where a test asks for neither."""
    monkeypatch.setattr(metrics, "evaluate", functools.partial(metrics.evaluate, size=64))


TWO_WAY = ("Alex(2)", "Alex(5)", "Incep", "CLIP")
RETRIEVAL = ("image_to_brain", "brain_to_image")


def test_perfect_brains_score_far_above_chance(perfect):
    scores = pipeline.score(perfect, LITE)
    assert len(scores) == 10 and all(score.n == 40 for score in scores.values())
    assert all(scores[name].value > 0.95 for name in (*TWO_WAY, *RETRIEVAL))
    for name in ("PixCorr", "SSIM"):
        assert scores[name].low > scores[name].chance
    for name in ("Eff", "SwAV"):
        assert scores[name].better == "lower" and scores[name].high < scores[name].chance


def test_any_pictures_get_the_eight_scores_of_pictures(perfect, coarse_pixels):
    whole = pipeline.score(perfect, LITE, seed=3)
    eight = pipeline.score_pictures(perfect.refined, perfect.seen, LITE, seed=3)
    assert list(eight) == [name for name in whole if name not in RETRIEVAL]
    assert all(score == whole[name] for name, score in eight.items())
    bare = dataclasses.replace(LITE, judges="none")
    assert list(pipeline.score_pictures(perfect.refined, perfect.seen, bare)) == ["PixCorr", "SSIM"]


def test_shuffled_brains_score_at_chance_on_every_two_way_metric_and_on_retrieval(
    perfect, coarse_pixels
):
    runs = [pipeline.score(shuffled(perfect, seed), LITE) for seed in range(2)]
    for name in TWO_WAY:
        mean = sum(scores[name].value for scores in runs) / len(runs)
        assert abs(mean - 0.5) < 0.1, (name, mean)  # three standard errors of 2 x 40 pictures
    for name in RETRIEVAL:
        found = sum(scores[name].value * scores[name].n for scores in runs)
        assert found <= 7, (name, found)  # of 80, where 2 are expected: one chance in 1,000


def test_an_untrained_model_finds_no_pictures(person, coarse_pixels):
    out = reconstruct(person, limit=None)
    assert len(out.seen) == len(person.test().image_ids)
    scores = pipeline.score(out, LITE)
    for name in RETRIEVAL:
        assert scores[name].value <= scores[name].chance + 0.35, scores[name]
    for name in TWO_WAY:
        assert 0.2 < scores[name].value < 0.8, scores[name]


def test_a_stage_that_does_not_exist_is_refused_by_name(made):
    line = "^no stage 'sharp' to score: choose one of blurry, reconstruction, refined$"
    with pytest.raises(ValueError, match=line):
        pipeline.score(made, LITE, stage="sharp")
    with pytest.raises(ValueError, match="no stage 'seen'"):
        pipeline.score(made, LITE, stage="seen")
