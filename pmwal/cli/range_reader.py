"""Reads a range of records while a writer may be overwriting it, for ``cat``, ``tail`` and ``export``.

Invariants
----------
- Nothing is left out silently: records that the writer overwrote first are reported on standard error, by number.
- Newest first reads the log backwards in pieces, so memory use does not grow with the log.
"""

from __future__ import annotations

from collections.abc import Iterator

from pmwal.cli.inspection import running_writer
from pmwal.cli.terminal import say
from pmwal.cli.wording import numbers_in_words, torn_in_words
from pmwal.errors import Overrun
from pmwal.reading.reader import Reader
from pmwal.records import Record

_PIECE, _PIECE_MAX = 64, 16384  # records read at once, newest first


class RangeReader:
    """Records between two numbers; ``missed`` says whether any could not be read."""

    def __init__(self, reader: Reader, path: str) -> None:
        self.missed = False
        self._reader = reader
        self._path = path

    def oldest_first(self, first: int, last: int) -> Iterator[Record]:
        """From the first to the last number."""
        at = first
        while at <= last:
            try:
                for record in self._reader.read(at, last + 1):
                    at = record.seq + 1
                    yield record
                return
            except Overrun as error:
                if not error.missed:
                    raise  # rolled back: what was printed is no longer in the log
                self.miss(at, min(at + error.missed - 1, last))
                at += error.missed

    def newest_first(self, first: int, last: int) -> Iterator[Record]:
        """From the last to the first number."""
        piece = _PIECE
        while last >= first:
            begin = max(first, last + 1 - piece)
            records = list(self.oldest_first(begin, last))
            yield from reversed(records)
            last, piece = begin - 1, min(2 * piece, _PIECE_MAX)

    def miss(self, first: int, last: int) -> None:
        """Report records that were overwritten or truncated before they were read."""
        self.missed = True
        say(f"{self._path}: {numbers_in_words(first, last)} overwritten or truncated before they were read")


def mention_torn_end(path: str, reader: Reader) -> None:
    """Report what a crash left unfinished at the end."""
    if running_writer(path) is None:  # a running writer's last record is unfinished, not torn
        for phrase in torn_in_words(reader.recovery):
            say(f"{path}: {phrase}")
