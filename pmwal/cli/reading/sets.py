"""Reads the records of several logs as one, oldest or newest first.

Invariants
----------
- A log that cannot be read leaves the others readable. It is a problem of the set, which is reported once, and in the status.
- Newest first is the exact reverse of oldest first where the stamps of each open grow: by effective time, then by path and number.
  Where a clock was set back, each log keeps its order, and the others are merged with it by its own stamps.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any, cast

from pmwal.cli.exit_status import CORRUPT, FAILED, OK, UNREADABLE
from pmwal.cli.inspection import mention_torn_end
from pmwal.cli.reading.spans import Span
from pmwal.cli.terminal import say
from pmwal.errors import CorruptWal, FormatError, PersistError
from pmwal.logs.archives.reader import ring_of
from pmwal.logs.log_set import LogSet, note_problem
from pmwal.reading.selection import Selection
from pmwal.records import SetRecord

_BATCH, _BATCH_BYTES = 1024, 1 << 20  # records that are handed out at once, and bytes after which a batch ends


class SetReader:
    """The selected records of a set, after these cursors, as the logs are now."""

    def __init__(self, logs: LogSet, chosen: Selection, starts: Mapping[str, str] | None = None) -> None:
        self.spans: list[Span] = []  # of the logs that can be read, by path
        self._logs = logs
        self._chosen = chosen
        self._starts = dict(starts or {})
        self.merged = False  # whether the set itself has handed records out, and its cursor says how far
        self._missed_before = logs.missed
        for path, reader in sorted(logs.logs.items()):
            try:
                span = Span(path, reader, chosen, self._starts.get(reader.uuid))
            except (CorruptWal, PersistError) as error:
                note_problem(logs, path, error)
                continue
            self.spans.append(span)
            if span.start is None:
                self._starts.pop(reader.uuid, None)

    def oldest_first(self) -> Iterator[list[SetRecord]]:
        """From the oldest to the newest, some at a time."""
        if len(self.spans) == 1:
            return self._guarded(self.spans[0], self.spans[0].oldest_first())
        chosen, self.merged = self._chosen, True
        return _in_batches(
            self._logs.read(self._starts, since=chosen.since, until=chosen.until, kind=chosen.kinds, exact=chosen.exact)
        )

    def newest_first(self) -> Iterator[list[SetRecord]]:
        """From the newest to the oldest, some at a time."""
        if len(self.spans) == 1:
            return self._guarded(self.spans[0], self.spans[0].newest_first())
        now = time.time_ns()
        # Of the same time, the logs in the opposite order.
        merged = heapq.merge(*(self._timed(span, now) for span in reversed(self.spans)), key=itemgetter(0), reverse=True)
        return _in_batches(record for _, record in merged)

    def _timed(self, span: Span, now: int) -> Iterator[tuple[int, SetRecord]]:
        try:
            for records, times in span.timed_newest_first(now):
                yield from zip(times, cast("list[SetRecord]", records), strict=True)
        except (CorruptWal, PersistError) as error:
            note_problem(self._logs, span.path, error)

    def _guarded(self, span: Span, batches: Iterator[list[Any]]) -> Iterator[list[SetRecord]]:
        try:
            yield from batches
        except (CorruptWal, PersistError) as error:
            note_problem(self._logs, span.path, error)

    @property
    def ends(self) -> dict[str, str]:
        """The cursor after the last record of each log, by its uuid. Ask before reading."""
        found: dict[str, str] = {}
        for span in self.spans:
            try:
                found |= span.ends
            except (CorruptWal, PersistError) as error:
                note_problem(self._logs, span.path, error)
        return found

    @property
    def missed(self) -> bool:
        """Whether records were gone before they were read."""
        return self._logs.missed > self._missed_before or any(span.missed for span in self.spans)

    def finish(self) -> int:
        """Report what is missing or torn; the exit status."""
        missed = self._logs.missed - self._missed_before
        if missed:
            say(f"{missed} records overwritten or truncated before they were read")
        for span in self.spans:
            ring = ring_of(span.reader)
            if ring is not None and span.path not in self._logs.problems:
                mention_torn_end(span.path, ring)
        return max(FAILED if self.missed else OK, status_of_problems(self._logs))


def status_of_problems(logs: LogSet) -> int:
    """The exit status for the logs of a set that cannot be read: the worst."""
    return max(map(status_of, logs.problems.values()), default=OK)


def status_of(error: Exception) -> int:
    """The exit status for a log that cannot be read."""
    if isinstance(error, FormatError | OSError | ImportError):
        return UNREADABLE
    return CORRUPT if isinstance(error, CorruptWal) else FAILED


def _in_batches(records: Iterator[SetRecord]) -> Iterator[list[SetRecord]]:
    batch: list[SetRecord] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.data)
        if len(batch) >= _BATCH or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
