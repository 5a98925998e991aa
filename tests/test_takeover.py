"""From one writer to the next (scenarios 28 to 28f), and failing flushes (scenario 31)."""

from __future__ import annotations

import copy
import errno
import mmap
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from conftest import SHM, Place
from images import Interrupter, Reopener, Trace, brief, images, state_of, sweep, unsynced
from marks import first_fast
from pmwal.format.control import read_control
from pmwal.format.layout import (
    CONTROL_OFFSET,
    HEADER,
    LINE,
    POINTER_LAG_MAX,
    SLOT_CLEAN,
    decode_slot,
    encode_slot,
    initial_slot,
    slot_index,
    slot_offset,
)
from pmwal.testing import PowerCutModel
from pmwal.testing._simulator.model import Found
from pmwal.writing.wal import Wal
from support import (
    SMALL_CONTROL,
    BarrierRecorder,
    Step,
    contents,
    fail_flush,
    kill,
    look,
    open_small,
    overwrite,
    payloads,
    place_of,
    superblock,
)

pytestmark = pytest.mark.both_engines

DAX: dict[str, Any] = {"medium": "emulated-dax", "ordering": "strict"}
STRICT: dict[str, Any] = {"medium": "file", "ordering": "strict"}
PIPELINED: dict[str, Any] = {"medium": "file", "ordering": "pipelined"}
CRASH_MEDIA = pytest.mark.parametrize("options", [DAX, STRICT, PIPELINED], ids=["lines", "pages", "pipelined"])


def kind_of(options: dict[str, Any]) -> str:
    """The crash model for this medium."""
    return "page" if options["medium"] == "file" else "pmem"


# -- 28


