"""Copies beside the computation: on a CUDA device they run on a stream of their own, elsewhere they are made at once.

A *mark* is a point in a stream's work. It never blocks the device; its `wait` blocks the thread that calls it.
"""

import mmap
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from samestep.errors import ClusterError

PORTABLE = 1  # cudaHostRegisterPortable: pinned for all contexts; CUDA runtime API, "Memory Management"


class Mark(Protocol):
    def reached(self) -> bool:
        """Whether `wait` would return at once."""

    def wait(self) -> None:
        """Block this thread until all work before the mark is done."""

    def hold(self) -> None:
        """Let what is computed from now on come after it. This thread goes on."""


class Reached:
    """Of a device that has no streams."""

    def reached(self) -> bool:
        return True

    def wait(self) -> None:
        """It is."""

    def hold(self) -> None:
        """Nothing runs beside."""


class _Event:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._device, self._event = stream.device, torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(stream)

    def reached(self) -> bool:
        reached: bool = self._event.query()  # type: ignore[no-untyped-call]
        return reached

    def wait(self) -> None:
        self._event.synchronize()

    def hold(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._event)


class Side:
    """The stream beside that of the computation, of one device. Memory of the host has to be pinned to be copied
    without this thread's waiting for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._pinned: dict[int, Tensor] = {}  # by address

    def mark(self) -> Mark:
        """After all that has been asked of the device so far."""
        return Reached() if self._stream is None else _Event(torch.cuda.current_stream(self.device))

    @torch.no_grad()
    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], after: Mark) -> Mark:
        """Copy to the first of each pair from the second, of one size, once the mark `after` is reached. The tensors
        have to stay as they are until the mark that is returned.
        """
        if self._stream is None:
            for target, source in pairs:
                target.copy_(source)
            return Reached()
        with torch.cuda.stream(self._stream):
            after.hold()
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
            return _Event(self._stream)

    def room(self, size: int) -> Tensor:
        """uint8 [size] of the host, pinned where that helps."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None)

    def pin(self, memory: Tensor) -> bool:
        """Keep memory that other processes see too where it is, until `close`. False where it has no pages of its own.

        ClusterError where CUDA refuses it.
        """
        if self._stream is None or memory.data_ptr() in self._pinned:
            return True
        if memory.data_ptr() % mmap.PAGESIZE or not memory.nbytes:
            return False
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        failure = int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, PORTABLE))
        if failure:
            raise ClusterError(
                f"{memory.nbytes:,} bytes of shared memory were to be pinned for copies to {self.device}, but CUDA "
                f"refuses with error {failure}; raise ulimit -l, or set run.transport=sockets"
            )
        self._pinned[memory.data_ptr()] = memory
        return True

    def close(self) -> None:
        """Wait for all copies, and let the memory go."""
        if self._stream is not None:
            self._stream.synchronize()
        for address in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
        self._pinned.clear()
