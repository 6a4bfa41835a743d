"""The `results` directive: a table straight from a JSON file of the package.

No measured number in the book is typed. A file holds what one command found, and beside it where
it comes from (command, commit, profile, seed, device, seconds). Three forms are known: `rows`, a
list of records; `found`, by piece and by measure a value with its interval (and, where a piece is
compared with another, the difference with its own); and records by name, as in the manifest of the
weights. Where there is no file yet, the page says so.

    ```{results} results/miniatures
    :columns: name as network, measure, value
    ```
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

ORIGIN = ("command", "commit", "profile", "seed", "device", "seconds")


def records(content: dict | list) -> list[dict]:
    """The rows of a file as flat records, whichever of the three forms it has."""
    if isinstance(content, list):
        return content
    if "rows" in content:
        return content["rows"]
    if "found" in content:
        return [
            _measured(name, measure, found)
            for name, measures in content["found"].items()
            for measure, found in measures.items()
        ]
    return [{"name": name, **row} for name, row in content.items() if isinstance(row, dict)]


def _measured(name: str, measure: str, found: dict) -> dict:
    value = f"{shown(found['value'])} {found.get('unit', '')}".strip()
    interval = f"{shown(found['low'])} to {shown(found['high'])}"
    chance = shown(found.get("chance")) or "–"
    row = {"name": name, "measure": measure, "value": value, "95% interval": interval}
    row |= {"chance": chance, "n": found["n"]}
    return row | {"difference": difference(found["difference"])} if "difference" in found else row


def difference(found: dict) -> str:
    """A difference, sign first, with its interval; a dash for a thing beside itself."""
    value, low, high = (_signed(found[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})" if {value, low, high} != {"0"} else "–"


def _signed(number: float) -> str:
    return f"{number:+.3f}".replace("-", "−") if round(number, 3) else "0"


def shown(value: object) -> str:
    """A number to three places or digits, a whole one in groups of three, all else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _digits(value)
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def _digits(number: float) -> str:
    """Shares with one length, so that a column can be read down; else three digits."""
    if 0 < abs(number) < 0.001:
        return f"{number:.2g}"
    return f"{number:.3f}" if abs(number) <= 1 else f"{number:#.3g}".rstrip(".")


def table(
    columns: list[str], rows: list[dict], heads: Mapping[str, str] = MappingProxyType({})
) -> nodes.table:
    """A docutils table with one head row: the columns' names, or what `heads` calls them."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in columns), cols=len(columns))
    head = [heads.get(column, column).replace("_", " ") for column in columns]
    group += nodes.thead("", _row(head))
    group += nodes.tbody(
        "", *(_row([shown(row.get(column)) for column in columns]) for row in rows)
    )
    return nodes.table("", group, classes=["results"])


def _row(cells: list[str]) -> nodes.row:
    entries = [nodes.entry("", nodes.paragraph("", cell)) for cell in cells]
    return nodes.row("", *entries)


def _columns(rows: list[dict]) -> list[str]:
    """All keys of plain values, in the order in which they first come."""
    plain = (
        key for row in rows for key, value in row.items() if not isinstance(value, dict | list)
    )
    return list(dict.fromkeys(plain))


def wanted(option: str) -> tuple[list[str], dict[str, str]]:
    """The columns of ":columns: name as way, value", and what they are called instead."""
    pairs = [word.strip().partition(" as ") for word in option.split(",") if word.strip()]
    return [key for key, *_ in pairs], {key: head for key, _, head in pairs if head}


def missing(name: str) -> nodes.paragraph:
    """What stands in the place of results that nobody has made yet."""
    return nodes.paragraph("", "", nodes.emphasis("", f"Not run yet: there is no {name}."))


class Results(SphinxDirective):
    """Put the rows of the file named in the argument, and their origin, on the page."""

    required_arguments = 1
    option_spec = {"columns": directives.unchanged}

    def run(self):
        """The table and a line about its origin, or one line where nothing has been run."""
        name = f"{self.arguments[0]}.json"
        path = Path(self.env.srcdir).parent / "mindeye2_lite" / name
        self.env.note_dependency(str(path))
        if not path.is_file():
            return [missing(name)]
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = records(content)
        columns, heads = wanted(self.options.get("columns", ""))
        known = content if isinstance(content, dict) else {}
        said = [f"{key} {known[key]}" for key in ORIGIN if key in known]
        origin = nodes.literal("", ", ".join([name, *said]))  # literal: `--` stays two dashes
        caption = nodes.paragraph("", "", nodes.emphasis("", "From "), origin)
        return [table(columns or _columns(rows), rows, heads), caption]


def setup(app):
    """Register the directive."""
    app.add_directive("results", Results)
    return {"parallel_read_safe": True}
