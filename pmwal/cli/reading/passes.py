"""Reading the same records of a log, or of a set, more than once.

Invariants
----------
- Every pass ends where the first one did, whatever is stored meanwhile. It may begin later: a writer may have overwritten records.
- Only what the last pass misses is reported: earlier ones look at the records, and hand nothing out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain

from pmwal.cli.exit_status import FAILED, OK
from pmwal.cli.inspection import mention_torn_end
from pmwal.cli.reading.sets import status_of_problems
from pmwal.cli.reading.spans import Span
from pmwal.cli.terminal import say
from pmwal.cli.wording import records_in_words
from pmwal.logs.log_set import LogSet
from pmwal.reading.reader import Reader
from pmwal.reading.selection import Selection
from pmwal.records import Record


class LogPasses:
    """The selected records that a log has now."""

    several = False

    def __init__(self, reader: Reader, path: str, chosen: Selection) -> None:
        self.name = path
        self._span = Span(path, reader, chosen)

    def look(self) -> Iterator[Record]:
        """The records, for a look."""
        return chain.from_iterable(self._span.oldest_first(report=False))

    def read(self) -> Iterator[Record]:
        """The records, to be handed out."""
        return chain.from_iterable(self._span.oldest_first())

    def in_words(self, count: int) -> str:
        """How many were read, and their numbers if these are all that there are."""
        first, end = self._span.first, self._span.end
        return records_in_words(first, end - 1) if count == end - first else _count_in_words(count)

    def finish(self) -> int:
        """Report what is missing or torn; the exit status."""
        mention_torn_end(self.name, self._span.reader)
        return FAILED if self._span.missed else OK


class SetPasses:
    """The selected records that the logs of a set have now, merged by time."""

    several = True

    def __init__(self, logs: LogSet, chosen: Selection) -> None:
        found = logs.logs
        self.name = _name_of(next(iter(found))) if len(found) == 1 else f"{len(found)} logs"
        self._logs = logs
        self._chosen = chosen
        self._last = {path: reader.committed_seq for path, reader in found.items()}
        self._overlooked = 0

    def look(self) -> Iterator[Record]:
        """The records, for a look."""
        yield from self.read()
        self._overlooked = self._logs.missed

    def read(self) -> Iterator[Record]:
        """The records, to be handed out."""
        chosen, last = self._chosen, self._last
        records = self._logs.read(since=chosen.since, until=chosen.until, kind=chosen.kinds)
        return (record for record in records if record.seq <= last.get(record.log, 0))

    def in_words(self, count: int) -> str:
        """How many were read."""
        return _count_in_words(count)

    def finish(self) -> int:
        """Report what is missing; the exit status."""
        missed = self._logs.missed - self._overlooked
        if missed:
            say(f"{missed} records overwritten or truncated before they were read")
        return max(FAILED if missed else OK, status_of_problems(self._logs))


def _name_of(path: str) -> str:
    """A log by its path; one of which there are only archives has none."""
    directory, name = os.path.split(path)
    return path if os.path.lexists(path) else f"archives of {name} in {directory or os.curdir}"


def _count_in_words(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"  # with digits as ``records_in_words`` has them
