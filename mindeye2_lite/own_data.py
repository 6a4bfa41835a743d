"""Your own betas and pictures into the training layout of `layout.py`: any study, any size.

    split = from_arrays("out", betas, shown, "stimuli/", sessions=session, image_size=64)
    print(split)                      Proposed test split: 12 of 60 pictures (36 trials) ...
    Subject("out", 1)                 as with NSD

betas (trials, V) in any unit, shown (trials,) names of pictures, in the order of time. A picture's
`image_id` is its place among the sorted names, kept in `image_names.json`. Several people go into
one folder one after the other, if all saw pictures of the same set. Read with notebook 14.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from mindeye2_lite import own_split, paths
from mindeye2_lite.executors import workers
from mindeye2_lite.layout import (
    COLUMNS,
    IMAGE,
    SHARED,
    open_hdf5,
    read_records,
    reading,
    records_folder,
    subjects,
)
from mindeye2_lite.layout_writing import (
    Person,
    alone,
    is_written,
    resized,
    update_hdf5,
    write_images,
    write_person,
)
from mindeye2_lite.own_checks import (
    PerVoxel,
    Voxels,
    checked_betas,
    checked_shown,
    estimated_ncsnr,
    examined,
    numbered,
    per_voxel,
)
from mindeye2_lite.own_pictures import Pictures, open_pictures
from mindeye2_lite.own_split import Split

SUBJECT = COLUMNS.index("SUBJECT")
NAMES = "image_names.json"
EARLY_VISUAL = ("V1", "V2", "V3", "V4")


def from_arrays(
    root: str | Path,
    betas: Any,
    shown: Any,
    images: Any,
    *,
    sessions: Any = None,
    runs: Any = None,
    subject: int = 1,
    test: Any = None,
    captions: Mapping[Any, Sequence[str]] | None = None,
    regions: Mapping[str, Any] | None = None,
    position: Any = None,
    ncsnr: Any = None,
    image_size: int = 224,
    executor: str = "serial",
    progress: bool = True,
    seed: int = 0,
) -> Split:
    """Write one person's data below `root`, and say how they were divided.

    `betas`: (trials, V), an array, a memmap or an open HDF5 dataset. `shown`: which picture each
    trial showed, by name or number. `images`: a folder, a mapping name -> (H, W, 3) uint8, or an
    array (images, H, W, 3). `sessions`, `runs`: labels per trial; None: one. `test`: names of test
    pictures, a share of the pictures, or None for a proposal. `regions`: name -> (V,) bool;
    `position`: (V, 3) places x, y, z in a volume, from 0; `ncsnr`: (V,), else estimated where ten
    training pictures repeat.

    Voxels without a number in any trial are left out. Errors: ValueError or FileNotFoundError in
    one line; nothing half-written stays behind. A person who is there already is left alone.
    """
    root, shown = Path(root), checked_shown(shown)
    betas = checked_betas(betas, len(shown), portable=executor != "serial")
    pictures = open_pictures(images, image_size)
    image_id, subject = pictures.index(shown), _checked_subject(subject)
    session, _ = numbered("sessions", sessions, len(shown))
    run, trial = numbered("runs", runs, len(shown), session)
    known = per_voxel(regions, position, ncsnr, betas.shape[1])
    said = _captions(captions or {}, pictures)

    def divided() -> tuple[np.ndarray, list[str]]:
        people = People.of(root, subject, pictures)
        return people.test_pictures(test, pictures, image_id, session, seed)

    divided()  # a mistake is told before all betas are read
    voxels = examined(betas, session, progress)
    with alone(root, "people", wait=True):  # the next one keeps this one's test pictures
        chosen, notes = divided()
        run = np.where(runs is None, -1, run)
        table = _records(subject, image_id, session, run, trial, chosen)
        person = _person(table, voxels, known.ncsnr)
        is_written(root, person)  # do other betas of this person lie there?
        _write_pictures(root, pictures, said, progress)
        _write_common(root, person, pictures, known, voxels.keep)
        with tqdm(total=len(person.sessions), desc="sessions", disable=not progress) as bar:
            with workers(executor) as work:
                write_person(root, person, work, lambda _session: bar.update())
    notes += voxels.notes() + _about_ncsnr(person, known.ncsnr)
    return _split(root, person, int((~voxels.keep).sum()), not own_split.named(test), notes)


# -- the person ------------------------------------------------------------------------------------


def _checked_subject(subject: int) -> int:
    if not isinstance(subject, int | np.integer) or not 1 <= subject <= 99:
        raise ValueError(f"subject is {subject!r}: give a number from 1 to 99")
    return int(subject)


def _records(subject: int, image_id, session, run, trial, chosen) -> np.ndarray:
    """(trials, 17) records; -1 where your data say nothing."""
    table = np.full((len(image_id), len(COLUMNS)), -1.0)
    known = {"image_id": image_id, "SUBJECT": subject, "SESSION": session, "RUN": run}
    known |= {"TRIAL": trial, "global_trial": np.arange(len(image_id))}
    known |= {"shared": np.isin(image_id, chosen)}
    for name, values in known.items():
        table[:, COLUMNS.index(name)] = values
    return table


def _person(table: np.ndarray, voxels: Voxels, ncsnr: np.ndarray | None) -> Person:
    ncsnr = estimated_ncsnr(voxels, table) if ncsnr is None else ncsnr[voxels.keep]
    records = hashlib.sha256(table.tobytes()).hexdigest()[:12]
    recipe = {"betas": voxels.digest, "records": records}
    return Person(int(table[0, SUBJECT]), table, voxels, ncsnr, recipe, held_back=0)


def _about_ncsnr(person: Person, given: np.ndarray | None) -> list[str]:
    if given is not None:
        return []
    if person.ncsnr is None:
        return ["No noise ceiling: fewer than ten training pictures repeat."]
    return ["The noise ceiling (ncsnr) was estimated from training pictures that repeat."]


def _split(root: Path, person: Person, dropped: int, proposed: bool, notes: list[str]) -> Split:
    table = person.table
    test = table[:, SHARED] == 1
    images, counts = np.unique(table[test, IMAGE], return_counts=True)
    trained = len(np.unique(table[~test, IMAGE]))
    repeats = (int(counts.min()), int(counts.max()))
    trials = (int((~test).sum()), int(test.sum()))
    pictures = (trained, len(images))
    return Split(root, person.subject, *trials, *pictures, repeats, dropped, proposed, tuple(notes))


# -- what belongs to all people of a folder --------------------------------------------------------


@dataclass(frozen=True)
class People:
    """Who else lies in a folder, and which pictures they test and train on."""

    tested: Mapping[int, np.ndarray]
    trained: Mapping[int, np.ndarray]

    @classmethod
    def of(cls, root: Path, subject: int, pictures: Pictures) -> "People":
        """All but `subject`. ValueError where the folder holds other data or other pictures."""
        _check_folder(root, pictures)
        others = [s for s in subjects(root) if s != subject]
        folders = {s: records_folder(root, s) for s in others}
        tested = {s: read_records(f / "new_test" / "0.tar") for s, f in folders.items()}
        trained = {
            s: np.concatenate([read_records(tar) for tar in sorted((f / "train").glob("*.tar"))])
            for s, f in folders.items()
        }
        tested, trained = (
            {s: np.unique(rows[:, IMAGE]).astype(int) for s, rows in of.items()}
            for of in (tested, trained)
        )
        return cls(tested, trained)

    def test_pictures(
        self, test: Any, pictures: Pictures, image_id: np.ndarray, session: np.ndarray, seed: int
    ) -> tuple[np.ndarray, list[str]]:
        """image_ids to test on, and what there is to say about them."""
        tested, trained = _together(self.tested), _together(self.trained)
        if own_split.named(test):
            chosen = own_split.of_names(test, pictures, image_id)
            mixed = len(
                np.union1d(
                    np.intersect1d(chosen, trained),
                    np.setdiff1d(np.intersect1d(tested, image_id), chosen),
                )
            )
            text = f"{mixed} pictures test one person of this folder and train another."
            return chosen, [text] * bool(mixed)
        kept = np.intersect1d(tested, image_id)
        share = own_split.SHARE if test is None else test
        chosen = own_split.choose(image_id, session, share, set(trained.tolist()), kept, seed)
        text = f"{own_split.count(len(kept), 'test picture')} kept from other people here."
        return chosen, [text] * bool(len(kept))


def _together(of: Mapping[int, np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.empty(0, int), *of.values()]))


def _check_folder(root: Path, pictures: Pictures) -> None:
    names, sizes = root / NAMES, sorted(root.glob("coco_images_*_float16.hdf5"))
    if not names.exists():
        if sizes or subjects(root):
            raise ValueError(f"{root} holds data of another origin: choose another folder")
        return
    try:
        known = json.loads(names.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{names} is damaged: choose another folder, or delete it") from error
    if known != pictures.names:
        raise ValueError(
            f"{root} was made with {len(known)} pictures of other names than the "
            f"{len(pictures.names)} of {pictures.where}: give the same, or choose another folder"
        )
    other = [path.name for path in sizes if path != _images_file(root, pictures)]
    if other:
        raise ValueError(
            f"{root} has {other[0]}, not pictures of {pictures.size} pixels: give image_size as "
            "before, or choose another folder"
        )
    _check_same_pictures(_images_file(root, pictures), pictures)


def _images_file(root: Path, pictures: Pictures) -> Path:
    return root / f"coco_images_{pictures.size}_float16.hdf5"


def _check_same_pictures(path: Path, pictures: Pictures, looks: int = 8) -> None:
    """A few of what is kept, spread over all, against what is given now."""
    if not path.exists():
        return
    with open_hdf5(path) as file, reading(path):
        for index in np.unique(np.linspace(0, len(pictures.names) - 1, looks).astype(int)).tolist():
            now = resized(pictures(index, index + 1), pictures.size)[0]
            if not np.array_equal(file["images"][index], now):
                raise ValueError(
                    f"picture {pictures.names[index]!r} is not the one kept in {path}: choose "
                    "another folder, or delete that file"
                )


def _write_pictures(root: Path, pictures: Pictures, said: Mapping, progress: bool) -> None:
    with paths.write_beside(root / NAMES) as beside:
        beside.write_text(json.dumps(pictures.names), encoding="utf-8")
    number = len(pictures.names)
    with tqdm(total=number, desc="pictures", disable=not progress) as bar:
        write_images(root, pictures, number, pictures.size, bar.update)
    path = root / "captions.json"
    if said:
        with reading(path):
            before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        with paths.write_beside(path) as beside:
            beside.write_text(json.dumps(before | said), encoding="utf-8")


def _captions(captions: Mapping[Any, Sequence[str]], pictures: Pictures) -> dict[str, list[str]]:
    """image_id -> sentences. ValueError names a picture that is not there or has no sentence."""
    said = {}
    for name, sentences in captions.items():
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        if not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
            raise ValueError(f"the captions of {name!r} are {sentences!r}: expected sentences")
        said[str(int(pictures.index([name])[0]))] = sentences
    return said


def _write_common(
    root: Path, person: Person, pictures: Pictures, known: PerVoxel, keep: np.ndarray
) -> None:
    """Indices, test pictures of all people, regions and positions."""
    table, name = person.table, f"subj{person.subject:02d}"
    path = root / "shared1000.npy"
    shared = np.zeros(len(pictures.names), bool)
    if path.exists() and [s for s in subjects(root) if s != person.subject]:
        shared |= np.load(path, allow_pickle=False)
    shared[table[table[:, SHARED] == 1, IMAGE].astype(int)] = True
    with paths.write_beside(path) as beside, beside.open("wb") as file:
        np.save(file, shared)
    indices = {name: table[:, IMAGE].astype(np.int64)}
    update_hdf5(root / "COCO_73k_subj_indices.hdf5", indices)
    update_hdf5(root / "brain_region_masks.hdf5", {name: _regions(known.regions, keep)})
    if known.position is not None:
        update_hdf5(root / "voxels.hdf5", {name: {"position": known.position[keep]}})


def _regions(regions: Mapping[str, np.ndarray], keep: np.ndarray) -> dict[str, np.ndarray]:
    everything = np.ones(len(keep), bool)
    early = [regions[name] for name in EARLY_VISUAL if name in regions]
    known = {"nsd_general": everything, "higher_vis": ~np.any([~everything, *early], axis=0)}
    return {name: mask[keep] for name, mask in (known | dict(regions)).items()}
