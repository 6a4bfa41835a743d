"""One dial for size: a profile is a set of numbers and names, and can be changed by name."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from mindeye2_lite.config import PROFILES, Config


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_knows_its_name(profile):
    assert Config.of(profile).profile == profile


def test_an_unknown_profile_names_the_three_there_are_in_one_line():
    with pytest.raises(ValueError, match="lite, colab, paper") as error:
        Config.of("large")
    assert "large" in str(error.value) and "\n" not in str(error.value)


def test_lite_uses_shipped_miniatures_only():
    lite = Config.lite()
    parts = [lite.encoder, lite.vae, lite.teacher, lite.decoder, lite.captioner, lite.refiner]
    assert all(name.startswith("mini-") for name in [*parts, lite.judges])


def test_the_paper_uses_no_miniature():
    values = [getattr(Config.paper(), field.name) for field in fields(Config)]
    assert not [value for value in values if str(value).startswith("mini-")]


def test_the_papers_sizes_are_those_of_the_released_checkpoints():
    paper = Config.paper()
    assert (paper.tokens, paper.dim, paper.hidden) == (256, 1664, 4096)
    assert (paper.prior_depth, paper.prior_dim_head) == (6, 52)
    assert paper.prior_dim_head * (paper.dim // paper.prior_dim_head) == paper.dim
    assert paper.backbone == Config.lite().backbone == "released"


def test_the_paper_profile_trains_with_the_released_batches():
    paper = Config.paper()
    assert (paper.batch, paper.pretrain_batch) == (24, 42)


def test_lite_learns_faster_and_decodes_with_less_guidance():
    lite, paper = Config.lite(), Config.paper()
    assert lite.max_lr > paper.max_lr == 3e-4 and paper.epochs == 150
    assert lite.guidance_scale < paper.guidance_scale == 5


def test_heads_of_the_prior_fill_the_width_in_every_profile():
    for config in map(Config.of, PROFILES):
        assert config.dim % config.prior_dim_head == 0


def test_a_config_is_changed_by_making_another():
    wide = replace(Config.lite(), hidden=512)
    assert (wide.hidden, wide.tokens) == (512, Config.lite().tokens)
    with pytest.raises(FrozenInstanceError):
        wide.hidden = 1