@CRASH_MEDIA
def test_clean_flag_is_cleared_durably_before_the_first_store_of_the_next_writer(shm_dir: Path, options: dict[str, Any]) -> None:
    """Scenario 28: two slots without it, each flushed, precede any record; after every crash on the way the log opens."""
    path = shm_dir / "test.wal"
    wal = open_small(path, **options)
    wal.append(b"before")
    closed = state_of(wal)
    wal.close()
    base, block = path.read_bytes(), superblock(path)
    seam = BarrierRecorder()
    wal = open_small(path, seam=seam, **options)
    trace = Trace(base, seam.events, [(0, closed, True)])
    wal.append(b"after")
    trace.mark(wal)
    kill(wal)

    flags: list[int] = []
    flushed = 0
    for event in seam.events:
        if event.name == "store" and event.offset >= block.ring_offset:
            break
        if event.name == "flush" and CONTROL_OFFSET <= event.offset < CONTROL_OFFSET + SMALL_CONTROL:
            flushed = len(flags)
        if event.name == "store" and CONTROL_OFFSET <= event.offset < CONTROL_OFFSET + SMALL_CONTROL:
            slot = decode_slot(event.data, block.uuid, (event.offset - CONTROL_OFFSET) // LINE)
            assert slot is not None
            flags.append(slot.flags & SLOT_CLEAN)
    assert (flags, flushed) == ([SLOT_CLEAN, 0, 0], 3), "the recovered slot stored again, and two of the new epoch"
    assert sweep(trace, shm_dir / "image.wal", options, seed=28, extra=4) > 10


def test_record_after_a_clean_slot_is_never_passed_over(shm_dir: Path) -> None:
    """Scenario 28: where the flag was not cleared the verdict is loud, for a record of this epoch or a later one."""
    path = shm_dir / "test.wal"
    wal = open_small(path, **STRICT)
    wal.append(b"before")
    wal.close()
    control = path.read_bytes()[CONTROL_OFFSET : CONTROL_OFFSET + SMALL_CONTROL]
    wal = open_small(path, **STRICT)
    wal.append(b"after")
    wal.close()
    overwrite(path, CONTROL_OFFSET, control)
    assert pmwal.verify(path).case == "R6"


# -- 28a, 28b


def append(size: int = 40) -> Callable[[Wal], object]:
    """Append a record that contains its number."""
    return lambda wal: wal.append((b"%04d" % wal.next_seq) * (size // 4))


def free_two(wal: Wal) -> None:
    """Truncate two records."""
    wal.truncate(before=wal.first_seq + 2)


HISTORIES: dict[str, tuple[list[Any], list[Any], dict[str, Any]]] = {
    "append": ([append()] * 2, [append(), append()], {}),
    "batch": ([append()] * 2, [lambda wal: wal.extend([b"a" * 50, b"b" * 70])], {}),
    "truncate": ([append(700)] * 5, [free_two, append(700)], {}),
    "overwrite": ([append(700)] * 5, [append(700)], {"on_full": "overwrite"}),
    "rollback": ([append()] * 4, [lambda wal: wal.rollback(after=2), append(20)], {}),
    "uncommitted": ([append()] * 2, [lambda wal: wal.append(b"x" * 40, commit=False), append()], {}),
}


@pytest.mark.parametrize("name", first_fast(HISTORIES))
@pytest.mark.parametrize(
    ("options", "sync_works"),
    [(DAX, False), (STRICT, False), (PIPELINED, False), (PIPELINED, True)],
    ids=["lines", "pages", "pipelined", "pipelined-synced"],
)
def test_kill_then_reopen_then_power_cut_keeps_what_was_kept(
    shm_dir: Path, options: dict[str, Any], name: str, sync_works: bool
) -> None:
    """Scenarios 28a and 28b: SIGKILL at every step, also between a slot's store and its barrier; then a recovery and an append.

    Then the power fails at every step of those two. Until the recovery returns, the log reads as before it, afterwards as it
    reported; nothing depends on bytes that were only in the cache, even if the first sync of the recovery failed.
    """
    before, operations, settings = HISTORIES[name]
    options = {**options, **settings}
    trace = Trace.run(shm_dir / "first.wal", {**options, "size": 4096}, operations, before=before)
    path = shm_dir / "second.wal"
    reopened = Reopener(shm_dir / "image.wal", options)
    rng = random.Random(28)
    seen = set()
    for steps, disk in trace.crashes(kind_of(options)):
        cached = bytes(disk.cache)
        if cached in seen:
            continue
        seen.add(cached)
        path.write_bytes(cached)
        seam = BarrierRecorder()
        wal = open_small(path, seam=seam, **options)
        opened, kept = len(seam.events), state_of(wal)
        second = Trace(cached, seam.events, [(0, kept, True), (opened, kept, True)])
        append(700)(wal) if name == "overwrite" else append()(wal)
        second.mark(wal)
        kill(wal)
        earlier = trace.allowed(steps)
        assert kept in earlier
        after_kill = copy.deepcopy(disk)
        for taken in range(len(seam.events) + 1):
            if taken:
                step = seam.events[taken - 1]
                after_kill.take(step if sync_works else unsynced(step, after_kill))
            allowed = second.allowed(taken) | (earlier if taken < opened else set())
            for image in images(after_kill, rng, 1, most=2):
                found = reopened(image)
                assert found in allowed, f"killed at {steps}, cut at {taken}: {brief(found)} not in {[*map(brief, allowed)]}"


def test_slot_killed_before_its_barrier_and_the_next_one_cut_leave_one_whole_slot(shm_dir: Path) -> None:
    """Scenario 28b by hand: the slot that frees space was only in the cache when the next process began."""
    path = shm_dir / "test.wal"
    seam = BarrierRecorder()
    wal = open_small(path, size=4096, seam=seam, **STRICT)
    for _ in range(5):
        append(700)(wal)
    trace = Trace.start(wal)
    free_two(wal)
    kill(wal)
    block = superblock(path)
    stores = [(at, event) for at, event in enumerate(seam.events) if event.name == "store"]
    slots = [at for at, event in stores if event.length == LINE and event.offset >= CONTROL_OFFSET]
    assert len(slots) == 2
    for unflushed in slots:  # the first and the second of the truncate's two slots
        disk = PowerCutModel("page", trace.base)
        for event in seam.events[: unflushed + 1]:
            disk.take(event)
        path.write_bytes(bytes(disk.cache))
        second = BarrierRecorder()
        kill(open_small(path, seam=second, **STRICT))
        for event in second.events:
            disk.take(unsynced(event, disk))
            control = read_control(bytes(disk.held)[block.control_offset : block.copy_offset], block)
            assert control.newest is not None
            assert control.lost <= 1
        assert look(path).tail.next_seq == 3


# -- 28c


THOUSAND = 1000


@pytest.fixture(scope="module")
def thousand_commits() -> bytes:
    """A killed pipelined log: a thousand commits after the two slots of its epoch."""
    with tempfile.TemporaryDirectory(prefix="pmwal-test-", dir=SHM) as directory:
        path = Path(directory) / "test.wal"
        wal = open_small(path, size=131072, **PIPELINED)
        written = wal.stats().slots_written
        for number in range(1, THOUSAND + 1):
            wal.append(b"%d" % number)
        assert written == wal.stats().slots_written, "no slot in between"
        kill(wal)
        return path.read_bytes()


@pytest.mark.parametrize("age", [0, 1], ids=["newest", "the one before"])
@pytest.mark.parametrize("rot", [bytes(LINE), b"\xff" * LINE, bytes(range(LINE))], ids=["zeros", "ones", "noise"])
def test_thousand_commits_are_found_when_one_slot_of_the_epoch_rots(
    shm_dir: Path, thousand_commits: bytes, age: int, rot: bytes
) -> None:
    """Scenario 28c: the other slot of the epoch and the in-band marks find them all."""
    path = shm_dir / "test.wal"
    path.write_bytes(thousand_commits)
    slot = look(path).control.newest
    assert slot is not None
    overwrite(path, slot_offset(slot_index(slot.generation - age, 2)), rot)
    wal = open_small(path, **PIPELINED)
    assert [(number, b"%d" % number) for number in range(1, THOUSAND + 1)] == contents(wal)
    report = wal.recovery
    assert (report.case, report.slots_lost, report.records, report.maybe_acknowledged) == ("R7", 1, THOUSAND, True)
    assert report.kept_past_pointer == 1, "the in-band mark names all but the last"
    wal.close()


def test_thousand_commits_whose_slots_both_rot_are_loud(shm_dir: Path, thousand_commits: bytes) -> None:
    """Scenario 28c: without a slot of its epoch the log is not opened as an empty one; the records can be salvaged."""
    path = shm_dir / "test.wal"
    path.write_bytes(thousand_commits)
    slot = look(path).control.newest
    assert slot is not None
    for generation in (slot.generation, slot.generation - 1):
        overwrite(path, slot_offset(slot_index(generation, 2)), bytes(LINE))
    before = path.read_bytes()
    with pytest.raises(pmwal.CorruptWal, match="R9b"):
        open_small(path, **PIPELINED)
    assert before == path.read_bytes()
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert len(payloads(reader)) == THOUSAND


def test_thousand_commits_whose_slots_look_unused_are_loud(shm_dir: Path, thousand_commits: bytes) -> None:
    """Scenario 28c: the medium returns the two places as creation filled them, so that no slot looks lost."""
    path = shm_dir / "test.wal"
    path.write_bytes(thousand_commits)
    slot, block = look(path).control.newest, superblock(path)
    assert slot is not None
    for generation in (slot.generation, slot.generation - 1):
        index = slot_index(generation, block.control_pages)
        overwrite(path, slot_offset(index), encode_slot(initial_slot(), block.uuid, index))
    assert (pmwal.verify(path).case, pmwal.verify(path).records) == ("R6", 0)
    with pytest.raises(pmwal.CorruptWal):
        open_small(path, **PIPELINED)


def test_pointer_lags_by_a_bounded_number_of_bytes(shm_dir: Path) -> None:
    """A pipelined log writes a slot before it acknowledges more than 1 MiB past the last one, and not earlier."""
    path = shm_dir / "test.wal"
    wal = open_small(path, size="4MiB", **PIPELINED)
    for _ in range(3):
        engine = wal._engine
        before = engine.generation, engine.pointer
        while wal._engine.state.head.position + 60048 - before[1] <= POINTER_LAG_MAX:
            wal.append(bytes(60000))
            assert before == (engine.generation, engine.pointer)
        wal.append(bytes(60000))
        assert before[0] + 1 == engine.generation
        assert engine.state.durable.position == engine.pointer
    kill(wal)


# -- 28f


@CRASH_MEDIA
@pytest.mark.parametrize("stored", [1, 2, 3, 4])
def test_interrupted_extend_does_not_come_back_after_a_commit(shm_dir: Path, options: dict[str, Any], stored: int) -> None:
    """Scenario 28f: an interrupted extend has written pages early; an earlier append is committed afterwards; power cut."""
    path = shm_dir / "test.wal"
    seam = Interrupter()
    wal = open_small(path, seam=seam, **options)
    wal.append(b"first")
    trace = Trace.start(wal)
    acknowledged = state_of(wal)
    wal.append(b"earlier", commit=False)
    items = [b"lost %d" % number * 9 for number in range(4)]
    seam.arm(stored - 1, after=True, error=KeyboardInterrupt)  # with all four stored, the whole batch is on the medium
    with pytest.raises(KeyboardInterrupt):
        wal.extend(items)
    interrupted = len(seam.events)
    assert wal.commit() == 2
    expected = state_of(wal)
    assert tuple(payloads(wal)) == (b"first", b"earlier")
    kill(wal)
    disk = PowerCutModel(kind_of(options), trace.base)
    ring = superblock(path).ring_offset
    raw = path.read_bytes()
    assert [number < stored for number in range(4)] == [item in raw for item in items]
    reopened = Reopener(shm_dir / "image.wal", options)
    for steps, event in enumerate(seam.events, 1):
        disk.take(event)
        if steps >= interrupted:
            early = bytes(disk.held)[:ring] + bytes(disk.cache)[ring:]
            found = reopened(early)
            whole = [Found(1, (*expected.items, *enumerate(items, 3)))] if stored == 4 and steps < len(seam.events) else []
            assert found in (expected, acknowledged, *whole), f"crash after {steps} steps"
    assert expected == reopened(bytes(disk.held)) == reopened(bytes(disk.cache))


# -- 31


class Refusing:
    """A hook: the n-th msync fails. The kernel then treats its pages as clean: kept in the cache, or read back from the medium."""

    def __init__(self, path: Path, seam: BarrierRecorder, after: int, *, reverted: bool) -> None:
        self.path = path
        self.disk = PowerCutModel("page", path.read_bytes())
        self.seam = seam
        self.left = after
        self.reverted = reverted
        self.failed = False

    def __call__(self, event: Step) -> None:
        if event.name == "flush" and not self.failed:
            self.left -= 1
            if self.left < 0:
                self.failed = True
                if self.reverted:
                    for done in self.seam.events:
                        self.disk.take(done)
                    old = bytes(self.disk.held)
                    overwrite(self.path, event.offset, old[event.offset : event.offset + event.length])
                raise OSError(errno.EIO, os.strerror(errno.EIO))


CALLS: dict[str, Callable[[Wal], object]] = {
    "append": lambda wal: wal.append(b"refused"),
    "extend": lambda wal: wal.extend([b"refused", b"refused"]),
    "commit": lambda wal: (wal.append(b"refused", commit=False), wal.commit()),
    "truncate": lambda wal: wal.truncate(before=3),
    "rollback": lambda wal: wal.rollback(after=2),
    "wait_durable": lambda wal: wal.wait_durable(wal.append(b"refused", commit=False)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("reverted", [False, True], ids=["kept", "reverted"])
@pytest.mark.parametrize("late", [0, 1], ids=["at once", "one call late"])
def test_failed_msync_is_final(shm_place: Place, name: str, reverted: bool, late: int) -> None:
    """Scenario 31: raise, poison, keep the last durable number; a later msync that would succeed changes nothing."""
    path = shm_place.path
    seam = BarrierRecorder()
    wal = open_small(path, seam=seam, **shm_place.options)
    for number in range(1, 5):
        wal.append(b"%d" % number)
    wal.commit()
    trace = Trace.start(wal)
    seam.before = Refusing(path, seam, late, reverted=reverted)
    before = state_of(wal)
    durable = wal.committed_seq
    if late and name not in ("truncate", "rollback") and shm_place.options["ordering"] == "pipelined":
        CALLS[name](wal)  # it has one msync, so the next call meets the late error
        assert durable < wal.committed_seq
        durable = wal.committed_seq
    with pytest.raises(pmwal.PersistError) as raised:
        CALLS[name](wal)
    assert (errno.EIO, durable) == (raised.value.errno, raised.value.committed_seq)
    assert durable == wal.committed_seq
    taken = len(seam.events)
    calls: list[Callable[[], object]] = [wal.commit, wal.batch, lambda: wal.append(b"x"), lambda: wal.extend([b"x"])]
    calls += [lambda: wal.reserve(1), lambda: wal.truncate(before=2), lambda: wal.rollback(after=1)]
    calls += [lambda: wal.wait_durable(99, timeout=0)]
    for call in calls * 2:
        with pytest.raises(pmwal.PersistError) as again:
            call()
        assert (errno.EIO, durable) == (again.value.errno, again.value.committed_seq)
    assert durable == wal.committed_seq
    wal.close()
    assert [event for event in seam.events[taken:] if event.offset >= CONTROL_OFFSET] == [], "nothing was tried again"
    assert wal.closed

    wal = open_small(path, **shm_place.options)
    found = dict(contents(wal))
    survivors = {seq: data for seq, data in before.items if seq >= wal.first_seq and not (name == "rollback" and seq > 2)}
    assert survivors.items() <= found.items()
    if name == "rollback":
        assert wal.next_seq in (3, 5)
    assert wal.first_seq in ((1, 3) if name == "truncate" else (1,))
    assert trace.marks[0][1] == before
    wal.append(b"continues")
    wal.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_failure_keeps_its_errno_and_what_was_acknowledged_before(place: Place, number: int) -> None:
    """Scenario 31 on each medium that has something to flush; on memory nothing can fail."""
    seam = BarrierRecorder()
    wal = open_small(place.path, seam=seam, **place.options)
    wal.append(b"acknowledged")
    seam.before = fail_flush(number)
    if place.options["medium"] == "memory":
        assert wal.append(b"acknowledged too") == 2
        wal.close()
        return
    with pytest.raises(pmwal.PersistError) as raised:
        wal.append(b"refused")
    assert number == raised.value.errno
    assert isinstance(raised.value, OSError)
    assert payloads(wal) == [b"acknowledged"], "a poisoned handle shows what is durable"
    wal.close()
    wal = open_small(place.path, **place.options)
    assert payloads(wal)[0] == b"acknowledged"
    wal.close()


def test_interrupted_msync_is_called_again(place: Place) -> None:
    """EINTR decides nothing; no other error repeats the call."""
    seam = BarrierRecorder()
    wal = open_small(place.path, seam=seam, **place.options)
    if wal.stats().flush not in ("none", "msync"):
        wal.close()
        pytest.skip("a fence is no system call")
    left = 5

    def interrupt(event: Step) -> None:
        nonlocal left
        if event.name == "flush" and left:
            left -= 1
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

    seam.before = interrupt
    assert wal.append(b"kept") == 1
    assert (wal.stats().flush == "none") == (left == 5)
    wal.close()
    wal = open_small(place.path, **place.options)
    assert payloads(wal) == [b"kept"]
    wal.close()


def test_recovery_that_cannot_make_it_durable_fails_and_the_next_one_finds_the_same(shm_place: Place) -> None:
    """Scenario 31 at open: the barrier of a recovery must succeed, but its first sync may fail."""
    wal = open_small(shm_place.path, **shm_place.options)
    wal.append(b"1")
    wal.append(b"2", commit=False)
    kill(wal)

    def refuse_sync(event: Step) -> None:
        if event.name == "sync":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    killed = shm_place.path.read_bytes()
    for after in range(4):  # the slot and the record that are stored again, and the two slots of the epoch
        shm_place.path.write_bytes(killed)
        with pytest.raises(pmwal.PersistError) as raised:
            open_small(shm_place.path, seam=BarrierRecorder(fail_flush(after=after)), **shm_place.options)
        assert raised.value.errno == errno.EIO
        assert pmwal.verify(shm_place.path).records == 2
    wal = open_small(shm_place.path, seam=BarrierRecorder(refuse_sync), **shm_place.options)
    assert payloads(wal) == [b"1", b"2"]
    wal.close()


def test_unused_space_is_named_so_that_the_small_ring_stays_small() -> None:
    """The histories above wrap a ring of 4 KiB: five records of 700 bytes fit, a sixth does not."""
    assert 5 * (HEADER + 700) <= 4096 < 6 * (HEADER + 700)


def test_lost_slot_is_filled_up_so_that_the_next_torn_one_is_not_one_too_many(shm_place: Place) -> None:
    """An old slot rots, the log is opened, and a crash tears the newest slot: one is lost each time, never two."""
    with open_small(shm_place.path, **shm_place.options) as wal:
        wal.append(b"1")
    rotten = place_of(shm_place.path, look(shm_place.path).control.newest.generation + 40)  # type: ignore[union-attr]
    overwrite(shm_place.path, rotten, bytes(LINE))
    assert look(shm_place.path).row.label == "R7"
    wal = open_small(shm_place.path, **shm_place.options)
    wal.append(b"2")
    wal.commit()
    newest = wal.stats().generation
    kill(wal)
    overwrite(shm_place.path, place_of(shm_place.path, newest) + 8, b"torn....")
    report = pmwal.verify(shm_place.path)
    assert (report.case, report.slots_lost) == ("R7", 1)
    with open_small(shm_place.path, **shm_place.options) as wal:
        assert payloads(wal) == [b"1", b"2"]
    assert pmwal.verify(shm_place.path).case == "R1"


class _OneFlushAtATime(BarrierRecorder):
    """Slow flushes, of which the tenth fails. Two at once could steal each other's error."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = self.most = self.flushes = 0

    def flush(self, mapping: mmap.mmap, offset: int, length: int) -> None:
        self.under_way += 1
        self.flushes += 1
        self.most = max(self.most, self.under_way)
        try:
            time.sleep(0.001)
            if self.flushes == 10:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().flush(mapping, offset, length)
        finally:
            self.under_way -= 1


def test_no_thread_acknowledges_past_another_ones_failed_barrier(shm_place: Place) -> None:
    """Scenario 28e: one barrier runs at a time; after a failed one nobody acknowledges, and every thread gets the error."""
    seam = _OneFlushAtATime()
    wal = open_small(shm_place.path, seam=seam, **shm_place.options)
    seam.flushes = 0
    acknowledged: list[int] = []
    told: list[int | None] = []

    def work() -> None:
        try:
            while True:
                acknowledged.append(wal.append(b"record"))
        except pmwal.PersistError as error:
            told.append(error.committed_seq)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (seam.most, len(told)) == (1, 4)
    assert set(told) == {wal.committed_seq}
    assert max(acknowledged) <= wal.committed_seq
    kill(wal)
