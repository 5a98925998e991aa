"""How a frame becomes messages: one of many records, or one for each record. Pure.

Invariants
----------
- In each form, the messages have all records of the frame, in order.
- Each message says all that its records have: a reader need not know in which form it was shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal, TypeAlias

from pmwal.cursor import cursor_of
from pmwal.format.frame import unpack
from pmwal.native.checksum import crc32c
from pmwal.records import Frame
from pmwal.ship.chain import Entry, Stamp

Form = Literal["frame", "atomic"]

Batch: TypeAlias = list[tuple[Entry, bytes]]
"""Messages that are stored one right after another. The first one does not name the message before it yet."""

_BATCH_MAX = 1000  # messages that a server takes in an atomic batch


def _packed(frame: Frame) -> Iterator[Batch]:
    """One message."""
    yield [(Entry(frame.first, frame.last, None, frame.cursor, crc32c(frame.body)), frame.body)]


def _single(frame: Frame) -> Iterator[Batch]:
    """A message for each record, with its payload as the body."""
    items = enumerate(unpack(frame.body), frame.first)
    while batch := [_message(seq, *item) for seq, item in islice(items, _BATCH_MAX)]:
        yield batch


def _message(seq: int, kind: int, time_ns: int, data: bytes) -> tuple[Entry, bytes]:
    cursor = str(cursor_of(seq, kind, time_ns, data))
    return Entry(seq, seq, None, cursor, crc32c(data), stamp=Stamp(kind, time_ns)), data


FORMS: dict[Form, Callable[[Frame], Iterator[Batch]]] = {"frame": _packed, "atomic": _single}
"""The batches of a frame, in each form."""
