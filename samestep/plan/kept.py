"""What a micro-batch of samestep's own Llama holds on a processor at its worst moment. Pure arithmetic, bytes.

Counted tensor by tensor after model/layers.py, model/losses.py and model/scratch.py, as Korthikanti et al. do for
Megatron (arXiv 2205.05198, section 4): the worst moment is when backward begins, or in the last layer's backward.
"""

from dataclasses import dataclass

from samestep.plan.facts import Facts

PLAIN = 512  # positions up to which bfloat16 scores are computed whole, see model/layers.py
ROWS, SOFTMAX, TOKENS = 256, 2**21, 8192  # of the loss, see model/losses.py


@dataclass(frozen=True)
class Micro:
    """rows of `context` positions. width: bytes of a number in matrix products. apart: whether samples of a row are
    kept apart. rank: of adapters; 0: all weights are trained; dropped: whether adapters drop of their input. wide:
    whether matrices are float32, and cast for products. again: whether layers are computed again in backward.
    """

    rows: int
    context: int
    width: int
    apart: bool = False
    rank: int = 0
    dropped: bool = False
    wide: bool = True
    again: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.context

    @property
    def plain(self) -> bool:
        """Whether scores are computed whole."""
        return self.width == 2 and self.context <= PLAIN


def activations(facts: Facts, micro: Micro) -> float:
    """What waits for backward, of all layers: of the last norm its input and what it gives."""
    each, walls = layer(facts, micro), _walls(facts, micro)
    last = micro.tokens * (facts.width * (4 + micro.width) + 8)  # with the tokens themselves
    if micro.again:
        return facts.layers * micro.tokens * facts.width * 4 + each + walls + last
    return facts.layers * each + walls + last


def layer(facts: Facts, micro: Micro) -> float:
    """Of one layer: residual streams in float32, what products and attention read, and what is dropped."""
    b = micro.width
    attention = b * (facts.queries + 2 * facts.keys) + (0 if micro.plain else b * facts.queries + 4 * facts.heads)
    masks = 2 * b * facts.width if facts.dropout else 0
    return micro.tokens * (8 * facts.width + attention + 2 * b * facts.inner + masks + _read(facts, micro))


def _walls(facts: Facts, micro: Micro) -> float:
    """Masks of what attends to what: one for all layers where samples are kept apart, else one each."""
    if micro.apart:
        return micro.width * micro.tokens * micro.context
    return micro.width * micro.context**2 * (1 if micro.again else facts.layers) if micro.plain else 0.0


def _read(facts: Facts, micro: Micro) -> float:
    """Bytes a position that the linear layers of a layer keep of what they read."""
    b, wide = micro.width, facts.width
    if not micro.rank:
        return b * (2 * wide + facts.queries)
    adapters = 7 * b * micro.rank + _adapters(facts, micro) / micro.tokens
    if micro.dropped:  # what is left of each input, and the mask; each adapter drops by itself
        return adapters + 2 * b * (5 * wide + facts.queries + facts.inner)
    return adapters + b * (2 * wide + facts.queries + facts.inner)


def _adapters(facts: Facts, micro: Micro) -> float:
    """Bytes of a layer's adapters as they are cast for products, which are kept."""
    sides = 4 * facts.width + 2 * facts.queries + 2 * facts.keys + 3 * (facts.width + facts.inner)
    return 2.0 * micro.rank * sides if micro.width == 2 else 0.0


def loss(facts: Facts, micro: Micro) -> float:
    """The room of the head, which is kept: its gradient, its cast, a chunk of logits."""
    head = facts.vocabulary * facts.width
    trained = 0 if micro.rank else 4 * head
    cast = micro.width * head if micro.wide and micro.width == 2 else 0
    return trained + cast + min(micro.tokens, ROWS) * facts.vocabulary * micro.width


def passing(facts: Facts, micro: Micro) -> float:
    """The most that comes and goes: in the loss, or in the backward of a layer."""
    b, tokens = micro.width, micro.tokens
    few = min(tokens, ROWS, max(1, SOFTMAX // facts.vocabulary))
    product = 0 if micro.rank else b * min(TOKENS, facts.vocabulary) * facts.width
    head = 2 * 4 * few * facts.vocabulary + product + 2 * b * tokens * facts.width
    weight = 0 if micro.rank else (2 * b + 4) * facts.inner * facts.width
    mlp = 4 * b * tokens * facts.inner + weight
    scores = b * facts.heads * tokens * micro.context if micro.plain else 0
    attention = 4 * scores + 12 * tokens * facts.queries
    return max(head, mlp, attention)
