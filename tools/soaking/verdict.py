"""Windows of a soak, and the rules by which it fails.

A figure grows if the median of its windows in the last third of the run is above that of the first third by more than a factor, and
the samples bear out a rising line. Windows with a freeze do not count. Others use the machine as well: where the same percentile of
the floor, a plain durable write, has risen in the same windows, the factor rises with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import numpy as np

from pmwal.testing.stress.resources import rise
from soaking.board import Board, Rows
from soaking.processes import NS

WINDOWS_MIN = 6  # without a freeze
PERCENTILES = (50.0, 99.0, 99.9, 100.0)
FACTORS = {"p50": 2.0, "p99": 2.0, "p99.9": 3.0}
COST_FACTOR = 1.5  # of barriers for each record, and sectors for each barrier
PAUSE_MAX = 0.5
"""Seconds without other threads while the disk is frozen that are allowed, beyond the longest pause of the floor's process then."""

Latency = dict[str, float]
"""Seconds, by percentile."""


class Counters(NamedTuple):
    """What is read at the bounds of windows."""

    ticks: int
    barriers: int
    sectors: int


class Failure(NamedTuple):
    """A promise that was not kept."""

    kind: str
    message: str


@dataclass
class Window:
    """A window. Times in seconds, memory in bytes without shared pages; ``latency`` by where it begins, or what it is of."""

    start: float
    seconds: float
    frozen: bool
    records: int  # that were due
    returned: int  # appends, whenever they were due
    latency: dict[str, Latency]
    pause: float  # the longest of the writer's sleeper
    ticks: int
    barriers: int
    sectors: int
    memory: dict[str, float] = field(default_factory=dict)
    descriptors: dict[str, float] = field(default_factory=dict)


@dataclass
class Freeze:
    """A freeze of the disk: times since the start of the appends, and what happened meanwhile."""

    begin: float
    end: float
    rounds: int  # of the computing thread
    pause: float = 0.0
    floor_pause: float = 0.0
    stored: int = 0  # appends that were called and returned meanwhile
    waited: int = 0  # appends under way or due at its end


@dataclass
class Trend:
    """A figure over the windows: the medians of the first and last third, and what was allowed."""

    name: str
    first: float
    last: float
    limit: float  # for the last one
    rises: bool

    @property
    def grows(self) -> bool:
        """Whether it is above its limit, on a line that rises."""
        return self.last > self.limit and self.rises


def latency(durations_ns: Rows) -> Latency:
    """Percentiles; empty if there are no durations."""
    if not len(durations_ns):
        return {}
    values = np.percentile(durations_ns, PERCENTILES) / NS
    return {"max" if q == 100 else f"p{q:g}": float(value) for q, value in zip(PERCENTILES, values, strict=True)}


def longest(pauses: Rows, begin: int, end: int) -> float:
    """The longest pause in seconds that overlaps a time."""
    meanwhile = pauses[(pauses[:, 0] < end) & (pauses[:, 1] > begin)]
    return float((meanwhile[:, 1] - meanwhile[:, 0]).max()) / NS if len(meanwhile) else 0.0


def dues(board: Board, rate: int) -> Rows:
    """When each append that was made was due."""
    return board["start_ns"] + np.arange(len(board.appends), dtype=np.int64) * NS // rate


def window(board: Board, rate: int, begin: int, end: int, freezes: Sequence[Freeze], counted: tuple[Counters, Counters]) -> Window:
    """The window between two times. Its records are those that were due in it."""
    start = board["start_ns"]
    appends, due = board.appends.rows(), dues(board, rate)
    due = due[: len(appends)]
    mine = (due >= begin) & (due < end)
    made = appends[: len(due)][mine]
    beside = _within(board.floor.rows(), begin, end)
    seeks = _within(np.concatenate([series.rows() for series in board.seeks]), begin, end)
    since, until = (begin - start) / NS, (end - start) / NS
    ticks, barriers, sectors = (after - before for before, after in zip(*counted, strict=True))
    return Window(
        start=since,
        seconds=until - since,
        frozen=any(freeze.begin < until and freeze.end > since for freeze in freezes),
        records=len(made),
        returned=len(_within(appends, begin, end)),
        latency={
            "due": latency(made[:, 1] - due[mine]),
            "call": latency(made[:, 1] - made[:, 0]),
            "floor": latency(beside[:, 1] - beside[:, 0]),
            "seek": latency(seeks[:, 1] - seeks[:, 0]),
        },
        pause=longest(board.pauses.rows(), begin, end),
        ticks=ticks,
        barriers=barriers,
        sectors=sectors,
    )


