"""Readers: processes that read the log while its writer runs, and while there is none."""

from __future__ import annotations

import contextlib
import mmap
import random
import struct
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pmwal
from pmwal.testing.process import using_engine
from pmwal.testing.stress.payloads import TICKETED, Payloads
from pmwal.testing.stress.plan import log_path
from pmwal.testing.stress.violation import Violation

SIGHTINGS = 512
VERIFY_SHARE = 0.05  # of looks
FOLLOW_SHARE = 0.3
FOLLOW_SECONDS = 0.005
LOOKS = ("reads", "follows", "verdicts", "false verdicts")
"""What readers did, as it is counted on the board."""
_SIGHTING = struct.Struct("<QQQ")  # life, number, ticket
_SLOT = 32
_BOARD = struct.Struct("<QQ")
_COUNTS = struct.Struct(f"<{len(LOOKS)}Q")


class Board:
    """Shared memory, created before all forks, for the current life and log and for the records that readers were shown."""

    def __init__(self, readers: int) -> None:
        self._counts = 4096 + readers * SIGHTINGS * _SLOT
        self._map = mmap.mmap(-1, self._counts + readers * _COUNTS.size)
        self._readers = readers

    def announce(self, life: int, log: int) -> None:
        """Announce a life. The log is stored first: a process that sees the life also sees its log."""
        self._map[8:16] = log.to_bytes(8, "little")
        self._map[0:8] = life.to_bytes(8, "little")

    def now(self) -> tuple[int, int]:
        """Life and log."""
        life, log = _BOARD.unpack_from(self._map)
        return life, log

    def serve(self, life: int) -> None:
        """From now on the writer of this life is alive, and the log is open: called by the writer. 0: it may end at any time."""
        self._map[16:24] = life.to_bytes(8, "little")

    @property
    def serving(self) -> int:
        """The life of which the writer is alive; 0 when it may have ended."""
        return int.from_bytes(self._map[16:24], "little")

    def note(self, reader: int, index: int, life: int, seq: int, ticket: int) -> None:
        """Note a record that a reader was shown within this life."""
        at = 4096 + (reader * SIGHTINGS + index % SIGHTINGS) * _SLOT
        self._map[at] = 0
        _SIGHTING.pack_into(self._map, at + 8, life, seq, ticket)
        self._map[at] = 1

    def sightings(self, life: int) -> list[tuple[int, int]]:
        """Number and ticket of each record that readers were shown in this life. The readers must be stopped."""
        found = []
        for at in range(4096, self._counts, _SLOT):
            if self._map[at]:
                when, seq, ticket = _SIGHTING.unpack_from(self._map, at + 8)
                if when == life:
                    found.append((seq, ticket))
        return found

    def count(self, reader: int, what: str) -> None:
        """Count something that a reader did; its successors continue the count."""
        at = self._counts + reader * _COUNTS.size + 8 * LOOKS.index(what)
        self._map[at : at + 8] = (int.from_bytes(self._map[at : at + 8], "little") + 1).to_bytes(8, "little")

    def looks(self) -> dict[str, int]:
        """What all readers did."""
        each = [_COUNTS.unpack_from(self._map, self._counts + reader * _COUNTS.size) for reader in range(self._readers)]
        return dict(zip(LOOKS, map(sum, zip(*each, strict=True)), strict=True))


