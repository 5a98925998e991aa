"""The queue of the examples beside other durable queues, at equal durability, in this process and in turns.

Each job is put, taken and acknowledged, one by one, and many at a time where a queue can. Durable: when put and the acknowledgement
return, a power cut does not undo them. In memory: a kill does not.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from benchmark.context import Context
from benchmark.gate import BARS, Row, compare, skipped
from benchmark.peers import payload_of
from benchmark.peers.base import load
from benchmark.report import Table
from pmwal.testing.bench.stats import median, rate_text, time_text

_NAME = "queue"
OURS = "pmwal, examples/jobqueue.py"
MANY = 50
_EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "jobqueue.py"


class Session(Protocol):
    """An open queue."""

    def put(self, items: list[bytes], /) -> object:
        """Put these, in one step if it can."""

    def do(self, count: int, /) -> int:
        """Take so many, and acknowledge them; how many there were."""

    def close(self) -> object:
        """Close it."""


class Queue(NamedTuple):
    """A queue: ``open(directory, durable)``; how it is set, durable or not; and the module that it needs."""

    open: Callable[[Path, bool], Session]
    durable: str
    in_memory: str
    module: str | None = None


def _example() -> ModuleType:
    if "jobqueue" not in sys.modules:
        spec = importlib.util.spec_from_file_location("jobqueue", _EXAMPLE)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["jobqueue"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["jobqueue"])
    return sys.modules["jobqueue"]


class _Ours:
    def __init__(self, directory: Path, durable: bool) -> None:
        module = _example()
        self._durable = durable
        self._jobs = module.producer(directory, size="16MiB")
        self._worker = module.Worker(directory)
        self.put = self._jobs.extend

    def do(self, count: int) -> int:
        jobs = self._worker.take(count)
        self._worker.ack(*jobs, durable=self._durable)
        return len(jobs)

    def close(self) -> None:
        self._worker.close()
        self._jobs.close()


class _PersistQueue:
    """Each call is a transaction; SQLite's default, synchronous=FULL, is not offered otherwise."""

    def __init__(self, directory: Path, durable: bool) -> None:
        self._queue: Any = load("persistqueue").SQLiteAckQueue(str(directory), auto_commit=True)
        if not durable:
            self._queue._putter.execute("PRAGMA synchronous=NORMAL")
        self.close = self._queue.close

    def put(self, items: list[bytes]) -> None:
        for item in items:
            self._queue.put(item)

    def do(self, count: int) -> int:
        for _ in range(count):
            self._queue.ack(self._queue.get(block=False))
        return count


class _LiteQueue:
    """Many are put, and acknowledged, in one transaction; each is taken in one of its own."""

    def __init__(self, directory: Path, durable: bool) -> None:
        self._queue: Any = load("litequeue").LiteQueue(directory / "queue.sqlite")
        if durable:
            self._queue.conn.execute("PRAGMA synchronous=FULL")
        self.close = self._queue.close

    def put(self, items: list[bytes]) -> None:
        with self._queue.transaction():
            for item in items:
                self._queue.put(item)

    def do(self, count: int) -> int:
        taken = [self._queue.pop() for _ in range(count)]
        with self._queue.transaction():
            for message in taken:
                self._queue.done(message.message_id)
        return count


QUEUES: dict[str, Queue] = {
    OURS: Queue(_Ours, "ack(durable=True)", "ack()"),
    "persist-queue": Queue(_PersistQueue, "SQLiteAckQueue", "SQLiteAckQueue, synchronous=NORMAL", "persistqueue"),
    "litequeue": Queue(_LiteQueue, "LiteQueue, synchronous=FULL", "LiteQueue (synchronous=NORMAL)", "litequeue"),
}


class Figures(NamedTuple):
    """Nanoseconds for a job: to put it, and to take and acknowledge it."""

    put: float
    do: float

    @property
    def rate(self) -> float:
        """Jobs a second that are put, taken and acknowledged."""
        return 1e9 / (self.put + self.do)


def measure(context: Context, *, durable: bool, many: int) -> tuple[dict[str, Figures], list[str]]:
    """The figures of each queue that is installed, medians of rounds in turns; and why others are missing."""
    usable = {name: queue for name, queue in QUEUES.items() if queue.module is None or importlib.util.find_spec(queue.module)}
    lacking = {name: queue.module for name, queue in QUEUES.items() if name not in usable}
    missing = [f"{name}: skipped, the Python module {module} is not installed" for name, module in lacking.items()]
    rounds: dict[str, list[Figures]] = {name: [] for name in usable}
    for _ in context.rounds:
        for name, queue in usable.items():
            rounds[name].append(_round(context, queue, durable=durable, many=many))
    return {name: Figures(*[median(list(column)) for column in zip(*each, strict=True)]) for name, each in rounds.items()}, missing


def _round(context: Context, queue: Queue, *, durable: bool, many: int) -> Figures:
    count = max(1, context.scale.peer_appends // 2 // many) * many
    items = [payload_of(128)] * many
    directory = context.disk_dir if durable else context.memory_dir
    with tempfile.TemporaryDirectory(prefix="pmwal-queue-", dir=directory) as inner, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        session = queue.open(Path(inner), durable)
        try:
            session.put(items)
            session.do(many)  # to warm up
            begun = perf_counter_ns()
            for _ in range(count // many):
                session.put(items)
            put = perf_counter_ns()
            done = 0
            while done < count:
                done += session.do(many)
            ended = perf_counter_ns()
        finally:
            session.close()
    return Figures((put - begun) / count, (ended - put) / count)


def queue(context: Context) -> Iterator[Row]:
    """Every queue, against ours."""
    for durable, many in ((True, 1), (True, MANY), (False, 1), (False, MANY)):
        where = "disk, durable" if durable else "memory"
        if durable and context.disk.in_memory:
            yield skipped(_NAME, f"{where}: the disk directory is in memory")
            continue
        found, missing = measure(context, durable=durable, many=many)
        ours = found.pop(OURS)
        for name, figures in found.items():
            settings = QUEUES[name].durable if durable else QUEUES[name].in_memory
            what = f"put, take, acknowledge, {many} at a time, {where}"
            yield compare(_NAME, what, name, (figures.rate, ours.rate), "jobs/s", "at least", BARS["queue"], settings)
        for message in missing:
            yield skipped(_NAME, message)


def table(context: Context, *, durable: bool) -> Table:
    """All queues, one at a time and many."""
    rows = []
    for many in (1, MANY):
        found, missing = measure(context, durable=durable, many=many)
        ours = found[OURS].rate
        for name, figures in found.items():
            times = time_text(figures.put), time_text(figures.do), rate_text(figures.rate)
            settings = QUEUES[name].durable if durable else QUEUES[name].in_memory
            rows.append([name, f"{many}", *times, f"{ours / figures.rate:.2f}", settings])
        for message in missing:
            context.say(message)
    columns = ["queue", "at a time", "put", "take and acknowledge", "jobs", "pmwal/queue", "settings"]
    title = "Disk: a durable queue, jobs of 128 B" if durable else "Queues in memory, jobs of 128 B"
    return Table(title, columns, rows, context.disk.note if durable else context.memory.note)
