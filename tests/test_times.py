"""Times as people write them (``--since``, ``--until``): what they mean, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import Cli, PastSeam, make_log
from pmwal.cli.times import from_ns, local_text, parse_period, parse_time, to_ns, utc_text
from support import open_small

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
END_OF_MARCH = datetime(2026, 3, 31, 12, 0, tzinfo=UTC)
DAY = 86400 * 10**9

Zone = Callable[[str], None]


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zone]:
    """Sets the local time zone."""

    def choose(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    choose("UTC")
    yield choose
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T11:50:00Z", "11:50"),
        ("2026-11-22T13:50:00+02:00", "11:50"),
        ("10 minutes ago", "11:50"),
        ("-10min", "11:50"),
        ("-600s", "11:50"),
        ("600000 ms ago", "11:50"),
        ("600000000us ago", "11:50"),
        ("1h30m ago", "10:30"),
        ("2 hours 30 min ago", "09:30"),
        ("-0.5h", "11:30"),
        ("-0,5h", "11:30"),
        ("+2h", "14:00"),
        ("now", "12:00"),
        ("@1795348800", "12:00"),
    ],
)
def test_moment_is_read_as_people_write_it(text: str, expected: str) -> None:
    """Absolute and relative times are parsed, against a fixed clock."""
    moment = datetime.fromisoformat(f"2026-11-22T{expected}:00+00:00")
    assert parse_time(text, NOON) == round(moment.timestamp()) * 10**9


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2026", "2026-01-01", "2026-12-31"),
        ("2026-11", "2026-11-01", "2026-11-30"),
        ("2024-02", "2024-02-01", "2024-02-29"),
        ("2026-11-29", "2026-11-29", "2026-11-29"),
        ("20261129", "2026-11-29", "2026-11-29"),
        ("2026-W48", "2026-11-23", "2026-11-29"),
        ("2026W48", "2026-11-23", "2026-11-29"),
        ("2026-W48-7", "2026-11-29", "2026-11-29"),
        ("2026W487", "2026-11-29", "2026-11-29"),
        ("2026-W01", "2025-12-29", "2026-01-04"),
        ("2026-333", "2026-11-29", "2026-11-29"),
        ("29 Nov 2026", "2026-11-29", "2026-11-29"),
        ("Nov 29, 2026", "2026-11-29", "2026-11-29"),
        ("29 november 2026", "2026-11-29", "2026-11-29"),
        ("Sunday, 29th Nov. 2026", "2026-11-29", "2026-11-29"),
        ("Nov 29", "2026-11-29", "2026-11-29"),
        ("November", "2026-11-01", "2026-11-30"),
        ("sept", "2026-09-01", "2026-09-30"),
        ("Feb 2024", "2024-02-01", "2024-02-29"),
        ("yesterday", "2026-11-21", "2026-11-21"),
        ("today", "2026-11-22", "2026-11-22"),
        ("Tomorrow", "2026-11-23", "2026-11-23"),
        (" today  UTC ", "2026-11-22", "2026-11-22"),
    ],
)
def test_date_is_all_of_its_days(zone: Zone, text: str, first: str, last: str) -> None:
    """From the first nanosecond to the last."""
    begin, end = (to_ns(datetime.fromisoformat(f"{day}T00:00+00:00")) for day in (first, last))
    assert parse_period(text, NOON) == (begin, end + DAY - 1)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("10:00", "2026-11-22T10:00:00", "2026-11-22T10:00:59.999999999"),
        ("T10", "2026-11-22T10:00:00", "2026-11-22T10:59:59.999999999"),
        ("t10:30", "2026-11-22T10:30:00", "2026-11-22T10:30:59.999999999"),
        ("10:00 UTC", "2026-11-22T10:00:00", "2026-11-22T10:00:59.999999999"),
        ("10:00:05+01:00", "2026-11-22T09:00:05", "2026-11-22T09:00:05.999999999"),
        ("24:00", "2026-11-23T00:00:00", "2026-11-23T00:00:59.999999999"),
        ("2026-11-29T10:00", "2026-11-29T10:00:00", "2026-11-29T10:00:59.999999999"),
        ("2026-11-29 10:00", "2026-11-29T10:00:00", "2026-11-29T10:00:59.999999999"),
        ("20261129T100000Z", "2026-11-29T10:00:00", "2026-11-29T10:00:00.999999999"),
        ("20261129T1000-0130", "2026-11-29T11:30:00", "2026-11-29T11:30:59.999999999"),
        ("2026-W48-7T10:00Z", "2026-11-29T10:00:00", "2026-11-29T10:00:59.999999999"),
        ("2026-11-29T10,5", "2026-11-29T10:30:00", "2026-11-29T10:35:59.999999999"),
        ("2026-11-29T10:00:00,25", "2026-11-29T10:00:00.25", "2026-11-29T10:00:00.259999999"),
        ("2026-11-29T10:00:00.123456789Z", "2026-11-29T10:00:00.123456789", "2026-11-29T10:00:00.123456789"),
        ("2026-11-29T10:00:00.1234567891234Z", "2026-11-29T10:00:00.123456789", "2026-11-29T10:00:00.123456789"),
        ("2026-11-29 10:00:00,123", "2026-11-29T10:00:00.123", "2026-11-29T10:00:00.123999999"),
        ("Nov 29 10:00", "2026-11-29T10:00:00", "2026-11-29T10:00:59.999999999"),
        ("29 Nov 2026 10:00:00 +0100", "2026-11-29T09:00:00", "2026-11-29T09:00:00.999999999"),
        ("Sun Nov 29 10:00:00 2026", "2026-11-29T10:00:00", "2026-11-29T10:00:00.999999999"),
        ("Sun Nov 29 10:00:00 UTC 2026", "2026-11-29T10:00:00", "2026-11-29T10:00:00.999999999"),
        ("Sun Nov 29 10:00:00 2026 +0100", "2026-11-29T09:00:00", "2026-11-29T09:00:00.999999999"),
        ("Sun, 29 Nov 2026 10:00:00 GMT", "2026-11-29T10:00:00", "2026-11-29T10:00:00.999999999"),
        ("yesterday 18:30", "2026-11-21T18:30:00", "2026-11-21T18:30:59.999999999"),
        ("tomorrow 10:00 UTC", "2026-11-23T10:00:00", "2026-11-23T10:00:59.999999999"),
    ],
)
def test_time_of_day_is_as_long_as_its_last_digit(zone: Zone, text: str, first: str, last: str) -> None:
    """Half past ten is a minute, ten point five hours is six; a fraction may have a comma."""
    period = parse_period(text, NOON)
    assert [utc_text(ns).rstrip("Z") for ns in period] == [
        (text + "." * ("." not in text)).ljust(29, "0") for text in (first, last)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 month ago", "2026-02-28T12:00"),
        ("-1 month", "2026-02-28T12:00"),
        ("+1mo", "2026-04-30T12:00"),
        ("25 months ago", "2024-02-29T12:00"),
        ("2 years ago", "2024-03-31T12:00"),
        ("1 month 1 day ago", "2026-02-27T12:00"),
        ("2 weeks ago", "2026-03-17T12:00"),
        ("1 year 2 weeks 3 days ago", "2025-03-14T12:00"),
    ],
)
def test_months_are_those_of_the_calendar(zone: Zone, text: str, expected: str) -> None:
    """The last day of a shorter month takes the place of the 31st."""
    assert parse_time(text, END_OF_MARCH) == to_ns(datetime.fromisoformat(f"{expected}+00:00"))


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("@0", 0),
        ("@1.5", 1_500_000_000),
        ("@1700000000.123456789", 1_700_000_000_123_456_789),
        ("@-5", -5 * 10**9),
        ("@-0.5", -500_000_000),
        ("@9007199254740993", 9007199254740993 * 10**9),
    ],
)
def test_seconds_since_1970_are_exact(text: str, ns: int) -> None:
    """No number passes through floating point."""
    assert parse_time(text) == ns


REFUSED = [
    *("", " ", "soon", "10 parsecs ago", "ago", "-", "+", "0 ago", "1h", "1.5 months ago", "99999999999999999999d ago"),
    *("-1h ago", "@", "@x", "@nan", "@inf", "@1e3", "@1.", "@.5", "@ 5", "\uff15 minutes ago", "2026-11-2\uff12"),
    *("\u0661\u0662:00", "2026-13-01", "2026-02-30", "20261301", "2026-00", "2026-W54", "2026-W00", "2026-366", "2026-000"),
    *("2025-W53", "0001-01-01", "2026-1-2", "2026-1129", "2026/11/29", "9999-12-31", "25:00", "10:60", "10:00:60", "24:01"),
    *("10", "10:0", "10:00:00+25:00", "2026-11-29T", "T", "T1", "10:00 CET", "today tomorrow", "now 10:00"),
    *("2026-11-29T10:00:00.Z", "2026-11-29-05:00", "31 Nov", "Nov 29 Nov", "Sat, 29 Nov 2026", "Monday", "nov-05", "oct12"),
    *("29 29 Nov", "Nov 2026 10:00", "2026 10:00", "2026-11-00", "20261100", "20260011", "0 Nov", "2026-W48-0", "2026-W48-8"),
]  # fmt: skip
"""Text that is no time, or no single one."""


@pytest.mark.parametrize("text", REFUSED)
def test_time_that_cannot_be_read_is_refused(zone: Zone, text: str) -> None:
    """Text that is not a time raises ``ValueError`` and never yields another time."""
    with pytest.raises(ValueError, match=r"cannot parse the time|bare number"):
        parse_period(text, NOON)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("12", "@12"),
        ("123456", "@123456"),
        ("1700000000", "@1700000000"),
        ("1700000000.5", "@1700000000.5"),
        ("1700000000123", "@1700000000.123"),
        ("1700000000123456", "@1700000000.123456"),
        ("1700000000123456789", "@1700000000.123456789"),
        ("-5", "@-5"),
    ],
)
def test_bare_number_is_refused_and_seconds_are_named(text: str, named: str) -> None:
    """Eight digits are a date and four a year; any other number could be hours, seconds or nanoseconds."""
    with pytest.raises(ValueError, match="is a bare number; write " + named.replace(".", r"\.") + " for seconds since 1970"):
        parse_period(text)


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("29.11.2026", "2026-11-29"),
        ("29/11/2026", "2026-11-29"),
        ("11/29/2026", "2026-11-29"),
        ("29-11-2026", "2026-11-29"),
        ("1.2.2026", "2026-01-02 or 2026-02-01"),
        ("02/02/2026", "2026-02-02"),
        ("29.11.2026 10:00", "2026-11-29"),
        ("31/31/2026", "a date like 2026-11-29"),
        ("0.0.0000", "a date like 2026-11-29"),
    ],
)
def test_date_that_begins_with_the_day_or_the_month_is_refused(text: str, dates: str) -> None:
    """It is no number, and what it may mean is named."""
    with pytest.raises(ValueError, match=f"'{text}' does not say which number is the month; write {dates}$"):
        parse_time(text)


def test_today_and_yesterday_are_local_days(zone: Zone) -> None:
    """Days and times without a zone are local, even across a change of the clocks."""
    zone("Europe/Berlin")
    changed = datetime(2026, 3, 29, 12, tzinfo=UTC)  # summer time began that night
    assert parse_time("today", changed) == parse_time("2026-03-28T23:00Z")
    assert parse_time("yesterday", changed) == parse_time("2026-03-27T23:00Z")
    assert parse_time("13:00", changed) == parse_time("2026-03-29T11:00Z")
    assert parse_period("2026-03-29") == parse_period("today", changed)
    first, last = parse_period("2026-03-29")
    assert last - first + 1 == 23 * 3600 * 10**9


@pytest.mark.parametrize(
    ("place", "text", "first", "last"),
    [
        ("Europe/Berlin", "2026-10-25 02:30", "2026-10-25T02:30:00.000000+02:00", "2026-10-25T02:30:59.999999+01:00"),
        ("Europe/Berlin", "2026-10-25T02:30:00,5", "2026-10-25T02:30:00.500000+02:00", "2026-10-25T02:30:00.599999+01:00"),
        ("Europe/Berlin", "2026-10-25", "2026-10-25T00:00:00.000000+02:00", "2026-10-25T23:59:59.999999+01:00"),
        ("Europe/Berlin", "2026-10-25 02:30 +01:00", "2026-10-25T02:30:00.000000+01:00", "2026-10-25T02:30:59.999999+01:00"),
        ("Europe/Berlin", "2026-03-29 02:30", "2026-03-29T03:30:00.000000+02:00", "2026-03-29T03:30:59.999999+02:00"),
        ("America/Havana", "2026-03-08", "2026-03-08T01:00:00.000000-04:00", "2026-03-08T23:59:59.999999-04:00"),
        ("America/Havana", "2026-03-07", "2026-03-07T00:00:00.000000-05:00", "2026-03-07T23:59:59.999999-05:00"),
        ("America/Havana", "2026-11-01", "2026-11-01T00:00:00.000000-04:00", "2026-11-01T23:59:59.999999-05:00"),
        ("America/Havana", "2026-10-31", "2026-10-31T00:00:00.000000-04:00", "2026-10-31T23:59:59.999999-04:00"),
        ("Asia/Kathmandu", "2026-11-29", "2026-11-29T00:00:00.000000+05:45", "2026-11-29T23:59:59.999999+05:45"),
    ],
)
def test_local_time_that_clocks_repeat_or_skip(zone: Zone, place: str, text: str, first: str, last: str) -> None:
    """A repeated time is from its first to its second occurrence; a skipped one counts from before the change."""
    zone(place)
    assert [local_text(ns) for ns in parse_period(text)] == [first, last]


@pytest.mark.parametrize("place", ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Africa/Monrovia"])
@given(ns=st.integers(-(2**63), 2**63 - 1))
def test_printed_time_names_its_record(place: str, ns: int) -> None:
    """Whatever zone prints it, in text or JSON: the record lies in the period, and with all digits it is the period."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = place
    time.tzset()
    try:
        first, last = parse_period(local_text(ns))
        assert (first <= ns <= last, last - first) == (True, 999)
        assert parse_period(utc_text(ns)) == (ns, ns)
        assert from_ns(ns) == from_ns(first)
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


