"""Shared memory for what the processes of a soak note. It exists before they start, so a long run allocates nothing.

Times are those of ``time.perf_counter_ns``, one clock for all processes of a machine.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

_COUNT = 8
_ROW = struct.Struct("<QQ")
PACE = 100  # writes a second of the floor
SEEKS = 5  # a second of each reader
SLOT_NS = 100_000_000
"""Of the pauses that end in one slot, the longest is noted."""
WORDS = ("start_ns", "stop", "closed", "rounds", "ticks", "barriers")
"""``closed`` is the number of records plus 1 once the log is closed, ``rounds`` are those of the computing thread."""

Rows = npt.NDArray[np.int64]
"""Begin and end of calls or pauses."""


class Series:
    """Begins and ends that one process notes in order, and others read. When it is full, no more are noted."""

    def __init__(self, rows: int) -> None:
        self._map = mmap.mmap(-1, _COUNT + rows * _ROW.size)
        self._rows = rows
        self._count = 0

    def note(self, begin: int, end: int) -> None:
        """Note one. The row is stored before the count that includes it."""
        if self._count < self._rows:
            _ROW.pack_into(self._map, _COUNT + self._count * _ROW.size, begin, end)
            self._count += 1
            self._map[:_COUNT] = self._count.to_bytes(_COUNT, "little")

    def __len__(self) -> int:
        return int.from_bytes(self._map[:_COUNT], "little")

    def rows(self) -> Rows:
        """A copy of those noted so far."""
        found: npt.NDArray[Any] = np.frombuffer(self._map, np.int64, 2 * len(self), _COUNT)
        return found.reshape(-1, 2).copy()


class Board:
    """Everything that the processes note, and some words that they tell each other."""

    def __init__(self, records: int, seconds: float, readers: int) -> None:
        length = int(seconds) + 120  # a run may end late
        self._words = mmap.mmap(-1, 8 * (len(WORDS) + readers))
        self.appends = Series(records)
        self.floor = Series(length * PACE)
        self.pauses = Series(length * 1_000_000_000 // SLOT_NS)
        self.floor_pauses = Series(length * 1_000_000_000 // SLOT_NS)
        self.seeks = [Series(length * SEEKS) for _ in range(readers)]

    def __getitem__(self, name: str) -> int:
        at = 8 * WORDS.index(name)
        return int.from_bytes(self._words[at : at + 8], "little")

    def __setitem__(self, name: str, value: int) -> None:
        at = 8 * WORDS.index(name)
        self._words[at : at + 8] = value.to_bytes(8, "little")

    def saw(self, reader: int, records: int) -> None:
        """Note how many records a reader was shown."""
        at = 8 * (len(WORDS) + reader)
        self._words[at : at + 8] = records.to_bytes(8, "little")

    def seen(self, reader: int) -> int:
        """How many records a reader was shown."""
        at = 8 * (len(WORDS) + reader)
        return int.from_bytes(self._words[at : at + 8], "little")
