"""Exploring: histories are run, their crash images built, and each image that is new is shown to the oracles.

Invariants
----------
- Equal bytes under equal expectations are one distinct image, from any history and medium.
- Every image is judged. A share of them goes through a real open and a second verdict, a smaller one through a crash at every
  step of that recovery, through one with a slot lost, and the smallest through crashes of a few appends after it. A share is
  chosen by the image's digest, so which ones these are does not depend on the order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Set
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from pmwal.format.layout import LINE, slot_index, slot_offset
from pmwal.format.ring import RingReader
from pmwal.opening import open_log
from pmwal.records import Bound
from pmwal.testing._simulator.damage import damaged_images
from pmwal.testing._simulator.model import Expectation, Found, brief
from pmwal.testing._simulator.operations import LARGE, perform
from pmwal.testing._simulator.oracles import CRASH_ROWS, Examined, Examiner, check, check_damaged, documented_errors
from pmwal.testing._simulator.session import Session, Setting, Start, Trace
from pmwal.testing.images import Image, build, cached, choices, digest_after, half_stored, points
from pmwal.testing.power_cut import DIGEST_MASK, PowerCutModel
from pmwal.testing.process import scratch
from pmwal.testing.recorder import Recorder
from pmwal.testing.violation import Violation

_CONTINUATIONS = ("append_small", "append_large", "extend", "batch", "append_pending")


class Effort(NamedTuple):
    """How much is done for each history.

    One in ``open_one_in`` images is opened, one in ``interrupt_one_in`` recovered under crashes, one in ``continue_one_in`` also
    appended to under crashes, and one in ``lose_one_in`` loses a slot. Histories longer than ``close_up_to`` operations are looked
    at less closely."""

    samples: int = 8
    open_one_in: int = 16
    interrupt_one_in: int = 64
    continue_one_in: int = 4096
    lose_one_in: int = 64
    depth: int = 1
    damages: int = 2
    close_up_to: int = 1


class History(NamedTuple):
    """One history to explore."""

    setting: Setting
    names: tuple[str, ...]
    seed: int


@dataclass
class Tally:
    """What was explored. ``seen`` has a number for each distinct image."""

    histories: int = 0
    operations: int = 0
    images: int = 0
    opened: int = 0
    interrupted: int = 0
    continued: int = 0
    damaged: int = 0
    seen: set[int] = field(default_factory=set)
    cases: dict[str, int] = field(default_factory=dict)


class Failure(NamedTuple):
    """A violation and the history that showed it."""

    history: History
    oracle: str
    detail: str


class Explorer:
    """Explores histories, one after the other, in one directory. Images whose numbers are in ``known`` were explored before."""

    def __init__(self, directory: Path, effort: Effort, known: Set[int] = frozenset()) -> None:
        self.effort = effort
        self.tally = Tally()
        self._known = known
        self._path = directory / "history.wal"
        self._image_path = directory / "image.wal"
        self._examiner = Examiner()

    def explore(self, history: History) -> None:
        """Run a history and look at every image of its last operation; ``Violation`` when an oracle is violated."""
        with documented_errors():
            session = Session(history.setting, self._path, start_of(history.setting), history.seed)
            trace = perform(session, history.names)
            self.tally.histories += 1
            self.tally.operations += len(history.names)
            self._look_at(trace, history, 0)

    def _look_at(self, trace: Trace, history: History, depth: int) -> None:
        random, closely = Random(history.seed), depth == 0 and len(history.names) <= self.effort.close_up_to
        run = PowerCutModel(history.setting.medium, trace.base)
        between = {steps for steps, _ in trace.expectations}
        for steps, medium, killed_in in points(run, trace.events, begin=trace.begin, between=between):
            if killed_in is not None:
                expectation = trace.expected(steps)
                for image in half_stored(medium, killed_in):
                    self._meet(image, expectation, history, depth)
                continue
            self._meet(cached(medium), trace.expected(steps), history, depth)
            for expectation in (*trace.settled(steps), trace.expected(steps)):
                salt = expectation.digest
                for choice in choices(medium, random, self.effort.samples, closely=closely):
                    self.tally.images += 1
                    key = (digest_after(medium, choice) ^ salt) & DIGEST_MASK
                    if self._is_new(key):
                        self._show(build(medium, choice), key, expectation, history, depth)
        if not medium.open and not expectation.lied:
            self._lose_slots(cached(medium), expectation, history, depth)
            self._damage(cached(medium), expectation, random, self.effort.damages if closely else 1)

    def _meet(self, image: Image, expectation: Expectation, history: History, depth: int) -> None:
        self.tally.images += 1
        key = (image.digest ^ expectation.digest) & DIGEST_MASK
        if self._is_new(key):
            self._show(image, key, expectation, history, depth)

    def _is_new(self, key: int) -> bool:
        if key in self._known or key in self.tally.seen:
            return False
        self.tally.seen.add(key)
        return True

    def _show(self, image: Image, key: int, expectation: Expectation, history: History, depth: int) -> None:
        examined = self._examiner.examine(image.data)
        check(examined, expectation)
        case = examined.case
        self.tally.cases[case] = self.tally.cases.get(case, 0) + 1
        if examined.corrupt:  # as it may be after an msync that lied
            return
        if key % self.effort.open_one_in == 0:
            self._open(image, examined, history)
        if depth < self.effort.depth:
            self._nest(image, key, examined.found, history, depth)
            if key % self.effort.lose_one_in == 1 and not examined.judgement.control.lost:
                self._lose_slots(image, expectation, history, depth)

    def _open(self, image: Image, examined: Examined, history: History) -> None:
        """Oracles "open" and "twice"."""
        self.tally.opened += 1
        session = Session(history.setting, self._image_path, Start(image.data, examined.found), history.seed)
        try:
            perform(session, ())
        except Violation as violation:
            raise violation.renamed("open") from violation
        again = self._examiner.examine(self._image_path.read_bytes())
        if again.found != examined.found or again.case not in CRASH_ROWS:
            raise Violation("twice", f"first {brief(examined.found.items)}, then {brief(again.found.items)} ({again.case})")

    def _nest(self, image: Image, key: int, found: Found, history: History, depth: int) -> None:
        """Oracles "interrupted" and "continued"."""
        if key % self.effort.interrupt_one_in == 0:
            self.tally.interrupted += 1
            self._continue("interrupted", (), image, found, history, depth)
        if key % self.effort.continue_one_in == 0:
            self.tally.continued += 1
            names = (*Random(key).choices(_CONTINUATIONS, k=2), "append_pending")
            self._continue("continued", names, image, found, history, depth)

    def _continue(self, oracle: str, names: tuple[str, ...], image: Image, found: Found, history: History, depth: int) -> None:
        """Recover an image, do these operations, and look at every crash from the first step of the recovery on."""
        session = Session(history.setting, self._image_path, Start(image.data, found, issued=1000), history.seed)
        try:
            self._look_at(perform(session, names)._replace(begin=0), history, depth + 1)
        except Violation as violation:
            raise violation.renamed(oracle) from violation

    def _lose_slots(self, image: Image, expectation: Expectation, history: History, depth: int) -> None:
        """Oracle "slot": recovery finds the same, and survives the next crash."""
        control = self._examiner.examine(image.data).judgement.control
        block = self._examiner.block
        assert control.newest is not None
        for generation in range(control.newest.generation, max(control.newest.generation - 2, -1), -1):
            offset = slot_offset(slot_index(generation, block.control_pages))
            data = image.data[:offset] + bytes(LINE) + image.data[offset + LINE :]
            self.tally.damaged += 1
            examined = self._examiner.examine(data)
            if examined.corrupt or not expectation.allows(examined.found):
                found = f"{brief(examined.found.items)} ({examined.case}: {examined.judgement.report.reason})"
                raise Violation("slot", f"without generation {generation}: found {found}; expected {expectation}")
            if depth < self.effort.depth:
                try:
                    self._nest(Image(data, image.digest), image.digest + generation, examined.found, history, depth)
                except Violation as violation:
                    raise violation.renamed("slot") from violation

    def _damage(self, image: Image, expectation: Expectation, random: Random, count: int) -> None:
        """Oracle "damage"."""
        judgement, block = self._examiner.examine(image.data).judgement, self._examiner.block
        ring = RingReader(block, lambda offset, length: image.data[offset : offset + length])
        records, at = list[int](), judgement.tail
        while at.next_seq < judgement.end.next_seq:
            found = ring.numbered(*at)
            assert found is not None
            records.append(found.position)
            at = Bound(found.end, at.next_seq + 1)
        for what, data in damaged_images(image.data, block, records, random, count):
            self.tally.damaged += 1
            try:
                check_damaged(self._examiner.examine(data), expectation)
            except Violation as violation:
                raise Violation("damage", f"{what}: {violation.detail}") from violation


@lru_cache(maxsize=64)
def start_of(setting: Setting) -> Start:
    """A durable log to start from. "fresh" is new; "lapped" has old laps everywhere and a few records; in "brink" the next
    record meets the ring's end; "full" has no free space.
    """
    with tempfile.TemporaryDirectory(prefix="pmwal-start-", dir=scratch()) as name:
        path = Path(name) / "start.wal"
        wal = open_log(
            path,
            "x",
            size=setting.size,
            align=setting.align,
            medium=setting.mapped,
            ordering=setting.ordering,
            seam=Recorder(stores=setting.stores),
        )
        wal.close()
        fresh = Start(path.read_bytes(), Found(1, ()))
        return fresh if setting.base == "fresh" else _used(setting, fresh, path)


def _used(setting: Setting, fresh: Start, path: Path) -> Start:
    session = Session(setting, path, fresh, 0)
    session.reopen()
    wal = session.log
    laps = 2 if setting.base == "lapped" else 1
    end = laps * wal.capacity - (LARGE + 200 if setting.base == "brink" else 0)
    sizes = (40, LARGE, 300)
    while wal._engine.state.head.position < end:
        data = session.payload(sizes[session.issued % len(sizes)])
        if wal.free < len(data) + 2 * LARGE:  # by hand, because each overwriting append would leave two slots
            wal.truncate(before=wal.next_seq)
        wal.append(data, commit=False)
    while setting.base == "full" and wal.free > 2 * 400:
        wal.append(session.payload(300), commit=False)
    if setting.base != "full":
        wal.truncate(before=max(wal.next_seq - 3, wal.first_seq))
    held = Found(wal.first_seq, tuple((record.seq, record.data) for record in wal.read()))
    wal.close()
    return Start(path.read_bytes(), held, session.issued)