def test_time_that_a_command_printed_includes_its_record(cli: Cli, shm_dir: Path) -> None:
    """Copied from text, JSON, or a hex dump, as either bound."""
    path, seam = shm_dir / "a.wal", PastSeam()
    wal = open_small(path, seam=seam)
    for number in range(5):
        seam.time_ns += 1_234_567 + number  # in no whole microseconds
        wal.append(b"%d" % number)
    wal.close()
    third = json.loads(cli("cat", path, "-o", "json").lines[2])
    for text in (
        cli("cat", path).lines[2].split()[1],
        third["time"],
        cli("cat", path, "-o", "hex").lines[4].split("  ")[1],
        f"@{third['time_ns'] // 10**9}.{third['time_ns'] % 10**9:09d}",
    ):
        assert [line.split()[-1] for line in cli("cat", path, "--since", text).lines] == ["2", "3", "4"]
        assert [line.split()[-1] for line in cli("cat", path, "--until", text).lines] == ["0", "1", "2"]
        assert [line.split()[-1] for line in cli("cat", path, "-S", text, "-U", text).lines] == ["2"]


def test_bound_before_1970_is_no_option(cli: Cli, shm_dir: Path) -> None:
    """A negative distance follows its option as a word of its own."""
    path = make_log(shm_dir / "a.wal")
    for arguments in (("--since", "-10min"), ("-S", "-10min"), ("--since=-10min",), ("--until", "@-5"), ("-U", "1 month ago")):
        ran = cli("cat", path, *arguments)
        assert (ran.status, ran.err, len(ran.lines)) == (0, "", 10 if "-U" in arguments else 0)


def test_refused_time_is_status_64_and_named(shm_dir: Path) -> None:
    """In a process of its own, as a user meets it."""
    command = [sys.executable, "-m", "pmwal", "cat", shm_dir / "a.wal", "--since", "12"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (64, "")
    assert "'12' is a bare number; write @12 for seconds since 1970, or a date like 2026-11-29" in ran.stderr
