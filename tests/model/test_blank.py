import subprocess
import sys

import torch
from torch import nn

from samestep.model.blank import blank


def test_a_blank_module_has_shapes_and_no_weights() -> None:
    with blank():
        module = nn.Sequential(nn.Embedding(10, 4, padding_idx=1), nn.Linear(4, 3))
        nn.init.normal_(module[1].weight, std=0.02)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "0.weight": (10, 4),
        "1.weight": (3, 4),
        "1.bias": (3,),
    }
    assert all(p.is_meta for p in module.parameters())


def test_outside_weights_are_drawn_as_ever() -> None:
    with blank():
        pass
    torch.manual_seed(0)
    assert nn.Linear(4, 3).weight.std() > 0


def test_a_blank_module_does_not_load_the_compiler() -> None:
    code = (
        "import sys; from torch import nn; from samestep.model.blank import blank\n"
        "with blank(): nn.Embedding(9, 4, padding_idx=0); nn.Linear(4, 3)\n"
        "raise SystemExit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
