"""The layout is written session by session: after a kill, beside others, on a full disk."""

import errno
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import layout_worker
import numpy as np
import pytest
from full_disk import no_file_over
from layout_worker import SESSIONS, TRIALS, VOXELS, person

from mindeye2_lite import layout_writing, paths
from mindeye2_lite.executors import workers
from mindeye2_lite.layout import SESSION, SHARED, betas_file, read_records, records_folder
from mindeye2_lite.layout_writing import update_hdf5, write_images, write_person


@pytest.fixture
def log(tmp_path):
    return tmp_path / "reads.log"


def reads(log) -> list[int]:
    """Which sessions were read since the last call."""
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [int(line.split()[0]) for line in lines]


def files(out: Path) -> dict[str, bytes]:
    """All that lies there, hidden or not, but for locks."""
    found = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(p.relative_to(out)): p.read_bytes() for p in found if ".locks" not in p.parts}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run writes of subject 1."""
    out = tmp_path_factory.mktemp("whole")
    write_person(out / "out", person(1, out / "log"))
    return files(out / "out")


def refused(error, match, call) -> None:
    """The call fails in one line."""
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


# -- what is written -------------------------------------------------------------------------------


def test_betas_and_statistics_are_those_of_each_sessions_training_trials(tmp_path, log):
    ncsnr = np.linspace(0, 1, VOXELS, dtype=np.float32)
    write_person(tmp_path, person(1, log, ncsnr=ncsnr))
    train = layout_worker.table()[:, SHARED] == 0
    assert 0 < (~train).sum() < len(train)
    with h5py.File(betas_file(tmp_path, 1)) as file:
        found = {name: file[name][()] for name in file}
        assert json.loads(file.attrs["recipe"]) == {"mask": "nsdgeneral"}
    assert found["betas"].shape == (SESSIONS * TRIALS, VOXELS)
    assert found["session_trials"].tolist() == [TRIALS] * SESSIONS
    np.testing.assert_array_equal(found["ncsnr"], ncsnr)
    for session in range(1, SESSIONS + 1):
        raw = layout_worker.betas(1, session).astype(np.float64)
        rows = slice(TRIALS * (session - 1), TRIALS * session)
        known = raw[train[rows]]
        expected = (raw - known.mean(0)) / known.std(0)
        np.testing.assert_allclose(found["betas"][rows], expected, atol=2e-5)
        for name, values in (("", known), ("_with_test", raw)):
            mean, std = (found[f"session_{what}{name}"][session - 1] for what in ("mean", "std"))
            np.testing.assert_allclose(mean, values.mean(0), rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(std, values.std(0), rtol=1e-6)


def test_a_session_without_training_trials_is_scaled_by_all_it_has(tmp_path, log):
    table = layout_worker.table()
    table[table[:, SESSION] == 2, SHARED] = 1
    write_person(tmp_path, layout_writing.Person(1, table, layout_worker.Read(1, log)))
    with h5py.File(betas_file(tmp_path, 1)) as file:
        second = file["betas"][TRIALS : 2 * TRIALS]
        np.testing.assert_array_equal(file["session_mean"][1], file["session_mean_with_test"][1])
    np.testing.assert_allclose(second.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(second.std(0), 1, atol=1e-5)
    assert len(read_records(records_folder(tmp_path, 1) / "train/1.tar")) == 0


def test_a_voxel_that_never_varies_becomes_0():
    betas = np.full((4, 2), 7, np.float32)
    betas[:, 1] = [1, 2, 3, 4]
    scaled, mean, std = layout_writing.normalized(betas, np.array([True, True, True, False]))
    assert (scaled[:, 0] == 0).all() and mean[0] == 7 and std[0] == 1
    np.testing.assert_allclose(scaled[:3, 1].std(), 1, rtol=1e-6)


def test_two_processes_write_the_same_bytes_as_one(tmp_path, log, whole):
    seen = []
    with workers("local:2") as run:
        write_person(tmp_path / "out", person(1, log), run, seen.append)
    assert files(tmp_path / "out") == whole
    assert sorted(seen) == sorted(reads(log)) == [1, 2, 3, 4, 5]


# -- killed, and going on --------------------------------------------------------------------------


@contextmanager
def another(out, subject, log, hold):
    """A process that writes that person, once it waits in session `hold`; killed at the end."""
    command = [sys.executable, layout_worker.__file__, out, str(subject), log, str(hold)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        while not (log.exists() and f"{hold} {process.pid}\n" in log.read_text()):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()


def environment():
    root = str(Path(layout_writing.__file__).parents[1])
    return os.environ | {"PYTHONPATH": root}


def test_a_run_killed_in_session_3_goes_on_there_and_makes_the_same_bytes(tmp_path, log, whole):
    out = tmp_path / "out"
    with another(out, 1, log, hold=3) as process:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert reads(log) == [1, 2, 3] and not betas_file(out, 1).exists()
    seen = []
    write_person(out, person(1, log), done=seen.append)
    assert reads(log) == [3, 4, 5] and seen == [1, 2, 3, 4, 5]
    assert files(out) == whole


def interrupted(out, log, monkeypatch, name="_write_session", after=2) -> None:
    """A run that ends in that step as by Ctrl-C: nothing is cleared away, as after a kill."""
    step, calls = getattr(layout_writing, name), []

    def stops(*arguments):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(arguments)
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(layout_writing, name, stops)
        write_person(out, person(1, log))


def test_a_run_killed_while_it_puts_sessions_together_reads_none_again(tmp_path, log, whole):
    out = tmp_path / "out"
    with another(out, 1, log, hold=5):
        (out / "wds").mkdir()
        (out / "wds/.subj01.1.part").mkdir()  # what a kill in the midst of it leaves
        (out / ".betas_all_subj01_fp32_renorm.hdf5.1.part").write_bytes(b"half")
        (out / ".betas_all_subj02_fp32_renorm.hdf5.1.part").write_bytes(b"of another")
    log.unlink()
    write_person(out, person(1, log))
    assert reads(log) == [5]
    (out / ".betas_all_subj02_fp32_renorm.hdf5.1.part").unlink()  # another's: must still be there
    assert files(out) == whole


def test_sessions_are_put_together_after_an_interruption_without_reading(
    tmp_path, log, whole, monkeypatch
):
    interrupted(tmp_path / "out", log, monkeypatch, "_assemble", after=0)
    assert reads(log) == [1, 2, 3, 4, 5]
    write_person(tmp_path / "out", person(1, log))
    assert reads(log) == [] and files(tmp_path / "out") == whole


@pytest.mark.parametrize("what", ["nothing", "sources", "recipe", "table"])
def test_kept_sessions_are_thrown_away_where_something_else_made_them(
    tmp_path, log, monkeypatch, what
):
    interrupted(tmp_path, log, monkeypatch)
    assert reads(log) == [1, 2]
    other = layout_worker.table()
    other[:, 9] += 1
    changes = {
        "nothing": {},
        "sources": {"sources": ["a file", 1235]},
        "recipe": {"recipe": {"mask": "V1"}},
        "table": {"table": other},
    }[what]
    made = person(1, log)
    write_person(tmp_path, layout_writing.Person(**{**vars(made), **changes}))
    assert reads(log) == ([3, 4, 5] if what == "nothing" else [1, 2, 3, 4, 5])


def test_a_finished_person_is_left_alone_and_every_session_counts_as_done(tmp_path, log, whole):
    write_person(tmp_path / "out", person(1, log))
    before, seen = betas_file(tmp_path / "out", 1).stat().st_mtime_ns, []
    reads(log)
    write_person(tmp_path / "out", person(1, log), done=seen.append)
    assert betas_file(tmp_path / "out", 1).stat().st_mtime_ns == before
    assert reads(log) == [] and seen == [1, 2, 3, 4, 5]


def test_other_choices_for_a_finished_person_are_refused(tmp_path, log):
    write_person(tmp_path, person(1, log))
    before = files(tmp_path)
    other = person(1, log, recipe={"mask": "V1", "space": "func1mm"})
    match = r"made with mask 'nsdgeneral', not 'V1', space None, not 'func1mm': choose another"
    refused(ValueError, match, lambda: write_person(tmp_path, other))
    assert files(tmp_path) == before


def test_a_damaged_result_is_named_and_not_taken_for_finished(tmp_path, log):
    write_person(tmp_path, person(1, log))
    path = betas_file(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:5000])
    refused(
        ValueError, "fp32_renorm.hdf5 is cut short", lambda: write_person(tmp_path, person(1, log))
    )


def test_a_damaged_kept_session_is_named_and_the_next_run_reads_all_again(
    tmp_path, log, monkeypatch
):
    interrupted(tmp_path, log, monkeypatch)
    (kept,) = tmp_path.rglob("session02.npz")
    kept.write_bytes(kept.read_bytes()[:3000])
    match = r"session02.npz is damaged: it cannot be read"
    refused(ValueError, match, lambda: write_person(tmp_path, person(1, log)))
    reads(log)
    write_person(tmp_path, person(1, log))
    assert reads(log) == [1, 2, 3, 4, 5]


# -- bad data --------------------------------------------------------------------------------------


def broken(session, what):
    """Reads as `person(1)` does, but for one session."""

    def read(number):
        betas = layout_worker.betas(1, number)
        return what(betas) if number == session else betas

    return layout_writing.Person(1, layout_worker.table(), read)


def fails_to_read(betas):
    raise ValueError("betas_session04.nii.gz is damaged")


@pytest.mark.parametrize(
    ("what", "match"),
    [
        (lambda betas: betas[:9], "session 4 has 9 trials, its records 12"),
        (lambda betas: betas[:, :9], "session 4 has 9 voxels, session 1 has 1000"),
        (fails_to_read, "betas_session04.nii.gz is damaged"),
    ],
)
def test_after_an_error_in_one_session_nothing_is_left(tmp_path, what, match):
    refused(ValueError, match, lambda: write_person(tmp_path, broken(4, what)))
    left = [name for name in files(tmp_path) if not name.startswith("wds/subj01")]
    assert left == []


def test_a_worker_that_sees_other_folders_is_named(tmp_path, log):
    task = (1, np.ones(TRIALS, bool))
    match = r"there is no .*elsewhere on .*: every worker must see the same folders"
    read = layout_worker.Read(1, log)
    refused(
        ValueError,
        match,
        lambda: layout_writing._write_session(tmp_path / "elsewhere", "{}", read, task),
    )
    assert not (tmp_path / "elsewhere").exists()


def test_a_worker_of_a_killed_run_keeps_no_session_in_the_folder_of_the_next(
    tmp_path, log, monkeypatch
):
    interrupted(tmp_path, log, monkeypatch)
    staged = layout_writing._staging(tmp_path, person(1, log))
    made_from = (staged / layout_writing.MADE_FROM).read_text()
    layout_writing._staging(tmp_path, person(1, log, recipe={"mask": "V1"}))
    task, read = (2, np.ones(TRIALS, bool)), layout_worker.Read(1, log)
    match = "begun anew with other choices: session 2 is late"
    refused(
        ValueError,
        match,
        lambda: layout_writing._write_session(staged, made_from, read, task),
    )
    assert [path.name for path in staged.iterdir()] == [layout_writing.MADE_FROM]


# -- two at once -----------------------------------------------------------------------------------


def test_the_second_of_two_writing_one_person_is_told_so_and_spoils_nothing(tmp_path, log, whole):
    out = tmp_path / "out"
    with another(out, 1, log, hold=2) as first:
        match = r"another process is writing subj01 in .*out: wait until it is done"
        other = tmp_path / "other.log"
        refused(ValueError, match, lambda: write_person(out, person(1, other)))
        assert not other.exists()
        log.with_suffix(".go").touch()
        assert first.wait() == 0, first.stderr.read()
    assert files(out) == whole


def test_two_processes_write_different_people_into_one_folder(tmp_path, log, whole):
    out, alone = tmp_path / "out", tmp_path / "alone"
    with another(out, 2, log, hold=2) as first:
        write_person(out, person(1, tmp_path / "other.log"))
        assert betas_file(out, 1).exists() and not betas_file(out, 2).exists()
        log.with_suffix(".go").touch()
        assert first.wait() == 0, first.stderr.read()
    write_person(alone, person(2, tmp_path / "other.log"))
    assert files(out) == {**whole, **files(alone)}


def test_a_small_file_keeps_the_entries_of_others(tmp_path):
    path = tmp_path / "small.hdf5"
    update_hdf5(path, {"subj01": {"V1": np.ones(3, bool)}, "number": np.arange(2)})
    update_hdf5(path, {"subj02": {"V1": np.zeros(4, bool)}})
    update_hdf5(path, {"subj01": {"V2": np.zeros(3, bool)}})
    with h5py.File(path) as file:
        assert {name: list(file[name]) for name in ("subj01", "subj02")} == {
            "subj01": ["V2"],
            "subj02": ["V1"],
        }
        assert file["number"][:].tolist() == [0, 1]
    assert list(files(tmp_path)) == ["small.hdf5"]


ADDS = """
import sys
from pathlib import Path
from mindeye2_lite.layout_writing import update_hdf5
for number in range(12):
    update_hdf5(Path(sys.argv[1]), {f"{sys.argv[2]}{number}": number})
