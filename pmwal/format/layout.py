"""The on-media format, version 1: the only definition of every byte.

Invariants
----------
- All numbers are little-endian; every offset follows from the fields before it.
- Every checksum is a CRC32C seeded with the log's uuid and the structure's own location (superblock copy number, slot index, or
  a record's logical position), so bytes of another log, another slot or another lap of the ring never validate.
- All-zero and all-ones bytes are never a valid structure: a magic, a tail number of at least 1, a record number of at
  least 1 and a batch index below its count rule them out before any checksum is verified.
- Positions are logical byte offsets that only grow; the ring offset is the position modulo the capacity.

A file::

    0                superblock, copy 0          4 KiB
    4096             live page                   4 KiB, volatile: recovery never reads it
    control_offset   control region              64-byte commit slots, at least two pages
    + control_size   superblock, copy 1          4 KiB
    ring_offset      ring                        capacity bytes of records
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from pmwal.latency import COARSE
from pmwal.native.checksum import crc32c

PAGE = 4096
LINE = 64
SECTOR = 512

VERSION_MAJOR = 1
VERSION_MINOR = 0
KNOWN_COMPATIBLE = 0
KNOWN_INCOMPATIBLE = 0

MAGIC = b"\x89PMWAL\r\n"
APPLICATION_SIZE = 64

SUPERBLOCK_OFFSET = 0
LIVE_OFFSET = PAGE
CONTROL_OFFSET = 2 * PAGE
CONTROL_SIZE_DEFAULT = 128 * 1024
CONTROL_SIZE_MIN = 2 * PAGE
CONTROL_SIZE_MAX = 1024 * 1024

LARGE_RING = 16 * 1024 * 1024  # from here on the ring starts on a huge page
HUGE_PAGE = 2 * 1024 * 1024
CAPACITY_MIN = PAGE
CAPACITY_DEFAULT = 64 * 1024 * 1024
CAPACITY_MAX = 1 << 46

ALIGN_DAX = LINE
ALIGN_DEFAULT = 8
ALIGN_MAX = PAGE

SEQ_MAX = (1 << 64) - 2
EPOCH_MAX = (1 << 32) - 2
GENERATION_MAX = (1 << 64) - 2
POSITION_MAX = (1 << 63) - 1
KIND_MAX = (1 << 16) - 1
KIND_APPLICATION_MAX = 0xFFDF  # by convention: pmwal itself uses the kinds above it, so far for events
LENGTH_MAX = (1 << 32) - 1
TIME_MIN, TIME_MAX = -(1 << 63), (1 << 63) - 1

SLOT_CLEAN = 1  # written by close: nothing was stored after it
SLOT_PIPELINED = 2  # commits of the epoch are acknowledged before a slot names them
SLOT_FLAGS = SLOT_CLEAN | SLOT_PIPELINED

POINTER_LAG_MAX = 1 << 20  # bytes that a pipelined log acknowledges past its newest slot before it writes another


class Field(NamedTuple):
    """One field: its name, its ``struct`` code, and what it means in one sentence."""

    name: str
    code: str
    meaning: str


class Structure:
    """A named run of fields; offsets and size follow from the fields."""

    def __init__(self, title: str, *fields: Field) -> None:
        self.title = title
        self.fields = fields
        self.struct = struct.Struct("<" + "".join(field.code for field in fields))
        self.size = self.struct.size
        self.offsets: dict[str, int] = {}
        offset = 0
        for field in fields:
            self.offsets[field.name] = offset
            offset += struct.calcsize("<" + field.code)

    def field_size(self, name: str) -> int:
        """The size of a field in bytes."""
        return next(struct.calcsize("<" + field.code) for field in self.fields if field.name == name)


SUPERBLOCK = Structure(
    "superblock",
    Field("magic", "8s", "89 50 4D 57 41 4C 0D 0A"),
    Field("version_major", "H", "a reader refuses a greater one"),
    Field("version_minor", "H", "information: a greater one reads the same"),
    Field("alignment", "I", "every record starts at a multiple of it; a power of two from 8 to 4096"),
    Field("compatible", "Q", "flags; an unknown one opens read-only"),
    Field("incompatible", "Q", "flags; an unknown one is refused"),
    Field("uuid", "16s", "seeds every checksum of the log"),
    Field("control_offset", "Q", "byte offset of the control region"),
    Field("control_size", "Q", "its size in bytes, a multiple of 4096, at least 8192"),
    Field("ring_offset", "Q", "byte offset of the ring"),
    Field("capacity", "Q", "size of the ring in bytes, a multiple of 4096"),
    Field("created_ns", "q", "wall clock at creation, ns since 1970; information only"),
    Field("application", "64s", "the label in UTF-8, then zeros"),
    Field("reserved", f"{PAGE - 152 - 4}s", "zeros"),
    Field("crc", "I", "CRC32C over (uuid, copy number) and all bytes before this field"),
)

SLOT = Structure(
    "commit slot",
    Field("crc", "I", "CRC32C over (uuid, slot index) and all bytes after this field"),
    Field("epoch", "I", "the epoch of the records from epoch_first_seq on"),
    Field("generation", "Q", "+1 for each slot; the valid slot with the highest one has the commit pointer"),
    Field("epoch_first_seq", "Q", "the first sequence number of that epoch"),
    Field("commit_position", "Q", "every record before it is durable"),
    Field("commit_seq", "Q", "number of the last record before commit_position"),
    Field("tail_position", "Q", "where the oldest kept record starts; equal to commit_position when empty"),
    Field("tail_seq", "Q", "its number; commit_seq + 1 when empty"),
    Field("flags", "I", "1: clean close, 2: pipelined"),
    Field("reserved", "I", "zero"),
)

RECORD = Structure(
    "record header",
    Field("crc", "I", "CRC32C over (uuid, position), the rest of this header and the payload"),
    Field("length", "I", "payload bytes; the record is padded with zeros to the alignment"),
    Field("seq", "Q", "sequence number, +1 for each record, the first is 1"),
    Field("durable", "Q", "the position up to which the log was durable when this was stored"),
    Field("time_ns", "q", "wall clock, ns since 1970; information only, never used for order"),
    Field("epoch", "I", "epoch in which it was stored"),
    Field("kind", "H", "the application's"),
    Field("flags", "H", "zero"),
    Field("batch_index", "I", "index in its batch, from 0"),
    Field("batch_count", "I", "records in its batch, 1 for a record of its own"),
)

LIVE_BOUNDS = Structure(
    "live page: bounds",
    Field("version_begin", "Q", "equal to version_end when the line is whole"),
    Field("tail_position", "Q", "where the oldest kept record starts"),
    Field("tail_seq", "Q", "its number"),
    Field("durable_position", "Q", "other processes may read up to here"),
    Field("durable_seq", "Q", "number of the last record before durable_position"),
    Field("epoch", "Q", "the writer's epoch"),
    Field("epoch_first_seq", "Q", "the first sequence number of that epoch"),
    Field("version_end", "Q", "+1 for each store of the line"),
)

LIVE_WRITER = Structure(
    "live page: writer",
    Field("pid", "Q", "the writer's process id, 0 when there is none"),
    Field("start_time", "Q", "its start, clock ticks since boot (field 22 of /proc/PID/stat)"),
    Field("boot_id", "16s", "of /proc/sys/kernel/random/boot_id"),
    Field("heartbeat_ns", "q", "wall clock of the newest store, or of the open"),
    Field("published_position", "Q", "stored so far, durable or not"),
    Field("published_seq", "Q", "number of the last record stored"),
    Field("inode", "Q", "of the file it writes: a copy of the file has another one"),
)

LIVE_FOLLOWERS = Structure(
    "live page: followers",
    Field("waiting", "I", "not 0: readers may be asleep until version_begin changes (futex(2) on its low half)"),
)

LIVE_LATENCY = Structure(
    "live page: latency",
    Field("step", "Q", "one commit in this many is timed, a power of two; 0 when the writer shows no latency"),
    Field("counters", f"{COARSE.counters}I", "commits timed since the open, by duration; each wraps at 2^32"),
)

LIVE_OPEN = Structure(
    "live page: open",
    Field("id", "16s", "random, another one for each open; since 0.2"),
    Field("pid", "Q", "as in the writer's line, or this is of an earlier open"),
    Field("start_time", "Q", "as in the writer's line"),
    Field("boot_id", "16s", "as in the writer's line"),
    Field("locked", "Q", "1: the writer keeps byte 2^62 of the file locked while the log is open; 0: it cannot"),
)

LIVE_SEEK_POINT = Structure(
    "live page: seek point",
    Field("crc", "I", "CRC32C over (uuid, index of the seek point), the id of the open, and all bytes after this field"),
    Field("reserved", "I", "zero"),
    Field("position", "Q", "where a record starts"),
    Field("seq", "Q", "its number"),
)

LIVE_WRITER_OFFSET = LIVE_OFFSET + LINE
LIVE_FOLLOWERS_OFFSET = LIVE_WRITER_OFFSET + LINE
LIVE_LATENCY_OFFSET = LIVE_FOLLOWERS_OFFSET + LINE
LIVE_SECOND_OFFSET = -(-(LIVE_LATENCY_OFFSET + LIVE_LATENCY.size) // LINE) * LINE
LIVE_OPEN_OFFSET = LIVE_SECOND_OFFSET + LINE
LIVE_SEEK_OFFSET = LIVE_OPEN_OFFSET + LINE
STRUCTURES = (SUPERBLOCK, LIVE_BOUNDS, LIVE_WRITER, LIVE_FOLLOWERS, LIVE_LATENCY, LIVE_OPEN, LIVE_SEEK_POINT, SLOT, RECORD)

SEEK_POINTS = (LIVE_OFFSET + PAGE - LIVE_SEEK_OFFSET) // LIVE_SEEK_POINT.size
SEEK_STEP_MIN = PAGE  # bytes of the ring between two seek points, at least

HEADER = RECORD.size
SLOTS_PER_PAGE = PAGE // SLOT.size

# Relations that the code relies on. The C engine asserts them at compile time.
assert SUPERBLOCK.size == PAGE
assert SLOT.size == LINE == LIVE_BOUNDS.size == LIVE_WRITER.size
assert RECORD.size == 48
assert LIVE_LATENCY.size == 8 + 4 * 280
assert LIVE_OPEN.size <= LINE
assert LIVE_SEEK_POINT.size % 8 == LIVE_SEEK_OFFSET % 8 == 0
assert (
    SLOT.offsets["crc"] == RECORD.offsets["crc"] == LIVE_SEEK_POINT.offsets["crc"] == 0
)  # a checksum covers one run of bytes: all after itself
assert all(offset % 8 == 0 for name, offset in SLOT.offsets.items() if SLOT.field_size(name) == 8)
assert all(offset % 8 == 0 for name, offset in RECORD.offsets.items() if RECORD.field_size(name) == 8)
assert CONTROL_SIZE_MIN // PAGE >= 2  # consecutive slots never share a page
assert CAPACITY_MIN >= 2 * (HEADER + ALIGN_DEFAULT)

CRC_SIZE = 4
_unpack_record = RECORD.struct.unpack_from
_LOCATION = struct.Struct("<Q")


class Slot(NamedTuple):
    """A decoded commit slot; see ``SLOT`` for the fields."""

    epoch: int
    generation: int
    epoch_first_seq: int
    commit_position: int
    commit_seq: int
    tail_position: int
    tail_seq: int
    flags: int


class Header(NamedTuple):
    """A decoded record header; see ``RECORD`` for the fields."""

    crc: int
    length: int
    seq: int
    durable: int
    time_ns: int
    epoch: int
    kind: int
    flags: int
    batch_index: int
    batch_count: int


@dataclass(frozen=True, slots=True)
class Superblock:
    """The properties of a log that are fixed at its creation."""

    uuid: bytes
    control_size: int
    capacity: int
    alignment: int
    created_ns: int
    application: bytes = bytes(APPLICATION_SIZE)
    compatible: int = 0
    incompatible: int = 0
    version_major: int = VERSION_MAJOR
    version_minor: int = VERSION_MINOR

    @property
    def label(self) -> str | None:
        """``application`` as text; None if there is none, or if it is not UTF-8."""
        try:
            return self.application.rstrip(b"\0").decode() or None
        except UnicodeDecodeError:
            return None

    @property
    def control_offset(self) -> int:
        """Byte offset of the control region."""
        return CONTROL_OFFSET

    @property
    def control_pages(self) -> int:
        """Number of pages in the control region."""
        return self.control_size // PAGE

    @property
    def turn(self) -> int:
        """Number of slots in the control region: a slot is overwritten this many generations later."""
        return self.control_pages * SLOTS_PER_PAGE

    @property
    def copy_offset(self) -> int:
        """Byte offset of superblock copy 1."""
        return CONTROL_OFFSET + self.control_size

    @property
    def ring_offset(self) -> int:
        """Byte offset of the ring."""
        end = self.copy_offset + PAGE
        return -(-end // HUGE_PAGE) * HUGE_PAGE if self.capacity >= LARGE_RING else end

    @property
    def file_size(self) -> int:
        """Size of the whole file in bytes."""
        return self.ring_offset + self.capacity

    @property
    def payload_max(self) -> int:
        """The largest payload in bytes: its record takes at most half of the ring."""
        return min(self.capacity // 2 // self.alignment * self.alignment - HEADER, LENGTH_MAX)


def seed_crc(uuid: bytes, location: int) -> int:
    """The seed for the checksum of a structure of this log: its copy number, slot index or position is ``location``."""
    seed: int = crc32c(_LOCATION.pack(location), uuid_crc(uuid))
    return seed


@lru_cache(maxsize=64)
def uuid_crc(uuid: bytes) -> int:
    """The checksum of a log's uuid, which all seeds continue."""
    crc: int = crc32c(uuid)
    return crc


