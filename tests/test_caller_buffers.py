"""Buffers that the caller keeps (scenario 24c): changing them later never changes a record or breaks its checksum."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pmwal
from conftest import Place
from support import BarrierRecorder, Step, kill, open_small, payloads

pytestmark = pytest.mark.both_engines

KEEPERS: dict[str, Callable[[memoryview], Any]] = {
    "slice": lambda view: view[3:9],
    "array": lambda view: np.frombuffer(view, np.uint8),
    "view": memoryview,
}


@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS.keys())
def test_view_that_outlives_its_reserve_is_not_committed(place: Place, keep: Callable[[memoryview], Any]) -> None:
    """Scenario 24c: a view that is still alive could change the bytes after their checksum was computed."""
    wal = open_small(place.path, **place.options)
    reservation = wal.reserve(100)
    kept: list[Any] = []
    with pytest.raises(BufferError), reservation as view:
        kept.append(keep(view))
    with pytest.raises(ValueError, match="no number"):
        assert reservation.seq
    assert wal.append(b"next") == 1
    kept[0][0] = 9  # harmless now
    kept.clear()
    assert payloads(wal) == [b"next"]
    kill(wal)
    wal = open_small(place.path, **place.options)
    assert payloads(wal) == [b"next"]
    wal.close()


def test_reserved_view_cannot_be_used_after_its_block(shm_place: Place) -> None:
    """Scenario 24c: the view is released before the record is stored, and it begins as zeros."""
    wal = open_small(shm_place.path, **shm_place.options)
    wal.append(b"\xff" * 300)
    wal.truncate(before=2)
    reservation = wal.reserve(64)
    with reservation as view:
        assert bytes(64) == bytes(view)
        view[:5] = b"hello"
    with pytest.raises(ValueError, match="released"):
        view[0] = 1
    assert b"hello".ljust(64, b"\0") == wal[reservation.seq].data
    wal.close()


@pytest.mark.parametrize("kind", ["append", "extend", "batch"])
def test_source_changed_while_it_is_stored_does_not_change_the_record(place: Place, kind: str) -> None:
    """Scenario 24c: at each step of the call the caller's bytearray gets other bytes; the record is what it was at the call."""
    seam = BarrierRecorder()
    wal = open_small(place.path, seam=seam, **place.options)
    source = bytearray(b"original" * 20)
    value = 0

    def change(event: Step) -> None:
        nonlocal value
        value += 1
        source[:] = bytes([value % 256]) * len(source)

    seam.before = change
    if kind == "append":
        wal.append(source)
    elif kind == "extend":
        wal.extend([source, memoryview(source)])
    else:
        with wal.batch() as batch:
            batch.append(source)
            source[:] = b"too late" * 20
    seam.before = None
    assert value > 0
    assert {b"original" * 20} == set(payloads(wal))
    kill(wal)
    wal = open_small(place.path, **place.options)
    assert {b"original" * 20} == set(payloads(wal))
    wal.close()


def test_source_changed_by_another_thread_never_breaks_a_checksum(shm_place: Place) -> None:
    """Scenario 24c with a thread that changes the bytearray all the time: every record reads back whole."""
    wal = open_small(shm_place.path, on_full="overwrite", **shm_place.options)
    source = bytearray(3000)
    stop = threading.Event()

    def change() -> None:
        value = 0
        while not stop.is_set():
            value = (value + 1) % 256
            source[:] = bytes([value]) * 3000

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(150):
            seq = wal.append(source)
            assert seq == wal[seq].seq
    finally:
        stop.set()
        thread.join(30)
    kill(wal)
    assert pmwal.verify(shm_place.path).outcome == "recovered"
