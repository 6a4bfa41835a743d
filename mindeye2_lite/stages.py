"""The pipeline one stage at a time, each kept on disk: for small cards, and machines that stop.

    run = Staged("last.pth", person.test(), person.images, Config.paper(), "kept", subject=1)
    run.retrieval()              both directions; needs the model and the image encoder, no decoder
    run.reconstruction()         (images, 3, 256, 256); the prior first, if it is not kept yet
    run.everything()             a `pipeline.Reconstructions`
    run.scores()                 the ten metrics

    brain ──► prior ──► reconstruction ──► refined ◄── blurry
      │         └─────► captions ────────────┘
    image_tokens (with brain: retrieval)

A stage loads its network, works, writes, and lets the network go before the next one comes, so a
card need only hold the largest. Pictures are written every `every` of them, with the state of the
random generator; what is there is read back, and a stage that was stopped goes on behind the last
file. Pictures are those of `pipeline.reconstruct`, whether it was stopped or not: to the last bit
on the CPU, for miniatures if `every` is a multiple of their batch of 32. Read with notebook 13.
"""

import gc
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from mindeye2_lite import (
    captions,
    encoders,
    metrics,
    nsd,
    paths,
    pipeline,
    refine,
    sdxl,
    train,
    unclip,
)
from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2
from mindeye2_lite.pipeline import Pictures, Reconstructions, Tokens
from mindeye2_lite.retrieval import Retrieval, retrieval
from mindeye2_lite.unclip_released import fingerprint

CAPTIONED = 128  # pictures that are captioned between two files
Part = dict[str, Tensor]
Make = Callable[[Any, Tensor, torch.Generator], Part]  # network, rows, generator -> what is kept


