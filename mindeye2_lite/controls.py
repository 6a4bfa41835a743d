"""Pictures and scores that can be had without reading the brain: what a number has to beat.

| control | whose picture it is | sees the test brain |
|---|---|---|
| shuffled brains | the refined pictures, each before another's test picture | another's |
| mean picture | the average of the person's training pictures, always | no |
| nearest training picture | of all training pictures the one whose image tokens are nearest | yes |
| generator without the brain | unCLIP, caption and refinement of a random training picture | no |
| true image tokens | unCLIP of the test picture's own tokens: the generator's ceiling | no |

Training pictures are those of fine-tuning and pretraining together (the mean: the person's own),
and never a test picture. All of it is ours but the last, which is the "ground truth" decoding of
the released unCLIP. Read with notebook 12.

    made = pictures(out, root, 1, config)        {control: (images, 3, height, width)}
    scores = pipeline.score_pictures(made["mean picture"], out.seen, config)
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mindeye2_lite import captions, encoders, metrics, nsd, overlap, pipeline, refine, retrieval
from mindeye2_lite import unclip as unclip_decoder
from mindeye2_lite.config import Config

NAMES = (
    "shuffled brains",
    "mean picture",
    "nearest training picture",
    "generator without the brain",
    "true image tokens",
)
BLOCK = 256  # pictures read at once for their mean
Pictures = Float[Tensor, "images 3 _ _"]


def pictures(
    out: pipeline.Reconstructions,
    root: str | Path,
    subject: int,
    config: Config,
    *,
    seed: int = 0,
    steps: int = 38,
    device: str | None = None,
    sessions: int | None = None,
    progress: bool = True,
) -> dict[str, Pictures]:
    """The five controls of these reconstructions, one picture per test image each, in [0, 1].

    `sessions` is what the model was fine-tuned on (None: all): later pictures are not training
    pictures. `steps` of unCLIP and `device` as in `pipeline.reconstruct`. The same seed gives the
    same pictures. ValueError if there are fewer than two test images, which cannot be shuffled.
    """
    device = device or pipeline.best_device()
    person, how = nsd.Subject(root, subject), {"sessions": sessions, "device": device}
    options = {"guidance_scale": config.guidance_scale, "num_inference_steps": steps}
    options |= {"progress": progress}
    decoder = unclip_decoder.load(config.decoder, device)
    others = random_tokens(person, config, len(out.seen), seed=seed, **how)
    return {
        "shuffled brains": out.refined[derangement(len(out.refined), seed)],
        "mean picture": mean_picture(person, sessions).expand_as(out.seen),
        "nearest training picture": person.images[nearest(out, root, subject, config, **how)],
        "generator without the brain": _refined(others, decoder, config, device, seed, options),
        "true image tokens": pipeline.decode(
            decoder, out.image_tokens, torch.Generator().manual_seed(seed), **options
        ),
    }


def brain(out: pipeline.Reconstructions, *, seed: int = 0) -> dict[str, metrics.Score]:
    """Retrieval, both ways, where every brain stands before another's picture: chance, measured.

    ValueError if there are fewer than two.
    """
    wrong = derangement(len(out.retrieval_tokens), seed)
    return retrieval.retrieval(out.retrieval_tokens[wrong], out.image_tokens, seed=seed).scores()


def derangement(n: int, seed: int = 0) -> Int[Tensor, " n"]:
    """An order of n things that leaves none in its place: one random cycle through all of them.

    ValueError for fewer than two things.
    """
    if n < 2:
        raise ValueError(f"{n} pictures cannot be shuffled: give at least two")
    cycle = np.random.default_rng([seed, 7]).permutation(n)
    order = np.empty(n, np.int64)
    order[cycle] = np.roll(cycle, 1)
    return torch.from_numpy(order)


def mean_picture(
    person: nsd.Subject, sessions: int | None = None
) -> Float[Tensor, "3 height width"]:
    """The average of the person's training pictures, each counted once."""
    ids = overlap.own_training_images(person, sessions)
    return (
        sum(person.images[some].double().sum(0) for some in ids.split(BLOCK)).div(len(ids)).float()
    )


def nearest(
    out: pipeline.Reconstructions,
    root: str | Path,
    subject: int,
    config: Config,
    *,
    sessions: int | None = None,
    device: str = "cpu",
) -> Int[Tensor, " images"]:
    """Numbers of the training pictures whose image tokens are nearest to what the brains say.

    Nearest by cosine to the retrieval tokens; all pictures that training used take part,
    pretraining included, none of the test. An album with an index: it paints nothing.
    """
    how = {"sessions": sessions, "device": device}
    album = overlap.token_blocks(root, subject, config, **how)
    return overlap.nearest(out.retrieval_tokens, album).image_ids


def random_tokens(
    person: nsd.Subject,
    config: Config,
    n: int,
    *,
    seed: int = 0,
    sessions: int | None = None,
    device: str = "cpu",
) -> Float[Tensor, "n tokens dim"]:
    """Image tokens of n training pictures of any person, drawn by the seed; no brain is asked."""
    ids = overlap.training_images(person.root, person.subject, sessions)
    rng = np.random.default_rng([seed, 3])
    drawn = ids[torch.from_numpy(rng.choice(len(ids), n, replace=n > len(ids)))]
    encoder = encoders.image_encoder(config.encoder, device)
    return pipeline.encode_seen(encoder, person.images[drawn], device, through=config.score_size)


def extremes(scores: np.ndarray, ties: np.ndarray, each: int = 3) -> dict[str, list[int]]:
    """Rows of the best, the middle and the worst `each` by score, equal scores by `ties`.

    Higher is better in both. For the book: two-way CLIP, ties by r of CLIP's features. ValueError
    if there are fewer than three times `each`.
    """
    if len(scores) < 3 * each:
        raise ValueError(f"{len(scores)} pictures have no {each} best, middle and worst: give more")
    order = np.lexsort([-ties, -scores])
    first = (len(order) - each) // 2
    parts = {"best": order[:each], "middle": order[first : first + each], "worst": order[-each:]}
    return {name: rows.tolist() for name, rows in parts.items()}


def _refined(
    tokens: Tensor, decoder: unclip_decoder.Decoder, config: Config, device: str, seed: int,
    options: dict,
) -> Pictures:  # fmt: skip
    """unCLIP, caption, refinement of image tokens; without a brain there is no blur to blend in."""
    generator, progress = torch.Generator().manual_seed(seed), options["progress"]
    decoded = pipeline.decode(decoder, tokens, generator, **options)
    sentences = captions.caption(captions.load(config.captioner, device), tokens)
    refiner = refine.load(config.refiner, device)
    return pipeline.refine_pictures(refiner, decoded, sentences, generator, progress=progress)
