"""The `inert-blocks` directive: which parameters of the backbone have a say, computed and drawn.

A backbone with random weights looks at random latents. Then, one after the other, each group of
its parameters is kicked, and what changes in all that the backbone says is written down. "Exactly
zero" means that not one bit of the output changed.

    ```{inert-blocks}
    :alt: What the picture shows, in words.
    ```
"""

import torch
from docutils.parsers.rst import directives
from drawn import blank, node, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sphinx.util.docutils import SphinxDirective

from mindeye2_lite import backbone as backbones
from mindeye2_lite.backbone import Backbone
from mindeye2_lite.viz import ORDER, STAGE

SIZES = {"hidden": 256, "tokens": 16, "dim": 64, "blocks": 4, "latent_size": 8, "aux_dim": 32}
TRIALS, KICK, SEED = 64, 0.1, 0
HEADS = {"clip_proj": "retrieval head"} | dict.fromkeys(
    ("blin1", "bnorm", "bupsampler", "b_maps_projector"), "low-level head"
)
COLOR = dict(zip(backbones.KINDS, ORDER, strict=False))
NOTHING = "0, to the last bit"


def group_of(parameter: str) -> str:
    """What a parameter of that name belongs to, in words."""
    first, second = parameter.split(".")[:2]
    if first.startswith("mixer_blocks"):
        return f"block {int(second) + 1}, {'first' if first.endswith('1') else 'second'} mixer"
    return HEADS.get(first, "linear layer to tokens")


def groups(backbone: Backbone) -> dict[str, list[torch.nn.Parameter]]:
    """The parameters by what they belong to: mixers block by block, the linear layer, the heads."""
    found: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in backbone.named_parameters():
        found.setdefault(group_of(name), []).append(parameter)
    mixers = sorted((n for n in found if "mixer" in n), key=lambda n: ("second" in n, n))
    return {name: found[name] for name in [*mixers, *(n for n in found if n not in mixers)]}


@torch.no_grad()
def changes(kind: str, seed: int = SEED) -> dict[str, float]:
    """By group, how much a kick of a tenth of its norm changes what the backbone says.

    The largest relative change among tokens, retrieval tokens and both low-level outputs; exactly
    0.0 only where every bit of all of them stays.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Backbone(**SIZES, kind=kind).eval()
        latents = torch.randn(TRIALS, SIZES["hidden"])
        before = backbone(latents)
        return {
            name: _change(backbone, latents, before, parameters)
            for name, parameters in groups(backbone).items()
        }


def _change(
    backbone: Backbone,
    latents: torch.Tensor,
    before: backbones.Output,
    parameters: list[torch.nn.Parameter],
) -> float:
    kept = [p.clone() for p in parameters]
    noise = [torch.randn_like(p) for p in parameters]
    size = KICK * _norm(kept) / _norm(noise)
    for p, n in zip(parameters, noise, strict=True):
        p.add_(size * n)
    after = backbone(latents)
    for p, was in zip(parameters, kept, strict=True):
        p.copy_(was)
    return max(((b - a).norm() / a.norm()).item() for a, b in zip(before, after, strict=True))


def _norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors]).norm()


def draw(found: dict[str, dict[str, float]]) -> Figure:
    """Bars per group, a panel per kind of backbone; an exact zero is a word and not a bar."""
    rows = list(max(found.values(), key=len))  # the kind that has all the groups
    with style():
        fig = blank(0.24 * len(rows) + 0.75)
        panels = fig.subplots(1, len(found), sharex=True, sharey=True)
        for ax, (kind, of) in zip(panels, found.items(), strict=True):
            for row, name in enumerate(rows):
                _bar(ax, row, of.get(name), COLOR[kind])
            ax.set_title(f'backbone="{kind}"', color=COLOR[kind], weight="bold")
            ax.set(xlim=(0, 1.06), xticks=[0, 0.5, 1], xticklabels=["0", "50%", "100%"])
        panels[0].set_yticks(range(len(rows)), rows)
        panels[0].invert_yaxis()
        for ax in panels:
            ax.tick_params(axis="y", length=0)
        fig.supxlabel("largest change in anything the backbone says", fontsize=8.5)
    return fig


def _bar(ax: Axes, row: int, value: float | None, color: str) -> None:
    look = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 7.5}
    if not value:
        said = "not there" if value is None else NOTHING
        weight, ink = ("normal", STAGE["chance"]) if value is None else ("bold", color)
        ax.annotate(said, (0, row), color=ink, weight=weight, **look)
        return
    ax.barh(row, value, color=color, height=0.66)
    ax.annotate(f"{100 * value:.2g}%", (value, row), **look)


class InertBlocks(SphinxDirective):
    """Compute and draw the figure, and say with what sizes and seed."""

    option_spec = {"alt": directives.unchanged_required}

    def run(self):
        """The figure with its caption."""
        for file in (__file__, backbones.__file__):
            self.env.note_dependency(file)
        found = {kind: changes(kind) for kind in backbones.KINDS}
        sizes = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in SIZES.items())
        caption = (
            f"Each group of parameters in turn gets random noise of {KICK:.0%} of its norm. Bars: "
            "how much tokens, retrieval tokens and low-level outputs change, in norm, whichever "
            f"changes most. Random weights ({sizes}), {TRIALS} random latents, seed {SEED}; "
            "computed while this page was built."
        )
        alt = self.options.get("alt", "")
        return [node(self, draw(found), "inert_blocks", alt, caption)]


def setup(app):
    """Register the directive."""
    app.add_directive("inert-blocks", InertBlocks)
    return {"parallel_read_safe": True}
