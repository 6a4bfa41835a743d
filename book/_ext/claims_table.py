"""Directives `claims` and `published`: what the paper says, and what came out here.

`{claims}` has an entry per claim of the paper: where it stands, in how many scores its own figures
agree, how ours came out, and our guess where the direction does not hold. It is computed from the
results files while the book is built; a file that is not there makes its claims "not run yet".

`{published} Table 1` has the figures of one table of the paper as printed, a row per system.
Nothing in it is ours.

    ```{published} Table 1
    ```
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from docutils import nodes
from results_table import table
from sphinx.util.docutils import SphinxDirective

from mindeye2_lite import claims, paths


def claim_items(told: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Of each line of `claims.overview`: the claim and its source, what came out, a guess why."""
    items = []
    for number, row in told.iterrows():
        came = row["direction"]
        if came != claims.NOT_RUN:
            came += f" (of our scores: {row['here']})"
        if row["paper"] != "–":
            came += f"; the paper's own figures agree in {row['paper']}"
        items.append((f"{number}. {row['text']} ({row['source']})", f"{came}.", row["why"]))
    return items


def published_rows(name: str) -> tuple[list[dict], str]:
    """A record per row of a table of the paper, as printed; its source. ValueError if absent."""
    figures = claims.published()
    if (figures := figures[figures["table"] == name]).empty:
        raise ValueError(f"no table {name!r} is quoted: see results/published.json")
    rows: dict[tuple, dict] = {}
    for line in figures.itertuples():
        what = {"system": line.system, "condition": line.condition, "sessions": line.sessions}
        what["sessions"] = None if pd.isna(line.sessions) else int(line.sessions)
        what["subject"] = line.subject
        rows.setdefault(tuple(what.values()), what)[line.metric] = f"{line.quoted:g}"
    found = [{key: value for key, value in row.items() if value != ""} for row in rows.values()]
    return found, figures["source"].iloc[0]


def columns(rows: Sequence[dict]) -> list[str]:
    """All keys, in the order in which they first come."""
    return list(dict.fromkeys(key for row in rows for key in row))


class Claims(SphinxDirective):
    """Put the claims on the page, with what the results files say of them."""

    def run(self) -> list[nodes.Node]:
        """The list, and a line that says what it is computed from."""
        for path in (*paths.results("published").parent.glob("*.json"), Path(claims.__file__)):
            self.env.note_dependency(str(path))
        lines = claims.summary()
        items = nodes.definition_list()
        for claim, came, why in claim_items(claims.overview(lines)):
            said = nodes.definition("", nodes.paragraph("", came))
            if why:
                said += nodes.paragraph("", "", nodes.emphasis("", f"Our guess: {why}"))
            items += nodes.definition_list_item("", nodes.term("", claim), said)
        many = [
            f"{' to '.join(dict.fromkeys((f'{of.min():.0f}', f'{of.max():.0f}')))} {word}"
            for column, word in (("n", "pictures"), ("people", "people"), ("seeds", "seeds"))
            if len(of := lines[column].dropna())
        ]
        said = "Computed while this page was built, from paired differences with 95% intervals"
        said += f" ({', '.join(many)})." if many else "; no sweep has been run yet."
        return [items, nodes.paragraph("", "", nodes.emphasis("", said))]


class Published(SphinxDirective):
    """Put a table of the paper on the page, as printed."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The table and its source."""
        self.env.note_dependency(str(paths.results("published")))
        rows, source = published_rows(self.arguments[0])
        told = nodes.emphasis("", f"As printed in {source}. None of it was measured again by us.")
        return [table(columns(rows), rows), nodes.paragraph("", "", told)]


def setup(app):
    """Register the directives."""
    app.add_directive("claims", Claims)
    app.add_directive("published", Published)
    return {"parallel_read_safe": True}
