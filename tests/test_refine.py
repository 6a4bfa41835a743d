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


def test_without_a_blurry_picture_the_refined_one_stays():
    picture = torch.rand(1, 3, 64, 64)
    assert torch.equal(refine.blend(picture, None), picture)
