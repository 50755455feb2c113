import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("shared", deadline=None)  # machines that others use too are slow now and then
settings.load_profile("shared")

ROOT = Path(__file__).parent.parent
TINY = ROOT / "recipes" / "tiny.yaml"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(autouse=True, scope="module")
def threads_of_its_own():
    """A file that computes on one thread does not decide for the files after it."""
    torch = sys.modules.get("torch")
    before = torch and torch.get_num_threads()
    yield
    if torch:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache of tokenized data for the whole session, never the user's own."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def samestep(tmp_path, cache):
    """Call the command line in a fresh folder, as a user would."""

    def call(*arguments, timeout=120):
        command = [sys.executable, "-m", "samestep.cli", *map(str, arguments)]
        if arguments and arguments[0] in ("train", "verify"):
            command.append(f"run.cache={cache}")
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout)
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def tiny():
    return TINY


@pytest.fixture(scope="session")
def real():
    """The folder of recipes of the real model, with the model and the data that they name: fetched where they lack."""
    for name, there in (("smollm2", "models/smollm2"), ("chats", "data/chats.jsonl"), ("pairs", "data/pairs.jsonl")):
        if not (ROOT / there).exists():
            subprocess.run([sys.executable, "-m", "samestep.cli", "fetch", name, "--to", ROOT / there], check=True)
    return ROOT / "recipes"
