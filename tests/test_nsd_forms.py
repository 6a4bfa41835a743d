"""Whatever form NSD's files have, preparing them makes what is written directly as a release."""

import functools
import hashlib
import io
import json
import os
import shutil
import tarfile

import h5py
import nibabel
import numpy as np
import pytest
import torch
from scipy.io import loadmat

from mindeye2_lite import cohort_forms, nsd, synthetic, voxel_model
from mindeye2_lite.layout import COLUMNS, betas_file, records_folder

FORMS = ("hdf5", "nsd-hdf5", "nii.gz")
SUBJECTS = range(1, 9)
SESSIONS = {1: 3, 2: 3, 3: 2, 4: 2, 5: 3, 6: 2, 7: 3, 8: 2}
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
BETAS = "nsddata_betas/ppdata/subj{:02d}/func1pt8mm/betas_fithrf_GLMdenoise_RR"


@pytest.fixture
def released(nsd_forms):
    return nsd_forms / "released"


@pytest.fixture(params=FORMS)
def out(nsd_forms, request):
    """What was prepared of the sessions of one form."""
    return nsd_forms / request.param / "out"


every_subject = pytest.mark.parametrize("subject", SUBJECTS)


def content(path) -> dict[str, np.ndarray]:
    """Every dataset of an HDF5 file by its name."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: keep(found, name, item))
    return found


def keep(found, name, item):
    if isinstance(item, h5py.Dataset):
        found[name] = item[()]


@functools.cache
def samples(tar: bytes) -> list[tuple[str, np.ndarray]]:
    """Names and arrays of a behavior tar, sorted: members of a sample have no order."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as tar:
        members = [(m.name, np.load(io.BytesIO(tar.extractfile(m).read()))) for m in tar]
    return sorted(members, key=lambda member: member[0])


# -- the cohort written as raw NSD, prepared, equals the cohort written as a release ---------------


@every_subject
def test_betas_are_those_of_the_release_to_float32_rounding(released, out, subject):
    ours, direct = content(betas_file(out, subject)), content(betas_file(released, subject))
    assert list(direct) == ["betas"] and direct["betas"].dtype == ours["betas"].dtype == np.float32
    shape = (75 * SESSIONS[subject], voxel_model.VOXELS[subject])
    assert ours["betas"].shape == direct["betas"].shape == shape
    session = np.repeat(np.arange(SESSIONS[subject]), 75)
    mean, std = (ours[name][session] for name in ("session_mean", "session_std"))
    percent = np.abs(direct["betas"] * std + mean)
    roundings = (percent + np.abs(mean)) / std + 1 + 2 * np.abs(direct["betas"])
    assert (np.abs(ours["betas"] - direct["betas"]) <= np.finfo(np.float32).eps * roundings).all()
    assert direct["betas"].std() == pytest.approx(1, abs=0.05)


@every_subject
def test_records_of_every_split_are_exactly_those_of_the_release(released, out, subject):
    folder, other = records_folder(out, subject), records_folder(released, subject)
    tars = sorted(str(path.relative_to(other)) for path in other.rglob("*.tar"))
    assert tars == sorted(str(path.relative_to(folder)) for path in folder.rglob("*.tar"))
    assert len(tars) == SESSIONS[subject] + 2
    for name in tars:
        ours, direct = (samples((f / name).read_bytes()) for f in (folder, other))
        assert [n for n, _ in ours] == [n for n, _ in direct] and len(direct) >= 4
        for (member, one), (_, two) in zip(ours, direct, strict=True):
            assert one.shape == two.shape and one.dtype == two.dtype == np.float64
            differ = sorted({COLUMNS[column] for column in np.nonzero(one != two)[1]})
            assert not differ, (name, member, differ)


def test_indices_are_exactly_those_of_the_release(released, out):
    name = "COCO_73k_subj_indices.hdf5"
    ours, direct = content(out / name), content(released / name)
    assert list(direct) == [f"subj{s:02d}" for s in SUBJECTS]
    for key, indices in direct.items():
        np.testing.assert_array_equal(ours[key], indices)
        assert len(indices) == 75 * SESSIONS[int(key[-1])]
    shared = np.load(released / "shared1000.npy")
    np.testing.assert_array_equal(np.load(out / "shared1000.npy"), shared)
    assert shared.dtype == bool and shared.sum() == 8


def test_pictures_are_exactly_those_of_the_release(released, out):
    name = "coco_images_64_float16.hdf5"
    ours, direct = content(out / name)["images"], content(released / name)["images"]
    assert ours.dtype == direct.dtype == np.float16 and direct.shape == (544, 3, 64, 64)
    np.testing.assert_array_equal(ours, direct)


def test_regions_are_exactly_those_of_the_release(released, out):
    name = "brain_region_masks.hdf5"
    ours, direct = content(out / name), content(released / name)
    assert len(direct) == 6 * 8
    for region, mask in direct.items():
        np.testing.assert_array_equal(ours[region], mask, err_msg=region)
        assert ours[region].dtype == bool and mask.any(), region


