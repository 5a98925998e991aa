"""Threads that commit together: what is acknowledged is durable, and one msync is under way at a time.

The functions without ``test_`` in front run in fresh interpreters over a preloaded msync(2) (tests/preload.py) that records what
a disk would have. Set PMWAL_TEST_ROUNDS to run each of them longer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
import pmwal.events
from callers import Call, until
from commit_threads import DELAY, PAYLOAD, RECORD, ROUNDS, THREADS, at_once, batch_of, create, expected_fault
from marks import first_fast
from pmwal.format.layout import LIVE_BOUNDS, LIVE_OFFSET
from pmwal.storage.mapping import Mapping
from pmwal.writing.engine import Engine
from preload import Shim, run
from support import kill

pytestmark = pytest.mark.usefixtures("native_engine")

# -- what runs beside the preloaded library


def appends(path: str, ordering: str, count: int, lie: str) -> dict[str, Any]:
    """Eight threads append durably; each checks at every return that the disk has its record."""
    with contextlib.ExitStack() as stack:
        if lie == "no barrier":
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(Engine, "_flush_records", lambda self: None)
        wal = stack.enter_context(create(path, ordering))
        shim, ring = Shim(wal, DELAY, interrupt_at=3), wal._engine.block.ring_offset
        early: list[int] = []
        hidden: list[int] = []

        def append(thread: int) -> None:
            for number in range(count):
                seq = wal.append(PAYLOAD.pack(thread, number), commit=lie != "early")
                if not shim.holds(ring + (seq - 1) * RECORD, RECORD):
                    early.append(seq)
                if commit_is_hidden(wal, seq):
                    hidden.append(seq)

        at_once(*[lambda thread=thread: append(thread) for thread in range(THREADS)])
        assert wal.next_seq == THREADS * count + 1
        commits, calls = wal.stats().commits, shim.calls
    with pmwal.open(path, "r") as reader:
        kept = {PAYLOAD.unpack(record.data) for record in reader}
    return {
        "early": len(early),
        "hidden": len(hidden),
        "overlaps": shim.overlaps,
        "calls": calls,
        "commits": commits,
        "whole": kept == {(thread, number) for thread in range(THREADS) for number in range(count)},
    }


def queued(path: str, ordering: str, count: int) -> int:
    """Commits of eight threads that append ``count`` records each, after all of them had to wait for the same lock."""
    with create(path, ordering) as wal:
        Shim(wal, DELAY)
        with wal._engine.writing:
            calls = [Call(lambda: [wal.append(b"x" * 16) for _ in range(count)]) for _ in range(THREADS)]
            until(lambda: wal._engine.writing.waiters == THREADS)
        for call in calls:
            call.result()
        return wal.stats().commits


BESIDE: dict[str, Callable[[pmwal.Wal], Callable[[], Any]]] = {
    "append": lambda wal: lambda: wal.append(b"x" * 16),
    "append after waiting": lambda wal: after_waiting(wal, lambda: wal.append(b"x" * 16)),
    "extend after waiting": lambda wal: after_waiting(wal, lambda: wal.extend([b"x" * 16] * 3)),
    "array after waiting": lambda wal: after_waiting(wal, lambda: wal.extend_array(np.zeros((3, 16), np.uint8))),
    "event after waiting": lambda wal: after_waiting(wal, pmwal.events.Logger(wal).event("x")),
    "batch": lambda wal: lambda: batch_of(wal, [b"x" * 16] * 3),
}


def after_waiting(wal: pmwal.Wal, call: Callable[[], Any]) -> Callable[[], Any]:
    """The same call in a thread that first has to wait for another one, as for the end of its batch."""

    def queue() -> Any:
        with wal._engine.writing:
            other = Call(call)
            until(lambda: wal._engine.writing.waiters == 1)
        return other.result()

    return queue


def beside_barrier(path: str, ordering: str, delay: float) -> list[str]:
    """The calls that did not return while another thread's msync took ``delay`` seconds."""
    late = []
    for number, (name, prepare) in enumerate(BESIDE.items()):
        with create(f"{path}{number}", ordering, commit="manual") as wal:
            call = prepare(wal)
            call()
            shim = Shim(wal, delay)
            other = Call(wal.commit)
            until(lambda shim=shim: shim.in_flight == 1)
            before = shim.calls
            call()
            if (shim.in_flight, shim.calls) != (1, before):
                late.append(name)
            shim.behave()
            other.result()
            assert wal.commit() == wal.next_seq - 1
    return late


def commit_is_hidden(wal: pmwal.Wal, seq: int) -> bool:
    """Whether this handle, or the live page for other processes, does not say yet that the record is durable."""
    shown = wal._engine.mapping.load(LIVE_OFFSET + LIVE_BOUNDS.offsets["durable_seq"], 8)
    return wal.committed_seq < seq or int.from_bytes(shown, "little") < seq


