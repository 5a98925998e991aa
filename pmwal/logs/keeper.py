"""A thread that looks after something from time to time.

Invariants
----------
- While this process forks there is no such thread (``pmwal/writing/background.py``). After a fork it begins in the parent again.
- It delays no exit of the interpreter, and an error in its work ends the thread only.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from pmwal.writing.background import PAUSE_MAX, keep_from_forks, leave_to_forks


class Keeper:
    """Calls ``work`` in the background, again after the seconds that it returns, or after None not before this process forks.

    With ``after_fork``, which is called in the parent after each fork, ``work`` follows at once, and the next fork waits for it.
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
            self._begin()

    def resume(self) -> None:
        """Begin again after a fork."""
        if self._after_fork is not None:
            self._after_fork()
        self._begin()

    def _begin(self) -> None:
        self._stopping = stopping = threading.Event()
        if self._stopped:  # asked after the event is in place: a stop from now on sets it
            return
        thread = threading.Thread(target=self._run, args=(stopping,), name=self._name, daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads, as at interpreter exit
            thread.start()
            self._thread = thread

    def _run(self, stopping: threading.Event) -> None:
        pause: float | None = 0.0 if self._after_fork is None else self._work()
        while pause is not None and not stopping.wait(pause):
            pause = self._work()

    def pause(self) -> None:
        """Before a fork."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(PAUSE_MAX)

    def stop(self) -> None:
        """End for good, and wait for the work that is under way."""
        leave_to_forks(self)
        self._stopped = True
        self.pause()
