"""What the disk rigs share: a recording of a run on a logged disk, the cuts through it, and the verdict on each state."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pmwal
from crash import needs, preload
from crash.logdisk import SECTOR
from crash.oracle import Found, Model, Violation, notes_in
from crash.program import CONTROLS, Settings
from crash.storage import StorageError, die_with_parent, own_mounts
from crash.writelog import Cut, Disk, Entry, parse, sample, survivors
from pmwal.choice import ENGINES

PROGRAM = Path(__file__).with_name("program.py")
ORDERINGS = ("pipelined", "strict")
NOTES_MAX = 4096
STATES_EACH_MIN = 50  # a recording takes longer than that many states
PATIENCE = 60.0
"""Seconds after which a life of the program is taken for hanging."""
SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Plan:
    """What one recording is of; with the same plan the program makes the same calls."""

    rig: str
    seed: int
    engine: str
    ordering: str
    control: str | None
    states: int
    filesystem: str = ""
    size: int = 1 << 16
    lives: int = 3
    operations: int = 40

    def __str__(self) -> str:
        control = f"control {self.control}" if self.control else ""
        return ", ".join(filter(None, (self.filesystem, self.engine, self.ordering, f"seed {self.seed}", control)))


@dataclass
class Recording:
    """A disk before a run, and the log of the run, in a directory; the notes lie behind the first ``limit`` bytes."""

    plan: Plan
    directory: Path
    limit: int
    unit: int = SECTOR  # what the disk writes wholly or not at all

    @property
    def initial(self) -> Path:
        """The disk before the run."""
        return self.directory / "initial.img"

    @property
    def log(self) -> Path:
        """The log of its writes."""
        return self.directory / "writes.log"

    @property
    def state(self) -> Path:
        """The state that is looked at."""
        return self.directory / "state.img"

    def save(self, directory: Path, cut: Cut) -> None:
        """Keep it with the cut at which something is wrong."""
        directory.mkdir(parents=True)
        for path in (self.initial, self.log, self.state):
            subprocess.run(["cp", "--sparse=always", path, directory], check=True)
        facts = {"plan": asdict(self.plan), "limit": self.limit, "unit": self.unit, "cut": cut._asdict()}
        (directory / "recording.json").write_text(json.dumps(facts, indent=1) + "\n")


@dataclass
class Totals:
    """What was looked at."""

    states: int = 0
    commits: int = 0
    entries: int = 0
    seconds_recording: float = 0.0
    seconds_checking: float = 0.0
    images: set[tuple[Any, ...]] = field(default_factory=set)


Examine = Callable[[Recording], Found]
Record = Callable[[Plan, Path], Recording]


class Broken(Exception):
    """A state that pmwal's promises rule out."""

    def __init__(self, recording: Recording, cut: Cut, problem: str) -> None:
        super().__init__(problem)
        self.recording = recording
        self.cut = cut


@dataclass(frozen=True)
class Rig:
    """One rig: what it needs, how it records, and how it opens the log in a state (a context, as long as it does that)."""

    name: str
    description: str
    needs: tuple[str, ...]
    filesystems: tuple[str, ...]
    states_each: int  # for one recording, at most
    record: Record
    examiner: Callable[[Recording], contextlib.AbstractContextManager[Examine]]




