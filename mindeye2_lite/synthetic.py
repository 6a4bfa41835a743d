"""A synthetic cohort, one tenth of NSD, written in NSD's own files and formats.

Eight people, 40, 40, 32, 30, 40, 32, 40, 30 sessions of 75 trials, 7,300 scenes of which all saw
100, each shown three times. A model of an experiment, not data about brains: whatever comes from
it says so. What voxels do is in `voxel_model.py`; here are the design, the behavior and the files.

Spacing of repeats: every scene has a center on a circle of trials, each showing lies around it
(von Mises, concentration 4) or anywhere, 60 : 40. The form is that of Allen et al. 2022; the two
numbers are choices. Behavior (answers, reaction times): choices. How files are written:
`cohort_forms.py`. Read with notebook 01.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from mindeye2_lite import cohort_forms, nsd, nsd_raw, paths, scenes, voxel_model
from mindeye2_lite.config import Config

VERSION = 2  # of the voxels; a cohort of another version in the cache is made anew
NOTE = "synthetic cohort: a model of an experiment, not data about brains"
SESSIONS = {1: 40, 2: 40, 3: 32, 4: 30, 5: 40, 6: 32, 7: 40, 8: 30}
TRIALS, RUNS = 75, 12  # of a session
SHOWN, SHARED = 1000, 100  # scenes per person; of these seen by all
SHOWINGS = 3
CLOSE, CONCENTRATION = 0.6, 4.0  # share of showings near the scene's center; how near
LATER = ("voxels.hdf5", "stimuli.csv")  # a cohort prepared before there were these is outdated
FRESH = 60  # seconds after which a lock without a sign of life counts as left behind


@dataclass(frozen=True)
class Design:
    """Who sees what when; indices count from 0, NSD's files from 1."""

    sessions: dict[int, int]
    ordering: np.ndarray  # (trials,) the same for all: which of a person's scenes
    shown: np.ndarray  # (8, scenes of a person): 73k index; the shared ones first
    coco: np.ndarray  # (scenes,) COCO id
    num_shared: int

    def images(self, subject: int) -> np.ndarray:
        """73k index per trial of the sessions that the person came to."""
        trials = self.sessions[subject] * TRIALS
        return self.shown[subject - 1, self.ordering[:trials]]


def design(seed: int = 0, scale: float = 1.0) -> Design:
    """NSD's design divided by ten; `scale` divides sessions and scenes further, for tests."""
    rng = np.random.default_rng([seed, 1])
    sessions = {s: max(1, round(n * scale)) for s, n in SESSIONS.items()}
    shown = max(sessions.values()) * TRIALS // SHOWINGS
    shared = round(SHARED * shown / SHOWN)
    everything = shared + (shown - shared) * len(SESSIONS)
    index = rng.permutation(everything)
    common, own = np.sort(index[:shared]), index[shared:].reshape(len(SESSIONS), -1)
    return Design(
        sessions=sessions,
        ordering=_ordering(shown, rng),
        shown=np.stack([np.concatenate([common, np.sort(row)]) for row in own]),
        coco=np.sort(rng.choice(581_929, everything, replace=False) + 1),
        num_shared=shared,
    )


def _ordering(shown: int, rng: np.random.Generator) -> np.ndarray:
    center = rng.uniform(-np.pi, np.pi, shown)[:, None]
    near = center + rng.vonmises(0, CONCENTRATION, (shown, SHOWINGS))
    anywhere = rng.uniform(-np.pi, np.pi, (shown, SHOWINGS))
    place = np.where(rng.random((shown, SHOWINGS)) < CLOSE, near, anywhere) % (2 * np.pi)
    return np.repeat(np.arange(shown), SHOWINGS)[np.argsort(place, axis=None)]


