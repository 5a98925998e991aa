"""Loggers compared: the time of one call that logs an event with three values, measured in one process and in turns.

Each formats as little as it can, the message alone, which is its cheapest setting. Each turn reopens the logger and does not time
its first calls. A logger that only enqueues is measured without a consumer, if possible: a thread that writes the events slows
calls down.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import logging.handlers
import os
import queue
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np

import pmwal
from benchmark.context import Context
from benchmark.peers.base import load
from pmwal.testing.bench.floors import Loop
from pmwal.testing.bench.stats import Latency, median, merge

BY_PERCENT = "order %s filled %s @ %s"
BY_BRACES = "order {} filled {} @ {}"
BY_NAME = "order {id} filled {qty} @ {px}"
_SIZE = "64MiB"
_WARM_UP = 0.1  # untimed calls, as a share of the timed ones
_PIECE = 100  # calls of one logger before the turn of the other: few of such short loops are interrupted


class Session(NamedTuple):
    """An open logger. ``call(template, id, qty, px)`` logs, or ``call(id, qty, px)`` if there is no template.

    ``queue`` receives the events of a logger without a consumer.
    """

    call: Callable[..., object]
    template: str | None
    close: Callable[[], object]
    queue: queue.SimpleQueue[Any] | None = None


@dataclass(frozen=True)
class Logger:
    """A logger: ``open(directory)``, the ``module`` that it needs, and whether an event is ``kept`` after SIGKILL.

    One that is ``synced`` makes each event durable, and is measured on the disk.
    """

    name: str
    open: Callable[[Path], Session]
    settings: str
    kept: str
    module: str | None = None
    ours: bool = False
    enqueues: bool = False
    synced: bool = False

    def missing(self) -> str | None:
        """Why it cannot be measured here; None if it can."""
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            return f"{self.name}: skipped, the Python module {self.module} is not installed"
        return None


def measure(context: Context, *, synced: bool = False) -> dict[str, Latency]:
    """Measure loggers in turns: percentiles over all calls, rates of the median loop. Missing loggers are reported and skipped."""
    names = [name for name, logger in LOGGERS.items() if logger.synced == synced]
    usable = []
    for name in names:
        problem = LOGGERS[name].missing()
        if problem is None:
            usable.append(name)
        elif name not in context.unavailable:
            context.unavailable[name] = problem
            context.say(problem)
    directory, count = context.memory_dir, context.scale.peer_process
    if synced:
        directory, count = context.disk_dir, context.scale.peer_appends
    whole: dict[str, list[Loop]] = {name: [] for name in usable}
    each: dict[str, list[Loop]] = {name: [] for name in usable}
    for _ in context.rounds:
        for name in usable:
            for loops, loop in ((each, _each), (whole, _whole)):
                session = LOGGERS[name].open(directory)
                try:
                    _whole(session, max(1, int(count * _WARM_UP)))
                    loops[name].append(loop(session, count))
                finally:
                    session.close()
    return {
        name: replace(Latency.of(merge([loop.each for loop in each[name]])), rate=1e9 / median([loop.mean for loop in whole[name]]))
        for name in usable
    }


def paired(context: Context, floor: str, other: str) -> tuple[float, float]:
    """Nanoseconds of one logger's call, and how many more another's takes: medians over short loops in turns.

    Each loop is compared with its neighbour, so that changes of the machine's speed affect both.
    """
    pieces = context.scale.rounds * context.scale.peer_process // _PIECE
    with contextlib.ExitStack() as stack:
        sessions: list[Session] = []
        for name in (floor, other):
            directory = context.memory_dir / f"logger-{len(sessions)}"
            directory.mkdir()
            sessions.append(LOGGERS[name].open(directory))
            stack.callback(sessions[-1].close)
            _whole(sessions[-1], max(1, int(context.scale.peer_process * _WARM_UP)))
        turns = [[_whole(session, _PIECE).mean for session in sessions] for _ in range(max(1, pieces))]
    return median([first for first, _ in turns]), median([second - first for first, second in turns])


def _whole(session: Session, count: int) -> Loop:
    """Time the loop as a whole. Two loops, because a call with ``*args`` would cost as much as an event."""
    call, template = session.call, session.template
    if template is None:
        begin = perf_counter_ns()
        for number in range(count):
            call(number, 100, 99.5)
        return Loop(perf_counter_ns() - begin, count, np.zeros(0, dtype=np.int64))
    begin = perf_counter_ns()
    for number in range(count):
        call(template, number, 100, 99.5)
    return Loop(perf_counter_ns() - begin, count, np.zeros(0, dtype=np.int64))


def _each(session: Session, count: int) -> Loop:
    """Time each call."""
    call, template, clock = session.call, session.template, perf_counter_ns
    each = [0] * count
    begin = clock()
    if template is None:
        for number in range(count):
            start = clock()
            call(number, 100, 99.5)
            each[number] = clock() - start
    else:
        for number in range(count):
            start = clock()
            call(template, number, 100, 99.5)
            each[number] = clock() - start
    return Loop(clock() - begin, count, np.array(each, dtype=np.int64))


# -- the loggers


class _Drop(logging.Handler):
    """The cost of every handler: creating the record and formatting its text."""

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record and drop it."""
        self.format(record)


def _standard(handler: logging.Handler, waiting: queue.SimpleQueue[Any] | None = None) -> Session:
    logger = logging.Logger("bench")
    logger.addHandler(handler)
    return Session(logger.info, BY_PERCENT, handler.close, waiting)


