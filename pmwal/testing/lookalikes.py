"""Look-alikes: payloads that imitate the log's own structures, as a careless or hostile user of a log may store them.

Invariants
----------
- No part of a payload of ``lookalike`` is a whole structure where it is stored: its checksum is wrong, or right for another
  position, slot, superblock copy or log. So no verdict may depend on it.
- Whoever supplies a payload may know all of a log but its uuid, and may copy bytes that the log has stored. Checksums that are
  right elsewhere are made with the uuid here, which is more than a copy of the log's own records can be.
- A payload is determined by the random source and the place.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from pmwal.format.layout import (
    EPOCH_MAX,
    GENERATION_MAX,
    HEADER,
    LENGTH_MAX,
    LIVE_BOUNDS,
    LIVE_WRITER,
    PAGE,
    POSITION_MAX,
    RECORD,
    SEQ_MAX,
    Header,
    Slot,
    Superblock,
    encode_header,
    encode_slot,
    encode_superblock,
    record_size,
    slot_index,
)
from pmwal.format.ring import Found, Load, RingReader
from pmwal.records import Bound

OTHER_UUID = bytes(range(200, 216))
"""The uuid of another log."""
_COPIES = 8  # whole records among which one to be copied is chosen
_WORD = (1 << 64) - 1


class Place(NamedTuple):
    """Where the next record of a log will be stored, and what can be known of the log then."""

    block: Superblock
    tail: Bound
    head: Bound
    durable: int
    epoch: int
    generation: int
    load: Load | None = None
    """Reads the file, for payloads that copy from it."""


def place_in(wal: Any) -> Place:
    """The place of the next record of an open log."""
    engine = wal._engine
    state = engine.state
    load = engine.mapping.load
    return Place(engine.block, state.tail, state.head, state.durable.position, state.epoch, engine.generation, load)


def any_place(random: Random, capacity: int) -> Place:
    """The place in a log of which nothing but its capacity is known."""
    block = Superblock(OTHER_UUID, 2 * PAGE, capacity, 8, 0)
    position, seq = random.randrange(0, 4 * capacity, 8), random.randrange(1, 10_000)
    tail = Bound(max(position - capacity // 2, 0), max(seq - 100, 1))
    return Place(block, tail, Bound(position, seq), position, random.randrange(1, 20), random.randrange(1, 10_000))


def lookalike(random: Random, place: Place, size: int) -> bytes:
    """A payload of ``size`` bytes that imitates structures of the log at this place."""
    if size < 8:
        return random.randbytes(size)
    if random.random() < 0.4:
        return _repeated(random, place, size)
    payload = bytearray(random.choice((bytes(size), b"\xff" * size, random.randbytes(size))))
    make = random.choice(_STRUCTURES)
    mixed = random.random() < 0.5
    at = _first_offset(random, place)
    while at < size:
        piece = make(random, place, at)[: size - at]
        payload[at : at + len(piece)] = piece
        # Nested and overlapping as often as one after another.
        step = random.choice((8, 16, 24, 40, 48, len(piece), len(piece), len(piece) + 8 * random.randrange(20)))
        at += max(step, 8)
        if mixed:
            make = random.choice(_STRUCTURES)
    return bytes(payload)


def tagged(random: Random, place: Place, size: int, tag: bytes) -> bytes:
    """The same, but for its first bytes, which are ``tag``: no other payload has them."""
    return tag + lookalike(random, place, max(size, len(tag)))[len(tag) :]


def _first_offset(random: Random, place: Place) -> int:
    """Where in the payload the first structure starts, so that it is aligned in the ring, or off by some bytes."""
    unit = random.choice((8, 8, 16, 64, place.block.alignment, PAGE, 1))
    return -(place.head.position + HEADER) % unit


# -- repeated headers, as densely as the format allows


def _repeated(random: Random, place: Place, size: int) -> bytes:
    """Headers that share their words: one every 16, 32 or 48 bytes, each of which must be examined."""
    epoch = place.epoch + random.choice((0, 0, 0, 1, 1000))
    one_of_its_own = 1 << 32  # a batch of one record, and a number that is high enough
    match random.randrange(4):
        case 0:  # the epoch is the mark, and the number is the place in the batch
            words: tuple[int, ...] = (epoch, one_of_its_own)
        case 1:  # the kind is the length
            length = random.choice((0, 100, min(place.block.payload_max, 0xFFFF)))
            words = (epoch | length << 32, one_of_its_own, _mark(random, place) & _WORD, 0)
        case _:
            length = random.choice((0, 1, place.block.payload_max, place.block.capacity // 4))
            header = _header(random, place)._replace(epoch=epoch, length=length, flags=0, batch_index=0, batch_count=1)
            words = struct.unpack("<6Q", _packed(header, random.choice((0, random.getrandbits(32)))))
    run = struct.pack(f"<{len(words)}Q", *words)
    start = _first_offset(random, place)
    return (bytes(start) + run * (size // len(run) + 1))[:size]


# -- structures


def _number(random: Random, near: int, top: int) -> int:
    """A number near this one, or one of those that break arithmetic."""
    choices = (
        near,
        near,
        near + random.randint(-3, 3),
        near + random.randrange(1000),
        0,
        1,
        random.randrange(top + 1),
        top,
        top - 1,
    )
    return min(max(random.choice(choices), 0), top)


def _mark(random: Random, place: Place) -> int:
    """A ``durable`` near those of the log, or one that no record can have."""
    head, capacity = place.head.position, place.block.capacity
    near = (0, place.durable, head, head + 8, head - HEADER, head + random.randrange(capacity), place.tail.position)
    return max(random.choice((*near, random.randrange(head + 1), POSITION_MAX, _WORD)), 0)


def _header(random: Random, place: Place) -> Header:
    payload_max = place.block.payload_max
    count = random.choice((1, 1, 1, 1, 2, 3, 0, random.getrandbits(32)))
    return Header(
        crc=0,
        length=random.choice(
            (0, random.randrange(200), random.randrange(payload_max + 1), payload_max, payload_max, payload_max + 1, LENGTH_MAX)
        ),
        seq=_number(random, place.head.next_seq, SEQ_MAX),
        durable=_mark(random, place),
        time_ns=random.choice((0, random.getrandbits(63), -1)),
        epoch=random.choice((place.epoch, place.epoch, place.epoch + 1, _number(random, place.epoch, EPOCH_MAX))),
        kind=random.getrandbits(16),
        flags=random.choice((0, 0, 0, 0, random.getrandbits(16))),
        batch_index=random.choice((0, 0, 0, 1, max(count - 1, 0), count)),
        batch_count=count,
    )


def _packed(header: Header, crc: int) -> bytes:
    return RECORD.struct.pack(*header._replace(crc=crc))


def headers(random: Random, place: Place, at: int) -> bytes:
    """A header with a wrong checksum."""
    return _packed(_header(random, place), random.choice((0, 0xFFFFFFFF, random.getrandbits(32))))


def sealed(random: Random, place: Place, at: int) -> bytes:
    """A whole record of this log for another position, or of another log for this one."""
    payload = random.randbytes(random.choice((0, 1, 8, 40, 200)))
    header = _header(random, place)._replace(length=len(payload), flags=0, batch_index=0, batch_count=1)
    here = place.head.position + HEADER + at
    if random.random() < 0.5:
        header = header._replace(durable=min(header.durable, here))
        return encode_header(header, payload, OTHER_UUID, here) + payload
    # Positions from the head on may become the record's own, by a wrap or in a later lap. Those before it never do.
    elsewhere = random.randrange(place.head.position // 8) * 8 if place.head.position >= 8 else POSITION_MAX
    header = header._replace(durable=min(header.durable, elsewhere))
    return encode_header(header, payload, place.block.uuid, elsewhere) + payload


def copied(random: Random, place: Place, at: int) -> bytes:
    """A whole record of the log as it is stored there."""
    if place.load is None or place.head.next_seq == place.tail.next_seq:
        return sealed(random, place, at)
    reader, bound = RingReader(place.block, place.load), place.tail
    found: list[Found] = []
    while len(found) < _COPIES and bound.next_seq < place.head.next_seq:
        record = reader.numbered(*bound)
        if record is None:
            break
        found.append(record)
        bound = Bound(record.end, record.header.seq + 1)
    if not found:
        return sealed(random, place, at)
    record = random.choice(found)
    size = record_size(record.header.length, place.block.alignment)
    return place.load(place.block.ring_offset + record.position % place.block.capacity, size)


def slots(random: Random, place: Place, at: int) -> bytes:
    """A commit slot: of this log, of another one, or with a wrong checksum."""
    head, tail = place.head, place.tail
    generation = _number(random, place.generation + 1, GENERATION_MAX)
    slot = Slot(
        epoch=random.choice((place.epoch, place.epoch + 1)),
        generation=generation,
        epoch_first_seq=_number(random, head.next_seq, SEQ_MAX),
        commit_position=random.choice((head.position, place.durable, tail.position)),
        commit_seq=_number(random, head.next_seq - 1, SEQ_MAX),
        tail_position=random.choice((tail.position, head.position)),
        tail_seq=random.choice((tail.next_seq, head.next_seq)),
        flags=random.getrandbits(2),
    )
    index = slot_index(generation, place.block.control_pages)
    raw = encode_slot(slot, random.choice((place.block.uuid, OTHER_UUID)), index)
    return random.choice((raw, random.randbytes(4) + raw[4:]))


def superblocks(random: Random, place: Place, at: int) -> bytes:
    """A superblock: the log's own, or another log's of any geometry."""
    block = place.block
    if random.random() < 0.5:
        block = Superblock(OTHER_UUID, random.choice((2, 3, 8)) * PAGE, random.choice((PAGE, block.capacity)), 8, 0)
    raw = encode_superblock(block, random.randrange(2))
    return random.choice((raw, raw[:-4] + random.randbytes(4)))


def live_lines(random: Random, place: Place, at: int) -> bytes:
    """Lines of the live page."""
    head = place.head
    version = random.getrandbits(16)
    numbers = (*place.tail, *head, place.epoch, head.next_seq)
    bounds = LIVE_BOUNDS.struct.pack(version, *numbers, version + random.randrange(2))
    writer = LIVE_WRITER.struct.pack(random.getrandbits(15), 0, bytes(16), 0, *head, 0)
    return random.choice((bounds, writer, bounds + writer))


_STRUCTURES: tuple[Callable[[Random, Place, int], bytes], ...] = (
    *(headers, headers, headers, sealed, sealed, copied, copied),
    *(slots, superblocks, live_lines),
)
