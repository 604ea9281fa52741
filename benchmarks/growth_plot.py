"""Curves over logarithmic axes as SVG, drawn as those of the reports are, each with its name at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from hubdistill.report.plots import AXIS, RIGHT, TOP, WIDTH, _curve, _level, _over, _svg, _under, _upright, style

HEIGHT, BELOW, ABOVE, NAMES, LINE = 250, 38, 24, 190, 14  # NAMES: right of the curves


def loglog(curves: Mapping[str, Mapping[int, float]], label: str, *, x_unit: str, y_unit: str) -> str:
    """A curve for each name, x -> y; all numbers are above 0."""
    xs = sorted({x for curve in curves.values() for x in curve})
    ys = [y for curve in curves.values() for y in curve.values()]
    low, high = min(ys) / 1.15, max(ys) * 1.15
    top, bottom, wide = TOP + ABOVE, TOP + ABOVE + HEIGHT, WIDTH + NAMES

    def x(value: float) -> float:
        return AXIS + 8 + math.log(value / xs[0]) / (math.log(xs[-1] / xs[0]) or 1) * (WIDTH - AXIS - RIGHT - 8)

    def y(value: float) -> float:
        return bottom - math.log(value / low) / math.log(high / low) * HEIGHT

    parts = [_level(y(tick), f"{tick:,g}" if tick < 1e6 else f"{tick:g}") for tick in decades(low, high)]
    parts += [_upright(x(value), top, bottom, short(value)) for value in xs]
    ends = apart({name: y(curve[max(curve)]) for name, curve in curves.items()})
    for number, (name, curve) in enumerate(curves.items()):
        one = style(number)
        parts.append(_curve([(x(value), y(curve[value])) for value in sorted(curve)], one, name))
        parts.append(f'<path d="M{x(max(curve)) + 4:.1f} {y(curve[max(curve)]):.1f}L{WIDTH - RIGHT + 8} {ends[name]:.1f}" stroke="{one.colour}" stroke-opacity=".5" fill="none"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{ends[name] + 4:.1f}" fill="{one.colour}">{escape(name)}</text>')
    drawn = _svg(bottom + BELOW, [*parts, _under(x_unit, (AXIS + WIDTH - RIGHT) / 2, bottom), _over(y_unit, top)], label)
    return drawn.replace(f'viewBox="0 0 {WIDTH} ', f'viewBox="0 0 {wide} ', 1)


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the range; powers alone where those are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    return found if len(found) <= 9 else [tick for tick in found if math.log10(tick) % 1 < 1e-9]


def apart(places: Mapping[str, float]) -> dict[str, float]:
    """The same heights, moved down as far as lines of text need."""
    found, last = dict[str, float](), -math.inf
    for name in sorted(places, key=lambda name: places[name]):
        found[name] = last = max(places[name], last + LINE)
    return found


def short(value: int) -> str:
    """16384 -> 16k."""
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else f"{value:,}"
