"""Figures. One palette, one type size, one way to lay out reconstructions.

Every function returns a Figure and takes a `note` (who was measured: "synthetic cohort, miniature
model"), set small in the corner. Scores are anything with `value`, `low`, `high` (and `chance`,
`n`), so nothing here imports the package, and only notebooks import this.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from torch import Tensor

# Okabe and Ito's eight colors stay apart for the common kinds of color blindness. A stage of the
# model has the same color in every figure of the book. Refinement, which starts from what unCLIP
# made, is a darker green; metrics and chance are gray.
STAGE = {
    "voxels": "#000000",
    "data": "#000000",
    "ridge": "#56B4E9",
    "backbone": "#0072B2",
    "retrieval": "#E69F00",
    "prior": "#D55E00",
    "low-level": "#F0E442",
    "unclip": "#009E73",
    "captions": "#CC79A7",
    "refine": "#00664B",
    "metrics": "#4D4D4D",
    "chance": "#7F7F7F",
}
SEQUENTIAL, DIVERGING = "cividis", "PuOr_r"
# for people, seeds and starts: told apart by label and marker first, by color second
ORDER = tuple(STAGE[s] for s in ("backbone", "prior", "unclip", "captions", "retrieval", "ridge"))
MARKERS = ("o", "s", "D", "^", "v", "P")
Numbers = Any  # a list, array or tensor of numbers
WIDTH = 7.2  # inches: what the book's column shows without shrinking the type

# The map: where each stage stands (column, row), its name, and what it hands on.
MAP = {
    "data": (0, 1.5, "voxels", "betas"),
    "ridge": (1, 1.5, "ridge", "per subject"),
    "backbone": (2, 1.5, "backbone", "tokens"),
    "retrieval": (3, 3, "retrieval", "which picture?"),
    "prior": (3, 1.5, "prior", "image tokens"),
    "low-level": (3, 0, "low level", "blurry picture"),
    "unclip": (4, 2.05, "unCLIP", "reconstruction"),
    "captions": (4, 0.95, "captions", "a sentence"),
    "refine": (5, 1.5, "refine", "refined picture"),
    "metrics": (6, 1.5, "metrics", "scores"),
}
HALF_WIDTH, HALF_HEIGHT = 0.4, 0.38  # of a box of the map, in columns and rows
ARROWS = (
    ("data", "ridge"), ("ridge", "backbone"),
    ("backbone", "retrieval"), ("backbone", "prior"), ("backbone", "low-level"),
    ("prior", "unclip"), ("prior", "captions"),
    ("unclip", "refine"), ("captions", "refine"), ("low-level", "refine"),
    ("refine", "metrics"), ("retrieval", "metrics"),
)  # fmt: skip


def use_style() -> None:
    """Set matplotlib up for the book. Every notebook calls this once, in its setup cell."""
    plt.rcParams.update(
        {
            "figure.dpi": 120,
            "figure.figsize": (6.0, 3.2),
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "image.cmap": SEQUENTIAL,
        }
    )


# --- the map


def pipeline_map(stage: str | Sequence[str] = (), *, note: str = "") -> Figure:
    """The whole of MindEye2 on one line, with the stage of this notebook lit.

    `stage` is one or several of data, ridge, backbone, retrieval, prior, low-level, unclip,
    captions, refine, metrics; none lit if empty. ValueError names them if it is none of these.
    """
    lit = [stage] if isinstance(stage, str) else list(stage)
    if unknown := [s for s in lit if s not in MAP]:
        raise ValueError(f"stage {unknown[0]!r} is not on the map: choose from {', '.join(MAP)}")
    fig = plt.figure(figsize=(WIDTH + 0.4, 2.5), layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-0.46, 6.46), ylim=(-0.62, 3.52))
    ax.axis("off")
    for start, end in ARROWS:
        _map_arrow(ax, start, end, strong=start in lit or end in lit)
    for name in MAP:
        _map_box(ax, name, lit=name in lit or not lit)
    if note:
        fig.text(0.99, 0.02, note, ha="right", va="bottom", fontsize=6.5, color=STAGE["chance"])
    return fig


def _map_box(ax: Axes, stage: str, *, lit: bool) -> None:
    x, y, name, product = MAP[stage]
    color = STAGE[stage]
    if stage == "ridge":  # one map per person: a deck of cards
        for k in (2, 1):
            face = _pale(color, 0.55 if lit else 0.14)
            _card(ax, x, y + 0.11 * k, HALF_WIDTH - 0.04 * k, face, _pale(color, 0.4))
    face, edge = (color, color) if lit else (_pale(color, 0.14), _pale(color, 0.4))
    _card(ax, x, y, HALF_WIDTH, face, edge)
    ink = "#333333" if not lit else "white" if _is_dark(color) else "black"
    ax.text(x, y + 0.13, name, color=ink, ha="center", va="center", weight="bold", size=9)
    ax.text(x, y - 0.18, product, color=ink, ha="center", va="center", size=7.2)


def _card(ax: Axes, x: Any, y: Any, half: Any, face: Any, edge: Any) -> None:
    corner, size = (x - half, y - HALF_HEIGHT), (2 * half, 2 * HALF_HEIGHT)
    shape = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch(corner, *size, shape, fc=face, ec=edge, lw=0.8, zorder=2))


def _map_arrow(ax: Axes, start: str, end: str, *, strong: bool) -> None:
    (x0, y0), (x1, y1) = MAP[start][:2], MAP[end][:2]
    up = np.sign(y1 - y0)
    if abs(y1 - y0) < 1:  # leave and arrive level, with a bend where the rows differ
        a, b = (x0 + HALF_WIDTH + 0.01, y0), (x1 - HALF_WIDTH - 0.02, y1)
        route = [a, ((a[0] + b[0]) / 2, y0), (a[0], y1), b]
    elif start == "backbone":  # out of the top or the bottom, then across
        a, b = (x0, y0 + up * (HALF_HEIGHT + 0.02)), (x1 - HALF_WIDTH - 0.02, y1)
        route = [a, (x0, y1), (x0, y1), b]
    else:  # across, then in from above or below
        a, b = (x0 + HALF_WIDTH + 0.01, y0), (x1, y1 - up * (HALF_HEIGHT + 0.03))
        route = [a, (x1, y0), (x1, y0), b]
    path = _rounded(route) if abs(y1 - y0) >= 1 else Path(route, [1, 4, 4, 4])
    ink, width = ("#333333", 1.5) if strong else ("#B0B0B0", 1.1)
    head = "-|>,head_width=2.2,head_length=3.6"
    ax.add_patch(FancyArrowPatch(path=path, arrowstyle=head, color=ink, lw=width, zorder=1))


def _rounded(route: list[tuple[Any, Any]]) -> Path:
    a, corner, _, b = (np.array(point, dtype=float) for point in route)
    before = corner + 0.15 * (a - corner) / np.abs(a - corner).sum()
    after = corner + 0.15 * (b - corner) / np.abs(b - corner).sum()
    return Path([a, before, corner, after, b], [1, 2, 3, 3, 2])


# --- pictures


def reconstruction_grid(
    rows: Mapping[str, Tensor],
    *,
    scores: Numbers = (),
    score_name: str = "CLIP",
    captions: Sequence[str] = (),
    note: str = "",
) -> Figure:
    """Rows are stages, columns are test images: {"seen": x, "blurry": b, "reconstruction": r, ...}.

    Every value is (images, 3, height, width) in [0, 1]. Scores, if given, go under the last row,
    and captions, one per column, below them.
    """
    n = len(next(iter(rows.values())))
    size = min(1.0, (WIDTH - 1.1) / n)
    under = 0.2 * bool(len(scores)) + 0.13 * max([_lines(c, size) for c in captions], default=0)
    shape = (1.1 + size * n, size * len(rows) + under + 0.15)
    fig, axes = _pictures(len(rows), n, shape)
    for line, (name, batch) in zip(axes, rows.items(), strict=True):
        for ax, picture in zip(line, _to_numpy(batch), strict=True):
            _picture(ax, picture)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
    for col, ax in enumerate(axes[-1]):
        text = [f"{score_name} {scores[col]:.2f}"] if len(scores) else []
        text += [_wrapped(captions[col], size)] if len(captions) else []
        ax.set_xlabel("\n".join(text), fontsize=6.5 if len(captions) else 8, linespacing=1.25)
    return _signed(fig, note)


def image_row(images: Tensor, titles: Sequence[str] = (), *, note: str = "") -> Figure:
    """Pictures (images, 3, height, width) in [0, 1] side by side, each under its title."""
    n = len(images)
    size = min(1.5, WIDTH / n)
    wrapped = [_wrapped(t, size, 7.5) for t in titles]
    above = 0.15 * max([t.count("\n") + 1 for t in wrapped], default=0)
    shape = (size * n, size + above + 0.1)
    fig, axes = _pictures(1, n, shape)
    for col, (ax, picture) in enumerate(zip(axes[0], _to_numpy(images), strict=True)):
        _picture(ax, picture)
        if wrapped:
            ax.set_title(wrapped[col], fontsize=7.5, loc="center", pad=3)
    return _signed(fig, note)


def denoising_strip(rows: Mapping[str, Tensor], times: Numbers = (), *, note: str = "") -> Figure:
    """Rows of pictures over time: {"what the network sees": (steps, 3, height, width), ...}.

    `times` labels the columns (steps, noise levels); words below say which way time goes.
    """
    steps = len(next(iter(rows.values())))
    size = min(1.0, (WIDTH - 1.1) / steps)
    shape = (1.1 + size * steps, size * len(rows) + 0.45)
    fig, axes = _pictures(len(rows), steps, shape)
    for line, (name, batch) in zip(axes, rows.items(), strict=True):
        for ax, picture in zip(line, _to_numpy(batch), strict=True):
            _picture(ax, picture)
        line[0].set_ylabel(textwrap.fill(name, 14), rotation=0, ha="right", va="center", labelpad=6)
    for ax, time in zip(axes[0], times, strict=False):
        ax.set_title(str(time), fontsize=7.5, loc="center", pad=3)
    axes[-1, 0].set_xlabel("noise", fontsize=8, color=STAGE["chance"])
    axes[-1, -1].set_xlabel("picture", fontsize=8, color=STAGE["chance"])
    return _signed(fig, note)


def slices(
    volume: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    axis: int = 2,
    count: int = 6,
    label: str = "",
    note: str = "",
) -> Figure:
    """Slices through a volume (x, y, z) in gray, with the mask's voxels (or values) over them.

    A mask of booleans is filled; one of numbers is drawn in the sequential map where it is not 0
    or NaN, with a color bar named `label`.
    """
    inside = volume > volume.mean() if mask is None else np.nan_to_num(mask) != 0
    where = np.flatnonzero(inside.any(axis=tuple(i for i in range(3) if i != axis)))
    picks = where[np.linspace(0, len(where) - 1, min(count, len(where))).round().astype(int)]
    depth, width = (n for i, n in reversed(list(enumerate(volume.shape))) if i != axis)
    bar = 0.7 if label else 0.0
    height = (WIDTH - bar) / len(picks) * depth / width + 0.5
    fig, axes = _pictures(1, len(picks), (WIDTH, height))
    drawn = None
    for ax, index in zip(axes[0], picks.tolist(), strict=True):
        ax.imshow(volume.take(index, axis).T, cmap="gray", origin="lower", interpolation="nearest")
        ax.set_title(f"{'xyz'[axis]} = {index}", fontsize=7.5, loc="center", pad=3)
        ax.axis("off")
        if mask is not None:
            drawn = _overlay(ax, mask, index, axis)
    if label and drawn is not None and mask.dtype != bool:
        fig.colorbar(drawn, ax=axes, label=label, shrink=0.9, aspect=12)
    return _signed(fig, note)


def _overlay(ax: Axes, mask: np.ndarray, index: int, axis: int) -> Any:
    values = np.nan_to_num(np.asarray(mask, dtype=float))
    over = np.ma.masked_equal(values.take(index, axis).T, 0)
    look = {"origin": "lower", "interpolation": "nearest", "alpha": 0.85}
    if mask.dtype == bool:
        # orange on gray stays visible in print; yellow and blue do not
        return ax.imshow(over, cmap=ListedColormap([STAGE["retrieval"]]), **look)
    low, high = values[values != 0].min(), values.max()
    return ax.imshow(over, cmap=SEQUENTIAL, vmin=low, vmax=high, **look)


# --- scores


def score_figure(
    systems: Mapping[str, Mapping[str, Any]],
    *,
    chance: Mapping[str, Any] | None = None,
    columns: int = 5,
    note: str = "",
) -> Figure:
    """One panel per metric, one dot per system with its 95% interval; chance is dashed.

    `systems` is {"refined": {"PixCorr": score, ...}, ...}, scores with `value`, `low`, `high` or
    tuples in that order. Chance is each score's own, since a system can have its own (captions,
    distances), or by metric the one given in `chance`. n goes into the corner.
    """
    metrics = list(dict.fromkeys(metric for scores in systems.values() for metric in scores))
    columns = min(columns, len(metrics))
    lines = -(-len(metrics) // columns)
    height = (0.62 + 0.2 * len(systems)) * lines + 0.25
    shape = (WIDTH, height)
    fig, axes = plt.subplots(lines, columns, figsize=shape, squeeze=False, layout="constrained")
    for ax, metric in zip(axes.flat, metrics, strict=False):
        _score_panel(ax, metric, systems, (chance or {}).get(metric))
        ax.set_yticks(range(len(systems)), systems if ax in axes[:, 0] else [""] * len(systems))
    for ax in axes.flat[len(metrics) :]:
        ax.axis("off")
    return _signed(fig, "; ".join(filter(None, [_counted(systems), note])))


def _score_panel(ax: Axes, metric: str, systems: Mapping[str, Any], chance: Any) -> None:
    arrow = "↑"
    for row, scores in enumerate(systems.values()):
        if metric not in scores:
            continue
        score = scores[metric]
        value, low, high = _triple(score)
        arrow = "↓" if getattr(score, "better", "higher") == "lower" else arrow
        color = ORDER[row % len(ORDER)]
        ax.hlines(row, low, high, color=color, lw=1.4)
        ax.plot(value, row, MARKERS[row % len(MARKERS)], color=color, ms=4.5, mec="white", mew=0.6)
        own = getattr(score, "chance", None) if chance is None else chance
        if own is not None:  # rows of one chance join into one line
            look = {"color": STAGE["chance"], "ls": (0, (3, 2)), "lw": 1, "zorder": 0}
            ax.vlines(own, row - 0.5, row + 0.5, **look)
    ax.set(title=f"{_spoken(metric)} {arrow}", ylim=(len(systems) - 0.5, -0.5))
    ax.margins(x=0.12)
    ax.tick_params(axis="both", labelsize=7.5, length=2)
    ax.xaxis.set_major_locator(plt.MaxNLocator(3, steps=[1, 2, 5, 10]))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def sessions_curve(
    starts: Mapping[str, Mapping[int, Numbers]],
    *,
    chance: Any = None,
    ylabel: str = "score",
    n: int | None = None,
    note: str = "",
) -> Figure:
    """Score against sessions of scanning: {"pretrained": {1: [one per seed], 40: [...]}, ...}.

    Small dots are seeds, lines join their means, and bars are 95% intervals over seeds (Student's
    t, so none for a single seed), which end at zero where no seed is below it. Seeds are numbers
    or scores with a `value`.
    """
    fig, ax = plt.subplots(figsize=(6.0, 3.2), layout="constrained")
    ticks = sorted({k for by_session in starts.values() for k in by_session})
    apart = 0.04 * np.log(max(ticks) / min(ticks) if len(ticks) > 1 else 2)  # on the log axis
    for place, (name, by_session) in enumerate(starts.items()):
        shift = (place - (len(starts) - 1) / 2) * apart
        _start(ax, place, name, by_session, np.exp(shift), np.exp(shift + 0.6 * apart))
    if chance is not None:
        ax.axhline(chance, color=STAGE["chance"], ls=(0, (3, 2)), lw=1, zorder=0)
        look = {"ha": "right", "va": "bottom", "fontsize": 7.5, "color": STAGE["chance"]}
        ax.text(1, chance, "chance", transform=ax.get_yaxis_transform(), **look)
    ax.set(xscale="log", xlabel="sessions of scanning (one hour each)", ylabel=ylabel)
    ax.set_xticks(ticks, [str(k) for k in ticks])
    ax.xaxis.set_minor_locator(plt.NullLocator())
    ax.margins(x=0.08)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8)  # clear of the bars
    return _signed(fig, "; ".join(filter(None, [f"n = {n} pictures" if n else "", note])))


def _start(
    ax: Axes, place: int, name: str, by_session: Mapping[int, Any], shift: Any, beside: Any
) -> None:
    from scipy import stats  # half a second for which no other figure needs to wait

    color, marker = ORDER[place % len(ORDER)], MARKERS[place % len(MARKERS)]
    sessions = sorted(by_session)
    seeds = [np.array([_triple(v)[0] for v in by_session[k]]) for k in sessions]
    middle = [v.mean() for v in seeds]
    x = [k * shift for k in sessions]
    look = {"marker": marker, "ms": 5.5, "mec": "white", "mew": 0.7, "zorder": 3}
    ax.plot(x, middle, color=color, label=name, **look)
    for at, values, mean in zip(x, seeds, middle, strict=True):
        dots = [at / shift * beside] * len(values)  # where the mean's marker hides none
        ax.plot(dots, values, "o", color=color, ms=3, alpha=0.6, mew=0, zorder=4)
        if len(values) > 1:
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
            low = max(mean - half, 0 if values.min() >= 0 else -np.inf)  # no share below nothing
            ax.vlines(at, low, mean + half, color=color, lw=1.2, zorder=2)


def curves(
    history: Mapping[str, Numbers] | Sequence[Mapping[str, Any]],
    *,
    panels: Mapping[str, Sequence[str]] | None = None,
    x: str = "epoch",
    chance: Mapping[str, Any] | None = None,
    marks: Mapping[str, Any] | None = None,
    note: str = "",
) -> Figure:
    """Training curves, one panel per quantity, or per group of them as `panels` says.

    `history` is {"loss": [...], ...} or a list of records; what a record lacks (a score taken every
    tenth epoch) leaves no gap. `marks` are dotted lines over time: {"SoftCLIP begins": 50}.
    """
    columns = _columns(history)
    steps = columns.pop(x, np.arange(max(map(len, columns.values()), default=0), dtype=float))
    panels = panels or {name: [name] for name in columns}
    shape = (min(WIDTH, 1.2 + 2.4 * len(panels)), 2.4)
    fig, axes = plt.subplots(1, len(panels), figsize=shape, squeeze=False, layout="constrained")
    for ax, (title, names) in zip(axes[0], panels.items(), strict=True):
        for place, name in enumerate(names):
            _curve(ax, steps, columns[name], name, ORDER[place % len(ORDER)])
        if title in (chance or {}):
            ax.axhline(chance[title], color=STAGE["chance"], ls=(0, (3, 2)), lw=1, label="chance")
        for label, at in (marks or {}).items():
            ax.axvline(at, color=STAGE["chance"], ls=":", lw=1, label=label)
        ax.set(title=title.replace("_", " "), xlabel=x)
        if len(ax.get_legend_handles_labels()[1]) > 1:
            ax.legend(fontsize=7)
    return _signed(fig, note)


def _curve(ax: Axes, steps: np.ndarray, values: np.ndarray, name: str, color: str) -> None:
    known = np.isfinite(values)
    few = known.sum() <= 20
    label = name.replace("_", " ")
    ax.plot(steps[: len(values)][known], values[known], color=color, label=label,
            marker="o" if few else None, ms=3)  # fmt: skip


# --- embeddings and voxels


def similarity_matrix(
    similarity: Numbers,
    *,
    rows: str = "brain",
    columns: str = "picture",
    label: str = "cosine",
    note: str = "",
) -> Figure:
    """Every row against every column, and how far the diagonal (right pairs) stands out.

    `similarity` is (n, n). The histogram at the right has the right pairs and all the others, each
    as a share of its own.
    """
    matrix = np.asarray(similarity.detach().cpu() if isinstance(similarity, Tensor) else similarity)
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(WIDTH - 0.6, 2.9), width_ratios=(1.15, 1), layout="constrained"
    )
    drawn = left.imshow(matrix, cmap=SEQUENTIAL, interpolation="nearest")
    left.set(xlabel=f"{columns} (n = {len(matrix)})", ylabel=rows)
    left.spines[:].set_visible(False)
    fig.colorbar(drawn, ax=left, label=label, shrink=0.9, aspect=18)
    own = np.eye(len(matrix), dtype=bool)
    bins = np.linspace(matrix.min(), matrix.max(), 31)
    for values, name, color in (
        (matrix[~own], "other pairs", STAGE["chance"]),
        (matrix[own], "right pairs", STAGE["retrieval"]),
    ):
        right.hist(values, bins, weights=np.full(len(values), 1 / len(values)), color=color,
                   alpha=0.75, label=name)  # fmt: skip
    right.set(xlabel=label, ylabel="share of pairs")
    right.xaxis.set_major_locator(plt.MaxNLocator(5, steps=[1, 2, 5, 10]))
    right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)
    return _signed(fig, note)


def token_grid(
    rows: Mapping[str, Numbers], *, dims: int = 64, label: str = "value", note: str = ""
) -> Figure:
    """Token matrices one beside the other on one scale: {"image tokens": (tokens, dim), ...}.

    The first `dims` dimensions are shown; the diverging map is centered on zero and ends at the
    99th percentile, so that one large token does not bleach the others.
    """
    shown = {name: np.asarray(x.detach().cpu().float())[:, :dims] for name, x in rows.items()}
    limit = np.percentile(np.abs(np.concatenate([x.ravel() for x in shown.values()])), 99)
    fig, axes = plt.subplots(
        1, len(shown), figsize=(WIDTH, 1.9), squeeze=False, sharey=True, layout="constrained"
    )
    for ax, (name, values) in zip(axes[0], shown.items(), strict=True):
        drawn = ax.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto",
                          interpolation="nearest")  # fmt: skip
        ax.set(title=name, xlabel=f"dimension (first {values.shape[1]})")
        ax.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("token")
    fig.colorbar(drawn, ax=axes, label=label, aspect=14, extend="both")
    return _signed(fig, note)


def token_map(
    values: Tensor, image: Tensor | None = None, *, label: str = "value", note: str = ""
) -> Figure:
    """One number per token laid out where the token looks: (tokens,) on its square grid.

    With `image` (3, height, width) the picture stands beside it under the grid's lines.
    ValueError if the number of tokens is not a square.
    """
    side = round(len(values) ** 0.5)
    if side**2 != len(values):
        raise ValueError(f"{len(values)} tokens do not fill a square grid")
    panels = 1 if image is None else 2
    fig, axes = _pictures(1, panels, (2.1 * panels + 0.7, 2.2))
    if image is not None:
        _picture(axes[0, 0], _to_numpy(image[None])[0])
        for line in np.arange(1, side) / side:
            axes[0, 0].axhline(line * image.shape[1] - 0.5, color="white", lw=0.8)
            axes[0, 0].axvline(line * image.shape[2] - 0.5, color="white", lw=0.8)
    drawn = axes[0, -1].imshow(
        values.detach().cpu().float().reshape(side, side).numpy(), cmap=SEQUENTIAL
    )
    axes[0, -1].set(xticks=[], yticks=[])
    axes[0, -1].spines[:].set_visible(False)
    fig.colorbar(drawn, ax=axes[0, -1], label=label, shrink=0.85, aspect=14)
    return _signed(fig, note)


def histogram(
    groups: Mapping[str, Numbers],
    *,
    xlabel: str,
    published: Mapping[str, Any] | None = None,
    bins: int = 40,
    note: str = "",
) -> Figure:
    """One small histogram per group (a region, a person) on a common axis, with its median.

    The median is a short line with its number; `published` puts a triangle at the quoted median
    (NSD's own) of a group. Voxel counts stand beside the names.
    """
    arrays = {name: np.asarray(values, dtype=float) for name, values in groups.items()}
    finite = {name: values[np.isfinite(values)] for name, values in arrays.items()}
    pooled = np.concatenate(list(finite.values()))
    edges = np.linspace(*np.percentile(pooled, [0.2, 99.8]), bins + 1)
    shape, lines = (6.0, 0.48 * len(finite) + 0.6), len(finite)
    fig, axes = plt.subplots(
        lines, 1, figsize=shape, squeeze=False, sharex=True, layout="constrained"
    )
    for ax, (name, values) in zip(axes[:, 0], finite.items(), strict=True):
        _distribution(ax, name, values, edges, (published or {}).get(name))
    axes[-1, 0].set_xlabel(xlabel)
    legend = "line: median" + ("; triangle: published" if published else "")
    return _signed(fig, "; ".join(filter(None, [legend, note])))


def _distribution(
    ax: Axes, name: str, values: np.ndarray, edges: np.ndarray, published: Any
) -> None:
    middle = float(np.median(values))
    heights, *_ = ax.hist(values, edges, color=_pale(STAGE["backbone"], 0.55))
    top = max(heights.max(), 1)
    ax.vlines(middle, 0, top, color=STAGE["backbone"], lw=1.6)
    ax.set_ylim(0, 1.4 * top)  # room for the number above the bars
    ax.annotate(
        f"{middle:.2f}", (middle, top), xytext=(0, 2), textcoords="offset points", ha="center",
        fontsize=7.5,
    )  # fmt: skip
    if published is not None:
        ax.plot(published, top * 0.06, "^", color=STAGE["prior"], ms=6, mec="white", clip_on=False)
    ax.set_yticks([])
    ax.set_ylabel(f"{name}\n({len(values)})", rotation=0, ha="right", va="center", fontsize=8)
    ax.spines["left"].set_visible(False)


def bars(
    values: Mapping[str, Any],
    *,
    xlabel: str,
    published: Mapping[str, Any] | None = None,
    digits: int = 2,
    note: str = "",
) -> Figure:
    """Horizontal bars with their numbers (voxels per person, reliability per region).

    `published` sets a triangle at the quoted value of a bar.
    """
    fig, ax = plt.subplots(figsize=(6.0, 0.27 * len(values) + 0.65), layout="constrained")
    names, numbers = list(values), list(values.values())
    ax.barh(names, numbers, color=_pale(STAGE["backbone"], 0.55), height=0.68)
    for row, (name, number) in enumerate(values.items()):
        look = {"xytext": (9, 0), "textcoords": "offset points", "va": "center", "fontsize": 7.5}
        ax.annotate(f"{number:.{digits}f}", (max(number, 0), row), **look)
        if name in (published or {}):
            ax.plot(published[name], row, "^", color=STAGE["prior"], ms=6, mec="white")
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0, labelsize=8)
    ax.margins(x=0.14)
    ax.set_xlabel(xlabel)
    return _signed(fig, "; ".join(filter(None, ["triangle: published" if published else "", note])))


# --- small parts


def _to_numpy(images: Tensor) -> np.ndarray:
    return images.detach().cpu().float().clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _pictures(lines: int, columns: int, shape: tuple[Any, Any]) -> tuple[Figure, np.ndarray]:
    # "compressed" is the constrained layout for axes that keep their aspect
    fig, axes = plt.subplots(lines, columns, figsize=shape, squeeze=False, layout="compressed")
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    return fig, axes


def _picture(ax: Axes, picture: np.ndarray) -> None:
    ax.imshow(picture)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _signed(fig: Figure, note: str) -> Figure:
    if note:
        # a supxlabel has room of its own in the layout, a plain text would lie over the axis
        fig.supxlabel(note, x=0.995, ha="right", fontsize=6.5, color=STAGE["chance"])
    return fig


def _wrapped(text: str, inches: Any, points: float = 6.5) -> str:
    return textwrap.fill(text, max(6, int(inches * 72 / (points * 0.62))))


def _lines(text: str, inches: Any) -> int:
    return _wrapped(text, inches).count("\n") + 1


def _triple(score: Any) -> tuple[Any, ...]:
    if hasattr(score, "value"):
        return score.value, score.low, score.high
    if isinstance(score, Sequence):
        return tuple(score)
    return (float(score),) * 3


def _counted(systems: Mapping[str, Mapping[str, Any]]) -> str:
    scores = [score for by_metric in systems.values() for score in by_metric.values()]
    counts = {score.n for score in scores if hasattr(score, "n")}
    n = f"n = {' or '.join(str(c) for c in sorted(counts))} pictures; " if counts else ""
    return n + "bars: 95% intervals; dashed: chance"


def _columns(history: Any) -> dict[str, np.ndarray]:
    if isinstance(history, Mapping):
        return {name: np.array(values, dtype=float) for name, values in history.items()}
    names = dict.fromkeys(name for record in history for name in record)
    return {name: np.array([_number(record.get(name)) for record in history]) for name in names}


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)


def _spoken(metric: str) -> str:
    return metric.replace("_to_", " → ")


def _pale(color: str, share: float) -> tuple[float, ...]:
    return tuple(1 - share * (1 - part) for part in to_rgb(color))


def _is_dark(color: str) -> bool:
    return float(np.dot(to_rgb(color), (0.299, 0.587, 0.114))) < 0.55
