"""From the Natural Scenes Dataset's own files to the training layout of `layout.py`.

`prepare` reads the raw tree (or a cohort of the same form) as it is downloaded:

| below the root | what | read by |
|---|---|---|
| `nsddata_betas/ppdata/subj01/func1pt8mm/betas_.../` | betas of each session | `nsd_sessions` |
| `nsddata/ppdata/subj01/func1pt8mm/roi/` | masks, regions, atlases | `nsd_masks` |
| `nsddata/ppdata/subj01/behav/responses.tsv` | button presses | `nsd_tables` |
| `nsddata/experiments/nsd/` | the design, COCO ids of the pictures | `nsd_tables` |
| `nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5` | the pictures | here |
| `annotations/captions_*.json` | COCO's captions, if there are any | here |

V = voxels of the mask (nsdgeneral, if nothing else is said), in C order of (x, y, z). Read with
notebook 01.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mindeye2_lite import nsd_masks, nsd_sessions, nsd_tables, paths
from mindeye2_lite.executors import workers
from mindeye2_lite.layout import IMAGE, SESSION, entry, open_hdf5, reading, there
from mindeye2_lite.layout_writing import (
    HELD_BACK,
    Person,
    alone,
    is_written,
    update_hdf5,
    write_images,
    write_person,
)

BETAS = "betas_fithrf_GLMdenoise_RR"  # NSD's third preparation ("b3")
VERSIONS = {"b1": "betas_assumehrf", "b2": "betas_fithrf", "b3": BETAS}
SPACES = ("func1pt8mm", "func1mm")
SCALE = nsd_sessions.SCALE
IMAGES = 73_000  # of NSD itself, whose eight people came so often (NSD Data Manual)
SESSIONS = dict(enumerate((40, 40, 32, 30, 40, 32, 40, 30), 1))


def prepare(
    raw_root: str | Path,
    out_root: str | Path,
    subjects: Iterable[int] | None = None,
    progress: bool = True,
    image_size: int | None = None,
    *,
    betas: str = "b3",
    space: str = "func1pt8mm",
    mask: str | Path | Sequence[str] = "nsdgeneral",
    executor: str = "serial",
) -> Path:
    """Turn NSD's own files into the training layout; returns its root.

    `betas`: b1, b2, b3 or NSD's folder name. `mask`: nsdgeneral, regions or a NIfTI file, as in
    `nsd_masks.choose`. `executor`: who reads sessions, as in `executors.workers`. `image_size`
    defaults to 224, or to the stimuli's own size where they are smaller. Statistics are those of
    each session's training trials.

    All that can be checked is checked before anything is written. Finished subjects and sessions
    are skipped, so a stopped run goes on; several processes may prepare different subjects into
    one folder. Errors: FileNotFoundError, ValueError in one line; nothing half-written stays.
    Official (`dataset_creation.ipynb`): differs from the published files; see book/differences.md.
    """
    tree, out = Tree(Path(raw_root), _folder(betas), _space(space)), Path(out_root)
    people = [_one(tree, subject, mask) for subject in tree.subjects(subjects)]
    persons = [one.person() for one in people]
    for person in persons:
        is_written(out, person)  # a ValueError where other choices made what is there
    pixels, captions = tree.bricks[1:3], _captions(tree)
    sizes = [_sizes(one.files) for one in people]
    total = sum(map(sum, sizes)) + tree.stimuli.stat().st_size
    with workers(executor) as run, _bar(total, progress) as bar:
        with alone(out, "common", wait=True):
            _write_common(tree, out, captions)
        for one, person, size in zip(people, persons, sizes, strict=True):
            bar.set_postfix_str(f"subject {person.subject}")
            done = partial(_session_done, bar, size)
            write_person(out, person, run, done, first=partial(_write_own, out, one))
        bar.set_postfix_str("pictures")
        with alone(out, "pictures", wait=True):
            for part in out.glob(".coco_images_*.part"):  # 22 GB that a killed run left
                part.unlink(missing_ok=True)
            _write_images(tree, out, image_size or min(224, *pixels), bar.update)
    return out


def _folder(betas: str) -> str:
    if betas not in (*VERSIONS, *VERSIONS.values()):
        choices = ", ".join(f"{short} ({folder})" for short, folder in VERSIONS.items())
        raise ValueError(f"betas {betas!r} are unknown: choose {choices}")
    return VERSIONS.get(betas, betas)


def _space(space: str) -> str:
    if space not in SPACES:
        raise ValueError(f"space {space!r} is unknown: choose {' or '.join(SPACES)}")
    return space


def _bar(total: int, progress: bool) -> tqdm:
    """Bytes are what a session of 1 GB and a picture of 500 kB have in common."""
    how = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    return tqdm(total=total, desc="prepare", disable=not progress, **how)


def _session_done(bar: tqdm, sizes: list[int], session: int) -> None:
    bar.update(sizes[session - 1])


def _sizes(files: list[Path]) -> list[int]:
    return [path.stat().st_size for path in files]


# -- what lies where -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """Where the files of a raw tree lie; `betas` and `space` are NSD's folder names."""

    root: Path
    betas: str
    space: str

    def subjects(self, asked: Iterable[int] | None) -> list[int]:
        """Those asked for, ascending, or all that have betas; an error says who is there."""
        folder = self.root / "nsddata_betas" / "ppdata"
        found = sorted(int(p.name[4:]) for p in folder.glob("subj[0-9][0-9]"))
        if not found:
            raise FileNotFoundError(
                f"no subjects in {folder}: is {self.root} the root of an NSD tree?"
            )
        if asked is None:
            return found
        asked = set(asked)
        missing = sorted(asked - set(found))
        if missing:
            raise FileNotFoundError(f"no subject {missing} in {folder}: there are {found}")
        return sorted(asked)

    def sessions(self, subject: int) -> list[Path]:
        """The betas of session 1, 2 ...: FileNotFoundError where one is missing in between."""
        space = self.root / "nsddata_betas" / "ppdata" / f"subj{subject:02d}" / self.space
        found: dict[int, Path] = {}
        for ending in reversed(nsd_sessions.ENDINGS):
            for path in (space / self.betas).glob(f"betas_session[0-9][0-9]{ending}"):
                found[int(path.name[13:15])] = path
        if not found:
            others = [
                p.relative_to(space.parent).as_posix() for p in space.parent.glob("*/betas_*")
            ]
            there_are = f"there are {', '.join(sorted(others))}" if others else "nor any others"
            raise FileNotFoundError(
                f"no betas_sessionNN.hdf5 or .nii.gz in {space / self.betas}: {there_are}"
            )
        for number in range(1, max(found) + 1):
            if number not in found:
                raise FileNotFoundError(
                    f"{space / self.betas}/betas_session{number:02d}.hdf5 is missing (or .nii.gz): "
                    f"there are sessions {sorted(found)}"
                )
        return [there(found[number]) for number in sorted(found)]

    def rois(self, subject: int) -> Path:
        return self.root / "nsddata" / "ppdata" / f"subj{subject:02d}" / self.space / "roi"

    def responses(self, subject: int) -> Path:
        return self.root / "nsddata" / "ppdata" / f"subj{subject:02d}" / "behav" / "responses.tsv"

    @property
    def experiment(self) -> Path:
        return self.root / "nsddata" / "experiments" / "nsd"

    @property
    def stimuli(self) -> Path:
        return self.root / "nsddata_stimuli" / "stimuli" / "nsd" / "nsd_stimuli.hdf5"

    @cached_property
    def bricks(self) -> tuple[int, ...]:
        """(images, height, width, 3) of the pictures; ValueError in one line if they are none."""
        with open_hdf5(self.stimuli) as file:
            found = entry(file, "imgBrick")
            shape, dtype = getattr(found, "shape", ()), getattr(found, "dtype", "a group")
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or 0 in shape:
            raise ValueError(
                f"{self.stimuli}: imgBrick has shape {shape} of {dtype}, expected (images, height, "
                "width, 3) of uint8"
            )
        return shape

    @cached_property
    def plan(self) -> nsd_tables.Design:
        return nsd_tables.design(self.experiment / "nsd_expdesign.mat", self.bricks[0])

    @cached_property
    def pictures(self) -> pd.DataFrame | None:
        """COCO's names for NSD's pictures; None where that table is not there."""
        path = self.experiment / "nsd_stim_info_merged.csv"
        return nsd_tables.stimuli(path, self.plan) if path.exists() else None


