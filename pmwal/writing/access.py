"""Who may use a writer's handle now, and the error that ends it.

Invariants
----------
- A call checks first that this process may use the handle at all (open, not forked, not poisoned) and that its thread is not
  already inside a call on it; only then does it wait for a lock.
- With the locks held it checks again before it touches the medium: the handle may have been closed or poisoned while it waited.
- An ``OSError`` from the medium is final: it poisons the handle, and every later call reports the same errno. For a barrier this
  holds also when an interrupt took the place of its exception: the engine has noted it.
"""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType

from pmwal.errors import ForkedWal, PersistError, ReentrantCall, WalClosed
from pmwal.storage.lock import WriterLock
from pmwal.writing.engine import Engine
from pmwal.writing.upkeep import Upkeep


class Access:
    """Access to the log through one handle: ``to_store``, ``to_commit`` and ``to_read`` hand out the engine or refuse.

    As a context manager it goes around everything that touches the medium. The caller holds ``guard``.
    """

    def __init__(self, path: str, engine: Engine, writer_lock: WriterLock, upkeep: Upkeep) -> None:
        self.closing = False  # no new calls but reads
        self.closed = False
        self.errors = 0
        self._path = path
        self._engine = engine
        self._writer_lock = writer_lock
        self._upkeep = upkeep
        self._failure: tuple[int | None, str] | None = None  # errno and message of the error that poisoned the handle

    @property
    def poisoned(self) -> bool:
        """Whether the medium has failed."""
        return self._failure is not None or self._engine.failure is not None

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one that opened the log."""
        return os.getpid() != self._writer_lock.pid

    def to_store(self) -> Engine:
        """The engine, for a call that will hold ``writing`` and ``guard``."""
        engine = self.to_commit()
        if owned(engine.writing):
            raise ReentrantCall(_REENTRANT)
        return engine

    def to_commit(self) -> Engine:
        """The engine, for a call that will hold ``guard`` only, also while this thread is inside a batch."""
        self.refuse_fork()
        if self.closed or self.closing:
            raise WalClosed(_CLOSED)
        self.refuse_poison()
        self.refuse_reentry()
        try:
            self._upkeep.run_if_due()
        except OSError as error:
            if self.closed:  # meanwhile, by another thread or a finalizer: what was looked at was no longer the log
                raise WalClosed(_CLOSED) from None
            raise self.fail(error) from error  # the file was shortened
        return self._engine

    def to_read(self) -> Engine:
        """The engine, for a call that changes nothing: also inside another call, while the handle closes, and after a failure."""
        self.refuse_fork()
        if self.closed:
            raise WalClosed(_CLOSED)
        return self._engine

    def refuse_fork(self) -> None:
        """Raise ``ForkedWal`` in a child of the process that opened the log."""
        if self.forked:
            raise ForkedWal(
                f"{self._path}: this handle belongs to the parent process; open a log of your own, "
                'or read this one with pmwal.open(path, "r")'
            )

    def refuse_poison(self) -> None:
        """Raise ``PersistError`` once the medium has failed."""
        if self._failure is None and self._engine.failure is not None:
            self.fail(self._engine.failure)
        if self._failure is not None:
            raise PersistError(*self._failure, committed_seq=self._committed_seq)

    def refuse_reentry(self, lock: threading.RLock | None = None) -> None:
        """Raise ``ReentrantCall`` while this thread holds ``guard``, or this lock."""
        if owned(self._engine.guard if lock is None else lock):
            raise ReentrantCall(_REENTRANT)

    def wait_for_change(self, deadline: float | None) -> None:
        """Wait for another thread to change the log, until this time of ``time.monotonic()``. The caller holds ``guard`` once."""
        self._engine.wait_for_change(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if self.closing:
            raise WalClosed("this handle was closed while a call waited on it")
        self.refuse_poison()

    def check(self) -> None:
        """Raise if the handle was closed or poisoned while the caller waited for ``guard``."""
        self.refuse_poison()
        if self.closed:
            raise WalClosed(_CLOSED)

    def __enter__(self) -> None:
        self.check()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, OSError):
            raise self.fail(error) from error
        if error is not None and self._engine.failure is not None:  # an interrupt took the place of its exception
            self.fail(self._engine.failure)

    def fail(self, error: OSError) -> PersistError:
        """Poison the handle, once, and make the error that says so."""
        if self._failure is None:
            self._engine.halt()
            self.errors += 1
            self._failure = (
                error.errno,
                f"{self._path}: {error.strerror}; records after {self._committed_seq} are not known to be durable. "
                "This handle is finished: open the log again to find what the medium holds",
            )
            with self._engine.guard:
                self._engine.halt()  # once more: the log may have moved to another file meanwhile
                self._engine.changed.notify_all()
        return PersistError(*self._failure, committed_seq=self._committed_seq)

    @property
    def _committed_seq(self) -> int:
        return self._engine.state.durable.next_seq - 1


_CLOSED = "this handle is closed; open the log again with pmwal.open()"
_REENTRANT = "this thread is already inside a call on this log; finish that one first"


def owned(lock: threading.RLock) -> bool:
    """Whether this thread holds the lock. ``threading.Condition`` relies on the same method."""
    return bool(lock._is_owned())  # type: ignore[attr-defined]


def take(lock: threading.RLock, *, blocking: bool = True) -> bool:
    """Acquire a lock that a later call releases; whether it was free. An interrupt that arrives meanwhile does not keep it.

    CPython notices no signal between this return and the next statement of the caller, which therefore may begin a ``try``.
    """
    held = owned(lock)
    try:
        return lock.acquire(blocking=blocking)
    except BaseException:
        if not held and owned(lock):
            lock.release()
        raise
