"""Reproducible payloads: kind and bytes of a record follow from the seed of the run and the record's ticket.

Every other payload imitates structures of a log, as ``pmwal.testing.lookalikes`` makes them.

A ticket is unique in a run. It is composed of the writer's life, its lane (one for each thread), a running number, and the size
class of the payload. So a record can be checked byte for byte without storing its payload elsewhere.
"""

from __future__ import annotations

import random
from typing import Final

from pmwal.testing.lookalikes import any_place, lookalike

CLASS_BITS: Final = 4
NUMBER_BITS: Final = 30
LANE_BITS: Final = 6
STEP: Final = 1 << CLASS_BITS
"""Between the tickets of consecutive records of a call."""

TICKETED: Final = 16
"""Payloads of at least this length begin with their ticket."""

_POOL: Final = 2 << 20
_IMITATIONS: Final = 256 << 10
_CAPACITIES: Final = (64 << 10, 256 << 10, 1 << 20)
_MIX: Final = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio (Knuth's multiplicative hash)
_WORD: Final = (1 << 64) - 1


def first_ticket(life: int, lane: int) -> int:
    """The first ticket of a lane in a life, to which the size class is added."""
    return (life << LANE_BITS | lane) << NUMBER_BITS + CLASS_BITS


def life_of(ticket: int) -> int:
    """The life of a ticket."""
    return ticket >> LANE_BITS + NUMBER_BITS + CLASS_BITS


def longest(size_class: int) -> int:
    """The longest payload of a size class: class 0 has 0 to 15 bytes, class 1 has 16 to 31, class 2 has 32 to 63, and so on."""
    return (16 << size_class) - 1


class Payloads:
    """The payloads of one run."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"payloads {seed}")
        self._pool = rng.randbytes(_POOL)
        self._imitations = b""
        while len(self._imitations) < _IMITATIONS:
            place = any_place(rng, rng.choice(_CAPACITIES))
            self._imitations += lookalike(rng, place, rng.choice((64, 512, 4096, 16384)))

    def of(self, ticket: int) -> bytes:
        """The payload of a ticket."""
        mixed = ticket * _MIX & _WORD
        size_class = ticket & STEP - 1
        span = 16 if size_class == 0 else 8 << size_class
        length = (0 if size_class == 0 else span) + (mixed >> 40) % span
        if length < TICKETED:
            start = (mixed >> 16) % (_POOL - length)
            return self._pool[start : start + length]
        imitates = mixed >> 63 and length < _IMITATIONS
        pool = self._imitations if imitates else self._pool
        start = (mixed >> 16) % (len(pool) - length) // 8 * 8
        return ticket.to_bytes(8, "little") + pool[start : start + length - 8]

    def kind(self, ticket: int) -> int:
        """The kind of a ticket's record: the same for a lane in a life, because ``extend`` takes only one kind."""
        return ((ticket >> NUMBER_BITS + CLASS_BITS) * _MIX & _WORD) >> 48

    def genuine(self, data: bytes) -> int | None:
        """The ticket of a payload of this run; None for other bytes, and for those too short to tell."""
        if len(data) < TICKETED:
            return None
        ticket = int.from_bytes(data[:8], "little")
        return ticket if self.of(ticket) == data else None
