"""How many places a cluster has for replicas, by what each asks for."""

from samestep.launch.broker import Wanted, places


def wanted(cpus, gpus=0):
    return Wanted(None, None, 4, cpus, True, gpus)


def test_a_replica_on_processors_asks_for_no_gpu():
    assert wanted(2).place == {"CPU": 2}
    assert places([{"CPU": 5.0}, {"CPU": 1.0}, {"GPU": 8.0}], wanted(2).place) == 2


def test_with_gpus_the_scarcer_of_both_decides_on_each_node():
    assert wanted(2, 1).place == {"CPU": 2, "GPU": 1}
    nodes = [{"CPU": 64.0, "GPU": 4.0}, {"CPU": 5.0, "GPU": 8.0}, {"CPU": 64.0}]
    assert places(nodes, wanted(2, 1).place) == 4 + 2
