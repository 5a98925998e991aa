"""Threads that commit together: what is acknowledged is durable, one msync is under way at a time, and nobody waits for ever.

The honest part runs in fresh interpreters over a preloaded msync(2) (tests/preload.py) that keeps what a disk would hold.
The functions without ``test_`` in front run there. Set PMWAL_TEST_ROUNDS to run each of them longer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import random
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from callers import Call, until
from pmwal.format.layout import LIVE_BOUNDS, LIVE_OFFSET
from pmwal.native import _native
from pmwal.storage.mapping import Mapping
from pmwal.writing.engine import Engine
from preload import Shim, build, run
from support import kill

THREADS = 8
ROUNDS = int(os.environ.get("PMWAL_TEST_ROUNDS", "1"))
DELAY = 0.002
PAYLOAD = struct.Struct("<QQ")  # thread, number: a record of 64 bytes, so that all lie end to end
RECORD = 64


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preloaded library."""
    return build(tmp_path_factory.mktemp("shim"))


@pytest.fixture(params=["strict", "pipelined"])
def ordering(request: pytest.FixtureRequest) -> str:
    """Each ordering."""
    return str(request.param)


@pytest.fixture(autouse=True)
def native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine that this module is about."""
    monkeypatch.setenv("PMWAL_ENGINE", "native")


def create(path: str, ordering: str = "strict", size: str = "1MiB", **options: Any) -> pmwal.Wal:
    """A log that is flushed by msync, wherever it lies."""
    wal = pmwal.open(path, size=size, medium="file", ordering=ordering, align=RECORD, **options)
    assert wal.stats().flush == "msync"
    return wal


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """Run each in a thread of its own, begun together; what they returned."""
    barrier = threading.Barrier(len(functions))

    def begin(function: Callable[[], Any]) -> Any:
        barrier.wait()
        return function()

    calls = [Call(lambda function=function: begin(function)) for function in functions]
    return [call.result() for call in calls]


def expected_fault(wal: pmwal.Wal, call: Callable[[], Any]) -> tuple[int | None, int] | None:
    """Errno and number of the PersistError that the call raises; None when it raises none."""
    try:
        call()
    except pmwal.PersistError as error:
        return error.errno, error.committed_seq
    return None


# -- what runs beside the preloaded library


def appends(path: str, ordering: str, count: int, lie: str) -> dict[str, Any]:
    """Eight threads append durably; each looks at every return whether the disk holds its record."""
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


def commit_is_hidden(wal: pmwal.Wal, seq: int) -> bool:
    """Whether this handle, or the live page for other processes, does not say yet that the record is durable."""
    shown = wal._engine.mapping.load(LIVE_OFFSET + LIVE_BOUNDS.offsets["durable_seq"], 8)
    return wal.committed_seq < seq or int.from_bytes(shown, "little") < seq


def failing(path: str, ordering: str, fail_at: int, swallow: bool) -> dict[str, Any]:
    """Eight threads append until an msync fails; what each of them was told, and what the disk and the file hold then."""
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


def batch_of(wal: pmwal.Wal, items: list[bytes]) -> tuple[int, int]:
    """Append in one batch."""
    with wal.batch() as batch:
        for item in items:
            batch.append(item)
    return batch.first, batch.last


def mixed(path: str, ordering: str, on_full: str, seconds: float, lie: bool) -> dict[str, Any]:
    """All calls from many threads at once, over a ring that wraps; meanwhile power cuts show what the disk holds."""
    wal = create(path, ordering, "64KiB", on_full=on_full)
    shim = Shim(wal, 0.01 if lie else 0.0005)
    acknowledged: dict[int, bytes] = {}
    freed = [1]  # what a truncate has been asked to free
    end = time.monotonic() + seconds
    done: dict[str, int] = {}

    def repeat(name: str, step: Callable[[random.Random], Any]) -> None:
        rng = random.Random(name)
        try:
            while time.monotonic() < end or (name == "truncate" and busy):  # others may wait for room to the very end
                step(rng)
                done[name] = done.get(name, 0) + 1
        finally:
            busy.discard(name)

    def payload(rng: random.Random) -> bytes:
        return rng.randbytes(rng.choice((0, 1, 17, 100, 1000, 3000)))

    def append(rng: random.Random) -> None:
        data = payload(rng)
        acknowledged[wal.append(data, commit=not lie)] = data

    def extend(rng: random.Random) -> None:
        items = [payload(rng) for _ in range(rng.randrange(1, 4))]
        first, _ = wal.extend(items)
        acknowledged.update(zip(range(first, first + len(items)), items, strict=True))

    def batch(rng: random.Random) -> None:
        items = [payload(rng) for _ in range(rng.randrange(1, 4))]
        first, _ = batch_of(wal, items)
        acknowledged.update(zip(range(first, first + len(items)), items, strict=True))

    def commit(rng: random.Random) -> None:
        data = payload(rng)
        seq = wal.append(data, commit=False)
        assert wal.commit() >= seq
        acknowledged[seq] = data

    def wait(rng: random.Random) -> None:
        data = payload(rng)
        seq = wal.append(data, commit=False)
        assert wal.wait_durable(seq, timeout=PATIENCE)
        acknowledged[seq] = data
        wal.wait_durable(seq + 1, timeout=0.001)

    def truncate(rng: random.Random) -> None:
        before = (wal.first_seq + wal.next_seq) // 2
        freed[0] = max(freed[0], before)
        with contextlib.suppress(ValueError):  # overwritten meanwhile
            wal.truncate(before)

    def cut(rng: random.Random) -> None:
        known = dict(acknowledged)
        shim.power_cut(f"{path}.cut")
        first = freed[0]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}.writable")
        os.rename(f"{path}.cut", f"{path}.writable")
        with pmwal.open(f"{path}.writable", "r+", medium="memory") as disk:
            if on_full == "overwrite":
                first = max(first, disk.first_seq)
            assert disk.first_seq <= first, "a tail that nobody asked for"
            kept = {record.seq: record.data for record in disk}
        lost = [seq for seq, data in known.items() if seq >= first and kept.get(seq) != data]
        assert not lost, f"lost {lost[:5]}, the disk holds {min(kept, default=0)} to {max(kept, default=0)}"

    steps = {"a": append, "b": append, "c": append, "extend": extend, "batch": batch, "commit": commit, "wait": wait}
    steps |= {"truncate": truncate, "cut": cut}
    busy = steps.keys() - {"truncate"}
    at_once(*[lambda name=name, step=step: repeat(name, step) for name, step in steps.items()])
    wal.close()
    with pmwal.open(path, "r") as reader:
        kept = {record.seq: record.data for record in reader}
        lost = [seq for seq, data in acknowledged.items() if seq >= reader.first_seq and kept.get(seq) != data]
    return {"done": done, "lost": lost, "overlaps": shim.overlaps, "outcome": pmwal.verify(path).outcome}


PATIENCE = 20.0


def with_rollbacks(path: str, ordering: str, seconds: float) -> dict[str, Any]:
    """Rollbacks and truncates beside durable appends; what is there in the end is what was appended under those numbers last."""
    wal = create(path, ordering, "64KiB", on_full="wait", timeout=PATIENCE)
    shim = Shim(wal, 0.0005)
    end = time.monotonic() + seconds
    issued: dict[int, set[bytes]] = {}
    done: dict[str, int] = {}

    def repeat(name: str, step: Callable[[random.Random], Any]) -> None:
        rng = random.Random(name)
        try:
            while time.monotonic() < end or (name == "truncate" and busy):  # others may wait for room to the very end
                step(rng)
                done[name] = done.get(name, 0) + 1
        finally:
            busy.discard(name)

    def append(rng: random.Random) -> None:
        data = rng.randbytes(rng.randrange(8, 500))
        issued.setdefault(wal.append(data), set()).add(data)

    def rollback(rng: random.Random) -> None:
        with contextlib.suppress(ValueError):
            wal.rollback(wal.next_seq - rng.randrange(1, 5))
        time.sleep(0.002)

    def truncate(rng: random.Random) -> None:
        with contextlib.suppress(ValueError, pmwal.Overrun):
            wal.truncate(wal.first_seq + len(wal) // 2)

    def read(rng: random.Random) -> None:
        with contextlib.suppress(pmwal.Overrun):
            numbers = [record.seq for record in wal]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True

    steps = {"a": append, "b": append, "c": append, "rollback": rollback, "truncate": truncate, "read": read}
    busy = steps.keys() - {"truncate"}
    at_once(*[lambda name=name, step=step: repeat(name, step) for name, step in steps.items()])
    strange = [record.seq for record in wal if record.data not in issued[record.seq]]
    wal.close()
    return {"done": done, "strange": strange, "overlaps": shim.overlaps, "outcome": pmwal.verify(path).outcome}


def nothing_but_rollbacks(path: str, ordering: str, seconds: float) -> dict[str, Any]:
    """Rollbacks without a pause beside durable appends, whose records are gone before they are known to be durable."""
    sys.setswitchinterval(1e-5)
    wal = create(path, ordering)
    end = time.monotonic() + seconds

    def append() -> None:
        while time.monotonic() < end:
            with contextlib.suppress(pmwal.WalFull):
                wal.append(bytes(16))

    def roll_back() -> None:
        while time.monotonic() < end:
            with contextlib.suppress(ValueError):
                wal.rollback(max(wal.first_seq, wal.next_seq - 20))

    at_once(append, append, append, roll_back)
    wal.close()
    return {"outcome": pmwal.verify(path).outcome}


def truncates_beside_commits(path: str, ordering: str) -> dict[str, Any]:
    """How far truncates and rollback-free commits get side by side."""
    wal = create(path, ordering)
    Shim(wal, DELAY)
    stop = threading.Event()
    counts = [0] * THREADS

    def append(thread: int) -> None:
        while not stop.is_set():
            wal.append(PAYLOAD.pack(thread, counts[thread]))
            counts[thread] += 1

    calls = [Call(lambda thread=thread: append(thread)) for thread in range(THREADS)]
    until(lambda: min(counts) > 2)
    for _ in range(5):
        assert wal.truncate(wal.first_seq + 1) == wal.first_seq
    before = sum(counts)
    until(lambda: sum(counts) > before + THREADS)
    stop.set()
    for call in calls:
        call.result()
    first = wal.first_seq
    wal.close()
    return {"first": first}


def beside_a_computation(path: str, ordering: str) -> dict[str, Any]:
    """Durable appends of two threads while a third computes in Python."""
    wal = create(path, ordering)
    Shim(wal)
    stop = threading.Event()

    def compute() -> int:
        number = 0
        while not stop.is_set():
            number = (number * 31 + 7) % 1_000_003
        return number

    def append(thread: int) -> int:
        return max(wal.append(PAYLOAD.pack(thread, number)) for number in range(60))

    computing = Call(compute)
    last = max(at_once(lambda: append(1), lambda: append(2)))
    stop.set()
    computing.result()
    wal.close()
    return {"last": last}


def forks(path: str, ordering: str) -> dict[str, Any]:
    """Forks while other threads commit together; what each child met, and whether the parent went on."""
    wal = create(path, ordering)
    shim = Shim(wal, DELAY)
    stop = threading.Event()
    acknowledged: list[int] = []

    def append(thread: int) -> None:
        while not stop.is_set():
            acknowledged.append(wal.append(PAYLOAD.pack(thread, 0)))

    calls = [Call(lambda thread=thread: append(thread)) for thread in range(4)]
    met = []
    until(lambda: bool(acknowledged))
    records = wal.read()
    next(records)
    for _ in range(6):
        until(lambda: shim.in_flight > 0)
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            refused = 0
            for call in (lambda: wal.append(b"child"), lambda: wal.append(b"child", commit=False), wal.commit,
                         lambda: wal.extend([b"child"]), lambda: next(records), lambda: wal.truncate(2),
                         lambda: wal.wait_durable(10**6)):  # fmt: skip
                try:
                    call()
                except pmwal.ForkedWal:
                    refused += 1
            wal.close()
            del wal, records
            gc.collect()
            os._exit(refused)
        met.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        before = len(acknowledged)
        until(lambda before=before: len(acknowledged) > before)
    stop.set()
    for call in calls:
        call.result()
    kept = {record.seq for record in wal}
    wal.close()
    return {"met": met, "lost": sorted(set(acknowledged) - kept), "outcome": pmwal.verify(path).outcome}


def interrupts(path: str, ordering: str) -> dict[str, Any]:
    """SIGINT again and again into the main thread while it commits together with others."""
    wal = create(path, ordering, "4MiB")
    Shim(wal, DELAY)
    stop = threading.Event()
    acknowledged: dict[int, bytes] = {}

    def append(thread: int, number: int) -> None:
        data = PAYLOAD.pack(thread, number)
        acknowledged[wal.append(data)] = data

    def keep_appending(thread: int) -> None:
        number = 0
        while not stop.is_set():
            append(thread, number)
            number += 1

    calls = [Call(lambda thread=thread: keep_appending(thread)) for thread in range(1, 4)]
    rng = random.Random(1)
    interrupted = number = 0
    for _ in range(25 * ROUNDS):
        timer = threading.Timer(rng.random() * 3 * DELAY, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            while True:
                number += 1
                append(0, number)
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
    stop.set()
    for call in calls:
        call.result()
    append(0, 0)
    kept = {record.seq: record.data for record in wal}
    lost = [seq for seq, data in acknowledged.items() if kept.get(seq) != data]
    twice = len(kept) - len(set(kept.values()))
    wal.close()
    return {"interrupted": interrupted, "lost": lost, "twice": twice, "outcome": pmwal.verify(path).outcome}


# -- the claims


@pytest.mark.parametrize("where", ["tmpfs", "disk"])
def test_acknowledged_record_is_on_the_disk_and_one_msync_runs_at_a_time(
    library: Path, shm_dir: Path, tmp_path: Path, ordering: str, where: str
) -> None:
    """At every return of eight appending threads the disk holds the record, an interrupted msync is repeated, and none overlap."""
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


def test_threads_share_their_barriers(library: Path, shm_dir: Path, ordering: str) -> None:
    """Scenario 23: eight threads that append beside an msync of 2 ms need less than one commit for two records."""
    ratios = []
    for attempt in range(3):  # a machine that computes something else makes the engine hold on to the interpreter
        result = run(library, __name__, "appends", str(shm_dir / f"log{attempt}"), ordering, 25, "")
        ratios.append(result["commits"] / (25 * THREADS))
        if ratios[-1] < 0.5:
            return
    pytest.fail(f"commits for each record: {ratios}")


def test_barrier_waits_for_the_threads_that_come_again(library: Path, shm_dir: Path) -> None:
    """Of eight threads that do nothing but append nearly all are in each barrier; those that come just too late would be half."""
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
    """The check above can fail: an engine that goes on after a failed msync loses what it acknowledged."""
    monkeypatch.setenv("PMWAL_ENGINE", "python")
    result = run(library, __name__, "failing", str(shm_dir / "log"), "pipelined", 3, True)
    assert result["told"] == [None] * THREADS
    assert result["lost"][1]


def test_nobody_commits_after_a_failed_msync(library: Path, shm_dir: Path, ordering: str) -> None:
    """A thread that comes between the failure and the poison is refused too: a second msync would return 0 and mean nothing."""
    failure = {"told": [errno.EIO, 1], "other": [errno.EIO, 1], "committed": 1, "disk": ["first"]}
    assert run(library, __name__, "second_chances", str(shm_dir / "log"), ordering) == dict.fromkeys(CALLS, failure)


@pytest.mark.parametrize("on_full", ["wait", "overwrite"])
def test_all_calls_at_once_lose_nothing(library: Path, shm_dir: Path, ordering: str, on_full: str) -> None:
    """Nine threads with every call over a wrapping ring: every power cut on the way keeps what was acknowledged, nobody hangs."""
    result = run(library, __name__, "mixed", str(shm_dir / "log"), ordering, on_full, 0.7 * ROUNDS, False)
    assert result["lost"] == []
    assert result["overlaps"] == 0
    assert result["outcome"] == "clean"
    assert set(result["done"]) == {"a", "b", "c", "extend", "batch", "commit", "wait", "truncate", "cut"}


def test_check_of_all_calls_at_once_finds_a_loss(library: Path, shm_dir: Path) -> None:
    """The check above can fail: appends that are called durable before they are do not survive the power cuts."""
    with pytest.raises(AssertionError, match="lost"):
        run(library, __name__, "mixed", str(shm_dir / "log"), "pipelined", "wait", 3.0, True)


def test_rollbacks_beside_commits_leave_a_whole_log(library: Path, shm_dir: Path, ordering: str) -> None:
    """Appends, rollbacks, truncates and reads side by side end without a hang, and every record left is one that was appended."""
    result = run(library, __name__, "with_rollbacks", str(shm_dir / "log"), ordering, 0.6 * ROUNDS)
    assert result["strange"] == []
    assert result["overlaps"] == 0
    assert result["outcome"] == "clean"
    assert set(result["done"]) == {"a", "b", "c", "rollback", "truncate", "read"}


def test_append_whose_record_is_rolled_back_meanwhile_returns(library: Path, shm_dir: Path, ordering: str) -> None:
    """It does not wait for a number to become durable that the log does not have any more."""
    assert run(library, __name__, "nothing_but_rollbacks", str(shm_dir / "log"), ordering, 2.0 * ROUNDS)["outcome"] == "clean"


def test_truncate_gets_its_turn_beside_committing_threads(library: Path, shm_dir: Path) -> None:
    """Truncates return while eight threads commit without a pause, and those go on."""
    assert run(library, __name__, "truncates_beside_commits", str(shm_dir / "log"), "strict")["first"] == 6


def test_commits_go_on_beside_a_computing_thread(library: Path, shm_dir: Path) -> None:
    """Durable appends of two threads end while a third never lets the interpreter go by itself."""
    assert run(library, __name__, "beside_a_computation", str(shm_dir / "log"), "pipelined")["last"] == 120


def test_fork_during_a_flush_leaves_the_parent_whole(library: Path, shm_dir: Path, ordering: str) -> None:
    """Every call of each child is refused at once, and the parent's threads go on and lose nothing."""
    result = run(library, __name__, "forks", str(shm_dir / "log"), ordering)
    assert result["met"] == [7] * 6
    assert result["lost"] == []
    assert result["outcome"] == "clean"


