"""Stand-ins have the released form, and hold what they stand in with."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch

from mindeye2_lite import (
    assets,
    captions,
    encoders,
    pipeline,
    released,
    stand_ins,
    synthetic,
    unclip,
    unclip_names,
    unclip_released,
)
from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2

SMALL = dataclasses.replace(Config.lite(), hidden=16, prior_depth=1)


@pytest.fixture(scope="module")
def model():
    return MindEye2.from_config(SMALL, {1: 20})


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return stand_ins.write(tmp_path_factory.mktemp("stand-ins"), {(1, 40): model})


@pytest.fixture(scope="module")
def checkpoint(folder):
    return folder / "train_logs/final_subj01_pretrained_40sess_24bs/last.pth"


def test_the_checkpoint_gives_the_model_back_to_the_last_bit(checkpoint, model):
    found = MindEye2.from_released(checkpoint, subjects=(1,)).state_dict()
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_checkpoint_has_the_released_entries_and_names_deepspeed(checkpoint):
    content = released.read(checkpoint)
    entries = ["epoch", "model_state_dict", "optimizer_state_dict", "lr_scheduler"]
    assert list(content) == [*entries, "train_losses", "test_losses", "lrs"]
    assert isinstance(content["optimizer_state_dict"]["loss_scaler"], released.Inert)
    assert "deepspeed" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="deepspeed"):
        torch.load(checkpoint, weights_only=False)


def test_the_names_are_those_of_the_listed_assets(folder):
    names = {file for asset in assets.table() for file in asset.files}
    written = [p for p in folder.rglob("*") if p.suffix in {".pth", ".ckpt"}]
    assert len(written) == 3
    assert {p.relative_to(folder).as_posix() for p in written} <= names


def test_the_stand_in_unclip_decodes_as_the_miniature(folder, tmp_path):
    path = folder / "unclip6_epoch0_step110000.ckpt"
    ours, theirs = unclip.load(), unclip.load_released(path, out=tmp_path, **stand_ins.SIZES)
    tokens = torch.randn(2, 16, 128, generator=torch.Generator().manual_seed(1))
    pictures = [
        unclip.decode(
            decoder, tokens, generator=torch.Generator().manual_seed(0), batch=2,
            num_inference_steps=3, progress=False,
        )
        for decoder in (ours, theirs)
    ]  # fmt: skip
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-4)
    seen = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    latents = [decoder.vae.encode(seen) for decoder in (ours, theirs)]
    torch.testing.assert_close(*latents, rtol=0, atol=1e-4)


def test_its_names_are_sgm_s_and_lead_back():
    names = {p: set() for p in unclip_names.PARTS}
    for key in stand_ins.unclip_state():
        if key != "denoiser.sigmas":
            part, name = unclip_names.target(key, stand_ins.LEVELS, stand_ins.PER_LEVEL)
            names[part].add(name)
    decoder = unclip.load()
    assert names["unet"] == set(decoder.unet.state_dict())
    assert names["vae"] == set(decoder.vae.network.state_dict())


def test_its_image_tower_is_the_miniature_s(folder, tmp_path):
    path = folder / "unclip6_epoch0_step110000.ckpt"
    sizes = {name: stand_ins.SIZES[name] for name in ("head_size", "norm_groups")}
    found = unclip_released.image_tower(path, tmp_path, **sizes)
    expected = encoders.load_clip("mini-bigG").visual.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_converter_loads_like_the_released_one(folder):
    found = captions.load_converter(folder / "bigG_to_L_epoch8.pth").state_dict()
    expected = captions.load().converter.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_what_is_there_is_not_written_again(folder, model, checkpoint):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix in {".pth", ".ckpt"}}
    stand_ins.write(folder, {(1, 40): model})
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize("subject, sessions", [(3, 40), (1, 2)])
def test_a_checkpoint_that_was_never_released_is_refused(subject, sessions):
    with pytest.raises(ValueError, match="was released: there are subjects 1, 2, 5, 7") as error:
        stand_ins.checkpoint_name(subject, sessions)
    assert "\n" not in str(error.value)


@pytest.fixture
def trained(monkeypatch, tmp_path, model):
    """Instead of training: a small model, as if it were kept."""
    run = SimpleNamespace(model=model, folder=tmp_path / "fine-tuned-0123")
    monkeypatch.setattr(pipeline, "tuned", lambda *_, **__: run)
    monkeypatch.setattr(synthetic, "open_cohort", lambda *_, **__: tmp_path / "cohort")
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path))


def test_without_the_real_files_there_are_stand_ins_that_say_so(trained, capsys):
    here = stand_ins.where(Config.paper(), 1)
    assert not here.real and here.config == Config.lite()
    assert here.checkpoint(1).is_file() and here.checkpoint(40).is_file()
    assert here.folder in here.unclip_options["out"].parents, "apart from the real one"
    here.say()
    assert capsys.readouterr().out.startswith("STAND-IN") and here.note.startswith("STAND-IN")


def test_with_the_real_files_there_are_these(trained, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MINDEYE2_LITE_ASSETS", str(tmp_path / "real"))
    monkeypatch.setattr(assets, "state", lambda asset: "here")
    here = stand_ins.where(Config.paper(), 5)
    assert here.real and here.note == "" and here.data == tmp_path / "real"
    folder = tmp_path / "real/train_logs"
    assert here.checkpoint(1) == folder / "final_subj05_pretrained_1sess_24bs/last.pth"
    assert here.config.decoder == "sdxl-unclip" and here.unclip_options == {}
    here.say()
    assert "STAND-IN" not in capsys.readouterr().out


def test_one_missing_file_is_enough_for_stand_ins(trained, monkeypatch):
    gone = "wds/subj01/new_test/0.tar"
    monkeypatch.setattr(assets, "state", lambda asset: "missing" if gone in asset.files else "here")
    assert not stand_ins.where(Config.paper(), 1).real


def test_a_checkpoint_of_other_sessions_is_not_missed(trained, monkeypatch):
    monkeypatch.setattr(
        assets, "state", lambda asset: "missing" if "_1sess_" in asset.name else "here"
    )
    assert stand_ins.where(Config.paper(), 1, sessions=40).real
    assert not stand_ins.where(Config.paper(), 1, sessions=1).real
    assert not stand_ins.where(Config.colab(), 1, sessions=1).real, "of the same, larger file"


def test_small_profiles_never_ask_for_real_files(trained, monkeypatch):
    monkeypatch.setattr(assets, "state", lambda asset: "here")
    assert not stand_ins.where(Config.lite(), 1).real
