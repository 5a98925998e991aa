"""The journal of acknowledgements: shared memory that the supervisor owns and the threads of each writer fill in.

Invariants
----------
- The intent of a call is complete in the journal before the call is made, its result after it returned. So every result is in the
  journal, except that of the last call of each thread, whose intent is.
- The byte ``state`` is stored on its own, after the fields that it validates. A kill leaves the thread's stores so far, in order,
  so ``state`` never validates half a field.
- A lane belongs to one thread. A phase has at most one rollback, and ends when every call that began in it has returned.
"""

from __future__ import annotations

import bisect
import enum
import mmap
import struct
import time
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LANES = 32
ENTRIES = 1 << 16  # of a lane in one life; a writer with a full lane closes the log
_HEAD = 4096

Entries = npt.NDArray[np.void]
"""Rows of ``ENTRY``."""

ENTRY = np.dtype(
    [
        ("state", "u1"),
        ("op", "u1"),
        ("durable", "u1"),  # the call returns once its records are durable
        ("lane", "u1"),
        ("phase", "<u4"),
        ("ticket", "<u8"),
        ("count", "<u8"),
        ("argument", "<u8"),  # of truncate and rollback
        ("start_ns", "<u8"),
        ("first", "<u8"),  # results: the first and last number, or one value
        ("last", "<u8"),
        ("end_ns", "<u8"),
    ]
)
_INTENT = struct.Struct("<BBBIQQQQ")
_RESULT = struct.Struct("<QQQ")
_INTENT_AT = ENTRY.fields["op"][1]  # type: ignore[index]
_RESULT_AT = ENTRY.fields["first"][1]  # type: ignore[index]
assert _INTENT_AT + _INTENT.size == _RESULT_AT
assert _RESULT_AT + _RESULT.size == ENTRY.itemsize == 64


class State(enum.IntEnum):
    """The progress of a call; 0 is an unused entry."""

    INTENDED = 1
    DONE = 2
    REFUSED = 3  # it raised or was abandoned: the log may have none of its records


class Op(enum.IntEnum):
    """The calls in a journal."""

    APPEND = 1
    EXTEND = 2
    BATCH = 3
    RESERVE = 4
    ABORT = 5  # a batch or reservation whose block raises
    COMMIT = 6
    WAIT = 7
    TRUNCATE = 8
    ROLLBACK = 9
    NEXT_SEQ = 10  # the property, read at the end of a phase, when no call is under way


STORES = (Op.APPEND, Op.EXTEND, Op.BATCH, Op.RESERVE)


class Progress(enum.IntEnum):
    """The progress of a life."""

    NOTHING = 0
    OPENED = 1
    CLOSED = 2


_OPENED = struct.Struct("<QQQQQ")


class Opened(NamedTuple):
    """The writer's open: the bounds of the log, the times, and the bytes that recovery read."""

    first_seq: int
    next_seq: int
    start_ns: int
    end_ns: int
    bytes_scanned: int


class Journal:
    """The journal. It is created once, before any process starts, and cleared before each life."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _HEAD + LANES * ENTRIES * ENTRY.itemsize)
        rows: npt.NDArray[Any] = np.frombuffer(self._map, ENTRY, LANES * ENTRIES, _HEAD)
        self._lanes = rows.reshape(LANES, ENTRIES)

    def clear(self) -> None:
        """Clear it. No writer may be running."""
        self._map[:_HEAD] = bytes(_HEAD)
        for lane in self._lanes:
            lane[: _used(lane)] = np.zeros((), ENTRY)

    # -- the writer's side

    def opened(self, opened: Opened) -> None:
        """Note that the log is open; no call was made yet."""
        _OPENED.pack_into(self._map, 8, *opened)
        self._map[0] = Progress.OPENED

    def closed(self) -> None:
        """Note that ``close`` has returned."""
        self._map[0] = Progress.CLOSED

    def lane(self, number: int) -> Lane:
        """The lane of a thread."""
        return Lane(self._map, number)

    # -- the supervisor's side; the writer is dead

    @property
    def progress(self) -> Progress:
        """How far the writer got."""
        return Progress(self._map[0])

    @property
    def opening(self) -> Opened | None:
        """The writer's open; None if it did not get that far."""
        return None if self.progress == Progress.NOTHING else Opened(*_OPENED.unpack_from(self._map, 8))

    def entries(self) -> Entries:
        """A copy of all entries; those of a lane are in order."""
        return np.concatenate([lane[: _used(lane)] for lane in self._lanes])


def _used(lane: Entries) -> int:
    """The number of used entries, which are the first of the lane; the others were never touched."""
    return bisect.bisect_left(range(len(lane)), True, key=lambda index: lane["state"][index] == 0)


class Lane:
    """The entries of one thread of the writer."""

    def __init__(self, whole: mmap.mmap, number: int) -> None:
        self._map = whole
        self._number = number
        self._at = _HEAD + number * ENTRIES * ENTRY.itemsize
        self._end = self._at + ENTRIES * ENTRY.itemsize

    @property
    def full(self) -> bool:
        """Whether it takes no more calls; some space is left for nested ones."""
        return self._at + 16 * ENTRY.itemsize > self._end

    def intend(self, op: Op, phase: int, *, durable: bool = False, ticket: int = 0, count: int = 0, argument: int = 0) -> None:
        """Note the call that comes next."""
        now = time.perf_counter_ns()
        _INTENT.pack_into(self._map, self._at + _INTENT_AT, op, durable, self._number, phase, ticket, count, argument, now)
        self._map[self._at] = State.INTENDED

    def done(self, first: int = 0, last: int = 0) -> None:
        """Note the results of the call."""
        _RESULT.pack_into(self._map, self._at + _RESULT_AT, first, last, time.perf_counter_ns())
        self._map[self._at] = State.DONE
        self._at += ENTRY.itemsize

    def refused(self) -> None:
        """Note that the call raised and stored nothing."""
        self._map[self._at] = State.REFUSED
        self._at += ENTRY.itemsize
