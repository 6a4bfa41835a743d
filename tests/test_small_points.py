"""One point of every table, curve and ablation, measured again, lies where its file says."""

import json

import numpy as np
import pytest

from mindeye2_lite import grids, paths, small_points, synthetic

SEED = 0
STORED = paths.results("small_points")
POINTS = json.loads(STORED.read_text())["points"] if STORED.exists() else {}


@pytest.fixture(scope="module")
def root(nsd_forms):
    """The cohort that `small_points.cohort` makes, which other tests read, too."""
    made = nsd_forms / "hdf5" / "out"
    about = json.loads((made / "provenance.json").read_text())
    assert (about["scale"], about["seed"]) == (small_points.SCALE, 0)
    return made


def test_every_sweep_has_a_point_with_five_seeds():
    assert set(POINTS) == set(grids.SWEEPS)
    for point in POINTS.values():
        for name, score in point["scores"].items():
            assert len(score["values"]) >= 5
            ours = small_points.interval(score["values"], small_points.smallest(name))
            assert (score["low"], score["high"]) == pytest.approx(ours, abs=1e-4)


@pytest.mark.parametrize("name", grids.SWEEPS)
def test_a_point_measured_from_scratch_lies_in_its_interval(name, root):
    found, stored = small_points.scores(name, root, SEED), POINTS[name]["scores"]
    assert found.keys() == stored.keys()
    outside = {
        score: (value, stored[score])
        for score, value in found.items()
        if not stored[score]["low"] <= value <= stored[score]["high"]
    }
    assert outside == {}


def test_the_interval_holds_ninety_nine_of_hundred_new_seeds():
    rng, held = np.random.default_rng(0), 0
    for values in rng.normal(5, 2, size=(1000, 6)).tolist():
        low, high = small_points.interval(values[:5])
        held += low <= values[5] <= high
    assert 0.98 <= held / 1000 <= 1
    assert small_points.interval([0.5] * 5) == pytest.approx((0.48, 0.52))


def test_the_cohort_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "cohort", lambda name: tmp_path / name)
    made = []
    monkeypatch.setattr(synthetic, "write_cohort", lambda root, **how: made.append(how["scale"]))
    monkeypatch.setattr(small_points.nsd, "prepare", lambda raw, out, **how: out.mkdir())
    assert small_points.cohort(progress=False) == small_points.cohort(progress=False)
    assert made == [small_points.SCALE]