def failing(path: str, ordering: str, fail_at: int, swallow: bool) -> dict[str, Any]:
    """Eight threads append until an msync fails; what each was told, and the records that the disk and the file have then."""
    with pytest.MonkeyPatch.context() as patch:
        if swallow:
            original = Mapping._flush

            def flush(self: Mapping, offset: int, length: int) -> None:
                with contextlib.suppress(OSError):
                    original(self, offset, length)

            patch.setattr(Mapping, "_flush", flush)
        wal = create(path, ordering)
        shim = Shim(wal, DELAY, fail_at=fail_at)
        acknowledged: list[int] = []

        def append(thread: int) -> Any:
            for number in range(60):
                try:
                    acknowledged.append(wal.append(PAYLOAD.pack(thread, number)))
                except pmwal.PersistError as error:
                    return error.errno, error.committed_seq
            return None

        told = at_once(*[lambda thread=thread: append(thread) for thread in range(THREADS)])
        later = [
            expected_fault(wal, call)
            for call in (
                lambda: wal.append(b"later"),
                lambda: wal.append(b"later", commit=False),
                lambda: wal.extend([b"later", b"still"]),
                wal.commit,
                lambda: wal.wait_durable(1),
                lambda: wal.truncate(1),
                lambda: wal.rollback(0),
            )
        ]
        committed = wal.committed_seq
        shim.power_cut(f"{path}.cut")
        kill(wal)
    holds = []
    for where in (path, f"{path}.cut"):
        with pmwal.open(where, "r+", medium="file") as wal:
            holds.append(sorted(set(acknowledged) - {record.seq for record in wal}))
    return {"told": told, "later": later, "committed": committed, "acknowledged": max(acknowledged, default=0), "lost": holds}


def failing_at(path: str, ordering: str, places: list[int]) -> list[dict[str, Any]]:
    """The same for several places of the failure."""
    return [failing(f"{path}{place}", ordering, place, False) for place in places]


def second_chances(path: str, ordering: str) -> dict[str, Any]:
    """``second_chance`` for each call."""
    return {call: second_chance(f"{path} {call}", ordering, call) for call in CALLS}


def second_chance(path: str, ordering: str, call: str) -> dict[str, Any]:
    """An msync fails; before the thread that met it can tell anybody, another one makes a call that would commit."""
    wal = create(path, ordering, commit="manual")
    wal.append(b"first", commit=True)
    shim = Shim(wal)
    shim.behave(fail_at=shim.calls + 1)
    seq = wal.append(b"never durable")
    answers: list[Any] = []
    original = type(wal)._fail

    def late(self: pmwal.Wal, error: OSError) -> Any:
        if not answers:
            answers.append("...")
            other = Call(lambda: expected_fault(wal, lambda: CALLS[call](wal, seq)))
            other.join(0.2)  # it may have to wait for this thread
            answers[0] = other
        return original(self, error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(wal), "_fail", late)
        told = expected_fault(wal, lambda: wal.append(b"with it", commit=True))
        answer = answers[0].result()
    shim.power_cut(f"{path}.cut")
    committed = wal.committed_seq
    kill(wal)
    try:
        with pmwal.open(f"{path}.cut", "r") as reader:
            disk: Any = [record.data.decode() for record in reader]
    except pmwal.CorruptWal as error:
        disk = str(error)
    return {"told": told, "other": answer, "committed": committed, "disk": disk}


CALLS: dict[str, Callable[[pmwal.Wal, int], Any]] = {
    "commit": lambda wal, seq: wal.commit(),
    "append": lambda wal, seq: wal.append(b"other", commit=True),
    "wait_durable": lambda wal, seq: wal.wait_durable(seq),
    "truncate": lambda wal, seq: wal.truncate(seq),
    "rollback": lambda wal, seq: wal.rollback(seq),
    "batch": lambda wal, seq: batch_of(wal, [b"other"]) and wal.commit(),
}


def flush_at_once(path: str) -> dict[str, Any]:
    """Eight msyncs side by side, past the log."""
    with create(path) as wal:
        shim = Shim(wal, 0.05)
        start = ctypes.c_char.from_buffer(wal._engine.mapping.map)
        address = ctypes.c_void_p(ctypes.addressof(start))
        msync = ctypes.CDLL(None).msync
        at_once(*[lambda: msync(address, ctypes.c_size_t(4096), 4)] * THREADS)
        del start
        return {"overlaps": shim.overlaps}


# -- the claims


