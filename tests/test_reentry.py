"""Calls inside a call (scenario 24b): from handlers, finalizers and iterables they work or raise ReentrantCall; none deadlocks."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

import pmwal
from conftest import Place
from images import state_of
from operations import OPERATIONS, prepare, steps_of
from pmwal.writing.wal import Wal
from support import BarrierRecorder, Step, contents, kill, open_small, payloads

pytestmark = pytest.mark.both_engines


def calls_inside(wal: Wal) -> list[Callable[[], object]]:
    """What a signal handler might do, an append first."""
    return [lambda: wal.append(b"inner"), wal.commit, lambda: wal.truncate(before=2), lambda: len(list(wal))]


def attempt(call: Callable[[], object]) -> object:
    """What a call returns, or the error that refuses it."""
    try:
        return call()
    except pmwal.ReentrantCall as error:
        return error


@pytest.mark.parametrize("name", OPERATIONS)
def test_call_from_inside_a_call_works_or_raises_at_every_step(shm_place: Place, name: str) -> None:
    """Scenario 24b: what a signal handler or ``__del__`` may do at any step: no deadlock, no hole, the outer call is whole."""
    operation = OPERATIONS[name]
    path = shm_place.path
    for step in range(steps_of(path, dict(shm_place.options), operation)):
        seam = BarrierRecorder()
        path.unlink(missing_ok=True)
        wal, _ = prepare(path, dict(shm_place.options), seam, operation.size)
        old = state_of(wal)
        left = step
        inner: list[object] = []

        def reenter(event: Step) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                inner.extend(attempt(call) for call in calls_inside(wal))  # noqa: B023

        seam.before = reenter
        operation.run(wal)
        assert len(inner) == 4
        assert isinstance(inner[0], pmwal.ReentrantCall)
        assert operation.model(old) == state_of(wal), f"at step {step}"
        wal.append(b"after")
        final = state_of(wal)
        kill(wal)
        wal = open_small(path, **shm_place.options)
        assert final == state_of(wal)
        wal.close()


def test_append_from_a_signal_handler_never_deadlocks(place: Place) -> None:
    """Scenario 24b with a real signal, delivered while the outer append stores and while it flushes."""
    seam = BarrierRecorder()
    wal = open_small(place.path, seam=seam, **place.options)
    outcomes: list[str] = []

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            wal.append(b"handler")
            outcomes.append("stored")
        except pmwal.ReentrantCall:
            outcomes.append("refused")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        seam.before = lambda event: signal.raise_signal(signal.SIGUSR1)
        wal.append(b"outer")
        seam.before = None
        assert {"refused"} == set(outcomes)
        signal.raise_signal(signal.SIGUSR1)
        assert outcomes[-1] == "stored"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert contents(wal) == [(1, b"outer"), (2, b"handler")]
    wal.close()


def test_append_from_the_iterable_of_extend_takes_its_own_number_first(place: Place) -> None:
    """Scenario 24b: the iterable runs before the batch has numbers, so its append works and leaves no hole."""
    wal = open_small(place.path, **place.options)

    def items() -> Iterator[bytes]:
        yield b"item 1"
        assert wal.append(b"from the iterable") == 1
        yield b"item 2"

    assert wal.extend(items()) == (2, 3)
    assert payloads(wal) == [b"from the iterable", b"item 1", b"item 2"]
    wal.close()


def test_append_from_del_inside_a_call_is_refused_and_outside_works(shm_place: Place) -> None:
    """Scenario 24b: an object that appends when it dies, dropped in the middle of an append, and between two."""
    seam = BarrierRecorder()
    wal = open_small(shm_place.path, seam=seam, **shm_place.options)
    outcomes: list[str] = []

    class Dying:
        def __del__(self) -> None:
            try:
                wal.append(b"last words")
                outcomes.append("stored")
            except pmwal.ReentrantCall:
                outcomes.append("refused")

    held = [Dying()]

    def drop(event: Step) -> None:
        held.clear()

    seam.before = drop
    wal.append(b"outer")
    seam.before = None
    held.append(Dying())
    held.clear()
    assert outcomes == ["refused", "stored"]
    assert contents(wal) == [(1, b"outer"), (2, b"last words")]
    wal.close()


def test_calls_inside_an_open_batch_or_reserve_are_refused_on_its_thread_and_wait_on_others(place: Place) -> None:
    """Scenario 24b: the holder's own thread gets ReentrantCall; another thread's append follows without a hole."""
    wal = open_small(place.path, **place.options)
    numbers: list[int] = []
    with wal.batch() as batch:
        batch.append(b"1")
        other = threading.Thread(target=lambda: numbers.append(wal.append(b"3")))
        other.start()
        calls = [lambda: wal.append(b"x"), lambda: wal.extend([b"x"]), lambda: wal.reserve(1), wal.batch, lambda: wal.rollback(0)]
        for call in calls:
            with pytest.raises(pmwal.ReentrantCall):
                call()  # type: ignore[no-untyped-call]
        batch.append(b"2")
    other.join(30)
    assert (numbers, payloads(wal)) == ([3], [b"1", b"2", b"3"])
    with wal.reserve(1) as view:
        view[:] = b"4"
        other = threading.Thread(target=lambda: numbers.append(wal.append(b"5")))
        other.start()
        with pytest.raises(pmwal.ReentrantCall):
            wal.append(b"x")
    other.join(30)
    assert (numbers, b"".join(payloads(wal))) == ([3, 5], b"12345")
    wal.close()
