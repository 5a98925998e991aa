"""Times: parsing what people write (``--since``, ``--until``), and formatting.

Invariants
----------
- No floating point: a time is exact to the nanosecond, as written.
- Text means one time or is refused. A written time is the whole period that it names, down to its last digit: ``2026-11`` is a
  month, ``10:00`` a minute. So a record's own time, as any command prints it, includes that record as ``--since`` and ``--until``.
- Without a zone a time is local. One that occurs twice, as clocks are put back, is the period from the first to the second; one
  that clocks skip counts from before the change (RFC 5545): 02:30 is then 03:30.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import NamedTuple

TIME_HELP = """\
TIME is local unless it has a zone (Z, UTC, +01:00):
  relative   -2h30m, +1h, "10 minutes ago", "1 month ago", now
  day        today, yesterday, tomorrow, "yesterday 18:30"
  date       2026-11-29, 20261129, 2026-11, 2026, 2026-W48, "29 Nov 2026",
             November (of this year)
  time       10:00 (today), 10:00 UTC, "Nov 29 10:00", 2026-11-29T10:00:00.5Z
  seconds    @SECONDS since 1970, with a fraction
Both bounds include the whole of what is written: --until 2026-11 ends with
November. Where clocks are put back and a time occurs twice, --since takes the
first and --until the second; a time that is skipped counts as before the
change."""

_NS = 10**9
_UNITS = {
    1: ("ns", "nanosecond"),
    10**3: ("us", "µs", "μs", "microsecond"),
    10**6: ("ms", "millisecond"),
    _NS: ("s", "sec", "second"),
    60 * _NS: ("m", "min", "minute"),
    3600 * _NS: ("h", "hr", "hour"),
    86400 * _NS: ("d", "day"),
    7 * 86400 * _NS: ("w", "week"),
}
_UNIT_NS = {
    name + plural: ns for ns, names in _UNITS.items() for name in names for plural in ("", "s") if len(name) > 2 or not plural
}
_UNIT_MONTHS = {"mo": 1, "month": 1, "months": 1, "y": 12, "yr": 12, "yrs": 12, "year": 12, "years": 12}
_MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"]
_WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_UTC = ("z", "utc", "gmt")
_DAYS = {"yesterday": -1, "today": 0, "tomorrow": 1}
_NUMBER = r"([0-9]+)(?:[.,]([0-9]+))?"
_SPAN = re.compile(rf"{_NUMBER}\s*([a-zµμ]+)\s*")
_SECONDS = re.compile(rf"@(-?){_NUMBER}")
_YEAR_LAST = re.compile(r"(.*[a-z].*) ([0-9]{1,2}:[0-9:.,]+)( utc| gmt)? ([0-9]{4})( [+-][0-9:]+)?")
_ZONE = re.compile(r"(.*?)( ?)(z|utc|gmt|[+-][0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2})?)?)")
_CLOCK = re.compile(r"(?:(.+?)(?:(?<=[0-9])t| t?)|t)?([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?(?:[.,]([0-9]+))?")
_BASIC_CLOCK = re.compile(r"(?:(.*[0-9]) ?)?t([0-9]{2})(?:([0-9]{2})(?:([0-9]{2}))?)?(?:[.,]([0-9]+))?")
_ISO_DATE = re.compile(
    r"(?P<year>[0-9]{4})(?:-(?P<month>[0-9]{2})(?:-(?P<day>[0-9]{2}))?|(?P<month8>[0-9]{2})(?P<day8>[0-9]{2})"
    r"|-?w(?P<week>[0-9]{2})(?:-?(?P<weekday>[1-7]))?|-(?P<ordinal>[0-9]{3}))?"
)
_DAY_OR_MONTH_FIRST = re.compile(r"([0-9]{1,2})([./-])([0-9]{1,2})\2([0-9]{4})(?![0-9])")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Period(NamedTuple):
    """The first and the last nanosecond since 1970 of a written time."""

    first: int
    last: int


def parse_time(text: str, now: datetime | None = None) -> int:
    """Nanoseconds since 1970 at which a time as people write it begins; ``ValueError`` if it cannot be parsed.

    >>> noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    >>> parse_time("10 minutes ago", noon) == parse_time("-10min", noon) == parse_time("2026-11-22T11:50Z")
    True
    >>> parse_time("@1.5")
    1500000000
    """
    return parse_period(text, now).first


def parse_period(text: str, now: datetime | None = None) -> Period:
    """The period that a time as people write it names; ``ValueError`` if it cannot be parsed.

    >>> last = parse_period("2026-11-29T10:00:00,25Z").last
    >>> utc_text(last)
    '2026-11-29T10:00:00.259999999Z'
    """
    words = " ".join(text.lower().split())
    present = (now if now is not None else datetime.now(UTC)).astimezone()
    _refuse_day_or_month_first(text, words)
    if re.fullmatch(r"[+-]?[0-9]+(?:[.,][0-9]*)?", words) and not re.fullmatch(r"[0-9]{4}|[0-9]{8}", words):
        seconds = _as_seconds(words.lstrip("+"))
        raise ValueError(f"{text!r} is a bare number; write @{seconds} for seconds since 1970, or a date like 2026-11-29")
    try:
        period = _moment(words, present) or _written(words, present)
    except OverflowError:
        period = None
    except ValueError as error:
        raise ValueError(f"cannot parse the time {text!r}: {error}") from None
    if period is None:
        raise ValueError(
            f"cannot parse the time {text!r}; write 2026-11-29, 2026-11-29T13:00, 'Nov 29 13:00', yesterday, '10 minutes ago', "
            "-2h or @SECONDS"
        )
    return period


def _refuse_day_or_month_first(text: str, words: str) -> None:
    """``ValueError`` for a date like 29.11.2026 or 11/29/2026: some write the day first, others the month."""
    match = _DAY_OR_MONTH_FIRST.match(words)
    if match is None:
        return
    first, second, year = (int(match[group]) for group in (1, 3, 4))
    meant = []
    for month, day in sorted({(second, first), (first, second)}):
        with contextlib.suppress(ValueError):
            meant.append(f"{datetime(year, month, day):%Y-%m-%d}")
    advice = " or ".join(meant) or "a date like 2026-11-29"
    raise ValueError(f"{text!r} does not say which number is the month; write {advice}")


def _as_seconds(digits: str) -> str:
    """A bare number as seconds: what is too large for seconds is ms, µs or ns since 1970."""
    for places, lowest in ((9, 18), (6, 15), (3, 12)):
        if digits.isdecimal() and len(digits) >= lowest:
            return f"{digits[:-places]}.{digits[-places:]}"
    return digits


# -- moments


def _moment(words: str, present: datetime) -> Period | None:
    """``now``, ``@SECONDS`` or a distance from now."""
    if words == "now":
        return Period(to_ns(present), to_ns(present))
    match = _SECONDS.fullmatch(words)
    if match:
        whole, digits = int(match[2]) * _NS, match[3] or ""
        part, step = _fraction(digits, _NS)
        first = -(whole + part) if match[1] else whole + part
        return Period(first, first + step - 1)
    sign = {"-": -1, "+": 1}.get(words[:1], 0)
    if sign:
        return _shifted(words[1:].strip(), sign, present)
    return _shifted(words[:-3].strip(), -1, present) if words.endswith("ago") else None


def _shifted(words: str, sign: int, present: datetime) -> Period | None:
    """A time this far from now. Months and years are those of the calendar, a day is 24 hours."""
    months, ns, at = 0, 0, 0
    while at < len(words):
        match = _SPAN.match(words, at)
        if match is None:
            return None
        unit, count = match[3], int(match[1])
        if unit in _UNIT_MONTHS and match[2] is None:
            months += count * _UNIT_MONTHS[unit]
        elif unit in _UNIT_NS:
            ns += count * _UNIT_NS[unit] + _fraction(match[2] or "", _UNIT_NS[unit])[0]
        else:
            return None
        at = match.end()
    if not words:
        return None
    start = _to_local_ns(_month_later(present.replace(tzinfo=None), sign * months)) if months else to_ns(present)
    moment = start + sign * ns
    from_ns(moment)  # OverflowError if no calendar has it
    return Period(moment, moment)


def _month_later(day: datetime, months: int) -> datetime:
    """The same day a number of months later, or the last day of that month if it has fewer."""
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    if not 1 <= year <= 9999:
        raise OverflowError
    from calendar import monthrange  # noqa: PLC0415 - loads locale, for one kind of time

    return day.replace(year=year, month=month + 1, day=min(day.day, monthrange(year, month + 1)[1]))


def _fraction(digits: str, unit: int) -> tuple[int, int]:
    """What decimals of a unit come to, in ns, and the worth of the last digit; digits past the nanosecond are cut."""
    scale = 10 ** len(digits)
    return int(digits or "0") * unit // scale, max(1, unit // scale)


# -- dates and times of day


class _Day(NamedTuple):
    """The first day of a date, and the first after it, without a zone."""

    first: datetime
    after: datetime


def _written(words: str, present: datetime) -> Period | None:
    """A date, a time of day, or both, and maybe a zone."""
    words, zone = _YEAR_LAST.sub(r"\1 \4 \2\3\5", words), None  # Sun Nov 29 10:00:00 UTC 2026
    match = _ZONE.fullmatch(words)
    # Without a time of day or a space, what looks like an offset is a part of the date: 2026-11.
    if match and match[1] and (match[2] or match[3] in _UTC or re.search(r":|t[0-9]", match[1])):
        words, zone = match[1], _zone(match[3])
    today = (present if zone is None else present.astimezone(zone)).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
    clock = _CLOCK.fullmatch(words) or _BASIC_CLOCK.fullmatch(words)
    day = _date(words if clock is None else (clock[1] or "today").rstrip(","), today)
    if day is None or (clock is not None and day.after - day.first != timedelta(days=1)):
        return None
    return _period(day.first, day.after, 0, zone) if clock is None else _at(day.first, clock, zone)


def _at(day: datetime, clock: re.Match[str], zone: tzinfo | None) -> Period:
    """A time of a day. The fraction is one of the smallest unit that is written."""
    hour, minute, second = (int(clock[group] or 0) for group in (2, 3, 4))
    if hour > 24 or minute > 59 or second > 59 or (hour == 24 and (minute or second or int(clock[5] or 0))):
        raise ValueError("hours go to 23, minutes and seconds to 59")
    unit = 1 if clock[4] else 60 if clock[3] else 3600
    part, step = _fraction(clock[5] or "", unit * _NS)
    start = day + timedelta(hours=hour, minutes=minute, seconds=second + part // _NS)
    return _period(start, start, part % _NS, zone, step)


def _period(first: datetime, after: datetime, ns: int, zone: tzinfo | None, step: int = 0) -> Period:
    """From the first to right before the second, or ``step`` after it. Local times that occur twice are both in it."""
    if zone is not None:
        return Period(to_ns(first.replace(tzinfo=zone)) + ns, to_ns(after.replace(tzinfo=zone)) + ns + step - 1)
    return Period(_to_local_ns(first) + ns, _to_local_ns(after, fold=1 if step else 0) + ns + step - 1)


def _to_local_ns(moment: datetime, fold: int = 0) -> int:
    """The first or the last (``fold=1``) occurrence of a local time. One that clocks skip counts from before the change."""
    candidates = [moment.replace(fold=number).astimezone() for number in (0, 1)]
    occurs = [candidate for candidate in candidates if candidate.replace(tzinfo=None, fold=0) == moment]
    found = sorted(map(to_ns, occurs or candidates))
    return found[-1] if fold or not occurs else found[0]


def _zone(text: str) -> tzinfo:
    if text in _UTC:
        return UTC
    digits = text[1:].replace(":", "").ljust(6, "0")
    hours, minutes, seconds = (int(digits[at : at + 2]) for at in (0, 2, 4))
    if hours > 23 or minutes > 59 or seconds > 59:
        raise ValueError(f"{text} is no offset from UTC")
    offset = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    return timezone(-offset if text[0] == "-" else offset)


def _date(words: str, today: datetime) -> _Day | None:
    if words in _DAYS:
        first = today + timedelta(days=_DAYS[words])
        return _Day(first, first + timedelta(days=1))
    match = _ISO_DATE.fullmatch(words)
    if match is None:
        return _named_date(words, today)
    year = int(match["year"])
    if match["week"]:
        first = datetime.fromisocalendar(year, int(match["week"]), int(match["weekday"] or 1))
        return _Day(first, first + timedelta(days=1 if match["weekday"] else 7))
    if match["ordinal"]:
        first = datetime(year, 1, 1) + timedelta(days=int(match["ordinal"]) - 1)
        if first.year != year:
            raise ValueError(f"{year} has no day {match['ordinal']}")
        return _Day(first, first + timedelta(days=1))
    month, day = match["month"] or match["month8"], match["day"] or match["day8"]
    return _calendar(year, int(month) if month else None, int(day) if day else None)


def _calendar(year: int, month: int | None, day: int | None) -> _Day:
    """A day, a month or a year."""
    first = datetime(year, 1 if month is None else month, 1 if day is None else day)
    if day is not None:
        return _Day(first, first + timedelta(days=1))
    return _Day(first, _month_later(first, 12 if month is None else 1))


def _named_date(words: str, today: datetime) -> _Day | None:
    """A date with the name of a month, maybe with the weekday: ``29 Nov 2026``, ``Sun, Nov 29``, ``November``."""
    month = day = year = weekday = None
    for word in words.replace(",", " ").split():
        number = re.fullmatch(r"([0-9]{1,2})(?:st|nd|rd|th)?|([0-9]{4})", word)
        if number and number[1] and day is None:
            day = int(number[1])
        elif number and number[2] and year is None:
            year = int(number[2])
        elif month is None and _index(word, _MONTHS) is not None:
            month = _index(word, _MONTHS)
        elif weekday is None and _index(word, _WEEKDAYS) is not None:
            weekday = _index(word, _WEEKDAYS)
        else:
            return None
    if month is None or (weekday is not None and day is None):
        return None
    date = _calendar(today.year if year is None else year, month + 1, day)
    if weekday is not None and date.first.weekday() != weekday:
        raise ValueError(f"{date.first:%Y-%m-%d} is a {_WEEKDAYS[date.first.weekday()].capitalize()}")
    return date


def _index(word: str, names: Sequence[str]) -> int | None:
    """Which of these names a word is, in full or cut to three letters or more."""
    word = word.rstrip(".")
    return next((index for index, name in enumerate(names) if len(word) >= 3 and name.startswith(word)), None)


# -- options


def since_option(text: str) -> int:
    """The beginning of a time, for argparse."""
    return _option(text).first


def until_option(text: str) -> int:
    """The end of a time, for argparse."""
    return _option(text).last


def check_order(parser: argparse.ArgumentParser, since: int | None, until: int | None) -> None:
    """A usage error for an ``--until`` that ends before its ``--since`` begins: nothing can be in between."""
    if since is not None and until is not None and until < since:
        parser.error("--until is before --since; exchange the two")


def _option(text: str) -> Period:
    try:
        return parse_period(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# -- formatting


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
