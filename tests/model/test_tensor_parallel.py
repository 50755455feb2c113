"""What of a model is split, and what is refused. That its gradients are right: tests/replica/test_split.py."""

from typing import Any

import pytest
import torch
from torch import nn

from samestep.errors import RecipeError
from samestep.model.gpt import GPT, Shape
from samestep.model.split import Cut
from samestep.model.tensor_parallel import split

SHAPE = {"layers": 1, "width": 32, "heads": 4, "groups": 2, "vocabulary": 40, "context": 8, "inner_width": 48}


def gpt(**changes: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(Shape(**(SHAPE | changes)))


def cut(module: nn.Module, shards: int = 2, shard: int = 0) -> dict[str, Cut]:
    return split(module, shards, shard, lambda tensor: tensor)


def test_heads_and_the_inside_of_mlps_are_split_and_the_rest_is_whole() -> None:
    cuts = cut(gpt())
    dims = {name.removeprefix("model.").removesuffix(".weight"): cut.dim for name, cut in cuts.items()}
    assert dims == {
        "embed_tokens": None,
        "layers.0.self_attn.q_proj": 0,
        "layers.0.self_attn.k_proj": 0,
        "layers.0.self_attn.v_proj": 0,
        "layers.0.self_attn.o_proj": 1,
        "layers.0.mlp.gate_proj": 0,
        "layers.0.mlp.up_proj": 0,
        "layers.0.mlp.down_proj": 1,
        "layers.0.input_layernorm": None,
        "layers.0.post_attention_layernorm": None,
        "norm": None,
    }


def test_the_shards_together_have_the_whole_of_each_parameter() -> None:
    whole, parts = dict(gpt().named_parameters()), [gpt() for _ in range(2)]
    cuts = [cut(part, 2, shard) for shard, part in enumerate(parts)]
    for name, parameter in whole.items():
        mine = [dict(part.named_parameters())[name] for part in parts]
        shape, dim = cuts[0][name]
        assert shape == parameter.shape and cuts[1] == cuts[0]
        assert torch.equal(mine[0] if dim is None else torch.cat(mine, dim), parameter), name


@pytest.mark.parametrize(
    ("module", "shards", "says"),
    [
        (lambda: gpt(), 4, "compute.shards is 4, but the model has 2 key heads"),
        (lambda: gpt(heads=3, groups=3, head_width=8), 2, "compute.shards is 2, but the model has 3 heads"),
        (lambda: gpt(inner_width=33), 2, r"mlp.gate_proj.weight has the shape \[33, 32\], which does not split"),
        (
            lambda: nn.Linear(4, 4),
            2,
            "cannot split Linear, which has no plan for tensor parallelism; use compute.shard",
        ),
    ],
)
def test_what_does_not_split_is_refused(module: Any, shards: int, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        cut(module(), shards)


class Planned(nn.Module):
    """A model of transformers, as far as it is looked at here."""

    config = type("Config", (), {"num_attention_heads": 2})

    def __init__(self, plan: dict[str, str], *, bias: bool = False) -> None:
        super().__init__()
        self.tp_plan = plan
        self.layers = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4, bias=bias)})])

    def get_input_embeddings(self) -> None: ...

    def get_output_embeddings(self) -> None: ...


def test_a_bias_is_split_with_the_columns_and_refused_at_rows() -> None:
    plan = {"layers.*.up": "colwise", "layers.*.down": "rowwise"}
    assert cut(Planned(plan))["layers.0.up.bias"] == Cut((8,), 0)
    with pytest.raises(
        RecipeError, match=r"cannot split layers\.0\.down: it has a bias that would be added once a shard"
    ):
        cut(Planned(plan, bias=True))


@pytest.mark.parametrize("pattern", ["layers.*.up", "layers.*.experts.weights"])
def test_a_style_that_is_not_known_is_refused_for_layers_and_parameters(pattern: str) -> None:
    with pytest.raises(RecipeError, match=r"whose plan has .* packed_colwise; use compute.shard full"):
        cut(Planned({"layers.*.down": "rowwise", pattern: "packed_colwise"}))
