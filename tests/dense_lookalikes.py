"""Areas of a ring full of bytes that look like record headers, as dense as the format allows.

A pattern says at which words headers start, and after how many words that repeats. A word that serves several headers in different
fields must be possible as each of them; that limits how densely headers can overlap.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pmwal.format.layout import HEADER, Header, Superblock, encode_header
from pmwal.format.ring import Found, RingReader

CRC_LENGTH, SEQ, DURABLE, TIME, MARKS, BATCH = range(HEADER // 8)


class Pattern(NamedTuple):
    """Headers at these words of each ``period``, and the position from which that is possible."""

    starts: tuple[int, ...]
    period: int
    position_min: int = 0


PATTERNS = {
    "every 8 bytes": Pattern((0,), 1, 1 << 40),
    "every 16 bytes": Pattern((0, 1, 2), 6),
    "every 20 bytes": Pattern((0, 2), 5, 1 << 40),
    "every 24 bytes": Pattern((0,), 3, 1 << 40),
    "every 28 bytes": Pattern((0, 2), 7),
    "every 40 bytes": Pattern((0,), 5),
    "every 48 bytes": Pattern((0,), 6),
}
"""A word that is a batch's count and index is at least 2^32, so it can be ``durable`` too only past 4 GiB."""


def lookalikes(pattern: Pattern, size: int, position: int, epoch: int, length_max: int, rng: np.random.Generator) -> bytes:
    """Bytes in which a header of a greater epoch may start at each place of the pattern; their lengths are random."""
    words = np.empty(size // 8, np.uint64)
    for index in range(pattern.period):
        fields = {field for start in pattern.starts for field in range(6) if (start + field) % pattern.period == index}
        count = len(words[index :: pattern.period])
        words[index :: pattern.period] = _words(fields, count, position, epoch, length_max, rng)
    return words.tobytes()


def _words(
    fields: set[int], count: int, position: int, epoch: int, length_max: int, rng: np.random.Generator
) -> npt.NDArray[np.uint64]:
    """Random words that are possible as each of these fields."""
    high_min, high_max, low_min = 0, (1 << 32) - 1, 0
    if BATCH in fields:
        high_min = 1 + (epoch + 1 if MARKS in fields else 0)
    if MARKS in fields:
        high_max, low_min = min(high_max, 0xFFFF), epoch + 1
    if CRC_LENGTH in fields:
        high_max = min(high_max, length_max)
    if DURABLE in fields:
        high_max = min(high_max, max(0, (position >> 32) - 1))
    if SEQ in fields:
        low_min = max(low_min, 1)
    high = rng.integers(high_min, high_max + 1, count, dtype=np.uint64)
    low_max = np.full(count, (1 << 32) - 1, np.uint64)
    if BATCH in fields:
        low_max = high - np.uint64(1)
    if DURABLE in fields and position < 1 << 32:
        low_max = np.minimum(low_max, np.uint64(position))
    low = np.uint64(low_min) + (rng.random(count) * (low_max - np.uint64(low_min)).astype(float)).astype(np.uint64)
    return (high << np.uint64(32)) | low


def forge(ring: bytearray, block: Superblock, position: int, header: Header) -> None:
    """Make the bytes at this position a whole record with this header: its payload is what lies there."""
    offset = position % block.capacity
    payload = bytes(ring[offset + HEADER : offset + HEADER + header.length])
    ring[offset : offset + HEADER] = encode_header(header, payload, block.uuid, position)


def random_ring(block: Superblock, start: int, rng: random.Random) -> bytearray:
    """A ring of look-alikes, headers with right checksums for another position, and whole records, for positions from ``start`` on.

    Records overlap, and end at pieces' boundaries and at the ring's end. Some are spoilt by others.
    """
    pattern = rng.choice([pattern for pattern in PATTERNS.values() if pattern.position_min <= start])
    generator = np.random.default_rng(rng.randrange(1 << 32))
    ring = bytearray(lookalikes(pattern, block.capacity, start, 1, block.payload_max, generator))
    if rng.random() < 0.3:
        ring[:] = bytes(len(ring))
    for _ in range(rng.randrange(60)):
        place = rng.randrange(0, block.capacity - HEADER, block.alignment)
        if rng.random() < 0.3:
            place = block.capacity - rng.randrange(1, 8) * max(block.alignment, 64)
        room = block.capacity - place - HEADER
        lengths = [0, rng.randrange(9), rng.randrange(room + 1), room, max(0, -place % 4096 - HEADER), rng.randrange(300)]
        position = start + (place - start) % block.capacity
        length = min(rng.choice(lengths), block.payload_max, room)
        durable = rng.choice([position, max(0, position - rng.randrange(block.capacity)), 0])
        header = Header(0, length, rng.choice([1, 7, rng.randrange(1, 1 << 63)]), durable, -1, rng.randrange(1, 4), 5, 0, 0, 1)
        forge(ring, block, position + rng.choice([0, 0, 0, block.capacity, 8]) * (rng.random() < 0.3), header)
    return ring


def plain_search(block: Superblock, ring: bytes | bytearray, start: int, stop: int) -> list[Found]:
    """The whole records that start in [start, stop), found one place after the other."""
    raw = bytes(block.ring_offset) + bytes(ring)
    reader = RingReader(block, lambda offset, length: raw[offset : offset + length], chunk=block.capacity)
    found = (reader.whole(position) for position in range(start, stop, block.alignment))
    return [record for record in found if record is not None]
