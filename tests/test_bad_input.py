"""A user's mistake costs one clear line, and nothing half-written is left behind.

Met where a user meets it: at the command line, in a notebook's first cells, in a full folder. What
single modules say of bad input is tested beside them.
"""

import ast
import errno
import functools
import os
import re
import shutil
from pathlib import Path

import h5py
import nbformat
import pytest
import torch
from full_disk import no_file_over

from mindeye2_lite import cli, encoders, nsd, paths, pipeline, synthetic, train
from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
BETAS = "betas_all_subj01_fp32_renorm.hdf5"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder; whoever begins to train fails."""

    def trains(*_, **__):
        raise AssertionError("training began before the mistake was found")

    monkeypatch.setattr(train, "load_or_train", trains)
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(small_root, monkeypatch):
    """A prepared cohort that the command line and the notebooks read."""
    monkeypatch.setenv("MINDEYE2_LITE_DATA", str(small_root))


@pytest.fixture
def damaged(small_root, tmp_path, monkeypatch):
    """A prepared cohort that a test may damage, and that the command line reads."""
    shutil.copytree(small_root, tmp_path / "data" / "lite")
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "data").symlink_to(tmp_path / "data")  # what is made is counted apart
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data" / "lite"


@pytest.fixture
def complaint(capsys):
    """Run a command that must fail; what it says after its name, in one line and no more."""

    def run(*arguments) -> str:
        capsys.readouterr()
        assert cli.main([str(a) for a in arguments]) == 1
        said = capsys.readouterr().err
        (line,) = [text for text in said.splitlines() if text.startswith("mindeye2-lite: ")]
        assert "Traceback" not in said and said.endswith(line + "\n")
        return line.removeprefix("mindeye2-lite: ")

    return run


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# -- betas cut short ------------------------------------------------------------------------------


def test_preparing_betas_cut_short_names_the_file_and_leaves_nothing(
    small_raw, tmp_path, complaint
):
    raw, out = shutil.copytree(small_raw, tmp_path / "raw"), tmp_path / "out"
    (path,) = raw.rglob("betas_session03.hdf5")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "betas_session03.hdf5 is cut short" in complaint("prepare", raw, out)
    assert not [p for p in files(out) if p.name.startswith("betas") or p.suffix == ".part"]


def test_running_on_betas_cut_short_names_the_file(damaged, cache, complaint):
    path = damaged / BETAS
    path.write_bytes(path.read_bytes()[:100_000])
    assert f"{BETAS} is cut short" in complaint("run")
    assert not files(cache)


# -- a wrong voxel count --------------------------------------------------------------------------


def test_running_on_betas_of_another_mask_names_both_counts(damaged, cache, complaint):
    with h5py.File(damaged / BETAS, "a") as file:
        fewer = file["betas"][:, :900]
        del file["betas"]
        file["betas"] = fewer
    line = complaint("run")
    assert "983 voxels" in line and "900" in line
    assert not files(cache)


def test_a_model_of_other_voxels_is_told_both_counts(small_root):
    person = nsd.Subject(small_root, 1)
    model = MindEye2.from_config(Config.lite(), {1: 900})
    line = r"^subject 1's ridge map takes 900 voxels, got 983[^\n]*$"
    with pytest.raises(ValueError, match=line):
        pipeline.reconstruct(model, person.test(), person.images, Config.lite(), limit=2)


# -- a session, a subject, a profile that does not exist ------------------------------------------


@pytest.mark.parametrize("sessions", [0, 5, 99, -1])
def test_a_session_that_does_not_exist_is_noticed_before_anything_is_trained(
    sessions, damaged, cache, complaint
):
    line = complaint("run", "--sessions", sessions)
    assert line == f"subject 1 has sessions 1 to 4; asked for {sessions}"
    assert not files(cache)


@pytest.mark.parametrize("images", [0, -3])
def test_fewer_than_one_picture_is_refused(images, data, cache, complaint):
    assert f"images is {images}" in complaint("run", "--images", images)


def test_a_subject_that_does_not_exist_is_told_who_there_is(damaged, cache, complaint):
    assert re.match(r"no subject 9 in .*: there are \[1\]", complaint("run", "--subject", 9))
    assert not files(cache)


def test_an_unknown_profile_is_told_the_three_there_are(cache, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["run", "--profile", "huge"])
    said = capsys.readouterr().err
    assert leaving.value.code == 2 and said.count("\n") == 1
    assert all(name in said for name in ("huge", "lite", "colab", "paper"))
    assert not files(cache)


# -- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["one byte changed", "cut short", "empty"])
def test_weights_that_are_not_the_shipped_ones_are_refused_by_their_hash(damage, tmp_path):
    content = bytearray(paths.weights("mini-vicreg").read_bytes())
    content[len(content) // 2] ^= 1
    end = {"one byte changed": None, "cut short": -100, "empty": 0}[damage]
    (tmp_path / "mini-vicreg.safetensors").write_bytes(content[:end])
    with pytest.raises(ValueError, match="SHA-256 is .*, the shipped mini-vicreg has") as error:
        encoders.load_weights("mini-vicreg", tmp_path / "mini-vicreg.safetensors")
    assert "reinstall the package" in str(error.value) and "\n" not in str(error.value)


def test_weights_that_are_missing_say_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="mindeye2-lite miniatures mini-vae") as error:
        encoders.load_weights("mini-vae", tmp_path / "mini-vae.safetensors")
    assert "\n" not in str(error.value)


def test_a_file_of_something_else_is_not_taken_for_a_model(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="model.safetensors") as error:
        MindEye2.from_released(path)
    assert "\n" not in str(error.value)


# -- a cache folder that is read-only or full -----------------------------------------------------


def test_a_cache_folder_below_a_file_is_named(tmp_path, monkeypatch, complaint):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path / "file" / "cache"))
    line = complaint("run")
    assert str(tmp_path / "file") in line and "MINDEYE2_LITE_CACHE" in line


def test_a_read_only_cache_folder_is_named(tmp_path, monkeypatch, complaint):
    def read_only(*_, **__):  # a real one would not stop the superuser
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(paths.tempfile, "TemporaryFile", read_only)
    line = complaint("run")
    assert f"cannot write to {tmp_path / 'cache'}: Read-only file system" in line
    assert "MINDEYE2_LITE_CACHE" in line and not files(tmp_path)


def test_a_cohort_that_does_not_fit_leaves_nothing(tmp_path, monkeypatch, complaint):
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path))

    def write(root, progress):
        small = root / "somewhere" / "betas.hdf5"
        small.parent.mkdir(parents=True)
        small.write_bytes(bytes(200_000))

    monkeypatch.setattr(synthetic, "write_cohort", write)
    with no_file_over(100_000):
        line = complaint("prepare")
    assert "cannot write" in line and "MINDEYE2_LITE_CACHE" in line
    assert not files(tmp_path)


@pytest.mark.parametrize("what", ["safetensors", "torch", "text"])
def test_a_full_disk_gives_one_line_whoever_writes(what, tmp_path):
    from safetensors.torch import save_file

    big = {"x": torch.zeros(100_000)}
    save = {
        "safetensors": lambda path: save_file(big, path),
        "torch": lambda path: torch.save(big, path),
        "text": lambda path: path.write_text("x" * 200_000),
    }[what]
    target = tmp_path / "file"
    target.write_text("old")
    with (
        no_file_over(100_000),
        pytest.raises(OSError, match="free space or set MINDEYE2_LITE_CACHE") as error,
        paths.write_beside(target) as beside,
    ):
        save(beside)
    assert str(target) in str(error.value) and "\n" not in str(error.value)
    assert target.read_text() == "old" and files(tmp_path) == [target]


def test_targets_that_do_not_fit_leave_nothing(small_root, cache):
    images = nsd.Subject(small_root, 1).images
    with no_file_over(20_000), pytest.raises(OSError, match="free space"):
        encoders.targets(images, torch.arange(8), Config.lite(), progress=False)
    assert not files(cache)


# -- notebook parameters --------------------------------------------------------------------------


@functools.cache
def parameters_and_setup(path: Path) -> tuple[str, str]:
    """The source of a notebook's parameters cell, and of the first cell of code after it."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    (at,) = [i for i, c in enumerate(cells) if "parameters" in c.metadata.get("tags", [])]
    setup = re.sub(r"^(\s*)[%!].*$", r"\1pass", cells[at + 1].source, flags=re.MULTILINE)
    return cells[at].source, setup


def every_parameter() -> list:
    cases = []
    for path in NOTEBOOKS:
        for statement in ast.parse(parameters_and_setup(path)[0]).body:
            name = statement.targets[0].id
            cases.append(pytest.param(path, name, id=f"{path.stem}-{name}"))
    return cases


@pytest.mark.parametrize(("path", "name"), every_parameter())
def test_a_notebook_parameter_of_the_wrong_kind_stops_the_setup_cell_in_one_line(
    path, name, cache, data
):
    parameters, setup = parameters_and_setup(path)
    with pytest.raises(ValueError) as error:  # as papermill does it: -p NAME wrong
        exec(f"{parameters}\n{name} = 'wrong'\n{setup}", {"__name__": "__main__"})
    assert re.fullmatch(rf'{name} must be [^\n]+, got "wrong"', str(error.value))
    assert not files(cache)
