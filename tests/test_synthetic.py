"""The synthetic cohort has NSD's design, files and statistics, and is made once."""

import json
import shutil
import threading

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat

from mindeye2_lite import nsd, nsd_raw, scenes, synthetic, voxel_model
from mindeye2_lite.config import Config

BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
ROI = "nsddata/ppdata/subj01/func1pt8mm/roi"


@pytest.fixture
def raw(small_raw):
    return small_raw


@pytest.fixture
def root(small_root):
    return small_root


def volume(path):
    return np.asarray(nibabel.load(path).dataobj)


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_full_design_is_one_tenth_of_nsd():
    plan = synthetic.design()
    assert plan.shown.shape == (8, 1000) and len(plan.coco) == 7300
    assert list(plan.sessions.values()) == [40, 40, 32, 30, 40, 32, 40, 30]
    assert len(plan.ordering) == 3000
    seen_by_all = set.intersection(*(set(row) for row in plan.shown))
    assert seen_by_all == set(plan.shown[0, :100])
    assert len(np.unique(plan.shown)) == 7300


def test_every_scene_is_shown_three_times():
    plan = synthetic.design()
    for subject in (1, 2, 5, 7):
        assert (np.bincount(plan.ordering) == 3).all()
        assert len(plan.images(subject)) == 3000
    assert len(plan.images(4)) == 30 * 75


def test_repeats_are_spread_over_sessions_and_the_first_session_is_mostly_new():
    plan = synthetic.design()
    session = np.arange(3000) // 75
    spread = pd.Series(session).groupby(plan.ordering).agg(lambda s: s.max() - s.min())
    assert spread.median() > 5 and (spread > 0).mean() > 0.9
    new = ~pd.Series(plan.ordering).duplicated().to_numpy()
    assert new[:75].mean() > 0.75
    assert 0.1 < new[1500:1575].mean() < 0.6


def test_the_tree_has_nsds_names_and_nothing_else(raw):
    found = {str(path) for path in files(raw)}
    expected = {f"{BETAS}/betas_session{n:02d}.hdf5" for n in range(1, 5)} | {
        f"{BETAS}/ncsnr.nii.gz",
        *(f"{ROI}/{name}.nii.gz" for name in ("nsdgeneral", "prf-visualrois", "streams")),
        "nsddata/ppdata/subj01/behav/responses.tsv",
        "nsddata/experiments/nsd/nsd_expdesign.mat",
        "nsddata/experiments/nsd/nsd_stim_info_merged.csv",
        "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5",
        "nsddata_stimuli/stimuli/nsd/attributes.npz",
        "annotations/captions_train2017.json",
        "provenance.json",
    }
    assert found == expected


def test_betas_are_int16_volumes_of_trials_z_y_x(raw):
    mask = volume(raw / ROI / "nsdgeneral.nii.gz")
    with h5py.File(raw / BETAS / "betas_session01.hdf5") as file:
        betas = file["betas"][:]
    assert betas.dtype == np.int16
    assert betas.shape == (75, *mask.shape[::-1])
    inside = betas.transpose(0, 3, 2, 1)[:, mask == 1]
    outside = betas.transpose(0, 3, 2, 1)[:, mask != 1]
    assert inside.shape == (75, 983) and inside.std(0).min() > 0
    assert not outside.any()
    percent = inside / 300
    assert 0.5 < np.median(percent.std(0)) < 3  # percent signal change


def test_regions_carry_nsds_labels(raw):
    mask = volume(raw / ROI / "nsdgeneral.nii.gz")
    visual = volume(raw / ROI / "prf-visualrois.nii.gz")
    streams = volume(raw / ROI / "streams.nii.gz")
    assert set(np.unique(mask)) == {-1, 0, 1}
    assert set(np.unique(visual)) == set(range(8))
    assert {5, 6, 7} <= set(np.unique(streams))
    assert not visual[mask != 1].any()


@pytest.mark.parametrize("subject", voxel_model.VOXELS)
def test_each_person_has_a_sixteenth_of_their_voxels(subject):
    where = voxel_model.anatomy(subject, np.random.default_rng(0))
    nsd_counts = (15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386)
    voxels = int((where.nsdgeneral == 1).sum())
    assert voxels == len(where.places) == voxel_model.VOXELS[subject]
    assert abs(voxels - nsd_counts[subject - 1] / 16) < 1


def test_the_design_file_says_which_scene_each_trial_showed(raw):
    design = loadmat(raw / "nsddata/experiments/nsd/nsd_expdesign.mat")
    table = pd.read_csv(raw / "nsddata/ppdata/subj01/behav/responses.tsv", sep="\t")
    ordering, subjectim = design["masterordering"].ravel(), design["subjectim"]
    assert (subjectim[0, ordering - 1][: len(table)] == table["73KID"]).all()
    assert (ordering[: len(table)] == table["10KID"]).all()
    assert (design["sharedix"].ravel() == subjectim[0, :10]).all()
    assert design["basiccnt"].sum() == len(ordering)
    assert design["stimpattern"].sum() == len(ordering)


