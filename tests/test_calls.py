"""Calls that append: what append, extend, batch and reserve take, return and refuse."""

from __future__ import annotations

import array
import contextlib
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
from callers import Call, stage
from conftest import Place
from pmwal.format.layout import HEADER
from pmwal.storage.name import LogName
from support import SMALL_RING, BarrierRecorder, open_small, payloads

pytestmark = pytest.mark.both_engines

# -- payloads and kinds


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        (b"", b""),
        (b"bytes", b"bytes"),
        (bytearray(b"array"), b"array"),
        (memoryview(b"view")[1:3], b"ie"),
        (memoryview(bytes(range(6))).cast("B", (2, 3)), bytes(range(6))),
        (array.array("H", [1, 2]), b"\x01\x00\x02\x00"),
        (np.arange(3, dtype="<u4"), b"\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00"),
        (np.zeros((0, 4)), b""),
    ],
    ids=["empty", "bytes", "bytearray", "memoryview", "memoryview-2d", "array", "numpy", "numpy-empty"],
)
def test_any_contiguous_buffer_is_a_record(path: Path, data: Any, stored: bytes) -> None:
    """What supports the buffer protocol is stored as its bytes, by every call."""
    with open_small(path) as wal:
        wal.append(data)
        wal.extend([data])
        stage(wal, data)
        assert payloads(wal) == [stored] * 3


@pytest.mark.parametrize("items", ["text", b"bytes", bytearray(b"bytes"), ""], ids=["str", "bytes", "bytearray", "empty"])
def test_one_record_in_place_of_several_is_refused(path: Path, items: Any) -> None:
    """It would be taken apart; the message says what is wanted, and names append."""
    with open_small(path) as wal:
        with pytest.raises(TypeError, match=f"^extend takes a list of records, not {type(items).__name__}; .* with append$"):
            wal.extend(items)
        assert wal.next_seq == 1


@pytest.mark.parametrize(
    ("data", "error", "advice"),
    [
        ("text", TypeError, "encode it first"),
        (7, TypeError, "bytes or another contiguous buffer, not int"),
        (None, TypeError, "not NoneType"),
        ([1, 2], TypeError, "not list"),
        (memoryview(b"abcdef")[::2], ValueError, "not contiguous; copy it first"),
        (np.zeros((4, 4))[:, 1], ValueError, "ascontiguousarray"),
        (bytes(SMALL_RING), pmwal.RecordTooLarge, "the largest payload of this log is 8144 bytes"),
    ],
    ids=["str", "int", "none", "list", "strided", "numpy-column", "too-large"],
)
def test_refused_payload_stores_nothing(path: Path, data: Any, error: type[Exception], advice: str) -> None:
    """What cannot be a record is refused with advice before anything is stored, also after good items."""
    seam = BarrierRecorder()
    with open_small(path, seam=seam) as wal:
        before = list(seam.events)
        with pytest.raises(error, match=advice):
            wal.append(data)
        with pytest.raises(error, match=advice):
            wal.extend([b"good", data])
        with pytest.raises(error, match=advice):
            stage(wal, b"good", data)
        assert seam.events == before
        assert wal.append(b"next") == 1


def test_largest_record_fits_and_one_byte_more_does_not(path: Path) -> None:
    """The limit in the message of RecordTooLarge is the real one, for reserve too."""
    with open_small(path) as wal:
        largest = SMALL_RING // 2 - HEADER
        with pytest.raises(pmwal.RecordTooLarge, match=f"record of {largest + 1} bytes .* largest payload .* {largest} "):
            wal.append(bytes(largest + 1))
        with pytest.raises(pmwal.RecordTooLarge, match=f"largest payload .* {largest} "):
            wal.reserve(largest + 1)
        assert wal.append(bytes(largest)) == 1
        with wal.reserve(largest):
            pass
        assert wal.free == 0


def test_batch_larger_than_the_ring_is_too_large(path: Path) -> None:
    """Records that fit alone and never together are refused as too large, not as full."""
    with open_small(path) as wal:
        with pytest.raises(pmwal.RecordTooLarge, match="3 records of 18000 bytes together cannot fit"):
            wal.extend([bytes(6000)] * 3)
        with pytest.raises(pmwal.RecordTooLarge, match="together cannot fit"):
            stage(wal, *[bytes(6000)] * 3)
        assert len(wal) == 0


