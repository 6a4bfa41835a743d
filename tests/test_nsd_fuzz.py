"""Hundreds of damaged inputs: each ends in the right result or in one clear line, nothing between.

The raw tree is damaged before `nsd.prepare`, the training layout before `nsd.Subject` reads it.
"""

import gzip
import io
import json
import shutil
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
import tiny_nsd
from scipy.io import savemat
from tiny_nsd import (
    Plan,
    Tree,
    changed_array,
    changed_text,
    cut,
    flip,
    replaced,
    right_or_one_line,
    write_design,
    write_responses,
    write_session,
    write_volume,
)

from mindeye2_lite import layout, nsd

PLAN = Plan(sessions=2, trials=6, seed=5)
CUTS = {"empty": 0, "half": 0.5, "less-one": 1}
FLIPS = (0.002, 0.3)
INSTEAD = ("nothing", "folder", "loop", "dangling link")


@dataclass(frozen=True)
class Case:
    """Damage done to a tree, and how what follows must end."""

    name: str
    damage: Callable[[Any], Any]
    ends: str = "error"
    says: tuple[str, ...] = ()
    plan: dict = field(default_factory=dict)
    how: dict = field(default_factory=dict)  # for prepare


def parametrized(cases: list[Case]):
    assert len({case.name for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A whole tree of each form that is asked for, written once."""
    written: dict[tuple, Tree] = {}

    def of(plan: Plan) -> Tree:
        if plan not in written:
            written[plan] = tiny_nsd.write(tmp_path_factory.mktemp("raw"), plan)
        return written[plan]

    return of


def copied(tree: Tree, root: Path) -> Tree:
    shutil.copytree(tree.root, root, symlinks=True)
    return Tree(root, tree.plan)


# -- the raw tree ----------------------------------------------------------------------------------


FILES = {
    "session-nsd": (lambda tree: tree.session(1), {}),
    "session-volumes": (lambda tree: tree.session(1), {"form": "volumes"}),
    "session-nifti": (lambda tree: tree.session(1), {"form": "nii.gz"}),
    "mask": (lambda tree: tree.roi("nsdgeneral"), {}),
    "regions": (lambda tree: tree.roi("prf-visualrois"), {}),
    "ncsnr": (lambda tree: tree.ncsnr(), {}),
    "responses": (lambda tree: tree.behavior(), {}),
    "design-5": (lambda tree: tree.design, {}),
    "design-73": (lambda tree: tree.design, {"mat": "7.3"}),
    "stimulus-table": (lambda tree: tree.info, {}),
    "stimuli": (lambda tree: tree.stimuli, {}),
    "captions": (lambda tree: tree.captions, {}),
}


def damaged_files() -> list[Case]:
    """Every kind of file cut, with a byte flipped, or with something else in its place.

    A few of these leave a file that is as good as before, so either end will do, but a wrong
    result will not.
    """
    cases = []
    for kind, (find, plan) in FILES.items():
        (name,) = {find(Tree(Path(), Plan(**plan))).name}
        for word, share in CUTS.items():

            def damage(tree, find=find, share=share):
                cut(find(tree), share)

            ends = "error" if word == "empty" else "either"
            cases.append(Case(f"{kind}-cut-{word}", damage, ends, (name,), plan))
        for share in FLIPS:

            def damage(tree, find=find, share=share):
                flip(find(tree), share)

            cases.append(Case(f"{kind}-flipped-at-{share}", damage, "either", (name,), plan))
        for what in INSTEAD:

            def damage(tree, find=find, what=what):
                replaced(find(tree), what)

            optional = what == "nothing" and kind in ("regions", "captions")
            ends, said = "either" if optional else "error", name.removesuffix(".nii.gz")
            cases.append(Case(f"{kind}-is-{what.replace(' ', '-')}", damage, ends, (said,), plan))
    return cases


def prepare(tree: Tree, out: Path, **how) -> nsd.Subject:
    return nsd.Subject(nsd.prepare(tree.root, out, progress=False, **how), 1)


def stored(tree: Tree) -> np.ndarray:
    """(trials, V) as the files have it now, read by their libraries, whole."""
    inside, parts = tree.mask() == 1, []
    for session in range(1, tree.plan.sessions + 1):
        path = tree.session(session)
        if path.suffix == ".gz":
            volumes = np.moveaxis(np.asarray(nibabel.load(path).dataobj), -1, 0)
        else:
            with h5py.File(path) as file:
                volumes = file["betas"][()].transpose(0, 3, 2, 1)
        parts.append(volumes[:, inside])
    return np.concatenate(parts)


def is_right(tree: Tree, subject: nsd.Subject, betas: np.ndarray) -> None:
    """All trials, each with its own voxels, image and session, and the picture itself."""
    with h5py.File(tree.stimuli) as file:
        marks = file["imgBrick"][:, 0, 0, 0]
    mean, std = subject.session_statistics
    seen = []
    for trials in (subject.train(), subject.test()):
        rows = trials.behavior[:, layout.GLOBAL_TRIAL].int().tolist()
        seen += rows
        session = trials.session.numpy() - 1
        found = (trials.voxels.numpy().astype(np.float64) * std[session] + mean[session]) * 300
        size = 1 + np.abs(betas).max()
        assert np.abs(found - betas[rows]).max() < 1e-5 * size + 0.4
        assert (trials.image_id.numpy() == tree.images()[rows]).all()
        assert (session + 1 == tree.session_of[rows]).all()
        pixels = (subject.images[trials.image_id][:, 0, 0, 0] * 255).round().int().numpy()
        assert (pixels == marks[trials.image_id.numpy()]).all()
    assert sorted(seen) == list(range(len(tree.ordering)))


def tried(case: Case, trees, tmp_path: Path) -> None:
    tree = copied(trees(replace(PLAN, **case.plan)), tmp_path / "raw")
    case.damage(tree)
    out = tmp_path / "out"
    call = lambda: prepare(tree, out, **case.how)  # noqa: E731
    subject = right_or_one_line(call, out, case.says, case.ends)
    if subject is not None:
        is_right(tree, subject, stored(tree))


@parametrized(damaged_files())
def test_a_damaged_file_of_the_raw_tree_is_named(case, trees, tmp_path):
    tried(case, trees, tmp_path)


# -- betas -----------------------------------------------------------------------------------------


def session_as(change: Callable[[np.ndarray], np.ndarray], number: int = 2):
    """Another array in a session: `change` gets (trials, x, y, z)."""

    def damage(tree: Tree) -> None:
        volumes = change(tree.volumes(number))
        if tree.plan.form == "nii.gz":
            write_volume(tree.session(number), np.moveaxis(volumes, 0, -1))
        else:
            tree.session(number).unlink()
            with h5py.File(tree.session(number), "w") as file:
                file["betas"] = volumes.transpose(0, 3, 2, 1) if volumes.ndim == 4 else volumes

    return damage


def with_value(value: float):
    """float32 with that value in a voxel of the mask, in trial 3."""

    def change(volumes: np.ndarray) -> np.ndarray:
        volumes = volumes.astype(np.float64)
        volumes[2, -1, -1, -1] = value
        return volumes

    return change


def renamed(tree: Tree, name: str | None) -> None:
    with h5py.File(tree.session(2), "a") as file:
        if name:
            file[name] = file["betas"]
        del file["betas"]


def as_group(tree: Tree) -> None:
    with h5py.File(tree.session(2), "w") as file:
        file.create_group("betas")


def huge(tree: Tree) -> None:
    """A size that no memory holds, declared in a file of 2 kB."""
    with h5py.File(tree.session(2), "w") as file:
        shape = (10**9, *PLAN.volume[::-1])
        file.create_dataset("betas", shape, np.int16, chunks=(1, *shape[1:]))


def huge_volume(tree: Tree) -> None:
    """A header that promises volumes of 10^13 voxels."""
    path = tree.session(2) if tree.plan.form == "nii.gz" else tree.roi("nsdgeneral")
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<3h", content, 42, 32_000, 32_000, 32_000)
    path.write_bytes(gzip.compress(bytes(content)))


def compound(volumes: np.ndarray) -> np.ndarray:
    return volumes.astype([("r", "i2"), ("i", "i2")])


SESSION = ("betas_session02.hdf5",)
NIFTI = ("betas_session02.nii.gz",)
GZ = {"form": "nii.gz"}
BETAS = [
    Case("float32", session_as(lambda v: v.astype(np.float32)), "right"),
    Case("float64", session_as(lambda v: v.astype(np.float64)), "right"),
    Case("int32", session_as(lambda v: v.astype(np.int32)), "right"),
    Case("big-endian", session_as(lambda v: v.astype(">i2")), "right"),
    Case("big-endian-float", session_as(lambda v: v.astype(">f4")), "right"),
    Case("strings", session_as(lambda v: v.astype("S6")), says=SESSION),
    Case("bool", session_as(lambda v: v > 0), says=SESSION),
    Case("uint8", session_as(lambda v: v.astype(np.uint8)), says=SESSION),
    Case("uint16", session_as(lambda v: v.astype(np.uint16)), says=SESSION),
    Case("complex", session_as(lambda v: v.astype(np.complex64)), says=SESSION),
    Case("records", session_as(compound), says=SESSION),
    Case("nan", session_as(with_value(np.nan)), says=(*SESSION, "trial 3")),
    Case("infinite", session_as(with_value(-np.inf)), says=(*SESSION, "trial 3")),
    Case("beyond-float32", session_as(with_value(1e300)), says=(*SESSION, "trial 3")),
    Case("transposed-volume", session_as(lambda v: v.transpose(0, 3, 2, 1)), says=SESSION),
    Case("trials-last", session_as(lambda v: np.moveaxis(v, 0, -1)), says=SESSION),
    Case("other-volume", session_as(lambda v: v[:, :-1]), says=(*SESSION, "nsdgeneral")),
    Case("flat", session_as(lambda v: v.reshape(len(v), -1)), says=SESSION),
    Case("scalar", session_as(lambda v: v[0, 0, 0, 0]), says=SESSION),
    Case("no-trials", session_as(lambda v: v[:0]), says=SESSION),
    Case("a-trial-less", session_as(lambda v: v[:-1]), says=SESSION),
    Case("a-trial-more", session_as(lambda v: np.concatenate([v, v[:1]])), says=SESSION),
    Case("other-name", lambda tree: renamed(tree, "beta"), says=(*SESSION, "betas")),
    Case("no-dataset", lambda tree: renamed(tree, None), says=(*SESSION, "betas")),
    Case("a-group", as_group, says=SESSION),
    Case("huge", huge, says=SESSION),
    Case("text-file", lambda tree: tree.session(2).write_text("betas"), says=SESSION),
    Case("nifti-float32", session_as(lambda v: v.astype(np.float32)), "right", plan=GZ),
    Case("nifti-big-endian", lambda tree: big_endian(tree.session(2)), "right", plan=GZ),
    Case("nifti-uint8", session_as(lambda v: v.astype(np.uint8)), says=NIFTI, plan=GZ),
    Case("nifti-complex", session_as(lambda v: v.astype(np.complex64)), says=NIFTI, plan=GZ),
    Case(
        "nifti-nan", session_as(lambda v: with_value(np.nan)(v).astype("f4")), says=NIFTI, plan=GZ
    ),
    Case("nifti-transposed", session_as(lambda v: v.transpose(0, 3, 2, 1)), says=NIFTI, plan=GZ),
    Case("nifti-trials-first", session_as(lambda v: np.moveaxis(v, 0, -1)), says=NIFTI, plan=GZ),
    Case("nifti-a-trial-less", session_as(lambda v: v[:-1]), says=NIFTI, plan=GZ),
    Case("nifti-huge", huge_volume, says=NIFTI, plan=GZ),
    Case("nifti-is-hdf5", lambda tree: hdf5_as_nifti(tree), says=NIFTI, plan=GZ),
    Case("nifti-not-packed", lambda tree: unpacked(tree), says=NIFTI, plan=GZ),
    Case("gap-in-sessions", lambda tree: tree.session(1).unlink(), says=("betas_session01",)),
    Case("both-forms", lambda tree: both_forms(tree), "right"),
    Case("no-sessions", lambda tree: [tree.session(n).unlink() for n in (1, 2)], says=("session",)),
    Case("sessions-without-responses", lambda tree: third(tree), says=("betas_session03",)),
]


def big_endian(path: Path) -> None:
    image = nibabel.load(path)
    swapped = nibabel.Nifti1Image(
        np.asarray(image.dataobj), image.affine, image.header.as_byteswapped()
    )
    nibabel.save(swapped, path)


def hdf5_as_nifti(tree: Tree) -> None:
    write_session(tree.session(2), tree.volumes(2), "nsd")


def unpacked(tree: Tree) -> None:
    path = tree.session(2)
    path.write_bytes(gzip.decompress(path.read_bytes()))


def both_forms(tree: Tree) -> None:
    path = tree.session(2)
    write_session(path.with_name("betas_session02.nii.gz"), tree.volumes(2), "nii.gz")


def third(tree: Tree) -> None:
    shutil.copy(tree.session(1), tree.session(3))


@parametrized(BETAS)
def test_odd_betas_are_read_rightly_or_named(case, trees, tmp_path):
    tried(case, trees, tmp_path)


# -- masks and regions -----------------------------------------------------------------------------


def mask_as(change: Callable[[np.ndarray], np.ndarray], name: str = "nsdgeneral"):
    def damage(tree: Tree) -> None:
        volume = tree.mask() if name == "nsdgeneral" else tree.labels(name)
        write_volume(tree.roi(name), change(volume))

    return damage


def ncsnr_as(change: Callable[[np.ndarray], np.ndarray]):
    return lambda tree: write_volume(tree.ncsnr(), change(tree.signal_to_noise()))


MASK, VISUAL, NCSNR = ("nsdgeneral",), ("prf-visualrois.nii.gz",), ("ncsnr.nii.gz",)
MASKS = [
    Case("float", mask_as(lambda v: v.astype(np.float32)), "right"),
    Case("one-volume-of-four-axes", mask_as(lambda v: v[..., None]), "right"),
    Case("big-endian", lambda tree: big_endian(tree.roi("nsdgeneral")), "right"),
    Case("two-volumes", mask_as(lambda v: np.stack([v, v], -1)), says=MASK),
    Case("a-slice", mask_as(lambda v: v[..., 0]), says=MASK),
    Case("transposed", mask_as(lambda v: v.T), says=MASK),
    Case("of-another-size", mask_as(lambda v: v[:-1]), says=MASK),
    Case("all-zero", mask_as(lambda v: v * 0), says=MASK),
    Case("all-minus-one", mask_as(lambda v: v * 0 - 1), says=MASK),
    Case("all-nan", mask_as(lambda v: v * np.float32(np.nan)), says=MASK),
    Case("complex", mask_as(lambda v: v.astype(np.complex64)), says=MASK),
    Case("huge", huge_volume, says=MASK),
    Case("not-packed", lambda tree: not_packed(tree.roi("nsdgeneral")), says=MASK),
    Case("regions-of-another-size", mask_as(lambda v: v[:-1], "prf-visualrois"), says=VISUAL),
    Case("regions-with-fractions", mask_as(lambda v: v + 0.5, "prf-visualrois"), says=VISUAL),
    Case("regions-with-nan", mask_as(lambda v: np.where(v > 3, np.nan, v), "streams"), "either",
         ("streams",)),
    Case("regions-too-large", mask_as(lambda v: v.astype(np.float32) * 1e9, "streams"),
         says=("streams.nii.gz",)),
    Case("regions-infinite", mask_as(lambda v: np.where(v > 3, np.inf, v), "streams"),
         says=("streams.nii.gz",)),
    Case("ncsnr-of-another-size", ncsnr_as(lambda v: v[:, :-1]), says=NCSNR),
    Case("ncsnr-complex", ncsnr_as(lambda v: v.astype(np.complex64)), says=NCSNR),
    Case("ncsnr-as-numbers", ncsnr_as(lambda v: v.astype(np.float64)), "right"),
    Case("mask-file-of-another-size", lambda tree: other_mask(tree), says=("mine.nii.gz",),
         how={"mask": "mine.nii.gz"}),
    Case("mask-file-missing", lambda tree: None, says=("mine.nii.gz",),
         how={"mask": "mine.nii.gz"}),
    Case("unknown-region", lambda tree: None, says=("V9",), how={"mask": "V1,V9"}),
    Case("no-region", lambda tree: None, says=("mask",), how={"mask": []}),
    Case("empty-word", lambda tree: None, says=("region",), how={"mask": ""}),
]  # fmt: skip


def not_packed(path: Path) -> None:
    path.write_bytes(gzip.decompress(path.read_bytes()))


def other_mask(tree: Tree) -> None:
    write_volume(tree.root / "mine.nii.gz", tree.mask()[:-1])


@parametrized(MASKS)
def test_odd_masks_are_read_rightly_or_named(case, trees, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "mask" in case.how and case.how["mask"] == "mine.nii.gz":
        case.how["mask"] = str(tmp_path / "raw" / "mine.nii.gz")
    tried(case, trees, tmp_path)


# -- responses -------------------------------------------------------------------------------------


def responses_as(change: Callable, **options):
    return lambda tree: write_responses(tree.behavior(), change(tree.responses()), **options)


def cell(column: str, value: Any, row: int = 3):
    def change(table):
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
        return table

    return responses_as(change)


def text_as(change: Callable[[str], str], encoding: str = "utf-8"):
    return lambda tree: changed_text(tree.behavior(), change, encoding)


def other_order(table):
    order = np.arange(len(table))
    order[[1, 4]] = order[[4, 1]]
    return table.iloc[order]


def doubled(table):
    return table.iloc[np.sort(np.r_[np.arange(len(table)), 2])]


def later_sessions(table):
    more = table.copy()
    more["SESSION"] += 2
    return pd.concat([table, more])


NEEDED = ("SUBJECT", "SESSION", "RUN", "TRIAL", "73KID", "10KID", "TIME", "ISOLD", "ISCORRECT")
NEEDED += ("RT", "CHANGEMIND", "ISOLDCURRENT", "ISCORRECTCURRENT", "TOTAL1", "TOTAL2", "BUTTON")
TSV = ("responses.tsv",)
WRONG_CELLS = {
    "73KID": (0, -1, 1.5, 10**7, 1e300, "seven", np.nan, np.inf, True),
    "10KID": (0, 10**7, "x", np.nan),
    "SESSION": (0, -3, 1.5, "one", np.nan),
    "SUBJECT": (2, "subj01", np.nan),
    "RUN": (0, "x", np.nan, 99),
    "TRIAL": (0, "x", np.nan),
    "RT": ("fast", np.inf),
    "BUTTON": ("left",),
}
RESPONSES = [
    *[
        Case(f"no-column-{name}", responses_as(lambda t, n=name: t.drop(columns=n)), says=(*TSV,
             name))
        for name in NEEDED
    ],
    *[
        Case(f"{name}-is-{value}", cell(name, value), says=(*TSV, name))
        for name, values in WRONG_CELLS.items()
        for value in values
    ],
    Case("byte-order-mark", text_as(str, "utf-8-sig"), "right"),
    Case("crlf", text_as(lambda text: text.replace("\n", "\r\n")), "right"),
    Case("floats", responses_as(lambda t: t.astype(float)), "right"),
    Case("quoted", responses_as(lambda t: t, quoting=1), "right"),
    Case("blank-lines-at-the-end", text_as(lambda text: text + "\n\n"), "right"),
    Case("another-column", responses_as(lambda t: t.assign(MOOD="gut")), "right"),
    Case("columns-in-another-order", responses_as(lambda t: t[t.columns[::-1]]), "right"),
    Case("later-sessions-without-betas", responses_as(later_sessions), "right"),
    Case("no-answers", responses_as(lambda t: t.assign(RT=np.nan, BUTTON=np.nan)), "right"),
    Case("semicolons", responses_as(lambda t: t, sep=";"), says=TSV),
    Case("commas", responses_as(lambda t: t, sep=","), says=TSV),
    Case("header-only", responses_as(lambda t: t[:0]), says=TSV),
    Case("no-header", responses_as(lambda t: t, header=False), says=TSV),
    Case("two-headers", text_as(lambda text: text.split("\n")[0] + "\n" + text), says=TSV),
    Case("utf-16", text_as(str, "utf-16"), says=TSV),
    Case("latin-1", text_as(lambda text: text.replace("MISSINGDATA", "Ü"), "latin-1"), says=TSV),
    Case("null-bytes", text_as(lambda text: text[:300] + "\0\0" + text[302:]), "either", TSV),
    Case("decimal-commas", text_as(lambda text: text.replace(".", ",")), says=TSV),
    Case("a-row-too-long", text_as(lambda text: text.rstrip() + "\t1\t2\t3\n"), says=TSV),
    Case("a-trial-of-session-9", cell("SESSION", 9), says=TSV),
    Case("doubled-trial", responses_as(doubled), says=TSV),
    Case("lost-trial", responses_as(lambda t: t.drop(index=2)), says=TSV),
    Case("lost-last-trial", responses_as(lambda t: t[:-1]), says=TSV),
    Case("lost-session", responses_as(lambda t: t[t.SESSION == 1]), says=TSV),
    Case("trials-out-of-order", responses_as(other_order), says=TSV),
    Case("sessions-out-of-order", responses_as(lambda t: t[::-1]), says=TSV),
    Case("sessions-swapped", responses_as(lambda t: t.assign(SESSION=3 - t.SESSION)), says=TSV),
    Case("gap-in-sessions", responses_as(lambda t: t.assign(SESSION=t.SESSION * 2 - 1)), says=TSV),
    Case("counted-from-0", responses_as(lambda t: t.assign(**{"73KID": t["73KID"] - 1})), says=TSV),
    Case("all-shifted", responses_as(lambda t: t.assign(**{"73KID": t["73KID"] % 8 + 1})),
         says=TSV),
    Case("of-another-subject", lambda tree: write_responses(tree.behavior(), tree.responses(2)),
         says=TSV),
]  # fmt: skip


@parametrized(RESPONSES)
def test_odd_responses_are_read_rightly_or_named_with_the_field(case, trees, tmp_path):
    tried(case, trees, tmp_path)


# -- design, pictures, captions --------------------------------------------------------------------


def design_as(**changes):
    def damage(tree: Tree) -> None:
        arrays = tiny_nsd.design_of(tree)
        write_design(tree, **{n: change(arrays[n]) for n, change in changes.items()})

    return damage


def both_mats(name: str, damage: Callable, *rest, **more) -> list[Case]:
    return [
        Case(f"{name}-{word}", damage, *rest, plan={"mat": mat}, **more)
        for word, mat in (("5", "5"), ("73", "7.3"))
    ]


def values(change: Callable[[np.ndarray], Any]):
    """Wrong values in each of the three arrays that are read."""
    return {
        name: design_as(**{name: change}) for name in ("masterordering", "subjectim", "sharedix")
    }


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.astype(float)
    array[0, 0] = np.nan
    return array


def huge_number(array: np.ndarray) -> np.ndarray:
    array = array.astype(float)
    array[0, 0] = 1e12
    return array


MAT = ("nsd_expdesign.mat",)
WRONG_ARRAYS = {
    "missing": lambda array: None,
    "from-0": lambda array: array - 1,
    "fractions": lambda array: array + 0.5,
    "nan": with_nan,
    "too-large": huge_number,
    "negative": lambda array: -array.astype(int),
}
DESIGN = [
    case
    for word, change in WRONG_ARRAYS.items()
    for name, damage in values(change).items()
    for case in both_mats(f"{name}-{word}", damage, says=(*MAT,))
]
DESIGN += [
    *both_mats("integers", design_as(masterordering=lambda a: a.astype(np.int32)), "right"),
    *both_mats("no-pattern", design_as(stimpattern=lambda a: None), "right"),
    *both_mats("pattern-as-numbers", design_as(stimpattern=lambda a: a.astype(float)), "right"),
    *both_mats("column", design_as(masterordering=lambda a: a.T, sharedix=lambda a: a.T), "right"),
    *both_mats("people-transposed", design_as(subjectim=lambda a: a.T), says=MAT),
    *both_mats("one-person", design_as(subjectim=lambda a: a[:1]), "right"),
    *both_mats("other-order", design_as(masterordering=lambda a: a[:, ::-1]), says=MAT),
    *both_mats("too-short", design_as(masterordering=lambda a: a[:, :-4]), says=MAT),
    *both_mats("pattern-of-others", design_as(stimpattern=lambda a: a[:, :1]), says=TSV),
    *both_mats("shared-by-some", design_as(sharedix=lambda a: (a + 1) % 30 + 1), "either", MAT),
    Case("text", design_as(masterordering=lambda a: np.array("abc")), says=MAT),
    Case("cells", design_as(masterordering=lambda a: np.array([[1, "x"]], object)), says=MAT),
    Case("structure", design_as(masterordering=lambda a: {"a": a}), says=MAT),
    Case("complex", design_as(masterordering=lambda a: a * 1j), says=MAT),
    Case("no-arrays", lambda tree: savemat(tree.design, {}), says=MAT),
    Case("group-73", lambda tree: group_73(tree), says=MAT, plan={"mat": "7.3"}),
    Case("huge-73", lambda tree: huge_73(tree), says=MAT, plan={"mat": "7.3"}),
]


def group_73(tree: Tree) -> None:
    with h5py.File(tree.design, "a") as file:
        del file["masterordering"]
        file["masterordering/a"] = 1


def huge_73(tree: Tree) -> None:
    with h5py.File(tree.design, "a") as file:
        del file["masterordering"]
        file.create_dataset("masterordering", (10**7, 10**7), np.float64, chunks=(100, 100))


@parametrized(DESIGN)
def test_odd_designs_are_read_rightly_or_named(case, trees, tmp_path):
    tried(case, trees, tmp_path)


def bricks_as(change: Callable[[np.ndarray], Any]):
    return lambda tree: changed_array(tree.stimuli, "imgBrick", change)


def info_as(change: Callable, **options):
    return lambda tree: change(tiny_nsd.info_of(tree)).to_csv(tree.info, **options)


def info_text(change: Callable[[str], str], encoding: str = "utf-8"):
    return lambda tree: changed_text(tree.info, change, encoding)


def captions_as(change: Callable[[dict], Any]):
    def damage(tree: Tree) -> None:
        content = change(tiny_nsd.captions_of(tree))
        tree.captions.write_text(json.dumps(content), encoding="utf-8")

    return damage


def annotation(**fields):
    """The first caption changed; None takes a field away."""

    def change(content: dict) -> dict:
        first = content["annotations"][0] | fields
        content["annotations"][0] = {k: v for k, v in first.items() if v is not None}
        return content

    return captions_as(change)


STIMULI, INFO = ("nsd_stimuli.hdf5",), ("nsd_stim_info_merged.csv",)
CAPTIONS = ("captions_train2017.json",)
PICTURES = [
    Case("bricks-float", bricks_as(lambda b: b / 255), says=STIMULI),
    Case("bricks-uint16", bricks_as(lambda b: b.astype(np.uint16)), says=STIMULI),
    Case("bricks-text", bricks_as(lambda b: "pictures"), says=STIMULI),
    Case("bricks-channels-first", bricks_as(lambda b: np.moveaxis(b, -1, 1)), says=STIMULI),
    Case("bricks-gray", bricks_as(lambda b: b[..., :1]), says=STIMULI),
    Case("bricks-of-three-axes", bricks_as(lambda b: b[..., 0]), says=STIMULI),
    Case("bricks-none", bricks_as(lambda b: b[:0]), says=STIMULI),
    Case("bricks-missing", bricks_as(lambda b: None), says=(*STIMULI, "imgBrick")),
    Case("bricks-too-few", bricks_as(lambda b: b[:9]), says=MAT),
    Case("bricks-half-of-a-side", bricks_as(lambda b: b[:, :4, :4]), "right"),
    Case("table-bom", info_text(str, "utf-8-sig"), "right"),
    Case("table-crlf", info_text(lambda text: text.replace("\n", "\r\n")), "right"),
    Case("table-without-index", info_as(lambda t: t, index=False), "right"),
    Case("table-in-another-order", info_as(lambda t: t[::-1]), "right"),
    Case("table-semicolons", info_as(lambda t: t, sep=";"), says=INFO),
    Case("table-no-header", info_as(lambda t: t, header=False), says=INFO),
    Case("table-latin-1", info_text(lambda t: t.replace("val2017", "é"), "latin-1"), says=INFO),
    Case("table-utf-16", info_text(str, "utf-16"), says=INFO),
    Case("table-doubled-row", info_as(lambda t: t.iloc[[0, *range(len(t))]]), says=INFO),
    Case("table-lost-row", info_as(lambda t: t[:-1]), says=INFO),
    *[
        Case(f"table-no-{name}", info_as(lambda t, n=name: t.drop(columns=n)), says=(*INFO, name))
        for name in ("cocoId", "cocoSplit", "nsdId")
    ],
    Case("table-ids-as-text", info_as(lambda t: t.assign(nsdId="a")), says=(*INFO, "nsdId")),
    Case("table-ids-from-1", info_as(lambda t: t.assign(nsdId=t.nsdId + 1)), says=INFO),
    Case("table-coco-nan", info_as(lambda t: t.assign(cocoId=np.nan)), says=(*INFO, "cocoId")),
    Case("table-coco-doubled", info_as(lambda t: t.assign(cocoId=7)), says=(*INFO, "cocoId")),
    Case("captions-of-unknown-images",
         captions_as(lambda c: {"annotations": c["annotations"][-1:]}),
         "right"),
    Case("captions-none", captions_as(lambda c: {"annotations": []}), "right"),
    Case("captions-bom", lambda tree: changed_text(tree.captions, str, "utf-8-sig"), "right"),
    Case("captions-a-list", captions_as(lambda c: c["annotations"]), says=CAPTIONS),
    Case("captions-text", captions_as(lambda c: "words"), says=CAPTIONS),
    Case("captions-null", captions_as(lambda c: None), says=CAPTIONS),
    Case("captions-no-annotations", captions_as(lambda c: {"images": []}), says=CAPTIONS),
    Case("captions-numbers-for-annotations", captions_as(lambda c: {"annotations": 7}),
         says=CAPTIONS),
    Case("captions-annotation-is-text", captions_as(lambda c: {"annotations": ["a"]}),
         says=CAPTIONS),
    Case("caption-missing", annotation(caption=None), says=CAPTIONS),
    Case("caption-a-number", annotation(caption=7), says=CAPTIONS),
    Case("caption-a-list", annotation(caption=["a"]), says=CAPTIONS),
    Case("caption-image-missing", annotation(image_id=None), says=CAPTIONS),
    Case("caption-image-a-list", annotation(image_id=[1]), says=CAPTIONS),
    Case("captions-latin-1", lambda tree: tree.captions.write_bytes(b'{"a": "\xe9"}'),
         says=CAPTIONS),
    Case("captions-deep", lambda tree: tree.captions.write_text("[" * 100_000), says=CAPTIONS),
]  # fmt: skip


@parametrized(PICTURES)
def test_odd_pictures_and_captions_are_read_rightly_or_named(case, trees, tmp_path):
    tried(case, trees, tmp_path)


# -- paths -----------------------------------------------------------------------------------------


def moved(name: str):
    def damage(tree: Tree) -> Tree:
        target = tree.root.parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tree.root, target)
        return Tree(target, tree.plan)

    return damage


def linked(tree: Tree) -> Tree:
    """The whole tree and one of its files through links."""
    other = tree.root.with_name("linked")
    other.symlink_to(tree.root)
    real = tree.session(1).with_name("elsewhere.h5")
    tree.session(1).rename(real)
    tree.session(1).symlink_to(real)
    return Tree(other, tree.plan)


def looped(tree: Tree) -> Tree:
    (tree.root.with_name("a")).symlink_to(tree.root.with_name("b"))
    (tree.root.with_name("b")).symlink_to(tree.root.with_name("a"))
    return Tree(tree.root.with_name("a"), tree.plan)


def inner_loop(tree: Tree) -> None:
    """A folder that holds itself: whoever walks the tree never ends."""
    (tree.betas() / "again").symlink_to(tree.betas())
    (tree.root / "nsddata" / "all").symlink_to(tree.root)


def a_file(tree: Tree) -> Tree:
    path = tree.root.with_name("file.txt")
    path.write_text("a tree")
    return Tree(path, tree.plan)


PATHS = [
    Case("unicode", moved("Gehirn-Daten/脳 データ ñ"), "right"),
    Case("spaces", moved("my data / of  NSD "), "right"),
    Case("brackets", moved("[nsd] {1} (copy) #2 %s"), "right"),
    Case("quotes", moved('it\'s "nsd"'), "right"),
    Case("long", moved("x" * 200), "right"),
    Case("links", linked, "right"),
    Case("folder-in-itself", inner_loop, "right"),
    Case("loop", looped, says=("nsddata_betas",)),
    Case("root-is-a-file", a_file, says=("file.txt",)),
    Case("root-is-missing", lambda tree: Tree(tree.root / "none", PLAN), says=("none",)),
    Case("subject-missing", lambda tree: None, says=("subject",), how={"subjects": [2]}),
    Case("subject-0", lambda tree: None, says=("subject",), how={"subjects": [0]}),
    Case("subject-negative", lambda tree: None, says=("subject",), how={"subjects": [-1]}),
    Case("betas-unknown", lambda tree: None, says=("b4",), how={"betas": "b4"}),
    Case("betas-not-there", lambda tree: None, says=("betas_fithrf",), how={"betas": "b2"}),
    Case("space-unknown", lambda tree: None, says=("func2mm",), how={"space": "func2mm"}),
    Case("space-not-there", lambda tree: None, says=("func1mm",), how={"space": "func1mm"}),
    Case("executor-unknown", lambda tree: None, says=("grid",), how={"executor": "grid"}),
]


@parametrized(PATHS)
def test_odd_paths_and_choices_are_followed_or_named(case, trees, tmp_path):
    tree = copied(trees(PLAN), tmp_path / "raw")
    tree = case.damage(tree) or tree
    out = tmp_path / ("out" if case.ends == "error" else "öut put")
    subject = right_or_one_line(lambda: prepare(tree, out, **case.how), out, case.says, case.ends)
    if subject is not None:
        is_right(tree, subject, stored(tree))


OUT = [
    ("is-a-file", lambda path: path.write_text("taken")),
    ("is-a-loop", lambda path: path.symlink_to(path)),
]


@pytest.mark.parametrize("make", [m for _, m in OUT], ids=[n for n, _ in OUT])
def test_an_output_that_is_no_folder_is_named(make, trees, tmp_path):
    out = tmp_path / "out"
    make(out)
    call = lambda: prepare(trees(PLAN), out)  # noqa: E731
    right_or_one_line(call, tmp_path, ("out",), "error")


# -- the training layout ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """A prepared tree of six sessions' length, so that both test splits have trials."""
    folder = tmp_path_factory.mktemp("layout")
    tree = tiny_nsd.write(folder / "raw", PLAN)
    prepare(tree, folder / "out")
    return tree, folder / "out"


BETAS_FILE = "betas_all_subj01_fp32_renorm.hdf5"
IMAGES_FILE = "coco_images_8_float16.hdf5"
PREPARED = (
    *(BETAS_FILE, IMAGES_FILE, "brain_region_masks.hdf5", "voxels.hdf5"),
    *("captions.json", "stimuli.csv"),
    *("wds/subj01/train/1.tar", "wds/subj01/new_test/0.tar", "wds/subj01/test/0.tar"),
)


def everything(root: Path) -> nsd.Subject:
    """All that there is to read of a person."""
    subject = nsd.Subject(root, 1)
    for split in ("new_test", "test"):
        subject.test(split=split)
    trials = subject.train()
    _ = subject.images[trials.image_id], subject.captions(int(trials.image_id[0]))
    _ = subject.ncsnr, subject.rois, subject.position, subject.labels, subject.volume
    _ = subject.stimuli, subject.session_statistics
    return subject


def damaged_layouts() -> list[Case]:
    cases = []
    for name in PREPARED:
        file, short = Path(name).name, name.removeprefix("wds/subj01/").replace("/", "-")
        for word, share in CUTS.items():

            def damage(root, name=name, share=share):
                cut(root / name, share)

            ends = "error" if word == "empty" else "either"
            cases.append(Case(f"{short}-cut-{word}", damage, ends, (file,)))
        for share in (*FLIPS, 0.1):

            def damage(root, name=name, share=share):
                flip(root / name, share)

            cases.append(Case(f"{short}-flipped-at-{share}", damage, "either", (file,)))
        for what in INSTEAD:

            def damage(root, name=name, what=what):
                replaced(root / name, what)

            says = () if file == IMAGES_FILE and what == "nothing" else (file,)
            says = ("tars are missing",) if short == "train-1.tar" and what == "nothing" else says
            says = ("subject 1",) if file == BETAS_FILE and what == "nothing" else says
            cases.append(Case(f"{short}-is-{what.replace(' ', '-')}", damage, "error", says))
    return cases


def array(file: str, name: str, change: Callable):
    return lambda root: changed_array(root / file, name, change)


def member(name: str = "sample000000000.behav.npy", **fields):
    """The tar of session 2 with a member of that kind in front; `content` in it."""

    def damage(root: Path) -> None:
        path = root / "wds/subj01/train/1.tar"
        with tarfile.open(path) as tar:
            whole = [(m, tar.extractfile(m).read()) for m in tar]
        content = fields.pop("content", b"")
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in fields.items():
            setattr(info, key, value)
        with tarfile.open(path, "w") as tar:
            tar.addfile(info, io.BytesIO(content))
            for other, content in whole:
                tar.addfile(other, io.BytesIO(content))

    return damage


def record(change: Callable[[np.ndarray], Any], tar: str = "train/1.tar"):
    """The first record of a tar changed, or replaced by bytes."""

    def damage(root: Path) -> None:
        path = root / "wds/subj01" / tar
        with tarfile.open(path) as old:
            whole = [(m, old.extractfile(m).read()) for m in old]
        where = next(i for i, (m, _) in enumerate(whole) if m.name.endswith(".behav.npy"))
        found = change(np.load(io.BytesIO(whole[where][1])))
        if not isinstance(found, bytes):
            stream = io.BytesIO()
            np.save(stream, found, allow_pickle=True)
            found = stream.getvalue()
        whole[where][0].size = len(found)
        whole[where] = whole[where][0], found
        with tarfile.open(path, "w") as new:
            for info, content in whole:
                new.addfile(info, io.BytesIO(content))

    return damage


def number(column: int, value: float, tar: str = "train/1.tar"):
    def change(row: np.ndarray) -> np.ndarray:
        row[0, column] = value
        return row

    return record(change, tar)


def header(descr: str, shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    head = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, head)
    return stream.getvalue() + bytes(136)


def without_last_member(root: Path) -> None:
    """Cut exactly behind a member, where tar files look whole."""
    path = root / "wds/subj01/train/1.tar"
    with tarfile.open(path) as tar:
        offset = [m.offset for m in tar][-4]
    path.write_bytes(path.read_bytes()[:offset])


def also_in_test(root: Path) -> None:
    """A trial of training stands in the test split, too."""
    trial = layout.read_records(root / "wds/subj01/train/1.tar")[0, layout.GLOBAL_TRIAL]
    number(layout.SESSION, 2, "new_test/0.tar")(root)
    number(layout.GLOBAL_TRIAL, trial, "new_test/0.tar")(root)


def swapped_tars(root: Path) -> None:
    folder = root / "wds/subj01/train"
    (folder / "0.tar").rename(folder / "x")
    (folder / "1.tar").rename(folder / "0.tar")
    (folder / "x").rename(folder / "1.tar")


def doubled_tar(root: Path) -> None:
    folder = root / "wds/subj01"
    shutil.copy(folder / "train/0.tar", folder / "train/1.tar")


def in_both_splits(root: Path) -> None:
    folder = root / "wds/subj01"
    shutil.copy(folder / "train/0.tar", folder / "new_test/0.tar")


def nan_in(betas: np.ndarray) -> np.ndarray:
    betas[3, 2] = np.nan
    return betas


B, TAR, MASKS_FILE = (BETAS_FILE,), ("1.tar",), ("brain_region_masks.hdf5",)
LAYOUT = [
    Case("betas-float16", array(BETAS_FILE, "betas", lambda b: b.astype(np.float16)), "either", B),
    Case("betas-float64", array(BETAS_FILE, "betas", lambda b: b.astype(np.float64)), "right"),
    Case("betas-big-endian", array(BETAS_FILE, "betas", lambda b: b.astype(">f4")), "right"),
    Case("betas-strings", array(BETAS_FILE, "betas", lambda b: b.astype("S5")), says=B),
    Case("betas-complex", array(BETAS_FILE, "betas", lambda b: b.astype("c8")), says=B),
    Case("betas-bool", array(BETAS_FILE, "betas", lambda b: b > 0), says=B),
    Case("betas-nan", array(BETAS_FILE, "betas", nan_in), says=B),
    Case("betas-transposed", array(BETAS_FILE, "betas", lambda b: b.T), says=B),
    Case("betas-of-three-axes", array(BETAS_FILE, "betas", lambda b: b[None]), says=B),
    Case("betas-scalar", array(BETAS_FILE, "betas", lambda b: b[0, 0]), says=B),
    Case("betas-missing", array(BETAS_FILE, "betas", lambda b: None), says=(*B, "betas")),
    Case("betas-a-trial-less", array(BETAS_FILE, "betas", lambda b: b[:-1]), says=B),
    Case("betas-a-voxel-less", array(BETAS_FILE, "betas", lambda b: b[:, 1:]), says=("voxels",)),
    Case("betas-none", array(BETAS_FILE, "betas", lambda b: b[:0]), says=B),
    Case("statistics-missing", array(BETAS_FILE, "session_mean", lambda a: None), says=B),
    Case("statistics-short", array(BETAS_FILE, "session_std", lambda a: a[:1]), says=B),
    Case("statistics-text", array(BETAS_FILE, "session_mean", lambda a: a.astype("S4")), says=B),
    Case("ncsnr-missing", array(BETAS_FILE, "ncsnr", lambda a: None), says=(*B, "ncsnr")),
    Case("ncsnr-short", array(BETAS_FILE, "ncsnr", lambda a: a[1:]), says=(*B, "ncsnr")),
    Case("images-missing", array(IMAGES_FILE, "images", lambda a: None), says=(IMAGES_FILE,
         "images")),
    Case("images-text", array(IMAGES_FILE, "images", lambda a: "x"), says=(IMAGES_FILE,)),
    Case("images-flat", array(IMAGES_FILE, "images", lambda a: a[:, 0, 0]), says=(IMAGES_FILE,)),
    Case("images-too-few", array(IMAGES_FILE, "images", lambda a: a[:3]), says=(IMAGES_FILE,)),
    Case("images-last-axis", array(IMAGES_FILE, "images", lambda a: np.moveaxis(a, 1, -1)),
         says=(IMAGES_FILE,)),
    Case("region-of-another-size", array("brain_region_masks.hdf5", "subj01/V1", lambda a: a[1:]),
         says=("V1",)),
    Case("region-of-two-axes", array("brain_region_masks.hdf5", "subj01/V1", lambda a: a[:, None]),
         says=("V1",)),
    Case("region-a-number", array("brain_region_masks.hdf5", "subj01/V1", lambda a: 7),
         says=(*MASKS_FILE, "V1")),
    Case("region-text", array("brain_region_masks.hdf5", "subj01/V1", lambda a: a.astype("S1")),
         says=(*MASKS_FILE, "V1")),
    Case("region-no-subject", lambda root: ungrouped(root / "brain_region_masks.hdf5"),
         says=(*MASKS_FILE, "subj01")),
    Case("position-short", array("voxels.hdf5", "subj01/position", lambda a: a[1:]),
         says=("voxels.hdf5",)),
    Case("voxels-no-subject", lambda root: ungrouped(root / "voxels.hdf5"),
         says=("voxels.hdf5", "subj01")),
    Case("captions-a-list", lambda root: put(root / "captions.json", "[1]"),
         says=("captions.json",)),
    Case("captions-none", lambda root: put(root / "captions.json", "{}"), says=("captions.json",)),
    Case("captions-bom", lambda root: changed_text(root / "captions.json", str, "utf-8-sig"),
         "right"),
    Case("table-no-column", lambda root: put(root / "stimuli.csv", "a,b\n1,2\n"),
         says=("stimuli.csv", "image_id")),
    Case("table-bom", lambda root: changed_text(root / "stimuli.csv", str, "utf-8-sig"), "right"),
    Case("tar-climbs", member("../../../../climbed.txt", content=b"x"), "right"),
    Case("tar-absolute", member("/climbed-out-of-a-tar.txt", content=b"x"), "right"),
    Case("tar-climbing-link", member("a", type=tarfile.SYMTYPE, linkname="../../.."), "right"),
    Case("tar-hard-link", member("a", type=tarfile.LNKTYPE, linkname="/etc/hosts"), "right"),
    Case("tar-device", member("a", type=tarfile.CHRTYPE), "right"),
    Case("tar-folder", member("a", type=tarfile.DIRTYPE), "right"),
    Case("tar-record-is-a-link", member(type=tarfile.SYMTYPE, linkname="x"), "right"),
    Case("tar-record-is-a-hard-link", member(type=tarfile.LNKTYPE, linkname="/etc/hosts"), "right"),
    Case("tar-record-climbs", member("../x.behav.npy", content=b"x"), says=TAR),
    Case("tar-record-is-text", member(content=b"numbers"), says=TAR),
    Case("tar-record-is-empty", member(content=b""), says=TAR),
    Case("tar-record-is-huge", member(content=header("<f8", (1, 10**15))), says=TAR),
    Case("tar-record-is-an-archive", member(content=b"PK\x05\x06" + bytes(18)), says=TAR),
    Case("tar-record-of-objects", record(lambda row: row.astype(object)), says=TAR),
    Case("tar-record-of-strings", record(lambda row: row.astype("U4")), says=TAR),
    Case("tar-record-complex", record(lambda row: row * 1j), says=TAR),
    Case("tar-record-transposed", record(lambda row: row.T), says=TAR),
    Case("tar-record-too-short", record(lambda row: row[:, :16]), says=TAR),
    Case("tar-record-float32", record(lambda row: row.astype(np.float32)), "right"),
    Case("tar-record-big-endian", record(lambda row: row.astype(">f8")), "right"),
    Case("tar-record-odd-header", record(lambda row: header("<f8", (-1, 17))), says=TAR),
    Case("tar-image-nan", number(layout.IMAGE, np.nan), says=TAR),
    Case("tar-image-negative", number(layout.IMAGE, -1), says=TAR),
    Case("tar-image-too-large", number(layout.IMAGE, 10**6), says=(IMAGES_FILE,)),
    Case("tar-image-infinite", number(layout.IMAGE, np.inf), says=TAR),
    Case("tar-session-of-others", number(layout.SESSION, 1), says=TAR),
    Case("tar-session-0", number(layout.SESSION, 0), says=TAR),
    Case("tar-trial-beyond", number(layout.GLOBAL_TRIAL, 10**6), says=B),
    Case("tar-trial-fraction", number(layout.GLOBAL_TRIAL, 7.5), says=TAR),
    Case("tar-trial-doubled", also_in_test, says=("trial",)),
    Case("tar-cut-behind-a-member", without_last_member, says=TAR),
    Case("tar-packed", lambda root: packed(root), says=TAR),
    Case("tars-swapped", swapped_tars, says=("0.tar",)),
    Case("tar-doubled", doubled_tar, says=TAR),
    Case("tar-in-both-splits", in_both_splits, says=("0.tar",)),
    Case("no-tars", lambda root: shutil.rmtree(root / "wds"), says=("train",)),
    Case("gap-in-tars", lambda root: (root / "wds/subj01/train/1.tar").rename(
        root / "wds/subj01/train/4.tar"), says=TAR),
]  # fmt: skip


def ungrouped(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["subj01"]


def put(path: Path, text: str) -> None:
    path.write_text(text)


def packed(root: Path) -> None:
    path = root / "wds/subj01/train/1.tar"
    path.write_bytes(gzip.compress(path.read_bytes())[:-40])


@parametrized(damaged_layouts() + LAYOUT)
def test_a_damaged_layout_is_read_rightly_or_named(case, layouts, tmp_path):
    tree, whole = layouts
    root = tmp_path / "data" / "layout"
    shutil.copytree(whole, root)
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    case.damage(root)
    before |= {path.relative_to(tmp_path) for path in root.rglob("*")}
    subject = right_or_one_line(lambda: everything(root), tmp_path / "out", case.says, case.ends)
    if subject is not None:
        for trials in (subject.train(), subject.test()):
            rows = trials.behavior[:, layout.GLOBAL_TRIAL].int().tolist()
            assert (trials.image_id.numpy() == tree.images()[rows]).all()
        assert len(subject.train()) + len(subject.test()) == len(tree.ordering)
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} <= before
    assert not Path("/climbed-out-of-a-tar.txt").exists()


def test_there_are_at_least_two_hundred_cases():
    kinds = (BETAS, MASKS, RESPONSES, DESIGN, PICTURES, PATHS, LAYOUT)
    assert sum(map(len, (damaged_files(), damaged_layouts(), *kinds))) >= 200
