"""Two scores that look at nothing but pixels: PixCorr and SSIM, both at 425 pixels a side.

    pictures  (images, 3, height, width) in [0, 1]

The large pictures are never kept: resizing is linear, so Pearson's r between two resized pictures
comes from the small ones and the products of the resizing weights; SSIM resizes the gray pictures
of a few pairs at once. Official: all pictures at once, then one pair after the other.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SIZE = 425  # pixels a side for PixCorr and SSIM (as in the released code)
GRAY = (0.2125, 0.7154, 0.0721)  # scikit-image's rgb2gray
SIGMA, RADIUS = 1.5, 5  # pixels; scikit-image cuts its Gaussian at 3.5 sigma
C1, C2 = 0.01**2, 0.03**2  # Wang et al. 2004, data range 1
PAIRS = 2  # at once, for PixCorr: more fit the processor's cache no longer (measured)
GRAY_AT_ONCE = 4  # pictures that are resized at once, for SSIM: as many as the cache holds
STRANGERS = 100  # pairs that the chance of SSIM is taken from


def resize(
    images: Float[Tensor, "images channels _ _"], size: int
) -> Float[Tensor, "images channels size size"]:
    """Bilinear without antialiasing, as torchvision 0.16 resizes tensors: all metrics use it."""
    return resized(images, (size, size))


def resized(
    images: Float[Tensor, "images channels _ _"], size: tuple[int, int]
) -> Float[Tensor, "images channels _ _"]:
    """As `resize`, to any height and width."""
    if images.shape[-2:] == size:
        return images
    # not torchvision's function, which calls this one, since importing torchvision takes seconds
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def check_pairs(
    reconstruction: Tensor,
    seen: Tensor,
    what: str = "pictures",
    sides: tuple[str, str] = ("reconstruction", "seen picture"),
) -> None:
    """ValueError in one line if the two sides do not pair up, are fewer than two, or hold NaN.

    The line names the first that is spoiled; `what` are its numbers, `sides` what one is called.
    """
    if len(reconstruction) != len(seen) or len(seen) < 2:
        raise ValueError(
            f"{len(reconstruction)} {sides[0]}s and {len(seen)} {sides[1]}s: "
            f"give one {sides[0]} per picture, and at least two"
        )
    for side, rows in zip(sides, (reconstruction, seen), strict=True):
        for start in range(0, len(rows), PAIRS):
            part = rows[start : start + PAIRS]
            # a sum is not finite if a number is not, and is much faster than looking at each
            if not (torch.isfinite(part.sum()) or torch.isfinite(part).all()):
                bad = ~torch.isfinite(part.flatten(1)).all(1)
                first = start + int(bad.nonzero()[0])
                raise ValueError(
                    f"{side} {first} (counted from 0) holds NaN or infinite {what}: nothing can be "
                    "scored with it; look at what made it, or leave the pair out"
                )


# --- PixCorr


def pixcorr(
    reconstruction: Float[Tensor, "images 3 _ _"],
    seen: Float[Tensor, "others 3 _ _"],
    size: int = SIZE,
) -> float:
    """Pearson's r between two pictures' RGB values at `size` pixels a side, averaged over pairs.

    In float64. Official: float32, whose long sums disturb the sixth digit; and NaN if a picture is
    all of one color, where here the pair counts 0.
    """
    return float(pixcorr_per_image(reconstruction, seen, size).mean())


def pixcorr_per_image(
    reconstruction: Float[Tensor, "images 3 _ _"],
    seen: Float[Tensor, "others 3 _ _"],
    size: int = SIZE,
) -> Float[np.ndarray, " images"]:
    """`pixcorr` of each pair. ValueError if the sides do not pair up or hold NaN."""
    check_pairs(reconstruction, seen)
    return pixcorr_and_chance(reconstruction, seen, size)[0]


def pixcorr_and_chance(
    reconstruction: Tensor, seen: Tensor, size: int = SIZE, through: int | None = None
) -> tuple[Float[np.ndarray, " images"], float]:
    """r of each pair, and the mean r of all wrong pairs, the chance of it.

    Pictures pass through `through` pixels first, if it is given. For the wrong pairs
    Σ_{i≠j} a_i·b_j = (Σ a_i)·(Σ b_j) − Σ a_i·b_i, where a and b are standardized.
    """
    standard, n = Standard(reconstruction, seen, size, through), len(seen)
    r = torch.empty(n, dtype=torch.float64)  # made once, as the totals: no holes in memory
    totals = torch.zeros(2, 3, *standard.shape, dtype=torch.float64, device=seen.device)
    for start, parts in _batches(reconstruction, seen, at_once=PAIRS):
        (a, scale_a), (b, scale_b) = (standard.of(part) for part in parts)
        r[start : start + len(a)] = _dot(a, b) * scale_a * scale_b
        totals[0] += torch.tensordot(scale_a.float(), a, 1)
        totals[1] += torch.tensordot(scale_b.float(), b, 1)
    wrong = float((totals[0] * totals[1]).sum() - r.sum())
    return r.numpy(), wrong / (n * (n - 1))


class Standard:
    """Pictures of either side, and their scales, so that inner products are r; in float32.

    With R the weights of resizing and RᵀR = LLᵀ, ⟨R a Rᵀ, R b Rᵀ⟩ = ⟨Lᵀ a L, Lᵀ b L⟩, which is as
    small as a. L has two diagonals, since a new pixel lies between two old ones.
    """

    def __init__(self, reconstruction: Tensor, seen: Tensor, size: int, through: int | None):
        same = reconstruction.shape[-2:] == seen.shape[-2:]
        meet = through or (None if same else size)  # where pictures of two sizes come together
        self.steps = [] if meet is None else [(meet, meet)]
        self.shape = (*self.steps, tuple(seen.shape[-2:]))[0]
        if max(self.shape) > size:  # R makes it smaller: nothing is gained by leaving it out
            self.shape = (size, size)
            self.steps.append(self.shape)
        weights = [_resizing(n, size) for n in self.shape]
        self.sums = [w.sum(0).float().to(seen.device) for w in weights]
        self.bands = [[d.float().to(seen.device) for d in _factor(w)] for w in weights]
        self.pixels = 3 * size**2

    def of(self, images: Tensor) -> tuple[Float[Tensor, "images 3 _ _"], Float[Tensor, " images"]]:
        """Less the mean of the resized picture; one over its length, 0 where it is of one color."""
        for shape in self.steps:
            images = resized(images, shape)
        x = images - images[:, :1, :1, :1]  # exact: what is flat becomes exactly 0
        mean = ((x @ self.sums[1]) @ self.sums[0]).sum(1) / self.pixels
        x -= mean[:, None, None, None]
        x = _banded(_banded(x, self.bands[0], -2), self.bands[1], -1)
        square = _dot(x, x)
        scale = torch.where(square > 1e-24 * self.pixels, square.clamp_min(1e-30).rsqrt(), 0.0)
        return x, scale


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, " images"]:
    """Rows in float32, their sum in float64: longer sums in float32 disturb the sixth digit."""
    return (a * b).sum(-1).double().sum((1, 2))


def _resizing(n: int, size: int) -> Float[Tensor, "size n"]:
    """The weights by which `resize` makes `size` pixels of n, as torchvision rounds them."""
    eye = torch.eye(n)[None, None]
    weights = F.interpolate(eye, (size, n), mode="bilinear", align_corners=False)[0, 0].double()
    return weights / weights.sum(1, keepdim=True)


def _factor(weights: Float[Tensor, "size n"]) -> list[Tensor]:
    """L of RᵀR = LLᵀ: its main diagonal and those below it, up to the last that is not 0."""
    lower = torch.linalg.cholesky(weights.T @ weights)
    away = int((lower.nonzero() @ torch.tensor([1, -1])).max())
    return [lower.diagonal(-k) for k in range(away + 1)]


def _banded(x: Tensor, bands: list[Tensor], dim: int) -> Tensor:
    """Lᵀ times x, along one dimension."""
    n, (main, *others) = x.shape[dim], [b[:, None] if dim == -2 else b for b in bands]
    out = x * main
    for k, band in enumerate(others, 1):
        out.narrow(dim, 0, n - k).addcmul_(x.narrow(dim, k, n - k), band)
    return out


# --- SSIM


def ssim(
    reconstruction: Float[Tensor, "images 3 _ _"],
    seen: Float[Tensor, "others 3 _ _"],
    size: int = SIZE,
) -> float:
    """Structural similarity of the gray pictures at `size` pixels a side, averaged over pairs.

    Gaussian window with sigma 1.5 pixels, population covariance, data range 1 (Wang et al. 2004).
    A picture of nothing but smooth gray scores well on it: read it beside its controls.
    """
    return float(ssim_per_image(reconstruction, seen, size).mean())


def ssim_per_image(
    reconstruction: Float[Tensor, "images 3 _ _"],
    seen: Float[Tensor, "others 3 _ _"],
    size: int = SIZE,
) -> Float[np.ndarray, " images"]:
    """`ssim` of each pair. ValueError if the sides do not pair up or hold NaN.

    As scikit-image's `structural_similarity`, whose outermost 5 pixels do not count: so nothing
    needs to be known beyond the picture's edge.
    """
    check_pairs(reconstruction, seen)
    return similarities(reconstruction, seen, size)


def ssim_chance(
    reconstruction: Tensor,
    seen: Tensor,
    size: int = SIZE,
    through: int | None = None,
    seed: int = 0,
) -> float:
    """The mean SSIM of reconstructions and strangers' pictures: of STRANGERS pairs at most."""
    some = torch.from_numpy(np.random.default_rng(seed).permutation(len(seen))[:STRANGERS])
    other = torch.from_numpy(strangers(len(seen), seed))[some]
    blocks = zip(some.split(GRAY_AT_ONCE), other.split(GRAY_AT_ONCE), strict=True)
    found = [similarities(reconstruction[a], seen[b], size, through) for a, b in blocks]
    return float(np.concatenate(found).mean())  # in blocks, since indices copy what they choose


