"""A test picture, or its double, among the training pictures is found; else none is."""

import pytest
import torch

from mindeye2_lite import nsd, overlap
from mindeye2_lite.config import Config

LITE = Config.lite()


@pytest.fixture(scope="module")
def person(small_root):
    return nsd.Subject(small_root, 1)


@pytest.fixture(scope="module")
def found(small_root):
    return overlap.overlap(small_root, 1, LITE)


def test_the_cohort_has_no_test_picture_and_no_double_in_training(found, person):
    assert found.same == [] and found.duplicates() == []
    assert found.test.tolist() == person.test().image_ids.tolist()
    assert found.training == len(person.train().image_ids)


def test_the_most_similar_training_picture_is_the_one_that_a_loop_finds(found, person):
    ids = overlap.own_training_images(person)
    small = overlap._small(person.images[ids])
    for asked, which, r in zip(found.test, *overlap._both(found.nearest["pixels"]), strict=True):
        one = overlap._small(person.images[asked[None]])
        each = torch.cosine_similarity(one, small)
        assert ids[each.argmax()] == which and r == pytest.approx(float(each.max()), abs=1e-5)


def test_the_table_holds_test_against_training_and_training_against_itself(found):
    table = found.table()
    assert table.index.tolist() == [
        (by, side) for by in ("pixels", "tokens") for side in ("test", "training")
    ]
    assert (table["largest"] <= 1 + 1e-6).all() and (table["median"] <= table["largest"]).all()
    assert (table["n"] == len(found.test)).all()


def test_a_double_under_another_number_is_found(small_root, person, monkeypatch):
    test, trained = overlap.held_out_images(person), overlap.own_training_images(person)
    read = nsd.Images.__getitem__

    def doubled(self, ids):
        ids = torch.where(ids == trained[7], test[0], torch.as_tensor(ids))
        return read(self, ids)

    monkeypatch.setattr(nsd.Images, "__getitem__", doubled)
    found = overlap.overlap(small_root, 1, LITE)
    assert found.same == [] and int(test[0]) in found.duplicates()
    assert int(found.nearest["pixels"].image_ids[0]) == int(trained[7])


def test_nobody_is_their_own_nearest_and_nothing_is_refused_in_one_line():
    ids, rows = torch.arange(3), torch.eye(3) + torch.tensor([[0, 0.5, 0]] * 3)
    near = overlap.nearest(rows, [(ids, rows)], own=ids)
    assert (near.image_ids != ids).all()
    with pytest.raises(ValueError, match="^no training picture to compare with"):
        overlap.nearest(rows, [])
