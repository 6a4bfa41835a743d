"""Betas and pictures of any study become the training layout; no test picture is trained on."""

import json
import pickle
from dataclasses import replace
from functools import cache

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from mindeye2_lite import cli, nsd, own_split, train
from mindeye2_lite.config import Config
from mindeye2_lite.glmsingle import Inert, read_results
from mindeye2_lite.nsd import Subject, from_arrays, from_files
from mindeye2_lite.own_pictures import fitted, open_pictures

TRIALS, VOXELS, PICTURES, SIZE = 90, 60, 30, 16
SPACE = (6, 5, 4)
QUIET = {"image_size": SIZE, "progress": False}


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


IMAGES = {f"p{i:02d}.png": draw(i).integers(0, 255, (20, 28, 3), np.uint8) for i in range(PICTURES)}
SHOWN = draw().permutation(np.repeat(sorted(IMAGES), 3))
VOLUME = draw(1).normal(size=(*SPACE, TRIALS)).astype(np.float32)
MASK = np.zeros(SPACE, bool)
MASK[1:4] = True
BETAS = np.ascontiguousarray(VOLUME[MASK].T)
SESSIONS = np.repeat([5, 9], TRIALS // 2)


def own(root, betas=BETAS, shown=SHOWN, images=IMAGES, **how) -> own_split.Split:
    return from_arrays(root, betas, shown, images, **QUIET | how)


def everything(subject: Subject) -> nsd.Trials:
    """All trials in order of time."""
    parts = subject.train(), subject.test(normalize="all")
    order = torch.cat([p.behavior[:, 5] for p in parts]).argsort()
    names = ("voxels", "image_id", "repeat", "session", "behavior")
    return nsd.Trials(*(torch.cat([getattr(p, n) for p in parts])[order] for n in names))


# -- arrays ----------------------------------------------------------------------------------------


def test_every_trial_comes_back_with_its_picture_session_and_scaled_voxels(tmp_path):
    split = own(tmp_path, sessions=SESSIONS)
    subject = Subject(tmp_path, 1)
    trials = everything(subject)
    names = json.loads((tmp_path / "image_names.json").read_text())
    assert [names[i] for i in trials.image_id] == SHOWN.tolist()
    assert trials.session.tolist() == [1] * 45 + [2] * 45
    assert (len(subject.train()), len(subject.test())) == (split.train_trials, split.test_trials)
    for number in (1, 2):
        here = (trials.session == number).numpy()
        known = BETAS[here & ~np.isin(SHOWN, [names[i] for i in subject.test().image_ids])]
        expected = (BETAS[here] - known.mean(0)) / known.std(0)
        np.testing.assert_allclose(trials.voxels.numpy()[here], expected, atol=1e-5)


def test_what_is_not_known_is_minus_one_and_what_is_follows_from_the_trial(tmp_path):
    own(tmp_path, sessions=SESSIONS, runs=np.arange(TRIALS) // 15)
    behavior = everything(Subject(tmp_path, 1)).behavior.numpy()
    assert (behavior[:, 6:16] == -1).all()
    assert behavior[:, 3].tolist() == np.tile(np.repeat([1, 2, 3], 15), 2).tolist()
    assert behavior[:, 4].tolist() == np.tile(np.arange(15) + 1, 6).tolist()
    assert behavior[:, 5].tolist() == list(range(TRIALS))


def test_a_proposal_keeps_all_repeats_of_a_picture_on_one_side_and_says_so(tmp_path):
    split = own(tmp_path)
    subject = Subject(tmp_path, 1)
    assert not set(subject.train().image_id.tolist()) & set(subject.test().image_id.tolist())
    assert (split.test_images, split.test_trials, split.repeats) == (3, 9, (3, 3))
    assert str(split).startswith(
        "Proposed test split: 3 of 30 pictures (9 trials), all their repeats; no picture is in "
        "both. Training has 81 trials of 27 pictures. Chance for retrieval among 3: 33.3%."
    )
    shared = np.load(tmp_path / "shared1000.npy")
    assert shared.nonzero()[0].tolist() == subject.test().image_ids.tolist()
    assert not (tmp_path / "provenance.json").exists()


def test_a_proposal_prefers_repeated_pictures_and_leaves_every_session_something():
    image_id = np.r_[np.arange(60), [7, 7, 8, 8], [59] * 5]
    session = np.r_[np.ones(64, int), np.full(5, 2)]
    chosen = own_split.choose(image_id, session)
    assert len(chosen) == 10 and {7, 8} <= set(chosen.tolist()) and 59 not in chosen
    assert chosen.tolist() == own_split.choose(image_id, session).tolist()
    assert chosen.tolist() != own_split.choose(image_id, session, seed=1).tolist()
    assert own_split.choose(np.array([3, 4]), np.ones(2, int)).size == 1


def test_test_pictures_can_be_named_or_asked_for_as_a_share(tmp_path):
    named = own(tmp_path / "a", test=["p03", "p01.png"])
    assert Subject(tmp_path / "a", 1).test().image_ids.tolist() == [1, 3]
    assert not named.proposed and str(named).startswith("Test split: 2 of 30 pictures")
    assert own(tmp_path / "b", test=0.5).test_images == 15


def test_nobody_trains_on_what_tests_another_person(tmp_path):
    own(tmp_path)
    some = np.isin(SHOWN, sorted(IMAGES)[:20])
    own(tmp_path, BETAS[:, :7], SHOWN[::-1], subject=2)
    own(tmp_path, BETAS[some], SHOWN[some], subject=3)
    people = [Subject(tmp_path, s) for s in (1, 2, 3)]
    trained = {i for p in people for i in p.train().image_id.tolist()}
    tested = {i for p in people for i in p.test().image_id.tolist()}
    assert not trained & tested
    mixed = own(tmp_path, subject=4, test=["p00", "p01"])
    assert "pictures test one person of this folder and train another" in str(mixed)


def test_a_person_who_is_there_is_left_alone_and_other_betas_are_refused(tmp_path):
    first = own(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*subj01*")}
    assert own(tmp_path) == first
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*subj01*")}
    with pytest.raises(ValueError, match="was made with betas .*another folder, or delete it"):
        own(tmp_path, BETAS + 1)


def test_voxels_without_numbers_are_left_out_and_constant_ones_become_zero(tmp_path):
    betas = BETAS.astype(np.float64)
    betas[:, 3], betas[:, 4] = np.nan, 7
    regions = {"V1": np.arange(VOXELS) < 5, "face": np.arange(VOXELS) % 2}
    where = np.argwhere(MASK)
    split = own(tmp_path, betas, regions=regions, position=where, ncsnr=np.arange(VOXELS) / 9)
    subject = Subject(tmp_path, 1)
    assert split.dropped_voxels == 1 and "kept as zeros: 1" in str(split)
    assert subject.num_voxels == VOXELS - 1 and not subject.train().voxels[:, 3].any()
    assert subject.rois["V1"].tolist() == [True] * 4 + [False] * 55
    assert (subject.rois["higher_vis"] == ~subject.rois["V1"]).all()
    assert subject.ncsnr[3] == np.float32(4 / 9)
    with h5py.File(tmp_path / "voxels.hdf5") as file:
        assert (file["subj01/position"][:] == np.delete(where, 3, 0)).all()


def test_ncsnr_is_estimated_from_training_trials_as_nsd_does(tmp_path):
    own(tmp_path, sessions=SESSIONS)
    subject = Subject(tmp_path, 1)
    expected = nsd.estimate_ncsnr(subject.train())
    np.testing.assert_allclose(subject.ncsnr, expected, atol=1e-6)


def test_without_repeats_there_is_no_noise_ceiling(tmp_path):
    split = own(tmp_path, BETAS[:30], sorted(IMAGES))
    assert "No noise ceiling: fewer than ten training pictures repeat." in str(split)
    with pytest.raises(ValueError, match="ncsnr"):
        Subject(tmp_path, 1).ncsnr  # noqa: B018


def test_betas_may_lie_in_hdf5_and_pictures_in_an_array(tmp_path):
    pictures = np.stack([IMAGES[name] for name in sorted(IMAGES)])
    numbers = np.array([int(name[1:3]) for name in SHOWN])
    own(tmp_path / "a")
    for name, executor in (("b", "serial"), ("c", "local:2")):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["x"] = BETAS
        with h5py.File(tmp_path / f"{name}.h5") as file:
            own(tmp_path / name, file["x"], numbers, pictures, executor=executor)
        found = everything(Subject(tmp_path / name, 1))
        expected = everything(Subject(tmp_path / "a", 1))
        assert torch.equal(found.voxels, expected.voxels)
        assert torch.equal(found.image_id, expected.image_id)


def test_captions_are_kept_by_picture(tmp_path):
    own(tmp_path, captions={"p04": ["a cat", "two cats"], "p05.png": "a dog"})
    subject = Subject(tmp_path, 1)
    assert subject.captions(4) == ["a cat", "two cats"] and subject.captions(5) == ["a dog"]


ONE = np.full(TRIALS, "p01.png")
MISTAKES = {
    "betas has shape (60, 90), so 60 trials, but shown has 90 (turn it: betas.T)": {
        "betas": BETAS.T
    },
    "betas are <U1: expected numbers": {"betas": np.full((TRIALS, 2), "a")},
    "betas has shape (90,): expected (trials, voxels)": {"betas": BETAS[:, 0]},
    "betas has no number at all": {"betas": np.full((TRIALS, 2), np.inf)},
    "betas is NaN or infinite for voxel 3 in trial 7 (from 0), but not in all trials": {
        "betas": np.where(np.arange(VOXELS * TRIALS).reshape(BETAS.shape) == 423, np.nan, BETAS)
    },
    "no picture 'q.png' in images: it has 30, the first is 'p00.png'": {
        "shown": [*SHOWN[:-1], "q.png"]
    },
    "all 90 trials show one picture": {"shown": ONE},
    "sessions comes back to 5 at trial 60 (from 0)": {"sessions": np.repeat([5, 9, 5], 30)},
    "runs has shape (3,), but shown has 90": {"runs": [1, 2, 3]},
    "subject is 0: give a number from 1 to 99": {"subject": 0},
    "test is 2: a share lies between 0 and 1": {"test": 2},
    "all pictures that were shown are test pictures": {"test": sorted(IMAGES)},
    "no picture 'x' in images": {"test": ["x"]},
    "the captions of 'p01' are []: expected sentences": {"captions": {"p01": []}},
    "region V1 is int64 of shape (2,): expected 60 times True or False": {
        "regions": {"V1": np.array([0, 1])}
    },
    "position is float64 of shape (2, 3): expected (60, 3)": {"position": np.zeros((2, 3))},
    "position must hold whole numbers": {"position": np.full((60, 3), 0.5)},
    "image_size is 2: give a number of pixels": {"image_size": 2},
    "executor 'slurm' is unknown": {"executor": "slurm"},
    "picture 'p00.png' of images is float64 of shape (2, 2, 3)": {
        "images": dict.fromkeys(IMAGES, np.zeros((2, 2, 3)))
    },
    "there is no folder of pictures": {"images": "nowhere"},
}


@pytest.mark.parametrize("said", MISTAKES, ids=lambda said: said[:40])
def test_a_mistake_costs_one_line_and_leaves_no_betas(said, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        own(tmp_path / "out", **MISTAKES[said])
    assert said in str(caught.value) and "\n" not in str(caught.value)
    left = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert not [p for p in left if "betas" in p.name or p.suffix in (".part", ".tar")]


def test_a_folder_of_other_data_or_other_pictures_is_left_as_it_is(tmp_path):
    own(tmp_path / "nsd")
    (tmp_path / "nsd" / "image_names.json").unlink()  # as in any other data
    with pytest.raises(ValueError, match="holds data of another origin"):
        own(tmp_path / "nsd", subject=2)
    own(tmp_path)
    others = {f"q{name}": image for name, image in IMAGES.items()}
    with pytest.raises(ValueError, match="made with 30 pictures of other names"):
        own(tmp_path, shown=[f"q{name}" for name in SHOWN], images=others, subject=2)
    with pytest.raises(ValueError, match="not pictures of 32 pixels"):
        own(tmp_path, subject=2, image_size=32)
    changed = IMAGES | {"p00.png": IMAGES["p01.png"]}
    with pytest.raises(ValueError, match="'p00.png' is not the one kept"):
        own(tmp_path, images=changed, subject=2)


# -- pictures --------------------------------------------------------------------------------------


def test_pictures_are_cut_to_the_middle_square_and_resized(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    assert (fitted(Image.fromarray(wide), 10) == 200).all()


def test_gray_transparent_cmyk_deep_and_turned_pictures_are_read(tmp_path):
    gray = np.full((8, 8), 100, np.uint8)
    clear = np.dstack([gray, gray, gray, np.zeros_like(gray)])
    half = np.zeros((8, 8, 3), np.uint8)
    half[:4] = 255
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(np.dstack([gray] * 3)).convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(half).save(tmp_path / "turned.tif", exif=turned)
    pictures = open_pictures(tmp_path, 8)
    seen = dict(zip(pictures.names, pictures(0, 5), strict=True))
    assert (seen["gray.png"] == 100).all() and (seen["deep.png"] == 100).all()
    assert (seen["clear.png"] == 255).all()
    assert abs(seen["cmyk.tif"].astype(int) - 100).max() < 3
    assert (seen["turned.tif"][:4] == 0).all() and (seen["turned.tif"][4:] == 255).all()


def test_names_may_lack_folder_and_ending_but_must_fit_one_picture(tmp_path):
    (tmp_path / "a b").mkdir()
    for name in ("a b/ü.png", "b.png", "b.jpg"):
        Image.fromarray(IMAGES["p00.png"]).save(tmp_path / name)
    pictures = open_pictures(tmp_path, 8)
    assert pictures.index(["ü", "a b/ü.png", "b.jpg"]).tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="'b' fits several pictures .*'b.jpg', 'b.png'"):
        pictures.index(["b"])


def test_a_picture_that_is_cut_short_is_named(tmp_path):
    path = tmp_path / "p.png"
    Image.fromarray(IMAGES["p00.png"]).save(path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match="picture 'p.png' of .* cannot be read"):
        open_pictures(tmp_path, 8)(0, 1)


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Someone's folder: pictures, events, and the same betas in every form."""
    root = tmp_path_factory.mktemp("a study")
    (root / "stimuli").mkdir()
    for name, image in IMAGES.items():
        Image.fromarray(image).save(root / "stimuli" / name)
    write_events(root / "events.tsv")
    np.save(root / "flat.npy", BETAS)
    np.save(root / "turned.npy", BETAS.T)
    np.save(root / "volumes.npy", VOLUME.astype(">f8"))
    np.save(root / "mask.npy", MASK)
    results = {
        "betasmd": VOLUME,
        "HRFindex": None,
        "pcregressors": [np.ones((3, 2)), [1, "a", None]],
        "R2": np.float64(3),
        "names": np.array(["a", "bc"]),
        "nothing": np.zeros(0),
        "mixed": np.array([None, "x"], object),
    }
    np.save(root / "TYPED.npy", results, allow_pickle=True)
    save_nifti(root / "volumes.nii.gz", VOLUME)
    save_nifti(root / "mask.nii.gz", MASK.astype(np.uint8))
    with h5py.File(root / "flat.h5", "w") as file:
        file["betas"], file["other/one"] = BETAS, BETAS
    with h5py.File(root / "glmsingle.hdf5", "w") as file:
        file["betasmd"], file["R2"] = VOLUME, VOLUME[..., 0]
    with h5py.File(root / "nsd.hdf5", "w") as file:
        file["betas"] = VOLUME.T
    scipy.io.savemat(root / "five.mat", {"modelmd": VOLUME, "R2": np.ones((2, 2))})
    with h5py.File(root / "seven.mat", "w", userblock_size=512) as file:
        file["modelmd"] = VOLUME.T
    with (root / "seven.mat").open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(128))
    return root


def save_nifti(path, volume) -> None:
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([2, 2, 2, 1])), path)


def write_events(path, shown=SHOWN, column="stim_file", **columns) -> None:
    header = ["onset", "duration", column, *columns]
    rows = [header] + [
        [f"{4 * i}", "3", name, *(str(values[i]) for values in columns.values())]
        for i, name in enumerate(shown)
    ]
    path.write_text("\n".join("\t".join(row) for row in rows) + "\n", encoding="utf-8")


def files(study, out, betas="flat.npy", events="events.tsv", images=None, **how):
    find = {"betas": betas, "events": events, "mask": how.pop("mask", None)}
    find = {
        k: v and ([study / one for one in v] if isinstance(v, list) else str(study / v))
        for k, v in find.items()
    }
    return from_files(out, images=images or study / "stimuli", **find, **QUIET | how)


@cache
def expected(study) -> torch.Tensor:
    files(study, study / "expected")
    return everything(Subject(study / "expected", 1)).voxels


@pytest.mark.parametrize(
    "betas, mask",
    [
        ("turned.npy", None),
        ("flat.npy", "mask.nii.gz"),
        ("volumes.npy", "mask.npy"),
        ("TYPED.npy", "mask.nii.gz"),
        ("volumes.nii.gz", "mask.nii.gz"),
        ("flat.h5", None),
        ("flat.h5#other/one", None),
        ("glmsingle.hdf5", "mask.nii.gz"),
        ("nsd.hdf5", "mask.nii.gz"),
        ("five.mat", "mask.nii.gz"),
        ("seven.mat", "mask.nii.gz"),
    ],
)
def test_betas_are_the_same_from_every_kind_of_file(study, tmp_path, betas, mask):
    split = files(study, tmp_path, betas, mask=mask)
    found = everything(Subject(tmp_path, 1)).voxels
    torch.testing.assert_close(found, expected(study), rtol=0, atol=1e-5)
    assert split.test_images == 3
    if mask:
        with h5py.File(tmp_path / "voxels.hdf5") as file:
            assert (file["subj01/position"][:] == np.argwhere(MASK)).all()


def test_without_a_mask_the_voxels_that_ever_change_are_kept(study, tmp_path):
    volume = np.where(MASK[..., None], VOLUME, 0)
    save_nifti(tmp_path / "zeros.nii.gz", volume)
    from_files(tmp_path / "o", tmp_path / "zeros.nii.gz", study / "events.tsv", IMAGES, **QUIET)
    found = everything(Subject(tmp_path / "o", 1)).voxels
    torch.testing.assert_close(found, expected(study), rtol=0, atol=1e-5)


def test_of_several_files_each_is_a_session_and_ten_comes_after_two(study, tmp_path):
    for number, rows in ((2, slice(0, 40)), (10, slice(40, 90))):
        np.save(tmp_path / f"s{number}.npy", BETAS[rows])
    from_files(
        tmp_path / "o", tmp_path / "s*.npy", study / "events.tsv", study / "stimuli", **QUIET
    )
    trials = everything(Subject(tmp_path / "o", 1))
    assert trials.session.tolist() == [1] * 40 + [2] * 50
    names = sorted(IMAGES)
    assert [names[i] for i in trials.image_id] == SHOWN.tolist()


def test_files_in_the_shells_order_are_refused_since_ten_comes_before_two(study, tmp_path):
    paths = [tmp_path / f"s{number}.npy" for number in (10, 2)]
    for path, rows in zip(paths, (slice(40, 90), slice(0, 40)), strict=True):
        np.save(path, BETAS[rows])
    match = r"betas files beside .*s10.npy' before '.*s2.npy': number them.*pattern.*in quotes"
    with pytest.raises(ValueError, match=match):
        from_files(tmp_path / "o", paths, study / "events.tsv", study / "stimuli", **QUIET)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "session, run, said",
    [
        (["pre", "post"], [1, 1], "sessions of .*'pre' before 'post'"),
        (["2", "1"], [1, 1], "sessions of .*'2' before '1'"),
        (["1", "1"], ["rest", "faces"], "runs of session 1 in .*'rest' before 'faces'"),
    ],
)
def test_labels_that_would_be_sorted_into_another_order_are_refused(
    study, tmp_path, session, run, said
):
    rows = "\n".join(
        f"{4 * i}\t{SHOWN[i]}\t{session[i >= 40]}\t{run[i >= 40]}" for i in range(TRIALS)
    )
    (tmp_path / "e.tsv").write_text("onset\tstim_file\tsession\trun\n" + rows)
    with pytest.raises(ValueError, match=said + ": number them"):
        files(study, tmp_path / "o", events=str(tmp_path / "e.tsv"))


