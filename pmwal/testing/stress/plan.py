"""The plan of a run: one log after another, and several lives of a writer for each, all drawn from the seed.

The seed determines geometries, policies, calls, sizes, payloads and the lengths of lives. It does not determine how the kernel
schedules threads, so two runs of a seed differ in what a kill interrupts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pmwal.opening.options import Commit, FullPolicy, Ordering
from pmwal.storage.medium import MediumName
from pmwal.testing.stress.payloads import longest

CAPACITIES = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
ALIGNMENTS = (None, None, None, 8, 64, 256)
ORDERINGS: tuple[Ordering, ...] = ("auto", "strict", "pipelined")
COMMITS: tuple[Commit, ...] = ("each", "each", "manual")
FULL_POLICIES: tuple[FullPolicy, ...] = ("raise", "wait", "overwrite")
LIVES_MAX = 12  # of one log
CLEAN_SHARE = 0.1  # of lives that end with a close
EARLY_SHARE = 0.2  # of kills that should hit the open
EARLY_SECONDS = 0.02
LATE_SECONDS = (0.1, 1.3)
SPACES = {"plenty": 0.85, "file size limit": 0.1, "full disk": 0.05}
"""What a writer meets when it needs more of the disk, and how often. A limit (RLIMIT_FSIZE) refuses as a full disk does and harms
nobody; the disk is filled only on request."""


@dataclass(frozen=True)
class Settings:
    """The settings from the command line."""

    seed: int
    seconds: float
    media: tuple[MediumName, ...]
    engines: tuple[str, ...]
    threads_max: int
    readers: int
    cpu_load: int
    io_load: int
    control: str | None = None
    isolated: bool = False  # the readers
    fill_disk: bool = False


@dataclass(frozen=True)
class LogPlan:
    """A log."""

    number: int
    path: Path
    capacity: int
    alignment: int | None

    @property
    def class_max(self) -> int:
        """The largest size class, at most a sixteenth of the ring, so that eight such records always fit."""
        return max(size_class for size_class in range(16) if longest(size_class) < self.capacity // 16)


@dataclass(frozen=True)
class LifePlan:
    """One life of a writer, from its open to its end."""

    number: int
    log: LogPlan
    engine: str
    medium: MediumName
    ordering: Ordering
    commit: Commit
    on_full: FullPolicy
    threads: int
    seconds: float  # from its start until it is killed or closes
    clean: bool  # it ends with a close, not with a kill
    recover_here: bool  # the supervisor recovers the log afterwards, not the next writer
    seed: str
    control: str | None
    readable: bool  # by other users
    space: str  # one of ``SPACES``

    def __str__(self) -> str:
        return (
            f"life {self.number} of {self.log.path.name} ({self.log.capacity >> 10} KiB): {self.engine}, {self.medium}, "
            f"{self.ordering}, commit={self.commit}, on_full={self.on_full}, "
            f"{self.threads} {'thread' if self.threads == 1 else 'threads'}" + ("" if self.space == "plenty" else f", {self.space}")
        )


def _space(rng: random.Random, settings: Settings) -> str:
    """What a life meets; the draw is the same whether the disk may be filled or not."""
    drawn = rng.choices(list(SPACES), list(SPACES.values()))[0]
    return "plenty" if drawn == "full disk" and not settings.fill_disk else drawn


def log_path(directory: Path, number: int) -> Path:
    """The path of the log with this number."""
    return directory / f"log-{number}.wal"


def lives(settings: Settings, directory: Path) -> Iterator[LifePlan]:
    """All lives, endlessly."""
    rng = random.Random(f"plan {settings.seed}")
    number = log_number = 0
    while True:
        log_number += 1
        log = LogPlan(log_number, log_path(directory, log_number), rng.choice(CAPACITIES), rng.choice(ALIGNMENTS))
        for _ in range(rng.randint(3, LIVES_MAX)):
            number += 1
            early = rng.random() < EARLY_SHARE
            yield LifePlan(
                number=number,
                log=log,
                engine=rng.choice(settings.engines),
                medium=rng.choice(settings.media),
                ordering=rng.choice(ORDERINGS),
                commit=rng.choice(COMMITS),
                on_full=rng.choice(FULL_POLICIES),
                threads=rng.randint(1, settings.threads_max),
                seconds=rng.uniform(0, EARLY_SECONDS) if early else rng.uniform(*LATE_SECONDS),
                clean=rng.random() < CLEAN_SHARE,
                recover_here=rng.random() < 0.5,
                seed=f"life {settings.seed} {number}",
                control=settings.control,
                readable=settings.isolated,
                space=_space(rng, settings),
            )
