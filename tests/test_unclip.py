"""Decoding repeats itself and shows its steps. (The loop's numbers: test_released.py.)"""

import pytest
import torch

from mindeye2_lite import unclip


def test_the_same_generator_gives_the_same_pictures_and_another_gives_others():
    decoder = unclip.load("mini-unclip")
    tokens = torch.randn(2, 16, 128, generator=torch.Generator().manual_seed(0))

    def pictures(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": 3, "progress": False}
        return unclip.decode(decoder, tokens, generator=generator, **options)

    assert pictures(0).shape == (2, 3, 64, 64)
    assert torch.equal(pictures(0), pictures(0))
    assert not torch.equal(pictures(0), pictures(1))


def test_predicted_clean_latents_can_be_kept_step_by_step():
    keep = []
    decoder, generator = unclip.load("mini-unclip"), torch.Generator().manual_seed(0)
    tokens = torch.zeros(1, 16, 128)
    unclip.decode(
        decoder, tokens, generator=generator, num_inference_steps=4, keep=keep, progress=False
    )
    assert [k.shape for k in keep] == [(1, 4, 16, 16)] * 4


def test_a_decoder_that_is_not_shipped_is_refused_in_one_line():
    with pytest.raises(ValueError, match="'sdxl-unclip' is not available here") as error:
        unclip.load("sdxl-unclip")
    assert "\n" not in str(error.value)
