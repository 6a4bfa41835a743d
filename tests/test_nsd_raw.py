"""Every form of raw NSD gives the same layout; what is chosen is kept; bad input says so."""

import json
import os
import shutil
from contextlib import chdir, contextmanager
from functools import partial
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
import tiny_nsd
from joblib import Parallel, delayed
from scipy.io import loadmat, savemat

from mindeye2_lite import nsd_raw, nsd_sessions
from mindeye2_lite.layout import SESSION, read_records
from mindeye2_lite.layout_writing import alone
from mindeye2_lite.nsd_raw import prepare

BETAS = "betas_all_subj01_fp32_renorm.hdf5"


class Tree:
    """A raw tree that a test may change."""

    def __init__(self, root):
        self.root = root
        self.space = root / "nsddata_betas/ppdata/subj01/func1pt8mm"
        self.betas = self.space / "betas_fithrf_GLMdenoise_RR"
        self.roi = root / "nsddata/ppdata/subj01/func1pt8mm/roi"
        self.responses = root / "nsddata/ppdata/subj01/behav/responses.tsv"
        self.experiment = root / "nsddata/experiments/nsd"
        self.design = self.experiment / "nsd_expdesign.mat"
        self.info = self.experiment / "nsd_stim_info_merged.csv"
        self.stimuli = root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"

    @property
    def sessions(self):
        return sorted(self.betas.glob("betas_session*.hdf5"))

    def roi_of(self, name):
        return np.asarray(nibabel.load(self.roi / f"{name}.nii.gz").dataobj)

    def write_roi(self, name, values, affine=None):
        affine = np.eye(4) if affine is None else affine
        nibabel.save(nibabel.Nifti1Image(values, affine), self.roi / f"{name}.nii.gz")

    def edit(self, path, change, sep="\t"):
        """Change a table, all its cells as they stand there."""
        table = pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False)
        changed = change(table)
        table = changed if isinstance(changed, pd.DataFrame) else table
        table.to_csv(path, sep=sep, index=False)


@pytest.fixture
def tree(small_raw, tmp_path):
    shutil.copytree(small_raw, tmp_path / "raw")
    return Tree(tmp_path / "raw")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def run(tree, out, **how):
    return prepare(tree.root, out, progress=False, **how)


def contents(root, recipe=False):
    """Every array, attribute and other file of a layout; the recipe only if asked for."""
    found = {}

    def add(name, item):
        if isinstance(item, h5py.Dataset):
            found[file.filename[len(str(root)) :], name] = (item.dtype, item[()].tobytes())

    for path in sorted(p for p in Path(root).rglob("*") if p.is_file() and ".locks" not in p.parts):
        if path.suffix == ".hdf5":
            with h5py.File(path) as file:
                file.visititems(add)
                if recipe:
                    found[path.name, "recipe"] = file.attrs.get("recipe")
        else:
            found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def fails(match, call, out, error=ValueError):
    """One line, and nothing was written."""
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not out.exists() or not [
        p for p in out.rglob("*") if p.is_file() and p.suffix != ".lock"
    ]


# -- forms -----------------------------------------------------------------------------------------


def as_nifti(path, ending):
    with h5py.File(path) as file:
        volumes = file["betas"][:].T
    nibabel.save(nibabel.Nifti1Image(volumes, np.eye(4)), path.with_name(path.stem + ending))
    path.unlink()


def by_voxel(path):
    with h5py.File(path) as file:
        volumes = file["betas"][:]
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=volumes, chunks=(len(volumes), 1, 1, 1))


def as_matlab_73(path):
    """As MATLAB writes it: HDF5 after 512 bytes, arrays with their axes the other way round."""
    content = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in content.items():
            file[name] = np.asarray(array, np.float64).T
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))


def test_all_forms_of_sessions_and_design_give_the_same_bytes(tree, small_root, out):
    as_nifti(tree.sessions[0], ".nii.gz")
    as_nifti(tree.sessions[0], ".nii")
    by_voxel(tree.sessions[0])
    as_matlab_73(tree.design)
    run(tree, out)
    assert contents(out, recipe=True) == contents(small_root, recipe=True)


def test_hdf5_is_taken_where_both_are_there(tree, small_root, out):
    (tree.betas / "betas_session01.nii.gz").write_bytes(b"still loading")
    run(tree, out)
    assert contents(out) == contents(small_root)


