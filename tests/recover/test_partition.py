from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.recover.partition import kept, outcasts


def pairs(*broken):
    return {frozenset(pair) for pair in broken}


def between(left, right):
    return {frozenset((a, b)) for a in left for b in right}


@pytest.mark.parametrize(
    ("broken", "stay"),
    [
        (pairs(), {0, 1, 2, 3}),
        (between({2}, {0, 1, 3}), {0, 1, 3}),
        (between({0}, {1, 2, 3}), {1, 2, 3}),
        (between({0, 1}, {2, 3}), {0, 1}),
        (between({0, 3}, {1, 2}), {0, 3}),
        (pairs((1, 3)), {0, 1, 2}),
        (pairs((0, 1), (1, 2), (2, 3)), {0, 2}),
        (between({0, 1, 2, 3}, {0, 1, 2, 3}) - pairs((0,), (1,), (2,), (3,)), {0}),
    ],
    ids=["none", "one host", "the first", "halves", "other halves", "one pair", "a chain", "all"],
)
def test_the_most_that_reach_each_other_stay(broken, stay):
    assert kept(range(4), broken) == stay


replicas = st.sets(st.integers(0, 9), max_size=7)


@given(
    replicas.flatmap(lambda r: st.tuples(st.just(r), st.sets(st.sampled_from([*combinations(sorted(r), 2), (0, 0)]))))
)
def test_no_larger_set_and_none_with_lower_numbers_would_do(drawn):
    numbers, broken = drawn
    broken = pairs(*(pair for pair in broken if pair != (0, 0)))
    found = kept(numbers, broken)
    whole = [set(s) for n in range(len(numbers) + 1) for s in combinations(sorted(numbers), n)]
    whole = [s for s in whole if not any(pair <= s for pair in broken)]
    assert found == min(whole, key=lambda s: (-len(s), sorted(s)))


def test_sixty_four_replicas_in_two_halves_are_judged_at_once():
    assert kept(range(64), between(range(0, 64, 2), range(1, 64, 2))) == set(range(0, 64, 2))


def test_those_given_up_are_named_by_host_with_those_that_do_not_reach_them():
    hosts = {0: "a", 1: "a", 2: "b", 3: "c", 4: "c"}
    first, second = outcasts(hosts, between({2}, {0, 1}) | between({3, 4}, {0}) | between({3}, {4}) - pairs((3,)))
    assert (first.host, first.replicas, first.by) == ("b", (2,), (0, 1))
    assert (second.host, second.replicas, second.by) == ("c", (3, 4), (0,))
    assert second.sentence(8.2, " and is given up") == (
        "host c (replicas 3, 4) is out of reach of replica 0 for 8 s and is given up"
    )


def test_where_all_reach_each_other_nobody_is_given_up():
    assert outcasts({0: "a", 1: "b"}, set()) == []
