"""A handle from its first commit to its end: durability, a full log, properties, closing, and poison."""

from __future__ import annotations

import ast
import contextlib
import errno
import gc
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from callers import PATIENCE, Call, bounds, stage, until
from conftest import Place
from pmwal.native.choice import chosen_engine
from support import SMALL_RING, BarrierRecorder, Crash, Step, contents, fail_flush, kill, open_small, payloads

pytestmark = pytest.mark.both_engines


def reaches_inside(source: str, wal: pmwal.Wal) -> set[str]:
    """The private attributes of a handle that a module uses on anything but its own ``self``."""
    private = {name for name in [*vars(wal), *dir(wal)] if name.startswith("_") and not name.startswith("__")}
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr in private and ast.unparse(node.value) != "self"
    }


def test_only_the_writing_package_reaches_inside_a_handle(path: Path) -> None:
    """Events and the event loop go through pmwal.writing.internals, the rest through what users have; the check can fail."""
    package = Path(pmwal.__file__).parent
    with open_small(path) as wal:
        reached = {
            str(file.relative_to(package)): found
            for file in package.rglob("*.py")
            if not file.is_relative_to(package / "writing") and not file.is_relative_to(package / "testing")
            if (found := reaches_inside(file.read_text(), wal))
        }
        assert reached == {}
        assert reaches_inside("self._wal._engine.halt()", wal) == {"_engine"}


# -- durability


def test_manual_commit_leaves_it_to_the_caller(place: Place) -> None:
    """commit="manual": nothing is durable before commit(), whichever call stored it."""
    with open_small(place.path, commit="manual", **place.options) as wal:
        wal.append(b"1")
        wal.extend([b"2", b"3"])
        stage(wal, b"4")
        with wal.reserve(1):
            pass
        assert bounds(wal) == (1, 6, 0)
        assert wal.commit() == 5
        assert bounds(wal) == (1, 6, 5)
        assert wal.append(b"6", commit=True) == 6
        assert wal.committed_seq == 6


def test_append_can_be_left_uncommitted(place: Place) -> None:
    """append(commit=False) returns at once; the next commit, of any kind, makes it durable too."""
    with open_small(place.path, **place.options) as wal:
        wal.append(b"1", commit=False)
        assert wal.committed_seq == 0
        assert payloads(wal) == [b"1"]
        wal.append(b"2")
        assert wal.committed_seq == 2
        wal.append(b"3", commit=False)
    with open_small(place.path, **place.options) as wal:
        assert payloads(wal) == [b"1", b"2", b"3"]


def test_commit_with_nothing_pending_lets_the_pointer_catch_up(shm_place: Place) -> None:
    """After it a reopened log needs no scan past the pointer."""
    with open_small(shm_place.path, **shm_place.options) as wal:
        wal.append(b"1")
        assert (wal.commit(), wal.commit()) == (1, 1)
        kill(wal)
    report = pmwal.verify(shm_place.path)
    assert (report.records, report.kept_past_pointer) == (1, 0)


def test_wait_durable_commits_when_nobody_else_does(path: Path) -> None:
    """It returns True at once for what is durable, and makes the rest so."""
    with open_small(path, commit="manual") as wal:
        wal.extend([b"1", b"2"])
        assert wal.wait_durable(1) is True
        assert wal.committed_seq >= 1
        assert wal.wait_durable(2, timeout=0) is True
        assert wal.wait_durable(0) is True


def test_wait_durable_gives_up_after_its_timeout(path: Path) -> None:
    """A number that nobody appends is waited for as long as was said."""
    with open_small(path) as wal:
        started = time.monotonic()
        assert Call(lambda: wal.wait_durable(1, timeout=0.05)).result() is False
        assert 0.05 <= time.monotonic() - started < PATIENCE
        assert wal.wait_durable(1, timeout=0) is False


def test_wait_durable_waits_for_another_thread(path: Path) -> None:
    """A number that is appended later is durable when it returns."""
    with open_small(path, commit="manual") as wal:
        waiter = Call(lambda: (wal.wait_durable(2, timeout=PATIENCE), wal.committed_seq))
        wal.append(b"1")
        waiter.join(0.02)
        assert waiter.is_alive()
        wal.append(b"2")
        fine, committed = waiter.result()
        assert fine
        assert committed >= 2


