"""What one durable commit of one record costs here, before anything else runs: time, barriers, sectors written, disk flushes.

The kernel counts sectors and flushes for all who use the device, so each figure is the median of short turns.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import pmwal
from pmwal.opening.options import Ordering
from pmwal.storage.medium import MediumName
from pmwal.testing.bench.stats import time_text
from pmwal.testing.machine import Device
from pmwal.testing.stress.wording import counted

ORDERINGS: tuple[Ordering, ...] = ("strict", "pipelined")
PAYLOAD = bytes(128)
TURNS = 15
CALLS = 20  # of a turn
SECONDS_MAX = 1.0  # for one ordering, on a slow disk


class CommitCost(NamedTuple):
    """Medians for one commit; sectors and flushes are None where nothing counts them."""

    medium: MediumName
    ordering: Ordering
    commits: int
    nanoseconds: float
    barriers: float
    sectors: float | None
    flushes: float | None

    @property
    def text(self) -> str:
        """The figures in one line."""
        device = ""
        if self.sectors is not None and self.flushes is not None:
            device = f", {counted(self.sectors, 'sector')} and {counted(self.flushes, 'flush')} of the device"
        return (
            f"a durable append of {len(PAYLOAD)} bytes, {self.medium}, {self.ordering}: {time_text(self.nanoseconds)}, "
            f"{counted(self.barriers, 'barrier')}{device}"
        )


def measure(directory: Path, medium: MediumName, device: Device | None) -> list[CommitCost]:
    """The cost of a commit with each ordering."""
    return [_measure(directory / "cost.wal", medium, ordering, device) for ordering in ORDERINGS]


def _measure(path: Path, medium: MediumName, ordering: Ordering, device: Device | None) -> CommitCost:
    times: list[int] = []
    sectors: list[float] = []
    flushes: list[float] = []
    with pmwal.open(path, "x", size="1MiB", medium=medium, ordering=ordering, on_full="overwrite") as wal:
        assert isinstance(wal, pmwal.Wal)
        wal.append(PAYLOAD)
        first, end = wal.stats(), time.monotonic() + SECONDS_MAX
        while len(times) < TURNS * CALLS and (not times or time.monotonic() < end):
            before = device.written() if device is not None else None
            for _ in range(CALLS):
                start = time.perf_counter_ns()
                wal.append(PAYLOAD)
                times.append(time.perf_counter_ns() - start)
            after = device.written() if device is not None else None
            if before is not None and after is not None:
                sectors.append((after.sectors - before.sectors) / CALLS)
                flushes.append((after.flushes - before.flushes) / CALLS)
        last = wal.stats()
    path.unlink()
    return CommitCost(
        medium,
        ordering,
        len(times),
        statistics.median(times),
        round((last.barriers - first.barriers) / len(times), 2),
        statistics.median(sectors) if sectors else None,
        statistics.median(flushes) if flushes else None,
    )
