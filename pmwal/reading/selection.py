"""Which records a read selects: by time, and by kind.

The *effective time* of a record is the latest stamp from the beginning of its epoch up to it, and a stamp past the reader's now
counts as now. So within an epoch it never goes back, and the next open of a log whose clock was wrong begins with a right one.

Invariants
----------
- The records between two times are one run of consecutive numbers: from the first record whose effective time is not before
  ``since`` to the last one whose effective time is not after ``until``. None in between is left out.
- The search reads a few records of the log. It relies on stamps that grow within an epoch, over more than ``_LINEAR`` records;
  among fewer a clock that was set back misleads it nowhere.
- With ``exact`` it relies on nothing: every record is read, and selected by its own stamp.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from pmwal.format.layout import KIND_MAX, TIME_MAX, TIME_MIN, Header
from pmwal.format.payload import check_kind
from pmwal.format.ring import Filter
from pmwal.records import Record

Time = int | datetime
"""Nanoseconds since 1970, or a datetime with a time zone."""

Kinds = int | Collection[int]
"""A kind, or several: a range, a set or a list."""

Headers = Callable[[int], Header]
"""The header of the record with this number, or in archives of the next one that there is."""

Records = Callable[[int, int], Iterator[Record]]
"""The records from a number up to, not including, another."""

TRIES = 8
"""Searches that begin again, because the log no longer begins where it did."""

_LINEAR = 1024  # records that are searched one by one
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Selection(NamedTuple):
    """Bounds in nanoseconds, both included, and the kinds that are taken; None takes all."""

    since: int | None = None
    until: int | None = None
    kinds: Collection[int] | None = None
    exact: bool = False

    @property
    def everything(self) -> bool:
        """Whether no record is left out."""
        return self.since is None and self.until is None and self.kinds is None

    @property
    def searches(self) -> bool:
        """Whether the run between the two times is to be searched for."""
        return not self.exact and not (self.since is None and self.until is None)

    @property
    def filter(self) -> Filter:
        """What is selected one by one: by kind, and if ``exact`` by the record's own stamp."""
        since = self.since if self.exact else None
        until = self.until if self.exact else None
        kinds = None if self.kinds is None else _bits(self.kinds)
        return Filter(kinds, TIME_MIN if since is None else since, TIME_MAX if until is None else until)

    def filtered(self, records: Iterator[Record], *, each: bool = False) -> Iterator[Record]:
        """Those that are selected one by one: by kind, and if ``exact`` or ``each`` by their own stamp."""
        since, until, kinds = (self.since, self.until, self.kinds) if self.exact or each else (None, None, self.kinds)
        if kinds is not None:
            records = (record for record in records if record.kind in kinds)
        if since is not None:
            records = (record for record in records if record.time_ns >= since)
        if until is not None:
            records = (record for record in records if record.time_ns <= until)
        return records

    def run(self, first: int, end: int, header: Headers, records: Records, now: int) -> tuple[int, int]:
        """Where the records between the two times begin, and the number after the last, within these bounds."""
        search = _Search(header, records, now)
        epochs = list(search.epochs(first, end))
        begin = first
        if self.since is not None:
            found = (at for start, stop in epochs for at in (search.first_at(start, stop, self.since),) if at < stop)
            begin = next(found, end)
        if self.until is not None:
            ends = (at for start, stop in reversed(epochs) for at in (search.first_at(start, stop, self.until + 1),) if at > start)
            end = next(ends, first)
        return begin, max(begin, end)


class _Search(NamedTuple):
    header: Headers
    records: Records
    now: int

    def epochs(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Where each epoch begins and ends."""
        while first < end:
            stop = epoch_end(self.header, first, end)
            yield min(self.header(first).seq, stop), stop  # archives have gaps
            first = stop

    def first_at(self, start: int, stop: int, time: int) -> int:
        """The first record of an epoch whose effective time is at or after ``time``; ``stop`` if there is none."""
        if time > self.now:
            return stop
        while stop - start > _LINEAR:
            middle = (start + stop) // 2
            if self.header(middle).time_ns >= time:
                stop = middle
            else:
                start = middle + 1
        return next((record.seq for record in self.records(start, stop) if record.time_ns >= time), stop)


def epoch_end(header: Headers, first: int, end: int) -> int:
    """The first number after ``first`` with another epoch, at most ``end``: epochs only grow."""
    epoch = header(first).epoch
    if header(end - 1).epoch == epoch:
        return end
    low, stop = first, end - 1  # the last known to be of this epoch, and the first known not to be
    while stop - low > 1:
        middle = (low + stop) // 2
        if header(middle).epoch == epoch:
            low = middle
        else:
            stop = middle
    return stop


def _bits(kinds: Collection[int]) -> bytes:
    """A bit for each kind that a record can have."""
    bits = bytearray((KIND_MAX + 1) // 8)
    for kind in kinds:
        if 0 <= kind <= KIND_MAX:
            bits[kind >> 3] |= 1 << (kind & 7)
    return bytes(bits)


def selection(since: Time | None, until: Time | None, kind: Kinds | None, exact: bool) -> Selection:
    """A selection from arguments of ``read``; ``ValueError`` or ``TypeError`` for others."""
    chosen = Selection(
        None if since is None else as_time("since", since),
        None if until is None else as_time("until", until, end=True),
        None if kind is None else as_kinds(kind),
        bool(exact),
    )
    if chosen.since is not None and chosen.until is not None and chosen.until < chosen.since:
        raise ValueError("until is before since; exchange the two")
    return chosen


def as_time(name: str, value: Time, *, end: bool = False) -> int:
    """Nanoseconds since 1970. ``end``: of a datetime, which has microseconds, the last one.

    >>> as_time("since", datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
    1000000000
    """
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ValueError(f"{name}={value!r} has no time zone, so it may mean several times; use value.astimezone()")
        return (value - _EPOCH) // _MICROSECOND * 1000 + (999 if end else 0)
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} is a datetime with a time zone, or an int: nanoseconds since 1970, not {type(value).__name__}")
    return max(min(number, TIME_MAX), TIME_MIN)


def as_kinds(kind: Any) -> Collection[int]:
    """The kinds that an argument names, as something that is quick to ask."""
    if isinstance(kind, range):
        return kind
    if isinstance(kind, str | bytes):
        raise TypeError(f"kind is a number, or a range, set or list of numbers, not {type(kind).__name__}")
    if isinstance(kind, Collection):
        return frozenset(check_kind(each) for each in kind)
    return frozenset((check_kind(kind),))
