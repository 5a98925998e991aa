"""Resources of the processes, sampled with psutil, and the rule by which growth is a leak.

Memory is resident memory without shared pages, so that pages of a mapped log do not count.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pmwal.testing.stress.violation import Violation

WARM_UP = 0.25  # share of a process's time that is not judged
SAMPLES_MIN = 8
GROWTH_MAX = {"memory": 8 << 20, "descriptors": 4, "threads": 2}
"""Tolerated growth: the rise of a regression line through the samples after the warm-up, less its uncertainty. Memory in bytes."""
STANDARD_ERRORS = 3  # subtracted from the slope: a value that goes up and down with each open and close is no leak


class Sample(NamedTuple):
    """A sample of a process. Times in seconds, sizes in bytes; processor time and I/O since its start."""

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
    """Samples by process name. A name that successive processes share is not judged."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    _processes: dict[str, Any] = field(default_factory=dict)

    def follow(self, name: str, pid: int) -> None:
        """Sample this process under the name from now on."""
        self._processes[name] = importlib.import_module("psutil").Process(pid)
        self.samples.setdefault(name, [])

    def take(self, seconds: float) -> None:
        """Sample all processes, except those that have just ended."""
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
    """The rise of the regression line over the samples after the warm-up; None if they are too few to judge.

    Few samples of a value that goes up and down can be on a rising line by chance, so ``STANDARD_ERRORS`` standard errors are
    subtracted from the slope. A leak adds to every cycle, so this does not hide it.
    """
    if len(samples) < 2:
        return None
    start, end = samples[0].seconds, samples[-1].seconds
    judged = [sample for sample in samples if sample.seconds >= start + WARM_UP * (end - start)]
    if len(judged) < SAMPLES_MIN:
        return None
    return rise([sample.seconds for sample in judged], [getattr(sample, what) for sample in judged])


def rise(times: Sequence[float], values: Sequence[float]) -> float:
    """The rise of the regression line through these values, less its uncertainty; 0 if they may as well not rise."""
    line, covariance = np.polyfit(times, values, 1, cov=True)
    slope = line[0] - STANDARD_ERRORS * np.sqrt(covariance[0, 0])
    return max(0.0, float(slope * (times[-1] - times[0])))


def growths(watch: Watch, judged: dict[str, tuple[str, ...]]) -> dict[str, dict[str, float | None]]:
    """The growth of each judged resource of each process."""
    return {name: {what: growth(watch.samples.get(name, []), what) for what in whats} for name, whats in judged.items()}


def check(found: dict[str, dict[str, float | None]]) -> None:
    """``Violation`` for the first leak."""
    for name, values in found.items():
        for what, rise in values.items():
            if rise is not None and rise > GROWTH_MAX[what]:
                message = f"{name}: {what} grew by {rise:.0f} over the run; {GROWTH_MAX[what]} is tolerated"
                raise Violation(message, f"leak-of-{what}")
