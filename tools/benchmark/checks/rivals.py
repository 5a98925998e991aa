"""Checks against other stores and other loggers."""

from __future__ import annotations

from collections.abc import Iterator

from benchmark import loggers
from benchmark.context import Context
from benchmark.gate import BARS, Row, broken, compare, skipped
from benchmark.peers import PEERS
from benchmark.peers.base import DURABLE_APPEND, DURABLE_EXTEND, PROCESS_APPEND, READ
from pmwal.testing.bench.stats import time_text


def read(context: Context) -> Iterator[Row]:
    """Reading all records, against a cursor of lmdb."""
    found = context.peers(READ, ("pmwal", "lmdb"))
    if "pmwal" not in found:
        yield broken("read", context.unavailable.get(f"pmwal, {READ}", "pmwal was not measured"))
        return
    if "lmdb" not in found:
        yield skipped("read", context.unavailable.get("lmdb", "lmdb could not be measured"))
        return
    what = "for rec in wal.read(), 128 B, tmpfs"
    figures = found["lmdb"].rate, found["pmwal"].rate
    yield compare("read", what, "for k, v in cursor (lmdb)", figures, "records/s", "at least", BARS["read"])


def peers(context: Context) -> Iterator[Row]:
    """Every peer in every workload that stores."""
    for workload in (DURABLE_APPEND, PROCESS_APPEND, DURABLE_EXTEND):
        if context.site_for(workload) is context.disk and context.disk.in_memory:
            yield skipped("peers", f"{workload}: the disk directory is in memory")
            continue
        found = context.peers(workload)
        if "pmwal" not in found:
            yield broken("peers", context.unavailable.get(f"pmwal, {workload}", f"{workload}: pmwal was not measured"))
            continue
        ours = found["pmwal"]
        for name, figures in found.items():
            if PEERS[name].ours:
                continue
            note = (
                f"p50 {time_text(figures.latency.p50)} and {time_text(ours.latency.p50)}, "
                f"p99 {time_text(figures.latency.p99)} and {time_text(ours.latency.p99)}; {PEERS[name].settings[workload]}"
            )
            what = f"{workload}, 128 B: pmwal {'ahead' if ours.rate >= figures.rate else 'behind'}"
            rates = figures.rate, ours.rate
            yield compare("peers", what, name, rates, "records/s", "at least", BARS["peers"], note)
    for key, message in context.unavailable.items():
        if not key.startswith("pmwal"):
            yield skipped("peers", message)


def log_calls(context: Context) -> Iterator[Row]:
    """Calls of ``pmwal.events`` and ``LogHandler``, against logging to a file, formatting only, and enqueueing."""
    name, found = "log calls", loggers.measure(context)
    times = {logger: 1e9 / latency.rate for logger, latency in found.items()}
    allowed = BARS["log handler ns"]
    floor, more = loggers.paired(context, loggers.DROP, loggers.HANDLER)
    what = f"logger.info to a LogHandler takes at most {time_text(allowed)} more than formatting takes"
    note = f"{time_text(abs(more))} {'more' if more >= 0 else 'less'}"
    figures = floor + allowed, floor + more
    yield compare(name, what, f"formats and drops, and {time_text(allowed)}", figures, "ns", "at most", 1.0, note)
    if loggers.EVENT not in times:
        yield skipped(name, context.unavailable[loggers.EVENT])
    else:
        event = times[loggers.EVENT]
        what = "fill(id, qty, px) against logger.info"
        yield compare(name, what, loggers.FILE, (times[loggers.FILE], event), "ns", "at most", BARS["log event"])
        for other, took in times.items():
            if loggers.LOGGERS[other].enqueues:
                what = "fill(id, qty, px) against a logger that only enqueues"
                yield compare(name, what, other, (took, event), "ns", "at most", BARS["log event enqueued"])
    for logger, message in context.unavailable.items():
        if logger in loggers.LOGGERS and logger != loggers.EVENT:
            yield skipped(name, message)
