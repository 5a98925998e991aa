"""Code that runs in the middle of a call of the native engine: collections, buffers, interrupts, a close in another thread."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
from callers import Call
from pmwal.native.choice import ENGINES


@pytest.fixture
def wal(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pmwal.Wal]:
    """A log with the native engine."""
    monkeypatch.setenv("PMWAL_ENGINE", "native")
    with pmwal.open(shm_dir / "log", size="1MiB", medium="memory") as wal:
        yield wal


@contextlib.contextmanager
def eager_collector(action: Callable[[], Any]) -> Iterator[None]:
    """Run the action at every collection, and collect at every chance."""

    def callback(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            action()

    threshold = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(callback)


@pytest.mark.parametrize("what", ["append", "extend", "large extend", "in another thread"])
def test_append_from_the_garbage_collector_is_a_record_like_others(
    shm_dir: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A finalizer that logs while an append is under way gets a number and a place of its own, or an exception."""
    monkeypatch.setenv("PMWAL_ENGINE", "native")
    stored: list[tuple[int, bytes]] = []
    calls: list[Call] = []

    def inner() -> None:
        if what == "in another thread":
            calls.append(Call(lambda: stored.append((wal.append(b"inner"), b"inner"))))
            calls[-1].join(0.02)  # it may have to wait for the call that is under way
        else:
            with contextlib.suppress(pmwal.ReentrantCall):
                stored.append((wal.append(b"inner"), b"inner"))

    with pmwal.open(shm_dir / "log", size="8MiB", medium="memory") as wal:
        with eager_collector(inner):
            for number in range(20):
                items = [b"%d" % number * 5000] * (20 if what == "large extend" else 1)
                first = wal.extend(items)[0] if "extend" in what else wal.append(items[0])
                stored += zip(range(first, first + len(items)), items, strict=True)
        for call in calls:
            call.result()
        assert [(record.seq, record.data) for record in wal] == sorted(stored)
    assert max(item for item in stored if item[1] == b"inner") > (0, b"inner")


def test_buffer_whose_release_runs_code_is_harmless(wal: pmwal.Wal) -> None:
    """A buffer that closes the log, or appends to it, when it goes: the append returns its number, and nothing breaks."""

    class Last(np.ndarray):
        action: Any = None

        def __del__(self) -> None:
            if self.action is not None:
                self.action()

    def view(action: Callable[[], Any]) -> Any:
        base = np.frombuffer(b"data" * 100, np.uint8).view(Last)
        base.action = action
        return memoryview(base)

    numbers: list[int] = []
    for _ in range(10):
        numbers.append(wal.append(view(lambda: numbers.append(wal.append(b"from the end of the buffer")))))
        wal.extend([view(lambda: numbers.append(wal.append(b"more"))), view(lambda: None)])
    assert sorted(set(numbers)) == sorted(numbers)
    wal.append(view(wal.close))
    assert wal.closed


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ came with 3.12")
@pytest.mark.parametrize("moment", ["__buffer__", "__release_buffer__"])
@pytest.mark.parametrize("call", ["append", "extend", "generator"])
@pytest.mark.parametrize("action", ["close", "append", "truncate", "raise"])
def test_buffer_whose_export_runs_code_is_harmless(
    wal: pmwal.Wal, monkeypatch: pytest.MonkeyPatch, moment: str, call: str, action: str
) -> None:
    """A buffer that closes the log, appends or raises while it is exported or released leaves a whole log."""
    ignored: list[Any] = []  # CPython has nobody to raise an exception of a release to
    monkeypatch.setattr(sys, "unraisablehook", lambda told: ignored.append(told.exc_type))
    actions: dict[str, Callable[[], Any]] = {
        "close": wal.close,
        "append": lambda: wal.append(b"inner"),
        "truncate": lambda: wal.truncate(wal.next_seq),
        "raise": lambda: 1 // 0,
    }

    class Exporter:
        def __buffer__(self, flags: int) -> memoryview:
            if moment == "__buffer__":
                actions[action]()
            return memoryview(bytearray(b"outer"))

        def __release_buffer__(self, view: memoryview) -> None:
            if moment == "__release_buffer__":
                actions[action]()

    calls: dict[str, Callable[[], Any]] = {
        "append": lambda: wal.append(Exporter()),
        "extend": lambda: wal.extend([b"a", Exporter()]),
        "generator": lambda: wal.extend(Exporter() for _ in range(2)),
    }
    for _ in range(3):
        with contextlib.suppress(pmwal.WalClosed, ZeroDivisionError):
            calls[call]()
    releases_raise = (moment, action) == ("__release_buffer__", "raise")
    assert set(ignored) == ({ZeroDivisionError} if releases_raise else set())
    if not wal.closed:
        assert [record.seq for record in wal] == list(range(wal.first_seq, wal.next_seq))
        assert {record.data for record in wal} <= {b"inner", b"outer", b"a"}


@pytest.mark.parametrize("name", ENGINES)
def test_interrupted_rollback_leaves_no_note_of_where_its_records_were(
    shm_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An interrupt right after a rollback has taken effect: records stored later are found where they are, and none is damaged.

    Found by a check of the C engine: notes of discarded records stayed in the index, and reads by number began there.
    """
    monkeypatch.setenv("PMWAL_ENGINE", name)
    with pmwal.open(shm_dir / "log", size="1MiB") as wal:
        wal.extend([bytes(2000)] * 60)
        engine = type(wal._engine)
        become = engine._become

        def interrupted(self: Any, state: Any) -> None:
            become(self, state)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(engine, "_become", interrupted)
            with pytest.raises(KeyboardInterrupt):
                wal.rollback(after=3)
        payloads = [bytes(7 * number) for number in range(100)]
        wal.extend(payloads)
        assert [wal[seq].data for seq in range(4, 104)] == payloads


def test_close_in_another_thread_meets_the_appends_of_all(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that append while one closes get a number or WalClosed, and the log has exactly the records that got one."""
    monkeypatch.setenv("PMWAL_ENGINE", "native")
    for attempt in range(10):
        path = shm_dir / f"{attempt}"
        wal = pmwal.open(path, size="4MiB", medium=("memory", "file", "emulated-dax")[attempt % 3])
        barrier = threading.Barrier(4)

        def append(wal: pmwal.Wal = wal, barrier: threading.Barrier = barrier) -> list[int]:
            numbers: list[int] = []
            barrier.wait()
            with contextlib.suppress(pmwal.WalClosed):
                while len(numbers) < 20000:
                    numbers.append(wal.append(b"x"))
            return numbers

        calls = [Call(append) for _ in range(3)]
        barrier.wait()
        wal.close()
        numbers = sorted(number for call in calls for number in call.result())
        with pmwal.open(path, "r") as reader:
            assert [record.seq for record in reader] == numbers
