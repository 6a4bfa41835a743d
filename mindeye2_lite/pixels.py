"""Two scores that look at nothing but pixels: PixCorr and SSIM, both at 425 pixels a side.

    pictures  (images, 3, height, width) in [0, 1]

The large pictures are never kept: resizing is linear, so Pearson's r between two resized pictures
comes from the small ones and the products of the resizing weights; SSIM resizes the gray pictures
of a few pairs at once. Official: all pictures at once, then one pair after the other.
"""

from collections.abc import Iterator
from typing import NamedTuple

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
GRAY_AT_ONCE = 16  # pictures that are resized at once, for SSIM: few and small, and much faster
STRANGERS = 100  # pairs that the chance of SSIM is taken from


def resize(images: Float[Tensor, "images 3 _ _"], size: int) -> Float[Tensor, "images 3 size size"]:
    """Bilinear without antialiasing, as torchvision 0.16 resizes tensors: all metrics use it."""
    return resized(images, (size, size))


def resized(
    images: Float[Tensor, "images 3 _ _"], size: tuple[int, int]
) -> Float[Tensor, "images 3 _ _"]:
    """As `resize`, to any height and width."""
    if images.shape[-2:] == size:
        return images
    # not torchvision's function, which calls this one, since importing torchvision takes seconds
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def resize_many(
    images: Float[Tensor, "images channels _ _"], size: int
) -> Float[Tensor, "images channels size size"]:
    """`resize` with pictures as channels: several times as fast, same numbers, not contiguous."""
    n, channels, height, width = images.shape
    if (height, width) == (size, size):
        return images
    last = images.reshape(1, n * channels, height, width)
    last = last.contiguous(memory_format=torch.channels_last)
    found = F.interpolate(last, (size, size), mode="bilinear", align_corners=False)
    return found.reshape(n, channels, size, size)


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
    common = reconstruction.shape[-2:] == seen.shape[-2:]
    meet = None if common else through or size  # where pictures of two sizes come together
    shape = seen.shape[-2:] if common else (meet, meet)
    product = _Product(shape, size, through if common else None, seen.device)
    r, totals = [], [0.0, 0.0]
    for parts in _batches(reconstruction, seen, at_once=PAIRS):
        a, b = (product.of(part if meet is None else resize(part, meet)) for part in parts)
        r.append(_dot(a.spread, b.centered) * a.scale * b.scale)
        sums = [(x.scale @ x.centered.flatten(1)).view(x.centered.shape[1:]) for x in (a, b)]
        totals = [totals[0] + sums[0], totals[1] + sums[1]]
    r, n = torch.cat(r).cpu().numpy(), len(seen)
    wrong = float((product.spread(totals[0]) * totals[1]).sum())
    return r, (wrong - float(r.sum())) / (n * (n - 1))


class _Standard(NamedTuple):
    """Pictures less their mean once resized; M x M of them; one over their length, or 0."""

    centered: Float[Tensor, "images 3 height width"]
    spread: Float[Tensor, "images 3 height width"]
    scale: Float[Tensor, " images"]


class _Product:
    """Inner products of resized pictures, from the pictures before resizing, in float64.

    With R the weights of resizing, ⟨R a Rᵀ, R b Rᵀ⟩ = ⟨M a M, b⟩, where M = Rᵀ R has few diagonals.
    """

    def __init__(
        self, shape: tuple[int, int], size: int, through: int | None, device: torch.device
    ):
        weights = [_resizing(n, size, through).to(device) for n in shape]
        self.sums = [w.sum(0) for w in weights]
        self.bands = [_diagonals(w.T @ w) for w in weights]
        self.pixels = 3 * size**2

    def spread(self, x: Tensor) -> Tensor:
        """M x M, along height and width."""
        return _banded(_banded(x, self.bands[0], -2), self.bands[1], -1)

    def of(self, images: Tensor) -> _Standard:
        """What is needed for r: the scale is 0 where a picture is of one color."""
        x = images.double()
        x -= x[:, :1, :1, :1].clone()  # exact: what is flat becomes exactly 0
        x -= (torch.einsum("nchw,h,w->n", x, *self.sums) / self.pixels)[:, None, None, None]
        spread = self.spread(x)
        square = _dot(spread, x)
        scale = torch.where(square > 1e-24 * self.pixels, square.clamp_min(1e-30).rsqrt(), 0.0)
        return _Standard(x, spread, scale)


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, " images"]:
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def _resizing(n: int, size: int, through: int | None) -> Float[Tensor, "size n"]:
    """The weights by which `resize` makes `size` pixels of n, as torchvision rounds them."""
    weights = torch.eye(n, dtype=torch.float64)
    for side in (through, size):
        if side is not None and side != len(weights):
            eye = torch.eye(len(weights))[None, None]
            step = F.interpolate(eye, (side, len(weights)), mode="bilinear", align_corners=False)
            step = step[0, 0].double()
            weights = (step / step.sum(1, keepdim=True)) @ weights
    return weights


def _diagonals(matrix: Tensor) -> list[Tensor]:
    """The main diagonal of a symmetric matrix and those above it, up to the last that is not 0."""
    away = (matrix.nonzero() @ torch.tensor([-1, 1], device=matrix.device)).max()
    return [matrix.diagonal(k) for k in range(int(away) + 1)]


def _banded(x: Tensor, bands: list[Tensor], dim: int) -> Tensor:
    """A symmetric matrix with these diagonals times x, along one dimension."""
    n, (main, *others) = x.shape[dim], [b[:, None] if dim == -2 else b for b in bands]
    out = x * main
    for k, band in enumerate(others, 1):
        early, late = x.narrow(dim, 0, n - k), x.narrow(dim, k, n - k)
        out.narrow(dim, 0, n - k).addcmul_(late, band)
        out.narrow(dim, k, n - k).addcmul_(early, band)
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
    found = []
    for some in _batches(reconstruction, seen, at_once=GRAY_AT_ONCE):
        grays = zip(*(_gray(x, size, through) for x in some), strict=True)
        found += [_similar(a, b) for a, b in grays]
    return torch.stack(found).cpu().numpy()


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
    weights = torch.tensor(GRAY, device=images.device)
    gray = torch.einsum("nchw,c->nhw", images, weights)[:, None]
    for side in (through, size):
        gray = gray if side is None else resize_many(gray, side)
    return gray[:, 0].contiguous()


def _batches(*images: Tensor, at_once: int) -> Iterator[tuple[Tensor, ...]]:
    for parts in zip(*(x.split(at_once) for x in images), strict=True):
        yield tuple(x.detach().float() for x in parts)