def test_onsets_may_start_anew_with_every_session(study, tmp_path):
    rows = "\n".join(f"{4 * (i % 40)}\t{SHOWN[i]}\t{1 + i // 40}" for i in range(TRIALS))
    (tmp_path / "e.tsv").write_text("onset\tstim_file\tsession\n" + rows)
    files(study, tmp_path / "o", events=str(tmp_path / "e.tsv"))
    trials = everything(Subject(tmp_path / "o", 1))
    assert [sorted(IMAGES)[i] for i in trials.image_id] == SHOWN.tolist()
    assert trials.session.tolist() == [1] * 40 + [2] * 40 + [3] * 10


def test_runs_and_sessions_come_from_columns_or_from_bids_names(study, tmp_path):
    folder = tmp_path / "bids"
    for ses, run, rows in ((1, 2, slice(20, 40)), (1, 1, slice(0, 20)), (2, 1, slice(40, 90))):
        (folder / f"ses-{ses}").mkdir(parents=True, exist_ok=True)
        name = f"sub-1_ses-{ses}_task-x_run-{run}_events.tsv"
        write_events(folder / f"ses-{ses}" / name, SHOWN[rows])
    files(study, tmp_path / "names", events=str(folder))
    session, run = np.repeat(["a", "b"], [40, 50]), np.repeat([1, 2, 1], [20, 20, 50])
    shuffled = draw().permutation(TRIALS)
    rows = "\n".join(f"{4 * i},{SHOWN[i][:-4]},{session[i]},{run[i]}" for i in shuffled)
    comma = tmp_path / "e.csv"
    comma.write_text("onset,trial_type,session,run\n" + rows, encoding="utf-8-sig")
    files(study, tmp_path / "columns", events=str(comma))
    for out in ("names", "columns"):
        trials = everything(Subject(tmp_path / out, 1))
        assert [sorted(IMAGES)[i] for i in trials.image_id] == SHOWN.tolist()
        assert trials.session.tolist() == [1] * 40 + [2] * 50
        assert trials.behavior[:, 3].tolist() == run.tolist()


