"""A log that was put into a new file under its name, by a resize: where a follow continues, and a new consumer begins.

Invariants
----------
- A follow looks at the path only while the old file has no writer and no record that was not delivered, and at most once a second
  until it is ended. A new consumer does when the name no longer leads to the old file; a follow then has the rest from the new one,
  where all records have their numbers.
- The new file is the log's if it has its uuid. The records keep their numbers, but not their positions and checksums: the last one
  that was delivered is compared by its cursor.
- What else reads the old file has it open until the reader is closed, and finds its records there, also if it was begun and not yet
  used when the reader turned to the new file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from pmwal.cursor import cursor_of
from pmwal.errors import Overrun, PmwalError
from pmwal.format.layout import PAGE
from pmwal.format.ring import RingReader
from pmwal.reading.walk import Delivered
from pmwal.recovery.superblock import Identity
from pmwal.storage.mapping import Mapping

File = tuple[Mapping, Identity]

_LOOK_SECONDS = 1.0


class Succession:
    """Looks for the file that took the place of a log's own. ``open_again`` opens what the path leads to now."""

    def __init__(self, file: File, open_again: Callable[[], File] | None) -> None:
        self.file = file
        self._open_again = open_again
        self._looked_at = time.monotonic()

    def look(self, *, ended: bool) -> File | None:
        """The new file, which the caller then owns; None if the path does not lead to one."""
        now = time.monotonic()
        if self._open_again is None or (now - self._looked_at < _LOOK_SECONDS and not ended):
            return None
        self._looked_at = now
        try:
            mapping, identity = self._open_again()
        except (OSError, PmwalError):
            return None
        mine, its = self.file[0], mapping
        if identity.block.uuid == self.file[1].block.uuid and not os.path.samestat(os.fstat(mine.fd), os.fstat(its.fd)):
            return mapping, identity
        mapping.close()
        return None


def cursor_in(file: File, last: Delivered) -> str:
    """The cursor of a record that was delivered from this file; ``Overrun`` if it is not there any more."""
    mapping, identity = file
    ring = RingReader(identity.block, mapping.load, chunk=PAGE)
    found = ring.whole(last.position)
    record = None if found is None or (found.header.seq, found.header.crc) != (last.seq, last.crc) else ring.record(found)
    if record is None:
        raise Overrun(f"record {last.seq}, read before, cannot be compared with the log's new file; read again from an earlier one")
    return str(cursor_of(record.seq, record.kind, record.time_ns, record.data))
