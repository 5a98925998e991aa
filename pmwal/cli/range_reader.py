"""The records of a log that a writer may be overwriting meanwhile: for ``cat``, ``tail`` and ``export``.

Invariants
----------
- Nothing is left out in silence: what the writer overwrote first is said on standard error, with the numbers.
- Newest first reads the log backwards in pieces, so that the memory it takes does not grow with the log.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from pmwal.cli.common import Parser, numbers_in_words, running_writer, say, torn_in_words
from pmwal.errors import Overrun
from pmwal.reading.reader import Reader
from pmwal.records import Record

Matches: TypeAlias = Callable[[Record], bool]

_PIECE, _PIECE_MAX = 64, 16384  # records that are read at once on the way back


class RangeReader:
    """Records between two numbers; ``missed`` says whether there were any that could not be read."""

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
                    raise  # rolled back: what was printed is not in the log any more
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
        """Say that these were overwritten or truncated before they could be read."""
        self.missed = True
        say(f"{self._path}: {numbers_in_words(first, last)} gone before they could be read: the writer was faster")


def add_grep(parser: Parser) -> None:
    """The option ``--grep``."""
    parser.add_argument("-g", "--grep", type=_pattern, metavar="REGEX", help="payloads and texts of events in which this is found")


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def matches_pattern(pattern: re.Pattern[str] | None, searched: Callable[[Record], str]) -> Matches:
    """Whether the pattern, when there is one, is found in what is searched of a record."""
    if pattern is None:
        return lambda record: True
    search = pattern.search
    return lambda record: search(searched(record)) is not None


def mention_torn_end(path: str, reader: Reader) -> None:
    """Say what a crash left unfinished at the end."""
    if running_writer(path) is None:  # beside a writer an unfinished end is no tear
        for phrase in torn_in_words(reader.recovery):
            say(f"{path}: {phrase}")
