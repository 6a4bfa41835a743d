"""Voxels reach the vertices that NSD's transforms name; what is missing is said in one line.

NSD's own surfaces are not here: a small ball and its transforms in the same formats stand in.
"""

import sys

import matplotlib
import nibabel
import numpy as np
import pytest

from mindeye2_lite import inspection, surfaces, viz_data

matplotlib.use("Agg")
SHAPE = np.array((6, 7, 8))


def ball(rings=8, around=9):
    """Vertices (n, 3) in mm and triangles (m, 3) of a closed surface."""
    height = np.linspace(-0.98, 0.98, rings)
    turn = np.linspace(0, 2 * np.pi, around, endpoint=False)
    flat = np.sqrt(1 - height**2)[:, None]
    points = [
        flat * np.cos(turn),
        flat * np.sin(turn),
        np.broadcast_to(height[:, None], (rings, around)),
    ]
    index = np.arange(rings * around).reshape(rings, around)
    a, b = index[:-1], index[1:]
    right, above = np.roll(a, -1, 1), np.roll(b, -1, 1)
    faces = [np.stack(corners, -1).reshape(-1, 3) for corners in ((a, right, above), (a, above, b))]
    return 50 * np.stack(points, -1).reshape(-1, 3), np.concatenate(faces)


def save(path, columns):
    """An mgz file (vertices, 1, 1[, columns]) as NSD has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.asarray(columns, np.float32)
    data = data.reshape(len(data), 1, 1, -1) if data.ndim > 1 else data[:, None, None]
    nibabel.save(nibabel.MGHImage(data, np.eye(4)), path)
    return path


@pytest.fixture
def raw(tmp_path):
    """A raw tree of one person: inflated surfaces, and a transform from vertices to voxels."""
    vertices, faces = ball()
    folder = tmp_path / "nsddata/freesurfer/subj01/surf"
    folder.mkdir(parents=True)
    inside = (vertices / 50 + 1) / 2 * (SHAPE - 1) + 1  # MATLAB's coordinates, from 1
    inside[0] = surfaces.NOWHERE
    for hemisphere in ("lh", "rh"):
        nibabel.freesurfer.write_geometry(folder / f"{hemisphere}.inflated", vertices, faces)
        transforms = tmp_path / "nsddata/ppdata/subj01/transforms"
        save(transforms / f"{hemisphere}.func1pt8-to-white.mgz", inside)
        save(transforms / f"{hemisphere}.func1pt0-to-white.mgz", inside[::-1])
    return tmp_path


def report(**recipe):
    position = np.argwhere(np.ones(SHAPE))
    maps = {"position": position, "shape": SHAPE, "reliability": position[:, 2] / 10}
    made = object.__new__(inspection.Report)  # the parts that a surface needs
    vars(made).update(subject=1, maps=maps, recipe=recipe, unknown={})
    return made


def test_coordinates_count_from_one_and_the_nearest_voxel_wins(tmp_path):
    at = [
        (1, 1, 1),
        (2.4, 1, 1),
        (2.6, 1, 1),
        (6, 7, 8),
        (9999, 9999, 9999),
        (6.6, 7, 8),
        (1, 1, 2),
    ]
    path = save(tmp_path / "lh.func1pt8-to-white.mgz", at)
    position = np.array([(0, 0, 0), (1, 0, 0), (2, 0, 0), (5, 6, 7)])
    found = surfaces.sample(np.array([10.0, 20, 30, 40]), position, SHAPE, path)
    np.testing.assert_array_equal(found, [10, 20, 30, 40, np.nan, np.nan, np.nan])


def test_fsaverage_vertices_count_from_one(tmp_path):
    path = save(tmp_path / "lh.white-to-fsaverage.mgz", [3, 1, 3])
    assert surfaces.to_fsaverage5(np.array([0.1, 0.2, 0.3]), path).tolist() == [0.3, 0.1, 0.3]
    with pytest.raises(ValueError, match="names vertex 3, there are 2"):
        surfaces.to_fsaverage5(np.array([0.1, 0.2]), path)


def test_a_report_is_drawn_on_the_persons_own_surface(raw):
    values, meshes, name = surfaces.of_report(raw, report())
    assert name == "subject 1, inflated" and np.isnan(values["lh"][0])
    height = meshes["lh"][0][1:, 2]
    assert np.corrcoef(values["lh"][1:], height)[0, 1] > 0.98, "the voxel below the vertex"
    figure = viz_data.surface_map(values, meshes, note="a ball")
    assert len(figure.axes) == 7  # two hemispheres from three sides, and the scale
    figure.canvas.draw()


def test_the_transform_is_that_of_the_space_that_was_prepared(raw):
    one, other = (
        surfaces.of_report(raw, report(space=space))[0]["lh"] for space in ("func1mm", "func1pt8mm")
    )
    np.testing.assert_array_equal(one, other[::-1])


def test_without_the_persons_surface_fsaverage5_of_nilearn_is_taken(raw):
    for hemisphere in ("lh", "rh"):
        (raw / f"nsddata/freesurfer/subj01/surf/{hemisphere}.inflated").unlink()
        path = raw / f"nsddata/ppdata/subj01/transforms/{hemisphere}.white-to-fsaverage.mgz"
        save(path, np.arange(163_842) % 70 + 2)
    values, meshes, name = surfaces.of_report(raw, report())
    assert name == "fsaverage5, inflated"
    assert len(values["rh"]) == len(meshes["rh"][0]) == 10_242
    assert np.isfinite(values["rh"]).all()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("ppdata/subj01/transforms/lh.func1pt8-to-white.mgz", "cut short or no mgz file"),
        ("freesurfer/subj01/surf/rh.inflated", "cut short or no FreeSurfer surface"),
    ],
)
def test_damaged_files_are_named_in_one_line(raw, name, match):
    path = raw / "nsddata" / name
    path.write_bytes(b"\x00" * 50)
    with pytest.raises(ValueError, match=match) as caught:
        surfaces.of_report(raw, report())
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_of_other_sizes_are_named(raw):
    folder = raw / "nsddata/ppdata/subj01/transforms"
    save(folder / "lh.func1pt8-to-white.mgz", np.ones((5, 2)))
    with pytest.raises(ValueError, match="expected 3 numbers per vertex"):
        surfaces.of_report(raw, report())
    save(folder / "lh.func1pt8-to-white.mgz", np.ones((5, 3)))
    with pytest.raises(ValueError, match=r"lh.inflated has 72 vertices, the transform 5"):
        surfaces.of_report(raw, report())


def test_what_a_surface_cannot_be_drawn_without_is_said(raw, tmp_path):
    without = report()
    del without.maps["reliability"]
    without.unknown["reliability"] = "no image was shown twice"
    with pytest.raises(ValueError, match="no surface without reliability .* shown twice"):
        surfaces.of_report(raw, without)
    with pytest.raises(FileNotFoundError, match="transforms is missing"):
        surfaces.of_report(tmp_path / "elsewhere", report())


def test_without_nilearn_one_line_says_how_to_get_it(raw, monkeypatch):
    values, meshes, _ = surfaces.of_report(raw, report())
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(ValueError, match=r"needs nilearn: python -m pip install"):
        viz_data.surface_map(values, meshes)
