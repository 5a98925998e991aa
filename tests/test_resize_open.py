"""Giving a log that is open for writing a ring of another size: what its handle, its threads and its readers notice."""

from __future__ import annotations

import asyncio
import os
import threading
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
import pmwal.aio
from callers import PATIENCE, Call, until
from conftest import Place
from pmwal import events
from pmwal.errors import ForkedWal, Overrun, RecordTooLarge, ReentrantCall, WalClosed
from pmwal.format.index import INDEX_STEP
from pmwal.format.layout import PAGE
from pmwal.reading import succession
from processes import child
from resizing import filled, resized
from support import contents, kill, look, open_small, superblock

pytestmark = pytest.mark.both_engines


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follow looks for a new file with each poll that finds no writer, and not once a second."""
    monkeypatch.setattr(succession, "_LOOK_SECONDS", 0.0)


# -- what stays


@pytest.mark.parametrize("size", ["12KiB", "256KiB"])
def test_everything_stays_and_the_handle_continues(place: Place, size: str) -> None:
    """Records, numbers, counters; and what is stored afterwards is in the new file."""
    with filled(place.path, **place.options) as wal:
        wal.truncate(before=wal.next_seq - 100)
        before, expected, committed = wal.stats(), list(wal), wal.committed_seq
        report = wal.resize(size)
        after = wal.stats()
        assert (report.first_seq, report.last_seq, report.records) == (expected[0].seq, expected[-1].seq, len(expected))
        assert report.capacity == wal.capacity == after.capacity == superblock(place.path).capacity
        assert report.used == after.used == wal.capacity - wal.free
        assert list(wal) == expected
        assert wal.committed_seq == committed
        assert [wal[record.seq] for record in expected] == expected
        for name in ("appends", "bytes", "commits", "overwritten", "medium", "flush", "ordering", "alignment", "commit_latency"):
            assert getattr(after, name) == getattr(before, name), name
        assert after.barriers >= before.barriers
        assert (after.epoch, after.unlinked) == (before.epoch + 1, False)
        assert wal.append(b"next") == expected[-1].seq + 1
        assert wal.extend([b"a", b"b"])[1] == wal.next_seq - 1
        assert wal.extend_array(np.arange(3, dtype="i8")[:, None])[1] == wal.next_seq - 1
        assert wal.commit() == wal.committed_seq == wal.next_seq - 1
        assert wal.read_array("i8", wal.next_seq - 3).tolist() == [0, 1, 2]
        wal.rollback(after=wal.next_seq - 2)
        wal.truncate(before=wal.first_seq + 5)
        now = contents(wal)
    assert look(place.path).report.case == "R1"
    with open_small(place.path, **place.options) as wal:
        assert contents(wal) == now


def test_log_is_resized_again_and_again(path: Path) -> None:
    """Also to a size that it had before; each old file is gone."""
    with filled(path) as wal:
        expected = list(wal)
        descriptors = len(os.listdir("/proc/self/fd"))
        for size in (65536, 20480, 65536, 1 << 20, 20480):
            wal.resize(size)
            assert list(wal) == expected
            assert wal.capacity == size
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert os.listdir(path.parent) == [path.name]


def test_same_size_changes_nothing(path: Path) -> None:
    """The report says what there is."""
    with filled(path) as wal:
        before = path.read_bytes()
        assert wal.resize(wal.capacity).records == len(wal)
        assert path.read_bytes() == before


def test_records_that_were_not_committed_are_durable_afterwards(path: Path) -> None:
    """The new file is durable as a whole before it has the name."""
    with open_small(path, commit="manual") as wal:
        wal.extend([b"one", b"two"])
        assert wal.committed_seq == 0
        wal.resize("64KiB")
        assert wal.committed_seq == 2


def test_old_file_ends_cleanly_and_loses_its_lock(path: Path) -> None:
    """Whoever has it open sees a closed log; the new one is locked."""
    wal = filled(path)
    expected = list(wal)
    old = os.open(path, os.O_RDONLY)
    try:
        wal.resize("64KiB")
        assert look(Path(f"/proc/self/fd/{old}")).report.case == "R1"
        with pmwal.open(f"/proc/self/fd/{old}", "r") as reader:
            assert list(reader) == expected
        with pytest.raises(pmwal.WalLocked):
            pmwal.open(path)
    finally:
        os.close(old)
        wal.close()


def test_killed_afterwards_the_new_file_is_recovered(shm_place: Place) -> None:
    """With what was stored after the resize."""
    wal = filled(shm_place.path, **shm_place.options)
    wal.resize("64KiB")
    wal.append(b"next")
    expected = list(wal)
    kill(wal)
    with open_small(shm_place.path, **shm_place.options) as wal:
        assert list(wal) == expected
        assert wal.recovery.outcome == "recovered"


def test_numbers_are_found_without_a_walk(shm_dir: Path) -> None:
    """The new engine knows where some of the records are, as the old one did."""
    with pmwal.open(shm_dir / "test.wal", size="4MiB") as wal:
        wal.extend([bytes(1000)] * 3500)
        before = len(wal._engine.index.entries)
        wal.truncate(before=500)
        wal.resize("8MiB")
        entries = wal._engine.index.entries
        assert len(entries) > before // 4
        for entry in entries:
            assert wal._engine.find(entry.next_seq).position == entry.position
        assert all(after.position - start.position >= INDEX_STEP for start, after in pairwise(entries))


@pytest.mark.native_engine
def test_calls_are_as_fast_as_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C stores and reads in the new file, and Python is not asked."""
    with pmwal.open(path, size="64KiB") as wal:
        wal.append(b"one")
        wal.resize("1MiB")
        for name in ("_slow_append", "_slow_extend", "_step"):
            monkeypatch.setattr(type(wal), name, lambda *_: pytest.fail("it was left to Python"))
        assert (wal.append(b"two"), wal.extend([b"three"])) == (2, (3, 3))
        assert [record.data for record in wal] == [b"one", b"two", b"three"]


