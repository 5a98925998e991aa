"""One writer ends and the next one opens the log, with readers looking at every moment of it.

Invariants
----------
- What both writers do to the file is recorded once, as moments: a store, or the writer's byte locked or released. For each look
  the file is put back, in place, and the moments are played again: up to one when the look begins, and up to a later one at one of
  the reader's loads, or in the middle of one of the live page. So readers meet every moment, with no process and no clock.
- A store to the live page is as many moments as it has words, from the front.
- While a writer is alive and has shown its bounds, readers may show what it has made durable; else, what recovery would keep.
- Nothing is rolled back. So no reader may say so, or show a record twice, or end before the last record that is durable.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pmwal
from pmwal.errors import PmwalError
from pmwal.format.layout import LINE, LIVE_OFFSET, LIVE_OPEN_OFFSET, PAGE
from pmwal.opening import open_log
from pmwal.reading import known_writer
from pmwal.reading.follow import Waiter
from pmwal.storage.descriptors import open_descriptor
from pmwal.storage.liveness import announce
from pmwal.storage.mapping import Mapping
from pmwal.storage.seam import SYSTEM
from pmwal.testing._simulator.beside import _Living
from pmwal.testing._simulator.explore import History, start_of
from pmwal.testing.power_cut import WORD
from pmwal.testing.process import kill
from pmwal.testing.recorder import Step
from pmwal.testing.violation import Violation
from pmwal.writing.wal import Wal

_PAIRS = 12  # of moments, for each kind of look
_CUTS = (0, LINE, 2 * LINE, LIVE_OPEN_OFFSET - LIVE_OFFSET)
_PATIENCE = 60.0  # seconds for which a follower waits; no look takes so long
_MEMORIES = (0.0, _PATIENCE)  # how long a follower believes the page of a writer that it knows, without asking the kernel


class _Moment(NamedTuple):
    """One change of the file, or of the lock; and the numbers from which on readers may, and must, show nothing afterwards."""

    what: str
    offset: int
    data: bytes
    least: int
    most: int


class _Script:
    """The moments, recorded; ``image`` is the file before them, beside a living writer."""

    def __init__(self, path: Path, history: History, end: str) -> None:
        self.moments: list[_Moment] = []
        self.milestones: list[int] = []
        self._wal: Wal | None = None
        self._recorder = _Living(hidden=False)
        self._options: dict[str, Any] = {
            "medium": history.setting.mapped,
            "ordering": history.setting.ordering,
            "commit": "manual",
            "seam": self._recorder,
        }
        path.write_bytes(start_of(history.setting).image)
        first = self._open(path)
        first.extend([b"of the first writer"] * 2)
        first.commit()
        first.append(b"pending")
        self.image = path.read_bytes()
        self.first, self.shown = first.first_seq, first.committed_seq + 1
        self._least = self._most = self.shown
        self._recorder.after = self._note
        self.first_closes = end == "close"
        self._end(first, end)
        self.kept = self._least
        self._recorder.hide()  # the second writer is another process, which is alive by its byte
        second = self._open(path)
        self._mark()
        for commits in (False, True, False):
            second.append(b"of the second writer", commit=commits)
            self._least = second.committed_seq + 1
            self._mark()
        self._end(second, "close")

    def _open(self, path: Path) -> Wal:
        wal = open_log(path, "r+", **self._options)
        assert isinstance(wal, Wal)
        self._wal = wal
        return wal

    def _end(self, wal: Wal, how: str) -> None:
        if how == "close":
            wal.close()
        else:
            kill(wal)
        self._wal = None
        self._least = self._most = wal._engine.state.head.next_seq
        self._add("unlock")
        self._mark()

    def _mark(self) -> None:
        self.milestones.append(len(self.moments))

    def _note(self, step: Step) -> None:
        if step.name in ("store", "stream"):
            if step.offset == LIVE_OPEN_OFFSET:
                self._add("lock")  # announce() comes right before
            on_page = LIVE_OFFSET <= step.offset < LIVE_OFFSET + PAGE
            size = WORD if on_page and step.length <= 2 * LINE else step.length
            for start in range(0, step.length, size):
                self._add("store", step.offset + start, step.data[start : start + size])

    def _add(self, what: str, offset: int = 0, data: bytes = b"") -> None:
        if self._wal is not None:
            self._most = max(self._most, self._wal._engine.state.durable.next_seq)
        self.moments.append(_Moment(what, offset, data, self._least, self._most))


class _Stage:
    """The file, at one moment after the other."""

    def __init__(self, path: Path, script: _Script) -> None:
        self.path = path
        self.script = script
        self._fd = open_descriptor(str(path), os.O_RDWR)
        self._lock = -1
        self._arm = -1
        self._later = self._cut = 0
        self.reached = False

    def rewind(self) -> None:
        """The first writer is alive."""
        SYSTEM.write(self._fd, self.script.image, 0)
        self.now = 0
        self._change("lock")

    def play(self, moment: int) -> None:
        """Go to this moment."""
        for what, offset, data, *_ in self.script.moments[self.now : moment]:
            if what == "store":
                SYSTEM.write(self._fd, data, offset)
            else:
                self._change(what)
        self.now = max(self.now, moment)

    def choose_cut(self, cut: int) -> None:
        """How many bytes of the live page a load has when the later moment comes."""
        self._cut = cut

    def arm(self, load: int, later: int) -> None:
        """Go to a later moment at this load of a reader, counted from 0."""
        self._arm, self._later, self.reached = load, later, False

    def disarm(self) -> None:
        """The look is over."""
        self._arm = -1

    def load(self, load: Callable[[int, int], bytes], offset: int, length: int) -> bytes:
        """A reader loads these bytes."""
        cut = self._cut if offset == LIVE_OFFSET and length > self._cut else 0
        now, self._arm = self._arm == 0, self._arm - 1
        before = load(offset, cut) if now and cut else b""
        if now:
            self.reached = True
            self.play(self._later)
        return before + load(offset + len(before), length - len(before))

    @property
    def least(self) -> int:
        """The number before which readers must show all."""
        return self.script.moments[self.now - 1].least if self.now else self.script.shown

    @property
    def most(self) -> int:
        """The number from which on readers may show nothing."""
        return self.script.moments[self.now - 1].most if self.now else self.script.shown

    def _change(self, what: str) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if what == "lock":
            self._lock = open_descriptor(str(self.path), os.O_RDWR)
            assert announce(self._lock), "this file system has no locks"

    def close(self) -> None:
        """The last writer dies."""
        self._change("unlock")
        os.close(self._fd)


def explore_succession(directory: Path, history: History) -> int:
    """Look while one writer ends and the next one begins; how many looks there were.

    ``Violation`` of oracle "beside". The history's operations are not used; its seed chooses the moments.
    """
    looks = 0
    for end in ("kill", "close"):
        path = directory / "succession.wal"
        stage = _Stage(path, _Script(path, history, end))
        choose = random.Random(f"{history.seed} {end}")
        load = Mapping.load

        def counted(mapping: Mapping, offset: int, length: int) -> bytes:
            return stage.load(partial(load, mapping), offset, length)  # noqa: B023

        try:
            with patch.object(Mapping, "load", counted):
                for memory in _MEMORIES:
                    with patch.object(known_writer, "PAUSE_MAX", memory):
                        looks += _look_everywhere(stage, end, _followed, choose)
                looks += sum(_look_everywhere(stage, end, look, choose) for look in (_verified, _again, _fresh))
        finally:
            stage.close()
    return looks


def _look_everywhere(stage: _Stage, end: str, look: Callable[[_Stage, int, int, int], None], choose: random.Random) -> int:
    """Some pairs of moments, with every load at which the second can come."""
    looks, moments = 0, len(stage.script.moments)
    for start in choose.sample(range(moments), _PAIRS):
        milestones = [later for later in stage.script.milestones if start < later]
        later = choose.choice([*milestones, choose.randint(start + 1, moments)])
        stage.choose_cut(choose.choice(_CUTS))
        for load in count():
            stage.rewind()
            try:
                look(stage, start, load, later)
            except (PmwalError, Violation) as error:
                where = f"after a {end}, {look.__name__[1:]} at {start}, at load {load} overtaken up to {later} of {moments}"
                raise Violation("beside", f"{where}: {error}") from error
            looks += 1
            if not stage.reached:
                break
    return looks


def _check(stage: _Stage, least: int, next_seq: int) -> None:
    """What is shown at one moment."""
    if not least <= next_seq <= stage.most:
        raise Violation("beside", f"shown up to {next_seq - 1}; expected {least - 1} to {stage.most - 1}")


def _fresh(stage: _Stage, start: int, load: int, later: int) -> None:
    """A reader comes and reads all."""
    stage.play(start)
    least = stage.least
    stage.arm(load, later)
    with pmwal.open(stage.path, "r") as reader:
        _check(stage, least, [record.seq for record in reader][-1] + 1)
    stage.disarm()


def _verified(stage: _Stage, start: int, load: int, later: int) -> None:
    """A verdict."""
    stage.play(start)
    least = stage.least
    stage.arm(load, later)
    report = pmwal.verify(stage.path)
    stage.disarm()
    if report.outcome == "corrupt":
        raise Violation("beside", f"{report.case}, {report.reason}")
    _check(stage, least, report.last_seq + 1)


def _again(stage: _Stage, start: int, load: int, later: int) -> None:
    """A reader that has been there reads what is new, twice while the file changes."""
    with pmwal.open(stage.path, "r") as reader:
        next_seq = [record.seq for record in reader][-1] + 1
        stage.play(start)
        for armed in (False, True, False):
            least = stage.least
            if armed:
                stage.arm(load, later)
            next_seq += len(list(reader.read(next_seq)))
            _check(stage, least, next_seq)
            if armed:
                stage.disarm()


class _OverError(Exception):
    """The last moment is over, and a follower waits for more."""


def _followed(stage: _Stage, start: int, load: int, later: int) -> None:
    """A follower that was there before. It may end when a writer closes the log, and is then begun again."""
    script = stage.script
    moments = iter((start, later, len(script.moments)))
    must_have = script.kept if script.first_closes else script.moments[-1].least
    next_seq = script.first

    def before_sleep(_: Waiter) -> None:
        moment = next(moments, None)
        if moment is None:
            raise _OverError
        stage.disarm()
        stage.play(moment)
        if moment == start:
            stage.arm(load, later)

    with patch.object(Waiter, "announce", before_sleep), pmwal.open(stage.path, "r") as reader, contextlib.suppress(_OverError):
        while True:
            for record in reader.follow(next_seq, timeout=_PATIENCE):
                if record.seq != next_seq:
                    raise Violation("beside", f"record {record.seq} after record {next_seq - 1}")
                next_seq += 1
                _check(stage, 0, next_seq)
            if next_seq < must_have:
                raise Violation("beside", f"the follower ended after {next_seq - 1} of {must_have - 1}")
    stage.disarm()
    if next_seq != script.moments[-1].least:
        raise Violation("beside", f"followed up to {next_seq - 1} of {script.moments[-1].least - 1}")
