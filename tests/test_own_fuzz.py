"""Somebody's own files, damaged: each ends in the right result or in one clear line."""

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import tiny_nsd
from PIL import Image
from scipy.io import loadmat, savemat
from tiny_nsd import (
    Own,
    changed_text,
    cut,
    flip,
    replaced,
    right_or_one_line,
    write_mat73,
    write_own_betas,
    write_responses,
    write_volume,
)

from mindeye2_lite import layout, nsd, own_files

CUTS = {"empty": 0, "one-byte": 1e-9, "half": 0.5, "less-one": 1}
FLIPS = (0.002, 0.3)
INSTEAD = ("nothing", "folder", "loop", "dangling link")


@dataclass(frozen=True)
class Case:
    """Damage done to a study, and how what follows must end."""

    name: str
    damage: Callable[[Own], Any]
    ends: str = "error"
    says: tuple[str, ...] = ()
    form: str = "npy"
    how: Callable[[Own], dict] = lambda own: {}
    looks: bool = True  # are pictures what they were?


def parametrized(cases: list[Case]):
    assert len({case.name for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    written: dict[str, Own] = {}

    def of(form: str) -> Own:
        if form not in written:
            root = tmp_path_factory.mktemp("own") / "study"
            written[form] = tiny_nsd.write_own(root, form=form)
        return written[form]

    return of


def prepare(own: Own, out: Path, **how) -> nsd.Subject:
    betas, events = how.pop("betas", own.betas), how.pop("events", own.events)
    images = how.pop("images", own.folder)
    own_files.from_files(out, betas, events, images, image_size=8, progress=False, **how)
    return nsd.Subject(out, 1)


def stored(own: Own) -> np.ndarray:
    """(trials, V) as the file has it now, read by its library, whole."""
    if own.form in ("npy", "glmsingle"):
        found = np.load(own.betas, allow_pickle=True)  # our own file, damaged by us
        found = found if own.form == "npy" else found.item()["betasmd"]
    elif own.form == "nii.gz":
        found = np.asarray(nibabel.load(own.betas).dataobj)
    elif own.form == "mat5":
        found = loadmat(own.betas)["modelmd"]
    else:
        with h5py.File(own.betas) as file:
            found = file["modelmd"][()].T if own.form == "mat73" else file["betas"][()]
    trials = len(own.shown)
    found = found if found.ndim == 2 and len(found) == trials else np.moveaxis(found, -1, 0)
    return found.reshape(trials, -1).astype(np.float64)


def is_right(own: Own, subject: nsd.Subject, betas: np.ndarray, looks: bool) -> None:
    mean, std = subject.session_statistics
    seen = []
    for trials in (subject.train(), subject.test()):
        rows = trials.behavior[:, layout.GLOBAL_TRIAL].int().tolist()
        seen += rows
        session = trials.session.numpy() - 1
        found = trials.voxels.numpy().astype(np.float64) * std[session] + mean[session]
        assert found.shape[1] == betas.shape[1]
        np.testing.assert_allclose(found, betas[rows], rtol=1e-4, atol=1e-4 * np.abs(betas).max())
        assert (trials.image_id.numpy() == own.shown[rows]).all()
        assert (session + 1 == own.session_of[rows]).all()
        pixels = (subject.images[trials.image_id][:, 0, 0, 0] * 255).round().int()
        assert not looks or (pixels == trials.image_id).all()
    assert sorted(seen) == list(range(len(own.shown)))
    assert not set(subject.train().image_id.tolist()) & set(subject.test().image_id.tolist())


def tried(case: Case, studies, tmp_path: Path) -> None:
    whole = studies(case.form)
    shutil.copytree(whole.root, tmp_path / "study")
    own = Own(tmp_path / "study", case.form)
    moved = case.damage(own)
    own = moved if isinstance(moved, Own) else own
    out = tmp_path / "out"
    call = lambda: prepare(own, out, **case.how(own))  # noqa: E731
    subject = right_or_one_line(call, out, case.says, case.ends)
    assert not (tmp_path / "owned").exists()  # no code of a file ran
    if subject is not None:
        is_right(own, subject, stored(own), case.looks)


# -- whole files -----------------------------------------------------------------------------------


def picture(own: Own) -> Path:
    return own.folder / own.names[3]


def with_mask(own: Own) -> dict:
    return {"mask": own.mask}


def with_captions(own: Own) -> dict:
    return {"captions": own.captions}


FORMS = ("npy", "h5", "mat5", "mat73", "nii.gz", "glmsingle")
FILES = {form: (lambda own: own.betas, form, lambda own: {}) for form in FORMS}
FILES |= {
    "events": (lambda own: own.events, "npy", lambda own: {}),
    "picture": (picture, "npy", lambda own: {}),
    "mask": (lambda own: own.mask, "nii.gz", with_mask),
    "captions": (lambda own: own.captions, "npy", with_captions),
}


def damaged_files() -> list[Case]:
    cases = []
    for kind, (find, form, how) in FILES.items():
        name = find(Own(Path(), form)).name
        looks = kind != "picture"
        # of flipped text and of numbers flipped in their header much is still a file like any other
        for word, share in CUTS.items():

            def damage(own, find=find, share=share):
                cut(find(own), share)

            ends = "error" if word == "empty" else "either"
            cases.append(Case(f"{kind}-cut-{word}", damage, ends, (name,), form, how, looks))
        for share in FLIPS:

            def damage(own, find=find, share=share):
                flip(find(own), share)

            word = f"{kind}-flipped-at-{share}"
            cases.append(Case(word, damage, "either", (name,), form, how, looks))
        for what in INSTEAD:

            def damage(own, find=find, what=what):
                replaced(find(own), what)

            word = f"{kind}-is-{what.replace(' ', '-')}"
            cases.append(Case(word, damage, "error", (name,), form, how, looks))
    return cases


@parametrized(damaged_files())
def test_a_damaged_file_of_ones_own_is_named(case, studies, tmp_path):
    tried(case, studies, tmp_path)


# -- betas -----------------------------------------------------------------------------------------


def betas_as(change: Callable[[np.ndarray], np.ndarray]):
    return lambda own: write_own_betas(own, change(own.volumes))


def with_value(value: float):
    def change(volumes: np.ndarray) -> np.ndarray:
        volumes = volumes.copy()
        volumes[2, 1, 1, 1] = value
        return volumes

    return change


def odd(name: str, change, ends: str, *says: str, forms=FORMS) -> list[Case]:
    names = {form: Own(Path(), form).betas.name for form in forms}
    return [
        Case(
            f"{name}-{form}",
            betas_as(change),
            ends,
            (*says, *(() if says else (names[form],))),
            form,
        )
        for form in forms
    ]


class Evil:
    """What numpy would run on loading."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def malicious(own: Own) -> None:
    target = own.root.parent / "owned"
    content = {"betasmd": np.moveaxis(own.volumes, 0, -1), "more": Evil(target)}
    np.save(own.betas, content, allow_pickle=True)


def only_malicious(own: Own) -> None:
    np.save(own.betas, np.array(Evil(own.root.parent / "owned"), object), allow_pickle=True)


def glm(**content):
    return lambda own: np.save(own.betas, content, allow_pickle=True)


def huge_npy(own: Own) -> None:
    """A header that promises 10^15 numbers."""
    with own.betas.open("wb") as file:
        head = {"descr": "<f4", "fortran_order": False, "shape": (24, 10**14)}
        np.lib.format.write_array_header_1_0(file, head)
        file.write(bytes(4000))


def huge_h5(own: Own) -> None:
    with h5py.File(own.betas, "w") as file:
        file.create_dataset("betas", (24, 10**12), np.float32, chunks=(1, 1000))


def huge_nifti(own: Own) -> None:
    content = bytearray(gzip.decompress(own.betas.read_bytes()))
    struct.pack_into("<3h", content, 42, 32_000, 32_000, 32_000)
    own.betas.write_bytes(gzip.compress(bytes(content)))


def archive(own: Own) -> None:
    with own.betas.open("wb") as file:
        np.savez(file, betas=own.voxels)


TABLES = ("npy", "h5")
BETAS = [
    *odd("float64", lambda v: v.astype(np.float64), "right"),
    *odd("big-endian", lambda v: v.astype(">f4"), "right", forms=("npy", "h5", "nii.gz", "mat5")),
    *odd("integers", lambda v: (v * 300).astype(np.int16), "right", forms=("npy", "h5", "nii.gz")),
    *odd("fortran-order", lambda v: np.asfortranarray(v), "right", forms=("npy", "glmsingle")),
    *odd("complex", lambda v: v.astype(np.complex64), "error", forms=("npy", "h5", "nii.gz",
         "mat5")),
    *odd("strings", lambda v: v.astype("S8"), "error", forms=TABLES),
    *odd("unicode", lambda v: v.astype("U8"), "error", forms=("npy", "glmsingle")),
    *odd("bool", lambda v: v > 0, "error", forms=(*TABLES, "glmsingle")),
    *odd("objects", lambda v: v.astype(object), "error", forms=("npy", "glmsingle")),
    *odd("nan-in-one-trial", with_value(np.nan), "error", "NaN", forms=FORMS),
    *odd("infinite-in-one-trial", with_value(np.inf), "error", "infinite", forms=FORMS),
    *odd("all-nan", lambda v: v * np.nan, "error"),
    *odd("a-trial-less", lambda v: v[:-1], "error"),
    *odd("a-trial-more", lambda v: np.concatenate([v, v[:1]]), "error"),
    *odd("no-trials", lambda v: v[:0], "error", forms=TABLES),
    *odd("no-voxels", lambda v: v[:, :0], "error", forms=TABLES),
    *odd("one-axis", lambda v: v[:, 0, 0, 0], "error", forms=TABLES),
    *odd("scalar", lambda v: v[0, 0, 0, 0], "error", forms=TABLES),
    *odd("constant", lambda v: v * 0, "either", "betas", forms=TABLES),
    *odd("constant-volume", lambda v: v * 0, "error", forms=("nii.gz", "glmsingle", "mat5")),
    Case("an-archive", archive, says=("betas.npy",)),
    Case("huge", huge_npy, says=("betas.npy",)),
    Case("huge-h5", huge_h5, says=("betas.h5",), form="h5"),
    Case("huge-nifti", huge_nifti, says=("betas.nii.gz",), form="nii.gz"),
    Case("malicious", malicious, "either", ("TYPED",), "glmsingle"),
    Case("only-malicious", only_malicious, says=("TYPED",), form="glmsingle"),
    Case("glmsingle-other-key", glm(betas2=1), says=("TYPED", "betasmd"), form="glmsingle"),
    Case("glmsingle-none", glm(betasmd=None), says=("TYPED", "betasmd"), form="glmsingle"),
    Case("glmsingle-number", glm(betasmd=3.5), says=("TYPED", "betasmd"), form="glmsingle"),
    Case("glmsingle-list", lambda own: np.save(own.betas, [1, "a", None], allow_pickle=True),
         says=("TYPED",), form="glmsingle"),
    Case("h5-group", lambda own: group(own), says=("betas.h5",), form="h5"),
    Case("h5-link-to-nowhere", lambda own: soft(own), says=("betas.h5",), form="h5"),
    Case("h5-external-link", lambda own: external(own), says=("betas.h5",), form="h5"),
    Case("mat5-other-key", lambda own: savemat(own.betas, {"a": np.eye(3), "b": np.eye(3)}),
         says=("betas.mat", "modelmd"), form="mat5"),
    Case("mat73-other-key", lambda own: write_mat73(own.betas, {"a": np.eye(3), "b": np.eye(3)}),
         says=("betas.mat", "modelmd"), form="mat73"),
    Case("unknown-ending", lambda own: own.betas.rename(own.root / "betas.csv"),
         says=("betas.csv",), how=lambda own: {"betas": own.root / "betas.csv"}),
    Case("no-such-entry", lambda own: None, says=("betas.h5", "mine"), form="h5",
         how=lambda own: {"betas": f"{own.betas}#mine"}),
    Case("named-entry", lambda own: None, "right", form="h5",
         how=lambda own: {"betas": f"{own.betas}#betas"}),
    Case("pattern-of-none", lambda own: None, says=("nothing",),
         how=lambda own: {"betas": own.root / "nothing-*.npy"}),
    Case("no-files", lambda own: None, says=("betas",), how=lambda own: {"betas": []}),
    Case("two-kinds", lambda own: np.save(own.root / "more.npy", own.volumes), says=("more.npy",),
         how=lambda own: {"betas": [own.betas, own.root / "more.npy"]}),
]  # fmt: skip


def group(own: Own) -> None:
    with h5py.File(own.betas, "w") as file:
        file.create_group("betas")


def soft(own: Own) -> None:
    with h5py.File(own.betas, "w") as file:
        file["betas"] = h5py.SoftLink("/nowhere")


def external(own: Own) -> None:
    with h5py.File(own.betas, "w") as file:
        file["betas"] = h5py.ExternalLink("../../nowhere.h5", "/betas")


@parametrized(BETAS)
def test_odd_betas_of_ones_own_are_read_rightly_or_named(case, studies, tmp_path):
    tried(case, studies, tmp_path)


# -- events ----------------------------------------------------------------------------------------


def events_as(change: Callable, **options):
    return lambda own: write_responses(own.events, change(own.events_table), **options)


def cell(column: str, value: Any):
    def change(table):
        table[column] = table[column].astype(object)
        table.loc[3, column] = value
        return table

    return events_as(change)


def text_as(change: Callable[[str], str], encoding: str = "utf-8"):
    return lambda own: changed_text(own.events, change, encoding)


def other_case(table):
    return table.assign(stim_file=[name.upper() for name in table.stim_file])


def gap(table):
    return table.assign(session=table.session * 3)


TSV = ("events.tsv",)
EVENTS = [
    Case("byte-order-mark", text_as(str, "utf-8-sig"), "right"),
    Case("crlf", text_as(lambda text: text.replace("\n", "\r\n")), "right"),
    Case("commas", events_as(lambda t: t, sep=","), "right"),
    Case("semicolons", events_as(lambda t: t, sep=";"), "either", TSV),
    Case("blank-lines", text_as(lambda text: text + "\n\n"), "right"),
    Case("names-without-ending", events_as(lambda t: t.assign(
        stim_file=[name[:-4] for name in t.stim_file])), "right"),
    Case("names-with-folder", events_as(lambda t: t.assign(
        stim_file=["pictures/" + name for name in t.stim_file])), "either", TSV),
    Case("names-as-paths-upward", events_as(lambda t: t.assign(
        stim_file=["../../" + name for name in t.stim_file])), "either", TSV),
    Case("trial-type-only", events_as(lambda t: t.assign(trial_type=t.stim_file).drop(
        columns="stim_file")), "right"),
    Case("no-run", events_as(lambda t: t.drop(columns="run")), "either", TSV),
    Case("no-onset", events_as(lambda t: t.drop(columns="onset")), "right"),
    Case("no-duration", events_as(lambda t: t.drop(columns="duration")), "right"),
    Case("more-columns", events_as(lambda t: t.assign(Stimmung="gut")), "right"),
    Case("sessions-with-gap", events_as(gap), "right"),
    Case("no-picture-column", events_as(lambda t: t.drop(columns=["stim_file", "trial_type"])),
         says=(*TSV, "stim_file")),
    Case("no-such-column", lambda own: None, says=(*TSV, "mine"),
         how=lambda own: {"image_column": "mine"}),
    Case("header-only", events_as(lambda t: t[:0]), says=TSV),
    Case("no-header", events_as(lambda t: t, header=False), says=TSV),
    Case("a-line-less", events_as(lambda t: t[:-1]), says=("23", "24")),
    Case("a-line-twice", events_as(lambda t: t.iloc[[0, *range(len(t))]]), says=("25", "24")),
    Case("unknown-picture", cell("stim_file", "elephant.png"), says=(*TSV, "elephant.png")),
    Case("empty-picture", cell("stim_file", ""), says=TSV),
    Case("nan-picture", cell("stim_file", np.nan), says=TSV),
    Case("other-case", events_as(other_case), "either", TSV),
    Case("onset-is-text", cell("onset", "soon"), says=(*TSV, "onset")),
    Case("onset-is-nan", cell("onset", np.nan), says=(*TSV, "onset")),
    Case("onset-is-infinite", cell("onset", np.inf), says=(*TSV, "onset")),
    Case("session-is-empty", cell("session", ""), says=(*TSV, "session")),
    Case("run-is-empty", cell("run", ""), says=(*TSV, "run")),
    Case("utf-16", text_as(str, "utf-16"), says=TSV),
    Case("latin-1", text_as(lambda text: text.replace("duration", "Länge"), "latin-1"), says=TSV),
    Case("decimal-commas", text_as(lambda text: text.replace(".0", ",0")), says=TSV),
    Case("a-row-too-long", text_as(lambda text: text.rstrip() + "\t1\t2\t3\n"), says=TSV),
    Case("null-bytes", text_as(lambda text: text[:200] + "\0\0" + text[202:]), "either", TSV),
    Case("binary", lambda own: own.events.write_bytes(bytes(range(256))), says=TSV),
    Case("shown-once", events_as(lambda t: t.assign(stim_file="picture00.png")), says=("picture",)),
    Case("no-events", lambda own: None, says=("events",), how=lambda own: {"events": []}),
    Case("all-ignored", lambda own: None, says=("events",),
         how=lambda own: {"ignore": own.names}),
]  # fmt: skip


@parametrized(EVENTS)
def test_odd_events_are_read_rightly_or_named_with_the_field(case, studies, tmp_path):
    tried(case, studies, tmp_path)


# -- pictures, masks, captions, choices ------------------------------------------------------------


def picture_as(change: Callable[[Image.Image], Image.Image], **options):
    def damage(own: Own) -> None:
        with Image.open(picture(own)) as image:
            image.load()
            change(image).save(picture(own), **options)

    return damage


def renamed(name: str):
    def damage(own: Own) -> Own:
        target = own.root.parent / name
        shutil.move(own.root, target)
        return Own(target, own.form)

    return damage


def loop_of_folders(own: Own) -> None:
    (own.folder / "again").symlink_to(own.folder)


def mask_as(change: Callable[[np.ndarray], np.ndarray]):
    return lambda own: write_volume(own.mask, change(np.ones(own.space, np.float32)))


def captions_as(content: Any):
    return lambda own: own.captions.write_text(json.dumps(content), encoding="utf-8")


def bomb(own: Own) -> None:
    """A picture of 10^10 pixels in a few bytes."""
    content = bytearray(picture(own).read_bytes())
    struct.pack_into(">2I", content, 16, 100_000, 100_000)
    import zlib

    struct.pack_into(">I", content, 29, zlib.crc32(bytes(content[12:29])))
    picture(own).write_bytes(bytes(content))


PICTURE = ("picture03.png",)
REST = [
    Case("picture-gray", picture_as(lambda image: image.convert("L")), "right", looks=False),
    Case("picture-palette", picture_as(lambda image: image.convert("P")), "right", looks=False),
    Case("picture-transparent", picture_as(lambda image: image.convert("RGBA")), "right"),
    Case("picture-one-pixel", picture_as(lambda image: image.crop((0, 0, 1, 1))), "right",
         looks=False),
    Case("picture-long", picture_as(lambda image: image.resize((8, 3000))), "right", looks=False),
    Case("picture-is-jpeg", picture_as(lambda image: image, format="JPEG"), "right", looks=False),
    Case("picture-is-text", lambda own: picture(own).write_text("<svg/>"), says=PICTURE),
    Case("picture-bomb", bomb, says=PICTURE),
    Case("pictures-unicode", lambda own: (own.folder / "zBär ñ 脳.png").write_bytes(
        (own.folder / own.names[-1]).read_bytes()), "either", ("Bär",)),
    Case("pictures-hidden", lambda own: (own.folder / "._picture03.png").write_bytes(b"x"),
         "right"),
    Case("pictures-other-files", lambda own: (own.folder / "Thumbs.db").write_bytes(b"x"), "right"),
    Case("pictures-loop-of-folders", loop_of_folders, "right"),
    Case("pictures-none", lambda own: [p.unlink() for p in own.folder.iterdir()],
         says=("pictures",)),
    Case("pictures-missing", lambda own: shutil.rmtree(own.folder), says=("pictures",)),
    Case("pictures-same-name-twice", lambda own: shutil.copytree(own.folder, own.folder / "z"),
         "either", ("picture",)),
    Case("mask-of-another-size", mask_as(lambda m: m[:-1]), says=("mask.nii.gz",), form="nii.gz",
         how=with_mask),
    Case("mask-all-zero", mask_as(lambda m: m * 0), says=("mask.nii.gz",), form="nii.gz",
         how=with_mask),
    Case("mask-all-nan", mask_as(lambda m: m * np.nan), says=("mask.nii.gz",), form="nii.gz",
         how=with_mask),
    Case("mask-transposed", mask_as(lambda m: m.swapaxes(0, 1)), says=("mask.nii.gz",),
         form="nii.gz",
         how=with_mask),
    Case("mask-complex", mask_as(lambda m: m.astype(np.complex64)), says=("mask.nii.gz",),
         form="nii.gz", how=with_mask),
    Case("mask-for-table", lambda own: None, "right", form="npy", how=with_mask),
    Case("mask-for-table-of-another-size", mask_as(lambda m: m[:-1]), says=("mask.nii.gz",),
         how=with_mask),
    Case("captions-right", lambda own: None, "right", how=with_captions),
    Case("captions-a-list", captions_as([1]), says=("captions.json",), how=with_captions),
    Case("captions-of-unknown", captions_as({"elephant.png": ["a"]}), says=("elephant.png",),
         how=with_captions),
    Case("captions-of-numbers", captions_as({"picture00.png": [3]}), says=("picture00.png",),
         how=with_captions),
    Case("captions-a-number", captions_as({"picture00.png": 3}), says=("picture00.png",),
         how=with_captions),
    Case("captions-null", captions_as({"picture00.png": None}), says=("picture00.png",),
         how=with_captions),
    Case("captions-empty", captions_as({"picture00.png": []}), says=("picture00.png",),
         how=with_captions),
    Case("path-unicode", renamed("Gehirn 脳 ñ"), "right"),
    Case("path-with-hash", renamed("study #2"), "right"),
    Case("path-with-brackets", renamed("study [2] *"), "right"),
    Case("subject-0", lambda own: None, says=("subject",), how=lambda own: {"subject": 0}),
    Case("subject-100", lambda own: None, says=("subject",), how=lambda own: {"subject": 100}),
    Case("test-2", lambda own: None, says=("test",), how=lambda own: {"test": 2.0}),
    Case("test-unknown", lambda own: None, says=("x.png",), how=lambda own: {"test": ["x.png"]}),
    Case("test-everything", lambda own: None, says=("test",), how=lambda own: {"test": own.names}),
    Case("regions-of-another-size", lambda own: None, says=("V1",),
         how=lambda own: {"regions": {"V1": np.ones(3, bool)}}),
    Case("regions-of-numbers", lambda own: None, says=("V1",),
         how=lambda own: {"regions": {"V1": np.arange(36)}}),
    Case("ncsnr-of-another-size", lambda own: None, says=("ncsnr",),
         how=lambda own: {"ncsnr": np.ones(3)}),
    Case("ncsnr-of-text", lambda own: None, says=("ncsnr",),
         how=lambda own: {"ncsnr": np.array(["a"] * 36)}),
    Case("executor-unknown", lambda own: None, says=("grid",),
         how=lambda own: {"executor": "grid"}),
]  # fmt: skip


@parametrized(REST)
def test_odd_pictures_masks_captions_and_choices_are_taken_rightly_or_named(
    case, studies, tmp_path
):
    tried(case, studies, tmp_path)


def test_there_are_at_least_two_hundred_cases():
    assert len(damaged_files()) + len(BETAS) + len(EVENTS) + len(REST) >= 200
