"""The ten scores of the same pictures by the same miniature networks: the original's way, and ours.

The original's (`final_evaluations` of MindEye2): everything at 425 pixels at once and then one pair
after the other through numpy and scikit-image; all pictures in one batch through each network, and
numpy's correlations of both sides' features stacked. Ours: `metrics.evaluate`, and `retrieval`.

    pictures   seen (pairs, 3, 224, 224), reconstructions (pairs, 3, 256, 256), in [0, 1]
    tokens     (pairs, 16, 128) of brains and of pictures
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mindeye2_lite import encoders, metrics, pixels, retrieval, scenes

SEED = 42  # of the pools of retrieval, as released
POOL, DRAWS = 300, 30
MINI = 64  # pixels that the miniature judges look at
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX")
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Ten = dict[str, float]


@dataclass(frozen=True)
class Pairs:
    """How many pictures and of which size: the released evaluation's, as they stand here."""

    pairs: int = 1000
    seen: int = 224  # pixels
    reconstruction: int = 256  # pixels, to which the seen ones are brought first

    @property
    def bytes(self) -> int:
        """What the pictures take, as float32."""
        return self.pairs * 3 * 4 * (self.seen**2 + self.reconstruction**2)


def write(folder: Path, size: Pairs, seed: int = 0) -> None:
    """Scenes with a fine grain, paler and blurred reconstructions of them, and tokens of both.

    A half of what a reconstruction shows is its own scene, the rest another one's and noise.
    """
    rng, names = np.random.default_rng(seed), ("seen", "reconstruction")
    files = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", np.float32, (size.pairs, 3, side, side)
        )
        for name, side in zip(names, (size.seen, size.reconstruction), strict=True)
    }
    for start in range(0, size.pairs, 50):
        n = min(50, size.pairs - start)
        drawn = scenes.render(scenes.sample(n, seed=seed + 1 + start))
        small = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255
        seen = pixels.resize(small, size.seen)
        grain = 0.05 * rng.standard_normal(seen.shape, dtype=np.float32)
        files["seen"][start : start + n] = (seen + torch.from_numpy(grain)).clamp(0, 1)
        coarse = pixels.resize(F.avg_pool2d(small, 4), size.reconstruction)
        grain = 0.1 * rng.standard_normal(coarse.shape, dtype=np.float32)
        made = 0.5 * coarse + 0.3 * coarse.roll(1, 0) + torch.from_numpy(grain)
        files["reconstruction"][start : start + n] = made.clamp(0, 1)
    tokens = rng.standard_normal((2, size.pairs, 16, 128), dtype=np.float32)
    tokens[1] += 0.1 * tokens[0]
    np.save(folder / "tokens.npy", tokens)


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes started here compute in one thread, with the system's own way of giving memory."""
    names = (*ALLOCATOR, *ONE_THREAD)
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def original(folder: Path, threads: int = 1) -> dict:
    """Seconds, and the ten scores, of the original's way; see `_timed`."""
    return _timed(_original, folder, threads)


def ours(folder: Path, threads: int = 1) -> dict:
    """Seconds, and the ten scores, of our way, chance and intervals included; see `_timed`."""
    return _timed(_ours, folder, threads)


def _timed(way: Callable[..., Ten], folder: Path, threads: int) -> dict:
    """`seconds` on the clock and `busy` of the processor, from pictures in memory to ten scores.

    Two pairs are scored before the clock starts, so that libraries and networks are there.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    judges = encoders.judges()
    files = (folder / f"{name}.npy" for name in ("reconstruction", "seen", "tokens"))
    reconstruction, seen, tokens = (torch.from_numpy(np.load(file)) for file in files)
    way(reconstruction[:2], seen[:2], judges, *tokens[:, :2])
    began, busy = time.perf_counter(), time.process_time()
    scores = way(reconstruction, seen, judges, *tokens)
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    torch.set_num_threads(before)
    return {"seconds": seconds, "busy": busy, "scores": scores}


def _ours(reconstruction: Tensor, seen: Tensor, judges: dict, brain: Tensor, image: Tensor) -> Ten:
    through = reconstruction.shape[-1]
    found = metrics.evaluate(reconstruction, seen, judges, through=through)
    found |= retrieval.retrieval(brain, image, POOL, DRAWS, SEED).scores()
    return {name: score.value for name, score in found.items()}


# -- the original's way ----------------------------------------------------------------------------


@torch.no_grad()
def _original(
    reconstruction: Tensor, seen: Tensor, judges: dict, brain: Tensor, image: Tensor
) -> Ten:
    seen = pixels.resize(seen, reconstruction.shape[-1])
    scores = {"PixCorr": _pixcorr(reconstruction, seen), "SSIM": _ssim(reconstruction, seen)}
    for name in (*metrics.TWO_WAY, *metrics.DISTANCE):
        true, recon = (_looked_at(judges[name], side) for side in (seen, reconstruction))
        scores[name] = (_two_way if name in metrics.TWO_WAY else _distance)(true, recon)
    return scores | _retrieval(brain, image)


def _pixcorr(reconstruction: Tensor, seen: Tensor) -> float:
    large = [pixels.resize(side, pixels.SIZE).flatten(1).numpy() for side in (reconstruction, seen)]
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*large, strict=True)]))


def _ssim(reconstruction: Tensor, seen: Tensor) -> float:
    from skimage.metrics import structural_similarity

    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    sides = zip(_gray(reconstruction), _gray(seen), strict=True)
    found = [structural_similarity(a, b, data_range=1.0, **settings) for a, b in sides]
    return float(np.mean(found))


def _gray(images: Tensor) -> np.ndarray:
    from skimage.color import rgb2gray

    return rgb2gray(pixels.resize(images, pixels.SIZE).permute(0, 2, 3, 1).numpy())


def _looked_at(judge: metrics.Judge, images: Tensor) -> np.ndarray:
    """Pictures resized one by one, then all of them through the network in one batch."""
    small = torch.cat([pixels.resize(image[None], MINI) for image in images])
    return judge(small).float().flatten(1).numpy()


def _two_way(true: np.ndarray, recon: np.ndarray) -> float:
    n = len(true)
    r = np.corrcoef(true, recon)[:n, n:]  # of both sides stacked: of 2n rows with each other
    return float((r < np.diag(r)).sum(0).mean() / (n - 1))


def _distance(true: np.ndarray, recon: np.ndarray) -> float:
    from scipy.spatial.distance import correlation

    return float(np.mean([correlation(a, b) for a, b in zip(true, recon, strict=True)]))


def _retrieval(brain: Tensor, image: Tensor) -> Ten:
    rng, n = np.random.RandomState(SEED), len(brain)
    right: dict[str, list[float]] = {"image_to_brain": [], "brain_to_image": []}
    for _ in range(DRAWS):
        chosen = rng.choice(np.arange(n), size=min(POOL, n), replace=False)
        sides = [F.normalize(side[chosen].flatten(1), dim=-1) for side in (brain, image)]
        similarity = sides[0] @ sides[1].T
        labels = torch.arange(len(chosen))
        for name, rows in (("image_to_brain", similarity.T), ("brain_to_image", similarity)):
            right[name].append((rows.argmax(1) == labels).float().mean().item())
    return {name: float(np.mean(each)) for name, each in right.items()}
