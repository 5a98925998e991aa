"""A page cache under a log, over many crashes: what the disk may hold after a power cut, and what a kill leaves.

The file is the page cache, and a ``PowerCutModel`` follows each step. A power cut makes the file one of the images that the model
allows. A kill changes nothing: the cache stays, and with it all that the disk may still hold. An msync that fails marks its pages
clean without writing them, as Linux does; a clean page may be evicted at any time, and then shows what the disk holds.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from pmwal.format.layout import LIVE_OFFSET, PAGE, SECTOR
from pmwal.testing import PowerCutModel
from pmwal.testing.images import build
from pmwal.testing.power_cut import Version
from support import BarrierRecorder, Crash, Step, overwrite


class PageCache(BarrierRecorder):
    """The seam of one existing log of which every byte is durable now."""

    eviction_share = 0.5
    """The probability with which ``evict`` drops a page."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        super().__init__(self._before)
        self.after = self._after
        self.path = path
        self.rng = rng
        self.medium = PowerCutModel("page", path.read_bytes())
        self.crash_in: int | None = None  # steps until the process ends
        self.fail_in: int | None = None  # msyncs until one fails
        self.before_store: Callable[[], None] | None = None

    # -- what the process does

    def sync_file(self, fd: int) -> None:
        is_log = os.path.samestat(os.fstat(fd), os.stat(self.path))
        self.note(Step("sync" if is_log else "sync directory"))

    def _before(self, step: Step) -> None:
        if step.name == "store" and self.before_store is not None:
            self.before_store()
        if self.crash_in == 0:
            self.crash_in = None
            if step.name == "store":
                self._store_part(step)
            raise Crash
        if self.crash_in is not None:
            self.crash_in -= 1
        if step.name in ("flush", "sync") and self.fail_in is not None:
            self.fail_in -= 1
            if self.fail_in < 0:
                self.fail_in = None
                length = step.length or self.path.stat().st_size
                self.medium.take(Step("failed", step.offset, length))
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _after(self, step: Step) -> None:
        self.medium.take(step)
        self.events.clear()  # histories are long

    def _store_part(self, step: Step) -> None:
        """The process ends in the middle of a copy."""
        data = step.data[: self.rng.randrange(step.length + 1)]
        overwrite(self.path, step.offset, data)
        self.medium.take(Step("store", step.offset, len(data), data))

    # -- what the surroundings do

    def evict(self) -> None:
        """Drop clean pages from the cache: they show what the disk holds."""
        for offset, _ in self.medium.clean(0, len(self.medium.held)):
            if self.rng.random() < self.eviction_share:
                data = self._held(offset // PAGE).data
                overwrite(self.path, offset, data)
                self.medium.take(Step("evict", offset, len(data), data))

    def power_cut(self) -> None:
        """The cache is lost: the file becomes what the disk holds, whichever sectors of the live page were written."""
        live = self.path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + PAGE]
        image = build(self.medium, {unit: self._held(unit) for unit in self.medium.open}).data
        self.path.write_bytes(image)
        for at in range(0, PAGE, SECTOR):
            if self.rng.random() < 0.5:
                overwrite(self.path, LIVE_OFFSET + at, live[at : at + SECTOR])
        self.medium.take(Step("cut", 0, len(image), image))

    def _held(self, unit: int) -> Version:
        """One version of a page, or a torn one; the oldest and the newest are the likeliest."""
        choice, versions = self.rng.random(), self.medium.open[unit]
        if choice < 0.4 or len(versions) == 1:
            return versions[0]
        if choice < 0.75:
            return versions[-1]
        return self.rng.choice(versions) if choice < 0.87 else self.medium.torn(unit, self.rng)
