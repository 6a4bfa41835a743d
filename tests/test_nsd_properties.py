"""What holds for every design, subject, split and choice of sessions, tried at random."""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tiny_nsd
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from tiny_nsd import Plan, Tree

from mindeye2_lite import layout, nsd
from mindeye2_lite.nsd import Subject, Trials

PLANS = st.builds(
    Plan,
    subjects=st.sampled_from([(1,), (3,), (1, 8), (7, 2)]),
    sessions=st.integers(1, 5),
    trials=st.integers(3, 9),
    shared=st.floats(0.05, 0.8),
    volume=st.sampled_from([(5, 6, 7), (3, 8, 4), (6, 2, 9)]),
    form=st.sampled_from(["nsd", "volumes", "contiguous", "nii.gz"]),
    mat=st.sampled_from(["5", "7.3"]),
    seed=st.integers(0, 9999),
)
SPLITS = st.sampled_from(["new_test", "test", "shared1000", "shared982"])
NORMALIZE = st.sampled_from(sorted(nsd.NORMALIZE))


def any_of(examples: int, **strategies):
    """A property over that many examples, the same ones every time."""

    def decorated(test):
        checks = list(HealthCheck)
        bounded = settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=checks,
        )
        return bounded(given(**strategies)(test))

    return decorated


@contextmanager
def prepared(plan: Plan):
    """The tree of a plan and the training layout made from it."""
    with tempfile.TemporaryDirectory() as folder:
        tree = tiny_nsd.write(Path(folder) / "raw", plan)
        assume(all(trains(tree)))
        yield tree, prepare(tree, Path(folder) / "out")


def trains(tree: Tree) -> list[bool]:
    """Has each session training trials? NSD's always have, and scaling needs them."""
    train = ~tree.is_shared[tree.images()]
    return [bool(train[tree.session_of == s].any()) for s in range(1, tree.plan.sessions + 1)]


def prepare(tree: Tree, out: Path) -> Path:
    return nsd.prepare(tree.root, out, progress=False)


def rows(trials: Trials) -> list[int]:
    return trials.behavior[:, layout.GLOBAL_TRIAL].int().tolist()


def same(one: Trials, other: Trials) -> bool:
    """Bit for bit."""
    names = ("voxels", "image_id", "repeat", "session", "behavior")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


# -- splits ----------------------------------------------------------------------------------------


@any_of(6, plan=PLANS, split=SPLITS, normalize=NORMALIZE, k=st.integers(1, 5))
def test_no_test_image_is_ever_in_training(plan, split, normalize, k):
    with prepared(plan) as (tree, root):
        for number in plan.subjects:
            subject = Subject(root, number)
            k = min(k, plan.sessions)
            train, test = subject.train(k, normalize), subject.test(k, normalize, split)
            assert not set(train.image_id.tolist()) & set(test.image_id.tolist())
            assert tree.is_shared[test.image_id].all()
            assert not tree.is_shared[train.image_id].any()


@any_of(6, plan=PLANS)
def test_no_trial_is_lost_or_doubled(plan):
    with prepared(plan) as (tree, root):
        for number in plan.subjects:
            subject = Subject(root, number)
            train, new, old = subject.train(), subject.test(), subject.test(split="test")
            assert sorted(rows(train) + rows(new)) == list(range(len(tree.ordering)))
            before = max(plan.sessions - 3, 1)
            assert rows(old) == [t for t in rows(new) if tree.session_of[t] <= before]
            for k in range(1, plan.sessions + 1):
                first = subject.train(k)
                assert rows(first) == [t for t in rows(train) if tree.session_of[t] <= k]
                assert torch.equal(first.voxels, train.voxels[: len(first)])
                assert rows(subject.test(k)) == rows(new)


# -- indices ---------------------------------------------------------------------------------------


def recovered(subject: Subject, trials: Trials) -> np.ndarray:
    """What NSD stored, int16, from z-scores and what they were made by."""
    mean, std = subject.session_statistics
    session = trials.session.numpy() - 1
    return np.rint((trials.voxels.numpy() * std[session] + mean[session]) * 300)


@any_of(6, plan=PLANS)
def test_betas_pictures_and_behavior_speak_of_the_same_trial(plan):
    with prepared(plan) as (tree, root):
        for number in plan.subjects:
            subject = Subject(root, number)
            stored, table = tree.voxels(number), tree.responses(number)
            for trials in (subject.train(), subject.test(normalize="all")):
                betas, here = recovered(subject, trials), rows(trials)
                assert (betas == stored[here]).all()
                assert (betas[:, 0] == trials.image_id.numpy()).all() and (
                    betas[:, 1] == here
                ).all()
                pixels = (subject.images[trials.image_id][:, :2, 0, 0] * 255).round().int()
                assert torch.equal(pixels[:, 0] + 256 * pixels[:, 1], trials.image_id.int())
                check_behavior(trials, table.iloc[here])
            for image in np.unique(tree.images(number)).tolist():
                assert subject.captions(image)[1] == f"picture {image}, words b"


