"""What crosses between two hosts does so once, everybody gets what it needs, and the work is shared."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from samestep.sync import relays, tree
from samestep.sync.share import holders

HOSTS = st.lists(st.integers(0, 3), min_size=2, max_size=9)


def test_there_is_something_to_pass_on_where_a_host_of_several_has_several_replicas() -> None:
    assert not relays.several([]) and not relays.several([0]) and not relays.several([0, 0])
    assert not relays.several([0, 1, 2])
    assert relays.several([0, 0, 1]) and relays.several([0, 1, 0, 1])


def test_sums_are_brought_together_by_each_replica_of_a_host_in_turn() -> None:
    hosts = [0, 1, 0, 1, 0, 1]
    assert [relays.collector(hosts, 0, owner) for owner in (1, 3, 5)] == [0, 2, 4]
    assert relays.collected(hosts, 2) == [2, 3]
    assert relays.collected([0, 0, 1], 2) == [0, 1, 2]


@given(HOSTS)
def test_each_owner_gets_the_sums_of_each_other_host_from_one_of_its_replicas(hosts: list[int]) -> None:
    for owner in range(len(hosts)):
        known = [rank for rank in range(len(hosts)) if owner in relays.collected(hosts, rank)]
        assert sorted(hosts[rank] for rank in known) == sorted(set(hosts)) and owner in known


@given(HOSTS)
def test_no_replica_of_a_host_collects_for_two_owners_more_than_another(hosts: list[int]) -> None:
    for host in set(hosts):
        counts = [len(relays.collected(hosts, rank)) for rank in relays.on(hosts, host)]
        assert max(counts) - min(counts) <= 1


def test_neighbours_of_a_host_add_up_to_larger_subtrees() -> None:
    assert relays.nodes(8, [0, 0, 1, 1], 0) == [(0, 4)]
    assert relays.nodes(8, [0, 1, 0, 1], 0) == [(0, 2), (4, 6)]
    assert relays.nodes(8, [0, 1, 1, 0], 1) == [(2, 4), (4, 6)]


@given(HOSTS, st.integers(0, 7))
def test_what_leaves_a_host_can_be_added_from_what_its_replicas_have_and_covers_it(hosts: list[int], more: int) -> None:
    lanes = len(hosts) + more
    spans = tree.spans(lanes, len(hosts))
    for host in set(hosts):
        mine = [spans[rank] for rank in relays.on(hosts, host)]
        known = {part: set(range(*part)) for span in mine for part in tree.parts(lanes, span)}
        found = [tree.fold(node, known, lambda left, right: left | right) for node in relays.nodes(lanes, hosts, host)]
        assert Counter(lane for each in found for lane in each) == Counter(lane for span in mine for lane in span)


@given(HOSTS, st.integers(1, 9))
def test_everybody_hears_of_each_owner_once_and_from_one_that_got_the_same(hosts: list[int], copies: int) -> None:
    for owner in range(len(hosts)):
        kept = holders(owner, len(hosts), copies)
        told, passed = relays.told(hosts, owner, kept), relays.relays(hosts, owner, kept)
        assert sorted([owner, *told, *passed]) == list(range(len(hosts)))
        for rank, source in passed.items():
            assert source in told and hosts[source] == hosts[rank] and (source in kept) == (rank in kept)


@given(HOSTS)
def test_new_weights_cross_to_each_other_host_once(hosts: list[int]) -> None:
    for owner in range(len(hosts)):
        far = [hosts[rank] for rank in relays.told(hosts, owner, [owner]) if hosts[rank] != hosts[owner]]
        assert sorted(far) == sorted(set(hosts) - {hosts[owner]})
