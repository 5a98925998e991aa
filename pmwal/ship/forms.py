"""How a run of records becomes messages: one of many records, or one for each record. Pure.

Invariants
----------
- Whatever the form, the messages have all records of the run, in order, and the first one names the message before it.
- A message by itself says all that its records have: a reader needs not know in which form it was shipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from pmwal.cursor import cursor_of
from pmwal.format.frame import unpack
from pmwal.native.checksum import crc32c
from pmwal.records import Frame
from pmwal.ship.chain import Entry, Stamp

Form = Literal["frame", "atomic"]

_BATCH_MAX = 1000  # messages that a server takes in an atomic batch


class Shape(NamedTuple):
    """A form: how many records of a run it takes, and the messages of a run after the message with this number."""

    count_max: int | None
    messages: Callable[[Frame, int], list[tuple[Entry, bytes]]]


def _packed(frame: Frame, prev: int) -> list[tuple[Entry, bytes]]:
    """One message."""
    return [(Entry(frame.first, frame.last, prev, frame.cursor, crc32c(frame.body)), frame.body)]


def _single(frame: Frame, prev: int) -> list[tuple[Entry, bytes]]:
    """A message for each record, with its payload as the body."""
    found = []
    for seq, (kind, time_ns, data) in enumerate(unpack(frame.body), frame.first):
        cursor = str(cursor_of(seq, kind, time_ns, data))
        before = prev if seq == frame.first else None
        found.append((Entry(seq, seq, before, cursor, crc32c(data), stamp=Stamp(kind, time_ns)), data))
    return found


FORMS: dict[Form, Shape] = {"frame": Shape(None, _packed), "atomic": Shape(_BATCH_MAX, _single)}