def check_behavior(trials: Trials, table) -> None:
    behavior = dict(zip(layout.COLUMNS, trials.behavior.numpy().T, strict=True))
    assert (behavior["image_id"] == table["73KID"] - 1).all()
    assert (behavior["TIME"] == np.floor(table.TIME)).all()
    assert (behavior["RT"] == table.RT.fillna(0)).all()
    kept = ("SUBJECT", "SESSION", "RUN", "TRIAL", "ISOLD", "ISCORRECT", "CHANGEMIND", "BUTTON")
    for name in (*kept, "ISOLDCURRENT", "ISCORRECTCURRENT", "TOTAL1", "TOTAL2"):
        assert (behavior[name] == table[name].fillna(-1)).all()


@any_of(6, plan=PLANS)
def test_labels_and_noise_ceilings_belong_to_their_voxels(plan):
    with prepared(plan) as (tree, root):
        for number in plan.subjects:
            subject, inside = Subject(root, number), tree.mask(number) == 1
            visual = tree.labels("prf-visualrois", number)[inside]
            streams = tree.labels("streams", number)[inside]
            assert (subject.rois["V2"] == np.isin(visual, (3, 4))).all()
            assert (subject.rois["higher_vis"] == (visual < 1)).all()
            assert (subject.rois["ventral"] == (streams == 5)).all()
            assert (subject.ncsnr == tree.signal_to_noise(number)[inside]).all()


@any_of(4, plan=PLANS)
def test_the_form_of_the_files_changes_nothing(plan):
    with prepared(plan) as (_, root), tempfile.TemporaryDirectory() as folder:
        for form, mat in FORMS:
            tree = tiny_nsd.write(Path(folder) / "raw" / (form + mat), plan, form=form, mat=mat)
            again = prepare(tree, Path(folder) / "out" / (form + mat))
            for number in plan.subjects:
                one, other = Subject(root, number), Subject(again, number)
                assert same(one.train(), other.train()) and same(one.test(), other.test())


FORMS = [("nsd", "5"), ("volumes", "7.3"), ("contiguous", "5"), ("nii.gz", "7.3")]


# -- normalization ---------------------------------------------------------------------------------


def far_off(tree: Tree, subject: int, session: int, trials: np.ndarray) -> None:
    """Other betas, where `trials` says so (bool, of that session)."""
    volumes = tree.volumes(session, subject)
    rng = np.random.default_rng(session)
    volumes[trials] = rng.integers(-30_000, 30_000, volumes[trials].shape)
    tiny_nsd.write_session(tree.session(session, subject), volumes, tree.plan.form)


@any_of(5, plan=PLANS, k=st.integers(1, 4), later=st.integers(1, 4))
def test_normalization_of_one_session_never_reads_another(plan, k, later):
    assume(plan.sessions > 1)
    k = min(k, plan.sessions - 1)
    changed = min(k + later, plan.sessions)
    with prepared(plan) as (tree, root):
        number = plan.subjects[0]
        every = np.ones(plan.trials, bool)
        far_off(tree, number, changed, every)
        one = Subject(root, number)
        other = Subject(prepare(tree, root.with_name("again")), number)
        assert same(one.train(k), other.train(k))
        assert same(one.train(k, "all"), other.train(k, "all"))
        for normalize in ("sessions", "all"):
            test, again = one.test(k, normalize), other.test(k, normalize)
            elsewhere = test.session != changed
            assert torch.equal(test.voxels[elsewhere], again.voxels[elsewhere])
            assert torch.equal(test.behavior, again.behavior)
        assert same(one.train(k, "pooled"), other.train(k, "pooled"))
        for session in range(1, plan.sessions + 1):
            if session != changed:
                for ours, theirs in zip(
                    one.session_statistics, other.session_statistics, strict=True
                ):
                    assert (ours[session - 1] == theirs[session - 1]).all()
        seen = one.session_statistics[0] != other.session_statistics[0]
        assert seen[changed - 1].any()  # the change is one that would be noticed


@any_of(5, plan=PLANS, k=st.integers(1, 5))
def test_statistics_come_from_training_trials_only(plan, k):
    k = min(k, plan.sessions)
    with prepared(plan) as (tree, root):
        number = plan.subjects[0]
        held = tree.is_shared[tree.images(number)]
        for session in range(1, plan.sessions + 1):
            far_off(tree, number, session, held[tree.session_of == session])
        one = Subject(root, number)
        other = Subject(prepare(tree, root.with_name("again")), number)
        assert same(one.train(k), other.train(k)) and same(one.train(), other.train())
        for ours, theirs in zip(one.session_statistics, other.session_statistics, strict=True):
            assert (ours == theirs).all()


@any_of(5, plan=PLANS)
def test_training_voxels_have_mean_zero_and_deviation_one_in_each_session(plan):
    with prepared(plan) as (_, root):
        train = Subject(root, plan.subjects[0]).train()
        for session in range(1, plan.sessions + 1):
            voxels = train.voxels[train.session == session].double()
            varies = voxels.std(0, correction=0) > 0
            assert voxels.mean(0).abs().max() < 1e-3
            off = (voxels.std(0, correction=0) - 1).abs()[varies]
            assert (off < 1e-3).all()


