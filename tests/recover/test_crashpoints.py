"""A save that rotates, killed before each of its calls and with each failing; scripts/crashpoints does all kinds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parents[2] / "scripts/crash/main.py"
POSSIBLE = sys.platform == "linux" and shutil.which("cc") is not None


@pytest.mark.slow
@pytest.mark.skipif(not POSSIBLE, reason="needs Linux and a C compiler")
def test_no_kill_and_no_error_loses_mixes_or_leaves_anything() -> None:
    command = [sys.executable, CAMPAIGN, "--json", "--kinds", "rotation", "alternate", "best", "--errors", "ENOSPC"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.stdout, done.stderr
    for found in json.loads(done.stdout)["results"]:
        assert found["bad"] == []
        assert found["calls"] > 20 and found["kills"] == found["calls"] and found["errors"] == 2 * found["calls"]
