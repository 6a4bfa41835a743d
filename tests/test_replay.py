"""A session trial by trial: nothing from the future, every stage timed, and the right ranks."""

import numpy as np
import pytest
import torch
from torch import nn

from mindeye2_lite import encoders, nsd, replay
from mindeye2_lite.backbone import Output
from mindeye2_lite.config import Config
from mindeye2_lite.model import MindEye2

LITE = Config.lite()
SESSION = 3


@pytest.fixture(scope="module")
def person(small_root):
    return nsd.Subject(small_root, 1)


@pytest.fixture(scope="module")
def model(person):
    return MindEye2.from_config(LITE, {1: person.num_voxels}).eval()


@pytest.fixture(scope="module")
def told(model, person):
    return replay.replay(model, person, SESSION, LITE, pictures=2, steps=2)


class Oracle(nn.Module):
    """Answers every call with the next of the tokens that it was given."""

    def __init__(self, answers):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.backbone_linear = nn.Linear(1, 1)
        self.answers, self.asked = answers, []

    def forward(self, voxels, subject):
        self.asked.append(voxels[0].numpy().copy())
        # the first call is the warm-up's
        tokens = self.answers[max(0, len(self.asked) - 2)][None]
        return Output(tokens, tokens)


def oracle(person, session=SESSION, **how):
    """A replay of somebody who sees right, and the voxels that it was shown."""
    ids = person.test().image_ids
    gallery = encoders.image_encoder()(person.images[ids])
    _, seen, tested = replay.percent(person, session)
    answers = [
        gallery[ids == i][0] if t else torch.zeros_like(gallery[0])
        for i, t in zip(seen, tested, strict=True)
    ]
    network = Oracle(answers)
    told = replay.replay(network, person, session, LITE, pictures=0, **how)
    return told, np.stack(network.asked[1:])


def test_every_trial_of_the_session_comes_once_and_in_order(told, person):
    records = np.concatenate([person.train().behavior, person.test().behavior])
    here = records[records[:, 2] == SESSION]
    here = here[here[:, 5].argsort()]
    assert [s.image_id for s in told.steps] == here[:, 0].astype(int).tolist()
    assert [s.trial for s in told.steps] == list(range(1, len(here) + 1))
    assert [s.rank is not None for s in told.steps] == (here[:, 16] == 1).tolist()


def test_percent_gives_back_what_the_layout_scaled(person):
    betas, image_id, _ = replay.percent(person, SESSION)
    z = person.train().voxels[person.train().session == SESSION]
    mean, std = (array[SESSION - 1] for array in person.session_statistics)
    first = betas[np.isin(image_id, person.train().image_id)][0]
    np.testing.assert_allclose(first, z[0].numpy() * std + mean, atol=1e-5)
    assert betas.shape == (75, person.num_voxels)


def test_known_statistics_are_those_of_the_earlier_sessions_training_trials(person):
    mean, std = replay.known_statistics(person, 2)
    parts = [replay.percent(person, s) for s in (1, 2)]
    raw = np.concatenate([betas[~tested.numpy()] for betas, _, tested in parts])
    np.testing.assert_allclose(mean, raw.mean(0), atol=1e-4)
    np.testing.assert_allclose(std, raw.std(0), rtol=1e-3)


def test_with_training_statistics_the_voxels_are_those_of_the_test_set(person):
    _, shown = oracle(person, known=2)
    _, _, tested = replay.percent(person, SESSION)
    test = person.test(sessions=2)
    here = test.session == SESSION
    order = test.behavior[here, 5].argsort()
    np.testing.assert_allclose(shown[tested.numpy()], test.voxels[here][order], atol=1e-3)


def test_who_sees_right_is_right_and_the_interval_closes_on_it(person):
    told, _ = oracle(person)
    table = told.running()
    assert len(table) == len(told.scored) > 0
    assert (table.share == 1).all() and (table.high == 1).all()
    assert table.low.is_monotonic_increasing
    assert (table.chance == 1 / told.candidates).all()
    assert all(s.nearest == s.image_id for s in told.scored)


