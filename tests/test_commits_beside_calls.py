"""Commits of many threads beside other calls, forks and interrupts: nothing acknowledged is lost, and no thread hangs.

The functions without ``test_`` in front run in fresh interpreters over a preloaded msync(2) (tests/preload.py). Set
PMWAL_TEST_ROUNDS to run each of them longer.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from callers import Call, until
from commit_threads import DELAY, PAYLOAD, ROUNDS, THREADS, at_once, batch_of, create
from marks import first_fast
from preload import Shim, run

pytestmark = pytest.mark.usefixtures("native_engine")

# -- what runs beside the preloaded library

PATIENCE = 300.0


class Mixed:
    """All calls from many threads at once, over a ring that wraps; meanwhile power cuts show what is on the disk.

    With ``lie`` some records are noted as acknowledged that are only stored: the negative control.
    """

    def __init__(self, path: str, ordering: str, on_full: str, lie: bool) -> None:
        self.path, self.on_full, self.lie = path, on_full, lie
        self.wal = create(path, ordering, "64KiB", on_full=on_full)
        self.shim = Shim(self.wal, 0.01 if lie else 0.0005)
        self.acknowledged: dict[int, bytes] = {}
        self.freed = 1  # what a truncate has been asked to free
        self.steps: dict[str, Callable[[random.Random], None]] = {
            **dict.fromkeys("abc", self.append),
            "extend": self.extend,
            "batch": self.batch,
            "commit": self.commit,
            "wait": self.wait,
            "truncate": self.truncate,
            "cut": self.cut,
        }

    def payload(self, rng: random.Random) -> bytes:
        return rng.randbytes(rng.choice((0, 1, 17, 100, 1000, 3000)))

    def payloads(self, rng: random.Random) -> list[bytes]:
        return [self.payload(rng) for _ in range(rng.randrange(1, 4))]

    def append(self, rng: random.Random) -> None:
        data = self.payload(rng)
        self.acknowledged[self.wal.append(data, commit=not self.lie)] = data

    def extend(self, rng: random.Random) -> None:
        items = self.payloads(rng)
        first, _ = self.wal.extend(items)
        self.acknowledged.update(enumerate(items, first))

    def batch(self, rng: random.Random) -> None:
        items = self.payloads(rng)
        first, _ = batch_of(self.wal, items)
        self.acknowledged.update(enumerate(items, first))

    def commit(self, rng: random.Random) -> None:
        data = self.payload(rng)
        seq = self.wal.append(data, commit=False)
        assert self.wal.commit() >= seq
        self.acknowledged[seq] = data

    def wait(self, rng: random.Random) -> None:
        data = self.payload(rng)
        seq = self.wal.append(data, commit=False)
        assert self.wal.wait_durable(seq, timeout=PATIENCE)
        self.acknowledged[seq] = data
        self.wal.wait_durable(seq + 1, timeout=0.001)

    def truncate(self, rng: random.Random) -> None:
        before = (self.wal.first_seq + self.wal.next_seq) // 2
        self.freed = max(self.freed, before)
        with contextlib.suppress(ValueError):  # overwritten meanwhile
            self.wal.truncate(before)

    def cut(self, rng: random.Random) -> None:
        known = dict(self.acknowledged)
        self.shim.power_cut(f"{self.path}.cut")
        first = self.freed
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.path}.writable")
        os.rename(f"{self.path}.cut", f"{self.path}.writable")
        with pmwal.open(f"{self.path}.writable", "r+", medium="memory") as disk:
            if self.on_full == "overwrite":
                first = max(first, disk.first_seq)
            assert disk.first_seq <= first, "a tail that nobody asked for"
            kept = {record.seq: record.data for record in disk}
        lost = [seq for seq, data in known.items() if seq >= first and kept.get(seq) != data]
        assert not lost, f"lost {lost[:5]}, the disk has {min(kept, default=0)} to {max(kept, default=0)}"


def repeat_all(steps: dict[str, Callable[[random.Random], None]], seconds: float) -> dict[str, int]:
    """Repeat each step in a thread of its own for this long; how often each was done."""
    end = time.monotonic() + seconds
    done: dict[str, int] = {}
    busy = steps.keys() - {"truncate"}

    def repeat(name: str, step: Callable[[random.Random], None]) -> None:
        rng = random.Random(name)
        try:
            while time.monotonic() < end or (name == "truncate" and busy):  # others may wait for room to the very end
                step(rng)
                done[name] = done.get(name, 0) + 1
        finally:
            busy.discard(name)

    at_once(*[lambda name=name, step=step: repeat(name, step) for name, step in steps.items()])
    return done


def mixed(path: str, ordering: str, on_full: str, seconds: float, lie: bool) -> dict[str, Any]:
    """What came of ``Mixed``: what each thread did, and what the closed log lost."""
    calls = Mixed(path, ordering, on_full, lie)
    done = repeat_all(calls.steps, seconds)
    calls.wal.close()
    with pmwal.open(path, "r") as reader:
        kept = {record.seq: record.data for record in reader}
        lost = [seq for seq, data in calls.acknowledged.items() if seq >= reader.first_seq and kept.get(seq) != data]
    return {"done": done, "lost": lost, "overlaps": calls.shim.overlaps, "outcome": pmwal.verify(path).outcome}


def with_rollbacks(path: str, ordering: str, seconds: float) -> dict[str, Any]:
    """Rollbacks and truncates beside durable appends; at the end each record is one that was appended under its number."""
    wal = create(path, ordering, "64KiB", on_full="wait", timeout=PATIENCE)
    shim = Shim(wal, 0.0005)
    issued: dict[int, set[bytes]] = {}

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
    done = repeat_all(steps, seconds)
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
    """Truncates beside commits: both make progress."""
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
    """Forks while other threads commit together; the outcome of each child, and what the parent lost."""
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
    """SIGINT repeatedly into the main thread while it commits together with others."""
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


@pytest.mark.parametrize("on_full", first_fast(["wait", "overwrite"]))
def test_all_calls_at_once_lose_nothing(library: Path, shm_dir: Path, ordering: str, on_full: str) -> None:
    """Nine threads with every call over a wrapping ring: every power cut on the way keeps what was acknowledged, nobody hangs."""
    result = run(library, __name__, "mixed", str(shm_dir / "log"), ordering, on_full, 0.7 * ROUNDS, False)
    assert result["lost"] == []
    assert result["overlaps"] == 0
    assert result["outcome"] == "clean"
    assert set(result["done"]) == {"a", "b", "c", "extend", "batch", "commit", "wait", "truncate", "cut"}


@pytest.mark.slow
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
    """Truncates return while eight threads commit without a pause, and those continue."""
    assert run(library, __name__, "truncates_beside_commits", str(shm_dir / "log"), "strict")["first"] == 6


def test_commits_go_on_beside_a_computing_thread(library: Path, shm_dir: Path) -> None:
    """Durable appends of two threads return while a third never gives up the interpreter voluntarily."""
    assert run(library, __name__, "beside_a_computation", str(shm_dir / "log"), "pipelined")["last"] == 120


def test_fork_during_a_flush_leaves_the_parent_whole(library: Path, shm_dir: Path, ordering: str) -> None:
    """Every call of each child is refused at once, and the parent's threads continue and lose nothing."""
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
