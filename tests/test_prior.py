"""The prior samples, learns and counts its times as it says. (Its numbers: test_released.py.)"""

import pytest
import torch

from mindeye2_lite.prior import (
    DiffusionPrior,
    LayerNorm,
    RelativePositions,
    SinusoidalEmbedding,
)


@pytest.fixture
def small() -> DiffusionPrior:
    torch.manual_seed(0)
    return DiffusionPrior(4, 16, depth=2, dim_head=8).eval()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("steps", [20, 100])
def test_sampling_walks_the_same_steps(small, steps):
    tokens, generator = torch.randn(2, 4, 16), seeded(3)
    noisy = torch.randn(2, 4, 16, generator=generator)
    times = small.noise_scheduler.times(steps)
    with torch.no_grad():
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            noise = torch.randn(2, 4, 16, generator=generator) if t_next >= 0 else noisy
            noisy, _ = small.step(noisy, t, t_next, tokens, noise, every_time=steps == 100)
    torch.manual_seed(9)  # every draw is the generator's, in this order
    assert torch.equal(small.sample(tokens, steps, generator=seeded(3)), noisy)


def watched(prior: DiffusionPrior, monkeypatch, answer) -> list[tuple[torch.Tensor, int]]:
    """Let `answer(noisy, t)` predict; the list collects what the sampler shows it."""
    seen = []

    def forward(noisy, times, tokens, *, guidance_scale):
        seen.append((noisy, times[0].item()))
        return answer(*seen[-1])

    monkeypatch.setattr(prior, "forward", forward)
    return seen


@pytest.mark.parametrize(
    ("steps", "times"), [(1, [99]), (3, [99, 65, 32]), (10, range(99, 0, -10)), (100, range(100))]
)
def test_the_deterministic_sampler_calls_the_network_once_per_step(
    small, monkeypatch, steps, times
):
    seen = watched(small, monkeypatch, lambda noisy, t: noisy)
    small.sample_deterministic(torch.zeros(2, 4, 16), steps, generator=seeded(0))
    assert [t for _, t in seen] == sorted(times, reverse=True)


def test_the_deterministic_sampler_draws_its_start_and_no_more(small):
    tokens, generator = torch.randn(2, 4, 16), seeded(3)
    first = small.sample_deterministic(tokens, generator=generator)
    torch.manual_seed(9)
    assert torch.equal(first, small.sample_deterministic(tokens, generator=seeded(3)))
    assert not torch.equal(first, small.sample_deterministic(tokens, generator=seeded(4)))
    drawn = seeded(3)
    torch.randn(2, 4, 16, generator=drawn)
    assert torch.equal(generator.get_state(), drawn.get_state())


def test_guidance_reaches_both_samplers(small):
    tokens = torch.randn(2, 4, 16)
    for sample in (small.sample, small.sample_deterministic):
        plain, guided = (
            sample(tokens, 5, generator=seeded(0), guidance_scale=scale) for scale in (1.0, 3.0)
        )
        assert not torch.allclose(plain, guided)


def test_knowing_the_truth_the_deterministic_sampler_walks_straight_to_it(small, monkeypatch):
    truth, schedule = torch.randn(2, 4, 16), small.noise_scheduler
    seen = watched(small, monkeypatch, lambda noisy, t: truth)
    assert torch.equal(small.sample_deterministic(truth, 7, generator=seeded(0)), truth)
    start, t = seen[0]
    signal, spread = schedule.sqrt_alphas_cumprod[t], schedule.sqrt_one_minus_alphas_cumprod[t]
    noise = (start - signal * truth) / spread
    for noisy, t in seen:
        expected = schedule.add_noise(truth, torch.full((2,), t), noise)
        torch.testing.assert_close(noisy, expected, atol=1e-5, rtol=1e-5)


def test_many_deterministic_steps_turn_noise_into_data_of_the_right_width(small, monkeypatch):
    width, kept = 0.3, small.noise_scheduler.alphas_cumprod

    def best_guess(noisy, t):  # of data that is normal with that width
        return kept[t].sqrt() * width**2 * noisy / (kept[t] * width**2 + 1 - kept[t])

    seen = watched(small, monkeypatch, best_guess)
    errors = []
    for steps in (5, 20, 100):
        seen.clear()
        made = small.sample_deterministic(torch.zeros(2, 4, 16), steps, generator=seeded(0))
        errors.append(((made - width * seen[0][0]).norm() / (width * seen[0][0]).norm()).item())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.03


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


def test_the_loss_hides_conditions_also_where_nothing_is_trained(small):
    tokens, image_tokens = torch.randn(2, 200, 4, 16)
    assert not small.training
    as_it_is, some, none = (
        small.loss(tokens, image_tokens, generator=seeded(0), **how)
        for how in ({}, {"drop": 0.2}, {"drop": 0.0})
    )
    assert torch.equal(as_it_is, some) and not torch.equal(as_it_is, none)


def test_only_the_norm_after_attention_has_the_larger_eps(small):
    named = dict(small.named_modules())
    norms = {name: m.eps for name, m in named.items() if isinstance(m, LayerNorm)}
    after_attention = {name for name, eps in norms.items() if eps == 1e-3}
    assert after_attention == {name for name in norms if name.endswith(".to_out.1")}
    assert len(after_attention) == 2 and {*norms.values()} == {1e-3, 1e-5}
    narrow = torch.full((1, 16), 0.0).index_fill(1, torch.tensor([0]), 0.1)  # variance near eps
    centered = narrow - narrow.mean()
    name = after_attention.pop()
    expected = centered / (narrow.var(correction=0) + 1e-3).sqrt() * named[name].g
    torch.testing.assert_close(named[name](narrow), expected)


def test_the_last_norm_divides_by_the_largest_number_and_its_sign(small):
    by_maximum = [m for m in small.modules() if isinstance(m, LayerNorm) and m.by_maximum]
    assert by_maximum == [small.net.causal_transformer.norm]
    below_zero = -torch.rand(3, 16) - 0.5
    plain = LayerNorm(16)
    expected = plain(below_zero / below_zero.amax(-1, keepdim=True))
    torch.testing.assert_close(by_maximum[0](below_zero), expected)
    assert torch.equal(expected.sign(), -plain(below_zero).sign()), "the sign goes over"


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


def test_times_are_embedded_in_full_precision_whatever_they_come_in():
    embed, times = SinusoidalEmbedding(64), torch.arange(100)
    half = embed(times.bfloat16())
    assert half.dtype == torch.bfloat16 and torch.equal(half, embed(times.float()).bfloat16())


def test_too_many_or_too_few_steps_are_refused(small):
    with pytest.raises(ValueError, match="^num_inference_steps must be 2 to 100, got 101$"):
        small.sample(torch.randn(1, 4, 16), 101, generator=seeded(0))
    with pytest.raises(ValueError, match="^num_inference_steps must be 1 to 100, got 0$"):
        small.sample_deterministic(torch.randn(1, 4, 16), 0, generator=seeded(0))
