"""follow(): every durable record once and in order, in this process or another, until the log is closed."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pmwal
from conftest import Place
from pmwal.format.layout import LIVE_FOLLOWERS_OFFSET
from pmwal.format.scan import scan_for
from pmwal.native import native
from pmwal.reading import follow, known_writer
from pmwal.reading import reader as reader_module
from pmwal.reading import watcher as watcher_module
from pmwal.reading.walk import Walker
from pmwal.records import Bound
from pmwal.storage import mapping
from pmwal.storage.live_page import read_writer
from processes import PATIENCE, child
from support import kill, open_small

pytestmark = pytest.mark.both_engines

COUNT = 300


def follow_elsewhere(pipe: Any, path: Path, options: dict[str, Any]) -> None:
    """Report each record that a reader in this process follows, and how the iteration ends."""
    with pmwal.open(path, "r") as reader:
        pipe.send("ready")
        try:
            for record in reader.follow(**options):
                pipe.send((record.seq, record.data))
        except pmwal.PmwalError as error:
            pipe.send(type(error).__name__)
        else:
            pipe.send("end")


def wait_until(true: Any) -> None:
    """Wait until ``true()`` is true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_reader_elsewhere_gets_each_record_and_ends_when_the_writer_closes(place: Place) -> None:
    """The follower passes several laps of the ring, while records already read are truncated."""
    with open_small(place.path, **place.options) as wal, child(follow_elsewhere, place.path, {}) as reader:
        assert reader.hear() == "ready"
        for number in range(COUNT):
            seq = wal.append(b"%05d" % number * 40)
            if number % 20 == 19:
                heard = [reader.hear() for _ in range(20)]
                assert heard == [(n + 1, b"%05d" % n * 40) for n in range(number - 19, number + 1)]
                wal.truncate(before=seq)
        wal.close()
        assert reader.hear() == "end"


def test_thread_follows_its_own_writer_and_ends_at_close(place: Place) -> None:
    """Wal.follow delivers durable records only."""
    got: list[int] = []
    wal = open_small(place.path, commit="manual", **place.options)
    follower = threading.Thread(target=lambda: got.extend(record.seq for record in wal.follow()))
    follower.start()
    wal.extend([b"a", b"b"])
    time.sleep(0.05)
    assert got == []
    wal.commit()
    wait_until(lambda: got == [1, 2])
    wal.append(b"c")
    wal.close()
    follower.join(PATIENCE)
    assert not follower.is_alive()
    assert got[:2] == [1, 2]


def test_timeout_counts_from_the_last_record(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """follow() ends after this time without a record; each record restarts it."""
    with open_small(shm_dir / "log") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        start = time.monotonic()
        assert list(reader.follow(timeout=0.2)) == []
        assert time.monotonic() - start >= 0.2
        assert list(wal.follow(timeout=0)) == []
        clock, sleeps = 0.0, 0

        def before_sleep(_: follow.Waiter) -> None:
            nonlocal clock, sleeps
            clock += 9
            sleeps += 1
            if sleeps <= 4:
                wal.append(b"x")

        monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=lambda: clock))
        monkeypatch.setattr(follow.Waiter, "announce", before_sleep)
        assert [record.seq for record in reader.follow(timeout=10)] == [1, 2, 3, 4]
        assert sleeps == 6  # the last two of 9 s each found nothing