def test_the_stimulus_table_counts_trials_from_one(raw):
    info = pd.read_csv(raw / "nsddata/experiments/nsd/nsd_stim_info_merged.csv", index_col=0)
    table = pd.read_csv(raw / "nsddata/ppdata/subj01/behav/responses.tsv", sep="\t")
    trial = info.subject1_rep0[info.subject1_rep0 > 0]
    assert (table["73KID"].to_numpy()[trial - 1] == info.nsdId[trial.index] + 1).all()
    assert info.shared1000.sum() == 10 and info.cocoId.is_unique


def test_behavior_is_possible(raw):
    table = pd.read_csv(raw / "nsddata/ppdata/subj01/behav/responses.tsv", sep="\t")
    assert (table.ISOLD == table["73KID"].duplicated()).all()
    within = table.groupby("SESSION")["73KID"].transform(lambda ids: ids.duplicated())
    assert (table.ISOLDCURRENT == within.astype(int)).all()
    assert (
        table.RUN.between(1, 12).all() and table.groupby(["SESSION", "RUN"]).TRIAL.min().eq(1).all()
    )
    answered = table.BUTTON.notna()
    right = (table.BUTTON == 2) == (table.ISOLD == 1)
    assert (table.ISCORRECT[answered] == right[answered]).all()
    assert table.ISCORRECT[~answered].isna().all()


def test_captions_are_cocos_form(raw):
    content = json.loads((raw / "annotations/captions_train2017.json").read_text())
    assert len(content["annotations"]) == 5 * len(content["images"])
    assert {a["image_id"] for a in content["annotations"]} == {i["id"] for i in content["images"]}


def test_the_same_seed_gives_the_same_bytes_of_every_trial(raw, tmp_path, monkeypatch):
    with h5py.File(raw / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5") as file:
        pictures = file["imgBrick"][:]  # test_scenes draws the same scenes twice
    monkeypatch.setattr(synthetic, "_pictures", lambda *_: pictures)
    again = synthetic.write_cohort(tmp_path, scale=0.1, subjects=(1,), progress=False)
    for name, content in files(raw).items():
        if name.suffix in (".tsv", ".csv", ".json"):
            assert (again / name).read_bytes() == content, name
        elif name.suffix == ".hdf5":
            with h5py.File(raw / name) as one, h5py.File(again / name) as other:
                key = list(one)[0]
                assert (one[key][:] == other[key][:]).all(), name


def test_another_seed_gives_another_cohort():
    one, other = synthetic.design(0, 0.1), synthetic.design(1, 0.1)
    assert (one.ordering != other.ordering).any()
    assert scenes.sample(5, 0) != scenes.sample(5, 1)


def test_seeds_of_the_training_scenes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cohorts use 0 to"):
        synthetic.write_cohort(tmp_path, seed=scenes.TRAINING_SEED)
    with pytest.raises(ValueError, match=r"subject \[9\] is unknown"):
        synthetic.write_cohort(tmp_path, subjects=(1, 9))
    assert not list(tmp_path.iterdir())


def test_ncsnr_has_nsds_spread():
    values = []
    for subject in voxel_model.VOXELS:
        where = voxel_model.anatomy(subject, np.random.default_rng(subject))
        values.append(voxel_model.ncsnr(subject, where, np.random.default_rng(subject)))
    together = np.concatenate(values)
    assert 0.26 < np.median(together) < 0.33  # the published range, see voxel_model
    assert 1.0 < together.max() < 1.9
    means = [v.mean() for v in values]
    assert np.corrcoef(means, list(voxel_model.PEOPLE.values()))[0, 1] > 0.9


def test_noise_is_of_deviation_one_correlated_in_space_and_over_trials():
    where = voxel_model.anatomy(1, np.random.default_rng(0))
    noise = voxel_model.noise(where, [75] * 40, np.random.default_rng(1))
    assert np.median(noise.std(0)) == pytest.approx(1, abs=0.03)
    neighbors = np.flatnonzero((np.diff(where.places, axis=0) == [0, 0, 1]).all(1))
    near = np.mean([np.corrcoef(noise[:, i], noise[:, i + 1])[0, 1] for i in neighbors[:100]])
    assert 0.2 < near < 0.6
    next_trial = (noise[:74] * noise[1:75]).mean()
    assert 0.03 < next_trial < 0.2
    next_session = (noise[74:-1:75] * noise[75::75]).mean()
    assert abs(next_session) < 0.05


def test_what_a_voxel_sees_decides_its_response(root):
    subject = nsd.Subject(root, 1)
    pictures = (subject.images[range(200)].permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    attributes = {k: v[:200] for k, v in synthetic.true_attributes(root).items()}
    seen = voxel_model.features(pictures, attributes)
    where = voxel_model.anatomy(1, np.random.default_rng(0))
    one = voxel_model.responses(seen, where, np.random.default_rng(3))
    again = voxel_model.responses(seen, where, np.random.default_rng(3))
    other = voxel_model.responses(seen, where, np.random.default_rng(4))
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, again)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.9
    np.testing.assert_allclose(one.std(0), 1, atol=1e-3)


def test_true_attributes_are_those_of_the_scenes(root):
    attributes = synthetic.true_attributes(root)
    cohort = scenes.sample(len(attributes["kind"]), 0)
    assert [scenes.KINDS[k] for k in attributes["kind"][:50]] == [s.kind for s in cohort[:50]]
    with pytest.raises(FileNotFoundError, match="only a synthetic cohort"):
        synthetic.true_attributes(root / "wds")


@pytest.fixture
def cache(tmp_path, monkeypatch, raw):
    """A cache folder of its own, and a copy of the small cohort in place of the whole one."""
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path))
    monkeypatch.delenv("MINDEYE2_LITE_DATA", raising=False)
    calls = []

    def write(root, progress):
        calls.append(root)
        return shutil.copytree(raw, root)

    monkeypatch.setattr(synthetic, "write_cohort", write)
    return tmp_path, calls


