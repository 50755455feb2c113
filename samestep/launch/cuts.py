"""What replicas tell of links that are cut, and since when; recover/partition.py says what follows. No IO, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from samestep.events import Event
from samestep.recover import partition
from samestep.recover.partition import Outcast, Pair

TELL = 5.0  # seconds from the cut until it is told of: by then all that see it have said so
PATIENCE = 8.0  # seconds from the cut until somebody is given up


@dataclass
class Judgement:
    """events: to be told. given_up: replica -> why. over: one that nobody reaches has ended already."""

    events: list[Event] = field(default_factory=list)
    given_up: dict[int, str] = field(default_factory=dict)
    over: bool = False


class Cuts:
    """Of one generation."""

    def __init__(self, generation: int = 0) -> None:
        self._generation = generation
        self._since: dict[tuple[int, int], float] = {}  # (who says so, whom it does not reach) -> since when
        self._told: dict[str, float] = {}  # host -> since when

    @property
    def concerned(self) -> frozenset[int]:
        """Those that a cut link holds up, maybe: nothing else can be concluded from their waiting."""
        return frozenset(replica for pair in self._since for replica in pair)

    def said(self, replica: int, event: Event, now: float) -> None:
        """`unreachable` or `reachable`, as replica/links.py sends it. Of another generation it no longer counts."""
        if event["generation"] != self._generation:
            return
        if event["event"] == "unreachable":
            self._since[replica, event["peer"]] = now - event["seconds"]
        else:
            self._since.pop((replica, event["peer"]), None)

    def gone(self, replica: int) -> None:
        """It has ended, and what it has said counts no more."""
        self._since = {pair: since for pair, since in self._since.items() if pair[0] != replica}

    def judge(self, hosts: Mapping[int, str], now: float, ends: bool) -> Judgement:
        """To be called a few times a second. hosts: of all living replicas. ends: whether somebody may be given up."""
        if not self._since:
            events = [_mended(host, now - since) for host, since in self._told.items()]
            self._told = {}
            return Judgement(events)
        seconds = now - min(self._since.values())
        late = [peer for (_, peer), since in self._since.items() if now - since >= PATIENCE]
        found = partition.outcasts(hosts, self._broken(hosts)) if seconds >= TELL else []
        judgement = Judgement(over=any(peer not in hosts for peer in late))
        for outcast in found:
            if outcast.host not in self._told:
                self._told[outcast.host] = now - seconds
                judgement.events.append(_cut(outcast, seconds, ends))
            if ends and seconds >= PATIENCE:
                reason = outcast.sentence(seconds, " and is given up")
                judgement.given_up |= dict.fromkeys(outcast.replicas, reason)
        return judgement

    def _broken(self, hosts: Mapping[int, str]) -> set[Pair]:
        return {frozenset(pair) for pair in self._since if hosts.keys() >= set(pair)}


def _cut(outcast: Outcast, seconds: float, ends: bool) -> Event:
    then = f"; after {PATIENCE:.0f} s the others go on without it" if ends else "; all wait for it, as run.silent says"
    event = {"event": "unreachable", "host": outcast.host, "replicas": list(outcast.replicas)}
    return event | {"by": list(outcast.by), "seconds": round(seconds, 3), "reason": outcast.sentence(seconds, then)}


def _mended(host: str, seconds: float) -> Event:
    reason = f"host {host} is reached again after {seconds:.0f} s"
    return {"event": "reachable", "host": host, "seconds": round(seconds, 3), "reason": reason}
