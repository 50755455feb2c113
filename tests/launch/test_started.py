"""Who started a process, from the variables that real launchers set."""

import pytest

from samestep.errors import ClusterError
from samestep.launch.started import started

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "abc",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
SRUN = {
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NNODES": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9",
    "SLURM_RESTART_COUNT": "1",
}
JOBSET = {"JOB_COMPLETION_INDEX": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "run-w-0-0.run", "JOBSET_NAME": "run"}


def facts(found):
    return found.by, found.index, found.size, found.hint, found.sure, found.restarts


def test_torchrun_says_where_process_0_may_be():
    assert facts(started(TORCHRUN)) == ("torchrun", 3, 4, "node7", False, 2)


def test_each_launcher_says_which_of_its_host_a_process_is():
    assert started(TORCHRUN).local == 1
    assert started(SRUN | {"SLURM_LOCALID": "3"}).local == 3
    assert [started(known).local for known in (SRUN, JOBSET)] == [0, 0]


def test_processes_of_one_host_need_no_network():
    assert started(TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}).hint == "127.0.0.1"
    assert started(SRUN | {"SLURM_STEP_NUM_NODES": "1"}).hint == "127.0.0.1"


def test_srun_counts_the_tasks_of_the_step_not_of_the_job():
    assert facts(started(SRUN)) == ("srun", 1, 2, "10.0.0.9", False, 1)


def test_torchrun_under_srun_is_torchrun():
    assert started(SRUN | TORCHRUN).by == "torchrun"


def test_a_jobset_is_sure_where_process_0_is():
    assert facts(started(JOBSET)) == ("a JobSet", 2, 3, "run-w-0-0.run", True, 0)


def test_rank_set_by_hand():
    found = started({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert facts(found) == ("RANK", 0, 2, "10.0.0.1", True, 0)


def test_all_processes_of_a_launch_name_the_same_job_and_those_of_others_another():
    assert started(TORCHRUN).job == started(TORCHRUN | {"RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0"}).job
    assert started(TORCHRUN).job != started(TORCHRUN | {"TORCHELASTIC_RUN_ID": "other"}).job
    assert started(SRUN).job == started(SRUN | {"SLURM_PROCID": "0"}).job
    assert started(SRUN).job != started(SRUN | {"SLURM_RESTART_COUNT": "2"}).job != started(SRUN).job
    assert started(JOBSET).job == started(JOBSET | {"JOB_COMPLETION_INDEX": "0"}).job


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "nothing says which process of how many this is"),
        ({"RANK": "0"}, "WORLD_SIZE is None, but must be a number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1', but must be a number"),
        (TORCHRUN | {"RANK": "4"}, "this is process 4 of 4, numbered from 0"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "2 processes were started, but MASTER_ADDR is not set"),
    ],
)
def test_what_cannot_be_is_refused(environment, says):
    with pytest.raises(ClusterError, match=says):
        started(environment)


def test_one_process_alone_needs_no_address():
    assert started({"RANK": "0", "WORLD_SIZE": "1"}).hint == "127.0.0.1"
