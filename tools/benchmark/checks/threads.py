"""Checks of several threads and tasks: those that share commits, those that compute, and those that only want to run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from benchmark import onlookers
from benchmark.context import Context
from benchmark.gate import BARS, Row, absolute, compare, skipped
from pmwal.testing.bench import workloads
from pmwal.testing.bench.floors import PAGE, Area, PageBuffer
from pmwal.testing.bench.stats import median, rate_text
from pmwal.testing.bench.workloads import PAYLOAD

_THREADS = 8


def threads(context: Context) -> Iterator[Row]:
    """Eight threads that append durably, against a group commit in C."""
    if context.disk.in_memory:
        yield skipped("threads", "the disk directory is in memory")
        return
    scale, ours, floor = context.scale, [], []
    with (
        Area(context.disk_dir / "floor", scale.ring) as area,
        workloads.new_log(context.disk_dir, size=scale.ring) as wal,
    ):
        for turn in range(scale.rounds + 1):
            runs = [
                context.floors.group_commit(area, PAYLOAD, _THREADS, scale.each_thread, sync_file=sync_file)
                for sync_file in (False, True)
            ]
            found = workloads.append_threads(wal, PAYLOAD, _THREADS, scale.each_thread)
            if turn:
                floor.append(min(runs))
                ours.append(found)
    records = _THREADS * scale.each_thread
    shared = median([run.barriers_per_record for run in ours])
    note = f"the C group commit: {median([barriers / records for _, barriers in floor]):.3f}"
    what = f"{_THREADS} threads, durable append 128 B: barriers for each record"
    yield absolute("threads", what, shared, "", "at most", BARS["threads barriers"], note)
    rates = median([records / total * 1e9 for total, _ in floor]), median([run.rate for run in ours])
    what, against = f"{_THREADS} threads, durable append 128 B", "C group commit, the better of msync and fdatasync"
    yield compare("threads", what, against, rates, "records/s", "at least", BARS["threads rate"])


def tasks(context: Context) -> Iterator[Row]:
    """Many tasks that append durably at once, against one append after another in the same event loop."""
    if context.disk.in_memory:
        yield skipped("tasks", "the disk directory is in memory")
        return
    scale, alone = context.scale, max(1, context.scale.tasks // 10)
    runs = [workloads.append_tasks(context.disk_dir, PAYLOAD, scale.tasks, alone=alone) for _ in range(scale.rounds + 1)][1:]
    rates = alone / median([run.alone for run in runs]) * 1e9, scale.tasks / median([run.together for run in runs]) * 1e9
    what = f"{scale.tasks} tasks, durable append 128 B each, in one event loop"
    note = f"{median([run.commits for run in runs]):g} commits"
    yield compare("tasks", what, "one task, one after another", rates, "records/s", "at least", BARS["tasks"], note)


def beside_computing(context: Context) -> Iterator[Row]:
    """A durable append while a thread computes in Python, against the same append alone.

    Python switches between the two threads every switch interval, so at best half of the rate is left. The note says what is left
    of the rate of a C loop that computes every other interval, because a disk that was idle is slow to answer.
    """
    count, page = context.scale.beside, PageBuffer()
    alone, beside, turns = [], [], []
    with (
        workloads.new_log(context.disk_dir, size=context.scale.ring) as wal,
        Area(context.disk_dir / "direct", context.scale.ring, flags=os.O_DIRECT | os.O_DSYNC) as area,
    ):
        for turn in range(context.scale.rounds + 1):
            rates = [workloads.append_threads(wal, PAYLOAD, 1, count).rate]
            with workloads.computing():
                rates.append(workloads.append_threads(wal, PAYLOAD, 1, count).rate)
            bare = context.floors.pwrite(area, page.address, PAGE, count, sync=False).total
            interrupted = context.floors.pwrite_turns(area, page.address, sys.getswitchinterval(), count)
            if turn:
                alone.append(rates[0])
                beside.append(rates[1])
                turns.append(bare / interrupted)
    what = f"durable append 128 B beside one computing thread, {context.disk.mount.filesystem}"
    figures = median(alone), median(beside)
    note = f"O_DIRECT|O_DSYNC pwrite in C that computes every other {sys.getswitchinterval() * 1e3:g} ms keeps {median(turns):.2f}"
    yield compare("beside computing", what, "alone", figures, "records/s", "at least", BARS["beside computing"], note)


def lone_committer(context: Context) -> Iterator[Row]:
    """Ticks of a thread that sleeps 1 ms at a time, while another one appends durably without a pause."""
    ticks, alone, rates, quiet = [], [], [], []
    count, seconds = context.scale.beside, context.scale.watch
    with workloads.new_log(context.disk_dir, size=context.scale.ring) as wal:
        for turn in range(context.scale.rounds + 1):
            rate_alone = workloads.append_loop(wal, PAYLOAD, count, commit=True)
            with onlookers.sleeper() as other:
                idle = other.rate(lambda: onlookers.idle(seconds))
                beside = other.rate(lambda: rates.append(1e9 / workloads.append_loop(wal, PAYLOAD, count, commit=True).mean))
            if turn:
                alone.append(1e9 / rate_alone.mean)
                quiet.append(idle)
                ticks.append(beside)
    what = f"a thread that sleeps 1 ms at a time beside durable appends of 128 B, {context.disk.mount.filesystem}"
    note = (
        f"{median(quiet):.0f} ticks/s without them; {rate_text(median(rates[1:]), ' appends/s')} beside it, "
        f"{rate_text(median(alone), '/s')} alone"
    )
    yield absolute("lone committer", what, median(ticks), "ticks/s", "at least", BARS["sleeper ticks"], note)
