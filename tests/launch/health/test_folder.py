"""A disk is tried with the calls that save a run, and what it refuses, lacks or takes long for is told before a run."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samestep.launch.health.finding import Need
from samestep.launch.health.folder import Mount, judge, look, mount_of
from tests.launch.health import fuse
from tests.launch.health.fuse import mounted
from tests.launch.health.sick import TINY, bound, doctor, limited, needs_root, one, shell


@pytest.fixture
def small(tmp_path):
    """A disk that lies in a mount namespace of its own: what to put before a command."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def made(options, *lines):
        return shell(f"mount -t tmpfs -o {options} disk {disk}", *lines)

    return disk, made


def test_a_disk_that_is_full(tmp_path, small):
    disk, made = small
    under = made("size=1m", f"dd if=/dev/zero of={disk}/x bs=4k 2>/dev/null || true")
    told = one(doctor(tmp_path, "--run", disk / "run", under=under, code=4), "run folder", "failure", "takes no room")
    assert str(disk) in told["what"] and str(disk) in told["fix"]


def test_a_disk_that_takes_no_more_files(tmp_path, small):
    disk, made = small
    under = made("size=10m,nr_inodes=3", f"touch {disk}/a {disk}/b")
    one(doctor(tmp_path, "--run", disk / "run", under=under, code=4), "run folder", "failure", "takes no more files")


def test_a_disk_that_takes_few_more_files(tmp_path, small):
    disk, made = small
    found = doctor(tmp_path, "--run", disk / "run", under=made("size=10m,nr_inodes=50"), code=4)
    one(found, "run folder", "failure", "more files can be made")


def test_a_disk_without_room_for_the_model_and_one_checkpoint(tmp_path, small):
    disk, made = small
    found = doctor(tmp_path, TINY, "--run", disk / "run", under=made("size=2m"), code=4)
    one(found, "run folder", "failure", "has 2.1 MB free, but the model and one checkpoint take 2.23 MB")


def test_a_disk_without_room_for_all_checkpoints(tmp_path, small):
    disk, made = small
    found = doctor(tmp_path, TINY, "--run", disk / "run", under=made("size=5m"), code=0)
    one(found, "run folder", "warning", "but the model, 3 checkpoints and the one being written take 7.26 MB")


def test_a_disk_in_memory(tmp_path, small):
    disk, made = small
    found = doctor(tmp_path, TINY, "--run", disk / "run", under=made("size=50m"), code=0)
    one(found, "run folder", "warning", "is in memory (tmpfs)")


def test_a_read_only_disk(tmp_path, small):
    disk, made = small
    under = made("size=10m", f"mount -o remount,ro {disk}")
    one(doctor(tmp_path, "--run", disk / "run", under=under, code=4), "run folder", "failure", "read-only file system")


def test_a_folder_of_somebody_else(tmp_path):
    needs_root()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 4321, 4321)
    found = doctor(tmp_path, TINY, f"run.cache={theirs}/c", "--run", theirs / "r", under=bound(), code=4)
    one(found, "run folder", "failure", "theirs/r cannot be written by this user: Permission denied")
    one(found, "cache", "failure", "theirs/c cannot be written by this user")


def test_a_disk_that_does_not_answer(tmp_path):
    (tmp_path / "dead").mkdir()
    began = time.monotonic()
    with mounted(tmp_path / "dead", answers=False):
        found = doctor(tmp_path, "--run", tmp_path / "dead" / "run", code=4)
    told = one(found, "run folder", "failure", "dead/run on fuse.sick does not answer within 10 s")
    assert str(tmp_path / "dead") in told["fix"] and time.monotonic() - began < 60


def test_a_disk_that_somebody_serves(tmp_path):
    (tmp_path / "far").mkdir()
    with mounted(tmp_path / "far"):
        found = doctor(tmp_path, "--run", tmp_path / "far" / "run")
    one(found, "run folder", "warning", "far/run is on fuse.sick: whether a sync and a rename outlast a power cut")


@pytest.mark.parametrize(
    ("call", "said"),
    [(fuse.RENAME, "rename a file"), (fuse.MKDIR, "make a folder"), (fuse.UNLINK, "delete a file")],
)
def test_a_disk_that_does_not_do_what_saves_do(tmp_path, call, said):
    (tmp_path / "odd").mkdir()
    refuses = {call: errno.ENOSYS} | ({fuse.RENAME2: errno.ENOSYS} if call == fuse.RENAME else {})
    with mounted(tmp_path / "odd", refuses):
        found = doctor(tmp_path, "--run", tmp_path / "odd" / "run", code=4)
    one(found, "run folder", "failure", f"does not {said} (Function not implemented)")


