"""Walks through the logs for one client each: what is there, the newest of it, and what comes.

Invariants
----------
- A walk uses a set of logs of its own, in one thread. ``stop``, from any thread, ends it within a tenth of a second.
- No walk searches for longer than ``SEARCH_SECONDS`` without finding a match: then it says so, and ends or waits for new records.
- Nothing is stored in a log, and no writer is asked to wake anybody.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import dropwhile

from pmwal.cli.serving.names import Names, Position, Track
from pmwal.cli.serving.queries import Query
from pmwal.cursor import parse_cursor
from pmwal.errors import Overrun
from pmwal.events.definition import DEFINITION_KIND
from pmwal.events.entries import Entries, Entry
from pmwal.logs.log_set import LogSet
from pmwal.reading.reader import Reader
from pmwal.records import SetRecord

SEARCH_SECONDS = 10.0
"""How long a walk may search for the next match."""

_CHECKED = 256  # entries that are searched between two looks at the clock
_PIECE = 256  # records of a log that are looked at first for the newest matches


class Stopped(Exception):
    """The client has gone, or the server ends."""


class Unfinished(Exception):
    """The time for a search is up."""


class StoppableSet(LogSet):
    """A log set whose iterations end when it is told to stop."""

    def __init__(self, places: Sequence[str]) -> None:
        super().__init__(places)
        self.stopped = threading.Event()
        self.deadline: float | None = None

    def _check_open(self) -> None:
        super()._check_open()
        self.check()

    def check(self) -> None:
        """Raise ``Stopped`` or ``Unfinished`` where that is due."""
        if self.stopped.is_set():
            raise Stopped
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise Unfinished

    def allow(self, seconds: float | None) -> None:
        """The time from now on until which a search may last; None for any."""
        self.deadline = None if seconds is None else time.monotonic() + seconds


class Pool:
    """Log sets to use again: opening a log that its writer has not closed means to judge it."""

    def __init__(self, places: Sequence[str], spare: int = 2) -> None:
        self._places = places
        self._spare = spare
        self._free: list[StoppableSet] = []
        self._lock = threading.Lock()

    def take(self) -> StoppableSet:
        """A set that nobody else uses."""
        with self._lock:
            if self._free:
                return self._free.pop()
        return StoppableSet(self._places)

    def give_back(self, logs: StoppableSet) -> None:
        """The walk through this set is over."""
        logs.stopped.clear()
        logs.allow(None)
        with self._lock:
            if len(self._free) < self._spare:
                self._free.append(logs)
                return
        logs.close()

    def close(self) -> None:
        """Close the sets that nobody uses."""
        with self._lock:
            free, self._free = self._free, []
        for logs in free:
            logs.close()


class Walk:
    """One client's walk. Iterate over ``found``; ``missed`` counts the records that were overwritten before they were read."""

    def __init__(self, logs: StoppableSet, names: Names, query: Query, tell_unfinished: Callable[[], None]) -> None:
        self._logs = logs
        self._names = names
        self._query = query
        self._choice = query.choice
        self._entries = Entries(logs)
        self._track: Track | None = None
        self._missed_before = logs.missed
        self._tell_unfinished = tell_unfinished

    @property
    def missed(self) -> int:
        """Records that were overwritten before this walk read them."""
        return self._logs.missed - self._missed_before

    @property
    def position(self) -> Position:
        """How far it has come."""
        return (self._track or self._begun()).position

    def entry(self, record: SetRecord) -> Entry:
        """The entry of a record."""
        return self._entries.entry(record)

    def position_at(self, record: SetRecord) -> Position:
        """The position after the record that was found last."""
        assert self._track is not None
        return self._track.position_at(record)

    def found(self) -> Iterator[tuple[SetRecord, Entry | None]]:
        """The records that the query selects, without the skipped ones, each with its entry if that was needed to tell."""
        query = self._query
        skip, limit = query.skip, query.limit
        if limit == 0:
            return
        count = 0
        try:
            for record, entry in self._selected():
                if skip > 0:
                    skip -= 1
                    continue
                yield record, entry
                count += 1
                if count == limit:
                    return
        except Unfinished:
            self._tell()

    def _tell(self) -> None:
        self._logs.allow(None)
        self._tell_unfinished()

    def _selected(self) -> Iterator[tuple[SetRecord, Entry | None]]:
        logs, query, kinds = self._logs, self._query, self._choice.kinds
        start: Mapping[str, str] = self._start(query)
        first, since = None, query.since
        if query.skip < 0:
            since, first = self._back(-query.skip)
        if first is not None:
            yield from self._matching(_from(*first, logs.read(since=since, until=query.until, kind=kinds)))
            start = logs.cursor
        elif query.skip < 0 and query.position is None:
            start = self._at_end()  # nothing matches
        elif not query.follow:
            yield from self._matching(logs.read(start, since=query.since, until=query.until, kind=kinds))
        if query.follow:
            yield from self._matching(logs.follow(start, since=query.since, kind=kinds), endless=True)

    def _matching(self, records: Iterator[SetRecord], *, endless: bool = False) -> Iterator[tuple[SetRecord, Entry | None]]:
        """The matches among these records, keeping track of them. Waiting for new ones is no search, so that may be endless."""
        self._logs.allow(None if endless else SEARCH_SECONDS)
        self._track = None
        for found in self._filtered(self._tracked(records)):
            yield found
            if not endless:
                self._logs.allow(SEARCH_SECONDS)

    def _tracked(self, records: Iterator[SetRecord]) -> Iterator[SetRecord]:
        for record in records:
            if self._track is None:
                self._track = self._begun()
            self._track.pass_record(record)
            yield record

    def _filtered(self, records: Iterator[SetRecord]) -> Iterator[tuple[SetRecord, Entry | None]]:
        """The matches, each with its entry if that was needed to tell."""
        needed, takes, entry_of = self._choice.needs_entry, self._choice.takes, self._entries.entry
        for number, record in enumerate(records):
            entry = entry_of(record) if needed or record.kind >= DEFINITION_KIND else None
            if entry is None or takes(entry):
                yield record, entry
            elif number % _CHECKED == 0:
                self._logs.check()

    def _begun(self) -> Track:
        """Where the iteration that has just begun is."""
        return Track(self._names, self._logs.cursor, self._logs.logs)

    def _start(self, query: Query) -> dict[str, str]:
        """Where to begin, as the set wants it."""
        if query.position is None:
            return {}
        start = {}
        for path, reader in self._logs.logs.items():
            name = self._names.of(path)
            cursor = query.position.cursors.get(name)
            if cursor is not None and query.including and name == query.position.newest:
                cursor = self._before(reader, cursor)
            if cursor is not None:
                start[reader.uuid] = cursor
        return start

    def _back(self, count: int) -> tuple[int | None, tuple[str, int] | None]:
        """Where the newest ``count`` matches before the place begin: a time from which to read, and the first match.

        The logs' newest records are searched, a few at first and then more, from one time on in all logs: so those found are the
        newest of all.
        """
        logs, query, kinds = self._logs, self._query, self._choice.kinds
        ends, piece = self._ends(), max(count, _PIECE)
        best: tuple[int | None, tuple[str, int] | None] = None, None
        logs.allow(SEARCH_SECONDS)
        while True:
            try:
                oldest = self._time_back(ends, piece)
                whole = oldest is None or (query.since is not None and oldest <= query.since)
                since = query.since if whole else oldest
                records = self._up_to(ends, logs.read(since=since, until=query.until, kind=kinds))
                found = deque((record for record, _ in self._filtered(records)), count)
            except Unfinished:
                self._tell()
                return best
            if found:
                best = since, (found[0].log, found[0].seq)
            if whole or len(found) == count:
                return best
            piece *= 8

    def _at_end(self) -> dict[str, str]:
        """The ends of the logs, as the set wants them."""
        start = {}
        for reader in self._logs.logs.values():
            with contextlib.suppress(IndexError, Overrun):
                start[reader.uuid] = reader[reader.committed_seq].cursor
        return start

    def _ends(self) -> dict[str, int]:
        """The last numbers before the place, by path."""
        position, ends = self._query.position, {}
        for path, reader in self._logs.logs.items():
            cursor = None if position is None else position.cursors.get(self._names.of(path))
            if position is None:
                ends[path] = reader.committed_seq
            elif cursor is not None:
                including = self._query.including and self._names.of(path) == position.newest
                ends[path] = parse_cursor(cursor).seq - including
        return ends

    def _time_back(self, ends: Mapping[str, int], count: int) -> int | None:
        """The latest time that has ``count`` records of some log after it, before these ends; None if no log has as many."""
        times = []
        for path, reader in self._logs.logs.items():
            with contextlib.suppress(IndexError, Overrun):
                if ends.get(path, 0) >= count:
                    times.append(reader[ends[path] - count + 1].time_ns)
        return min(max(times), time.time_ns()) if times else None

    @staticmethod
    def _up_to(ends: Mapping[str, int], records: Iterator[SetRecord]) -> Iterator[SetRecord]:
        left = {path for path, end in ends.items() if end}
        for record in records:
            end = ends.get(record.log, 0)
            if record.seq <= end:
                yield record
            if record.seq >= end:
                left.discard(record.log)
                if not left:
                    return

    @staticmethod
    def _before(reader: Reader, cursor: str) -> str | None:
        """The cursor of the record before the one that this cursor names; None if it is the oldest."""
        try:
            return reader[parse_cursor(cursor).seq - 1].cursor
        except (IndexError, Overrun):
            return None


def _from(path: str, seq: int, records: Iterator[SetRecord]) -> Iterator[SetRecord]:
    """The records from this one on; from the next one of its log, if it was overwritten meanwhile."""
    return dropwhile(lambda record: record.log != path or record.seq < seq, records)
