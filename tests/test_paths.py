"""Files lie below one folder, and are there whole or not at all."""

import errno
import os

import pytest

from mindeye2_lite import paths


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_everything_that_is_made_lies_below_the_cache_folder(cache):
    places = [paths.runs("lite", "pretrained"), paths.targets(), paths.cohort("lite")]
    assert all(cache in place.parents for place in places)
    assert paths.runs("lite", "pretrained").is_dir()


def test_real_data_can_lie_elsewhere_and_no_cohort_is_made_there(cache, tmp_path, monkeypatch):
    assert paths.data("paper") == cache / "data" / "paper"
    monkeypatch.setenv("MINDEYE2_LITE_DATA", str(tmp_path / "nsd"))
    assert paths.data("paper") == tmp_path / "nsd"
    assert paths.cohort("lite") == cache / "data" / "lite"


def test_a_cache_folder_that_cannot_be_written_is_named_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MINDEYE2_LITE_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError) as error:
        paths.cache()
    message = str(error.value)
    assert str(tmp_path / "file") in message and "MINDEYE2_LITE_CACHE" in message
    assert "\n" not in message


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "made" / "file"
    with paths.write_beside(target) as beside:
        beside.write_text("half")
        assert not target.exists()
        beside.write_text("whole")
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), paths.write_beside(target) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_gives_one_line_and_leaves_nothing(tmp_path):
    target = tmp_path / "file"
    with (
        pytest.raises(OSError, match="MINDEYE2_LITE_CACHE") as error,
        paths.write_beside(target) as beside,
    ):
        beside.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(target) in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_shipped_files_lie_in_the_package():
    assert paths.weights("mini-vae").parent == paths.PACKAGE / "weights"
    assert paths.results("one_hour").name == "one_hour.json"
