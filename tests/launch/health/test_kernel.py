"""What the engine asks of Linux is tried, so that an old kernel or a tight container is told of before a run."""

import sys

import pytest

from samestep.launch.health import kernel
from tests.launch.health.sick import TINY, doctor, one, refusing, shell, shifted

PIDFD, MEMFD = 434, 319  # on x86-64


@pytest.mark.parametrize(("number", "call"), [(PIDFD, "pidfd_open"), (MEMFD, "memfd_create")])
def test_a_call_that_linux_does_not_know(tmp_path, number, call):
    found = doctor(tmp_path, under=refusing(number), code=4)
    one(found, "kernel", "failure", f"Linux refuses {call} here: Function not implemented")


@pytest.mark.parametrize(
    "lines",
    [
        ["mount -t tmpfs -o ro none /dev/shm"],
        ["mount -t tmpfs -o size=8k none /dev/shm", "dd if=/dev/zero of=/dev/shm/x bs=4k 2>/dev/null || true"],
        ["umount -l /dev/shm", "mount -t tmpfs none /mnt", "mkdir /mnt/dev", "mount --bind /mnt/dev /dev"],
    ],
    ids=["read-only", "full", "gone"],
)
def test_no_semaphores_in_dev_shm(tmp_path, lines):
    if "bind" in lines[-1]:
        lines = [*lines, "mknod /dev/null c 1 3", "mknod /dev/urandom c 1 9"]
    found = doctor(tmp_path, under=shell(*lines), code=4)
    one(found, "/dev/shm", "failure", "no semaphore can be made in /dev/shm")


def test_a_small_dev_shm(tmp_path):
    found = doctor(tmp_path, under=shell("mount -t tmpfs -o size=512k none /dev/shm"), code=0)
    one(found, "/dev/shm", "warning", "/dev/shm holds 524 kB")


def test_a_clock_that_was_never_set(tmp_path):
    found = doctor(tmp_path, under=["env", shifted(tmp_path, -40 * 366 * 86_400)], code=0)
    one(found, "clock", "warning", "the clock says 19")


def test_text_that_is_not_utf8(tmp_path):
    odd = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    one(doctor(tmp_path, env=odd, code=0), "locale", "warning", "text is ")


def test_a_temporary_folder_that_is_not_there(tmp_path):
    found = doctor(tmp_path, env={"TMPDIR": str(tmp_path / "gone")}, code=0)
    one(found, "temporary files", "warning", "gone, where no file can be made; /tmp is used")


TEMPORARY = ("/tmp", "/var/tmp")


@pytest.mark.skipif(sys.executable.startswith(TEMPORARY), reason="Python lies in a folder that this test takes away")
def test_no_temporary_folder_at_all(tmp_path):
    lines = [f"mount -t tmpfs -o ro none {folder}" for folder in TEMPORARY]
    keep = f"mount --bind {tmp_path} /mnt"  # it may lie below one of them
    found = doctor(
        tmp_path,
        "--run",
        "/mnt/run",
        under=shell(keep, *lines, "mount -t tmpfs -o ro none /usr/tmp || true", "cd /sys"),
        env={"PYTHONPATH": f"/mnt/light:{kernel_root()}"},
    )
    one(found, "temporary files", "warning", "no temporary file can be made in TMPDIR")


def kernel_root():
    from tests.launch.health.sick import ROOT

    return ROOT


def test_compiling_where_programs_may_not_run(tmp_path):
    (tmp_path / "t").mkdir()
    under = shell(f"mount -t tmpfs -o noexec none {tmp_path}/t")
    found = doctor(tmp_path, TINY, "compute.compile=true", under=under, env={"TMPDIR": str(tmp_path / "t")}, code=4)
    one(found, "compiler", "failure", "which is mounted noexec")
    assert not doctor(tmp_path, TINY, under=under, env={"TMPDIR": str(tmp_path / "t")}, code=0)


def test_compiling_without_a_compiler(tmp_path):
    found = doctor(tmp_path, TINY, "compute.compile=true", env={"PATH": str(tmp_path)}, code=4)
    one(found, "compiler", "failure", "none is on PATH")


def test_linux_here_refuses_nothing():
    assert kernel.refused() == {}
