import pytest
import torch

from samestep.errors import PeerLost
from samestep.wire import loopback
from samestep.wire.collective import Operation, Tag, all_gather


def test_a_fault_from_the_script_is_raised_where_it_was_planned_and_ends_the_others():
    seen = []

    def replica(wire):
        for step in range(3):
            all_gather(wire, Tag(step, Operation.GATHER), torch.zeros(2), [torch.zeros(2)] * 2).wait()
            seen.append((wire.rank, step))

    with pytest.raises(OSError, match="planned"):
        loopback.run(2, replica, faults={(1, Tag(1, Operation.GATHER)): OSError("planned")})
    assert (1, 1) not in seen and (0, 1) not in seen


def test_the_cause_is_raised_and_not_what_follows_from_it():
    def replica(wire):
        if wire.rank == 1:
            raise KeyError("cause")
        all_gather(wire, Tag(0, Operation.GATHER), torch.zeros(2), [torch.zeros(2)] * 2).wait()

    with pytest.raises(KeyError, match="cause"):
        loopback.run(2, replica)


@pytest.mark.parametrize("count", [1, 2])
def test_replicas_multiply_with_as_many_threads_as_their_caller(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        torch.manual_seed(0)
        left, right = torch.randn(5, 300), torch.randn(300, 40)
        wanted = left @ right
        assert all(torch.equal(found, wanted) for found in loopback.run(2, lambda wire: left @ right))
    finally:
        torch.set_num_threads(before)


def test_if_all_only_lost_a_peer_that_is_raised():
    def replica(wire):
        wire.cancel("stop")
        wire.exchange(Tag(0, Operation.GATHER), {1 - wire.rank: [torch.zeros(1)]}, {}).wait()

    with pytest.raises(PeerLost, match="stop"):
        loopback.run(2, replica)
