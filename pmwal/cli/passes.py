"""Reading the same records of a log, or of a set, more than once.

Invariants
----------
- Every pass ends where the first one did, whatever is stored meanwhile. It may begin later: a writer may have overwritten records.
- Only what the last pass misses is reported: earlier ones look at the records, and hand nothing out.
"""

from __future__ import annotations

from collections.abc import Iterator

from pmwal.cli.exit_status import FAILED, OK
from pmwal.cli.range_reader import RangeReader, mention_torn_end
from pmwal.cli.terminal import say
from pmwal.cli.wording import records_in_words
from pmwal.logs.log_set import LogSet
from pmwal.reading.reader import Reader
from pmwal.records import Record


class LogPasses:
    """The records that a log has now."""

    several = False

    def __init__(self, reader: Reader, path: str) -> None:
        self.name = path
        self._reader = reader
        self._ranges = RangeReader(reader, path)
        self._first, self._last = reader.first_seq, reader.committed_seq

    def look(self) -> Iterator[Record]:
        """The records, for a look."""
        return _Quiet(self._reader, self.name).oldest_first(self._first, self._last)

    def read(self) -> Iterator[Record]:
        """The records, to be handed out."""
        return self._ranges.oldest_first(self._first, self._last)

    def in_words(self, count: int) -> str:
        """How many were read."""
        return records_in_words(self._first, self._last)

    def finish(self) -> int:
        """Report what is missing or torn; the exit status."""
        mention_torn_end(self.name, self._reader)
        return FAILED if self._ranges.missed else OK


class _Quiet(RangeReader):
    def miss(self, first: int, last: int) -> None:
        """The pass that hands records out reports these."""


class SetPasses:
    """The records that the logs of a set have now, merged by time."""

    several = True

    def __init__(self, logs: LogSet) -> None:
        found = logs.logs
        self.name = next(iter(found)) if len(found) == 1 else f"{len(found)} logs"
        self._logs = logs
        self._last = {path: reader.committed_seq for path, reader in found.items()}
        self._overlooked = 0

    def look(self) -> Iterator[Record]:
        """The records, for a look."""
        yield from self.read()
        self._overlooked = self._logs.missed

    def read(self) -> Iterator[Record]:
        """The records, to be handed out."""
        last = self._last
        return (record for record in self._logs.read() if record.seq <= last.get(record.log, 0))

    def in_words(self, count: int) -> str:
        """How many were read."""
        return f"{count} records" if count != 1 else "1 record"

    def finish(self) -> int:
        """Report what is missing; the exit status."""
        missed = self._logs.missed - self._overlooked
        if missed:
            say(f"{missed} records overwritten or truncated before they were read")
        return FAILED if missed or self._logs.problems else OK