def test_two_notebooks_at_once_make_one_cohort(cache):
    folder, calls = cache
    roots = []
    threads = [
        threading.Thread(target=lambda: roots.append(synthetic.open_cohort(progress=False)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and roots[0] == roots[1] == folder / "data" / "lite"
    assert [p.name for p in (folder / "data").iterdir()] == ["lite"]  # no lock, nothing beside
    assert nsd.Subject(roots[0], 1).sessions == 4
    assert "not data about brains" in json.loads((roots[0] / "provenance.json").read_text())["note"]


def test_a_cohort_of_other_scenes_is_made_anew(cache, monkeypatch):
    _, calls = cache
    root = synthetic.open_cohort(progress=False)
    synthetic.open_cohort(progress=False)
    assert len(calls) == 1
    path = root / "provenance.json"
    path.write_text(path.read_text().replace('"version": "', '"version": "older '))
    (root / "leftover").touch()
    synthetic.open_cohort(progress=False)
    assert len(calls) == 2 and not (root / "leftover").exists()


def test_a_cohort_prepared_before_voxels_had_places_is_made_anew(cache, monkeypatch):
    _, calls = cache
    root = synthetic.open_cohort(progress=False)
    for name in ("voxels.hdf5", "stimuli.csv"):
        (root / name).unlink()
    synthetic.open_cohort(progress=False)
    assert len(calls) == 2 and (root / "voxels.hdf5").exists() and (root / "stimuli.csv").exists()


def test_a_failed_writing_leaves_nothing_behind(cache, monkeypatch):
    folder, _ = cache

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nsd, "prepare", full_disk)
    with pytest.raises(OSError, match=r"No space left on device\. Free 1 GB, or set"):
        synthetic.open_cohort(progress=False)
    assert not list((folder / "data").iterdir())


def test_a_folder_that_cannot_be_written_is_named(cache, monkeypatch):
    folder, calls = cache
    (folder / "data").touch()
    with pytest.raises(OSError, match="cannot write to .*data: (Not a directory|File exists)") as e:
        synthetic.open_cohort(progress=False)
    assert "\n" not in str(e.value) and not calls


def test_a_lock_left_behind_is_taken_over(cache, monkeypatch):
    folder, calls = cache
    monkeypatch.setattr(synthetic, "FRESH", 0.3)
    (folder / "data" / ".lite.lock").mkdir(parents=True)
    synthetic.open_cohort(progress=False)
    assert len(calls) == 1


def test_somebody_elses_files_are_never_deleted(cache, monkeypatch):
    folder, calls = cache
    own = folder / "data" / "lite"
    own.mkdir(parents=True)
    for name, text in (("thesis.txt", "precious"), ("provenance.json", '{"from": "a scanner"}')):
        (own / name).write_text(text)
        with pytest.raises(FileExistsError, match="not a synthetic cohort"):
            synthetic.open_cohort(progress=False)
    assert (own / "thesis.txt").read_text() == "precious" and not calls


def test_a_cohort_never_replaces_what_lies_in_the_folder_of_real_data(cache, monkeypatch):
    folder, calls = cache
    real = folder / "nsd"
    real.mkdir()
    (real / "provenance.json").write_text('{"version": "older"}')
    (real / "model.safetensors").write_text("precious")
    monkeypatch.setenv("MINDEYE2_LITE_DATA", str(real))
    assert synthetic.open_cohort(progress=False) == folder / "data" / "lite" and len(calls) == 1
    assert (real / "model.safetensors").read_text() == "precious"


def test_real_profiles_only_say_what_is_missing(cache):
    _, calls = cache
    with pytest.raises(FileNotFoundError, match="coco_images_224_float16.hdf5.*nsd.prepare"):
        synthetic.open_cohort(Config.paper())
    assert not calls


def test_the_shipped_scale_of_stored_betas_is_nsds():
    assert nsd_raw.SCALE == 300
