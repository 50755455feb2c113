"""Copies that differ: the one that most others are not like is named, and two that differ are both doubted."""

import pytest

from samestep.sync.vote import disputes


def agreeing(size, copies):
    """By rank and owner; what is not held is anything."""
    return [[100 + owner if (rank - owner) % size < copies else rank for owner in range(size)] for rank in range(size)]


@pytest.mark.parametrize("copies", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_equal_copies_are_no_dispute(size, copies):
    assert disputes(agreeing(size, copies), copies) == []


@pytest.mark.parametrize("copies", [3, 4, 5])
def test_of_three_or_more_the_odd_one_is_outvoted(copies):
    for rank in range(5):
        for owner in range(5):
            claims = agreeing(5, copies)
            claims[rank][owner] += 1
            holds = (rank - owner) % 5 < copies
            assert disputes(claims, copies) == ([(owner, [rank], True)] if holds else [])


def test_of_two_that_differ_nobody_can_tell_which_is_wrong():
    claims = agreeing(4, 2)
    claims[2][1] += 1
    assert disputes(claims, 2) == [(1, [1, 2], False)]


def test_two_against_two_is_no_majority():
    claims = agreeing(4, 4)
    claims[0][3] = claims[1][3] = 7
    assert disputes(claims, 4) == [(3, [3, 0, 1, 2], False)]


def test_a_copy_that_is_alone_is_believed():
    assert disputes([[1, 2], [3, 4]], 1) == []