@pytest.mark.parametrize("on_full", ["raise", "wait", "overwrite"])
def test_batch_that_fits_only_elsewhere_in_the_ring_is_full_and_never_too_large(path: Path, on_full: str) -> None:
    """RecordTooLarge means "never": a batch that only the gap at the ring's end keeps out is WalFull, wherever the log ends."""
    with open_small(path, on_full=on_full) as wal:
        verdicts = set()
        for size in range(0, 8000, 200):
            wal.truncate(before=wal.append(bytes(size)) + 1)
            try:
                wal.extend([bytes(7000), bytes(7000)])
            except pmwal.WalFull:
                verdicts.add("full")
            else:
                verdicts.add("stored")
                wal.truncate(before=wal.next_seq)
            with pytest.raises(pmwal.RecordTooLarge):
                wal.extend([bytes(6000)] * 3)
        assert verdicts == {"full", "stored"}


def test_kind_goes_with_each_record(path: Path) -> None:
    """Kinds from 0 to 65535 come back from every call."""
    with open_small(path) as wal:
        wal.append(b"", kind=65535)
        wal.extend([b"", b""], kind=1)
        with wal.batch() as batch:
            batch.append(b"", kind=2)
            batch.append(b"")
        with wal.reserve(0, kind=3):
            pass
        assert [record.kind for record in wal] == [65535, 1, 1, 2, 0, 3]


@pytest.mark.parametrize("kind", [-1, 65536, 1.5, "1", None])
def test_impossible_kind_is_refused(path: Path, kind: Any) -> None:
    """A kind outside its field is a ValueError that names the range, and stores nothing."""
    with open_small(path) as wal:
        with pytest.raises(ValueError, match="kind must be an int from 0 to 65535"):
            wal.append(b"", kind=kind)
        with pytest.raises(ValueError, match="0 to 65535"):
            wal.extend([b""], kind=kind)
        with pytest.raises(ValueError, match="0 to 65535"):
            stage(wal, b"", kind=kind)
        with pytest.raises(ValueError, match="0 to 65535"):
            wal.reserve(1, kind=kind)
        assert len(wal) == 0


def test_time_of_a_record_is_the_clock_of_its_append(path: Path) -> None:
    """time_ns is the wall clock in nanoseconds."""
    before = time.time_ns()
    with pmwal.open(path, size="64KiB") as wal:
        wal.append(b"")
        assert before <= wal[1].time_ns <= time.time_ns()


# -- extend


def test_extend_of_nothing_stores_nothing(path: Path) -> None:
    """For nothing it returns (next_seq, next_seq - 1) and touches nothing."""
    seam = BarrierRecorder()
    with open_small(path, seam=seam) as wal:
        wal.append(b"")
        before = list(seam.events)
        assert wal.extend([]) == (2, 1)
        assert wal.extend(iter(())) == (2, 1)
        assert seam.events == before


def test_extend_takes_any_iterable(path: Path) -> None:
    """A generator is taken whole before anything is stored."""
    with open_small(path) as wal:
        assert wal.extend(str(number).encode() for number in range(3)) == (1, 3)
        assert payloads(wal) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("items", ["text", b"bytes", 7])
def test_extend_of_one_record_is_refused(path: Path, items: Any) -> None:
    """A record given instead of a list of records is an error, and not one record for each byte of it."""
    with open_small(path) as wal:
        with pytest.raises(TypeError):
            wal.extend(items)
        assert len(wal) == 0


def test_extend_is_one_commit(shm_place: Place) -> None:
    """However many records, the medium is asked once."""
    with open_small(shm_place.path, **shm_place.options) as wal:
        before = wal.stats()
        wal.extend([b"x"] * 20)
        after = wal.stats()
        assert (after.appends - before.appends, after.commits - before.commits) == (20, 1)


# -- batch and reserve


def test_empty_batch_stores_nothing(path: Path) -> None:
    """A batch without records ends without a commit; its last number is one before its first."""
    seam = BarrierRecorder()
    with open_small(path, seam=seam) as wal:
        before = list(seam.events)
        with wal.batch() as batch:
            assert (batch.first, batch.last, len(batch)) == (1, 0, 0)
        assert seam.events == before


def test_exception_discards_the_batch(path: Path) -> None:
    """What was staged is gone, its numbers are given out again."""
    with open_small(path) as wal:
        with contextlib.suppress(KeyError), wal.batch() as batch:
            assert batch.append(b"lost") == 1
            raise KeyError
        assert wal.append(b"kept") == 1
        assert payloads(wal) == [b"kept"]