def test_interrupt_of_a_commit_leaves_the_handle_usable(library: Path, shm_dir: Path, ordering: str) -> None:
    """After each KeyboardInterrupt the log takes the next append; nothing acknowledged is lost, nothing is there twice."""
    result = run(library, __name__, "interrupts", str(shm_dir / "log"), ordering)
    assert result["interrupted"] == 25 * ROUNDS
    assert result["lost"] == []
    assert result["twice"] == 0
    assert result["outcome"] == "clean"


# -- the lock


@pytest.fixture(params=["native", "python"])
def lock(request: pytest.FixtureRequest) -> Any:
    """The lock of each engine."""
    return _native.Lock() if request.param == "native" else threading.RLock()


@contextlib.contextmanager
def held_elsewhere(lock: Any) -> Iterator[threading.Event]:
    """Another thread holds the lock until the event is set, or the block ends."""
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            release.wait()

    call = Call(hold)
    taken.wait()
    try:
        yield release
    finally:
        release.set()
        call.result()


def test_lock_is_reentrant(lock: Any) -> None:
    """It is free again for others only after as many releases as acquires."""
    for _ in range(3):
        assert lock.acquire()
    for _ in range(3):
        assert not Call(lambda: lock.acquire(blocking=False)).result()
        lock.release()
    assert not lock._is_owned()

    def take() -> bool:
        try:
            return bool(lock.acquire(blocking=False))
        finally:
            lock.release()

    assert Call(take).result()