def test_captions_are_exactly_those_of_the_release(released, out):
    ours, direct = (json.loads((root / "captions.json").read_text()) for root in (out, released))
    assert ours == direct and len(direct) == 544


def files(folder):
    """Hashes of what lies there, but for locks."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found = {str(p.relative_to(folder)): p for p in paths if ".locks" not in p.parts}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}


@pytest.mark.parametrize("form", FORMS)
def test_the_other_flavor_of_the_design_gives_the_same_bytes(nsd_forms, tmp_path, form):
    raw = tmp_path / "raw"
    shutil.copytree(nsd_forms / form / "raw", raw, copy_function=os.link)
    (raw / DESIGN).unlink()
    matrices = loadmat(nsd_forms / "hdf5/raw" / DESIGN)
    matrices = {name: value for name, value in matrices.items() if not name.startswith("__")}
    other = "mat7.3" if form == "hdf5" else "mat5"
    cohort_forms.write_design(raw / DESIGN, matrices, other)
    out = nsd.prepare(raw, tmp_path / "out", progress=False)
    assert files(out) == files(nsd_forms / form / "out")
    shutil.rmtree(out)  # tens of megabytes


def test_every_form_of_the_sessions_gives_the_same_bytes(nsd_forms):
    first, *others = (files(nsd_forms / form / "out") for form in FORMS)
    assert all(other == first for other in others)


def test_a_release_written_directly_is_read_like_one(released, nsd_forms):
    direct, ours = nsd.Subject(released, 3), nsd.Subject(nsd_forms / "hdf5/out", 3)
    for split in ("new_test", "test"):
        one, two = (s.test(normalize="all", split=split) for s in (direct, ours))
        assert torch.equal(one.behavior, two.behavior) and len(one) > 0
    torch.testing.assert_close(direct.train(2).voxels, ours.train(2).voxels, atol=1e-5, rtol=1e-5)
    assert torch.equal(direct.images[[7]], ours.images[[7]])
    assert direct.captions(7) == ours.captions(7)


# -- the forms themselves --------------------------------------------------------------------------


def session_file(nsd_forms, form, subject=2, session=3):
    folder = nsd_forms / form / "raw" / BETAS.format(subject)
    suffix = ".nii.gz" if form == "nii.gz" else ".hdf5"
    return folder / f"betas_session{session:02d}{suffix}"


def test_every_form_of_a_session_has_the_same_volumes(nsd_forms):
    with h5py.File(session_file(nsd_forms, "hdf5")) as file:
        expected = file["betas"][:]
    with h5py.File(session_file(nsd_forms, "nsd-hdf5")) as file:
        assert file["betas"].dtype == np.dtype("<i2")
        np.testing.assert_array_equal(file["betas"][:], expected)
    volumes = np.asarray(nibabel.load(session_file(nsd_forms, "nii.gz")).dataobj)
    assert volumes.dtype == np.int16
    np.testing.assert_array_equal(volumes.transpose(3, 2, 1, 0), expected)
    assert expected.shape[0] == 75 and expected.any()


def test_nsds_own_chunks_hold_a_voxel_each_and_only_those_of_the_mask(nsd_forms):
    with h5py.File(session_file(nsd_forms, "nsd-hdf5")) as file:
        betas = file["betas"]
        assert betas.chunks == (75, 1, 1, 1) and betas.compression is None
        chunks = betas.id.get_num_chunks()
    assert chunks == voxel_model.VOXELS[2]


def test_a_design_of_matlab_7_3_is_hdf5_behind_a_header_with_everything_transposed(nsd_forms):
    path, old = (nsd_forms / form / "raw" / DESIGN for form in ("nii.gz", "hdf5"))
    head = path.read_bytes()[:520]
    assert head.startswith(b"MATLAB 7.3 MAT-file") and head[512:516] == b"\x89HDF"
    with pytest.raises(NotImplementedError):
        loadmat(path)
    matrices = loadmat(old)
    with h5py.File(path) as file:
        assert set(file) == {name for name in matrices if not name.startswith("__")}
        for name in file:
            np.testing.assert_array_equal(file[name][()].T, matrices[name])
        assert file["masterordering"].attrs["MATLAB_class"] == b"double"
        assert file["stimpattern"].attrs["MATLAB_class"] == b"uint8"


def test_unknown_forms_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="sessions_as 'mgz' is unknown: choose hdf5, nsd-hdf5"):
        synthetic.write_cohort(tmp_path / "raw", sessions_as="mgz")
    with pytest.raises(ValueError, match="design_as 'csv' is unknown: choose mat5, mat7.3"):
        synthetic.write_cohort(tmp_path / "raw", design_as="csv")
    with pytest.raises(ValueError, match=r"subject \[9\] is unknown"):
        synthetic.write_released(tmp_path / "raw", subjects=[9])
    assert not list(tmp_path.iterdir())


def test_the_direct_way_shares_no_code_with_preparation():
    assert not {"layout", "layout_writing", "nsd_raw", "nsd"} & set(vars(cohort_forms))