def test_a_disk_whose_syncs_fail(tmp_path):
    (tmp_path / "bad").mkdir()
    with mounted(tmp_path / "bad", {fuse.FSYNC: errno.EIO}):
        found = doctor(tmp_path, "--run", tmp_path / "bad" / "run", code=4)
    one(found, "run folder", "failure", "does not write a file (Input/output error)")


def test_a_slow_disk(tmp_path):
    (tmp_path / "slow").mkdir()
    with mounted(tmp_path / "slow", takes={fuse.FSYNC: 0.3, fuse.WRITE: 0.05}):
        found = doctor(tmp_path, TINY, "--run", tmp_path / "slow" / "run", code=0)
    one(found, "run folder", "warning", "to sync 4 kB")
    one(found, "run folder", "warning", "/s: a checkpoint takes")


def test_a_folder_that_holds_something(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    one(doctor(tmp_path, "--run", "run", code=4), "run folder", "failure", "is not an empty folder")
    (tmp_path / "run" / "journal.jsonl").touch()
    told = one(doctor(tmp_path, "--run", "run", code=0), "run folder", "warning", "holds a run")
    assert "samestep resume" in told["fix"]


def test_an_alternate_on_the_same_disk(tmp_path):
    found = doctor(tmp_path, TINY, f"run.alternate={tmp_path}/other", code=0)
    one(found, "alternate", "warning", "is on the same disk as the run")


def test_an_alternate_that_is_another_runs(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.txt").write_text("/elsewhere")
    found = doctor(tmp_path, TINY, f"run.alternate={tmp_path}/other", code=4)
    one(found, "alternate", "failure", "holds what is of the run /elsewhere")


def test_nothing_is_left_where_a_disk_was_tried(tmp_path):
    facts = look(tmp_path / "not" / "there")
    assert facts["there"] == str(tmp_path) and facts["sync"] > 0 and not list(tmp_path.iterdir())


def test_a_look_that_is_ended_leaves_nothing(tmp_path):
    (tmp_path / "slow").mkdir()
    with mounted(tmp_path / "slow", takes={fuse.FSYNC: 0.5}):
        command = [sys.executable, "-m", "samestep.launch.health.folder", tmp_path / "slow"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 30
        name = f".samestep-doctor-{process.pid}"
        while not (tmp_path / "slow" / name).exists() and time.monotonic() < until:
            time.sleep(0.02)
        process.terminate()
        assert process.wait(30) == 1 and not (tmp_path / "slow" / name).exists()


def test_a_limit_on_files_is_not_taken_for_a_full_disk(tmp_path):
    found = doctor(tmp_path, "--run", tmp_path / "run", under=limited(fsize=100))
    assert not [each for each in found if "takes no room" in each["what"]]


MOUNTS = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /mnt/my\040disk rw shared:7 - nfs4 server:/x rw
31 22 0:41 / /mnt rw - tmpfs t rw
32 31 0:42 / /mnt rw - xfs /dev/vdb rw
""".strip()


@pytest.mark.parametrize(
    ("folder", "mount"),
    [
        ("/mntx/run", Mount("/", "ext4")),
        ("/mnt/my disk/run", Mount("/mnt/my disk", "nfs4")),
        ("/mnt/run", Mount("/mnt", "xfs")),
    ],
)
def test_the_deepest_and_latest_mount_holds_a_folder(folder, mount):
    assert mount_of(Path(folder), MOUNTS) == mount


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
def test_only_runs_care_for_the_kind_of_disk(kind):
    facts = {"there": "/x", "device": 1, "free": 1 << 40, "files": -1, "sync": 0.001, "rate": 1e9}
    levels = [judge(use, Path("/x"), facts, Mount("/x", kind), Need())[0].level for use in ("run folder", "cache")]
    assert levels == ["warning", "ok"]


def test_what_it_prints_is_what_it_found(tmp_path):
    command = [sys.executable, "-m", "samestep.launch.health.folder", tmp_path]
    facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert facts.keys() >= {"there", "device", "free", "files", "sync"}