# -- one person ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class One:
    """One person's files, checked but for the betas themselves."""

    tree: Tree
    subject: int
    mask: nsd_masks.Mask
    files: list[Path]
    table: np.ndarray  # (trials, 17)
    labels: dict[str, np.ndarray]  # atlas -> (V,)
    ncsnr: np.ndarray  # (V,)
    held_back: int  # of the sessions that are there, those that NSD's older release had not

    @property
    def name(self) -> str:
        return f"subj{self.subject:02d}"

    def person(self) -> Person:
        """What `layout_writing` needs; the recipe names no place, the sources no folder."""
        recipe = {"betas": self.tree.betas, "space": self.tree.space}
        recipe |= {"mask": self.mask.name, "voxels": self.mask.fingerprint}
        stats = [path.stat() for path in self.files]
        sources = [
            [path.name, stat.st_size, stat.st_mtime_ns]
            for path, stat in zip(self.files, stats, strict=True)
        ]
        files = [path.absolute() for path in self.files]  # workers may stand elsewhere
        read = partial(_read_session, files, self.mask.inside)
        return Person(self.subject, self.table, read, self.ncsnr, recipe, sources, self.held_back)


def _read_session(files: list[Path], mask: np.ndarray, session: int) -> np.ndarray:
    return nsd_sessions.read(files[session - 1], mask)


