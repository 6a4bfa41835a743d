"""The package is put together the way CONTRIBUTING.md says, inside and outside."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import mindeye2_lite

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mindeye2_lite"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PROJECT["project"]["urls"]["Repository"]

# A module may import modules of its own row and of those above.
ROWS = """
config paths tar_records
layout executors
layout_writing
ridge backbone low_level prior losses released
pixels metrics captions_metrics retrieval verdict intervals permutation
viz viz_data viz_results teaching
sprites painting backdrops scenes
unclip_sampling unclip_names unclip_released
nsd_sessions
nsd_masks nsd_tables
nsd_raw
trial_access nsd_statistics nsd_match nsd_compare
glmsingle own_pictures own_split own_events own_checks
own_data own_files
inspection_files nsd encoders released_networks paper_judges text_towers unclip captions \
converter_training refine sdxl
brain_correlation overlap
inspection voxel_model responses cohort_forms synthetic stranger full_size
surfaces
model
parts feed hardware
loop train
asset_table assets step_memory plan
pipeline stages stand_ins replay
baselines ridge_maps mindeye1 variants controls out_of_distribution
experiments
sources grids
sweeps sweep_tables
claims small_points
measuring ways_of_reading ways_of_scoring benchmarks
training_miniatures
book doctor
cli
"""
ROW = {name: row for row, line in enumerate(ROWS.split("\n")) for name in line.split()}
MODEL = {"ridge", "backbone", "low_level", "prior", "losses", "released"}  # read and cited alone
LARGE = {"diffusers", "transformers", "open_clip"}  # take seconds to import
FOR_NOTEBOOKS = {"viz", "viz_data", "viz_results", "teaching"}

MODULES = sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def tracked() -> list[Path]:
    """Every file in git; in a download without git, every file that git would hold."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode == 0 and listing.stdout:
        return [path for line in listing.stdout.splitlines() if (path := ROOT / line).is_file()]
    made = {".git", ".venv", "_build", "__pycache__", ".pytest_cache", ".ruff_cache"}
    ours = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [ROOT / path for path in ours if not made & set(path.parts)]


def texts() -> dict[str, str]:
    """The tracked files that are text and our own writing."""
    kinds = {".py", ".md", ".ipynb", ".toml", ".yml", ".yaml", ".cff", ".txt", ".json", ".css"}
    ours = [path for path in tracked() if path.suffix in kinds or path.name in {"Makefile", "run"}]
    ours = [path for path in ours if "_extra" not in path.parts]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ours}


def imported(node: ast.AST) -> list[str]:
    """Dotted names that an import statement brings in, `from a import b` as a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports(path: Path, everywhere: bool) -> set[str]:
    """What a module imports: everywhere in it, or only where it is itself imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else tree.body
    return {name for node in nodes for name in imported(node)}


def siblings(path: Path) -> set[str]:
    """Modules of the package that a module imports, also inside functions."""
    names = (name.split(".") for name in imports(path, everywhere=True))
    return {parts[1] for parts in names if parts[0] == "mindeye2_lite" and parts[1] in ROW}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_go_one_way(path):
    assert path.stem in ROW, "a new module: give it a row above, and say why it stands there"
    assert {name for name in siblings(path) if ROW[name] > ROW[path.stem]} == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_large_libraries_are_imported_when_they_are_needed(path):
    at_once = {name.split(".")[0] for name in imports(path, everywhere=False)}
    assert at_once & LARGE == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_figures_and_exercises_are_for_notebooks(path):
    if path.stem not in {
        "cli",
        "viz_data",
        "viz_results",
    }:  # `picture`, `inspect` draw; one palette
        assert siblings(path) & FOR_NOTEBOOKS == set()
    if path.stem in FOR_NOTEBOOKS:
        assert siblings(path) == ({"viz"} if path.stem.startswith("viz_") else set())


@pytest.mark.parametrize("name", sorted(MODEL))
def test_the_model_needs_torch_and_little_else(name):
    outside = {name.split(".")[0] for name in imports(PACKAGE / f"{name}.py", everywhere=False)}
    small = {"torch", "einops", "jaxtyping", "numpy", "mindeye2_lite", *sys.stdlib_module_names}
    assert outside <= small


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_profile_is_a_set_of_sizes_and_never_a_code_path(path):
    compared = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare | ast.Match)
        and re.search(r"\bprofile\b", ast.unparse(node))
    ]
    assert path.stem == "config" or compared == []


