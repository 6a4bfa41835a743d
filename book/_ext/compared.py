"""The `compared` directive: ways of training on the same measures, drawn from a results file.

The file's `found` has, by measure ("one hour: image_to_brain") and by way, a value with its
interval, chance and n. Measures are rows, headed by what comes before the colon; ways are colors
and markers. Where there is no file yet, the page says so.

    ```{compared} results/departures
    :alt: What the picture shows, in words.
    ```
"""

import json
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from drawn import blank, node, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results_table import missing
from sphinx.util.docutils import SphinxDirective

from mindeye2_lite.viz import MARKERS, ORDER, STAGE

Found = dict[str, dict[str, dict]]
HEADING, ROW, WAY = 0.75, 1.0, 0.26  # heights, in rows


def places(found: Found) -> tuple[dict[str, float], dict[str, float]]:
    """Where headings and measures stand, from the top down."""
    headings, measures, y = {}, {}, 0.0
    for measure in found:
        heading = measure.partition(": ")[0]
        if heading not in headings:
            headings[heading], y = y, y + HEADING
        measures[measure], y = y, y + ROW
    return headings, measures


def draw(found: Found) -> Figure:
    """A dot with its interval per way and measure; chance dashed."""
    headings, measures = places(found)
    ways = list(next(iter(found.values())))
    with style():
        fig = blank(0.33 * (max(measures.values()) + 1) + 0.9)
        ax = fig.subplots()
        for measure, y in measures.items():
            _measure(ax, y, [found[measure][way] for way in ways])
        for heading, y in headings.items():
            ax.annotate(heading, (0, y), xycoords=("axes fraction", "data"), xytext=(4, 0),
                        textcoords="offset points", va="center", weight="bold")  # fmt: skip
        names = [measure.partition(": ")[2].replace("_to_", " → ") for measure in measures]
        ax.set_yticks(list(measures.values()), names)
        ax.set(ylim=(max(measures.values()) + 0.6, -0.6), xlabel="share of pictures found")
        ax.set_xlim(left=0)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", color="#E5E5E5", lw=0.6)
        ax.set_axisbelow(True)
        _legend(fig, ways)
    return fig


def _measure(ax: Axes, y: float, ways: list[dict]) -> None:
    for place, score in enumerate(ways):
        at, color = y + WAY * (place - (len(ways) - 1) / 2), ORDER[place % len(ORDER)]
        ax.hlines(at, score["low"], score["high"], color=color, lw=1.5)
        marker = MARKERS[place % len(MARKERS)]
        ax.plot(score["value"], at, marker, color=color, ms=4.5, mec="white", mew=0.6)
    if (chance := ways[0].get("chance")) is not None:
        ax.vlines(chance, y - 0.45, y + 0.45, color=STAGE["chance"], ls=(0, (3, 2)), lw=1.1)


def _legend(fig: Figure, ways: list[str]) -> None:
    ax, handles = fig.axes[0], []
    for place, way in enumerate(ways):
        look = {"marker": MARKERS[place % len(MARKERS)], "ms": 4.5, "mec": "white", "mew": 0.6}
        handles += ax.plot([], [], color=ORDER[place % len(ORDER)], lw=1.5, label=way, **look)
    handles += ax.plot([], [], color=STAGE["chance"], ls=(0, (3, 2)), lw=1.1, label="chance")
    fig.legend(handles=handles, loc="outside upper left", ncols=2, fontsize=8, borderpad=0)


class Compared(SphinxDirective):
    """Draw the file named in the argument, with a caption that says how to read it."""

    required_arguments = 1
    option_spec = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """The figure, or one line where nothing has been run."""
        name = f"{self.arguments[0]}.json"
        path = Path(self.env.srcdir).parent / "mindeye2_lite" / name
        self.env.note_dependency(str(path))
        self.env.note_dependency(__file__)
        if not path.is_file():
            return [missing(name)]
        content = json.loads(path.read_text(encoding="utf-8"))
        seeds = content.get("seed", [])
        caption = (
            f"Means over {len(seeds)} seeds, with 95% intervals over the test pictures; dashed: "
            f"chance. Profile {content.get('profile')}, on the synthetic cohort; drawn from {name}."
        )
        alt, file = self.options.get("alt", ""), Path(name).stem
        return [node(self, draw(content["found"]), file, alt, caption)]


def setup(app):
    """Register the directive."""
    app.add_directive("compared", Compared)
    return {"parallel_read_safe": True}
