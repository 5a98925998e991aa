"""Payloads that can be made again: kind and bytes of a record follow from the seed of the run and the record's ticket.

A ticket is a number that no two records of a run share, made of the life of the writer, its lane (one for each thread), a running
number and the class of the payload's size. Nothing has to be stored to check a record byte for byte.
"""

from __future__ import annotations

import random
from typing import Final

CLASS_BITS: Final = 4
NUMBER_BITS: Final = 30
LANE_BITS: Final = 6
STEP: Final = 1 << CLASS_BITS
"""From the ticket of one record of a call to that of the next."""

TICKETED: Final = 16
"""Payloads of this length and more begin with their ticket."""

_POOL: Final = 2 << 20
_MIX: Final = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio (Knuth's multiplicative hash)
_WORD: Final = (1 << 64) - 1


def first_ticket(life: int, lane: int) -> int:
    """The first ticket of a lane in a life; the class of the size is added to it."""
    return (life << LANE_BITS | lane) << NUMBER_BITS + CLASS_BITS


def life_of(ticket: int) -> int:
    """The life in which a ticket was given out."""
    return ticket >> LANE_BITS + NUMBER_BITS + CLASS_BITS


def longest(size_class: int) -> int:
    """The length of the longest payload of a class: class 0 has 0 to 15 bytes, class 1 has 16 to 31, and so on."""
    return (16 << size_class) - 1


class Payloads:
    """Makes the payloads of one run."""

    def __init__(self, seed: int) -> None:
        self._pool = random.Random(f"payloads {seed}").randbytes(_POOL)

    def of(self, ticket: int) -> bytes:
        """The payload of a ticket."""
        mixed = ticket * _MIX & _WORD
        size_class = ticket & STEP - 1
        span = 16 if size_class == 0 else 8 << size_class
        length = (0 if size_class == 0 else span) + (mixed >> 40) % span
        start = (mixed >> 16) % (_POOL - length)
        if length < TICKETED:
            return self._pool[start : start + length]
        return ticket.to_bytes(8, "little") + self._pool[start : start + length - 8]

    def kind(self, ticket: int) -> int:
        """The kind of a ticket's record: the same for a whole lane of a life, because ``extend`` takes one kind only."""
        return ((ticket >> NUMBER_BITS + CLASS_BITS) * _MIX & _WORD) >> 48

    def genuine(self, data: bytes) -> int | None:
        """The ticket of a payload that this run made; None for other bytes, and for those too short to tell."""
        if len(data) < TICKETED:
            return None
        ticket = int.from_bytes(data[:8], "little")
        return ticket if self.of(ticket) == data else None
