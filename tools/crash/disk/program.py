"""The process under test of the disk rigs: changes a log as a seed says, and notes each call before it and after it returned.

    python tools/crash/disk/program.py SETTINGS      SETTINGS: the fields of ``Settings`` as JSON

A note is one sector, written with O_DIRECT into a reserved area of the same disk. A call is noted before it is made ("store",
"truncate", ...) and, if the log called it durable, after it returned ("done"). Calls that several threads make at once ("call")
have no known sequence numbers until they return ("stored", "answered"), so the kind of their records is the number of the note. A
life is one process; it ends with SIGKILL, the last one with a close. ``oracle.py`` reads the notes. Prints the number of notes.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import shake_128
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any

import pmwal
from pmwal.opening.options import Ordering
from pmwal.repair import repair
from pmwal.storage.seam import SYSTEM

NOTE_SIZE = 512
CONTROLS = ("early-ack", "no-sync", "sync-file-range")
LARGE = 1 << 20
"""Rings of at least this size get large records and few calls that write a slot, so more than 1 MiB is committed without one."""

_ITEMS_MAX = 12
_THREADS, _CALLS, _CALL_ITEMS_MAX, _CALL_SIZES = 3, 6, 3, (16, 400)
_CROWD_RECORDS_MAX = _THREADS * _CALLS * _CALL_ITEMS_MAX
_SIZES = (0, 7, 8, 40, 200, 600)
_SIZES_LARGE = (7, 6000, 100_000, 100_000)


@dataclass(frozen=True)
class Settings:
    """What one life of the program does."""

    path: str  # of the log
    notes: str  # the file or disk for the notes
    notes_at: int  # offset of the first note
    first_note: int
    seed: int
    life: int
    last_life: bool
    operations: int
    ordering: Ordering
    size: int
    control_size: int
    repairs: bool = False  # the last life damages the log and repairs it
    acknowledges_early: bool = False

    def dump(self) -> str:
        """The argument of the program."""
        return json.dumps(asdict(self))


def payload(seed: int, life: int, operation: int, index: int, size: int) -> bytes:
    """The bytes of a record, by its operation and its index there.

    ``life`` is needed because a power cut loses notes, so that a later life may reuse the number of an operation.
    """
    return shake_128(f"{seed}/{life}/{operation}/{index}".encode()).digest(size)


def _writes() -> int:
    """Write system calls of this process so far."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["syscw"])


