"""From the shared latent to CLIP image tokens: what decoding, retrieval and blurry picture share.

The paper describes four residual MLP blocks. The released code, which made the published numbers,
mixes over a sequence of length one, where its blocks come down to four constants: from voxels to
tokens the published model is linear. Both are here under one set of names. Read with notebooks 02
and 03, and book/differences.md, "backbone".

    latent     (batch, hidden)          hidden = 4096
    tokens     (batch, tokens, dim)     256 x 1664, condition the prior
    retrieval  (batch, tokens, dim)     the same after a projector, compared with CLIP's tokens
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mindeye2_lite.low_level import GRID_CHANNELS, WIDTHS, Upsampler, features_projector

KINDS = ("released", "residual")
DROPOUT, LOW_LEVEL_DROPOUT = 0.15, 0.3


class Output(NamedTuple):
    """What the brain says, per trial. Without a low-level head the last two are None."""

    tokens: Float[Tensor, "batch tokens dim"]
    retrieval: Float[Tensor, "batch tokens dim"]
    low_level: Float[Tensor, "batch 4 size size"] | None = None
    low_level_features: Float[Tensor, "batch places aux_dim"] | None = None


class Backbone(nn.Module):
    """Blocks, one very wide linear layer out to CLIP tokens, a retrieval head, a low-level head.

    Attribute names follow the released checkpoints; class names are ours. `kind="released"`
    computes what the released code computes (see `_released`); its mixers over
    the latent are kept, frozen and unused, so that checkpoints load and export unchanged.
    `kind="residual"` runs those mixers as the residual MLP blocks of paper 2.1.
    """

    def __init__(
        self,
        hidden: int,
        tokens: int,
        dim: int,
        *,
        kind: str = "released",
        blocks: int = 4,
        latent_size: int | None = None,
        aux_dim: int = 512,
        widths: tuple[int, int, int] = WIDTHS,
    ):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"backbone {kind!r} is unknown: choose one of {', '.join(KINDS)}")
        self.kind, self.tokens = kind, tokens
        self.mixer_blocks1 = nn.ModuleList(_mixer(hidden) for _ in range(blocks))
        if kind == "released":
            self.mixer_blocks1.requires_grad_(False)  # they never reach the output
            self.mixer_blocks2 = nn.ModuleList(_mixer(1) for _ in range(blocks))
            for mixer in self.mixer_blocks2:
                mixer[0].weight.requires_grad_(False)  # multiplies x − mean(x) = 0
        self.backbone_linear = nn.Linear(hidden, tokens * dim)
        self.clip_proj = _projector(dim)
        if latent_size is not None:
            self._add_low_level_head(hidden, latent_size, aux_dim, widths)

    def _add_low_level_head(
        self, hidden: int, latent_size: int, aux_dim: int, widths: tuple[int, int, int]
    ) -> None:
        if latent_size % 4:
            raise ValueError(f"latent_size must be a multiple of 4, got {latent_size}")
        self.blin1 = nn.Linear(hidden, GRID_CHANNELS * (latent_size // 4) ** 2)
        self.bdropout = nn.Dropout(LOW_LEVEL_DROPOUT)
        self.bnorm = nn.GroupNorm(1, GRID_CHANNELS)
        self.bupsampler = Upsampler(GRID_CHANNELS, 4, widths)
        self.b_maps_projector = features_projector(aux_dim)

    def forward(self, latent: Float[Tensor, "batch hidden"]) -> Output:
        """The released forward pass, or the paper's, without looping over inert parts."""
        latent = self._released(latent) if self.kind == "released" else self._residual(latent)
        tokens = self.backbone_linear(latent).unflatten(-1, (self.tokens, -1))
        return Output(tokens, self.clip_proj(tokens), *self.low_level(latent))

    def _residual(self, latent: Tensor) -> Tensor:
        for mixer in self.mixer_blocks1:
            latent = latent + mixer(latent)
        return latent

    def _released(self, latent: Tensor) -> Tensor:
        """latent + Σ_i c_i.

        While training, dropout reaches each hidden unit on its own, as in the released code, so
        that a unit now and then gets b₃ in place of c_i: a little noise of two values.
        """
        for mixer in self.mixer_blocks2:
            latent = latent + _constant(latent, *mixer, training=self.training)
        return latent

    def low_level(
        self, latent: Float[Tensor, "batch hidden"]
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """The VAE latent of the blurry picture and features for the auxiliary loss."""
        if not hasattr(self, "blin1"):
            return None, None
        side = math.isqrt(self.blin1.out_features // GRID_CHANNELS)
        grid = self.bdropout(self.blin1(latent)).unflatten(1, (GRID_CHANNELS, side, side))
        grid = self.bnorm(grid)
        return self.bupsampler(grid), self.b_maps_projector(grid).flatten(2).mT

    def constants(self) -> Float[Tensor, " blocks"]:
        """The c_i that the released blocks come down to when nothing is dropped."""
        none = torch.zeros(1, 1, device=self.backbone_linear.weight.device)
        one_by_one = [_constant(none, *mixer, training=False) for mixer in self.mixer_blocks2]
        return torch.cat(one_by_one).flatten()


def _constant(latent: Tensor, norm: nn.LayerNorm, mlp: nn.Sequential, training: bool) -> Tensor:
    """c = w₃ · GELU(w₀ · β + b₀) + b₃ for every hidden unit: a LayerNorm of one number is its β."""
    inner = F.gelu(norm.bias * mlp[0].weight[0] + mlp[0].bias)
    return F.dropout(inner.expand_as(latent), DROPOUT, training) * mlp[3].weight[0] + mlp[3].bias


def _mixer(width: int) -> nn.Sequential:
    """LayerNorm, then an MLP; parameter names end in 0, 1.0 and 1.3."""
    mlp = (nn.Linear(width, width), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(width, width))
    return nn.Sequential(nn.LayerNorm(width), nn.Sequential(*mlp))


def _projector(width: int) -> nn.Sequential:
    three = [(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)) for _ in range(3)]
    return nn.Sequential(*(layer for layers in three for layer in layers))
