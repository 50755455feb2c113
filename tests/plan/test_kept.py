"""What is counted is what torch keeps."""

from dataclasses import replace

import pytest
import torch

from samestep.model.gpt import GPT, Shape
from samestep.plan import kept
from samestep.plan.facts import Facts
from samestep.plan.kept import Micro

SHAPE = Shape(layers=2, width=64, heads=2, vocabulary=300, context=96, inner_width=160)
FACTS = Facts(2, 64, 2, 2, 32, 160, 300)
NORMED = 64  # numbers a position that the last norm gives and only the loss keeps


def saved(shape, micro):
    """Bytes that forward keeps for backward, weights left out."""
    module = GPT(shape, checkpointing=micro.again)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}
    kept_there = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept_there[storage.data_ptr()] = storage  # held, so that no other gets its place
        return tensor

    tokens = torch.zeros(micro.rows, micro.context, dtype=torch.int64)
    positions = torch.arange(micro.context).remainder(48).expand(micro.rows, -1) if micro.apart else None
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=micro.width == 2),
    ):
        module.model(tokens, positions)
    return sum(storage.nbytes() for storage in kept_there.values())


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_are_those_that_forward_keeps(width, dropout):
    micro = Micro(rows=3, context=96, width=width)
    counted = kept.activations(replace(FACTS, dropout=dropout > 0), micro)
    assert saved(replace(SHAPE, dropout=dropout), micro) == counted - micro.tokens * width * NORMED


def test_fewer_heads_of_keys_keep_less():
    micro = Micro(3, 96, 2)
    counted = kept.activations(replace(FACTS, key_heads=1), micro)
    assert saved(replace(SHAPE, groups=1), micro) == counted - micro.tokens * 2 * NORMED


def test_a_long_context_keeps_no_scores_but_what_attention_gives():
    short, long = (kept.layer(FACTS, Micro(1, context, 2)) for context in (512, 1024))
    assert long == 2 * short + 1024 * (2 * FACTS.queries + 4 * FACTS.heads)
    assert kept.passing(FACTS, Micro(1, 512, 2)) > kept.passing(FACTS, Micro(1, 513, 2))


def test_layers_that_are_computed_again_keep_their_input():
    micro = Micro(3, 96, 2)
    again, whole = (kept.activations(replace(FACTS, layers=20), replace(micro, again=a)) for a in (True, False))
    assert again < whole / 3


def test_the_room_of_the_loss_is_that_of_the_head():
    head = 300 * 64
    assert kept.loss(FACTS, Micro(3, 96, 2)) == 4 * head + 2 * head + 256 * 300 * 2
    assert kept.loss(FACTS, Micro(3, 96, 4)) == 4 * head + 256 * 300 * 4
    assert kept.loss(FACTS, Micro(1, 96, 2, rank=8)) == 2 * head + 96 * 300 * 2  # it is frozen
    assert kept.loss(FACTS, Micro(1, 96, 2, rank=8, wide=False)) == 96 * 300 * 2  # in the dtype of products


def test_adapters_keep_their_inputs_and_twice_as_much_where_they_drop_some():
    plain, dropped = (kept.layer(FACTS, Micro(3, 96, 2, rank=8, dropped=d)) for d in (False, True))
    assert kept.layer(FACTS, Micro(3, 96, 2)) < plain < dropped