def _file_handler(directory: Path) -> Session:
    return _standard(logging.FileHandler(directory / "plain.log", "w"))


class _Synced(logging.FileHandler):
    """What a program does that must not lose a line to a power cut."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, and wait for the disk."""
        super().emit(record)
        assert self.stream is not None  # only one with delay=True has none before its first line
        os.fdatasync(self.stream.fileno())


def _synced_file_handler(directory: Path) -> Session:
    return _standard(_Synced(directory / "synced.log", "w"))


def _drop(directory: Path) -> Session:
    return _standard(_Drop())


def _log_handler(directory: Path, **options: Any) -> Session:
    return _standard(pmwal.LogHandler(_new(directory), size=_SIZE, **options))


def _queue_handler(directory: Path) -> Session:
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    return _standard(logging.handlers.QueueHandler(waiting), waiting)


def _event(directory: Path) -> Session:
    wal = pmwal.open(_new(directory), size=_SIZE, commit="manual", on_full="overwrite")
    log: Any = load("pmwal.events").Logger(wal)
    return Session(log.event(BY_NAME), None, wal.close)


def _picologging(directory: Path) -> Session:
    return _picologging_to(load("picologging").FileHandler(str(directory / "pico.log"), "w"))


def _picologging_queue(directory: Path) -> Session:
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    return _picologging_to(load("picologging.handlers").QueueHandler(waiting), waiting)


def _picologging_to(handler: Any, waiting: queue.SimpleQueue[Any] | None = None) -> Session:
    logger: Any = load("picologging").Logger("bench", logging.INFO)  # without a level it drops every record
    logger.addHandler(handler)
    return Session(logger.info, BY_PERCENT, handler.close, waiting)


def _loguru(directory: Path, **options: Any) -> Session:
    return _loguru_to(str(directory / "loguru.log"), mode="w", **options)


def _loguru_pmwal(directory: Path) -> Session:
    return _loguru_to(load("pmwal.integrations.loguru").Sink(_new(directory), size=_SIZE))


def _loguru_to(sink: object, **options: Any) -> Session:
    logger: Any = load("loguru").logger
    logger.remove()  # the process has one logger: remove its default sink
    logger.add(sink, format="{message}", **options)
    return Session(logger.info, BY_BRACES, logger.remove)


def _structlog(directory: Path) -> Session:
    file = (directory / "structlog.log").open("wb")
    return _structlog_to(load("structlog").BytesLogger(file), file.close)


def _structlog_pmwal(directory: Path) -> Session:
    factory = load("pmwal.integrations.structlog").LoggerFactory(_new(directory), size=_SIZE)
    return _structlog_to(factory(), factory.close)


def _structlog_to(logger: object, close: Callable[[], object]) -> Session:
    structlog: Any = load("structlog")
    bound = structlog.wrap_logger(
        logger,
        processors=[lambda logger, name, event: event["event"].encode()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        context_class=dict,
    )
    return Session(bound.bind().info, BY_PERCENT, close)


def _new(directory: Path) -> Path:
    """The path of a log that does not exist."""
    path = directory / "logger.wal"
    path.unlink(missing_ok=True)
    return path


FILE, DROP, HANDLER, EVENT = "logging, FileHandler", "logging, formats and drops", "logging, pmwal.LogHandler", "pmwal.events"
SYNCED_FILE, SYNCED_HANDLER = "logging, FileHandler and fdatasync", f'{HANDLER}, commit="each"'
_KEPT, _LOST = "kept", "lost"

LOGGERS: dict[str, Logger] = {
    logger.name: logger
    for logger in (
        Logger(FILE, _file_handler, "the reference", _KEPT),
        Logger(DROP, _drop, "the floor of every handler", _LOST),
        Logger(HANDLER, _log_handler, "defaults", _KEPT, ours=True),
        Logger(
            f'{HANDLER}, commit="manual"', lambda directory: _log_handler(directory, commit="manual"), "no thread", _KEPT, ours=True
        ),
        Logger(f"{HANDLER}, structured", lambda directory: _log_handler(directory, structured=True), "JSON", _KEPT, ours=True),
        Logger(EVENT, _event, 'fill(id, qty, px), commit="manual"', _KEPT, module="pmwal.events", ours=True),
        Logger("logging, QueueHandler", _queue_handler, "SimpleQueue, no listener", _LOST, enqueues=True),
        Logger("picologging, FileHandler", _picologging, "", _KEPT, module="picologging"),
        Logger("picologging, QueueHandler", _picologging_queue, "SimpleQueue, no listener", _LOST, "picologging", enqueues=True),
        Logger("loguru, file", _loguru, 'format="{message}"', _KEPT, module="loguru"),
        Logger(
            "loguru, enqueue", lambda directory: _loguru(directory, enqueue=True), "with its thread", _LOST, "loguru", enqueues=True
        ),
        Logger("loguru, pmwal sink", _loguru_pmwal, 'format="{message}"', _KEPT, module="loguru", ours=True),
        Logger("structlog, BytesLogger", _structlog, "filtering bound logger, event only", _KEPT, module="structlog"),
        Logger(SYNCED_FILE, _synced_file_handler, "a file that grows", _KEPT, synced=True),
        Logger(SYNCED_HANDLER, lambda directory: _log_handler(directory, commit="each"), "", _KEPT, ours=True, synced=True),
        Logger("structlog, pmwal factory", _structlog_pmwal, "the same", _KEPT, module="structlog", ours=True),
    )
}
"""Loggers by name, in the order of measurement and of the table."""
