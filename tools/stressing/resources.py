"""What the processes use, sampled with psutil, and the rule by which growth is a leak.

Memory is what belongs to a process alone: resident without what it shares, so that pages of a mapped log do not count.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from violation import Violation

WARM_UP = 0.25  # of the time of a process, that is not judged
SAMPLES_MIN = 8
GROWTH_MAX = {"memory": 8 << 20, "descriptors": 4, "threads": 2}
"""By how much a straight line through the samples after the warm-up may surely rise from its start to its end. Memory in bytes."""
STANDARD_ERRORS = 3  # by which the slope is taken lower than it looks: what goes up and down at each open and close is no leak


class Sample(NamedTuple):
    """One look at a process. Times in seconds, sizes in bytes; processor time and I/O since it started."""

    process: int
    seconds: float
    memory: float
    descriptors: float
    threads: float
    cpu_seconds: float
    read_bytes: float
    written_bytes: float


@dataclass
class Watch:
    """Samples by name of the process. A name may stand for one process after another; then it is not judged."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    _processes: dict[str, Any] = field(default_factory=dict)

    def follow(self, name: str, pid: int) -> None:
        """From now on this process has the name."""
        self._processes[name] = importlib.import_module("psutil").Process(pid)
        self.samples.setdefault(name, [])

    def take(self, seconds: float) -> None:
        """Look at all of them. One that has just ended is left out."""
        gone = importlib.import_module("psutil").Error
        for name, process in self._processes.items():
            try:
                with process.oneshot():
                    memory, times = process.memory_info(), process.cpu_times()
                    moved = process.io_counters()
                    self.samples[name].append(
                        Sample(
                            process.pid,
                            seconds,
                            memory.rss - memory.shared,
                            process.num_fds(),
                            process.num_threads(),
                            times.user + times.system,
                            moved.read_bytes,
                            moved.write_bytes,
                        )
                    )
            except gone:
                continue


def growth(samples: list[Sample], what: str) -> float | None:
    """By how much the line of least squares surely rises over the samples after the warm-up; None when they are too few to judge.

    Few samples of something that goes up and down can lie on a rising line by chance, so the slope counts less
    `STANDARD_ERRORS` of it. A leak is one part of a cycle after the other, and does not hide in there.
    """
    if len(samples) < 2:
        return None
    start, end = samples[0].seconds, samples[-1].seconds
    judged = [sample for sample in samples if sample.seconds >= start + WARM_UP * (end - start)]
    if len(judged) < SAMPLES_MIN:
        return None
    times = np.array([sample.seconds for sample in judged])
    values = np.array([getattr(sample, what) for sample in judged])
    line, covariance = np.polyfit(times, values, 1, cov=True)
    slope = line[0] - STANDARD_ERRORS * np.sqrt(covariance[0, 0])
    return max(0.0, float(slope * (times[-1] - times[0])))


def growths(watch: Watch, judged: dict[str, tuple[str, ...]]) -> dict[str, dict[str, float | None]]:
    """Growth of what is judged of each process."""
    return {name: {what: growth(watch.samples.get(name, []), what) for what in whats} for name, whats in judged.items()}


def check(found: dict[str, dict[str, float | None]]) -> None:
    """``Violation`` for the first leak."""
    for name, values in found.items():
        for what, rise in values.items():
            if rise is not None and rise > GROWTH_MAX[what]:
                message = f"{name}: {what} grew by {rise:.0f} over the run; {GROWTH_MAX[what]} is tolerated"
                raise Violation(message, f"leak-of-{what}")
