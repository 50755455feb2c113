"""Prometheus metrics of a run, served as text on 127.0.0.1 only: `samestep train --metrics PORT`.

A port of all interfaces would show a run to whoever is near; who wants that puts a proxy of their own in front.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from samestep.errors import ClusterError
from samestep.events import Event

HOST = "127.0.0.1"
GAUGES = {
    "step": "steps committed",
    "loss": "loss of the last step",
    "gradient_norm": "norm of the gradient before clipping",
    "learning_rate": "learning rate of the last step",
    "tokens_per_second": "of the last step",
    "held_out_loss": "of the last evaluation",
    "replicas": "that take part now",
    "checkpoint_step": "step of the newest checkpoint",
}
COUNTERS = {"tokens": "trained", "lost_replicas": "replicas that were lost", "resumes": "goings-back to a checkpoint"}

Hearer = Callable[[Event], None]


@contextmanager
def serving(port: int | None, say: Callable[[str], None]) -> Iterator[list[Hearer]]:
    """What is to hear of each event, while the metrics can be read; nothing where port is None. 0: a free port.

    Raises ClusterError where the port cannot be had.
    """
    if port is None:
        yield []
        return
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    try:
        server, thread = start_http_server(port, addr=HOST, registry=registry)
    except OSError as error:
        raise ClusterError(
            f"--metrics {port}: {HOST}:{port} cannot be had ({error.strerror}); give another port"
        ) from None
    say(f"metrics at http://{HOST}:{server.server_port}/metrics")
    try:
        yield [hearer(registry)]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hearer(registry: Any) -> Hearer:
    """Makes the metrics in a registry, and returns what keeps them up to date."""
    from prometheus_client import Counter, Gauge

    gauges = {name: Gauge(f"samestep_{name}", text, registry=registry) for name, text in GAUGES.items()}
    counters = {name: Counter(f"samestep_{name}", text, registry=registry) for name, text in COUNTERS.items()}
    phases = Counter("samestep_phase_seconds", "of a replica, by phase", ["replica", "phase"], registry=registry)
    memory = Gauge("samestep_memory_bytes", "of a replica", ["replica"], registry=registry)

    def hear(event: Event) -> None:
        for name, value in gauged(event).items():
            gauges[name].set(value)
        for name, value in counted(event).items():
            counters[name].inc(value)
        if event["event"] == "spent":
            memory.labels(str(event["rank"])).set(event["memory"])
            for phase, seconds in event["seconds"].items():
                phases.labels(str(event["rank"]), phase).inc(seconds)

    return hear


def gauged(event: Event) -> dict[str, float]:
    """The gauges that an event sets; a value that is not known leaves its gauge as it was, but for a loss: NaN."""
    match event["event"]:
        case "step":
            names = ("step", "loss", "gradient_norm", "learning_rate")
            found = {name: float("nan") if event.get(name) is None else float(event[name]) for name in names}
            seconds = event["seconds"]
            return found | ({"tokens_per_second": event["tokens"] / seconds} if seconds else {})
        case "evaluated" if event["loss"] is not None:
            return {"held_out_loss": event["loss"]}
        case "formed":
            return {"replicas": event["replicas"]}
        case "checkpoint":
            return {"checkpoint_step": event["step"]}
    return {}


def counted(event: Event) -> dict[str, float]:
    """What an event adds to the counters."""
    one = {"left": "lost_replicas", "resumed": "resumes"}
    if event["event"] in one:
        return {one[event["event"]]: 1}
    return {"tokens": event["tokens"]} if event["event"] == "step" else {}