def test_lock_is_released_by_its_owner_only(lock: Any) -> None:
    """Releasing a free lock, or another thread's, is a RuntimeError and changes nothing."""
    with pytest.raises(RuntimeError):
        lock.release()
    with held_elsewhere(lock), pytest.raises(RuntimeError):
        lock.release()
    assert lock.acquire(blocking=False)
    lock.release()


@pytest.mark.parametrize("arguments", [{"timeout": 0.02}, {"blocking": True, "timeout": 0.02}, {"blocking": False}])
def test_lock_gives_up_after_its_timeout(lock: Any, arguments: dict[str, Any]) -> None:
    """With a timeout it says False in time, or refuses one at once; without blocking it says False."""

    def take() -> bool:
        try:
            return bool(lock.acquire(**arguments))
        except TypeError:
            assert "timeout" in arguments
            return False

    with held_elsewhere(lock) as release:
        call = Call(take)
        call.join(1.0)
        hung = call.is_alive()
        release.set()
        assert not hung, "it waited in spite of its timeout"
        assert not call.result()


def test_lock_carries_a_condition(lock: Any) -> None:
    """A condition over it waits with a timeout, is notified, and lets go of every level while it waits."""
    condition = threading.Condition(lock)
    with pytest.raises(RuntimeError):
        condition.wait(0)
    with pytest.raises(RuntimeError):
        condition.notify()
    with condition, condition:
        assert not condition.wait(0.01)
        other = Call(lambda: notify(condition))
        assert condition.wait(5.0)
        assert lock._is_owned()
    other.result()
    assert not lock._is_owned()


