"""The writer: one life after another on the device under test; each step is acknowledged to the host after it returned.

A control is a deliberate mistake that the rig must notice. It replaces the seam or the acknowledgement, not code of pmwal.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crash.vm.guest.workload import Life, Step, life, log_name
from pmwal import Wal
from pmwal.opening import open_log
from pmwal.storage import medium
from pmwal.storage.seam import SYSTEM, Seam
from pmwal.testing.process import using_engine

Acknowledge = Callable[[int, int], None]


class NoSync(Seam):
    """A seam whose flushes do nothing."""

    def flush(self, mapping: mmap.mmap, offset: int, length: int) -> None:
        """Leave the pages dirty."""


class NoFileSync(Seam):
    """A seam that never makes a new file and its name durable."""

    def sync_file(self, fd: int) -> None:
        """Leave the file to the kernel."""


def create(path: Path, of: Life, seam: Seam) -> Wal:
    """Create the log of a life."""
    wal = open_log(path, "x", size=of.size, ordering=of.ordering, seam=seam)
    assert isinstance(wal, Wal)
    return wal


def perform(wal: Wal, step: Step) -> None:
    """Make one step on an open log. It is durable on return, except for "store"."""
    match step.call:
        case "append":
            wal.append(step.items[0])
        case "store":
            wal.append(step.items[0], commit=False)
        case "extend":
            wal.extend(step.items)
        case "batch":
            with wal.batch() as batch:
                for item in step.items:
                    batch.append(item)
        case "reserve":
            with wal.reserve(len(step.items[0])) as view:
                view[:] = step.items[0]
        case "commit":
            wal.commit()
        case "truncate":
            wal.truncate(before=step.bound)
        case "rollback":
            wal.rollback(after=step.bound)
        case "close":
            wal.close()
        case unknown:
            raise ValueError(unknown)


def live(directory: Path, seed: int, number: int, acknowledge: Acknowledge, early: bool, seam: Seam) -> None:
    """Live one life. The log of the previous life is removed after the creation of this one.

    ``early`` acknowledges each step before it is made, except the creation, which takes so long that every cut would hit it.
    """
    this = life(seed, number)
    with using_engine(this.engine):
        _live(directory, this, number, acknowledge, early, seam)


def _live(directory: Path, this: Life, number: int, acknowledge: Acknowledge, early: bool, seam: Seam) -> None:
    wal: Wal | None = None
    for done, step in enumerate(this.steps):
        before = early and wal is not None
        if before:
            acknowledge(number, done)
        if wal is None:
            wal = create(directory / this.name, this, seam)
        else:
            perform(wal, step)
        if not before:
            acknowledge(number, done)
        if step.call == "create":
            (directory / log_name(number - 1)).unlink(missing_ok=True)


def write(directory: Path, acknowledge: Acknowledge, settings: dict[str, Any]) -> None:
    """Live endlessly, or ``settings["lives"]`` lives."""
    control, first = settings["control"], settings["first_life"]
    seam: Seam = SYSTEM
    if control == "no-sync":
        seam = NoSync()
    elif control == "no-map-sync":
        medium.MAP_SYNC_OR_FAIL = 0x3  # MAP_SHARED_VALIDATE without MAP_SYNC: every mapping succeeds and counts as DAX
        seam = NoFileSync()
    for number in itertools.count(first) if settings["lives"] is None else range(first, first + settings["lives"]):
        live(directory, settings["seed"], number, acknowledge, control == "early-ack", seam)
