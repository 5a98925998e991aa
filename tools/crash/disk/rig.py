"""The disk rigs: record a run on a logged disk, build the states that power cuts during it can leave, and judge each."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pmwal
from crash.disk.oracle import Found, Model, critical_spans, notes_in
from crash.disk.recording import Attach, Plan, Recording, Run, record
from crash.disk.writelog import Cut, Disk, Entry, parse, sample, survivors
from pmwal.native.choice import ENGINES
from pmwal.testing.process import using_engine
from pmwal.testing.stress.violation import Violation

TWICE_EVERY = 4
"""One state in this many is recovered by both engines, which takes longer than all other checks."""
KNOWN_MAX = 16


@dataclass
class Totals:
    """What was judged."""

    states: int = 0
    distinct: int = 0
    stages: Counter[str] = field(default_factory=Counter)  # of the states
    facts: Counter[str] = field(default_factory=Counter)  # of the recordings

    def add(self, other: Totals) -> None:
        """Add those of another recording."""
        self.states += other.states
        self.distinct += other.distinct
        self.stages.update(other.stages)
        self.facts.update(other.facts)


Examine = Callable[[Recording, bool], Found]
"""Opens the log in the current state; if the flag is set, again after a crash of the process that opened it."""


class Broken(Exception):
    """A recording with a state that pmwal's promises rule out."""

    def __init__(self, recording: Recording, cut: Cut, problem: str) -> None:
        super().__init__(problem)
        self.recording = recording
        self.cut = cut


@dataclass(frozen=True)
class Rig:
    """One rig: what it needs, how it prepares a disk, how the program reaches the log, and how a state is opened."""

    name: str
    description: str
    needs: tuple[str, ...]
    filesystems: tuple[str, ...]
    states_each: int  # at most, of one recording
    begin: Callable[[Plan, Path], Recording]
    attach: Attach
    creates: bool  # the program creates the log
    repairs: bool  # the program damages the log and repairs it
    examiner: Callable[[Recording], contextlib.AbstractContextManager[Examine]]  # the context lasts while states are examined


def look(path: Path, engine: str, twice: bool) -> Found:
    """Open a log for writing, as after a crash, and read all of it.

    ``twice``: that process crashes as well, and the other engine recovers the log again and must find the same.
    """
    if not path.exists():
        return Found(1, [], missing=True)
    found = _recover(path, engine)
    if not twice:
        return found
    other = ENGINES[1 - ENGINES.index(engine)]
    again = _recover(path, other)
    if again != found:
        raise Violation(f"{engine} recovers {found.summary}, and after it {other} recovers {again.summary}")
    return found


def _recover(path: Path, engine: str) -> Found:
    """What an open for writing finds. The handle is dropped without a close, like that of a crashed process."""
    try:
        with using_engine(engine):
            wal = pmwal.open(path, "r+", medium="file")
            found = Found(wal.first_seq, [record.data for record in wal])
    except pmwal.PmwalError as error:
        return Found(1, [], corrupt=f"{type(error).__name__}: {error}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del wal
    return found


def check(rig: Rig, recording: Recording, entries: Sequence[Entry], cuts: Sequence[Cut]) -> Totals:
    """Build each state and judge it; ``Broken`` at the first wrong one.

    Two cuts may leave the same bytes. Those are opened once; their records are compared with what each cut had acknowledged.
    """
    totals, digests = Totals(), set()
    known: dict[int, Found] = {}  # by digest; only the latest are kept
    model = Model(recording.plan.seed, notes_in(entries, recording.limit), exists=not rig.creates)
    disk = Disk(recording.initial, recording.directory / "durable.img", recording.limit)
    state = os.open(recording.state, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.truncate(state, os.path.getsize(recording.initial))
    try:
        with rig.examiner(recording) as examine:
            for cut in cuts:
                disk.advance(entries, cut.durable)
                pieces = list(survivors(entries, cut, recording.limit, recording.unit))
                digest = disk.digest(pieces)
                try:
                    model.advance(cut.time)
                    if digest not in known:
                        disk.make(pieces, state)
                        twice = cut.seed % TWICE_EVERY == 0
                        known[digest] = examine(recording, twice)
                        totals.facts["opened"] += 1
                        totals.facts["recovered twice"] += twice
                    problem = model.problem(known[digest])
                except Violation as error:
                    problem = str(error)
                if problem is not None:
                    disk.make(pieces, state)  # without what the examination changed
                    raise Broken(recording, cut, problem)
                if len(known) > KNOWN_MAX:
                    del known[next(iter(known))]
                digests.add(digest)
                totals.states += 1
                totals.stages[model.stage] += 1
        model.advance(len(entries))
    finally:
        os.close(state)
        disk.close()
    totals.distinct = len(digests)
    totals.facts["commits"] += model.acknowledged
    totals.facts["calls that stored by write(2)"] += model.writes
    totals.facts["of them in pieces"] += model.writes_in_pieces
    if recording.plan.ordering == "pipelined":
        totals.facts["slots after 1 MiB"] += model.slots
    return totals


def explore(rig: Rig, plan: Plan, directory: Path) -> Totals:
    """Record one run and judge its states."""
    begin = time.monotonic()
    run = record(rig.begin(plan, directory), rig.attach, repairs=rig.repairs)
    recorded = time.monotonic()
    totals = check(rig, run.recording, run.entries, _cuts(run))
    if run.failure is not None:  # and no state explains it
        raise run.failure
    totals.facts["power cuts recovered on the logged disk"] += len(run.cuts)
    totals.facts["log entries"] += len(run.entries)
    totals.facts["ms recording"] += round((recorded - begin) * 1000)
    totals.facts["ms checking"] += round((time.monotonic() - recorded) * 1000)
    return totals


def _cuts(run: Run) -> list[Cut]:
    """A sample of cuts, many of them in recoveries and repairs, and the cuts from which the program continued."""
    plan, limit = run.recording.plan, run.recording.limit
    spans = critical_spans(notes_in(run.entries, limit))
    count = max(plan.states - len(run.cuts), 0)
    sampled = sample(run.entries, limit, Random(plan.seed), count, spans)
    return sorted([*sampled, *run.cuts], key=lambda cut: (cut.durable, cut.time))


def replay(rig: Rig, kept: Path, work: Path) -> None:
    """Judge the state of a kept recording again."""
    facts = json.loads((kept / "recording.json").read_text())
    for name in ("initial.img", "writes.log"):
        subprocess.run(["cp", "--sparse=always", kept / name, work], check=True)
    recording = Recording(Plan(**facts["plan"]), work, facts["limit"], facts["unit"])
    check(rig, recording, parse(recording.log), [Cut(*facts["cut"].values())])
