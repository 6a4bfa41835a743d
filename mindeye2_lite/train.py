"""Pretraining on seven people and fine-tuning on an eighth, by one loop.

Image tokens, VAE latents and the teacher's features are computed once per image (the released code
computes them again at every step), so what is trained here is MindEye2 alone: with `Config.lite()`
in minutes on two CPU cores. Runs on whatever `accelerate` finds. Read with notebooks 06 and 07.

    pretrained = load_or_train("pretrained", config, root)
    tuned = load_or_train("one-hour", config, root, subject=1, sessions=1, start=pretrained.model)
    outputs, image_ids = brain_outputs(tuned.model, Subject(root, 1).test(sessions=1), 1)
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn

from mindeye2_lite import __version__, encoders, paths
from mindeye2_lite.backbone import Output
from mindeye2_lite.config import Config
from mindeye2_lite.hardware import Hardware, accelerator
from mindeye2_lite.layout import GLOBAL_TRIAL, betas_name
from mindeye2_lite.loop import TERMS, Feed, Plan, Trainer, chosen_terms
from mindeye2_lite.model import MindEye2
from mindeye2_lite.nsd import Images, Subject, Trials
from mindeye2_lite.retrieval import Retrieval, retrieval

HELD_OUT = 30  # shared images that the progress bar's retrieval looks at
AFTER_TRAINING = ("decoder", "captioner", "refiner", "guidance_scale", "judges", "score_size")


class Run(NamedTuple):
    """A trained model, how it came about, and where both are kept (None: nowhere).

    `history["steps"]` has a row per step (loss, its terms not yet scaled, lr), `["checks"]` ten
    rows of held-out retrieval, `["seconds"]` the time it took.
    """

    model: MindEye2
    history: dict[str, Any]
    folder: Path | None


def pretrain(
    config: Config,
    root: str | Path,
    subjects: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    *,
    seed: int = 0,
    normalize: str = "sessions",
    **how: Any,
) -> Run:
    """Train ridge maps of these subjects and everything shared, on all of their sessions.

    Every batch holds the same number of trials of each. `how` is what `_train` takes: `folder`,
    `targets`, `progress`, `checkpoint_every`, `callback`, `hardware`, `partners` ("released": with
    the mistakes of `losses.ReleasedMix`), `terms` (of loop.SCALES: those that count). Official:
    `--multi_subject`.
    """
    people = {s: Subject(root, s) for s in sorted(subjects)}
    trials = {s: p.train(normalize=normalize) for s, p in people.items()}
    model = MindEye2.from_config(config, {s: p.num_voxels for s, p in people.items()}, seed=seed)
    per_epoch = config.trials_per_session * max(p.sessions for p in people.values())
    first = next(iter(people))
    held_out = people[first].test(normalize=normalize)
    settings = {"batch": config.pretrain_batch, "per_epoch": per_epoch, "seed": seed}
    settings["from"] = _source(config, root, people, None, normalize)
    return _train(
        model, config, people, trials, (first, held_out), settings, name="pretraining", **how
    )


def fine_tune(
    config: Config,
    root: str | Path,
    subject: int = 1,
    sessions: int | None = 1,
    *,
    start: MindEye2 | str | Path | None = None,
    seed: int = 0,
    normalize: str = "sessions",
    first: int | None = None,
    first_layer: Callable[..., nn.Module] | None = None,
    **how: Any,
) -> Run:
    """Train a model of one subject on the first `sessions` sessions (None: all).

    `start` is what to begin from: a pretrained model, the file it was saved to, or None for
    scratch. Everything is trained, as in the released code. `first` leaves only those training
    trials that are among the first so many of all, test trials counted; their voxels stay scaled as
    whole sessions are. `first_layer`, called with what SharedSubjectRidge takes, makes what comes
    in its place: from scratch, and kept in memory only. `how` as in `pretrain`. ValueError in one
    line where `start` has other sizes than the config.
    """
    if first_layer is not None and (start is not None or how.get("folder") is not None):
        raise ValueError("another first layer is trained from scratch only, and kept in no folder")
    person = Subject(root, subject)
    sessions = person.sessions if sessions is None else sessions
    trials = person.train(sessions=sessions, normalize=normalize)
    held_out = person.test(sessions=sessions, normalize=normalize)
    start = MindEye2.from_released(start) if isinstance(start, str | Path) else start
    model = _begin(config, start, subject, person.num_voxels, seed)
    if first_layer is not None:
        model.ridge = _fresh(first_layer, config, {subject: person.num_voxels}, seed)
    shown = len(trials) + int((held_out.session <= sessions).sum())  # sessions may be shorter
    if first is not None:
        trials, shown = first_trials(trials, held_out, first), min(first, shown)
    per_epoch = min(config.trials_per_session * sessions, shown)
    settings = {"batch": config.batch, "per_epoch": per_epoch}
    settings["seed"] = seed
    settings["from"] = _source(config, root, [subject], start, normalize)
    settings |= {} if first is None else {"first": first}
    del start  # as large as the model: not needed while that trains
    return _train(
        model,
        config,
        {subject: person},
        {subject: trials},
        (subject, held_out),
        settings,
        name=f"fine-tuning on {sessions} session{'s' * (sessions > 1)}",
        **how,
    )


def first_trials(trials: Trials, test: Trials, count: int) -> Trials:
    """The training trials among the first `count` trials, in time order, of both together.

    ValueError in one line where that leaves none.
    """
    when = [t.behavior[:, GLOBAL_TRIAL] for t in (trials, test)]
    before = torch.full((1,), -1.0, dtype=when[0].dtype)  # trials are counted from 0
    last = torch.cat([before, *when]).sort().values[: count + 1][-1]
    early = when[0] <= last
    if not early.any():
        raise ValueError(f"no trial to train on is among the first {count}: take more of them")
    return _where(trials, early)


def load_or_train(
    name: str, config: Config, root: str | Path, *, progress: bool = True, **how: Any
) -> Run:
    """What an earlier run of the same kind kept, or else a new run, kept under this name.

    With `subject=` it is fine-tuning, without it pretraining; `how` goes to that function. "The
    same kind" means the same config (as far as training uses it), data, networks, seed and start.
    Prints one line saying which of the two it was. ValueError where a launcher started several
    processes: they would wait for each other's lock.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "load_or_train is for one process: on several GPUs use mindeye2-lite train, or "
            "pretrain and fine_tune with folder="
        )
    start = how.get("start")
    if isinstance(start, str | Path):
        start = how["start"] = MindEye2.from_released(start)
    key = fingerprint(config, root, **how)
    folder = paths.runs(config.profile, f"{name}-{key}")
    with FileLock(folder / "training.lock"):  # a second process waits for what the first makes
        if _is_kept(folder):
            print(f"{name}: kept from an earlier run ({folder.name})")
            return _kept(folder)
        print(f"{name}: training now, kept for next time ({folder.name})")
        train = fine_tune if "subject" in how else pretrain
        return train(config, root, folder=folder, progress=progress, **how)


