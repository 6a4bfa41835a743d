"""`mindeye2-lite run` and `pipeline.run`: what is asked for reaches training and the pictures."""

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch

from mindeye2_lite import (
    cli,
    nsd,
    pipeline,
    released_networks,
    sdxl,
    stages,
    synthetic,
    train,
)
from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2

LITE = Config.lite()
BETAS = "betas_all_subj01_fp32_renorm.hdf5"


@pytest.fixture
def trained(small_root, monkeypatch):
    """What training is asked for, instead of any: the last model asked for is an untrained one."""
    asked = []
    voxels = {s: nsd.Subject(small_root, 1).num_voxels for s in range(1, 9)}

    def load_or_train(name, config, root, **how):
        asked.append((name, how))
        return train.Run(MindEye2.from_config(config, voxels).eval(), {}, None)

    monkeypatch.setattr(train, "load_or_train", load_or_train)
    return asked


@pytest.fixture
def released(small_root, tmp_path, monkeypatch):
    """The cohort as a released file has it: without the statistics of its sessions."""
    shutil.copytree(small_root, tmp_path / "data")
    with h5py.File(tmp_path / "data" / BETAS, "a") as file:
        for name in ("session_mean", "session_std", "session_trials", "ncsnr"):
            del file[name]
    monkeypatch.setattr(synthetic, "open_cohort", lambda *_, **__: tmp_path / "data")


def test_one_hour_of_the_released_files_runs_where_each_session_scales_itself(released, trained):
    how = {"sessions": 1, "images": 1, "progress": False}
    with pytest.raises(ValueError, match="--normalize all"):
        pipeline.run(LITE, **how)
    assert not trained, "noticed before training"
    assert len(pipeline.run(LITE, normalize="all", **how).seen) == 1
    (_, pretraining), (_, tuning) = trained
    assert tuning["normalize"] == "all"
    assert "normalize" not in pretraining, "all its sessions are known: the same, and the same key"


def test_the_default_adds_nothing_to_what_a_kept_model_is_known_by(trained):
    pipeline.tuned(LITE, Path("root"), 1, 1, progress=False)
    assert [set(how) for _, how in trained] == [
        {"subjects", "seed", "progress"},
        {"subject", "sessions", "start", "seed", "progress"},
    ]


@pytest.mark.parametrize("command", ["run", "train --sessions 1", "train --pretrain"])
def test_the_commands_pass_on_who_scales(command, monkeypatch, tmp_path):
    asked = {}
    for where, name in ((pipeline, "run"), (train, "fine_tune"), (train, "pretrain")):
        monkeypatch.setattr(where, name, lambda *_, **how: asked.update(how))
    line = [*command.split(), "--normalize", "all", "--out", str(tmp_path)]
    if command != "run":
        line += ["--data", str(tmp_path)]
    assert cli.main(line) == 0
    assert asked["normalize"] == "all"


# -- a model that is there ------------------------------------------------------------------------


