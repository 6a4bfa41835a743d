"""The losses keep the promises that notebook 03 makes of them. (Numbers: test_released.py.)"""

import pytest
import torch
import torch.nn.functional as F

from mindeye2_lite.losses import (
    Mix,
    ReleasedMix,
    bimixco_loss,
    draw_mix,
    mixco,
    soft_clip_loss,
    soft_clip_temperatures,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def embeddings() -> torch.Tensor:
    return F.normalize(torch.randn(2, 8, 16, generator=seeded()), dim=-1)


def test_a_single_soft_clip_epoch_has_the_first_temperature():
    torch.testing.assert_close(soft_clip_temperatures(1), torch.tensor([0.004]))


def test_bimixco_without_mixing_is_the_clip_loss(embeddings):
    brain, image = embeddings
    alone = Mix(partner=torch.arange(8), share=torch.ones(8))
    logits = brain @ image.T / 0.1
    forth, back = (F.cross_entropy(x, torch.arange(8)) for x in (logits, logits.T))
    torch.testing.assert_close(bimixco_loss(brain, image, alone, 0.1), (forth + back) / 2)


def test_a_trial_mixed_with_itself_counts_as_unmixed(embeddings):
    brain, image = embeddings
    itself = Mix(partner=torch.arange(8), share=torch.full((8,), 0.3))
    alone = Mix(partner=torch.arange(8), share=torch.ones(8))
    losses = [bimixco_loss(brain, image, mix, 0.1) for mix in (itself, alone)]
    torch.testing.assert_close(*losses)


def test_every_row_of_the_target_sums_to_one():
    mix = draw_mix(50, generator=seeded())
    torch.testing.assert_close(mix.target().sum(dim=1), torch.ones(50))


def test_joined_mixes_keep_every_subject_s_partners_in_its_own_batch():
    mixes = [draw_mix(6, generator=seeded(s)) for s in range(3)]
    joined = Mix.join(mixes)
    target = joined.target()
    assert torch.equal(joined.partner // 6, torch.arange(18) // 6)
    assert torch.equal(target, torch.block_diag(*(mix.target() for mix in mixes)))


def test_soft_clip_is_least_when_brain_equals_image(embeddings):
    brain, image = embeddings
    assert soft_clip_loss(image, image, 0.1) < soft_clip_loss(brain, image, 0.1)


def test_released_partners_point_at_the_first_subject_and_a_trial_alone_can_lose_its_target():
    mixes = [Mix(torch.tensor([1, 0]), torch.tensor([0.3, 1.0])) for _ in range(2)]
    expected = torch.tensor([[0.3, 0.7, 0, 0], [0, 1, 0, 0], [0, 0.7, 0.3, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(ReleasedMix.join(mixes).target(), expected)
    itself = ReleasedMix(torch.tensor([0, 1]), torch.tensor([1.0, 0.3]))
    torch.testing.assert_close(itself.target(), torch.tensor([[0.0, 0], [0, 0.7]]))


def test_mixco_leaves_its_input_alone():
    voxels = torch.randn(64, 10, generator=seeded())
    before = voxels.clone()
    mixed, mix = mixco(voxels, generator=seeded())
    assert torch.equal(voxels, before)
    assert torch.equal(mixed[mix.share == 1], voxels[mix.share == 1])
    assert 0.2 < (mix.share < 1).float().mean() < 0.8


def test_mixing_follows_its_generator_alone():
    first = draw_mix(64, generator=seeded(4))
    torch.manual_seed(9)
    second = draw_mix(64, generator=seeded(4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_losses_are_float32_under_mixed_precision(embeddings):
    brain, image = embeddings
    exact = soft_clip_loss(brain, image, 0.006)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = soft_clip_loss(brain, image, 0.006)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(exact, under_autocast)
