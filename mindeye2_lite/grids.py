"""What the paper's table, its curves and its ablations consist of: cells, and how one is measured.

    SWEEPS["data-amount"].keys(config, seeds, subjects)     what tells its cells apart, in order
    SWEEPS["data-amount"].measure(config, root, key)        the rows of one cell

A cell is one model (or one older system) with one seed, and its rows are scores: stage, metric,
chance, which way is better, and a value per test picture. `sweeps.py` runs and keeps them.

| sweep | figure or table of the paper |
|---|---|
| paper-table | Table 1, and below it the controls |
| data-amount | Figures 5 to 8 |
| pretraining-people | Table 10 |
| input-layer, clip-target | Table 4 |
| loss-terms | Table 5 |
| backbone, statistics, prompts, unclip-ceiling | none: questions that it leaves open |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mindeye2_lite import (
    captions,
    encoders,
    nsd,
    pipeline,
    refine,
    retrieval,
    train,
    unclip,
    variants,
)
from mindeye2_lite.config import Config
from mindeye2_lite.metrics import Score
from mindeye2_lite.model import MindEye2

Key = dict[str, Any]  # what tells a cell apart, of JSON's types
Rows = list[dict[str, Any]]
PAPER = (1, 2, 5, 7)  # the people of the paper's tables: those who came to all sessions
ALL = 40  # sessions
STEPS = 38  # of unCLIP
AMOUNTS = ((1, 10), (1, 30), (1, None), (2, None), (4, None), (10, None), (20, None), (ALL, None))
OLDER = ("MindEye1", "Ozcelik & VanRullen", "Takagi & Nishimoto")


@dataclass(frozen=True)
class Sweep:
    """`about` in a line; the fields, keys and measure of its cells; whose data.

    `shares`: its cells have the same rows as cells of the same key in other sweeps that share.
    """

    about: str
    fields: tuple[str, ...]
    keys: Callable[[Config, Sequence[int], Sequence[int]], list[Key]]
    measure: Callable[..., Rows]
    subjects: tuple[int, ...] = (1,)
    shares: bool = False


def rows(stage: str, scores: Mapping[str, Score]) -> Rows:
    """A row per score."""
    return [
        {
            "stage": stage,
            "metric": name,
            "chance": score.chance,
            "better": score.better,
            "values": score.per_image,
        }
        for name, score in scores.items()
    ]


def pretraining(key: Key) -> tuple | None:
    """What a cell is pretrained on: cells of the same wait for the first of them. None: nothing."""
    if key.get("system") == "MindEye2":
        return key["subject"], key["seed"]
    if key.get("start"):
        return key["subject"], key["seed"], tuple(key["start"]), key["encoder"], key["backbone"]
    return None


def in_order(keys: Sequence[Key]) -> list[Key]:
    """Seed by seed, person by person, so that a table fills evenly and hardly a worker waits.

    Who trains the model that others start from comes first, then what starts from none, then what
    starts from that model: after the next person's first where there is nothing else meanwhile.
    """
    units: dict[tuple, list[Key]] = {}
    for key in sorted(keys, key=lambda key: key["seed"]):
        units.setdefault((key["seed"], key.get("subject")), []).append(key)
    order, waiting, known = [], [], set()
    for unit in units.values():
        leaders, free, followers = [], [], []
        for key in unit:
            needed = pretraining(key)
            (free if needed is None else followers if needed in known else leaders).append(key)
            known.add(needed)
        order += leaders + free + waiting
        waiting = followers
        if free:
            order, waiting = order + followers, []
    return order + waiting


# ---- the paper's table ---------------------------------------------------------------------------


def paper_keys(config: Config, seeds: Sequence[int], subjects: Sequence[int]) -> list[Key]:
    """MindEye2 after all sessions and after one, and three older systems after all."""
    systems = [("MindEye2", ALL), ("MindEye2", 1), *((name, ALL) for name in OLDER)]
    return [
        {"system": system, "sessions": sessions, "subject": subject, "seed": seed}
        for seed in seeds
        for subject in subjects
        for system, sessions in systems
    ]


def paper_cell(
    config: Config, root: Path, key: Key, *, steps: int = STEPS, limit: int | None = None
) -> Rows:
    """MindEye2's stages, retrieval and, after all sessions, its controls; or an older system."""
    if key["system"] != "MindEye2":
        return _older(config, root, key, limit)
    subject, seed, sessions = key["subject"], key["seed"], _sessions(key)
    model = pipeline.tuned(config, root, subject, sessions, seed=seed, progress=False).model
    person = nsd.Subject(root, subject)
    made = pipeline.reconstruct(
        model, person.test(sessions=sessions), person.images, config, subject=subject, limit=limit,
        seed=seed, steps=steps, progress=False,
    )  # fmt: skip
    stages = {"refined": made.refined, "unrefined": made.reconstruction, "low-level": made.blurry}
    brain = retrieval.retrieval(made.retrieval_tokens, made.image_tokens, seed=seed).scores()
    found = []
    if sessions is None:
        from mindeye2_lite import controls

        how = {"seed": seed, "steps": steps, "progress": False}
        stages |= controls.pictures(made, root, subject, config, **how)
        found = rows("shuffled brains", controls.brain(made, seed=seed))
    scored = (_scored(stage, x, made.seen, config, seed) for stage, x in stages.items())
    return sum(scored, []) + rows("brain", brain) + found