def _one(tree: Tree, subject: int, mask: str | Path | Sequence[str]) -> One:
    files, rois = tree.sessions(subject), tree.rois(subject)
    table = nsd_tables.responses(tree.responses(subject), subject, len(files), tree.plan)
    chosen = nsd_masks.choose(rois, subject, mask)
    for session, path in enumerate(files, 1):
        trials = int((table[:, SESSION] == session).sum())
        if trials == 0:
            raise ValueError(
                f"{path} is there, but responses.tsv has no trials of session {session}"
            )
        nsd_sessions.check(path, trials, chosen.inside.shape, chosen.name)
    ncsnr = chosen.of(files[0].with_name("ncsnr.nii.gz")).astype(np.float32)
    labels = nsd_masks.labels(rois, chosen)
    held_back = _held_back(tree, subject, len(files))
    return One(tree, subject, chosen, files, table, labels, ncsnr, held_back)


def _held_back(tree: Tree, subject: int, loaded: int) -> int:
    """How many of the sessions that are there NSD's older release had not."""
    last = nsd_tables.last_session(tree.responses(subject))
    if tree.bricks[0] == IMAGES:  # its table may end with what was released
        last = max(last, SESSIONS.get(subject, last))
    return max(HELD_BACK - (last - loaded), 0)


# -- what belongs to all ---------------------------------------------------------------------------


def _write_own(out: Path, one: One) -> None:
    """A person's part of files that all share: regions, places, indices; fits the betas' mask."""
    regions = nsd_masks.regions(one.labels, len(one.mask.position))
    update_hdf5(out / "brain_region_masks.hdf5", {one.name: regions})
    update_hdf5(out / "voxels.hdf5", {one.name: _voxels(one)})
    indices = one.table[:, IMAGE].astype(np.int64)
    update_hdf5(out / "COCO_73k_subj_indices.hdf5", {one.name: indices})


def _write_common(tree: Tree, out: Path, captions: dict[str, list[str]] | None) -> None:
    """What belongs to all subjects: shared images, captions, true attributes."""
    with paths.write_beside(out / "shared1000.npy") as beside, beside.open("wb") as file:
        np.save(file, tree.plan.shared)
    if tree.pictures is not None:
        with paths.write_beside(out / "stimuli.csv") as beside:
            tree.pictures.to_csv(beside, index=False)
    if captions is not None:
        with paths.write_beside(out / "captions.json") as beside:
            beside.write_text(json.dumps(captions))
    for path in (tree.stimuli.with_name("attributes.npz"), tree.root / "provenance.json"):
        if path.exists():
            with paths.write_beside(out / path.name) as beside:
                shutil.copyfile(path, beside)


def _voxels(one: One) -> dict:
    """Where the V voxels lie, in which volume, and what each atlas calls them."""
    where = {"shape": one.mask.inside.shape, "affine": one.mask.affine, "space": one.tree.space}
    labels = {f"labels/{name}": values for name, values in one.labels.items()}
    return {"position": one.mask.position, **labels, "@": where}


def _captions(tree: Tree) -> dict[str, list[str]] | None:
    """COCO's annotations by 73k index; None where there are none."""
    files = sorted((tree.root / "annotations").glob("captions_*.json"))
    if not files:
        return None
    if tree.pictures is None:
        raise FileNotFoundError(
            f"{tree.experiment / 'nsd_stim_info_merged.csv'} is missing: it says which pictures "
            f"the captions in {files[0].parent} belong to"
        )
    image_of = dict(zip(tree.pictures.coco_id, tree.pictures.image_id, strict=True))
    captions: dict[str, list[str]] = {}
    for file in files:
        try:
            content = json.loads(there(file).read_text(encoding="utf-8-sig"))
            for annotation in content["annotations"]:
                text = annotation["caption"]
                if not isinstance(text, str):
                    raise TypeError(f"caption {text!r} is no text")
                if annotation["image_id"] in image_of:
                    index = str(image_of[annotation["image_id"]])
                    captions.setdefault(index, []).append(text)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{file} is no file of COCO captions ({why})") from error
    return captions


def _write_images(tree: Tree, out: Path, size: int, done: Callable[[float], object]) -> None:
    with open_hdf5(tree.stimuli) as source:
        bricks: h5py.Dataset = source["imgBrick"]
        each = tree.stimuli.stat().st_size / len(bricks)

        def read(first: int, last: int) -> np.ndarray:
            with reading(tree.stimuli):
                return bricks[first:last]

        write_images(out, read, len(bricks), size, lambda images: done(images * each))