def test_batch_needs_its_block(path: Path) -> None:
    """Appending to a batch outside its with block says what to do."""
    with open_small(path) as wal:
        batch = wal.batch()
        with pytest.raises(ValueError, match="inside its with block"):
            batch.append(b"")
        with batch:
            batch.append(b"")
        with pytest.raises(ValueError, match="inside its with block"):
            batch.append(b"")
        assert (batch.first, batch.last, len(wal)) == (1, 1, 1)


def test_batch_used_twice_stores_nothing_twice(path: Path) -> None:
    """Entering a batch again is refused or starts an empty one; its records never appear a second time."""
    with open_small(path) as wal:
        batch = wal.batch()
        with batch:
            batch.append(b"once")
        try:
            with batch:
                batch.append(b"again")
        except ValueError:
            assert payloads(wal) == [b"once"]
        else:
            assert payloads(wal) == [b"once", b"again"]


def test_reserved_bytes_are_zero_and_filled_in_place(path: Path) -> None:
    """The view has the length asked for; what was not filled is zero."""
    with open_small(path) as wal:
        for _ in range(2):
            reservation = wal.reserve(8)
            with reservation as view:
                assert (len(view), bytes(view), view.readonly) == (8, bytes(8), False)
                view[:5] = b"hello"
            assert wal[reservation.seq].data == b"hello\0\0\0"


def test_reservation_has_no_number_before_its_end(path: Path) -> None:
    """seq is a ValueError before the record is stored, and after an exception."""
    with open_small(path) as wal:
        reservation = wal.reserve(1)
        with pytest.raises(ValueError, match="no number"):
            _ = reservation.seq
        with pytest.raises(KeyError), reservation:
            raise KeyError
        with pytest.raises(ValueError, match="no number"):
            _ = reservation.seq
        assert len(wal) == 0


def test_reservation_is_used_once(path: Path) -> None:
    """A second with block over the same reservation is refused."""
    with open_small(path) as wal:
        reservation = wal.reserve(1)
        with reservation:
            pass
        with pytest.raises(ValueError, match="used once; make another"), reservation:
            pass
        assert len(wal) == 1


def test_reserve_checks_its_length(path: Path) -> None:
    """Less than nothing and what is no number are refused at the call; nothing is a record."""
    with open_small(path) as wal:
        with pytest.raises(ValueError, match="cannot reserve -1 bytes"):
            wal.reserve(-1)
        for wrong in (1.5, "1", None):
            with pytest.raises(TypeError):
                wal.reserve(wrong)  # type: ignore[arg-type]
        with wal.reserve(0) as view:
            assert len(view) == 0
        assert payloads(wal) == [b""]


@pytest.mark.parametrize("keep", [lambda view: view[:2], np.asarray], ids=["slice", "numpy"])
def test_view_that_outlives_its_block_is_not_committed(path: Path, keep: Callable[[memoryview], Any]) -> None:
    """The bytes could still change, so it is a BufferError that says so, and the log stays usable."""
    with open_small(path) as wal:
        with pytest.raises(BufferError, match="still alive"), wal.reserve(4) as view:
            alive = keep(view)
        assert len(alive) > 0
        assert wal.append(b"next") == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda wal: wal.append(b""),
        lambda wal: wal.extend([b""]),
        lambda wal: wal.extend([]),
        lambda wal: wal.batch().__enter__(),
        lambda wal: wal.reserve(1).__enter__(),
        lambda wal: wal.rollback(after=0),
    ],
    ids=["append", "extend", "extend-nothing", "batch", "reserve", "rollback"],
)
@pytest.mark.parametrize("outer", [pmwal.Wal.batch, lambda wal: wal.reserve(1)], ids=["in-batch", "in-reserve"])
def test_call_inside_a_batch_or_reserve_is_refused(path: Path, outer: Callable[[Any], Any], call: Callable[[Any], Any]) -> None:
    """The same thread would wait for itself, so it gets an error; the outer block still works."""
    with open_small(path) as wal:
        with outer(wal) as inner:
            with pytest.raises(pmwal.ReentrantCall, match="already inside a call"):
                call(wal)
            if isinstance(inner, pmwal.Batch):
                inner.append(b"\0")
        assert payloads(wal) == [b"\0"]


