"""The decoding loop is the released one, number by number."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mindeye2_lite import unclip

GOLDEN = load_file(Path(__file__).parent / "golden" / "decoding.safetensors")


def toy(noisy, t, condition):
    """The network around which the reference ran its loop."""
    mixed = torch.einsum("oc,bchw->bohw", GOLDEN["euler.W"], noisy)
    return mixed + condition.mean(dim=(1, 2))[:, None, None, None] + t[:, None, None, None] / 5000


def test_the_thousand_noise_levels_are_the_reference_s():
    torch.testing.assert_close(unclip.sigmas(), GOLDEN["sigmas_1000_ascending"])


def test_timesteps_are_spaced_as_released():
    assert torch.equal(unclip.timesteps(38), GOLDEN["euler.timesteps"])


def test_the_levels_visited_are_the_reference_s():
    visited = torch.cat([unclip.sigmas()[unclip.timesteps(38)], torch.zeros(1)])
    torch.testing.assert_close(visited, GOLDEN["euler.sigmas"])


def test_thirty_eight_euler_steps_end_where_the_reference_ends():
    noise = GOLDEN["euler.noise"] + unclip.NOISE_OFFSET * GOLDEN["euler.offset"]
    start = GOLDEN["euler.z"] + noise * unclip.sigmas()[-1]
    conditions = GOLDEN["euler.cond"], GOLDEN["euler.uncond"]
    found = unclip.euler(toy, start, unclip.timesteps(38), *conditions, guidance_scale=5)
    torch.testing.assert_close(found, GOLDEN["euler.out"], rtol=1e-5, atol=1e-5)


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