"""


def test_two_processes_adding_to_one_small_file_lose_nothing(tmp_path):
    path = tmp_path / "small.hdf5"
    commands = [[sys.executable, "-c", ADDS, path, who] for who in "ab"]
    processes = [subprocess.Popen(command, env=environment()) for command in commands]
    assert [process.wait() for process in processes] == [0, 0]
    with h5py.File(path) as file:
        assert set(file) == {f"{who}{number}" for who in "ab" for number in range(12)}


# -- a disk that is full or read-only --------------------------------------------------------------


def test_a_full_disk_cuts_no_bytecode_short(tmp_path, monkeypatch):
    (tmp_path / "never_imported_before.py").write_text("numbers = " + repr(list(range(999))))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    with no_file_over(100):
        module = importlib.import_module("never_imported_before")
    assert len(module.numbers) == 999 and not (tmp_path / "__pycache__").exists()
    assert not sys.dont_write_bytecode


@pytest.mark.parametrize(
    ("size", "what"),
    [(20_000, "session01.npz"), (80_000, "subj01"), (200_000, "betas_all_subj01_fp32_renorm")],
)
def test_a_full_disk_costs_one_line_and_nothing_half_written_stays(
    tmp_path, log, whole, size, what
):
    out = tmp_path / "out"
    with no_file_over(size):
        refused(OSError, rf"cannot write .*{what}", lambda: write_person(out, person(1, log)))
    gc.collect()  # an HDF5 file that could not be closed would end the process here
    assert not [name for name in files(out) if not name.startswith("wds/subj01/")]
    write_person(out, person(1, log))
    assert files(out) == whole


def test_pictures_that_do_not_fit_are_noticed_at_the_first_block_that_fails(tmp_path):
    asked = []

    def read(first, last):
        asked.append(first)
        return np.zeros((last - first, 64, 64, 3), np.uint8)

    with no_file_over(100_000):
        match = "cannot write .*coco_images_64_float16.hdf5: File too large"
        refused(OSError, match, lambda: write_images(tmp_path, read, 40, 64, block=4))
    gc.collect()
    assert asked == [0, 4] and files(tmp_path) == {}


def test_a_small_file_that_does_not_fit_or_is_damaged_stays_as_it_was(tmp_path):
    path = tmp_path / "small.hdf5"
    update_hdf5(path, {"old": np.arange(3)})
    before = path.read_bytes()
    with no_file_over(10_000):
        match = "cannot write .*small.hdf5: File too large"
        refused(OSError, match, lambda: update_hdf5(path, {"new": np.zeros(9000)}))
    gc.collect()
    assert files(tmp_path) == {"small.hdf5": before}
    path.write_bytes(before[:300])
    refused(ValueError, "small.hdf5 is cut short", lambda: update_hdf5(path, {"new": 1}))
    assert files(tmp_path) == {"small.hdf5": before[:300]}


def read_only(*_, **__):  # a real one would not stop the superuser
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize("step", ["lock", "folder"])
def test_a_folder_that_is_read_only_is_named(tmp_path, log, monkeypatch, step):
    where = {"lock": (layout_writing, "FileLock"), "folder": (paths.tempfile, "TemporaryFile")}
    monkeypatch.setattr(*where[step], read_only)
    match = rf"cannot write to {tmp_path}.*: Read-only file system"
    refused(OSError, match, lambda: write_person(tmp_path, person(1, log)))
    assert files(tmp_path) == {} and reads(log) == []


def test_a_folder_below_a_file_is_named(tmp_path, log):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    refused(OSError, f"cannot write to {out}", lambda: write_person(out, person(1, log)))


# -- pictures --------------------------------------------------------------------------------------


def test_pictures_are_written_block_by_block_and_once(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    asked, done = [], []

    def read(first, last):
        asked.append((first, last))
        return pixels[first:last]

    path = write_images(tmp_path, read, 10, 8, done.append, block=4)
    assert asked == [(0, 4), (4, 8), (8, 10)] and done == [4, 4, 2]
    with h5py.File(path) as file:
        expected = (pixels / np.float32(255)).astype(np.float16).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(file["images"][:], expected)
    write_images(tmp_path, read, 10, 8, done.append)
    assert len(asked) == 3 and done[3:] == [10]


def test_a_picture_that_cannot_be_read_leaves_no_file(tmp_path):
    def read(first, last):
        if first:
            raise ValueError("stimuli.hdf5 is damaged")
        return np.zeros((last - first, 8, 8, 3), np.uint8)

    refused(ValueError, "damaged", lambda: write_images(tmp_path, read, 10, 8, block=4))
    assert files(tmp_path) == {}


def test_copying_a_finished_folder_keeps_it_finished(tmp_path, log):
    write_person(tmp_path / "one", person(1, log))
    reads(log)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    write_person(tmp_path / "two", person(1, log))
    assert reads(log) == []
