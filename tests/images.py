"""Crash images: from the steps that a seam recorded to every file that a crash may have left, and the states allowed then.

``Trace.run`` performs operations and notes what was acknowledged when. For each step of it ``Disk`` knows which versions
of each 64-byte line (persistent memory) or 4 KiB page (a disk) the medium may hold: any since the last completed flush of
it, or a mix of two by 8-byte words or 512-byte sectors. ``sweep`` opens them all and compares with the model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pmwal.format.layout import LINE, LIVE_OFFSET, PAGE, SECTOR
from pmwal.writing.wal import Wal
from support import BarrierRecorder, Step, contents, kill, open_small, overwrite

Operation = Callable[[Wal], object]
Numbered = tuple[tuple[int, bytes], ...]


class State(NamedTuple):
    """What a log holds, as its users see it."""

    first_seq: int
    records: Numbered


def state_of(wal: Wal) -> State:
    """The state that a handle shows; its numbers follow one another."""
    records = tuple(contents(wal))
    assert list(range(wal.first_seq, wal.next_seq)) == [seq for seq, _ in records]
    return State(wal.first_seq, records)


def between(old: State, new: State) -> set[State]:
    """What a crash inside one operation may leave: either bound at either end, nothing else."""
    allowed = set()
    for first_seq in (old.first_seq, new.first_seq):
        for records in (old.records, new.records):
            kept = tuple(item for item in records if item[0] >= first_seq)
            if kept or first_seq == (records[-1][0] + 1 if records else first_seq):
                allowed.add(State(first_seq, kept))
    return allowed


def bury(path: Path) -> None:
    """Take the writer's name off the live page, as if its process were dead: the killed writers of a test are this process."""
    overwrite(path, LIVE_OFFSET, bytes(PAGE))


