"""Numbers as people read them. No torch: a progress panel, the planner and `--help` use the same words.

Three significant digits, rounded before the unit is chosen (999,999 is 1 M, not 1000 k). Where a number is not
known (NaN or infinite, as the time left before the first step) it is `?`.
"""

import math
from collections.abc import Sequence

UNKNOWN = "?"


def count(number: float) -> str:
    """12345678 -> `12.3 M`."""
    return _scaled(number, ("", "k", "M", "G", "T", "P"))


def size(number: float) -> str:
    """Bytes, in powers of 1000: 55_600_000 -> `55.6 MB`."""
    return _scaled(number, ("B", "kB", "MB", "GB", "TB", "PB"))


def rate(number: float, unit: str) -> str:
    """An amount a second: (12345, "tokens") -> `12.3 k tokens/s`."""
    return f"{count(number)} {unit}/s"


def share(part: float) -> str:
    """A part of 1: 0.1234 -> `12.3 %`."""
    return f"{part:.1%}".replace("%", " %") if math.isfinite(part) else UNKNOWN


def duration(seconds: float) -> str:
    """0.0123 -> `12.3 ms`, 9.34 -> `9.3 s`, 93 -> `1 min 33 s`, 7380 -> `2 h 3 min`, 183600 -> `2 d 3 h`."""
    if not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return _clock(round(seconds))


def _clock(seconds: int) -> str:
    """The two largest of days, hours, minutes and seconds; the smaller ones are cut off."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s"


def _scaled(number: float, units: Sequence[str]) -> str:
    if not math.isfinite(number):
        return UNKNOWN
    rounded, power = float(f"{number:.3g}"), 0
    while abs(rounded) >= 1000 and power < len(units) - 1:
        rounded, power = rounded / 1000, power + 1
    return f"{rounded:.3g} {units[power]}".rstrip() if abs(rounded) < 1000 else f"{rounded:.0f} {units[power]}"
