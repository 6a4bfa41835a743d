"""A person of NSD's size made of random numbers, to measure reading and preparing with.

`write_raw` writes what `nsd.prepare` reads, `write_released` what `nsd.Subject` reads. No voxel
means anything and pictures are left out where they can be: only sizes and forms are NSD's.

Forms of a session (source: NSD Data Manual): `.hdf5`, int16 = percent x 300, which h5py sees as
(750, Z, Y, X) with one uncompressed chunk per voxel, (750, 1, 1, 1); `.nii.gz` of (X, Y, Z, 750).
"""

import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
from scipy.io import savemat

from mindeye2_lite import nsd_raw
from mindeye2_lite.layout import COLUMNS, betas_file, records_folder
from mindeye2_lite.layout_writing import Person, update_hdf5, write_records

PEOPLE, SHOWINGS, RUNS = 8, 3, 12
ISOTROPIC = np.diag([1.8, 1.8, 1.8, 1])
SUBJECT = 1


@dataclass(frozen=True)
class Size:
    """How much there is of one person; as it stands, NSD's subject 1."""

    sessions: int = 40
    trials: int = 750  # of a session
    voxels: int = 15_724  # of nsdgeneral
    shape: tuple[int, int, int] = (81, 104, 83)  # x, y, z of func1pt8mm

    @property
    def rows(self) -> int:
        """Trials in all."""
        return self.sessions * self.trials

    @property
    def shown(self) -> int:
        """Pictures of a person, three showings each."""
        return -(-self.rows // SHOWINGS)

    @property
    def shared(self) -> int:
        """Pictures that all eight people saw."""
        return max(1, self.shown // 10)

    @property
    def images(self) -> int:
        """Pictures of all people: 73,000 in NSD."""
        return self.shared + PEOPLE * (self.shown - self.shared)


def brain(size: Size) -> np.ndarray:
    """nsdgeneral, (X, Y, Z) bool: the back of a shell. ValueError where it is too small."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in size.shape), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    back = np.where((radius < 1) & (radius > 0.66), y, np.inf)
    if size.voxels > (room := int(np.isfinite(back).sum())):
        raise ValueError(f"a volume {size.shape} has room for {room} voxels, not {size.voxels}")
    mask = np.zeros(size.shape, bool)
    mask.ravel()[np.argsort(back, axis=None, kind="stable")[: size.voxels]] = True
    return mask


def design(size: Size, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`shown` (8, pictures of a person), 73k index, shared ones first; `ordering` (trials,)."""
    rng = np.random.default_rng([seed, 1])
    index = rng.permutation(size.images)
    common, own = np.sort(index[: size.shared]), index[size.shared :].reshape(PEOPLE, -1)
    shown = np.stack([np.concatenate([common, np.sort(row)]) for row in own])
    return shown, rng.permutation(np.arange(size.rows) % size.shown)


def responses(size: Size, seed: int = 0) -> pd.DataFrame:
    """responses.tsv of the person, a row per trial; indices count from 1."""
    shown, ordering = design(size, seed)
    rng, n = np.random.default_rng([seed, 2]), size.rows
    session, within = np.divmod(np.arange(n), size.trials)
    starts = np.cumsum([0] + [len(p) for p in np.array_split(np.arange(size.trials), RUNS)])
    run = np.searchsorted(starts, within, side="right")
    showing = pd.Series(ordering).groupby(ordering).cumcount().to_numpy()
    old, says_old = showing > 0, rng.random(n) < 0.5
    table = {
        "SUBJECT": SUBJECT,
        "SESSION": session + 1,
        "RUN": run,
        "TRIAL": within - starts[run - 1] + 1,
        "73KID": shown[SUBJECT - 1, ordering] + 1,
        "10KID": ordering + 1,
        "TIME": 0.5 + 7 * session + (within * 4 + run * 90) / 86400,
        "ISOLD": old.astype(int),
        "ISCORRECT": (says_old == old).astype(int),
        "RT": rng.lognormal(np.log(850), 0.3, n),
        "CHANGEMIND": 0,
        "MEMORYRECENT": np.where(old, 1, np.nan),
        "MEMORYFIRST": np.where(old, 1, np.nan),
        "ISOLDCURRENT": 0,
        "ISCORRECTCURRENT": (~says_old).astype(int),
        "TOTAL1": (~says_old).astype(int),
        "TOTAL2": says_old.astype(int),
        "BUTTON": says_old + 1,
        "MISSINGDATA": 0,
    }
    return pd.DataFrame(table)


def stored(size: Size, session: int, seed: int = 0) -> np.ndarray:
    """A session's betas as on disk, (V, trials) int16."""
    rng = np.random.default_rng([seed, 3, session])
    return rng.integers(-900, 900, (size.voxels, size.trials), dtype=np.int16)


# -- NSD's own files -------------------------------------------------------------------------------


def write_raw(root: Path, size: Size, seed: int = 0) -> Path:
    """The raw tree of subject 1 below `root`; returns `root`. Pictures are black, 8 x 8."""
    mask = brain(size)
    _write_stimuli(root / "nsddata_stimuli" / "stimuli" / "nsd", size)
    _write_design(root / "nsddata" / "experiments" / "nsd", size, seed)
    ppdata = root / "nsddata" / "ppdata" / f"subj{SUBJECT:02d}"
    _write_regions(ppdata / "func1pt8mm" / "roi", mask)
    (ppdata / "behav").mkdir(parents=True, exist_ok=True)
    table = responses(size, seed)
    table.to_csv(ppdata / "behav" / "responses.tsv", sep="\t", index=False, na_rep="NaN")
    folder = betas_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.float32), ISOTROPIC), folder / "ncsnr.nii.gz")
    for session in range(1, size.sessions + 1):
        write_session(session_file(root, session), mask, stored(size, session, seed))
    return root


