import pytest
import torch
from torch import nn

from samestep.model.finite import LOSS, Origin, first

INPUT = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


class Of(nn.Module):
    """A function as a layer, around an inner one."""

    def __init__(self, function, inner=None):
        super().__init__()
        self.function, self.inner = function, inner or nn.Identity()

    def forward(self, x, mask=None):
        return self.function(self.inner(x))


def linear(weight=1.0):
    layer = nn.Linear(2, 2, bias=False)
    nn.init.constant_(layer.weight, weight)
    return layer


def named(module, loss=torch.sum, **given):
    """backward, and the name of the layer; None where all is finite."""
    found = first(module, lambda: loss(module(INPUT, **given)))
    if found is None:
        return None
    return found.backward, None if found.layer == LOSS else [name for name, _ in module.named_modules()][found.layer]


def log_of_negative(x):
    return torch.log(-x)


def root_at_zero(x):
    return torch.sqrt(x - x.detach())


def test_where_all_is_finite_nothing_is_found_and_no_gradient_or_hook_is_left():
    module = nn.Sequential(linear(), nn.Tanh(), linear())
    assert named(module) is None
    assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in module.parameters())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


def test_forward_it_is_the_first_that_was_given_finite_numbers():
    assert named(nn.Sequential(linear(), Of(log_of_negative), linear(), nn.Tanh())) == (False, "1")


def test_the_layer_around_is_named_where_the_inner_ones_are_finite():
    assert named(nn.Sequential(linear(), Of(lambda x: log_of_negative(x) * 2, linear()), linear())) == (False, "1")


def test_a_function_before_an_inner_layer_is_not_blamed_on_it():
    class Before(Of):
        def forward(self, x):
            return self.inner(self.function(x))

    assert named(nn.Sequential(linear(), Before(log_of_negative, linear()))) == (False, "1")


def test_weights_that_are_not_finite_are_found_at_their_layer():
    assert named(nn.Sequential(linear(), linear(float("nan")))) == (False, "1")


def test_a_mask_with_infinities_is_no_cause():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Of(log_of_negative, linear())

        def forward(self, x):
            return self.layer(x, mask=torch.full((2,), -torch.inf))

    assert named(Masked()) == (False, "layer")


def test_a_loss_over_finite_layers_is_the_loss():
    assert named(nn.Sequential(linear()), lambda out: log_of_negative(out).sum()) == (False, None)


def test_a_gradient_alone_is_found_where_it_begins():
    assert named(nn.Sequential(linear(), Of(root_at_zero), linear())) == (True, "1")
    assert named(nn.Sequential(linear(), Of(root_at_zero, linear()), linear())) == (True, "1"), "around"
    assert named(nn.Sequential(linear(), linear()), lambda out: root_at_zero(out).sum()) == (True, None)


def test_a_gradient_is_not_blamed_on_one_that_shares_its_input():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = linear(), linear(), linear()

        def forward(self, x):
            return root_at_zero(self.q(x) * self.k(x)) + self.v(x)

    assert named(nn.Sequential(linear(), Attention(), linear())) == (True, "1")


def test_it_is_found_under_activation_checkpointing():
    class Again(Of):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    assert named(nn.Sequential(linear(), Again(root_at_zero, linear()), linear())) == (True, "1")


def test_one_tensor_given_twice_stays_one():
    class Same(nn.Module):
        def forward(self, a, b):
            assert a is b
            return a * b

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.same = linear(), Same()

        def forward(self, x):
            hidden = self.inner(x)
            return self.same(hidden, hidden)

    assert named(Twice()) is None


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_of_transformers_is_named_as_it_names_itself(lora):
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=20
    )
    model = transformers.LlamaForCausalLM(config)
    if lora:
        import peft

        from samestep.model.lora import quiet

        with quiet():
            model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["down_proj"], init_lora_weights=False))
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.default" if lora else "model.layers.1.mlp.down_proj"
    nn.init.constant_(model.get_submodule(name).weight, torch.inf)
    tokens = torch.arange(12).view(2, 6)
    found = first(model, lambda: model(input_ids=tokens, labels=tokens).loss)
    assert found == Origin(False, [n for n, _ in model.named_modules()].index(name))
