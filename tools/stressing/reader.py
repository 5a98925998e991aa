"""Readers: other processes that read the log beside its writer, and while there is none."""

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
    """Where the supervisor says which life and log it is, and readers what they were shown. Shared memory, made before forks."""

    def __init__(self, readers: int) -> None:
        self._map = mmap.mmap(-1, 4096 + readers * SIGHTINGS * _SLOT)
        self._readers = readers

    def announce(self, life: int, log: int) -> None:
        """A life is about to begin. The log comes first: who sees the life sees its log."""
        self._map[8:16] = log.to_bytes(8, "little")
        self._map[0:8] = life.to_bytes(8, "little")

    def now(self) -> tuple[int, int]:
        """Life and log."""
        life, log = _BOARD.unpack_from(self._map)
        return life, log

    def note(self, reader: int, index: int, life: int, seq: int, ticket: int) -> None:
        """A record that was shown to a reader within this life."""
        at = 4096 + (reader * SIGHTINGS + index % SIGHTINGS) * _SLOT
        self._map[at] = 0
        _SIGHTING.pack_into(self._map, at + 8, life, seq, ticket)
        self._map[at] = 1

    def sightings(self, life: int) -> list[tuple[int, int]]:
        """Number and ticket of what readers were shown in this life. They are suspended."""
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
        """Follow the logs for ever."""
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
        """Read on from where it was, or somewhere else, and check what is shown."""
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
                    raise Violation(f"a reader was shown record {record.seq} where {due} was due", "wrong-order")
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
        """One record by its number; it may have gone. Now and then the verdict, which sees no fault beside a writer either."""
        seq = self._rng.randint(first, end)
        with contextlib.suppress(IndexError):
            record = reader[seq]
            if record.seq != seq:
                raise Violation(f"a reader that asked for record {seq} was shown {record.seq}", "wrong-order")
            self._ticket(record)
        if self._rng.random() < VERIFY_SHARE:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile, when the run goes on with another log
                report = pmwal.verify(reader.path)
                if report.outcome == "corrupt":
                    raise Violation(f"verify, beside the writer: {report.case}: {report.reason}", "corrupt-log")

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
