"""Preparation changes files, not data; what is held out stays unknown; bad input says so."""

import shutil
import tarfile
from functools import cached_property

import h5py
import nibabel
import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, Subset

from mindeye2_lite import encoders, layout, layout_writing, nsd, synthetic, trial_access
from mindeye2_lite.config import NORMALIZE, Config
from mindeye2_lite.nsd import Images, Subject, Trials, prepare

FOLDER = "func1pt8mm/betas_fithrf_GLMdenoise_RR"


class Tree:
    """A raw tree of four short sessions of one person, and what is in it."""

    def __init__(self, root):
        self.root = root
        self.roi = root / "nsddata/ppdata/subj01/func1pt8mm/roi"

    def session(self, number):
        return self.root / f"nsddata_betas/ppdata/subj01/{FOLDER}/betas_session{number:02d}.hdf5"

    @cached_property
    def mask(self):
        return np.asarray(nibabel.load(self.roi / "nsdgeneral.nii.gz").dataobj) == 1

    def betas(self, number):
        with h5py.File(self.session(number)) as file:
            return file["betas"][:].transpose(0, 3, 2, 1)[:, self.mask]


@pytest.fixture
def tree(small_raw):
    return Tree(small_raw)


@pytest.fixture
def root(small_root):
    return small_root


@pytest.fixture
def copy(tree, tmp_path):
    """A raw tree that a test may damage."""
    shutil.copytree(tree.root, tmp_path / "raw")
    return Tree(tmp_path / "raw")


@pytest.fixture
def subject(root):
    return Subject(root, 1)


# -- the layout ------------------------------------------------------------------------------------


def test_the_training_layout_has_the_released_names(root):
    names = {p.name for p in root.iterdir()}
    assert {
        "betas_all_subj01_fp32_renorm.hdf5",
        "coco_images_64_float16.hdf5",
        "COCO_73k_subj_indices.hdf5",
        "brain_region_masks.hdf5",
        "shared1000.npy",
        "captions.json",
        "wds",
    } <= names
    assert not [name for name in names if name.endswith(".part")]
    tars = root / "wds/subj01"
    assert sorted(p.name for p in (tars / "train").iterdir()) == [f"{i}.tar" for i in range(4)]
    assert (tars / "new_test/0.tar").exists() and (tars / "test/0.tar").exists()


def test_every_raw_beta_can_be_recovered(tree, root, subject):
    mean, std = subject.session_statistics
    with h5py.File(root / "betas_all_subj01_fp32_renorm.hdf5") as file:
        scaled = file["betas"][:]
    assert scaled.shape == (300, 983) and scaled.dtype == np.float32
    for session in range(4):
        recovered = scaled[75 * session : 75 * (session + 1)] * std[session] + mean[session]
        assert (np.rint(recovered * 300) == tree.betas(session + 1)).all()


def test_int16_rounds_by_less_than_one_percent_of_a_voxels_deviation(subject):
    _, std = subject.session_statistics
    assert (0.5 / 300 / std).max() < 0.01


def test_each_session_is_scaled_by_its_training_trials(subject):
    train = subject.train()
    for session in range(1, 5):
        voxels = train.voxels[train.session == session]
        torch.testing.assert_close(voxels.mean(0), torch.zeros(983), atol=1e-4, rtol=0)
        torch.testing.assert_close(voxels.std(0, correction=0), torch.ones(983), atol=1e-3, rtol=0)


