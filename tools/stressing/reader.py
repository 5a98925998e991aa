"""Readers: processes that read the log while its writer runs, and while there is none."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import struct
import time
from itertools import islice
from pathlib import Path

import pmwal
from stressing.payloads import TICKETED, Payloads
from stressing.plan import log_path
from violation import Violation

SIGHTINGS = 512
VERIFY_SHARE = 0.05  # of looks
_SIGHTING = struct.Struct("<QQQ")  # life, number, ticket
_SLOT = 32
_BOARD = struct.Struct("<QQ")


class Board:
    """Shared memory, created before all forks, for the current life and log and for the records that readers were shown."""

    def __init__(self, readers: int) -> None:
        self._map = mmap.mmap(-1, 4096 + readers * SIGHTINGS * _SLOT)
        self._readers = readers

    def announce(self, life: int, log: int) -> None:
        """Announce a life. The log is stored first: a process that sees the life also sees its log."""
        self._map[8:16] = log.to_bytes(8, "little")
        self._map[0:8] = life.to_bytes(8, "little")

    def now(self) -> tuple[int, int]:
        """Life and log."""
        life, log = _BOARD.unpack_from(self._map)
        return life, log

    def note(self, reader: int, index: int, life: int, seq: int, ticket: int) -> None:
        """Note a record that a reader was shown within this life."""
        at = 4096 + (reader * SIGHTINGS + index % SIGHTINGS) * _SLOT
        self._map[at] = 0
        _SIGHTING.pack_into(self._map, at + 8, life, seq, ticket)
        self._map[at] = 1

    def sightings(self, life: int) -> list[tuple[int, int]]:
        """Number and ticket of each record that readers were shown in this life. The readers must be stopped."""
        found = []
        for at in range(4096, len(self._map), _SLOT):
            if self._map[at]:
                when, seq, ticket = _SIGHTING.unpack_from(self._map, at + 8)
                if when == life:
                    found.append((seq, ticket))
        return found


class _Eye:
    """One reader."""

    def __init__(self, directory: Path, board: Board, number: int, payloads: Payloads, mutant: str | None) -> None:
        self._directory = directory
        self._board = board
        self._number = number
        self._payloads = payloads
        self._mutant = mutant
        self._rng = random.Random(number)
        self._noted = 0
        self._due: int | None = None

    def watch(self) -> None:
        """Read one log after another, endlessly."""
        while True:
            _, log = self._board.now()
            try:
                reader = pmwal.open(log_path(self._directory, log), "r")
            except FileNotFoundError:  # not created yet, or removed
                time.sleep(0.01)
                continue
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
            for record in islice(reader.read(start), 100):
                if record.seq != due:
                    raise Violation(f"a reader was shown record {record.seq}; expected {due}", "wrong-order")
                due += 1
                ticket = self._ticket(record)
                if ticket is not None:
                    seen.append((record.seq, ticket))
            self._due = due
            self._look_up(reader, first, end)
        except pmwal.Overrun:
            self._due = None
        if self._board.now() != (life, log_before) or log_before != log:
            return
        for seq, ticket in seen[-20:]:
            self._board.note(self._number, self._noted, life, seq + (10**6 if self._mutant == "reader-ghost" else 0), ticket)
            self._noted += 1

    def _look_up(self, reader: pmwal.Reader, first: int, end: int) -> None:
        """Look up one record, which may be gone. Now and then ``verify``, which must not find damage while a writer runs."""
        seq = self._rng.randint(first, end)
        with contextlib.suppress(IndexError):
            record = reader[seq]
            if record.seq != seq:
                raise Violation(f"a reader asked for record {seq} and was shown {record.seq}", "wrong-order")
            self._ticket(record)
        if self._rng.random() < VERIFY_SHARE:
            with contextlib.suppress(FileNotFoundError):  # removed, because the run continued with another log
                report = pmwal.verify(reader.path)
                if report.outcome == "corrupt":
                    raise Violation(f"verify, while the writer runs: {report.case}: {report.reason}", "corrupt-log")

    def _ticket(self, record: pmwal.Record) -> int | None:
        data = record.data
        if len(data) < TICKETED:
            return None
        if self._mutant == "reader-changed-byte":
            data = data[:-1] + bytes([data[-1] ^ 1])
        ticket = self._payloads.genuine(data)
        if ticket is None:
            raise Violation(f"record {record.seq}, shown to a reader, is not what any call stored", "changed-record")
        return ticket


def watch(directory: Path, board: Board, number: int, payloads: Payloads, engine: str, mutant: str | None) -> None:
    """The body of a reader's process."""
    os.environ["PMWAL_ENGINE"] = engine
    _Eye(directory, board, number, payloads, mutant).watch()
