import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samestep.model import gpt
from samestep.model.gpt import GPT, Shape

SHAPE = Shape(layers=2, width=48, heads=3, vocabulary=50, context=24)


def model(shape: Shape = SHAPE, seed: int = 0, checkpointing: bool = False) -> GPT:
    torch.manual_seed(seed)
    return GPT(shape, checkpointing)


def dropping() -> Shape:
    return Shape(**{**vars(SHAPE), "dropout": 0.3})


def batch(rows: int = 3, time: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, (rows, time), generator=generator)
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -100
    return tokens, targets


def gradients(module: GPT, seed: int = 1) -> list[Tensor]:
    torch.manual_seed(seed)
    return list(torch.autograd.grad(module(*batch()), list(module.parameters())))


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_the_same_model_from_its_folder(tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    module = model(Shape(**{**vars(SHAPE), "tied": tied}))
    gpt.save(module, tmp_path, eos=7)
    theirs, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values())
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert (theirs.dtype, theirs.config.tie_word_embeddings) == (torch.float32, tied)
    assert theirs.config.eos_token_id == theirs.generation_config.pad_token_id == 7
    tokens, _ = batch()
    torch.testing.assert_close(module(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


def test_parameters_that_are_views_of_one_buffer_are_saved(tmp_path: Path) -> None:
    import safetensors.torch

    module = model()
    flat = torch.cat([p.detach().flatten() for p in module.parameters()])
    pieces = flat.split([p.numel() for p in module.parameters()])
    for parameter, piece in zip(module.parameters(), pieces, strict=True):
        parameter.data = piece.view_as(parameter)
    gpt.save(module, tmp_path, eos=0)
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[name], p) for name, p in module.named_parameters())


def test_the_config_names_the_shape(tmp_path: Path) -> None:
    gpt.save(model(), tmp_path, eos=7)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["dtype"], config["tie_word_embeddings"]) == ("llama", "float32", True)
    assert (config["hidden_size"], config["intermediate_size"], config["max_position_embeddings"]) == (48, 128, 24)


@pytest.mark.parametrize(("width", "inner"), [(384, 1024), (48, 128), (64, 192), (576, 1536)])
def test_the_inner_width_is_a_multiple_of_32(width: int, inner: int) -> None:
    assert Shape(layers=1, width=width, heads=1, vocabulary=300, context=8).inner == inner


def test_the_loss_is_the_summed_cross_entropy_of_the_logits() -> None:
    module, (tokens, targets) = model(), batch()
    expected = F.cross_entropy(module(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(module(tokens, targets), expected)


def test_no_position_sees_a_later_token() -> None:
    module, (tokens, _) = model(), batch()
    changed = tokens.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 50
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            before, after = module(tokens), module(changed)
        assert before.dtype == dtype
        assert torch.equal(before[:, :10], after[:, :10])
        assert not torch.equal(before[:, 10:], after[:, 10:])


def test_short_sequences_take_the_first_positions() -> None:
    module, (tokens, _) = model(), batch()
    torch.testing.assert_close(module(tokens[:, :5]), module(tokens)[:, :5])


def test_a_rotation_depends_on_the_position_and_keeps_length_and_dtype() -> None:
    body = model().model
    heads = torch.ones(1, 3, 24, 16, dtype=torch.bfloat16)
    turned = gpt.rotate(heads, body.cosines, body.sines)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.float().norm(dim=-1), heads.float().norm(dim=-1), rtol=0.01, atol=0)
    assert torch.equal(turned[:, :, 0], heads[:, :, 0])
    assert len(turned[0, 0].unique(dim=0)) == 24


def test_plain_attention_is_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 24, 16, generator=generator, dtype=torch.bfloat16) for _ in range(3))
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    for autocast in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = gpt.attend(q, k, v)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)


def test_bfloat16_products_give_nearly_the_float32_gradients() -> None:
    exact = gradients(model())
    with torch.autocast("cpu", torch.bfloat16):
        near = gradients(model())
    for a, b in zip(near, exact, strict=True):
        assert a.dtype == torch.float32
        assert 0 < (a - b).norm() < 0.03 * b.norm()


@pytest.mark.parametrize("autocast", [True, False])
def test_checkpointing_changes_no_bit_of_any_gradient_with_dropout_on(autocast: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        kept = gradients(model(dropping()))
        again = gradients(model(dropping(), checkpointing=True))
        other = gradients(model(dropping()), seed=2)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(kept, other, strict=True))


def test_checkpointing_runs_each_layer_twice() -> None:
    calls: list[nn.Module] = []
    module = model(checkpointing=True)
    for layer in module.model.layers:
        layer.register_forward_pre_hook(lambda layer, _: calls.append(layer))
    module(*batch()).backward()
    assert len(calls) == 2 * SHAPE.layers


def test_dropout_acts_in_training_only() -> None:
    module, (tokens, _) = model(dropping()), batch()
    assert not torch.equal(module(tokens), module(tokens))
    module.eval()
    assert torch.equal(module(tokens), module(tokens))
    assert torch.equal(module(tokens), model().eval()(tokens))


