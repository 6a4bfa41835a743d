"""The book holds every notebook, runs each once, and shows what is in the files it draws from."""

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from mindeye2_lite import book

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def extension(name):
    """A Sphinx extension of the book as a module."""
    specification = importlib.util.spec_from_file_location(name, BOOK / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def toc():
    parts = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter["file"] for part in parts["parts"] for chapter in part["chapters"]]
    return [parts["root"], *chapters]


def test_the_table_of_contents_lists_every_notebook_in_reading_order():
    listed = [name.removeprefix("notebooks/") for name in toc() if name.startswith("notebooks/")]
    assert listed == [path.stem for path in book.sources(ROOT)]


def test_the_table_of_contents_lists_every_page_once():
    pages = [name for name in toc() if not name.startswith("notebooks/")]
    assert sorted(pages) == sorted(path.stem for path in BOOK.glob("*.md"))


def test_formulas_need_no_network():
    script = BOOK / "_extra" / "_static" / CONFIG["sphinx"]["config"]["mathjax_path"]
    assert script.is_file() and (script.parent / "LICENSE").is_file()
    assert list(script.parent.glob("output/chtml/fonts/woff-v2/*.woff"))


def test_every_citation_has_its_entry():
    entries = set(
        re.findall(r"@\w+\{(\w+),", (BOOK / "references.bib").read_text(encoding="utf-8"))
    )
    pages = "".join(path.read_text(encoding="utf-8") for path in BOOK.glob("*.md"))
    cited = {
        key for keys in re.findall(r"\{cite:\w\}`([\w, ]+)`", pages) for key in keys.split(",")
    }
    assert cited <= entries


# -- a small repository ----------------------------------------------------------------------------


def cell(name, source, *tags):
    return nbformat.v4.new_code_cell(source, id=name, metadata={"tags": list(tags)})


@pytest.fixture
def root(tmp_path):
    """A repository with one notebook of a few cells."""
    for folder in ("notebooks", "mindeye2_lite/weights", "book"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "_config.yml").touch()
    (tmp_path / "mindeye2_lite" / "losses.py").write_text("# losses")
    write(tmp_path, nbformat.v4.new_markdown_cell("# 0 · Tour", id="title"), cell("sum", "1 + 1"))
    book._surroundings.cache_clear()
    yield tmp_path
    book._surroundings.cache_clear()


def write(root, *cells):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    source = root / "notebooks" / "00_tour.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells), metadata=kernel), source)
    return source


def pretend_it_ran(source, outputs=()):
    """An executed copy as `book.execute` leaves it, without a kernel."""
    notebook = nbformat.read(source, as_version=4)
    for kept in notebook.cells:
        if kept.cell_type == "code":
            kept.outputs, kept.execution_count = list(outputs), 1
    notebook.metadata["mindeye2_lite"] = {"fingerprint": book.fingerprint(source)}
    book.executed(source).parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, book.executed(source))


def test_the_repository_is_found_from_any_folder_inside(root):
    assert book.find_root(root / "mindeye2_lite" / "weights") == root


def test_outside_a_repository_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "PACKAGE", tmp_path / "site-packages" / "mindeye2_lite")
    with pytest.raises(ValueError, match="not inside a clone"):
        book.find_root(tmp_path)


def test_a_notebook_that_has_not_run_is_not_fresh(root):
    (source,) = book.sources(root)
    assert not book.is_fresh(source)
    pretend_it_ran(source)
    assert book.is_fresh(source)


def test_new_prose_leaves_a_notebook_fresh_and_reaches_the_book(root):
    (source,) = book.sources(root)
    pretend_it_ran(source, [nbformat.v4.new_output("execute_result", {"text/plain": "2"})])
    write(root, nbformat.v4.new_markdown_cell("# 0 · Detour", id="title"), cell("sum", "1 + 1"))
    assert book.is_fresh(source)
    title, total = book.with_outputs(source).cells
    assert title.source == "# 0 · Detour" and total.outputs[0].data["text/plain"] == "2"