@pytest.fixture
def cohort(small_root, monkeypatch):
    """The small cohort for whoever runs; and whoever begins to train fails."""

    def trains(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr(train, "load_or_train", trains)
    monkeypatch.setattr(synthetic, "open_cohort", lambda *_, **__: small_root)
    return nsd.Subject(small_root, 1)


class Used(Exception):
    """Stands for the pictures that a model would make."""


@pytest.fixture(params=["ours", "released"])
def file(request, cohort, tmp_path):
    """A fine-tuned model as we save it, or as the authors do: then it does not say whose it is."""
    model = MindEye2.from_config(LITE, {1: cohort.num_voxels}, seed=3)
    if request.param == "ours":
        return model.save(tmp_path / "model.safetensors")
    torch.save({"epoch": 149, "model_state_dict": model.state_dict()}, tmp_path / "last.pth")
    return tmp_path / "last.pth"


def test_a_model_that_is_there_is_used_and_nothing_is_trained(file, cohort, tmp_path, monkeypatch):
    def reconstruct(model, *_, **__):
        raise Used(model)

    monkeypatch.setattr(pipeline, "reconstruct", reconstruct)
    line = f"run --start {file} --out {tmp_path} --images 1 --device cpu"
    with pytest.raises(Used) as used:
        cli.main(line.split())
    (model,) = used.value.args
    expected = MindEye2.from_config(LITE, {1: cohort.num_voxels}, seed=3).state_dict()
    assert model.subjects == (1,) and not model.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize(
    ("voxels", "complaint"),
    [({1: 900}, "takes 900 voxels, subject 1 has 983"), ({2: 983}, "no ri")],
)
def test_a_model_of_somebody_else_is_refused_in_one_line(
    voxels, complaint, cohort, tmp_path, capsys
):
    file = MindEye2.from_config(LITE, voxels).save(tmp_path / "model.safetensors")
    assert cli.main(["run", "--start", str(file)]) == 1
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1


# -- networks that are not there ------------------------------------------------------------------

REAL = Config.paper()


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """No real network anywhere."""
    monkeypatch.setenv("MINDEYE2_LITE_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "assets").mkdir()
    return tmp_path / "assets"


@pytest.mark.parametrize("part", ["encoder", "vae", "teacher", "decoder", "captioner", "refiner"])
def test_a_network_that_is_not_here_is_noticed_before_training(part, cohort, assets):
    config = replace(LITE, **{part: getattr(REAL, part)})
    with pytest.raises(FileNotFoundError, match="fetch --profile paper --stages") as error:
        pipeline.run(config, progress=False)
    assert "\n" not in str(error.value)


def test_only_the_networks_that_are_used_are_looked_for(assets, cohort):
    heads = replace(LITE, vae=REAL.vae, teacher=REAL.teacher)
    pipeline.look_for_networks(replace(heads, low_level=False))
    model = MindEye2.from_config(LITE, {1: cohort.num_voxels})
    (assets / released_networks.FILES[REAL.vae]).touch()
    pipeline.look_for_networks(heads, model)
    with pytest.raises(FileNotFoundError, match=REAL.teacher):
        pipeline.look_for_networks(heads)


def test_networks_that_are_here_are_found_by_their_names_alone(assets):
    for file in (*released_networks.FILES.values(), released_networks.UNCLIP, sdxl.CHECKPOINT):
        (assets / file).touch()
    with pytest.raises(FileNotFoundError, match="git-large-coco"):
        pipeline.look_for_networks(REAL)
    (assets / REAL.captioner).mkdir()
    (assets / REAL.captioner / "config.json").touch()
    pipeline.look_for_networks(REAL)


def test_the_message_on_sdxl_base_does_not_say_that_fetch_gets_it(assets):
    with pytest.raises(FileNotFoundError, match="sdxl-base: cannot be loaded") as error:
        sdxl.look_for("sdxl-base")
    assert "mindeye2-lite fetch" not in str(error.value)


# -- where it computes ----------------------------------------------------------------------------


class Moved(Exception):
    """Stands for a GPU: nothing more is done there."""


@pytest.mark.parametrize(("asked", "there"), [(None, "cuda"), ("cpu", "cpu")])
def test_a_model_that_comes_from_disk_computes_on_the_gpu_if_there_is_one(
    small_root, asked, there, monkeypatch
):
    def moved(_, device):
        raise Moved(device)

    person = nsd.Subject(small_root, 1)
    model = MindEye2.from_config(LITE, {1: person.num_voxels})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(MindEye2, "to", moved)
    with pytest.raises(Moved, match=there):
        pipeline.reconstruct(model, person.test(), person.images, LITE, device=asked)
    run = stages.Staged("model", person.test(), person.images, LITE, "kept", device=asked)
    assert run.device == there


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu_it_is_the_cpu_and_another_wish_costs_one_line(no_gpu, capsys):
    assert pipeline.best_device() == "cpu"
    assert cli.main(["run", "--device", "cuda"]) == 1
    assert "--device cuda is not available here: choose cpu\n" in capsys.readouterr().err
