"""A report says what is in the files, finds what must not be there, and says what is not known."""

import json
import shutil

import h5py
import matplotlib
import numpy as np
import pytest

from mindeye2_lite import cli, inspection, inspection_files, layout, nsd
from mindeye2_lite.layout_writing import Person, update_hdf5, write_person, write_records

matplotlib.use("Agg")

BETAS = "betas_all_subj01_fp32_renorm.hdf5"


@pytest.fixture(scope="module")
def report(small_root):
    return inspection.inspect(small_root, 1)


@pytest.fixture
def copy(small_root, tmp_path):
    """A layout that a test may damage."""
    return shutil.copytree(small_root, tmp_path / "layout")


def table(images, sessions, shared=()):
    """Records of trials of those images, spread evenly over sessions; nobody pressed a button."""
    rows = np.full((len(images), len(layout.COLUMNS)), -1.0)
    rows[:, layout.IMAGE], rows[:, 1] = images, 1
    rows[:, layout.SESSION] = np.arange(len(images)) * sessions // len(images) + 1
    rows[:, layout.GLOBAL_TRIAL] = np.arange(len(images))
    rows[:, layout.SHARED] = np.isin(images, shared)
    return rows


def own(root, images, sessions, shared=(), voxels=7, signal=1.0):
    """Somebody's own data: betas of signal and noise, and nothing else but their records."""
    rng = np.random.default_rng(0)
    rows = table(np.asarray(images), sessions, shared)
    seen = signal * rng.standard_normal((max(images) + 1, voxels))
    betas = seen[rows[:, 0].astype(int)] + rng.standard_normal((len(rows), voxels))
    per_session = {s: betas[rows[:, layout.SESSION] == s] for s in range(1, sessions + 1)}
    write_person(root, Person(1, rows, per_session.get))
    return root


# -- what is there ---------------------------------------------------------------------------------


def test_the_report_counts_what_the_subject_reads(report, small_root):
    subject = nsd.Subject(small_root, 1)
    train, test = subject.train(), subject.test()
    assert report.voxels == subject.num_voxels and report.sessions == subject.sessions == 4
    assert (report.splits["train"], report.splits["new_test"]) == (len(train), len(test))
    assert [s["train"] + s["test"] for s in report.trials] == [75] * 4
    assert report.repeats == {3: 100} and report.overlap == [] and report.problems == []
    assert report.images == report.images | {"number": 730, "pixels": 64}
    assert report.captions == 1


def test_streamed_numbers_are_those_of_all_voxels_at_once(small_root, monkeypatch):
    monkeypatch.setattr(inspection, "SLAB", 300 * 4 * 100)
    monkeypatch.setattr(inspection, "PART", 300 * 4 * 37)
    report = inspection.inspect(small_root, 1)
    records = inspection_files.records(small_root, 1, {})
    rows = np.concatenate([records["train"], records["new_test"]])
    rows = rows[rows[:, layout.GLOBAL_TRIAL].argsort()]
    with h5py.File(small_root / BETAS) as file:
        whole = inspection._as_trials(file["betas"][:], rows)
        assert report.ncsnr["file"] == inspection.quartiles(file["ncsnr"][:].astype(float))
    np.testing.assert_allclose(report.maps["reliability"], nsd.reliability(whole), atol=1e-5)
    np.testing.assert_allclose(
        report.maps["ncsnr from repeats"], nsd.estimate_ncsnr(whole), atol=1e-5
    )


def test_ncsnr_and_reliability_are_those_that_the_data_were_made_with(tmp_path):
    images = np.random.default_rng(1).permutation(np.repeat(np.arange(400), 3))
    report = inspection.inspect(own(tmp_path, images, 1, voxels=60))
    assert report.ncsnr["repeats"][1] == pytest.approx(1, abs=0.06)
    assert report.reliability[1] == pytest.approx(0.5, abs=0.05)
    assert report.ceiling[1][1] == pytest.approx(50, abs=4)
    assert report.ceiling[3][1] == pytest.approx(75, abs=4)


def test_drift_is_that_of_the_statistics(report, small_root):
    drift = nsd.session_drift(nsd.Subject(small_root, 1))
    for what in ("mean", "gain"):
        expected = np.percentile(drift[what], (25, 50, 75), axis=1).T
        np.testing.assert_allclose(report.drift[what], expected, atol=1e-5)