def betas_folder(root: Path) -> Path:
    """Where the sessions of a raw tree lie."""
    person = root / "nsddata_betas" / "ppdata" / f"subj{SUBJECT:02d}"
    return person / "func1pt8mm" / nsd_raw.BETAS


def session_file(root: Path, session: int) -> Path:
    """A session of a raw tree."""
    return betas_folder(root) / f"betas_session{session:02d}.hdf5"


def write_session(path: Path, mask: np.ndarray, betas: np.ndarray, whole: bool = False) -> None:
    """(V, trials) int16 in NSD's own form, one chunk per voxel, x fastest.

    Chunks outside the mask are left out, which h5py reads as 0: so 40 sessions take 1 GB instead
    of 42. `whole` writes them all.
    """
    trials, shape = betas.shape[1], mask.shape[::-1]
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(len(betas))
    number = number.T  # (Z, Y, X)
    places = np.ndindex(*shape) if whole else map(tuple, np.argwhere(number >= 0))
    nothing = bytes(betas.itemsize * trials)
    with h5py.File(path, "w") as file:
        chunks = (trials, 1, 1, 1)
        dataset = file.create_dataset("betas", (trials, *shape), betas.dtype, chunks=chunks).id
        for place in places:
            row = number[place]
            dataset.write_direct_chunk((0, *place), betas[row].tobytes() if row >= 0 else nothing)


def write_session_nifti(path: Path, mask: np.ndarray, betas: np.ndarray) -> None:
    """(V, trials) int16 as `.nii.gz` of (X, Y, Z, trials)."""
    volumes = np.zeros((betas.shape[1], *mask.shape[::-1]), betas.dtype)
    x, y, z = np.nonzero(mask)
    volumes[:, z, y, x] = betas.T
    nibabel.save(nibabel.Nifti1Image(volumes.transpose(3, 2, 1, 0), ISOTROPIC), path)


def _write_stimuli(folder: Path, size: Size) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "nsd_stimuli.hdf5", "w") as file:
        file.create_dataset("imgBrick", (size.images, 8, 8, 3), np.uint8)


