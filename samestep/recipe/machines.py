"""The section `run` of a recipe: machines only, nothing that may change a number."""

import ipaddress
import re
import shlex
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from samestep.recipe.section import Count, NonNegative, Section, conflict


def _reachable(value: object) -> object:
    """The address of one host, as text."""
    try:
        found = ipaddress.ip_address(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None or found.is_unspecified or found.is_multicast or found.is_link_local:
        raise ValueError("must be the IP address at which the other hosts reach it, such as 10.77.0.1")
    return str(found)


def _split(value: object) -> object:
    """Checked here, so that a shell's quotes that do not match have a place in the file."""
    try:
        shlex.split(str(value))
    except ValueError:
        raise ValueError("must be words as in a shell; close the quote") from None
    return value


class Host(Section):
    """A machine, or what looks like one to its processes, that shares this machine's kernel."""

    start: Annotated[str, BeforeValidator(_split)] = ""  # stands before a replica's command, and executes it there
    address: Annotated[str, BeforeValidator(_reachable)]  # replicas of other hosts connect to it, at free ports
    replicas: Count = 1  # places


class Run(Section):
    """Machines only. Nothing here may change a number."""

    replicas: Count = 1  # default: the places of all hosts, where there are any
    minimum: Count | None = None  # with these it begins where Ray has no room for all yet; null: only with all
    hosts: dict[str, Host] | None = None  # by name, filled in this order; null: all replicas run here
    replace: bool = True  # start a replica for one that is lost; the others go on in the meantime
    silent: Literal["end", "wait"] = "end"  # a replica that hangs: end it as if it had died, or only tell of it
    transport: Literal["auto", "sockets"] = "auto"  # auto: shared memory; sockets copy, and are slower
    cache: str | None = None  # folder of tokenized data; default: ~/.cache/samestep
    alternate: str | None = None  # folder for this run alone, on another disk: takes what the run's own disk refuses
    sinks: list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] = Field(default=[])  # are told of each step too
    price: NonNegative | None = None  # dollars for an hour of one replica, for the report; null: by a price table
    log_every: Count = 10  # steps between plain lines when the output is no terminal

    @model_validator(mode="before")
    @classmethod
    def _all_places(cls, data: Any) -> Any:
        """As many replicas as places, where none is asked for. What is no host is told of later."""
        hosts = data.get("hosts") if isinstance(data, dict) else None
        if not isinstance(hosts, dict) or data.get("replicas") is not None:
            return data
        counts = [host.get("replicas", 1) for host in hosts.values() if isinstance(host, dict)]
        known = [count for count in counts if type(count) is int and count > 0]
        return data | ({"replicas": sum(known)} if known else {})

    @model_validator(mode="after")
    def _few(self) -> "Run":
        if self.minimum is not None and self.minimum > self.replicas:
            says = f"minimum is {self.minimum}, but replicas is {self.replicas}; lower the one, or raise the other"
            raise conflict(says, "minimum", "replicas")
        return self

    @model_validator(mode="after")
    def _hosted(self) -> "Run":
        if self.hosts is None:
            return self
        odd = [name for name in self.hosts if not re.fullmatch(r"[A-Za-z0-9._-]{1,63}", name)]
        if odd or not self.hosts:
            what = f"{odd[0]!r} is no name of a host; use letters, digits and . _ -" if odd else "hosts names no host"
            raise conflict(f"{what}, as in hosts: {{h0: {{address: 10.77.0.1}}}}", "hosts")
        self._check_places(self.hosts)
        return self

    def _check_places(self, hosts: dict[str, Host]) -> None:
        places, taken = sum(host.replicas for host in hosts.values()), dict[str, str]()
        for name, host in hosts.items():
            if other := taken.get(host.address):
                says = f"hosts {other} and {name} have one address, {host.address}; give each its own, or keep one"
                raise conflict(says, f"hosts.{name}.address")
            taken[host.address] = name
        if self.replicas > places:
            says = f"replicas is {self.replicas}, but the hosts have room for {places}; lower it, or raise theirs"
            raise conflict(says, "replicas", "hosts")