def fingerprint(config: Config, root: str | Path, **how: Any) -> str:
    """Twelve letters that change when a training run would come out differently."""
    start = how.get("start")
    how = how | {"start": _weights_hash(start) if isinstance(start, MindEye2) else start}
    hardware = (how.pop("hardware", None) or Hardware()).outcome()
    how = how if hardware is None else how | {"hardware": hardware}
    if chosen_terms(how.get("terms", TERMS)) == TERMS:  # as where nothing is said
        how.pop("terms", None)
    for outcome_free in ("callback", "checkpoint_every", "targets"):
        how.pop(outcome_free, None)
    data = _data_hash(sorted(Path(root).glob("*.hdf5")))
    return _hash(__version__, *_sizes_and_networks(config), sorted(how.items(), key=str), data)


@torch.no_grad()
def brain_outputs(
    model: MindEye2, trials: Trials, subject: int, *, batch: int = 32
) -> tuple[Output, Tensor]:
    """What the brain says of every image, averaged over its three repeats, and the image ids.

    The model's outputs are averaged, not the voxels (released code). Images are in ascending id;
    `batch` images go through at a time; everything comes back on the CPU.
    """
    device = model.backbone.backbone_linear.weight.device
    was_training = model.training
    model.eval()
    parts = []
    for voxels in trials.repeats(3).split(batch):  # (images, repeats, voxels)
        out = model(voxels.flatten(0, 1).to(device), subject)
        over_repeats = partial(_mean_over, repeats=voxels.shape[1])
        parts.append([None if x is None else over_repeats(x).cpu() for x in out])
    model.train(was_training)
    columns = zip(*parts, strict=True)
    return Output(*(None if c[0] is None else torch.cat(c) for c in columns)), trials.image_ids


