"""Checks of looking up a record in the log of a living writer, by its number.

A new ``Reader`` seeks once for each figure, because a later seek starts from what an earlier one found. The log was filled more
than once all around. It is in memory, where every record is resident: what is measured is the search.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from time import perf_counter_ns

import pmwal
from benchmark.context import Context, free_space
from benchmark.gate import BARS, Row, absolute, skipped
from pmwal.testing.bench import workloads
from pmwal.testing.bench.stats import median
from pmwal.testing.bench.workloads import BATCH, BATCH_OF_PAYLOADS, PAYLOAD
from pmwal.testing.machine import available_memory

PLACES = (10, 50, 90)
"""Percent of the records."""
_LAPS = 1.2
_PARTS = 16  # of the log, of which one is truncated at a time
_ROLLBACKS = 8
_TURNS = 4  # in each round of the gate: a seek is short, and anything that interrupts it is longer
_DISCARDED = 500

Seek = Callable[[pmwal.Reader, int], pmwal.Record]
SEEKS: dict[str, Seek] = {
    "reader[seq]": lambda reader, seq: reader[seq],
    "read(start)": lambda reader, seq: next(reader.read(start=seq)),
    "follow(start)": lambda reader, seq: next(reader.follow(start=seq)),
}


def seeks(context: Context, *, size: str, ring: int) -> Iterator[Row]:
    """The first record of a reader at several places of a live log, in each ordering, also after rollbacks and a reopening."""
    name = f"seek {size}"
    ring = min(ring, context.scale.seek_ring)
    if min(available_memory(), free_space(context.memory_dir)) < 2 * ring:
        yield skipped(name, f"{ring >> 20} MiB do not fit twice into the memory that is free")
        return
    for ordering in ("strict", "pipelined"):
        path = context.memory_dir / "seek.wal"
        try:
            with pmwal.open(path, "x", size=ring, medium="memory", ordering=ordering) as wal:
                _fill(wal, _LAPS)
                yield _row(context, wal, name, f"{ring >> 20} MiB, {ordering}")
                _fill_with_rollbacks(wal)
                yield _row(context, wal, name, f"{ring >> 20} MiB, {ordering}, after {_ROLLBACKS} rollbacks")
            with pmwal.open(path, "r+", ordering=ordering) as wal:
                yield _reopened(context, wal, name, f"{ring >> 20} MiB, {ordering}, reopened")
        finally:
            path.unlink(missing_ok=True)


def _fill(wal: pmwal.Wal, laps: float) -> None:
    """Store this number of laps of small records; where the ring is full, the oldest ones make room."""
    left = laps * wal.capacity / workloads.record_size(len(PAYLOAD), 8)
    while left > 0:
        count = min(BATCH, workloads.room(wal, len(PAYLOAD)))
        if not count:
            wal.truncate(before=wal.first_seq + len(wal) // _PARTS)
            continue
        wal.extend(BATCH_OF_PAYLOADS[:count])
        left -= count


def _fill_with_rollbacks(wal: pmwal.Wal) -> None:
    """The same, with a rollback in each part of the log."""
    for _ in range(_ROLLBACKS):
        _fill(wal, 1 / _ROLLBACKS)
        wal.rollback(after=wal.next_seq - 1 - min(_DISCARDED, len(wal) // 2))
    _fill(wal, 1 / _PARTS)


def _row(context: Context, wal: pmwal.Wal, name: str, where: str) -> Row:
    """The slowest of all ways to seek to all places: the median of its rounds."""
    times: dict[tuple[str, int], list[int]] = {case: [] for case in itertools.product(SEEKS, PLACES)}
    opens: list[int] = []
    for turn in range(context.scale.rounds * _TURNS + 1):
        for (seek, place), each in times.items():
            seq = _seq(wal, place)
            start = perf_counter_ns()
            with pmwal.open(wal.path, "r") as reader:
                opened = perf_counter_ns()
                record = SEEKS[seek](reader, seq)
                took = perf_counter_ns() - opened
            _check(record, seq)
            if turn:
                each.append(took)
                opens.append(opened - start)
    middles = {case: median(each) / 1e6 for case, each in times.items()}
    slowest = max(middles, key=lambda case: middles[case])
    what = f"first record of a new reader, live log of {where}; the slowest: {slowest[0]} at {slowest[1]} %"
    note = f"opening the reader takes {median(opens) / 1e6:.2f} ms more; " + ", ".join(
        f"{seek} {'/'.join(f'{middles[seek, place]:.2f}' for place in PLACES)} ms" for seek in SEEKS
    )
    return absolute(name, what, middles[slowest], "ms", "at most", BARS[f"{name} ms"], note)


def _reopened(context: Context, wal: pmwal.Wal, name: str, where: str) -> Row:
    """The writer's own first lookups after it opened the log again; none was looked up before."""
    times: dict[int, list[int]] = {place: [] for place in PLACES}
    for turn in range(context.scale.rounds * _TURNS):
        for place, each in times.items():
            seq = _seq(wal, place) + turn
            start = perf_counter_ns()
            record = wal[seq]
            each.append(perf_counter_ns() - start)
            _check(record, seq)
    middles = {place: median(each) / 1e6 for place, each in times.items()}
    slowest = max(middles, key=lambda place: middles[place])
    what = f"wal[seq], log of {where}; the slowest: at {slowest} %"
    note = f"the first of them took {max(each[0] for each in times.values()) / 1e6:.2f} ms"
    return absolute(name, what, middles[slowest], "ms", "at most", BARS[f"{name} ms"], note)


def _seq(wal: pmwal.Wal, place: int) -> int:
    return wal.first_seq + (wal.committed_seq - wal.first_seq) * place // 100


def _check(record: pmwal.Record, seq: int) -> None:
    if record.seq != seq or record.data != PAYLOAD:
        raise RuntimeError(f"record {record.seq} was found where {seq} was looked up")