class _Eye:
    """One reader."""

    def __init__(self, directory: Path, board: Board, number: int, payloads: Payloads, control: str | None) -> None:
        self._directory = directory
        self._board = board
        self._number = number
        self._payloads = payloads
        self._control = control
        self._rng = random.Random(number)
        self._noted = 0
        self._due: int | None = None

    def watch(self) -> None:
        """Read one log after another, endlessly."""
        while True:
            _, log = self._board.now()
            try:
                reader = pmwal.open(log_path(self._directory, log), "r")
            except (FileNotFoundError, PermissionError):  # not created yet, or removed; or not yet readable by other users
                time.sleep(0.01)
                continue
            except pmwal.CorruptWal as error:
                raise self._false_verdict(str(error)) from error
            assert isinstance(reader, pmwal.Reader)
            with reader:
                self._due = None
                for _ in range(self._rng.randint(1, 100)):
                    self._look(reader, log)
                    time.sleep(self._rng.uniform(0.0005, 0.01))

    def _look(self, reader: pmwal.Reader, log: int) -> None:
        """Continue reading after the last record, or start elsewhere, and check every record."""
        life, log_before = self._board.now()
        seen: list[tuple[int, int]] = []
        try:
            first, end = reader.first_seq, reader.committed_seq + 1
            start = self._due
            if start is None or start > end or self._rng.random() < 0.2:
                start = self._rng.randint(max(first, end - 50), end) if end > first else first
            due = start
            for record in self._records(reader, start):
                if record.seq != due:
                    raise Violation(f"a reader was shown record {record.seq}; expected {due}", "wrong-order")
                due += 1
                ticket = self._ticket(record)
                if ticket is not None:
                    seen.append((record.seq, ticket))
            self._due = due
            self._look_up(reader, first, end, log)
        except pmwal.Overrun:
            self._due = None
        except pmwal.CorruptWal as error:
            raise self._false_verdict(str(error)) from error
        if self._board.now() != (life, log_before) or log_before != log:
            return
        for seq, ticket in seen[-20:]:
            self._board.note(self._number, self._noted, life, seq + (10**6 if self._control == "reader-ghost" else 0), ticket)
            self._noted += 1

    def _records(self, reader: pmwal.Reader, start: int) -> Iterator[pmwal.Record]:
        """Some records, by ``read`` or by ``follow``."""
        follows = self._rng.random() < FOLLOW_SHARE
        self._board.count(self._number, "follows" if follows else "reads")
        return islice(reader.follow(start, timeout=FOLLOW_SECONDS) if follows else reader.read(start), 100)

    def _false_verdict(self, what: str) -> Violation:
        """No log of a run is ever damaged, beside its writer or after it was killed."""
        self._board.count(self._number, "false verdicts")
        return Violation(f"a reader was told: {what}", "corrupt-log")

    def _look_up(self, reader: pmwal.Reader, first: int, end: int, log: int) -> None:
        """Look up one record, which may be gone. Now and then ``verify``, which must not find damage while a writer runs."""
        seq = self._rng.randint(first, end)
        with contextlib.suppress(IndexError):
            record = reader[seq]
            if record.seq != seq:
                raise Violation(f"a reader asked for record {seq} and was shown {record.seq}", "wrong-order")
            self._ticket(record)
        if self._rng.random() < VERIFY_SHARE:
            with contextlib.suppress(FileNotFoundError):  # removed, because the run continued with another log
                before = self._board.now(), self._board.serving
                report = pmwal.verify(reader.path)
                alive = before == ((self._board.serving, log), self._board.serving) == (self._board.now(), before[1])
                self._board.count(self._number, "verdicts")
                if alive and not report.live:
                    raise Violation("a verdict beside a living writer was given as if it were dead", "unnoticed-writer")
                if report.outcome == "corrupt":
                    raise self._false_verdict(f"{report.case}: {report.reason}")

    def _ticket(self, record: pmwal.Record) -> int | None:
        data = record.data
        if len(data) < TICKETED:
            return None
        if self._control == "reader-changed-byte":
            data = data[:-1] + bytes([data[-1] ^ 1])
        ticket = self._payloads.genuine(data)
        if ticket is None:
            raise Violation(f"record {record.seq}, shown to a reader, is not what any call stored", "changed-record")
        return ticket


def watch(directory: Path, board: Board, number: int, payloads: Payloads, engine: str, control: str | None) -> None:
    """The body of a reader's process."""
    with using_engine(engine):
        _Eye(directory, board, number, payloads, control).watch()