# -- reads of this handle


def test_iterator_continues(path: Path) -> None:
    """It ends where it would have, whatever is stored meanwhile."""
    with filled(path) as wal:
        expected = list(wal)
        iterators = [iter(wal), wal.read(kind=range(0, 1000)), wal.read(expected[3].seq)]
        seen = [next(iterators[0])]
        for size in ("64KiB", "128KiB"):
            wal.resize(size)
            wal.append(b"next")
            seen.append(next(iterators[0]))
        assert [*seen, *iterators[0]] == expected
        assert list(iterators[1]) == expected
        assert list(iterators[2]) == expected[3:]


def test_file_stays_mapped_while_an_iterator_needs_it(path: Path) -> None:
    """And not longer."""
    with filled(path) as wal:
        descriptors = len(os.listdir("/proc/self/fd"))
        records = iter(wal)
        next(records)
        wal.resize("64KiB")
        assert len(os.listdir("/proc/self/fd")) > descriptors
        del records
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_close_ends_iterators_of_every_file(path: Path) -> None:
    """The files are let go with the handle."""
    wal = filled(path)
    descriptors = len(os.listdir("/proc/self/fd"))
    iterators = [iter(wal)]
    wal.resize("64KiB")
    iterators.append(iter(wal))
    for records in iterators:
        next(records)
    wal.close()
    assert len(os.listdir("/proc/self/fd")) < descriptors
    for records in iterators:
        with pytest.raises(WalClosed):
            list(records)


def test_record_that_is_rolled_back_after_the_resize_is_not_handed_out(path: Path) -> None:
    """Although the old file has it."""
    with filled(path) as wal:
        records = wal.read(wal.next_seq - 5)
        next(records)
        wal.resize("64KiB")
        next(records)
        wal.rollback(after=wal.next_seq - 3)
        wal.extend([b"other"] * 5)
        next(records)
        with pytest.raises(Overrun, match="rolled back"):
            next(records)


def test_follow_continues(path: Path) -> None:
    """It wakes as before, in another thread, and ends with the handle."""
    wal = filled(path)
    last = wal.next_seq - 1
    seen: list[int] = []

    def follow() -> None:
        for record in wal.follow(last):
            seen.append(record.seq)

    call = Call(follow)
    for size in ("64KiB", "12KiB", "1MiB"):
        until(lambda: seen[-1:] == [wal.next_seq - 1])
        wal.truncate(before=wal.next_seq)
        wal.resize(size)
        wal.append(b"next")
    until(lambda: seen[-1:] == [wal.next_seq - 1])
    wal.close()
    call.result()
    assert seen == [last, last + 1, last + 2, last + 3]


# -- other threads


APPENDS_MAX = 10_000  # of each thread: all of them fit into the log