@pytest.mark.parametrize("waits", [lambda wal: wal.wait_durable(9), lambda wal: wal.append(bytes(8000))], ids=["durable", "full"])
def test_close_ends_the_waiting_of_other_threads(path: Path, waits: Callable[[pmwal.Wal], Any]) -> None:
    """A thread that waits in a call gets WalClosed and does not wait forever."""
    wal = open_small(path, on_full="wait")
    wal.extend([bytes(8000)] * 2)
    waiter = Call(lambda: waits(wal))
    waiter.join(0.02)
    assert waiter.is_alive()
    wal.close()
    with pytest.raises(pmwal.WalClosed):
        waiter.result()


# -- full


def fill(wal: pmwal.Wal) -> int:
    """Append until one more record of 1000 bytes would not fit; the last number."""
    last = 0
    while wal.free >= 1048:
        last = wal.append(bytes(1000))
    return last


def test_full_log_raises(path: Path) -> None:
    """on_full="raise": nothing is stored, the message names the way out, and truncate makes room."""
    with open_small(path) as wal:
        last = fill(wal)
        with pytest.raises(pmwal.WalFull, match=r"bytes are free.*truncate.*on_full"):
            wal.append(bytes(1000))
        with pytest.raises(pmwal.WalFull):
            wal.extend([bytes(1000)])
        with pytest.raises(pmwal.WalFull):
            stage(wal, bytes(1000))
        with pytest.raises(pmwal.WalFull), wal.reserve(1000):
            pass
        assert wal.next_seq == last + 1
        wal.truncate(before=2)
        assert wal.append(bytes(1000)) == last + 1


def test_full_log_waits_for_a_truncate(path: Path) -> None:
    """on_full="wait": the append resumes after another thread's truncate."""
    with open_small(path, on_full="wait") as wal:
        last = fill(wal)
        appender = Call(lambda: wal.append(bytes(1000)))
        until(lambda: wal.stats().waits == 1)
        assert appender.is_alive()
        wal.truncate(before=3)
        assert appender.result() == last + 1
        assert [record.seq for record in wal] == list(range(3, last + 2))


def test_full_log_gives_up_waiting_after_its_timeout(path: Path) -> None:
    """on_full="wait" with a timeout: WalFull after that many seconds, and the log stays usable."""
    with open_small(path, on_full="wait", timeout=0.05) as wal:
        last = fill(wal)
        started = time.monotonic()
        with pytest.raises(pmwal.WalFull, match=r"still full after 0.05 seconds"):
            Call(lambda: wal.append(bytes(1000))).result()
        assert 0.05 <= time.monotonic() - started < PATIENCE
        wal.truncate(before=last)
        assert wal.append(b"") == last + 1


def test_too_small_a_truncate_does_not_end_the_wait(path: Path) -> None:
    """The waiting append resumes only when there is room for all of it."""
    with open_small(path, on_full="wait") as wal:
        last = fill(wal)
        appender = Call(lambda: wal.append(bytes(3000)))
        until(lambda: wal.stats().waits == 1)
        for before in range(2, 9):
            wal.truncate(before=before)
        assert appender.result() == last + 1
        assert wal.committed_seq == last + 1


def test_flight_recorder_overwrites_the_oldest(place: Place) -> None:
    """on_full="overwrite": appends never fail, the newest records are kept without a hole, and the count is told."""
    with open_small(place.path, on_full="overwrite", **place.options) as wal:
        for number in range(1, 101):
            assert wal.append(number.to_bytes(2) * 400) == number
        kept = contents(wal)
        assert kept == [(number, number.to_bytes(2) * 400) for number in range(wal.first_seq, 101)]
        assert 10 <= len(kept) < 20
        assert wal.stats().overwritten == 100 - len(kept)
    with open_small(place.path, **place.options) as wal:
        assert contents(wal) == kept


# -- properties


def test_handle_says_what_it_is(path: Path) -> None:
    """path, capacity, free, closed, recovery and repr of a writer and of a reader."""
    with open_small(path) as wal:
        assert (wal.path, wal.capacity, wal.free, wal.closed) == (str(path), SMALL_RING, SMALL_RING, False)
        wal.append(bytes(100))
        assert wal.free == SMALL_RING - 152
        assert (wal.recovery.outcome, wal.recovery.records) == ("created", 0)
        assert repr(wal) == f"<pmwal.Wal {str(path)!r} records 1 to 1>"
        with pmwal.open(path, "r") as reader:
            assert (reader.path, reader.capacity, reader.closed) == (str(path), SMALL_RING, False)
            assert repr(reader) == f"<pmwal.Reader {str(path)!r}>"
    assert (wal.closed, reader.closed) == (True, True)
    assert repr(wal) == f"<pmwal.Wal {str(path)!r} closed>"
    assert repr(reader) == f"<pmwal.Reader {str(path)!r} closed>"


