"""Starts the processes, freezes the disk, takes samples, and judges the log and the figures at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pmwal
from pmwal.testing.stress import resources
from pmwal.testing.stress.interrupt import Interruption
from pmwal.testing.stress.payloads import Payloads
from pmwal.testing.stress.processes import Child
from pmwal.testing.stress.violation import Violation
from sectors import sectors_in
from soaking import processes
from soaking.board import Board
from soaking.processes import NS, Plan
from soaking.verdict import Counters, Failure, Freeze, Trend, Window, examine, failures_in, failures_of, trends, window

POLL_SECONDS = 0.02
SAMPLE_SECONDS = 1.0
SAMPLES_MIN = 100  # in a short run they are taken more often
LATE_SECONDS = 60.0  # after which appends that were due during the run are given up
WHATS = ("memory", "descriptors", "threads")
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878  # linux/fs.h


@dataclass(frozen=True)
class Settings:
    """The settings from the command line. Times in seconds."""

    seconds: float
    rate: int
    window: float
    freeze_every: float
    freeze_for: float
    readers: int
    computing: float  # share of the time
    engine: str
    seed: int
    control: str | None

    def freezes(self) -> list[float]:
        """When the disk is frozen: in the middle of each period, at the start of a window."""
        middles = (self.freeze_every * (number + 0.5) for number in range(int(self.seconds / self.freeze_every + 0.5)))
        starts = [middle // self.window * self.window for middle in middles]
        return [start for start in starts if start + self.freeze_for < self.seconds]


@dataclass
class Results:
    """The results of one run. Times are seconds since the first append was due."""

    environment: dict[str, str]
    command: str
    settings: Settings
    seconds: float = 0.0
    records: int = 0
    seen: list[int] = field(default_factory=list)  # records that each reader was shown
    compared: int = 0
    windows: list[Window] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)
    trends: list[Trend] = field(default_factory=list)
    growths: dict[str, dict[str, float | None]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    interrupted: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {"version": 1, **asdict(self), "failures": [failure._asdict() for failure in self.failures]}


@contextlib.contextmanager
def frozen(directory: Path) -> Iterator[None]:
    """Freeze the file system of a directory while the block runs."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(fd, _FITHAW, 0)
    finally:
        os.close(fd)


