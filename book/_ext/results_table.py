"""The `results` directive: a table straight from `mindeye2_lite/results/NAME.json`.

No number in the book is typed. A file holds what one command measured: `rows` (a list of records,
or records by name), and beside them where they come from (command, commit, profile, seed, device,
seconds). Where there is no file yet, the page says so.

    ```{results} miniatures
    :columns: name, what, measured, needed
    ```
"""

import json
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

ORIGIN = ("command", "commit", "profile", "seed", "device", "seconds")


def records(content: dict | list) -> list[dict]:
    """The rows of a results file as flat records, whichever of the two forms it has."""
    rows = content.get("rows", content) if isinstance(content, dict) else content
    if isinstance(rows, list):
        return rows
    named = {name: row for name, row in rows.items() if isinstance(row, dict)}
    return [{"name": name, **row} for name, row in named.items()]


def shown(value: object) -> str:
    """A number to three digits, a list as an interval, anything else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return " to ".join(shown(item) for item in value)
    return "" if value is None else str(value)


def table(columns: list[str], rows: list[dict]) -> nodes.table:
    """A docutils table with one head row."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in columns), cols=len(columns))
    group += nodes.thead("", _row([column.replace("_", " ") for column in columns]))
    group += nodes.tbody(
        "", *(_row([shown(row.get(column)) for column in columns]) for row in rows)
    )
    return nodes.table("", group, classes=["results"])


def _row(cells: list[str]) -> nodes.row:
    entries = [nodes.entry("", nodes.paragraph("", cell)) for cell in cells]
    return nodes.row("", *entries)


class Results(SphinxDirective):
    """Read the file named in the argument and put its rows and their origin on the page."""

    required_arguments = 1
    option_spec = {"columns": directives.unchanged}

    def run(self):
        """The table and a line about its origin, or one line where nothing has been run."""
        name = self.arguments[0]
        path = Path(self.env.srcdir).parent / "mindeye2_lite" / "results" / f"{name}.json"
        self.env.note_dependency(str(path))
        if not path.is_file():
            return [nodes.paragraph("", "", nodes.emphasis("", f"Not run yet: no {path.name}."))]
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = records(content)
        scalar = [key for row in rows for key, value in row.items() if not isinstance(value, dict)]
        columns = [
            word.strip() for word in self.options.get("columns", "").split(",") if word.strip()
        ]
        return [table(columns or list(dict.fromkeys(scalar)), rows), self._origin(name, content)]

    def _origin(self, name: str, content: dict | list) -> nodes.paragraph:
        known = content if isinstance(content, dict) else {}
        said = [f"{key} {shown(known[key])}" for key in ORIGIN if key in known]
        text = ", ".join([f"From results/{name}.json", *said])
        return nodes.paragraph("", "", nodes.emphasis("", f"{text}."))


def setup(app):
    """Register the directive."""
    app.add_directive("results", Results)
    return {"parallel_read_safe": True}
