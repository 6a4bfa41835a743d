"""What is known of the real data, and numbers that say how good data are.

noise_ceiling, estimate_ncsnr, reliability: how much of a voxel is signal; by_region,
behavior_summary: tables. All of them are reachable as `nsd.NAME`. V = voxels of nsdgeneral. Read
with notebook 01.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mindeye2_lite.layout import COLUMNS
from mindeye2_lite.trial_access import Trials

# Of the release, by subject: voxels of nsdgeneral, sessions, trials of the two test splits. A
# session has 750 trials; those that are not in new_test are for training.
EXPECTED_TRIALS = {
    subject: dict(zip(("voxels", "sessions", "test", "new_test"), counts, strict=True))
    for subject, counts in {
        1: (15724, 40, 2770, 3000),
        2: (14278, 40, 2770, 3000),
        3: (15226, 32, 2113, 2371),
        4: (13153, 30, 1985, 2188),
        5: (13039, 40, 2770, 3000),
        6: (17907, 32, 2113, 2371),
        7: (12682, 40, 2770, 3000),
        8: (14386, 30, 1985, 2188),
    }.items()
}

# What is known of the real data, to set beside a cohort's numbers: (what, values, source).
PUBLISHED = (
    (
        "voxels of nsdgeneral, subjects 1 to 8",
        (15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386),
        "MindEye2's released betas",
    ),
    ("sessions, subjects 1 to 8", (40, 40, 32, 30, 40, 32, 40, 30), "Allen et al. 2022"),
    (
        "mean ncsnr over cortex, subjects 1 to 7",
        (0.1637, 0.1654, 0.1201, 0.1226, 0.1685, 0.1606, 0.1281),
        "NSD's ncsnr.nii.gz (b3, 1.8 mm), as reported in cvnlab/nsddatapaper issue 1",
    ),
    (
        "largest ncsnr, subjects 1 to 7",
        (1.4188, 1.3350, 1.2693, 1.3528, 1.6371, 1.1553, 1.1764),
        "the same",
    ),
    ("mean ncsnr", (0.260,), "Allen et al. 2022, as quoted in the same issue; region not given"),
    (
        "median ceiling at three trials, V1, V2, V4 and ventral stream, percent: volume, surface",
        (24.2, 36.2),
        "Allen2022 notebooks of brain-score/vision",
    ),
)


# -- numbers that say how good the data are --------------------------------------------------------


def noise_ceiling(
    ncsnr: float | np.ndarray | Tensor, repeats: int = 3
) -> float | np.ndarray | Tensor:
    """Percent of variance that a perfect model could explain: 100 s² / (s² + 1/repeats).

    s = ncsnr, the deviation of the signal over that of the noise in single trials. Source: Allen
    et al. 2022, Methods, "Noise ceiling estimation".
    """
    return 100 * ncsnr**2 / (ncsnr**2 + 1 / repeats)


def estimate_ncsnr(trials: Trials) -> np.ndarray:
    """ncsnr (V,) from the spread between repeats of the same image, as NSD's own files have it.

    noise variance = the variance between repeats, pooled over images; signal variance = total
    minus noise, at least 0.
    """
    voxels = trials.voxels.numpy().astype(np.float64)
    images, first, counts = np.unique(
        trials.image_id.numpy(), return_inverse=True, return_counts=True
    )
    sums = np.zeros((len(images), voxels.shape[1]))
    np.add.at(sums, first, voxels)
    within = ((voxels - (sums / counts[:, None])[first]) ** 2).sum(0)
    noise = within / max((counts - 1).sum(), 1)
    signal = np.maximum(voxels.var(0, ddof=1) - noise, 0)
    return np.sqrt(signal / noise)


def reliability(trials: Trials, first: int = 0, second: int = 1) -> np.ndarray:
    """Correlation over images between two showings of the same image, (V,)."""
    both = trials.image_id[trials.repeat == second]
    pair = []
    for repeat in (first, second):
        here = (trials.repeat == repeat) & torch.isin(trials.image_id, both)
        voxels = trials.voxels[here][trials.image_id[here].argsort()]
        pair.append((voxels - voxels.mean(0)) / voxels.std(0, correction=0))
    return (pair[0] * pair[1]).mean(0).numpy()


def by_region(values: np.ndarray, rois: dict[str, np.ndarray]) -> pd.DataFrame:
    """Voxel count, median and quartiles of a value per voxel in every region."""
    return pd.DataFrame(
        [
            (name, mask.sum(), *np.percentile(values[mask], (50, 25, 75)))
            for name, mask in rois.items()
        ],
        columns=["region", "voxels", "median", "lower quartile", "upper quartile"],
    ).set_index("region")


def behavior_summary(trials: Trials) -> pd.DataFrame:
    """Per session: share answered, hits (old called old), false alarms, median RT in ms."""
    table = pd.DataFrame(trials.behavior.numpy(), columns=list(COLUMNS))
    rows = {}
    for session, here in table.groupby("SESSION"):
        answered = here[here.ISCORRECT >= 0]
        old, new = answered[answered.ISOLD == 1], answered[answered.ISOLD == 0]
        rows[int(session)] = {
            "trials": len(here),
            "answered": len(answered) / len(here),
            "hits": old.ISCORRECT.mean(),
            "false alarms": 1 - new.ISCORRECT.mean(),
            "RT (ms)": answered.RT.median(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("session")