def strangers(n: int, seed: int) -> np.ndarray:
    """For each picture another one: a shuffle in which nobody keeps their own."""
    order = np.random.default_rng(seed).permutation(n)
    partner = np.empty(n, dtype=np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def similarities(
    reconstruction: Tensor, seen: Tensor, size: int = SIZE, through: int | None = None
) -> Float[np.ndarray, " images"]:
    """SSIM of pairs that are known to be pairs; they pass through `through` pixels first."""
    found = torch.empty(len(seen), dtype=torch.float64)
    for start, some in _batches(reconstruction, seen, at_once=GRAY_AT_ONCE):
        grays = zip(*(_gray(x, size, through) for x in some), strict=True)
        for i, (a, b) in enumerate(grays, start):
            found[i] = _similar(a, b)
    return found.numpy()


def _similar(a: Float[Tensor, "size size"], b: Float[Tensor, "size size"]) -> Float[Tensor, ""]:
    """The mean of SSIM over all pixels but the outermost, in float64: variances are differences.

    One pair at a time: two pairs no longer fit the processor's cache.
    """
    (height, width), a, b = a.shape, a.double().flatten(), b.double().flatten()
    mean_a, mean_b = _blur(a, width), _blur(b, width)
    both, squares = mean_a * mean_b, mean_a.square_().addcmul_(mean_b, mean_b)
    covariance = _blur(a * b, width).sub_(both)
    variances = _blur(a.square_().addcmul_(b, b), width).sub_(squares)
    covariance.mul_(2).add_(C2).mul_(both.mul_(2).add_(C1))
    covariance.div_(variances.add_(C2).mul_(squares.add_(C1)))
    inside = (height - 2 * RADIUS, width - 2 * RADIUS)
    return covariance.as_strided(inside, (width, 1)).mean()


def _blur(x: Float[Tensor, " pixels"], width: int) -> Float[Tensor, " fewer"]:
    """The Gaussian mean around every pixel, row after row; of no meaning at the edges.

    One long row is several times as fast as a convolution. Pixel (i, j) of the result stands for
    pixel (i + RADIUS, j + RADIUS) of the picture, in rows of the same width.
    """
    for step in (width, 1):
        n = len(x) - 2 * RADIUS * step
        out = x[RADIUS * step :][:n] * WINDOW[RADIUS]
        for k in range(RADIUS):
            out.add_(x[k * step :][:n], alpha=WINDOW[k])
            out.add_(x[(2 * RADIUS - k) * step :][:n], alpha=WINDOW[k])
        x = out
    return x


def _window() -> list[float]:
    weights = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    return (weights / weights.sum()).tolist()


WINDOW = _window()


def _gray(images: Tensor, size: int, through: int | None = None) -> Tensor:
    """As scikit-image's rgb2gray of the resized picture: gray and resizing are both linear."""
    gray = images[:, :1] * GRAY[0]
    for channel in (1, 2):
        gray.add_(images[:, channel, None], alpha=GRAY[channel])
    for side in (through, size):
        gray = gray if side is None else resize(gray, side)
    return gray[:, 0]


def _batches(*images: Tensor, at_once: int) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Where a batch begins, and its part of every side."""
    for start in range(0, len(images[0]), at_once):
        yield start, tuple(x[start : start + at_once].detach().float() for x in images)
