"""What a search for whole records is given: its limits, and the parts of the ring."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Which records are searched for: of this ``epoch`` and a number of at least ``seq_min``, or of a greater one and at least
    ``newer_seq_min``.

    ``placed``: the lap is known, and the position is ``base`` plus the ring offset. Otherwise ``durable`` tells the lap: it is at
    most one lap before its record.
    """

    placed: bool
    base: int
    epoch: int
    seq_min: int
    newer_seq_min: int


class Span(NamedTuple):
    """A part of the ring, in ring offsets, and whether it has data; a hole reads as zeros."""

    start: int
    end: int
    data: bool
