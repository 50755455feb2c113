import pytest
import torch

from samestep.errors import ClusterError
from samestep.replica import kernels
from samestep.wire import loopback


def test_the_description_names_what_decides_the_bits():
    facts = kernels.describe()
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == str(torch.get_num_threads())
    assert facts["cpu"] and facts["instructions"]


def test_equal_replicas_agree():
    loopback.run(3, lambda wire: kernels.agree(wire, {"torch": "2.13", "threads": "1"}))


def test_a_mixed_set_is_refused_naming_replica_and_fact():
    def replica(wire):
        kernels.agree(wire, {"torch": "2.13", "threads": "2" if wire.rank == 1 else "1"})

    with pytest.raises(ClusterError, match="replica 1 has threads 2, replica 0 has 1; the bits would differ"):
        loopback.run(3, replica)
