"""Is a test picture, or one very much like it, among the pictures that training used?

Training means fine-tuning and pretraining: the person's own pictures and those of all others. A
picture is looked for by its number, by its pixels (Pearson's r at `SIDE` pixels) and by its image
tokens (cosine). As scenes are alike anyway, as many training pictures are held against the rest of
training in the same way: near-duplicates would be more alike than these. Read with notebook 12.

    found = overlap(root, 1, config)
    found.same        numbers that are in both; must be none
    found.table()     the largest similarities, of the test pictures and of training's own
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mindeye2_lite import encoders, layout, nsd, retrieval
from mindeye2_lite.config import Config
from mindeye2_lite.layout import IMAGE

SIDE = 32  # pixels at which pictures are compared
BLOCK = 512  # pictures at once
WATCHED = 30  # held-out pictures that training keeps the tokens of: train.HELD_OUT
DUPLICATE = 0.98  # from this r or cosine on, pictures are called near-duplicates: a choice

Ids = Int[Tensor, " images"]
Blocks = Iterable[tuple[Tensor, Tensor]]  # (numbers, rows to compare)


@dataclass(frozen=True)
class Nearest:
    """For each picture asked about, the most similar one there is, and how similar it is."""

    image_ids: Ids
    similarity: Float[Tensor, " images"]


@dataclass(frozen=True)
class Overlap:
    """Test pictures against training pictures, and training pictures against each other."""

    test: Ids
    training: int  # how many pictures training used
    same: list[int]  # numbers that are in both
    drawn: Ids  # training pictures that were held against the rest of training
    nearest: dict[str, Nearest]  # of the test pictures: by "pixels", by "tokens"
    among: dict[str, Nearest]  # of the drawn ones

    def duplicates(self, threshold: float = DUPLICATE) -> list[int]:
        """Test pictures to which a training picture is that similar in pixels or in tokens."""
        close = [found.similarity >= threshold for found in self.nearest.values()]
        return self.test[torch.stack(close).any(0)].tolist()

    def table(self) -> pd.DataFrame:
        """A row per measure and side: how many pictures, median and largest similarity."""
        rows = []
        for by in self.nearest:
            for side, found in (("test", self.nearest[by]), ("training", self.among[by])):
                values = found.similarity
                row = (by, side, len(values), float(values.median()), float(values.max()))
                rows.append((*row, int((values >= DUPLICATE).sum())))
        columns = ["by", "pictures", "n", "median", "largest", "near-duplicates"]
        return pd.DataFrame(rows, columns=columns).set_index(["by", "pictures"])


def overlap(
    root: str | Path,
    subject: int,
    config: Config,
    *,
    sessions: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Overlap:
    """Every test picture against all that training used, by number, pixels and image tokens.

    `sessions` is what the model was fine-tuned on (None: all). Image tokens of training pictures
    are those that training kept. `seed` draws as many training pictures as there are test pictures
    for the comparison.
    """
    person = nsd.Subject(root, subject)
    test, trained = held_out_images(person), training_images(root, subject, sessions)
    chosen = np.random.default_rng([seed, 5]).permutation(len(trained))[: len(test)]
    drawn = trained[torch.from_numpy(np.sort(chosen))]
    encoder, asked = encoders.image_encoder(config.encoder, device), torch.cat([test, drawn])
    pictures = person.images[asked]
    tokens = torch.cat([encoder(rows.to(device)).cpu() for rows in pictures.split(32)])
    found = {
        "pixels": nearest(_small(pictures), pixel_blocks(person.images, trained), own=asked),
        "tokens": nearest(
            tokens, token_blocks(root, subject, config, sessions=sessions, device=device), own=asked
        ),
    }
    first, rest = slice(len(test)), slice(len(test), None)
    return Overlap(
        test,
        len(trained),
        test[torch.isin(test, trained)].tolist(),
        drawn,
        *({by: Nearest(*(x[part] for x in _both(f))) for by, f in found.items()}
          for part in (first, rest)),
    )  # fmt: skip


def held_out_images(person: nsd.Subject) -> Ids:
    """Numbers of a person's test pictures, ascending; no betas are read."""
    return _numbers(person.records("new_test"))


def own_training_images(person: nsd.Subject, sessions: int | None = None) -> Ids:
    """Numbers of the pictures of a person's first `sessions` sessions (None: all), ascending."""
    return _numbers(person.records("train", sessions))


def training_images(root: str | Path, subject: int, sessions: int | None = None) -> Ids:
    """Numbers of all pictures that a model of this person was trained on, pretraining included.

    `sessions` of the person's own (None: all), and all of the others'.
    """
    own = own_training_images(nsd.Subject(root, subject), sessions)
    others = (nsd.Subject(root, s) for s in others_than(root, subject))
    return torch.cat([own, *map(own_training_images, others)]).unique()


def others_than(root: str | Path, subject: int) -> list[int]:
    """People below `root` that a model of this person is pretrained on: NSD's other seven."""
    return [s for s in layout.subjects(Path(root)) if s != subject and 1 <= s <= 8]


def nearest(
    asked: Float[Tensor, "images ..."], blocks: Blocks, *, own: Ids | None = None
) -> Nearest:
    """Of all rows in the blocks, the one with the largest cosine to each row of `asked`.

    `own` are the numbers of the asked: nobody is their own nearest. ValueError if there is nothing
    to find.
    """
    best, which = torch.full((len(asked),), -2.0), torch.full((len(asked),), -1)
    for ids, rows in blocks:
        similar = retrieval.similarities(asked, rows)
        if own is not None:
            similar[own[:, None] == ids] = -2
        value, place = similar.max(dim=1)
        better = value > best
        best, which = torch.where(better, value, best), torch.where(better, ids[place], which)
    if (which < 0).any():
        raise ValueError("no training picture to compare with: give a folder with training trials")
    return Nearest(which, best)


def pixel_blocks(images: nsd.Images, ids: Ids) -> Iterator[tuple[Tensor, Tensor]]:
    """(numbers, pictures) at SIDE pixels, each with mean 0, so that a cosine is Pearson's r."""
    for some in ids.split(BLOCK):
        yield some, _small(images[some])


def token_blocks(
    root: str | Path,
    subject: int,
    config: Config,
    *,
    sessions: int | None = None,
    device: str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """(numbers, image tokens) of all training pictures, from what training kept of them.

    Pictures that two trainings used come twice. Test pictures, of which training keeps a few to
    look at, are left out.
    """
    person = nsd.Subject(root, subject)
    people = [nsd.Subject(root, s) for s in others_than(root, subject)]
    runs = [[own_training_images(p) for p in people]] if people else []
    watched = [held_out_images(people[0])] if people else []
    runs.append([own_training_images(person, sessions)])
    test = held_out_images(person)
    for trained, seen in zip(runs, [*watched, test], strict=True):
        ids = torch.cat([*trained, seen[:WATCHED]])  # as training asked for them: the same file
        kept = encoders.targets(person.images, ids, config, device=device)
        rows = torch.arange(len(kept.image_ids))[~torch.isin(kept.image_ids, test)]
        for some in rows.split(BLOCK):
            yield kept.image_ids[some], kept.tokens[some].float()


def _small(pictures: Tensor) -> Tensor:
    small = F.adaptive_avg_pool2d(pictures, SIDE).flatten(1)
    return small - small.mean(1, keepdim=True)


def _both(found: Nearest) -> tuple[Tensor, Tensor]:
    return found.image_ids, found.similarity


def _numbers(records: np.ndarray) -> Ids:
    return torch.from_numpy(np.unique(records[:, IMAGE].astype(np.int64)))