class Notes:
    """The area of the disk for the notes."""

    def __init__(self, settings: Settings) -> None:
        self._fd = os.open(settings.notes, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._start = settings.notes_at
        self._buffer = memoryview(mmap.mmap(-1, mmap.PAGESIZE))  # O_DIRECT needs aligned memory
        self._lock = Lock()
        self.count = settings.first_note

    def add(self, event: str, **facts: Any) -> int:
        """Write the next note and return its number; the disk has logged it by then."""
        with self._lock:
            text = json.dumps({"event": event, "note": self.count, **facts}, separators=(",", ":")).encode()
            assert len(text) <= NOTE_SIZE
            self._buffer[:NOTE_SIZE] = text.ljust(NOTE_SIZE, b"\0")
            written = os.pwrite(self._fd, self._buffer[:NOTE_SIZE], self._start + self.count * NOTE_SIZE)
            assert written == NOTE_SIZE
            self.count += 1
            return self.count - 1


class Life:
    """The use of the log by one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._random = Random(f"{settings.seed}/{settings.life}")
        self._notes = Notes(settings)
        self._overwrites = self._random.random() < 0.3
        self._large = settings.size >= LARGE
        self._wal = self._open()

    def run(self) -> None:
        """Make all calls, then end."""
        for number in range(self._settings.operations):
            if self._settings.repairs and self._settings.last_life and number == self._settings.operations // 2:
                self._damage_and_repair()
            self._step()
        if not self._settings.last_life:
            for _ in range(self._random.randrange(4)):
                self._store(commits=False)
            print(self._notes.count, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        self._close()
        print(self._notes.count)

    def _open(self) -> pmwal.Wal:
        settings = self._settings
        self._notes.add("open", life=settings.life)
        wal = pmwal.open(
            settings.path,
            size=settings.size,
            medium="file",
            ordering=settings.ordering,
            commit="manual" if settings.acknowledges_early else "each",
            on_full="overwrite" if self._overwrites else "raise",
        )
        # After a power cut among threads the kinds identify the calls that survived.
        newest = wal.read(max(wal.first_seq, wal.next_seq - _CROWD_RECORDS_MAX))
        kinds = [record.kind for record in newest]
        self._notes.add("opened", first=wal.first_seq, next=wal.next_seq, overwrites=self._overwrites, kinds=kinds)
        return wal

    def _close(self) -> None:
        self._notes.add("close")
        self._wal.close()
        self._notes.add("closed")

    def _done(self, **facts: int) -> None:
        self._notes.add("done", first=self._wal.first_seq, through=self._wal.committed_seq, **facts)

    def _step(self) -> None:
        wal, random = self._wal, self._random
        match random.randrange(60 if self._large else 20):
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
            case 9:
                self._crowd()
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
        """Store one record or several through a random call."""
        wal, random = self._wal, self._random
        way = random.choice(("append", "append", "append", "extend", "batch", "reserve")) if commits else "append"
        count = random.randrange(2, _ITEMS_MAX + 1) if way in ("extend", "batch") else 1
        sizes = [random.randrange(random.choice(_SIZES_LARGE if self._large else _SIZES) + 1) for _ in range(count)]
        self._make_room(sum(sizes) * 2 + 4096)
        operation = self._notes.count  # the number of the note names the operation
        items = self._payloads(operation, sizes)
        self._notes.add("store", first=wal.next_seq, sizes=sizes)
        slots, writes = wal.stats().slots_written, _writes()
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
        writes = _writes() - writes
        slots = 0 if self._overwrites else wal.stats().slots_written - slots
        if commits and self._settings.acknowledges_early:
            self._commit()
        elif commits:
            self._done(slots=slots, writes=writes)

    def _payloads(self, operation: int, sizes: list[int]) -> list[bytes]:
        settings = self._settings
        return [payload(settings.seed, settings.life, operation, index, size) for index, size in enumerate(sizes)]

    def _make_room(self, wanted: int) -> None:
        """Truncate until a call has space, unless the log overwrites."""
        wal = self._wal
        while not self._overwrites and wal.free < wanted:
            before = wal.next_seq - len(wal) // 4
            self._notes.add("truncate", before=before)
            wal.truncate(before=before)
            self._done()

    def _crowd(self) -> None:
        """Several threads append and commit at once."""
        self._make_room(_CROWD_RECORDS_MAX * (_CALL_SIZES[1] + 128))
        seeds = [self._random.getrandbits(32) for _ in range(_THREADS)]
        self._notes.add("crowd")
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(self._crowd_member, seeds))
        self._done()

    def _crowd_member(self, seed: int) -> None:
        wal, random, early = self._wal, Random(seed), self._settings.acknowledges_early
        for _ in range(_CALLS):
            way = random.choice(("append", "extend", "commit", "wait"))
            count = random.randrange(2, _CALL_ITEMS_MAX + 1) if way == "extend" else 1
            sizes = [random.randrange(*_CALL_SIZES) for _ in range(count)]
            call = self._notes.add("call", sizes=sizes)
            items = self._payloads(call, sizes)
            if way == "extend":
                first, through = wal.extend(items, kind=call)
            else:
                first = through = wal.append(items[0], kind=call, commit=None if way == "append" else False)
            if way in ("commit", "wait"):
                self._notes.add("stored", call=call, first=first)
            if early:
                self._notes.add("answered", call=call, first=first, through=through)
                wal.commit()
                continue
            if way == "commit":
                through = wal.commit()
            elif way == "wait":
                assert wal.wait_durable(through)
            self._notes.add("answered", call=call, first=first, through=through)

    def _damage_and_repair(self) -> None:
        """Damage a record in the file, repair the log, which replaces the file, and open it again."""
        self._close()
        path = self._settings.path
        with pmwal.open(path, "r") as reader:
            found = [record for record in reader if len(record.data) >= 16]
        if found:
            self._spoil(self._random.choice(found))
            repair(path)
            self._notes.add("repaired")
        self._wal = self._open()

    def _spoil(self, record: pmwal.Record) -> None:
        path = self._settings.path
        with open(path, "r+b", buffering=0) as file:
            at = file.read().index(record.data)
            self._notes.add("damage", seq=record.seq)
            os.pwrite(file.fileno(), bytes([record.data[0] ^ 1]), at)
            os.fsync(file.fileno())
        self._notes.add("damaged")


def main() -> None:
    """Live one life."""
    warnings.filterwarnings("ignore", r".* bytes follow the log", RuntimeWarning)  # the notes do
    settings = Settings(**json.loads(sys.argv[1]))
    SYSTEM.control_size = settings.control_size
    Life(settings).run()


if __name__ == "__main__":
    main()