def write_cohort(
    root: str | Path,
    seed: int = 0,
    subjects: Iterable[int] = range(1, 9),
    progress: bool = True,
    scale: float = 1.0,
    workers: int | None = None,
    sessions_as: str = "hdf5",
    design_as: str = "mat5",
) -> Path:
    """Write the raw NSD tree of the synthetic cohort below `root`; returns `root`.

    The same seed gives the same files. `subjects` says whose betas are written, `scale` makes the
    whole experiment smaller (.1: four sessions), `workers` is the number of processes that draw
    (None: one per core). `sessions_as` is hdf5, nsd-hdf5 or nii.gz, `design_as` mat5 or mat7.3:
    see `cohort_forms`.
    """
    root, subjects = Path(root), _known(subjects)
    cohort_forms.check_forms(sessions_as, design_as)
    plan = design(seed, scale)
    cohort = scenes.sample(len(plan.coco), _scene_seed(seed))
    with tqdm(total=len(subjects) + 2, desc="synthetic cohort", disable=not progress) as bar:
        pictures = _pictures(cohort, workers or (os.cpu_count() if scale == 1 else 1))
        bar.update()
        attributes = scenes.attributes(cohort)
        _write_stimuli(root, pictures, attributes)
        _write_captions(root, cohort, plan)
        _write_design(root, plan, design_as)
        seen = voxel_model.features(pictures, attributes)
        bar.update()
        for subject in subjects:
            _write_subject(root, _measured(subject, plan, seen, seed), sessions_as)
            bar.update()
    _write_provenance(root, seed, scale, subjects)
    return root


def write_released(
    root: str | Path,
    seed: int = 0,
    subjects: Iterable[int] = range(1, 9),
    scale: float = 1.0,
    workers: int | None = None,
) -> Path:
    """Write the same cohort as files of the MindEye2 release, without a detour; returns `root`.

    Shares nothing with `nsd.prepare`, which must make the same of the raw tree. `root` must be
    empty.
    """
    root, subjects = Path(root), _known(subjects)
    plan = design(seed, scale)
    cohort = scenes.sample(len(plan.coco), _scene_seed(seed))
    pictures = _pictures(cohort, workers or (os.cpu_count() if scale == 1 else 1))
    shared = np.isin(np.arange(len(cohort)), plan.shown[0, : plan.num_shared])
    cohort_forms.write_released_common(root, pictures, shared, map(scenes.captions, cohort))
    seen = voxel_model.features(pictures, scenes.attributes(cohort))
    for subject in subjects:
        person = _measured(subject, plan, seen, seed)
        cohort_forms.write_released_person(
            root, subject, person.stored, person.answers, person.where, shared
        )
    _write_provenance(root, seed, scale, subjects)
    return root


def _known(subjects: Iterable[int]) -> list[int]:
    subjects = sorted(subjects)
    unknown = sorted(set(subjects) - set(SESSIONS))
    if unknown:
        raise ValueError(f"subject {unknown} is unknown: the cohort has subjects 1 to 8")
    return subjects


def _scene_seed(seed: int) -> int:
    if not 0 <= seed < scenes.TRAINING_SEED:
        raise ValueError(
            f"seed {seed}: cohorts use 0 to {scenes.TRAINING_SEED - 1}, "
            "the others make the scenes that the miniatures were trained on"
        )
    return seed


def _pictures(cohort: list[scenes.Scene], workers: int, block: int = 100) -> np.ndarray:
    """The pictures, drawn by several processes: nine tenths of the time that a cohort takes."""
    parts = [cohort[i : i + block] for i in range(0, len(cohort), block)]
    return np.concatenate(Parallel(workers)(delayed(scenes.render)(part) for part in parts))


def _of(seen: voxel_model.Features, rows: np.ndarray) -> voxel_model.Features:
    arrays = (seen.maps[rows], seen.attributes[rows], seen.names, seen.middle[rows])
    return voxel_model.Features(*arrays)


# -- files of all people ---------------------------------------------------------------------------


def _write_stimuli(root: Path, pictures: np.ndarray, attributes: dict) -> None:
    folder = root / "nsddata_stimuli" / "stimuli" / "nsd"
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "nsd_stimuli.hdf5", "w") as file:
        file["imgBrick"] = pictures
    np.savez(folder / "attributes.npz", **attributes)  # the truth, which NSD cannot have