@pytest.mark.parametrize(
    ("changed", "content"),
    [
        ("mindeye2_lite/losses.py", "# other losses"),
        ("mindeye2_lite/weights/mini-frob.safetensors", "weights"),
        ("constraints.txt", "torch==0"),
    ],
)
def test_what_a_notebook_runs_on_decides_whether_it_is_fresh(root, changed, content):
    (source,) = book.sources(root)
    pretend_it_ran(source)
    (root / changed).write_text(content)
    book._surroundings.cache_clear()
    assert not book.is_fresh(source)


def test_new_code_makes_a_notebook_stale(root):
    (source,) = book.sources(root)
    pretend_it_ran(source)
    write(root, cell("sum", "1 + 2"))
    assert not book.is_fresh(source)


def test_running_keeps_outputs_and_is_done_once(root, capsys):
    book.execute_all(root)
    (source,) = book.sources(root)
    assert book.with_outputs(source).cells[1].outputs[0].data["text/plain"] == "2"
    book.execute_all(root)
    assert capsys.readouterr().out.splitlines()[-1] == "[ 1/1] 00_tour: fresh"
    assert [path.name for path in book.executed(source).parent.iterdir()] == [source.name]


def test_a_notebook_that_fails_stops_with_one_line_and_stays_stale(root):
    source = write(root, cell("fail", "raise ValueError('session 41 does not exist')"))
    with pytest.raises(OSError, match="00_tour.ipynb failed.*session 41 does not exist") as error:
        book.execute_all(root)
    assert "\n" not in str(error.value)
    assert not book.is_fresh(source)


def test_the_mirror_holds_the_notebooks_with_outputs_and_nothing_else(root):
    (source,) = book.sources(root)
    pretend_it_ran(source, [nbformat.v4.new_output("stream", text="hello")])
    mirror = root / "book" / "notebooks"
    mirror.mkdir()
    (mirror / "stranger.ipynb").touch()
    gather = extension("gather_notebooks").gather
    gather(root, mirror)
    assert [path.name for path in mirror.iterdir()] == ["00_tour.ipynb"]
    before = (mirror / "00_tour.ipynb").stat().st_mtime_ns
    gather(root, mirror)
    assert (mirror / "00_tour.ipynb").stat().st_mtime_ns == before


def test_pieces_of_one_stream_are_one_box_and_other_outputs_keep_their_place(root):
    (source,) = book.sources(root)

    def said(text, name="stdout"):
        return nbformat.v4.new_output("stream", text=text, name=name)

    bar = nbformat.v4.new_output("display_data", {book.WIDGET: {}})
    figure = nbformat.v4.new_output("display_data", {"text/plain": "<Figure>"})
    ran = [said("1\n"), said("2\n"), bar, said("3\n"), said("!\n", "stderr"), figure, said("4\n")]
    pretend_it_ran(source, ran)
    shown = book.with_outputs(source).cells[1].outputs
    assert [out.get("text", "figure") for out in shown] == ["1\n2\n3\n", "!\n", "figure", "4\n"]


def test_sliders_that_need_a_kernel_are_not_in_the_book(root):
    (source,) = book.sources(root)
    slider = nbformat.v4.new_output("display_data", {book.WIDGET: {}, "text/plain": "IntSlider()"})
    pretend_it_ran(source, [slider])
    assert book.with_outputs(source).cells[1].outputs == []


def test_student_copies_lack_the_solutions_and_nothing_else(root):
    exercise = cell("stub", "raise NotImplementedError", "exercise")
    solution = cell("answer", "42", "solution", "hide-cell")
    write(root, exercise, solution, cell("check", "1", "check"))
    (copy,) = book.student_copies(root)
    assert [kept.id for kept in nbformat.read(copy, as_version=4).cells] == ["stub", "check"]


# -- tables from files -----------------------------------------------------------------------------


def test_a_table_shows_what_the_file_says():
    results = extension("results_table")
    found = {"value": 0.98765, "low": 0.97, "high": 0.99, "n": 500, "chance": 1 / 12}
    (row,) = results.records({"found": {"mini-frob": {"kind": found}}})
    assert row == {
        "name": "mini-frob",
        "measure": "kind",
        "value": "0.988",
        "95% interval": "0.970 to 0.990",
        "chance": "0.083",
        "n": 500,
    }