def evaluate_retrieval(
    model: MindEye2, trials: Trials, subject: int, targets: Any, **how: Any
) -> Retrieval:
    """Retrieval both ways on these trials' images; `how` (pool, draws, seed) as in `retrieval`."""
    out, image_ids = brain_outputs(model, trials, subject)
    return retrieval(out.retrieval, targets.tokens[targets.index(image_ids)], **how)


def _train(
    model: MindEye2,
    config: Config,
    people: Mapping[int, Subject],
    trials: Mapping[int, Trials],
    held_out: tuple[int, Trials],
    settings: Mapping[str, int | str],
    *,
    name: str,
    folder: str | Path | None = None,
    targets: Any = None,
    progress: bool = True,
    checkpoint_every: int = 500,
    callback: Callable[[int, dict[str, float]], None] | None = None,
    hardware: Hardware | None = None,
    partners: str = "own",
    terms: Sequence[str] = TERMS,
) -> Run:
    """Set the loop up, run it, keep what came out in `folder` if there is one.

    Where the same training has kept its model there, that is returned. ValueError in one line where
    another one has.
    """
    hardware, folder = hardware or Hardware(), folder and Path(folder)
    here = accelerator(hardware)
    settings = dict(settings) | {"partners": partners, "processes": here.num_processes}
    if (terms := chosen_terms(terms)) != TERMS:
        settings["terms"] = terms
    made = _how(settings, sorted(trials), model, hardware)
    if folder and _is_kept(folder):
        _check_same(folder, made)
        here.print(f"already trained: {folder}")
        return _kept(folder)
    images = next(iter(people.values())).images
    _check_size(images, config)
    if targets is None:
        ids = torch.cat([t.image_id for t in trials.values()] + [held_out[1].image_ids[:HELD_OUT]])
        with here.main_process_first():
            device = str(here.device)
            targets = encoders.targets(images, ids, config, device=device, progress=progress)
    feed = Feed(trials, targets, settings["batch"], settings["seed"], here.device, partners)
    plan = Plan.of(config, settings["per_epoch"], feed.batch * here.num_processes)
    trainer = Trainer(
        model,
        feed,
        plan,
        here,
        settings["seed"],
        how=_hash(plan, made),
        folder=folder,
        check=partial(_top1, subject=held_out[0], trials=held_out[1], targets=targets),
        checkpoint_every=checkpoint_every,
        callback=callback,
        hardware=hardware,
        terms=terms,
    )
    history = trainer.run(progress, name) | {"made": made}
    model = trainer.trained()
    if folder and here.is_main_process:
        _keep(folder, model, history)
    return Run(model.eval(), history, folder)


def _check_size(images: Images | None, config: Config) -> None:
    if images is not None and images.shape[-1] != config.image_size:
        raise ValueError(
            f"{images.path} has pictures of {images.shape[-1]} pixels, profile {config.profile} "
            f"works with {config.image_size}: prepare the data with image_size={config.image_size} "
            "(a command: --image-size), or choose another profile"
        )


def _begin(
    config: Config, start: MindEye2 | None, subject: int, voxels: int, seed: int
) -> MindEye2:
    fresh = partial(MindEye2.from_config, config, {subject: voxels}, seed=seed)
    if start is None:
        return fresh()
    model = MindEye2.fine_tune_from(start, subject, voxels, seed=seed)
    with torch.device("meta"):
        expected = _shapes(fresh())
    wrong = [k for k, shape in _shapes(model).items() if expected.get(k) != shape]
    if wrong or len(expected) != len(_shapes(model)):
        key = (wrong or sorted(expected.keys() - _shapes(model).keys()))[0]
        raise ValueError(
            f"the model to start from has other sizes than the config: {key} is "
            f"{_shapes(model).get(key)}, the config says {expected.get(key)}"
        )
    return model