def run_program(plan: Plan, directory: Path, log: str, notes: Path, notes_at: int, *, repairs: bool = False) -> None:
    """All lives of the program under test, one process each."""
    environment = {**os.environ, "PMWAL_ENGINE": plan.engine}
    if plan.control in ("no-sync", "sync-file-range"):
        environment["LD_PRELOAD"] = str(preload.build(plan.control, directory))
    first_note = 0
    for life in range(plan.lives):
        last = life == plan.lives - 1
        settings = Settings(
            path=log,
            notes=str(notes),
            notes_at=notes_at,
            first_note=first_note,
            seed=plan.seed,
            life=life,
            last_life=last,
            operations=plan.operations,
            ordering=plan.ordering,
            size=plan.size,
            repairs=repairs,
            acknowledges_early=plan.control == "early-ack",
        )
        command = [sys.executable, str(PROGRAM), settings.dump()]
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            preexec_fn=die_with_parent,
        )
        if done.returncode != (0 if last else -signal.SIGKILL):
            raise StorageError(f"life {life} of the program ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        first_note = int(done.stdout)


def look(path: Path) -> Found:
    """Open a log for writing, as after a crash, and read it whole."""
    if not path.exists():
        return Found(1, [], missing=True)
    try:
        with pmwal.open(path, "r+", medium="file") as wal:
            return Found(wal.first_seq, [record.data for record in wal])
    except pmwal.PmwalError as error:
        return Found(1, [], corrupt=f"{type(error).__name__}: {error}")


def check(rig: Rig, recording: Recording, entries: list[Entry], cuts: list[Cut], totals: Totals) -> None:
    """Make each state and judge it; ``Broken`` at the first that cannot be."""
    os.environ["PMWAL_ENGINE"] = recording.plan.engine  # it recovers with the engine that wrote
    model = Model(recording.plan.seed, notes_in(entries, recording.limit))
    disk = Disk(recording.initial, recording.directory / "durable.img", recording.limit)
    state = os.open(recording.state, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.truncate(state, os.path.getsize(recording.initial))
    try:
        with rig.examiner(recording) as examine:
            for cut in cuts:
                disk.advance(entries, cut.durable)
                pieces = list(survivors(entries, cut, recording.limit, recording.unit))
                digest = disk.state(pieces, state)
                try:
                    model.advance(cut.time)
                    problem = model.problem(examine(recording))
                except Violation as error:
                    problem = str(error)
                if problem is not None:
                    disk.state(pieces, state)  # without what the look at it changed
                    raise Broken(recording, cut, problem)
                totals.states += 1
                totals.images.add((recording.plan, digest))
        model.advance(len(entries))
        totals.commits += model.acknowledged
    finally:
        os.close(state)
        disk.close()


def explore(rig: Rig, plan: Plan, directory: Path, totals: Totals) -> None:
    """Record one run and look at its states."""
    begin = time.monotonic()
    recording = rig.record(plan, directory)
    entries = parse(recording.log)
    recorded = time.monotonic()
    cuts = sample(entries, recording.limit, Random(plan.seed), plan.states)
    check(rig, recording, entries, cuts, totals)
    totals.entries += len(entries)
    totals.seconds_recording += recorded - begin
    totals.seconds_checking += time.monotonic() - recorded


def again(plan: Plan) -> str:
    """The command that makes the same calls and takes cuts by the same seed."""
    command = f"python tools/crash/{plan.rig}.py --states {plan.states} --seed {plan.seed}"
    command += f" --engine {plan.engine} --ordering {plan.ordering}"
    command += f" --filesystem {plan.filesystem}" if plan.filesystem else ""
    return command + (f" --control {plan.control}" if plan.control else "")


def replay(rig: Rig, kept: Path, work: Path) -> None:
    """Judge the state of a kept recording once more."""
    facts = json.loads((kept / "recording.json").read_text())
    for name in ("initial.img", "writes.log"):
        subprocess.run(["cp", "--sparse=always", kept / name, work], check=True)
    recording = Recording(Plan(**facts["plan"]), work, facts["limit"], facts["unit"])
    check(rig, recording, parse(recording.log), [Cut(*facts["cut"].values())], Totals())


def plans(rig: Rig, options: argparse.Namespace) -> Iterator[Plan]:
    """Recordings until there are as many states as wanted, over all engines, orderings and file systems in turn."""
    choices = (options.filesystem or rig.filesystems, options.engine or ENGINES, options.ordering or ORDERINGS)
    # Those with an even sum of indices first: among them is each pair of choices, so that a short run has them all.
    places = sorted(itertools.product(*(range(len(choice)) for choice in choices)), key=lambda place: sum(place) % 2)
    kinds = [tuple(choice[index] for choice, index in zip(choices, place, strict=True)) for place in places]
    left = options.states
    each = max(STATES_EACH_MIN, min(rig.states_each, -(-left // len(kinds))))
    for number in itertools.count():
        if left <= 0:
            return
        filesystem, engine, ordering = kinds[number % len(kinds)]
        seed = options.seed + number // len(kinds)
        yield Plan(rig.name, seed, engine, ordering, options.control, min(each, left), filesystem)
        left -= each


def parse_options(rig: Rig, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=rig.description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=200, help="how many states to look at (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: both in turn")
    parser.add_argument("--ordering", action="append", choices=ORDERINGS, help="default: both in turn")
    if rig.filesystems != ("",):
        parser.add_argument("--filesystem", action="append", choices=rig.filesystems, help="default: all in turn")
    parser.add_argument("--control", choices=CONTROLS, help="run with this mistake: it must be noticed (exit status 1)")
    parser.add_argument("--keep", type=Path, help=f"a new directory for what is wrong (default: {rig.name}-violation-SEED)")
    parser.add_argument("--replay", type=Path, metavar="DIR", help="judge what was kept there once more, and nothing else")
    options = parser.parse_args(arguments)
    options.filesystem = getattr(options, "filesystem", None)
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(3), "big")
    return options


def main(rig: Rig, arguments: Sequence[str] | None = None) -> int:
    """Record, look, say what was found."""
    options = parse_options(rig, arguments)
    wanting = needs.missing(*rig.needs)
    if wanting:
        print(f"{rig.name} needs " + "; ".join(wanting), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that blocks end as they do on Ctrl-C
    own_mounts()
    totals = Totals()
    try:
        with tempfile.TemporaryDirectory(prefix=f"pmwal-{rig.name}-{os.getpid()}-", dir=SHM if SHM.is_dir() else None) as work:
            if options.replay is not None:
                replay(rig, options.replay, Path(work))
                print(f"{options.replay}: nothing wrong")
                return 0
            for number, plan in enumerate(plans(rig, options)):
                directory = Path(work, str(number))
                directory.mkdir()
                try:
                    explore(rig, plan, directory, totals)
                except Broken as broken:
                    return report(broken, options.keep or Path(f"{rig.name}-violation-{plan.seed}"))
                shutil.rmtree(directory)
    except Broken as broken:
        print(f"{broken.recording.plan}: {broken.cut}: {broken}", file=sys.stderr)
        return 1
    except (StorageError, OSError) as error:
        print(f"{rig.name}: {error}", file=sys.stderr)
        return 2
    print(
        f"{rig.name}, seed {options.seed}: {totals.states} states, {len(totals.images)} distinct, {totals.commits} commits, "
        f"{totals.entries} log entries, {totals.seconds_recording:.1f} s recording, {totals.seconds_checking:.1f} s checking"
    )
    return 0


def report(broken: Broken, keep: Path) -> int:
    """Keep what is wrong and say how to see it again; the exit status."""
    plan = broken.recording.plan
    print(f"{plan}: {broken.cut}: {broken}", file=sys.stderr)
    print(f"again with: {again(plan)}", file=sys.stderr)
    try:
        broken.recording.save(keep, broken.cut)
    except FileExistsError:
        print(f"not kept: {keep} is there already", file=sys.stderr)
    else:
        print(f"kept in {keep}; again with: python tools/crash/{plan.rig}.py --replay {keep}", file=sys.stderr)
    return 1
