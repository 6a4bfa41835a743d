"""The people of the synthetic cohort: where their voxels lie, what they respond to, how noisily.

Early visual voxels look at a part of the picture (population receptive field) for contours and
color; higher ones read what is in the scene and mid-level picture statistics through tuning
dimensions that all people share. It is a model of an experiment, not data about brains.

| constant | value | source |
|---|---|---|
| voxels | one sixteenth of nsdgeneral | NSD's masks (15,724 ... 14,386) |
| shares of V1, V2, V3, hV4 | .086 .091 .076 .044 | about subject 1's masks; equal for all: choice |
| field of view | 8.4 degrees | Allen et al. 2022 |
| receptive field size, exponent | `FIELDS` | choice, in the order of Kay et al. 2013: V1 to hV4 larger and more compressive |
| median ncsnr | .30 | choice between .26 (Allen et al. 2022, as quoted in cvnlab/nsddatapaper issue 1) and .33 (a ceiling of 24.2% at three trials, median of volume voxels of V1, V2, V4 and ventral stream, measured by brain-score's Allen2022 notebooks) |
| spread of ncsnr | Weibull, shape 1.8 | choice; the largest values per person, 0.9 to 1.5, are near those of NSD's maps (1.15 to 1.64, same issue) |
| ncsnr of each person | `PEOPLE` | mean over cortex of NSD's `ncsnr.nii.gz` (same issue); subject 8: choice |
| ncsnr of each region | `REGIONS` | choice |
| noise | half white, .3 local, .2 in six wide networks that last over trials | choice |
| session drift of mean and gain | .15 and .09 deviations | choice |
| size of the signal | about 1.5% | standard deviation 1.75% over vertices of subject 1, session 1 (same notebooks) |
"""  # noqa: E501

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr  # not scipy.stats, which takes half a second to import

from mindeye2_lite import scenes

SHAPE = (22, 20, 16)  # x, y, z of the small volume
VOXELS = {1: 983, 2: 892, 3: 952, 4: 822, 5: 815, 6: 1119, 7: 793, 8: 899}
PEOPLE = {1: 0.164, 2: 0.165, 3: 0.120, 4: 0.123, 5: 0.169, 6: 0.161, 7: 0.128, 8: 0.115}
SHARES = {"V1": 0.086, "V2": 0.091, "V3": 0.076, "V4": 0.044}
REGIONS = {"V1": 1.2, "V2": 1.2, "V3": 1.1, "V4": 1.05, "ventral": 1.0, "lateral": 0.95}
REGIONS |= {"parietal": 0.85}
# region: receptive field at fixation (degrees), its growth per degree, exponent, weight of color
FIELDS = {
    "V1": (0.25, 0.10, 0.50, 0.2),
    "V2": (0.35, 0.15, 0.40, 0.3),
    "V3": (0.50, 0.25, 0.35, 0.3),
    "V4": (0.80, 0.40, 0.30, 0.5),
}
DEGREES, GRID = 8.4, 16  # width of the picture; cells per side of the maps that voxels look at
MEDIAN_NCSNR, NCSNR_SHAPE, NCSNR_CLUSTER = 0.30, 1.8, 0.5
WHITE, LOCAL, NETWORKS = 0.5, 0.3, 0.2  # shares of noise variance
LOCAL_WIDTH, NUM_NETWORKS, PERSISTENCE = 1.2, 6, 0.4  # voxels; networks; trial-to-trial correlation
MEAN_DRIFT, GAIN_DRIFT, VOXEL_GAIN_DRIFT = 0.15, 0.08, 0.05  # deviations, log gains
TUNING_DIMENSIONS, MIDDLE_DIMENSIONS = 48, 24
TUNING_SEED = 20260101  # of what all people share, in every cohort
# kind: animate, vehicle, building, plant, flies, real-world size, round
TAXONOMY = {
    "car": (0, 1, 0, 0, 0, 0.4, 0.2),
    "train": (0, 1, 0, 0, 0, 0.9, 0),
    "boat": (0, 1, 0, 0, 0, 0.6, 0.2),
    "airplane": (0, 1, 0, 0, 1, 0.9, 0.1),
    "balloon": (0, 0.6, 0, 0, 1, 0.6, 1),
    "house": (0, 0, 1, 0, 0, 0.9, 0),
    "tree": (0.2, 0, 0.2, 1, 0, 0.7, 0.5),
    "flower": (0.2, 0, 0, 1, 0, 0.05, 0.8),
    "umbrella": (0, 0, 0.1, 0, 0, 0.2, 0.7),
    "cat": (1, 0, 0, 0, 0, 0.15, 0.5),
    "elephant": (1, 0, 0, 0, 0, 0.7, 0.6),
    "bird": (1, 0, 0, 0, 0.8, 0.1, 0.5),
}
# attribute: how much ventral, lateral and parietal voxels care (choice)
CARE = {
    "kind": (1.0, 1.0, 0.4),
    "color": (0.9, 0.3, 0.3),
    "ground": (0.8, 0.4, 0.8),
    "light": (0.7, 0.3, 0.5),
    "pattern": (0.5, 0.3, 0.2),
    "facing": (0.2, 0.6, 0.5),
    "companion": (0.4, 0.6, 0.5),
    "companion_color": (0.3, 0.2, 0.2),
    "size": (0.3, 0.5, 0.8),
    "x": (0.3, 0.7, 1.2),
    "horizon": (0.3, 0.2, 0.7),
}
MIDDLE_CARE = (0.6, 0.4, 0.6)