def test_new_weights_follow_from_the_seed() -> None:
    first, same, other = (dict(model(seed=seed).named_parameters()) for seed in (0, 0, 1))
    matrices = [name for name, p in first.items() if p.dim() > 1]
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in matrices)


def test_products_into_the_residual_start_smaller() -> None:
    spread = {name: p.std().item() for name, p in model().named_parameters() if p.dim() > 1}
    for name, std in spread.items():
        expected = 0.01 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        assert std == pytest.approx(expected, rel=0.1), name


WIDE = Shape(layers=2, width=48, heads=4, vocabulary=50, context=24, groups=2, head_width=16)
SIZES = ((7, 9, 1, 4), (3, 8, 10))  # of the sequences in each row, before padding


def packed() -> tuple[Tensor, Tensor]:
    """Tokens and positions [2, 24] of several sequences a row, and padding."""
    tokens = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(0))
    rows = [torch.cat([*map(torch.arange, sizes), torch.zeros(24 - sum(sizes)).long()]) for sizes in SIZES]
    return tokens, torch.stack(rows)


def sharp(shape: Shape) -> GPT:
    """Weights so large that each token matters to those after it."""
    module = model(shape)
    for parameter in module.parameters():
        parameter.data *= 5 if parameter.dim() > 1 else 1
    return module


@torch.no_grad()
@pytest.mark.parametrize("shape", [SHAPE, WIDE], ids=["as many keys", "grouped"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_sequences_of_a_packed_row_are_as_if_each_were_alone(shape: Shape, dtype: torch.dtype, bound: float) -> None:
    module, (tokens, positions) = sharp(shape), packed()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        together, mixed = module(tokens, positions=positions), module(tokens)
        for row, sizes in enumerate(SIZES):
            start = 0
            for size in sizes:
                here = slice(start, start + size)
                alone = module(tokens[row : row + 1, here])[0]
                assert (together[row, here] - alone).norm() <= bound * alone.norm()
                assert start == 0 or (mixed[row, here] - alone).norm() > 10 * bound * alone.norm()
                start += size


@pytest.mark.parametrize("shape", [SHAPE, WIDE], ids=["as many keys", "grouped"])
def test_gradients_of_packed_rows_are_the_sums_of_those_of_sequences_alone(shape: Shape) -> None:
    module, (tokens, positions) = sharp(shape), packed()
    targets = torch.full_like(tokens, -100)
    losses = []
    for row, sizes in enumerate(SIZES):
        start = 0
        for size in sizes:
            targets[row, start : start + size - 1] = tokens[row, start + 1 : start + size]
            one = tokens[row : row + 1, start : start + size]
            losses.append(module(one[:, :-1], one[:, 1:]) if size > 1 else torch.zeros(()))
            start += size
    parameters = list(module.parameters())
    wanted = torch.autograd.grad(torch.stack(losses).sum(), parameters)
    for found, one in zip(torch.autograd.grad(module(tokens, targets, positions), parameters), wanted, strict=True):
        assert (found - one).norm() <= 1e-5 * one.norm()


def test_checkpointing_keeps_the_bits_of_packed_rows() -> None:
    (tokens, positions), found = packed(), []
    for checkpointing in (False, True):
        module = model(WIDE, checkpointing=checkpointing)
        module(tokens, tokens.roll(-1, 1), positions).backward()
        found.append([parameter.grad for parameter in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("shape", [SHAPE, WIDE], ids=["as many keys", "grouped"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_tokens_shown_in_steps_give_what_the_whole_gives(shape: Shape, dtype: torch.dtype, bound: float) -> None:
    module, (tokens, _) = sharp(shape), packed()
    past = gpt.Past()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        whole = module.model(tokens)
        steps = torch.cat([module.model(part, past=past) for part in tokens.split([5, 1, 3, 1, 14], 1)], 1)
    assert past.length == 24
    assert (steps - whole).norm() <= bound * whole.norm()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("walled", [False, True])
def test_plain_attention_over_fewer_keys_is_attention(groups: int, walled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 12, 16, generator=generator).bfloat16() for n in (4, groups, groups))
    allowed = (torch.rand(2, 1, 12, 12, generator=generator) < 0.5).tril() | torch.eye(12, dtype=torch.bool)
    wall = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf")) if walled else None
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), wall, is_causal=not walled, enable_gqa=True)
    found = gpt.attend(q, k, v, None if wall is None else wall.bfloat16())
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)


def test_padding_gets_no_gradient_as_an_input() -> None:
    module = model(Shape(**{**vars(SHAPE), "tied": False, "padding": 3}))
    tokens = torch.tensor([[1, 3, 2, 3]])
    module(tokens, tokens).backward()
    trained = module.model.embed_tokens.weight.grad.norm(dim=1).nonzero().flatten()
    assert trained.tolist() == [1, 2]
