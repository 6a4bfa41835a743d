"""The cohort's people answer new pictures as they answered their own; strange ones stay strange."""

import sys

import numpy as np
import pytest
import torch

from mindeye2_lite import nsd, out_of_distribution, scenes, sprites, synthetic, voxel_model
from mindeye2_lite import responses as answers
from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2

LITE = Config.lite()


@pytest.fixture(scope="module")
def person(small_root):
    return nsd.Subject(small_root, 1)


@pytest.fixture(scope="module")
def own(small_root):
    return answers.responses(small_root, 1)


def deviation(a, b):
    return float(np.sqrt(((a - b) ** 2).mean()))


# -- responses ------------------------------------------------------------------------------------


def test_voxels_and_responses_are_those_that_the_files_were_written_from(own, person, monkeypatch):
    kept, draw = [], voxel_model.responses

    def responses(*how):
        kept.append(draw(*how))
        return kept[-1]

    monkeypatch.setattr(voxel_model, "responses", responses)
    plan = synthetic.design(0, 0.1)
    pictures = (person.images[torch.arange(730)] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    seen = voxel_model.features(pictures, synthetic.true_attributes(person.root))
    written = synthetic._measured(1, plan, seen, 0)
    np.testing.assert_allclose(own.ncsnr, written.snr)
    assert (own.where.places == written.where.places).all() and len(own.new) == 0
    assert deviation(own.shown, kept[0]) < 1e-3


def test_they_agree_with_the_files_as_well_as_noise_allows(own, small_root):
    measured, expected = answers.agreement(small_root, own)
    assert measured == pytest.approx(expected, abs=0.12)  # of 10 test pictures


def test_a_picture_of_the_cohort_gets_nearly_the_same_answer_when_it_comes_as_new(own, person):
    rows = np.array([20, 21, 22, 23])
    ids = torch.from_numpy(own.shown_ids[rows])
    told = {k: v[ids.numpy()] for k, v in synthetic.true_attributes(person.root).items()}
    found = answers.responses(person.root, 1, person.images[ids], told)
    assert deviation(found.new, own.shown[rows]) < 0.1 and deviation(found.shown, own.shown) < 0.1
    other = answers.responses(person.root, 1, person.images[ids])  # told nothing
    higher = ~np.isin(own.where.regions, list(voxel_model.FIELDS))
    assert deviation(other.new[:, ~higher], own.shown[rows][:, ~higher]) < 0.1
    assert deviation(other.new[:, higher], own.shown[rows][:, higher]) > 0.3


def test_new_trials_are_scaled_and_noisy_as_those_of_the_files(own, person):
    ids = torch.from_numpy(own.shown_ids[10:50])
    told = {k: v[ids.numpy()] for k, v in synthetic.true_attributes(person.root).items()}
    trials = answers.responses(person.root, 1, person.images[ids], told).measured(seed=1)
    files = person.train()
    assert trials.image_ids.tolist() == list(range(40)) and len(trials) == 120
    assert trials.session.unique().tolist() == [1, 2, 3]
    assert float(trials.voxels.mean()) == pytest.approx(0, abs=0.1)
    assert float(trials.voxels.std()) == pytest.approx(float(files.voxels.std()), abs=0.1)
    told, ours = (np.median(nsd.estimate_ncsnr(t)) for t in (person.test(), trials))
    assert ours == pytest.approx(told, abs=0.12)


def test_the_same_seed_gives_the_same_noise_and_another_gives_other(small_root):
    found = answers.responses(small_root, 1, out_of_distribution.photographs().pictures[:2])
    first, again, other = (found.measured(seed=seed).voxels for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_without_noise_voxels_are_what_repeats_come_to(own, person):
    test = person.test()
    clean = own.noise_free(test.image_ids)
    assert torch.equal(clean.image_ids, test.image_ids) and clean.repeats().shape[1] == 3
    spread = clean.voxels.std(0).numpy()
    expected = own.ncsnr / np.sqrt(1 + own.ncsnr**2)
    assert np.median(spread / expected) == pytest.approx(1, abs=0.2)  # of 10 pictures
    with pytest.raises(KeyError):
        own.noise_free(torch.tensor([10**6]))


def test_real_data_have_no_known_tuning(tmp_path):
    with pytest.raises(FileNotFoundError, match="^.*only a synthetic cohort has true attributes"):
        answers.responses(tmp_path, 1)


def test_a_kind_without_a_code_differs_by_its_features_alone(small_root):
    shown = out_of_distribution.unseen_kinds(4)
    found = answers.responses(small_root, 1, shown.pictures, shown.attributes, shown.taxonomy)
    without = answers.responses(small_root, 1, shown.pictures, shown.attributes)
    higher = ~np.isin(found.where.regions, list(voxel_model.FIELDS))
    assert deviation(found.new[:, ~higher], without.new[:, ~higher]) < 0.01
    assert deviation(found.new[:, higher], without.new[:, higher]) > 0.1


def test_the_features_of_a_known_kind_are_those_that_it_is_known_by(small_root):
    told = synthetic.true_attributes(small_root)
    ids, count = np.arange(5), len(scenes.KINDS)
    few = {k: v[:5] for k, v in told.items()}
    table = np.array([voxel_model.TAXONOMY[scenes.KINDS[kind]] for kind in few["kind"]])
    hidden = few | {"kind": np.full(5, -1)}
    known, _ = answers._columns(told, ids, few, None, 5)
    features, _ = answers._columns(told, ids, hidden, table, 5)
    np.testing.assert_allclose(known[5:], known[:5], atol=1e-4)
    np.testing.assert_allclose(
        features[5:, count : count + 7], known[:5, count : count + 7], atol=1e-4
    )
    assert not np.allclose(features[5:, :count], known[:5, :count])


# -- pictures -------------------------------------------------------------------------------------


def test_photographs_are_eight_squares_of_color_from_the_wheels_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)  # what would download
    shown = out_of_distribution.photographs()
    assert shown.pictures.shape == (8, 3, 64, 64) and len(set(shown.names)) == 8
    assert shown.pictures.min() >= 0 and shown.pictures.max() <= 1
    assert shown.attributes is None and (shown.pictures.std((1, 2, 3)) > 0.1).all()


def test_unseen_kinds_stand_where_familiar_things_stood():
    known, unseen = out_of_distribution.familiar(6), out_of_distribution.unseen_kinds(6)
    assert set(known.names) <= set(scenes.KINDS) and not set(unseen.names) & set(scenes.KINDS)
    differ = (known.pictures - unseen.pictures).abs().mean(1)
    assert (differ[:, :5].mean((1, 2)) < 0.12).all(), "the sky stays, but for what reaches into it"
    assert (differ[:, 30:50, 24:40].mean((1, 2)) > 0.02).all(), "the thing is another"
    for name, values in unseen.attributes.items():
        assert (values == (-1 if name == "kind" else known.attributes[name])).all(), name


def test_the_painter_forgets_the_unseen_kinds():
    out_of_distribution.unseen_kinds(1)
    assert tuple(sprites.SPRITES) == scenes.KINDS
    assert list(out_of_distribution.TAXONOMY) == list(out_of_distribution.UNSEEN)


def test_scenes_are_none_of_the_cohort(person):
    drawn = out_of_distribution.familiar(5).pictures
    apart = torch.cdist(drawn.flatten(1), person.images[torch.arange(730)].flatten(1))
    assert apart.min() > 1


def test_a_model_reconstructs_them_from_noisy_voxels(small_root, person):
    model = MindEye2.from_config(LITE, {1: person.num_voxels}).eval()
    shown = out_of_distribution.unseen_kinds(2)
    how = {"steps": 2, "device": "cpu", "progress": False}
    out = out_of_distribution.reconstruct(model, shown, small_root, LITE, **how)
    assert out.image_ids.tolist() == [0, 1] and torch.equal(out.seen, shown.pictures)
    assert out.refined.shape == out.seen.shape and len(out.captions) == 2


def test_games_against_rivals_are_won_by_the_like_and_not_by_the_unlike():
    generator = torch.Generator().manual_seed(0)
    seen, rivals = (torch.rand(n, 3, 8, 8, generator=generator) for n in (4, 30))
    won = out_of_distribution.games(lambda x: x, 0.5 * seen + 0.1, seen, rivals)
    lost = out_of_distribution.games(lambda x: x, rivals[:4], seen, rivals)
    assert (won == 1).all() and lost.mean() < 0.8 and lost.shape == (4,)