@dataclass(frozen=True)
class Features:
    """What voxels may respond to, one row per scene."""

    maps: np.ndarray  # (scenes, 15, GRID * GRID) float32: 12 contour energies, 3 of color
    attributes: np.ndarray  # (scenes, f) float32, standardized
    names: list[str]  # the attribute that each of the f columns belongs to
    middle: np.ndarray  # (scenes, MIDDLE_DIMENSIONS) float32, standardized


@dataclass(frozen=True)
class Anatomy:
    """One person's small volume; V voxels of nsdgeneral in C order of (x, y, z)."""

    nsdgeneral: np.ndarray  # SHAPE int16: 1 in the mask, 0 other cortex, -1 elsewhere
    visual: np.ndarray  # SHAPE int16, labels of NSD's prf-visualrois
    streams: np.ndarray  # SHAPE int16, labels of NSD's streams
    places: np.ndarray  # (V, 3) voxel indices
    regions: np.ndarray  # (V,) name of the region


# -- what is in a picture --------------------------------------------------------------------------


def features(pictures: np.ndarray, attributes: dict[str, np.ndarray]) -> Features:
    """Contour energy and color, coded attributes, mid-level statistics of uint8 (n, 64, 64, 3)."""
    blocks = [_maps(pictures[i : i + 256]) for i in range(0, len(pictures), 256)]
    maps, middle = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    columns, names = _attribute_columns(attributes)
    return Features(maps, columns, names, _principal(middle))


