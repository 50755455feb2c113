"""The curves of network.py as a picture: held-out loss against seconds, a panel a rate, drawn as plain SVG."""

import math

WIDTH, HEIGHT = 440, 300  # of a panel, with its margins
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 30, 36
HEAD = 64  # above the panels: title and legend
COLUMNS = 2
COLOURS = {  # by method; those that differ little from one of them are left out
    "ddp": "#4d4d4d",
    "powersgd": "#e69f00",
    "int8": "#0072b2",
    "int4": "#56b4e9",
    "diloco": "#b33dc6",
    "diloco int4": "#d55e00",
    "streaming int4": "#009e73",
}
NAMES = {"ddp": "torch DDP", "powersgd": "DDP + PowerSGD", "diloco": "DiLoCo", "diloco int4": "DiLoCo, int4"}
NAMES |= {"streaming int4": "streaming DiLoCo, int4"}
RATES = {"10gbit": "10 Gbit/s", "1gbit": "1 Gbit/s", "100mbit": "100 Mbit/s", "20mbit": "20 Mbit/s"}


def picture(found: dict) -> str:
    """found: as network.py keeps it, with its report."""
    rates = [rate for rate in RATES if rate in found["report"]["rates"]]
    rows = -(-len(rates) // COLUMNS)
    width, height = COLUMNS * WIDTH, HEAD + rows * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(LEFT, 20, "Held-out loss against time, 4 replicas, by the rate of each link", size=14, weight="bold"),
        *legend([method for method in COLOURS if method in found["curves"]]),
    ]
    for number, rate in enumerate(rates):
        place = (number % COLUMNS * WIDTH, HEAD + number // COLUMNS * HEIGHT)
        parts += panel(found, rate, place)
    return "\n".join([*parts, "</svg>"]) + "\n"


def legend(methods: list[str]) -> list[str]:
    parts, x = [], LEFT
    for method in methods:
        name = NAMES.get(method, method)
        parts.append(f'<path d="M{x} 42h18" stroke="{COLOURS[method]}" stroke-width="2.5"/>')
        parts.append(text(x + 23, 46, name))
        x += 38 + 6.2 * len(name)
    return parts


def panel(found: dict, rate: str, place: tuple[float, float]) -> list[str]:
    curves = {method: points(found, rate, method) for method in COLOURS}
    curves = {method: line for method, line in curves.items() if line}
    if not curves:
        return []
    seconds, losses = zip(*(point for line in curves.values() for point in line), strict=True)
    scale = Scale(place, (min(seconds), max(seconds)), (min(losses) - 0.1, max(losses) + 0.1))
    parts = [text(place[0] + LEFT, place[1] + 18, RATES[rate], size=12, weight="bold"), *axes(scale)]
    for method, line in curves.items():
        steps = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{steps}" fill="none" stroke="{COLOURS[method]}" stroke-width="1.8"/>')
    return parts + marks(found, rate, scale)


def points(found: dict, rate: str, method: str) -> list[tuple[float, float]]:
    """Seconds and loss at each evaluation but that before the first step."""
    known = found["report"]["rates"][rate]["methods"].get(method)
    curve = found["curves"].get(method, {})
    return [(int(step) * known["step"], loss) for step, loss in curve.items() if int(step)] if known else []


class Scale:
    """From seconds (their logarithm counts) and losses to places in the picture."""

    def __init__(self, place: tuple[float, float], seconds: tuple[float, float], losses: tuple[float, float]) -> None:
        self.seconds, self.losses = seconds, losses
        self.left, self.right = place[0] + LEFT, place[0] + WIDTH - RIGHT
        self.top, self.bottom = place[1] + TOP, place[1] + HEIGHT - BOTTOM

    def x(self, seconds: float) -> float:
        low, high = map(math.log, self.seconds)
        return self.left + (self.right - self.left) * (math.log(seconds) - low) / (high - low)

    def y(self, loss: float) -> float:
        low, high = self.losses
        return self.bottom - (self.bottom - self.top) * (loss - low) / (high - low)


def axes(scale: Scale) -> list[str]:
    parts = []
    for seconds in (part * 10**power for power in range(5) for part in (1, 2, 5)):
        if scale.seconds[0] <= seconds <= scale.seconds[1]:
            x = scale.x(seconds)
            parts.append(f'<path d="M{x:.1f} {scale.top}V{scale.bottom}" stroke="#e6e6e6"/>')
            parts.append(text(x, scale.bottom + 15, f"{seconds:,}", anchor="middle"))
    low, high = scale.losses
    for half in range(math.ceil(2 * low), math.floor(2 * high) + 1):
        y = scale.y(half / 2)
        parts.append(f'<path d="M{scale.left} {y:.1f}H{scale.right}" stroke="#e6e6e6"/>')
        parts.append(text(scale.left - 6, y + 4, f"{half / 2:.1f}", anchor="end"))
    middle = (scale.left + scale.right) / 2
    return [*parts, text(middle, scale.bottom + 29, "seconds, logarithmic", anchor="middle", fill="#666")]


def marks(found: dict, rate: str, scale: Scale) -> list[str]:
    """The loss that all run to, and when 200 steps are over without any synchronisation."""
    parts, target = [], found["report"]["target"]
    if target:
        y = scale.y(target)
        parts.append(f'<path d="M{scale.left} {y:.1f}H{scale.right}" stroke="#888" stroke-dasharray="4 3"/>')
        parts.append(text(scale.left + 4, y - 4, "DDP's after 200 steps", fill="#666"))
    alone = found["report"]["rates"][rate]["methods"].get("alone", {}).get("seconds")
    if alone and scale.seconds[0] <= alone <= scale.seconds[1]:
        x = scale.x(alone)
        parts.append(f'<path d="M{x:.1f} {scale.top}V{scale.bottom}" stroke="#888" stroke-dasharray="2 3"/>')
        parts.append(text(x, scale.top + 10, "200 steps alone", anchor="middle", fill="#666"))
    return parts


def text(x: float, y: float, said: str, anchor: str = "start", fill: str = "#222", size: int = 11, **more: str) -> str:
    weight = f' font-weight="{more["weight"]}"' if more else ""
    said = said.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-size="{size}"{weight}>{said}</text>'
    )


if __name__ == "__main__":
    raise SystemExit("network.py report --picture FILE draws it")
