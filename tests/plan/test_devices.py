"""GPUs by the names that people give them."""

import subprocess
import sys

import pytest

from samestep.errors import RecipeError
from samestep.plan.devices import device, devices, named


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A100", "A100-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("A100-40GB", "A100-40GB"),
        ("A100 40GB PCIe (Lambda cloud)", "A100-40GB-PCIe"),
        ("A100-80GB-SXM4 400W", "A100-80GB"),
        ("NVIDIA A10", "A10"),
        ("A10G-24GB", "A10G"),
        ("L4", "L4"),
        ("L40S", "L40S"),
        ("8x H100 SXM5", "H100-SXM"),
        ("H100 80GB HBM3", "H100-SXM"),
        ("H100 NVL 94GB", "H100-NVL"),
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("NVIDIA GeForce RTX 3090", "RTX-3090"),
        ("RTX A6000", "RTX-A6000"),
        ("MI300X OAM", "MI300X"),
    ],
)
def test_a_name_means(text, name):
    assert device(text).name == name


def test_every_device_is_found_by_its_own_name():
    assert {name: device(name).name for name in devices()} == {name: name for name in devices()}


def test_what_is_not_known_is_refused_with_the_list():
    assert named("TPU v5e") is None
    with pytest.raises(RecipeError, match="--gpu TPU v5e is not known; known are A100-40GB, "):
        device("TPU v5e")


def test_no_product_is_faster_than_its_peak_and_none_is_much_slower():
    for one in devices().values():
        assert all(0.4 * one.peak[dtype] < one.ceiling[dtype] <= one.peak[dtype] for dtype in one.peak), one.name
        assert one.source and one.memory > 2**33


def test_a_dtype_that_a_device_lacks_is_computed_in_the_next_one():
    assert device("V100").computes("bf16") == "fp16"
    assert device("A100").computes("fp8") == "bf16"
    assert device("V100").computes("tf32") == "fp32"


def test_no_torch_is_needed():
    code = "import sys, samestep.plan.published, samestep.verbs.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
