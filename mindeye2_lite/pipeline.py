"""Voxels in; pictures, captions and scores out: the whole of MindEye2 in the order of its figure 1.

    out = reconstruct(model, person.test(sessions=1), person.images, config, subject=1)
    out.seen, out.blurry, out.reconstruction, out.refined      (images, 3, height, width), in [0, 1]
    out.captions                                               one sentence per picture
    score(out, config)                                         the ten metrics

Read with notebooks 00 and 10.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mindeye2_lite import (
    captions,
    encoders,
    metrics,
    nsd,
    paths,
    refine,
    released,
    released_networks,
    retrieval,
    sdxl,
    synthetic,
    train,
    unclip,
)
from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2

KEPT = 256  # pixels: larger reconstructions are cut down to it, as the released code does
AT_ONCE = 2**22  # numbers that a network is given at once: 341 pictures of 64 pixels, 27 of 224
Pictures = Float[Tensor, "images 3 height width"]
Tokens = Float[Tensor, "images tokens dim"]


@dataclass(frozen=True)
class Reconstructions:
    """Every stage's picture of the same test images, in ascending image id."""

    image_ids: Int[Tensor, " images"]
    seen: Pictures
    blurry: Pictures | None  # from the low-level head; None where the model has none
    reconstruction: Pictures  # from unCLIP
    refined: Pictures  # after image-to-image with the caption, blended with blurry
    captions: list[str]
    retrieval_tokens: Tokens  # the brain's side of retrieval
    prior_tokens: Tokens  # image tokens as the prior predicts them
    image_tokens: Tokens  # of the true pictures

    def pictures(self) -> Iterator[tuple[str, Pictures]]:
        """(name, pictures) in the order of the book's grids."""
        for name in ("seen", "blurry", "reconstruction", "refined"):
            if (stage := getattr(self, name)) is not None:
                yield name, stage


def reconstruct(
    model: MindEye2,
    trials: nsd.Trials,
    images: nsd.Images,
    config: Config,
    *,
    subject: int = 1,
    limit: int | None = None,
    seed: int = 0,
    steps: int = 38,
    device: str | None = None,
    progress: bool = True,
) -> Reconstructions:
    """Reconstruct the test images of these trials, the first `limit` of them in ascending id.

    The three repeats go through the model one by one and its outputs are averaged; one sample of
    the prior, one picture of unCLIP, one refinement each, with noise from `seed`. Pictures larger
    than 256 pixels are kept at 256. Official: `recon_inference`, `enhanced_recon_inference` and the
    blend of `final_evaluations`. Networks stay loaded; `stages.Staged` makes the same pictures with
    one network in memory at a time, and goes on after a stop. Every network computes on `device`:
    None is the GPU where there is one, else the CPU. The model is moved there and back.
    """
    device, home = device or best_device(), model.backbone.backbone_linear.weight.device
    model.to(device)
    generator = torch.Generator().manual_seed(seed)
    brain, image_ids = train.brain_outputs(model, trials, subject)
    brain = type(brain)(*(None if x is None else x[:limit] for x in brain))
    image_ids = image_ids[:limit]
    seen = images[image_ids]
    prior_tokens = sample_prior(model, brain.tokens, generator)
    model.to(home)  # room for the decoders
    options = {"guidance_scale": config.guidance_scale, "num_inference_steps": steps}
    reconstruction = decode(
        unclip.load(config.decoder, device), prior_tokens, generator, progress=progress, **options
    )
    sentences = captions.caption(captions.load(config.captioner, device), prior_tokens)
    blurry = None
    if brain.low_level is not None:
        blurry = decode_blurry(encoders.vae(config.vae, device), brain.low_level, device)
    refined = refine_pictures(
        refine.load(config.refiner, device), reconstruction, sentences, generator, progress=progress
    )
    return Reconstructions(
        image_ids,
        seen,
        blurry,
        reconstruction,
        refine.blend(refined, blurry),
        sentences,
        brain.retrieval,
        prior_tokens,
        encode_seen(
            encoders.image_encoder(config.encoder, device), seen, device, through=config.score_size
        ),
    )


