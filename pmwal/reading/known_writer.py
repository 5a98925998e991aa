"""What a follower knows of the writer whose live page it watches."""

from __future__ import annotations

import time

from pmwal.format.layout import Superblock
from pmwal.format.ring import Load
from pmwal.reading.follow import PAUSE_MAX
from pmwal.reading.walk import View
from pmwal.storage.live_page import LiveWriter, decode_writer, read_both


class KnownWriter:
    """What one ``follow`` knows of the writer: whether there was one, its last line in the live page, and when it was last alive.

    A line that changed was stored by a living process. One that was killed stores nothing, and another writer's line, or the id of
    its open, differs. So the bounds in the live page may be believed without asking the kernel, for as long as one wait takes at
    most. A writer of version 0.1 has no such id: it is asked for each time.
    """

    __slots__ = ("_alive_at", "_writer", "line", "met")

    def __init__(self) -> None:
        self.met = False
        self.line = b""  # and the id of the open
        self._writer: LiveWriter | None = None
        self._alive_at = 0.0

    def meet(self, writer: LiveWriter, alive_at: float) -> None:
        """This writer was alive at this time (monotonic)."""
        self.met, self._writer = True, writer
        self.saw(writer.line + writer.open_id if writer.open_id else b"", alive_at)

    def is_of(self, writer: LiveWriter) -> bool:
        """Whether the known writer is this one."""
        return self._writer is not None and self._writer.same_process(writer)

    def saw(self, line: bytes, alive_at: float) -> None:
        """The same writer had this line at this time."""
        self.line, self._alive_at = line, alive_at

    def view(self, load: Load, block: Superblock) -> View | None:
        """The known writer's view from the live page, or None if its liveness must be rechecked."""
        live = read_both(load) if self.line else None
        if live is None or self._writer is None or not live[0].possible(block):
            return None
        bounds, line = live
        now = time.monotonic()
        if line != self.line and decode_writer(line).same_process(self._writer):
            self.saw(line, now)
        elif line != self.line or now - self._alive_at >= PAUSE_MAX:
            return None
        return View(*bounds, self._writer.identity, open_id=self._writer.open_id)
