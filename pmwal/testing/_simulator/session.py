"""A session: one log under operations, recorded, with a model of what a crash may leave at each step.

Invariants
----------
- A session is determined by its setting, its seed and its operations.
- After each call the handle shows what the model says (oracle "live").
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from pmwal.errors import RecordTooLarge, WalFull
from pmwal.opening import open_log
from pmwal.testing._simulator.failures import failing_sync
from pmwal.testing._simulator.model import Expectation, Found, Items, Model, brief
from pmwal.testing.images import build, sampled
from pmwal.testing.lookalikes import place_in, tagged
from pmwal.testing.power_cut import WORD, PowerCutModel
from pmwal.testing.process import kill
from pmwal.testing.recorder import Recorder, Step
from pmwal.testing.violation import Violation
from pmwal.writing.wal import Wal


class Setting(NamedTuple):
    """What a history runs on."""

    medium: str = "page"
    ordering: str = "pipelined"
    base: str = "fresh"
    size: int = 8192
    align: int = 8
    stores: str = "write-back"

    @property
    def mapped(self) -> str:
        """The medium that the log is opened with."""
        return "emulated-dax" if self.medium == "pmem" else "file"


class Start(NamedTuple):
    """A file of which every byte is durable, and its records."""

    image: bytes
    found: Found
    issued: int = 0


class Trace(NamedTuple):
    """A recorded history: the durable file before it, its steps, and from which step on what may be found."""

    base: bytes
    events: list[Step]
    expectations: list[tuple[int, Expectation]]
    begin: int  # steps before the last operation

    def expected(self, steps: int) -> Expectation:
        """What a crash after this many steps may leave."""
        return self.expectations[bisect_right(self.expectations, steps, key=_steps) - 1][1]

    def settled(self, steps: int) -> list[Expectation]:
        """What was expected after this many steps, before the next call began."""
        here = [expectation for begin, expectation in self.expectations if begin == steps]
        return here[:-1]


def _steps(noted: tuple[int, Expectation]) -> int:
    return noted[0]


def payload(issue: int, size: int) -> bytes:
    """Bytes that no other record of the history has."""
    text = b"%d." % issue
    return (text * (size // len(text) + 1))[: max(size, len(text))]


class Session:
    """A log under operations. It must be ended by ``end``."""

    def __init__(self, setting: Setting, path: Path, start: Start, seed: int) -> None:
        path.write_bytes(start.image)
        self.setting = setting
        self.path = path
        self.seed = seed
        self.random = Random(seed)
        self.recorder = Recorder(stores=setting.stores)
        self.model = Model(start.found.items, first_seq=start.found.first_seq)
        self.issued = start.issued
        self.wal: Wal | None = None
        self.over = False  # an msync lied: the promises end here
        self.base = start.image
        self.expectations: list[tuple[int, Expectation]] = [(0, self.model.expectation())]

    def end(self) -> None:
        """End the writer."""
        wal, self.wal = self.wal, None
        if wal is not None:
            kill(wal)

    # -- what the operations share

    @property
    def log(self) -> Wal:
        """The open log."""
        assert self.wal is not None
        return self.wal

    def expect(
        self, *, adding: Items | None = None, first_max: int | None = None, cut_after: int | None = None, jumps: bool = True
    ) -> None:
        """From here on a crash may leave this."""
        expectation = self.model.expectation(adding=adding, first_max=first_max, cut_after=cut_after, jumps=jumps)
        self.expectations.append((len(self.recorder.events), expectation))

    def done(self) -> None:
        """The call has returned: what the handle calls durable is acknowledged, and what it shows must match the model."""
        wal, model = self.log, self.model
        model.advance(wal.first_seq, wal.committed_seq)
        shown = Found(wal.first_seq, tuple((record.seq, record.data) for record in wal.read()))
        if (shown.items, wal.next_seq) != (model.stored, model.next_seq):
            raise Violation("live", f"shows {brief(shown.items)} and then {wal.next_seq}; stored {brief(model.stored)}")
        self.expect()

    def make(self, *sizes: int) -> Items:
        """New records of these sizes."""
        first = self.model.next_seq
        return tuple((first + place, self.payload(size)) for place, size in enumerate(sizes))

    def payload(self, size: int) -> bytes:
        """Bytes that no other record of the history has; every other payload imitates structures of the log."""
        issue = self.issued
        self.issued += 1
        if issue % 2:
            return payload(issue, size)
        return tagged(Random(f"{self.seed} {issue}"), place_in(self.log), size, b"%d." % issue)

    def store(self, group: Items, call: Callable[[], object], *, durably: bool = True) -> None:
        """A call that stores this group and returns its first and last number, unless it does not fit."""
        self.expect(adding=group, first_max=self.first_after(group))
        try:
            returned = call()
        except (WalFull, RecordTooLarge) as error:
            if self.fits(group):
                raise Violation("live", f"refused {brief(group)}: {error}") from error
            self.done()
            return
        self.model.strays = []
        self.model.pending.append(group)
        self.done()
        numbers = group[0][0], group[-1][0]
        if returned != numbers:
            raise Violation("live", f"returned {returned} for {numbers}")
        if durably:
            self.promised(numbers[1])

    def promised(self, seq: int) -> None:
        """A call has returned after which this number is durable."""
        if self.log.committed_seq < seq:
            raise Violation("promised", f"number {seq} is to be durable, and the handle says {self.log.committed_seq}")

    def fits(self, group: Items) -> bool:
        """Whether these records fit once older ones were overwritten."""
        engine, sizes = self.log._engine, [len(data) for _, data in group]
        if max(sizes) > engine.block.payload_max:
            return False
        return engine.need_of(sizes).end - engine.state.head.position <= engine.block.capacity

    def first_after(self, group: Items) -> int:
        """The first number after space was freed for this group."""
        engine = self.log._engine
        end = engine.need_of([len(data) for _, data in group]).end
        capacity = engine.block.capacity
        if end - engine.state.tail.position <= capacity or end - engine.state.head.position > capacity:
            return self.model.first_seq
        return engine.free_ahead(end).next_seq

    def reopen(self) -> None:
        """Open the log. What is found is durable from then on."""
        wal = open_log(
            self.path, "r+", medium=self.setting.mapped, ordering=self.setting.ordering, on_full="overwrite", seam=self.recorder
        )
        assert isinstance(wal, Wal)
        self.wal = wal
        found = Found(wal.first_seq, tuple((record.seq, record.data) for record in wal.read()))
        expected = self.expectations[-1][1]
        if not expected.allows(found):
            oracle = "issued" if expected.holds_acknowledged(found) else "acknowledged"
            raise Violation(oracle, f"reopened: found from {found.first_seq} {brief(found.items)}; expected {expected}")
        self.model.settle(found)
        self.expect()

    def medium_now(self) -> PowerCutModel:
        """What the medium may hold now."""
        medium = PowerCutModel(self.setting.medium, self.base)
        for step in self.recorder.events:
            medium.take(step)
        return medium

    def store_half(self, step: Step, share: float) -> None:
        """Make this share of a store, by whole words from the front."""
        cut = int(step.length * share) // WORD * WORD
        if step.name in ("store", "stream") and cut:
            half = step._replace(length=cut, data=step.data[:cut])
            self.recorder.events.append(half)
            with self.path.open("r+b") as file:
                file.seek(half.offset)
                file.write(half.data)

    def reopen_after_kill(self) -> None:
        """The process dies, and the page cache stays."""
        self.end()
        self.reopen()

    def reopen_unsynced(self) -> None:
        """The same, and the sync with which an open begins makes nothing durable."""
        self.end()
        with failing_sync(self.recorder, len(self.base)):
            self.reopen()

    def reopen_after_cut(self) -> None:
        """The power fails, and the log is opened on an image that the medium may hold then."""
        self.end()
        medium = self.medium_now()
        image = build(medium, sampled(medium, self.random)).data
        self.path.write_bytes(image)
        self.recorder.events.append(Step("cut", 0, len(image), image))
        self.reopen()