def test_events_without_betas_are_left_out_only_if_named(study, tmp_path):
    write_events(tmp_path / "e.tsv", ["n/a", *SHOWN[:45], "blank", *SHOWN[45:]])
    with pytest.raises(ValueError, match=r"line 2: stim_file 'n/a' is no picture.*2 such lines"):
        files(study, tmp_path / "o", events=str(tmp_path / "e.tsv"))
    files(study, tmp_path / "o", events=str(tmp_path / "e.tsv"), ignore=["n/a", "blank"])
    assert len(everything(Subject(tmp_path / "o", 1))) == TRIALS


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


def test_a_malicious_pickle_does_not_run(study, tmp_path):
    bad = {"betasmd": VOLUME, "evil": Malicious(tmp_path / "ran")}
    np.save(tmp_path / "bad.npy", bad, allow_pickle=True)
    found = read_results(tmp_path / "bad.npy")
    assert isinstance(found["evil"], Inert) and np.array_equal(found["betasmd"], VOLUME)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Malicious(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # it would have run elsewhere


def test_a_result_of_glmsingle_comes_back_as_it_was(study):
    found = read_results(study / "TYPED.npy")
    assert found["R2"] == 3.0 and found["HRFindex"] is None and found["mixed"] == [None, "x"]
    assert found["pcregressors"][1] == [1, "a", None] and (found["pcregressors"][0] == 1).all()
    assert found["names"].tolist() == ["a", "bc"] and found["nothing"].size == 0


def spoiled(study, folder):
    """Files that cannot be used, and what is said of each."""
    np.save(folder / "few.npy", BETAS[:80])
    np.save(folder / "square.npy", draw().normal(size=(TRIALS, TRIALS)))
    np.save(folder / "list.npy", np.array([1, {}], object), allow_pickle=True)
    np.save(folder / "words.npy", np.full((TRIALS, 3), "a"))
    np.save(folder / "none.npy", {"R2": VOLUME}, allow_pickle=True)
    np.save(folder / "none2.npy", {"R2": VOLUME, "R3": VOLUME}, allow_pickle=True)
    for name in ("flat.npy", "TYPED.npy", "volumes.nii.gz", "flat.h5", "five.mat", "seven.mat"):
        content = (study / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(content[: len(content) // 2])
    (folder / "a.txt").write_text("1 2")
    (folder / "text.npy").write_text("1 2")
    (folder / "text.nii").write_text("1 2")
    save_nifti(folder / "mask.nii.gz", np.ones((2, 2, 2), np.uint8))
    save_nifti(folder / "empty.nii.gz", np.zeros(SPACE, np.uint8))
    write_events(folder / "back.tsv", SHOWN)
    lines = (folder / "back.tsv").read_text().splitlines()
    (folder / "back.tsv").write_text("\n".join([lines[0], *lines[46:], *lines[1:46]]))
    (folder / "onset.tsv").write_text("onset\tstim_file\nsoon\tp01.png\n")
    (folder / "column.tsv").write_text("onset\tpicture\n0\tp01.png\n")
    (folder / "blank.tsv").write_text("")
    (folder / "bytes.tsv").write_bytes(b"\xff\xfe\x00\x80")
    for name in ("run-1_events.tsv", "x_run-1_events.tsv"):
        write_events(folder / name)


@pytest.mark.parametrize(
    "how, said",
    [
        ({"betas": "few.npy"}, "the events have 90 trials, but the betas have 80 or 60"),
        ({"betas": "square.npy"}, "both axes could be the 90 trials"),
        ({"betas": "list.npy"}, "holds no GLMsingle results"),
        ({"betas": "words.npy"}, "holds <U1 of shape (90, 3): expected numbers"),
        ({"betas": "none2.npy"}, "has no betas or betasmd or modelmd, only R2, R3"),
        ({"betas": "a.txt"}, "a.txt: unknown ending"),
        ({"betas": "nowhere.npy"}, "nowhere.npy is missing"),
        ({"betas": "no*.xyz"}, "no betas in"),
        ({"betas": "cut_flat.npy"}, "cut_flat.npy is cut short"),
        ({"betas": "cut_TYPED.npy"}, "cut_TYPED.npy is damaged"),
        ({"betas": "cut_volumes.nii.gz"}, "cut_volumes.nii.gz is damaged"),
        ({"betas": "cut_flat.h5"}, "cut_flat.h5 is cut short"),
        ({"betas": "cut_five.mat"}, "cut_five.mat is cut short"),
        ({"betas": "cut_seven.mat"}, "cut_seven.mat is cut short"),
        ({"betas": "text.npy"}, "text.npy is cut short or no file of np.save"),
        ({"betas": "text.nii"}, "text.nii is cut short or no NIfTI"),
        ({"mask": "mask.nii.gz"}, "mask.nii.gz has 8 voxels inside, the betas have 60"),
        ({"mask": "empty.nii.gz"}, "empty.nii.gz is empty"),
        ({"events": "nowhere.tsv"}, "there are no events"),
        ({"events": "back.tsv"}, "line 47: onset goes back"),
        ({"events": "onset.tsv"}, "line 2: onset 'soon' is no number"),
        ({"events": "column.tsv"}, "has no column stim_file or trial_type, only onset, picture"),
        ({"events": "blank.tsv"}, "blank.tsv is no table of events"),
        ({"events": "bytes.tsv"}, "bytes.tsv is no table of events"),
        ({"events": "*run-1_events.tsv"}, "are both session None, run 1"),
        ({"sessions_from": "events"}, "the events say nothing of sessions"),
        ({"captions": "a.txt"}, "a.txt is no mapping from pictures"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_cannot_be_used_cost_one_line(study, tmp_path, how, said):
    spoiled(study, tmp_path)
    how = {k: v if k == "sessions_from" else tmp_path / v for k, v in how.items()}
    if "captions" in how:
        how["captions"].write_text("[1, 2]")
    given = {"betas": study / "flat.npy", "events": study / "events.tsv"} | how
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        from_files(tmp_path / "out", images=study / "stimuli", **given, **QUIET)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))


# -- the command -----------------------------------------------------------------------------------


def command(capsys, *words) -> tuple[int, list[str]]:
    """Exit status, and lines that were printed."""
    status = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    bars = [line for line in said.err.splitlines() if line.startswith("mindeye2-lite")]
    return status, said.out.splitlines() + bars


@pytest.fixture
def mine(study):
    return ["--betas", study / "flat.npy", "--events", study / "events.tsv", "--images",
            study / "stimuli"]  # fmt: skip


def test_the_command_prepares_and_says_what_to_type_next(mine, tmp_path, capsys):
    out = tmp_path / "my data"
    status, said = command(
        capsys, "prepare", *mine, "--image-size", 64, "--test", "p01", "--test", "p02", out
    )
    assert status == 0 and said[0].startswith("Test split: 2 of 30 pictures")
    assert said[2] == f"  mindeye2-lite inspect '{out}'"
    assert said[3] == f"  mindeye2-lite train --data '{out}' --subject 1 --profile lite"
    assert Subject(out, 1).images.shape == (PICTURES, 3, 64, 64)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--test", "0.2", "out"], "need --betas, --events, --images: --betas?"),
        (["--subjects", "1", "--test", "0.2", "out"], "--subjects is for raw NSD"),
        (["--mask", "a.nii"], "--mask needs data"),
        (["raw"], "prepare needs two folders"),
        (["MINE", "raw", "out"], "one folder to write"),
        (["MINE"], "one folder to write"),
        (["MINE", "out", "--mask", "V1", "--mask", "V2"], "take one --mask"),
        (["MINE", "out", "--test", "1.5"], "test is 1.5: a share lies between 0 and 1"),
    ],
)  # fmt: skip
def test_wrong_mixtures_of_options_cost_one_line(mine, words, said, capsys):
    place = words.index("MINE") if "MINE" in words else None
    if place is not None:
        words = [*words[:place], *words[place + 1 :], *mine]
    status, lines = command(capsys, "prepare", *words)
    assert status == 1 and len(lines) == 1 and said in lines[0]


def test_options_for_nsd_reach_its_prepare(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(nsd, "prepare", lambda *a, **k: seen.append((a, k)))
    words = (
        "RAW OUT --betas-version b2 --space func1mm --mask V1 --mask V2 --executor serial".split()
    )
    assert command(capsys, "prepare", *words, "--subjects", 1)[0] == 0
    assert command(capsys, "prepare", "RAW", "OUT", "--mask", "m.nii.gz")[0] == 0
    both = {"betas": "b2", "space": "func1mm", "mask": ["V1", "V2"], "executor": "serial"}
    assert seen[0] == (("RAW", "OUT"), both | {"subjects": [1]})
    assert seen[1] == (("RAW", "OUT"), {"mask": "m.nii.gz", "executor": "local"})


# -- training --------------------------------------------------------------------------------------

TINY = replace(
    Config.lite(), image_size=SIZE, hidden=16, tokens=4, dim=16, latent_size=8, aux_dim=8,
    prior_depth=1, prior_dim_head=8, epochs=6, max_steps=6, batch=8, pretrain_batch=8,
)  # fmt: skip


class Targets:
    """What the networks would say of the pictures."""

    def __init__(self, config: Config):
        one = torch.Generator().manual_seed(0)
        sizes = {"tokens": (4, 16), "latents": (4, 8, 8), "aux": (4, 8), "aux_augmented": (4, 8)}
        for name, size in sizes.items():
            setattr(self, name, torch.randn(PICTURES, *size, generator=one))

    def index(self, image_ids):
        return image_ids


def test_five_hundred_voxels_and_ninety_trials_fine_tune(tmp_path, monkeypatch):
    monkeypatch.setattr(train.encoders, "targets", lambda images, ids, config, **_: Targets(config))
    betas = draw(2).normal(size=(TRIALS, 500))
    own(tmp_path, betas, sessions=SESSIONS)
    own(tmp_path, BETAS, subject=2)
    fresh = train.fine_tune(TINY, tmp_path, 1, None, progress=False)
    assert len(fresh.history["steps"]) == 6
    pretrained = train.pretrain(TINY, tmp_path, (2,), progress=False).model
    tuned = train.fine_tune(TINY, tmp_path, 1, None, start=pretrained, progress=False)
    subject = Subject(tmp_path, 1)
    out, ids = train.brain_outputs(tuned.model, subject.test(), 1)
    assert out.retrieval.shape[0] == len(ids) == 3
    assert torch.isfinite(out.retrieval).all()


def test_an_epoch_is_no_longer_than_the_trials_that_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(train.encoders, "targets", lambda images, ids, config, **_: Targets(config))
    own(tmp_path)
    config = replace(TINY, trials_per_session=750, epochs=2, max_steps=None)
    run = train.fine_tune(config, tmp_path, 1, None, progress=False)
    assert len(run.history["steps"]) == 2 * (TRIALS // 8)


def test_pictures_of_another_size_than_the_profile_are_told_in_one_line(tmp_path, capsys):
    own(tmp_path / "out")
    status, said = command(capsys, "train", "--data", tmp_path / "out", "--out", tmp_path / "run")
    assert status == 1 and len(said) == 1
    assert "has pictures of 16 pixels, profile lite works with 64" in said[0]


def test_the_train_command_takes_a_folder_of_own_data(tmp_path, capsys):
    few = np.isin(SHOWN, sorted(IMAGES)[:8])
    own(tmp_path / "out", BETAS[few], SHOWN[few], dict(list(IMAGES.items())[:8]), image_size=64)
    words = ["train", "--data", tmp_path / "out", "--out", tmp_path / "run", "--max-steps", 4]
    status, said = command(capsys, *words, "--no-low-level")
    assert status == 0 and said[-1] == str(tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").is_file()
