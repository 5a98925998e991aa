"""Charts as inline SVG, without a library: lines, steps, marks and heat maps over time. Colours are CSS variables of the page."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence

from pmwal.testing.bench.stats import time_text

WIDTH, HEIGHT = 820, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 14, 12, 40
_TICKS = 6
Point = tuple[float, float]
Mark = tuple[float, float, float, str]
"""Where, how large (radius), and what to say about it."""


def plain(value: float) -> str:
    """A number of an axis."""
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:g}"


def nanoseconds(value: float) -> str:
    """A time on an axis."""
    return time_text(value)


class Chart:
    """One plot over the seconds of a run. ``log`` is the scale of its y axis."""

    def __init__(
        self, seconds: float, low: float, high: float, unit: str, *, log: bool = False, text: Callable[[float], str] = plain
    ) -> None:
        self._seconds = max(seconds, 1e-9)
        self._log = log
        self._text = text
        self._unit = unit
        if log:
            high = max(high, 1e-9)
            low = max(low, high * 1e-9)
            high = max(high, low * 10)
            self._low, self._high = math.log10(low), math.log10(high)
        else:
            step = _nice_step(high - low)
            self._low, self._high = low, max(math.ceil(high / step) * step, low + step)
        self._parts: list[str] = []
        self._legend: list[str] = []

    # -- what is drawn

    def line(self, name: str, points: Sequence[Point], colour: int, *, dash: str = "", gap: float = math.inf) -> None:
        """A line through the points, which breaks where two of them are further apart than ``gap`` seconds.

        A point of an interval that has no neighbour is a short line, so that its dashes tell which series it is of.
        """
        pieces: list[list[Point]] = []
        for point in points:
            if not pieces or point[0] - pieces[-1][-1][0] > gap:
                pieces.append([])
            pieces[-1].append(point)
        style = f' stroke-dasharray="{dash}"' if dash else ""
        for piece in pieces:
            (x, y), *others = piece
            drawn = piece
            if not others and math.isfinite(gap):
                drawn = [(max(x - gap / 3, 0.0), y), (min(x + gap / 3, self._seconds), y)]
            elif not others:
                self._parts.append(f'<circle cx="{self._x(x)}" cy="{self._y(y)}" r="2.5" class="f{colour}"/>')
            path = " ".join(f"{self._x(across)},{self._y(up)}" for across, up in drawn)
            self._parts.append(f'<polyline points="{path}" class="l{colour}"{style}/>')
        self._name(name, f'<line x1="1" y1="7" x2="25" y2="7" class="l{colour}"{style}/>')

    def step(self, name: str, times: Sequence[float], colour: int, *, dash: str = "") -> None:
        """How many of the times have passed."""
        points: list[Point] = [(0.0, 0.0)]
        for count, time in enumerate(sorted(times), 1):
            points += [(time, count - 1.0), (time, float(count))]
        self.line(name, [*points, (self._seconds, float(len(times)))], colour, dash=dash)

    def marks(self, name: str, marks: Iterable[Mark], colour: int, *, square: bool = False) -> None:
        """Marks, each with a tool tip."""
        for x, y, radius, said in marks:
            at_x, at_y = self._x(x), self._y(y)
            shape = (
                f'<rect x="{at_x - radius:.1f}" y="{at_y - radius:.1f}" width="{2 * radius:.1f}" height="{2 * radius:.1f}"'
                if square
                else f'<circle cx="{at_x}" cy="{at_y}" r="{radius:.1f}"'
            )
            self._parts.append(f'{shape} class="m{colour}"><title>{html.escape(said)}</title></{"rect" if square else "circle"}>')
        key = (
            f'<rect x="8" y="2" width="10" height="10" class="m{colour}"/>'
            if square
            else f'<circle cx="13" cy="7" r="5" class="m{colour}"/>'
        )
        self._name(name, key)

    def cell(self, left: float, right: float, low: float, high: float, share: float, said: str) -> None:
        """A cell of a heat map, from faint to full colour."""
        x, y = self._x(left), self._y(high)
        width, height = self._x(min(right, self._seconds)) - x, self._y(low) - y
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{max(width, 0.5):.1f}" height="{height:.1f}" class="h" '
            f'fill-opacity="{0.08 + 0.92 * share:.2f}"><title>{html.escape(said)}</title></rect>'
        )

    # -- the whole

    def svg(self, label: str) -> str:
        """Legend and plot; the label describes it to those who cannot see it."""
        legend = f'<ul class="legend">{"".join(self._legend)}</ul>' if len(self._legend) > 1 else ""
        return (
            f'{legend}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label, quote=True)}">'
            f"{self._grid()}{''.join(self._parts)}</svg>"
        )

    def _name(self, name: str, key: str) -> None:
        picture = f'<svg width="26" height="14" viewBox="0 0 26 14" aria-hidden="true">{key}</svg>'
        self._legend.append(f"<li>{picture}{html.escape(name)}</li>")

    def _x(self, seconds: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * seconds / self._seconds, 1)

    def _y(self, value: float) -> float:
        place = math.log10(max(value, 1e-12)) if self._log else value
        share = (place - self._low) / (self._high - self._low)
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * min(1.0, max(0.0, share)), 1)

    def _grid(self) -> str:
        parts = []
        for value in self._y_ticks():
            y = self._y(value)
            parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{WIDTH - _RIGHT}" y2="{y}" class="grid"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{html.escape(self._text(value))}</text>')
        step = _nice_step(self._seconds)
        for number in range(int(self._seconds / step + 1e-9) + 1):
            x = self._x(number * step)
            parts.append(f'<text x="{x}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{plain(number * step)}</text>')
        axis = HEIGHT - _BOTTOM
        parts.append(f'<line x1="{_LEFT}" y1="{axis}" x2="{WIDTH - _RIGHT}" y2="{axis}" class="axis"/>')
        parts.append(f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 4}" text-anchor="end">seconds since the start</text>')
        parts.append(
            f'<text transform="rotate(-90 13 {axis / 2})" x="13" y="{axis / 2}" text-anchor="middle">'
            f"{html.escape(self._unit)}</text>"
        )
        return "".join(parts)

    def _y_ticks(self) -> list[float]:
        if not self._log:
            step = _nice_step(self._high - self._low)
            return [self._low + number * step for number in range(round((self._high - self._low) / step) + 1)]
        tens = [10.0**power for power in range(math.floor(self._low), math.ceil(self._high) + 1)]
        ticks = tens if len(tens) > 3 else [ten * factor for ten in tens for factor in (1, 2, 5)]
        return [tick for tick in ticks if self._low - 1e-9 <= math.log10(tick) <= self._high + 1e-9]


def _nice_step(span: float) -> float:
    """A round step that divides a span into at most ``_TICKS`` pieces."""
    rough = max(span, 1e-9) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough - 1e-12)
