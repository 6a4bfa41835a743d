"""Figures of results: the main table as dots, curves over hours, conditions, differences, claims.

As in `viz`, every function takes plain frames (`sweep_tables`, `claims`) and returns a Figure whose
small print says of how many pictures, seeds and people it is. What has not been run is left out.
Read with notebooks 11 and 12.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mindeye2_lite.viz import MARKERS, ORDER, STAGE, WIDTH

METRICS = ("PixCorr", "SSIM", "Alex(2)", "Alex(5)", "Incep", "CLIP", "Eff", "SwAV")
METRICS += ("image_to_brain", "brain_to_image")
DASHED = {"color": STAGE["chance"], "ls": (0, (3, 2)), "lw": 1, "zorder": 0}
OLD, CONTROL = "#4D4D4D", "#9A9A9A"
ROW, HEAD = 0.185, 0.62  # inches of a row, and of a panel's title and numbers
# symbol, color, color of the tile: told apart without color, and in print
VERDICT = {
    "holds": ("✓", "#00664B", "#CFE8DF"),
    "opposite": ("✕", "#A34700", "#F6D5BF"),
    "undecided": ("?", "#555555", "#F1F1F1"),
    "no difference seen": ("=", "#005A8C", "#D6E6F1"),
    "differs": ("≠", "#7A5300", "#F8E7BF"),
    "not run yet": ("·", "#999999", "#FFFFFF"),
    "not measured": ("–", "#999999", "#FFFFFF"),
}
SIGN = {"better": ">", "worse": "<", "hardly matters": "≈", "asked": "or"}
Row = tuple[str, pd.DataFrame, dict[str, Any]]  # label, a line per metric, marker and color


def main_table(
    rows: pd.DataFrame, *, subject: int | str = "mean", columns: int = 5, note: str = ""
) -> Figure:
    """A panel per metric, a row per system in the order of `rows`; controls below a line.

    `rows` has columns system, sessions, subject, metric, value, low, high, chance, better, n,
    people, seeds (`sweep_tables.paper_rows`). Bars are 95% intervals, chance is dashed; the arrow
    beside a metric's name points to what is better.
    """
    rows = rows[rows["subject"] == subject]
    keys = list(dict.fromkeys(zip(rows["system"], rows["sessions"], strict=True)))
    lines, below = [], None
    for place, (system, sessions) in enumerate(keys):
        mine = rows[(rows["system"] == system) & (rows["sessions"] == sessions)]
        look, measured = _look(system, sessions)
        if not measured and below is None:
            below = place
        label = f"{system.removesuffix(' 2023')}, {sessions} h" if measured else system
        lines.append((label, mine.set_index("metric"), look))
    return _dots(lines, _metrics(rows), columns, note, below=below)


def ablation_dots(
    conditions: Mapping[str, pd.DataFrame], *, columns: int = 5, note: str = ""
) -> Figure:
    """A panel per metric, a row per condition: {"ridge": estimates, "MLP": estimates}.

    Estimates have a line per metric (`sweep_tables.estimates`).
    """
    lines = [
        (name, frame.set_index("metric"), {"marker": MARKERS[i % 6], "color": ORDER[i % 6]})
        for i, (name, frame) in enumerate(conditions.items())
    ]
    return _dots(lines, _metrics(pd.concat(conditions.values())), columns, note)


def data_curve(
    frame: pd.DataFrame, *, metrics: Sequence[str] = (), columns: int = 4, note: str = ""
) -> Figure:
    """Scores over hours of scanning on a log axis, pretrained on others and from scratch.

    `frame` has columns hours, start_people, metric, value, low, high, chance, better, n, people,
    seeds. Bands are 95% intervals, chance is dashed.
    """
    chosen = list(metrics) or _metrics(frame)
    columns = min(columns, len(chosen))
    lines = -(-len(chosen) // columns)
    shape = (WIDTH if columns > 1 else 5.0, 1.75 * lines + 0.5 if columns > 1 else 3.2)
    fig, axes = plt.subplots(lines, columns, figsize=shape, squeeze=False, layout="constrained")
    starts = sorted(set(frame["start_people"]), reverse=True)
    for ax, metric in zip(axes.flat, chosen, strict=False):
        mine = frame[frame["metric"] == metric]
        for place, people in enumerate(starts):
            _curve(ax, mine[mine["start_people"] == people].sort_values("hours"), place)
        _over_hours(ax, mine, metric)
    for ax in axes.flat[len(chosen) :]:
        ax.axis("off")
    names = [f"pretrained on {n} others" if n else "from scratch" for n in starts]
    looks = [{"color": ORDER[i], "marker": MARKERS[i], "ms": 4} for i in range(len(starts))]
    handles = [Line2D([], [], label=n, **look) for n, look in zip(names, looks, strict=True)]
    handles.append(Line2D([], [], label="chance", **DASHED))
    fig.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=8)
    return _signed(fig, f"{_counted(frame)}; bands: 95% intervals", note)


def differences(lines: pd.DataFrame, *, columns: int = 5, note: str = "") -> Figure:
    """Paired differences with their 95% intervals, a row per comparison: right of zero, first wins.

    `lines` as `claims.summary` gives them. Distances are turned round, so that right is better.
    """
    run = lines.dropna(subset=["difference"])
    keys = run.drop_duplicates(["first", "second"])[["first", "second"]].itertuples(index=False)
    parts = []
    for place, (first, second) in enumerate(keys):
        mine = run[(run["first"] == first) & (run["second"] == second)].set_index("metric")
        turned = np.where(mine.index.isin(["Eff", "SwAV"]), -1.0, 1.0)
        ends = np.stack([mine["low"] * turned, mine["high"] * turned])
        mine = mine.assign(value=mine["difference"] * turned, low=ends.min(0), high=ends.max(0))
        mine = mine.assign(chance=0.0, better=None)
        look = {"marker": MARKERS[place % 6], "color": ORDER[place % 6]}
        parts.append((textwrap.fill(f"{first} − {second}", 26), mine, look))
    told = "dashed: no difference; right of it the first is better"
    return _dots(parts, _metrics(run), columns, note, told=told, tall=1.7)


def claims_figure(lines: pd.DataFrame, *, note: str = "") -> Figure:
    """Comparisons down, metrics across, a tile per verdict with a symbol of its own.

    `lines` as `claims.summary` gives them; the number before a row is the claim's. Empty tiles are
    metrics that a claim says nothing about.
    """
    keys = ["claim", "first", "second", "expected"]
    rows = [tuple(row) for row in lines.drop_duplicates(keys)[keys].itertuples(index=False)]
    metrics = _metrics(lines)
    fig, ax = plt.subplots(figsize=(WIDTH, 0.2 * len(rows) + 1.15), layout="constrained")
    for y, row in enumerate(rows):
        mine = lines[(lines[keys] == list(row)).all(axis=1)].set_index("metric")["verdict"]
        for metric, verdict in mine.items():
            _tile(ax, metrics.index(metric), y, verdict)
    names = [f"{first} {SIGN[expected]} {second}" for _, first, second, expected in rows]
    ax.set_yticks(range(len(rows)), names, fontsize=7.5)
    ax.set_xticks(range(len(metrics)), [_stacked(m) for m in metrics], fontsize=6.5)
    ax.set(xlim=(-0.5, len(metrics) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    _numbered(ax, [row[0] for row in rows])
    _legend(fig, [v for v in VERDICT if v in set(lines["verdict"])])
    read = "> first better, < first worse, ≈ hardly matters, or: asked, nothing claimed"
    return _signed(fig, f"{_counted(lines)}; {read}", note)


# --- small parts


def _look(system: str, sessions: int) -> tuple[dict[str, Any], bool]:
    """Marker and color of a row, and whether it is a system and no control."""
    if system.startswith("MindEye2"):
        stage = system.partition(", ")[2]
        color = {"refined": STAGE["refine"], "unrefined": STAGE["unclip"]}.get(stage, "#B59F00")
        face = "white" if sessions == 1 else color
        return {"marker": "o", "color": color, "mfc": face, "mec": color}, True
    if any(system.startswith(name) for name in ("MindEye1", "Ozcelik", "Takagi")):
        return {"marker": "s", "color": OLD}, True
    return {"marker": "D", "color": CONTROL}, False


def _dots(
    lines: Sequence[Row], metrics: Sequence[str], columns: int, note: str, *,
    below: int | None = None, told: str = "dashed: chance", tall: float = 1.0,
) -> Figure:  # fmt: skip
    columns = max(1, min(columns, len(metrics)))
    down = -(-len(metrics) // columns)
    shape = (WIDTH, (HEAD + ROW * tall * len(lines)) * down + 0.2)
    fig, axes = plt.subplots(down, columns, figsize=shape, squeeze=False, layout="constrained")
    for ax, metric in zip(axes.flat, metrics, strict=False):
        better = [_dot(ax, place, line, metric) for place, line in enumerate(lines)]
        arrow = {"higher": " ↑", "lower": " ↓"}.get(next(filter(None, better), ""), "")
        _dressed(ax, f"{_spoken(metric)}{arrow}", len(lines), below)
        labels = [label for label, *_ in lines] if ax in axes[:, 0] else [""] * len(lines)
        ax.set_yticks(range(len(lines)), labels)
    for ax in axes.flat[len(metrics) :]:
        ax.axis("off")
    frame = pd.concat([frame for _, frame, _ in lines]) if lines else pd.DataFrame()
    return _signed(fig, f"{_counted(frame)}; bars: 95% intervals; {told}", note)


def _dot(ax: Axes, place: int, line: Row, metric: str) -> str | None:
    """Draw one row's score, if it has it, and say which way is better."""
    _, frame, look = line
    if metric not in frame.index:
        return None
    score = frame.loc[metric]
    ax.hlines(place, score["low"], score["high"], color=look["color"], lw=1.3)
    ax.plot(score["value"], place, **{"ms": 4.2, "mew": 0.9, "ls": ""} | look)
    if not pd.isna(score.get("chance")):  # rows of one chance join into one line
        ax.vlines(score["chance"], place - 0.5, place + 0.5, **DASHED)
    return score["better"]