def best_device() -> str:
    """The GPU where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


# ---- the steps, each with the network that it needs ----------------------------------------------


@torch.no_grad()
def sample_prior(model: MindEye2, tokens: Tokens, generator: torch.Generator) -> Tokens:
    """Image tokens from the backbone's, on the CPU; on a GPU noise is drawn there, seeded here."""
    device, made = model.backbone.backbone_linear.weight.device, []
    for some in tokens.split(at_once(tokens)):
        own = generator
        if device.type != "cpu":
            seed = int(torch.randint(2**62, (), generator=generator))
            own = torch.Generator(device).manual_seed(seed)
        made.append(model.prior.sample(some.to(device), generator=own).cpu())
    return torch.cat(made)


def decode(decoder: unclip.Decoder, tokens: Tokens, generator: torch.Generator, **how) -> Pictures:
    """unCLIP's pictures, no larger than they are kept; `how` as in `unclip.decode`."""
    return no_larger(unclip.decode(decoder, tokens, generator=generator, **how))


def refine_pictures(
    refiner: refine.Refiner,
    pictures: Pictures,
    sentences: list[str],
    generator: torch.Generator,
    **how,
) -> Float[Tensor, "images 3 _ _"]:
    """Refined pictures, no larger than they are kept; `how` as in `refine.refine`."""
    return no_larger(refine.refine(refiner, pictures, sentences, generator=generator, **how))


def decode_blurry(network: encoders.Vae, latents: Tensor, device: str) -> Pictures:
    """The low-level head's pictures."""
    some = at_once(latents, 32)  # one number of a latent is 12 of a picture here, 48 at full size
    return torch.cat([network.decode(rows.to(device)).cpu() for rows in latents.split(some)])


def encode_seen(
    encoder: encoders.ImageEncoder, pictures: Pictures, device: str, *, through: int | None = None
) -> Tokens:
    """Image tokens of the true pictures: what retrieval finds, or is given.

    `through` is `Config.score_size`. Official: these are the pictures of the evaluation, stretched
    to 256 pixels; the encoder then shrinks them again, so that they are a little more blurred than
    those that the model was trained towards.
    """
    if through is not None:
        pictures = metrics.resize(pictures, through)
    parts = pictures.split(at_once(pictures))
    return torch.cat([encoder(rows.to(device)).cpu() for rows in parts])


