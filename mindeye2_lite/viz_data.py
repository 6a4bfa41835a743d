"""Figures of data: what lies in a training layout, and a value per voxel on slices or cortex.

As in `viz`, every function takes plain arrays and returns a Figure; what is not known is left out
of the figure and named below it. Read with notebook 01.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from mindeye2_lite.viz import SEQUENTIAL, STAGE, WIDTH

REGIONS = 10  # how many fit beside each other
SLICES = 6
ONE, THREE = STAGE["ridge"], STAGE["backbone"]  # a showing; three averaged
VIEWS = ("lateral", "medial", "ventral")


def data_report(
    *,
    trials: Sequence[Mapping[str, int]],
    repeats: Mapping[int, int],
    ceilings: Mapping[str, Mapping[int, Sequence]] | None = None,
    drift: Mapping[str, Sequence] | None = None,
    behavior: Sequence[Mapping[str, Any]] | None = None,
    reliability: np.ndarray | None = None,
    position: np.ndarray | None = None,
    shape: Sequence[int] | np.ndarray | None = None,
    unknown: Mapping[str, str] | None = None,
    note: str = "",
) -> Figure:
    """One figure of one person's data, as `inspection.Report.figure()` gives them.

    `trials`: per session {"session", "train", "test"}. `repeats`: showings -> images. Quartiles
    are (lower, median, upper): `ceilings` has them in percent per region and number of showings,
    `drift` per session for "mean" (deviations) and "gain". `reliability` (V,) is drawn on slices
    where `position` (V, 3) and `shape` of the volume are known. `unknown` (what -> why) is listed.
    """
    panels = [lambda ax: _trials(ax, trials), lambda ax: _repeats(ax, repeats)]
    if ceilings:
        panels.append(lambda ax: _ceilings(ax, ceilings))
    if behavior:
        panels.append(lambda ax: _behavior(ax, behavior))
    if drift:
        panels += [lambda ax: _mean(ax, drift["mean"]), lambda ax: _gain(ax, drift["gain"])]
    mapped = reliability is not None and position is not None and shape is not None
    words = _small_print(unknown or {}, note)
    box = np.ptp(position, axis=0) + 3 if mapped else np.zeros(3)
    strip = 0.8 + (WIDTH - 0.9) / SLICES * box[1] / box[0] if mapped else 0.0
    fig, grid, bottom = _sheet(len(panels), strip, words.count("\n") + bool(words))
    axes = list(grid.subplots(-(-len(panels) // 2), 2, squeeze=False).flat)
    for ax, draw in zip(axes, panels, strict=False):
        draw(ax)
    for ax in axes[len(panels) :]:
        ax.axis("off")
    if mapped:
        _map(bottom, np.asarray(reliability), np.asarray(position), tuple(map(int, shape)))
    if words:
        fig.supxlabel(words, x=0.995, ha="right", fontsize=6.5, color=STAGE["chance"])
    return fig


def _sheet(panels: int, strip: Any, lines: int) -> tuple[Figure, SubFigure, SubFigure | None]:
    """The figure, its part for pairs of panels, and below it `strip` inches for slices."""
    upper = 1.75 * -(-panels // 2)
    fig = plt.figure(figsize=(WIDTH, upper + strip + 0.12 * lines), layout="constrained")
    if not strip:
        return fig, fig.subfigures(1, 1), None
    above, below = fig.subfigures(2, 1, height_ratios=(upper, strip))
    return fig, above, below


def _small_print(unknown: Mapping[str, str], note: str) -> str:
    said = "; ".join(f"{what} ({why})" for what, why in unknown.items())
    lines = textwrap.wrap(f"not known: {said}", 112) if said else []
    return "\n".join([*lines, *([note] if note else [])])


# --- panels


def _trials(ax: Axes, trials: Sequence[Mapping[str, int]]) -> None:
    session, train, test = (np.array([t[k] for t in trials]) for k in ("session", "train", "test"))
    ax.bar(session, train, color=THREE, width=0.8, label="training")
    ax.bar(session, test, bottom=train, color=STAGE["retrieval"], width=0.8, label="test")
    ax.set(xlabel="session", ylabel="trials", ylim=(0, 1.3 * (train + test).max()))
    _sessions(ax, session)
    ax.set_title(f"{train.sum():,} trials for training, {test.sum():,} for test")
    ax.legend(fontsize=7, ncols=2, loc="upper right", borderaxespad=0.1)


def _sessions(ax: Axes, session: np.ndarray) -> None:
    """Whole numbers below, and room beside few sessions, so that bars stay bars."""
    spare = max(0.0, (6 - np.ptp(session)) / 2)
    ax.set_xlim(session.min() - 0.6 - spare, session.max() + 0.6 + spare)
    if len(session) <= 6:
        ax.set_xticks(session)
    else:
        ax.xaxis.set_major_locator(plt.MaxNLocator(6, integer=True))


def _repeats(ax: Axes, repeats: Mapping[int, int]) -> None:
    showings, images = list(repeats), list(repeats.values())
    ax.barh(
        [str(n) for n in showings],
        images,
        color=STAGE["chance"],
        height=min(0.7, 0.25 * len(images)),
    )
    for row, number in enumerate(images):
        look = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 7.5}
        ax.annotate(f"{number:,}", (number, row), **look)
    ax.set(xlabel="images", ylabel="times shown", ylim=(len(images) - 0.4, -0.6))
    ax.margins(x=0.18)
    ax.xaxis.set_major_locator(plt.MaxNLocator(4, integer=True))
    often = showings[int(np.argmax(images))]
    each = "each" if len(images) == 1 else "most"
    times = {1: "once", 2: "twice"}.get(often, f"{often} times")
    ax.set_title(f"{sum(images):,} images, {each} shown {times}")


def _ceilings(ax: Axes, ceilings: Mapping[str, Mapping[int, Sequence]]) -> None:
    shown = dict(list(ceilings.items())[:REGIONS])
    top = max(region[3][2] for region in shown.values())  # and room for the legend
    styles = ((1, ONE, "o", -0.15, "one showing"), (3, THREE, "s", 0.15, "three"))
    for n, color, marker, apart, label in styles:
        low, middle, high = np.array([region[n] for region in shown.values()]).T
        rows = np.arange(len(shown)) + apart * (len(shown) > 1)
        ax.hlines(rows, low, high, color=color, lw=1.3)
        ax.plot(middle, rows, marker, color=color, ms=4, mec="white", mew=0.5, label=label)
    ax.set_yticks(range(len(shown)), [name.replace("_", " ") for name in shown], fontsize=7)
    some = f", {len(shown)} of {len(ceilings)} regions" if len(shown) < len(ceilings) else ""
    ax.set(xlabel=f"noise ceiling (%): median, quartiles{some}", xlim=(0, 1.4 * top))
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    whole = next(iter(shown.values()))
    ax.set_title(f"ceiling {whole[1][1]:.0f}% at one showing, {whole[3][1]:.0f}% at three")
    ax.legend(fontsize=7, loc="lower right", borderaxespad=0.1)


def _behavior(ax: Axes, behavior: Sequence[Mapping[str, Any]]) -> None:
    session = np.array([row["session"] for row in behavior])
    said = []
    for name, color, marker in (
        ("hits", STAGE["unclip"], "o"),
        ("false alarms", STAGE["prior"], "s"),
    ):
        share = np.array([np.nan if row[name] is None else row[name] for row in behavior], float)
        if np.isfinite(share).any():
            ax.plot(session, share, marker=marker, color=color, ms=3, lw=1, label=name)
            said.append(f"{name} {np.nanmedian(share):.0%}")
    ax.set(xlabel="session", ylabel='share "old"', ylim=(0, 1.3), yticks=(0, 0.5, 1))
    _sessions(ax, session)
    ax.set_title(", ".join(said) + " (median session)" * (len(session) > 1))
    ax.legend(fontsize=7, ncols=2, loc="upper right", borderaxespad=0.1)


def _mean(ax: Axes, quartiles: Sequence) -> None:
    low, middle, high = _band(ax, quartiles)
    ax.axhline(0, color=STAGE["chance"], ls=(0, (3, 2)), lw=1, zorder=0)
    ax.set_ylabel("mean (deviations)")
    spread = np.mean(high - low) / 2
    ax.set_title(f"half of the voxels' means stay within ±{spread:.2f}")


def _gain(ax: Axes, quartiles: Sequence) -> None:
    _, middle, _ = _band(ax, quartiles)
    ax.axhline(1, color=STAGE["chance"], ls=(0, (3, 2)), lw=1, zorder=0)
    ax.set_ylabel("gain")
    ax.set_title(f"the gain of sessions goes from {middle.min():.2f} to {middle.max():.2f}")


def _band(ax: Axes, quartiles: Sequence) -> np.ndarray:
    """Median and quartiles over voxels by session; returns (3, sessions)."""
    values = np.array(quartiles, float).T
    session = np.arange(1, values.shape[1] + 1)
    ax.fill_between(session, values[0], values[2], color=ONE, alpha=0.45, lw=0)
    ax.plot(session, values[1], color=THREE, marker="o", ms=2.5, lw=1.2)
    ax.set_xlabel("session (line: median voxel; band: quartiles)")
    _sessions(ax, session)
    return values


# --- a value per voxel


def _map(part: SubFigure, values: np.ndarray, position: np.ndarray, shape: tuple) -> None:
    """Slices from bottom to top, cut to where voxels are; gray: voxels of other slices."""
    volume = np.full(shape, np.nan)
    volume[tuple(position.astype(int).T)] = values
    low, high = np.maximum(position.min(0) - 1, 0), position.max(0) + 2
    box = volume[low[0] : high[0], low[1] : high[1]]
    depths = np.unique(position[:, 2])
    picks = depths[
        np.linspace(0, len(depths) - 1, min(SLICES + 2, len(depths))).round().astype(int)
    ]
    picks = picks[1:-1] if len(picks) > SLICES else picks
    anywhere = np.where(np.isfinite(box).any(2), 1.0, np.nan)
    top = float(np.nanpercentile(values, 99))
    axes = part.subplots(1, len(picks), squeeze=False)[0]
    for ax, z in zip(axes, picks.tolist(), strict=True):
        ax.imshow(anywhere.T, cmap="Greys", vmin=0, vmax=7, origin="lower")
        drawn = ax.imshow(box[:, :, z].T, cmap=SEQUENTIAL, vmin=0, vmax=top, origin="lower",
                          interpolation="nearest")  # fmt: skip
        ax.set_xlabel(f"z = {z}", fontsize=7)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    part.colorbar(drawn, ax=axes, label="r", shrink=0.9, aspect=10, extend="both")
    part.suptitle(
        f"two showings correlate by {np.nanmedian(values):.2f} in the median voxel",
        x=0.01, ha="left", fontsize=9,
    )  # fmt: skip


def surface_map(
    values: Mapping[str, np.ndarray],
    meshes: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    label: str = "r of two showings",
    note: str = "",
) -> Figure:
    """A value per vertex on both hemispheres, from three sides; gray where it is NaN.

    `values` {"lh": (vertices,), "rh": ...}, `meshes` {"lh": (vertices in mm (n, 3), triangles
    (m, 3)), ...}. ValueError in one line where nilearn is missing.
    """
    try:
        from nilearn import plotting
    except ModuleNotFoundError as error:
        raise ValueError(
            "a surface needs nilearn: python -m pip install 'mindeye2-lite[surface]'"
        ) from error
    top = float(np.nanpercentile(np.concatenate(list(values.values())), 99))
    fig = plt.figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = fig.subplots(2, len(VIEWS), subplot_kw={"projection": "3d"})
    look = {"engine": "matplotlib", "cmap": SEQUENTIAL, "vmin": 0, "vmax": top, "colorbar": False}
    for row, (hemisphere, name) in zip(axes, (("lh", "left"), ("rh", "right")), strict=True):
        for ax, view in zip(row, VIEWS, strict=True):
            mesh, known = list(meshes[hemisphere]), values[hemisphere]
            plotting.plot_surf(mesh, known, hemi=name, view=view, axes=ax, figure=fig, **look)
            ax.set_title(f"{name}, {view}", fontsize=7.5, loc="center", pad=0)
    scale = plt.cm.ScalarMappable(plt.Normalize(0, top), SEQUENTIAL)
    fig.colorbar(scale, ax=axes, label=label, shrink=0.6, aspect=18, extend="both")
    if note:
        fig.supxlabel(note, x=0.995, ha="right", fontsize=6.5, color=STAGE["chance"])
    return fig
