"""Copies beside the computation, on a device without streams: they are made at once, and every mark is reached."""

import torch

from samestep.wire.side import Side

CPU = torch.device("cpu")


def test_copies_are_there_when_the_mark_says_so():
    side = Side(CPU)
    target, source = torch.zeros(3), torch.arange(3.0)
    mark = side.copy([(target, source)], side.mark())
    source.fill_(9.0)
    assert mark.reached() and target.tolist() == [0.0, 1.0, 2.0]
    mark.wait()
    mark.hold()


def test_a_copy_is_no_part_of_a_graph():
    side, weights = Side(CPU), torch.ones(2, requires_grad=True)
    target = torch.zeros(2)
    side.copy([(target, weights)], side.mark())
    assert not target.requires_grad


def test_memory_of_the_host_is_plain_where_nothing_is_gained_by_pinning():
    side = Side(CPU)
    room = side.room(100)
    assert room.dtype == torch.uint8 and len(room) == 100 and side.pin(room) and not room.is_pinned()
    side.close()


def test_memory_without_pages_of_its_own_is_left_where_it_is():
    """Two tensors of one page could not both be pinned, and let go one by one."""
    side = Side(CPU)
    side._stream = object()  # as on a GPU, which is not asked then
    room = torch.empty(8192, dtype=torch.uint8)
    assert not side.pin(room[next(at for at in range(2) if (room.data_ptr() + at) % 4096) :])
    assert not side.pin(torch.empty(0, dtype=torch.uint8))
