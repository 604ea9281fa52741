"""Plots as SVG text, for a page that needs nothing else: values with their intervals, curves, and shares.

Text and axes take the colour of the page's text, so that they are read on light and on dark. Width and letters are for a
phone: a plot as wide as one is drawn at about its own size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple

WIDTH, ROW, LEFT, RIGHT = 440, 24, 110, 24
HEIGHT, TOP, BOTTOM, LINE, ABOVE = 210, 12, 38, 17, 24  # ABOVE: of a unit and the names of marks
AXIS = 60  # left of curves, for the numbers of their axis
LETTER, WIDEST = 6.6, 200  # width of a letter on average, and the most that names take of a plot, in pixels
POINTS = 30  # points up to which a curve shows each
# Told apart with red-green blindness (after Okabe and Ito), each with a contrast of 3 or more on white and on near-black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8649a", "#b57b00", "#3a93c8", "#6f7d1c", "#c2304a", "#8a6d3b", "#7b61c9")
DASHES = ("", "6 3", "2 3", "9 3 2 3")


class Style(NamedTuple):
    """What tells a curve from others: its colour, and its dashes for who does not see colours."""

    colour: str
    dash: str = ""


PLAIN = Style("#7a7a7a")


def style(number: int) -> Style:
    """That of the method with this number; beyond the list, other colours by the golden angle."""
    colour = COLOURS[number] if number < len(COLOURS) else f"hsl({number * 137.5 % 360:g} 45% {40 + number % 3 * 8}%)"
    return Style(colour, DASHES[number % len(DASHES)])


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high], `about` so many. Empty where there is no room between them."""
    if not high > low:
        return []
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def dots(rows: Mapping[str, tuple[float, float, float]], styles: Mapping[str, Style], label: str, unit: str = "") -> str:
    """A row for each name: its value as a dot, its interval as a line."""
    low, high = _room([number for row in rows.values() for number in row])
    left = min(WIDEST, max(LEFT, 16 + LETTER * max(map(len, rows))))
    bottom = TOP + ROW * len(rows)

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - RIGHT)

    parts = [_upright(x(tick), TOP, bottom, f"{tick:g}") for tick in ticks(low, high, 4)]
    for number, (name, (value, begin, end)) in enumerate(rows.items()):
        y, colour = TOP + ROW * (number + 0.5), styles.get(name, PLAIN).colour
        told = f"{escape(name)}: {value:.4g} [{begin:.4g}, {end:.4g}]"
        parts.append(f'<text x="{left - 8:g}" y="{y + 4:.1f}" text-anchor="end">{escape(_shortened(name, left))}</text>')
        parts.append(f'<line x1="{x(begin):.1f}" x2="{x(end):.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="5" fill="{colour}"><title>{told}</title></circle>')
    return _svg(bottom + (BOTTOM if unit else BOTTOM - LINE), [*parts, _under(unit, (left + WIDTH - RIGHT) / 2, bottom)], label)


def lines(curves: Mapping[str, Sequence[float | None]], styles: Mapping[str, Style], label: str, *, unit: str = "", legend: bool = False,
          steps: Sequence[int] = (), marks: Mapping[float, str] | None = None) -> str:  # fmt: skip
    """A curve for each name over the optimiser steps, which are counted from 1 where `steps` does not say them; a gap where a value is None.

    `marks` are places between steps and what begins there. Without a legend, the page has one for all of its plots.
    """
    low, high = _room([value for curve in curves.values() for value in curve if value is not None])
    steps = steps or range(1, 1 + max(map(len, curves.values())))
    top = TOP + ABOVE + LINE * len(curves) * legend
    bottom = top + HEIGHT - TOP - BOTTOM

    def x(step: float) -> float:
        return AXIS + (step - steps[0]) / max(1, steps[-1] - steps[0]) * (WIDTH - AXIS - RIGHT)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = [_level(y(tick), f"{tick:g}") for tick in ticks(low, high)]
    parts += [_upright(x(int(tick)), bottom, bottom + 4, f"{tick:g}") for tick in ticks(steps[0], steps[-1]) or [steps[0]] if tick == int(tick)]
    parts += [_mark(x(place), top, bottom, text) for place, text in (marks or {}).items()]
    for number, (name, curve) in enumerate(curves.items()):
        one = styles.get(name, PLAIN)
        parts.append(_curve([(x(step), None if value is None else y(value)) for step, value in zip(steps, curve, strict=False)], one, name))
        parts += [_key(number, one, name)] * legend
    return _svg(bottom + BOTTOM, [*parts, _under("optimiser step", (AXIS + WIDTH - RIGHT) / 2, bottom), _over(unit, top)], label)