class Soak:
    """One run, on a file system of its own, whose device counts sectors in the file ``counter``."""

    def __init__(
        self,
        directory: Path,
        reports: Path,
        counter: Path,
        results: Results,
        tell: Callable[[Window], None],
        interruption: Interruption,
    ) -> None:
        self._settings = settings = results.settings
        self._directory = directory
        self._reports = reports
        self._counter = counter
        self._results = results
        self._tell = tell
        self._interruption = interruption
        records = int(settings.seconds * settings.rate)
        path = directory / "soak.wal"
        payloads = Payloads(settings.seed)
        self._plan = Plan(path, settings.engine, settings.rate, records, settings.computing, payloads, settings.control)
        self._board = Board(records, settings.seconds, settings.readers)
        self._watch = resources.Watch()
        self._children: list[Child] = []
        self._bounds: list[tuple[int, Counters]] = []  # of the windows
        self._next_sample = 0.0
        self._told = 0

    @property
    def _now(self) -> float:
        return (time.perf_counter_ns() - self._board["start_ns"]) / NS

    def run(self) -> None:
        """Run until the time is over or the run is interrupted; failures go to the results."""
        results = self._results
        with ExitStack() as stack:
            stack.callback(self._end)
            try:
                self._start()
                self._watch_over()
                self._finish()
                self._compare()
            except Violation as violation:
                results.failures.append(Failure(violation.kind, str(violation)))
        self._judge()

    def _start(self) -> None:
        self._child("writer", processes.write)
        for number in range(self._settings.readers):
            self._child(f"reader {number + 1}", processes.read, number)
        self._child("floor", processes.write_beside)
        while not self._board["start_ns"]:
            self._check()
            time.sleep(POLL_SECONDS)
        time.sleep(max(0.0, -self._now))
        self._bound()

    def _child(self, name: str, body: Callable[..., None], *arguments: object) -> None:
        child = Child(name, self._reports, body, self._plan, self._board, *arguments)
        self._children.append(child)
        self._watch.follow(name, child.pid)

    def _end(self) -> None:
        for child in self._children:
            child.kill()

    def _check(self) -> None:
        for child in self._children:
            child.check()

    # -- while it runs

    def _watch_over(self) -> None:
        """Take samples and freeze the disk until all appends were due."""
        freezes = self._settings.freezes()
        while self._now < self._settings.seconds and not self._interruption:
            if freezes and (len(self._bounds) - 1) * self._settings.window >= freezes[0]:  # its window has begun
                freezes.pop(0)
                self._freeze()
            self._step()

    def _step(self) -> None:
        settings, now = self._settings, self._now
        if now >= self._next_sample:
            self._next_sample = now + min(SAMPLE_SECONDS, settings.seconds / SAMPLES_MIN)
            self._watch.take(now)
            self._check()
            self._tell_windows()
        if now >= len(self._bounds) * settings.window and now < settings.seconds:
            self._bound()
        time.sleep(POLL_SECONDS)

    def _freeze(self) -> None:
        with frozen(self._directory):
            begin, rounds = self._now, self._board["rounds"]
            freeze = Freeze(begin, begin + self._settings.freeze_for, 0)
            self._results.freezes.append(freeze)
            while self._now < freeze.end:
                self._step()
            freeze.end, freeze.rounds = self._now, self._board["rounds"] - rounds

    def _bound(self) -> None:
        """The bound of a window is now."""
        counters = Counters(self._board["ticks"], self._board["barriers"], sectors_in(self._counter.read_text()))
        self._bounds.append((time.perf_counter_ns(), counters))

    def _tell_windows(self, *, all_of_them: bool = False) -> None:
        """Tell the windows of which every append has returned."""
        for start, end in list(pairwise(self._bounds))[self._told :]:
            due = (end[0] - self._board["start_ns"]) / NS * self._settings.rate
            if len(self._board.appends) <= due and not all_of_them:
                break
            self._tell(self._window(start, end))
            self._told += 1

    def _window(self, start: tuple[int, Counters], end: tuple[int, Counters]) -> Window:
        """The window between two bounds, as far as its appends have returned."""
        (begin, before), (until, after) = start, end
        found = window(self._board, self._settings.rate, begin, until, self._results.freezes, (before, after))
        base = self._board["start_ns"]
        for name, samples in self._watch.samples.items():
            mine = [sample for sample in samples if begin <= base + sample.seconds * NS < until]
            if mine:
                found.memory[name] = median(sample.memory for sample in mine)
                found.descriptors[name] = max(sample.descriptors for sample in mine)
        return found

    # -- at the end

    def _finish(self) -> None:
        """Let the writer make the appends that are late, and the readers see them."""
        board = self._board
        if self._interruption:
            board["stop"] = 1
        while not board["closed"]:
            if self._now > self._settings.seconds + LATE_SECONDS:
                board["stop"] = 1
            self._check()
            time.sleep(POLL_SECONDS)
        self._bound()
        self._tell_windows(all_of_them=True)
        for child in self._children[:-1]:  # the floor never ends
            child.wait()
        self._check()
        if not self._interruption and len(board.appends) < self._plan.records:
            message = f"{self._plan.records - len(board.appends)} appends were not made {LATE_SECONDS:g} s after the last was due"
            raise Violation(message, "too-slow")

    def _compare(self) -> None:
        """Every acknowledged record is in the log, and nothing else."""
        count = len(self._board.appends)
        report = pmwal.verify(self._plan.path)
        if report.case != "R1":
            raise Violation(f"the log was closed, but is {report.case}: {report.reason}", "unclean")
        with pmwal.open(self._plan.path, "r") as log:
            for record in log:
                self._results.compared += 1
                self._plan.check(record, self._results.compared, "the log at the end")
        if self._results.compared != count:
            raise Violation(f"{count} appends were acknowledged; the log has {self._results.compared}", "missing-record")
        for number in range(self._settings.readers):
            if self._board.seen(number) != count:
                raise Violation(f"reader {number + 1} was shown {self._board.seen(number)} of {count} records", "missing-record")

    def _judge(self) -> None:
        """The figures, and whether they are flat."""
        results, board = self._results, self._board
        results.seconds, results.records = self._now if self._bounds else 0.0, len(board.appends)
        results.seen = [board.seen(number) for number in range(self._settings.readers)]
        results.windows = [self._window(start, end) for start, end in pairwise(self._bounds)]
        results.trends = trends(results.windows)
        judged = [name for name in self._watch.samples if name != "floor"]
        results.growths = resources.growths(self._watch, dict.fromkeys(judged, WHATS))
        for freeze in results.freezes:
            examine(freeze, board, self._settings.rate)
        results.failures += failures_in(results.trends) + failures_of(results.freezes, computing=self._settings.computing > 0)
        try:
            resources.check(results.growths)
        except Violation as violation:
            results.failures.append(Failure(violation.kind, str(violation)))
        results.interrupted = None if self._interruption.signal is None else self._interruption.signal.name