@dataclass(frozen=True)
class Staged:
    """One person's test pictures through one checkpoint, kept below `folder`.

    What is kept lies in a folder of its own for every checkpoint, person, their voxels and
    pictures, choice of networks, seed and number of pictures, so different runs cannot mix.
    `limit` takes the first test pictures, `every` says after how many pictures a decoder's work is
    written.
    """

    model_file: str | Path
    trials: nsd.Trials
    images: nsd.Images
    config: Config
    folder: str | Path
    subject: int = 1
    limit: int | None = None
    seed: int = 0
    steps: int = 38
    every: int = 32
    device: str | None = None  # None: the GPU where there is one, else the CPU
    progress: bool = True
    _said: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "device", self.device or pipeline.best_device())

    @cached_property
    def place(self) -> Path:
        """Where this run's stages are kept."""
        config, shipped = self.config, encoders.manifest()
        names = (config.encoder, config.vae, config.decoder, config.captioner, config.refiner)
        made_by = (
            fingerprint(Path(self.model_file)),
            [shipped.get(name, {}).get("sha256", name) for name in names],
            (self.subject, self.seed, self.steps, self.every, config.guidance_scale),
            self.image_ids.tolist(),
            *([config.score_size] if config.score_size else []),
            hashlib.sha256(self.trials.voxels.contiguous().numpy()).hexdigest(),
            hashlib.sha256(self.images[self.image_ids[:8]].numpy()).hexdigest(),
        )
        key = hashlib.sha256(repr(made_by).encode()).hexdigest()[:12]
        return Path(self.folder) / f"subj{self.subject:02d}-{key}"

    @cached_property
    def image_ids(self) -> Int[Tensor, " images"]:
        """The test pictures, in ascending id."""
        return self.trials.image_ids[: self.limit]

    @property
    def seen(self) -> Pictures:
        """What was shown."""
        return self.images[self.image_ids]

    # ---- stages --------------------------------------------------------------------------------

    def brain(self) -> Part:
        """The model's `tokens`, `retrieval` and, where it has that head, `low_level`, per image."""

        def make(model: MindEye2, rows: Tensor, _: torch.Generator) -> Part:
            out, _ids = train.brain_outputs(model, self.trials, self.subject)
            kept = {"tokens": out.tokens, "retrieval": out.retrieval, "low_level": out.low_level}
            return {name: x[: len(rows)] for name, x in kept.items() if x is not None}

        return self._stage("brain", self._model, make, every=len(self.image_ids))

    def image_tokens(self) -> Tokens:
        """Of the true pictures, for retrieval: needs the image encoder."""

        def make(encoder: encoders.ImageEncoder, rows: Tensor, _: torch.Generator) -> Part:
            pictures = self.images[self.image_ids[rows]]
            through = self.config.score_size
            return {"tokens": pipeline.encode_seen(encoder, pictures, self.device, through=through)}

        def load() -> encoders.ImageEncoder:
            return encoders.image_encoder(self.config.encoder, self.device)

        return self._stage("image tokens", load, make, every=len(self.image_ids))["tokens"]

    def retrieval(self, **how) -> Retrieval:
        """Brain against true pictures, both ways; `how` (pool, draws) as in `retrieval`."""
        return retrieval(self.brain()["retrieval"], self.image_tokens(), seed=self.seed, **how)

    def prior_tokens(self) -> Tokens:
        """Image tokens as the prior predicts them from the brain's."""
        tokens = self.brain()["tokens"]

        def make(model: MindEye2, rows: Tensor, generator: torch.Generator) -> Part:
            return {"tokens": pipeline.sample_prior(model, tokens[rows], generator)}

        every = pipeline.at_once(tokens)  # as `pipeline.reconstruct`, which draws as much at once
        return self._stage("prior", self._model, make, every=every)["tokens"]

    def reconstruction(self) -> Pictures:
        """unCLIP's pictures, from the prior's tokens."""
        tokens = self.prior_tokens()
        how = {"guidance_scale": self.config.guidance_scale, "num_inference_steps": self.steps}

        def make(decoder: unclip.Decoder, rows: Tensor, generator: torch.Generator) -> Part:
            made = pipeline.decode(decoder, tokens[rows], generator, progress=False, **how)
            return {"pictures": made}

        def load() -> unclip.Decoder:
            return unclip.load(self.config.decoder, self.device)

        return self._stage("reconstruction", load, make, after="prior")["pictures"]

    def captions(self) -> list[str]:
        """One sentence per picture, from the prior's tokens."""
        tokens = self.prior_tokens()

        def make(captioner: captions.Captioner, rows: Tensor, _: torch.Generator) -> Part:
            said = json.dumps(captions.caption(captioner, tokens[rows]))
            return {"json": torch.frombuffer(bytearray(said.encode()), dtype=torch.uint8)}

        def load() -> captions.Captioner:
            return captions.load(self.config.captioner, self.device)

        parts = self._parts("captions", load, make, every=CAPTIONED)
        return [said for part in parts for said in json.loads(bytes(part["json"].tolist()))]

    def blurry(self) -> Pictures | None:
        """The low-level head's pictures; None where the model has no such head."""
        latents = self.brain().get("low_level")
        if latents is None:
            return None

        def make(network: encoders.Vae, rows: Tensor, _: torch.Generator) -> Part:
            return {"pictures": pipeline.decode_blurry(network, latents[rows], self.device)}

        def load() -> encoders.Vae:
            return encoders.vae(self.config.vae, self.device)

        return self._stage("blurry", load, make, every=len(latents))["pictures"]

    def refined(self) -> Pictures:
        """Refined with the captions, and blended with the blurry pictures where there are any."""
        pictures, said = self.reconstruction(), self.captions()

        def make(refiner: refine.Refiner, rows: Tensor, generator: torch.Generator) -> Part:
            sentences = [said[row] for row in rows]
            few = pictures[rows]
            made = pipeline.refine_pictures(refiner, few, sentences, generator, progress=False)
            return {"pictures": made}

        def load() -> refine.Refiner:
            return refine.load(self.config.refiner, self.device)

        made = self._stage(self._refined, load, make, after="reconstruction")["pictures"]
        return refine.blend(made, self.blurry())

    def everything(self) -> Reconstructions:
        """All of it, as `pipeline.reconstruct` returns it."""
        brain = self.brain()
        return Reconstructions(
            self.image_ids,
            self.seen,
            self.blurry(),
            self.reconstruction(),
            self.refined(),
            self.captions(),
            brain["retrieval"],
            self.prior_tokens(),
            self.image_tokens(),
        )

    def scores(self, stage: str = "refined") -> dict[str, metrics.Score]:
        """The metrics of one stage's pictures, as `pipeline.score` computes them, kept too."""
        name = (self._refined if stage == "refined" else stage).replace(" ", "-")
        file = self.place / f"scores-{name}-{self.config.judges}.json"
        if there := file.exists():
            rows = json.loads(file.read_text(encoding="utf-8"))
            each = [row | {"per_image": np.array(row["per_image"])} for row in rows]
            scores = {row["name"]: metrics.Score(**row) for row in each}
        else:
            how = {"stage": stage, "seed": self.seed, "device": self.device}
            scores = pipeline.score(self.everything(), self.config, **how)
            rows = [asdict(s) | {"per_image": s.per_image.tolist()} for s in scores.values()]
            with paths.write_beside(file) as beside:
                beside.write_text(json.dumps(rows), encoding="utf-8")
        self._say(f"scores of {stage}", len(scores) * there, len(scores) * (not there))
        return scores

    # ---- keeping -------------------------------------------------------------------------------

    def _model(self) -> MindEye2:
        model = MindEye2.from_released(self.model_file, subjects=(self.subject,))
        return model.to(self.device).eval()

    @property
    def _refined(self) -> str:
        """Pictures by SDXL base, where the released checkpoint is not yet here, lie apart."""
        base = self.config.refiner == "sdxl" and not paths.assets(sdxl.CHECKPOINT).is_file()
        return "refined by base" if base else "refined"

    def _stage(self, name: str, load: Callable[[], Any], make: Make, **how) -> Part:
        parts = self._parts(name, load, make, **how)
        if len(parts) == 1:
            return parts[0]  # up to 7 GB, not to be copied
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _parts(
        self, name: str, load: Callable[[], Any], make: Make, *,
        every: int | None = None, after: str | None = None,
    ) -> list[Part]:  # fmt: skip
        """What a stage keeps, file by file; files that are missing are made now.

        `after` is the stage whose last draw of noise this one's first draw follows.
        """
        folder, network, parts = self.place / name.replace(" ", "-"), None, []
        files = torch.arange(len(self.image_ids)).split(every or self.every)
        todo = [i for i in range(len(files)) if not _file(folder, i).exists()]
        state = self._last_state(after) if todo else None
        for i, rows in enumerate(tqdm(files, name, disable=not (self.progress and todo))):
            if i in todo:
                network = network or load()
                generator = torch.Generator()
                generator.set_state(state)
                tensors = make(network, rows, generator)
                _write(_file(folder, i), tensors | {"generator": generator.get_state()})
            parts.append(_read(_file(folder, i)))
            state = parts[-1].pop("generator")
        if todo:
            del network
            forget()
        done = sum(len(files[i]) for i in todo)
        self._say(name, len(self.image_ids) - done, done)
        return parts

    def _last_state(self, stage: str | None) -> Tensor:
        if stage is None:
            return torch.Generator().manual_seed(self.seed).get_state()
        return _read(sorted((self.place / stage).glob("[0-9]*.safetensors"))[-1])["generator"]

    def _say(self, name: str, kept: int, made: int) -> None:
        """Once per stage, and whenever something was made."""
        if self.progress and (made or name not in self._said):
            self._said.add(name)
            parts = [f"{kept} kept"] * bool(kept) + [f"{made} made now"] * bool(made)
            print(f"{name}: {' and '.join(parts)}")


def forget() -> None:
    """Let go of the networks that loaders hold on to, and of the GPU's memory that they took."""
    from mindeye2_lite import released_networks, sdxl

    held = (encoders.image_encoder, encoders.vae, captions.load, sdxl.load)
    for loader in (*held, released_networks.teacher):
        loader.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:04d}.safetensors"


def _read(file: Path) -> Part:
    from safetensors.torch import load_file

    return load_file(file)


def _write(file: Path, tensors: Part) -> None:
    from safetensors.torch import save_file

    with paths.write_beside(file) as beside:
        save_file({name: x.contiguous() for name, x in tensors.items()}, beside)
