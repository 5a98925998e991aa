"""Reading records packed into frames, to be shipped.

Invariants
----------
- A frame has records of consecutive numbers, each checked as ``read`` checks it, and all of one view of the log.
- Its last record counts as delivered. So the next frame begins there, or with the error that a rollback since then calls for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from pmwal.format.payload import as_integer
from pmwal.reading.arrays import ArrayReader
from pmwal.reading.walk import View, Walker
from pmwal.records import Bound, Frame


class Stretch(NamedTuple):
    """The records of a view from number ``first`` up to, not including, ``stop``, what reads them, and where each one starts."""

    view: View
    first: int
    stop: int
    walker: Walker
    locate: Callable[[int], Bound]


class FrameReader(ArrayReader):
    """A handle that reads records into frames."""

    @abstractmethod
    def _stretch(self, call: str, start: int | str | None, stop: int | None) -> Stretch:
        """The records that ``read(start, stop)`` would return. ``call`` is for errors."""

    def frame(self, start: int | str, *, size_max: int, count_max: int | None = None) -> Frame | None:
        """The records from number ``start`` on as one body of at most ``size_max`` bytes; None while nothing is durable there.

        A record that is longer than that comes alone, in a longer body. ``count_max`` limits the number of records. ``start`` may
        be a cursor. Raises as ``read`` does; where a later record is damaged or gone, the frame ends before it, and the next one
        raises.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b", b"c"])
        ...     with pmwal.open(path, "r") as reader:
        ...         frame = reader.frame(1, size_max=1024, count_max=2)
        ...         rest = reader.frame(frame.cursor, size_max=1024)
        >>> (frame.first, frame.last), (rest.first, rest.last)
        ((1, 2), (3, 3))
        """
        size_max, count = _at_least_one("size_max", size_max), None
        if count_max is not None:
            count = _at_least_one("count_max", count_max)
        view, first, stop, walker, locate = self._stretch("frame()", start, None)
        if count is not None:
            stop = min(stop, first + count)
        return walker.frame(view, locate(first), stop, size_max) if first < stop else None


def _at_least_one(name: str, value: int) -> int:
    number = as_integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, not {number}")
    return number