def test_processes_of_this_machine_give_the_same_bytes(tree, small_root, out):
    run(tree, out, executor="local:2")
    assert contents(out, recipe=True) == contents(small_root, recipe=True)


def with_a_second_person(tree):
    """The first one again, under another number."""
    for part in ("nsddata_betas/ppdata", "nsddata/ppdata"):
        shutil.copytree(tree.root / part / "subj01", tree.root / part / "subj02")
    content = {k: v for k, v in loadmat(tree.design).items() if not k.startswith("__")}
    content["subjectim"][1] = content["subjectim"][0]
    savemat(tree.design, content)
    responses = tree.root / "nsddata/ppdata/subj02/behav/responses.tsv"
    tree.edit(responses, lambda t: t.__setitem__("SUBJECT", "2"))


def test_two_processes_may_prepare_two_people_into_one_folder(tree, out, tmp_path):
    with_a_second_person(tree)
    one = partial(prepare, tree.root, out, progress=False)
    Parallel(2)(delayed(one)(subjects=[subject]) for subject in (1, 2))
    run(tree, tmp_path / "one", subjects=[2, 1, 2])
    assert contents(out, recipe=True) == contents(tmp_path / "one", recipe=True)


def test_paths_may_have_spaces_and_any_letters(tree, small_root, tmp_path):
    moved = Tree(tree.root.rename(tmp_path / "rå w – 脳"))
    run(moved, tmp_path / "oút put")
    assert contents(tmp_path / "oút put") == contents(small_root)


def test_the_result_may_lie_around_the_raw_tree_or_in_it(tree, small_root, tmp_path):
    run(tree, tree.root / "prepared")
    assert contents(tree.root / "prepared") == contents(small_root)


@pytest.mark.parametrize(
    "asked, folder", [("b1", "betas_assumehrf"), ("betas_fithrf", "betas_fithrf")]
)
def test_other_preparations_are_read_from_their_folder(tree, small_root, out, asked, folder):
    tree.betas.rename(tree.space / folder)
    run(tree, out, betas=asked)
    assert contents(out) == contents(small_root)
    with h5py.File(out / BETAS) as file:
        assert json.loads(file.attrs["recipe"])["betas"] == folder
    there = f"there are func1pt8mm/{folder}$"
    fails(there, lambda: run(tree, out / "b3"), out / "b3", FileNotFoundError)


def test_the_other_resolution_is_read_from_its_folders(tree, small_root, out):
    tree.space.rename(tree.space.with_name("func1mm"))
    tree.roi.parent.rename(tree.roi.parent.with_name("func1mm"))
    run(tree, out, space="func1mm")
    assert contents(out) == contents(small_root)
    with h5py.File(out / "voxels.hdf5") as file:
        assert file["subj01"].attrs["space"] == "func1mm"
    match = "no betas_session.*func1pt8mm.*there are func1mm/betas_fithrf_GLMdenoise_RR"
    fails(match, lambda: run(tree, out / "no"), out / "no", FileNotFoundError)


def test_unknown_choices_are_named_and_nothing_is_written(tree, out):
    match = r"betas 'b4' are unknown: choose b1 \(betas_assumehrf\), b2"
    fails(match, lambda: run(tree, out, betas="b4"), out)
    match = "space 'MNI' is unknown: choose func1pt8mm or func1mm"
    fails(match, lambda: run(tree, out, space="MNI"), out)
    fails("executor 'many' is unknown", lambda: run(tree, out, executor="many"), out)


# -- masks -----------------------------------------------------------------------------------------


def columns(root, small_root, inside):
    """The betas of a masked layout, and those columns of the whole one."""
    with h5py.File(root / BETAS) as part, h5py.File(small_root / BETAS) as whole:
        return part["betas"][:], whole["betas"][:][:, inside]


def rois(root):
    with h5py.File(root / "brain_region_masks.hdf5") as file:
        return {name: mask[:] for name, mask in file["subj01"].items()}


@pytest.mark.parametrize("mask", ["V1, V2,ventral", ["V1", "V2", "ventral"]])
def test_a_mask_may_be_the_union_of_regions(tree, small_root, out, mask):
    run(tree, out, mask=mask)
    whole = rois(small_root)
    inside = whole["V1"] | whole["V2"] | whole["ventral"]
    found, expected = columns(out, small_root, inside)
    assert np.array_equal(found, expected)
    part = rois(out)
    assert part["nsd_general"].all() and set(part) == set(whole)
    assert all(np.array_equal(part[name], whole[name][inside]) for name in set(part))
    with h5py.File(out / BETAS) as file:
        recipe = json.loads(file.attrs["recipe"])
    assert recipe["mask"] == "V1,V2,ventral" and len(recipe["voxels"]) == 64


