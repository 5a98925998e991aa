"""The lock of each engine: reentrant, owned, with timeouts, under a condition, interruptible."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from callers import Call
from commit_threads import THREADS, at_once
from pmwal.native import _native


@pytest.fixture(params=["native", "python"])
def lock(request: pytest.FixtureRequest) -> Any:
    """The lock of each engine."""
    return _native.Lock() if request.param == "native" else threading.RLock()


@contextlib.contextmanager
def held_elsewhere(lock: Any) -> Iterator[threading.Event]:
    """Let another thread hold the lock until the event is set, or the block ends."""
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
    """The exception that the signal handler of the next tests raises."""


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
    """Many threads that take it repeatedly exclude each other, and all finish."""
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
