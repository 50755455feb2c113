"""Copies that a checkpoint is written from, where what is copied changes meanwhile."""

import torch

from samestep.recover.shards import Part
from samestep.replica.copies import Copies


def parts(**values):
    return {Part(kind, "w", 0, len(tensor)): tensor for kind, tensor in values.items()}


def test_a_copy_stays_as_it_was():
    weights = torch.arange(4.0)
    copies = Copies(torch.device("cpu"))
    found = copies.take(parts(weights=weights))
    copies.hold()
    weights.zero_()
    copies.wait()
    assert found[Part("weights", "w", 0, 4)].tolist() == [0.0, 1.0, 2.0, 3.0]


class Recording(Copies):
    """As on a device, whose copies and marks are written down."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self._side = self
        self.device, self.calls, self.rooms = torch.device("meta"), [], []

    def mark(self):
        self.calls.append("mark")

    def room(self, size):
        self.rooms.append(size)
        return torch.empty(size, dtype=torch.uint8)

    def copy(self, pairs, after):
        for target, source in pairs:
            target.copy_(source)
        self.calls.append("copy")
        calls = self.calls

        class Noted:
            def wait(self):
                calls.append("wait")

            def hold(self):
                calls.append("hold")

        return Noted()


def test_on_a_device_the_host_waits_only_where_it_writes_and_the_device_only_where_it_changes():
    copies = Recording()
    copies.hold()
    copies.take(parts(weights=torch.ones(4)))
    assert copies.calls == ["mark", "copy"]
    copies.hold()
    copies.wait()
    assert copies.calls == ["mark", "copy", "hold", "wait"]


def test_pinned_memory_is_kept_for_the_next_checkpoint_and_grows_with_what_is_held():
    copies = Recording()
    for size in (4, 4, 6, 2):
        found = copies.take(parts(weights=torch.full((size,), float(size)), moment0=torch.full((size,), 9.0)))
        assert [tensor.tolist() for tensor in found.values()] == [[float(size)] * size, [9.0] * size]
    assert copies.rooms == [32, 48]
