"""A replica's process, started by an engine: take up the place, do the job, tell what went wrong."""

import os
import signal

from samestep.errors import SamestepError
from samestep.replica.mates import Mates
from samestep.replica.place import Control, connect


def main() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers send it to every process; the engine asks all to stop
    control = connect(os.environ)
    try:
        _work(control)
    except Exception as caught:
        from samestep.replica.device import explained

        error = explained(caught)
        error.__traceback__ = caught.__traceback__
        control.failed(error)
        return error.exit_code if isinstance(error, SamestepError) else 1
    return 0


def _work(control: Control) -> None:
    from samestep.replica.job import parse

    job = parse(control.place.work)
    mates = Mates(control, 1 if control.place.shard else job.recipe.compute.shards, os.environ)

    import torch

    from samestep.replica.pilot import pilot
    from samestep.replica.repeat import repeat
    from samestep.replica.train import train

    torch.set_num_threads(job.recipe.compute.threads)
    try:
        {"train": train, "repeat": repeat, "pilot": pilot}[job.kind](job, control)
    except Exception:
        mates.outlast()
        raise
    mates.wait()


if __name__ == "__main__":
    raise SystemExit(main())