def _dressed(ax: Axes, title: str, rows: int, below: int | None) -> None:
    ax.set_title(title, fontsize=8)
    ax.set_ylim(rows - 0.5, -0.5)
    if below:
        ax.axhline(below - 0.5, color="#CCCCCC", lw=0.8)
    ax.margins(x=0.12)
    ax.tick_params(axis="both", labelsize=7.5, length=2)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(plt.MaxNLocator(3, steps=[1, 2, 5, 10]))
    ax.spines["left"].set_visible(False)


def _curve(ax: Axes, mine: pd.DataFrame, place: int) -> None:
    color = ORDER[place % 6]
    hours = mine["hours"].astype(float)
    ax.fill_between(hours, mine["low"], mine["high"], color=color, alpha=0.2, lw=0)
    look = {"marker": MARKERS[place % 6], "ms": 3.6, "mec": "white", "mew": 0.5}
    ax.plot(hours, mine["value"], color=color, lw=1.3, **look)


def _over_hours(ax: Axes, mine: pd.DataFrame, metric: str) -> None:
    if len(known := mine["chance"].dropna()):
        ax.axhline(known.mean(), **DASHED)
    arrow = "↓" if (mine["better"] == "lower").any() else "↑"
    ax.set_title(f"{_spoken(metric)} {arrow}", fontsize=8)
    ticks = {1 / 6: "10 min", 1: "1 h", 4: "4", 10: "10", 40: "40"}
    ax.set_xscale("log")
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.xaxis.set_minor_locator(plt.NullLocator())
    ax.tick_params(labelsize=7, length=2)