def encode_superblock(block: Superblock, copy: int) -> bytes:
    """The 4096 bytes of superblock copy 0 or 1."""
    page = SUPERBLOCK.struct.pack(
        MAGIC,
        block.version_major,
        block.version_minor,
        block.alignment,
        block.compatible,
        block.incompatible,
        block.uuid,
        block.control_offset,
        block.control_size,
        block.ring_offset,
        block.capacity,
        block.created_ns,
        block.application,
        b"",
        0,
    )
    crc = crc32c(page[:-CRC_SIZE], seed_crc(block.uuid, copy))
    return page[:-CRC_SIZE] + struct.pack("<I", crc)


def decode_superblock(page: bytes, copy: int) -> Superblock | None:
    """The superblock in these 4096 bytes, or None unless they are a whole one of a possible geometry."""
    if len(page) != PAGE or page[: len(MAGIC)] != MAGIC:
        return None
    fields = dict(zip(SUPERBLOCK.offsets, SUPERBLOCK.struct.unpack(page), strict=True))
    if fields["crc"] != crc32c(page[:-CRC_SIZE], seed_crc(fields["uuid"], copy)):
        return None
    block = Superblock(
        uuid=fields["uuid"],
        control_size=fields["control_size"],
        capacity=fields["capacity"],
        alignment=fields["alignment"],
        created_ns=fields["created_ns"],
        application=fields["application"],
        compatible=fields["compatible"],
        incompatible=fields["incompatible"],
        version_major=fields["version_major"],
        version_minor=fields["version_minor"],
    )
    if geometry_problem(block) or (fields["control_offset"], fields["ring_offset"]) != (
        block.control_offset,
        block.ring_offset,
    ):
        return None
    return block