@pytest.mark.parametrize("where", first_fast(["tmpfs", "disk"]))
def test_acknowledged_record_is_on_the_disk_and_one_msync_runs_at_a_time(
    library: Path, shm_dir: Path, tmp_path: Path, ordering: str, where: str
) -> None:
    """At every return of eight appending threads the disk has the record; an interrupted msync is repeated, and none overlap."""
    directory = shm_dir if where == "tmpfs" else tmp_path
    result = run(library, __name__, "appends", str(directory / "log"), ordering, 25 * ROUNDS, "")
    assert result["early"] == 0
    assert result["hidden"] == 0
    assert result["overlaps"] == 0
    assert result["whole"]
    assert result["calls"] > 3


@pytest.mark.parametrize(("name", "lie"), [("native", "early"), ("python", "no barrier")])
def test_check_of_the_disk_finds_an_early_acknowledgement(
    library: Path, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, lie: str
) -> None:
    """The check above can fail: records that no barrier covered are seen to be missing on the disk."""
    monkeypatch.setenv("PMWAL_ENGINE", name)
    assert run(library, __name__, "appends", str(shm_dir / "log"), "pipelined", 5, lie)["early"] > 0


def test_check_of_the_disk_finds_two_msyncs_at_once(library: Path, shm_dir: Path) -> None:
    """The check above can fail: eight threads that flush the same mapping side by side are counted."""
    assert run(library, __name__, "flush_at_once", str(shm_dir / "log"))["overlaps"] > 0


def test_threads_share_their_barriers(library: Path, shm_dir: Path, ordering: str) -> None:
    """Scenario 23: eight threads that append beside an msync of 2 ms need less than one commit for two records."""
    ratios = []
    for attempt in range(3):  # a machine that computes something else makes the engine hold on to the interpreter
        result = run(library, __name__, "appends", str(shm_dir / f"log{attempt}"), ordering, 25, "")
        ratios.append(result["commits"] / (25 * THREADS))
        if ratios[-1] < 0.5:
            return
    pytest.fail(f"commits for each record: {ratios}")


def test_threads_that_waited_for_each_other_share_their_barriers(library: Path, shm_dir: Path, ordering: str) -> None:
    """Eight threads that wait for one lock in a queue do not each wait for the barrier of the one before."""
    ratios = []
    for attempt in range(3):
        ratios.append(run(library, __name__, "queued", str(shm_dir / f"log{attempt}"), ordering, 25) / (25 * THREADS))
        if ratios[-1] < 0.5:
            return
    pytest.fail(f"commits for each record: {ratios}")


def test_records_are_stored_beside_a_barrier(library: Path, shm_dir: Path, ordering: str) -> None:
    """No call that only stores waits for another thread's barrier, also not one that had to wait for its turn."""
    late: list[str] = []
    for delay in (0.2, 2, 10):  # a busy machine may need that long for the call
        late = run(library, __name__, "beside_barrier", str(shm_dir / f"log{delay}"), ordering, delay)
        if not late:
            return
    pytest.fail(f"waited for the barrier: {late}")


def test_barrier_waits_for_the_threads_that_come_again(library: Path, shm_dir: Path) -> None:
    """Of eight threads that do nothing but append nearly all are in each barrier; if the barrier did not wait, it would be half."""
    ratios = []
    for attempt in range(5):  # a machine that computes something else lets threads come late
        result = run(library, __name__, "appends", str(shm_dir / f"log{attempt}"), "pipelined", 60, "")
        ratios.append(result["commits"] / (60 * THREADS))
        if ratios[-1] < 0.18:
            return
    pytest.fail(f"commits for each record: {ratios}")


def test_failed_msync_reaches_every_thread_and_acknowledges_nothing(library: Path, shm_dir: Path, ordering: str) -> None:
    """All threads and all later calls get the same PersistError; what was acknowledged is on the disk and found again."""
    for result in run(library, __name__, "failing_at", str(shm_dir / "log"), ordering, [1, 2, 3, 8, 13]):
        failure = [errno.EIO, result["committed"]]
        assert result["told"] == [failure] * THREADS
        assert result["later"] == [failure] * len(result["later"])
        assert result["acknowledged"] <= result["committed"]
        assert result["lost"] == [[], []]


def test_check_of_failed_msync_finds_a_swallowed_error(library: Path, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail: an engine that continues after a failed msync loses what it acknowledged."""
    monkeypatch.setenv("PMWAL_ENGINE", "python")
    result = run(library, __name__, "failing", str(shm_dir / "log"), "pipelined", 3, True)
    assert result["told"] == [None] * THREADS
    assert result["lost"][1]


def test_nobody_commits_after_a_failed_msync(library: Path, shm_dir: Path, ordering: str) -> None:
    """A thread that comes between the failure and the poison is refused too: a second msync would return 0 and mean nothing."""
    failure = {"told": [errno.EIO, 1], "other": [errno.EIO, 1], "committed": 1, "disk": ["first"]}
    assert run(library, __name__, "second_chances", str(shm_dir / "log"), ordering) == dict.fromkeys(CALLS, failure)