def hammer(path: Path, sizes: list[str], threads: int, **options: Any) -> None:
    """Resize a log while threads append to it; every record is there, in order, and read by a follower."""
    stop, appended = threading.Event(), [0] * threads

    def append(thread: int) -> None:
        while not stop.is_set() and appended[thread] < APPENDS_MAX:
            wal.append(b"%d %d" % (thread, appended[thread]) + bytes(appended[thread] % 90), kind=thread)
            appended[thread] += 1
            if appended[thread] % 10 == 0:
                stop.wait(0.001)

    with pmwal.open(path, size="8MiB", **options) as wal:
        reader = pmwal.open(path, "r")
        followed = Call(
            lambda: [record.seq for record in takewhile(lambda record: record.data, reader.follow(1, timeout=PATIENCE))]
        )
        calls = [Call(lambda thread=thread: append(thread)) for thread in range(threads)]
        for size in sizes:
            count = sum(appended)
            until(lambda count=count: sum(appended) >= min(count + 20 * threads, APPENDS_MAX * threads))
            wal.resize(size)
        stop.set()
        for call in calls:
            call.result()
        records = list(wal)
        wal.append(b"")
        wal.commit()
        assert followed.result() == [record.seq for record in records]
    assert [record.seq for record in records] == list(range(1, sum(appended) + 1))
    for thread in range(threads):
        mine = [record.data.rstrip(b"\0").decode() for record in records if record.kind == thread]
        assert mine == [f"{thread} {number}" for number in range(appended[thread])]
    reader.close()
    with pmwal.open(path, "r") as again:
        assert list(again)[:-1] == records


@pytest.mark.parametrize("commit", ["each", "manual", 0.01], ids=str)
def test_threads_append_meanwhile(path: Path, commit: Any) -> None:
    """None of them notices."""
    hammer(path, ["16MiB", "12MiB", "24MiB"], 3, commit=commit)


def test_threads_share_commits_on_a_disk_meanwhile(tmp_path: Path) -> None:
    """Those who wait for a barrier of the old file are done with the new one."""
    hammer(tmp_path / "test.wal", ["9MiB", "10MiB"], 3, medium="file")


def test_batch_of_another_thread_keeps_its_numbers(path: Path) -> None:
    """And it is stored in the new file; so is a reservation. A resize does not wait for them."""
    with filled(path) as wal:
        inside, go = threading.Event(), threading.Event()

        def batch() -> tuple[int, int, int]:
            with wal.batch() as batch:
                number = batch.append(b"staged")
                inside.set()
                go.wait(PATIENCE)
                batch.append(b"later")
            reservation = wal.reserve(5)
            with reservation as view:
                inside.set()
                go.wait(PATIENCE)
                view[:] = b"bytes"
            return number, batch.last, reservation.seq

        call, first = Call(batch), wal.next_seq
        for size in ("64KiB", "128KiB"):
            inside.wait(PATIENCE)
            inside.clear()
            wal.resize(size)
            go.set()
        assert call.result() == (first, first + 1, first + 2)
        assert [record.data for record in wal.read(first)] == [b"staged", b"later", b"bytes"]


def test_batch_of_this_thread_keeps_its_numbers(path: Path) -> None:
    """The handle may be resized inside of it, too."""
    with filled(path) as wal:
        with wal.batch() as batch:
            number = batch.append(b"staged")
            wal.resize("64KiB")
            assert batch.append(b"more") == number + 1
        assert wal[number].data == b"staged"


def test_thread_that_waits_for_room_gets_it(path: Path) -> None:
    """With on_full="wait", a larger ring is room."""
    with open_small(path, on_full="wait") as wal:
        wal.append(bytes(8000))
        call = Call(lambda: wal.extend([bytes(8000), bytes(500)]))
        until(lambda: wal.stats().waits == 1)
        wal.resize("64KiB")
        assert call.result() == (2, 3)


def test_thread_that_waits_for_a_number_gets_it(path: Path) -> None:
    """From the new file."""
    with open_small(path, commit="manual") as wal:
        call = Call(lambda: wal.wait_durable(3))
        wal.append(b"one")
        wal.resize("64KiB")
        wal.extend([b"two", b"three"])
        assert call.result()
        assert wal.committed_seq == 3


def test_background_commits_continue(path: Path) -> None:
    """The thread commits in the new file."""
    with open_small(path, commit=0.005) as wal:
        wal.append(b"one")
        wal.resize("64KiB")
        wal.append(b"two")
        until(lambda: wal.committed_seq == 2)


