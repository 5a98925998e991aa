"""Payloads in a byte stream: lines, and length-prefixed items (4 bytes of length, little-endian, then the payload).

Neither has kinds or times.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from pmwal.errors import RecordTooLarge

_LENGTH = struct.Struct("<I")
_PIECE = 1 << 20


def read_lines(stream: BinaryIO, limit: int) -> Iterator[bytes]:
    """Each line without its newline. A line longer than ``limit`` is cut to ``limit + 1`` bytes, too many for the log."""
    while line := stream.readline(limit + 1):
        yield line[:-1] if line.endswith(b"\n") else line


def as_item(data: bytes) -> bytes:
    """The payload after its length."""
    return _LENGTH.pack(len(data)) + data


def read_items(stream: BinaryIO, limit: int) -> Iterator[bytes]:
    """Each length-prefixed item; a length is checked before memory is allocated for it."""
    count = 0
    while prefix := _read_up_to(stream, _LENGTH.size):
        count += 1
        if len(prefix) < _LENGTH.size:
            raise ValueError(f"the input ends inside the length of item {count}")
        (length,) = _LENGTH.unpack(prefix)
        if length > limit:
            raise RecordTooLarge(f"item {count} of the input: {length} bytes cannot fit into this log; use a larger --size")
        item = _read_up_to(stream, length)
        if len(item) < length:
            raise ValueError(f"the input ends inside item {count}: only {len(item)} of its {length} bytes are there")
        yield item


def _read_up_to(stream: BinaryIO, length: int) -> bytes:
    """``length`` bytes, or fewer at the end of the input."""
    pieces = []
    while length:
        piece = stream.read(min(length, _PIECE))
        if not piece:
            break
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)
