"""Which device a replica computes on, and what is said where there is none."""

import pytest
import torch

from samestep.errors import ClusterError, RecipeError
from samestep.recipe.load import load
from samestep.replica import device


def test_each_replica_of_a_host_gets_a_device_and_more_than_there_are_share_them_in_turn():
    assert [device.chosen(local, 4) for local in range(4)] == [0, 1, 2, 3]
    assert [device.chosen(local, 2) for local in range(5)] == [0, 1, 0, 1, 0]
    assert device.chosen(7, 1) == 0


def test_a_recipe_for_processors_changes_nothing(tiny):
    before = torch.are_deterministic_algorithms_enabled()
    assert device.settle(load(tiny).compute.device, "exact", 3) == torch.device("cpu")
    assert torch.are_deterministic_algorithms_enabled() == before
    assert device.memory(torch.device("cpu")) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here: its absence cannot be tried")
def test_cuda_without_a_device_is_refused_with_the_way_out(tiny):
    with pytest.raises(ClusterError, match=r"compute.device is cuda, but torch .* compute.device=cpu") as found:
        device.settle(load(tiny, ["compute.device=cuda"]).compute.device, "exact", 0)
    assert "\n" not in str(found.value)


def test_a_build_for_processors_is_told_from_a_machine_without_a_gpu():
    assert "is a build for processors only; install one for CUDA" in device.missing(None)
    assert "samestep doctor" in device.missing("13.0")


@pytest.mark.parametrize("exact", [True, False])
def test_bits_repeat_where_that_is_asked_for_and_nothing_is_chosen_by_a_stopwatch(exact):
    had = torch.are_deterministic_algorithms_enabled()
    try:
        device.repeatable(exact)
        assert torch.are_deterministic_algorithms_enabled() == exact
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert torch.backends.cudnn.deterministic == exact and not torch.backends.cudnn.benchmark
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    finally:
        torch.use_deterministic_algorithms(had)
        torch.utils.deterministic.fill_uninitialized_memory = True


def test_a_full_gpu_is_told_with_what_needs_less():
    told = device.explained(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."))
    assert isinstance(told, ClusterError) and "CUDA out of memory); lower batch.micro_batch" in str(told)


def test_an_operation_that_does_not_repeat_is_named():
    raised = RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set ...")
    told = device.explained(raised)
    assert isinstance(told, RecipeError) and str(told).startswith("cumsum_cuda_kernel has no CUDA kernel that repeats")


def test_other_errors_stay_as_they_are():
    raised = RuntimeError("something else")
    assert device.explained(raised) is raised