def test_the_report_is_json_and_text(report):
    known = json.loads(json.dumps(report.as_dict()))
    assert known["splits"]["train"] == report.splits["train"] and known["problems"] == []
    text = str(report)
    for part in ("sessions", "split overlap   none", "no NaN", "983", "V1", "hits", "captions"):
        assert part in text
    assert "not known: published counts: only NSD" in text


def test_nsds_counts_stand_beside_those_found(copy):
    np.save(copy / "shared1000.npy", np.zeros(73_000, bool))
    report = inspection.inspect(copy, 1)
    assert report.published["voxels"] == [983, 15724]
    assert report.published["new_test"] == [report.splits["new_test"], 3000]
    assert "test: " in str(report) and "differs" in str(report)


def test_positions_and_their_volume_come_from_voxels_hdf5(copy):
    position = np.argwhere(np.ones((10, 10, 10)))[:983]
    entry = {"position": position, "@": {"shape": (10, 11, 12), "affine": np.eye(4)}}
    update_hdf5(copy / "voxels.hdf5", {"subj01": entry})
    drawn = inspection.inspect(copy, 1).figure()
    assert (drawn["position"] == position).all() and tuple(drawn["shape"]) == (10, 11, 12)
    assert len(drawn["reliability"]) == 983


# -- what must not be there ------------------------------------------------------------------------


def test_an_image_in_both_splits_is_said_loudly(copy, capsys):
    records = inspection_files.records(copy, 1, {})
    rows = np.concatenate([records["train"], records["new_test"]])
    rows = rows[rows[:, layout.GLOBAL_TRIAL].argsort()]
    first = np.flatnonzero(rows[:, layout.SHARED] == 1)[0]
    rows[first, layout.SHARED] = 0  # one showing of a test image strays into training
    write_records(copy, Person(1, rows, dict().get))
    report = inspection.inspect(copy, 1)
    assert report.overlap == [int(rows[first, layout.IMAGE])]
    assert "SPLIT OVERLAP: 1 images" in str(report)
    assert cli.main(["inspect", str(copy)]) == 1
    assert "SPLIT OVERLAP" in capsys.readouterr().out


def test_nan_and_infinite_betas_are_counted_and_end_with_status_1(copy, capsys):
    with h5py.File(copy / BETAS, "a") as file:
        file["betas"][5, 3], file["betas"][6, 3], file["betas"][7, 9] = np.nan, np.inf, np.nan
    report = inspection.inspect(copy, 1)
    assert (report.missing["NaN betas"], report.missing["NaN voxels"]) == (3, 2)
    assert np.isfinite(report.reliability).all(), "the other voxels are measured"
    assert np.isnan(report.maps["reliability"][[3, 9]]).all()
    assert cli.main(["inspect", str(copy)]) == 1
    assert "NOT A NUMBER: 3 betas in 2 voxels" in capsys.readouterr().out


def test_constant_voxels_are_counted_by_session(copy):
    with h5py.File(copy / BETAS, "a") as file:
        file["betas"][:75, 3] = 0
        file["betas"][:, 4] = 0
    missing = inspection.inspect(copy, 1).missing
    assert missing["constant voxels by session"] == [2, 1, 1, 1]
    assert missing["constant voxels"] == 1


def test_doubled_trials_and_images_without_a_picture_are_problems(copy):
    records = inspection_files.records(copy, 1, {})
    rows = np.concatenate([records["train"], records["new_test"]])
    rows = rows[rows[:, layout.GLOBAL_TRIAL].argsort()]
    rows[1, layout.GLOBAL_TRIAL] = rows[0, layout.GLOBAL_TRIAL]
    rows[2, layout.IMAGE] = 999
    write_records(copy, Person(1, rows, dict().get))
    said = " ".join(inspection.inspect(copy, 1).problems)
    assert "DOUBLED: 1 trials" in said and "NO PICTURE: 1 trials" in said


# -- what is not known -----------------------------------------------------------------------------


