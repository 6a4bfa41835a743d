"""Random batches of voxels and pictures out of the released files: the original's way, and ours.

The original's (`Train.py` of MindEye2): all betas in memory as float16; trials drawn from tars
through a buffer of 750; the pictures of a batch by h5py's fancy indexing, which wants ascending
numbers without repeats, so pictures are sorted, voxels follow them, and a batch that shows a
picture twice is thrown away. Ours: `nsd.Pairs`, which reads what is asked for.
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import torch
import webdataset
from torch import Tensor

from mindeye2_lite import nsd
from mindeye2_lite.layout import GLOBAL_TRIAL, IMAGE, betas_file, records_folder

BUFFER = 750  # trials among which the original draws
MEMBERS = ("behav.npy", "past_behav.npy", "future_behav.npy", "olds_behav.npy")
IMAGES = "coco_images_224_float16.hdf5"
Batch = tuple[np.ndarray, Tensor, Tensor]  # image ids, ascending; voxels; pictures


def stream(root: Path, subject: int, batch: int, seed: int = 42) -> Iterator[np.ndarray]:
    """Batches of (batch, 17) records as the original draws them, without end; seeded here."""
    tars = sorted((records_folder(root, subject) / "train").glob("*.tar"))
    drawn = np.random.default_rng(seed).integers(0, len(tars), 10_000)
    # one process, tars in the order drawn: nothing is left to chance or to the number of workers
    data = webdataset.WebDataset([str(tars[i]) for i in drawn], shardshuffle=False)
    data = data.shuffle(BUFFER, initial=2 * BUFFER, rng=random.Random(seed))
    data = data.decode("torch").to_tuple(*MEMBERS)
    for behavior, *_ in torch.utils.data.DataLoader(data, batch_size=batch, drop_last=True):
        yield behavior[:, 0].numpy()


def without_repeats(batches: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
    """Those batches that show no picture twice, by ascending picture; how many were thrown away."""
    thrown = 0
    for records in batches:
        ids, first = np.unique(records[:, IMAGE], return_index=True)
        if len(ids) == len(records):
            yield records[first], thrown
        else:
            thrown += 1


def images(root: Path, subject: int, batches: int, batch: int) -> list[int]:
    """Which pictures the original's first batches will show."""
    drawn = islice(without_repeats(stream(root, subject, batch)), batches)
    return [int(image) for records, _ in drawn for image in records[:, IMAGE]]


def original(root: Path, subject: int, batches: int, batch: int) -> dict:
    """Seconds of the original's way; see `_timed`. `trials`: what each batch was of."""
    began = time.perf_counter()
    with h5py.File(betas_file(root, subject)) as file:
        betas = torch.tensor(file["betas"][:]).to(torch.float16)
    loaded = time.perf_counter() - began
    drawn, waited, seen = without_repeats(stream(root, subject, batch)), [], []
    with h5py.File(root / IMAGES) as file:

        def read(number: int) -> Batch:
            ids, trials = seen[number][0][:, [IMAGE, GLOBAL_TRIAL]].T.astype(np.int64)
            return ids, betas[trials], torch.tensor(file["images"][ids]).float()

        def draw() -> Batch:
            asked = time.perf_counter()
            seen.append(next(drawn))
            waited.append(time.perf_counter() - asked)
            return read(len(seen) - 1)

        found = _timed(began, draw, read, batches)
    trials = [records[:, GLOBAL_TRIAL].astype(np.int64).tolist() for records, _ in seen]
    found |= {"loaded": loaded, "first_records": waited[0], "thrown": seen[-1][1]}
    rest = np.subtract(found["each"], waited[1:]).tolist()
    return found | {"each_without_records": rest, "trials": trials}


def ours(root: Path, subject: int, trials: list[list[int]]) -> dict:
    """Seconds of our way for the same trials, by their place in the betas; see `_timed`."""
    began = time.perf_counter()
    pairs = nsd.Pairs(nsd.Subject(root, subject))
    opened = time.perf_counter() - began
    place = {int(trial): row for row, trial in enumerate(pairs.behavior[:, GLOBAL_TRIAL])}
    rows = [[place[trial] for trial in batch] for batch in trials]
    numbers = iter(range(len(rows)))

    def read(number: int) -> Batch:
        pair = pairs[rows[number]]
        return pair.image_id.numpy(), pair.voxels, pair.image

    began = time.perf_counter() - opened  # the translation above is the benchmark's own
    return _timed(began, lambda: read(next(numbers)), read, len(rows)) | {"opened": opened}


def _timed(
    began: float, draw: Callable[[], Batch], again: Callable[[int], Batch], batches: int
) -> dict:
    """`first`: seconds until the first batch; `each`: of those after it; `again`: once more each.

    `digests`: of every batch's pictures' ids, voxels in float16 and pictures.
    """
    found: dict[str, list] = {"each": [], "again": [], "digests": []}
    made = draw()
    first = time.perf_counter() - began
    found["digests"].append(_digest(made))
    for _ in range(batches - 1):
        began = time.perf_counter()
        made = draw()
        found["each"].append(time.perf_counter() - began)
        found["digests"].append(_digest(made))
    for number in range(1, batches):
        began = time.perf_counter()
        again(number)
        found["again"].append(time.perf_counter() - began)
    return found | {"first": first}


def _digest(batch: Batch) -> str:
    ids, voxels, pictures = batch
    order = np.argsort(ids)
    parts = (ids[order], voxels[order].half().numpy(), pictures[order].numpy())
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
