"""A log that becomes too small for a record that a thread is about to store: the call ends with ``RecordTooLarge``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import pmwal
from callers import PATIENCE, Call, until
from pmwal import events
from pmwal.errors import RecordTooLarge
from support import contents, look, open_small

pytestmark = pytest.mark.both_engines

LENGTH = 7000  # of a payload that fits into a ring of 16 KiB, and not into one of 12 KiB

Store = Callable[[pmwal.Wal, Callable[[], None]], object]
"""Stores a record of this length. What it is given is called once the length was compared with the ring, if that can be told."""


def in_batch(wal: pmwal.Wal, begun: Callable[[], None]) -> None:
    with wal.batch() as batch:
        batch.append(b"small")
        batch.append(bytes(LENGTH))
        begun()


def in_reservation(wal: pmwal.Wal, begun: Callable[[], None]) -> None:
    with wal.reserve(LENGTH) as view:
        view[:2] = b"ab"
        begun()


def by_append(wal: pmwal.Wal, begun: Callable[[], None]) -> None:
    begun()
    wal.append(bytes(LENGTH))


def by_extend(wal: pmwal.Wal, begun: Callable[[], None]) -> None:
    begun()
    wal.extend([b"small", bytes(LENGTH)])


def by_extend_with_an_iterable(wal: pmwal.Wal, begun: Callable[[], None]) -> None:
    def items() -> Iterator[bytes]:
        yield bytes(LENGTH)
        begun()
        yield b"small"

    wal.extend(items())


def by_extend_array(wal: pmwal.Wal, begun: Callable[[], None]) -> None:
    begun()
    wal.extend_array(np.zeros((1, LENGTH), dtype="u1"))


def by_event(wal: pmwal.Wal, begun: Callable[[], None]) -> None:
    begun()  # a new event waits for its turn, too
    event = events.Logger(wal).event("{}")
    event("x" * LENGTH)


STORES = [in_batch, in_reservation, by_append, by_extend, by_extend_with_an_iterable, by_extend_array, by_event]


def check_usable(wal: pmwal.Wal, path: Path, expected: list[tuple[int, bytes]]) -> None:
    """Nothing of the call is there, its lock is free, and the next record has the next number."""
    assert contents(wal) == expected
    assert Call(lambda: wal.append(b"next")).result() == wal.next_seq - 1 == len(expected) + 1
    wal.close()
    assert look(path).report.case == "R1"


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.__name__)
def test_thread_that_waits_for_room_is_refused(path: Path, store: Store) -> None:
    """The ring that it gets is emptier, but too small."""
    with open_small(path, on_full="wait") as wal:
        wal.extend([bytes(1000)] * 10)
        expected = contents(wal)
        call = Call(lambda: store(wal, lambda: None))
        until(lambda: wal.stats().waits == 1)
        wal.resize("12KiB")
        with pytest.raises(RecordTooLarge, match="the largest payload of this log is"):
            call.result()
        check_usable(wal, path, expected)


@pytest.mark.parametrize("store", [by_append, by_extend, by_extend_array, by_event], ids=lambda store: store.__name__)
def test_thread_that_waits_for_its_turn_is_refused(path: Path, store: Store) -> None:
    """It began while another one was inside a batch, and the log became smaller meanwhile."""
    with open_small(path) as wal:
        begun = threading.Event()
        with wal.batch() as batch:
            batch.append(b"first")
            call = Call(lambda: store(wal, begun.set))
            assert begun.wait(PATIENCE)
            call.join(0.05)  # the result is the same when it has not got to the lock
            wal.resize("12KiB")
        with pytest.raises(RecordTooLarge, match="the largest payload of this log is"):
            call.result()
        check_usable(wal, path, [(1, b"first")])


@pytest.mark.parametrize("store", [in_batch, in_reservation, by_extend_with_an_iterable], ids=lambda store: store.__name__)
@pytest.mark.parametrize("commit", ["each", "manual"])
def test_what_was_begun_is_refused_at_its_end(path: Path, store: Store, commit: str) -> None:
    """Another thread makes the log smaller inside the block, or while the records are made."""
    with open_small(path, commit=commit) as wal:
        with pytest.raises(RecordTooLarge, match="the largest payload of this log is"):
            store(wal, lambda: Call(lambda: wal.resize("12KiB")).result())
        check_usable(wal, path, [])


def test_what_still_fits_is_stored(path: Path) -> None:
    """The numbers that were told are those in the new file."""
    with open_small(path) as wal:
        wal.append(b"one")
        with wal.batch() as batch:
            told = [batch.append(bytes(3000)), batch.append(b"b")]
            Call(lambda: wal.resize("12KiB")).result()
        reservation = wal.reserve(3000)
        with reservation as view:
            Call(lambda: wal.resize("8KiB")).result()
            view[:1] = b"r"
        assert (told, reservation.seq) == ([2, 3], 4)
        check_usable(wal, path, [(1, b"one"), (2, bytes(3000)), (3, b"b"), (4, b"r" + bytes(2999))])