def test_webdataset_reads_the_records(root):
    path = str(root / "wds/subj01/train/0.tar")
    samples = list(webdataset.WebDataset(path, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples[:2]] == ["sample000000000", "sample000000001"]
    shapes = {name: value.shape for name, value in samples[0].items() if name.endswith("npy")}
    assert shapes == {
        "behav.npy": (1, 17),
        "past_behav.npy": (15, 17),
        "future_behav.npy": (15, 17),
        "olds_behav.npy": (3, 17),
    }
    assert samples[0]["behav.npy"].dtype == np.float64


def test_sample_keys_count_on_over_sessions(root):
    def keys(i):
        dataset = webdataset.WebDataset(str(root / f"wds/subj01/train/{i}.tar"), shardshuffle=False)
        return [sample["__key__"] for sample in dataset]

    first, second = keys(0), keys(1)
    assert int(second[0].removeprefix("sample")) == int(first[-1].removeprefix("sample")) + 1


def test_records_know_their_neighbors_nearest_first(root):
    path = str(root / "wds/subj01/train/1.tar")
    samples = list(webdataset.WebDataset(path, shardshuffle=False).decode())
    for sample in (samples[0], samples[30], samples[-1]):
        trial = sample["behav.npy"][0, layout.GLOBAL_TRIAL]
        past = sample["past_behav.npy"][:, layout.GLOBAL_TRIAL]
        future = sample["future_behav.npy"][:, layout.GLOBAL_TRIAL]
        assert (past[past >= 0] == trial - 1 - np.arange((past >= 0).sum())).all()
        assert (future[future >= 0] == trial + 1 + np.arange((future >= 0).sum())).all()
        assert (past[past >= 0] >= 75).all() and (future < 150).all()  # the same session only
        olds = sample["olds_behav.npy"]
        assert (olds[:2, layout.IMAGE] == sample["behav.npy"][0, layout.IMAGE]).all()
        assert trial not in olds[:, layout.GLOBAL_TRIAL]
        assert (olds[2] == -1).all()


def test_images_are_the_stimuli(tree, subject):
    with h5py.File(tree.root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5") as file:
        bricks = file["imgBrick"][:]
    ids = [5, 2, 5]
    images = subject.images[ids]
    assert images.shape == (3, 3, 64, 64) and images.dtype == torch.float32
    expected = torch.from_numpy(bricks[ids]).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(images, expected, atol=3e-4, rtol=0)
    assert len(subject.images) == len(bricks) == 730


def test_of_several_sizes_the_largest_pictures_are_read(tmp_path):
    for size in (96, 224, 64):
        with h5py.File(tmp_path / f"coco_images_{size}_float16.hdf5", "w") as file:
            file["images"] = np.zeros((1, 3, 2, 2), np.float16)
    subject = object.__new__(Subject)
    subject.root = tmp_path
    assert subject.images.path.name == "coco_images_224_float16.hdf5"


def test_larger_stimuli_are_made_smaller(tree, tmp_path):
    out = prepare(tree.root, tmp_path, progress=False, image_size=32)
    assert Images(out / "coco_images_32_float16.hdf5")[[0]].shape == (1, 3, 32, 32)


def test_regions_cover_the_mask(subject):
    parts = ("V1", "V2", "V3", "V4", "higher_vis")
    assert sum(subject.rois[name].sum() for name in parts) == subject.num_voxels == 983
    assert subject.rois["nsd_general"].all()
    streams = sum(subject.rois[name].sum() for name in ("ventral", "lateral", "parietal"))
    assert streams == subject.rois["higher_vis"].sum()


def test_captions_belong_to_the_picture(root, subject):
    from mindeye2_lite import scenes

    kinds = synthetic.true_attributes(root)["kind"]
    for image in (0, 17, 729):
        captions = subject.captions(image)
        assert len(captions) == 5
        assert all(scenes.KINDS[kinds[image]] in caption for caption in captions)


def test_session_lengths_come_from_the_files(copy, tmp_path):
    path = copy.root / "nsddata/ppdata/subj01/behav/responses.tsv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:16] + lines[26:]))  # session 1 lost trials 16 to 25
    with h5py.File(copy.session(1), "a") as file:
        kept = np.delete(file["betas"][:], np.s_[15:25], axis=0)
        del file["betas"]
        file["betas"] = kept
    subject = Subject(prepare(copy.root, tmp_path / "out", progress=False), 1)
    train, test = subject.train(), subject.test()
    assert len(train) + len(test) == 290
    assert sorted(torch.cat([train.behavior, test.behavior])[:, 5].tolist()) == list(range(290))


# -- splits ----------------------------------------------------------------------------------------


def test_training_and_test_share_no_image(root, subject):
    train, test = subject.train(), subject.test()
    assert not set(train.image_ids.tolist()) & set(test.image_ids.tolist())
    assert len(train) + len(test) == 300
    shared = np.load(root / "shared1000.npy")
    assert shared[test.image_id].all() and not shared[train.image_id].any()
    assert shared.sum() == 10 and len(shared) == 730


def test_fewer_sessions_are_the_first_ones(subject):
    one, two, everything = subject.train(1), subject.train(2), subject.train()
    assert set(one.session.tolist()) == {1} and set(two.session.tolist()) == {1, 2}
    torch.testing.assert_close(two.voxels[: len(one)], one.voxels)
    torch.testing.assert_close(everything.voxels[: len(two)], two.voxels)


def test_the_test_set_never_changes(subject):
    sets = [subject.test(k, normalize=n) for k in (1, 2, None) for n in ("sessions", "all")]
    for other in sets[1:]:
        assert torch.equal(other.image_id, sets[0].image_id)
        assert torch.equal(other.behavior, sets[0].behavior)


def test_the_old_test_split_ends_three_sessions_earlier(subject):
    old, new = subject.test(split="test"), subject.test()
    assert set(old.session.tolist()) == {1} and len(old) == int((new.session == 1).sum())


def test_repeats_count_showings(subject):
    train = subject.train()
    for image in train.image_ids[:20]:
        here = train.repeat[train.image_id == image]
        assert here.tolist() == list(range(len(here)))


def test_missing_repeats_are_filled_by_the_first():
    ids = torch.tensor([7, 3, 7, 5, 3, 7, 7])
    voxels = torch.arange(7.0)[:, None]
    trials = Trials(voxels, ids, ids * 0, ids * 0, torch.zeros(7, 17, dtype=torch.float64))
    # image 3 was trials 1 and 4, image 5 trial 3, image 7 trials 0, 2, 5, 6
    assert trials.repeats()[:, :, 0].tolist() == [[1, 1, 4], [3, 3, 3], [0, 2, 5]]


# -- honesty ---------------------------------------------------------------------------------------


def changed(tree, session, rows):
    """The same raw betas, but for some trials of a session, far off."""
    with h5py.File(tree.session(session), "a") as file:
        file["betas"][rows] = file["betas"][rows] * 3 + 500


def test_test_trials_have_no_say_in_training_data(copy, subject, tmp_path):
    test = subject.test()
    row = int(test.behavior[test.session == 1][0, layout.GLOBAL_TRIAL])
    changed(copy, 1, row)
    other = Subject(prepare(copy.root, tmp_path / "out", progress=False), 1)
    assert torch.equal(other.train(1).voxels, subject.train(1).voxels)
    assert not torch.equal(other.test(1).voxels, test.voxels)


def test_unused_sessions_have_no_say_in_one_session_of_training(copy, subject, tmp_path):
    """Only the test trials of session 4 itself may move, and linearly in their own raw betas."""
    test = subject.test(1)
    train_rows = [t for t in range(75) if 225 + t not in test.behavior[:, layout.GLOBAL_TRIAL]]
    changed(copy, 4, train_rows)
    other = Subject(prepare(copy.root, tmp_path / "out", progress=False), 1)
    assert torch.equal(other.train(1).voxels, subject.train(1).voxels)
    torch.testing.assert_close(other.test(1).voxels, test.voxels, atol=1e-3, rtol=1e-3)
    late = test.session == 4
    official = other.test(1, normalize="all").voxels[late]
    assert (official - subject.test(1, normalize="all").voxels[late]).abs().max() > 0.5


def test_later_sessions_are_scaled_by_the_known_ones(tree, subject):
    train, test = subject.train(2), subject.test(2)
    known = np.concatenate([tree.betas(1), tree.betas(2)])[train.behavior[:, 5].long()] / 300
    later = test.session > 2
    raw = np.concatenate([tree.betas(n) for n in (1, 2, 3, 4)])[test.behavior[:, 5].long()] / 300
    expected = torch.from_numpy((raw - known.mean(0)) / known.std(0)).float()
    torch.testing.assert_close(test.voxels[later], expected[later], atol=1e-3, rtol=1e-3)
    own = subject.test(2, normalize="all")
    assert torch.equal(own.voxels[~later], test.voxels[~later])
    assert not torch.equal(own.voxels[later], test.voxels[later])


# -- statistics ------------------------------------------------------------------------------------


def test_noise_ceiling_is_nsds_formula():
    assert nsd.noise_ceiling(np.array(1.0), repeats=1) == 50
    assert nsd.noise_ceiling(np.array(1 / np.sqrt(3)), repeats=3) == pytest.approx(50)


def simulated(ncsnr, images=400, repeats=3, voxels=40):
    generator = torch.Generator().manual_seed(0)
    signal = ncsnr * torch.randn(images, 1, voxels, generator=generator)
    values = signal + torch.randn(images, repeats, voxels, generator=generator)
    ids = torch.arange(images).repeat_interleave(repeats)
    repeat = torch.arange(repeats).repeat(images)
    behavior = torch.zeros(len(ids), 17, dtype=torch.float64)
    return Trials(values.flatten(0, 1), ids, repeat, ids * 0 + 1, behavior)


@pytest.mark.parametrize("ncsnr", [0.3, 1.0])
def test_ncsnr_is_found_again_where_it_is_known(ncsnr):
    assert np.median(nsd.estimate_ncsnr(simulated(ncsnr))) == pytest.approx(ncsnr, abs=0.05)


def test_reliability_is_the_share_of_signal_variance():
    assert nsd.reliability(simulated(1.0)).mean() == pytest.approx(0.5, abs=0.03)
    assert abs(nsd.reliability(simulated(0.0)).mean()) < 0.03


def test_ncsnr_of_the_data_is_close_to_the_one_written(subject):
    estimate = nsd.estimate_ncsnr(subject.train())
    assert np.median(estimate) == pytest.approx(np.median(subject.ncsnr), abs=0.06)
    assert np.corrcoef(estimate, subject.ncsnr)[0, 1] > 0.7


def test_regions_sessions_and_behavior_have_summaries(subject):
    table = nsd.by_region(subject.ncsnr, subject.rois)
    assert table.voxels["nsd_general"] == 983 and (table["lower quartile"] < table["median"]).all()
    drift = nsd.session_drift(subject)
    assert drift["mean"].shape == drift["gain"].shape == (4, 983)
    assert 0.05 < drift["mean"].std() < 0.5
    summary = nsd.behavior_summary(subject.train())
    assert list(summary.index) == [1, 2, 3, 4]
    assert (summary["hits"] > summary["false alarms"]).all()


# -- bad input -------------------------------------------------------------------------------------


def fails(error, match, call, out):
    """The call fails in one line, and leaves no betas and nothing half-written in `out`."""
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
    if out.exists():
        left = [p.name for p in out.rglob("*")]
        assert not [n for n in left if n.endswith(".part") or n.startswith("betas_all")], left


def test_a_session_with_too_few_trials_is_named(copy, tmp_path):
    with h5py.File(copy.session(2), "a") as file:
        kept = file["betas"][:60]
        del file["betas"]
        file["betas"] = kept
    out = tmp_path / "out"
    match = r"betas_session02.hdf5 is cut short.* 75 trials.* \(60, 16, 20, 22\)"
    fails(ValueError, match, lambda: prepare(copy.root, out, progress=False), out)


def test_a_truncated_file_is_named(copy, tmp_path):
    content = copy.session(3).read_bytes()
    copy.session(3).write_bytes(content[: len(content) // 2])
    out = tmp_path / "out"
    match = r"betas_session03.hdf5 is cut short"
    fails(ValueError, match, lambda: prepare(copy.root, out, progress=False), out)


def test_damaged_chunks_are_found_and_leave_nothing(copy, tmp_path):
    content = bytearray(copy.session(3).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    copy.session(3).write_bytes(bytes(content))
    out = tmp_path / "out"
    match = r"betas_session03.hdf5 is (damaged|cut short)"
    fails(ValueError, match, lambda: prepare(copy.root, out, progress=False), out)


def damage_middle(path, chunks: h5py.Dataset) -> None:
    """Nothing but zeros in a compressed chunk of that dataset."""
    where = chunks.id.get_chunk_info(chunks.id.get_num_chunks() // 2)
    with path.open("r+b") as file:
        file.seek(where.byte_offset)
        file.write(bytes(where.size))


def test_damaged_stimuli_are_named_and_not_what_is_written_from_them(copy, tmp_path):
    path = copy.root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    with h5py.File(path, "a") as file:
        bricks = file["imgBrick"][:]
        del file["imgBrick"]
        file.create_dataset("imgBrick", data=bricks, compression="gzip")
    with h5py.File(path) as file:
        damage_middle(path, file["imgBrick"])
    with pytest.raises(ValueError, match=r"nsd_stimuli.hdf5 is damaged[^\n]*$"):
        prepare(copy.root, tmp_path / "out", progress=False)


def test_damaged_pictures_are_named_and_not_the_targets_that_are_made_of_them(
    tmp_path, monkeypatch
):
    path = tmp_path / "coco_images_64_float16.hdf5"
    with h5py.File(path, "w") as file:
        pixels = np.random.default_rng(0).random((8, 3, 64, 64)).astype(np.float16)
        file.create_dataset("images", data=pixels, chunks=(1, 3, 64, 64), compression="gzip")
        file.flush()
        damage_middle(path, file["images"])
    images, ids = Images(path), torch.arange(8)
    monkeypatch.setattr(encoders, "_targets_key", lambda *_: "key")
    with pytest.raises(ValueError, match="coco_images_64_float16.hdf5 is damaged"):
        encoders.targets(images, ids, Config.lite(), progress=False)


def test_a_mask_of_another_shape_is_named(copy, tmp_path):
    image = nibabel.Nifti1Image(np.ones((22, 20, 15), np.int16), np.eye(4))
    nibabel.save(image, copy.roi / "nsdgeneral.nii.gz")
    out = tmp_path / "out"
    match = r"has volumes \(16, 20, 22\), nsdgeneral has \(15, 20, 22\)"
    fails(ValueError, match, lambda: prepare(copy.root, out, progress=False), out)


def test_missing_files_are_named(copy, tmp_path):
    out = tmp_path / "out"
    copy.session(2).unlink()
    match = r"betas_session02.hdf5 is missing"
    fails(FileNotFoundError, match, lambda: prepare(copy.root, out, progress=False), out)
    match = r"is .* the root of an NSD tree\?"
    fails(FileNotFoundError, match, lambda: prepare(tmp_path / "none", out, progress=False), out)
    match = r"no subject \[5\].*there are \[1\]"
    fails(FileNotFoundError, match, lambda: prepare(copy.root, out, [5], progress=False), out)


def test_a_stopped_preparation_goes_on(tree, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(layout_writing, "normalized", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(tree.root, tmp_path, progress=False)
    assert not list(tmp_path.glob("betas_all*")) and not list(tmp_path.rglob("*.part"))
    prepare(tree.root, tmp_path, progress=False)
    before = (tmp_path / "betas_all_subj01_fp32_renorm.hdf5").stat().st_mtime_ns
    prepare(tree.root, tmp_path, progress=False)
    assert (tmp_path / "betas_all_subj01_fp32_renorm.hdf5").stat().st_mtime_ns == before


def test_a_session_that_does_not_exist_names_those_that_do(subject):
    for call in (subject.train, subject.test):
        for asked in (0, 5):
            with pytest.raises(ValueError, match=rf"sessions 1 to 4; asked for {asked}"):
                call(asked)


def test_wrong_words_are_named(subject):
    with pytest.raises(ValueError, match="'mine' is unknown: choose sessions, pooled, all, glob"):
        subject.train(normalize="mine")
    with pytest.raises(ValueError, match="split 'mine' is unknown"):
        subject.test(split="mine")
    with pytest.raises(ValueError, match="has images 0 to 729; asked for 730"):
        subject.images[[730]]


def test_a_wrong_subject_names_those_that_are_there(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no subject 2 in .*: there are \[1\]"):
        Subject(root, 2)
    with pytest.raises(FileNotFoundError, match="run nsd.prepare"):
        Subject(tmp_path, 1)


@pytest.fixture
def prepared(root, tmp_path):
    shutil.copytree(root, tmp_path / "prepared")
    return tmp_path / "prepared"


def edit_betas(root, change):
    with h5py.File(root / "betas_all_subj01_fp32_renorm.hdf5", "a") as file:
        betas = change(file["betas"][:])
        del file["betas"]
        file["betas"] = betas


def test_prepared_betas_cut_short_are_named(prepared):
    edit_betas(prepared, lambda betas: betas[:200])
    with pytest.raises(
        ValueError, match=r"cut short: expected at least .*found shape \(200, 983\)"
    ):
        Subject(prepared, 1)


def test_prepared_betas_of_another_mask_are_named(prepared):
    edit_betas(prepared, lambda betas: betas[:, :900])
    with pytest.raises(ValueError, match="has 983 voxels, but .* has 900"):
        Subject(prepared, 1)


def test_a_truncated_prepared_file_is_named(prepared):
    path = prepared / "betas_all_subj01_fp32_renorm.hdf5"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="subj01_fp32_renorm.hdf5 is cut short"):
        Subject(prepared, 1)


def test_truncated_records_are_named(prepared):
    tar = prepared / "wds/subj01/train/3.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"train/3\.tar is cut short"):
        Subject(prepared, 1).train()


def test_released_files_are_read_without_our_additions(prepared):
    with h5py.File(prepared / "betas_all_subj01_fp32_renorm.hdf5", "a") as file:
        for name in ("session_mean", "session_std", "session_trials", "ncsnr"):
            del file[name]
    subject = Subject(prepared, 1)
    assert len(subject.train(1)) + len(subject.test(1, normalize="all")) > 75
    with pytest.raises(ValueError, match='no session_mean.*normalize="all".*--normalize all'):
        subject.test(1)
    with pytest.raises(ValueError, match="has no 'ncsnr'"):
        _ = subject.ncsnr


# -- who scales a trial ----------------------------------------------------------------------------


def raw_of(tree, behavior):
    """Percent signal change of these trials, from the raw files."""
    rows = behavior[:, layout.GLOBAL_TRIAL].long().numpy()
    return np.concatenate([tree.betas(n) for n in (1, 2, 3, 4)])[rows] / 300


def by(known, raw):
    return torch.from_numpy((raw - known.mean(0)) / known.std(0)).float()


def test_each_normalization_is_what_its_name_says(tree, subject):
    train, everything = subject.train(2), subject.train()
    whole = raw_of(tree, everything.behavior)
    session = everything.session.numpy()
    raw = raw_of(tree, train.behavior)
    one = train.session.numpy() == 1
    whole_session = tree.betas(1) / 300
    expected = {
        "pooled": by(whole[session <= 2], raw),
        "global": by(whole, raw),
        "all": by(whole[session == 1], raw),
        "sessions": by(whole[session == 1], raw),
        "notebook": by(whole_session, raw),
    }
    assert set(expected) == set(nsd.NORMALIZE) == set(NORMALIZE)
    for name, values in expected.items():
        here = one if name in ("all", "sessions", "notebook") else slice(None)
        voxels = subject.train(2, normalize=name).voxels
        torch.testing.assert_close(voxels[here], values[here], atol=1e-3, rtol=1e-3)


def test_test_trials_are_scaled_as_training_trials_are(tree, subject):
    known = raw_of(tree, subject.train(2).behavior)
    test = subject.test(2, normalize="pooled")
    expected = by(known, raw_of(tree, test.behavior))
    torch.testing.assert_close(test.voxels, expected, atol=1e-3, rtol=1e-3)
    alike = subject.test(1, normalize="global").voxels, subject.test(4, normalize="pooled").voxels
    assert torch.equal(*alike), "all sessions together, whichever are in use"


def test_the_default_changes_no_number_of_the_file(subject, root):
    with h5py.File(root / "betas_all_subj01_fp32_renorm.hdf5") as file:
        scaled = torch.from_numpy(file["betas"][:])
    for trials in (subject.train(), subject.train(2), subject.train(2, "all"), subject.test()):
        assert torch.equal(trials.voxels, scaled[trials.behavior[:, layout.GLOBAL_TRIAL].long()])


def test_a_session_alone_is_pooled_to_what_it_was(subject):
    torch.testing.assert_close(
        subject.train(1, normalize="pooled").voxels, subject.train(1).voxels, atol=1e-5, rtol=1e-4
    )


def test_files_without_statistics_name_what_works(prepared):
    path = prepared / "betas_all_subj01_fp32_renorm.hdf5"
    with h5py.File(path, "a") as file:
        del file["session_mean_with_test"], file["session_std_with_test"]
    subject = Subject(prepared, 1)
    assert len(subject.train(normalize="global")) == len(subject.train(normalize="all"))
    with pytest.raises(ValueError, match='no session_mean_with_test.*normalize="all"[^\n]*$'):
        subject.train(normalize="notebook")
    with h5py.File(path, "a") as file:
        del file["session_mean"]
    for name in ("pooled", "global", "notebook"):
        with pytest.raises(ValueError, match='no session_mean.*normalize="all"[^\n]*$'):
            Subject(prepared, 1).train(normalize=name)


def test_statistics_of_other_sessions_are_refused(prepared):
    with h5py.File(prepared / "betas_all_subj01_fp32_renorm.hdf5", "a") as file:
        mean = file["session_mean"][:]
        del file["session_mean"]
        file["session_mean"] = mean[:3]
    with pytest.raises(ValueError, match=r"session_mean of shape \(3, 983\), expected \(4, 983\)"):
        Subject(prepared, 1).test(1)


# -- splits by name --------------------------------------------------------------------------------


def test_splits_have_the_names_that_papers_use(subject):
    for one, other in (("new_test", "shared1000"), ("test", "shared982")):
        assert torch.equal(subject.test(split=one).behavior, subject.test(split=other).behavior)
    assert set(nsd.SPLITS) == {"train", "new_test", "test", "shared1000", "shared982"}
    for split in nsd.SPLITS:
        assert len(subject.records(split)) == len(nsd.Pairs(subject, split=split, images=False))
    with pytest.raises(
        ValueError, match="'train' is unknown: choose new_test, shared1000, test or"
    ):
        subject.test(split="train")
    with pytest.raises(ValueError, match="'mine' is unknown: choose train, new_test"):
        subject.records("mine")


def test_the_published_counts_agree_with_each_other():
    voxels = [n["voxels"] for n in nsd.EXPECTED_TRIALS.values()]
    sessions = [n["sessions"] for n in nsd.EXPECTED_TRIALS.values()]
    published = {what: values for what, values, _ in nsd.PUBLISHED}
    assert tuple(voxels) == published["voxels of nsdgeneral, subjects 1 to 8"]
    assert tuple(sessions) == published["sessions, subjects 1 to 8"]
    for counts in nsd.EXPECTED_TRIALS.values():
        assert counts["test"] < counts["new_test"] <= 3000
        assert (counts["new_test"] == 3000) == (counts["sessions"] == 40)


# -- single trials ---------------------------------------------------------------------------------


def test_single_trials_are_read_in_any_order_and_several_times(subject, root):
    with h5py.File(root / "betas_all_subj01_fp32_renorm.hdf5") as file:
        betas = file["betas"][:]
    for rows in ([299, 0, 5, 6, 7, 5], torch.tensor([3]), np.array([], int), range(40, 60), 12):
        voxels = subject.voxels(rows)
        assert voxels.dtype == np.float32
        np.testing.assert_array_equal(voxels, betas[np.atleast_1d(np.asarray(rows))])


@pytest.mark.parametrize("rows", [[0, 300], [-1], [5, -2, 7]])
def test_trials_that_are_not_there_are_named(subject, rows):
    wrong = next(row for row in rows if not 0 <= row < 300)
    with pytest.raises(ValueError, match=rf"has trials 0 to 299; asked for {wrong}$"):
        subject.voxels(rows)
    with pytest.raises(ValueError, match="by a list of whole numbers"):
        subject.voxels([0.5])


FORMS = {
    "compressed": {"chunks": (7, 100), "compression": "gzip"},
    "chunked": {"chunks": (1, 983)},
    "a chunk per voxel": {"chunks": (300, 1)},
    "big-endian": {"dtype": ">f4"},
    "float16": {"dtype": np.float16},
    "behind something else": {"userblock": 512},
}


@pytest.mark.parametrize("form", FORMS)
def test_betas_may_lie_in_the_file_in_any_form(form, root, tmp_path):
    with h5py.File(root / "betas_all_subj01_fp32_renorm.hdf5") as file:
        betas = file["betas"][:]
    how = dict(FORMS[form])
    path = tmp_path / "betas.hdf5"
    with h5py.File(path, "w", userblock_size=how.pop("userblock", 0)) as file:
        file["something"] = np.arange(100)
        file.create_dataset("betas", data=betas, **how)
    rows = trial_access.Rows(path, "betas")
    if form in ("big-endian", "float16", "behind something else"):
        assert rows._offset is not None, "read straight from its place"
    wanted = [299, 3, 3, 150, 151, 0]
    expected = betas[wanted].astype(how.get("dtype", np.float32)).astype(np.float32)
    np.testing.assert_array_equal(trial_access.floats(rows.read(wanted)).numpy(), expected)


def test_a_whole_person_in_compressed_files_is_the_same(prepared, subject):
    path = prepared / "betas_all_subj01_fp32_renorm.hdf5"
    with h5py.File(path, "a") as file:
        betas = file["betas"][:]
        del file["betas"]
        file.create_dataset("betas", data=betas, chunks=(50, 983), compression="gzip")
    assert torch.equal(Subject(prepared, 1).train().voxels, subject.train().voxels)


def test_what_is_no_table_of_numbers_is_refused(tmp_path):
    with h5py.File(tmp_path / "betas.hdf5", "w") as file:
        file["words"] = ["a", "b"]
        file.create_group("betas")
        file["images"] = np.zeros(0, h5py.string_dtype())
    for name in ("words", "betas", "images"):
        with pytest.raises(ValueError, match=rf"betas.hdf5: {name} is no table of numbers$"):
            trial_access.Rows(tmp_path / "betas.hdf5", name)
    with pytest.raises(ValueError, match="has no 'none', only"):
        trial_access.Rows(tmp_path / "betas.hdf5", "none")


def test_a_file_that_changes_while_it_is_read_says_so(prepared):
    subject = Subject(prepared, 1)
    edit_betas(prepared, lambda betas: betas + 1)
    with pytest.raises(ValueError, match=r"renorm.hdf5 has changed since it was opened[^\n]*$"):
        subject.voxels([0])


def test_betas_that_are_no_numbers_are_refused_with_their_session(prepared):
    def spoil(betas):
        betas[80, 5] = np.nan
        return betas

    edit_betas(prepared, spoil)
    subject = Subject(prepared, 1)
    assert len(subject.train(1))
    with pytest.raises(ValueError, match="has betas in session 2 that are no finite numbers"):
        subject.train(2), subject.test()


@pytest.fixture
def pairs(subject):
    return nsd.Pairs(subject)


def test_a_pair_is_a_trial_and_its_picture(pairs, subject):
    train = subject.train()
    assert len(pairs) == len(train)
    pair = pairs[17]
    assert torch.equal(pair.voxels, train.voxels[17])
    assert torch.equal(pair.image, subject.images[train.image_id[17]][0])
    assert (pair.image_id, pair.session) == (train.image_id[17], train.session[17])
    assert (pair.repeat, pair.trial) == (train.repeat[17], train.behavior[17, layout.GLOBAL_TRIAL])
    assert torch.equal(pairs[-1].voxels, train.voxels[-1])
    assert len(list(nsd.Pairs(subject, 1, images=False))) == len(subject.train(1))


def test_several_pairs_come_in_the_order_asked_for(pairs, subject):
    wanted = [5, 2, 5, 200]
    batch, one_by_one = pairs[wanted], [pairs[i] for i in wanted]
    for got in (pairs.__getitems__(wanted), one_by_one):
        assert torch.equal(torch.stack([p.voxels for p in got]), batch.voxels)
        assert torch.equal(torch.stack([p.image for p in got]), batch.image)
        assert [p.image_id for p in got] == batch.image_id.tolist()
    assert torch.equal(batch.voxels, subject.train().voxels[wanted])


def test_pairs_are_scaled_like_the_split(subject):
    for normalize in nsd.NORMALIZE:
        test = subject.test(1, normalize=normalize)
        pairs = nsd.Pairs(subject, 1, "new_test", normalize, images=False)
        assert torch.equal(pairs[range(len(pairs))].voxels, test.voxels), normalize


def test_a_pair_that_is_not_there_is_named(pairs):
    last = len(pairs) - 1
    for wrong in (last + 1, [0, -last - 2]):
        with pytest.raises(IndexError, match=rf"pairs 0 to {last}; asked for"):
            pairs[wrong]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loaders_of_several_processes_see_the_same_pairs(start, pairs):
    pairs[0]  # opened before the processes start
    how = {"num_workers": 2, "multiprocessing_context": start}
    sampler = BatchSampler(SequentialSampler(range(48)), 24, drop_last=False)
    loaders = (
        DataLoader(Subset(pairs, range(48)), 24, **how),
        DataLoader(pairs, sampler=sampler, batch_size=None, **how),
    )
    for loader in loaders[: 1 if start == "spawn" else 2]:
        batches = list(loader)
        assert [len(batch.voxels) for batch in batches] == [24, 24]
        assert torch.equal(torch.cat([b.voxels for b in batches]), pairs[range(48)].voxels)
        assert torch.equal(torch.cat([b.image for b in batches]), pairs[range(48)].image)


def test_no_more_than_the_trials_asked_for_is_read(subject, monkeypatch):
    read = []
    monkeypatch.setattr(trial_access, "_fill", lambda file, buffer: read.append(buffer.nbytes))
    subject.voxels([7, 100, 200])
    assert read == [983 * 4] * 3


def test_released_files_serve_pairs(prepared):
    with h5py.File(prepared / "betas_all_subj01_fp32_renorm.hdf5", "a") as file:
        for name in set(file) - {"betas"}:
            del file[name]
    subject = Subject(prepared, 1)
    assert nsd.Pairs(subject)[3].image.shape == (3, 64, 64)
    assert len(nsd.Pairs(subject, 1, split="new_test", normalize="all"))
    with pytest.raises(ValueError, match="no session_mean"):
        nsd.Pairs(subject, 1, split="new_test")


# -- what only our files have ----------------------------------------------------------------------


def test_places_labels_and_stimuli_are_read(prepared):
    position = np.arange(983 * 3).reshape(983, 3)
    with h5py.File(prepared / "voxels.hdf5", "w") as file:
        file["subj01/position"] = position
        file["subj01/labels/streams"] = np.ones(983, np.int16)
        file["subj01"].attrs["shape"] = (22, 20, 16)
        file["subj01"].attrs["affine"] = np.eye(4)
    (prepared / "stimuli.csv").write_text("image_id,coco_id\n0,17\n1,19\n")
    subject = Subject(prepared, 1)
    np.testing.assert_array_equal(subject.position, position)
    shape, affine = subject.volume
    assert shape == (22, 20, 16) and (affine == np.eye(4)).all()
    assert list(subject.labels) == ["streams"] and subject.labels["streams"].shape == (983,)
    assert subject.stimuli.coco_id.tolist() == [17, 19]


def test_released_files_say_what_they_do_not_have(prepared):
    for name in ("voxels.hdf5", "stimuli.csv"):
        (prepared / name).unlink(missing_ok=True)
    subject = Subject(prepared, 1)
    for what in ("position", "volume", "labels", "stimuli"):
        with pytest.raises(FileNotFoundError, match=r"is missing: released files .* nsd.prepare"):
            getattr(subject, what)


def test_places_of_another_mask_and_spoiled_tables_are_refused(prepared):
    (prepared / "voxels.hdf5").unlink(missing_ok=True)
    with h5py.File(prepared / "voxels.hdf5", "w") as file:
        file["subj01/position"] = np.zeros((900, 3))
    (prepared / "stimuli.csv").write_text("coco_id\n17\n")
    subject = Subject(prepared, 1)
    with pytest.raises(ValueError, match=r"\(900, 3\).*983 voxels: they are of different masks"):
        _ = subject.position
    with pytest.raises(ValueError, match="does not say its shape"):
        _ = subject.volume
    with pytest.raises(ValueError, match="no column 'image_id'"):
        _ = subject.stimuli
    (prepared / "stimuli.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"stimuli.csv is no table[^\n]*$"):
        _ = subject.stimuli


def test_anyone_may_have_any_number_and_a_single_session(tmp_path):
    rng = np.random.default_rng(0)
    table = np.full((20, 17), -1.0)
    table[:, layout.IMAGE], table[:, layout.GLOBAL_TRIAL] = np.arange(20) // 2, np.arange(20)
    table[:, layout.SESSION], table[:, layout.SHARED] = 1, np.arange(20) >= 16
    betas = rng.normal(0, 1, (20, 30)).astype(np.float32)
    layout_writing.write_person(tmp_path, layout_writing.Person(42, table, {1: betas}.get))
    regions = {"subj42": {"nsd_general": np.ones(30, bool)}}
    layout_writing.update_hdf5(tmp_path / "brain_region_masks.hdf5", regions)
    subject = Subject(tmp_path, 42)
    assert (len(subject.train()), len(subject.test())) == (16, 4)
    assert subject.test(split="shared982").image_ids.tolist() == [8, 9]
    with pytest.raises(ValueError, match="has no 'ncsnr'.*nsd.estimate_ncsnr"):
        _ = subject.ncsnr


# -- records that cannot be ------------------------------------------------------------------------


def rewrite(path, change):
    """The same records, changed, as a tar that holds nothing else."""
    table = change(layout.read_records(path))
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(table):
            layout_writing._add(tar, f"sample{number:09d}.behav.npy", row[None])


def with_value(row, column, value):
    def change(table):
        table[row, column] = value
        return table

    return change


TRAIN, TEST = "wds/subj01/train", "wds/subj01/new_test/0.tar"


@pytest.mark.parametrize(
    ("tar", "row", "column", "value", "match"),
    [
        (f"{TRAIN}/3.tar", 4, layout.GLOBAL_TRIAL, 300, "cut short: expected at least 301 trials"),
        (f"{TRAIN}/0.tar", 4, layout.GLOBAL_TRIAL, -1, "0.tar has global trial -1: expected a"),
        (f"{TRAIN}/0.tar", 4, layout.IMAGE, np.nan, "0.tar has image index nan: expected a whole"),
        (TEST, 2, layout.SESSION, 1.5, "0.tar has session 1.5: expected a whole number"),
        (TEST, 2, layout.SESSION, 9, "records of session 9, expected session 1 to 4"),
        (f"{TRAIN}/3.tar", 4, layout.SESSION, 2, "records of session 2, expected session 4: tars"),
    ],
)
def test_records_that_cannot_be_are_refused(prepared, tar, row, column, value, match):
    rewrite(prepared / tar, with_value(row, column, value))
    with pytest.raises(ValueError, match=match) as caught:
        Subject(prepared, 1)
    assert "\n" not in str(caught.value)


def test_trials_named_twice_are_refused(prepared):
    def double(table):
        table[1, layout.GLOBAL_TRIAL] = table[0, layout.GLOBAL_TRIAL]
        return table

    rewrite(prepared / TRAIN / "3.tar", double)
    with pytest.raises(ValueError, match=r"3.tar has global trial \d+ more than once"):
        Subject(prepared, 1)


def test_a_trial_in_training_and_test_is_refused(prepared):
    trial = layout.read_records(prepared / TEST)[0, layout.GLOBAL_TRIAL]
    rewrite(prepared / TRAIN / "0.tar", with_value(0, layout.GLOBAL_TRIAL, trial))
    with pytest.raises(ValueError, match=rf"global trial {trial:.0f} in two tars"):
        Subject(prepared, 1).train(1)


def test_a_test_image_in_training_is_refused(prepared):
    image = layout.read_records(prepared / TEST)[0, layout.IMAGE]
    rewrite(prepared / TRAIN / "1.tar", with_value(3, layout.IMAGE, image))
    with pytest.raises(ValueError, match=rf"1.tar trains on image {image:.0f}, which is in new_t"):
        Subject(prepared, 1).train()


def test_exchanged_tars_are_refused(prepared):
    folder = prepared / TRAIN
    (folder / "1.tar").rename(folder / "x")
    (folder / "2.tar").rename(folder / "1.tar")
    (folder / "x").rename(folder / "2.tar")
    with pytest.raises(ValueError, match=r"1.tar has records of session 3, expected session 2"):
        Subject(prepared, 1).train()


def test_sessions_out_of_order_are_refused(prepared):
    def later(table):
        table[:, layout.GLOBAL_TRIAL] += 150
        return table

    def earlier(table):
        table[:, layout.GLOBAL_TRIAL] -= 150
        return table

    rewrite(prepared / TRAIN / "0.tar", later)
    rewrite(prepared / TRAIN / "2.tar", earlier)
    with pytest.raises(ValueError, match="sessions are out of order|in two tars"):
        Subject(prepared, 1).train()


def test_members_that_climb_out_of_the_folder_are_never_written(prepared):
    path = prepared / TRAIN / "0.tar"
    table = layout.read_records(path)
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(table):
            layout_writing._add(tar, f"../../climbed{number}.behav.npy", row[None])
        link = tarfile.TarInfo("../../link.behav.npy")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../outside"
        tar.addfile(link)
    before = sorted(p.name for p in prepared.parent.rglob("*"))
    assert len(Subject(prepared, 1).train(1)) == len(table)
    assert sorted(p.name for p in prepared.parent.rglob("*")) == before
