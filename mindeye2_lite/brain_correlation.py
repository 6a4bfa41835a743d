"""Would this picture have made this brain respond as it did? Pearson's r across voxels.

An encoder predicts what each voxel would do for a picture; that is compared with what it did for
the picture that was seen (spec: the paper's Table 3). A reconstruction may thus differ from the
seen picture in all that these voxels do not care about.

    pictures   (images, 3, height, width) in [0, 1]
    encoder    pictures to predicted voxels (images, V)
    measured   (images, V): test betas, the mean of three repeats

`gnet` is the paper's encoder of photographs. Its file was not at hand: names and sizes are tested,
the file is not. `fit` gives an encoder of one person's training trials; for the synthetic cohort
there is no other. Read with notebook 10.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mindeye2_lite import encoders, metrics, nsd, paths, pixels, released
from mindeye2_lite.released_networks import fill

REGIONS = ("nsd_general", "V1", "V2", "V3", "V4", "higher_vis")  # in the order of Table 3
FILE = "gnet_multisubject.pt"
GET = "mindeye2-lite fetch --profile paper --stages more --accept-nsd-terms"
SIZE = 227  # pixels that GNet looks at
SIDES = (25, 13)  # of its two groups of maps, 256 channels each
PASSED = 64  # channels of a layer that voxels see; the others are for the layers above
PENALTIES = tuple(np.logspace(0, 7, 15).tolist())
CELLS = 4  # places along a side that `maps` keeps
AT_ONCE = 2048  # voxels of a block: keeps 32 pictures of NSD's subject 1 within 150 MB

Encoder = Callable[[Tensor], Tensor]


# --- scores


def brain_correlation(
    pictures: Float[Tensor, "images 3 height width"],
    person: nsd.Subject,
    encoder: Encoder,
    *,
    image_ids: Int[Tensor, " images"] | None = None,
    sessions: int | None = None,
    normalize: str = "sessions",
    seed: int = 0,
) -> dict[str, metrics.Score]:
    """`per_region` of what the encoder predicts for pictures of the test images.

    `image_ids` says whose they are; without it, of all test images in ascending order. What was
    measured is the mean of three repeats, scaled as `sessions` and `normalize` say. ValueError in
    one line if pictures, images and voxels do not fit together.
    """
    trials = person.test(sessions, normalize)
    known = trials.image_ids
    wanted = known if image_ids is None else image_ids
    if len(pictures) != len(wanted) or not bool(torch.isin(wanted, known).all()):
        raise ValueError(
            f"{len(pictures)} pictures for {len(wanted)} images of the {len(known)} test images of "
            f"subject {person.subject}: give one picture of each, or name them in image_ids"
        )
    measured = trials.repeats().mean(1)[torch.searchsorted(known, wanted)]
    regions = {name: person.rois[name] for name in REGIONS if name in person.rois}
    return per_region(encoder(pictures), measured, regions, seed=seed)


def per_region(
    predicted: Float[Tensor, "images voxels"],
    measured: Float[Tensor, "others more"],
    regions: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
) -> dict[str, metrics.Score]:
    """Pearson's r across the voxels of a region within each image, averaged over images.

    Chance pairs each prediction with all other images' voxels: about 0 where each voxel was scaled
    to mean 0, more where some are active whatever is seen. ValueError in one line where shapes do
    not agree, a region has fewer than two voxels, or something is no finite number.
    """
    _fit_together(predicted, measured, regions)
    found = {}
    for name, mask in regions.items():
        here = torch.from_numpy(np.flatnonzero(mask))
        r = metrics.correlations(measured[:, here], predicted[:, here])
        n, each = len(r), np.diag(r).copy()
        chance = float((r.sum() - each.sum()) / (n * (n - 1))) if n > 1 else None
        found[name] = metrics.score(name, each, chance=chance, seed=seed)
    return found


def _fit_together(predicted: Tensor, measured: Tensor, regions: Mapping[str, np.ndarray]) -> None:
    if predicted.shape != measured.shape or not len(measured):
        raise ValueError(
            f"predicted voxels are {tuple(predicted.shape)}, measured {tuple(measured.shape)}: "
            "both must be (images, voxels) of the same person and pictures"
        )
    for what, values in (("predicted", predicted), ("measured", measured)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{what} voxels hold values that are no finite numbers")
    for name, mask in regions.items():
        if np.shape(mask) != measured.shape[1:] or np.count_nonzero(mask) < 2:
            raise ValueError(
                f"region {name} marks {np.count_nonzero(mask)} of {np.size(mask)} voxels, the "
                f"data have {measured.shape[1]}: r needs two voxels or more of the same mask"
            )


# --- GNet, the paper's encoder


class Block(nn.Module):
    """Normalize the input, convolve 3 x 3, ReLU."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv1(self.bn1(x)))


