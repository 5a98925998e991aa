"""The program under test of the file-system rig: uses a log in every way, and counts the syncs during each call that acknowledges.

    python tools/filesystems/program.py SETTINGS      SETTINGS: the fields of ``Settings`` as JSON

It ends as if killed, unless the last commit failed, and prints ``Found`` as JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import pmwal

_THREADS, _CALLS = 4, 25
_LIMIT = 8192  # bytes: RLIMIT_FSIZE below every record of the log


@dataclass(frozen=True)
class Settings:
    """Where the log is, and where to count."""

    path: str
    counter: str  # a file of 8 bytes, or stat of a block device
    fills: bool  # the file system has an end that the program may reach

    def dump(self) -> str:
        """The argument of the program."""
        return json.dumps(asdict(self))


@dataclass
class Found:
    """What the program saw."""

    durability: str = ""
    filesystem: str = ""
    acknowledged: int = 0  # calls
    unsynced: list[str] = field(default_factory=list)  # calls during which no sync reached the medium
    last_seq: int = 0  # the last record that was acknowledged
    first_seq: int = 1
    failed: str = ""  # the PersistError of a full file system
    refused: str = ""  # why no log could be created
    left: list[str] = field(default_factory=list)  # files that a refused creation left
    moved: bool = False  # the modification time moved with a commit
    unlinked: bool = False  # the log was taken for one that lost its name


class Program:
    """One run."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = Path(settings.path)
        self.found = Found()

    def run(self) -> None:
        """Everything, from the creation to a full file system."""
        try:
            with self._counted("create"):
                wal = pmwal.open(self._path, "x", size="1MiB", on_full="overwrite")
        except pmwal.UnsupportedMedium as error:
            self.found.refused = str(error)
            self.found.left = os.listdir(self._path.parent)
            return
        stats = wal.stats()
        self.found.durability, self.found.filesystem = stats.durability, stats.filesystem
        self._calls(wal, 100)
        with self._counted("close"):
            wal.close()
        with self._counted("reopen"):
            wal = pmwal.open(self._path, "r+", on_full="overwrite")
        self._threads(wal)
        self._laps(wal)
        self._limited(wal)
        if self._settings.fills:
            self._full(wal)
        self.found.first_seq, self.found.unlinked = wal.first_seq, wal.stats().unlinked

    def _syncs(self) -> int:
        data = Path(self._settings.counter).read_bytes()
        return int.from_bytes(data, "little") if len(data) == 8 else int(data.split()[15])  # Documentation/block/stat.rst

    @contextlib.contextmanager
    def _counted(self, call: str) -> Iterator[None]:
        before = self._syncs()
        yield
        self.found.acknowledged += 1
        if self._syncs() == before:
            self.found.unsynced.append(call)

    def _does(self, name: str, call: Callable[[], int]) -> None:
        with self._counted(name):
            last = call()
        self.found.last_seq = max(self.found.last_seq, last)

    def _calls(self, wal: pmwal.Wal, count: int) -> None:
        before = self._path.stat().st_mtime_ns
        for _ in range(count):
            self._does("append", lambda: wal.append(b"a" * 100))
        self.found.moved = self._path.stat().st_mtime_ns > before
        for size in (4000, 40_000, 130_000):
            self._does(f"append of {size} bytes", partial(wal.append, bytes(size)))
        self._does("extend", lambda: wal.extend([b"e" * 50] * 20)[1])
        self._does("extend of 200 KB", lambda: wal.extend([b"e" * 5000] * 40)[1])
        self._does("batch", lambda: self._batch(wal))
        for _ in range(3):
            wal.append(b"pending", commit=False)
        self._does("commit", wal.commit)
        self._does("commit with nothing pending", wal.commit)
        self._does("truncate", lambda: wal.truncate(before=20) - 1)
        with self._counted("rollback"):
            self.found.last_seq = wal.rollback(after=wal.next_seq - 3) - 1
        self._does("append", lambda: wal.append(b"last"))

    def _batch(self, wal: pmwal.Wal) -> int:
        with wal.batch() as batch:
            batch.append(b"b")
            batch.append(b"c")
        return batch.last

    def _threads(self, wal: pmwal.Wal) -> None:
        def work(_: int) -> None:
            for _ in range(_CALLS):
                self._does("append by one of several threads", lambda: wal.append(b"t" * 100))

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(work, range(_THREADS)))

    def _laps(self, wal: pmwal.Wal) -> None:
        for _ in range(40):
            self._does("append that overwrites", lambda: wal.append(bytes(60_000)))

    def _limited(self, wal: pmwal.Wal) -> None:
        """A limit on file sizes concerns write(2) and not the mapping."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT, resource.RLIM_INFINITY))
        for _ in range(70):
            self._does("append past RLIMIT_FSIZE", lambda: wal.append(b"l" * 100))
        self._does("append of 60 KB past RLIMIT_FSIZE", lambda: wal.append(bytes(60_000)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def _full(self, wal: pmwal.Wal) -> None:
        """On a full file system a commit is acknowledged and synced, or the handle is finished; nothing kills the process."""
        _fill(self._path.with_name("filler"))
        try:
            for _ in range(200):
                self._does("append on a full file system", lambda: wal.append(b"f" * 2000))
        except pmwal.PersistError as error:
            self.found.failed = os.strerror(error.errno or 0)


def _fill(path: Path) -> None:
    """Take all space that is left."""
    piece = 1 << 26
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    size = 0
    while piece >= 4096:
        try:
            os.posix_fallocate(fd, size, piece)
            size += piece
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            piece //= 2
    with contextlib.suppress(OSError):
        while True:
            size += os.pwrite(fd, bytes(4096), size)
    with contextlib.suppress(OSError):
        os.fsync(fd)
    os.close(fd)


def main() -> None:
    """Run, and print what was found."""
    program = Program(Settings(**json.loads(sys.argv[1])))
    program.run()
    print(json.dumps(asdict(program.found)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
