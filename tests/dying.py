"""Processes that end at a chosen step of a call, or in the middle of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmwal.storage.seam import Seam
from processes import Died, elsewhere
from support import BarrierRecorder, Step, open_small

DEATH = 9
TORN = 40  # bytes of a store or write that are done when the process dies in the middle of it


class DyingSeam(BarrierRecorder):
    """Ends the process right before step ``last``, or in the middle of it if ``torn``."""

    def __init__(self, last: int, torn: bool) -> None:
        super().__init__(self._die)
        self._left = last
        self._torn = torn
        self._target: Any = None

    def _die(self, event: Step) -> None:
        if self._left:
            self._left -= 1
            return
        if self._torn and event.name == "store":
            Seam.store(self, self._target, event.offset, event.data[:TORN])
        elif self._torn and event.name == "write":
            Seam.write(self, self._target, event.data[:TORN], event.offset)
        os._exit(DEATH)

    def store(self, mapping: Any, offset: int, data: bytes) -> None:
        self._target = mapping
        super().store(mapping, offset, data)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        self._target = fd
        super().write(fd, data, offset)


def create(path: Path, **options: Any) -> None:
    """Create a log, or open it, and close it."""
    open_small(path, medium="file", **options).close()


def steps_of(action: Callable[..., None], path: Path) -> list[Step]:
    """All steps that an action takes."""
    seam = BarrierRecorder()
    action(path, seam=seam)
    return seam.events


def dies(action: Callable[..., None], path: Path, last: int, torn: bool) -> None:
    """Run an action in a process that ends at this step."""
    with pytest.raises(Died) as death:
        elsewhere(lambda: action(path, seam=DyingSeam(last, torn)))
    assert death.value.code == DEATH
