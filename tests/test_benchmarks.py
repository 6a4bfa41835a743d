"""Benchmarks measure what they say, at a size where it takes seconds; no figure is a limit here."""

import json
import math
import os
import sys
import tarfile
from dataclasses import asdict

import h5py
import nibabel
import numpy as np
import pytest
import torch

from mindeye2_lite import (
    benchmarks,
    cli,
    experiments,
    full_size,
    measuring,
    metrics,
    nsd,
    nsd_sessions,
    ways_of_scoring,
)
from mindeye2_lite.full_size import Size

TINY = Size(sessions=9, trials=30, voxels=1200, shape=(20, 24, 20))


@pytest.fixture(scope="module")
def in_this_process():
    """Fresh processes spend seconds on imports; what one is for has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks, "alone", measuring.with_peak)
        yield


@pytest.fixture(scope="module")
def preparing(tmp_path_factory, in_this_process):
    folder = tmp_path_factory.mktemp("preparing") / "bench"
    rows = benchmarks.prepare(folder, TINY)
    assert not folder.exists()
    return {row["what"]: row["value"] for row in rows}


@pytest.fixture(scope="module")
def reading(tmp_path_factory, in_this_process):
    folder = tmp_path_factory.mktemp("reading") / "bench"
    rows = benchmarks.reading(folder, TINY, batches=4, batch=5, rounds=2)
    assert not folder.exists()
    return {row["what"]: row["value"] for row in rows}


def finite(found, names):
    for name in names:
        value = found[name]
        assert isinstance(value, int | float) and not isinstance(value, bool), name
        assert math.isfinite(value) and value > 0, (name, value)


def test_preparing_has_seconds_bytes_and_shares_of_every_kind(preparing):
    may_be_zero = {"of these done again", "sessions done after it"}  # where the kill came late
    finite(preparing, [name for name, value in preparing.items() if not isinstance(value, bool)
                       and name not in may_be_zero and name != "peak memory"])  # fmt: skip
    assert preparing["until the first session is kept"] < preparing["prepare, all"]
    assert preparing["limit of memory"] == 3_000_000_000
    assert preparing["bytes of the prepared betas"] > 9 * 30 * 1200 * 4
    if sys.platform == "linux":
        assert 50e6 < preparing["peak memory"] < 16e9


def test_a_killed_preparation_goes_on_and_gives_the_same_bytes(preparing):
    assert preparing["sessions kept at the kill"] >= benchmarks.KILLED_AFTER
    assert preparing["of these done again"] == 0
    assert preparing["sessions kept at the kill"] + preparing["sessions done after it"] == 9
    assert preparing["the same betas, byte for byte"] is True


def test_sessions_of_all_forms_and_the_old_way_give_the_same_betas(preparing):
    assert preparing["all forms give the same betas"] is True


def test_reading_has_both_ways_their_ratios_and_the_same_values(reading):
    may_be_zero = {"batches that the original threw away"}
    finite(reading, [name for name, value in reading.items() if not isinstance(value, bool)
                     and name not in may_be_zero and "memory" not in name])  # fmt: skip
    assert reading["both read the same values"] is True
    assert (reading["batches compared"], reading["rounds"]) == (4, 2)
    ratio = reading["ours: until the first batch"] / reading["original: until the first batch"]
    assert reading["first batch, ours over the original's"] == pytest.approx(ratio)


def test_other_values_and_a_slower_way_are_noticed():
    one = {"first": 2.0, "each": [0.5], "again": [0.25], "digests": ["a"], "peak": None}
    original = one | {
        "loaded": 1.0, "first_records": 0.5, "each_without_records": [0.4], "thrown": 3
    }  # fmt: skip
    ours = one | {"opened": 0.1, "each": [1.0], "digests": ["b"]}
    rows = {row["what"]: row["value"] for row in benchmarks.compared([original], [ours])}
    assert rows["both read the same values"] is False
    assert rows["batches a second, ours over the original's"] == 0.5
    assert rows["first batch, ours over the original's"] == 1
    assert rows["the same, files in memory"] == 1
    assert rows["batches that the original threw away"] == 3
    assert rows["ours: peak memory"] is None


def test_scoring_has_both_ways_their_ratios_and_the_same_scores(tmp_path, in_this_process):
    size = benchmarks.Pairs(pairs=5, seen=56, reconstruction=64)
    rows = benchmarks.metrics(tmp_path / "bench", size, rounds=1)
    assert not (tmp_path / "bench").exists()
    found = {row["what"]: row["value"] for row in rows}
    finite(found, [name for name in found if "memory" not in name and "difference" not in name])
    assert (found["scores compared"], found["pairs of pictures"]) == (10, 5)
    assert found["largest difference of a score"] < 1e-6
    ratio = found["original: seconds"] / found["ours: seconds"]
    assert found["seconds, the original's over ours"] == pytest.approx(ratio)
    assert found["bytes of the pictures"] == 5 * 3 * 4 * (56**2 + 64**2)


def test_other_scores_are_noticed():
    one = {"seconds": 6.0, "busy": 5.0, "peak": None, "scores": {"SSIM": 0.5, "Eff": 0.25}}
    ours = one | {"seconds": 2.0, "scores": {"SSIM": 0.5, "Eff": 0.75}}
    rows = {row["what"]: row["value"] for row in benchmarks.scored([one], [ours])}
    assert rows["largest difference of a score"] == 0.5
    assert rows["seconds, the original's over ours"] == 3
    assert rows["memory, ours over the original's"] is None
    with pytest.raises(ValueError, match="not the same scores"):
        benchmarks.scored([one], [ours | {"scores": {"SSIM": 0.5}}])


def test_pictures_to_be_scored_have_structure_and_reconstructions_share_it(tmp_path):
    size = benchmarks.Pairs(pairs=4)
    assert (size.seen, size.reconstruction, benchmarks.Pairs().pairs) == (224, 256, 1000)
    ways_of_scoring.write(tmp_path, size)
    seen, made = (np.load(tmp_path / f"{name}.npy") for name in ("seen", "reconstruction"))
    assert seen.shape == (4, 3, 224, 224) and made.shape == (4, 3, 256, 256)
    assert 0 <= min(seen.min(), made.min()) and max(seen.max(), made.max()) <= 1
    small = (torch.from_numpy(x[:, :, 3::7, 3::7][..., :30, :30]) for x in (made, seen))
    assert metrics.two_way_identification(*small) > 0.8


def test_one_thread_leaves_the_environment_as_it_was(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with ways_of_scoring.one_thread():
        assert os.environ["OMP_NUM_THREADS"] == "1"
        assert "MALLOC_TRIM_THRESHOLD_" not in os.environ
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "5" and "OMP_NUM_THREADS" not in os.environ


# -- the files -------------------------------------------------------------------------------------


def test_a_size_as_it_stands_is_nsds_subject_1():
    size = Size()
    assert (size.rows, size.shown, size.shared, size.images) == (30_000, 10_000, 1_000, 73_000)
    mask = full_size.brain(size)
    assert mask.shape == (81, 104, 83) and mask.sum() == 15_724


def test_a_session_has_nsds_form_and_one_chunk_per_voxel(tmp_path):
    mask, betas = full_size.brain(TINY), full_size.stored(TINY, 1)
    for whole, chunks in ((False, 1200), (True, 20 * 24 * 20)):
        full_size.write_session(path := tmp_path / f"{whole}.hdf5", mask, betas, whole)
        with h5py.File(path) as file:
            data = file["betas"]
            assert (data.dtype, data.shape, data.chunks) == (
                np.int16, (30, 20, 24, 20), (30, 1, 1, 1)
            )  # fmt: skip
            assert data.compression is None and data.id.get_num_chunks() == chunks
            volumes = data[:].transpose(3, 2, 1, 0)
        assert (volumes[mask] == betas).all() and not volumes[~mask].any()
    full_size.write_session_nifti(path := tmp_path / "one.nii.gz", mask, betas)
    assert (np.asarray(nibabel.load(path).dataobj) == volumes).all()


def test_the_bytes_alone_are_those_of_the_masks_voxels(tmp_path, monkeypatch):
    mask, betas = full_size.brain(TINY), full_size.stored(TINY, 1)
    full_size.write_session(path := tmp_path / "session.hdf5", mask, betas, whole=True)
    asked = []
    monkeypatch.setattr(benchmarks, "read_pieces", lambda file, found: asked.extend(found))
    benchmarks.bytes_alone(path, mask)
    content = path.read_bytes()
    pieces = {content[offset : offset + length] for offset, length in asked}
    assert len(asked) == 1200 and pieces == {row.tobytes() for row in betas}


def test_released_files_are_read_as_a_subject(tmp_path):
    full_size.write_released(tmp_path, TINY)
    full_size.write_pictures(tmp_path, TINY, [3, 5])
    subject = nsd.Subject(tmp_path, 1)
    train, test = subject.train(), subject.test(normalize="all")
    assert len(train) + len(test) == 270 and train.voxels.shape[1] == 1200
    assert not set(train.image_ids.tolist()) & set(test.image_ids.tolist())
    with tarfile.open(tmp_path / "wds" / "subj01" / "train" / "0.tar") as tar:
        assert all("mtime" in member.pax_headers for member in tar)
    assert subject.images[[3, 5]].std() > 0.2 and subject.images[[4]].std() == 0


def test_a_volume_too_small_for_the_voxels_is_named():
    with pytest.raises(ValueError, match=r"volume \(4, 4, 4\) has room for \d+ voxels, not 500"):
        full_size.brain(Size(2, 30, 500, (4, 4, 4)))


# -- measuring -------------------------------------------------------------------------------------


def test_a_room_is_empty_large_enough_and_cleared_unless_it_is_to_be_kept(tmp_path):
    with measuring.room(tmp_path / "a", 1) as place:
        (place / "file").write_text("x")
    assert not place.exists()
    with measuring.room(tmp_path / "b", 1, keep=True) as place:
        (place / "file").write_text("x")
    with pytest.raises(ValueError, match="b is not empty: choose another folder"):
        measuring.room(place, 1).__enter__()
    assert (place / "file").exists()
    with pytest.raises(OSError, match=r"free, 1000000000.0 GB are needed"):
        measuring.room(tmp_path / "c", 10**18).__enter__()


SLOW = "import time, sys, pathlib as p\nfor n in range(5):\n (p.Path(sys.argv[1]) / f'{n}.txt')"
SLOW += ".touch(); time.sleep(0.3)"


def test_a_watched_process_is_killed_after_so_many_files_and_each_has_its_moment(tmp_path):
    seen = measuring.watch(["-c", SLOW, str(tmp_path)], tmp_path, "*.txt", kill_after=2)
    assert {"0.txt", "1.txt"} <= set(seen.kept) and len(list(tmp_path.iterdir())) < 5
    assert (np.diff(seen.moments) > 0.1).all() and 0 < seen.moments[0] < seen.seconds


@pytest.mark.parametrize("size", [40, 160])
def test_the_memory_of_a_process_and_its_children_counts(tmp_path, size):
    """On systems without /proc it is not known, and said to be."""
    part = f"import time; held = bytearray({size // 2} * 10**6); time.sleep(0.7)"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {part!r}]); {part}"
    peak = measuring.watch(["-c", code], tmp_path, "*").peak
    if sys.platform == "linux":
        assert size * 1e6 < peak < (size + 60) * 1e6
    else:
        assert peak is None


def test_a_watched_process_that_fails_costs_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"failed: ZeroDivisionError: division by zero$"):
        measuring.watch(["-c", "1 / 0"], tmp_path, "*")


def test_a_function_alone_has_a_peak_of_its_own():
    found = measuring.alone(dict, seconds=1)
    assert found["seconds"] == 1
    if sys.platform == "linux":
        assert 5e6 < found["peak"] < 1e9


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Benchmarks that only say what they were asked for, and results in a folder of the test."""

    def prepare(folder, size, seed=0, keep=False):
        """Says what it was asked for. At length."""
        return [{"what": f"{folder.name} {size.sessions} {keep}", "value": 0.25, "unit": "s"}]

    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"prepare": prepare})
    monkeypatch.setattr(experiments.paths, "results", lambda name: tmp_path / f"{name}.json")
    return tmp_path


