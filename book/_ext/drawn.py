"""Figures that are computed and drawn while the book is built: none of them is a stored picture.

Pictures wait beside Sphinx's own leftovers below `_build`, and Sphinx copies them into the page.
They are SVG on a white card, which a dark page dims as it does the notebooks' figures.
"""

import os
from pathlib import Path

import matplotlib as mpl
from docutils import nodes
from matplotlib.figure import Figure
from sphinx.util.docutils import SphinxDirective

WIDTH = 4.9  # inches: at 400 pixels, a telephone's, the type is still large enough to read
STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "mindeye2-lite",  # the same figure is the same file
}


def style():
    """The figures' style while drawing, and nothing changed after it."""
    return mpl.rc_context(STYLE)


def blank(height: float) -> Figure:
    """An empty figure as wide as the page's figures are, `height` inches high."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def node(
    directive: SphinxDirective, fig: Figure, name: str, alt: str, caption: str
) -> nodes.figure:
    """A figure node of the page, with what it shows in words (`alt`) and its caption."""
    env = directive.env
    path = Path(env.doctreedir, "drawn", f"{name}.svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        fig.savefig(path, metadata={"Date": None})
    page = Path(env.doc2path(env.docname)).parent
    uri = Path(os.path.relpath(path, page)).as_posix()
    image = nodes.image("", uri=uri, alt=alt)
    return nodes.figure("", image, nodes.caption("", caption), align="center")
