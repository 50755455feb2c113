"""Machines that something is wrong with, made for real around one `samestep doctor`, and gone with it."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TINY = ROOT / "recipes" / "tiny.yaml"
NOBODY = 65_534
SEES_ALL = "+dac_override,+dac_read_search"

# Importing the real one takes two seconds, which most of these tests need not wait for.
TORCH = """
__version__ = '{version}'
class version: cuda = {cuda!r}
class cuda:
    def is_available(): return False
class backends:
    class cpu:
        def get_cpu_capability(): return 'none'
"""


def package(folder, name, source, **metadata):
    """A package in a folder of its own, for PYTHONPATH. metadata: Version, and Requires_Dist where it has some."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source)
    if metadata:
        info = folder / f"{name}-{metadata['Version']}.dist-info"
        info.mkdir()
        lines = [f"{key.replace('_', '-')}: {value}" for key, value in {"Name": name, **metadata}.items()]
        (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, "", ""]))
    return folder


def doctor(folder, *words, under=(), env=None, packages=None, code=None):
    """What it says, by level. under: a command that runs it. packages: a folder to import from; else a light torch."""
    light = packages or folder / "light"
    if not light.exists():
        package(light, "torch", TORCH.format(version="2.13.0", cuda=None))
    command = [*map(str, under), sys.executable, "-m", "samestep.cli", "doctor", *map(str, words), "--json"]
    variables = os.environ | {"PYTHONPATH": f"{light}:{ROOT}", "HOME": str(folder)} | (env or {})
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 4), done.stderr
    said = json.loads(done.stdout)
    findings = [finding for finding in said["findings"] if finding["level"] != "ok"]
    assert said["fails"] == (done.returncode == 4) == any(finding["level"] == "failure" for finding in findings)
    assert code in (None, done.returncode), findings
    assert all(finding["fix"] for finding in findings)
    return findings


def one(findings, check, level, *parts):
    """That there is exactly one finding of the check which says all of this, and at which level."""
    found = [each for each in findings if each["check"] == check and all(part in each["what"] for part in parts)]
    assert [each["level"] for each in found] == [level], findings
    return found[0]


def shell(*lines):
    """To be put before a command: these lines in a mount namespace of its own, then the command."""
    needs_root("unshare")
    return ["unshare", "-m", "sh", "-ec", "\n".join([*lines, 'exec "$@"']), "sh"]


def needs_root(*tools):
    if os.geteuid():
        pytest.skip("this sick machine can be made by root only")
    for tool in tools:
        if not shutil.which(tool):
            pytest.skip(f"this sick machine cannot be made here: there is no {tool}")


def limited(**limits):
    """Such as nofile=64."""
    needs_root("prlimit")
    return ["prlimit", *(f"--{name}={value}" for name, value in limits.items())]


def somebody():
    """Not root, but reads what root reads: the interpreter may be in root's home."""
    needs_root("setpriv")
    caps = [f"--inh-caps={SEES_ALL}", f"--ambient-caps={SEES_ALL}"]
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *caps]


def bound():
    """Root as any other user is: what others own cannot be written."""
    needs_root("setpriv")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


@contextlib.contextmanager
def group(controller, **settings):
    """A control group below one's own (version 1, as here), with its settings. Yields what to put before a command."""
    needs_root()
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    own = [path for _, names, path in lines if controller in names.split(",")]
    if not own or not Path("/sys/fs/cgroup", controller).is_dir():
        pytest.skip(f"no control groups of version 1 with {controller} here")
    folder = Path("/sys/fs/cgroup", controller, own[0].strip("/"), f"samestep-test-{os.getpid()}")
    folder.mkdir()
    try:
        for name, value in settings.items():
            (folder / f"{controller}.{name}").write_text(str(value))
        yield ["sh", "-ec", f'echo $$ > {folder}/cgroup.procs\nexec "$@"', "sh"]
    finally:
        folder.rmdir()


def refusing(*calls):
    """Linux with a sandbox that does not know some calls, by their number."""
    if platform.machine() != "x86_64":
        pytest.skip(f"calls have other numbers on {platform.machine()}")
    return [sys.executable, str(Path(__file__).with_name("sandbox.py")), *map(str, calls)]


def preloaded(folder, source):
    """The variable with which C code stands before the functions of libc."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler here, with which another clock is made")
    file, library = folder / "preload.c", folder / "preload.so"
    file.write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, file, "-ldl"], check=True)
    return f"LD_PRELOAD={library}"


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *t) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, t);
    if (id == CLOCK_REALTIME) t->tv_sec += SHIFT;
    return code;
}
"""


def shifted(folder, seconds):
    """A clock that is so many seconds ahead."""
    return preloaded(folder, CLOCK.replace("SHIFT", f"({seconds})"))
