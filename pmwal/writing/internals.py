"""What ``events``, ``logs``, ``store`` and ``aio`` may do with a ``Wal`` beyond its public methods. They reach no deeper."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from pmwal.errors import WalFull
from pmwal.reading.walk import View
from pmwal.records import Record
from pmwal.storage.positions import check_links
from pmwal.writing.access import owned
from pmwal.writing.retained import RetainedRecord
from pmwal.writing.wal import Wal

Find = Callable[[Iterator[Record]], Iterable[RetainedRecord]]
"""Finds, among the records of a log, those that it must retain; the most important ones first."""


def retain_found(wal: Wal, find: Find, called: str) -> None:
    """Retain what an earlier process left in the log, once for each handle; ``called`` is what messages call such records.

    What there is no room for is not retained. Raises what ``Wal.append`` raises.
    """
    engine = wal._access.to_store()
    with engine.writing, engine.guard:  # nothing changes between the look at the log and the first store
        if not wal._retained.adopted:
            wal._retained.adopt(find(wal.read()), called)


def retain(wal: Wal, kind: int, payload: bytes) -> RetainedRecord:
    """The retained record with this payload; a new one, not in the log yet, if there is none. ``WalFull`` for one too many."""
    engine = wal._access.to_store()
    with engine.guard:
        return wal._retained.get(kind, payload)


def append_needing(wal: Wal, needed: RetainedRecord, data: bytes, kind: int) -> int:
    """Append a record that depends on a retained one, and the retained one in the same batch if the log has no copy of it.

    It commits as the handle was opened to. Raises what ``Wal.append`` raises.
    """
    return wal._write_path.append_needing(needed, data, kind)


def first_number(wal: Wal, start: int | str | None) -> int:
    """The number with which ``Wal.follow(start)`` begins. Raises what that raises."""
    return wal._number(start, wal._access.to_store().view)


def read_on(wal: Wal, first: int, stop: int, seen: View | None) -> tuple[View, Iterator[Record]]:
    """The log by now, and its records from ``first`` to before ``stop``, as ``Wal.follow`` reads them. Raises what that raises."""
    return wal._read_on(first, stop, seen)


def commit_through(wal: Wal, seq: int) -> None:
    """Make an appended record durable. Unlike ``Wal.wait_durable`` it does not wait for one that was rolled back meanwhile.

    Raises ``PersistError`` and ``WalClosed``.
    """
    wal._access.to_commit()
    wal._write_path.commit_through(seq)


def refuse_failed(wal: Wal) -> None:
    """Raise ``PersistError`` once the medium has failed, and ``WalClosed`` for a closed log, without waiting for a lock."""
    wal._access.to_commit()


def yield_at_barriers(wal: Wal) -> None:
    """Let other threads run Python during every barrier of this log, also where it would be faster to keep them waiting."""
    wal._engine.yield_at_barriers()


def refuse_links(wal: Wal) -> None:
    """``ValueError`` for a log with several hard links, whose consumers are not all known."""
    check_links(wal._engine.mapping.fd, wal.path)


def not_consumed(wal: Wal, seconds: float | None) -> WalFull:
    """The error of a call that has waited so long for consumers."""
    return wal._consumed.refusal(wal._consumed.limit(), seconds)


def held_by(wal: Wal) -> list[str]:
    """Who needs the oldest records of an open log, or why that is not known, in words; empty if none is needed."""
    limit = wal._consumed.limit()
    return limit.holders if limit.next_seq < wal.next_seq else []


def nameless_from(wal: Wal) -> int | None:
    """The first record that may be in a file without a name only; None while the open log's file has one, under any path."""
    return wal._upkeep.nameless_from


def is_unusable(wal: Wal) -> bool:
    """Whether the open log can take no more: its medium has failed, or its file was shortened."""
    return wal._access.poisoned or is_shortened(wal)


def is_elsewhere(wal: Wal) -> bool:
    """Whether the path, looked up now, does not lead to the open log."""
    return wal._upkeep.lost() is not None


def is_shortened(wal: Wal) -> bool:
    """Whether the open log's file was shortened."""
    ring = wal._engine.ring
    try:
        ring.mapping.check_size()
    except OSError:
        return True
    return False


def seen_to(wal: Wal) -> int:
    """The next record at the time, about a second ago while it is used, when the file was last seen whole and under its name."""
    return wal._upkeep.seen_to


def end_of(wal: Wal) -> int:
    """The number of the next record, also of a closed log."""
    return wal._engine.state.head.next_seq


def is_same_log(wal: Wal, other: Wal) -> bool:
    """Whether one continues the other."""
    return wal._engine.block.uuid == other._engine.block.uuid


@contextlib.contextmanager
def nobody_else_stores(wal: Wal) -> Iterator[None]:
    """Until the block ends, other threads wait before they store; if the log is closed in it, they are refused."""
    with wal._engine.writing:
        yield


def overwrites(wal: Wal) -> bool:
    """Whether the log overwrites its oldest records when it is full."""
    return wal._space.overwrites


def is_inside(wal: Wal) -> bool:
    """Whether this thread is inside a call on this log, a batch included, so that a call that stores would be refused."""
    return owned(wal._engine.writing) or owned(wal._engine.guard)
