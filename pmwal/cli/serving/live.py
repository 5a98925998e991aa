"""What the writers of the logs do, from their live pages: for ``/stats``, ``/metrics`` and the page.

Invariants
----------
- A look reads the superblock and the live page of each log, and nothing else. Nobody looks while nobody asks.
- The history is limited: ``HISTORY`` samples of all logs together.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import Any, NamedTuple

from pmwal.cli.sampling import Sample, facts_of, take_sample
from pmwal.cli.serving.names import Names
from pmwal.cli.serving.walks import Pool
from pmwal.cli.times import utc_text
from pmwal.errors import FormatError, PersistError
from pmwal.latency import LiveLatency
from pmwal.records import Bound

HISTORY = 600
"""Samples that are kept: ten minutes."""

EVERY = 1.0
"""Seconds between two samples, while somebody asks for them."""

_ASKED = 30.0  # seconds after a question in which samples are taken
_FIRST = 0.5  # seconds between the first two, which the first answer needs
_STALE = 3.0

Facts = dict[str, Any]


class Page(NamedTuple):
    """The live page of one log."""

    name: str
    alive: bool
    capacity: int
    tail: Bound
    stored: Bound
    durable: Bound
    latency: LiveLatency | None


class Watch:
    """Looks at the live pages."""

    def __init__(self, pool: Pool, names: Names) -> None:
        self._pool = pool
        self._names = names
        self._lock = threading.Lock()
        self._before: dict[str, Sample] = {}
        self._logs: list[Facts] = []
        self._history: deque[Facts] = deque(maxlen=HISTORY)
        self._tick = 0
        self._sampled_at = self._asked_at = float("-inf")

    @property
    def wanted(self) -> bool:
        """Whether somebody asked not long ago."""
        return time.monotonic() - self._asked_at < _ASKED

    def stats(self, after: int | None) -> Facts:
        """The newest figures, and the samples after a tick. It may take half a second."""
        with self._lock:
            self._asked_at = time.monotonic()
            if self._asked_at - self._sampled_at > _STALE:
                self._before.clear()
                self._sample(quiet=True)
                time.sleep(_FIRST)
                self._sample()
            samples = [] if after is None else [each for each in self._history if each["tick"] > after]
            return {"time": utc_text(time.time_ns()), "tick": self._tick, "logs": self._logs, "samples": samples}

    def sample(self) -> None:
        """Take the next sample, if somebody asked not long ago."""
        with self._lock:
            if self.wanted:
                self._sample()

    def pages(self) -> list[Page]:
        """The live pages as they are now."""
        pages = []
        for path in self._paths():
            sample = _taken(path, None)
            if sample is not None and sample.bounds is not None:
                bounds = sample.bounds
                pages.append(
                    Page(
                        self._names.of(path),
                        sample.alive,
                        sample.capacity,
                        bounds.tail,
                        sample.stored(bounds),
                        bounds.durable,
                        sample.latency,
                    )
                )
        return pages

    def _paths(self) -> list[str]:
        logs = self._pool.take()
        try:
            return list(logs.logs)
        finally:
            self._pool.give_back(logs)

    def _sample(self, *, quiet: bool = False) -> None:
        self._sampled_at = time.monotonic()
        logs, samples = [], {}
        total = {"records": 0.0, "bytes": 0.0, "commits": 0.0}
        buckets: Counter[int] = Counter()
        for path in self._paths():
            before, sample = self._before.get(path), _taken(path, self._before.get(path))
            name = self._names.of(path)
            if sample is None:
                logs.append({"name": name, "error": "there is no log under this name now"})
                continue
            samples[path] = sample
            facts = facts_of(path, sample, before)
            del facts["path"]
            logs.append({"name": name} | facts)
            rates = facts["rates"]
            if rates is None or before is None:
                continue
            for what in total:
                total[what] += rates[what]
            if sample.latency is not None and before.latency is not None:
                buckets.update(dict(sample.latency.since(before.latency).buckets()))
        self._before, self._logs = samples, logs
        if not quiet:
            self._tick += 1
            self._history.append(
                {"tick": self._tick, "time_ms": time.time_ns() // 10**6, **total, "latency": sorted(buckets.items())}
            )


def _taken(path: str, before: Sample | None) -> Sample | None:
    try:
        return take_sample(path, before)
    except (OSError, FormatError, PersistError):
        return None
