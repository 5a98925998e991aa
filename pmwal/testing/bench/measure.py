"""Measuring: floors and modes in turns, which share the fast and slow phases of a machine; and threads that commit together."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np

import pmwal
from pmwal.storage.medium import MediumName
from pmwal.testing import machine
from pmwal.testing.bench import workloads
from pmwal.testing.bench.floors import Floors, FloorsUnavailable, Loop, load
from pmwal.testing.bench.results import Results, Row, Threads
from pmwal.testing.bench.stats import Latency, merge
from pmwal.testing.bench.ways import FILE, RING_MAX, RING_MIN, Place, Way, floors_of, modes_of
from pmwal.testing.bench.workloads import PAYLOAD

ROUNDS = 6  # the first is to warm up, and is not used
THREADS = (1, 2, 4, 8, 16)
_THREAD_ROUNDS = 3
_THREAD_SHARE = 0.25  # of the time
RING_PER_SECOND = 1 << 20  # of the run: making the files takes a part of a short one
_SHORT_NS = 10_000  # a call that takes less is measured by the loop around it: a look at the clock would be a part of it
_CALLS_MAX = 20_000  # of a turn
_PROBE_NS = 5_000_000

Tell = Callable[[str, float], None]
"""Called with what is measured next, and the share that is done."""


def run(path: Path, medium: MediumName, seconds: float, tell: Tell) -> Results:
    """Measure for about this time, in a directory of its own."""
    directory = Path(tempfile.mkdtemp(prefix="pmwal-bench-", dir=path))
    try:
        with pmwal.open(directory / "look.wal", "x", size="64KiB", medium=medium) as wal:
            stats = wal.stats()
        floors, missing = _floors()
        environment = {"path": str(path), **machine.facts(machine.look(directory)), "load": f"{machine.load()} at the start"}
        results = Results(environment, stats.medium, stats.ordering, stats.durability, stats.engine, stats.flush, seconds)
        results.notes += [missing] if missing else []
        with ExitStack() as stack:
            ring = int(min(RING_MAX, max(RING_MIN, seconds * RING_PER_SECOND)))
            place = Place(directory, medium if medium != "auto" else cast(MediumName, stats.medium), floors, ring, stack)
            ways = [*floors_of(place), *modes_of(place)]
            results.rows = _rows(ways, ring, seconds * (1 - _THREAD_SHARE), tell)
            results.threads = _threads(place, seconds * _THREAD_SHARE, tell)
        results.environment["load"] += f", {machine.load()} at the end"
        return results
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _floors() -> tuple[Floors | None, str]:
    try:
        return load(), ""
    except FloorsUnavailable as error:
        return None, f"no floors and no ratios: {error}"


def _rows(ways: Sequence[Way], ring: int, seconds: float, tell: Tell) -> list[Row]:
    """All ways in turns; in each round a way has as much time as any other."""
    turn_ns = seconds * 1e9 / len(ways) / ROUNDS
    counts = [_calls(way, ring, turn_ns) for way in ways]
    times: list[list[Loop]] = [[] for _ in ways]
    costs: list[list[float]] = [[] for _ in ways]
    for number in range(ROUNDS):
        for way, count, mine, cost in zip(ways, counts, times, costs, strict=True):
            tell(way.name, (number + 0.5) / ROUNDS)
            loop = way.each(count)
            middle = float(np.median(loop.each))
            if way.whole is not None and middle < _SHORT_NS:
                middle = way.whole(count).mean
            if number:
                mine.append(loop)
                cost.append(middle)
    found = dict(zip((way.key for way in ways), costs, strict=True))
    return [_row(way, mine, found) for way, mine in zip(ways, times, strict=True)]


def _calls(way: Way, ring: int, turn_ns: float) -> int:
    """How many calls fit into a turn, and into half of the ring."""
    count = 1
    while (took := way.each(count).total) < min(_PROBE_NS, turn_ns / 2) and count < _CALLS_MAX:
        count *= 4
    most = ring // 2 // (way.bytes_each * way.records) if way.bytes_each else _CALLS_MAX
    halves = 2 if way.whole is not None and took / count < _SHORT_NS else 1
    return max(2, min(int(turn_ns * count / took / halves), most, _CALLS_MAX))


def _row(way: Way, loops: Sequence[Loop], costs: dict[str, list[float]]) -> Row:
    latency = Latency.of(merge([loop.each for loop in loops]))
    mine = costs[way.key]
    floors = [key for key in way.floors if key in costs]
    floor = min(floors, key=lambda key: median(costs[key]), default=None)
    ratio = None if floor is None else median([ours / bare for ours, bare in zip(mine, costs[floor], strict=True)])
    return Row(
        way.key, way.name, way.kind, way.records, latency.calls, median(mine), min(mine), max(mine),
        latency.p50, latency.p99, latency.p999, latency.max, floor, ratio,
    )  # fmt: skip


def _threads(place: Place, seconds: float, tell: Tell) -> list[Threads]:
    """Durable appends by more and more threads, and the same by threads in C on a disk."""
    wal = place.log()
    area = place.area("group") if place.floors is not None and place.kind == FILE else None
    piece = seconds * 1e9 / len(THREADS) / (_THREAD_ROUNDS + 1) / (2 if area is not None else 1)
    alone = workloads.append_each(wal, PAYLOAD, 20, commit=True)
    found = []
    for threads in THREADS:
        each = int(piece / max(alone.mean, 2_000.0) / max(1.0, threads / 4))  # as if four of them shared a commit
        each = max(3, min(each, place.ring // 4 // 256 // threads))
        runs, bare = [], []
        for number in range(_THREAD_ROUNDS):
            tell(f"{threads} threads", number / _THREAD_ROUNDS)
            runs.append(workloads.append_threads(wal, PAYLOAD, threads, each))
            if area is not None and place.floors is not None:
                bare.append(_in_c(place.floors, area, threads, each))
        found.append(
            Threads(
                threads,
                median([one.rate for one in runs]),
                median([one.barriers_per_record for one in runs]),
                Latency.of(merge([one.each for one in runs])).p50,
                median(bare) if bare else None,
            )
        )
    return found


def _in_c(floors: Floors, area: object, threads: int, each: int) -> float:
    """Records a second of a group commit in C."""
    took, _ = floors.group_commit(area, PAYLOAD, threads, each, sync_file=True)  # type: ignore[arg-type]
    return threads * each / took * 1e9
