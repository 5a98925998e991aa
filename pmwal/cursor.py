"""Cursors: opaque text that names one record, to resume reading after it.

A sequence number cannot do that: after a rollback, or in a new log, it names another record.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from pmwal.native.checksum import crc32c

_FORM = re.compile(r"([1-9][0-9]{0,19})-([0-9a-f]{8})")
_REST = struct.Struct("<qH")


class Cursor(NamedTuple):
    """A record's sequence number, and a checksum over the rest of the record."""

    seq: int
    check: int

    def __str__(self) -> str:
        return f"{self.seq}-{self.check:08x}"


def cursor_of(seq: int, kind: int, time_ns: int, data: bytes) -> Cursor:
    """The cursor that names this record."""
    return Cursor(seq, crc32c(data, crc32c(_REST.pack(time_ns, kind))))


def parse_cursor(text: str) -> Cursor:
    """A cursor from its text; ``ValueError`` if it is not one.

    >>> parse_cursor("17-0badcafe").seq
    17
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no cursor; a cursor is the text of record.cursor, like '17-0badcafe'")
    return Cursor(int(match[1]), int(match[2], 16))