@pytest.mark.parametrize("pattern", ["mask{subject:02d}.nii.gz", "mask0{subject}.nii.gz"])
def test_a_mask_may_be_any_nifti_file(tree, small_root, out, tmp_path, pattern):
    general = tree.roi_of("nsdgeneral") == 1
    chosen = general & (np.indices(general.shape).sum(0) % 3 == 0)
    values = np.where(chosen, -0.5, 0).astype(np.float32)[..., None]  # nonzero is inside
    values[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2, 2, 2, 1])), tmp_path / "mask01.nii.gz")
    run(tree, out, mask=tmp_path / pattern)
    found, expected = columns(out, small_root, chosen[general])
    assert np.array_equal(found, expected)
    with h5py.File(out / BETAS) as file:
        assert json.loads(file.attrs["recipe"])["mask"] == pattern
        assert str(tmp_path) not in file.attrs["recipe"]
    with h5py.File(out / "voxels.hdf5") as file:
        assert np.array_equal(file["subj01/position"], np.argwhere(chosen))
        assert (np.diag(file["subj01"].attrs["affine"]) == [2, 2, 2, 1]).all()


def test_localizers_count_where_they_have_a_label(tree, out):
    general = tree.roi_of("nsdgeneral")
    faces = np.where(np.indices(general.shape)[0] > 10, 2, -1) * (general == 1)
    tree.write_roi("floc-faces", faces.astype(np.int16))
    run(tree, out, mask="floc-faces")
    with h5py.File(out / "voxels.hdf5") as file:
        assert np.array_equal(file["subj01/position"], np.argwhere(faces > 0))


