"""Campaigns: which histories are explored, by several processes, until a number of distinct images is reached.

A campaign explores every sequence of up to two operations on every setting with each engine; then every longer one, up to a length,
of the operations in ``CORE`` on the first settings, alternating between the engines and looking less closely at each point; then
longer ones of all operations by seed. The digests of all images are collected in one place, so an image that two processes or both
engines met counts once.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from itertools import count, islice, product
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

from pmwal.native.choice import STORES
from pmwal.testing._simulator.explore import Effort, Explorer, Failure, History
from pmwal.testing._simulator.operations import CORE, OPERATIONS, operations_for
from pmwal.testing._simulator.session import Setting
from pmwal.testing.power_cut import UNITS
from pmwal.testing.process import scratch, using_engine
from pmwal.testing.violation import Violation

SETTINGS = (
    Setting("pmem", "strict", "lapped", 8192, 64),
    Setting("page", "pipelined", "lapped", 8192, 8),
    Setting("pmem", "pipelined", "brink", 8192, 8),
    Setting("page", "strict", "brink", 8192, 8),
    Setting("page", "pipelined", "full", 16384, 64),
    Setting("pmem", "strict", "fresh", 4096, 64, "stream"),
    Setting("pmem", "pipelined", "lapped", 8192, 64, "stream"),
    Setting("folio-64k", "pipelined", "lapped", 128 * 1024, 8),
    Setting("folio-2m", "strict", "brink", 8192, 8),
)
"""What histories run on, the most telling first."""
DEEP = SETTINGS[:2]
"""The settings on which sequences of more than two operations are explored, too."""
_LENGTH_BROAD = 2
_SAMPLES_LONG = 64
"""How many seeded samples of what a crash may leave are looked at in each point of a longer history: they have much to lose."""
LENGTH_EXTRA = 5  # operations that a longer history has more, at most
_COUNT_STEP = 20_000  # judged images after which the distinct ones are counted
_CHUNK = 8  # histories that a process takes at once


class Plan(NamedTuple):
    """How far a campaign goes: every sequence up to ``lengths`` on each setting, then longer ones until ``target`` images."""

    seed: int
    engines: tuple[str, ...]
    target: int
    lengths: int
    effort: Effort
    seconds: float | None = None


@dataclass
class Result:
    """What a campaign, or a chunk of it, has explored. ``distinct`` are the numbers of its distinct images."""

    counts: dict[str, int] = field(default_factory=dict)
    cases: dict[str, int] = field(default_factory=dict)
    distinct: list[bytes] = field(default_factory=list)
    failure: tuple[str, Failure] | None = None
    seconds: float = 0.0

    def add(self, other: Result) -> None:
        """Take in what a chunk has explored."""
        for mine, theirs in (self.counts, other.counts), (self.cases, other.cases):
            for name, number in theirs.items():
                mine[name] = mine.get(name, 0) + number
        self.distinct += other.distinct
        self.failure = self.failure or other.failure

    def images_distinct(self) -> int:
        """How many distinct images there were, over all engines, processes and histories."""
        numbers = np.unique(np.frombuffer(b"".join(self.distinct), dtype="<u8"))
        self.distinct = [numbers.tobytes()]
        return len(numbers)


def short_histories(plan: Plan) -> Iterator[History]:
    """Every sequence of up to ``plan.lengths`` operations, the short ones first and the settings in turn."""
    for length in range(plan.lengths + 1):
        settings, names = (SETTINGS, tuple(OPERATIONS)) if length <= _LENGTH_BROAD else (DEEP, CORE)
        streams = [_on(setting, operations_for(setting.medium, names), length, plan.seed) for setting in settings]
        yield from _in_turn(streams)


def _on(setting: Setting, operations: tuple[str, ...], length: int, seed: int) -> Iterator[History]:
    for names in product(operations, repeat=length):
        yield History(setting, names, seed)


def _in_turn(streams: list[Iterator[History]]) -> Iterator[History]:
    while streams:
        for stream in list(streams):
            history = next(stream, None)
            if history is None:
                streams.remove(stream)
            else:
                yield history


def long_histories(plan: Plan) -> Iterator[History]:
    """Longer sequences by seed, without end."""
    for number in count(1):
        random = Random(f"{plan.seed} {number}")
        setting = random.choice(SETTINGS)
        names = random.choices(operations_for(setting.medium), k=plan.lengths + random.randint(1, LENGTH_EXTRA))
        yield History(setting, tuple(names), random.getrandbits(32))


_known: dict[str, set[int]] = {"native": set(), "python": set()}
"""What this process of a campaign has explored with each engine."""


def _explore_in_pool(effort: Effort, task: tuple[str, tuple[History, ...]]) -> Result:
    known = _known[task[0]]
    result = explore_chunk(effort, task, known)
    known.update(np.frombuffer(result.distinct[0], dtype="<u8").tolist())
    return result


def explore_chunk(effort: Effort, task: tuple[str, tuple[History, ...]], known: Set[int] = frozenset()) -> Result:
    """Explore some histories with one engine, but for images that are known."""
    engine, histories = task
    result = Result()
    with using_engine(engine), tempfile.TemporaryDirectory(prefix="pmwal-crash-", dir=scratch()) as name:
        explorer = Explorer(Path(name), effort, known)
        for history in histories:
            try:
                explorer.explore(history)
            except Violation as violation:
                result.failure = engine, Failure(history, violation.oracle, violation.detail)
                break
    tally = explorer.tally
    names = ("histories", "operations", "images", "opened", "interrupted", "continued", "damaged")
    result.counts = {name: getattr(tally, name) for name in names}
    result.counts["judged"] = len(tally.seen)
    result.cases = tally.cases
    result.distinct = [np.array(sorted(tally.seen), dtype="<u8").tobytes()]
    return result


def run(plan: Plan, processes: int, report: Callable[[Result, int], None] | None = None) -> Result:
    """Explore until the plan is done or an oracle is violated. ``report`` is called now and then."""
    started = time.monotonic()
    total, distinct, counted = Result(), 0, 0
    step = min(_COUNT_STEP, plan.target // 10)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for phase, is_long in (short_histories(plan), False), (long_histories(plan), True):
            if is_long and distinct >= plan.target:
                break
            effort = plan.effort._replace(samples=_SAMPLES_LONG) if is_long else plan.effort
            tasks = _tasks(phase, plan.engines)
            pending = [pool.apply_async(_explore_in_pool, (effort, task)) for task in islice(tasks, 2 * processes)]
            while pending:
                total.add(pending.pop(0).get())
                total.seconds = time.monotonic() - started
                if total.failure or (plan.seconds is not None and total.seconds > plan.seconds):
                    return total
                if total.counts["judged"] - counted > step:
                    distinct, counted = total.images_distinct(), total.counts["judged"]
                    if report is not None:
                        report(total, distinct)
                if not is_long or distinct < plan.target:
                    pending += [pool.apply_async(_explore_in_pool, (effort, task)) for task in islice(tasks, 1)]
            distinct = total.images_distinct()
    return total


def _tasks(histories: Iterator[History], engines: tuple[str, ...]) -> Iterator[tuple[str, tuple[History, ...]]]:
    """Chunks: the short histories for each engine, the others for the engines in turn."""
    for number in count():
        chunk = tuple(islice(histories, _CHUNK))
        if not chunk:
            return
        if len(chunk[-1].names) <= _LENGTH_BROAD:
            yield from ((engine, chunk) for engine in engines)
        else:
            yield engines[number % len(engines)], chunk


def minimal(engine: str, failure: Failure, effort: Effort) -> Failure:
    """The same violation by a history from which no operation can be left out."""
    latest, place = failure, 0
    while place < len(latest.history.names):
        names = latest.history.names
        shorter = latest.history._replace(names=names[:place] + names[place + 1 :])
        again = explore_chunk(effort, (engine, (shorter,))).failure
        if again is not None and again[1].oracle == failure.oracle:
            latest = again[1]
        else:
            place += 1
    return latest


def spell(engine: str, history: History) -> str:
    """A history as text for a command line."""
    setting = history.setting
    place = f"{engine}:{setting.medium}:{setting.ordering}:{setting.base}:{setting.size}:{setting.align}:{setting.stores}"
    return f"{place}:{history.seed}:{','.join(history.names)}"


def read_history(text: str) -> tuple[str, History]:
    """What ``spell`` wrote; ``ValueError`` when it is not that."""
    engine, medium, ordering, base, size, align, stores, seed, operations = text.split(":")
    names = tuple(name for name in operations.split(",") if name)
    unknown = [name for name in names if name not in OPERATIONS]
    if unknown or medium not in UNITS or engine not in ("native", "python") or stores not in STORES:
        raise ValueError(f"no such operation, medium, engine or way to store: {', '.join(unknown) or text}")
    return engine, History(Setting(medium, ordering, base, int(size), int(align), stores), names, int(seed))
