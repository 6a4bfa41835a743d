"""Every notebook is kept the way CONTRIBUTING.md says. Running them is nbval's job."""

import ast
import functools
import re
import tomllib
from pathlib import Path

import nbformat
import pytest

from mindeye2_lite.book import NEED_ITS_MODEL, PRETRAINS

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
PARAMETERS = {"profile", "subject", "seed"}  # every notebook takes these three
LONGEST_CODE_CELL, LONGEST_LINE = 25, 79  # lines; columns that the book shows
MYST = re.compile(r"^(```|:::+)\{|\{[a-z:]+\}`", re.MULTILINE)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@functools.cache
def read(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture
def notebook(path):
    """Read once for all tests: do not change it."""
    return read(path)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def syntax(cell):
    """The cell's code as a tree; lines that are Jupyter's and not Python's left out."""
    return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE))


def names(cell, kind):
    """Names that a cell reads (ast.Load), or that it assigns or defines at its top (ast.Store)."""
    tree = syntax(cell)
    if kind is ast.Load:
        nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
        return {node.id for node in nodes if isinstance(node.ctx, ast.Load)}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    targets = (node for part in tree.body for node in ast.walk(part) if isinstance(node, ast.Name))
    outer = {node.id for node in targets if isinstance(node.ctx, ast.Store)}
    return defined | (set() if defined else outer)


def test_they_are_numbered_in_reading_order():
    assert [int(path.stem[:2]) for path in NOTEBOOKS] == [*range(15)]


def test_make_test_knows_which_notebooks_need_the_model_that_another_pretrains():
    asks = re.compile(r"pipeline\.tuned\(|stand_ins\.where\(|load_or_train\(\s*\"pretrained\"")
    code = {path.stem: "\n".join(c.source for c in code_cells(read(path))) for path in NOTEBOOKS}
    found = {name for name, source in code.items() if asks.search(source)}
    assert found == {PRETRAINS, *NEED_ITS_MODEL}, "give it its place in book.py"


def test_carries_no_outputs(notebook):
    for cell in code_cells(notebook):
        assert not cell.outputs and cell.execution_count is None, "run `make strip`"


def test_carries_no_more_metadata_than_its_language(notebook):
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata.get("language_info", {})) <= {"name"}


def test_cells_have_names(notebook):
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in ids), ids


def test_opens_with_its_number_a_question_and_a_badge_that_opens_itself(path, notebook):
    title = notebook.cells[0].source
    assert title.startswith(f"# {int(path.stem[:2])} · ")
    assert re.search(r"\*[^*]+\?\*", title), "the question, in italics"
    slug = REPOSITORY.removeprefix("https://github.com/")
    assert (
        f"(https://colab.research.google.com/github/{slug}/blob/main/notebooks/{path.name})"
        in title
    )


def test_has_one_parameters_cell_near_the_top(notebook):
    (cell,) = tagged(notebook, "parameters")
    assert notebook.cells.index(cell) <= 3
    assert PARAMETERS <= set(re.findall(r"^(\w+)(?:: \w+)? =", cell.source, re.MULTILINE))


def test_parameters_are_plain_numbers_and_words(notebook):
    (cell,) = tagged(notebook, "parameters")
    for statement in syntax(cell).body:
        assert isinstance(ast.literal_eval(statement.value), int | float | str | bool | None)


def test_installs_itself_where_the_import_fails(notebook):
    opening = "\n".join(cell.source for cell in code_cells(notebook)[:3])
    assert "ImportError" in opening or "ModuleNotFoundError" in opening
    assert "pip install" in opening and REPOSITORY.removeprefix("https://") in opening


def test_every_exercise_has_a_solution_and_a_check(notebook):
    tags = ("exercise", "solution", "check")
    counts = {tag: len([c for c in tagged(notebook, tag) if c.cell_type == "code"]) for tag in tags}
    assert len(set(counts.values())) == 1, counts
    assert 2 <= counts["check"] <= 4


def test_solutions_are_folded_and_stubs_raise(notebook):
    for cell in tagged(notebook, "solution"):
        assert "hide-cell" in cell.metadata.tags
    for cell in tagged(notebook, "exercise"):
        assert cell.cell_type == "markdown" or "NotImplementedError" in cell.source


def test_nothing_depends_on_an_exercise(notebook):
    answers = [cell for tag in ("exercise", "solution") for cell in tagged(notebook, tag)]
    written = {name for c in answers if c.cell_type == "code" for name in names(c, ast.Store)}
    free = [
        c for c in code_cells(notebook) if c not in answers and c not in tagged(notebook, "check")
    ]
    elsewhere = {name for cell in free for name in names(cell, ast.Store)}
    needed = {name for cell in free for name in names(cell, ast.Load)}
    assert needed & (written - elsewhere) == set()


def test_explorers_are_left_out_of_the_book(notebook):
    for cell in code_cells(notebook):
        if re.search(r"\b(teaching\.)?widget\(|\binteract(ive|ive_output)?\(", cell.source):
            assert {"widget", "remove-cell"} <= set(cell.metadata.get("tags", [])), cell.id
    assert tagged(notebook, "widget"), "at least one explorer"


def test_code_cells_are_short_and_narrow(notebook):
    for cell in code_cells(notebook):
        lines = cell.source.splitlines()
        assert len(lines) <= LONGEST_CODE_CELL or "setup" in cell.id, cell.id
        assert max(map(len, lines), default=0) <= LONGEST_LINE, cell.id


def test_prose_is_plain_markdown(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert not MYST.search(cell.source), f"{cell.id}: Colab shows this as raw text"
            assert cell.source.count("$$") % 2 == 0, cell.id


def test_claims_what_can_be_seen(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "**What you should see.**" in text
    assert "**Predict first" in text


def test_writes_nothing_beside_itself(notebook):
    for cell in code_cells(notebook):
        assert not re.search(r"savefig\(|\.to_csv\(|open\([^)]*[\"']w", cell.source), cell.id


def test_where_files_may_be_stand_ins_every_output_says_which():
    notebook = nbformat.read(ROOT / "notebooks" / "13_real_nsd.ipynb", as_version=4)
    answers = [cell for tag in ("exercise", "solution") for cell in tagged(notebook, tag)]
    silent = []
    for cell in code_cells(notebook):
        tree = syntax(cell).body
        shows = isinstance(tree[-1], ast.Expr) or {"print", "viz"} & names(cell, ast.Load)
        says = re.search(r"here\.say\(\)|stand_ins\.where\(", cell.source)
        if shows and cell not in answers and not says:
            silent.append(cell.id)
    assert silent == []
