"""New weights as all others have them once they were told, and what becomes of the owner's own.

In float32 they are the weights themselves. In fewer bits the owner keeps its exact weights as *masters*, and what was
rounded away is told with a later step.
"""

import torch
from torch import Tensor

from samestep.wire import codec
from samestep.wire.codec import FORMATS


class Told:
    """All tensors are of one region. news: what is sent of new weights."""

    def __init__(self, format: str) -> None:
        self._format, self.masters = FORMATS[format], format != "float32"

    def news(self, new: Tensor, weights: Tensor) -> None:
        """Turn the new weights into news."""
        if self._format.difference:
            new.sub_(weights)

    def take(self, weights: Tensor, news: Tensor) -> None:
        """Make the weights those that were told of."""
        if self._format.difference:
            weights.add_(news)
        else:
            weights.copy_(news)

    def settle(self, weights: Tensor, master: Tensor) -> None:
        """The same where the news came from."""
        news = master.clone()
        self.news(news, weights)
        self.take(weights, codec.rounded(self._format, news))


def blank(told: Told, weights: Tensor, moments: int) -> list[Tensor]:
    """What is kept of a region before the first step: moments, and masters where there are any."""
    zeros = [torch.zeros_like(weights) for _ in range(moments)]
    return [*zeros, weights.clone()] if told.masters else zeros
