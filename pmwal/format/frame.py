"""Frames: records of consecutive numbers one after another, as they are shipped. Pure: bytes in, records out.

Invariants
----------
- A frame's body is, for each record, an ``ENTRY`` and the payload. Nothing comes before, between or after them, so the same records
  are the same bytes, whatever packs them.
- The body has no numbers and no checksum of its own. What carries it says the numbers of the first and the last record.
- What is unpacked is all of a body. A body that ends inside a record gives an error, and none of its records.
"""

from __future__ import annotations

from collections.abc import Iterable

from pmwal.format.layout import LENGTH_MAX, Field, Structure
from pmwal.native import native
from pmwal.records import Record

Body = bytes | bytearray | memoryview

ENTRY = Structure(
    "frame: entry",
    Field("length", "I", "bytes of payload that follow"),
    Field("kind", "H", "the application's"),
    Field("time_ns", "q", "wall clock of the append, ns since 1970; information only"),
)

assert LENGTH_MAX < 1 << 32, "every length of a record is one of an entry"


def pack(records: Iterable[Record]) -> bytes:
    """The body of a frame of these records.

    >>> pack([Record(1, 7, 0, b"payload")])
    b'\\x07\\x00\\x00\\x00\\x07\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00payload'
    """
    return b"".join(part for each in records for part in (ENTRY.struct.pack(len(each.data), each.kind, each.time_ns), each.data))


def unpack(body: Body) -> list[tuple[int, int, bytes]]:
    """The (kind, time_ns, payload) of each record in a body; ``ValueError`` if it ends inside a record.

    >>> unpack(pack([Record(1, 7, 0, b"a"), Record(2, 0, 5, b"")]))
    [(7, 0, b'a'), (0, 5, b'')]
    """
    return unpack_in_python(body) if native is None else native.unpack_frame(body)


def unpack_in_python(body: Body) -> list[tuple[int, int, bytes]]:
    """The reference for what the native engine unpacks."""
    data, records, at = bytes(body), list[tuple[int, int, bytes]](), 0
    while at < len(data):
        start = end = at + ENTRY.size
        if start <= len(data):
            length, kind, time_ns = ENTRY.struct.unpack_from(data, at)
            end += length
        if end > len(data):
            raise ValueError(
                f"a frame's body of {len(data)} bytes ends inside the record at byte {at}: it was cut, or something follows "
                "its last record; fetch the message again"
            )
        records.append((kind, time_ns, data[start:end]))
        at = end
    return records
