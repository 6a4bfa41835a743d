"""The low-level head's upsampler is diffusers' VAE decoder, in torch alone."""

import torch

from mindeye2_lite.backbone import Backbone
from mindeye2_lite.low_level import Upsampler


def test_it_has_as_many_parameters_as_the_released_one():
    assert sum(p.numel() for p in Upsampler().parameters()) == 1_750_692


def test_diffusers_decoder_takes_its_weights_and_says_the_same():
    from diffusers.models.autoencoders.vae import Decoder

    torch.manual_seed(0)
    ours = Upsampler().eval()
    theirs = Decoder(64, 4, ("UpDecoderBlock2D",) * 3, (32, 64, 128), layers_per_block=1).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    grid = torch.randn(2, 64, 4, 4)
    torch.testing.assert_close(ours(grid), theirs(grid), atol=1e-5, rtol=1e-4)


def test_the_grid_is_a_quarter_of_the_latent():
    out = Backbone(32, 4, 16, latent_size=16, aux_dim=24)(torch.randn(3, 32))
    assert out.low_level.shape == (3, 4, 16, 16)
    assert out.low_level_features.shape == (3, 16, 24)
