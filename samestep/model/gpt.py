"""The built-in model: a Llama in plain torch, with the parameter names and the semantics of LlamaForCausalLM.

Written here because importing transformers costs 4 to 5 s at every start of a replica, and because it takes two thirds
of the time of transformers' modules on a CPU. What `save` writes, transformers loads, and a Llama that transformers
wrote is loaded here. Parts: rotary positions (Su et al., arXiv 2104.09864), RMSNorm (Zhang and Sennrich, arXiv
1910.07467), SwiGLU (Shazeer, arXiv 2002.05202), grouped queries (Ainslie et al., arXiv 2305.13245), put together as in
Llama (Touvron et al., arXiv 2302.13971); no biases.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samestep.model.folder import WEIGHTS, write_json
from samestep.model.layers import Linear, Norm, attend, gated, product_dtype, rotate
from samestep.model.losses import cross_entropy_sum
from samestep.model.scratch import Scratch

NORM_EPSILON = 1e-6
ROTARY_BASE = 10_000.0
INIT_STD = 0.02


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    heads: int
    vocabulary: int  # tokens
    context: int  # tokens; the longest sequence
    tied: bool = True  # input and output embedding are one tensor
    dropout: float = 0.0
    groups: int | None = None  # heads of keys and values; None: as many as of queries
    head_width: int | None = None  # None: width / heads
    inner_width: int | None = None  # inside SwiGLU; None: 8/3 of the width, up to the next multiple of 32
    norm_epsilon: float = NORM_EPSILON
    rotary_base: float = ROTARY_BASE
    padding: int | None = None  # a token whose input embedding gets no gradient, as LlamaForCausalLM has it

    @property
    def inner(self) -> int:
        return self.inner_width or -(-8 * self.width // 96) * 32

    @property
    def head_size(self) -> int:
        return self.head_width or self.width // self.heads

    @property
    def key_heads(self) -> int:
        return self.groups or self.heads


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
            self.lm_head = Linear(shape.width, shape.vocabulary)
        _initialise(self, shape.layers)

    @property
    def head(self) -> Tensor:
        """The output embedding [vocabulary, width]."""
        return self.model.embed_tokens.weight if self.shape.tied else self.lm_head.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits [batch, time, vocabulary] in the product dtype; with `targets` the summed loss, a float32 scalar.

        All are int64 [batch, time], time at most the context; a target of -100 is masked. `positions` count from 0 in
        each of the sequences that stand apart in a row; None: each row is one.
        """
        hidden: Tensor = self.model(tokens, positions)
        if targets is None:
            return F.linear(hidden, self.head)
        return cross_entropy_sum(hidden.flatten(0, 1), self.head, targets.flatten())


class Past:
    """The keys and values of the tokens that a generation has seen, by layer."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        return self._seen[0][0].shape[2] if self._seen else 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Both with all those before them, [batch, heads, time, size]."""
        if layer in self._seen:
            before = self._seen[layer]
            keys, values = torch.cat((before[0], keys), 2), torch.cat((before[1], values), 2)
        self._seen[layer] = keys, values
        return keys, values


class Where(NamedTuple):
    """The rotary angles of each position, and what is added to the scores so that each attends to what it may."""

    cosines: Tensor
    sines: Tensor
    wall: Tensor | None  # None: everything before it in the row
    past: Past | None


class Body(nn.Module):
    """Everything below the output embedding."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, shape: Shape, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width, shape.padding)
        self.layers = nn.ModuleList(Layer(shape, number) for number in range(shape.layers))
        self.norm = Norm(shape.width, shape.norm_epsilon)
        angles = _angles(shape.context, shape.head_size, shape.rotary_base)
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        past: Past | None = None,
        scratch: Scratch | None = None,
    ) -> Tensor:
        """The hidden state of each position, [batch, time, width] in the product dtype.

        `past`: these tokens follow on those that it has seen; without `positions`. `scratch`: that of the loss.
        """
        embedding = self.embed_tokens
        if scratch is not None and scratch.tied:
            hidden = scratch.lookup(tokens, embedding.weight, embedding.padding_idx).float()
        else:
            hidden = embedding(tokens).float()
        where = self._where(tokens.shape[1], positions, past, product_dtype(hidden))
        again = self.checkpointing and torch.is_grad_enabled()
        for layer in self.layers:
            hidden = checkpoint(layer, hidden, where, use_reentrant=False) if again else layer(hidden, where)
        normed: Tensor = self.norm(hidden)
        return normed

    def _where(self, time: int, positions: Tensor | None, past: Past | None, dtype: torch.dtype) -> Where:
        if positions is None:
            before = past.length if past else 0
            now = slice(before, before + time)
            behind = torch.full((time, before + time), float("-inf"), dtype=dtype, device=self.sines.device)
            return Where(self.cosines[now], self.sines[now], behind.triu(before + 1) if before else None, past)
        sequence = (positions == 0).cumsum(1)
        there = (sequence[:, None] == sequence[:, :, None]).tril()
        wall = torch.zeros(there.shape, dtype=dtype, device=there.device).masked_fill(~there, float("-inf"))
        return Where(self.cosines[positions].unsqueeze(1), self.sines[positions].unsqueeze(1), wall.unsqueeze(1), None)


class Layer(nn.Module):
    def __init__(self, shape: Shape, number: int) -> None:
        super().__init__()
        self.self_attn = Attention(shape, number)
        self.mlp = MLP(shape)
        self.input_layernorm = Norm(shape.width, shape.norm_epsilon)
        self.post_attention_layernorm = Norm(shape.width, shape.norm_epsilon)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, hidden: Tensor, where: Where) -> Tensor:
        hidden = hidden + self.dropout(self.self_attn(self.input_layernorm(hidden), where))
        out: Tensor = hidden + self.dropout(self.mlp(self.post_attention_layernorm(hidden)))
        return out


class Attention(nn.Module):
    def __init__(self, shape: Shape, number: int) -> None:
        super().__init__()
        self.head, self.number = shape.head_size, number
        self.q_proj = Linear(shape.width, shape.heads * shape.head_size)
        self.k_proj = Linear(shape.width, shape.key_heads * shape.head_size)
        self.v_proj = Linear(shape.width, shape.key_heads * shape.head_size)
        self.o_proj = Linear(shape.heads * shape.head_size, shape.width)

    def forward(self, hidden: Tensor, where: Where) -> Tensor:
        q, k, v = (
            projection(hidden).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (rotate(heads, where.cosines, where.sines) for heads in (q, k))
        if where.past is not None:
            k, v = where.past.extend(self.number, k, v)
        mixed = attend(q, k, v, where.wall)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.width, shape.inner)
        self.up_proj = Linear(shape.width, shape.inner)
        self.down_proj = Linear(shape.inner, shape.width)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = gated(self.gate_proj(hidden), self.up_proj(hidden), self.down_proj)
        return out


def _angles(context: int, size: int, base: float) -> Tensor:
    """Rotary angles [context, size / 2], float32, on the CPU also while weights are only described."""
    frequencies = base ** -(torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size)
    return torch.outer(torch.arange(context, dtype=torch.float32, device="cpu"), frequencies)


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
        "num_key_value_heads": shape.key_heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "initializer_range": INIT_STD,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rotary_base},
        "tie_word_embeddings": shape.tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "use_cache": True,
        "bos_token_id": eos,
        "eos_token_id": eos,
        "pad_token_id": shape.padding,
    }
