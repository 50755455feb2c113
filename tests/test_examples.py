"""The examples are a small diff and give one digest at any number of replicas."""

import difflib
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    done = subprocess.run([sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_samestep_is_at_most_ten_changed_lines():
    plain, ours = ((EXAMPLES / f).read_text().splitlines() for f in ("plain_torch.py", "with_samestep.py"))
    lines = [line for line in difflib.unified_diff(plain, ours, n=0, lineterm="") if line[:3] not in ("---", "+++")]
    assert sum(line.startswith("+") for line in lines) <= 10
    assert sum(line.startswith("-") for line in lines) <= 10


def test_one_and_three_replicas_print_one_digest():
    one, three = run("with_samestep.py", "1"), run("with_samestep.py", "3")
    assert one == three and one[0] == 0 and one[1].startswith("sha256:") and len(one[1].splitlines()) == 1


def test_the_plain_loop_runs():
    assert run("plain_torch.py")[0] == 0


def test_wrong_numbers_of_replicas_are_one_line():
    assert "asks for less than one; give positive numbers" in run("with_samestep.py", "0")[2]
    code, _, err = run("with_samestep.py", "9")
    assert code == 2 and "9 replicas cannot share 8 lanes" in err and len(err.splitlines()) == 1


def test_an_error_in_one_replica_is_shown_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import samestep, time\nwire = samestep.start(3)\nif wire.rank == 1:\n    1 / 0\ntime.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "error: ZeroDivisionError: division by zero (replica 1, at the start)\n"
