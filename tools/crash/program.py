"""The process under test of the disk rigs: it changes a log by a seed and notes what it is about to do and what was answered.

    python tools/crash/program.py SETTINGS      SETTINGS: the fields of ``Settings`` as JSON

A note is one sector, written past all caches into a reserved area of the same disk. A call is noted before it is made ("store",
"truncate", ...) and, when the log says that it is durable, after it returned ("done"). A life ends by SIGKILL, the last one by
a close. ``oracle.py`` reads the notes. It prints how many notes there are.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import warnings
from dataclasses import asdict, dataclass
from hashlib import shake_128
from random import Random
from typing import Any

import pmwal
from pmwal.repair import repair

NOTE_SIZE = 512
CONTROLS = ("early-ack", "no-sync", "sync-file-range")
_ITEMS_MAX = 12


@dataclass(frozen=True)
class Settings:
    """What one life of the program does."""

    path: str  # of the log
    notes: str  # the file, or disk, that takes the notes
    notes_at: int  # where in it they begin
    first_note: int
    seed: int
    life: int
    last_life: bool
    operations: int
    ordering: str
    size: int
    repairs: bool = False  # the last life damages the log and repairs it
    acknowledges_early: bool = False

    def dump(self) -> str:
        """As the program takes it."""
        return json.dumps(asdict(self))


def payload(seed: int, operation: int, index: int, size: int) -> bytes:
    """The bytes of the record with this index in this operation."""
    return shake_128(f"{seed}/{operation}/{index}".encode()).digest(size)


class Notes:
    """The area of the disk that takes the notes."""

    def __init__(self, settings: Settings) -> None:
        self._fd = os.open(settings.notes, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._start = settings.notes_at
        self._buffer = memoryview(mmap.mmap(-1, mmap.PAGESIZE))  # O_DIRECT wants memory that is aligned
        self.count = settings.first_note

    def add(self, event: str, **facts: Any) -> None:
        """Write the next note; it is in the disk's log when this returns."""
        text = json.dumps({"event": event, "note": self.count, **facts}).encode()
        assert len(text) <= NOTE_SIZE
        self._buffer[:NOTE_SIZE] = text.ljust(NOTE_SIZE, b"\0")
        written = os.pwrite(self._fd, self._buffer[:NOTE_SIZE], self._start + self.count * NOTE_SIZE)
        assert written == NOTE_SIZE
        self.count += 1


class Life:
    """One process's use of the log."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._random = Random(f"{settings.seed}/{settings.life}")
        self._notes = Notes(settings)
        self._overwrites = self._random.random() < 0.3
        self._wal = self._open()

    def run(self) -> None:
        """All operations, and the end."""
        for _ in range(self._settings.operations):
            self._step()
        if not self._settings.last_life:
            for _ in range(self._random.randrange(4)):
                self._store(commits=False)
            print(self._notes.count, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        self._close()
        if self._settings.repairs:
            self._damage_and_repair()
        print(self._notes.count)

    def _open(self) -> pmwal.Wal:
        self._notes.add("open")
        settings = self._settings
        wal = pmwal.open(
            settings.path,
            size=settings.size,
            medium="file",
            ordering=settings.ordering,
            commit="manual" if settings.acknowledges_early else "each",
            on_full="overwrite" if self._overwrites else "raise",
        )
        self._notes.add("opened", first=wal.first_seq, next=wal.next_seq, overwrites=self._overwrites)
        return wal

    def _close(self) -> None:
        self._notes.add("close")
        self._wal.close()
        self._notes.add("closed")

    def _done(self) -> None:
        self._notes.add("done", first=self._wal.first_seq, through=self._wal.committed_seq)

    def _step(self) -> None:
        wal, random = self._wal, self._random
        match random.randrange(20):
            case 0:
                keep = min(len(wal), random.choice((0, 1, 3, 10)))
                self._notes.add("truncate", before=wal.next_seq - keep)
                wal.truncate(before=wal.next_seq - keep)
                self._done()
            case 1:
                after = wal.next_seq - 1 - min(len(wal), random.choice((0, 1, 2, 5)))
                self._notes.add("rollback", after=after)
                wal.rollback(after=after)
                self._done()
            case 2:
                self._close()
                self._wal = self._open()
            case 3 | 4:
                self._commit()
            case 5 | 6 | 7 | 8:
                self._store(commits=False)
            case _:
                self._store(commits=True)

    def _commit(self) -> None:
        self._notes.add("commit")
        if self._settings.acknowledges_early:
            self._notes.add("done", first=self._wal.first_seq, through=self._wal.next_seq - 1)
            self._wal.commit()
        else:
            self._wal.commit()
            self._done()

    def _store(self, *, commits: bool) -> None:
        """Append one record, or several at once, by one of the ways."""
        wal, random = self._wal, self._random
        way = random.choice(("append", "append", "append", "extend", "batch", "reserve")) if commits else "append"
        count = random.randrange(2, _ITEMS_MAX + 1) if way in ("extend", "batch") else 1
        top = min(self._settings.size // 64, 1 << 16)
        sizes = [random.choice((0, 7, 8, 40, 200, random.randrange(600), random.randrange(top))) for _ in range(count)]
        if not self._overwrites and wal.free < sum(sizes) * 2 + 4096:
            before = wal.next_seq - len(wal) // 4
            self._notes.add("truncate", before=before)
            wal.truncate(before=before)
            self._done()
        operation = self._notes.count  # the number of the note names the operation
        items = [payload(self._settings.seed, operation, index, size) for index, size in enumerate(sizes)]
        self._notes.add("store", first=wal.next_seq, sizes=sizes)
        if way == "append":
            wal.append(items[0], commit=None if commits else False)
        elif way == "extend":
            wal.extend(items)
        elif way == "batch":
            with wal.batch() as batch:
                for item in items:
                    batch.append(item)
        else:
            with wal.reserve(len(items[0])) as view:
                view[:] = items[0]
        if commits and self._settings.acknowledges_early:
            self._commit()
        elif commits:
            self._done()

    def _damage_and_repair(self) -> None:
        """Spoil a record in the file, repair the log, which replaces the file, and use it once more."""
        path = self._settings.path
        with pmwal.open(path, "r") as reader:
            found = [record for record in reader if len(record.data) >= 16]
        if not found:
            return
        record = self._random.choice(found)
        with open(path, "r+b", buffering=0) as file:
            at = file.read().index(record.data)
            self._notes.add("damage", seq=record.seq)
            os.pwrite(file.fileno(), bytes([record.data[0] ^ 1]), at)
            os.fsync(file.fileno())
        self._notes.add("damaged")
        repair(path)
        self._notes.add("repaired")
        self._wal = self._open()
        self._store(commits=True)
        self._close()


def main() -> None:
    """Live one life."""
    warnings.filterwarnings("ignore", r".* bytes follow the log", RuntimeWarning)  # the notes do
    Life(Settings(**json.loads(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
