"""Starts the processes, kills writers at random moments, and checks the log after each kill or close."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

import pmwal
from pmwal.format.layout import LIVE_OFFSET, PAGE
from pmwal.repair import repair
from pmwal.testing.machine import Device
from pmwal.testing.process import using_engine
from pmwal.testing.stress import controls, kept, load, reader, resources, steady, writer
from pmwal.testing.stress.check import Contents, Expectation, Look
from pmwal.testing.stress.full_disk import filled
from pmwal.testing.stress.interrupt import Interruption
from pmwal.testing.stress.journal import Journal, Op, Progress, State
from pmwal.testing.stress.judge import Case, judge
from pmwal.testing.stress.payloads import Payloads
from pmwal.testing.stress.plan import LifePlan, LogPlan, Settings, lives
from pmwal.testing.stress.processes import Child
from pmwal.testing.stress.results import Results
from pmwal.testing.stress.violation import Violation

POLL_SECONDS = 0.01
SAMPLE_SECONDS = 0.25
READER_KILL_SHARE = 0.1  # of lives in which a reader is killed too; never the first one
JUDGED = {
    "reader 1": ("memory", "descriptors", "threads"),
    "steady": ("memory", "descriptors", "threads"),
    "supervisor": ("descriptors",),  # its memory grows with the figures it collects
}

Tell = Callable[[float], None]
"""Called regularly with the seconds since the start."""


class Supervisor:
    """One run."""

    def __init__(
        self, settings: Settings, directory: Path, device: Device | None, results: Results, tell: Tell, interruption: Interruption
    ) -> None:
        self._device = device
        self._case: Case | None = None
        self._settings = settings
        self._directory = directory
        self._results = results
        self._tell = tell
        self._interruption = interruption
        self._payloads = Payloads(settings.seed)
        self._journal = Journal()
        self._board = reader.Board(settings.readers)
        self._rng = random.Random(f"supervisor {settings.seed}")
        self._helpers: dict[str, Child] = {}
        self._next_sample = 0.0
        self._start_ns = time.perf_counter_ns()

    @property
    def _now(self) -> float:
        """Seconds since the start."""
        return (time.perf_counter_ns() - self._start_ns) / 1e9

    def run(self) -> None:
        """Run one life after another until the time is over or the run is interrupted, or a ``Violation``."""
        results = self._results
        with ExitStack() as stack:
            stack.callback(self._end)
            self._begin()
            log: LogPlan | None = None
            contents: Contents | None = None
            for drawn in lives(self._settings, self._directory):
                if self._interruption or self._now >= self._settings.seconds:
                    break
                plan = controls.adjust(drawn)
                if log != plan.log:
                    if log is not None:
                        log.path.unlink(missing_ok=True)
                    log, contents = plan.log, None
                    results.logs += 1
                contents = self._life(plan, contents)
                results.lives += 1
            for helper in self._helpers.values():
                helper.check()
            results.growths = resources.growths(results.watch, JUDGED)
            resources.check(results.growths)

    def _begin(self) -> None:
        engine, medium = self._settings.engines[0], self._settings.media[0]
        control = self._settings.control
        self._results.watch.follow("supervisor", os.getpid())
        if self._settings.cpu_load or self._settings.io_load:
            self._help("load", load.burden, self._directory, self._settings.cpu_load, self._settings.io_load)
        self._help("steady", steady.live_long, self._directory / "steady.wal", medium, engine, self._payloads, control)
        for number in range(self._settings.readers):
            self._start_reader(number)

    def _start_reader(self, number: int) -> None:
        engine = self._settings.engines[number % len(self._settings.engines)]
        body = (self._directory, self._board, number, self._payloads, engine, self._settings.control)
        self._help(f"reader {number + 1}", reader.watch, *body, isolated=self._settings.isolated)

    def _help(self, name: str, body: Callable[..., None], *args: object, isolated: bool = False) -> None:
        child = Child(name, self._directory, body, *args, isolated=isolated)
        self._helpers[name] = child
        self._results.watch.follow(name, child.pid)

    def _end(self) -> None:
        self._results.seconds = self._now
        self._results.looks = self._board.looks()
        for helper in self._helpers.values():
            helper.kill()

    # -- one life

    def _life(self, plan: LifePlan, before: Contents | None) -> Contents | None:
        """Run a writer, kill it or let it close, and check the log."""
        if plan.space == "full disk" and not plan.log.path.exists():
            plan = replace(plan, space="plenty")  # no log can be created then
        self._journal.clear()
        self._case = None
        self._board.announce(plan.number, plan.log.number)
        with filled(self._directory) if plan.space == "full disk" else nullcontext():
            child = Child("writer", self._directory, writer.live, plan, self._journal, self._payloads, self._board)
            try:
                self._watch(plan, child)
            finally:
                self._board.serve(0)
                killed = child.kill()
        if plan.space != "plenty":
            self._results.short_of_space[plan.space] += 1
        try:
            child.check()
            with using_engine(plan.engine):
                return self._check(plan, before, killed)
        except Violation as violation:
            raise Violation(f"{plan}: {violation}", violation.kind) from violation

    def _watch(self, plan: LifePlan, child: Child) -> None:
        """Until it is time to kill the writer, or it has closed the log."""
        self._results.watch.follow("writer", child.pid)
        end = time.monotonic() + plan.seconds
        while time.monotonic() < end and child.running and not self._interruption:
            time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))
            self._look_around()
        if plan.clean and child.running and not self._interruption:
            child.wait()

    def _look_around(self) -> None:
        """Take samples, and check the other processes."""
        now = self._now
        if now >= self._next_sample:
            self._next_sample = now + max(SAMPLE_SECONDS, self._settings.seconds / 2000)
            self._results.watch.take(now)
            if self._device is not None and (written := self._device.written()) is not None:
                self._results.disk.append((now, written.sectors, written.flushes))
            self._tell(now)
        for helper in self._helpers.values():
            helper.check()

    def _check(self, plan: LifePlan, before: Contents | None, killed: bool) -> Contents | None:
        progress, entries = self._journal.progress, self._journal.entries()
        if not killed and progress != Progress.CLOSED:
            raise Violation("the writer ended on its own without closing the log", "unexpected-end")
        self._count(plan, killed, progress)
        self._results.count_calls(entries, plan.engine, self._start_ns)
        if before is None and progress == Progress.NOTHING and not plan.log.path.exists():
            return None  # killed before the log had a name
        readers = [helper for name, helper in self._helpers.items() if name.startswith("reader")]
        for helper in readers:
            helper.suspend()
        try:
            controls.after_kill(plan)
            self._case = Case(
                plan.log.path.name, plan.engine, self._settings.seed, before or Contents(), entries, self._journal.opening,
                plan.on_full == "overwrite", progress == Progress.CLOSED, self._board.sightings(plan.number),
            )  # fmt: skip
            look, expected, contents = judge(self._case, self._directory, self._payloads)
            self._results.cases[look.case] += 1
        finally:
            for helper in readers:
                helper.resume()
        self._results.records_checked += len(look.records)
        self._count_under_way(expected, contents)
        if plan.recover_here:
            self._repair(plan, look)
            self._recover(plan, look)
        if self._settings.readers > 1 and self._rng.random() < READER_KILL_SHARE:
            self._kill_reader()
        return contents

    def _recover(self, plan: LifePlan, look: Look) -> None:
        """Recover the log in this process; it must keep what the reader saw."""
        start = time.perf_counter()
        try:
            with pmwal.open(plan.log.path, "r+", medium=plan.medium) as log:
                assert isinstance(log, pmwal.Wal)
                took = time.perf_counter() - start
                records, scanned = list(log), log.recovery.bytes_scanned
        except (pmwal.PmwalError, OSError) as error:
            message = f"recovery, although a reader found no damage: {type(error).__name__}: {error}"
            raise Violation(message, "corrupt-log") from error
        self._results.recoveries.append((self._now, took, scanned, plan.engine))
        if records != look.records:
            raise Violation(f"recovery kept {len(records)} records; a reader before it found {len(look.records)}", "missing-record")

    def _repair(self, plan: LifePlan, look: Look) -> None:
        """A repair changes only a log in which a kill tore a slot, and keeps every record of a copy with a damaged superblock."""
        path, copy = plan.log.path, plan.log.path.with_suffix(".copy")
        content = path.read_bytes()
        copy.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        try:
            report, copied = repair(path), repair(copy)
            with pmwal.open(copy, "r") as log:
                records = list(log)
        except (pmwal.PmwalError, OSError) as error:
            raise Violation(f"repair of a log in which a reader found no damage: {error}", "bad-repair") from error
        copy.unlink()
        Path(copied.backup).unlink()
        if report.backup and report.before.case == "R7":
            Path(report.backup).unlink()
        elif report.backup or _lasting(path.read_bytes()) != _lasting(content):
            raise Violation(f"the log needs no repair, but was changed: {'; '.join(report.actions)}", "bad-repair")
        if records != look.records:
            raise Violation(f"of {len(look.records)} records it kept {len(records)}: {'; '.join(copied.actions)}", "bad-repair")

    def _kill_reader(self) -> None:
        number = self._rng.randrange(1, self._settings.readers)
        self._helpers[f"reader {number + 1}"].kill()
        self._results.kills.append((self._now, "reader"))
        self._start_reader(number)

    # -- figures

    def _count(self, plan: LifePlan, killed: bool, progress: Progress) -> None:
        opening = self._journal.opening
        if killed:
            self._results.kills.append((self._now, "open" if progress == Progress.NOTHING else "work"))
        else:
            self._results.closes.append(self._now)
        if opening is not None:
            took = (opening.end_ns - opening.start_ns) / 1e9
            self._results.recoveries.append((self._now, took, opening.bytes_scanned, plan.engine))

    def _count_under_way(self, expected: Expectation, contents: Contents) -> None:
        """Count the outcomes of the calls that the kill interrupted."""
        there = set(contents.tickets)
        for call in expected.under_way:
            self._results.under_way["stores kept" if call.ticket in there else "stores dropped"] += 1
        entries = self._journal.entries()
        cut_short = entries[entries["state"] == State.INTENDED]
        for op in (Op.TRUNCATE, Op.ROLLBACK, Op.COMMIT, Op.WAIT, Op.ABORT):
            count = int((cut_short["op"] == op).sum())
            if count:
                self._results.under_way[f"{op.name.lower()}s"] += count

    def save(self, directory: Path) -> None:
        """Save what is needed to judge the log of the last writer once more."""
        np.save(directory / "journal.npy", self._journal.entries())
        if self._case is not None:
            kept.save(self._case, directory)


def _lasting(content: bytes) -> bytes:
    """A file without the live page, where readers that follow note that they wait."""
    return content[:LIVE_OFFSET] + content[LIVE_OFFSET + PAGE :]