def _write_design(folder: Path, size: Size, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shown, ordering = design(size, seed)
    common = shown[0, : size.shared]
    lengths = [len(part) for part in np.array_split(np.arange(size.trials), RUNS)]
    slots = [[np.arange(max(lengths)) < n for n in lengths]] * size.sessions
    showing = pd.Series(ordering).groupby(ordering).cumcount().to_numpy()
    showing = showing.reshape(size.sessions, size.trials)
    content = {
        "masterordering": ordering[None] + 1,
        "basiccnt": np.stack([(showing == n).sum(1) for n in range(SHOWINGS)]),
        "sharedix": common[None] + 1,
        "subjectim": shown + 1,
        "stimpattern": np.array(slots).astype(np.uint8),
    }
    savemat(folder / "nsd_expdesign.mat", content)
    index = np.arange(size.images)
    table = {"cocoId": 5 * index + 9, "cocoSplit": "train2017", "cropBox": "(0, 0, 0, 0)"}
    table |= {"loss": 0.0, "nsdId": index, "flagged": False, "BOLD5000": False}
    table["shared1000"] = np.isin(index, common)
    for person, own in enumerate(shown, 1):
        table[f"subject{person}"] = np.isin(index, own).astype(int)
    pd.DataFrame(table).to_csv(folder / "nsd_stim_info_merged.csv")


def _write_regions(folder: Path, mask: np.ndarray) -> None:
    """nsdgeneral, and labels of visual areas and streams in stripes of equal size."""
    folder.mkdir(parents=True, exist_ok=True)
    stripe = np.arange(mask.sum()) * 14 // max(mask.sum(), 1)  # 0 to 13
    labels = {
        "nsdgeneral": np.ones(len(stripe)),
        "prf-visualrois": np.where(stripe < 7, stripe + 1, 0),
        "streams": np.where(stripe < 7, 0, 5 + stripe % 3),
    }
    for name, values in labels.items():
        volume = np.zeros(mask.shape, np.int16)
        volume[mask] = values
        nibabel.save(nibabel.Nifti1Image(volume, ISOTROPIC), folder / f"{name}.nii.gz")


# -- the files of the release ----------------------------------------------------------------------


def write_released(root: Path, size: Size, seed: int = 0) -> Path:
    """Subject 1 as in the MindEye2 release below `root`, but for pictures; returns `root`."""
    root.mkdir(parents=True, exist_ok=True)
    person = Person(SUBJECT, records(size, seed), partial(scaled, size, seed))
    with h5py.File(betas_file(root, SUBJECT), "w") as file:
        betas = file.create_dataset("betas", (size.rows, size.voxels), np.float32)
        for session in person.sessions:
            last = session * size.trials
            betas[last - size.trials : last] = person.read(session)
    write_records(root, person)
    for path in records_folder(root, SUBJECT).rglob("*.tar"):
        _with_times(path)
    shared = np.zeros(size.images, bool)
    shared[design(size, seed)[0][0, : size.shared]] = True
    np.save(root / "shared1000.npy", shared)
    everything = {"nsd_general": np.ones(size.voxels, bool)}
    update_hdf5(root / "brain_region_masks.hdf5", {f"subj{SUBJECT:02d}": everything})
    return root


def _with_times(path: Path) -> None:
    """The same tar with a fraction of a second in every time, as webdataset's writer has it.

    Each then takes a pax header, 1 KB more a member: 36.6 MiB of `new_test`, as in the release.
    """
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, (member, content) in enumerate(members):
            member.mtime = 1.7e9 + number / 8 + 0.0625
            tar.addfile(member, io.BytesIO(content))


def scaled(size: Size, seed: int, session: int) -> np.ndarray:
    """A session's betas as if z-scored, (trials, V) float32."""
    rng = np.random.default_rng([seed, 4, session])
    return rng.standard_normal((size.trials, size.voxels), np.float32)


def write_pictures(root: Path, size: Size, images: Iterable[int], seed: int = 0) -> None:
    """The release's file of pictures, (images, 3, 224, 224), of which only `images` are written.

    The rest, 22 GB, is a hole, which takes no space where the file system knows holes.
    """
    with h5py.File(root / "coco_images_224_float16.hdf5", "w") as file:
        pictures = file.create_dataset("images", (size.images, 3, 224, 224), np.float16)
        rng = np.random.default_rng([seed, 5])
        for image in sorted(set(images)):
            pictures[image] = rng.random((3, 224, 224), np.float32)


def records(size: Size, seed: int = 0) -> np.ndarray:
    """(trials, 17) float64 as in `layout.COLUMNS`."""
    table = responses(size, seed)
    table["image_id"] = table["73KID"] - 1
    table["global_trial"] = np.arange(len(table))
    table["shared"] = table["10KID"] <= size.shared  # a person's shared pictures come first
    return table[list(COLUMNS)].fillna(-1).to_numpy(np.float64)
