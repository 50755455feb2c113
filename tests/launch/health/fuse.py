"""A file system that is served from this process (Linux' FUSE, linux/fuse.h), and does as badly as is asked of it.

with mounted(folder, refuses={RENAME: errno.ENOSYS}, takes={FSYNC: 0.4}): ...
with mounted(folder, answers=False): ...            every call waits for ever
"""

import contextlib
import ctypes
import errno
import itertools
import os
import stat
import struct
import subprocess
import threading
import time

import pytest

LOOKUP, FORGET, GETATTR, SETATTR, MKDIR, UNLINK, RMDIR, RENAME, OPEN = 1, 2, 3, 4, 9, 10, 11, 12, 14
WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = (
    16,
    17,
    18,
    20,
    25,
    26,
    27,
    28,
    29,
    30,
)
CREATE, INTERRUPT, BATCH_FORGET, RENAME2 = 35, 36, 42, 45
BIG_WRITES = 1 << 5  # else each write is of a page
HEAD = struct.Struct("<IIQQIIII")
SAID = struct.Struct("<IiQ")
SILENT = {FORGET, BATCH_FORGET, INTERRUPT}
NAMING = {LOOKUP, MKDIR, CREATE, UNLINK, RMDIR, RENAME, RENAME2}
EMPTY = {RELEASE, FSYNC, FLUSH, RELEASEDIR, FSYNCDIR, READDIR}


@contextlib.contextmanager
def mounted(folder, refuses=None, takes=None, answers=True):
    if os.geteuid() or not os.path.exists("/dev/fuse"):  # noqa: PTH110
        pytest.skip("only root can mount a file system of its own, where there is /dev/fuse")
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"sick", str(folder).encode(), b"fuse.sick", 0, options):
        os.close(device)
        pytest.skip(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    server = threading.Thread(target=_serve, args=(device, refuses or {}, takes or {}), daemon=True)
    try:
        if answers:
            server.start()
        yield
    finally:
        if not answers:
            os.close(device)  # whoever waits is told that nobody is there
        subprocess.run(["umount", "-l", folder], check=True)
        if answers:
            server.join(10)
            os.close(device)


def _serve(device, refuses, takes):
    tree = _Tree()
    while True:
        try:
            asked = os.read(device, 1 << 18)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                continue
            return  # it is unmounted
        _, call, unique, node, *_ = HEAD.unpack_from(asked)
        if call in SILENT:
            continue
        time.sleep(takes.get(call, 0))
        code, body = (refuses[call], b"") if call in refuses else tree.does(call, node, asked[HEAD.size :])
        with contextlib.suppress(OSError):  # who asked is gone
            os.write(device, SAID.pack(SAID.size + len(body), -code, unique) + body)


class _Tree:
    """Names and sizes; what is written is dropped."""

    def __init__(self):
        self._names = {1: {}}  # folder -> name -> node
        self._sizes = {}  # of files
        self._next = itertools.count(2)

    def does(self, call, node, said):
        if call in EMPTY:
            return 0, b""
        if call == INIT:
            return 0, struct.pack("<IIIIHHIIHHI7I", 7, 31, 1 << 17, BIG_WRITES, 16, 12, 1 << 17, 1, 0, 0, 0, *[0] * 7)
        if call == STATFS:
            return 0, struct.pack("<5Q4I6I", 1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096, 0, *[0] * 6)
        if call in (OPEN, OPENDIR):
            return 0, struct.pack("<QII", 1, 0, 0)
        if call in (GETATTR, SETATTR):
            return 0, struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if call == WRITE:
            _, offset, size = struct.unpack_from("<QQI", said)
            self._sizes[node] = max(self._sizes[node], offset + size)
            return 0, struct.pack("<II", size, 0)
        return self._of_names(call, node, said) if call in NAMING else (errno.ENOSYS, b"")

    def _of_names(self, call, node, said):
        skipped = {MKDIR: 8, CREATE: 16, RENAME: 8, RENAME2: 16}.get(call, 0)
        name, *others = said[skipped:].split(b"\0")
        here = self._names[node]
        if call in (MKDIR, CREATE):
            here[name] = new = next(self._next)
            (self._names.__setitem__(new, {}) if call == MKDIR else self._sizes.__setitem__(new, 0))
            return 0, self._entry(new) + (struct.pack("<QII", 1, 0, 0) if call == CREATE else b"")
        if name not in here:
            return errno.ENOENT, b""
        if call == LOOKUP:
            return 0, self._entry(here[name])
        if call in (UNLINK, RMDIR):
            del here[name]
            return 0, b""
        (to,) = struct.unpack_from("<Q", said)
        self._names[to][others[0]] = here.pop(name)
        return 0, b""

    def _entry(self, node):
        return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self._attributes(node)

    def _attributes(self, node):
        mode = stat.S_IFDIR | 0o755 if node in self._names else stat.S_IFREG | 0o644
        size = self._sizes.get(node, 0)
        return struct.pack("<6Q10I", node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
