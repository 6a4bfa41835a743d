"""Pictures that owe little or nothing to the test brain, to be scored beside those that claim to.

    pictures(out, root, 1, config)     name -> (images, 3, height, width), one per test picture
    brain(out)                         retrieval where every brain is held against a wrong picture

| name | what it is | a score above it shows |
|---|---|---|
| shuffled brains | our refined pictures, dealt to wrong test pictures | the brain matters |
| mean picture | the mean of the training pictures, always | more than a blur |
| nearest training picture | an album with the brain as index | painting, not finding |
| generator without the brain | unCLIP on tokens of random training pictures | more than noise |
| true image tokens | unCLIP on the test pictures' own tokens | nothing: a ceiling |

The album does read the brain, and the ceiling reads the picture itself. Read with notebook 12.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mindeye2_lite import encoders, metrics, nsd, pipeline, retrieval, unclip
from mindeye2_lite.config import Config
from mindeye2_lite.pipeline import Pictures, Reconstructions
from mindeye2_lite.train import HELD_OUT

NAMES = (
    "shuffled brains",
    "mean picture",
    "nearest training picture",
    "generator without the brain",
    "true image tokens",
)
AVERAGED = 500  # pictures of the mean picture, evenly spaced over all


def pictures(
    out: Reconstructions,
    root: str | Path,
    subject: int,
    config: Config,
    *,
    seed: int = 0,
    steps: int = 38,
    device: str | None = None,
    sessions: int | None = None,
) -> dict[str, Pictures]:
    """What each control shows in place of each test picture, by name.

    `sessions` as of the model that made `out`: the album holds what it was trained on, and the
    seven others' pictures. Source: ours.
    """
    device, person = device or pipeline.best_device(), nsd.Subject(root, subject)
    known = album(root, subject, config, out.image_ids, sessions=sessions)
    own = person.train(sessions=sessions).image_id.unique()
    options = {"guidance_scale": config.guidance_scale, "num_inference_steps": steps}
    decoder = unclip.load(config.decoder, device)
    strangers = np.random.default_rng(seed).choice(len(known.tokens), len(out.seen))
    tokens = known.tokens[torch.from_numpy(strangers)]
    without, ceiling = (
        pipeline.decode(
            decoder, given, torch.Generator().manual_seed(seed), progress=False, **options
        )
        for given in (tokens, out.image_tokens)
    )
    mean = person.images[own[:: max(1, len(own) // AVERAGED)]].mean(dim=0)
    found = nearest(out.retrieval_tokens, known.tokens)
    shown = (
        out.refined[torch.from_numpy(derangement(len(out.refined), seed))],
        mean.expand(len(out.seen), -1, -1, -1),
        person.images[known.image_ids[found]],
        without,
        ceiling,
    )
    return dict(zip(NAMES, shown, strict=True))


def brain(out: Reconstructions, *, seed: int = 0) -> dict[str, metrics.Score]:
    """Both retrieval scores of brains dealt to wrong pictures, as `pictures` deals them."""
    dealt = out.retrieval_tokens[torch.from_numpy(derangement(len(out.seen), seed))]
    return retrieval.retrieval(dealt, out.image_tokens, seed=seed).scores()


def album(
    root: str | Path,
    subject: int,
    config: Config,
    test_ids: Int[Tensor, " images"],
    *,
    sessions: int | None = None,
) -> encoders.Targets:
    """All pictures that training saw, the seven others' included, and none of the test.

    Their image tokens are those that training kept, where it has run on this machine.
    """
    people = {s: nsd.Subject(root, s) for s in range(1, 9)}
    own, first = people.pop(subject), people[min(people)]
    groups = (
        [own.train(sessions=sessions).image_id, own.test().image_ids[:HELD_OUT]],
        [*(p.train().image_id for p in people.values()), first.test().image_ids[:HELD_OUT]],
    )
    kept = [encoders.targets(own.images, torch.cat(ids), config, progress=False) for ids in groups]
    ids, tokens = (torch.cat([getattr(k, name) for k in kept]) for name in ("image_ids", "tokens"))
    ids, first_rows = np.unique(ids.numpy(), return_index=True)
    fair = ~np.isin(ids, test_ids.numpy())
    rows = torch.from_numpy(first_rows[fair])
    return encoders.Targets(torch.from_numpy(ids[fair]), tokens[rows])


def nearest(
    brain: Float[Tensor, "brains tokens dim"], known: Float[Tensor, "known tokens dim"]
) -> Int[Tensor, " brains"]:
    """For every brain the row of the picture whose tokens are nearest, by cosine."""
    return retrieval.similarities(brain, known).argmax(dim=1)


def derangement(n: int, seed: int) -> Int[np.ndarray, " n"]:
    """A wrong partner for each of n: one cycle through all of them in random order.

    ValueError if n is below 2, where there is no wrong partner.
    """
    if n < 2:
        raise ValueError(f"{n} pictures cannot be dealt to wrong ones: give at least two")
    order = np.random.default_rng(seed).permutation(n)
    dealt = np.empty(n, dtype=np.int64)
    dealt[order] = np.roll(order, 1)
    return dealt
