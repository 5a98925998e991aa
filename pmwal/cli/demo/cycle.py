"""One cycle of the demo: start a writer, kill it at a random moment, recover the log, compare it."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic, perf_counter
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

import pmwal
from pmwal.cli.demo.check import Claims, Finding, Ledger, Run, check
from pmwal.cli.demo.protocol import ACKNOWLEDGED, EVENT, OPENED, TRUNCATED, TRUNCATING, Events, parse_events
from pmwal.opening import open
from pmwal.opening.options import Ordering
from pmwal.records import RecoveryReport
from pmwal.storage.medium import MediumName

_START_SECONDS = 60.0  # a writer that has acknowledged nothing by then is stuck
_KEPT = 1000  # newest records that the parent keeps for the next cycle
_END_SECONDS = 5.0  # for a writer that has closed its pipe to end
_PIECE = 1 << 20
_STARTED = 2 * EVENT.size  # bytes of the first two events: opened, and one acknowledgement


class WriterEnded(Exception):
    """The writer stopped before it was killed, so nothing is proved."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """The result of one kill."""

    number: int
    killed_after: float
    acknowledged: int
    truncations: int
    recovery_seconds: float
    report: RecoveryReport | None
    finding: Finding

    @property
    def sound(self) -> bool:
        """Whether every acknowledged record was kept, and nothing else."""
        return self.finding.sound


@dataclass(slots=True)
class Demo:
    """The cycles over one log."""

    path: str
    lines_file: str
    ledger: Ledger
    scratch: str
    random: Random
    seconds: float
    medium: MediumName
    ordering: Ordering
    sabotage: str = ""
    cycles: list[Cycle] = field(default_factory=list)
    latencies_ns: list[npt.NDArray[Any]] = field(default_factory=list)
    first_seq: int = 1
    next_seq: int = 1
    line: int = 0

    def cycle(self) -> Cycle:
        """Start a writer, kill it, recover the log and compare it."""
        number = len(self.cycles) + 1
        self.ledger.begin(Run(self.next_seq, self.line, number))
        events, killed_after = self._run_writer(number)
        acknowledged = events[events["what"] == ACKNOWLEDGED]
        self.latencies_ns.append(acknowledged["value"].copy())
        claims, problem = self._claims(events)
        self.line += len(acknowledged) + 1  # a line that may have been in flight is not issued again
        cycle = self._recover(number, killed_after, len(acknowledged), events, claims)
        if problem:
            cycle.finding.problem(problem)
        self.cycles.append(cycle)
        return cycle

    def _recover(self, number: int, killed_after: float, acknowledged: int, events: Events, claims: Claims) -> Cycle:
        report: RecoveryReport | None = None
        begin = perf_counter()
        try:
            with open(self.path, "r+", medium=self.medium, ordering=self.ordering) as wal:
                seconds = perf_counter() - begin
                report = wal.recovery
                finding = check(wal.read(), claims, self.ledger, wal.first_seq, wal.next_seq)
                if finding.sound:
                    self.first_seq = wal.truncate(before=max(wal.first_seq, wal.next_seq - _KEPT))
                    self.next_seq = wal.next_seq
        except pmwal.CorruptWal as error:
            seconds = perf_counter() - begin
            finding = Finding(lost=claims.last_seq - claims.truncating + 1)
            finding.problem(f"corrupt: {error.reason or error}")
        truncations = int(np.count_nonzero(events["what"] == TRUNCATED))
        return Cycle(number, killed_after, acknowledged, truncations, seconds, report, finding)

    def _claims(self, events: Events) -> tuple[Claims, str]:
        """What the writer reported, and what is wrong with its report."""
        what, numbers = events["what"], events["number"].astype(np.int64)
        acknowledged = numbers[what == ACKNOWLEDGED]
        problem = ""
        if not np.array_equal(acknowledged, self.next_seq + np.arange(len(acknowledged))):
            problem = "the acknowledged numbers are not consecutive"
        if list(numbers[what == OPENED]) != [self.next_seq]:
            problem = f"the writer did not continue at number {self.next_seq}"
        last = int(acknowledged[-1]) if len(acknowledged) else self.next_seq - 1
        done, begun = numbers[what == TRUNCATED], numbers[what == TRUNCATING]
        return Claims(last, int(max(done, default=self.first_seq)), int(max(begun, default=self.first_seq))), problem

    def _run_writer(self, number: int) -> tuple[Events, float]:
        """The events of a writer, and how long after its first acknowledgement it was killed."""
        delay = self.random.uniform(0.05, 1) * self.seconds
        errors = Path(self.scratch, f"writer-{number}")
        received = bytearray()
        with errors.open("wb") as error_file, self._writer(number, error_file) as (process, events):
            if not _receive(events, received, monotonic() + _START_SECONDS, enough=_STARTED):
                raise WriterEnded(_why(process, errors))
            begin = monotonic()
            alive = _receive(events, received, begin + delay)
            process.kill()
            killed_after = monotonic() - begin
            if not alive:
                raise WriterEnded(_why(process, errors))
            _receive(events, received, None)
        return parse_events(bytes(received)), killed_after

    @contextlib.contextmanager
    def _writer(self, number: int, error_file: BinaryIO) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
        """A running writer and the pipe of its events; the writer is killed at the end."""
        events, writer_end = os.pipe()
        try:
            command = [sys.executable, "-m", "pmwal.cli.demo.writer", self.path, self.lines_file]
            command += [f"--start={self.line}", f"--kind={number}", f"--events={writer_end}"]
            command += [f"--medium={self.medium}", f"--ordering={self.ordering}", f"--sabotage={self.sabotage}"]
            process = subprocess.Popen(
                command,
                pass_fds=(writer_end,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=error_file,
                env=os.environ | {"PYTHONPATH": _python_path()},
            )
        except BaseException:
            os.close(events)
            raise
        finally:
            os.close(writer_end)
        try:
            yield process, events
        finally:
            process.kill()
            process.wait()
            os.close(events)


def _receive(events: int, received: bytearray, deadline: float | None, enough: int | None = None) -> bool:
    """Receive events until the deadline, or until there are enough bytes; False if the pipe ended first."""
    while enough is None or len(received) < enough:
        wait = None if deadline is None else deadline - monotonic()
        if wait is not None and wait <= 0:
            return enough is None
        if select.select([events], [], [], wait)[0]:
            piece = os.read(events, _PIECE)
            if not piece:
                return False
            received += piece
    return True


def _why(process: subprocess.Popen[bytes], errors: Path) -> str:
    """Why the writer ended before it was killed."""
    try:
        status = process.wait(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        return f"the writer acknowledged nothing in {_START_SECONDS:.0f} seconds"
    last = errors.read_text(errors="backslashreplace").strip().splitlines()[-1:]
    return ": ".join([f"the writer exited on its own with status {status}", *last])


def _python_path() -> str:
    """A PYTHONPATH with which the writer runs this pmwal and no other."""
    here = str(Path(pmwal.__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