def _older(config: Config, root: Path, key: Key, limit: int | None) -> Rows:
    from mindeye2_lite import baselines, mindeye1

    make = {
        "MindEye1": mindeye1.mindeye1,
        "Ozcelik & VanRullen": baselines.ozcelik_vanrullen,
        "Takagi & Nishimoto": baselines.takagi_nishimoto,
    }[key["system"]]
    seed = key["seed"]
    how = {"sessions": _sessions(key), "seed": seed, "limit": limit, "progress": False}
    made = make(root, key["subject"], config, **how)
    seen = nsd.Subject(root, key["subject"]).images[made.image_ids]
    found = _scored("pictures", made.pictures, seen, config, seed)
    if made.retrieval_tokens is None:
        return found
    brain = retrieval.retrieval(made.retrieval_tokens, made.image_tokens, seed=seed)
    return found + rows("brain", brain.scores())


def _sessions(key: Key) -> int | None:
    return None if key["sessions"] == ALL else key["sessions"]


def _scored(
    stage: str, pictures: torch.Tensor | None, seen: torch.Tensor, config: Config, seed: int
) -> Rows:
    if pictures is None:
        return []
    return rows(stage, pipeline.score_pictures(pictures, seen, config, seed=seed))


# ---- curves and ablations ------------------------------------------------------------------------


def ablation_key(config: Config, subject: int, seed: int, **changed: Any) -> Key:
    """The line to compare with, ten sessions from scratch, with some of it changed."""
    usual = {"sessions": 10, "minutes": None, "start": None, "terms": "all"}
    usual |= {"first_layer": "ridge", "encoder": config.encoder, "backbone": config.backbone}
    return usual | {"normalize": "sessions"} | changed | {"subject": subject, "seed": seed}


def others(subject: int) -> list[int]:
    """The seven people beside this one."""
    return [person for person in range(1, 9) if person != subject]


Lines = Callable[[Config, int], list[dict[str, Any]]]


def _amounts(config: Config, subject: int) -> list[dict]:
    return [
        {"sessions": sessions, "minutes": minutes, "start": start}
        for start in (others(subject), None)
        for sessions, minutes in AMOUNTS
    ]


def _people(config: Config, subject: int) -> list[dict]:
    chosen = [others(subject), [s for s in PAPER if s != subject], [5 if subject != 5 else 2]]
    return [{"sessions": 1, "start": start} for start in chosen]


def _first_layers(config: Config, subject: int) -> list[dict]:
    return [{"first_layer": name} for name in ("ridge", "mlp")]


def _targets(config: Config, subject: int) -> list[dict]:
    return [{"encoder": c.encoder} for c in (config, variants.smaller_clip(config))]


def _terms(config: Config, subject: int) -> list[dict]:
    return [{"terms": name} for name in variants.TERMS]


def _backbones(config: Config, subject: int) -> list[dict]:
    return [{"backbone": name} for name in ("released", "residual")]


def _statistics(config: Config, subject: int) -> list[dict]:
    hour = {"sessions": 1, "start": others(subject)}
    return [hour | {"normalize": name} for name in ("sessions", "all")]


def _hour(config: Config, subject: int) -> list[dict]:
    return [{"sessions": 1, "start": others(subject)}]


def ablation_cell(config: Config, root: Path, key: Key, *, steps: int = STEPS) -> Rows:
    """Pictures before refinement, and retrieval, of a model that one thing is changed of."""
    config = _config(config, key)
    seed, test, model = key["seed"], _test(root, key), _fitted(config, root, key)
    brain, image_ids = train.brain_outputs(model, test, key["subject"])
    seen, device = nsd.Subject(root, key["subject"]).images[image_ids], pipeline.best_device()
    found, stages = [], variants.stages(key["terms"])
    if "unrefined" in stages:
        generator = torch.Generator().manual_seed(seed)
        tokens = pipeline.sample_prior(model, brain.tokens, generator)
        pictures = _decoded(config, tokens, generator, steps)
        found += _scored("unrefined", pictures, seen, config, seed)
    if "brain" in stages:
        encoder = encoders.image_encoder(config.encoder, device)
        image_tokens = pipeline.encode_seen(encoder, seen, device, through=config.score_size)
        scores = retrieval.retrieval(brain.retrieval, image_tokens, seed=seed).scores()
        found += rows("brain", scores)
    return found


