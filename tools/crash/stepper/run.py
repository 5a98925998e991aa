"""One run: step the program, model the memory, and judge every state that a crash may leave."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from crash.stepper.judge import Judge, Verdict, remembered_slots
from crash.stepper.lines import Memory, State
from crash.stepper.plan import Call, History, calls, filling
from crash.stepper.trace import HERE, Lost, TraceEvent, What, environment, traced
from pmwal.format.layout import CONTROL_OFFSET, LINE, LIVE_OFFSET, PAGE
from pmwal.storage.medium import MediumName
from pmwal.testing.stress.violation import Violation

MEDIUM: MediumName = "emulated-dax"
OPEN_EVERY = 100  # one state in this many is also opened
_LINES_TOLD = 6


@dataclass
class Counts:
    """The figures of a run."""

    calls: Counter[str] = field(default_factory=Counter)
    instructions: int = 0
    events: dict[What, int] = field(default_factory=lambda: dict.fromkeys(What, 0))
    streamed: int = 0  # bytes
    states: int = 0
    distinct: int = 0
    opened: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        """As it is printed."""
        stores = self.events[What.STORED] + self.events[What.STREAMED]
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.calls.items()))
        return (
            f"{self.calls.total()} calls ({kinds}), "
            f"{self.instructions} instructions, {stores} stores ({self.streamed} bytes streamed), "
            f"{self.events[What.WRITTEN_BACK]} write-backs, {self.events[What.FENCED]} fences; "
            f"{self.states} states, {self.distinct} distinct, {self.opened} of them opened; "
            f"{self.seconds:.1f} seconds, {self.states / max(self.seconds, 1e-9):.0f} states/s"
        )


class Run:
    """Runs one traced program. ``package`` is the directory from which it imports pmwal."""

    def __init__(self, work: Path, ordering: str, stores: str, seed: int, package: Path) -> None:
        self.counts = Counts()
        self.log = work / "stepped.wal"
        self.base = work / "base.wal"
        self.maps = work / "maps"
        self._scratch = work / "opened.wal"
        self._package = package
        self._ordering = ordering
        self._seed = seed
        self._environment = environment(work, package, stores)
        self._rng = Random(seed)
        self._history = History()
        self._known: dict[int, Verdict] = {}

    def until(self, tracer: Path, distinct: int) -> None:
        """Step until this many distinct states were checked and the call under way returned, or until a ``Violation``."""
        arguments = [str(self.log), str(self.base), str(self.maps), str(self._package), self._ordering, str(self._seed)]
        command = [sys.executable, "-P", str(HERE / "child.py"), *arguments]
        plan = calls(self._seed)
        started = time.perf_counter()
        try:
            with traced(tracer, self.log, command, self._environment) as events, remembered_slots():
                for event in events:
                    self._count(event)
                    if event.what is What.CALL_BEGINS:
                        call = next(plan)
                        self._begin(call)
                    elif event.what is What.CALL_RETURNS:
                        self._history.finish(call)
                        self._check_all(call, event)
                        self.counts.calls["overwrite" if call.frees else call.name] += 1
                        if self.counts.distinct >= distinct:
                            return
                    else:
                        self._step(call, event)
            raise Lost("the traced program ended on its own")
        finally:
            self.counts.seconds = time.perf_counter() - started

    def _count(self, event: TraceEvent) -> None:
        self.counts.events[event.what] += 1
        if event.what is What.STREAMED:
            self.counts.streamed += event.mask.bit_count() // 8
        self.counts.instructions = event.step

    def _begin(self, call: Call) -> None:
        if not self.counts.calls.total():
            image = self.base.read_bytes()
            self._memory = Memory(image, range(LIVE_OFFSET, LIVE_OFFSET + PAGE))
            self._judge = Judge(image, MEDIUM, self._scratch)
            self._history.begin(filling())
            self._history.finish(filling())
        self._history.begin(call)

    def _step(self, call: Call, event: TraceEvent) -> None:
        if event.what is What.FENCED:
            self._check_all(call, event)  # right before a fence the most may be lost
        new = self._memory.take(event)
        if new:
            for state in self._memory.states_with(self._rng, event.offset, new):
                self._check(state, call, event)

    def _check_all(self, call: Call, event: TraceEvent) -> None:
        for state in self._memory.states(self._rng):
            self._check(state, call, event)

    def _check(self, state: State, call: Call, event: TraceEvent) -> None:
        self.counts.states += 1
        key = self._memory.key_of(state)
        verdict = self._known.get(key)
        if verdict is None:
            self.counts.distinct += 1
            image = self._memory.image(state)
            verdict = self._known[key] = self._judge.judged(image)
            if self.counts.distinct % OPEN_EVERY == 0:
                self.counts.opened += 1
                opened = self._judge.opened(image)
                if opened != verdict and not verdict.corrupt:
                    self._violated(f"judged {verdict.case}, opened {opened.case}: {opened.reason}", state, call, event)
        if verdict.corrupt:
            self._violated(f"corrupt ({verdict.case}): {verdict.reason}", state, call, event)
        problem = self._history.problem(verdict.first, verdict.records)
        if problem is not None:
            self._violated(problem, state, call, event)

    def _violated(self, problem: str, state: State, call: Call, event: TraceEvent) -> None:
        lines = self._memory.lines
        lost = [offset for offset, line in lines.items() if state.get(offset, line.base) != line.newest]
        told = [f"{self._offset_text(offset)} ({lines[offset].waits_for})" for offset in lost[:_LINES_TOLD]]
        if len(lost) > len(told):
            told.append(f"{len(lost) - len(told)} more")
        doing = event.what.name.lower().replace("_", " ")
        if event.what in (What.STORED, What.STREAMED, What.WRITTEN_BACK):
            doing += f" {self._offset_text(event.offset)}"
        where = f"call {call.number} ({call}), instruction {event.step} at {self._address_text(event.rip)}: {doing}"
        gone = ", ".join(told) or "nothing"
        raise Violation(f"{problem}\n  in {where}\n  acknowledged: {self._history.acknowledged}; lost in whole or in part: {gone}")

    def _offset_text(self, offset: int) -> str:
        """An offset in the file, for a message."""
        block = self._judge.block
        if offset >= block.ring_offset:
            return f"ring+{offset - block.ring_offset:#x}"
        return f"slot {(offset - CONTROL_OFFSET) // LINE}" if offset >= CONTROL_OFFSET else f"file+{offset:#x}"

    def _address_text(self, rip: int) -> str:
        """An address in the program as file and offset, for ``addr2line -f -e``."""
        for line in self.maps.read_text().splitlines():
            addresses, _, start, *_, name = line.split(maxsplit=5)
            first, last = (int(address, 16) for address in addresses.split("-"))
            if first <= rip < last:
                return f"{name.strip()}+{rip - first + int(start, 16):#x}"
        return f"{rip:#x}"