def test_an_untrained_model_ranks_among_all_candidates(told, person):
    assert told.candidates == len(person.test().image_ids)
    ranks = [s.rank for s in told.scored]
    assert min(ranks) >= 1 and max(ranks) <= told.candidates
    assert told.running(within=told.candidates).share.iloc[-1] == 1


def test_only_the_first_scored_trials_become_pictures_and_captions(told):
    made = [s for s in told.steps if s.picture is not None]
    assert [s.trial for s in made] == [s.trial for s in told.scored[:2]]
    for step in made:
        assert step.picture.shape == (3, 64, 64) and isinstance(step.caption, str)
        assert set(step.seconds) == set(replay.STAGES)


def test_every_stage_has_its_time(told):
    table = told.latency()
    assert list(table.index) == [*replay.STAGES, "all stages"]
    assert (table["median (s)"] > 0).all() and (table["95% (s)"] >= table["median (s)"]).all()
    assert table.trials.tolist() == [75, 75, 75, 2, 2, 2, 2]
    whole = [sum(s.seconds.values()) for s in told.steps if s.picture is not None]
    assert table.loc["all stages", "median (s)"] == pytest.approx(np.median(whole))


def test_without_pictures_nothing_is_said_of_the_decoder(person):
    told, _ = oracle(person)
    assert list(told.latency().index) == ["scale", "backbone", "retrieval"]
    assert "retrieval" in str(told) and "scanner and GLM not counted" in str(told)


def test_the_same_seed_gives_the_same_pictures(told, model, person):
    again = replay.replay(model, person, SESSION, LITE, pictures=1, steps=2)
    assert torch.equal(again.scored[0].picture, told.scored[0].picture)
    assert [s.rank for s in again.scored] == [s.rank for s in told.scored]


def test_a_running_scale_becomes_that_of_what_it_saw():
    rng = np.random.default_rng(0)
    later = rng.normal(5, 3, (4000, 7))
    scale = replay.Scale(np.zeros(7), np.ones(7))
    for row in later:
        scale.update(row)
    z = np.stack([scale(row) for row in later])
    np.testing.assert_allclose(z.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(z.std(0), 1, atol=0.05)


def test_a_scale_is_that_of_its_anchor_and_its_trials_together():
    rng = np.random.default_rng(1)
    before, after = rng.normal(1, 2, (20, 5)), rng.normal(3, 1, (30, 5))
    scale = replay.Scale(before.mean(0), before.std(0), anchor=20)
    for row in after:
        scale.update(row)
    both = np.concatenate([before, after])
    np.testing.assert_allclose(scale.mean, both.mean(0))
    np.testing.assert_allclose(scale(both[0]), (both[0] - both.mean(0)) / both.std(0), rtol=1e-5)


def test_no_trial_is_scaled_by_what_comes_after_it(person, monkeypatch):
    _, whole = oracle(person, statistics="running")
    real = replay.percent

    def disturbed(person, session):
        betas, *rest = real(person, session)
        betas[40:] = 100
        return betas, *rest

    monkeypatch.setattr(replay, "percent", disturbed)
    _, cut = oracle(person, statistics="running")
    assert np.array_equal(whole[:40], cut[:40])
    assert not np.array_equal(whole[40:], cut[40:])


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"session": 9}, "has sessions 1 to 4; asked for 9"),
        ({"session": 1}, "before it, at least one"),
        ({"known": 3}, "known is 3"),
        ({"statistics": "future"}, "'future' is unknown"),
        ({"pictures": -1}, "pictures is -1"),
    ],
)
def test_what_cannot_be_replayed_costs_one_line(wrong, complaint, model, person):
    how = {"session": SESSION, "config": LITE} | wrong
    with pytest.raises(ValueError, match=complaint):
        replay.replay(model, person, **how)


def test_the_model_stays_where_it_was_and_as_it_was(told, model, person):
    fresh = MindEye2.from_config(LITE, {1: person.num_voxels})
    pairs = zip(model.state_dict().values(), fresh.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
