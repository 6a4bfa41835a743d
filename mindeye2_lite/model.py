"""MindEye2 in one object: ridge, backbone with its heads, diffusion prior.

    model = MindEye2.from_config(Config.lite(), num_voxels={2: 892, 3: 952})
    out = model(voxels, subject=2)                  # voxels (batch, voxels), one row per trial
    image_tokens = model.prior.sample(out.tokens, generator=torch.Generator().manual_seed(0))

Names of parameters are those of the released checkpoints, so `from_released` loads them strictly
and `save` writes files that the released code could load. Read with notebook 02.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mindeye2_lite import paths, released
from mindeye2_lite.backbone import Backbone, Output
from mindeye2_lite.config import Config
from mindeye2_lite.low_level import GRID_CHANNELS, WIDTHS
from mindeye2_lite.prior import DiffusionPrior
from mindeye2_lite.ridge import SharedSubjectRidge

__all__ = ["MindEye2", "Output"]


class MindEye2(nn.Module):
    """Voxels of any subject it knows -> tokens, retrieval tokens and low-level latent.

    `latent_size=None` leaves the low-level head out.
    """

    def __init__(
        self,
        num_voxels: Mapping[int, int],
        *,
        hidden: int,
        tokens: int,
        dim: int,
        backbone: str = "released",
        blocks: int = 4,
        latent_size: int | None = None,
        aux_dim: int = 512,
        low_level_widths: tuple[int, int, int] = WIDTHS,
        prior_depth: int = 6,
        prior_dim_head: int = 52,
        timesteps: int = 100,
    ):
        super().__init__()
        head = {"latent_size": latent_size, "aux_dim": aux_dim, "widths": low_level_widths}
        self.ridge = SharedSubjectRidge(num_voxels, hidden)
        self.backbone = Backbone(hidden, tokens, dim, kind=backbone, blocks=blocks, **head)
        self.diffusion_prior = DiffusionPrior(
            tokens, dim, depth=prior_depth, dim_head=prior_dim_head, timesteps=timesteps
        )

    @classmethod
    def from_config(
        cls, config: Config, num_voxels: Mapping[int, int], *, seed: int = 0
    ) -> "MindEye2":
        """A fresh model of the config's sizes; its first weights follow from `seed` alone."""
        with _seeded(seed):
            return cls(
                num_voxels,
                hidden=config.hidden,
                tokens=config.tokens,
                dim=config.dim,
                backbone=config.backbone,
                latent_size=config.latent_size if config.low_level else None,
                aux_dim=config.aux_dim,
                low_level_widths=config.low_level_widths,
                prior_depth=config.prior_depth,
                prior_dim_head=config.prior_dim_head,
            )

    @classmethod
    def from_released(
        cls,
        weights: str | Path | Mapping[str, Any],
        subjects: Sequence[int] | None = None,
    ) -> "MindEye2":
        """A model from a checkpoint's file or state dict; every size is read off the weights.

        `subjects` names the ridge maps in the order they lie in the file; else the names that
        `save` wrote, else their places in the file: 0, 1, … Files without ridge maps (the released
        1024-wide pretraining is too small for seven) give a model that knows nobody yet. Prefixes
        of DDP and torch.compile go. Everything is taken as float32, tensor by tensor, so that
        memory holds the model once. ValueError in one line for anything but such a checkpoint; no
        code of the file runs (see `released`). Official: needs DeepSpeed, and the sizes as flags.
        """
        state, names = released.weights(weights)
        state, places = _without_gaps(state)
        try:
            num_voxels = _named_voxels(state, names or places if subjects is None else subjects)
            sizes = _sizes(state)
        except KeyError as error:
            raise ValueError(f"these are not the weights of a MindEye2: no {error}") from error
        with torch.device("meta"):
            model = cls(num_voxels, **sizes)
        _check_fit(model, state)
        own = {key: _own(value) for key, value in state.items()}
        model.load_state_dict(own, strict=True, assign=True)
        return model

    @classmethod
    def fine_tune_from(
        cls, pretrained: "MindEye2", subject: int, num_voxels: int, *, seed: int = 0
    ) -> "MindEye2":
        """A model for one new subject that starts from what others taught.

        Everything shared is copied, and no ridge map of others. The new one has fresh weights,
        and its bias is the first pretraining subject's: the released code loads all but the first
        map's weight and so inherits it. Kept, as it puts the latent where the backbone expects it.
        """
        hidden = pretrained.backbone.backbone_linear.in_features
        with _seeded(seed):
            ridge = SharedSubjectRidge({subject: num_voxels}, hidden)
        if len(pretrained.ridge.linears):
            with torch.no_grad():
                ridge.linears[0].bias.copy_(pretrained.ridge.linears[0].bias)
        # Told that the old maps are copied already, and what came of it.
        model = copy.deepcopy(pretrained, {id(pretrained.ridge): ridge})
        return model.to(pretrained.backbone.backbone_linear.weight.device)

    def forward(self, voxels: Float[Tensor, "batch voxels"], subject: int) -> Output:
        """Tokens, retrieval tokens, low-level latent and features of every trial."""
        return self.backbone(self.ridge(voxels, subject))

    @property
    def prior(self) -> DiffusionPrior:
        """The diffusion prior: from `Output.tokens` to image tokens."""
        return self.diffusion_prior

    @property
    def subjects(self) -> tuple[int, ...]:
        """The people it has a ridge map for: what `subject` may be."""
        return self.ridge.subjects

    def save(self, path: str | Path) -> Path:
        """Write the weights as safetensors, with the subjects' names, beside and then renamed."""
        from safetensors.torch import save_file

        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        # The rotary frequencies are one tensor under several names, which the format refuses.
        state |= {k: v.clone() for k, v in state.items() if k.endswith("rotary_emb.freqs")}
        with paths.write_beside(Path(path)) as beside:
            save_file(state, beside, metadata={"subjects": json.dumps(self.subjects)})
        return Path(path)


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    layer = "diffusion_prior.net.causal_transformer.layers"
    wide, hidden = state["backbone.backbone_linear.weight"].shape
    dim = len(state["backbone.clip_proj.0.weight"])
    return {
        "hidden": hidden,
        "dim": dim,
        "tokens": wide // dim,
        "backbone": "released" if _count(state, "backbone.mixer_blocks2") else "residual",
        "blocks": _count(state, "backbone.mixer_blocks1"),
        "prior_depth": _count(state, layer),
        "prior_dim_head": state[f"{layer}.0.0.null_kv"].shape[1],
        "timesteps": len(state["diffusion_prior.noise_scheduler.betas"]),
    } | _low_level_sizes(state)


