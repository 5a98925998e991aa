"""A run of the program under test on a disk that logs its writes: several lives, and a power cut between two of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from crash.disk import preload
from crash.disk.logdisk import SECTOR, logged
from crash.disk.program import Settings
from crash.disk.writelog import Cut, Entry, copy_file, cut_off, parse, sample, save
from crash.process import die_with_parent
from crash.storage import StorageError
from pmwal.opening.options import Ordering

PROGRAM = Path(__file__).with_name("program.py")
NOTES_MAX = 4096
PATIENCE = 600.0
"""Seconds after which a life of the program counts as hanging."""


@dataclass(frozen=True)
class Plan:
    """What one recording is of. The same plan makes the same calls, except for the order of threads."""

    rig: str
    seed: int
    engine: str
    ordering: Ordering
    control: str | None
    states: int
    size: int  # of the ring
    control_size: int  # of the control region
    filesystem: str = ""
    lives: int = 3
    operations: int = 60  # of each life

    def __str__(self) -> str:
        control = f"control {self.control}" if self.control else ""
        ring = f"ring {self.size >> 10} KiB, slots {self.control_size >> 10} KiB"
        return ", ".join(filter(None, (self.filesystem, self.engine, self.ordering, ring, f"seed {self.seed}", control)))


@dataclass
class Recording:
    """A directory with a disk as it was before a run and the log of the run. The notes follow the first ``limit`` bytes."""

    plan: Plan
    directory: Path
    limit: int
    unit: int = SECTOR  # bytes that the disk writes atomically

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
        """The state under examination."""
        return self.directory / "state.img"

    def keep(self, directory: Path, cut: Cut) -> None:
        """Copy it, with the cut whose state is wrong, to a new directory."""
        directory.mkdir(parents=True)
        for path in (self.initial, self.log, self.state):
            subprocess.run(["cp", "--sparse=always", path, directory], check=True)
        facts = {"plan": asdict(self.plan), "limit": self.limit, "unit": self.unit, "cut": cut._asdict()}
        (directory / "recording.json").write_text(json.dumps(facts, indent=1) + "\n")


Attach = Callable[[Recording, Path], contextlib.AbstractContextManager[Path]]
"""A context that makes the log on a disk accessible and yields its path."""


@dataclass(frozen=True)
class Run:
    """A finished recording."""

    recording: Recording
    entries: list[Entry]
    cuts: list[Cut]  # from whose states the program itself continued
    failure: StorageError | None  # why the program could not continue


def record(recording: Recording, attach: Attach, *, repairs: bool) -> Run:
    """Run all lives of the program.

    A life that is killed leaves the page cache to the next one. Between two of them the power is cut: the next life starts from one
    of the states that this can leave, and its recovery is logged too. A control has no such cut, because the program might not
    survive what the control broke.
    """
    plan, directory, limit = recording.plan, recording.directory, recording.limit
    random = Random(f"{plan.seed}/power")
    lives = list(range(plan.lives))
    split = 0 if plan.control else random.randrange(1, plan.lives)
    disk, image, log = directory / "disk", directory / "disk.img", directory / "part.log"
    environment = _environment(plan, directory)
    entries: list[Entry] = []
    cuts: list[Cut] = []
    failure = None
    for part in filter(None, (lives[:split], lives[split:])):
        if entries:
            cut = random.choice(sample(entries, limit, random, 20)[10:])  # a late one, which has more to lose
            entries = cut_off(entries, cut, limit, recording.unit)
            cuts.append(Cut(len(entries), len(entries), "flushed", 0))
            image.unlink()
            log.unlink()
        _make_image(recording, entries, image)
        notes = sum(entry.offset >= limit for entry in entries)
        with logged(image, log, disk), attach(recording, disk) as path:
            for life in part:
                settings = Settings(
                    path=str(path),
                    notes=str(disk),
                    notes_at=limit,
                    first_note=notes,
                    seed=plan.seed,
                    life=life,
                    last_life=life == plan.lives - 1,
                    operations=plan.operations,
                    ordering=plan.ordering,
                    size=plan.size,
                    control_size=plan.control_size,
                    repairs=repairs,
                    acknowledges_early=plan.control == "early-ack",
                )
                try:
                    notes = _live(settings, environment)
                except StorageError as error:
                    failure = error
                    break
        entries += parse(log)
        if failure:
            break
    save(entries, recording.log)
    return Run(recording, entries, cuts, failure)


def _environment(plan: Plan, directory: Path) -> dict[str, str]:
    environment = {**os.environ, "PMWAL_ENGINE": plan.engine}
    if plan.control in ("no-sync", "sync-file-range"):
        environment["LD_PRELOAD"] = str(preload.build(plan.control, directory))
    return environment


def _make_image(recording: Recording, entries: list[Entry], image: Path) -> None:
    """The disk after these entries."""
    copy_file(recording.initial, image)
    with image.open("r+b", buffering=0) as file:
        for entry in entries:
            os.pwrite(file.fileno(), entry.data, entry.offset)


def _live(settings: Settings, environment: dict[str, str]) -> int:
    """Run one life in a process of its own; the number of notes after it."""
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
    if done.returncode != (0 if settings.last_life else -signal.SIGKILL):
        said = f"{done.stdout}{done.stderr}"
        raise StorageError(f"life {settings.life} of the program ended with {done.returncode}:\n{said}")
    return int(done.stdout)
