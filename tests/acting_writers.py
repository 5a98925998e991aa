"""A writer that acts at chosen loads of a reader, the history that it makes, and a judge of what the reader says of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.errors import Overrun
from pmwal.storage.mapping import Mapping

Plan = tuple[tuple[int, str], ...]
"""At which loads, counted from the first act, the writer does what."""

STORED = 62  # records of 1000 bytes that fill a ring of 64 KiB


@dataclass(eq=False)
class Version:
    """One record that had a number, and when it was stored and rolled back."""

    seq: int
    data: bytes
    born: int
    died: float = math.inf


class History:
    """All that one log ever had. Time is the number of steps of its writer."""

    def __init__(self) -> None:
        self.now, self.first_seq, self.next_seq = 0, 1, 1
        self.by_data: dict[bytes, Version] = {}
        self.newest: dict[int, Version] = {}  # by number
        self.cuts: list[tuple[int, int]] = []  # when, and the first number that was rolled back
        self.moves: list[int] = []  # when it was put into another file
        self.firsts: list[tuple[int, int]] = [(0, 1)]

    def note(self, wal: pmwal.Wal, stored: list[bytes], cut: int | None = None) -> None:
        """The writer has taken a step: it has rolled back from ``cut`` on, and stored these, the last of what it has now."""
        self.now += 1
        if cut is not None:
            self.cuts.append((self.now, cut))
            for seq in range(cut, self.next_seq):
                self.newest.pop(seq).died = self.now
        for seq, data in enumerate(stored, wal.next_seq - len(stored)):
            self.by_data[data] = self.newest[seq] = Version(seq, data, self.now)
        self.first_seq, self.next_seq = wal.first_seq, wal.next_seq
        self.firsts.append((self.now, self.first_seq))

    def firsts_since(self, begun: int) -> set[int]:
        """The oldest numbers that the log has had since then."""
        before = [first for when, first in self.firsts if when <= begun]
        return {before[-1], *(first for when, first in self.firsts if when > begun)}


class Scene:
    """A full log, and a writer that acts at chosen loads."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan, first: int) -> None:
        self.path, self.acts, self.loads, self.watching = path, 0, 0, False
        self._steps = {first + after: name for after, name in plan}
        self._texts = itertools.count()
        self.histories: dict[str, History] = {}  # by uuid
        self._create()
        load = Mapping.load

        def counted(mapping: Mapping, offset: int, length: int) -> bytes:
            if self.watching:
                self.loads += 1
                if self.loads in self._steps:
                    self.watching = False  # what the writer loads does not count
                    self.acts += 1
                    self.act(self._steps[self.loads])
                    self.watching = True
            return load(mapping, offset, length)

        monkeypatch.setattr(Mapping, "load", counted)
        monkeypatch.setattr("pmwal.reading.succession._LOOK_SECONDS", 0)  # a follow that is begun anew looks at the path, too

    def act(self, name: str) -> None:
        """Do this."""
        getattr(self, f"_{name.replace(' ', '_')}")()

    @property
    def history(self) -> History:
        """That of the log that is at the path now."""
        return self.histories[self.wal.uuid]

    # -- what the writer does

    def _create(self) -> None:
        self.wal = pmwal.open(self.path, size="64KiB", on_full="overwrite")
        self.histories[self.wal.uuid] = History()
        self._store(STORED)

    def _store(self, count: int, cut: int | None = None) -> None:
        payloads = [b"%1000d" % next(self._texts) for _ in range(count)]
        self.wal.extend(payloads)
        self.history.note(self.wal, payloads, cut)

    def _overwrite(self) -> None:
        self._store(17)

    def _free(self) -> None:
        self.wal.truncate(before=self.wal.first_seq + 17)
        self._store(17)

    def _roll_back(self) -> None:
        count = min(30, self.wal.capacity // 2000)
        cut = max(self.wal.first_seq, self.wal.next_seq - count)
        self.wal.rollback(after=cut - 1)
        self._store(count + 3, cut)

    def _open_again(self) -> None:
        self.wal.close()
        self.wal = pmwal.open(self.path, on_full="overwrite")
        self._store(3)

    def _move(self, size: int) -> None:
        self.wal.resize(size)
        self.history.moves.append(self.history.now + 1)
        self._store(5)

    def _grow(self) -> None:
        self._move(self.wal.capacity + (32 << 10))

    def _shrink(self) -> None:
        self.wal.truncate(before=self.wal.next_seq - 20)
        self._move(32 << 10 if self.wal.capacity != 32 << 10 else 36 << 10)

    def _grow_closed(self) -> None:
        capacity = self.wal.capacity
        self.wal.close()
        pmwal.resize(self.path, capacity + (32 << 10))
        self.wal = pmwal.open(self.path, on_full="overwrite")
        self.history.moves.append(self.history.now + 1)
        self._store(5)

    def _replace(self) -> None:
        self.wal.close()
        self.path.unlink()
        self._create()


class Judge:
    """What a reader may say of one log: each record once and in order; what it leaves out was freed, and is said to be gone.

    ``silent``: the reader says so by going on with a later number, and goes back by itself after a rollback.
    """

    def __init__(self, history: History, start: int | None, *, silent: bool = False) -> None:
        """``start``: where it begins; None for the oldest record that it finds."""
        self.history, self.at, self._start, self._silent = history, start or 1, start, silent
        self.gone: set[int] = set()
        self._begun = 0
        self._had: set[Version] = set()
        self._last: Version | None = None
        self._after: dict[int, Version] = {}  # by number
        self._file = 0  # since when the log had the file of which it has delivered a record
        self._unsure = False  # where it continues after a cursor, whose record cannot be compared once it was freed

    def begin(self, *, unsure: bool = False) -> None:
        """The reader looks at the log from now on."""
        self._begun, self._unsure = self.history.now, unsure

    @property
    def behind(self) -> bool:
        """Whether the log has later records."""
        return self._start is None or self.at < self.history.next_seq

    @property
    def begun(self) -> bool:
        """Whether a record has come."""
        return self._last is not None

    @property
    def discarded(self) -> bool:
        """Whether the last record that has come was rolled back."""
        return self._last is not None and self._last.died <= self.history.now

    @property
    def _seen(self) -> int:
        """Since when what it says may be so: it may still read a file that the log had before."""
        return min([self._begun, *(when - 1 for when in self.history.moves if when > self._file)])

    def came(self, seq: int, data: bytes) -> None:
        """A record was delivered."""
        version, last = self.history.by_data.get(data), self._last
        assert version is not None, f"record {seq} never had this payload"
        assert version.seq == seq, f"record {version.seq} was delivered as {seq}"
        assert version.died > self._seen, f"record {seq} was rolled back before the call"
        assert version not in self._had, f"record {seq} came twice"
        if last is not None and version.born >= last.died:
            cut = min(cut for when, cut in self.history.cuts if last.born < when <= version.born)
            if self._unsure and last.seq < self.history.first_seq:
                self.gone |= set(range(cut, self.at))
            else:
                assert self._silent, f"record {seq} was delivered after {last.seq}, which was rolled back before it was stored"
                self.at = min(self.at, cut)
        if self._start is None:
            assert seq in self.history.firsts_since(self._seen), f"it begins with record {seq}"
            self._start = self.at = seq
        if self._silent and seq > self.at:
            self.missed(seq - self.at)
        assert seq == self.at, f"record {seq} instead of {self.at}"
        self._had.add(version)
        self._file = max([self._file, *(when for when in self.history.moves if when <= version.born)])
        self._last = self._after[seq] = version
        self.at += 1

    def missed(self, count: int) -> None:
        """So many are said to be gone."""
        if self._start is None:
            self._start = self.at
        after = self.at + count
        assert count > 0
        assert after in self.history.firsts_since(self._seen), f"{self.at} to {after - 1} are said to be gone"
        self.gone |= set(range(self.at, after))
        self.at = after

    def overrun(self, error: Overrun) -> None:
        """The reader raised this. After a rollback it is read again from the first number that was rolled back."""
        if error.missed:
            self.missed(error.missed)
            return
        born = -1 if self._last is None else self._last.born
        cuts = [cut for when, cut in self.history.cuts if when > born and cut <= self.at]
        moved = any(when > self._begun for when in self.history.moves)
        assert cuts or moved, f"{error}: it was not rolled back"
        self.go_back(min([*cuts, self.at]))

    def go_back(self, at: int) -> None:
        """It is read again from this number on."""
        self.at = at
        self._last = self._after.get(at - 1)

    def repeat(self, at: int) -> None:
        """As ``go_back``, where the records from this number on may come a second time."""
        self._had -= {version for version in self._had if version.seq >= at}
        self.go_back(at)

    @property
    def counts(self) -> set[int]:
        """How many may be counted as gone: those before the first record, too, if the reader saw an older one at first."""
        start = self._start or 1
        return {len(self.gone), *(len(self.gone) + start - first for _, first in self.history.firsts if first < start)}

    def begin_again(self) -> None:
        """It is read again from the oldest record on that it finds."""
        self._start = self._last = None
        self._had, self._after = set(), {}

    def end(self) -> None:
        """It has come to its end: each number has come as the record that it has now, or was freed, and said to be gone."""
        assert not self.behind, f"ended at {self.at}"
        assert self._start is not None
        for seq in range(self._start, self.history.next_seq):
            if self.history.newest[seq] not in self._had:
                assert seq in self.gone, f"record {seq} was neither delivered nor said to be gone"
                assert seq < self.history.first_seq, f"record {seq} is said to be gone, and there"


Way = Callable[[Scene], Any]


def problems_of(path: Path, way: Way, plan: Plan, *, every: int = 1, one: bool = False) -> list[str]:
    """Run it once for each load, or for some; what went wrong, with ``one`` the first time only."""
    problems: list[str] = []
    for number in itertools.count(1, every):
        directory = path.with_name(f"at {number}")
        directory.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            scene = Scene(directory / "a.wal", patch, plan, number)
            try:
                way(scene)
            except (AssertionError, pmwal.PmwalError, IndexError, ValueError) as error:
                problems.append(f"load {number}: {type(error).__name__}: {str(error)[:120]}")
            scene.watching = False
            scene.wal.close()
        if not scene.acts or (one and problems):
            return problems
    return problems
