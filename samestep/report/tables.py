"""What a report says in figures: tiles at its head, and tables of names and texts. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime

from samestep.plan.cost import Price
from samestep.recover import ledger
from samestep.report.read import COMPUTE, History, replicas_at
from samestep.report.read import hours as hours_in
from samestep.report.words import by_replica, listed, number, speeds, steady, step_seconds
from samestep.units import UNKNOWN, count, duration, rate, share, size

Rows = list[tuple[str, ...]]

# A pilot's parts of a step beside a replica's phases, which are those of its loop
BESIDE = {
    "forward": (("forward",), ("forward",)),
    "backward": (("backward",), ("backward",)),
    "exchange and update": (("sums", "coding", "weights", "passes", "words", "update"), ("exchange", "update")),
}


def tiles(history: History) -> Rows:
    """(name, figure, what is beside it)."""
    losses, steps = history.series["loss"], len(history.steps)
    planned = history.opened.get("steps", steps)
    found: Rows = [("loss", number(losses[-1] if losses else None), f"{number(losses[0])} at first" if losses else "")]
    if history.held_out:
        found.append(("held-out loss", number(history.held_out[-1][1]), _bits(history)))
    found.append(("steps", f"{steps:,}", "" if planned == steps else f"of {planned:,}"))
    speed = speeds(history)
    if speed:
        last = speed[max(speed)]
        found.append(("tokens a second", count(last), "of a usual step"))
    if history.lives:
        starts = len(history.lives)
        found.append(("time", duration(sum(history.lives)), f"{starts} starts" if starts > 1 else ""))
    return [*found, ("replicas", _crew(history), _places(history))]


def _bits(history: History) -> str:
    event = history.evaluated
    if event.get("bits_per_byte") is not None:
        return f"{number(event['bits_per_byte'])} bits a byte"
    return f"accuracy {share(event['accuracy'])}" if event.get("accuracy") is not None else ""


def _crew(history: History) -> str:
    """Numbers of replicas that the run has had, in their order."""
    found = [str(replicas) for _, replicas in history.crews] or [str(history.opened.get("replicas", UNKNOWN))]
    order = [each for at, each in enumerate(found) if at == 0 or each != found[at - 1]]
    return ", ".join(order) if len(order) < 4 else f"{min(map(int, order))} to {max(map(int, order))}"


def _places(history: History) -> str:
    return f"on {len(history.hosts)} hosts" if len(history.hosts) > 1 else f"on {next(iter(history.hosts), 'one host')}"


def replicas(history: History) -> Rows:
    """A row a replica: what a usual step of it is spent on, in the longest stretch that one set of them has shared, and
    its memory. The first row names the columns.
    """
    totals = by_replica(steady(history))
    head = ("replica", "lanes", "computes", "exchanges", "updates", "sent", "most memory")
    rows: Rows = [
        (
            name,
            str(each.lanes),
            duration(each.a_step(COMPUTE)),
            duration(each.a_step(["exchange"])),
            duration(each.a_step(["update"])),
            size(each.bytes_sent),
            size(each.peak),
        )
        for name, each in totals.items()
    ]
    return [head, *rows] if rows else []


def predicted(history: History) -> Rows:
    """What the pilot that chose the strategy had predicted, beside what was measured."""
    choice, step = history.piloted.get("choice"), step_seconds(history)
    if not choice or not step:
        return []
    sent = [each for each in history.series["bytes"][1:] if each is not None]
    rows: Rows = [("", "predicted", "measured", "off by")]
    rows.append(("a step", duration(choice["seconds"]), duration(step), _off(choice["seconds"], step)))
    totals = by_replica(history.spent).values()
    for name, (parts, phases) in BESIDE.items():
        if totals:
            plan = sum(choice["parts"].get(part, 0.0) for part in parts)
            measured = sum(each.a_step(phases) for each in totals) / len(totals)
            rows.append((name, duration(plan), duration(measured), _off(plan, measured)))
    if sent:
        mean = sum(sent) / len(sent)
        rows.append(("sent a step", size(choice["bytes_sent"]), size(mean), _off(choice["bytes_sent"], mean)))
    return rows


def _off(predicted: float, measured: float) -> str:
    if not measured:
        return UNKNOWN
    return f"{round(predicted / measured - 1, 2) + 0.0:+.0%}".replace("%", " %")  # -0.0 + 0.0 is 0.0


def scaling(history: History, price: Price | None) -> Rows:
    """Speed by number of replicas, and what the run has cost. price: of an hour of a replica."""
    found = speeds(history)
    few = min(found, default=1)
    rows: Rows = [
        (f"{many} replicas" if many > 1 else "1 replica", rate(found[many], "tokens"), _linear(found, few, many))
        for many in found
    ]
    in_steps, hours = paid(history)
    rows.append(("replica hours", f"{hours:.3g}", f"{in_steps:.3g} in steps"))
    return rows + (_cost(history, hours, price) if price is not None else [])


def paid(history: History) -> tuple[float, float]:
    """Hours of all replicas: in steps, with those that were lost, and in all, as far as starts and ends are known."""
    seconds = history.series["seconds"]
    in_steps = hours_in(history, history.steps, seconds) + history.lost_hours
    beside = sum(history.lives) - sum(filter(None, seconds)) - history.lost
    replicas = replicas_at(history, history.steps[-1] if history.steps else 0)
    return in_steps, in_steps + max(0.0, beside) * replicas / 3600


def _cost(history: History, hours: float, price: Price) -> Rows:
    source = ", ".join(filter(None, [price.source, price.date]))
    whole, tokens = hours * price.dollars, sum(row["tokens"] for row in history.rows)
    rows: Rows = [("cost of the run", f"${whole:,.2f}", f"${price.dollars:g} a replica and hour ({source})")]
    return rows + ([("cost of a million tokens", f"${whole / tokens * 1e6:,.4g}", "")] if tokens else [])


def _linear(found: Mapping[int, float], few: int, many: int) -> str:
    if many == few:
        return ""
    return f"{share(found[many] / found[few] / (many / few))} of linear scaling from {few}"


def audit(history: History) -> str:
    """What the journal proves by itself; `samestep audit` also holds it against recipe and data."""
    rows = history.opened.get("rows")
    if not rows or any("rows" not in row or "epoch" not in row for row in history.rows):
        return "The journal does not say which rows were read."
    found = ledger.audit(history.rows, [{}] * len(history.rows), rows)
    first = f"{found.steps:,} steps, {found.rows:,} rows: {found.lost:,} lost, {found.repeated:,} repeated"
    return "; ".join([first, *found.problems[:3]])


def environment(history: History) -> Rows:
    """Kernels, which the bits depend on, and machines, which they do not."""
    opened = history.opened
    rows: Rows = [(name, str(value)) for name, value in history.kernels.items()]
    rows += [(name, str(value)) for name, value in opened.get("versions", {}).items() if name not in history.kernels]
    hosts = [f"{host} ({many} replica{'s'[: many > 1]})" for host, many in history.hosts.items()]
    rows.append(("hosts", listed(hosts) or UNKNOWN))
    if opened.get("time"):
        began = datetime.fromtimestamp(opened["time"], UTC)
        rows.append(("began", f"{began:%Y-%m-%d %H:%M} UTC"))
    if "state" in opened:
        rows.append(("optimizer state", f"{opened['state']}: {opened.get('state_reason', '')}"))
    return rows


def sources(history: History) -> Rows:
    """A row a source of data; the first row names the columns."""
    found = history.opened.get("sources", {})
    rows: Rows = [
        (name, str(each["format"]), f"{each['sequences']:,}", f"{each['held_out_sequences']:,}", f"{each['skipped']:,}")
        for name, each in found.items()
    ]
    return [("source", "format", "sequences", "held out", "left out"), *rows] if rows else []
