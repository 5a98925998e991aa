"""Damage, which no barrier prevents: flipped bits, lost lines, misdirected writes, blocks of another log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from pmwal.format.layout import HEADER, LINE, RECORD, Superblock, encode_header
from pmwal.format.ring import RingReader

FOREIGN = bytes(range(100, 116))
"""The uuid of another log."""


def damaged_images(
    image: bytes, block: Superblock, records: Sequence[int], random: Random, count: int
) -> Iterator[tuple[str, bytes]]:
    """Copies of an image with one fault each, and what it is: ``count`` of each kind. ``records`` are positions of whole ones."""
    for _ in range(count):
        yield flip(image, _somewhere(block, random), random.randrange(8))
        yield poison(image, _somewhere(block, random) // LINE * LINE, random)
        yield misdirect(image, *(_somewhere(block, random) // LINE * LINE for _ in range(2)))
    for position in random.sample(records, min(count, len(records))):
        offset = block.ring_offset + position % block.capacity
        yield flip(image, offset + random.randrange(HEADER), random.randrange(8))
        yield flip(image, offset + RECORD.offsets["epoch"], 0)
        yield foreign(image, block, position)


def _somewhere(block: Superblock, random: Random) -> int:
    """An offset that the log's records or slots may lie at."""
    start = random.choice((block.control_offset, block.ring_offset))
    return random.randrange(start, block.copy_offset if start == block.control_offset else block.file_size)


def flip(image: bytes, offset: int, bit: int) -> tuple[str, bytes]:
    """One bit is flipped."""
    changed = bytearray(image)
    changed[offset] ^= 1 << bit
    return f"bit {bit} of byte {offset} flipped", bytes(changed)


def poison(image: bytes, offset: int, random: Random) -> tuple[str, bytes]:
    """A line lost its content."""
    fill = random.choice((bytes(LINE), b"\xff" * LINE, random.randbytes(LINE)))
    return f"line at {offset} poisoned", image[:offset] + fill + image[offset + LINE :]


def misdirect(image: bytes, source: int, target: int) -> tuple[str, bytes]:
    """The store of one line went to another place."""
    line = image[source : source + LINE]
    return f"line at {source} stored at {target} too", image[:target] + line + image[target + LINE :]


def foreign(image: bytes, block: Superblock, position: int) -> tuple[str, bytes]:
    """A record is replaced by one of another log, with the same number and size."""
    offset = block.ring_offset + position % block.capacity
    reader = RingReader(block, lambda start, length: image[start : start + length])
    found = reader.whole(position)
    assert found is not None
    payload = b"x" * found.header.length
    stored = encode_header(found.header, payload, FOREIGN, position) + payload
    return f"record at position {position} is of another log", image[:offset] + stored + image[offset + len(stored) :]
