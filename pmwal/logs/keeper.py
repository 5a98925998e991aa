"""A thread that looks after something from time to time.

Invariants
----------
- While this process forks there is no such thread (``pmwal/writing/background.py``). After a fork it begins in the parent again.
- It delays no exit of the interpreter, and an error in its work ends the thread only.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from pmwal.writing.background import PAUSE_MAX, keep_from_forks, leave_to_forks, thread_for

_CHILD_SECONDS = 0.2  # after a fork, in which the child may have something to do that the work would be in the way of


class Keeper:
    """Calls ``work`` in the background, again after the seconds that it returns, or after None not before this process forks.

    With ``after_fork``, which is called in the parent after each fork, ``work`` is also called once before each fork, which waits
    for it: the child is to find what ``work`` makes.
    """

    def __init__(
        self, work: Callable[[], float | None], name: str, *, begin: bool = True, after_fork: Callable[[], None] | None = None
    ) -> None:
        """Without ``begin`` the first call comes after the first fork."""
        self._work = work
        self._after_fork = after_fork
        self._name = name
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        keep_from_forks(self)
        if begin:
            self._begin(0.0)

    def resume(self) -> None:
        """Begin again after a fork."""
        if self._after_fork is None:
            self._begin(0.0)
        else:
            self._after_fork()
            self._begin(_CHILD_SECONDS)

    def _begin(self, pause: float) -> None:
        self._stopping = stopping = threading.Event()
        if self._stopped:  # asked after the event is in place: a stop from now on sets it
            return
        self._start(self._run, stopping, pause)

    def _start(self, run: Callable[..., object], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # no more threads, as at interpreter exit or in an isolated sub-interpreter
            thread = thread_for(run, *arguments, name=self._name)
            thread.start()
            self._thread = thread

    def _run(self, stopping: threading.Event, first: float) -> None:
        pause: float | None = first
        while pause is not None and not stopping.wait(pause):
            pause = self._work()

    def pause(self) -> None:
        """Before a fork."""
        until = time.monotonic() + PAUSE_MAX
        self._stopping.set()
        self._join(until)
        if self._after_fork is not None and not self._stopped:
            self._start(self._work)
            self._join(until)

    def _join(self, until: float) -> None:
        if self._thread is not None:
            self._thread.join(max(0.0, until - time.monotonic()))

    def stop(self) -> None:
        """End for good, and wait for the work that is under way."""
        leave_to_forks(self)
        self._stopped = True
        self.pause()
