"""What the laws of tests/contracts do not see: when copies are made, and which memory they go through."""

import pytest
import torch

from samestep.errors import PeerLost
from samestep.wire import loopback
from samestep.wire.collective import Operation, Tag
from samestep.wire.side import Side
from samestep.wire.staged import Staged

CPU = torch.device("cpu")


class Late:
    """A mark that is reached when the test says so, or when somebody waits for it."""

    def __init__(self):
        self.there = False

    def reached(self):
        return self.there

    def wait(self):
        self.there = True

    def hold(self):
        pass


class Slow(Side):
    """Copies to the host are under way until their mark is reached."""

    def __init__(self):
        super().__init__(CPU)
        self.marks = []

    def copy(self, pairs, after):
        super().copy(pairs, after)
        self.marks.append(Late())
        return self.marks[-1]


def two(side=lambda: Side(CPU)):
    return [Staged(inner, side()) for inner in loopback.connect(2)]


def tag(number):
    return Tag(number, Operation.REDUCE)


def test_nothing_is_sent_before_its_copy_is_there_and_nothing_is_waited_for():
    one, _ = two(Slow)
    work = one.exchange(tag(0), {1: [torch.ones(4)]}, {})
    assert one.bytes_sent == 0 and not work.done() and one.bytes_sent == 0
    one._side.marks[0].there = True
    assert work.done() and one.bytes_sent == 16


def test_what_was_begun_first_is_sent_first_though_its_copy_is_late():
    one, other = two(Slow)
    first, second = (one.exchange(tag(number), {1: [torch.full((4,), float(number))]}, {}) for number in (0, 1))
    one._side.marks[1].there = True
    assert not second.done() and one.bytes_sent == 0
    second.wait()  # has to wait for both copies
    target = torch.zeros(4)
    other.exchange(tag(0), {}, {0: [target]}).wait()
    assert target.tolist() == [0.0] * 4 and first.done()


def test_what_goes_to_several_is_copied_once_and_counted_for_each():
    wires = [Staged(inner, Slow()) for inner in loopback.connect(3)]
    mine = torch.ones(8)
    copied = []
    wires[0]._side.copy = lambda pairs, after: copied.extend(pairs) or Side(CPU).copy(pairs, after)
    wires[0].exchange(tag(0), {1: [mine], 2: [mine]}, {}).wait()
    assert len([pair for pair in copied if pair[1] is mine]) == 1 and wires[0].bytes_sent == 64


def test_memory_of_the_host_is_used_again_by_the_next_step():
    def replica(wire):
        wire = Staged(wire, Side(CPU))
        taken = []
        asked = wire._memory
        wire._memory = lambda use, size: taken.append(size) or asked(use, size)
        for step in range(5):
            mine, target = torch.full((100,), float(step)), torch.zeros(100)
            loan = wire.borrow(tag(step), {1 - wire.rank: [mine]}, {1 - wire.rank: [target]})
            assert loan.wait()[1 - wire.rank][0] is target and target[0] == step
            loan.release()
            loan.returned()
        return taken

    assert loopback.run(2, replica) == [[400, 400]] * 2


def test_tensors_that_are_not_on_the_device_are_left_to_the_transport_below():
    one, other = (Staged(inner, Side(torch.device("meta"))) for inner in loopback.connect(2))
    seen, sent = torch.zeros(3), torch.ones(3)
    one._memory = one._side.copy = None  # neither is called with anything to do
    one._side.copy = lambda pairs, after: list(pairs) == [] and one._side.mark()
    other._side.copy = one._side.copy
    one.exchange(tag(0), {1: [sent]}, {}).wait()
    other.exchange(tag(0), {}, {0: [seen]}).wait()
    assert seen.tolist() == [1.0] * 3


def test_what_is_cancelled_fails_and_writes_nothing():
    one, _ = two()
    target = torch.full((4,), 7.0)
    work = one.exchange(tag(0), {}, {1: [target]})
    one.cancel("replica 1 is silent")
    with pytest.raises(PeerLost, match="replica 1 is silent"):
        work.wait()
    assert target.tolist() == [7.0] * 4
