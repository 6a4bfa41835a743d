"""`mindeye2-lite run` and `pipeline.run`: what is asked for reaches training and the pictures."""

import shutil
from pathlib import Path

import h5py
import pytest
import torch

from mindeye2_lite import cli, nsd, pipeline, stages, synthetic, train
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