def notify(condition: threading.Condition) -> None:
    """Notify all who wait."""
    with condition:
        condition.notify_all()


class Interrupted(Exception):
    """What the signal handler of the next tests raises."""


@pytest.fixture
def alarm() -> Iterator[None]:
    """SIGALRM raises ``Interrupted``."""

    def handler(*_: Any) -> None:
        raise Interrupted

    old = signal.signal(signal.SIGALRM, handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("how", ["acquire", "with"])
def test_lock_can_be_interrupted(lock: Any, how: str) -> None:
    """A signal handler that raises ends the waiting, and the lock is not held then."""
    with held_elsewhere(lock):
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(Interrupted):
            (lock.acquire if how == "acquire" else lock.__enter__)()
        assert not lock._is_owned()
    assert lock.acquire(blocking=False)
    lock.release()


@pytest.mark.usefixtures("alarm")
def test_lock_is_held_after_an_interrupted_wait(lock: Any) -> None:
    """A condition's wait that a signal handler ends still returns with the lock, though it had to wait for it."""
    condition = threading.Condition(lock)
    with condition:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(Interrupted):
            condition.wait(5.0)
        assert lock._is_owned()
    assert not lock._is_owned()


def test_lock_is_passed_on_under_load(lock: Any) -> None:
    """Many threads that take it again and again exclude each other, and all come to an end."""
    total = 0

    def add() -> None:
        nonlocal total
        for _ in range(2000):
            with lock, lock:
                value = total
                total = value + 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        at_once(*[add] * THREADS)
    finally:
        sys.setswitchinterval(interval)
    assert total == 2000 * THREADS