def bars(shares: Mapping[str, Sequence[float]], names: Sequence[str], styles: Mapping[str, Style], label: str, unit: str = "") -> str:
    """Groups of bars, 0 to their largest, one in each for each series; `names` of the groups stand below."""
    high = max([value for one in shares.values() for value in one] or [0]) * 1.06 or 1.0
    top = TOP + ABOVE + LINE * len(shares)
    bottom = top + HEIGHT - TOP - BOTTOM
    group = (WIDTH - AXIS - RIGHT) / len(names)
    width = group * 0.8 / len(shares)

    def y(value: float) -> float:
        return bottom - value / high * (bottom - top)

    parts = [_level(y(tick), f"{tick:g}") for tick in ticks(0, high, 4)]
    parts += [f'<text x="{AXIS + group * (number + 0.5):.1f}" y="{bottom + 16}" text-anchor="middle">{escape(name)}</text>' for number, name in enumerate(names)]
    for series, (name, values) in enumerate(shares.items()):
        one = styles.get(name, PLAIN)
        parts.append(_key(series, one, name, bar=True))
        for number, value in enumerate(values):
            left = AXIS + group * (number + 0.1) + width * series
            told = escape(", ".join(filter(None, (name, names[number]))))
            parts.append(f'<rect x="{left:.1f}" y="{y(value):.1f}" width="{width:.1f}" height="{bottom - y(value):.1f}" fill="{one.colour}"><title>{told}: {value:.3g}</title></rect>')
    return _svg(bottom + BOTTOM - LINE, [*parts, _over(unit, top)], label)


def swatch(one: Style) -> str:
    """A piece of a curve, for a legend in a text."""
    return f'<svg viewBox="0 0 28 10" width="28" height="10" aria-hidden="true" xmlns="http://www.w3.org/2000/svg">{_stroke(one, 0, 28, 5)}</svg>'


def _curve(points: Sequence[tuple[float, float | None]], one: Style, name: str) -> str:
    """The pieces between gaps, and each point where they are few."""
    pieces = [" ".join(f"{x:.1f},{y:.1f}" for x, y in piece) for there, piece in groupby(points, key=lambda point: point[1] is not None) if there]
    drawn = "".join(f'<polyline points="{piece}" fill="none" stroke="{one.colour}" stroke-width="2"{_dashed(one)}/>' for piece in pieces)
    if len(points) <= POINTS:
        drawn += "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{one.colour}"/>' for x, y in points if y is not None)
    return f"<g><title>{escape(name)}</title>{drawn}</g>"


def _dashed(one: Style) -> str:
    return f' stroke-dasharray="{one.dash}"' if one.dash else ""


def _stroke(one: Style, begin: float, end: float, y: float) -> str:
    return f'<line x1="{begin:g}" x2="{end:g}" y1="{y:g}" y2="{y:g}" stroke="{one.colour}" stroke-width="3"{_dashed(one)}/>'


def _key(number: int, one: Style, name: str, *, bar: bool = False) -> str:
    y = TOP + LINE * number
    sign = f'<rect x="{AXIS}" y="{y - 5}" width="12" height="10" fill="{one.colour}"/>' if bar else _stroke(one, AXIS, AXIS + 28, y)
    return f'{sign}<text x="{AXIS + (18 if bar else 36)}" y="{y + 4}">{escape(_shortened(name, WIDTH - AXIS - RIGHT))}</text>'


def _shortened(name: str, width: float) -> str:
    """The name without its middle, where it is wider than so many pixels: methods differ at both ends."""
    most = int((width - 16) / LETTER)
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def _room(numbers: Sequence[float]) -> tuple[float, float]:
    """The range of the numbers with a margin."""
    low, high = min(numbers), max(numbers)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 0.1
    return low - margin, high + margin


def _upright(x: float, top: float, bottom: float, text: str) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="currentColor" stroke-opacity=".2"/><text x="{x:.1f}" y="{bottom + 16:g}" text-anchor="middle">{text}</text>'


def _level(y: float, text: str) -> str:
    return f'<line x1="{AXIS}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-opacity=".2"/><text x="{AXIS - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'


def _mark(x: float, top: float, bottom: float, text: str) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="currentColor" stroke-opacity=".6" stroke-dasharray="3 3"/><text x="{x:.1f}" y="{top - 13:g}" text-anchor="middle" opacity=".8">{escape(text)}</text>'


def _under(text: str, x: float, bottom: float) -> str:
    return f'<text x="{x:.1f}" y="{bottom + 33:g}" text-anchor="middle" opacity=".8">{escape(text)}</text>' if text else ""


def _over(text: str, top: float) -> str:
    return f'<text x="4" y="{top - 13:g}" opacity=".8">{escape(text)}</text>' if text else ""


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    """`label` is for those who hear the page; others read the caption beside it, which may be long and wraps."""
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg" font-size="12">{"".join(parts)}</svg>'