def geometry_problem(block: Superblock) -> str | None:
    """Why no log can have this geometry, or None."""
    if not CONTROL_SIZE_MIN <= block.control_size <= CONTROL_SIZE_MAX or block.control_size % PAGE:
        return f"control region of {block.control_size} bytes"
    if not CAPACITY_MIN <= block.capacity <= CAPACITY_MAX or block.capacity % PAGE:
        return f"capacity of {block.capacity} bytes"
    if not ALIGN_DEFAULT <= block.alignment <= ALIGN_MAX or block.alignment & (block.alignment - 1):
        return f"alignment of {block.alignment} bytes"
    if block.payload_max < 1:
        return f"alignment of {block.alignment} bytes in a ring of {block.capacity}"
    return None


def slot_index(generation: int, control_pages: int) -> int:
    """The slot index of a generation. Consecutive generations never share a page."""
    return generation % control_pages * SLOTS_PER_PAGE + generation // control_pages % SLOTS_PER_PAGE


def slot_offset(index: int) -> int:
    """Byte offset in the file of the slot at this index."""
    return CONTROL_OFFSET + index * SLOT.size


def slot_body(slot: Slot) -> bytes:
    """The 60 bytes of a slot after its checksum, which are the same at every index."""
    return SLOT.struct.pack(0, *slot, 0)[CRC_SIZE:]


