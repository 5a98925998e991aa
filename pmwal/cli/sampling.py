"""Samples of what the writers of logs are doing, from their live pages.

Invariants
----------
- It only looks: each sample reads the superblock and the live page, regardless of the size of the log. It is not a reader,
  so it neither judges the log nor asks the writer to wake it.
- Rates and the latency of an interval are given only if one process wrote in one epoch between the two samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pmwal.cli.times import utc_text
from pmwal.errors import FormatError
from pmwal.format.layout import LIVE_BOUNDS, LIVE_OFFSET
from pmwal.latency import LiveLatency
from pmwal.opening.files import map_for_reading
from pmwal.records import Bound
from pmwal.storage.live_page import LiveBounds, LiveWriter, read_bounds, read_latency, read_writer
from pmwal.storage.liveness import living_writer
from pmwal.storage.seam import SYSTEM

_VERSION_SIZE = LIVE_BOUNDS.field_size("version_begin")

Facts = dict[str, Any]
"""What a report says of one log, by the names that it has in JSON."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The live page at one time. ``version`` counts how often the writer had published new bounds."""

    monotonic: float
    time_ns: int
    writer: LiveWriter
    alive: bool
    of_this_file: bool
    bounds: LiveBounds | None
    version: int
    latency: LiveLatency | None
    capacity: int

    @property
    def unsettled(self) -> bool:
        """Whether the writer may be alive, but is of version 0.1, or on a file system without locks, and its process not seen."""
        return not self.alive and self.writer.named and self.of_this_file and not self.writer.locked

    @property
    def keeps_stores(self) -> bool:
        """Whether all that the writer stored is there: it is alive, or it ended and the system did not, which has its stores."""
        return self.alive or (self.writer.named and self.of_this_file and self.writer.boot_id == SYSTEM.boot_id())

    def stored(self, bounds: LiveBounds) -> Bound:
        """The end of what is stored, durable or not; else of what is durable. The two lines are not read at once."""
        return max(self.writer.published, bounds.durable) if self.keeps_stores else bounds.durable

    def moved_since(self, before: Sample) -> bool:
        """Whether the same writer has stored something between the two."""
        stored = (self.version, self.writer.published) != (before.version, before.writer.published)
        return stored and self.of_this_file and self.writer.same_process(before.writer)


def take_sample(path: str, before: Sample | None = None) -> Sample:
    """Look at a log; with the sample before, a writer of which the kernel says nothing is alive if it has stored since."""
    sample = _look(path)
    alive = sample.alive or (sample.unsettled and before is not None and sample.moved_since(before))
    return replace(sample, alive=alive)


def _look(path: str) -> Sample:
    mapping, identity = map_for_reading(path, "auto", SYSTEM)
    try:
        capacity, writer, bounds = identity.block.capacity, read_writer(mapping.load), read_bounds(mapping.load)
        if bounds is not None and not bounds.possible(identity.block):
            bounds = None
        return Sample(
            monotonic=time.monotonic(),
            time_ns=SYSTEM.now_ns(),
            writer=writer,
            alive=living_writer(mapping, SYSTEM) is not None,
            of_this_file=writer.inode == mapping.inode,
            bounds=bounds,
            version=int.from_bytes(mapping.load(LIVE_OFFSET, _VERSION_SIZE), "little"),
            latency=read_latency(mapping.load),
            capacity=capacity,
        )
    finally:
        mapping.close()


def facts_of(path: str, sample: Sample, before: Sample | None) -> Facts:
    """What one sample shows, and the rates since the one before."""
    writer, bounds = sample.writer, sample.bounds
    facts: Facts = {
        "path": path,
        "time_ns": sample.time_ns,
        "time": utc_text(sample.time_ns),
        "writer": {"pid": writer.pid, "alive": sample.alive, "of_this_file": sample.of_this_file} if writer.named else None,
        "capacity": sample.capacity,
    }
    if bounds is None:
        return facts | {"bounds": None, "rates": None, "commit_latency": {"interval": None, "since_open": None}}
    stored = sample.stored(bounds)
    used = min(stored.position - bounds.tail.position, sample.capacity)  # the two cache lines are not read atomically
    facts["bounds"] = {
        "epoch": bounds.epoch,
        "first_seq": bounds.tail.next_seq,
        "last_seq": stored.next_seq - 1,
        "durable_seq": bounds.durable.next_seq - 1,
        "used_bytes": used,
        "fill": used / sample.capacity,
    }
    if sample.alive:
        facts["newest_store_at_commit_seconds"] = max(0.0, (sample.time_ns - writer.heartbeat_ns) / 1e9)
    rates = None if before is None else _rates(sample, before)
    interval = None
    if rates is not None and before is not None and sample.latency is not None and before.latency is not None:
        interval = sample.latency.since(before.latency)
    return facts | {
        "rates": rates,
        "commit_latency": {"interval": _timed(interval), "since_open": _timed(sample.latency)},
    }


def facts_without_log(path: str, error: OSError | FormatError) -> Facts:
    """The facts while the path leads to no log."""
    reason = str(error).removeprefix(f"{path}: ") if isinstance(error, FormatError) else error.strerror
    no_latency = {"interval": None, "since_open": None}
    nothing = dict.fromkeys(("writer", "capacity", "bounds", "rates"))
    time_ns = SYSTEM.now_ns()
    return {"path": path, "time_ns": time_ns, "time": utc_text(time_ns), **nothing, "commit_latency": no_latency, "error": reason}


class Samples:
    """The newest sample of each of several logs."""

    def __init__(self) -> None:
        self._newest: dict[str, Sample] = {}

    def take(self, paths: Iterable[str]) -> list[Facts]:
        """The facts of these logs, with rates since the sample before."""
        before, self._newest = self._newest, {}
        several = []
        for path in dict.fromkeys(paths):
            try:
                sample = take_sample(path, before.get(path))
            except (OSError, FormatError) as error:
                several.append(facts_without_log(path, error))
            else:
                self._newest[path] = sample
                several.append(facts_of(path, sample, before.get(path)))
        return several

    @property
    def may_move(self) -> bool:
        """Whether another sample may show rates."""
        return any(sample.alive or sample.unsettled for sample in self._newest.values())


def _timed(latency: LiveLatency | None) -> dict[str, int] | None:
    """The figures; None if nothing was timed."""
    figures = None if latency is None else latency.as_dict()
    return figures if figures and figures["count"] else None


def _rates(sample: Sample, before: Sample) -> dict[str, float] | None:
    """Per second; None unless both samples are of one writer in one epoch.

    What is durable grows only with each commit, and would give the rate of a writer that commits seldom as 0 or far too high.
    """
    now, then = sample.bounds, before.bounds
    seconds = sample.monotonic - before.monotonic
    if not sample.alive or now is None or then is None or now.epoch != then.epoch or seconds <= 0:
        return None
    if not sample.writer.same_process(before.writer):
        return None
    end, start = sample.stored(now), before.stored(then)
    return {
        "seconds": seconds,
        "records": (end.next_seq - start.next_seq) / seconds,
        "bytes": (end.position - start.position) / seconds,
        "commits": (sample.version - before.version) / seconds,
    }
