"""Records taken out of a tar in one go are those that reading member by member gives, or none."""

import io
import tarfile

import numpy as np
import pytest

from mindeye2_lite import layout
from mindeye2_lite.layout_writing import Person, write_records
from mindeye2_lite.tar_records import read_alike

MEMBERS = {"behav": 1, "future_behav": 15, "olds_behav": 3, "past_behav": 15}


def samples(number=7, seed=0):
    """What a tar holds: (name, content) in order; rows as in the release."""
    rng = np.random.default_rng(seed)
    for key in range(number):
        for name, rows in MEMBERS.items():
            content = io.BytesIO()
            np.save(content, rng.normal(size=(rows, 17)))
            yield [f"sample{key:09d}.{name}.npy", content.getvalue()]


def write(path, content, form=tarfile.PAX_FORMAT, time=1.7e9 + 0.125):
    """webdataset.TarWriter writes times with fractions, each in a pax header of its own."""
    with tarfile.open(path, "w", format=form) as tar:
        for number, (name, array) in enumerate(content):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(array), time + number / 7
            tar.addfile(info, io.BytesIO(array))
    return path


def at_once(path):
    return read_alike(np.fromfile(path, np.uint8), layout.BEHAVIOR, len(layout.COLUMNS))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("number", [2, 3, 40])
def test_samples_built_alike_are_read_at_once(tmp_path, form, number):
    path = write(tmp_path / "0.tar", samples(number), form)
    rows = at_once(path)
    assert rows.shape == (number, 17) and len(np.unique(rows)) == number * 17
    assert np.array_equal(rows, layout._one_by_one(path))
    assert np.array_equal(rows, layout.read_records(path))


def test_our_own_tars_are_read_at_once(tmp_path):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(60, 17))
    table[:, layout.IMAGE] = rng.integers(0, 20, 60)
    table[:, layout.SESSION], table[:, layout.SHARED] = (
        np.arange(60) // 30 + 1,
        np.arange(60) % 5 == 0,
    )
    write_records(tmp_path, Person(1, table, lambda session: table))
    for path in tmp_path.rglob("*.tar"):
        assert np.array_equal(at_once(path), layout._one_by_one(path))


def without(content):
    del content[9]


def renamed(content):
    content[12][0] = "sample000000003.other.npy"


def doubled(content):
    content.insert(9, ["sample000000002.more.behav.npy", content[8][1]])


def longer(content):
    content[14][1] += bytes(600)


def other_rows(content):
    saved = io.BytesIO()
    np.save(saved, np.ones((1, 17), np.float32))
    content[16][1] = saved.getvalue()


def of_other_type(content):
    content[16][1] = content[16][1].replace(b"<f8", b"<i8")


def no_array(content):
    content[20][1] = bytes(len(content[20][1]))


def later(content):
    content[8], content[9] = content[9], content[8]


CHANGES = [without, renamed, doubled, longer, other_rows, of_other_type, no_array, later]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_built_otherwise_is_left_to_who_reads_one_by_one(tmp_path, form, change):
    change(content := [*samples()])
    path = write(tmp_path / "0.tar", content, form)
    assert at_once(path) is None
    try:
        expected = layout._one_by_one(path)
    except ValueError as error:
        with pytest.raises(ValueError) as caught:
            layout.read_records(path)
        assert str(caught.value) == str(error) and "\n" not in str(error)
    else:
        assert np.array_equal(layout.read_records(path), expected)


def test_a_pax_header_that_says_more_than_the_time_is_heard(tmp_path):
    """It may give another name or length; then members are not where they seem to be."""
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number, (name, array) in enumerate(samples()):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(array), 1.7e9 + 0.5
            if number == 16:
                info.pax_headers = {"path": "sample000000004.no.npy"}
            tar.addfile(info, io.BytesIO(array))
    assert at_once(tmp_path / "0.tar") is None
    assert len(layout.read_records(tmp_path / "0.tar")) == 6


def test_an_empty_tar_and_one_of_a_single_sample_are_read(tmp_path):
    assert layout.read_records(write(tmp_path / "0.tar", [])).shape == (0, 17)
    assert layout.read_records(write(tmp_path / "1.tar", samples(1))).shape == (1, 17)


def test_wherever_a_byte_is_lost_or_changed_no_record_is_lost_or_taken_from_elsewhere(tmp_path):
    """Keys, times and checksums may be wrong unnoticed; values are what the file says."""
    content = write(tmp_path / "0.tar", samples(3)).read_bytes()
    whole = layout.read_records(tmp_path / "0.tar")
    rng, path = np.random.default_rng(0), tmp_path / "1.tar"
    for _ in range(200):
        place, changed = int(rng.integers(len(content))), bytearray(content)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed if rng.random() < 0.7 else content[:place])
        rows = at_once(path)
        if rows is not None and not np.array_equal(rows, whole):
            assert np.array_equal(rows, layout._one_by_one(path), equal_nan=True)
            assert (rows != whole).sum() == 1


def test_a_bad_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    content = bytearray(write(tmp_path / "0.tar", samples(3), tarfile.USTAR_FORMAT).read_bytes())
    place = content.index(b"sample000000001.behav") + 124  # the length
    content[place : place + 8] = b"xxxxxxxx"
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"0.tar is cut short or not a tar file"):
        layout.read_records(tmp_path / "0.tar")
