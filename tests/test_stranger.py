"""A person from another lab: their files, their pictures, and that the brain looked at them."""

import json

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mindeye2_lite import scenes, stranger, synthetic, training_miniatures

SMALL = {"voxels": 60, "sessions": 2, "trials": 30, "repeated": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Do not write into it."""
    return stranger.write(tmp_path_factory.mktemp("lab") / "person", **SMALL)


@pytest.fixture(scope="module")
def events(folder):
    return pd.read_csv(folder / "events.tsv", sep="\t")


@pytest.fixture(scope="module")
def betas(folder):
    return np.load(folder / "betas.npy", allow_pickle=False)


def test_every_trial_has_betas_an_event_and_a_picture(folder, events, betas):
    assert betas.shape == (60, 60) and betas.dtype == np.float32 and np.isfinite(betas).all()
    assert list(events) == ["onset", "duration", "trial_type", "stim_file", "run", "session"]
    assert len(events) == 60
    files = {path.name for path in (folder / "pictures").iterdir()}
    assert set(events.stim_file) == files
    assert Image.open(folder / "pictures" / min(files)).size == (64, 64)


def test_some_pictures_come_three_times_and_the_others_once(events):
    counts = events.stim_file.value_counts()
    assert (counts == 3).sum() == 10 and (counts == 1).sum() == 30 and len(counts) == 40


def test_onsets_start_anew_with_every_run(events):
    for _, run in events.groupby(["session", "run"]):
        assert run.onset.iloc[0] == stranger.PAUSE
        assert (run.onset.diff().dropna() == stranger.PAUSE).all()
    assert events.groupby("session").run.nunique().eq(stranger.RUNS).all()


def test_the_files_say_that_they_are_a_simulation(folder):
    said = json.loads((folder / "provenance.json").read_text())
    assert "simulat" in said["note"] and said["arguments"]["voxels"] == 60


def test_the_same_seed_gives_the_same_files_and_another_seed_others(folder, betas, tmp_path):
    again = stranger.write(tmp_path / "again", **SMALL)
    other = stranger.write(tmp_path / "other", seed=1, **SMALL)
    for path in (p for p in folder.rglob("*") if p.is_file()):
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes()
    assert not np.array_equal(np.load(other / "betas.npy"), betas)


def test_as_a_volume_it_holds_the_same_numbers_inside_the_mask(betas, tmp_path):
    folder = stranger.write(tmp_path / "volume", form="nii", **SMALL)
    mask = nibabel.load(folder / "mask.nii.gz").get_fdata() == 1
    volume = nibabel.load(folder / "betas.nii.gz").get_fdata(dtype=np.float32)
    assert mask.sum() == 60 and volume.shape == (*mask.shape, 60)
    assert np.array_equal(volume[mask].T, betas)
    assert not volume[~mask].any()


def test_nobody_else_has_seen_the_strangers_scenes():
    taken = {scenes.TRAINING_SEED, training_miniatures.HELD_OUT_SEED}
    assert stranger.FIRST_SEED not in taken
    with pytest.raises(ValueError, match="cohorts use"):
        synthetic._scene_seed(stranger.FIRST_SEED)


def correlation_of_repeats(folder):
    """Of the first and second showing of every picture that has both, over pictures, per voxel."""
    betas, files = np.load(folder / "betas.npy"), pd.read_csv(folder / "events.tsv", sep="\t")
    rows = files.groupby("stim_file").indices.values()
    pairs = np.array([r[:2] for r in rows if len(r) > 1])
    first, second = (betas[pairs[:, i]] - betas[pairs[:, i]].mean(0) for i in (0, 1))
    return (first * second).sum(0) / np.sqrt((first**2).sum(0) * (second**2).sum(0))


def test_repeats_agree_where_the_brain_saw_the_pictures_and_not_where_it_saw_nothing(tmp_path):
    many = {"voxels": 80, "sessions": 2, "trials": 150, "repeated": 100}
    good = stranger.write(tmp_path / "good", quality=2, **many)
    blind = stranger.write(tmp_path / "blind", quality=0, **many)
    assert np.median(correlation_of_repeats(good)) > 0.15
    assert abs(np.median(correlation_of_repeats(blind))) < 0.05


def test_what_is_there_already_is_kept_and_other_things_are_not_overwritten(folder, tmp_path):
    before = (folder / "betas.npy").stat().st_mtime_ns
    assert stranger.write(folder, **SMALL) == folder
    assert (folder / "betas.npy").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other files in it"):
        stranger.write(folder, seed=5, **SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="other files in it"):
        stranger.write(tmp_path / "mine", **SMALL)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"voxels": 5000}, "voxels is 5000"),
        ({"repeated": 500}, "do not fit"),
        ({"form": "mat"}, "'mat' is unknown"),
        ({"seed": -1}, "seed is -1"),
        ({"quality": -0.5}, "quality is -0.5"),
        ({"trials": 2, "repeated": 0}, "trials is 2"),
        ({"sessions": 0, "repeated": 0}, "at least 1"),
    ],
)
def test_arguments_that_do_not_fit_cost_one_line_and_leave_nothing(wrong, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        stranger.write(tmp_path / "person", **SMALL | wrong)
    assert not list(tmp_path.iterdir())
