"""What a follower in C asks for, and what it has delivered: the part of ``follow`` that needs the reader."""

from __future__ import annotations

import time
from typing import Protocol

from pmwal.format.index import SparseIndex
from pmwal.format.layout import Superblock
from pmwal.reading.follow import News, Request, Waiter
from pmwal.reading.known_writer import KnownWriter
from pmwal.reading.place import Place
from pmwal.reading.walk import Delivered, View
from pmwal.records import Bound
from pmwal.storage.liveness import Liveness


class Watching(Protocol):
    """What it needs of the reader."""

    _block: Superblock
    _index: SparseIndex
    _liveness: Liveness

    def _check_open(self) -> None: ...

    def _note_start(self, view: View, record: Delivered) -> None: ...


class LiveWatcher:
    """Watches for the known writer's next records of the same epoch, right after the last one."""

    def __init__(self, reader: Watching, known: KnownWriter, place: Place) -> None:
        self._reader, self._known, self._place = reader, known, place
        self._asked_at, self._view = 0.0, place.view

    def request(self, next_seq: int, waiter: Waiter, seconds: float) -> Request | None:
        """What to watch for; None if there is no such writer, or nothing to watch."""
        self._reader._check_open()
        line, last, self._view = self._known.line, self._place.last, self._place.view
        if waiter.page.map is None or not line or last is None or self._view is None or last.seq + 1 != next_seq:
            return None
        self._asked_at = time.monotonic()
        page, at, ring_offset = waiter.page, Bound(last.end, next_seq), self._reader._block.ring_offset
        return page.map, page.fd, ring_offset, line, at, self._view.epoch, self._view, waiter.announce, waiter.pause, seconds

    def deliver(self, news: News) -> int:
        """Note what was delivered meanwhile."""
        line, first_seq, numbers = news
        last = Delivered(*numbers)
        assert self._view is not None
        self._place.deliver(last, self._view)
        self._known.saw(line, self._asked_at)
        self._reader._note_start(self._view, last)
        self._reader._index.drop_before(first_seq)
        return last.seq + 1

    def is_idle(self) -> bool:
        """The page shows nothing new: whether that is all, because its writer is alive."""
        self._reader._check_open()
        alive_at, writer = time.monotonic(), self._reader._liveness.writer()
        if writer is None or not self._known.is_of(writer):
            return False
        self._known.meet(writer, alive_at)
        return True