class Start(nn.Module):
    """AlexNet's first two layers: pixels to (batch, 192, 27, 27)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)
        )
        self.conv2 = nn.Sequential(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU())

    def forward(self, pixels: Tensor) -> Tensor:
        return self.conv2(self.conv1(pixels))


class Stages(nn.Module):
    """Seven layers of which voxels see 64 channels each, and of the first all 128."""

    def __init__(self):
        super().__init__()
        self.bn1, self.conv3 = nn.BatchNorm2d(192), nn.Conv2d(192, 128, 3)
        self.pool1 = nn.MaxPool2d(3, 2, padding=1)
        self.conv4a, self.conv4b = Block(128, 256), Block(256, 256)
        self.conv5a, self.conv5b = Block(256, 256), Block(256, 256)
        self.conv6a, self.conv6b = Block(256, 256), Block(256, PASSED)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c3 = F.relu(self.conv3(self.bn1(x)))
        c4a = self.conv4a(c3)
        c4b = self.conv4b(c4a)
        c5a = self.conv5a(self.pool1(c4b))
        c5b = self.conv5b(c5a)
        c6a = self.conv6a(c5b)
        fine = [c3, *(c[:, :PASSED] for c in (c4a, c4b))]
        coarse = [*(c[:, :PASSED] for c in (c5a, c5b, c6a)), self.conv6b(c6a)]
        return torch.cat(fine, dim=1), torch.cat(coarse, dim=1)


class Trunk(nn.Module):
    """Pixels to the maps that all people's voxels look at; the file's `enc`.

    `mu` is the mean picture, of whatever shape the file has it.
    """

    def __init__(self, mu: tuple[int, ...] = (3, SIZE, SIZE)):
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(mu), requires_grad=False)
        self.pre, self.enc = Start(), Stages()

    def forward(
        self, pixels: Float[Tensor, "batch 3 227 227"]
    ) -> tuple[Float[Tensor, "batch 256 25 25"], Float[Tensor, "batch 256 13 13"]]:
        return self.enc(self.pre(pixels - self.mu))


class Readout(nn.Module):
    """Each voxel's two pooling fields, weights and offset; one person's part of `fwrfs`.

    φ = g(Σ_p softmax(rf)_p g(map_p)) of both groups of maps, voxel = w · φ + b, with
    g(u) = ln(1 + |u|) tanh(u).
    """

    def __init__(
        self, voxels: int, sides: tuple[int, int] = SIDES, channels: tuple[int, int] = (256, 256)
    ):
        super().__init__()
        self.rf0, self.rf1 = (nn.Parameter(torch.ones(voxels, s, s)) for s in sides)
        self.w = nn.Parameter(torch.zeros(voxels, sum(channels)))
        self.b = nn.Parameter(torch.zeros(voxels))

    def forward(
        self, fine: Float[Tensor, "batch _ _ _"], coarse: Float[Tensor, "batch _ _ _"]
    ) -> Float[Tensor, "batch voxels"]:
        maps = [compressed(group).flatten(2) for group in (fine, coarse)]
        parts = torch.arange(len(self.b), device=self.b.device).split(AT_ONCE)
        return torch.cat([self._of(part, maps) for part in parts], dim=1)

    def _of(self, part: Tensor, maps: list[Tensor]) -> Tensor:
        fields = [rf[part].flatten(1).softmax(dim=1) for rf in (self.rf0, self.rf1)]
        pooled = [
            torch.einsum("bcp,vp->bvc", group, field)
            for group, field in zip(maps, fields, strict=True)
        ]
        seen = compressed(torch.cat(pooled, dim=2))
        return torch.einsum("bvc,vc->bv", seen, self.w[part]) + self.b[part]


class GNet(nn.Module):
    """A trunk that all people share (`enc`) and a read-out for one of them (`fwrf`)."""

    def __init__(self, voxels: int, mu: tuple[int, ...] = (3, SIZE, SIZE)):
        super().__init__()
        self.enc, self.fwrf = Trunk(mu), Readout(voxels)

    @torch.no_grad()
    def forward(
        self, pictures: Float[Tensor, "images 3 height width"], batch: int = 32
    ) -> Float[Tensor, "images voxels"]:
        """Predicted voxels on the CPU. Official: 100 pictures at once, which takes 20 GB."""
        device = self.fwrf.b.device
        parts = (preprocess(part).to(device) for part in pictures.split(batch))
        return torch.cat([self.fwrf(*self.enc(part)).float().cpu() for part in parts])


def compressed(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """g(u) = ln(1 + |u|) tanh(u): keeps the sign and makes large values small."""
    return torch.log1p(u.abs()) * torch.tanh(u)


def preprocess(
    pictures: Float[Tensor, "images 3 height width"],
) -> Float[Tensor, "images 3 227 227"]:
    """8-bit pictures of 227 x 227 by Pillow's LANCZOS, in [0, 1], as GNet was trained with.

    Rounded down to 8 bits, as torchvision's `ToPILImage` does, which the released code calls.
    """
    from PIL import Image

    done = []
    for picture in (pictures.detach().cpu() * 255).to(torch.uint8):
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        small = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        done.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))
    return torch.stack(done).float() / 255


@functools.cache
def gnet(subject: int, path: str | Path | None = None, device: str = "cpu") -> GNet:
    """The released encoder of that person's voxels, read without running code of the file.

    Only this person's numbers leave the disk. FileNotFoundError in one line where the file is not
    on this machine, ValueError where it is another file or does not know the person.
    """
    path = Path(path) if path else paths.assets(FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}: get it with `{GET}`, name the folder that holds {FILE} in "
            "MINDEYE2_LITE_ASSETS, or fit an encoder to your own trials (brain_correlation.fit)"
        )
    trunk, readout = _parts(released.read(path), subject, path)
    with torch.device("meta"):
        result = GNet(len(readout["b"]), tuple(trunk["mu"].shape))
    fill(result.enc, trunk, path)
    fill(result.fwrf, readout, path)
    return encoders.frozen(result, device)


def _parts(content: Any, subject: int, path: Path) -> tuple[dict, dict]:
    best = content.get("best_params") if isinstance(content, dict) else None
    people = best.get("fwrfs") if isinstance(best, dict) else None
    trunk = best.get("enc") if isinstance(best, dict) else None
    if not isinstance(people, dict) or not isinstance(trunk, dict) or "mu" not in trunk:
        raise ValueError(f"{path} holds no best_params with enc and fwrfs: it is another file")
    if not isinstance(people.get(subject), dict) or "b" not in people[subject]:
        raise ValueError(f"{path} has no encoder of subject {subject}, only of {list(people)}")
    return trunk, people[subject]


# --- an encoder of one person's trials


@dataclass(frozen=True)
class Fitted:
    """Voxels as a linear map of frozen features of a picture; made by `fit`."""

    features: Encoder
    mean: Float[Tensor, " features"]
    scale: Float[Tensor, " features"]
    weights: Float[Tensor, "features voxels"]
    offset: Float[Tensor, " voxels"]
    penalties: Float[np.ndarray, " voxels"]  # what cross-validation chose

    def __call__(
        self, pictures: Float[Tensor, "images 3 height width"], batch: int = 100
    ) -> Float[Tensor, "images voxels"]:
        x = _of_all(self.features, pictures, batch)
        return ((x - self.mean) / self.scale) @ self.weights + self.offset


def fit(
    person: nsd.Subject,
    *,
    sessions: int | None = None,
    normalize: str = "sessions",
    features: Encoder | None = None,
    penalties: tuple[float, ...] = PENALTIES,
) -> Fitted:
    """Ridge regression from features of the training pictures to the voxels of their trials.

    Trials of one picture are averaged and count as often as it was seen, so that leaving one
    picture out leaves all its trials out; this chooses each voxel's penalty. No test trial is
    looked at. `features` are `maps` where none are given. Source: ours, with scikit-learn.
    """
    from sklearn.linear_model import RidgeCV

    features = features or maps
    trials = person.train(sessions, normalize)
    ids, which, often = trials.image_id.unique(return_inverse=True, return_counts=True)
    voxels = torch.zeros(len(ids), person.num_voxels).index_add_(0, which, trials.voxels)
    voxels = voxels / often[:, None]
    blocks = (person.images[part.numpy()] for part in ids.split(100))
    x = torch.cat([_of_all(features, block, 100) for block in blocks])
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    ridge = RidgeCV(penalties, alpha_per_target=True)
    ridge.fit(((x - mean) / scale).numpy(), voxels.numpy(), sample_weight=often.numpy())
    weights, offset = (torch.tensor(a, dtype=x.dtype) for a in (ridge.coef_.T, ridge.intercept_))
    return Fitted(features, mean, scale, weights, offset, np.asarray(ridge.alpha_, float))


@torch.no_grad()
def maps(
    pictures: Float[Tensor, "images 3 height width"], name: str = "alex"
) -> Float[Tensor, "images features"]:
    """Every stage of a miniature judge at 4 x 4 places: fine and coarse, here and there."""
    if pictures.shape[-2:] != (64, 64):
        pictures = pixels.resized(pictures, (64, 64))
    stages = encoders.load_cnn(name).maps(pictures)
    return torch.cat(
        [F.adaptive_avg_pool2d(m, min(CELLS, m.shape[-1])).flatten(1) for m in stages], 1
    )


def _of_all(features: Encoder, pictures: Tensor, batch: int) -> Tensor:
    return torch.cat([features(part).float().cpu() for part in pictures.split(batch)])