def _low_level_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    if "backbone.blin1.weight" not in state:
        return {}
    side = round((len(state["backbone.blin1.weight"]) / GRID_CHANNELS) ** 0.5)
    upsampler = "backbone.bupsampler"
    ends = ("conv_norm_out.weight", "up_blocks.1.resnets.0.conv1.weight", "conv_in.weight")
    return {
        "latent_size": 4 * side,
        "aux_dim": len(state["backbone.b_maps_projector.6.weight"]),
        "low_level_widths": tuple(len(state[f"{upsampler}.{end}"]) for end in ends),
    }


def _without_gaps(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[int]]:
    """The weights with their ridge maps counted from 0, and the places that they had before."""
    place = re.compile(r"(?<=^ridge\.linears\.)\d+")
    places = sorted({int(found[0]) for key in state if (found := place.search(key))})
    return {
        place.sub(lambda found: str(places.index(int(found[0]))), key): weight
        for key, weight in state.items()
    }, places


def _named_voxels(state: Mapping[str, Tensor], subjects: Sequence[int]) -> dict[int, int]:
    n, subjects = _count(state, "ridge.linears"), list(subjects)
    if len(subjects) != n or subjects != sorted(set(subjects)):
        raise ValueError(
            f"the weights hold {n} ridge maps in ascending order, got subjects {subjects}"
        )
    voxels = [state[f"ridge.linears.{i}.weight"].shape[1] for i in range(n)]
    return dict(zip(subjects, voxels, strict=True))


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered children the state dict has below a name."""
    depth = prefix.count(".") + 1
    return len({key.split(".")[depth] for key in state if key.startswith(prefix + ".")})


def _check_fit(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    ours = {key: value.shape for key, value in model.state_dict().items()}
    theirs = {key: value.shape for key, value in state.items()}
    wrong = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{len(wrong)} weights do not fit a MindEye2 of these sizes, the first is {key}: "
            f"expected {_shape(ours.get(key))}, found {_shape(theirs.get(key))}"
        )


def _shape(shape: torch.Size | None) -> str:
    return "nothing" if shape is None else str(tuple(shape))


def _own(weight: Tensor) -> Tensor:
    """A copy, so that training the model does not change what it was made from."""
    return weight.detach().to(torch.float32, copy=True)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's layers draw their first weights from the global generator: lend them one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
