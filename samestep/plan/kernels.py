"""How long the kernels of a transformer take on a GPU: each as the slower of its arithmetic and its memory traffic.

A model of kernels, not a table of models: matrix products at the ceiling that was measured on the device, lowered where
their tiles do not fill its multiprocessors (wave quantisation, NVIDIA's Matrix Multiplication Background guide);
attention with and without scores in memory (Dao et al., arXiv 2205.14135); the rest by the bytes that it moves.
"""

from dataclasses import dataclass

from samestep.plan.constants import Constants
from samestep.plan.devices import Device
from samestep.plan.facts import Facts
from samestep.plan.training import Training

# Rows and columns of a product that one multiprocessor computes, and the share of its best rate that it then reaches:
# on tensor cores, which must be fed, and on the others.
TILES = ((256, 128, 1.0), (128, 128, 0.97), (128, 64, 0.85), (64, 64, 0.65), (32, 32, 0.3))
PLAIN_TILES = ((128, 128, 1.0), (128, 64, 0.98), (64, 64, 0.9), (32, 32, 0.6))
# Passes over an activation of the width of the model or of the MLP, forward and backward together, of what is no matrix
# product: two norms, two residual sums, rotary angles or biases, the nonlinearity; dropout's are extra.
WIDE, INNER, GATED, DROPOUT = 30.0, 5.0, 10.0, 12.0
# Of these that are left when several operations are one kernel.
FUSION = {"eager": 1.0, "fused": 0.6, "compiled": 0.55}
KERNELS = {
    "eager": (22, 44),
    "graph": (16, 32),
    "fused": (14, 28),
    "compiled": (9, 18),
}  # of a layer, forward, backward
LAUNCHES = {"eager": 1.0, "graph": 0.4, "fused": 1.0, "compiled": 0.6}  # of the time that eager code spends on one
SCORES = 9.0  # passes over the scores forward and backward together: scale, mask, softmax, dropout
LOSS = {"plain": 7.0, "fused": 2.0, "metered": 5.0, "chunked": 4.0, "parts": 4.0}  # passes over float32 logits
BACKWARD = 2.5  # of FlashAttention's forward: five products where forward has two


@dataclass(frozen=True)
class Layer:
    """Seconds of one layer and micro-batch on one GPU; launches: of its kernels, when the GPU waits for them."""

    forward: dict[str, float]
    backward: dict[str, float]
    launches: tuple[float, float]


def product(device: Device, dtype: str, rows: float, columns: float, inner: float, constants: Constants) -> float:
    """Seconds of a matrix product [rows, inner] x [inner, columns]."""
    if min(rows, columns, inner) <= 0:
        return 0.0
    kind = device.computes(dtype)
    rate = sustained(device, kind, constants) * _filled(device, kind, rows, columns) * inner / (inner + constants.ramp)
    width = 4 if kind in ("fp32", "tf32") else 2
    moved = width * (rows * columns + rows * inner + inner * columns) / (device.bandwidth * constants.streamed)
    return max(2 * rows * columns * inner / rate, moved)


def sustained(device: Device, kind: str, constants: Constants) -> float:
    """FLOP/s of the best product that lasts. Only tensor cores draw so much power that clocks fall."""
    return device.ceiling[kind] * (1.0 if kind == "fp32" else constants.sustained)


def _filled(device: Device, kind: str, rows: float, columns: float) -> float:
    """The best share of the device that one of the tile sizes puts to work."""
    tiles = PLAIN_TILES if kind == "fp32" else TILES
    return max(share * _wave(device.units, rows, columns, high, broad) for high, broad, share in tiles)


