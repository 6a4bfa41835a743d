"""A session is the same numbers in whatever form it lies on the disk, and bad files say so."""

import gzip
import tracemalloc

import h5py
import nibabel
import numpy as np
import pytest

from mindeye2_lite import nsd_sessions

TRIALS, SHAPE = 30, (7, 6, 5)  # of the volumes: x, y, z


@pytest.fixture
def volumes():
    """(x, y, z, trials) int16, as NSD stores them."""
    rng = np.random.default_rng(0)
    return rng.integers(-32768, 32768, (*SHAPE, TRIALS)).astype(np.int16)


@pytest.fixture
def mask():
    return np.random.default_rng(1).random(SHAPE) < 0.3


@pytest.fixture
def expected(volumes, mask):
    return volumes[mask].T.astype(np.float32) / 300


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Four volumes at once, so that every form is read in several blocks."""
    monkeypatch.setattr(nsd_sessions, "BLOCK", 4 * 2 * int(np.prod(SHAPE)))


def hdf5(path, volumes, dtype="<i2", **how):
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=volumes.T.astype(dtype), **how)
    return path


def nifti(path, volumes, **how):
    header = nibabel.Nifti1Header(**how)
    header.set_data_dtype(volumes.dtype)
    nibabel.save(nibabel.Nifti1Image(volumes, np.eye(4), header), path)
    return path


def equal(path, mask, expected):
    found = nsd_sessions.read(path, mask)
    assert found.dtype == np.float32 and np.array_equal(found, expected)


# -- forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chunks",
    [
        *((TRIALS, 1, 1, 1), (10, 1, 1, 1), (7, 5, 6, 7), (1, 5, 6, 7), (TRIALS, 5, 6, 7)),
        *((11, 2, 4, 3), (TRIALS, 1, 1, 7), (1, 1, 1, 1), None),
    ],
)
@pytest.mark.parametrize("how", [{}, {"compression": "gzip", "shuffle": True}])
def test_hdf5_reads_the_same_in_any_chunks(tmp_path, volumes, mask, expected, chunks, how):
    how = how if chunks else {}
    path = hdf5(tmp_path / "betas_session01.hdf5", volumes, chunks=chunks, **how)
    equal(path, mask, expected)


@pytest.mark.parametrize("dtype", [">i2", "<i4", ">f4", "<f8"])
@pytest.mark.parametrize("chunks", [(TRIALS, 1, 1, 1), (5, 5, 6, 7)])
def test_hdf5_of_other_types_and_byte_orders_is_the_same(
    tmp_path, volumes, mask, expected, dtype, chunks
):
    equal(hdf5(tmp_path / "a.hdf5", volumes, dtype, chunks=chunks), mask, expected)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "name with a space é.nii.gz"])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_nifti_reads_the_same(tmp_path, volumes, mask, expected, name, endianness):
    equal(nifti(tmp_path / name, volumes, endianness=endianness), mask, expected)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_the_scale_of_a_nifti_header_is_applied(tmp_path, volumes, mask, kind):
    image = kind(volumes, np.eye(4))
    image.header.set_slope_inter(0.5, 100)
    nibabel.save(image, tmp_path / "a.nii.gz")
    header = nibabel.load(tmp_path / "a.nii.gz").dataobj
    assert (header.slope, header.inter) == (0.5, 100)
    given = (header.get_unscaled()[mask].T * 0.5 + 100).astype(np.float32) / 300
    equal(tmp_path / "a.nii.gz", mask, given)


def test_of_a_file_with_a_chunk_per_voxel_only_those_of_the_mask_are_read(
    tmp_path, volumes, mask, expected
):
    path = hdf5(tmp_path / "a.hdf5", volumes, chunks=(TRIALS, 1, 1, 1), compression="gzip")
    with h5py.File(path) as file:
        betas = file["betas"]
        outside = [betas.id.get_chunk_info_by_coord((0, z, y, x)) for x, y, z in np.argwhere(~mask)]
    content = bytearray(path.read_bytes())
    for chunk in outside:
        content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    equal(path, mask, expected)
    with pytest.raises(ValueError, match=r"a\.hdf5 is damaged[^\n]*$"):
        nsd_sessions.read(path, np.ones(SHAPE, bool))


def test_chunks_that_were_never_written_are_zeros(tmp_path, mask):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("betas", (TRIALS, *SHAPE[::-1]), "<i2", chunks=(TRIALS, 1, 1, 1))
    equal(tmp_path / "a.hdf5", mask, np.zeros((TRIALS, mask.sum()), np.float32))


def test_a_gzip_stream_is_read_once_from_beginning_to_end(
    tmp_path, volumes, mask, expected, monkeypatch
):
    path = nifti(tmp_path / "a.nii.gz", volumes)
    places = []

    class Recorded(gzip.GzipFile):
        def read(self, size):
            places.append(self.tell())
            return super().read(size)

    monkeypatch.setattr(nsd_sessions.gzip, "open", Recorded)
    equal(path, mask, expected)
    assert places == [352 + 420 * trial for trial in (*range(0, 30, 4), 30)]


@pytest.mark.parametrize("form", ["a.nii.gz", "a.hdf5"])
def test_memory_holds_the_result_and_a_block(tmp_path, form):
    volumes = np.zeros((20, 20, 20, 200), np.int16)  # 3.2 MB
    mask = np.zeros(volumes.shape[:3], bool)
    mask[5:8, 5:8, 5:8] = True
    path = tmp_path / form
    if form.endswith("gz"):
        nifti(path, volumes)
    else:
        hdf5(path, volumes, chunks=(10, 20, 20, 20))
    tracemalloc.start()
    nsd_sessions.read(path, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


# -- bad input -------------------------------------------------------------------------------------


def complains(path, mask, match):
    with pytest.raises(ValueError, match=match) as caught:
        nsd_sessions.read(path, mask)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("form", ["a.nii", "a.nii.gz", "a.hdf5"])
@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.5, 0.95])
def test_a_file_cut_short_is_named(tmp_path, volumes, mask, form, share):
    path = tmp_path / form
    hdf5(path, volumes) if form.endswith("hdf5") else nifti(path, volumes)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    complains(path, mask, "is cut short|is damaged")


def test_a_stream_that_ends_too_early_says_in_which_trial(tmp_path, volumes, mask):
    path = nifti(tmp_path / "a.nii.gz", volumes)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[: 352 + 420 * 17 + 5]))
    complains(path, mask, "it ends in trial 18 of 30")


def test_damage_inside_a_gzip_stream_is_named(tmp_path, volumes, mask):
    path = nifti(tmp_path / "a.nii.gz", volumes)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    complains(path, mask, "damaged|cut short")


@pytest.mark.parametrize("form", ["a.nii", "a.hdf5"])
def test_something_else_under_that_name_is_named(tmp_path, mask, form):
    (tmp_path / form).write_bytes(b"once upon a time" * 100)
    complains(tmp_path / form, mask, "is cut short or not")


@pytest.mark.parametrize("dtype", ["c8", "S4", "?"])
def test_values_that_are_no_numbers_are_named(tmp_path, mask, dtype):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("betas", (TRIALS, *SHAPE[::-1]), dtype)
    complains(tmp_path / "a.hdf5", mask, "betas are of type .*, expected int16")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("chunks", [(TRIALS, 1, 1, 1), (5, 5, 6, 7)])
def test_values_that_are_not_finite_are_named_with_their_place(
    tmp_path, volumes, mask, value, chunks
):
    place = tuple(np.argwhere(mask)[3].tolist())
    values = volumes.astype(float)
    values[(*place, 11)] = value
    path = hdf5(tmp_path / "a.hdf5", values, "f8", chunks=chunks)
    match = rf"has 1 betas that are no finite .* trial 12 at voxel \({place[0]}, {place[1]}"
    complains(path, mask, match)


def test_missing_values_outside_the_mask_do_no_harm(tmp_path, volumes, mask, expected):
    values = volumes.astype(np.float64)
    values[~mask] = np.nan
    equal(hdf5(tmp_path / "a.hdf5", values, "f8"), mask, expected)


def test_a_group_of_that_name_and_a_file_without_it_are_named(tmp_path, mask):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_group("betas")
    complains(tmp_path / "a.hdf5", mask, "betas is a group")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["modelmd"] = np.zeros(3)
    complains(tmp_path / "b.hdf5", mask, r"has no 'betas', only \['modelmd'\]")


def test_an_empty_mask_is_named(tmp_path, volumes):
    path = hdf5(tmp_path / "a.hdf5", volumes)
    complains(path, np.zeros(SHAPE, bool), "holds no voxel")


@pytest.mark.parametrize("form", ["a.nii.gz", "a.hdf5"])
def test_a_shape_is_checked_by_the_header_alone(tmp_path, volumes, form, monkeypatch):
    path = tmp_path / form
    write = hdf5 if form.endswith("hdf5") else nifti
    write(path, volumes)
    monkeypatch.setattr(nsd_sessions, "_from_hdf5", None)
    monkeypatch.setattr(nsd_sessions, "_from_nifti", None)
    nsd_sessions.check(path, TRIALS, SHAPE)
    with pytest.raises(ValueError, match="expected 75 trials as in responses.tsv"):
        nsd_sessions.check(path, 75, SHAPE)
    own = "5, 6, 7" if form.endswith("hdf5") else "7, 6, 5"
    with pytest.raises(ValueError, match=rf"has volumes \({own}\), nsdgeneral has"):
        nsd_sessions.check(path, TRIALS, (7, 6, 4), "nsdgeneral")
    write(path, volumes.transpose(2, 1, 0, 3))
    with pytest.raises(ValueError, match="has its axes in another order"):
        nsd_sessions.check(path, TRIALS, SHAPE)
    write(path, volumes[..., 0])
    with pytest.raises(ValueError, match="is cut short or of another run"):
        nsd_sessions.check(path, TRIALS, SHAPE)
