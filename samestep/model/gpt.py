"""The built-in model: a Llama in plain torch, with the parameter names and the semantics of LlamaForCausalLM.

Written here because importing transformers costs 4 to 5 s at every start of a replica. What `save` writes, transformers
loads. Parts: rotary positions (Su et al., arXiv 2104.09864), RMSNorm (Zhang and Sennrich, arXiv 1910.07467), SwiGLU
(Shazeer, arXiv 2002.05202), put together as in Llama (Touvron et al., arXiv 2302.13971); no biases.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samestep.model.folder import WEIGHTS, write_json
from samestep.model.losses import cross_entropy_sum, product_dtype

NORM_EPSILON = 1e-6
ROTARY_BASE = 10_000.0
INIT_STD = 0.02
PLAIN_ATTENTION = 512  # tokens; longest context whose whole bfloat16 scores are kept on a CPU


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    heads: int
    vocabulary: int  # tokens
    context: int  # tokens; the longest sequence
    tied: bool = True  # input and output embedding are one tensor
    dropout: float = 0.0

    @property
    def inner(self) -> int:
        """Width inside SwiGLU: 8/3 of the width, up to the next multiple of 32."""
        return -(-8 * self.width // 96) * 32


class GPT(nn.Module):
    """New weights come from torch's default generator, in the order of the parameters.

    With `checkpointing` each layer's activations are computed again in backward: same bits, less memory, a third
    more time.
    """

    def __init__(self, shape: Shape, checkpointing: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape, checkpointing)
        if not shape.tied:
            self.lm_head = _linear(shape.width, shape.vocabulary)
        _initialise(self, shape.layers)

    @property
    def head(self) -> Tensor:
        """The output embedding [vocabulary, width]."""
        return self.model.embed_tokens.weight if self.shape.tied else self.lm_head.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits [batch, time, vocabulary] in the product dtype; with `targets` the summed loss, a float32 scalar.

        `tokens` and `targets` are int64 [batch, time], time at most the context; a target of -100 is masked.
        """
        hidden: Tensor = self.model(tokens)
        if targets is None:
            return F.linear(hidden, self.head)
        return cross_entropy_sum(hidden.flatten(0, 1), self.head, targets.flatten())


class Body(nn.Module):
    """Everything below the output embedding."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, shape: Shape, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width)
        angles = _angles(shape.context, shape.width // shape.heads)
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        angles = self.cosines[: tokens.shape[1]], self.sines[: tokens.shape[1]]
        again = self.checkpointing and torch.is_grad_enabled()
        hidden: Tensor = self.embed_tokens(tokens)
        for layer in self.layers:
            hidden = checkpoint(layer, hidden, *angles, use_reentrant=False) if again else layer(hidden, *angles)
        normed: Tensor = self.norm(hidden)
        return normed


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = Norm(shape.width)
        self.post_attention_layernorm = Norm(shape.width)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        hidden = hidden + self.dropout(self.self_attn(self.input_layernorm(hidden), cosines, sines))
        out: Tensor = hidden + self.dropout(self.mlp(self.post_attention_layernorm(hidden)))
        return out


class Norm(nn.Module):
    """RMSNorm in float32, given out in the product dtype: cast once for all the products that read it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.weight.shape, self.weight, NORM_EPSILON).to(product_dtype(hidden))


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj = _linear(shape.width, shape.width)
        self.k_proj = _linear(shape.width, shape.width)
        self.v_proj = _linear(shape.width, shape.width)
        self.o_proj = _linear(shape.width, shape.width)

    def forward(self, hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        q, k, v = (
            projection(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = attend(rotate(q, cosines, sines), rotate(k, cosines, sines), v)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = _linear(shape.width, shape.inner)
        self.up_proj = _linear(shape.width, shape.inner)
        self.down_proj = _linear(shape.inner, shape.width)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return out


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn `heads` [batch, heads, time, size] by the angles [time, size / 2] of their positions, in float32."""
    left, right = heads.chunk(2, -1)
    turned = torch.cat((left * cosines - right * sines, right * cosines + left * sines), -1)
    return turned.to(heads.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over [batch, heads, time, size].

    torch's flash kernel for CPUs takes twice the time of plain products in bfloat16 (measured to 512 tokens: 44 ms
    against 20 at 8 x 256, a tenth of a step), so short contexts keep their scores.
    """
    time = q.shape[-2]
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or time > PLAIN_ATTENTION:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    future = torch.full((time, time), float("-inf"), dtype=q.dtype).triu(1)
    with torch.autocast("cpu", enabled=False):  # it would make float32 copies for a softmax that is float32 inside
        return ((q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)).add_(future).softmax(-1) @ v


def _angles(context: int, size: int) -> Tensor:
    """Rotary angles [context, size / 2], float32."""
    frequencies = ROTARY_BASE ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
    return torch.outer(torch.arange(context, dtype=torch.float32), frequencies)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def _initialise(module: nn.Module, layers: int) -> None:
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=INIT_STD / (2 * layers) ** 0.5 if into_residual else INIT_STD)


def save(module: GPT, folder: Path, eos: int) -> None:
    """Write config.json, generation_config.json and float32 model.safetensors into `folder`, as transformers does."""
    write_json(folder / "config.json", config(module.shape, eos))
    write_json(folder / "generation_config.json", dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), eos))
    weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in module.state_dict().items()}
    safetensors.torch.save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def config(shape: Shape, eos: int) -> dict[str, Any]:
    """The fields of a LlamaConfig. Documents begin and end with the token `eos`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.width // shape.heads,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "initializer_range": INIT_STD,
        "rms_norm_eps": NORM_EPSILON,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "tie_word_embeddings": shape.tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "use_cache": True,
        "bos_token_id": eos,
        "eos_token_id": eos,
        "pad_token_id": None,  # an embedding row that is padding gets no gradient in transformers
    }
