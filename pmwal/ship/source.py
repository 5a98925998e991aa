"""A log as it is shipped: its records in frames, and the position of its consumer. Blocking.

Invariants
----------
- The position says what the stream is known to have: it follows the stream, also backwards when that has lost something.
- ``released`` is what the writer may free. It never passes the position, nor what the caller allows.
- What is acknowledged is stored before the next frame is read, and at the latest when the consumer is released. So whoever waits
  for an acknowledgement does not wait for the store, and it takes no turn of the thread of its own.
- One thread at a time uses it; only ``close`` may be called by another one. ``acknowledge`` does nothing that may block.
"""

from __future__ import annotations

import contextlib
import struct
from typing import NamedTuple

from pmwal.errors import CorruptWal, Overrun, PmwalError, PositionError, WalClosed, WalUnlinked
from pmwal.format.frame import pack
from pmwal.reading.consumer import Consumer
from pmwal.reading.internals import (
    acknowledged_since,
    bounds_of,
    is_elsewhere,
    next_frame,
    next_record,
    problem_with,
    renewed_consumer,
    version_of,
)
from pmwal.reading.reader import Reader
from pmwal.records import Frame, Record

_NOTE = struct.Struct("<Bqq")
_NOTE_VERSION = 1


class Taken(NamedTuple):
    """What the log has from a number on: a frame, or the number of records that are gone. ``next_seq``: after its newest record."""

    frame: Frame | None
    missed: int
    next_seq: int


class Note(NamedTuple):
    """Kept with the position: when the stream was created, and its number of the log's last message, 0 if it has had none."""

    created_us: int
    number: int

    def pack(self) -> bytes:
        """As bytes of the position."""
        return _NOTE.pack(_NOTE_VERSION, *self)


class _Acknowledged(NamedTuple):
    """The stream has all up to record ``seq``; the writer may free what is ``released``."""

    seq: int
    released: int
    note: Note


class ShippedLog:
    """One log, and its named consumer if the log still has its path."""

    def __init__(self, reader: Reader, consumer: str) -> None:
        self.reader = reader
        self._acknowledged: _Acknowledged | None = None  # and not stored yet
        self._consumer: Consumer | None = None
        with contextlib.suppress(WalUnlinked):  # it was removed, and its records are still there
            self._consumer = renewed_consumer(reader, consumer, "oldest")

    @property
    def gone(self) -> bool:
        """Whether its path leads to another file, or to none."""
        return is_elsewhere(self.reader)

    @property
    def next_seq(self) -> int:
        """The number after the newest record."""
        return bounds_of(self.reader)[1]

    @property
    def version(self) -> bytes:
        """Changes when a writer has made records durable, or has rolled some back."""
        return version_of(self.reader)

    @property
    def first_seq(self) -> int:
        """The number of the oldest record."""
        return bounds_of(self.reader)[0]

    def take(self, first: int, size_max: int) -> Taken:
        """The records from this number on that fit into a body of this size, at least one. ``Overrun`` after a rollback."""
        self.store()
        try:
            frame, next_seq = next_frame(self.reader, self._consumer, first, size_max)
        except Overrun as error:
            if not error.missed:
                raise
            return Taken(None, error.missed, self.next_seq)
        return Taken(frame, 0, next_seq)

    def take_several(self, first: int, size_max: int, total: int) -> list[Taken]:
        """As ``take``, and what follows as long as full frames have no more than ``total`` bytes together."""
        taken = self.take(first, size_max)
        several, left = [taken], total - size_max
        while taken.frame is not None and taken.frame.last + 1 < taken.next_seq and left >= size_max:
            left -= size_max
            try:
                taken = self.take(taken.frame.last + 1, size_max)
            except (CorruptWal, Overrun):  # which the next look meets
                break
            several.append(taken)
        return several

    def wait(self, first: int, size_max: int, seconds: float) -> Taken:
        """Wait, at most this long, until the log has a record of this number, and take it. Nothing is taken as soon as its writer
        has closed it."""
        record, alone = next_record(self.reader, self._consumer, first, seconds)
        if record is None or not alone:
            return self.take(first, size_max)
        return Taken(Frame(first, first, record.cursor, pack([record])), 0, first + 1)

    def has(self, cursor: str) -> bool:
        """Whether the log has the record that a cursor names; or had it, as far as it can tell, because it was freed."""
        try:
            self.reader.read(start=cursor)
        except Overrun as error:
            if not error.missed:
                return False
        return True

    def record(self, seq: int) -> Record | None:
        """The record of this number; None if the log does not have it."""
        try:
            return self.reader[seq]
        except (IndexError, Overrun):
            return None

    # -- the position

    @property
    def position(self) -> int:
        """Number of the last record that was acknowledged."""
        return 0 if self._consumer is None else self._consumer.position

    def acknowledged(self) -> tuple[int, float]:
        """Number of the last record that was acknowledged, and for how many seconds it has been."""
        if self._consumer is None:
            return 0, 0.0
        return self._consumer.position, acknowledged_since(self.reader, self._consumer)

    @property
    def note(self) -> Note | None:
        """What was kept with the position; None if it is a new one."""
        if self._consumer is None:
            return None
        version, created_us, number = _NOTE.unpack_from(self._consumer.application)
        return Note(created_us, number) if version == _NOTE_VERSION else None

    @property
    def problem(self) -> str | None:
        """Why the record that was acknowledged last is not one of this log, in words."""
        return None if self._consumer is None else problem_with(self.reader, self._consumer)

    def settle(self, seq: int, released: int, note: Note) -> None:
        """Let the position be at this record, the last one that the stream has."""
        consumer = self._consumer
        if consumer is None:
            return
        if consumer.position > seq or self.problem is not None:
            released = min(released, seq)
            first, end = bounds_of(self.reader)
            consumer.seek(min(max(released + 1, first), end))
        self.acknowledge(seq, released, note)
        self.store()

    def acknowledge(self, seq: int, released: int, note: Note) -> None:
        """The stream has all up to this record, and the writer may free what is ``released``, once that is stored."""
        self._acknowledged = _Acknowledged(seq, released, note)

    def store(self) -> None:
        """Store what was acknowledged."""
        consumer, acknowledged, self._acknowledged = self._consumer, self._acknowledged, None
        if consumer is None or acknowledged is None:
            return
        seq, released, note = acknowledged
        try:
            seq = max(seq, consumer.position)
            consumer.ack(seq, released=min(released, seq), application=note.pack())
        except PositionError:
            if not self.gone:
                raise
            self.release()
        except (Overrun, ValueError):  # rolled back meanwhile, which the next look finds
            return

    def release(self) -> None:
        """Let another process be the consumer. Idempotent."""
        with contextlib.suppress(PmwalError, OSError):
            self.store()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(PmwalError, OSError):
                consumer.close()

    def close(self) -> None:
        """Close the log, and let another process be the consumer. Idempotent."""
        self.release()
        with contextlib.suppress(WalClosed):
            self.reader.close()
