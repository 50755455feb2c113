"""Text from a model: plain sampling, one token at a time."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

Decoder = Callable[[Tensor], Tensor]


@torch.no_grad()
def sample(
    decoder: Callable[[], Decoder],
    tokens: list[int],
    count: int,
    temperature: float,
    generator: Generator,
    *,
    context: int,
    eos: int,
    device: torch.device | None = None,
) -> list[int]:
    """At most `count` token ids that go on from `tokens`, without them; it ends early where `eos` is drawn.

    `decoder` gives a function that maps int64 [1, time] to the logits [1, time, vocabulary] and remembers what it was
    shown before, at most `context` tokens in all; where they are full, a fresh one is shown the last half. Temperature
    0 takes the likeliest token. A prompt of no tokens is `eos`, which is what a document begins after. device: where
    the model is; default: the processor.
    """
    text = tokens or [eos]
    begin, decode, unseen, room = len(text), decoder(), text[-context:], context
    while len(text) - begin < count:
        if len(unseen) > room:
            decode, unseen, room = decoder(), text[-((context + 1) // 2) :], context
        logits = decode(torch.tensor([unseen], dtype=torch.int64, device=device))
        room -= len(unseen)
        token = _pick(logits[0, -1], temperature, generator)
        if token == eos:
            break
        text, unseen = [*text, token], [token]
    return text[begin:]


def _pick(logits: Tensor, temperature: float, generator: Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    probabilities = (logits.double() / temperature).softmax(-1)
    return int(torch.multinomial(probabilities.cpu(), 1, generator=generator))
