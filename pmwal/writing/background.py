"""Threads that run in the background, which a fork must not copy: they are stopped before it, and begun again in the parent.

Invariants
----------
- While this process forks, none of them runs, so a child never inherits a lock that one of them holds, and from Python 3.12 on a
  program that forks gets no warning of threads that it did not start.
- A fork waits for one at most ``PAUSE_MAX`` seconds. What it waits for may in turn wait for the thread that forks.
- A forked child has none of them.
- The kernel delivers no signal to them. One that the program's own threads block is pending until they take it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Protocol

PAUSE_MAX = 1.0

# A fault is delivered to the thread that ran into it: blocked, it would end the process without calling a handler.
_FAULTS = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP}
_SIGNALS = signal.valid_signals() - _FAULTS


class Background(Protocol):
    """What has such a thread."""

    def pause(self) -> None:
        """End the thread, and wait until it has ended, at most ``PAUSE_MAX`` seconds."""

    def resume(self) -> None:
        """Begin the thread again after ``pause``."""


def thread_for(run: Callable[..., object], *arguments: Any, name: str) -> threading.Thread:
    """A thread for one of them, not started yet. It does not delay the exit of the interpreter."""
    return threading.Thread(target=_without_signals, args=(run, arguments), name=name, daemon=True)


def _without_signals(run: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    # Blocked here and not around the start: an exception of a signal handler could leave them blocked in the program's thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    run(*arguments)


def keep_from_forks(background: Background) -> None:
    """Stop this one's thread around forks, until ``leave_to_forks``."""
    _known.add(background)


def leave_to_forks(background: Background) -> None:
    """Its thread has ended for good. Idempotent."""
    _known.discard(background)


_known: set[Background] = set()
_paused: list[Background] = []  # by the fork that is under way


def _pause_all() -> None:
    for background in tuple(_known):
        _paused.append(background)
        background.pause()


def _resume_all() -> None:
    while _paused:
        _paused.pop().resume()


def _forget_all() -> None:
    _known.clear()
    _paused.clear()


os.register_at_fork(before=_pause_all, after_in_parent=_resume_all, after_in_child=_forget_all)