def test_bad_masks_are_named(tree, out, tmp_path):
    def mask(values, name="mine.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / name)
        return tmp_path / name

    shape = tree.roi_of("nsdgeneral").shape
    cases = {
        "mask mine.nii.gz of subject 1 holds no voxel": mask(np.zeros(shape, np.int16)),
        "expected one volume": mask(np.ones((*shape, 2), np.int16), "two.nii.gz"),
        r"has volumes .*, small.nii has \(3, 3, 3\)": mask(np.ones((3, 3, 3)), "small.nii"),
        "'V9' is unknown: choose of V1, .*: prf-visualrois, streams, nsdgeneral$": "V1,V9",
        "mask is an empty list": [],
        "region '' is unknown": "",
    }
    for match, asked in cases.items():
        fails(match, lambda asked=asked: run(tree, out, mask=asked), out)
    match = "none01.nii.gz is missing"
    asked = str(tmp_path / "none{subject:02d}.nii.gz")
    fails(match, lambda: run(tree, out, mask=asked), out, FileNotFoundError)
    (tmp_path / "text.nii").write_text("no volume")
    fails("text.nii is cut short or not", lambda: run(tree, out, mask=tmp_path / "text.nii"), out)
    tree.write_roi("streams", np.ones((2, 2, 2), np.int16))
    fails(r"streams.nii.gz has shape \(2, 2, 2\)", lambda: run(tree, out, mask="V1,early"), out)


# -- labels and pictures ---------------------------------------------------------------------------


def test_every_voxel_keeps_its_place_and_its_labels(tree, out):
    general = tree.roi_of("nsdgeneral")
    inside = general == 1
    atlas = np.arange(general.size).reshape(general.shape) % 181
    tree.write_roi("HCP_MMP1", atlas.astype(np.float32))
    for name in ("lh.HCP_MMP1", "rh.HCP_MMP1", "thalamus"):
        tree.write_roi(name, atlas.astype(np.int16))
    run(tree, out)
    with h5py.File(out / "voxels.hdf5") as file:
        group = file["subj01"]
        place = group["position"][:]
        labels = {name: values[:] for name, values in group["labels"].items()}
        assert tuple(group.attrs["shape"]) == general.shape
        affine = nibabel.load(tree.roi / "nsdgeneral.nii.gz").affine
        assert np.array_equal(group.attrs["affine"], affine)
        assert group.attrs["space"] == "func1pt8mm"
    assert place.dtype == np.int16 and np.array_equal(place, np.argwhere(inside))
    assert set(labels) == {"HCP_MMP1", "nsdgeneral", "prf-visualrois", "streams"}
    assert {values.dtype for values in labels.values()} == {np.dtype(np.int16)}
    assert np.array_equal(labels["HCP_MMP1"], atlas[inside])
    assert np.array_equal(labels["streams"], tree.roi_of("streams")[inside])


def test_an_atlas_that_is_not_there_is_left_out(tree, out):
    (tree.roi / "prf-visualrois.nii.gz").unlink()
    run(tree, out)
    assert set(rois(out)) == {"nsd_general", "ventral", "lateral", "parietal"}
    (tree.roi / "streams.nii.gz").unlink()
    run(tree, out)
    assert set(rois(out)) == {"nsd_general"}


def test_an_atlas_of_another_size_or_without_labels_is_named(tree, out):
    shape = tree.roi_of("nsdgeneral").shape
    tree.write_roi("Kastner2015", np.ones((3, 3, 3), np.int16))
    match = r"Kastner2015.nii.gz has shape \(3, 3, 3\), nsdgeneral has \("
    fails(match, lambda: run(tree, out), out)
    tree.write_roi("Kastner2015", np.full(shape, 0.5, np.float32))
    fails("Kastner2015.nii.gz holds values that are no labels", lambda: run(tree, out), out)


def test_pictures_keep_their_coco_ids_and_own_indices(tree, small_root):
    table = pd.read_csv(small_root / "stimuli.csv")
    info = pd.read_csv(tree.info, index_col=0)
    design = loadmat(tree.design)
    assert list(table.image_id) == list(range(730))
    assert np.array_equal(table.coco_id, info.cocoId) and set(table.coco_split) == {"train2017"}
    assert np.array_equal(table.shared1000, info.shared1000) and table.shared1000.sum() == 10
    for subject in range(1, 9):
        own = table[f"subj{subject:02d}"].to_numpy()
        assert np.array_equal(own >= 0, info[f"subject{subject}"] == 1)
        seen = design["subjectim"][subject - 1] - 1
        assert np.array_equal(own[seen], np.arange(len(seen)))


def test_without_the_table_of_pictures_there_are_no_ids_and_no_captions(tree, out):
    tree.info.unlink()
    match = "nsd_stim_info_merged.csv is missing: it says which pictures the captions"
    fails(match, lambda: run(tree, out), out, FileNotFoundError)
    shutil.rmtree(tree.root / "annotations")
    run(tree, out)
    assert not (out / "stimuli.csv").exists() and not (out / "captions.json").exists()
    assert (out / BETAS).exists()


def test_a_bad_table_of_pictures_is_named(tree, out):
    def cases():
        yield "nsdId has 729 pictures of 729 rows, expected", lambda t: t.drop(index=5)
        yield "cocoId holds no whole numbers", lambda t: t.__setitem__("cocoId", "one")
        yield "has no column cocoSplit, only", lambda t: t.pop("cocoSplit")

    before = tree.info.read_bytes()
    for match, change in cases():
        tree.edit(tree.info, change, sep=",")
        fails(f"merged.csv.*{match}", lambda: run(tree, out), out)
        tree.info.write_bytes(before)


def annotations(tree, content):
    (path,) = (tree.root / "annotations").glob("*.json")
    path.write_text(content, encoding="utf-8")


def test_captions_may_have_any_letters(tree, out):
    coco = pd.read_csv(tree.info).cocoId[3]
    caption = {"image_id": int(coco), "caption": "una caña — 海"}
    annotations(tree, json.dumps({"annotations": [caption]}, ensure_ascii=False))
    run(tree, out)
    assert json.loads((out / "captions.json").read_text()) == {"3": ["una caña — 海"]}


@pytest.mark.parametrize("content", ["{", "[]", '{"annotations": [{"id": 3}]}', "{}"])
def test_bad_captions_are_named(tree, out, content):
    annotations(tree, content)
    match = "captions_train2017.json is no file of COCO captions"
    fails(match, lambda: run(tree, out), out)


def test_pictures_of_any_shape_become_square(tree, out):
    bricks = np.random.default_rng(0).integers(0, 256, (730, 40, 60, 3), np.uint8)
    with h5py.File(tree.stimuli, "w") as file:
        file["imgBrick"] = bricks
    run(tree, out)
    with h5py.File(out / "coco_images_40_float16.hdf5") as file:
        assert file["images"].shape == (730, 3, 40, 40)
        means = file["images"][:20].astype(float).mean((2, 3)) * 255
    assert np.abs(means - bricks[:20].mean((1, 2))).max() < 2


@pytest.mark.parametrize(
    "shape, dtype", [((730, 8, 8), "u1"), ((730, 3, 8, 8), "u1"), ((730, 8, 8, 3), "f4")]
)
def test_stimuli_of_another_form_are_named(tree, out, shape, dtype):
    with h5py.File(tree.stimuli, "w") as file:
        file.create_dataset("imgBrick", shape, dtype)
    fails(r"nsd_stimuli.hdf5: imgBrick has shape", lambda: run(tree, out), out)


# -- sessions --------------------------------------------------------------------------------------


def test_a_gap_in_the_sessions_is_named(tree, out):
    tree.sessions[2].unlink()
    match = r"betas_session03.hdf5 is missing.*there are sessions \[1, 2, 4\]"
    fails(match, lambda: run(tree, out), out, FileNotFoundError)


def test_answers_of_sessions_that_were_held_back_are_left_out(tree, out, small_root):
    tree.sessions[3].unlink()
    run(tree, out)
    with h5py.File(out / BETAS) as ours, h5py.File(small_root / BETAS) as whole:
        assert np.array_equal(ours["betas"], whole["betas"][:225])
    assert sorted(p.name for p in (out / "wds/subj01/train").iterdir()) == [
        *("0.tar", "1.tar", "2.tar")
    ]


@pytest.mark.parametrize("answers", ["of all sessions", "of those released"])
def test_of_few_sessions_that_are_loaded_the_older_test_split_keeps_all(
    out, tmp_path, monkeypatch, answers
):
    tree = tiny_nsd.write(tmp_path / "raw", sessions=6, trials=12)
    for session in (4, 5, 6):
        tree.session(session).unlink()
    if answers == "of those released":
        table = tree.responses()
        tiny_nsd.write_responses(tree.behavior(), table[table.SESSION <= 3])
        monkeypatch.setattr(nsd_raw, "IMAGES", tree.num_images)  # as if it were NSD itself
    run(tree, out)
    found = {s: read_records(out / f"wds/subj01/{s}/0.tar") for s in ("test", "new_test")}
    assert set(found["test"][:, SESSION]) == {1, 2, 3}
    assert np.array_equal(found["test"], found["new_test"])


def test_betas_without_answers_are_named(tree, out):
    tree.edit(tree.responses, lambda t: t.drop(index=range(225, 300)))
    match = "betas_session04.hdf5 .*responses.tsv has no trials of session 4"
    fails(match, lambda: run(tree, out), out)


def test_a_bad_last_session_stops_before_anything_is_written(tree, out):
    with h5py.File(tree.sessions[3], "a") as file:
        volumes = file["betas"][:]
        del file["betas"]
        file["betas"] = volumes.transpose(0, 3, 2, 1)
    fails("betas_session04.hdf5 has its axes in another order", lambda: run(tree, out), out)


def test_a_loop_of_links_is_one_line(tree, out):
    path = tree.sessions[1]
    path.unlink()
    path.symlink_to(path)
    fails("betas_session02.hdf5 is missing", lambda: run(tree, out), out, FileNotFoundError)
    path.unlink()
    shutil.rmtree(tree.roi)
    tree.roi.symlink_to(tree.roi)
    tree.betas.rename(tree.betas.with_name("x"))
    fails("no betas_sessionNN", lambda: run(tree, out), out, FileNotFoundError)


# -- design and answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [5, 7.3])
@pytest.mark.parametrize(
    "change, match",
    [
        (lambda d: d.pop("sharedix"), "has no 'sharedix', only"),
        (
            lambda d: d.update(subjectim=d["subjectim"] + 700),
            "subjectim has numbers .* to 730",
        ),
        (lambda d: d.update(masterordering=d["masterordering"] * 0), "masterordering has numbers"),
        (lambda d: d.update(sharedix=d["sharedix"] + 0.5), "sharedix holds no whole numbers"),
    ],
)
def test_a_bad_design_is_named(tree, out, kind, change, match):
    content = {k: v for k, v in loadmat(tree.design).items() if not k.startswith("__")}
    change(content)
    savemat(tree.design, content)
    if kind == 7.3:
        as_matlab_73(tree.design)
    fails(f"nsd_expdesign.mat.*{match}", lambda: run(tree, out), out)


@pytest.mark.parametrize("kind", [5, 7.3])
@pytest.mark.parametrize("share", [0, 0.3, 0.7])
def test_a_design_cut_short_is_named(tree, out, kind, share):
    if kind == 7.3:
        as_matlab_73(tree.design)
    content = tree.design.read_bytes()
    tree.design.write_bytes(content[: int(len(content) * share)])
    fails("nsd_expdesign.mat is cut short or not a MATLAB file", lambda: run(tree, out), out)


def cell(row, column, value):
    return lambda t: t.__setitem__(column, [*t[column][:row], value, *t[column][row + 1 :]])


def swapped(first, second):
    """Two rows of the table change places."""

    def change(table):
        table.iloc[[first, second]] = table.iloc[[second, first]].to_numpy()

    return change


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda t: t.pop("RT"), "has no column RT, only"),
        (cell(9, "73KID", "731"), "line 11, column 73KID: 731, expected 1 to 730"),
        (cell(9, "73KID", "0"), "line 11, column 73KID: 0, expected a whole number from 1"),
        (cell(9, "73KID", "7.5"), "line 11, column 73KID: 7.5, expected a whole"),
        (cell(9, "10KID", "101"), "line 11, column 10KID: 101, expected 1 to 100"),
        (cell(9, "SESSION", "NaN"), "line 11, column SESSION: nan, expected a whole"),
        (cell(9, "RT", "fast"), "line 11, column RT: fast, expected a number"),
        (cell(9, "TIME", "inf"), "line 11, column TIME: inf, expected a finite"),
        (cell(9, "SUBJECT", "2"), "line 11, column SUBJECT: 2, expected 1"),
        (cell(80, "SESSION", "1"), "column SESSION: 1|column TRIAL"),
        (swapped(20, 100), "column SESSION|column RUN|column TRIAL"),
        (swapped(3, 4), "line 6, column TRIAL: 4, after a later one"),
        (
            lambda t: t.__setitem__("TRIAL", ["1", "1", *t.TRIAL[2:]]),
            "line 3, column TRIAL: 1, a",
        ),
    ],
)
def test_bad_answers_are_named_with_line_and_column(tree, out, change, match):
    tree.edit(tree.responses, change)
    fails(f"responses.tsv.*{match}", lambda: run(tree, out), out)


