"""Open logs that are resized, for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pmwal
from support import BarrierRecorder, Step, open_small


class Meanwhile:
    """A seam that calls something once, before the first step with this name after ``arm``."""

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self._name, self._call, self.armed, self.called = name, call, False, False
        self.seam = BarrierRecorder(self._before)

    def _before(self, step: Step) -> None:
        if self.armed and step.name == self._name:
            self.armed = False
            self.called = True
            self._call()


def filled(path: Path, **options: Any) -> pmwal.Wal:
    """A log of 16 KiB that has been lapped, with two epochs and records of all sizes."""
    wal = open_small(path, on_full="overwrite", **options)
    for number in range(150):
        wal.extend([b"%d" % number * (number % 40), b"", b"again"], kind=number)
    wal.rollback(after=wal.next_seq - 3)
    wal.extend([b"batch"] * 3)
    wal.truncate(before=wal.first_seq + 1)
    return wal


def resized(path: Path, step: str, act: Callable[[pmwal.Wal], object], size: str = "64KiB", **options: Any) -> pmwal.Wal:
    """A log that was resized while something happened to it, before the first step with this name."""
    meanwhile = Meanwhile(step, lambda: act(wal))
    wal = filled(path, seam=meanwhile.seam, **options)
    meanwhile.armed = True
    wal.resize(size)
    assert meanwhile.called
    return wal