def encode_slot(slot: Slot, uuid: bytes, index: int) -> bytes:
    """The 64 bytes of a slot at its index."""
    body = slot_body(slot)
    return struct.pack("<I", crc32c(body, seed_crc(uuid, index))) + body


def decode_slot(raw: bytes, uuid: bytes, index: int) -> Slot | None:
    """The slot in these 64 bytes, or None unless they are a whole one of this log at this index."""
    _, *fields, reserved = SLOT.struct.unpack(raw)
    slot = Slot._make(fields)
    return slot if not reserved and slot.tail_seq and slot_checks(raw, uuid, index) else None


def slot_checks(raw: bytes, uuid: bytes, index: int) -> bool:
    """Whether these 64 bytes have the checksum that a slot at this index must have."""
    return int.from_bytes(raw[:CRC_SIZE], "little") == crc32c(raw[CRC_SIZE:], _slot_seed(uuid, index))


@lru_cache(maxsize=CONTROL_SIZE_MAX // SLOT.size)
def _slot_seed(uuid: bytes, index: int) -> int:
    return seed_crc(uuid, index)


def initial_slot() -> Slot:
    """The slot of generation 0 that creation writes at every index: an empty log, cleanly closed."""
    return Slot(0, 0, 1, 0, 0, 0, 1, SLOT_CLEAN)


def seek_step(capacity: int) -> int:
    """Bytes of the ring between two seek points: as many points as the live page has room for, spread evenly over the ring."""
    return max(SEEK_STEP_MIN, -(-capacity // SEEK_POINTS // LINE) * LINE)


def seek_point_offset(index: int) -> int:
    """Byte offset in the file of the seek point with this index."""
    return LIVE_SEEK_OFFSET + index * LIVE_SEEK_POINT.size


def encode_seek_point(position: int, seq: int, uuid: bytes, open_id: bytes, index: int) -> bytes:
    """The 24 bytes of a seek point of the open with this id."""
    body = LIVE_SEEK_POINT.struct.pack(0, 0, position, seq)[CRC_SIZE:]
    return struct.pack("<I", _seek_point_crc(body, uuid, open_id, index)) + body


def decode_seek_point(raw: bytes, uuid: bytes, open_id: bytes, index: int) -> tuple[int, int] | None:
    """Position and number in these 24 bytes, or None unless they are a whole seek point of this open at this index."""
    crc, reserved, position, seq = LIVE_SEEK_POINT.struct.unpack(raw)
    whole = not reserved and seq and crc == _seek_point_crc(raw[CRC_SIZE:], uuid, open_id, index)
    return (position, seq) if whole else None


def _seek_point_crc(body: bytes, uuid: bytes, open_id: bytes, index: int) -> int:
    return int(crc32c(open_id + body, seed_crc(uuid, index)))


def encode_header(header: Header, payload: bytes, uuid: bytes, position: int) -> bytes:
    """The 48 bytes of a record's header at its position; ``header.crc`` is ignored and computed here."""
    body = RECORD.struct.pack(*header)[CRC_SIZE:]
    crc = crc32c(payload, crc32c(body, seed_crc(uuid, position)))
    return struct.pack("<I", crc) + body


def decode_header(raw: bytes, offset: int = 0) -> Header:
    """The header at this offset of ``raw``, unchecked."""
    return Header(*_unpack_record(raw, offset))


def header_problem(header: Header, position: int, room: int, alignment: int, payload_max: int) -> str | None:
    """Why no record can have this header at this position, with ``room`` bytes to the ring's end, or None.

    It reads the header only and verifies no checksum. A length must pass it before it is used.
    """
    if header.seq < 1 or header.seq > SEQ_MAX or header.epoch < 1 or header.flags:
        return "number, epoch or flags impossible"
    if header.batch_index >= header.batch_count:
        return "batch index past its count"
    if header.durable > position:
        return "durable mark past its own position"
    if header.length > payload_max or record_size(header.length, alignment) > room:
        return "length impossible"
    return None


def record_crc(header_and_payload: bytes | memoryview, uuid: bytes, position: int) -> int:
    """The checksum that a record with these bytes must have at this position."""
    return int(crc32c(header_and_payload[CRC_SIZE:], seed_crc(uuid, position)))


def record_size(length: int, alignment: int) -> int:
    """Bytes of the ring that a record with a payload of ``length`` takes."""
    return -(-(HEADER + length) // alignment) * alignment


def place_record(position: int, size: int, capacity: int) -> int:
    """Where a record of ``size`` bytes starts in a log that ends at ``position``: there, or at the start of the next lap."""
    room = capacity - position % capacity
    return position if size <= room else position + room
