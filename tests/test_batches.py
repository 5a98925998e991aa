"""Batches and threads (scenarios 21, 22 and 24a): a batch is kept whole or not at all, and never mixed with later records."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from conftest import Place
from images import Interrupter, Reopener, Trace, sweep
from operations import CRASH_MEDIA, PIPELINED, batch_of
from pmwal.format.layout import HEADER, LINE
from pmwal.testing import PowerCutModel
from pmwal.writing.wal import Wal
from support import BarrierRecorder, Step, contents, kill, open_small, payloads, superblock

pytestmark = pytest.mark.both_engines

# -- scenario 21: a batch is whole or absent


def to_position(wal: Wal, position: int) -> None:
    """Let the log end at a position of the first lap of a 4 KiB ring, and be empty."""
    left = position - wal._engine.state.head.position
    for size in (left // 2 // LINE * LINE, left - left // 2 // LINE * LINE):
        if size:
            wal.append(bytes(size - HEADER))
    wal.truncate(before=wal.next_seq)
    assert position == wal._engine.state.head.position


@CRASH_MEDIA
@pytest.mark.parametrize("start", [64, 4096 - 448, 4096 - 128, 4096 - 64])
def test_batch_is_there_as_a_whole_or_not_at_all_at_every_crash(shm_dir: Path, options: dict[str, Any], start: int) -> None:
    """Scenario 21: in the middle of the ring, and over its end after each of the batch's records."""
    items = [b"%d" % number * 50 for number in range(5)]
    operations: list[Any] = [lambda wal: wal.extend(items), lambda wal: wal.append(b"after"), batch_of(items)]
    before = [lambda wal: to_position(wal, start), lambda wal: wal.append(b"before") if start == 64 else None]
    trace = Trace.run(shm_dir / "test.wal", {**options, "size": 4096}, operations, before=before)
    assert sweep(trace, shm_dir / "image.wal", options, seed=21, extra=8) > 30


@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize("start", [0, 4096 - 320])
def test_batch_killed_after_any_number_of_its_stores_is_gone(shm_place: Place, count: int, start: int) -> None:
    """Scenario 21 with the page cache kept: only the whole batch counts, and a half stored record counts for nothing."""
    seam = BarrierRecorder()
    wal = open_small(shm_place.path, seam=seam, size=4096, align=8, **shm_place.options)
    if start:
        to_position(wal, start)
    wal.append(b"before")
    seam.events.clear()
    base = shm_place.path.read_bytes()
    with wal.batch() as batch:
        for number in range(count):
            batch.append(b"%d" % number * 60)
    kill(wal)
    stores = [event for event in seam.events if event.name == "store" and event.offset >= superblock(shm_place.path).ring_offset]
    assert count == len(stores)
    image = bytearray(base)
    for index, event in enumerate(stores):
        for cut in (0, 8, HEADER, HEADER + 8, event.length - 8):
            image[event.offset : event.offset + cut] = event.data[:cut]
            shm_place.path.write_bytes(image)
            wal = open_small(shm_place.path, **shm_place.options)
            # Nothing but padding may be missing from a record that counts.
            whole = index == count - 1 and event.data[cut:] == bytes(event.length - cut)
            assert [b"before", *(b"%d" % number * 60 for number in range(count if whole else 0))] == payloads(wal), (index, cut)
            kill(wal)
        image[event.offset : event.offset + event.length] = event.data
    shm_place.path.write_bytes(image)
    wal = open_small(shm_place.path, **shm_place.options)
    assert count + 1 == len(wal)
    wal.close()


def test_tail_inside_a_batch_is_no_unfinished_batch(shm_place: Place) -> None:
    """Scenario 21: truncate and rollback may cut a batch; what is left of it stays."""
    wal = open_small(shm_place.path, **shm_place.options)
    wal.extend([b"%d" % number for number in range(1, 7)])
    wal.truncate(before=3)
    wal.rollback(after=5)
    kill(wal)
    for _ in range(2):
        wal = open_small(shm_place.path, **shm_place.options)
        assert contents(wal) == [(3, b"3"), (4, b"4"), (5, b"5")]
        kill(wal)


# -- scenario 22: threads


class Stall:
    """A hook that stops the first step of a kind until ``go`` is set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached = threading.Event()
        self.go = threading.Event()

    def __call__(self, event: Step) -> None:
        if event.name == self.name and not self.reached.is_set():
            self.reached.set()
            assert self.go.wait(30)


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
@pytest.mark.parametrize("step", ["store", "flush"])
def test_acknowledged_record_implies_the_unfinished_one_before_it(shm_dir: Path, ordering: str, step: str) -> None:
    """Scenario 22: B's record follows A's, whose store or flush hangs; B waits, or A's record is durable when B returns."""
    path = shm_dir / "test.wal"
    seam = BarrierRecorder()
    wal = open_small(path, seam=seam, medium="file", ordering=ordering)
    trace = Trace.start(wal)
    stall = Stall(step)
    seam.before = stall
    acknowledged: list[int] = []
    first = threading.Thread(target=wal.append, args=(b"A",))
    first.start()
    assert stall.reached.wait(30)
    second = threading.Thread(target=lambda: acknowledged.append(wal.append(b"B")))
    second.start()
    second.join(0.05)
    if acknowledged:
        disk = PowerCutModel("page", trace.base)
        for event in list(seam.events):
            disk.take(event)
        assert b"A" in bytes(disk.held)
    stall.go.set()
    first.join(30)
    second.join(30)
    assert contents(wal) == [(1, b"A"), (2, b"B")]
    kill(wal)


