"""Which voxels: NSD's masks and regions, and what its atlases call every voxel.

The volumes lie in `nsddata/ppdata/subj01/func1pt8mm/roi`. Those of one hemisphere (`lh.`, `rh.`)
hold nothing that the others do not. V = voxels of the chosen mask, in C order of (x, y, z). Read
with notebook 01.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mindeye2_lite.nsd_sessions import open_nifti, volume

# Region -> its labels in prf-visualrois (ventral and dorsal half; hV4 is whole) and in streams.
VISUAL = {"V1": (1, 2), "V2": (3, 4), "V3": (5, 6), "V4": (7,)}
STREAMS = {
    **{"early": (1,), "midventral": (2,), "midlateral": (3,), "midparietal": (4,)},
    **{"ventral": (5,), "lateral": (6,), "parietal": (7,)},
}
ATLASES = ("prf-visualrois", "prf-eccrois", "streams", "floc-*", "corticalsulc", "Kastner2015")
ATLASES += ("HCP_MMP1", "nsdgeneral")
REGIONS = {name: ("prf-visualrois", labels) for name, labels in VISUAL.items()}
REGIONS |= {name: ("streams", labels) for name, labels in STREAMS.items()}
REGIONS |= {"nsdgeneral": ("nsdgeneral", (1,))}  # -1 is what is no cortex


@dataclass(frozen=True, eq=False)
class Mask:
    """Voxels of one person's volume; `name` is what messages and results call them."""

    name: str
    inside: np.ndarray  # (x, y, z) bool
    affine: np.ndarray  # (4, 4): index in the volume -> mm

    @cached_property
    def position(self) -> np.ndarray:
        """(V, 3) int16: x, y, z in the volume, from 0."""
        return np.argwhere(self.inside).astype(np.int16)

    @property
    def fingerprint(self) -> str:
        """The same only for the same voxels of a volume of the same size."""
        shape = np.array(self.inside.shape, np.int16)
        return hashlib.sha256(shape.tobytes() + self.position.tobytes()).hexdigest()

    def of(self, path: Path) -> np.ndarray:
        """A volume's values at the V voxels; ValueError in one line where its size is another."""
        values = volume(path)
        if values.shape != self.inside.shape:
            raise ValueError(
                f"{path} has shape {values.shape}, {self.name} has {self.inside.shape}"
            )
        return values[self.inside]


def choose(folder: Path, subject: int, mask: str | Path | Sequence[str]) -> Mask:
    """The mask that was asked for, from a file or from the regions in `folder`; never empty.

    `mask`: "nsdgeneral"; a NIfTI file, nonzero inside, with `{subject}` or `{subject:02d}` in its
    path for the number; regions as a list or "V1,V2,ventral,floc-faces", of which the union is
    taken. Errors: FileNotFoundError, ValueError in one line.
    """
    if isinstance(mask, Path) or (isinstance(mask, str) and mask.endswith((".nii", ".nii.gz"))):
        path = str(mask).replace("{subject:02d}", f"{subject:02d}")
        path = Path(path.replace("{subject}", str(subject)))
        name, inside = Path(mask).name, np.nan_to_num(volume(path)) != 0
    else:
        names = [n.strip() for n in mask.split(",")] if isinstance(mask, str) else list(mask)
        if not names:
            raise ValueError('mask is an empty list: name regions, or say mask="nsdgeneral"')
        name, path = ",".join(names), _file(folder, names[0])
        inside = _region(folder, names[0])
        for other in names[1:]:
            more = _region(folder, other)
            if more.shape != inside.shape:
                raise ValueError(
                    f"{_file(folder, other)} has shape {more.shape}, {path} has {inside.shape}"
                )
            inside |= more
    if not inside.any():
        raise ValueError(f"mask {name} of subject {subject} holds no voxel")
    return Mask(name, inside, open_nifti(path).affine)


def _region(folder: Path, name: str) -> np.ndarray:
    values = volume(_file(folder, name))
    return np.isin(values, REGIONS[name][1]) if name in REGIONS else values > 0


def _file(folder: Path, name: str) -> Path:
    """The volume that a region is part of; any volume's name stands for all that it labels."""
    if name in REGIONS:
        return folder / f"{REGIONS[name][0]}.nii.gz"
    found = atlases(folder)
    if name not in found:
        raise ValueError(
            f"region {name!r} is unknown: choose of {', '.join(REGIONS)}, or a volume of {folder}: "
            + (", ".join(found) or "there is none")
        )
    return found[name]


def atlases(folder: Path) -> dict[str, Path]:
    """NSD's volumes of labels that are there, by name."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []  # with links that lead nowhere
    found = [path for name in ATLASES for path in files if path.match(f"{name}.nii.gz")]
    return {path.name.removesuffix(".nii.gz"): path for path in found}


def labels(folder: Path, mask: Mask) -> dict[str, np.ndarray]:
    """What each atlas calls the V voxels, (V,) int16, by the atlas's name."""
    found = {}
    for name, path in atlases(folder).items():
        values = np.nan_to_num(mask.of(path))
        with np.errstate(invalid="ignore"):
            found[name] = values.astype(np.int16)
        if (found[name] != values).any():
            raise ValueError(f"{path} holds values that are no labels (whole numbers of 16 bits)")
    return found


def regions(named: dict[str, np.ndarray], voxels: int) -> dict[str, np.ndarray]:
    """Region masks over the V voxels, named as in the release, and NSD's three streams.

    `named` are the atlases' labels; regions of an atlas that is not there are left out.
    """
    found = {"nsd_general": np.ones(voxels, bool)}
    if "prf-visualrois" in named:
        visual = named["prf-visualrois"]
        found |= {name: np.isin(visual, which) for name, which in VISUAL.items()}
        found["higher_vis"] = ~np.isin(visual, [n for which in VISUAL.values() for n in which])
    if "streams" in named:
        for name in ("ventral", "lateral", "parietal"):
            found[name] = np.isin(named["streams"], STREAMS[name])
    return found