# -- repeats ---------------------------------------------------------------------------------------


@any_of(40, ids=st.lists(st.integers(0, 9), min_size=1, max_size=24), n=st.integers(1, 4))
def test_repeats_are_the_showings_in_order_and_the_first_fills_gaps(ids, n):
    image_id = torch.tensor(ids)
    voxels = torch.arange(len(ids), dtype=torch.float32)[:, None]
    zeros = torch.zeros_like(image_id)
    behavior = torch.zeros(len(ids), 17, dtype=torch.float64)
    found = Trials(voxels, image_id, zeros, zeros, behavior).repeats(n)[:, :, 0].int().tolist()
    for image, filled in zip(sorted(set(ids)), found, strict=True):
        showings = [trial for trial, other in enumerate(ids) if other == image]
        assert filled == ([showings[0]] * max(n - len(showings), 0) + showings)[:n]


@any_of(5, plan=PLANS)
def test_repeats_of_a_subject_belong_to_their_image(plan):
    with prepared(plan) as (tree, root):
        for number in plan.subjects:
            subject = Subject(root, number)
            for trials in (subject.train(), subject.test(normalize="all")):
                counts = np.bincount(trials.image_id, minlength=tree.num_images)
                shown = trials.image_ids.tolist()
                assert trials.repeats().shape == (len(shown), 3, subject.num_voxels)
                assert (trials.repeat.numpy() < counts[trials.image_id]).all()
                for image in shown:
                    here = trials.repeat[trials.image_id == image]
                    assert here.tolist() == list(range(counts[image]))


@any_of(5, plan=PLANS, data=st.data())
def test_any_rows_are_those_of_the_whole(plan, data):
    with prepared(plan) as (tree, root):
        subject = Subject(root, plan.subjects[0])
        n = len(tree.ordering)
        whole = subject.voxels(range(n))
        asked = data.draw(st.lists(st.integers(0, n - 1), max_size=2 * n))
        assert (subject.voxels(np.array(asked, int)) == whole[asked]).all()


@any_of(5, plan=PLANS, split=SPLITS, normalize=NORMALIZE, k=st.integers(1, 5), data=st.data())
def test_pairs_are_the_trials_of_their_split_with_their_pictures(plan, split, normalize, k, data):
    k = min(k, plan.sessions)
    with prepared(plan) as (_, root):
        subject = Subject(root, plan.subjects[0])
        for name in ("train", split):
            training = name == "train"
            whole = subject.train(k, normalize) if training else subject.test(k, normalize, split)
            pairs = nsd.Pairs(subject, k, name, normalize)
            assert len(pairs) == len(whole)
            if len(whole):
                index = data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=9))
                found = pairs[index]
                assert torch.equal(found.voxels, whole.voxels[index])
                assert torch.equal(found.image, subject.images[whole.image_id[index]])
                for field in ("image_id", "session", "repeat"):
                    assert torch.equal(getattr(found, field), getattr(whole, field)[index])
                assert torch.equal(found.trial, whole.behavior[index, layout.GLOBAL_TRIAL].long())


# -- somebody's own data ---------------------------------------------------------------------------


STUDIES = st.fixed_dictionaries(
    {
        "trials": st.integers(4, 40),
        "images": st.integers(2, 20),
        "sessions": st.integers(1, 4),
        "voxels": st.integers(1, 8),
        "seed": st.integers(0, 99),
    }
)


@any_of(8, study=STUDIES)
def test_a_proposed_split_shares_no_picture_and_uses_every_trial_once(study):
    rng = np.random.default_rng(study["seed"])
    shown = rng.integers(0, study["images"], study["trials"])
    assume(len(np.unique(shown)) > 1)
    session = np.sort(rng.integers(0, study["sessions"], study["trials"]))
    betas = rng.normal(size=(study["trials"], study["voxels"])).astype(np.float32)
    betas[:, 0] = np.arange(study["trials"])  # the trial
    pictures = rng.integers(0, 256, (study["images"], 8, 8, 3), np.uint8)
    how = {"sessions": session, "image_size": 8, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        roots = [Path(folder) / name for name in ("one", "again")]
        splits = [nsd.from_arrays(root, betas, shown, pictures, **how) for root in roots]
        one, again = (Subject(root, 1) for root in roots)
        train, test = one.train(), one.test()
        assert not set(train.image_id.tolist()) & set(test.image_id.tolist())
        assert sorted(rows(train) + rows(test)) == list(range(study["trials"]))
        assert len(train) == splits[0].train_trials > 0
        assert len(test) == splits[0].test_trials > 0
        for trials in (train, test):
            assert (trials.image_id.numpy() == shown[rows(trials)]).all()
            mean, std = one.session_statistics
            at = trials.session.numpy() - 1
            found = trials.voxels[:, 0].numpy() * std[at, 0] + mean[at, 0]
            np.testing.assert_allclose(found, rows(trials), atol=1e-3)
        assert same(train, again.train()) and same(test, again.test())
