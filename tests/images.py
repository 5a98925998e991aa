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
from typing import Any

from pmwal.format.layout import LIVE_OFFSET, PAGE
from pmwal.testing import PowerCutModel
from pmwal.testing._simulator.model import Expectation, Found
from pmwal.testing.images import build, sampled
from pmwal.writing.wal import Wal
from support import BarrierRecorder, Step, contents, kill, open_small, overwrite

Operation = Callable[[Wal], object]


def state_of(wal: Wal) -> Found:
    """The state that a handle shows; its numbers follow one another."""
    items = tuple(contents(wal))
    assert list(range(wal.first_seq, wal.next_seq)) == [seq for seq, _ in items]
    return Found(wal.first_seq, items)


def between(old: Found, new: Found) -> frozenset[Found]:
    """What a crash inside one operation may leave: either bound at either end, nothing else."""
    freed = tuple(item for item in old.items if item[0] < new.first_seq)
    contents = frozenset({old.items, freed + new.items})
    return Expectation(contents, (), old.first_seq, max(old.first_seq, new.first_seq), jumps=True).states()


def bury(path: Path) -> None:
    """Take the writer's name off the live page, as if its process were dead: the killed writers of a test are this process."""
    overwrite(path, LIVE_OFFSET, bytes(PAGE))


def unsynced(step: Step, medium: PowerCutModel) -> Step:
    """A step as it is when syncs of the file fail: its pages count as clean, and none is durable."""
    return Step("failed", 0, len(medium.held)) if step.name == "sync" else step


def images(medium: PowerCutModel, rng: random.Random, extra: int, most: int = 6) -> Iterator[bytes]:
    """A few images of a crash now, where each costs an open.

    All that was stored kept, all lost, each unit lost or kept alone (at most ``most`` of them), and ``extra`` random ones.
    """
    yield bytes(medium.cache)
    yield bytes(medium.held)
    newest = medium.newest()
    for unit in rng.sample(sorted(newest), min(most, len(newest))):
        yield build(medium, {other: version for other, version in newest.items() if other != unit}).data
        yield build(medium, {unit: newest[unit]}).data
    for _ in range(extra if newest else 0):
        yield build(medium, sampled(medium, rng, torn=0.5)).data


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
    marks: list[tuple[int, Found, bool]] = field(default_factory=list)  # steps taken, state, whether it is durable

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

    def allowed(self, steps: int) -> frozenset[Found]:
        """The states that a crash after this many steps may leave."""
        done = max(index for index, mark in enumerate(self.marks) if mark[0] <= steps)
        durable = max(index for index, mark in enumerate(self.marks[: done + 1]) if mark[2])
        allowed = frozenset({self.marks[durable][1]})
        for index in range(durable, min(done + 1, len(self.marks) - 1)):
            allowed |= between(self.marks[index][1], self.marks[index + 1][1])
        return allowed

    def crashes(self, kind: str) -> Iterator[tuple[int, PowerCutModel]]:
        """The medium after each step."""
        disk = PowerCutModel(kind, self.base)
        yield 0, disk
        for steps, event in enumerate(self.events, 1):
            disk.take(event)
            yield steps, disk


class Reopener:
    """Opens images; equal ones once."""

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self.path = path
        self.options = options
        self._known: dict[bytes, Found] = {}

    def __call__(self, image: bytes) -> Found:
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
    kind = "page" if options["medium"] == "file" else "pmem"
    rng = random.Random(seed)
    reopened = Reopener(path, options)
    count = 0
    for steps, disk in trace.crashes(kind):
        allowed = trace.allowed(steps)
        for number, image in enumerate(images(disk, rng, extra)):
            count += 1
            found = reopened(image)
            assert found in allowed, f"seed {seed}, {steps} steps, image {number}: {brief(found)} not in {[*map(brief, allowed)]}"
    return count


def brief(state: Found) -> str:
    """A state in a few characters."""
    return f"from {state.first_seq}: " + " ".join(f"{seq}:{len(data)}:{data[:4]!r}" for seq, data in state.items)