def test_the_readme_has_a_line_for_every_module():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What lies where")[2]
    named = set(re.findall(r"\b(\w+)\.py\b", tree))
    assert named == {path.stem for path in MODULES}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package built from a copy, so that nothing is left in the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(PACKAGE, folder / "mindeye2_lite", ignore=shutil.ignore_patterns("__pycache__"))
    # the one call that matters of `pip wheel`, which starts three processes around it
    build = f"import {PROJECT['build-system']['build-backend']} as b; b.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    (path,) = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that the wheel's files lie in once it is installed."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_a_wheel_carries_weights_and_results(wheel):
    assert wheel.name.startswith(f"mindeye2_lite-{mindeye2_lite.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    shipped = [*PACKAGE.glob("weights/*"), *PACKAGE.glob("results/*.json"), *PACKAGE.glob("*.py")]
    assert {path.relative_to(ROOT).as_posix() for path in shipped} <= inside
    assert not [name for name in inside if name.startswith(("tests", "book", "notebooks"))]


def test_the_installed_wheel_finds_its_own_weights(installed):
    code = "from mindeye2_lite import doctor, paths; print(paths.PACKAGE.parent);"
    code += "print({w.state for w in doctor.check_weights()})"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=installed,
        env={"PYTHONPATH": str(installed), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert found.stdout.splitlines() == [str(installed), "{'ok'}"], found.stderr


def test_the_version_stands_in_one_place():
    assert PROJECT["project"]["dynamic"] == ["version"]
    stated = re.compile(rf"version\W+{re.escape(mindeye2_lite.__version__)}(?!\d)")
    ours = {name: text for name, text in texts().items() if name != "constraints.txt"}
    places = [name for name, text in ours.items() if stated.search(text)]
    assert places in ([], ["mindeye2_lite/__init__.py"])
    assert mindeye2_lite.__version__ in (PACKAGE / "__init__.py").read_text(encoding="utf-8")


def test_conda_gets_python_and_leaves_the_rest_to_pip():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert [Requirement(spec.replace("=", "==")).name for spec in conda] == ["python", "pip"]
    python = Version(conda[0].partition("=")[2])
    assert python in Requirement("python" + PROJECT["project"]["requires-python"]).specifier
    constraints, editable = pip["pip"]
    assert (ROOT / constraints.removeprefix("-c ")).is_file()
    extras = Requirement(f"mindeye2-lite{editable.removeprefix('-e .')}").extras
    assert extras <= set(PROJECT["project"]["optional-dependencies"])


def pinned() -> dict[str, Version]:
    """Names and versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines)
    return {re.sub(r"[-_.]+", "-", name).lower(): Version(version) for name, version in pairs}


def test_the_pinned_versions_satisfy_the_ranges_and_leave_none_out():
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["book"], *extras["dev"]]
    for requirement in map(Requirement, wanted):
        version = pinned()[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert version in requirement.specifier, requirement


def test_the_pinned_versions_serve_every_system():
    assert not [name for name in pinned() if name.startswith(("nvidia", "cuda", "triton"))]


def test_no_file_knows_the_machine_it_was_written_on():
    path = re.compile(r"(?<![\w.:/])/(?:work|root|tmp|home|Users)/\w")
    assert [name for name, text in texts().items() if path.search(text)] == []


def test_there_is_one_address_of_the_repository():
    slug = REPOSITORY.removeprefix("https://github.com/")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert config["repository"]["url"] == REPOSITORY
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["repository-code"] == REPOSITORY
    for name, text in texts().items():
        assert set(re.findall(r"github(?:\.com)?/([\w.-]+/mindeye2-lite)\b", text)) <= {slug}, name


PAGES = sorted(name for name in texts() if name.endswith((".md", ".ipynb")))


def prose(page: Path) -> str:
    """The Markdown of a page; of a notebook, that of its text cells."""
    if page.suffix == ".md":
        return page.read_text(encoding="utf-8")
    cells = nbformat.read(page, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("name", PAGES)
def test_links_and_badges_point_to_files_that_exist(name):
    page = ROOT / name
    text = prose(page)
    marks = re.findall(r"\]\(<?([^()\s>]+)>?\)|\{figure\} (\S+)|:link: (\S+)", text)
    badge = re.compile(
        r"https://colab\.\S+/blob/main/(\S+)|https://github\.com/\S+/blob/main/(\S+)"
    )
    for target in ("".join(mark) for mark in marks):
        if opened := badge.match(target):
            assert (ROOT / (opened[1] or opened[2])).is_file(), target
        elif not target.startswith(("http", "#", "mailto:")):
            assert exists(page.parent, target.partition("#")[0]), target


def exists(folder: Path, target: str) -> bool:
    """Whether a link leads somewhere, from the book also through its mirror of the notebooks."""
    bases = [folder, ROOT] if folder == ROOT / "book" else [folder]
    names = [target, f"{target}.md", f"{target}.ipynb"]
    return any((base / name).is_file() for base in bases for name in names)


def test_calls_into_the_package_are_checked_against_their_annotations():
    import torch
    from beartype.roar import BeartypeCallHintParamViolation
    from jaxtyping import TypeCheckError

    from mindeye2_lite import paths, retrieval

    with pytest.raises(TypeCheckError):  # shapes
        retrieval.similarities(torch.zeros(()), torch.zeros(2, 3))
    with pytest.raises(BeartypeCallHintParamViolation):  # a module that speaks of none
        paths.runs(3)
