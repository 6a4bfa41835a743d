"""Which pictures test, where nobody fixed that: all repeats of a picture on one side.

Read with notebook 14.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

NOBODY = np.empty(0, int)
SHARE, FEWEST, ENOUGH = 0.1, 2, 10  # of the pictures; at least; at least where there are 50


@dataclass(frozen=True)
class Split:
    """How the trials of one person were divided, and what else there is to know of them."""

    root: Path
    subject: int
    train_trials: int
    test_trials: int
    train_images: int
    test_images: int
    repeats: tuple[int, int]  # fewest and most trials of a test picture
    dropped_voxels: int  # without a number in any trial
    proposed: bool  # by us, not by the caller
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        of = f"{self.test_images} of {self.test_images + self.train_images} pictures"
        word = "Proposed test split" if self.proposed else "Test split"
        chance = f"{100 / self.test_images:.1f}%"
        dropped = f"{count(self.dropped_voxels, 'voxel')} without a number in any trial left out."
        return " ".join(
            [
                f"{word}: {of} ({self.test_trials} trials), all their repeats; "
                "no picture is in both.",
                f"Training has {self.train_trials} trials of {self.train_images} pictures.",
                f"Chance for retrieval among {self.test_images}: {chance}.",
                *[dropped] * bool(self.dropped_voxels),
                *self.notes,
            ]
        )


def count(number: int, thing: str) -> str:
    """1 voxel, 2 voxels."""
    return f"{number} {thing}{'s' * (number != 1)}"


def choose(
    image_id: np.ndarray,
    session: np.ndarray,
    share: float = SHARE,
    barred: Collection[int] = (),
    kept: np.ndarray = NOBODY,
    seed: int = 0,
) -> np.ndarray:
    """image_ids to test on, sorted: the most repeated first, else drawn by the seed.

    About `share` of the pictures, but at least 2, 10 where there are 50, and never more than half
    of pictures or trials; no session is left without training trials if that can be avoided.
    Pictures in `barred` are not chosen, those in `kept` are, and others only where these are fewer
    than 2. ValueError where there is nothing to choose from.
    """
    images, counts = np.unique(image_id, return_counts=True)
    if len(images) < 2:
        raise ValueError(
            f"all {len(image_id)} trials show one picture: a test needs another than training"
        )
    if len(kept) == len(images):
        raise ValueError(
            "every picture that this person saw tests other people of this folder: name the test "
            "pictures yourself (test), or choose another folder"
        )
    if len(kept) >= FEWEST:
        return kept
    wanted = _how_many(len(images), share)
    drawn = np.random.default_rng(seed).permutation(len(images))
    drawn = drawn[np.argsort(-counts[drawn], kind="stable")]
    order = [int(i) for i in drawn if images[i] not in {*barred, *kept}]
    if not order and not len(kept):
        raise ValueError(
            "other people in this folder trained on every picture that this one saw: name the test "
            "pictures yourself (test), or choose another folder"
        )
    shows = {i: np.bincount(session[image_id == images[i]]) for i in order}
    chosen = _greedy(order, shows, np.bincount(session), counts, wanted)
    chosen = chosen or order[: len(kept) == 0]
    return np.union1d(kept, images[chosen]).astype(int)


def _how_many(pictures: int, share: float) -> int:
    fewest = ENOUGH if pictures >= 5 * ENOUGH and share == SHARE else FEWEST
    return max(1, min(max(fewest, round(share * pictures)), pictures // 2))


def _greedy(order, shows, left: np.ndarray, counts: np.ndarray, wanted: int) -> list[int]:
    """Takes pictures one by one; leaves out those that would empty a session of training trials."""
    chosen, left, half = [], left.copy(), counts.sum() / 2
    for i in order:
        here = shows[i]
        rest = left[: len(here)] - here
        emptied, trained = (rest[here > 0] == 0).any(), left.sum() - counts[i]
        if len(chosen) < wanted and not emptied and trained >= half:
            chosen.append(i)
            left[: len(here)] = rest
    return chosen


def named(test: Any) -> bool:
    """Does the caller name test pictures, rather than a share (0.1) or nothing (None)?

    ValueError for a number that is no share.
    """
    if test is None:
        return False
    if isinstance(test, str) or not isinstance(test, Real | Iterable):
        raise ValueError(f"test is {test!r}: give a share, or a list of pictures")
    if isinstance(test, Real) and not 0 < test < 1:
        raise ValueError(f"test is {test}: a share lies between 0 and 1 (a picture: [{test}])")
    return not isinstance(test, Real)


def of_names(test: Iterable, pictures: Any, image_id: np.ndarray) -> np.ndarray:
    """image_ids of the pictures that the caller named and that this person saw, sorted."""
    names = list(test)
    chosen = np.intersect1d(pictures.index(names), image_id)
    if not len(chosen):
        raise ValueError(f"none of the {len(names)} test pictures was shown")
    if len(chosen) == len(np.unique(image_id)):
        raise ValueError("all pictures that were shown are test pictures: none is left to train on")
    return chosen
