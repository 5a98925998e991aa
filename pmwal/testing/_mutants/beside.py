"""Broken writers and readers beside each other: a torn live page, a liveness that is wrong, damage that is none.

Patches ``LivePage`` (show, __init__), ``WriterLock.announce``, ``is_announced`` in ``pmwal.storage.liveness``, ``_Beside`` and
``_is_undisturbed`` in ``pmwal.recovery.snapshot``, and ``Reader._ended_before``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pmwal.format.layout import LINE, LIVE_BOUNDS, LIVE_OFFSET, LIVE_SECOND_OFFSET, LIVE_WRITER_OFFSET
from pmwal.reading.reader import Reader
from pmwal.recovery import snapshot
from pmwal.recovery.snapshot import _Beside
from pmwal.storage import liveness
from pmwal.storage.live_page import LiveBounds, LivePage
from pmwal.storage.lock import WriterLock
from pmwal.storage.mapping import Mapping
from pmwal.testing._mutants.seam import Patch

_WORD = 8


def _shown_by(store: Callable[[Mapping, bytes], None]) -> list[Patch]:
    """Store the line of the bounds, and its second copy, in another way."""

    def show(self: LivePage, bounds: LiveBounds, published: Any) -> None:
        self._version += 1
        tail, durable = bounds.tail, bounds.durable
        numbers = (*tail, durable.position, durable.next_seq - 1, bounds.epoch, bounds.epoch_first_seq)
        store(self._mapping, LIVE_BOUNDS.struct.pack(self._version, *numbers, self._version))
        self._mapping.store(LIVE_WRITER_OFFSET, self.writer_line(published))
        self._wake()

    return [Patch(LivePage, "show", show)]


def _ordered(mapping: Mapping, offset: int, line: bytes) -> None:
    for start, end in ((0, _WORD), (_WORD, LINE - _WORD), (LINE - _WORD, LINE)):
        mapping.store(offset + start, line[start:end])


def versions_first() -> list[Patch]:
    """Store both versions of the line before what is between them."""

    def store(mapping: Mapping, line: bytes) -> None:
        mapping.store(LIVE_OFFSET, line[:_WORD])
        mapping.store(LIVE_OFFSET + LINE - _WORD, line[-_WORD:])
        mapping.store(LIVE_OFFSET + _WORD, line[_WORD:-_WORD])
        _ordered(mapping, LIVE_SECOND_OFFSET, line)

    return _shown_by(store)


def second_copy_missing() -> list[Patch]:
    """Store the line once: a reader of a torn one has only the newest slot."""
    return _shown_by(lambda mapping, line: _ordered(mapping, LIVE_OFFSET, line))


def second_copy_first_half() -> list[Patch]:
    """Store the second copy while the first is torn."""

    def store(mapping: Mapping, line: bytes) -> None:
        mapping.store(LIVE_OFFSET, line[: LINE // 2])
        _ordered(mapping, LIVE_SECOND_OFFSET, line)
        mapping.store(LIVE_OFFSET + LINE // 2, line[LINE // 2 :])

    return _shown_by(store)


def unlocked_writer() -> list[Patch]:
    """Say that the writer's byte is locked, and leave it free."""
    return [Patch(WriterLock, "announce", lambda self: True)]


def byte_unclaimed() -> list[Patch]:
    """Lock no byte: only the writer's process id is left."""
    return [Patch(WriterLock, "announce", lambda self: False)]


def writer_never_dies() -> list[Patch]:
    """Believe in a writer whose byte is free."""
    return [Patch(liveness, "is_announced", lambda fd: True)]


def damage_not_looked_at_again() -> list[Patch]:
    """Call a record damaged that was not whole once, although the writer may have freed its space."""

    def shown_now(self: _Beside) -> LiveBounds:
        return self.shown

    return [Patch(_Beside, "_shown_now", shown_now)]


def open_id_kept() -> list[Patch]:
    """Give every open the same id."""
    original = LivePage.__init__

    def page(self: LivePage, *args: Any) -> None:
        original(self, *args)
        self.open_id = bytes(range(16))

    return [Patch(LivePage, "__init__", page)]


def verdict_not_looked_at_again() -> list[Patch]:
    """Keep a verdict without a writer although one came during it."""
    return [Patch(snapshot, "_is_undisturbed", lambda *_: True)]


def end_from_an_older_view() -> list[Patch]:
    """End a follow when the log was closed, even if a second writer has come and gone since the records were looked for."""
    return [Patch(Reader, "_ended_before", lambda self, seq: self._judge().report.outcome == "clean")]
