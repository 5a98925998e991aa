"""Threads that run in the background: a fork copies none of them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import pmwal
from loggers import SIZE, logger_of
from pmwal.logs.keeper import Keeper
from pmwal.writing import background
from processes import PATIENCE, elsewhere
from slotted import wait_for_spares

pytestmark = pytest.mark.both_engines


def threads_of(prefix: str) -> list[threading.Thread]:
    """The running threads whose names begin so."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]


def test_no_thread_of_the_library_runs_during_a_fork(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committer and the one that makes spares end before it, and begin again in the parent only."""
    handler = pmwal.LogHandler(directory=directory, size=SIZE, commit=1000.0)
    logger_of(handler).info("line")
    wait_for_spares(handler)
    seen = []
    pause_all = background._pause_all

    def paused() -> None:
        pause_all()
        seen.append([thread.name for thread in threads_of("pmwal-")])

    paused()
    background._resume_all()
    assert seen == [[]]
    assert len(threads_of("pmwal-committer")) == 1
    assert elsewhere(lambda: [thread.name for thread in threads_of("pmwal-")]) == []
    assert len(threads_of("pmwal-committer")) == 1
    handler.close()
    assert threads_of("pmwal-") == []


def test_commit_that_was_due_stays_due_over_forks(shm_dir: Path) -> None:
    """A process that forks more often than it commits still commits."""
    with pmwal.open(shm_dir / "a.wal", size=SIZE, commit=0.2) as wal:
        seq = wal.append(b"x")
        deadline = time.monotonic() + PATIENCE
        while wal.committed_seq < seq:
            assert time.monotonic() < deadline
            background._pause_all()
            background._resume_all()
            time.sleep(0.05)


def test_fork_inside_a_call_on_the_log_does_not_wait_for_its_thread(shm_dir: Path) -> None:
    """The thread may wait for that very call."""
    with pmwal.open(shm_dir / "a.wal", size=SIZE, commit=0.001) as wal:
        with wal._engine.guard:
            wal._engine.changed.notify_all()
            assert elsewhere(lambda: 5) == 5
        seq = wal.append(b"x")
        assert wal.wait_durable(seq, timeout=PATIENCE)


def test_handle_that_is_closed_during_a_fork_has_no_thread_afterwards(shm_dir: Path) -> None:
    """Another thread of the parent closes it."""
    wal = pmwal.open(shm_dir / "a.wal", size=SIZE, commit=0.1)
    background._pause_all()
    wal.close()
    background._resume_all()
    assert threads_of("pmwal-committer") == []


def begun(wal: pmwal.Wal) -> threading.Thread:
    """The committer, as soon as it has committed something."""
    seq = wal.append(b"x")
    deadline = time.monotonic() + PATIENCE
    while wal.committed_seq < seq:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    (thread,) = threads_of("pmwal-committer")
    return thread


def test_blocked_signal_is_delivered_to_no_thread_of_the_library(shm_dir: Path) -> None:
    """Of a process that waits for it with ``sigwait``, or blocks it while it has a lock, as a child of Celery does when it ends."""

    def child() -> int:
        with pmwal.open(shm_dir / "a.wal", size=SIZE, commit=0.001) as wal:
            begun(wal)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            os.kill(os.getpid(), signal.SIGTERM)
            return signal.sigwait({signal.SIGTERM})

    assert elsewhere(child) == signal.SIGTERM


def blocked_in(thread: int) -> set[int]:
    """The signals that a thread of this process blocks, as the kernel tells."""
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    (mask,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk:")]
    return {number for number in signal.valid_signals() if mask >> (number - 1) & 1}


@pytest.mark.parametrize("which", ["committer", "keeper"])
def test_signals_are_blocked_in_threads_and_faults_are_not(which: str, shm_dir: Path) -> None:
    """A thread that blocks SIGBUS would die of one, and faulthandler would say nothing. The program's own thread is left alone."""
    own = blocked_in(threading.get_native_id())
    blocked: list[set[int]] = []
    if which == "keeper":
        keeper = Keeper(lambda: blocked.append(blocked_in(threading.get_native_id())), "pmwal-test")
        keeper._join(time.monotonic() + PATIENCE)
        keeper.stop()
    else:
        with pmwal.open(shm_dir / "a.wal", size=SIZE, commit=0.001) as wal:
            thread = begun(wal).native_id
            assert thread is not None
            blocked.append(blocked_in(thread))
    (seen,) = blocked
    assert seen >= {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM, signal.SIGPROF}
    assert seen.isdisjoint({signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGABRT})
    assert blocked_in(threading.get_native_id()) == own
