"""Control groups of both versions are found by the names that Linux writes, and read from real ones."""

import math
from pathlib import Path

import pytest

from samestep.launch.health import groups
from samestep.launch.health.groups import folders

SECOND = "0::/user/me\n"
FIRST = "5:cpuset:/a\n4:cpu,cpuacct:/docker/abc\n0::/\n"
MOUNTS = """\
30 24 0:25 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 24 0:26 / /sys/fs/cgroup/unified rw,relatime shared:5 - cgroup2 cgroup2 rw
"""


def test_the_own_group_comes_first_and_then_those_above():
    assert folders("memory", SECOND, MOUNTS) == [Path("/sys/fs/cgroup/unified") / at for at in ("user/me", "user", "")]
    inner, *above = folders("cpu", FIRST, MOUNTS)
    assert inner == Path("/sys/fs/cgroup/cpu,cpuacct/docker/abc") and len(above) == 2


def test_a_container_sees_its_group_as_the_root():
    mounts = MOUNTS.replace(" / /sys/fs/cgroup/cpu", " /docker/abc /sys/fs/cgroup/cpu")
    assert folders("cpu", FIRST, mounts) == [Path("/sys/fs/cgroup/cpu,cpuacct")]


@pytest.mark.parametrize("cgroups", ["", "7:pids:/\n"])
def test_without_a_mount_there_is_nothing_to_read(cgroups):
    assert folders("cpu", cgroups, "") == []


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, math.inf),
        ({"cpu.cfs_quota_us": "25000", "cpu.cfs_period_us": "50000"}, 0.5),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "50000"}, math.inf),
        ({}, math.inf),
    ],
)
def test_a_quota_of_either_version_is_a_number_of_cores(tmp_path, files, found):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert groups._cores(tmp_path) == found


def test_pages_of_idle_files_count_as_free(tmp_path):
    for name, text in {
        "memory.max": "1000",
        "memory.current": "700",
        "memory.stat": "anon 5\ninactive_file 200",
    }.items():
        (tmp_path / name).write_text(text)
    assert groups._memory(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max")
    assert groups._memory(tmp_path) == math.inf


def test_this_process_has_groups_that_can_be_read():
    found = groups.read()
    assert found.cores > 0 and found.memory > 0 and found.tasks > 0
