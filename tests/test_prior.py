"""The prior is the released one: network, schedule, both samplers, loss."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mindeye2_lite.model import MindEye2
from mindeye2_lite.prior import DiffusionPrior, NoiseSchedule, RelativePositions

GOLDEN = Path(__file__).parent / "golden"
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
# Along a walk the random network meets inputs where float32 rounding grows: the stored answers
# themselves lie up to 6e-5 from a computation in float64.
CLOSE_ON_THE_WAY = {"atol": 1.5e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def values() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "values.safetensors")


@pytest.fixture(scope="module")
def prior() -> DiffusionPrior:
    return MindEye2.from_released(GOLDEN / "weights.safetensors").eval().requires_grad_(False).prior


@pytest.fixture
def small() -> DiffusionPrior:
    torch.manual_seed(0)
    return DiffusionPrior(4, 16, depth=2, dim_head=8).eval()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_network_computes_what_the_released_one_computes(prior, values):
    predicted = prior(values["prior.noisy"], values["prior.t"], values["backbone"])
    torch.testing.assert_close(predicted, values["prior.out"], **CLOSE)


def test_hiding_everything_gives_the_released_null_answer(prior, values):
    nothing = torch.zeros(6, dtype=torch.bool)
    args = values["prior.noisy"], values["prior.t"], values["backbone"], nothing, nothing
    torch.testing.assert_close(prior.net(*args), values["prior.out_all_null"], **CLOSE)


def test_guidance_is_the_released_guidance(prior, values):
    args = values["prior.noisy"], values["prior.t"], values["backbone"]
    guided = prior(*args, guidance_scale=3.0)
    torch.testing.assert_close(guided, values["prior.out_scale3"], atol=6e-5, rtol=1e-4)


def test_the_schedule_is_the_released_one_to_the_last_buffer():
    released = load_file(GOLDEN / "weights.safetensors")
    ours = NoiseSchedule().state_dict()
    assert len(ours) == 13
    for name, values in ours.items():
        expected = released[f"diffusion_prior.noise_scheduler.{name}"]
        torch.testing.assert_close(values, expected, atol=0, rtol=1e-6)


def test_twenty_steps_are_nineteen_calls_from_94(values):
    times = NoiseSchedule().times(20)
    assert times == [*values["ddim20.t"].tolist(), -1]


def test_every_ddim_step_is_the_released_step(prior, values):
    tokens, times = values["backbone"][:2], NoiseSchedule().times(20)
    noisy, noises = values["ddim20.x"], values["ddim20.noises"]
    torch.testing.assert_close(noisy[0], noises[0])
    ends = [*noisy[1:], values["ddim20.out"]]
    noises = [*noises[1:], torch.zeros_like(noises[0])]
    for i, (expected, noise) in enumerate(zip(ends, noises, strict=True)):
        seen = values["ddim20.x0"][i]
        exact = prior.noise_scheduler.ddim_step(noisy[i], seen, times[i], times[i + 1], noise)
        after, predicted = prior.step(noisy[i], times[i], times[i + 1], tokens, noise)
        torch.testing.assert_close(exact, expected)
        torch.testing.assert_close(predicted, seen, **CLOSE_ON_THE_WAY)
        torch.testing.assert_close(after, expected, **CLOSE_ON_THE_WAY)


def test_every_ancestral_step_is_the_released_step(prior, values):
    tokens, times = values["backbone"][:2], NoiseSchedule().times(None)
    noisy, noises = values["ddpm100.x"], values["ddpm100.noises"]
    assert times == [*values["ddpm100.t"].tolist(), -1]
    for i, expected in enumerate([*noisy[1:], values["ddpm100.out"]]):
        seen = values["ddpm100.x0"][i]
        exact = prior.noise_scheduler.ddpm_step(noisy[i], seen, times[i], noises[i + 1])
        after, predicted = prior.ancestral_step(noisy[i], times[i], tokens, noises[i + 1])
        torch.testing.assert_close(exact, expected)
        torch.testing.assert_close(predicted, seen, **CLOSE_ON_THE_WAY)
        torch.testing.assert_close(after, expected, **CLOSE_ON_THE_WAY)


@pytest.mark.parametrize("steps", [20, 100])
def test_sampling_walks_the_same_steps(small, steps):
    tokens, generator = torch.randn(2, 4, 16), seeded(3)
    noisy = torch.randn(2, 4, 16, generator=generator)
    times = small.noise_scheduler.times(steps)
    with torch.no_grad():
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            noise = torch.randn(2, 4, 16, generator=generator) if t_next >= 0 else noisy
            if steps == 20:
                noisy, _ = small.step(noisy, t, t_next, tokens, noise)
            else:
                noisy, _ = small.ancestral_step(noisy, t, tokens, noise)
    torch.testing.assert_close(small.sample(tokens, steps, generator=seeded(3)), noisy)


def test_the_training_loss_is_the_released_loss(prior, values):
    noise, times = values["prior_loss.noise"], values["prior.t"]
    noisy = prior.noise_scheduler.add_noise(values["prior_loss.target"], times, noise)
    predicted = prior(noisy, times, values["backbone"])
    torch.testing.assert_close(predicted, values["prior_loss.pred"], **CLOSE)
    loss = (predicted - values["prior_loss.target"]).square().mean()
    torch.testing.assert_close(loss, values["prior_loss.loss"])


def test_the_loss_draws_times_and_noise_from_its_generator_alone(small):
    tokens, image_tokens = torch.randn(2, 6, 4, 16)
    first = small.loss(tokens, image_tokens, generator=seeded(0))
    torch.manual_seed(5)
    assert torch.equal(first, small.loss(tokens, image_tokens, generator=seeded(0)))
    assert not torch.equal(first, small.loss(tokens, image_tokens, generator=seeded(1)))


def test_hidden_conditions_cannot_reach_the_loss(small):
    a, b, image_tokens = torch.randn(3, 6, 4, 16)
    hidden = [small.loss(x, image_tokens, generator=seeded(0), drop=1.0) for x in (a, b)]
    shown = [small.loss(x, image_tokens, generator=seeded(0), drop=0.0) for x in (a, b)]
    assert torch.equal(*hidden)
    assert not torch.equal(*shown)


def test_gradients_flow_from_the_loss_into_the_condition(small):
    tokens = torch.randn(6, 4, 16, requires_grad=True)
    small.loss(tokens, torch.randn(6, 4, 16), generator=seeded(0), drop=0.0).backward()
    assert tokens.grad.abs().sum() > 0


def test_a_token_and_all_that_follow_share_bucket_zero():
    buckets = RelativePositions.bucket(torch.tensor([[0, 1, 15, 16, 127, 128, 600]]))
    assert buckets.tolist() == [[0, 1, 15, 16, 31, 31, 31]]
    bias = RelativePositions(heads=2)(5)
    assert bias.shape == (2, 5, 6)
    assert torch.equal(bias[:, 2, 2], bias[:, 2, 5])


def test_the_rotary_frequencies_are_counted_once_and_never_trained(small):
    names = [n for n, p in small.named_parameters() if not p.requires_grad]
    assert names == ["net.causal_transformer.layers.0.0.rotary_emb.freqs"]
    assert sum("freqs" in key for key in small.state_dict()) == 2


def test_too_many_steps_are_refused(small):
    with pytest.raises(ValueError, match="^num_inference_steps must be 2 to 100, got 101$"):
        small.sample(torch.randn(1, 4, 16), 101, generator=seeded(0))
