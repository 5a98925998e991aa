"""Reading a file around what its medium cannot give, for salvage and repair.

Invariants
----------
- What cannot be read, or was cut off the file's end, is read as zeros, which are never a valid structure, and is reported: nobody
  mistakes it for read.
- It is tried once: a failing disk takes seconds for each attempt.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from pmwal.errors import PersistError
from pmwal.format.layout import PAGE
from pmwal.storage.mapping import Mapping
from pmwal.storage.medium import Medium
from pmwal.storage.seam import Seam

_UNREADABLE = frozenset(
    {
        errno.EIO,
        errno.ENODATA,
        errno.EREMOTEIO,
        errno.EILSEQ,
        errno.ETIMEDOUT,
        errno.ENOLINK,
        errno.EBADMSG,
        errno.EUCLEAN,
    }
)  # what block devices (blk_status_t) and checksumming file systems answer for a sector that is gone


class ReadAround:
    """Loads bytes of a file, with zeros for the pages that cannot be read."""

    def __init__(self, load: Callable[[int, int], bytes], pages: set[int]) -> None:
        self._load = load
        self._pages = pages  # numbers of the pages that could not be read

    def load(self, offset: int, length: int) -> bytes:
        """A private copy of these bytes."""
        first, last = offset // PAGE, (offset + max(length, 1) - 1) // PAGE
        if first == last and first in self._pages:
            return bytes(length)
        if not self._pages or not any(first <= page <= last for page in self._pages):
            try:
                return self._load(offset, length)
            except PersistError:
                raise  # the file was shortened
            except OSError as error:
                if error.errno not in _UNREADABLE:
                    raise
            if first == last:
                self._pages.add(first)
                return bytes(length)
        middle = (first + last + 1) // 2 * PAGE
        return self.load(offset, middle - offset) + self.load(middle, offset + length - middle)


class AroundMapping(Mapping):
    """A log's file, not mapped, and read around what cannot be read. ``pages``: the numbers of those that could not be read yet.

    The file may be shorter than ``size``.
    """

    def __init__(self, fd: int, size: int, medium: Medium, seam: Seam, pages: set[int]) -> None:
        super().__init__(fd, size, medium, seam, writable=False)
        self._pages = pages
        self.missing = max(0, size - os.lseek(fd, 0, os.SEEK_END))

    def load(self, offset: int, length: int) -> bytes:
        """A private copy of these bytes of the file."""
        there = max(0, min(length, self.size - self.missing - offset))
        data = ReadAround(super().load, self._pages).load(offset, there) if there else b""
        return data + bytes(length - there) if there < length else data

    @property
    def unreadable(self) -> tuple[tuple[int, int], ...]:
        """What could not be read so far, as (start, end) offsets in the file."""
        ranges: list[tuple[int, int]] = []
        stop = self.size - self.missing
        pages = [(page * PAGE, min((page + 1) * PAGE, stop)) for page in sorted(self._pages)]
        for start, end in pages + [(stop, self.size)] * (self.missing > 0):
            first = ranges.pop()[0] if ranges and ranges[-1][1] == start else start
            ranges.append((first, end))
        return tuple(ranges)