def test_outcome_tells_how_the_log_ended(path: Path) -> None:
    """created, clean after a close, recovered after a crash."""
    with open_small(path) as wal:
        assert wal.recovery.outcome == "created"
        wal.append(b"x")
    with open_small(path) as wal:
        assert (wal.recovery.outcome, wal.recovery.case, wal.recovery.records) == ("clean", "R1", 1)
        wal.append(b"y")
        kill(wal)
    with open_small(path) as wal:
        assert (wal.recovery.outcome, wal.recovery.records, wal.recovery.last_seq) == ("recovered", 2, 2)
        assert wal.recovery.as_dict()["outcome"] == "recovered"


def test_stats_count(shm_place: Place) -> None:
    """Every counter counts what its name says, from the open on."""
    with open_small(shm_place.path, on_full="overwrite", **shm_place.options) as wal:
        fresh = wal.stats()
        assert (fresh.appends, fresh.bytes, fresh.commits, fresh.overwritten, fresh.waits, fresh.errors) == (0, 0, 0, 0, 0, 0)
        wal.append(bytes(10))
        wal.extend([bytes(20), bytes(30)])
        stage(wal, bytes(40))
        with wal.reserve(50):
            pass
        stats = wal.stats()
        assert (stats.appends, stats.bytes, stats.commits) == (5, 150, 4)
        assert stats.barriers - fresh.barriers == (8 if stats.ordering == "strict" else 4)
        assert stats.slots_written - fresh.slots_written == (4 if stats.ordering == "strict" else 0)
        assert (stats.capacity, stats.used) == (SMALL_RING, SMALL_RING - wal.free)
        assert (stats.engine, stats.ordering) == (chosen_engine(), shm_place.options["ordering"])
        assert stats.as_dict()["appends"] == 5


def test_reader_stats_say_where_the_log_lies(path: Path) -> None:
    """A reader has the same fields; it never stored anything."""
    with open_small(path) as wal:
        wal.append(bytes(10))
        with pmwal.open(path, "r") as reader:
            mine, its = wal.stats(), reader.stats()
    assert (its.medium, its.filesystem, its.capacity, its.used) == (mine.medium, mine.filesystem, mine.capacity, mine.used)
    assert (its.appends, its.bytes, its.commits, its.barriers, its.errors) == (0, 0, 0, 0, 0)


# -- closing


USES: dict[str, Callable[[Any], Any]] = {
    "append": lambda wal: wal.append(b"x"),
    "extend": lambda wal: wal.extend([b"x"]),
    "extend-nothing": lambda wal: wal.extend([]),
    "batch": lambda wal: wal.batch(),
    "reserve": lambda wal: wal.reserve(1),
    "commit": lambda wal: wal.commit(),
    "wait_durable": lambda wal: wal.wait_durable(1),
    "truncate": lambda wal: wal.truncate(before=2),
    "rollback": lambda wal: wal.rollback(after=1),
}
READS: dict[str, Callable[[Any], Any]] = {
    "read": lambda wal: wal.read(),
    "iterate": list,
    "index": lambda wal: wal[1],
    "enter": lambda wal: wal.__enter__(),
}