def test_shares_have_one_length_and_other_numbers_three_digits():
    shown = extension("results_table").shown
    assert [shown(x) for x in (0.39, 0.457, 0.2, 0.05, 1.0)] == [
        "0.390", "0.457", "0.200", "0.050", "1.000"
    ]  # fmt: skip
    assert [shown(x) for x in (28.93, 30.0, 123.4, 0.0, 2e-5)] == [
        "28.9", "30.0", "123", "0.000", "2e-05"
    ]  # fmt: skip


def test_a_manifest_becomes_one_row_per_file():
    results = extension("results_table")
    (row,) = results.records({"mini-frob": {"bytes": 1234567, "made": {"seed": 0}}})
    assert row["name"] == "mini-frob" and results.shown(row["bytes"]) == "1,234,567"


def test_a_difference_has_its_sign_and_interval_and_a_thing_beside_itself_has_none():
    results = extension("results_table")
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100, "chance": 0.01}
    apart = {"value": -0.0123, "low": -0.03, "high": 1e-17}
    same = dict.fromkeys(apart, 0.0)
    found = {"one hour": {"ours": score | {"difference": same}, "other": score}}
    found["one hour"]["other"] = score | {"difference": apart}
    ours, other = results.records({"found": found})
    assert ours["difference"] == "–" and other["difference"] == "−0.012 (−0.030 to 0)"


def test_columns_can_be_called_otherwise():
    results = extension("results_table")
    columns, heads = results.wanted("name as measure, measure as way, value")
    assert columns == ["name", "measure", "value"]
    shown = results.table(columns, [dict.fromkeys(columns, "x")], heads)
    assert [entry.astext() for entry in shown[0][-2][0]] == ["measure", "way", "value"]
    assert results.wanted("") == ([], {})


def test_the_plan_on_the_page_is_the_plan_of_the_command(monkeypatch):
    from mindeye2_lite import plan
    from mindeye2_lite.config import Config

    monkeypatch.syspath_prepend(BOOK / "_ext")  # where Sphinx finds one extension from another
    table = extension("plan_table")
    planned = plan.plan(Config.lite(), gpu_gb=16, sessions=1)
    rows = table.rows(planned)
    assert [row["all"] for row in rows] == [f"{need.gpu:.1f}" for need in planned.needs]
    assert all(set(row) == set(table.COLUMNS) for row in rows)
    assert f"{planned.parameters['all']:,} parameters" in table.summary(planned)
    assert rows[0]["smallest card"] == "16 GB"


def test_a_published_table_is_on_the_page_as_it_is_printed(monkeypatch):
    monkeypatch.syspath_prepend(BOOK / "_ext")
    rows, source = extension("claims_table").published_rows("Table 1")
    assert rows[0]["system"] == "MindEye2, refined" and rows[0]["sessions"] == 40
    assert (rows[0]["PixCorr"], rows[0]["Alex(2)"]) == ("0.322", "96.1")
    assert "condition" not in rows[0] and source.endswith("Table 1")
    with pytest.raises(ValueError, match="no table 'Table 99' is quoted"):
        extension("claims_table").published_rows("Table 99")


def test_every_claim_is_on_the_page_with_its_direction(monkeypatch):
    from mindeye2_lite import claims

    monkeypatch.syspath_prepend(BOOK / "_ext")
    told = claims.overview()
    items = extension("claims_table").claim_items(told)
    assert len(items) == len(claims.CLAIMS)
    for (claim, came, why), row in zip(items, told.itertuples(), strict=True):
        assert row.text in claim and row.source in claim and why == row.why
        assert came.startswith(row.direction)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "mindeye2_lite" / "results").glob("*.json")), ids=str
)
def test_every_results_file_says_where_it_comes_from(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    own = {"command", "commit", "profile", "seed", "device", "seconds"}
    assert own <= set(content) or "quoted_from" in content
