"""Replicas for a training loop of one's own: the script runs once a replica, from its first line."""

import atexit
import os
import sys
from types import TracebackType
from typing import TYPE_CHECKING

from samestep.errors import RecipeError, SamestepError
from samestep.launch.engine import Program
from samestep.launch.local import Local
from samestep.recover.protocol import Terms
from samestep.replica.place import CONTROL, Control, connect, only_wire

if TYPE_CHECKING:
    from samestep.wire.collective import Collective


def start(replicas: int, threads: int = 1, transport: str = "shared memory", device: str = "cpu") -> "Collective":
    """Start `replicas` processes of the running script and return, in each, its transport.

    In the process that calls it first it does not return: it watches the replicas and exits with their code.
    `transport` is `shared memory`, `sockets`, which copy, or `torch` for the strategy `fast`.
    `device` is `cpu` or `cuda`, where the script then makes its model: `torch.cuda` has this replica's own as the
    current one, and repeats its bits but for `torch`. To be called once, before anything costly. RecipeError for fewer
    than one replica or thread, ClusterError for `cuda` without one.
    """
    if min(replicas, threads) < 1:
        raise RecipeError(
            f"start(replicas={replicas}, threads={threads}) asks for less than one; give positive numbers"
        )
    if CONTROL not in os.environ:
        raise SystemExit(_watch(Program([sys.executable, *sys.orig_argv[1:]], transport, threads), replicas))
    control = connect(os.environ)
    _report_failures(control)
    wire = only_wire(control) if device == "cpu" else _on(device, control)
    atexit.register(wire.close)
    return wire


def _on(device: str, control: Control) -> "Collective":
    from samestep.replica.carrier import carried
    from samestep.replica.device import settle

    place, transport = control.place, control.place.transport
    mine = settle(device, "fast" if transport == "torch" else "exact", place.local)
    return carried(only_wire(control), mine, transport != "sockets", place.address, bool)[0]


def _watch(program: Program, replicas: int) -> int:
    try:
        Local().run(program, Terms(replicas, replicas), lambda event: None)
    except KeyboardInterrupt:
        return 130
    except SamestepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _report_failures(control: Control) -> None:
    """The engine shows the first cause once; replicas keep silent about what follows from it."""

    def report(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
        control.failed(error)

    sys.excepthook = report
