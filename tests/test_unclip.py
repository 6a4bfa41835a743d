"""Decoding repeats itself and shows its steps. (The loop's numbers: test_released.py.)"""

import pytest
import torch

from mindeye2_lite import unclip


@pytest.fixture(scope="module")
def decoder():
    return unclip.load("mini-unclip")


def pictures(decoder: unclip.Decoder, seed: int = 0, n: int = 1, **options) -> torch.Tensor:
    tokens = torch.randn(n, 16, 128, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    return unclip.decode(decoder, tokens, generator=generator, progress=False, **options)


def test_the_default_decoder_is_the_released_loop_step_by_step(decoder):
    n, generator = 2, torch.Generator().manual_seed(3)
    tokens = torch.randn(n, 16, 128, generator=torch.Generator().manual_seed(0))
    z, unconditional = (torch.randn(s, generator=generator) for s in ((n, 4, 16, 16), tokens.shape))
    noise, offset = (torch.randn(s, generator=generator) for s in ((n, 4, 16, 16), n))
    x = z + (noise + 0.04 * offset[:, None, None, None]) * unclip.sigmas()[-1]
    denoiser = unclip.conditioned(decoder.unet, (64, 64, 0, 0))
    levels = [*unclip.sigmas()[unclip.timesteps(5)].tolist(), 0.0]
    with torch.no_grad():
        for t, sigma, following in zip(unclip.timesteps(5), levels[:-1], levels[1:], strict=True):
            scaled = (x / (sigma**2 + 1) ** 0.5).repeat(2, 1, 1, 1)
            away, towards = denoiser(scaled, t, torch.cat([unconditional, tokens])).chunk(2)
            x = x + (following - sigma) * (away + 5.0 * (towards - away))
    expected = (0.8 * decoder.vae.decode_raw(x) + 0.2).clamp(0, 1)
    assert torch.equal(pictures(decoder, seed=3, n=n, num_inference_steps=5), expected)


# ---- diffusers' schedulers ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def twelve_steps(decoder):
    """A picture of the released loop, and the clean latents that it predicted on the way."""
    keep = []
    return pictures(decoder, keep=keep, num_inference_steps=12), keep


def test_diffusers_euler_decodes_what_the_released_loop_decodes(decoder, twelve_steps):
    (expected, ours), theirs = twelve_steps, []
    euler = {"scheduler": "EulerDiscreteScheduler", "num_inference_steps": 12}
    found = pictures(decoder, keep=theirs, **euler)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"]
)
def test_any_deterministic_scheduler_starts_alike_and_draws_a_similar_picture(
    name, decoder, twelve_steps
):
    (expected, ours), theirs = twelve_steps, []
    found = pictures(decoder, keep=theirs, scheduler=name, num_inference_steps=12)
    torch.testing.assert_close(theirs[0], ours[0], rtol=1e-3, atol=1e-3)
    assert not torch.equal(found, expected)
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.9


def test_a_scheduler_that_draws_noise_draws_it_from_the_generator(decoder):
    how = {"scheduler": "EulerAncestralDiscreteScheduler", "num_inference_steps": 2}
    assert torch.equal(pictures(decoder, **how), pictures(decoder, **how))
    assert not torch.equal(pictures(decoder, **how), pictures(decoder, seed=1, **how))


def test_a_scheduler_of_one_s_own_keeps_its_settings_from_batch_to_batch(decoder):
    from diffusers import DPMSolverMultistepScheduler

    released = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    karras = DPMSolverMultistepScheduler(**released, use_karras_sigmas=True)
    how = {"scheduler": karras, "num_inference_steps": 4, "n": 2}
    first = pictures(decoder, batch=1, **how)
    assert karras.timesteps.tolist() != unclip.timesteps(4).tolist()
    assert len(karras.timesteps) == 4
    torch.testing.assert_close(first[:1], pictures(decoder, **(how | {"n": 1})))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("EulerScheduler", "diffusers offers no scheduler 'EulerScheduler'"),
        ("UNet2DConditionModel", "diffusers offers no scheduler 'UNet2DConditionModel'"),
        ("FlowMatchEulerDiscreteScheduler", "is not one for predicted noise"),
        ("UnCLIPScheduler", "cannot be set to the released noise levels"),
        ("DDIMInverseScheduler", "goes from picture to noise"),
    ],
)
def test_a_scheduler_that_cannot_serve_is_refused_in_one_line(name, said, decoder):
    with pytest.raises(ValueError, match=said) as error:
        pictures(decoder, scheduler=name)
    assert "\n" not in str(error.value)


def test_a_scheduler_for_other_noise_levels_is_refused(decoder):
    from diffusers import DDIMScheduler

    with pytest.raises(ValueError, match="DDIMScheduler has other noise levels"):
        pictures(decoder, scheduler=DDIMScheduler())
    with pytest.raises(ValueError, match="not one for predicted noise"):
        pictures(decoder, scheduler=DDIMScheduler(prediction_type="v_prediction"))


def test_tokens_of_another_width_are_refused(decoder):
    with pytest.raises(ValueError, match="image tokens are 96 wide, mini-unclip takes 128"):
        unclip.decode(decoder, torch.zeros(1, 16, 96), generator=torch.Generator())


# ---- pictures ----------------------------------------------------------------------------------


def test_the_same_generator_gives_the_same_pictures_and_another_gives_others(decoder):
    first = pictures(decoder, n=2, num_inference_steps=3)
    assert first.shape == (2, 3, 64, 64)
    assert torch.equal(pictures(decoder, n=2, num_inference_steps=3), first)
    assert not torch.equal(pictures(decoder, seed=1, n=2, num_inference_steps=3), first)


def test_predicted_clean_latents_can_be_kept_step_by_step():
    keep = []
    decoder, generator = unclip.load("mini-unclip"), torch.Generator().manual_seed(0)
    tokens = torch.zeros(1, 16, 128)
    unclip.decode(
        decoder, tokens, generator=generator, num_inference_steps=4, keep=keep, progress=False
    )
    assert [k.shape for k in keep] == [(1, 4, 16, 16)] * 4


def test_a_decoder_that_there_is_not_is_refused_in_one_line():
    with pytest.raises(ValueError, match="'sdxl-frob' is not available here") as error:
        unclip.load("sdxl-frob")
    assert "\n" not in str(error.value)


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path))
    monkeypatch.delenv("MINDEYE2_LITE_ASSETS", raising=False)
    return tmp_path


def test_without_the_released_file_one_line_says_where_it_is_wanted_and_how_to_get_it(nothing):
    with pytest.raises(FileNotFoundError) as error:
        unclip.load("sdxl-unclip")
    said, file = str(error.value), nothing / "assets" / "unclip6_epoch0_step110000.ckpt"
    assert "\n" not in said and str(file) in said
    assert "mindeye2-lite fetch --profile paper --stages decoding" in said


def test_the_released_decoder_comes_by_name_from_the_assets(nothing, monkeypatch):
    asked, mini = [], unclip.load()

    def load_released(*args):
        asked.append(args)
        return mini

    monkeypatch.setattr(unclip, "load_released", load_released)
    file = nothing / "assets" / "unclip6_epoch0_step110000.ckpt"
    index = nothing / "released" / "unclip6-1234" / "unet" / "a.safetensors.index.json"
    for made in (index, file):
        made.parent.mkdir(parents=True)
        made.touch()
        unclip.load("sdxl-unclip")
    folder = index.parents[1]  # taken apart earlier, and the file deleted since
    assert asked == [(folder, "cpu", torch.float32), (file, "cpu", torch.float32)]
