"""The command line finds the right function, and a mistake costs one line."""

import hashlib
import json
import subprocess
import sys

import pytest

from mindeye2_lite import cli, doctor


@pytest.mark.parametrize(
    "line",
    ["frobnicate", "", "run --profile large", "run --subject one", "book --fast", "prepare a b c"],
)
def test_a_wrong_command_line_gives_one_line_and_status_two(line, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main(line.split())
    said = capsys.readouterr().err
    assert leaving.value.code == 2
    assert said.startswith("mindeye2-lite") and said.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    ["prepare somewhere", "miniatures mini-frob", "train --accumulate 0", "train --precision int4"],
)
def test_a_wrong_value_gives_one_line_and_status_one(line, capsys):
    assert cli.main(line.split()) == 1
    said = capsys.readouterr().err
    assert said.startswith("mindeye2-lite: ") and said.count("\n") == 1


def test_an_error_of_several_lines_is_told_in_one(monkeypatch, capsys):
    def fail():
        raise OSError("no space\n  left on device")

    monkeypatch.setattr(doctor, "report", fail)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "mindeye2-lite: no space left on device\n"


def test_help_names_every_command_without_loading_torch():
    code = (
        "import sys; from mindeye2_lite import cli; cli.parser().print_help();"
        "assert not {'torch', 'nbformat'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = "run prepare fetch plan train book student miniatures weights doctor"
    assert set(ours.split()) <= set(done.stdout.split())


@pytest.fixture
def shipped(tmp_path):
    """A folder of one weights file and its manifest."""
    (tmp_path / "mini-frob.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps({"mini-frob": {"sha256": digest}}))
    return tmp_path


def test_weights_as_shipped_are_ok(shipped):
    (file,) = doctor.check_weights(shipped)
    assert (file.name, file.state) == ("mini-frob", "ok")


def test_changed_and_missing_weights_are_noticed(shipped):
    (shipped / "mini-frob.safetensors").write_bytes(b"weighty")
    assert doctor.check_weights(shipped)[0].state == "wrong"
    (shipped / "mini-frob.safetensors").unlink()
    assert doctor.check_weights(shipped)[0].state == "missing"


def test_a_folder_without_a_manifest_is_an_error_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="install mindeye2-lite again"):
        doctor.check_weights(tmp_path)


def test_the_weights_in_the_package_are_as_shipped(capsys):
    assert cli.main(["weights"]) == 0
    assert "mini-vae" in capsys.readouterr().out


def test_the_doctor_says_where_things_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path))
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path) in said and "not made yet" in said and "torch" in said
