"""Text from a model: plain sampling, one token at a time."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor


@torch.no_grad()
def sample(
    logits: Callable[[Tensor], Tensor],
    tokens: list[int],
    count: int,
    temperature: float,
    generator: Generator,
    *,
    context: int,
    eos: int,
) -> list[int]:
    """At most `count` token ids that go on from `tokens`, without them; it ends early where `eos` is drawn.

    `logits` maps int64 [1, time], time at most `context`, to [1, time, vocabulary]. Temperature 0 takes the likeliest
    token. Keys and values are not kept: the time is that of `count` forward passes. A prompt of no tokens is `eos`,
    which is what a document begins after.
    """
    text = tokens or [eos]
    new: list[int] = []
    while len(new) < count:
        window = torch.tensor([(text + new)[-context:]], dtype=torch.int64)
        token = _pick(logits(window)[0, -1], temperature, generator)
        if token == eos:
            break
        new.append(token)
    return new


def _pick(logits: Tensor, temperature: float, generator: Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    probabilities = (logits.double() / temperature).softmax(-1)
    return int(torch.multinomial(probabilities.cpu(), 1, generator=generator))
