"""Refinement keeps what it is told to; the blend is the released one. (Steps: test_released.py.)"""

import pytest
import torch

from mindeye2_lite import refine


def test_skipping_more_steps_leaves_more_of_the_picture():
    refiner = refine.load("mini-sdxl")
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def change(skipped: int) -> float:
        generator = torch.Generator().manual_seed(0)
        options = {"skipped_steps": skipped, "progress": False}
        refined = refine.refine(refiner, picture, ["a red car"], generator=generator, **options)
        return float((refined - picture).abs().mean())

    assert change(23) < change(5)


def test_one_caption_per_picture_is_asked_for():
    with pytest.raises(ValueError, match="2 pictures but 1 captions"):
        pictures, generator = torch.zeros(2, 3, 64, 64), torch.Generator()
        refine.refine(refine.load("mini-sdxl"), pictures, ["a car"], generator=generator)


def test_the_blend_is_three_quarters_refined():
    blended = refine.blend(torch.ones(1, 3, 64, 64), torch.zeros(1, 3, 32, 32))
    assert blended.shape == (1, 3, 64, 64)
    torch.testing.assert_close(blended, torch.full_like(blended, 0.75))


def test_a_picture_is_made_smaller_by_picking_every_third_pixel():
    picture = torch.rand(2, 3, 768, 768, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(refine._resized(picture, 256), picture[..., 1::3, 1::3])


def test_without_a_blurry_picture_the_refined_one_stays():
    picture = torch.rand(1, 3, 64, 64)
    assert torch.equal(refine.blend(picture, None), picture)


def test_the_papers_own_blend_has_a_name():
    pictures = torch.ones(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    for name, share in (("released", 0.75), ("paper", 0.8), (0.5, 0.5)):
        torch.testing.assert_close(refine.blend(*pictures, name), torch.full((1, 3, 64, 64), share))
    with pytest.raises(ValueError, match="blend '4:1' is unknown: choose released, paper"):
        refine.blend(*pictures, "4:1")


def test_blending_and_then_resizing_is_the_released_resizing_and_then_blending():
    generator = torch.Generator().manual_seed(0)
    refined, blurry = (torch.rand(1, 3, n, n, generator=generator) for n in (768, 224))
    at_256 = [torch.nn.functional.interpolate(x, 256, mode="bilinear") for x in (refined, blurry)]
    found = torch.nn.functional.interpolate(refine.blend(refined, blurry), 256, mode="bilinear")
    torch.testing.assert_close(found, 0.75 * at_256[0] + 0.25 * at_256[1], rtol=0, atol=1e-5)
