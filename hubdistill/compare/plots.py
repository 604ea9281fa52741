"""Plots as SVG text, for a page that needs nothing else: values with their intervals, and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, ROW, LEFT, RIGHT = 640, 22, 190, 20
HEIGHT, TOP, BOTTOM = 240, 10, 24
COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8e5ea2", "#b8860b", "#2a9d8f", "#7f7f7f", "#d81b60", "#5d4037", "#00838f")  # told apart by eye on white
GREY = "#999"
LETTER, WIDEST = 6.6, 300  # width of a letter on average, and the most that names take of a plot, in pixels


def colour(number: int) -> str:
    """That of the method with this number; beyond the list, others by the golden angle."""
    return COLOURS[number] if number < len(COLOURS) else f"hsl({number * 137.5 % 360:g} 45% {35 + number % 3 * 10}%)"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high], `about` so many. Empty where there is no room between them."""
    if not high > low:
        return []
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def dots(rows: Mapping[str, tuple[float, float, float]], colours: Mapping[str, str], label: str) -> str:
    """A row for each name: its value as a dot, its interval as a line."""
    low, high = _room([number for row in rows.values() for number in row])
    left = min(WIDEST, max(LEFT, 16 + LETTER * max(map(len, rows))))
    height = TOP + ROW * len(rows) + BOTTOM

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - RIGHT)

    parts = [_grid(x(tick), TOP, height - BOTTOM, f"{tick:g}") for tick in ticks(low, high)]
    for number, (name, (value, begin, end)) in enumerate(rows.items()):
        y, colour = TOP + ROW * (number + 0.5), colours.get(name, GREY)
        parts.append(f'<text x="{left - 8:g}" y="{y + 4:.1f}" text-anchor="end">{escape(_shortened(name, left))}</text>')
        parts.append(f'<line x1="{x(begin):.1f}" x2="{x(end):.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="5" fill="{colour}"><title>{escape(name)}: {value:.4g} [{begin:.4g}, {end:.4g}]</title></circle>')
    return _svg(height, parts, label)


def lines(curves: Mapping[str, Sequence[float]], colours: Mapping[str, str], label: str) -> str:
    """A curve for each name over its steps. The names are told by colour, as in `dots`."""
    low, high = _room([value for curve in curves.values() for value in curve])
    longest = max(len(curve) for curve in curves.values())
    left = 60

    def x(step: int) -> float:
        return left + step / max(1, longest - 1) * (WIDTH - left - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks(low, high):
        parts.append(f'<line x1="{left}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#eee"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [f'<text x="{x(int(tick) - 1):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>' for tick in ticks(1, longest) if tick == int(tick)]
    for name, curve in curves.items():
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in enumerate(curve))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colours.get(name, GREY)}" stroke-width="2"><title>{escape(name)}</title></polyline>')
    return _svg(HEIGHT, parts, label)


def _shortened(name: str, width: float) -> str:
    """The name without its middle, where it is wider than so many pixels: methods differ at both ends."""
    most = int((width - 16) / LETTER)
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def _room(numbers: Sequence[float]) -> tuple[float, float]:
    """The range of the numbers with a margin."""
    low, high = min(numbers), max(numbers)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _grid(x: float, top: float, bottom: float, text: str) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="#eee"/><text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>'


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    """`label` is for those who hear the page; others read the caption beside it, which may be long and wraps."""
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg" font-size="12">{"".join(parts)}</svg>'
