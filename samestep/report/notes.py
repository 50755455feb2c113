"""What of an event a person should read while a run goes on, in one line."""

from collections.abc import Callable

from samestep.events import Event


def note(event: Event) -> str | None:
    """None where there is nothing to say."""
    said = SENTENCES.get(event["event"])
    return said(event) if said else None


def _unsaved(what: str, so: str) -> Callable[[Event], str]:
    return lambda event: f"{what} of step {event['step']}: {event['reason']}; {so}"


def _reason(event: Event) -> str:
    return str(event["reason"])


def _elsewhere(event: Event) -> str | None:
    if "refused" not in event:
        return None
    return f"checkpoint of step {event['step']}: {event['refused']}; it is in {event['folder']}"


SENTENCES: dict[str, Callable[[Event], str | None]] = {
    "devices_shared": _reason,
    "formed": lambda event: _reason(event) if event["generation"] > 1 else None,
    "silent": _reason,
    "unreachable": _reason,
    "reachable": _reason,
    "checkpoint": _elsewhere,
    "save_failed": _unsaved("checkpoint", "trying again under another name"),
    "checkpoint_failed": _unsaved("checkpoint", "training goes on, and the checkpoint before it stays"),
    "rotation_failed": _unsaved("checkpoint", "it is whole, and older ones than asked for stay until a later one is"),
    "best_failed": _unsaved("best model", "training goes on, and the best model before it stays"),
    "journal_failed": lambda e: f"journal: {e['reason']}; training goes on, and its lines are kept and tried again",
    "journal_written": lambda e: f"journal: its disk takes lines again, the {e['lines']} that were kept are there",
    "shared_memory_failed": lambda event: (
        f"replica {event['rank']}: {event['reason']}; its messages go through sockets, which is slower"
    ),
}
