"""Limits of users and containers are held against what a recipe needs, before a run meets them."""

import math
import sys

import pytest

from samestep.errors import SamestepError
from samestep.launch.engine import Program
from samestep.launch.health import limits
from samestep.launch.health.finding import Need
from samestep.launch.health.limits import Limits, descriptors, judge
from samestep.launch.local import Local
from samestep.recover.protocol import Terms
from tests.launch.health.sick import ROOT, TINY, doctor, group, limited, one, somebody

BIG = ["model.layers=80", "model.width=8192", "model.vocabulary=100000"]


def test_too_few_open_files(tmp_path):
    found = doctor(tmp_path, TINY, "lanes=64", "run.replicas=32", under=limited(nofile=900), code=4)
    told = one(found, "open files", "failure", "32 replicas need 1,160 open files, this process may have 900")
    assert told["fix"].startswith("ulimit -n 1160")
    assert not [each for each in doctor(tmp_path, TINY, under=limited(nofile=900)) if each["check"] == "open files"]


def test_more_replicas_on_a_host_than_linux_passes_sockets(tmp_path):
    found = doctor(tmp_path, TINY, "lanes=300", "run.replicas=300", code=4)
    one(found, "open files", "failure", "300 replicas on one host, but Linux passes at most 253")


def test_too_few_processes_for_a_user(tmp_path):
    tmp_path.chmod(0o777)
    found = doctor(tmp_path, TINY, "run.replicas=8", under=[*limited(nproc=20), *somebody()], code=4)
    one(found, "processes", "failure", "8 replicas are 53 processes and threads, but only 1")


def test_too_few_processes_for_a_container(tmp_path):
    with group("pids", max=12) as under:
        found = doctor(tmp_path, TINY, under=under, code=4)
    one(found, "processes", "failure", "2 replicas are 17 processes and threads, but only ")


def test_where_no_process_can_be_started_the_rest_is_still_told(tmp_path):
    with group("pids", max=1) as under:
        found = doctor(tmp_path, TINY, under=under, code=4)
    one(found, "processes", "failure")
    one(found, "torch", "failure", "no process can be started")


def test_files_may_not_grow_to_the_size_of_a_checkpoint(tmp_path):
    found = doctor(tmp_path, TINY, under=limited(fsize=1_000_000), code=4)
    one(found, "file size", "failure", "no file may grow beyond 1 MB", "the model takes 1.68 MB")
    one(doctor(tmp_path, under=limited(fsize=1 << 30)), "file size", "warning", "1.07 GB")


def test_processor_time_is_limited(tmp_path):
    one(doctor(tmp_path, under=limited(cpu=3600), code=0), "processor time", "warning", "killed after 1 h 0 min")


def test_the_address_space_is_too_small(tmp_path):
    found = doctor(tmp_path, TINY, under=limited(**{"as": 600 << 20}), code=4)
    one(found, "address space", "failure", "but may map 629 MB")


def test_a_container_may_use_less_of_the_processors_than_replicas_compute_on(tmp_path):
    with group("cpu", cfs_quota_us=50_000) as under:
        found = doctor(tmp_path, TINY, under=under, code=0)
    one(found, "cores", "warning", "2 replicas of 1 threads compute on 0.5 cores of ")


def test_an_affinity_leaves_fewer_cores_than_threads(tmp_path):
    found = doctor(tmp_path, TINY, under=["taskset", "-c", "0"], code=0)
    one(found, "cores", "warning", "2 replicas of 1 threads compute on 1 cores of ")


def test_more_threads_than_the_machine_has_cores(tmp_path):
    found = doctor(tmp_path, TINY, "compute.threads=1000", code=0)
    one(found, "cores", "warning", "2 replicas of 1000 threads")


def test_the_model_is_larger_than_the_memory_that_is_free(tmp_path):
    found = doctor(tmp_path, TINY, *BIG, code=4)
    one(found, "memory", "failure", "training takes", "TB on 2 replicas")


def test_a_container_has_too_little_memory(tmp_path):
    with group("memory", limit_in_bytes=300 << 20) as under:
        found = doctor(tmp_path, TINY, under=under, code=4)
    one(found, "memory", "failure", "training takes 460 MB on 2 replicas, but ", " MB of memory are free")


@pytest.mark.parametrize(("free", "level"), [(1000, "failure"), (1001, "warning"), (1300, None)])
def test_memory_that_only_weights_fit_in_is_warned_of(free, level):
    found = judge(Limits(files=math.inf, memory=free), Need(memory=1001))
    assert [each.level for each in found] == [level or "ok"]


REPLICA = """
import os, sys
sys.path.insert(0, {root!r})
from samestep.replica.place import connect
control = connect(os.environ)
control.send({{"event": "joined"}})
control.formation()
"""


@pytest.mark.parametrize("replicas", [3, 12])
def test_so_many_descriptors_are_enough_for_the_engine(replicas):
    """Under a limit of its own, in a process of its own."""
    import resource
    import subprocess

    code = f"""
import resource, sys
from samestep.launch.health.limits import descriptors
from tests.launch.health.test_limits import started
needed = descriptors(({replicas},))
resource.setrlimit(resource.RLIMIT_NOFILE, (needed if sys.argv[1] == "enough" else {replicas * replicas},) * 2)
print(started({replicas}))
"""
    for word, expected in (("enough", "all"), ("few", "not")):
        command = [sys.executable, "-c", code, word]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == expected, done.stderr
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > descriptors((replicas,))


def started(replicas):
    program = Program([sys.executable, "-c", REPLICA.format(root=str(ROOT))])
    try:
        Local().run(program, Terms(replicas, replicas, 1, False), lambda event: None)
    except (OSError, SamestepError):
        return "not"
    return "all"


def test_this_machine_has_what_it_says():
    found = limits.read()
    assert 0 < found.cores <= found.all_cores and found.memory > 1 << 20 and found.files > 0