def _write_captions(root: Path, cohort: list[scenes.Scene], plan: Design) -> None:
    images = [{"id": int(c), "file_name": f"{c:012d}.jpg"} for c in plan.coco]
    texts = [
        (c, t) for c, scene in zip(plan.coco, cohort, strict=True) for t in scenes.captions(scene)
    ]
    annotations = [
        {"image_id": int(coco), "id": number, "caption": text}
        for number, (coco, text) in enumerate(texts)
    ]
    folder = root / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"info": {"description": NOTE}, "images": images, "annotations": annotations}
    (folder / "captions_train2017.json").write_text(json.dumps(content))


def _write_design(root: Path, plan: Design, form: str) -> None:
    folder = root / "nsddata" / "experiments" / "nsd"
    folder.mkdir(parents=True, exist_ok=True)
    shared = plan.shown[0, : plan.num_shared]
    longest = max(plan.sessions.values())
    by_session = _showing(plan.ordering).reshape(longest, TRIALS)
    counts = np.stack([(by_session == n).sum(1) for n in range(SHOWINGS)])
    slots = np.array([[np.arange(TRIALS // RUNS + 1) < n for n in _run_lengths()]] * longest)
    matrices = {
        "masterordering": plan.ordering[None] + 1,
        "basiccnt": counts,
        "sharedix": shared[None] + 1,
        "subjectim": plan.shown + 1,
        "stimpattern": slots.astype(np.uint8),
    }
    cohort_forms.write_design(folder / "nsd_expdesign.mat", matrices, form)
    _stimulus_table(plan, shared).to_csv(folder / "nsd_stim_info_merged.csv")


def _showing(images: np.ndarray) -> np.ndarray:
    """0 at the first showing of an image, 1 at the second, ..."""
    return pd.Series(images).groupby(images).cumcount().to_numpy()


def _run_lengths() -> list[int]:
    return [len(part) for part in np.array_split(np.arange(TRIALS), RUNS)]


def _stimulus_table(plan: Design, shared: np.ndarray) -> pd.DataFrame:
    """NSD's table, a row per image; a showing is the trial's number, 0 where there is none."""
    n = len(plan.coco)
    table = {
        "cocoId": plan.coco,
        "cocoSplit": "train2017",
        "cropBox": "(0, 0, 0, 0)",
        "loss": 0.0,
        "nsdId": np.arange(n),
        "flagged": False,
        "BOLD5000": False,
        "shared1000": np.isin(np.arange(n), shared),
    }
    for subject in SESSIONS:
        table[f"subject{subject}"] = np.isin(np.arange(n), plan.shown[subject - 1]).astype(int)
    for subject in SESSIONS:
        images = plan.shown[subject - 1, plan.ordering]
        for showing in range(SHOWINGS):
            column = np.zeros(n, int)
            here = np.flatnonzero(_showing(images) == showing)
            column[images[here]] = here + 1
            table[f"subject{subject}_rep{showing}"] = column
    return pd.DataFrame(table)


def _write_provenance(root: Path, seed: int, scale: float, subjects: list[int]) -> None:
    content = {"note": NOTE, "version": _version(), "seed": seed, "scale": scale}
    content["subjects"] = subjects
    (root / "provenance.json").write_text(json.dumps(content, indent=1))


# -- files of one person ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """What was measured of a person, before it takes the form of files."""

    subject: int
    where: voxel_model.Anatomy
    snr: np.ndarray  # (V,) ncsnr
    stored: np.ndarray  # (trials, V) int16, percent x 300
    answers: pd.DataFrame  # responses.tsv


def _measured(subject: int, plan: Design, seen: voxel_model.Features, seed: int) -> _Measured:
    """One person's betas and behavior; `seen` are all scenes."""
    rng = np.random.default_rng([seed, 2, subject])
    where = voxel_model.anatomy(subject, rng)
    signal = voxel_model.responses(_of(seen, plan.shown[subject - 1]), where, rng)
    snr = voxel_model.ncsnr(subject, where, rng)
    trials = plan.ordering[: plan.sessions[subject] * TRIALS]
    lengths = [TRIALS] * plan.sessions[subject]
    betas = voxel_model.measure(signal[trials], snr, lengths, where, rng)
    stored = np.clip(np.rint(betas * nsd_raw.SCALE), -32768, 32767).astype(np.int16)
    return _Measured(subject, where, snr, stored, _answers(subject, plan, rng))


def _write_subject(root: Path, person: _Measured, sessions_as: str) -> None:
    """Regions, ncsnr, betas and behavior; outside nsdgeneral volumes are 0."""
    ppdata, where = root / "nsddata" / "ppdata" / f"subj{person.subject:02d}", person.where
    regions = {"nsdgeneral": where.nsdgeneral, "prf-visualrois": where.visual}
    for name, volume in (regions | {"streams": where.streams}).items():
        cohort_forms.write_volume(ppdata / "func1pt8mm" / "roi" / f"{name}.nii.gz", volume)
    folder = root / "nsddata_betas" / "ppdata" / ppdata.name / "func1pt8mm" / nsd_raw.BETAS
    snr = np.zeros(voxel_model.SHAPE, np.float32)
    snr[tuple(where.places.T)] = person.snr
    cohort_forms.write_volume(folder / "ncsnr.nii.gz", snr)
    for session, first in enumerate(range(0, len(person.stored), TRIALS), 1):
        stored = person.stored[first : first + TRIALS]
        cohort_forms.write_session(folder, session, stored, where, sessions_as)
    (ppdata / "behav").mkdir(parents=True, exist_ok=True)
    table = ppdata / "behav" / "responses.tsv"
    person.answers.to_csv(table, sep="\t", index=False, na_rep="NaN")


def _answers(subject: int, plan: Design, rng: np.random.Generator) -> pd.DataFrame:
    """responses.tsv: was the image old, what was answered (1 new, 2 old), how fast."""
    images = plan.images(subject)
    n = len(images)
    session = np.arange(n) // TRIALS
    last, first = _trials_since(images)
    old = last >= 0
    fresh = old & (last < TRIALS)
    known = np.where(old, np.where(fresh, 0.93, 0.35 + 0.4 * np.exp(-last / (10 * TRIALS))), 0.18)
    says_old = rng.random(n) < known
    answered = rng.random(n) < 0.99
    run_start = np.cumsum([0, *_run_lengths()])
    within = np.arange(n) % TRIALS
    run = np.searchsorted(run_start, within, side="right")
    changed = answered & (rng.random(n) < 0.03)
    seen_this_session = _showing(session * (images.max() + 1) + images) > 0
    correct = says_old == old
    empty = np.full(n, np.nan)
    table = {
        "SUBJECT": subject,
        "SESSION": session + 1,
        "RUN": run,
        "TRIAL": within - run_start[run - 1] + 1,
        "73KID": images + 1,
        "10KID": plan.ordering[:n] + 1,
        "TIME": 0.5 + 7 * session + (within * 4 + run * 90) / 86400,  # days
        "ISOLD": old.astype(int),
        "ISCORRECT": np.where(answered, correct, np.nan),
        "RT": np.where(answered, rng.lognormal(np.log(850), 0.3, n).clip(250, 3900), np.nan),
        "CHANGEMIND": np.where(answered, changed, np.nan),
        "MEMORYRECENT": np.where(old, last, np.nan),
        "MEMORYFIRST": np.where(old, first, np.nan),
        "ISOLDCURRENT": seen_this_session.astype(int),
        "ISCORRECTCURRENT": np.where(answered, says_old == seen_this_session, np.nan),
        "TOTAL1": (answered & ~says_old).astype(int) + (changed & says_old),
        "TOTAL2": (answered & says_old).astype(int) + (changed & ~says_old),
        "BUTTON": np.where(answered, says_old + 1, empty),
        "MISSINGDATA": 0,
    }
    return pd.DataFrame(table)


def _trials_since(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trials between this one and the image's last and first showing; -1 where it is new."""
    trial = pd.Series(np.arange(len(images)))
    groups = trial.groupby(images)
    last = (trial - groups.shift(1) - 1).fillna(-1)
    first = (trial - groups.transform("first") - 1).where(last >= 0, -1)
    return last.to_numpy(), first.to_numpy()


# -- the cohort in the cache folder ----------------------------------------------------------------


def open_cohort(config: Config | None = None, progress: bool = True) -> Path:
    """The root of the training layout that `nsd.Subject` reads.

    A synthetic cohort is made in the cache folder, also where MINDEYE2_LITE_DATA is set, if it is
    missing or of an older version; notebooks that start at once wait for the first. Files there
    that are no synthetic cohort are left as they are. Real data are only looked for:
    FileNotFoundError says in one line what is missing.
    """
    config = config or Config.lite()
    makes = config.data == "synthetic"
    root = paths.cohort(config.profile) if makes else paths.data(config.profile)
    if makes and (_outdated(root) or not any(root.glob("betas_all_subj*"))):
        _make(root, progress)
    wanted = ["shared1000.npy", "wds", "brain_region_masks.hdf5"]
    wanted += [f"coco_images_{config.image_size}_float16.hdf5"]
    missing = [name for name in wanted if not (root / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{root} has no {', '.join(missing)}: run mindeye2_lite.nsd.prepare on an NSD tree, "
            "or set MINDEYE2_LITE_DATA to the folder of the released files"
        )
    return root


def true_attributes(root: str | Path) -> dict[str, np.ndarray]:
    """What is in each scene of a synthetic cohort, by 73k index: see `scenes.attributes`."""
    path = Path(root) / "attributes.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: only a synthetic cohort has true attributes")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _version() -> str:
    """Changes when the scenes look different or VERSION says that the voxels do."""
    look = scenes.render(scenes.sample(4, seed=0))
    return f"{VERSION}-{hashlib.sha256(look.tobytes()).hexdigest()[:12]}"


def _outdated(root: Path) -> bool:
    """Is this a synthetic cohort that another version of this package made?"""
    return _made_by(root) is not None and not _complete(root)


def _complete(root: Path) -> bool:
    return _made_by(root) == _version() and all((root / name).exists() for name in LATER)


def _made_by(root: Path) -> str | None:
    """The version that made this synthetic cohort; None where it is something else."""
    path = root / "provenance.json"
    return json.loads(path.read_text()).get("version") if path.exists() else None


def _make(root: Path, progress: bool) -> None:
    """Write raw tree and training layout beside, then rename the whole folder into place."""
    if root.exists() and any(root.iterdir()) and not _outdated(root):
        raise FileExistsError(f"{root} has files that are not a synthetic cohort: move them away")
    beside = root.with_name(f".{root.name}.{os.getpid()}.part")
    with _lock(root):
        if _complete(root):
            return
        try:
            write_cohort(beside / "raw", progress=progress)
            nsd.prepare(beside / "raw", beside, progress=progress)
            _replace(beside, root)
        except OSError as error:
            raise OSError(
                f"cannot write {root}: {error.strerror or error}. "
                "Free 1 GB, or set MINDEYE2_LITE_CACHE to another folder"
            ) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _replace(beside: Path, root: Path) -> None:
    """Rename, unless another process was faster; an older version goes first."""
    if _complete(root):
        return
    shutil.rmtree(root, ignore_errors=True)
    try:
        os.replace(beside, root)
    except OSError:
        if not _complete(root):
            raise


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Wait while another process makes the same cohort; a lock left behind is taken over."""
    lock = root.with_name(f".{root.name}.lock")
    while not _taken(lock):
        if _age(lock) > FRESH:
            shutil.rmtree(lock, ignore_errors=True)
        time.sleep(0.2)
    done = threading.Event()
    threading.Thread(target=_sign_of_life, args=(lock, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        shutil.rmtree(lock, ignore_errors=True)


def _taken(lock: Path) -> bool:
    try:
        lock.mkdir(parents=True)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        raise OSError(
            f"cannot write to {lock.parent}: {error.strerror}. "
            "Set MINDEYE2_LITE_CACHE to a folder with 1 GB free that you may write to"
        ) from error


def _sign_of_life(lock: Path, done: threading.Event) -> None:
    while not done.wait(FRESH / 10):
        with suppress(FileNotFoundError):
            os.utime(lock)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
