"""The command line finds the right function, and a mistake costs one line."""

import hashlib
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest

from mindeye2_lite import cli, converter_training, doctor, encoders


@pytest.mark.parametrize(
    "line",
    [
        "frobnicate",
        "",
        "run --profile large",
        "run --subject one",
        "book --fast",
        "prepare a b c",
        "converter",
        "converter images.hdf5",
        "converter a --out b --epochs some",
        "sweep paper-table --seeds some",
        "sweep paper-table --profile large",
    ],  # fmt: skip
)
def test_a_wrong_command_line_gives_one_line_and_status_two(line, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main(line.split())
    said = capsys.readouterr().err
    assert leaving.value.code == 2
    assert said.startswith("mindeye2-lite") and said.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        "prepare somewhere",
        "miniatures mini-frob",
        "train --accumulate 0",
        "train --precision int4",
        "converter nowhere.hdf5 --out c.safetensors",
        "converter nowhere.hdf5 --out c.pth",
        "converter a.hdf5 --out c.safetensors --epochs 0",
        "converter a.hdf5 --out c.safetensors --batch 0",
        "sweep frob",
        "sweep paper-table --seeds 0",
    ],  # fmt: skip
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
    ours = "run prepare fetch plan train converter sweep book student miniatures weights doctor"
    assert set(ours.split()) <= set(done.stdout.split())


@pytest.fixture
def pictures(tmp_path):
    """Three pictures as NSD's files have them."""
    with h5py.File(tmp_path / "images.hdf5", "w") as file:
        file["images"] = np.zeros((3, 3, 8, 8), np.float16)
    return tmp_path / "images.hdf5"


def test_the_converter_is_trained_on_the_pictures_of_a_file(pictures, monkeypatch, capsys):
    asked = {}

    def train(images, out, **how):
        asked.update(how, images=len(images), out=out)
        return [0.5, 0.25]

    monkeypatch.setattr(converter_training, "train_released", train)
    out = pictures.with_name("mine.safetensors")
    line = f"converter {pictures} --out {out} --epochs 3 --batch 2 --seed 5 --device cpu"
    assert cli.main(line.split()) == 0
    assert asked == {
        "images": 3, "out": out, "epochs": 3, "batch": 2, "seed": 5, "device": "cpu"
    }  # fmt: skip
    assert capsys.readouterr().out == f"{out}: squared error 0.5 at first, 0.25 at last\n"


def test_the_converter_command_needs_bigg_and_says_so_in_one_line(pictures, monkeypatch, capsys):
    for name in ("ASSETS", "CACHE"):
        monkeypatch.setenv(f"MINDEYE2_LITE_{name}", str(pictures.parent / "empty"))
    monkeypatch.delenv("MINDEYE2_LITE_DOWNLOAD", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(pictures.parent / "empty"))
    encoders.image_encoder.cache_clear()
    out = pictures.with_name("mine.safetensors")
    assert cli.main(["converter", str(pictures), "--out", str(out), "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("mindeye2-lite: ViT-bigG-14: ") and said.count("\n") == 1
    assert not out.exists()


def test_a_device_that_is_not_here_costs_one_line(pictures, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for device in ("cuda:1", "gpu"):
        line = ["converter", str(pictures), "--out", "c.safetensors", "--device", device]
        assert cli.main(line) == 1
        expected = f"mindeye2-lite: --device {device} is not available here: choose cpu\n"
        assert capsys.readouterr().err == expected


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