def prompts_cell(config: Config, root: Path, key: Key, *, steps: int = STEPS) -> Rows:
    """Refined pictures, led by captions and led by nothing, with the same noise."""
    device, seed, model = pipeline.best_device(), key["seed"], _fitted(config, root, key)
    brain, image_ids = train.brain_outputs(model.to(device), _test(root, key), key["subject"])
    generator = torch.Generator().manual_seed(seed)
    tokens = pipeline.sample_prior(model, brain.tokens, generator)
    pictures = _decoded(config, tokens, generator, steps)
    said = captions.caption(captions.load(config.captioner, device), tokens)
    blurry = None
    if brain.low_level is not None:
        network = encoders.vae(config.vae, device)
        blurry = pipeline.decode_blurry(network, brain.low_level, device)
    seen, noise = nsd.Subject(root, key["subject"]).images[image_ids], generator.get_state()
    found = []
    for stage, prompts in (("refined", said), ("refined, empty prompt", [""] * len(said))):
        generator.set_state(noise)
        refined = pipeline.refine_pictures(
            refine.load(config.refiner, device), pictures, prompts, generator, progress=False
        )
        found += _scored(stage, refine.blend(refined, blurry), seen, config, seed)
    return found


def _config(config: Config, key: Key) -> Config:
    if key["encoder"] != config.encoder:
        config = variants.smaller_clip(config)
    return replace(config, backbone=key["backbone"])


def _test(root: Path, key: Key) -> nsd.Trials:
    person = nsd.Subject(root, key["subject"])
    return person.test(sessions=_sessions(key), normalize=key["normalize"])


def _fitted(config: Config, root: Path, key: Key) -> MindEye2:
    start = key["start"] and tuple(key["start"])
    how = {name: key[name] for name in ("minutes", "terms", "first_layer", "normalize", "seed")}
    sessions = _sessions(key)
    return variants.fit(
        config, root, key["subject"], sessions=sessions, start=start, progress=False, **how
    )


def _decoded(
    config: Config, tokens: torch.Tensor, generator: torch.Generator, steps: int
) -> torch.Tensor:
    how = {"guidance_scale": config.guidance_scale, "num_inference_steps": steps}
    decoder = unclip.load(config.decoder, pipeline.best_device())
    return pipeline.decode(decoder, tokens, generator, progress=False, **how)


# ---- the ceiling of unCLIP -----------------------------------------------------------------------


def ceiling_keys(config: Config, seeds: Sequence[int], subjects: Sequence[int]) -> list[Key]:
    """The two CLIPs, each with the decoder of its tokens."""
    names = [c.encoder for c in (config, variants.smaller_clip(config))]
    return [{"encoder": name, "seed": seed} for seed in seeds for name in names]


def ceiling_cell(config: Config, root: Path, key: Key, *, steps: int = STEPS) -> Rows:
    """Pictures of the true image tokens: of subject 1, but everybody saw the same."""
    config = _config(config, key | {"backbone": config.backbone})
    person, device = nsd.Subject(root, 1), pipeline.best_device()
    seen = person.images[person.test().image_ids]
    encoder = encoders.image_encoder(config.encoder, device)
    tokens = pipeline.encode_seen(encoder, seen, device, through=config.score_size)
    pictures = _decoded(config, tokens, torch.Generator().manual_seed(key["seed"]), steps)
    return _scored("true image tokens", pictures, seen, config, key["seed"])


# ---- all of them ---------------------------------------------------------------------------------

FIELDS = ("sessions", "minutes", "start", "terms", "first_layer", "encoder", "backbone")
FIELDS += ("normalize", "subject", "seed")


def _ablation(about: str, lines: Lines, measure: Callable = ablation_cell) -> Sweep:
    def keys(config: Config, seeds: Sequence[int], subjects: Sequence[int]) -> list[Key]:
        return [
            ablation_key(config, subject, seed, **line)
            for seed in seeds
            for subject in subjects
            for line in lines(config, subject)
        ]

    return Sweep(about, FIELDS, keys, measure, shares=measure is ablation_cell)


SWEEPS = {
    "paper-table": Sweep(
        "four systems, four people, MindEye2 also after one session, and controls",
        ("system", "sessions", "subject", "seed"), paper_keys, paper_cell, PAPER,
    ),
    "data-amount": _ablation("10 minutes to 40 sessions, from seven others or scratch", _amounts),
    "pretraining-people": _ablation("pretrained on seven people, three or one", _people),
    "input-layer": _ablation("MindEye2's ridge or MindEye1's MLP", _first_layers),
    "clip-target": _ablation("tokens of the larger or of the smaller CLIP", _targets),
    "loss-terms": _ablation("all loss terms or some", _terms),
    "backbone": _ablation("the released backbone or one with working blocks", _backbones),
    "statistics": _ablation("trials scaled by sessions in use or by all", _statistics),
    "prompts": _ablation("refinement led by captions or by nothing", _hour, prompts_cell),
    "unclip-ceiling": Sweep(
        "pictures of true image tokens", ("encoder", "seed"), ceiling_keys, ceiling_cell,
    ),
}  # fmt: skip
ABLATIONS = tuple(name for name in SWEEPS if name != "paper-table")
