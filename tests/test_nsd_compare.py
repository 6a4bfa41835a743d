"""Two builds of the same betas: what was done to the other one is found and named."""

from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest

from mindeye2_lite import cli, layout, nsd, trial_access
from mindeye2_lite.layout_writing import Person, update_hdf5, write_person

SESSIONS, TRIALS, SIDE, VOXELS = 5, 80, (6, 7, 8), 260


def session_of(signal, session):
    """Percent signal change that drifts from session to session."""
    rng = np.random.default_rng([7, session])
    gain = rng.uniform(0.5, 2, VOXELS)
    noise = signal[(session - 1) * TRIALS : session * TRIALS]
    return (noise * gain + rng.normal(0, 1, VOXELS)).astype(np.float32)


class Read:
    def __init__(self, signal):
        self.signal = signal

    def __call__(self, session):
        return session_of(self.signal, session)


def records(rng):
    table = np.full((SESSIONS * TRIALS, 17), -1.0)
    table[:, layout.IMAGE] = rng.permutation(SESSIONS * TRIALS)
    table[:, layout.SESSION] = np.arange(SESSIONS * TRIALS) // TRIALS + 1
    table[:, layout.GLOBAL_TRIAL] = np.arange(SESSIONS * TRIALS)
    table[:, layout.SHARED] = rng.random(SESSIONS * TRIALS) < 0.15
    return table


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Our layout, and the percent signal that it was made from."""
    root = tmp_path_factory.mktemp("compare") / "ours"
    rng = np.random.default_rng(0)
    # A common pattern and a share of each voxel's neighbors: nothing is independent in a brain.
    signal = rng.normal(0, 1, (SESSIONS * TRIALS, VOXELS))
    signal += 0.5 * np.roll(signal, 1, axis=1) + 0.5 * rng.normal(0, 1, (SESSIONS * TRIALS, 1))
    ncsnr = rng.uniform(0, 0.5, VOXELS).astype(np.float32)
    table = records(rng)
    write_person(root, Person(1, table, Read(signal), ncsnr))
    places = np.sort(rng.choice(np.prod(SIDE), VOXELS, replace=False))
    position = np.stack(np.unravel_index(places, SIDE), axis=1)
    update_hdf5(root / "voxels.hdf5", {"subj01": {"position": position}})
    first = np.arange(VOXELS) < 100
    regions = {"nsd_general": np.ones(VOXELS, bool), "V1": first, "higher_vis": ~first}
    update_hdf5(root / "brain_region_masks.hdf5", {"subj01": regions})
    raw = np.concatenate([session_of(signal, s) for s in range(1, SESSIONS + 1)])
    return SimpleNamespace(root=root, raw=raw, table=table, position=position, ncsnr=ncsnr)


@pytest.fixture
def ours(built):
    with h5py.File(layout.betas_file(built.root, 1)) as file:
        return file["betas"][:]


@pytest.fixture
def released(tmp_path):
    """Write other betas as a released file: nothing but `betas`."""

    def write(betas):
        path = tmp_path / layout.betas_file(tmp_path, 1).name
        with h5py.File(path, "w") as file:
            file["betas"] = betas
        return tmp_path

    return write


def verdict(found):
    """The lines, each plain and short enough for a terminal."""
    text = str(found)
    assert 3 <= len(text.splitlines()) <= 7 and "nan" not in text
    return text


def test_the_same_betas_are_called_the_same(built, ours, released):
    found = nsd.compare(built.root, released(ours))
    assert found.identical and found.voxels == found.trials == "same"
    assert verdict(found).startswith("The same betas, number for number.")
    shape = (SESSIONS, VOXELS)
    assert found.correlation.shape == found.scale.shape == found.offset.shape == shape
    np.testing.assert_allclose(found.correlation, 1, atol=1e-6)
    np.testing.assert_allclose(found.scale, 1, atol=1e-6)
    np.testing.assert_allclose(found.offset, 0, atol=1e-6)
    assert found.best in ("all", "sessions") and found.residual["all"] < 1e-6
    assert found.residual["sessions"] == found.residual["all"]
    assert found.residual["pooled"] == found.residual["global"] > 0.05


def test_scale_and_offset_are_found_per_session_and_voxel(built, ours, released):
    rng = np.random.default_rng(1)
    scale = rng.uniform(0.5, 3, (SESSIONS, VOXELS))
    offset = rng.normal(0, 2, (SESSIONS, VOXELS))
    session = np.arange(len(ours)) // TRIALS
    found = nsd.compare(built.root, released(ours * scale[session] + offset[session]))
    np.testing.assert_allclose(found.scale, scale, rtol=1e-4)
    np.testing.assert_allclose(found.offset, offset, atol=1e-4)
    assert "The same betas on another scale." in verdict(found)
    assert "none of ours explains released" in str(found) and not found.identical


def test_one_other_session_is_named(built, ours, released):
    ours[2 * TRIALS : 3 * TRIALS] = np.random.default_rng(8).normal(0, 1, (TRIALS, VOXELS))
    found = nsd.compare(built.root, released(ours))
    assert "sessions that agree less: 3" in verdict(found)
    assert np.median(found.correlation[2]) < 0.1 and found.correlation[[0, 1, 3, 4]].min() > 0.999


def test_trials_that_were_shifted_are_counted(built, ours, released):
    found = nsd.compare(built.root, released(ours[3:]))
    assert found.trials == "shifted"
    assert "each lies 3 rows earlier" in verdict(found)
    assert found.trial_order[3:].tolist() == list(range(len(ours) - 3))
    assert (found.trial_order[:3] == -1).all() and np.nanmin(found.correlation) > 0.999


def test_trials_in_another_order_are_found_again(built, ours, released):
    order = np.random.default_rng(2).permutation(len(ours))
    found = nsd.compare(built.root, released(ours[order]))
    assert found.trials == "permuted" and (order[found.trial_order] == np.arange(len(ours))).all()
    assert "lie in another row, 0 are not there" in verdict(found)
    assert "same numbers in another order" in str(found)


def test_two_late_sessions_that_changed_places_are_found(built, ours, released):
    order = [0, 1, 2, 4, 3]
    changed = ours.reshape(SESSIONS, TRIALS, VOXELS)[order].reshape(ours.shape)
    found = nsd.compare(built.root, released(changed))
    assert found.trials == "permuted" and np.nanmin(found.correlation) > 0.999
    assert found.trial_order[::TRIALS].tolist() == [TRIALS * s for s in order]


def test_exchanged_and_reversed_sessions_are_found(built, ours, released):
    blocks = ours.reshape(SESSIONS, TRIALS, VOXELS)[[0, 1, 3, 2, 4]].reshape(ours.shape)
    changed = blocks.copy()
    changed[:TRIALS] = changed[:TRIALS][::-1]
    found = nsd.compare(built.root, released(changed))
    assert found.trials == "permuted"
    assert found.trial_order[2 * TRIALS] == 3 * TRIALS and found.trial_order[0] == TRIALS - 1


def fortran(position):
    """Our voxels in the order in which x runs fastest."""
    return np.argsort(np.ravel_multi_index(position.T, SIDE, order="F"))


def test_fortran_order_of_the_mask_is_named(built, ours, released):
    order = fortran(built.position)
    found = nsd.compare(built.root, released(ours[:, order]))
    assert found.voxels == "fortran" and "Fortran order" in verdict(found)
    assert (order[found.voxel_order] == np.arange(VOXELS)).all()
    np.testing.assert_allclose(found.correlation, 1, atol=1e-6)


def test_fortran_order_and_other_trials_are_found_together(built, ours, released):
    found = nsd.compare(built.root, released(ours[:, fortran(built.position)][5:]))
    assert (found.voxels, found.trials) == ("fortran", "shifted")


def test_voxels_in_any_order_are_found_again(built, ours, released, tmp_path):
    order = np.random.default_rng(3).permutation(VOXELS)
    found = nsd.compare(built.root, released(ours[:, order] * 2 + 1))
    assert found.voxels == "permuted"
    assert (order[found.voxel_order] == np.arange(VOXELS)).all()
    assert f"{VOXELS} of {VOXELS} found in another order" in verdict(found)


def test_a_threshold_of_ncsnr_is_recognized(built, ours, released):
    kept = built.ncsnr >= 0.15
    found = nsd.compare(built.root, released(ours[:, kept]))
    assert found.voxels == "subset" and "ncsnr below 0.15" in verdict(found)
    assert ((found.voxel_order >= 0) == kept).all()
    assert np.isnan(found.correlation[:, ~kept]).all()
    np.testing.assert_allclose(found.correlation[:, kept], 1, atol=1e-6)


def test_a_region_and_a_larger_mask_are_recognized(built, ours, released):
    assert "region V1 of ours" in str(nsd.compare(built.root, released(ours[:, :100])))
    rng = np.random.default_rng(4)
    more = np.concatenate([ours, rng.normal(0, 1, (len(ours), 40))], axis=1)
    assert "larger mask" in str(nsd.compare(built.root, released(more)))
    other = np.concatenate([ours[:, 50:150], ours[:, 200:]], axis=1)
    assert "another mask" in str(nsd.compare(built.root, released(other)))


def pooled(raw, rows):
    return (raw - raw[rows].mean(0)) / raw[rows].std(0)


@pytest.mark.parametrize("name", ["global", "notebook", "global, test trials included"])
def test_another_normalization_is_named(built, released, name):
    raw = built.raw.astype(np.float64)
    by_session = raw.reshape(SESSIONS, TRIALS, VOXELS)
    made = {
        "global": pooled(raw, built.table[:, layout.SHARED] == 0),
        "global, test trials included": pooled(raw, np.ones(len(raw), bool)),
        "notebook": ((by_session - by_session.mean(1, keepdims=True))
                     / by_session.std(1, keepdims=True)).reshape(raw.shape),
    }[name]  # fmt: skip
    found = nsd.compare(built.root, released(made.astype(np.float32)))
    best, second = sorted(set(found.residual.values()))[:2]
    assert found.residual[name] == best < 1e-4 < 0.005 < second
    assert f'The same betas, normalized as "{name}"' in verdict(found)
    assert "explains released to rounding" in str(found)


def test_raw_betas_are_recognized(built, released):
    found = nsd.compare(built.root, released(built.raw))
    assert found.best == "percent signal"
    found = nsd.compare(built.root, released(np.rint(built.raw * 300).astype(np.int16)))
    assert found.best == "percent signal x 300"


def test_float16_is_recognized(built, ours, released):
    found = nsd.compare(built.root, released(ours.astype(np.float16)))
    assert found.float16 == (False, True) and not found.identical
    assert "released went through float16" in verdict(found)
    assert "to float16 rounding" in str(found)
    assert nsd.compare(built.root, released(ours)).float16 == (False, False)


def test_another_preparation_is_told_from_another_scale(built, ours, released):
    noise = np.random.default_rng(5).normal(0, 1, ours.shape)
    found = nsd.compare(built.root, released(ours + noise))
    assert "The same experiment, other betas: correlation 0.7" in verdict(found)


def test_other_data_are_called_other_data(built, ours, released):
    noise = np.random.default_rng(6).normal(0, 1, ours.shape)
    found = nsd.compare(built.root, released(noise))
    assert found.voxels == found.trials == "unknown" and found.best is None
    assert str(found).startswith("Other data altogether")
    found = nsd.compare(built.root, released(np.random.default_rng(6).normal(0, 1, (90, 55))))
    assert str(found).startswith("Other data altogether") and f"{VOXELS}, released 55" in str(found)


def test_fewer_trials_are_compared_as_far_as_they_go(built, ours, released):
    found = nsd.compare(built.root, released(ours[: 3 * TRIALS]))
    assert f"released {3 * TRIALS}" in verdict(found) and "240 compared" in str(found)
    assert np.isfinite(found.correlation[:3]).all() and np.isnan(found.correlation[3:]).all()
    assert not found.identical


def test_a_voxel_that_never_varies_spoils_nothing(built, ours, released):
    ours[:, 7] = 0
    found = nsd.compare(built.root, released(ours))
    assert np.isnan(found.correlation[:, 7]).all() and "correlation 1.0" in verdict(found)


def test_two_released_files_can_be_compared(ours, released, tmp_path):
    root = released(ours)
    found = nsd.compare(layout.betas_file(root, 1), root)
    assert found.identical and set(found.residual) == {"all"}


def test_subjects_can_be_given_instead_of_folders(small_root):
    subject = nsd.Subject(small_root, 1)
    assert nsd.compare(subject, subject).identical


def test_missing_betas_are_named(built, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"betas_all_subj02_fp32_renorm.hdf5 is missing$"):
        nsd.compare(built.root, built.root, subject=2)
    path = tmp_path / "betas.hdf5"
    with h5py.File(path, "w") as file:
        file["betas"] = np.zeros((3, 2, 2))
    with pytest.raises(ValueError, match=r"betas.hdf5 has betas of shape \(3, 2, 2\)"):
        nsd.compare(path, built.root)


def test_memory_holds_a_few_sessions_of_whole_files(built, ours, released, monkeypatch):
    sizes, read = [], trial_access.Rows.read

    def counted(rows, which):
        sizes.append(len(which))
        return read(rows, which)

    monkeypatch.setattr(trial_access.Rows, "read", counted)
    root = released(ours)
    for other in (built.root, root):
        nsd.compare(built.root, other)
    assert len(sizes) > 4 * SESSIONS and max(sizes) == TRIALS


def test_the_command_prints_the_verdict_and_writes_a_table(built, ours, released, tmp_path, capsys):
    table = tmp_path / "table.csv"
    line = ["compare", str(built.root), str(released(ours * 2)), "--out", str(table)]
    assert cli.main(line) == 0
    assert capsys.readouterr().out.startswith("The same betas on another scale.")
    rows = pd.read_csv(table)
    assert len(rows) == SESSIONS * VOXELS
    assert list(rows) == ["session", "voxel", "correlation", "scale", "offset"]
    np.testing.assert_allclose(rows.scale, 2, rtol=1e-5)
    assert cli.main([*line[:3], "--subject", "5"]) == 1
    assert "betas_all_subj05_fp32_renorm.hdf5 is missing" in capsys.readouterr().err
    assert cli.main([*line[:4], "table.txt"]) == 1
    assert "give the name of a .csv file" in capsys.readouterr().err