def _wave(units: int, rows: float, columns: float, high: int, broad: int) -> float:
    tiles = -(-rows // high) * -(-columns // broad)
    useful = rows * columns / (tiles * high * broad)
    return float(useful * tiles / (-(-tiles // units) * units))


def layer(device: Device, facts: Facts, training: Training, constants: Constants) -> Layer:
    """One layer of one micro-batch. A tensor-parallel GPU computes its share of the columns."""
    tokens, cut = training.micro_batch * training.context, training.tensor
    matrices = _matrices(facts, cut)
    kind = training.product

    def total(order: int) -> float:
        return sum(_ordered(device, kind, tokens, out, into, order, constants) for out, into in matrices)

    forward, inputs, weights = total(0), total(1), total(2)
    attended, against = attention(device, facts, training, constants)
    wide = elementwise(device, facts, training, constants)
    scale = LAUNCHES[training.kernels] * constants.launch
    first, second = KERNELS[training.kernels]
    trained = 0.08 if training.rank else 1.0  # the weight gradients of adapters
    casts = _dequantised(device, facts, training, constants)
    return Layer(
        {"matrices": forward + casts, "attention": attended, "elementwise": wide / 3},
        {"matrices": inputs + trained * weights + casts, "attention": against, "elementwise": 2 * wide / 3},
        (first * scale, second * scale),
    )


def _matrices(facts: Facts, cut: int) -> list[tuple[float, float]]:
    """(out, in) of the linear layers on one of `cut` GPUs."""
    up = (2 if facts.gated else 1) * facts.inner
    return [
        ((facts.queries + 2 * facts.keys) / cut, facts.width),
        (facts.width, facts.queries / cut),
        (up / cut, facts.width),
        (facts.width, facts.inner / cut),
    ]


def _ordered(
    device: Device, kind: str, tokens: float, out: float, into: float, order: int, constants: Constants
) -> float:
    """order 0: the output; 1: the gradient of the input; 2: that of the weights."""
    sizes = ((tokens, out, into), (tokens, into, out), (out, into, tokens))[order]
    return product(device, kind, *sizes, constants)


def _dequantised(device: Device, facts: Facts, training: Training, constants: Constants) -> float:
    """Seconds in which 4-bit weights become 16-bit ones, before each use (Dettmers et al., arXiv 2305.14314)."""
    return facts.layer * 5 / (device.bandwidth * constants.streamed) if training.quantised else 0.0


def _fusion(training: Training, constants: Constants) -> float:
    return constants.graph if training.kernels == "graph" else FUSION[training.kernels]


def attention(device: Device, facts: Facts, training: Training, constants: Constants) -> tuple[float, float]:
    """Seconds of a layer's attention, forward and backward, without its projections."""
    tokens = training.micro_batch * training.context
    work = 4 * tokens * training.context * facts.queries / training.tensor
    kind = device.computes(training.product)
    rate = sustained(device, kind, constants)
    if training.flash:
        half = 0.5 + 64 / training.context if facts.causal else 1.0  # blocks on the diagonal are computed whole
        size = min(1.0, (facts.head_size / 128) ** constants.heads)
        seconds = work * min(1.0, half) / (rate * constants.flash * size)
        return seconds, BACKWARD * seconds
    width = training.width
    scores = tokens * training.context * facts.heads / training.tensor * width
    passed = SCORES * _fusion(training, constants) * scores / (device.bandwidth * constants.streamed)
    multiplied = work / (rate * 0.6) + 2 * scores / (device.bandwidth * constants.streamed)
    return multiplied + passed / 3, 2 * multiplied + 2 * passed / 3


def elementwise(device: Device, facts: Facts, training: Training, constants: Constants) -> float:
    """Seconds of a layer's norms, sums, nonlinearities and dropout, forward and backward."""
    tokens = training.micro_batch * training.context
    wide = WIDE + (DROPOUT if facts.dropout else 0)
    elements = wide * facts.width + (GATED if facts.gated else INNER) * facts.inner / training.tensor
    width = 3.0 if training.mixed and training.width < 4 else training.width  # norms and residuals in float32
    moved = tokens * elements * width * _fusion(training, constants) * constants.passes
    return moved / (device.bandwidth * constants.streamed)


def head(device: Device, facts: Facts, training: Training, constants: Constants) -> float:
    """Seconds of a micro-batch's logits and loss, forward and backward."""
    tokens = training.micro_batch * training.context * facts.predicted
    columns = facts.vocabulary / training.tensor
    orders = (0, 1) if training.rank else (0, 1, 2)
    multiplied = sum(
        _ordered(device, training.product, tokens, columns, facts.width, order, constants) for order in orders
    )
    moved = tokens * columns * 4 * LOSS[training.loss] * constants.loss / (device.bandwidth * constants.streamed)
    return multiplied + moved


def optimizer(device: Device, trained: float, training: Training, constants: Constants) -> float:
    """Seconds of one update of `trained` parameters on this GPU, with the norm that clips."""
    return trained * (training.passes + training.gradient) / (device.bandwidth * constants.streamed)
