"""How a model is trained: what of a recipe or of a published run decides memory and time."""

from collections.abc import Mapping
from dataclasses import dataclass

WIDTHS: Mapping[str, float] = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 2}  # bytes of an activation


@dataclass(frozen=True)
class Training:
    """context: positions of a row. micro_batch: rows that a replica computes at once. accumulate: micro-batches of a
    replica and step. gpus: all of them, tensor x pipeline x replicas; host: of one host. network: bytes a second of a
    host's way to the others.

    product: dtype of matrix products. weight, gradient: bytes of one that is trained. moments: bytes of all optimizer
    state a parameter, with a master copy. frozen: bytes of a weight that is not trained. mixed: whether a cast copy of
    the weights is made for each micro-batch (autocast).

    stage: what is sharded between replicas: 0 nothing, 1 optimizer, 2 gradients too, 3 weights too (ZeRO: Rajbhandari
    et al., arXiv 1910.02054; FSDP is 3). group: replicas that hold one whole between them; 0: all (fewer: HSDP).
    tensor, pipeline: GPUs that share each layer, and the layers (Megatron-LM, arXiv 2104.04473); chunks: of layers
    that one GPU of a pipeline has, in turn.

    checkpointing: none, selective (attention is computed again), full (the layer) or offloaded (full, and what is kept
    lies in the host's memory). rank: of LoRA; 0: all is trained; targets: all linear layers, or those of attention.
    flash: whether attention keeps no scores. kernels: eager, graph (a graph executor), fused or compiled.
    loss: plain, fused (logits stay in the products' dtype), metered (fused, and
    taken again for a metric), chunked (taken in some parts) or parts (in so many that
    logits are never whole). passes: bytes an optimizer moves a parameter. offload: whether what is sharded lies in the
    host's memory. early: whether the optimizer runs in backward, so that no more than a layer's gradients live.
    """

    context: int
    micro_batch: int
    accumulate: int = 1
    gpus: int = 1
    host: int = 8
    network: float = 25e9
    product: str = "bf16"
    weight: float = 4
    gradient: float = 4
    moments: float = 8
    frozen: float = 2
    mixed: bool = True
    stage: int = 0
    group: int = 0
    tensor: int = 1
    pipeline: int = 1
    chunks: int = 1
    checkpointing: str = "none"
    rank: int = 0
    targets: str = "all"
    quantised: bool = False
    flash: bool = True
    kernels: str = "eager"
    loss: str = "plain"
    passes: float = 28
    offload: bool = False
    early: bool = False

    @property
    def replicas(self) -> int:
        """That see different data."""
        return max(1, self.gpus // (self.tensor * self.pipeline))

    @property
    def shards(self) -> int:
        """Replicas that one whole of what is sharded is cut among."""
        return min(self.group or self.replicas, self.replicas)

    @property
    def rows(self) -> int:
        """Of a step, of all replicas."""
        return self.micro_batch * self.accumulate * self.replicas

    @property
    def tokens(self) -> int:
        """Positions of a step, of all replicas."""
        return self.rows * self.context

    @property
    def again(self) -> bool:
        """Whether whole layers are computed again."""
        return self.checkpointing in ("full", "offloaded")

    @property
    def width(self) -> float:
        """Bytes of an activation."""
        return WIDTHS[self.product]
