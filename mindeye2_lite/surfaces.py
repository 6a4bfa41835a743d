"""From voxels to the cortex as a surface, by the transforms that NSD ships.

| file, one per hemisphere lh and rh | content |
|---|---|
| `ppdata/subj01/transforms/lh.func1pt8-to-white.mgz` | per vertex (x, y, z) in the volume |
| `ppdata/subj01/transforms/lh.white-to-fsaverage.mgz` | per fsaverage vertex, one of theirs |
| `freesurfer/subj01/surf/lh.inflated` | the surface: vertices (n, 3) in mm, triangles (m, 3) |

Coordinates and vertices count from 1, and 9999 stands where there is none (NSD Data Manual). Not
run on NSD's own files by us: tests write small ones of these forms.
"""

from pathlib import Path

import nibabel
import numpy as np

from mindeye2_lite.inspection import Report
from mindeye2_lite.layout import there

HEMISPHERES = ("lh", "rh")
NOWHERE = 9999
SPACES = {"func1pt8mm": "func1pt8", "func1mm": "func1pt0"}  # folder -> in names of transforms
FSAVERAGE5 = 10_242  # its vertices are the first of fsaverage's


def sample(
    values: np.ndarray, position: np.ndarray, shape: np.ndarray, transform: Path
) -> np.ndarray:
    """The value of the nearest voxel for every vertex, NaN where none of the voxels is there.

    `values` (V,) belong to the voxels at `position` (V, 3), which count from 0, in a volume of
    `shape`; `transform` is a `func1pt8-to-white.mgz`. Returns (vertices,) floats.
    """
    volume = np.full(tuple(int(n) for n in shape), np.nan)
    volume[tuple(position.astype(int).T)] = values
    at = _columns(transform, 3)
    known = np.isfinite(at).all(1) & (at < NOWHERE).all(1)
    nearest = np.rint(np.where(known[:, None], at, 1)).astype(int) - 1
    known &= ((nearest >= 0) & (nearest < volume.shape)).all(1)
    out = np.full(len(at), np.nan)
    out[known] = volume[tuple(nearest[known].T)]
    return out


def to_fsaverage5(values: np.ndarray, transform: Path) -> np.ndarray:
    """A person's (vertices,) on fsaverage5, (10242,); `transform` is a `white-to-fsaverage.mgz`."""
    vertex = _columns(transform, 1)[:FSAVERAGE5, 0].astype(int) - 1
    if len(vertex) and not (0 <= vertex.min() and vertex.max() < len(values)):
        raise ValueError(f"{transform} names vertex {vertex.max() + 1}, there are {len(values)}")
    return values[vertex]


def of_report(
    raw: Path, report: Report
) -> tuple[dict[str, np.ndarray], dict[str, tuple[np.ndarray, np.ndarray]], str]:
    """Reliability and meshes (vertices in mm, triangles) by hemisphere; the surface's name.

    The person's own inflated surface below NSD's root `raw`; nilearn's fsaverage5 where that is
    not there but the transform to it is. FileNotFoundError or ValueError in one line.
    """
    missing = [name for name in ("reliability", "position") if name not in report.maps]
    if missing:
        why = report.unknown.get("reliability") or report.unknown.get("voxel positions")
        raise ValueError(f"no surface without {missing[0]} of voxels: {why}")
    values, position, shape = (report.maps[n] for n in ("reliability", "position", "shape"))
    subject, data = report.subject, Path(raw) / "nsddata"
    folder = there(data / "ppdata" / f"subj{subject:02d}" / "transforms")
    space = SPACES[report.recipe.get("space") or _space(shape)]
    own = data / "freesurfer" / f"subj{subject:02d}" / "surf"
    sampled = {
        hemisphere: sample(values, position, shape, folder / f"{hemisphere}.{space}-to-white.mgz")
        for hemisphere in HEMISPHERES
    }
    if all((own / f"{hemisphere}.inflated").exists() for hemisphere in HEMISPHERES):
        meshes = {h: _geometry(own / f"{h}.inflated") for h in HEMISPHERES}
        for h, mesh in meshes.items():
            _same(own / f"{h}.inflated", len(mesh[0]), len(sampled[h]))
        return sampled, meshes, f"subject {subject}, inflated"
    on_average = {
        h: to_fsaverage5(sampled[h], folder / f"{h}.white-to-fsaverage.mgz") for h in HEMISPHERES
    }
    return on_average, _fsaverage5(), "fsaverage5, inflated"


def _space(shape: np.ndarray) -> str:
    """NSD's volumes of 1 mm are longer than 130 voxels each way, those of 1.8 mm shorter."""
    return "func1mm" if min(shape) > 120 else "func1pt8mm"


def _columns(path: Path, columns: int) -> np.ndarray:
    """A transform as (vertices, columns); ValueError in one line where it is something else."""
    try:
        data = np.asarray(nibabel.load(there(path)).dataobj, float)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise ValueError(f"{path} is cut short or no mgz file ({error})") from error
    table = data.reshape(len(data), -1, order="F")
    if table.shape[1] != columns:
        raise ValueError(f"{path} has shape {data.shape}, expected {columns} numbers per vertex")
    return table


def _geometry(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        vertices, triangles = nibabel.freesurfer.read_geometry(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is cut short or no FreeSurfer surface ({error})") from error
    return vertices, triangles


def _same(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"{path} has {found} vertices, the transform {expected}")


def _fsaverage5() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    try:
        from nilearn import datasets, surface
    except ModuleNotFoundError as error:
        raise ValueError(
            "a surface needs nilearn: python -m pip install 'mindeye2-lite[surface]'"
        ) from error
    files = datasets.fetch_surf_fsaverage("fsaverage5")  # comes with nilearn: no network
    meshes = {"lh": files["infl_left"], "rh": files["infl_right"]}
    loaded = {h: surface.load_surf_mesh(path) for h, path in meshes.items()}
    return {h: (mesh.coordinates, mesh.faces) for h, mesh in loaded.items()}