@pytest.mark.parametrize("name", [*USES, *READS])
def test_closed_log_refuses_every_call(path: Path, name: str) -> None:
    """After close each call says to open the log again."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
    with pytest.raises(pmwal.WalClosed, match=r"open the log again with pmwal.open\(\)"):
        (USES | READS)[name](wal)
    with open_small(path) as wal:
        assert payloads(wal) == [b"a", b"b"]


@pytest.mark.parametrize("name", [*READS, "len", "first_seq", "committed_seq", "stats", "recovery"])
def test_closed_reader_refuses_every_call(path: Path, name: str) -> None:
    """A closed reader says to open the log again."""
    open_small(path).close()
    reader = pmwal.open(path, "r")
    reader.close()
    reader.close()
    use: Callable[[Any], Any] = READS.get(name) or {
        "len": len, "first_seq": lambda log: log.first_seq, "committed_seq": lambda log: log.committed_seq,
        "stats": lambda log: log.stats(), "recovery": lambda log: log.recovery,
    }[name]  # fmt: skip
    with pytest.raises(pmwal.WalClosed, match="open the log again"):
        use(reader)


@pytest.mark.parametrize("name", ["batch", "reserve", "read", "iteration"])
def test_what_was_begun_before_the_close_is_refused_after_it(path: Path, name: str) -> None:
    """A batch, a reservation and an iteration that were made before the close store and show nothing after it."""
    wal = open_small(path)
    wal.extend([b"a", b"b"])
    made: Any = wal.batch() if name == "batch" else wal.reserve(1) if name == "reserve" else wal.read()
    if name == "iteration":
        assert next(made).data == b"a"
    wal.close()
    with pytest.raises(pmwal.WalClosed):
        made.__enter__() if name in ("batch", "reserve") else next(made)


def test_close_is_idempotent(place: Place) -> None:
    """The second close does nothing, not even after the log has a new writer."""
    wal = open_small(place.path, **place.options)
    wal.append(b"a", commit=False)
    wal.close()
    wal.close()
    with open_small(place.path, **place.options) as other:
        wal.close()
        assert payloads(other) == [b"a"]
        assert other.recovery.outcome == "clean"
        with pytest.raises(pmwal.WalLocked):
            open_small(place.path, **place.options)


def test_block_that_ends_by_an_exception_still_commits(place: Place) -> None:
    """The exception passes through, and what was appended is kept and closed cleanly."""
    with contextlib.suppress(KeyError), open_small(place.path, commit="manual", **place.options) as wal:
        wal.append(b"kept")
        raise KeyError
    assert wal.closed
    with open_small(place.path, **place.options) as wal:
        assert payloads(wal) == [b"kept"]
        assert wal.recovery.outcome == "clean"


def test_dropped_handle_is_a_crash_with_a_warning(place: Place) -> None:
    """A handle dropped without close warns; nothing more is stored, and the next open recovers."""
    wal = open_small(place.path, **place.options)
    wal.append(b"durable")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del wal
        gc.collect()
    assert [(warning.category, "was dropped without close()" in str(warning.message)) for warning in caught] == [
        (ResourceWarning, True)
    ]
    with open_small(place.path, **place.options) as wal:
        assert wal.recovery.outcome == "recovered"
        assert payloads(wal) == [b"durable"]


def test_handle_is_not_dropped_while_something_of_it_is_in_use(path: Path) -> None:
    """A batch, a reservation and an iterator hold the handle that they came from, and let go of it with themselves."""
    with open_small(path).batch() as batch:
        batch.append(b"1")
        gc.collect()
    with pytest.warns(ResourceWarning, match="dropped without close"):
        del batch
    reservation = open_small(path).reserve(1)
    with reservation as view:
        view[:] = b"2"
        gc.collect()
    with pytest.warns(ResourceWarning, match="dropped without close"):
        del reservation
    records = open_small(path).read()
    gc.collect()
    assert next(records).data == b"1"
    with pytest.warns(ResourceWarning, match="dropped without close"):
        del records


def test_dropped_handle_lets_go_also_when_warnings_are_errors(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under -W error the log can be opened again all the same."""
    raised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: raised.append(what.exc_type))
    wal = open_small(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del wal
        gc.collect()
    assert raised == [ResourceWarning]
    with open_small(path) as wal:
        assert wal.recovery.outcome == "recovered"


def test_handles_leak_no_descriptors(path: Path) -> None:
    """Opening and closing, writing and reading, leaks no descriptor."""
    open_small(path).close()
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with open_small(path), pmwal.open(path, "r"):
            pass
        pmwal.verify(path)
    assert sorted(os.listdir("/proc/self/fd")) == before


# -- poison


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_failed_barrier_is_final(shm_place: Place, number: int) -> None:
    """PersistError with errno and the last durable number, the same from every later call, also when the medium works again."""
    seam = BarrierRecorder()
    with open_small(shm_place.path, seam=seam, **shm_place.options) as wal:
        wal.extend([b"a", b"b"])
        seam.before = fail_flush(number)
        with pytest.raises(pmwal.PersistError, match="open the log again to find what the medium holds") as first:
            wal.append(b"c")
        seam.before = None
        assert (first.value.errno, first.value.committed_seq, wal.committed_seq) == (number, 2, 2)
        flushes = [event for event in seam.events if event.name == "flush"]
        for name, use in USES.items():
            with pytest.raises(pmwal.PersistError) as later:
                use(wal)
            assert (later.value.errno, later.value.committed_seq, str(later.value)) == (number, 2, str(first.value)), name
        assert [event for event in seam.events if event.name == "flush"] == flushes
        assert payloads(wal) == [b"a", b"b"]
        assert wal.stats().errors == 1
    assert wal.closed
    assert [event for event in seam.events if event.name == "flush"] == flushes
    with open_small(shm_place.path, **shm_place.options) as wal:
        assert payloads(wal)[:2] == [b"a", b"b"]


def _in_reserve(wal: pmwal.Wal) -> None:
    with wal.reserve(1):
        pass


@pytest.mark.parametrize(
    "use",
    [
        lambda wal: wal.append(b"x"),
        lambda wal: wal.extend([b"x", b"y"]),
        lambda wal: stage(wal, b"x"),
        _in_reserve,
        lambda wal: (wal.append(b"x", commit=False), wal.commit()),
        lambda wal: (wal.append(b"x", commit=False), wal.wait_durable(3)),
        lambda wal: wal.truncate(before=2),
        lambda wal: wal.rollback(after=1),
        pmwal.Wal.close,
    ],
    ids=["append", "extend", "batch", "reserve", "commit", "wait_durable", "truncate", "rollback", "close"],
)
def test_every_call_that_persists_reports_the_failure(shm_place: Place, use: Callable[[Any], Any]) -> None:
    """Whichever call meets it, the failure is a PersistError, the handle is finished, and the next open is served."""
    seam = BarrierRecorder()
    wal = open_small(shm_place.path, seam=seam, **shm_place.options)
    wal.extend([b"a", b"b"])
    seam.before = fail_flush(errno.EIO)
    with pytest.raises(pmwal.PersistError) as caught:
        use(wal)
    assert (caught.value.errno, caught.value.committed_seq) == (errno.EIO, 2)
    wal.close()
    assert wal.closed
    with open_small(shm_place.path, **shm_place.options) as wal:
        assert b"".join(payloads(wal)) in (b"ab", b"abx", b"abxy", b"ab\0", b"a", b"b")


def test_poison_reaches_threads_that_wait(shm_place: Place) -> None:
    """A thread that waits for another's record learns that it will never be durable."""
    seam = BarrierRecorder()
    with open_small(shm_place.path, seam=seam, **shm_place.options) as wal:
        waiter = Call(lambda: wal.wait_durable(2))
        waiter.join(0.02)
        assert waiter.is_alive()
        seam.before = fail_flush(errno.EIO)
        with pytest.raises(pmwal.PersistError):
            wal.append(b"x")
        with pytest.raises(pmwal.PersistError) as caught:
            waiter.result()
        assert (caught.value.errno, caught.value.committed_seq) == (errno.EIO, 0)


def test_failed_recovery_is_a_persist_error_and_gives_the_log_back(shm_place: Place) -> None:
    """When the medium refuses during open there is no handle, and no lock stays."""
    with open_small(shm_place.path, **shm_place.options) as wal:
        wal.append(b"x")
    with pytest.raises(pmwal.PersistError, match="recovery could not make the log durable") as caught:
        open_small(shm_place.path, seam=BarrierRecorder(fail_flush(errno.EIO)), **shm_place.options)
    assert caught.value.errno == errno.EIO
    with open_small(shm_place.path, **shm_place.options) as wal:
        assert payloads(wal) == [b"x"]


def test_interrupted_flush_is_tried_again(shm_place: Place) -> None:
    """EINTR is no failure of the medium."""
    seam = BarrierRecorder()
    interrupts = 3

    def hook(event: Step) -> None:
        nonlocal interrupts
        if event.name == "flush" and interrupts:
            interrupts -= 1
            raise InterruptedError

    with open_small(shm_place.path, seam=seam, **shm_place.options) as wal:
        seam.before = hook
        assert wal.append(b"x") == 1
        assert (interrupts, wal.committed_seq, wal.stats().errors) == (0, 1, 0)


def test_what_is_no_error_of_the_medium_does_not_poison(shm_place: Place) -> None:
    """An interrupt in the middle of a store passes through, and the next append works."""
    seam = BarrierRecorder()

    def hook(event: Step) -> None:
        seam.before = None
        raise Crash

    with open_small(shm_place.path, seam=seam, **shm_place.options) as wal:
        wal.append(b"a")
        seam.before = hook
        with pytest.raises(Crash):
            wal.append(b"b")
        assert wal.append(b"c") in (2, 3)
        assert payloads(wal)[0] == b"a"
        assert payloads(wal)[-1] == b"c"