@pytest.mark.native_engine
@pytest.mark.skipif(native is None, reason="needs the native engine")
def test_ordinary_record_that_ends_a_wait_needs_no_poll(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after waking is prepared before the wait; a record of a new epoch is left to a poll."""
    path, polls, waits = shm_dir / "log", 0, 0
    poll = reader_module.Reader._poll

    def counted(self: pmwal.Reader, *args: Any) -> Any:
        nonlocal polls
        polls += 1
        return poll(self, *args)

    monkeypatch.setattr(reader_module.Reader, "_poll", counted)
    with open_small(path) as wal, pmwal.open(path, "r") as reader:

        def before_sleep(_: follow.Waiter) -> None:
            nonlocal waits
            waits += 1
            if waits == 3:
                wal.rollback(after=wal.append(b"gone") - 1)
            wal.extend([b"b", b"c"])

        monkeypatch.setattr(follow.Waiter, "announce", before_sleep)
        wal.append(b"a")
        asked, follower = list[int](), reader.follow()
        for seq in range(1, 8):
            assert next(follower).seq == seq
            asked.append(polls)
        assert asked == [1, 1, 1, 1, 1, 2, 2]


def test_reader_that_is_closed_during_a_wait_delivers_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another handle may have its descriptor by then."""
    with open_small(place.path, **place.options) as wal:
        wal.append(b"a")
        reader = pmwal.open(place.path, "r")
        follower = reader.follow()
        assert next(follower).data == b"a"
        others = list[pmwal.Reader]()

        def before_sleep(_: follow.Waiter) -> None:
            reader.close()
            others.extend(pmwal.open(place.path, "r") for _ in range(3))
            wal.append(b"b")

        monkeypatch.setattr(follow.Waiter, "announce", before_sleep)
        with pytest.raises(pmwal.WalClosed):
            next(follower)
        for other in others:
            other.close()


def test_follow_starts_where_it_is_told(shm_dir: Path) -> None:
    """A start may exist already or be still to come; one that is gone raises Overrun."""
    with open_small(shm_dir / "log") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        wal.extend([b"a", b"b", b"c"])
        for handle in (wal, reader):
            assert [record.seq for record in handle.follow(2, timeout=0)] == [2, 3]
            assert [record.seq for record in itertools.islice(handle.follow(1), 3)] == [1, 2, 3]
            assert list(handle.follow(4, timeout=0)) == []
        follower = reader.follow(5)
        threading.Timer(0.05, lambda: wal.extend([b"d", b"e"])).start()
        assert next(follower).data == b"e"
        wal.truncate(before=3)
        for handle in (wal, reader):
            with pytest.raises(pmwal.Overrun):
                next(handle.follow(1))
        follower.close()


def test_killed_writers_successor_is_followed(place: Place) -> None:
    """A killed writer does not end follow(), a clean close does; a reader that starts without a writer waits for one."""
    wal = open_small(place.path, **place.options)
    with child(follow_elsewhere, place.path, {}) as reader:
        assert reader.hear() == "ready"
        wal.append(b"one")
        assert reader.hear() == (1, b"one")
        kill(wal)
        time.sleep(0.05)
        assert not reader.heard()
        with open_small(place.path, **place.options) as wal:
            wal.append(b"two")
            assert reader.hear() == (2, b"two")
        assert reader.hear() == "end"
    with child(follow_elsewhere, place.path, {"start": 3}) as reader:
        assert reader.hear() == "ready"
        time.sleep(0.05)
        assert not reader.heard()
        with open_small(place.path, **place.options) as wal:
            wal.append(b"three")
            assert reader.hear() == (3, b"three")
        assert reader.hear() == "end"


def test_rollback_of_what_was_handed_out_is_reported(place: Place) -> None:
    """A follower must not continue after records that no longer exist, even if nothing has taken their numbers."""
    with open_small(place.path, **place.options) as wal, child(follow_elsewhere, place.path, {}) as reader:
        assert reader.hear() == "ready"
        wal.extend([b"a", b"b", b"c"])
        assert [reader.hear() for _ in range(3)] == [(1, b"a"), (2, b"b"), (3, b"c")]
        wal.rollback(after=1)
        assert reader.hear() == "Overrun"


@pytest.mark.parametrize("medium", ["memory", "emulated-dax", "file"])
def test_writer_wakes_a_follower(shm_dir: Path, monkeypatch: pytest.MonkeyPatch, medium: str) -> None:
    """The follower would otherwise sleep for longer than this test waits; close wakes it, too."""
    monkeypatch.setattr(follow, "_PAUSE_MIN", 10 * PATIENCE)
    for module in follow, known_writer:
        monkeypatch.setattr(module, "PAUSE_MAX", 10 * PATIENCE)
    path = shm_dir / "log"

    def asleep() -> bool:
        return path.read_bytes()[LIVE_FOLLOWERS_OFFSET] == 1

    with (
        pmwal.open(path, size="64KiB", medium=medium, commit="manual") as wal,
        child(follow_elsewhere, path, {}) as reader,
    ):
        assert reader.hear() == "ready"
        for number in range(1, 4):
            wait_until(asleep)
            time.sleep(0.01)  # time to fall asleep after setting the word
            assert wal.append(b"x", commit=number % 2 == 0) == number
            wal.commit()
            assert reader.heard(PATIENCE)
            assert reader.hear() == (number, b"x")
        wait_until(asleep)
        wal.close()
        assert reader.heard(PATIENCE)
        assert reader.hear() == "end"


def test_follower_that_may_not_write_polls(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the native engine a follower polls, as it does without permission to write the live page."""
    monkeypatch.setattr(follow, "native", None)
    with open_small(place.path, **place.options) as wal, child(follow_elsewhere, place.path, {}) as reader:
        assert reader.hear() == "ready"
        for number in range(1, 20):
            wal.append(b"x")
            assert reader.hear() == (number, b"x")
        wal.close()
        assert reader.hear() == "end"


@pytest.mark.native_engine
@pytest.mark.skipif(native is None, reason="needs the native engine")
def test_follower_of_a_file_system_without_shared_mappings_polls(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some in user space; it has nothing to watch then."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    with open_small(shm_dir / "log") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        wal.append(b"x")
        monkeypatch.setattr(mapping, "map_file", refuse)
        records = reader.follow(timeout=PATIENCE)
        for number in range(1, 20):
            assert next(records).seq == number
            wal.append(b"x")


@pytest.mark.native_engine
@pytest.mark.skipif(native is None, reason="needs the native engine")
def test_follower_that_the_collector_finds_leaves_no_descriptor(shm_dir: Path) -> None:
    """It ends the generator before the iterator around it, which still has the page that is watched."""

    class Node:
        records: Any = None
        itself: Any = None

    with open_small(shm_dir / "log") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        before = descriptors_of(shm_dir / "log")
        for _ in range(3):
            node = Node()
            node.itself, node.records = node, reader.follow(wal.next_seq)
            for _ in range(3):
                wal.append(b"x")
                next(node.records)
            assert len(descriptors_of(shm_dir / "log")) > len(before)
            del node
            gc.collect()
            assert descriptors_of(shm_dir / "log") == before


def descriptors_of(path: Path) -> set[int]:
    """Those of this file: others come and go as the collector finds what earlier tests have left."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of the directory itself
            if os.path.samestat(os.stat(f"/proc/self/fd/{name}"), os.stat(path)):
                found.add(int(name))
    return found


@pytest.mark.native_engine
@pytest.mark.skipif(native is None, reason="needs the native engine")
def test_idle_follower_sleeps_as_long_as_it_may_until_there_is_a_record(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake-up after each millisecond is only for the time right after a record."""
    pauses: list[float] = []
    request = watcher_module.LiveWatcher.request

    class Enough(Exception):
        pass

    def noted(watcher: Any, *args: Any) -> Any:
        asked = request(watcher, *args)
        if asked is not None:
            pauses.append(asked[8])
        if len(pauses) == 5:
            raise Enough
        return asked

    monkeypatch.setattr(watcher_module.LiveWatcher, "request", noted)
    with open_small(shm_dir / "log") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        records = reader.follow(timeout=PATIENCE)
        for _ in range(2):
            wal.append(b"x")
            next(records)
        with pytest.raises(Enough):
            next(records)
    # One is answered by the second record, and one waits after it.
    assert pauses == [follow._PAUSE_MIN] * 2 + [follow.PAUSE_MAX] * 3


def test_waiting_stores_only_the_followers_word(shm_dir: Path) -> None:
    """Once nobody waits, the writer's next wake-up clears the word."""
    path = shm_dir / "log"
    with pmwal.open(path, size="64KiB") as wal, pmwal.open(path, "r") as reader:
        wal.append(b"x")
        before = path.read_bytes()
        assert len(list(reader.follow(timeout=0.05))) == 1
        after = path.read_bytes()
        changed = [offset for offset, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
        assert changed in ([], [LIVE_FOLLOWERS_OFFSET])
        wal.append(b"y")
        assert path.read_bytes()[LIVE_FOLLOWERS_OFFSET] == 0


def test_follower_of_a_file_that_is_cut_gets_an_error(shm_dir: Path) -> None:
    """The error is no signal, and the file is not extended again."""
    path = shm_dir / "log"
    wal = open_small(path)
    with child(follow_elsewhere, path, {}) as reader:
        assert reader.hear() == "ready"
        time.sleep(0.05)
        os.truncate(path, 0)
        assert reader.hear() == "PersistError"
        assert path.stat().st_size == 0
    kill(wal)


@pytest.mark.skipif(native is None, reason="without futexes a follower only polls")
def test_wait_on_a_file_that_was_cut_leaves_it_to_the_next_poll(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The poll says how short the file is; the wait knows only that its page is gone. Other errors of a wait are raised."""
    path = shm_dir / "log"
    wal = open_small(path)
    with pmwal.open(path, "r") as reader, follow.Waiter(reader._mapping, reader._seam) as waiter:
        version = waiter.version()
        with monkeypatch.context() as patch:
            patch.setattr(native, "futex_wait", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "not here")))
            with pytest.raises(pmwal.PersistError, match="cannot wait on the live page: not here"):
                waiter.wait(version, 0.01)
        os.truncate(path, 0)
        for _ in range(3):
            waiter.wait(version, 0.01)
        with pytest.raises(pmwal.PersistError, match="the file was shortened to 0 bytes"):
            next(reader.follow())
        assert path.stat().st_size == 0
    kill(wal)


def test_closed_reader_ends_its_followers_with_an_error(shm_dir: Path) -> None:
    """A follower of a closed reader raises, as every call on a closed handle does."""
    with open_small(shm_dir / "log") as wal:
        reader = pmwal.open(shm_dir / "log", "r")
        follower = reader.follow()
        wal.append(b"x")
        assert next(follower).seq == 1
        reader.close()
        with pytest.raises(pmwal.WalClosed):
            next(follower)


def test_follow_in_salvage_is_refused(shm_dir: Path) -> None:
    """In salvage mode there is nothing to wait for."""
    open_small(shm_dir / "log").close()
    with pmwal.open(shm_dir / "log", "r", recover="salvage") as reader, pytest.raises(ValueError, match="salvage"):
        reader.follow()


@pytest.mark.native_engine
@pytest.mark.skipif(native is None, reason="needs the native engine")
def test_record_after_the_last_one_is_handed_out_without_a_walk(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower usually gets the next record in one C call; at the gap before a new lap it walks again."""
    walked: list[int] = []
    walk = Walker.walk
    monkeypatch.setattr(Walker, "walk", lambda *args: walked.append(args[-1]) or walk(*args))
    with open_small(shm_dir / "log", on_full="overwrite") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        wal.append(b"x")
        records = reader.follow(timeout=PATIENCE)
        assert next(records).seq == 1
        for seq in range(2, COUNT):
            wal.append(b"%d" % seq * 100)
            assert next(records).data == b"%d" % seq * 100
        laps = wal.stats().bytes // wal.capacity
        assert laps > 2
        assert len(walked) <= 2 + laps + 1  # the first record, and one walk for each gap


@pytest.mark.native_engine
@pytest.mark.skipif(native is None, reason="needs the native engine")
def test_ordinary_case_of_a_follower_is_this_writer_and_epoch_with_something_new(shm_dir: Path) -> None:
    """In any other case C delivers nothing, and Python decides."""
    path = shm_dir / "log"
    with open_small(path) as wal, pmwal.open(path, "r") as reader, follow.Waiter(reader._mapping, reader._seam) as waiter:
        wal.append(b"a")
        first = next(reader.read())
        before = read_writer(reader._mapping.load)
        last, view, scan = reader._place.last, reader._place.view, scan_for(reader._block)
        assert native is not None
        assert last is not None
        assert view is not None
        assert scan is not None
        mark, asleep = native.Mark(), list[int]()

        def known(**changes: Any) -> bytes:
            writer = before._replace(**changes)
            return writer.line + writer.open_id

        def news(line: bytes = known(), epoch: int = view.epoch, seq: int = 2, seconds: float = 0) -> Any:
            outcome = None

            def source() -> Any:
                nonlocal outcome
                page, at, announce = waiter.page, Bound(last.end, seq), partial(asleep.append, 1)
                outcome = yield page.map, page.fd, reader._block.ring_offset, line, at, epoch, view, announce, 0.001, seconds

            found = [record.data for record in scan.scanner.follower(pmwal.Record, mark, source())]
            return (outcome, found) if found else outcome

        assert news() is True  # nothing has been stored since
        assert not asleep
        assert news(seconds=0.01) is True
        assert asleep == [1]
        wal.extend([b"b", b"c"])
        (line, first_seq, numbers), found = news(seconds=PATIENCE)
        assert found == [b"b", b"c"]
        assert mark.take() == (view, numbers)
        assert mark.take() is None
        assert (first_seq, line) == (first.seq, read_writer(reader._mapping.load).line + before.open_id)
        assert numbers[2] == 3
        assert news(line) is False
        assert news(known(pid=before.pid + 1)) is False
        assert news(known(start_time=before.start_time + 1)) is False
        assert news(known(inode=before.inode + 1)) is False
        assert news(known(open_id=bytes(16))) is False
        assert news(epoch=view.epoch + 1) is False
        assert news(seq=3) is False  # another record is there
        mark.closed = True
        assert news() is False
        mark.closed = False
        wal.truncate(before=3)
        assert news() is False  # it was truncated
        with pytest.raises(ValueError, match="line with the id"):
            news(b"")
        wal.rollback(after=2)
        assert news(seq=3) is False


@pytest.mark.native_engine
@pytest.mark.skipif(native is None, reason="needs the native engine")
def test_exception_during_a_native_wait_ends_the_follow(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a generator: it is raised, what was open is closed, and there is no further record."""
    with open_small(shm_dir / "log") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        wal.append(b"a")
        follower, closed = reader.follow(), list[int]()
        assert next(follower).seq == 1
        close = follow.SharedPage.close
        monkeypatch.setattr(follow.SharedPage, "close", lambda page: closed.append(1) or close(page))

        def interrupted(_: follow.Waiter) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(follow.Waiter, "announce", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(follower)
        assert closed == [1]
        assert next(follower, None) is None


@pytest.mark.native_engine
@pytest.mark.skipif(native is None, reason="needs the native engine")
def test_signal_ends_a_native_wait(shm_dir: Path) -> None:
    """Its handler runs at once, and what it raises leaves the follow; one that raises nothing lets it continue."""
    handled: list[int] = []

    def handle(number: int, frame: object) -> None:
        handled.append(number)
        if len(handled) == 2:
            raise InterruptedError

    with open_small(shm_dir / "log") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        wal.append(b"a")
        follower = reader.follow()
        assert next(follower).seq == 1
        before = signal.signal(signal.SIGALRM, handle)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            with pytest.raises(InterruptedError):
                next(follower)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert len(handled) == 2


@pytest.mark.native_engine
@pytest.mark.skipif(native is None, reason="needs the native engine")
def test_native_follower_is_advanced_by_one_thread_at_a_time(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a generator is; closing it meanwhile is refused, too."""
    with open_small(shm_dir / "log") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        wal.append(b"a")
        follower: Any = reader.follow()
        assert next(follower).seq == 1
        refused = []

        def before_sleep(_: follow.Waiter) -> None:
            for call in partial(next, follower), follower.close:
                with pytest.raises(ValueError, match="already running"):
                    call()
                refused.append(call)
            wal.append(b"b")

        monkeypatch.setattr(follow.Waiter, "announce", before_sleep)
        assert next(follower).seq == 2
        assert len(refused) == 2
        follower.close()
        assert next(follower, None) is None


@pytest.mark.native_engine
@pytest.mark.skipif(native is None, reason="needs the native engine")
def test_rollback_of_what_c_delivered_is_noticed_by_a_read(shm_dir: Path) -> None:
    """The place of the reader includes records that C delivered to its followers; a closed reader delivers no more."""
    with open_small(shm_dir / "log") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        wal.append(b"a")
        follower = reader.follow()
        assert next(follower).seq == 1
        wal.extend([b"b", b"c", b"d"])
        assert next(follower).seq == 2
        assert reader._place.last is not None
        assert reader._place.last.seq == 2
        assert next(follower).seq == 3
        wal.rollback(after=2)
        wal.append(b"x")
        with pytest.raises(pmwal.Overrun, match="record 3"):
            list(reader.read(3))
        reader.close()
        with pytest.raises(pmwal.WalClosed):
            next(follower)
