"""MindEye2 with one thing changed: less data, other people's data, fewer loss terms, other parts.

Every line of the paper's ablations is one call of `fit`, and differs from another line in one word:

    fit(config, root, 1, sessions=10)                              the line to compare with
    fit(config, root, 1, sessions=10, first_layer="mlp")           Table 4, "ME1"
    fit(smaller_clip(config), root, 1, sessions=10)                Table 4, "CLIP L"
    fit(config, root, 1, sessions=10, terms="prior + retrieval")   Table 5
    fit(config, root, 1, sessions=1, start=(2, 5, 7))              Table 10
    fit(config, root, 1, minutes=10)                               Figures 5 to 8

Another backbone is another config: `replace(config, backbone="residual")`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from mindeye2_lite import loop, train
from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2
from mindeye2_lite.ridge import SharedSubjectRidge

TERMS = {  # the paper's words (Table 5) -> terms of loop.SCALES; "retrieval" is the contrastive one
    "all": loop.TERMS,
    "prior": ("prior",),
    "prior + low level": ("prior", "low_level", "aux"),
    "prior + retrieval": ("prior", "contrastive"),
    "retrieval": ("contrastive",),
    "retrieval + low level": ("contrastive", "low_level", "aux"),
}
NEEDS = {"unrefined": "prior", "brain": "contrastive"}  # what can be scored -> the term it needs
MINUTES = (10, 30)  # parts of the first session
SMALLER = {  # encoder -> the smaller CLIP that takes its place, and the decoder of its tokens
    "mini-bigG": {"encoder": "mini-L", "tokens": 17, "dim": 96, "decoder": "mini-vd"},
    "ViT-bigG-14": {
        "encoder": "ViT-L-14", "tokens": 257, "dim": 768, "decoder": "versatile-diffusion",
    },
}  # fmt: skip


class ResidualInput(SharedSubjectRidge):
    """MindEye1's MLP where MindEye2 has a linear map: Linear, then four residual blocks.

    The Linear is the person's own; LayerNorm, GELU and dropout follow it, and every block is
    Linear, LayerNorm, GELU, dropout, added to what came in. (MindEye1 paper 2.1; Table 4, "ME1".)
    """

    def __init__(self, num_voxels: Mapping[int, int], hidden: int):
        super().__init__(num_voxels, hidden)
        self.bend = _bend(hidden, dropout=0.5)
        blocks = (nn.Sequential(nn.Linear(hidden, hidden), _bend(hidden, 0.15)) for _ in range(4))
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self, voxels: Float[Tensor, "batch voxels"], subject: int
    ) -> Float[Tensor, "batch hidden"]:
        """ValueError in one line as of SharedSubjectRidge."""
        latent = self.bend(super().forward(voxels, subject))
        for block in self.blocks:
            latent = latent + block(latent)
        return latent


def _bend(hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout))


FIRST_LAYERS = {"ridge": None, "mlp": ResidualInput}  # None: the model's own


def fit(
    config: Config,
    root: str | Path,
    subject: int,
    *,
    sessions: int | None = None,
    minutes: int | None = None,
    start: tuple[int, ...] | None = None,
    terms: str = "all",
    first_layer: str = "ridge",
    normalize: str = "sessions",
    seed: int = 0,
    progress: bool = True,
) -> MindEye2:
    """A model of one subject, trained as the words say; in eval mode, and kept nowhere.

    `sessions`: the first so many (None: all). `minutes` (10 or 30) instead: of session 1 the first
    trials of all, in time order, as many as fit in; test trials among them are left out. Voxels
    are still scaled by the whole session, so that a little of the rest of the hour is in them.
    `start`: the people that it is pretrained on, with all loss terms (None: from scratch). That
    model is kept, and is the one of `pipeline.tuned` where these are all the others. `terms`: one
    of TERMS. `first_layer`: "ridge", or "mlp" for ResidualInput, from scratch only. ValueError in
    one line for a word, an amount or people that do not fit.
    """
    _known("terms", terms, TERMS)
    _known("first_layer", first_layer, FIRST_LAYERS)
    first = None
    if minutes is not None:
        first, sessions = _first(config, minutes, sessions), 1
    if start is not None and first_layer != "ridge":
        raise ValueError(
            f"first_layer {first_layer!r} is trained from scratch only: pass start=None"
        )
    others = {"seed": seed, "normalize": normalize, "progress": progress}
    begun = None if start is None else pretrained(config, root, subject, start, **others)
    return train.fine_tune(
        config, root, subject, sessions, start=begun, terms=TERMS[terms], first=first,
        first_layer=FIRST_LAYERS[first_layer], **others,
    ).model  # fmt: skip


def pretrained(
    config: Config, root: str | Path, subject: int, people: tuple[int, ...], *, seed: int = 0,
    normalize: str = "sessions", progress: bool = True,
) -> MindEye2:  # fmt: skip
    """A model of these people, none of them the subject: kept from before, or trained now."""
    people = tuple(sorted(set(people)))
    if not people or subject in people:
        raise ValueError(
            f"start is {people or 'nobody'} for subject {subject}: name one or more other people, "
            "or None for training from scratch"
        )
    # As in pipeline.tuned, whose model is shared: all sessions, where "all" is the same.
    how = {} if normalize in ("sessions", "all") else {"normalize": normalize}
    return train.load_or_train(
        "pretrained", config, root, subjects=people, seed=seed, progress=progress, **how
    ).model


def stages(terms: str) -> tuple[str, ...]:
    """What can be scored of a model trained on these terms: "unrefined", "brain" or both.

    No picture without the prior term, and no retrieval without the contrastive one: these parts
    were never trained.
    """
    _known("terms", terms, TERMS)
    return tuple(stage for stage, needed in NEEDS.items() if needed in TERMS[terms])


def smaller_clip(config: Config) -> Config:
    """The config with a smaller CLIP's image tokens as target, and the decoder that takes them.

    CLIP ViT-L/14 and Versatile Diffusion at the paper's size (their loaders are not here), "mini-L"
    and "mini-vd" in miniature. Pictures and retrieval only: captions need the larger one's tokens.
    ValueError for an encoder that has no smaller one.
    """
    _known("encoder", config.encoder, SMALLER)
    return replace(config, **SMALLER[config.encoder])


def _first(config: Config, minutes: int, sessions: int | None) -> int:
    """How many trials are shown in these minutes."""
    if minutes not in MINUTES or sessions not in (None, 1):
        raise ValueError(
            f"minutes={minutes} with sessions={sessions}: minutes are 10 or 30, of session 1 alone"
        )
    return round(minutes / 60 * config.trials_per_session)


def _known(what: str, word: str, words: Mapping[str, object]) -> None:
    if word not in words:
        raise ValueError(f"{what} {word!r} is unknown: choose one of {', '.join(words)}")
