"""Threads that run in the background, which a fork must not copy: they are stopped before it, and begun again in the parent.

Invariants
----------
- While this process forks, none of them runs, so a child never inherits a lock that one of them holds, and from Python 3.12 on a
  program that forks gets no warning of threads that it did not start.
- A fork waits for one at most ``PAUSE_MAX`` seconds. What it waits for may in turn wait for the thread that forks.
- A forked child has none of them.
"""

from __future__ import annotations

import os
from typing import Protocol

PAUSE_MAX = 1.0


class Background(Protocol):
    """What has such a thread."""

    def pause(self) -> None:
        """End the thread, and wait until it has ended, at most ``PAUSE_MAX`` seconds."""

    def resume(self) -> None:
        """Begin the thread again after ``pause``."""


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