class Disk:
    """What a medium may hold. ``unit`` is ``LINE`` or ``PAGE``; everything in ``image`` is durable at first."""

    def __init__(self, image: bytes, unit: int) -> None:
        self.unit = unit
        self._tear = 8 if unit == LINE else SECTOR
        self._cache = bytearray(image)
        self._versions: dict[int, list[bytes]] = {}  # by unit, the durable one first

    def take(self, event: Step, *, sync_works: bool = True) -> None:
        """Follow one step that the writer took."""
        if event.name == "store":
            half = len(event.data) // 2 // 8 * 8  # the medium may see a store half done
            for data in (event.data[:half], event.data):
                self._store(event.offset, data)
        elif event.name == "flush":
            self._settle(event.offset, event.length)
        elif event.name == "sync" and sync_works:
            self._settle(0, len(self._cache))

    def _store(self, offset: int, data: bytes) -> None:
        if not data:
            return
        units = range(offset // self.unit, (offset + len(data) - 1) // self.unit + 1)
        for unit in units:
            self._versions.setdefault(unit, [self._cached(unit)])
        self._cache[offset : offset + len(data)] = data
        for unit in units:
            if self._versions[unit][-1] != self._cached(unit):
                self._versions[unit].append(self._cached(unit))

    def _cached(self, unit: int) -> bytes:
        return bytes(self._cache[unit * self.unit : (unit + 1) * self.unit])

    def _settle(self, offset: int, length: int) -> None:
        for unit in [unit for unit in self._versions if offset <= unit * self.unit < offset + length]:
            del self._versions[unit]

    def cached(self) -> bytes:
        """What a kill leaves: everything that was stored."""
        return bytes(self._cache)

    def least(self) -> bytes:
        """What a power cut leaves when nothing was written early."""
        return self._with({unit: versions[0] for unit, versions in self._versions.items()})

    def images(self, rng: random.Random, extra: int, most: int = 6) -> Iterator[bytes]:
        """All kept, all lost, each unit lost or kept alone (at most ``most`` of them), and ``extra`` random choices."""
        open_units = {
            unit: versions
            for unit, versions in self._versions.items()
            if len(versions) > 1 and not LIVE_OFFSET <= unit * self.unit < LIVE_OFFSET + PAGE
        }
        yield self.cached()
        yield self.least()
        for unit in rng.sample(sorted(open_units), min(most, len(open_units))):
            yield self._with({unit: open_units[unit][0]})
            yield self._with({other: versions[0] for other, versions in open_units.items() if other != unit})
        for _ in range(extra if open_units else 0):
            yield self._with({unit: self._any(versions, rng) for unit, versions in open_units.items()})

    def _any(self, versions: list[bytes], rng: random.Random) -> bytes:
        one, two = rng.choice(versions), rng.choice(versions)
        if rng.random() < 0.5:
            return one
        pieces = range(0, self.unit, self._tear)
        return b"".join((one if rng.random() < 0.5 else two)[at : at + self._tear] for at in pieces)

    def _with(self, changed: dict[int, bytes]) -> bytes:
        image = bytearray(self._cache)
        for unit, data in changed.items():
            image[unit * self.unit : (unit + 1) * self.unit] = data
        return bytes(image)


class Interrupter(BarrierRecorder):
    """Raises before or after the store or flush with a given number, once."""

    def arm(self, number: int, *, after: bool, error: type[BaseException]) -> None:
        """Let this many pass."""
        left = number

        def interrupt(step: Step) -> None:
            nonlocal left
            if step.name in ("store", "flush"):
                left -= 1
                if left < 0:
                    self.before = self.after = None
                    raise error

        self.before, self.after = (None, interrupt) if after else (interrupt, None)


@dataclass
class Trace:
    """What a run of operations did: the durable file before it, each step, and each acknowledged state."""

    base: bytes
    events: list[Step]
    marks: list[tuple[int, State, bool]] = field(default_factory=list)  # steps taken, state, whether it is durable

    @classmethod
    def start(cls, wal: Wal) -> Trace:
        """Everything in the log is durable from here on; its seam records what follows."""
        wal.commit()
        seam = wal._engine.seam
        assert isinstance(seam, BarrierRecorder)
        seam.events.clear()
        return cls(Path(wal.path).read_bytes(), seam.events, [(0, state_of(wal), True)])

    def mark(self, wal: Wal) -> None:
        """An operation was acknowledged."""
        self.marks.append((len(self.events), state_of(wal), wal.committed_seq == wal.next_seq - 1))

    @classmethod
    def run(
        cls, path: Path, options: dict[str, Any], operations: Sequence[Operation], *, before: Sequence[Operation] = ()
    ) -> Trace:
        """Perform ``before`` and then the recorded ``operations`` on a new small log, and end it by a kill."""
        wal = open_small(path, seam=BarrierRecorder(), **options)
        for operation in before:
            operation(wal)
        trace = cls.start(wal)
        for operation in operations:
            operation(wal)
            trace.mark(wal)
        kill(wal)
        return trace

    def allowed(self, steps: int) -> set[State]:
        """The states that a crash after so many steps may leave."""
        done = max(index for index, mark in enumerate(self.marks) if mark[0] <= steps)
        durable = max(index for index, mark in enumerate(self.marks[: done + 1]) if mark[2])
        allowed = {self.marks[durable][1]}
        for index in range(durable, min(done + 1, len(self.marks) - 1)):
            allowed |= between(self.marks[index][1], self.marks[index + 1][1])
        return allowed

    def crashes(self, unit: int) -> Iterator[tuple[int, Disk]]:
        """The medium after each step."""
        disk = Disk(self.base, unit)
        yield 0, disk
        for steps, event in enumerate(self.events, 1):
            disk.take(event)
            yield steps, disk


class Reopener:
    """Opens images; equal ones once."""

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self.path = path
        self.options = options
        self._known: dict[bytes, State] = {}

    def __call__(self, image: bytes) -> State:
        """The state that recovery makes of this image. It must open, and what it drops stays dropped."""
        volatile = image[:LIVE_OFFSET] + image[LIVE_OFFSET + PAGE :]
        if volatile not in self._known:
            self.path.write_bytes(image)
            wal = open_small(self.path, "r+", **self.options)
            state = state_of(wal)
            kill(wal)
            self._known[volatile] = state
        return self._known[volatile]


def sweep(trace: Trace, path: Path, options: dict[str, Any], *, seed: int, extra: int = 2) -> int:
    """Open every crash image of a trace and compare with the model; how many there were."""
    unit = PAGE if options["medium"] == "file" else LINE
    rng = random.Random(seed)
    reopened = Reopener(path, options)
    count = 0
    for steps, disk in trace.crashes(unit):
        allowed = trace.allowed(steps)
        for number, image in enumerate(disk.images(rng, extra)):
            count += 1
            found = reopened(image)
            assert found in allowed, f"seed {seed}, {steps} steps, image {number}: {brief(found)} not in {[*map(brief, allowed)]}"
    return count


def brief(state: State) -> str:
    """A state in a few characters."""
    return f"from {state.first_seq}: " + " ".join(f"{seq}:{len(data)}:{data[:4]!r}" for seq, data in state.records)