def _fresh(
    layer: Callable[..., nn.Module], config: Config, num_voxels: dict[int, int], seed: int
) -> nn.Module:
    """First weights that follow from the seed alone; nobody else's randomness is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return layer(num_voxels, config.hidden)


def _where(trials: Trials, here: Tensor) -> Trials:
    names = ("voxels", "image_id", "repeat", "session", "behavior")
    return Trials(**{name: getattr(trials, name)[here] for name in names})


def _top1(model: MindEye2, subject: int, trials: Trials, targets: Any) -> dict[str, float]:
    """Share of the first held-out images found among each other. For the progress bar only."""
    ids = trials.image_ids[:HELD_OUT]
    few = _where(trials, torch.isin(trials.image_id, ids))
    brain = brain_outputs(model, few, subject)[0].retrieval
    image = targets.tokens[targets.index(ids)]
    unit = [F.normalize(x.float().cpu().flatten(1), dim=-1) for x in (brain, image)]
    cosine, right = unit[0] @ unit[1].T, torch.arange(len(ids))
    found = {"brain_to_image": cosine.argmax(1), "image_to_brain": cosine.argmax(0)}
    return {name: (best == right).float().mean().item() for name, best in found.items()}


def _keep(folder: Path, model: MindEye2, history: Mapping[str, Any]) -> None:
    model.save(folder / "model.safetensors")
    with paths.write_beside(folder / "history.json") as beside:
        beside.write_text(json.dumps(history))
    (folder / "last.pt").unlink(missing_ok=True)


def _is_kept(folder: Path) -> bool:
    return (folder / "history.json").exists() and (folder / "model.safetensors").exists()


def _kept(folder: Path) -> Run:
    history = json.loads((folder / "history.json").read_text())
    return Run(MindEye2.from_released(folder / "model.safetensors").eval(), history, folder)


def _check_same(folder: Path, made: str) -> None:
    if json.loads((folder / "history.json").read_text()).get("made") != made:
        raise ValueError(
            f"{folder} keeps a model that was trained with other settings, data, start, precision "
            "or number of processes: give another folder, or delete this one to train again"
        )


def _source(
    config: Config, root: str | Path, people: Iterable[int], start: MindEye2 | None, normalize: str
) -> str:
    """What a training is made from. Of the data only the files that it reads: others may come."""
    names = [betas_name(s) for s in people] + [f"coco_images_{config.image_size}_float16"]
    files = [path for name in names if (path := Path(root, f"{name}.hdf5")).exists()]
    begun = None if start is None else _weights_hash(start)
    return _hash(*_sizes_and_networks(config), begun, normalize, _data_hash(files))


def _how(settings: Mapping, people: list[int], model: MindEye2, how: Hardware) -> str:
    """What a checkpoint or a kept model must agree on to be of the same training."""
    outcome = [] if how.outcome() is None else [how.outcome()]
    return _hash(dict(settings), people, _shapes(model), *outcome)


def _mean_over(x: Tensor, repeats: int) -> Tensor:
    return x.float().unflatten(0, (-1, repeats)).mean(dim=1)


def _shapes(model: MindEye2) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _weights_hash(model: MindEye2) -> str:
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _sizes_and_networks(config: Config) -> tuple[dict[str, Any], list[str]]:
    """The config as far as training uses it, and which frozen networks made the targets."""
    shipped = encoders.manifest()
    names = (config.encoder, config.vae, config.teacher)
    sizes = {k: v for k, v in asdict(config).items() if k not in AFTER_TRAINING}
    return sizes, [shipped.get(name, {}).get("sha256", name) for name in names]


def _data_hash(files: Sequence[Path]) -> str:
    """Names, sizes, first and last 64 KiB of the data files: enough to tell cohorts apart."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**16))
            file.seek(max(0, size - 2**16))
            digest.update(file.read())
    return digest.hexdigest()
