"""Every person has a map of their own, and mistakes about people are told in one line."""

import pytest
import torch

from mindeye2_lite.ridge import SharedSubjectRidge


@pytest.fixture
def ridge() -> SharedSubjectRidge:
    return SharedSubjectRidge({7: 30, 2: 20}, hidden=8)


def test_subjects_lie_in_ascending_order(ridge):
    assert ridge.subjects == (2, 7)
    assert [linear.in_features for linear in ridge.linears] == [20, 30]


def test_a_person_s_voxels_go_through_that_person_s_map_and_nothing_else(ridge):
    voxels = torch.randn(3, 30)
    expected = voxels @ ridge.linears[1].weight.T + ridge.linears[1].bias
    torch.testing.assert_close(ridge(voxels, 7), expected)


def test_a_wrong_number_of_voxels_names_both_numbers(ridge):
    with pytest.raises(ValueError, match="^subject 2's ridge map takes 20 voxels, got 30[^\n]*$"):
        ridge(torch.randn(3, 30), 2)


def test_an_unknown_subject_is_told_who_there_is(ridge):
    known = r"2 \(20 voxels\), 7 \(30 voxels\)"
    with pytest.raises(ValueError, match=f"^no ridge map for subject 1: this model knows {known}$"):
        ridge(torch.randn(3, 20), 1)
