"""A page cache with a history: what a disk may hold after a power cut, and what a kill leaves.

The file itself plays the page cache. For each 4 KiB page the simulation keeps every version that the kernel may have
written since the last completed msync that had to write it. A power cut picks any of them, page by page, and may mix two
versions by 512-byte sectors. A kill picks nothing: the cache stays, and with it the history. An msync that fails marks its
pages clean without writing them, as Linux does; a clean page may be evicted at any time, and reads from the disk then.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

from pmwal.format.layout import PAGE, SECTOR
from support import BarrierRecorder, Crash


class PageCache(BarrierRecorder):
    """A seam over one existing log file of which every byte is durable now."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        super().__init__()
        self.path = path
        self.rng = rng
        self.versions: dict[int, list[bytes]] = {}  # by page number: what the disk may hold, oldest first
        self.dirty: set[int] = set()
        self.crash_in: int | None = None  # steps until the process ends
        self.fail_in: int | None = None  # flushes until one fails
        self.before_step: Callable[[str], None] | None = None

    # -- what the process does

    def _countdown(self, mapping: mmap.mmap | None = None, offset: int = 0, data: bytes = b"") -> None:
        if self.crash_in is None:
            return
        if self.crash_in == 0:
            self.crash_in = None
            if mapping is not None and data:
                self._put(mapping, offset, data[: self.rng.randrange(len(data) + 1)])
            raise Crash
        self.crash_in -= 1

    def _put(self, mapping: mmap.mmap, offset: int, data: bytes) -> None:
        if not data:
            return
        pages = range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1)
        for page in pages:
            self.versions.setdefault(page, [mapping[page * PAGE : (page + 1) * PAGE]])
        # The kernel may write the page in the middle of the copy.
        cut = self.rng.randrange(len(data) + 1)
        for part in (data[:cut], data):
            mapping[offset : offset + len(part)] = part
            for page in pages:
                self.versions[page].append(mapping[page * PAGE : (page + 1) * PAGE])
        self.dirty.update(pages)

    def store(self, mapping: mmap.mmap, offset: int, data: bytes) -> None:
        if self.before_step is not None:
            self.before_step("store")
        self._countdown(mapping, offset, bytes(data))
        self._put(mapping, offset, bytes(data))

    def flush(self, mapping: mmap.mmap, offset: int, length: int) -> None:
        self._countdown()
        self._write_back(offset // PAGE, (offset + length) // PAGE)

    def sync_file(self, fd: int) -> None:
        self._countdown()
        if os.path.samestat(os.fstat(fd), os.stat(self.path)):
            self._write_back(0, os.fstat(fd).st_size // PAGE)

    def _write_back(self, first: int, stop: int) -> None:
        written = sorted(page for page in self.dirty if first <= page < stop)
        failing = self.fail_in == 0
        if self.fail_in is not None:
            self.fail_in -= 1
        for page in written:
            self.dirty.discard(page)
            if not failing:
                self.versions[page] = [self.versions[page][-1]]
        if failing:
            self.fail_in = None
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    # -- what the surroundings do

    def evict(self) -> None:
        """Drop clean pages from the cache: what comes back is what the disk holds."""
        with self.path.open("r+b") as file:
            for page, versions in self.versions.items():
                if page not in self.dirty and len(versions) > 1 and self.rng.random() < 0.5:
                    held = self._held(versions)
                    self.versions[page] = [held]
                    file.seek(page * PAGE)
                    file.write(held)

    def power_cut(self) -> None:
        """The cache is lost: the file becomes what the disk holds."""
        with self.path.open("r+b") as file:
            for page, versions in self.versions.items():
                file.seek(page * PAGE)
                file.write(self._held(versions))
        self.versions.clear()
        self.dirty.clear()

    def _held(self, versions: list[bytes]) -> bytes:
        """One version, or two of them mixed by sectors; the first and the last are the likeliest."""
        choice = self.rng.random()
        if choice < 0.4:
            return versions[0]
        if choice < 0.75:
            return versions[-1]
        one, two = self.rng.choice(versions), self.rng.choice(versions)
        if choice < 0.87:
            return one
        return b"".join((one if self.rng.random() < 0.5 else two)[start : start + SECTOR] for start in range(0, PAGE, SECTOR))