def test_two_threads_resize_one_after_the_other(path: Path) -> None:
    """Each gets what it asked for, and one of the two is the last."""
    with filled(path) as wal:
        expected = list(wal)
        calls = [Call(lambda size=size: wal.resize(size).capacity) for size in (65536, 131072)]
        assert sorted(call.result() for call in calls) == [65536, 131072]
        assert wal.capacity in (65536, 131072)
        assert list(wal) == expected


def test_record_that_no_longer_fits_is_refused(path: Path) -> None:
    """A batch that had begun when the log became smaller is refused as a whole."""
    with open_small(path) as wal:
        wal.append(b"one")
        batch, reservation = wal.batch(), wal.reserve(4000)
        batch.__enter__().append(bytes(5000))
        wal.resize("8KiB")
        with pytest.raises(RecordTooLarge, match="the largest payload"):
            batch.__exit__(None, None, None)
        reservation.__enter__()
        wal.resize("4KiB")
        with pytest.raises(RecordTooLarge, match="the largest payload"):
            reservation.__exit__(None, None, None)
        assert contents(wal) == [(1, b"one")]
        assert wal.append(b"two") == 2


@pytest.mark.native_engine
def test_iterable_of_extend_that_resizes_the_log(path: Path) -> None:
    """Lengths are compared with the ring that there is when they are stored."""
    with pmwal.open(path, size="64KiB") as wal:

        def items() -> Any:
            yield bytes(20000)
            wal.resize("8KiB")

        with pytest.raises(RecordTooLarge):
            wal.extend(items())
        assert (len(wal), wal.capacity) == (0, 8192)


# -- refusals


def test_size_that_is_too_small_is_refused_with_the_least_one(path: Path) -> None:
    """Which then does."""
    with filled(path) as wal:
        expected = list(wal)
        with pytest.raises(ValueError, match="use a size of at least") as caught:
            wal.resize("8KiB")
        assert list(wal) == expected
        wal.resize(int(str(caught.value).split("at least ")[1].split(",")[0]))
        assert list(wal) == expected


@pytest.mark.parametrize("size", ["4095", "a lot", 0, None, 1.5, 1 << 60])
def test_value_that_is_no_size(path: Path, size: Any) -> None:
    """The error is that of ``open``, or names the geometry."""
    with open_small(path) as wal:
        before = path.read_bytes()
        if size == "4095":
            assert wal.resize(size).capacity == PAGE
            return
        with pytest.raises((ValueError, TypeError)):
            wal.resize(size)
        assert path.read_bytes() == before


def test_definitions_of_events_keep_their_room(path: Path) -> None:
    """Events are decoded in the new file, and a ring in which their definitions would take too much is refused."""
    with open_small(path, on_full="overwrite") as wal:
        call = events.Logger(wal).event("number {number} " + "of many " * 200)
        call(0)
        reserved = wal._engine.headroom
        wal.resize("64KiB")
        assert wal._engine.headroom == reserved
        for number in range(1, 3000):
            call(number)
        wal.truncate(before=wal.next_seq)
        with pytest.raises(ValueError, match="use a size of at least") as caught:
            wal.resize("8KiB")
        wal.resize(int(str(caught.value).split("at least ")[1].split(",")[0]))
        call(3000)
        assert [event.arguments["number"] for event in events.read(wal)] == [3000]


def test_names_that_a_new_file_cannot_take(path: Path) -> None:
    """Several hard links, and a log that was opened through a descriptor, or whose name was lost."""
    with filled(path) as wal:
        expected = list(wal)
        os.link(path, path.with_name("other.wal"))
        with pytest.raises(OSError, match="2 hard links"):
            wal.resize("64KiB")
        path.with_name("other.wal").unlink()
        os.rename(path, path.with_name("moved.wal"))
        with pytest.raises(FileNotFoundError, match="removed, renamed or replaced"):
            wal.resize("64KiB")
        os.rename(path.with_name("moved.wal"), path)
        wal.resize("64KiB")
        assert list(wal) == expected
    fd = os.open(path, os.O_RDWR)
    try:
        with pmwal.open(f"/proc/self/fd/{fd}") as wal, pytest.raises(OSError, match="without a name"):
            wal.resize("128KiB")
    finally:
        os.close(fd)