def test_released_files_lack_statistics_and_are_inspected_all_the_same(copy):
    with h5py.File(copy / BETAS, "a") as file:
        for name in set(file) - {"betas"}:
            del file[name]
        del file.attrs["recipe"]
    (copy / "captions.json").unlink()
    (copy / "voxels.hdf5").unlink(missing_ok=True)
    report = inspection.inspect(copy, 1)
    assert report.kind.startswith("released form")
    assert {"session drift", "captions", "voxel positions"} <= set(report.unknown)
    assert report.drift is None and report.ncsnr["file"] is None
    assert report.ceiling[3] == pytest.approx(
        np.percentile(nsd.noise_ceiling(report.maps["ncsnr from repeats"], 3), (25, 50, 75))
    )


def test_own_data_of_one_session_without_repeats_say_what_is_not_known(tmp_path):
    report = inspection.inspect(own(tmp_path, range(90), 1, shared=range(18)))
    assert report.problems == [] and report.splits["new_test"] == 18
    assert report.repeats == {1: 90} and report.ceiling is None and report.regions == {}
    expected = {"ncsnr from repeats", "reliability", "noise ceiling", "session drift", "behavior"}
    assert expected | {"regions", "images", "captions", "voxel positions"} <= set(report.unknown)
    assert "not known: reliability: no image was shown twice" in str(report)
    assert "one session" in report.unknown["session drift"]


def test_without_a_test_split_that_is_said(tmp_path):
    report = inspection.inspect(own(tmp_path, range(20), 1))
    assert "no test split" in report.unknown["split overlap"]


# -- where it is told to look ----------------------------------------------------------------------


def test_a_betas_file_stands_for_its_folder(copy):
    assert inspection.people(copy / BETAS) == inspection.people(copy) == [1]
    assert inspection.inspect(copy / BETAS).path == str(copy)


def test_a_raw_tree_is_sent_to_prepare(small_raw):
    with pytest.raises(ValueError, match="is a raw NSD tree: run mindeye2-lite prepare"):
        inspection.people(small_raw)


def test_nothing_an_empty_folder_and_another_subject_are_said_in_one_line(copy, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, subject, match in (
        (tmp_path / "nowhere", None, "is missing"),
        (tmp_path / "empty", None, "has no betas_all_subjNN"),
        (copy, 5, r"no subject 5 in .*: there are \[1\]"),
    ):
        with pytest.raises(FileNotFoundError, match=match) as caught:
            inspection.inspect(path, subject)
        assert "\n" not in str(caught.value)


def test_files_of_other_masks_and_cut_files_are_named(copy):
    update_hdf5(copy / "brain_region_masks.hdf5", {"subj01": {"V1": np.ones(5, bool)}})
    with pytest.raises(ValueError, match=r"region V1 of subj01 has 5 voxels, the betas 983"):
        inspection.inspect(copy, 1)
    with h5py.File(copy / BETAS, "a") as file:
        kept = file["betas"][:200]
        del file["betas"]
        file["betas"] = kept
    with pytest.raises(ValueError, match="is cut short: the records name 300 trials, it has 200"):
        inspection.inspect(copy, 1)


def test_memory_holds_slabs_and_not_the_file(tmp_path):
    with h5py.File(tmp_path / "betas.hdf5", "w") as file:
        file.create_dataset("betas", (1000, 40_000), np.float32, fillvalue=0)
    widths = [part.shape[1] for part in inspection._parts(tmp_path / "betas.hdf5")]
    assert sum(widths) == 40_000 and max(widths) * 4 * 1000 <= inspection.PART


# -- the command -----------------------------------------------------------------------------------


def test_the_command_prints_and_writes_json_and_figure(small_root, tmp_path, capsys):
    out = [
        f"--{kind}={tmp_path / f'out.{end}'}" for kind, end in (("json", "json"), ("figure", "png"))
    ]
    assert cli.main(["inspect", str(small_root), "--subject", "1", *out]) == 0
    assert "subject 1 in" in capsys.readouterr().out
    (content,) = json.loads((tmp_path / "out.json").read_text())
    assert content["repeats"] == {"3": 100}
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "out.png"]


def test_options_that_cannot_be_are_refused_in_one_line(small_root, tmp_path, capsys):
    for line, match in (
        (["--surface", str(tmp_path)], "--surface needs --figure"),
        (["--figure", str(tmp_path / "a.doc")], "no figure can be written as .doc"),
    ):
        assert cli.main(["inspect", str(small_root), *line]) == 1
        said = capsys.readouterr().err
        assert match in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
