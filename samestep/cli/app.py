"""The command line: parses, calls a verb, shows its result."""

import json
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from samestep.cli import after, before, train
from samestep.errors import SamestepError

COMMANDS = (
    train.train,
    train.resume,
    train.verify,
    train.chaos,
    train.slurm,
    train.kubernetes,
    before.init,
    before.fetch,
    before.check,
    before.doctor,
    before.plan,
    before.pilot,
    before.simulate,
    after.report,
    after.audit,
    after.digest,
    after.compare,
    after.export,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train one model on many machines. Get the same model, bit for bit, whatever the machines do.",
)
for command in COMMANDS:
    app.command()(command)


class _Stopped(BaseException):
    """A signal asked for the end. Its own type: typer would swallow KeyboardInterrupt."""


def main() -> NoReturn:
    """Run the command line. Exit codes: see errors.py; 130 after Ctrl-C, 143 after SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    arguments = sys.argv[1:]
    try:
        app(arguments)
    except _Stopped as stopped:
        number = stopped.args[0]
        _fail(f"stopped by {number.name}; no replica is left running", 128 + number, arguments)
    except Exception as error:
        if "--debug" in arguments:
            print(getattr(error, "remote_traceback", ""), file=sys.stderr)
            raise
        _fail(*_in_words(error), arguments)
    sys.exit(0)


def _in_words(error: Exception) -> tuple[str, int]:
    """One line and the exit code."""
    if isinstance(error, SamestepError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return f"{what}{error.strerror or error}; make it writable or free space, then start again", 4
    return f"{type(error).__name__}: {error}; this is a bug of samestep, --debug shows where", 1


def _stop(number: int, _frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # the replicas' end must not be interrupted
    raise _Stopped(signal.Signals(number))


def _fail(message: str, code: int, arguments: Sequence[str]) -> NoReturn:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"error": message, "exit_code": code}))
    sys.exit(code)