@pytest.mark.parametrize("column", ["73KID", "10KID"])
def test_answers_to_other_pictures_than_planned_are_named(tree, out, column):
    table = pd.read_csv(tree.responses, sep="\t")
    planned = table[column][30]
    other = next(n for n in table[column] if n != planned)
    tree.edit(tree.responses, cell(30, column, str(other)))
    match = f"line 32, column {column}: {other}, but nsd_expdesign.mat has {planned} there"
    if column == "10KID":
        match = "line 32, column"  # the picture of that number is another one, too
    fails(match, lambda: run(tree, out), out)


def test_answers_in_another_order_than_planned_are_named(tree, out):
    """Both indices agree with each other, but not with the time."""
    table = pd.read_csv(tree.responses, sep="\t", dtype=str, keep_default_na=False)
    for column in ("73KID", "10KID"):
        table.loc[[8, 9], column] = table.loc[[9, 8], column].to_numpy()
    assert table["10KID"][8] != table["10KID"][9]
    table.to_csv(tree.responses, sep="\t", index=False)
    fails("line 10, column 10KID: .*, but nsd_expdesign.mat", lambda: run(tree, out), out)


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 50, b'a\tb\n1\t2\t3\n1\t"'])
def test_something_else_than_a_table_is_named(tree, out, content):
    tree.responses.write_bytes(content)
    fails("responses.tsv (cannot be read as a table|has no column)", lambda: run(tree, out), out)


