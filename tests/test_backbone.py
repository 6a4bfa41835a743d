"""The published blocks are constants; the paper's blocks work."""

import pytest
import torch

from mindeye2_lite.backbone import Backbone


@pytest.fixture
def released() -> Backbone:
    torch.manual_seed(0)
    return Backbone(32, 4, 16, blocks=3, latent_size=8, aux_dim=24).eval()


def residual() -> Backbone:
    torch.manual_seed(0)
    return Backbone(32, 4, 16, blocks=3, kind="residual").eval()


def test_noise_in_the_released_mixers_of_the_latent_changes_no_bit(released):
    latent = torch.randn(5, 32)
    before = released(latent)
    for parameter in released.mixer_blocks1.parameters():
        parameter.data.normal_()
    assert all(torch.equal(a, b) for a, b in zip(before, released(latent), strict=True))


def test_the_released_blocks_add_their_constants(released):
    latent = torch.randn(5, 32)
    tokens = released.backbone_linear(latent + released.constants().sum()).view(5, 4, 16)
    torch.testing.assert_close(released(latent).tokens, tokens)


def test_the_constants_are_what_the_second_mixers_make_of_any_number(released):
    number = torch.tensor([[123.0]])
    made = torch.cat([mixer(number) for mixer in released.mixer_blocks2]).flatten()
    torch.testing.assert_close(released.constants(), made)


def test_in_training_a_released_block_adds_one_of_two_values_per_unit():
    block = Backbone(1000, 1, 16, blocks=1).train()
    torch.manual_seed(0)
    added = (block._released(torch.zeros(50, 1000))).unique()
    assert len(added) == 2
    assert block.mixer_blocks2[0][1][3].bias.item() in added.tolist()


def test_inert_parameters_are_kept_and_not_trained(released):
    frozen = {name for name, p in released.named_parameters() if not p.requires_grad}
    assert {name for name in frozen if name.startswith("mixer_blocks1")} == {
        f"mixer_blocks1.{n}" for n, _ in released.mixer_blocks1.named_parameters()
    }
    released(torch.randn(5, 32)).retrieval.sum().backward()
    missing = [n for n, p in released.named_parameters() if p.requires_grad and p.grad is None]
    assert all(name.startswith(("blin1", "bnorm", "bupsampler", "b_maps")) for name in missing)


def test_the_residual_blocks_reach_the_output():
    backbone, latent = residual(), torch.randn(5, 32)
    before = backbone(latent).tokens
    backbone.mixer_blocks1[2][1][3].weight.data.normal_()
    assert not torch.allclose(before, backbone(latent).tokens)
    assert all(p.requires_grad for p in backbone.parameters())


def test_residual_blocks_are_not_linear_and_released_ones_are(released):
    a, b = torch.randn(2, 5, 32)

    def bend(backbone):
        f = lambda x: backbone(x).tokens  # noqa: E731
        return (f(a + b) - f(a) - f(b) + f(torch.zeros(5, 32))).abs().max().item()

    assert bend(released) < 1e-5
    assert bend(residual()) > 1e-3


def test_without_a_low_level_head_there_is_no_low_level_output():
    out = residual()(torch.randn(5, 32))
    assert out.low_level is None and out.low_level_features is None


def test_an_unknown_kind_names_the_two_there_are():
    with pytest.raises(ValueError, match="'mlp' is unknown: choose one of released, residual"):
        Backbone(32, 4, 16, kind="mlp")
