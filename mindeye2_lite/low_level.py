"""The low-level head's two ends: a small VAE-decoder-like upsampler and a feature projector.

From the shared latent the head makes one coarse grid; the upsampler turns it into a latent of the
Stable Diffusion VAE (its decoding is the blurry picture), and the projector into features that an
auxiliary loss compares with those of a frozen convolutional teacher. Read with notebook 05.

    grid       (batch, 64, g, g)           g = 7      a quarter of the VAE latent's side
    low_level  (batch, 4, 4g, 4g)                     28 x 28 for pictures of 224 pixels
    features   (batch, g * g, aux_dim)     aux_dim = 512
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

GRID_CHANNELS = 64
WIDTHS = (32, 64, 128)  # channels at full, half and quarter size
GROUPS, EPS = 32, 1e-6  # of every norm in the upsampler, as in diffusers' VAE


class Upsampler(nn.Module):
    """A VAE decoder's shape at a small size: (batch, 64, g, g) -> (batch, 4, 4g, 4g).

    Official: diffusers' `vae.Decoder` with widths (32, 64, 128). Ours needs torch only and has
    the same names of parameters. Widths must be multiples of 32.
    """

    def __init__(
        self,
        in_channels: int = GRID_CHANNELS,
        out_channels: int = 4,
        widths: tuple[int, int, int] = WIDTHS,
    ):
        super().__init__()
        full, half, quarter = widths
        self.conv_in = _conv3(in_channels, quarter)
        blocks = [(quarter, quarter, True), (quarter, half, True), (half, full, False)]
        self.up_blocks = nn.ModuleList(UpBlock(*block) for block in blocks)
        self.mid_block = MidBlock(quarter)
        self.conv_norm_out = nn.GroupNorm(GROUPS, full, eps=EPS)
        self.conv_out = _conv3(full, out_channels)

    def forward(
        self, grid: Float[Tensor, "batch channels g g"]
    ) -> Float[Tensor, "batch latent_channels size size"]:
        x = self.mid_block(self.conv_in(grid))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class UpBlock(nn.Module):
    """Two residual convolutions, then twice the size where `upsample` says so."""

    def __init__(self, channels: int, out_channels: int, upsample: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(c, out_channels) for c in (channels, out_channels))
        if upsample:
            self.upsamplers = nn.ModuleList([Upsample(out_channels)])

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c2 h2 w2"]:
        for resnet in self.resnets:
            x = resnet(x)
        return self.upsamplers[0](x) if hasattr(self, "upsamplers") else x


class Upsample(nn.Module):
    """Every pixel four times, then a convolution to smooth the steps."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class MidBlock(nn.Module):
    """Residual convolution, attention among all places, residual convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.attentions = nn.ModuleList([SpatialAttention(channels)])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels) for _ in range(2))

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class ResnetBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), with a 1 x 1 shortcut where the width changes."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels, eps=EPS)
        self.conv1 = _conv3(channels, out_channels)
        self.norm2 = nn.GroupNorm(GROUPS, out_channels, eps=EPS)
        self.conv2 = _conv3(out_channels, out_channels)
        if channels != out_channels:
            self.conv_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c2 h w"]:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class SpatialAttention(nn.Module):
    """Single-head attention among the h · w places, added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(GROUPS, channels, eps=EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        places = self.group_norm(x).flatten(2).mT  # (batch, h * w, c)
        q, k, v = self.to_q(places), self.to_k(places), self.to_v(places)
        attended = self.to_out[0](F.scaled_dot_product_attention(q, k, v))
        return x + attended.mT.unflatten(2, x.shape[2:])


def features_projector(aux_dim: int) -> nn.Sequential:
    """1 x 1 convolutions from the grid's 64 channels to the teacher's width."""
    return nn.Sequential(
        nn.Conv2d(GRID_CHANNELS, aux_dim, 1, bias=False),
        nn.GroupNorm(1, aux_dim),
        nn.ReLU(),
        nn.Conv2d(aux_dim, aux_dim, 1, bias=False),
        nn.GroupNorm(1, aux_dim),
        nn.ReLU(),
        nn.Conv2d(aux_dim, aux_dim, 1),
    )


def _conv3(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1)
