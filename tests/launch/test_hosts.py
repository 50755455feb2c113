import pytest

from samestep.errors import ClusterError
from samestep.launch.hosts import HERE, Host, choose, far, hosts_of, numbers, sharers
from samestep.recipe.machines import Run

A, B, C = Host("a", places=2), Host("b", places=1), Host("c", places=1)


def names(taken, count, given_up=()):
    taken = list(taken)
    for _ in range(count):
        taken.append(choose([A, B, C], taken, given_up).name)
    return taken


def test_hosts_are_filled_in_their_order():
    assert names([], 4) == ["a", "a", "b", "c"]


def test_a_replacement_goes_to_the_first_free_place():
    assert choose([A, B, C], ["a", "b", "c"], ()) == A
    assert choose([A, B, C], ["a", "a", "c"], ()) == B


def test_a_host_that_was_cut_off_gets_no_replacement():
    assert choose([A, B, C], ["a", "a"], {"b"}) == C


def test_without_a_free_place_it_is_said_what_is_taken_and_what_is_cut_off():
    with pytest.raises(ClusterError, match=r"all places of the hosts are taken, and b cut off; add one to run\.hosts"):
        choose([A, B, C], ["a", "a", "c"], {"b"})


def test_a_recipe_without_hosts_starts_all_here():
    assert hosts_of(Run(replicas=3)) == (HERE,)
    assert names([], 0) == [] and [choose([HERE], [""] * n, ()) for n in range(20)] == [HERE] * 20


def test_the_start_of_a_host_is_split_as_a_shell_does():
    run = Run(hosts={"h": {"start": "ip netns exec 'my lab'", "address": "10.0.0.1", "replicas": 3}})
    assert hosts_of(run) == (Host("h", ("ip", "netns", "exec", "my lab"), "10.0.0.1", 3),)


DOORS = {3: ("a", ("10.0.0.1", 7)), 5: ("b", ("10.0.0.2", 8)), 6: ("a", ("10.0.0.1", 9))}


def test_members_on_other_hosts_are_called_and_those_on_the_same_are_not():
    assert far(3, [3, 5, 6], DOORS) == [None, ("10.0.0.2", 8), None]
    assert far(5, [3, 5, 6], DOORS) == [("10.0.0.1", 7), None, ("10.0.0.1", 9)]


def test_one_that_has_just_ended_is_not_called():
    assert far(5, [3, 4, 5], DOORS) == [("10.0.0.1", 7), None, None]
    assert far(4, [3, 4, 5], DOORS) == [None, None, None]


def test_hosts_are_numbered_as_their_members_appear():
    assert numbers([3, 5, 6], DOORS) == [0, 1, 0]
    assert numbers([5, 3, 6], DOORS) == [0, 1, 1]
    assert numbers([], DOORS) == []


def test_one_that_has_just_ended_counts_as_on_a_host_of_its_own():
    assert numbers([3, 4, 5, 6], DOORS) == [0, 1, 2, 0]


def test_those_of_a_host_share_memory_where_there_are_several_or_no_other_host():
    assert sharers([0, 1, 0, 2]) == [0]
    assert sharers([0, 1, 0, 1]) == [0, 1]
    assert sharers([0, 1]) == []
    assert sharers([0]) == [0]