def test_link_and_relative_path_lead_to_the_new_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies where the log is, also when the process has another directory by then."""
    link = path.with_name("link.wal")
    link.symlink_to(path.name)
    monkeypatch.chdir(path.parent)
    with open_small(Path("link.wal"), medium="file") as wal:
        os.chdir("/")
        wal.append(b"one")
        wal.resize("64KiB")
        assert not wal.stats().unlinked
        wal.append(b"two")
    assert link.is_symlink()
    assert superblock(path).capacity == 65536
    with pmwal.open(link, "r") as reader:
        assert [record.data for record in reader] == [b"one", b"two"]


def test_mode_of_the_file_stays(path: Path) -> None:
    """Against the umask."""
    with open_small(path, file_mode=0o640) as wal:
        wal.resize("64KiB")
        assert path.stat().st_mode & 0o777 == 0o640


def test_closed_forked_and_failed_handles_are_refused(path: Path) -> None:
    """As by every call that stores."""
    with filled(path) as wal:

        def resize(pipe: Any) -> None:
            with pytest.raises(ForkedWal):
                wal.resize("64KiB")
            pipe.send("refused")

        with child(resize) as process:
            assert process.hear() == "refused"
        wal.resize("64KiB")
        with child(resize) as process:
            assert process.hear() == "refused"
        expected = list(wal)
    with pytest.raises(WalClosed):
        wal.resize("128KiB")
    with open_small(path) as wal:
        assert list(wal) == expected


def test_close_during_a_resize(path: Path) -> None:
    """The log is closed as it is, and the resize says so."""
    with pytest.raises(WalClosed):
        resized(path, "sync", lambda wal: wal.close())
    assert superblock(path).capacity == 16384
    assert os.listdir(path.parent) == [path.name]
    assert look(path).report.case == "R1"


def test_resize_inside_a_resize(path: Path) -> None:
    """A signal handler or a finalizer may try."""

    def act(wal: pmwal.Wal) -> None:
        with pytest.raises(ReentrantCall):
            wal.resize("128KiB")

    with resized(path, "write", act) as wal:
        assert wal.capacity == 65536


# -- readers, consumers, event loops


def test_reader_continues_in_the_new_file(path: Path) -> None:
    """Its follow does, without a record lost or twice; other reads of it see the old file until then."""
    with filled(path) as wal, pmwal.open(path, "r") as reader:
        last = wal.next_seq - 1
        followed = reader.follow(last, timeout=PATIENCE)
        assert next(followed).seq == last
        for size in ("64KiB", "128KiB"):
            wal.resize(size)
            wal.extend([b"next", b"more"])
            assert [record.seq for record in islice(followed, 2)] == [wal.next_seq - 2, wal.next_seq - 1]
            assert reader.capacity == wal.capacity


def test_consumers_keep_their_positions(path: Path) -> None:
    """What they have acknowledged is freed in the new file, and nothing else."""
    with open_small(path, consumers=["mail"], medium="file") as wal:
        wal.extend([b"%d" % number for number in range(1, 21)])
        with pmwal.open(path, "r") as reader, reader.consumer("mail") as consumer:
            followed = consumer.follow(timeout=PATIENCE)
            assert [record.seq for record in islice(followed, 15)] == list(range(1, 16))
            consumer.ack(7)
            wal.resize("64KiB")
            assert wal.truncate(consumed=True) == 8
            consumer.ack(12)
            wal.append(b"21")
            assert [record.seq for record in islice(followed, 6)] == list(range(16, 22))
            consumer.ack(21)
            assert wal.truncate(consumed=True) == 22
            wal.resize("8KiB")
            wal.append(b"22")
            assert next(followed).seq == 22
        with pmwal.open(path, "r") as reader, reader.consumer("mail") as consumer:
            assert [record.seq for record in consumer.follow(timeout=0)] == [22]


def test_event_loop_resizes_its_log(path: Path) -> None:
    """Tasks that append meanwhile wait, and are served; a follow continues."""

    async def main() -> tuple[list[int], list[int], int]:
        async with pmwal.aio.open(path, size="64KiB", medium="file") as wal:
            appends = [asyncio.ensure_future(wal.append(b"%d" % number)) for number in range(20)]
            report = await wal.resize("1MiB")
            numbers = await asyncio.gather(*appends)
            await wal.append(b"last")
            return numbers, [record.seq async for record in wal.follow(timeout=0)], report.capacity

    numbers, followed, capacity = asyncio.run(main())
    assert sorted(numbers) == list(range(1, 21))
    assert followed == list(range(1, 22))
    assert capacity == 1 << 20
