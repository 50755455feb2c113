"""What a checkpoint is written from: copies on the host, made beside the steps that follow.

On a GPU they go to pinned memory, which is kept for the next checkpoint, on a stream of their own; what is copied must
not be changed before they are whole, which costs the GPU at most the time of the copy and this thread nothing.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from samestep.recover.shards import Part
from samestep.wire.side import Mark, Reached, Side


class Copies:
    """Of one set of values at a time: the next is taken once the one before is not needed any more."""

    def __init__(self, device: torch.device) -> None:
        self._side = Side(device)
        self._room = torch.empty(0, dtype=torch.uint8)
        self._whole: Mark = Reached()

    def take(self, values: Mapping[Part, Tensor]) -> dict[Part, Tensor]:
        """Float32 copies of flat tensors, to be read once `wait` has returned."""
        if self._side.device.type == "cpu":
            return {part: tensor.detach().clone() for part, tensor in values.items()}
        begun = self._side.mark()
        size = sum(tensor.nbytes for tensor in values.values())
        if self._room.nbytes < size:
            self._room = self._side.room(size)
        places = torch.split(self._room.view(torch.float32)[: size // 4], [len(t) for t in values.values()])
        self._whole = self._side.copy(zip(places, values.values(), strict=True), begun)
        return dict(zip(values, places, strict=True))

    def wait(self) -> None:
        """Until the copies are whole. Callable from any thread."""
        self._whole.wait()

    def hold(self) -> None:
        """To be called before what was copied is changed."""
        self._whole.hold()