def test_threads_see_every_acknowledged_record_after_a_power_cut(shm_dir: Path) -> None:
    """Scenario 22 in bulk: at each acknowledgement the worst power cut keeps that record and all before it."""
    path = shm_dir / "test.wal"
    seam = BarrierRecorder()
    wal = open_small(path, seam=seam, size=65536, **PIPELINED)
    trace = Trace.start(wal)
    acknowledged: list[tuple[int, int]] = []

    def work(name: int) -> None:
        for number in range(12):
            seq = wal.append(b"%d.%d" % (name, number), commit=number % 3 > 0)
            if number % 3:
                acknowledged.append((len(seam.events), seq))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    wal.commit()
    everything = contents(wal)
    assert list(range(1, 49)) == [seq for seq, _ in everything]
    kill(wal)
    reopened = Reopener(path, PIPELINED)
    disk = PowerCutModel("page", trace.base)
    done = 0
    for steps, seq in sorted(acknowledged):
        for event in seam.events[done:steps]:
            disk.take(event)
        done = steps
        found = reopened(bytes(disk.held))
        assert tuple(everything[: len(found.items)]) == found.items
        assert seq <= len(found.items)


# -- exceptions in the caller's code, and what remains of a discarded batch


def test_exception_in_the_iterable_of_extend_stores_nothing(place: Place) -> None:
    """Scenario 24: the items are taken before the first is stored."""
    seam = BarrierRecorder()
    wal = open_small(place.path, seam=seam, **place.options)
    wal.append(b"before")
    seam.events.clear()

    def items(error: type[BaseException]) -> Iterator[bytes]:
        yield b"one"
        yield b"two"
        raise error

    for error in (ValueError, KeyboardInterrupt, MemoryError, GeneratorExit):
        with pytest.raises(error):
            wal.extend(items(error))
    for wrong in (["text"], [b"fine", 5], [b"fine", None]):
        with pytest.raises(TypeError):
            wal.extend(wrong)
    assert seam.events == []
    assert wal.append(b"after") == 2
    assert payloads(wal) == [b"before", b"after"]
    wal.close()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError, SystemExit])
def test_exception_inside_reserve_or_batch_commits_nothing(place: Place, error: type[BaseException]) -> None:
    """Scenario 24: the next append takes the number, and nothing half-made is there after a kill either."""
    wal = open_small(place.path, **place.options)
    wal.append(b"before")

    def fill_and_fail(view: memoryview) -> None:
        view[:50] = b"x" * 50
        raise error

    def stage_and_fail(batch: pmwal.Batch) -> None:
        assert batch.append(b"y" * 100) == 2
        raise error

    with pytest.raises(error), wal.reserve(100) as view:
        fill_and_fail(view)
    with pytest.raises(error), wal.batch() as batch:
        stage_and_fail(batch)
    with pytest.raises(ValueError, match="not open"):
        batch.append(b"late")
    assert wal.append(b"after") == 2
    kill(wal)
    wal = open_small(place.path, **place.options)
    assert payloads(wal) == [b"before", b"after"]
    wal.close()


@CRASH_MEDIA
@pytest.mark.parametrize("stored", [1, 2, 3])
def test_rest_of_a_discarded_batch_does_not_follow_a_new_record(shm_dir: Path, options: dict[str, Any], stored: int) -> None:
    """Scenario 24a: a batch of three is interrupted after some stores; a new record takes the first one's place; SIGKILL."""
    path = shm_dir / "test.wal"
    seam = Interrupter()
    wal = open_small(path, seam=seam, **options)
    wal.append(b"before")
    items = [b"old %d" % number * 10 for number in range(3)]
    seam.arm(stored - 1, after=True, error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        wal.extend(items)
    assert payloads(wal) == [b"before"]
    assert wal.append(b"new 0" * 10) == 2
    assert payloads(wal) == [b"before", b"new 0" * 10]
    kill(wal)
    raw = path.read_bytes()
    assert [number < stored for number in (1, 2)] == [items[number] in raw for number in (1, 2)], "the old ones are still there"
    for _ in range(2):
        wal = open_small(path, **options)
        assert contents(wal) == [(1, b"before"), (2, b"new 0" * 10)]
        kill(wal)


def test_full_log_says_whether_a_record_or_a_batch_needs_the_space(path: Path) -> None:
    """The number of bytes alone would be taken for those of one record."""
    with open_small(path) as wal:
        room = wal.capacity // 2 - 100
        wal.append(bytes(room))
        with pytest.raises(pmwal.WalFull, match=r"the 3 records of this batch need \d+"):
            wal.extend([bytes(room // 2)] * 3)
        wal.append(bytes(room))
        with pytest.raises(pmwal.WalFull, match=r"the record needs \d+"):
            wal.append(bytes(room))