@pytest.mark.parametrize("outer", [pmwal.Wal.batch, lambda wal: wal.reserve(1)], ids=["in-batch", "in-reserve"])
def test_close_inside_a_batch_or_reserve_discards_it(path: Path, outer: Callable[[Any], Any]) -> None:
    """The log is closed cleanly, whatever block was open; its end says that it stored nothing."""
    wal = open_small(path)
    wal.append(b"before")

    def close_inside() -> None:
        with outer(wal) as inner:
            if isinstance(inner, pmwal.Batch):
                inner.append(b"staged")
            wal.close()

    with pytest.raises(pmwal.WalClosed):
        close_inside()
    assert pmwal.verify(path).case == "R1"
    with open_small(path) as wal:
        assert payloads(wal) == [b"before"]


@pytest.mark.parametrize("outer", [pmwal.Wal.batch, lambda wal: wal.reserve(1)], ids=["batch", "reserve"])
def test_other_threads_wait_for_a_batch_and_a_reserve(path: Path, outer: Callable[[Any], Any]) -> None:
    """Another thread's append gets the number after the block's."""
    with open_small(path) as wal:
        with outer(wal) as inner:
            other = Call(lambda: wal.append(b"after"))
            other.join(0.02)
            assert other.is_alive()
            if isinstance(inner, pmwal.Batch):
                inner.append(b"\0")
        assert other.result() == 2
        assert payloads(wal) == [b"\0", b"after"]


def test_reading_inside_a_batch_works(path: Path) -> None:
    """A batch may depend on records in the log."""
    with open_small(path) as wal:
        wal.append(b"a")
        with wal.batch() as batch:
            batch.append(wal[1].data * 2)
            assert (payloads(wal), wal.commit()) == ([b"a"], 1)
        assert payloads(wal) == [b"a", b"aa"]


def test_iterable_may_not_append_behind_the_back_of_extend_with_holes(path: Path) -> None:
    """An append from inside the iterable given to extend works or raises; the numbers stay without a hole."""
    with open_small(path) as wal:

        def items() -> Any:
            yield b"x"
            wal.append(b"inner")
            yield b"y"

        first, last = wal.extend(items())
        assert payloads(wal) == [b"inner", b"x", b"y"]
        assert (first, last) == (2, 3)


# -- finalizers


@pytest.mark.parametrize("seen", [None, "another file has its name"])
@pytest.mark.parametrize("call", [lambda wal: wal.truncate(before=1), lambda wal: wal.reserve(8).__enter__()])
def test_handle_that_is_closed_while_it_looks_at_its_file_says_so(
    call: Callable[[pmwal.Wal], Any], seen: str | None, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer or another thread closed it: the medium has not failed, and a file that got its descriptor is not the log."""
    lost = LogName.lost

    def closed(name: LogName) -> str | None:
        monkeypatch.setattr(LogName, "lost", lost)
        wal.close()
        return seen

    wal = open_small(path)
    wal.append(b"x")
    monkeypatch.setattr("pmwal.writing.upkeep._SECOND_NS", 0)
    monkeypatch.setattr(LogName, "lost", closed)
    with pytest.raises(pmwal.WalClosed):
        call(wal)
    assert (wal.closed, wal.stats().errors, wal.stats().unlinked) == (True, 0, False)
    report = pmwal.verify(path)
    assert (report.case, report.records) == ("R1", 1)


@pytest.mark.parametrize("use", ["append", "close"])
def test_finalizer_that_uses_the_log_inside_an_append_neither_takes_its_number_nor_its_bytes(path: Path, use: str) -> None:
    """A garbage collection may start at any allocation, and run a __del__ that appends to the log or closes it."""

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            fired.append(wal.append(b"from the finalizer") if use == "append" else wal.close())

    fired: list[int | None] = []
    numbers: list[int] = []
    large = bytes(40_000)  # each one notes where it starts
    wal = pmwal.open(path, size="4MiB", commit="manual")
    before = gc.get_threshold()
    gc.collect()
    try:
        for _ in range(20):
            append = wal.append
            gc.disable()
            Cycle()
            gc.set_threshold(1, 1, 1)
            gc.enable()
            try:
                number = append(large)  # the next thing that is allocated and collected is allocated in here
            except pmwal.WalClosed:
                break
            finally:
                gc.set_threshold(*before)
            numbers.append(number)
        gc.collect()
    finally:
        gc.set_threshold(*before)
    assert fired
    if use == "append":
        numbers += [number for number in fired if number is not None]
        assert [record.seq for record in wal] == sorted(numbers) == list(range(1, len(numbers) + 1))
    wal.close()
    report = pmwal.verify(path)
    assert (report.case, report.records) == ("R1", len(numbers))
