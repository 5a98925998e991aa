"""The background committer of ``open(..., commit=seconds)``: one thread that makes durable what no call has committed.

Invariants
----------
- A record is part of a commit that begins at most ``interval`` seconds after it was stored.
- While nothing is pending the thread sleeps without a time limit; the first store wakes it.
- It ends with the handle: at close, at interpreter exit, when the handle is dropped, and at the first failed commit (the handle
  is poisoned then, so every later call reports it). A forked child has none.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from typing import Protocol

from pmwal.errors import PmwalError, UnlinkedWarning
from pmwal.writing.engine import Engine


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
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)  # it must not block interpreter exit
        self._thread.start()
        atexit.register(self._finish)

    def _run(self) -> None:
        while self._pending() and not self._stopping.wait(self._interval):
            try:
                self._commit()
            except UnlinkedWarning:  # turned into an error, which must not end the thread
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self._thread)))
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

    def _pending(self) -> bool:
        """Wait until something is stored and not durable; False when the thread is to end."""
        engine = self._engine
        with engine.guard:
            while not self._stopping.is_set() and engine.state.head == engine.state.durable:
                engine.wait_for_change(None)
        return not self._stopping.is_set()

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
        if os.getpid() == self._pid:
            self._stopping.set()
            with self._engine.guard:
                self._engine.changed.notify_all()