def _maps(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return _early(images).flatten(2).numpy(), _middle(images).flatten(1).numpy()


def _early(images: torch.Tensor) -> torch.Tensor:
    """(n, 15, GRID, GRID): energy, 3 scales x 4 orientations; lightness, red-green, blue-yellow."""
    side = images.shape[-1]
    pool = torch.nn.functional.avg_pool2d
    red, green, blue = images.unbind(1)
    light, out = images.mean(1, keepdim=True), []
    for level in range(3):  # wavelengths 4, 8, 16 pixels: about 2, 1, .5 cycles per degree
        shrunk, stride = pool(light, 2**level), 2 if level == 0 else 1
        parts = torch.nn.functional.conv2d(shrunk, _gabors(), padding=4, stride=stride).square()
        energy = (parts[:, 0::2] + parts[:, 1::2]).sqrt()
        out.append(pool(energy, energy.shape[-1] // GRID))
    colors = [light[:, 0], red - green, blue - (red + green) / 2]
    out.append(pool(torch.stack(colors, 1), side // GRID))
    return torch.cat(out, 1)


def _gabors(wavelength: float = 4.0, sigma: float = 2.0) -> torch.Tensor:
    """(8, 1, 9, 9): even and odd filters of four orientations, zero mean."""
    y, x = np.mgrid[-4:5, -4:5].astype(np.float32)
    window = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    filters = []
    for angle in np.arange(4) * np.pi / 4:
        phase = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength
        for wave in (np.cos(phase), np.sin(phase)):
            gabor = window * wave
            gabor -= window * gabor.sum() / window.sum()
            filters.append(gabor / np.abs(gabor).sum())
    return torch.from_numpy(np.stack(filters)[:, None].astype(np.float32))


def _middle(images: torch.Tensor) -> torch.Tensor:
    """(n, 48, 4, 4): two layers of fixed random filters, so that no trained network is needed."""
    g = torch.Generator().manual_seed(TUNING_SEED)
    first = torch.randn(24, 3, 5, 5, generator=g)
    second = torch.randn(48, 24, 3, 3, generator=g)
    first, second = (w - w.mean((1, 2, 3), keepdim=True) for w in (first, second))
    x = torch.relu(torch.nn.functional.conv2d(images, first / 9, stride=2, padding=2))
    x = torch.relu(torch.nn.functional.conv2d(x, second / 15, stride=2, padding=1))
    return torch.nn.functional.avg_pool2d(x, x.shape[-1] // 4)


def _principal(values: np.ndarray) -> np.ndarray:
    """The leading principal components, each with deviation 1."""
    centered = values - values.mean(0)
    _, vectors = np.linalg.eigh((centered.T @ centered / len(values)).astype(np.float64))
    scores = centered @ vectors[:, ::-1][:, :MIDDLE_DIMENSIONS].astype(np.float32)
    return scores / scores.std(0)


def _attribute_columns(attributes: dict[str, np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """Kinds through the taxonomy and one column each; other codes one column each; numbers."""
    table = np.array([TAXONOMY[kind] for kind in scenes.KINDS], np.float32)
    columns, names = [], []
    for name in CARE:
        values = attributes[name]
        if values.dtype.kind == "f":
            block = values[:, None]
        else:
            block = (values[:, None] == np.arange(values.max() + 1)).astype(np.float32)
        if name in ("kind", "companion"):  # -1, no companion, has no taxonomy
            block = np.concatenate([block, table[values] * (values >= 0)[:, None]], 1)
        columns.append(block)
        names += [name] * block.shape[1]
    joined = np.concatenate(columns, 1).astype(np.float32)
    return (joined - joined.mean(0)) / np.maximum(joined.std(0), 1e-6), names


# -- where voxels lie ------------------------------------------------------------------------------


def anatomy(subject: int, rng: np.random.Generator) -> Anatomy:
    """A shell of cortex whose back is nsdgeneral; V1 at the pole, then V2, V3, hV4, the streams."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2) + 0.06 * _smooth_noise(rng)
    cortex = (radius < 1) & (radius > 0.66)
    back = np.where(cortex, y + 0.1 * _smooth_noise(rng), np.inf)
    mask = np.zeros(SHAPE, bool)
    mask.ravel()[np.argsort(back, axis=None, kind="stable")[: VOXELS[subject]]] = True
    places = np.argwhere(mask)
    regions = _assign(x[mask], y[mask], z[mask])
    return Anatomy(
        nsdgeneral=np.where(mask, 1, np.where(cortex, 0, -1)).astype(np.int16),
        visual=_labels(mask, regions, z, {"V1": (1, 2), "V2": (3, 4), "V3": (5, 6), "V4": (7, 7)}),
        streams=_labels(
            mask,
            regions,
            z,
            dict.fromkeys(("V1", "V2", "V3"), (1, 1))
            | {"V4": (2, 2), "ventral": (5, 5), "lateral": (6, 6), "parietal": (7, 7)},
        ),
        places=places,
        regions=regions,
    )


def _smooth_noise(rng: np.random.Generator) -> np.ndarray:
    field = gaussian_filter(rng.standard_normal(SHAPE), 2, mode="nearest")
    return field / field.std()


def _assign(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    regions = np.where(z > 0.25, "parietal", np.where(z < -0.25, "ventral", "lateral"))
    regions = regions.astype("<U8")
    pole = y + 0.4 * np.abs(z) + 0.2 * np.abs(x)
    free = np.ones(len(x), bool)
    for name, share in SHARES.items():
        order = np.argsort(np.where(free & ((name != "V4") | (z < 0)), pole, np.inf))
        here = order[: round(share * len(x))]
        regions[here], free[here] = name, False
    return regions


def _labels(mask: np.ndarray, regions: np.ndarray, z: np.ndarray, labels: dict) -> np.ndarray:
    """A volume of labels, (ventral, dorsal) for each region; 0 in no region, -1 off cortex."""
    out = np.zeros(SHAPE, np.int16)
    values = np.zeros(len(regions), np.int16)
    for name, (ventral, dorsal) in labels.items():
        here = regions == name
        values[here] = np.where(z[mask][here] < 0, ventral, dorsal)
    out[mask] = values
    return out


# -- what voxels respond to ------------------------------------------------------------------------


def responses(seen: Features, where: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Responses without noise, (scenes, V) float32, mean 0 and deviation 1 over these scenes."""
    out = np.empty((len(seen.maps), len(where.regions)), np.float32)
    for name in FIELDS:
        here = where.regions == name
        out[:, here] = _early_responses(seen.maps, where.places[here], name, rng)
    higher = ~np.isin(where.regions, list(FIELDS))
    out[:, higher] = _higher_responses(seen, where, higher, rng)
    return (out - out.mean(0)) / out.std(0)


def _early_responses(
    maps: np.ndarray, places: np.ndarray, region: str, rng: np.random.Generator
) -> np.ndarray:
    """(field average of a voxel's mix of contours and color) ** exponent."""
    base, growth, exponent, color = FIELDS[region]
    px, py, eccentricity = _field_centers(places, rng)
    sigma = (base + growth * eccentricity) * rng.lognormal(0, 0.2, len(px))
    cells = (np.arange(GRID) + 0.5) / GRID * DEGREES - DEGREES / 2
    gx = np.exp(-((cells[None] - px[:, None]) ** 2) / (2 * sigma[:, None] ** 2))
    gy = np.exp(-((cells[None] - py[:, None]) ** 2) / (2 * sigma[:, None] ** 2))
    field = (gy[:, :, None] * gx[:, None, :]).reshape(len(px), -1)
    field /= field.sum(1, keepdims=True)
    mix = _early_mix(len(px), color, rng)
    scaled = (maps - maps.mean((0, 2), keepdims=True)) / maps.std((0, 2), keepdims=True)
    pooled = scaled @ field.T.astype(np.float32)  # (scenes, 15, voxels)
    drive = np.einsum("scv,vc->sv", pooled, mix)
    return np.maximum(drive - np.quantile(drive, 0.02, axis=0), 0) ** exponent


def _early_mix(voxels: int, color: float, rng: np.random.Generator) -> np.ndarray:
    """(voxels, 15): one preferred orientation, a preferred scale, some color of either sign."""
    orientation = rng.integers(0, 4, voxels)
    scale = rng.choice(3, voxels, p=[0.3, 0.4, 0.3])
    prefers = np.cos((np.arange(4)[None] - orientation[:, None]) * np.pi / 4) ** 2 + 0.3
    sizes = 0.5 ** np.abs(np.arange(3)[None] - scale[:, None])
    energy = (sizes[:, :, None] * prefers[:, None, :]).reshape(voxels, 12)
    hue = rng.standard_normal((voxels, 3))
    energy /= np.linalg.norm(energy, axis=1, keepdims=True)
    hue /= np.linalg.norm(hue, axis=1, keepdims=True)
    return np.concatenate([(1 - color) * energy, color * hue], 1).astype(np.float32)


def _field_centers(places: np.ndarray, rng: np.random.Generator) -> tuple:
    """Field centers in degrees: the left half of the brain looks right, its lower half up."""
    x, y, z = ((places / (np.array(SHAPE) - 1)).T * 2 - 1).astype(np.float64)
    forward = np.argsort(np.argsort(y + 0.2 * rng.standard_normal(len(y)))) / max(len(y) - 1, 1)
    eccentricity = 0.3 * (DEGREES / 2 / 0.3) ** forward  # cortical magnification: log spacing
    angle = np.clip(-z * 2.2 + 0.25 * rng.standard_normal(len(z)), -1, 1) * np.pi / 2
    px = -np.sign(x + 1e-9) * eccentricity * np.cos(angle)
    return px, -eccentricity * np.sin(angle), eccentricity


def _higher_responses(
    seen: Features, where: Anatomy, higher: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Rectified shared tuning dimensions, mixed by place in the brain and by person."""
    shared = np.random.default_rng(TUNING_SEED)
    drives = _tuning(seen, shared)  # three of (scenes, TUNING_DIMENSIONS)
    template = _smooth_maps(shared, TUNING_DIMENSIONS)
    places, regions = where.places[higher] / (np.array(SHAPE) - 1), where.regions[higher]
    own = _smooth_maps(rng, TUNING_DIMENSIONS)
    loading = 0.8 * template(places) + 0.6 * own(places)
    loading += 0.6 * rng.standard_normal(loading.shape)  # neighbors differ
    weights = np.maximum(loading - 0.8, 0) + 0.05 * rng.standard_normal(loading.shape)
    out = np.empty((len(seen.middle), len(places)), np.float32)
    for drive, stream in zip(drives, ("ventral", "lateral", "parietal"), strict=True):
        here = regions == stream
        out[:, here] = drive @ weights[here].T.astype(np.float32)
    out = (out - out.mean(0)) / out.std(0)
    return np.log1p(np.exp(1.5 * out))  # soft rectification: responses saturate from below


def _tuning(seen: Features, rng: np.random.Generator) -> list[np.ndarray]:
    """Each dimension likes a random direction of attributes and mid-level statistics."""
    size = seen.attributes.shape[1] + MIDDLE_DIMENSIONS
    likes = rng.standard_normal((size, TUNING_DIMENSIONS))
    sizes = {name: seen.names.count(name) for name in CARE}
    out = []
    for stream in range(3):
        care = [CARE[name][stream] / np.sqrt(sizes[name]) for name in seen.names]
        care += [MIDDLE_CARE[stream] / np.sqrt(MIDDLE_DIMENSIONS)] * MIDDLE_DIMENSIONS
        inputs = np.concatenate([seen.attributes, seen.middle], 1)
        drive = inputs @ (likes * np.array(care)[:, None]).astype(np.float32)
        drive /= drive.std(0)
        out.append(np.maximum(drive, -0.5))
    return out


def _smooth_maps(rng: np.random.Generator, count: int, waves: int = 8):
    """`count` smooth random maps of unit variance over places in [0, 1]³."""
    frequency = rng.standard_normal((count, waves, 3)) * 5
    phase = rng.uniform(0, 2 * np.pi, (count, waves))

    def at(places: np.ndarray) -> np.ndarray:
        angles = np.einsum("vx,cwx->vcw", places, frequency) + phase
        return np.cos(angles).sum(2) * np.sqrt(2 / waves)

    return at


# -- how well they are measured --------------------------------------------------------------------


def ncsnr(subject: int, where: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Signal deviation over noise deviation of single trials, (V,), clustered in space."""
    field = _smooth_noise(rng)[tuple(where.places.T)]
    mixed = np.sqrt(NCSNR_CLUSTER) * field
    mixed = mixed + np.sqrt(1 - NCSNR_CLUSTER) * rng.standard_normal(len(field))
    rank = ndtr((mixed - mixed.mean()) / mixed.std())
    weibull = (-np.log1p(-rank) / np.log(2)) ** (1 / NCSNR_SHAPE)  # median 1
    person = PEOPLE[subject] / np.mean(list(PEOPLE.values()))
    region = np.array([REGIONS[name] for name in where.regions])
    return (MEDIAN_NCSNR * person * weibull * region / np.median(region)).astype(np.float32)


def noise(where: Anatomy, trials: list[int], rng: np.random.Generator) -> np.ndarray:
    """Noise of deviation 1, (all trials, V): white, local, and networks that last over trials.

    `trials` are the sessions' lengths; nothing lasts from one session to the next.
    """
    places = where.places.astype(np.float32)
    distance = ((places[:, None] - places[None]) ** 2).sum(2)
    kernel = np.exp(-distance / (4 * LOCAL_WIDTH**2))
    local = np.linalg.cholesky(kernel + 1e-3 * np.eye(len(kernel), dtype=np.float32))
    local /= np.linalg.norm(local, axis=1, keepdims=True)
    maps = _smooth_maps(rng, NUM_NETWORKS)(places / (np.array(SHAPE) - 1)).astype(np.float32)
    maps /= np.linalg.norm(maps, axis=1, keepdims=True)
    shape = (sum(trials), len(places))
    out = np.sqrt(WHITE) * rng.standard_normal(shape, np.float32)
    out += np.sqrt(LOCAL) * (rng.standard_normal(shape, np.float32) @ local.T)
    courses = np.concatenate([_lasting(n, NUM_NETWORKS, rng) for n in trials])
    return out + np.sqrt(NETWORKS) * (courses @ maps.T)


def _lasting(trials: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """First-order autoregressive courses of deviation 1, (trials, count)."""
    course = rng.standard_normal((trials, count), np.float32)
    for trial in range(1, trials):
        course[trial] *= np.sqrt(1 - PERSISTENCE**2)
        course[trial] += PERSISTENCE * course[trial - 1]
    return course


def measure(
    signal: np.ndarray, snr: np.ndarray, trials: list[int], where: Anatomy, rng: np.random.Generator
) -> np.ndarray:
    """Betas in percent signal change, (all trials, V): signal, noise, drift of mean and gain."""
    betas = signal * snr + noise(where, trials, rng)
    voxels = len(snr)
    size = rng.lognormal(np.log(1.5), 0.35, voxels) / np.sqrt(1 + snr**2)  # percent
    level = rng.normal(0.8, 0.6, voxels)  # percent
    first = 0
    for length in trials:
        here = slice(first, first + length)
        gain = np.exp(rng.normal(0, GAIN_DRIFT) + rng.normal(0, VOXEL_GAIN_DRIFT, voxels))
        shift = rng.normal(0, MEAN_DRIFT, voxels)
        betas[here] = level + size * (gain * betas[here] + shift)
        first += length
    return betas
