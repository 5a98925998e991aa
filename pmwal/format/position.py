"""The position of a named consumer, in a file beside the log (``LOG.consumers/NAME``). Pure: bytes in, facts out.

Invariants
----------
- A file has two pages, each with one slot at its start. The newest whole slot counts, so a torn one leaves the other.
- A slot lies within one sector, which a disk writes as a whole or not at all.
- Every checksum is seeded with the log's uuid and the number of the page. The generation rules out zeros and ones.
- Nothing but the slots is believed: the line of the holder says who has the file open, for messages.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from pmwal.cursor import Cursor
from pmwal.format.layout import CRC_SIZE, GENERATION_MAX, PAGE, POSITION_MAX, SECTOR, SEQ_MAX, Field, Structure, seed_crc
from pmwal.native.checksum import crc32c

POSITION = Structure(
    "consumer: position",
    Field("crc", "I", "CRC32C over (uuid, page) and all bytes after this field"),
    Field("epoch", "I", "an epoch in which the log contained the record"),
    Field("generation", "Q", "+1 for each slot; the whole slot with the higher one counts"),
    Field("uuid", "16s", "of the log"),
    Field("seq", "Q", "number of the last record that was acknowledged, 0 for none"),
    Field("check", "I", "of that record, as in its cursor; 0 if it was no longer in the log"),
    Field("reserved", "I", "zero"),
    Field("epoch_first_seq", "Q", "the first sequence number of that epoch"),
    Field("start", "Q", "where the record starts; a hint"),
    Field("end", "Q", "where it ends; a hint"),
    Field("released", "Q", "the records up to this number may be freed; at most seq"),
    Field("time_ns", "q", "wall clock of the acknowledgement, ns since 1970; information only"),
    Field("application", "64s", "for the application"),
)

HOLDER = Structure(
    "consumer: holder",
    Field("pid", "Q", "the process that has the file locked, as its own pid namespace numbers it; 0 when nobody has"),
)

APPLICATION_MAX = POSITION.field_size("application")
HOLDER_OFFSET = SECTOR
SIZE = 2 * PAGE

assert POSITION.size <= SECTOR
assert HOLDER_OFFSET + HOLDER.size <= PAGE
assert POSITION.offsets["crc"] == 0

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class Position(NamedTuple):
    """A decoded position; see ``POSITION`` for the fields."""

    epoch: int
    generation: int
    uuid: bytes
    seq: int
    check: int
    epoch_first_seq: int
    start: int
    end: int
    released: int
    time_ns: int
    application: bytes

    @property
    def cursor(self) -> str:
        """The cursor of the record; empty before the first, and if the record was gone when it was acknowledged."""
        return str(Cursor(self.seq, self.check)) if self.end > self.start else ""


_RESERVED = Position._fields.index("epoch_first_seq")  # where the reserved field is left out
assert [*Position._fields] == [name for name in POSITION.offsets if name not in ("crc", "reserved")]


class Stored(NamedTuple):
    """The position that counts, and the page that has it."""

    position: Position
    page: int


def check_name(name: object) -> str:
    """The name of a consumer; ``ValueError`` if it cannot be one.

    >>> check_name("nats")
    'nats'
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a consumer is text, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the name of a consumer: use 1 to 64 letters, digits, '_', '-' and '.', the first no '-' or '.'"
        )
    return name


def is_name(name: str) -> bool:
    """Whether a file of this name may be a position."""
    return _NAME.fullmatch(name) is not None


def encode_position(position: Position, page: int) -> bytes:
    """The bytes of a slot in this page, 0 or 1."""
    body = POSITION.struct.pack(0, *position[:_RESERVED], 0, *position[_RESERVED:])[CRC_SIZE:]
    return struct.pack("<I", crc32c(body, seed_crc(position.uuid, page))) + body


def decode_position(raw: bytes, page: int) -> Position | None:
    """The position in these bytes, or None unless they are a whole slot of this page."""
    if len(raw) != POSITION.size:
        return None
    crc, *fields = POSITION.struct.unpack(raw)
    reserved = fields.pop(_RESERVED)
    position = Position(*fields)
    possible = (
        0 < position.generation <= GENERATION_MAX
        and position.released <= position.seq <= SEQ_MAX
        and position.start <= position.end <= POSITION_MAX
        and not reserved
    )
    return position if possible and crc == crc32c(raw[CRC_SIZE:], seed_crc(position.uuid, page)) else None


def newest_position(raw: bytes) -> Stored | None:
    """The position that counts in the bytes of a file; None if neither slot is whole."""
    found = [Stored(position, page) for page in range(2) if (position := decode_position(_slot(raw, page), page)) is not None]
    return max(found, key=lambda stored: stored.position.generation, default=None)


def encode_file(position: Position) -> bytes:
    """The bytes of a new file with this position, which nobody holds."""
    return encode_position(position, 0).ljust(SIZE, b"\0")


def decode_holder(raw: bytes) -> int:
    """The process id in the bytes of a file; 0 if it names none."""
    if len(raw) < HOLDER_OFFSET + HOLDER.size:
        return 0
    return int(HOLDER.struct.unpack_from(raw, HOLDER_OFFSET)[0])


def encode_holder(pid: int) -> bytes:
    """The bytes of the holder's line."""
    return HOLDER.struct.pack(pid)


def _slot(raw: bytes, page: int) -> bytes:
    return raw[page * PAGE : page * PAGE + POSITION.size]
