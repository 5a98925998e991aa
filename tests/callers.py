"""Calls from other threads, and shorthands that tests of the public calls share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pmwal
from support import open_small, payloads

PATIENCE = 300.0
"""Seconds after which a thread that makes no progress counts as hung."""


def bounds(wal: pmwal.Wal) -> tuple[int, int, int]:
    """First, next and committed number."""
    return wal.first_seq, wal.next_seq, wal.committed_seq


def until(condition: Callable[[], bool]) -> None:
    """Wait until another thread has made the condition true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the other thread never got there"
        time.sleep(0.001)


def stage(wal: pmwal.Wal, *items: Any, kind: int = 0) -> None:
    """Append records in one batch."""
    with wal.batch() as batch:
        for item in items:
            batch.append(item, kind=kind)


class Call(threading.Thread):
    """A call in another thread; ``result()`` returns its value or raises its exception."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Make the call."""
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """Wait for the call to end."""
        self.join(PATIENCE)
        assert not self.is_alive(), "the call never returned"
        if self._error is not None:
            raise self._error
        return self._value


def open_and_close(path: Path) -> list[bytes]:
    """Open the log for writing, look, and close it."""
    with open_small(path, "r+") as wal:
        return payloads(wal)
