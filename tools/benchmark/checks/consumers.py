"""Checks of named consumers: what an acknowledgement costs, and a resume after the last one in a large log beside its writer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns

import pmwal
from benchmark.context import Context, free_space
from benchmark.gate import BARS, Row, absolute, skipped
from pmwal.testing.bench.stats import median
from pmwal.testing.bench.workloads import BATCH, BATCH_OF_PAYLOADS
from pmwal.testing.machine import available_memory

_NAME = "consumers"
_RESUMES = 20  # in each round


def consumers(context: Context) -> Iterator[Row]:
    """``ack`` on the disk and in memory, and the first record of a consumer that begins again."""
    for directory, where in ((context.memory_dir, "memory"), (context.disk_dir, "disk")):
        path = directory / "consumers.wal"
        try:
            with pmwal.open(path, "x", size=context.scale.ring, commit="manual", on_full="overwrite") as wal:
                _fill(wal, context.scale.ring)
                yield _acks(context, path, where)
        finally:
            _remove(path)
    ring = context.scale.seek_ring
    if min(available_memory(), free_space(context.memory_dir)) < 2 * ring:
        yield skipped(_NAME, f"{ring >> 20} MiB do not fit twice into the memory that is free")
        return
    path = context.memory_dir / "consumers.wal"
    try:
        with pmwal.open(path, "x", size=ring, commit="manual", on_full="overwrite") as wal:
            _fill(wal, ring)
            yield _resumes(context, wal, ring)
    finally:
        _remove(path)


def _fill(wal: pmwal.Wal, ring: int) -> None:
    while wal.free > ring // 8 and not wal.stats().overwritten:
        wal.extend(BATCH_OF_PAYLOADS[:BATCH])
    wal.commit()


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    shutil.rmtree(f"{path}.consumers", ignore_errors=True)


def _acks(context: Context, path: Path, where: str) -> Row:
    """Each record is acknowledged right after it was delivered; some once more, durably."""
    times: list[int] = []
    durable: list[int] = []
    with pmwal.open(path, "r") as reader, reader.consumer("ack") as consumer:
        for record in consumer.follow(timeout=0):
            start = perf_counter_ns()
            consumer.ack(record.seq)
            times.append(perf_counter_ns() - start)
            if len(durable) < context.scale.rounds * _RESUMES:
                start = perf_counter_ns()
                consumer.ack(record.seq, durable=True)
                durable.append(perf_counter_ns() - start)
            if len(times) == context.scale.disk_calls:
                break
    note = f"with a sync {median(durable) / 1e3:.0f} µs more"
    return absolute(_NAME, f"ack without a sync, {where}", median(times) / 1e3, "µs", "at most", BARS["consumers ack µs"], note)


def _resumes(context: Context, wal: pmwal.Wal, ring: int) -> Row:
    times = []
    middle = (wal.first_seq + wal.next_seq) // 2
    with pmwal.open(wal.path, "r") as reader, reader.consumer("resume", middle):
        pass
    for _ in range(context.scale.rounds * _RESUMES):
        with pmwal.open(wal.path, "r") as reader:
            start = perf_counter_ns()
            with reader.consumer("resume") as consumer:
                record = next(consumer.follow())
                times.append(perf_counter_ns() - start)
                if record.seq != middle:
                    raise RuntimeError(f"a consumer at {middle - 1} resumed with record {record.seq}")
    what = f"first record of a consumer that begins again, live log of {ring >> 20} MiB in memory"
    return absolute(
        _NAME, what, median(times) / 1e6, "ms", "at most", BARS["consumers resume ms"], f"longest {max(times) / 1e6:.1f} ms"
    )
