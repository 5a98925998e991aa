"""Reads the records of several logs as one, oldest or newest first, for ``cat`` and ``tail``.

Invariants
----------
- A log that cannot be read leaves the others readable. It is reported on standard error, and in the status.
- Newest first reads each log backwards in pieces, so memory use does not grow with the logs. The records of one log are in its
  reverse order, and the logs are merged by effective time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import cast

from pmwal.cli.exit_status import CORRUPT, FAILED, OK, UNREADABLE
from pmwal.cli.hints import for_command_line
from pmwal.cli.range_reader import RangeReader, mention_torn_end
from pmwal.cli.terminal import say
from pmwal.errors import CorruptWal, FormatError, Overrun, PersistError
from pmwal.logs.log_set import LogSet
from pmwal.reading.internals import bounds_of, selected
from pmwal.reading.reader import Reader
from pmwal.reading.selection import Selection
from pmwal.records import SetRecord


class SetReader:
    """The selected records of a set. ``ends``, after ``newest_first`` was called: cursors after what each log had by then."""

    def __init__(self, logs: LogSet, chosen: Selection) -> None:
        self.ends: dict[str, str] = {}
        self._logs = logs
        self._chosen = chosen
        self._ranges: list[RangeReader] = []
        self._problems: dict[str, Exception] = {}

    def oldest_first(self) -> Iterator[SetRecord]:
        """From the oldest to the newest, as the logs are now."""
        chosen = self._chosen
        return self._logs.read(since=chosen.since, until=chosen.until, kind=chosen.kinds, exact=chosen.exact)

    def newest_first(self, starts: Mapping[str, str] | None = None) -> Iterator[SetRecord]:
        """From the newest to the oldest, or to those that cursors name, as the logs are now."""
        read = []
        for path, reader in self._logs.logs.items():
            try:
                _, end = bounds_of(reader)
                first, stop = selected(reader, self._chosen, (starts or {}).get(reader.uuid))
                self._note_end(reader, end - 1)
                ranges = RangeReader(reader, path, self._chosen)
                self._ranges.append(ranges)
                read.append(self._member(path, ranges, first, min(stop, end) - 1))
            except (CorruptWal, PersistError) as error:
                self._fail(path, error)
        # Of the same time, the logs in the opposite order, as the reverse of oldest first has them.
        merged = heapq.merge(*reversed(read), key=lambda pair: pair[0], reverse=True)
        return (record for _, record in merged)

    def _note_end(self, reader: Reader, last: int) -> None:
        try:
            self.ends[reader.uuid] = reader[last].cursor
        except (IndexError, Overrun):  # nothing is there, or it was overwritten meanwhile: all that follows is new
            self.ends.pop(reader.uuid, None)

    def _member(self, path: str, ranges: RangeReader, first: int, last: int) -> Iterator[tuple[int, SetRecord]]:
        try:
            for when, record in ranges.timed_newest_first(first, last):
                yield when, cast("SetRecord", record)
        except (CorruptWal, PersistError) as error:
            self._fail(path, error)

    def _fail(self, path: str, error: Exception) -> None:
        self._problems[path] = error
        say(f"warning: {for_command_line(error, str(error))}")

    def finish(self) -> int:
        """Report what is missing or torn; the exit status."""
        missed = any(ranges.missed for ranges in self._ranges)
        if self._logs.missed:
            say(f"{self._logs.missed} records overwritten or truncated before they were read")
            missed = True
        for path, reader in self._logs.logs.items():
            if path not in self.problems:
                mention_torn_end(path, reader)
        return max([FAILED if missed else OK, *map(status_of, self.problems.values())])

    @property
    def problems(self) -> dict[str, Exception]:
        """Why logs could not be read, or not to their end, by path."""
        return {**self._logs.problems, **self._problems}


def status_of(error: Exception) -> int:
    """The exit status for a log that cannot be read."""
    if isinstance(error, FormatError | OSError):
        return UNREADABLE
    return CORRUPT if isinstance(error, CorruptWal) else FAILED
