"""What a price table knows of a GPU by the name that its driver gives."""

import pytest

from samestep.plan.cost import price_of, prices


@pytest.mark.parametrize(
    ("name", "device"), [("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("NVIDIA H200", "H200"), ("Tesla T4", "T4")]
)
def test_a_driver_s_name_finds_the_price(name, device):
    table = prices()
    assert price_of(name, table) == table[device]


@pytest.mark.parametrize("name", ["", "Some GPU"])
def test_what_nobody_knows_has_no_price(name):
    assert price_of(name, prices()) is None


def test_a_known_gpu_without_a_price_has_none():
    assert price_of("NVIDIA A100-SXM4-80GB", {}) is None
