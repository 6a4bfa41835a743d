"""The page on differences names tests that exist, and its figures show what they are said to."""

import importlib
import re
from pathlib import Path

import matplotlib.text
import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "book" / "differences.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", PAGE, flags=re.M)[1:]
NAMED = sorted(set(re.findall(r"\{test\}`([^`]*)`", PAGE)))
DISAGREEMENTS = "Where paper and code disagree"  # a table without prose


@pytest.fixture(autouse=True)
def extensions(monkeypatch):
    """The folder where Sphinx finds one extension from another."""
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")


def imported(name: str):
    return importlib.import_module(name)


def title(section: str) -> str:
    return section.partition("\n")[0]


def rows(section: str) -> list[list[str]]:
    """The cells of the section's table, without its head."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def leads(section: str) -> list[str]:
    """What the section's paragraphs are about: the bold words that they begin with."""
    return [lead.rstrip(".") for lead in re.findall(r"^\*\*(.+?)\*\*", section, flags=re.M)]


# -- what shows it ---------------------------------------------------------------------------------


def test_every_test_on_the_page_exists():
    lines_of = imported("named_tests").lines_of
    files = {name: lines_of(ROOT / "tests" / name.partition("::")[0]) for name in NAMED}
    assert len(NAMED) > 60
    assert [name for name, tests in files.items() if name.partition("::")[2] not in tests] == []


@pytest.mark.parametrize("section", SECTIONS, ids=title)
def test_every_row_names_a_test_or_says_that_nothing_is_built(section):
    assert rows(section)
    for *_, what, shown in rows(section):
        assert "{test}`" in shown or (shown == "–" and what.startswith("not built"))


@pytest.mark.parametrize("section", SECTIONS, ids=title)
def test_every_paragraph_on_a_quirk_has_its_row(section):
    if title(section) in (DISAGREEMENTS, "Measured"):
        return
    quirks = {row[0].partition(":")[0] for row in rows(section)}
    assert quirks == set(leads(section))


def test_a_test_is_shown_as_the_sentence_that_its_name_is():
    sentence = imported("named_tests").sentence
    assert sentence("test_x.py::test_black_is_seen_as_gray") == "black is seen as gray"
    assert sentence("test_x.py::test_the_model_s_mode") == "the model’s mode"


# -- the blocks without effect ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def changes():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "book" / "_ext")
        found = imported("inert_blocks")
        return {kind: found.changes(kind) for kind in ("released", "residual")}


def test_in_the_released_backbone_the_first_mixers_and_they_alone_change_no_bit(changes):
    without = {name for name, change in changes["released"].items() if change == 0}
    assert without == {f"block {i}, first mixer" for i in (1, 2, 3, 4)}
    assert all(change >= 0 for change in changes["released"].values())


def test_in_the_residual_backbone_everything_has_a_say(changes):
    assert all(change > 1e-3 for change in changes["residual"].values())
    assert {f"block {i}, first mixer" for i in (1, 2, 3, 4)} < set(changes["residual"])


def test_every_parameter_is_in_one_group(changes):
    inert_blocks = imported("inert_blocks")
    for kind in changes:
        backbone = inert_blocks.Backbone(**inert_blocks.SIZES, kind=kind)
        grouped = [p for group in inert_blocks.groups(backbone).values() for p in group]
        assert {*map(id, grouped)} == {*map(id, backbone.parameters())}
        assert len(grouped) == len(list(backbone.parameters()))


def test_a_kick_leaves_no_trace_and_borrows_no_randomness(changes):
    before = torch.random.get_rng_state()
    again = imported("inert_blocks").changes("released")
    assert again == changes["released"]
    assert torch.equal(before, torch.random.get_rng_state())


def words(fig) -> list[str]:
    return [text.get_text() for text in fig.findobj(matplotlib.text.Text) if text.get_text()]


def assert_inside(fig) -> None:
    fig.draw_without_rendering()  # lays it out
    drawn, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    assert drawn.x0 > -0.02 and drawn.x1 < width + 0.02, "text over the sides"
    assert drawn.y0 > -0.02 and drawn.y1 < height + 0.02, "text over the top or bottom"


def test_an_exact_zero_is_said_in_words_and_nothing_else_is(changes):
    inert_blocks = imported("inert_blocks")
    fig = inert_blocks.draw(changes)
    assert words(fig).count(inert_blocks.NOTHING) == 4
    assert words(fig).count("not there") == 4
    assert_inside(fig)


# -- ways of training ------------------------------------------------------------------------------


def score(value: float) -> dict:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "chance": 0.01, "n": 100}


def found() -> dict:
    measures = [
        f"{who}: {direction}"
        for who in ("seven people, first", "one hour")
        for direction in ("image_to_brain", "brain_to_image")
    ]
    ways = ("as in this book", "working blocks", "released partners")
    return {m: {way: score(0.2 + 0.1 * i) for i, way in enumerate(ways)} for m in measures}


def test_every_way_is_drawn_for_every_measure_under_one_heading():
    fig = imported("compared").draw(found())
    said = words(fig)
    assert said.count("one hour") == said.count("seven people, first") == 1
    measures = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert measures == ["image → brain", "brain → image"] * 2
    assert {"as in this book", "working blocks", "released partners", "chance"} <= set(said)
    dots = [line for line in fig.axes[0].lines if len(line.get_xdata()) == 1]
    assert [round(line.get_xdata()[0], 6) for line in dots] == [0.2, 0.3, 0.4] * 4
    assert_inside(fig)


def test_chance_is_drawn_where_it_is():
    fig = imported("compared").draw(found())
    dashed = [c for c in fig.axes[0].collections if c.get_linestyles()[0][1] is not None]
    assert len(dashed) == 4
    assert all((c.get_segments()[0][:, 0] == 0.01).all() for c in dashed)


def test_results_that_nobody_has_made_are_said_to_be_missing():
    said = imported("compared").missing("results/departures.json").astext()
    assert said == "Not run yet: there is no results/departures.json."
