"""Times: parsing what people write (``--since``, ``--until``), and formatting."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta

TIME_HELP = """\
TIME is ISO 8601 (2026-11-22, 2026-11-22T13:00, or 13:00 for today; local unless
it ends with Z or an offset such as +02:00), "10 minutes ago", "2h30m ago",
-10min, now, today or yesterday (at midnight), or @SECONDS since 1970."""

_NS = 10**9
_UNITS = {
    "ms": 10**6,
    "s": _NS,
    "sec": _NS,
    "second": _NS,
    "m": 60 * _NS,
    "min": 60 * _NS,
    "minute": 60 * _NS,
    "h": 3600 * _NS,
    "hr": 3600 * _NS,
    "hour": 3600 * _NS,
    "d": 86400 * _NS,
    "day": 86400 * _NS,
    "w": 7 * 86400 * _NS,
    "week": 7 * 86400 * _NS,
}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*")
_TAKES_TIME = ("--since", "--until", "-S", "-U")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_time(text: str, now: datetime | None = None) -> int:
    """Nanoseconds since 1970 for a time as people write it; ``ValueError`` if it cannot be parsed.

    >>> noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    >>> parse_time("10 minutes ago", noon) == parse_time("-10min", noon) == parse_time("2026-11-22T11:50Z")
    True
    >>> parse_time("@1.5")
    1500000000
    """
    words = text.strip().lower()
    present = (now if now is not None else datetime.now(UTC)).astimezone()
    if words == "now":
        return to_ns(present)
    if words == "today":
        return to_ns(_midnight(present.date()))
    if words == "yesterday":
        return to_ns(_midnight(present.date() - timedelta(days=1)))
    if words.startswith("@"):
        return round(float(words[1:]) * _NS)
    span = _parse_span(words)
    if span is not None:
        return to_ns(present) - span
    try:
        return to_ns(datetime.combine(present.date(), time.fromisoformat(text.strip())).astimezone())
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"cannot parse the time {text!r}; write 2026-11-22T13:00, '10 minutes ago', today or yesterday") from None
    return to_ns(moment.astimezone())  # without a zone it is local time


def _midnight(day: date) -> datetime:
    """Local midnight, with the offset of that moment: clocks may change later that day."""
    return datetime.combine(day, time()).astimezone()


def _parse_span(words: str) -> int | None:
    """Nanoseconds of ``"-10min"`` or ``"2h 30m ago"``; None if the text is neither."""
    if words.startswith("-"):
        rest = words[1:].strip()
    elif words.endswith("ago"):
        rest = words[:-3].strip()
    else:
        return None
    total, at = 0, 0
    while at < len(rest):
        match = _SPAN.match(rest, at)
        if match is None:
            return None
        unit = _UNITS.get(match[2]) or _UNITS.get(match[2].removesuffix("s"))
        if unit is None:
            return None
        total += round(float(match[1]) * unit)
        at = match.end()
    return total if rest else None


def time_option(text: str) -> int:
    """A time, for argparse."""
    try:
        return parse_time(text)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def join_relative(arguments: Sequence[str]) -> list[str]:
    """``--since -10min`` as ``--since=-10min``: otherwise argparse takes the time for an option.

    >>> join_relative(["cat", "--since", "-10min", "app.wal"])
    ['cat', '--since=-10min', 'app.wal']
    """
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in _TAKES_TIME and re.match(r"-\d", argument):
            joined[-1] += argument if len(joined[-1]) == 2 else f"={argument}"
        else:
            joined.append(argument)
    return joined


def to_ns(moment: datetime) -> int:
    """Nanoseconds since 1970 of an aware time, exactly."""
    since = moment - _EPOCH
    return (since.days * 86400 + since.seconds) * _NS + since.microseconds * 1000


def from_ns(time_ns: int) -> datetime:
    """The time in UTC, rounded down to a microsecond."""
    return _EPOCH + timedelta(microseconds=time_ns // 1000)


def local_text(time_ns: int) -> str:
    """ISO 8601 in local time with its offset, always with microseconds."""
    return from_ns(time_ns).astimezone().isoformat(timespec="microseconds")


def utc_text(time_ns: int) -> str:
    """ISO 8601 in UTC to the nanosecond.

    >>> utc_text(1_700_000_000_000_000_001)
    '2023-11-14T22:13:20.000000001Z'
    """
    return from_ns(time_ns).strftime("%Y-%m-%dT%H:%M:%S") + f".{time_ns % _NS:09d}Z"