# -- going on, and others at the same time ---------------------------------------------------------


def test_a_killed_run_goes_on_where_it_was(tree, out, small_root, monkeypatch):
    read, seen = nsd_sessions.read, []

    def killed(path, mask):
        seen.append(path.name[13:15])
        if seen == ["01", "02", "03"]:
            raise KeyboardInterrupt
        return read(path, mask)

    monkeypatch.setattr(nsd_sessions, "read", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tree, out)
    assert not (out / BETAS).exists()
    run(tree, out)
    assert seen == ["01", "02", "03", "03", "04"]
    assert contents(out, recipe=True) == contents(small_root, recipe=True)


def test_what_was_made_of_files_that_have_changed_is_made_again(tree, out, monkeypatch):
    read, seen = nsd_sessions.read, []

    def killed(path, mask):
        seen.append(path.name[13:15])
        if seen == ["01", "02"]:
            raise KeyboardInterrupt
        return read(path, mask)

    monkeypatch.setattr(nsd_sessions, "read", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tree, out)
    os.utime(tree.sessions[0], ns=(1, 1))
    run(tree, out)
    assert seen == ["01", "02", "01", "02", "03", "04"]


def test_other_choices_in_the_same_folder_leave_everything_as_it_is(tree, small_root, tmp_path):
    shutil.copytree(small_root, tmp_path / "out")
    with pytest.raises(ValueError, match="was made with mask 'nsdgeneral', not 'V1', voxels"):
        run(tree, tmp_path / "out", mask="V1")
    assert contents(tmp_path / "out", recipe=True) == contents(small_root, recipe=True)


