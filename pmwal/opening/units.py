"""Sizes and durations with units, as people read them, and durations as they write them."""

from __future__ import annotations

import re
from numbers import Real

_UNITS = (
    (0.001, "ms msec msecs millisecond milliseconds"),
    (1, "s sec secs second seconds"),
    (60, "m min mins minute minutes"),
    (3600, "h hr hrs hour hours"),
    (86400, "d day days"),
    (604800, "w week weeks"),
)
_SECONDS = {"": 1.0} | {name: float(seconds) for seconds, names in _UNITS for name in names.split()}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_BARE = re.compile(r"\s*\d+(?:\.\d+)?\s*")
_DURATION_MAX = 250 * 365 * 86400  # seconds: in nanoseconds it still fits a time


def parse_duration(duration: float | str) -> float:
    """Seconds from a number, or from text like ``"7 days"``, ``"12h"``, ``"250ms"`` or ``"90"``.

    >>> parse_duration("7 days"), parse_duration("1.5h"), parse_duration("250ms"), parse_duration(90)
    (604800.0, 5400.0, 0.25, 90.0)
    """
    problem = f"a duration is a number of seconds or text like '7 days', '12h' or '30 min', not {duration!r}"
    if isinstance(duration, str):
        match = _DURATION.fullmatch(duration)
        factor = None if match is None else _SECONDS.get(match[2].lower())
        if match is None or factor is None:
            raise ValueError(problem)
        seconds = float(match[1]) * factor
    elif isinstance(duration, bool) or not isinstance(duration, Real):
        raise TypeError(problem)
    else:
        seconds = float(duration)
    if not 0 < seconds < _DURATION_MAX:
        raise ValueError(f"a duration must be positive, and no more than 250 years, not {duration!r}")
    return seconds


def check_has_unit(limit: object, *units: str) -> None:
    """``ValueError`` for text that is a bare number. What a limit removes is gone for good, so nobody is to guess its unit.

    >>> check_has_unit("7", "s", " days")
    Traceback (most recent call last):
    ValueError: '7' has no unit; write '7s' or '7 days'
    """
    if isinstance(limit, str) and _BARE.fullmatch(limit):
        raise ValueError(f"{limit!r} has no unit; write {' or '.join(repr(limit.strip() + unit) for unit in units)}")


def format_size(size: int) -> str:
    """A number of bytes with a binary unit.

    >>> format_size(0), format_size(1023), format_size(65536), format_size(1 << 30)
    ('0 B', '1023 B', '64 KiB', '1 GiB')
    """
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def format_ns(ns: float) -> str:
    """A duration of at least 0 in ns, with three digits and a unit up to the second.

    >>> format_ns(0), format_ns(999), format_ns(1234), format_ns(999_600), format_ns(60e9)
    ('0 ns', '999 ns', '1.23 µs', '1 ms', '60 s')
    """
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= 0.9995 * size:  # a smaller unit would show it as 1e+03
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.0f} ns"