def _tile(ax: Axes, x: int, y: int, verdict: str) -> None:
    symbol, ink, face = VERDICT[verdict]
    ax.add_patch(plt.Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, fc=face, ec="#DDDDDD", lw=0.5))
    ax.text(x, y, symbol, color=ink, ha="center", va="center_baseline", fontsize=8, weight="bold")


def _numbered(ax: Axes, claims: Sequence[int]) -> None:
    """Each claim's number once, at the right, and a line above its rows."""
    for y, number in enumerate(claims):
        if y == 0 or claims[y - 1] != number:
            ax.axhline(y - 0.5, color="#999999", lw=0.6)
            look = {"transform": ax.get_yaxis_transform(), "fontsize": 7.5, "va": "center"}
            ax.text(1.01, y, str(number), color="#333333", **look)


def _legend(fig: Figure, verdicts: Sequence[str]) -> None:
    handles = [
        Line2D([], [], ls="", marker=f"${VERDICT[v][0]}$", color=VERDICT[v][1], ms=6, label=v)
        for v in verdicts
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=6, fontsize=7.5, borderpad=0)


def _metrics(frame: pd.DataFrame) -> list[str]:
    """Those that the frame has, in the paper's order, then others."""
    there = list(dict.fromkeys(frame["metric"]))
    return [m for m in METRICS if m in there] + [m for m in there if m not in METRICS]


def _spoken(metric: str) -> str:
    return metric.replace("_to_", " → ")


def _stacked(metric: str) -> str:
    """A metric's name in two lines where it is long."""
    return metric.replace("_to_", "\n→ ")


def _counted(frame: pd.DataFrame) -> str:
    """ "n = 100 pictures, 4 people, 5 seeds", with "to" between the smallest and the largest."""
    parts = []
    for column, word in (("n", "pictures"), ("people", "people"), ("seeds", "seeds")):
        known = frame[column].dropna().astype(int) if column in frame else []
        if len(known):
            low, high = min(known), max(known)
            many = f"{low if low == high else f'{low} to {high}'} {word}"
            parts.append("1 person" if many == "1 people" else many.removesuffix("s" * (high == 1)))
    return ("n = " + ", ".join(parts)) if parts else "not run yet"


def _signed(fig: Figure, told: str, note: str) -> Figure:
    words = textwrap.fill("; ".join(filter(None, [told, note])), 125)
    fig.supxlabel(words, x=0.995, ha="right", fontsize=6.5, color=STAGE["chance"])
    return fig