def test_sessions_loaded_after_a_person_was_finished_are_not_passed_over(tree, small_root, out):
    late = tree.sessions[3].rename(tree.root / "still loading")
    run(tree, out)
    before = contents(out, recipe=True)
    late.rename(tree.betas / "betas_session04.hdf5")
    match = r"was made of 3 sessions \(225 trials\), now there are 4 \(300\): .* or delete it"
    with pytest.raises(ValueError, match=match):
        run(tree, out)
    assert contents(out, recipe=True) == before
    (out / BETAS).unlink()
    run(tree, out)
    assert contents(out, recipe=True) == contents(small_root, recipe=True)


def test_whoever_comes_second_with_another_mask_leaves_the_regions_of_the_first(tree, out):
    """The first has no betas yet that could tell: only the lock does."""
    run(tree, out)
    before = rois(out)
    (out / BETAS).unlink()
    with alone(out, "subj01"):
        with pytest.raises(ValueError, match="another process is writing subj01"):
            run(tree, out, mask="V1")
    found = rois(out)
    assert all(np.array_equal(found[name], before[name]) for name in before)
    with h5py.File(out / "voxels.hdf5") as file:
        assert len(file["subj01/position"]) == len(before["nsd_general"])


def test_pictures_that_a_killed_run_had_begun_are_removed(tree, small_root, out):
    out.mkdir()
    (out / ".coco_images_64_float16.hdf5.123.part").write_bytes(b"half")
    run(tree, out)
    assert contents(out) == contents(small_root)


def test_workers_that_stand_in_another_folder_find_the_files(tree, small_root, monkeypatch):
    """As those of a cluster do; paths are given from where the command was typed."""
    monkeypatch.chdir(tree.root.parent)
    (tree.root.parent / "elsewhere").mkdir()

    @contextmanager
    def workers(executor):
        def elsewhere(function, tasks):
            for task in tasks:
                with chdir("elsewhere"):
                    result = function(task)
                yield result

        yield elsewhere

    monkeypatch.setattr(nsd_raw, "workers", workers)
    prepare(tree.root.name, "out", progress=False)
    assert contents(Path("out")) == contents(small_root)


def test_a_layout_without_a_recipe_is_accepted(tree, small_root, tmp_path):
    shutil.copytree(small_root, tmp_path / "out")
    with h5py.File(tmp_path / "out" / BETAS, "a") as file:
        del file.attrs["recipe"]
    before = (tmp_path / "out" / BETAS).stat().st_mtime_ns
    run(tree, tmp_path / "out")
    assert (tmp_path / "out" / BETAS).stat().st_mtime_ns == before


def test_the_bar_counts_the_bytes_of_all_sessions_and_pictures(tree, out, monkeypatch):
    bars, make = [], nsd_raw.tqdm

    def bar(**how):
        bars.append(make(**how | {"disable": False, "file": open(os.devnull, "w")}))
        return bars[-1]

    monkeypatch.setattr(nsd_raw, "tqdm", bar)
    run(tree, out)
    run(tree, out)  # all is there
    size = sum(path.stat().st_size for path in (*tree.sessions, tree.stimuli))
    assert [round(bar.n) for bar in bars] == [bar.total for bar in bars] == [size, size]