def _within(rows: Rows, begin: int, end: int) -> Rows:
    """Those that ended in this time."""
    return rows[(rows[:, 1] >= begin) & (rows[:, 1] < end)]


def thirds(values: Sequence[float]) -> tuple[float, float]:
    """The medians of the first and of the last third."""
    third = len(values) // 3
    return median(values[:third]), median(values[-third:])


def trends(windows: Sequence[Window]) -> list[Trend]:
    """The trend of each figure that must be flat; none if there are too few windows to judge."""
    judged = [each for each in windows if not each.frozen and each.latency["due"] and each.latency["floor"] and each.barriers]
    if len(judged) < WINDOWS_MIN:
        return []
    times = [each.start for each in judged]
    found = []
    for what, (name, factor) in itertools.product(("due", "call"), FACTORS.items()):
        before, after = thirds([each.latency["floor"][name] for each in judged])
        values = [each.latency[what][name] for each in judged]
        found.append(_trend(f"{name} from the {what}", times, values, factor * max(1.0, after / before)))
    found.append(_trend("barriers a record", times, [each.barriers / max(1, each.returned) for each in judged], COST_FACTOR))
    found.append(_trend("sectors a barrier", times, [each.sectors / each.barriers for each in judged], COST_FACTOR))
    return found


def _trend(name: str, times: Sequence[float], values: Sequence[float], factor: float) -> Trend:
    first, last = thirds(values)
    return Trend(name, first, last, first * factor, rise(times, values) > 0)


def examine(freeze: Freeze, board: Board, rate: int) -> None:
    """Add to a freeze what was noted during it."""
    start = board["start_ns"]
    begin, end = (start + int(at * NS) for at in (freeze.begin, freeze.end))
    freeze.pause = longest(board.pauses.rows(), begin, end)
    freeze.floor_pause = longest(board.floor_pauses.rows(), begin, end)
    appends = board.appends.rows()
    due = dues(board, rate)[: len(appends)]
    called, returned = appends[: len(due)].T
    freeze.stored = int(((called >= begin) & (returned < end)).sum())
    freeze.waited = int(((due < end) & (returned >= end)).sum())


def failures_of(freezes: Sequence[Freeze], *, computing: bool) -> list[Failure]:
    """What went wrong while the disk was frozen; ``computing``: there was a thread that computes."""
    found = []
    for freeze in freezes:
        when = f"while the disk was frozen for {freeze.end - freeze.begin:.1f} s from {freeze.begin:.0f} s on"
        allowed = PAUSE_MAX + freeze.floor_pause
        if freeze.pause > allowed:
            message = f"{when} another thread was kept from running for {freeze.pause:.2f} s; {allowed:.2f} is allowed"
            found.append(Failure("held-interpreter", message))
        if computing and not freeze.rounds:
            found.append(Failure("held-interpreter", f"{when} a thread that computes made no progress"))
        if freeze.stored or not freeze.waited:
            message = f"{when} {freeze.stored} appends were made and {freeze.waited} waited for it"
            found.append(Failure("freeze-without-effect", message))
    return found


def failures_in(found: Sequence[Trend]) -> list[Failure]:
    """What grew."""
    return [
        Failure(
            "growing-latency" if "from" in trend.name else "growing-cost",
            f"{trend.name} rose from {trend.first:.6g} to {trend.last:.6g}; {trend.limit:.6g} is allowed",
        )
        for trend in found
        if trend.grows
    ]
