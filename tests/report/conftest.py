"""Journals of runs that never were, and a real browser that looks at their reports."""

import base64
import json
import math
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from samestep.recipe.load import dump
from samestep.recipe.schema import Recipe
from samestep.recover.journal import NAME, encode

CHROMIUM = shutil.which("chromium")
PHASES = {"data": 0.01, "forward": 0.1, "backward": 0.2, "exchange": 0.05, "update": 0.02}


def opened(**changes):
    event = {"event": "opened", "time": 1.7e9, "seed": 1, "steps": 100, "rows": 32, "rows_digest": "d" * 64}
    event |= {"replicas": 2, "base": "/", "recipe": "r", "state": "replicated", "state_reason": "little memory"}
    source = {"corpus": "c", "format": "text", "sequences": 40, "held_out_sequences": 2, "skipped": 0}
    return event | {"sources": {"python-stdlib": source}} | changes


def started(rank, lanes, host="h0", pid=None, generation=1):
    event = {"event": "started", "pid": pid or 100 + rank, "host": host, "lanes": lanes, "generation": generation}
    return event | {"rank": rank, "kernels": {"torch": "2.13.0", "threads": "1"}}


def formed(replicas, step=-1, generation=1, reason="all have joined"):
    event = {"event": "formed", "generation": generation, "replicas": replicas, "step": step}
    return event | {"restored": step < 0, "reason": reason}


def step(number, **changes):
    """Four rows of an epoch of 32 each."""
    at = 4 * (number - 1) % 32
    event = {"event": "step", "step": number, "loss": 2 + 4 / number, "gradient_norm": 1 + math.sin(number) / 2}
    event |= {"learning_rate": 1e-3, "tokens": 1000, "epoch": (number - 1) // 8, "rows": [at, at + 4]}
    return event | {"seconds": 0.5, "bytes_sent": 1000 * number, "rank": 0} | changes


def spent(rank, number, steps, slow=1.0, sent=None, **phases):
    """slow: times the usual seconds in the phase data."""
    seconds = {phase: steps * each for phase, each in (PHASES | phases).items()}
    seconds["data"] *= slow
    event = {"event": "spent", "step": number, "steps": steps, "seconds": seconds, "rank": rank}
    return event | {"bytes_sent": sent or 1000 * number, "memory": 300e6, "peak": 310e6}


def lived(steps):
    """A whole run of two replicas on two hosts: evaluated, saved, finished."""
    events = [opened(steps=steps), formed(2), started(0, [0, 4], "h1"), started(1, [4, 8], "h2")]
    for number in range(1, steps + 1):
        events.append(step(number))
        if number % max(1, steps // 10) == 0:
            events.append({"event": "evaluated", "step": number, "loss": 2.1, "best": True, "bits_per_byte": 1.5})
            events += [spent(rank, number, max(1, steps // 10)) for rank in (0, 1)]
    events.append({"event": "checkpoint", "step": steps, "seconds": 0.1, "bytes": 10, "folder": "checkpoints"})
    events.append({"event": "saved", "digest": "sha256:" + "a" * 64})
    return [*events, {"event": "finished", "seconds": 60.0, "digest": "sha256:" + "a" * 64}]


@pytest.fixture(scope="session")
def made():
    """The makers of events above, by name."""
    makers = (opened, started, formed, step, spent, lived)
    return type("Made", (), {make.__name__: staticmethod(make) for make in makers})


@pytest.fixture(scope="session")
def write_run():
    """(folder, events, recipe) -> a run folder with that journal."""

    def write(folder, events, recipe=None):
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(dump(recipe or Recipe(steps=100)))
        (folder / NAME).write_bytes(b"".join(map(encode, events)))
        return folder

    return write


@dataclass
class Seen:
    """What a browser has made of a page: its errors, the requests that it has sent, a picture, and the tab itself."""

    tab: "Tab"
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    picture: Path | None = None


class Tab:
    """One page through the DevTools protocol."""

    def __init__(self, port):
        import websocket

        order = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(order) as answer:
            target = json.load(answer)
        self._socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=200)
        self._number, self.events = 0, []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def wait(self, method):
        while not any(event.get("method") == method for event in self.events):
            self.events.append(json.loads(self._socket.recv()))

    def value(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def of(self, method):
        return [event["params"] for event in self.events if event.get("method") == method]

    def close(self):
        self.call("Page.close")
        self._socket.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """(file, width, dark, media) -> Seen: how Debian's chromium shows it. Pictures are kept in the test's folder."""
    if CHROMIUM is None:
        pytest.skip("no chromium here, which looks at reports; apt-get install chromium")
    pytest.importorskip("websocket", reason="websocket-client speaks to the browser; pip install -e .[test]")
    with looking(tmp_path_factory.mktemp("chromium")) as look:
        yield look


@contextmanager
def looking(profile):
    """What `browser` gives. profile: an empty folder."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [
        "--remote-debugging-port=0",
        "--remote-allow-origins=*",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ]
    with (profile / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    tabs = []
    try:
        port = _port(profile / "DevToolsActivePort", process)
        yield lambda *asked, **more: _look(port, tabs, *asked, **more)
    finally:
        for tab in tabs:
            tab.close()
        process.terminate()
        process.wait()


def _port(file, process):
    until = time.monotonic() + 200
    while not (file.exists() and file.read_text().strip()):
        assert process.poll() is None and time.monotonic() < until, (file.parent / "log").read_text()[-2000:]
        time.sleep(0.1)
    return int(file.read_text().split()[0])


def _look(port, tabs, file, width=1280, height=900, dark=False, media="", most=None):
    for tab in tabs:
        tab.close()
    tabs[:] = [tab := Tab(port)]
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    tab.call("Emulation.setDeviceMetricsOverride", **size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    tab.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
    tab.call("Page.navigate", url=file.resolve().as_uri())
    tab.wait("Page.loadEventFired")
    tall = min(tab.value("document.documentElement.scrollHeight"), most or math.inf)
    picture = tab.call("Page.captureScreenshot", captureBeyondViewport=True, clip=_clip(width, tall))["data"]
    name = file.with_name(f"{file.stem}-{width}{'-dark' * dark}{'-print' * bool(media)}.png")
    name.write_bytes(base64.b64decode(picture))
    problems = tab.of("Runtime.exceptionThrown") + tab.of("Runtime.consoleAPICalled") + tab.of("Log.entryAdded")
    sent = [each["request"]["url"] for each in tab.of("Network.requestWillBeSent")]
    return Seen(tab, [json.dumps(each) for each in problems], sent, name)


def _clip(width, height):
    return {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
