"""The background committer of ``open(..., commit=seconds)``: one thread that makes durable what no call has committed.

Invariants
----------
- A record is part of a commit that begins at most ``interval`` seconds after it was stored.
- While nothing is pending the thread sleeps without a time limit; the first store wakes it.
- It ends with the handle: at close, at interpreter exit, when the handle is dropped, and at the first failed commit (the handle
  is poisoned then, so every later call reports it). A forked child has none, and while this process forks there is none.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import weakref
from typing import Protocol

from pmwal.errors import PmwalError, UnlinkedWarning
from pmwal.writing.access import owned, take
from pmwal.writing.background import PAUSE_MAX, keep_from_forks, leave_to_forks, thread_for
from pmwal.writing.engine import Engine

_TRY_SECONDS = 0.001  # between two attempts to take a lock before a fork


class Committing(Protocol):
    """What the thread needs of ``Wal``."""

    @property
    def closed(self) -> bool:
        """Whether the handle was closed."""

    def commit(self) -> int:
        """Make everything durable, or raise a ``PmwalError``."""


class Committer:
    """One thread for one log."""

    def __init__(self, engine: Engine, interval: float, wal: Committing, name: str) -> None:
        """``interval``: seconds. The thread must not keep the handle alive, or one that is dropped would never let go."""
        self._engine = engine
        self._interval = interval
        self._wal = weakref.ref(wal)
        self._pid = os.getpid()
        self._name = name
        self._due: float | None = None  # when the next commit is to begin (monotonic)
        self._released = False
        self._begin()
        keep_from_forks(self)
        atexit.register(self._finish)

    def _begin(self) -> None:
        self._stopping = stopping = threading.Event()
        if self._released:  # asked after the event is in place: a release from now on sets it
            return
        try:
            thread = thread_for(self._run, stopping, name=self._name)
            thread.start()
        except RuntimeError as error:  # of a limit, at exit, or in an isolated sub-interpreter
            raise RuntimeError(
                f"commit={self._interval} needs a daemon thread, and none can begin here ({error}): "
                'use commit="each" or commit="manual"'
            ) from error
        self._thread = thread

    def _run(self, stopping: threading.Event) -> None:
        while self._pending(stopping):
            if self._due is None:
                self._due = time.monotonic() + self._interval
            if stopping.wait(max(0.0, self._due - time.monotonic())):
                return
            self._due = None
            try:
                self._commit()
            except UnlinkedWarning:  # turned into an error, which must not end the thread
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
            except PmwalError:  # closed meanwhile; or the medium failed, which every later call reports
                return

    def _commit(self) -> None:
        wal = self._wal()
        if wal is not None and not wal.closed:
            try:
                wal.commit()
            except UnlinkedWarning:  # raised before the commit, and once
                wal.commit()
                raise

    def _pending(self, stopping: threading.Event) -> bool:
        """Wait until something is stored and not durable; False when the thread is to end."""
        engine = self._engine
        with engine.guard:
            while not stopping.is_set() and engine.state.head == engine.state.durable:
                engine.wait_for_change(None)
        return not stopping.is_set()

    def pause(self) -> None:
        """Before a fork. What is due stays due. A thread that forks inside a call on the log does not wait for this one."""
        guard, deadline = self._engine.guard, time.monotonic() + PAUSE_MAX
        self._stopping.set()
        if owned(guard):
            return
        while not take(guard, blocking=False):
            if time.monotonic() >= deadline:
                return
            time.sleep(_TRY_SECONDS)
        try:
            self._engine.changed.notify_all()
        finally:
            guard.release()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def resume(self) -> None:
        """After a fork, in the parent."""
        with contextlib.suppress(RuntimeError):  # no more threads, as at interpreter exit, which commits
            self._begin()

    def _finish(self) -> None:
        """At interpreter exit: commit what is pending, for no call will."""
        if os.getpid() == self._pid:
            self.stop()
            self._commit()

    def stop(self) -> None:
        """End the thread, and wait for a commit that is under way. The caller holds no lock of the log."""
        self.release()
        if os.getpid() == self._pid:
            self._thread.join()

    def release(self) -> None:
        """Tell the thread to end, and do not wait for it."""
        atexit.unregister(self._finish)
        leave_to_forks(self)
        self._released = True
        if os.getpid() == self._pid:
            self._stopping.set()
            with self._engine.guard:
                self._engine.changed.notify_all()
