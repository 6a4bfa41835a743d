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
PAIRS = 8  # at once: more fit the processor's cache no longer


def resize(images: Float[Tensor, "images 3 _ _"], size: int) -> Float[Tensor, "images 3 size size"]:
    """Bilinear without antialiasing, as torchvision 0.16 resizes tensors: all metrics use it."""
    return resized(images, (size, size))


def resized(
    images: Float[Tensor, "images 3 _ _"], size: tuple[int, int]
) -> Float[Tensor, "images 3 _ _"]:
    """As `resize`, to any height and width."""
    # not torchvision's function, which calls this one, since importing torchvision takes seconds
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def check_pairs(reconstruction: Tensor, seen: Tensor, what: str = "pictures") -> None:
    """ValueError in one line if the two sides do not pair up, are fewer than two, or hold NaN."""
    if len(reconstruction) != len(seen) or len(seen) < 2:
        raise ValueError(
            f"{len(reconstruction)} reconstructions and {len(seen)} seen pictures: "
            "give one reconstruction per picture, and at least two"
        )
    for side, rows in (("reconstruction", reconstruction), ("seen picture", seen)):
        for start in range(0, len(rows), PAIRS):
            part = rows[start : start + PAIRS]
            if not torch.isfinite(part).all():
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
    for parts in _batches(reconstruction, seen):
        a, b = (part if meet is None else resize(part, meet) for part in parts)
        a, b = product.standardized(a), product.standardized(b)
        r.append((product.spread(a) * b).sum((1, 2, 3)))
        totals = [totals[0] + a.sum(0), totals[1] + b.sum(0)]
    r, n = torch.cat(r).cpu().numpy(), len(seen)
    wrong = float((product.spread(totals[0]) * totals[1]).sum())
    return r, (wrong - float(r.sum())) / (n * (n - 1))


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

    def standardized(self, images: Tensor) -> Tensor:
        """Pictures that have mean 0 and length 1 once they are resized; 0 if of one color."""
        x = images.double()
        x = x - x[:, :1, :1, :1]  # exact: what is flat becomes exactly 0
        mean = torch.einsum("nchw,h,w->n", x, *self.sums) / self.pixels
        x -= mean[:, None, None, None]
        square = (self.spread(x) * x).sum((1, 2, 3), keepdim=True)
        return torch.where(square > 1e-24 * self.pixels, x * square.clamp_min(1e-30).rsqrt(), 0.0)


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
    parts = _batches(reconstruction, seen)
    found = [_similar(*(_local(_gray(x, size)) for x in pair)) for pair in parts]
    return torch.cat(found).cpu().numpy()


def ssim_and_chance(
    reconstruction: Tensor,
    seen: Tensor,
    size: int = SIZE,
    through: int | None = None,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " images"], float]:
    """SSIM of each pair, and the mean of as many pairs of strangers, the chance of it.

    In a random order, everyone's stranger is the one before: so what was worked out for a seen
    picture serves twice.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(seen)))
    before = _local(_gray(seen[order[-1:]], size, through))
    own, strange = torch.empty(len(seen), dtype=torch.float64), []
    for rows in order.split(PAIRS):
        recon, true = (_local(_gray(x[rows], size, through)) for x in (reconstruction, seen))
        own[rows] = _similar(recon, true).cpu()
        others = _Local(*(torch.cat([a[-1:], b[:-1]]) for a, b in zip(before, true, strict=True)))
        strange.append(_similar(recon, others))
        before = true
    return own.numpy(), float(torch.cat(strange).mean())


class _Local(NamedTuple):
    """Gray pictures less 0.5, and their mean and variance around every pixel."""

    gray: Float[Tensor, "images height width"]
    mean: Float[Tensor, "images h w"]
    variance: Float[Tensor, "images h w"]


def _local(gray: Tensor) -> _Local:
    mean = _blur(gray)
    return _Local(gray, mean, _blur(gray * gray).addcmul_(mean, mean, value=-1))


def _similar(a: _Local, b: _Local) -> Float[Tensor, " images"]:
    """The mean of SSIM over all pixels but the outermost."""
    both = a.mean * b.mean
    covariance = _blur(a.gray * b.gray).sub_(both)
    # the means are those of pictures less 1/2: (a+½)(b+½) and (a+½)² + (b+½)²
    sums = a.mean + b.mean
    luminance = (2 * both).add_(sums).add_(0.5 + C1)
    squares = (a.mean * a.mean).addcmul_(b.mean, b.mean).add_(sums).add_(0.5 + C1)
    luminance.mul_(covariance.mul_(2).add_(C2))
    squares.mul_((a.variance + b.variance).add_(C2))
    return luminance.div_(squares).mean((1, 2), dtype=torch.float64)


def _blur(x: Float[Tensor, "images height width"]) -> Float[Tensor, "images h w"]:
    """The Gaussian mean around every pixel that lies RADIUS or more from the edge."""
    for dim in (1, 2):
        n = x.shape[dim] - 2 * RADIUS
        out = x.narrow(dim, RADIUS, n) * WINDOW[RADIUS]
        for k in (k for k in range(2 * RADIUS + 1) if k != RADIUS):
            out.add_(x.narrow(dim, k, n), alpha=WINDOW[k])
        x = out
    return x


def _window() -> list[float]:
    weights = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    return (weights / weights.sum()).tolist()


WINDOW = _window()


def _gray(images: Tensor, size: int, through: int | None = None) -> Tensor:
    """(images, size, size) float32, less 0.5: what is near 0 loses less to rounding."""
    weights = torch.tensor(GRAY, device=images.device)
    gray = torch.einsum("nchw,c->nhw", images.detach().float(), weights)
    for side in (through, size):
        gray = gray if side is None else _scaled(gray, side)
    return gray - 0.5


def _scaled(gray: Tensor, side: int) -> Tensor:
    """Resized as `resize` does, but with the pictures as channels, which is times faster."""
    if gray.shape[-2:] == (side, side):
        return gray
    last = gray[None].contiguous(memory_format=torch.channels_last)
    found = F.interpolate(last, (side, side), mode="bilinear", align_corners=False)
    return found[0].contiguous()


def _batches(*images: Tensor) -> Iterator[tuple[Tensor, ...]]:
    for parts in zip(*(x.split(PAIRS) for x in images), strict=True):
        yield tuple(x.detach().float() for x in parts)
