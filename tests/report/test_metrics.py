"""Prometheus reads what a run is at, on this machine only."""

import math
import socket
import urllib.request

import pytest

from samestep.errors import ClusterError
from samestep.report.metrics import HOST, gauged, serving


def served(events):
    """The text that is served after these events."""
    said = []
    with serving(0, said.append) as hearers:
        for event in events:
            for hear in hearers:
                hear(event)
        address = said[0].split()[-1]
        with urllib.request.urlopen(address, timeout=20) as answer:
            return address, answer.read().decode()


def test_what_a_run_is_at_can_be_read(made):
    lost = [{"event": "left", "replica": 1}, {"event": "checkpoint", "step": 10}]
    _, text = served([*made.lived(10), *lost])
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines["samestep_step"] == "10.0" and lines["samestep_loss"] == "2.4" and lines["samestep_replicas"] == "2.0"
    assert lines["samestep_tokens_total"] == "10000.0" and lines["samestep_lost_replicas_total"] == "1.0"
    assert lines["samestep_held_out_loss"] == "2.1" and lines["samestep_checkpoint_step"] == "10.0"
    assert lines['samestep_memory_bytes{replica="0"}'] == "3e+08"
    assert float(lines['samestep_phase_seconds_total{phase="backward",replica="1"}']) == pytest.approx(2.0)


def test_it_is_served_on_loopback_and_no_longer_than_the_run():
    with serving(0, lambda line: None) as hearers:
        assert len(hearers) == 1
    address, _ = served([])
    port = int(address.split(":")[2].split("/")[0])
    assert address.startswith(f"http://{HOST}:") and HOST == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError), socket.create_connection((HOST, port), timeout=20):
        pass


def test_no_other_address_of_this_machine_answers():
    """127.0.0.2 is this machine too, as is any address of its own network."""
    said = []
    with serving(0, said.append):
        port = int(said[0].split(":")[2].split("/")[0])
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=20):
            pass


def test_a_port_that_is_taken_is_said():
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"--metrics {port}: .*Address already in use.*give another port"):
            serving(port, print).__enter__()


def test_without_a_port_nothing_is_served_or_imported(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with serving(None, print) as hearers:
        assert hearers == []


def test_a_loss_that_is_not_finite_is_no_old_value(made):
    assert math.isnan(gauged(made.step(3, loss=None))["loss"])
    assert "tokens_per_second" not in gauged(made.step(3, seconds=0))