def at_once(rows: Tensor, times: int = 1) -> int:
    """How many of these rows a network is given at once, so that a small card can hold it."""
    return max(1, AT_ONCE // max(1, times * rows[:1].numel()))


def no_larger(pictures: Pictures, side: int = KEPT) -> Float[Tensor, "images 3 _ _"]:
    """Pictures cut down to `side` pixels if they are larger, bilinearly, without antialiasing."""
    if pictures.shape[-1] <= side:
        return pictures
    return F.interpolate(pictures, side, mode="bilinear", align_corners=False)


def score(
    out: Reconstructions,
    config: Config,
    *,
    stage: str = "refined",
    seed: int = 0,
    device: str | None = None,
) -> dict[str, metrics.Score]:
    """The ten metrics of one stage's pictures, each with chance, n and a 95% interval.

    Retrieval belongs to the brain, not to a picture: it is the same for every stage. `device` as
    in `reconstruct`. ValueError if there is no such stage.
    """
    pictures = dict(out.pictures())
    if stage not in pictures or stage == "seen":
        names = ", ".join(name for name in pictures if name != "seen")
        raise ValueError(f"no stage {stage!r} to score: choose one of {names}")
    scores = score_pictures(pictures[stage], out.seen, config, seed=seed, device=device)
    found = retrieval.retrieval(out.retrieval_tokens, out.image_tokens, seed=seed)
    return scores | found.scores()


def score_pictures(
    pictures: Pictures,
    seen: Float[Tensor, "others 3 _ _"],
    config: Config,
    *,
    seed: int = 0,
    device: str | None = None,
) -> dict[str, metrics.Score]:
    """The eight scores of any pictures, wherever they come from: as `score` without retrieval.

    The judges and the size that all pictures pass through are the config's; with the judges "none"
    two scores are left. `device` as in `reconstruct`. ValueError as in `metrics.evaluate`.
    """
    device = device or best_device()
    judges = {
        name: lambda x, judge=judge: judge(x.to(device)).cpu()
        for name, judge in encoders.judges(config.judges, device).items()
    }
    how = {"seed": seed, "through": config.score_size}
    return metrics.evaluate(pictures, seen, judges, **how)


def run(
    config: Config,
    *,
    subject: int = 1,
    sessions: int | None = 1,
    images: int = 8,
    seed: int = 0,
    normalize: str = "sessions",
    device: str | None = None,
    start: str | Path | None = None,
    out: Path | None = None,
    progress: bool = True,
) -> Reconstructions:
    """From nothing to refined pictures: data, pretraining, fine-tuning, reconstruction, files.

    Everything that an earlier run kept is taken from there. `normalize` as in `nsd.Subject.test`:
    fewer than all sessions of the released files need "all". `device` as in `reconstruct`.
    `start` is the file of a fine-tuned model, a released one for instance: then nothing is
    trained. Given a folder `out`, writes a PNG per picture and stage, and captions.txt.
    FileNotFoundError in one line, before anything is trained, where a network is not here.
    """
    if images < 1:
        raise ValueError(f"images is {images}: ask for at least one test picture")
    root = synthetic.open_cohort(config, progress=progress)
    person = nsd.Subject(root, subject)
    # First, so that a wrong session is noticed before training.
    trials = person.test(sessions=sessions, normalize=normalize)
    model = None if start is None else opened(start, subject, person.num_voxels)
    look_for_networks(config, model)
    if model is None:
        how = {"seed": seed, "normalize": normalize, "progress": progress}
        model = tuned(config, root, subject, sessions, **how).model
    made = reconstruct(
        model, trials, person.images, config, subject=subject, limit=images, seed=seed,
        device=device, progress=progress,
    )  # fmt: skip
    if out is not None:
        write(made, Path(out))
    return made


def opened(start: str | Path, subject: int, voxels: int) -> MindEye2:
    """A fine-tuned model's file. ValueError in one line if it is not of that subject's voxels.

    Released files do not say whose they are: their only ridge map is taken for this subject's.
    """
    state, names = released.weights(start)
    model = MindEye2.from_released(state, names or (subject,)).eval()
    if (found := model.ridge.linear(subject).in_features) != voxels:
        raise ValueError(f"{start} takes {found} voxels, subject {subject} has {voxels}")
    return model


def look_for_networks(config: Config, model: MindEye2 | None = None) -> None:
    """Are all networks here that the config names? FileNotFoundError in one line if one is not.

    Without a model it is yet to be trained, which needs the teacher, too.
    """
    low_level = config.low_level if model is None else hasattr(model.backbone, "blin1")
    names = [config.encoder, config.decoder, config.captioner]
    names += [config.vae] if low_level else []
    names += [config.teacher] if low_level and model is None else []
    for name in names:
        released_networks.look_for(name)
    if config.refiner != "mini-sdxl":
        sdxl.look_for(config.refiner)


def tuned(
    config: Config, root: Path, subject: int, sessions: int | None, *, seed: int = 0,
    pretrained: bool = True, normalize: str = "sessions", progress: bool = True,
) -> train.Run:  # fmt: skip
    """A subject's fine-tuned model, from seven others' or from scratch, kept or trained now."""
    start = None
    # The key of the default stays. Pretraining has all sessions, where "all" is the same.
    how = {} if normalize == "sessions" else {"normalize": normalize}
    if pretrained:
        others = tuple(s for s in range(1, 9) if s != subject)
        start = train.load_or_train(
            "pretrained", config, root, subjects=others, seed=seed, progress=progress,
            **({} if normalize == "all" else how),
        ).model  # fmt: skip
    return train.load_or_train(
        "fine-tuned", config, root, subject=subject, sessions=sessions, start=start, seed=seed,
        progress=progress, **how,
    )  # fmt: skip


def write(made: Reconstructions, folder: Path) -> None:
    """One PNG per picture and stage, and the captions, into `folder`."""
    from torchvision.utils import save_image

    for stage, pictures in made.pictures():
        for image_id, picture in zip(made.image_ids.tolist(), pictures, strict=True):
            with paths.write_beside(folder / f"{image_id:05d}_{stage}.png") as beside:
                save_image(picture, beside, format="png")
    rows = zip(made.image_ids.tolist(), made.captions, strict=True)
    with paths.write_beside(folder / "captions.txt") as beside:
        beside.write_text("".join(f"{i:05d}\t{sentence}\n" for i, sentence in rows))
