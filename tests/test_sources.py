"""A sweep's numbers are of one code, one set of weights and one set of data."""

import json
from pathlib import Path

import pytest

from mindeye2_lite import paths, sources
from mindeye2_lite.config import Config

LITE = Config.lite()
MODULES = {path.stem for path in paths.PACKAGE.glob("*.py")} - {"__init__"}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "provenance.json").write_text(json.dumps({"seed": 0, "scale": 1}))
    return tmp_path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of four modules, of which one has no say."""
    folder = tmp_path / "mindeye2_lite"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "manifest.json").write_text("{}")
    code = {
        "grids": "from mindeye2_lite import model\ndef f():\n    from . import cli",
        "model": "'''Motive.'''\nfrom .ridge import linear  # why\n",
        "ridge": "linear = 2",
        "cli": "from mindeye2_lite import unreached",
        "unreached": "",
    }
    for name, text in code.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(paths, "PACKAGE", folder)
    return folder


def test_every_module_is_measured_or_is_said_to_have_no_say():
    found = {path.stem for path in sources.measured(LITE)}
    assert found & (sources.NO_SAY | sources.FULL_SIZE) == set()
    assert MODULES - found - sources.NO_SAY - sources.FULL_SIZE == set()
    assert {"grids", "pipeline", "metrics", "loop", "synthetic", "sprites", "config"} <= found


def test_real_networks_have_a_say_where_the_data_are_real():
    assert {"sdxl", "released_networks"} <= {p.stem for p in sources.measured(Config.paper())}


def test_imports_are_followed_also_inside_functions_and_if_relative(package):
    assert {path.stem for path in sources.measured(LITE)} == {"grids", "model", "ridge"}


@pytest.mark.parametrize(
    "name, text, same",
    [
        ("model", "'''Another motive.'''\n\nfrom .ridge import (linear)\n", True),
        ("cli", "print(1)", True),
        ("ridge", "linear = 3", False),
        ("ridge", "linear = None", False),
        ("weights/manifest", "[]", False),
    ],
)
def test_meaning_counts_and_words_do_not(package, root, name, text, same):
    before, watch = sources.source(LITE, root), sources.Watch(LITE, root)
    (package / name).with_suffix(".json" if "/" in name else ".py").write_text(text)
    assert (sources.source(LITE, root) == before) == same
    if same:
        watch.check()
    else:
        with pytest.raises(ValueError, match="was changed while it ran") as said:
            watch.check()
        assert "\n" not in str(said.value)


def test_data_count(package, root, tmp_path):
    before = sources.source(LITE, root)
    (root / "provenance.json").write_text(json.dumps({"seed": 1, "scale": 1}))
    assert sources.source(LITE, root) != before
    real = Path(tmp_path, "real")
    real.mkdir()
    (real / "betas.hdf5").write_bytes(b"1")
    one = sources.source(LITE, real)
    (real / "betas.hdf5").write_bytes(b"2")
    assert len({before, one, sources.source(LITE, real)}) == 3


def test_a_class_that_only_has_a_docstring_may_change_it():
    assert sources.meaning('class A:\n    "a"') == sources.meaning('class A:\n    "b"')
    assert sources.meaning("x = 'a'") != sources.meaning("x = 'b'")
