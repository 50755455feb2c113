"""The most memory that one GPU of a run needs at a time, by what it is for. Pure arithmetic, bytes.

Activations are counted tensor by tensor as in Korthikanti et al., arXiv 2205.05198, section 4; what is sharded as in
Rajbhandari et al., arXiv 1910.02054. A pipeline's first stage is the one that is counted: it holds the most.
"""

from samestep.plan.devices import Device
from samestep.plan.facts import Facts
from samestep.plan.training import Training

CONTEXT = 0.7 * 2**30  # of the driver, kernels and libraries, before anything is allocated
COLLECTIVES = 0.4 * 2**30  # NCCL's own buffers, where there is more than one GPU
WORKSPACE = 0.1 * 2**30  # of matrix products
SLACK = 0.04  # of what is allocated, lost between blocks: torch's allocator rounds and splits
CHUNKS = 8  # parts of a loss that is taken in chunks
PART = 256  # positions whose logits samestep's own loss holds at a time, see model/losses.py
BLOCK = 64  # weights that one scale belongs to in a 4-bit format: half a byte and a share of the scale
NF4 = 0.5 + 1 / BLOCK + 0.05

Parts = dict[str, float]


def peak(facts: Facts, training: Training) -> Parts:
    """Bytes by kind of what a GPU holds at the worst moment: when backward begins, or when the optimizer runs."""
    states = _states(facts, training)
    work = activations(facts, training) | {"logits": logits(facts, training)}
    if training.accumulate == 1:  # gradients take the place of what backward has used
        states["gradients"] = max(0.0, states["gradients"] - sum(work.values()))
    rest = {"buffers": _buffers(facts, training)}
    return states | work | rest | {"slack": SLACK * sum(work.values())}


def needed(facts: Facts, training: Training) -> float:
    """Bytes that a GPU must have: the peak, and what lies outside the allocator."""
    return sum(peak(facts, training).values()) + CONTEXT + (COLLECTIVES if training.gpus > 1 else 0)


def fits(device: Device, facts: Facts, training: Training) -> bool:
    return needed(facts, training) <= device.memory


def trained(facts: Facts, training: Training) -> float:
    """Parameters that are trained: all of them, or those of adapters of `rank` on linear layers."""
    if not training.rank:
        return float(facts.parameters)
    attention = (facts.width + facts.queries) * 2 + (facts.width + facts.keys) * 2
    mlp = (3 if facts.gated else 2) * (facts.width + facts.inner)
    return float(training.rank * facts.layers * (attention if training.targets == "attention" else attention + mlp))


def _here(facts: Facts, training: Training) -> float:
    """Share of the model that one GPU computes with."""
    return 1 / (training.tensor * training.pipeline)


def _states(facts: Facts, training: Training) -> Parts:
    cut, shards, mine = _here(facts, training), training.shards, trained(facts, training)
    base = facts.parameters if training.rank else 0.0
    kept = cut / (shards if training.stage >= 3 else 1)
    away = training.offload and training.stage >= 3
    held = training.weight * mine + _frozen(facts, training) * (base > 0)
    casts = training.width * facts.parameters * cut if training.mixed and training.width < training.weight else 0.0
    each = NF4 if training.quantised else training.width
    gathered = _unit(facts, training) * each if training.stage >= 3 and shards > 1 else 0.0
    gradients = training.gradient * mine * cut / (shards if training.stage >= 2 else 1)
    if training.early:
        gradients = training.gradient * _largest(facts, training)
    whole = training.gradient * _unit(facts, training) if training.stage >= 2 and not training.rank else 0.0
    moments = 0.0 if training.offload else training.moments * mine * cut / (shards if training.stage >= 1 else 1)
    return {
        "weights": held * kept * (not away) + (0.0 if training.stage >= 3 else casts) + 2 * gathered,
        "gradients": gradients * (not away) + whole,
        "optimizer": moments,
    }


def _frozen(facts: Facts, training: Training) -> float:
    """Bytes of the weights that adapters leave as they are; embeddings are not rounded."""
    if not training.quantised:
        return training.frozen * facts.parameters
    return NF4 * facts.layers * facts.layer + training.frozen * facts.embedding


def _unit(facts: Facts, training: Training) -> float:
    """Parameters that are whole on a GPU at a time under full sharding: a layer."""
    return facts.layer / training.tensor


def _largest(facts: Facts, training: Training) -> float:
    return max(facts.layer, facts.vocabulary * facts.width) * _here(facts, training)


def activations(facts: Facts, training: Training) -> Parts:
    """Bytes that wait for backward, of all layers of a GPU and all micro-batches that are in flight in a pipeline."""
    tokens = training.micro_batch * training.context
    layers = facts.layers / training.pipeline
    flight = min(training.pipeline, training.accumulate) if training.pipeline > 1 else 1
    parts = layer(facts, training)
    kept = tokens * facts.width * training.width * (2 if training.mixed else 1) / training.tensor
    if training.again:
        return {"checkpoints": kept * (2 if training.checkpointing == "offloaded" else layers * flight)} | parts
    if training.checkpointing == "selective":
        parts["scores"] = 0.0
    return {name: size * layers * flight for name, size in parts.items()}


def layer(facts: Facts, training: Training) -> Parts:
    """Bytes of one layer and micro-batch."""
    tokens, width, cut = training.micro_batch * training.context, training.width, training.tensor
    lean = training.kernels in ("compiled", "fused")
    copied = not lean and (facts.gated or training.mixed)  # a root mean square in Python, or autocast, needs float32
    norms = 2 * facts.width * (2 * width + 4 * copied) / cut
    mixing = (2 * facts.queries + 2 * facts.keys) * width / cut
    middle = ((3 if lean else 4) if facts.gated else 2) * facts.inner * width / cut
    masks = 2 * facts.width / cut if facts.dropout else 0.0
    adapters = facts.width * 3 + training.rank * 2 * width if training.rank else 0.0  # the input after dropout
    scores = 0.0
    if not training.flash:
        scores = facts.heads * training.context * (width * (3 if facts.dropout else 2) + facts.dropout) / cut
    if training.quantised:
        middle += (2 * facts.inner + facts.queries + 2 * facts.keys + 2 * facts.width) * width / cut
    return {
        "norms": tokens * norms,
        "attention": tokens * (mixing + adapters),
        "mlp": tokens * middle,
        "masks": tokens * masks,
        "scores": tokens * scores,
    }


def logits(facts: Facts, training: Training) -> float:
    """Bytes of a micro-batch's logits and their gradient; a chunked or fused loss holds no float32 copy of all."""
    tokens = training.micro_batch * training.context * facts.predicted
    each = {
        "plain": training.width + 8,
        "fused": 2 * training.width,
        "metered": 2 * training.width,
        "chunked": training.width,
    }
    if training.loss == "parts":
        return min(tokens, PART) * facts.vocabulary * (training.width + 8) / training.tensor
    each["chunked"] += (8 if training.kernels == "eager" else training.width) / CHUNKS
    return tokens * facts.vocabulary * each[training.loss] / training.tensor


def _buffers(facts: Facts, training: Training) -> float:
    """Of exchanges and matrix products: data parallelism keeps its buckets beside the gradients."""
    if training.gpus == 1 or training.replicas == 1 or training.stage >= 2:
        return WORKSPACE
    return WORKSPACE + training.gradient * trained(facts, training) * _here(facts, training)