def test_a_full_size_benchmark_is_printed_and_kept_with_its_origin(quick, capsys):
    assert cli.main(["bench", "prepare", "--folder", str(quick), "--seed", "3"]) == 0
    path = quick / "bench_prepare.json"
    assert capsys.readouterr().out.splitlines() == ["prepare 40 False  0.25 s", str(path)]
    content = json.loads(path.read_text())
    assert content["command"] == "mindeye2-lite bench prepare" and content["seed"] == 3
    assert {"commit", "profile", "device", "seconds", "machine"} <= set(content)
    assert content["size"] == {**asdict(Size()), "shape": [81, 104, 83]}


def test_a_smaller_one_is_printed_and_not_kept(quick, capsys):
    assert cli.main(["bench", "prepare", "--sessions", "8", "--keep"]) == 0
    assert capsys.readouterr().out == "prepare 8 True  0.25 s\n"
    assert not list(quick.glob("*.json"))


def test_without_a_name_benchmarks_are_listed(quick, capsys):
    assert cli.main(["bench"]) == 0
    assert capsys.readouterr().out == "prepare  Says what it was asked for\n"


@pytest.mark.parametrize(
    "line, said",
    [
        ("bench frob", "no benchmark 'frob': choose from prepare, reading, metrics"),
        (
            "bench metrics --sessions 3",
            "bench metrics has no --sessions: its size is set by --pairs",
        ),
        (
            "bench reading --pairs 3",
            "bench reading has no --pairs: its size is set by --sessions, --trials, --voxels",
        ),
        ("bench metrics --pairs 1", "--pairs must be 2 or more, got 1"),
        ("bench prepare --sessions 1", "--sessions must be 2 or more, got 1"),
        ("bench reading --voxels 0", "--voxels must be 1 or more, got 0"),
    ],
)
def test_a_wrong_word_costs_one_line(line, said, capsys):
    assert cli.main(line.split()) == 1
    assert capsys.readouterr().err == f"mindeye2-lite: {said}\n"


def test_values_are_shown_with_units_and_what_is_unknown_is_said_to_be():
    rows = [("a", 1.5e9, "bytes"), ("b", None, "bytes"), ("c", True, ""), ("d", 12345, "")]
    names = ("what", "value", "unit")
    shown = benchmarks.table({"rows": [dict(zip(names, row, strict=True)) for row in rows]})
    assert shown.splitlines() == ["a  1.500 GB", "b  not known here", "c  yes", "d  12,345"]


def test_the_old_way_reads_the_session_of_a_cohort_too(tmp_path):
    mask, betas = full_size.brain(TINY), full_size.stored(TINY, 2)
    full_size.write_session(path := tmp_path / "session.hdf5", mask, betas)
    expected = nsd_sessions.read(path, mask)
    assert np.array_equal(benchmarks.blocks_of_trials(path, mask, block=7), expected)
    np.testing.assert_allclose(expected.T * 300, betas, rtol=1e-6)
