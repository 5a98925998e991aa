"""The judgement on a log after a life of its writer: what a reader finds there, against the journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pmwal
from pmwal.testing.stress.check import Contents, Expectation, Look, compare, expect, shown
from pmwal.testing.stress.journal import Entries, Opened
from pmwal.testing.stress.payloads import Payloads
from pmwal.testing.stress.violation import Violation


@dataclass(frozen=True)
class Case:
    """Everything that the judgement depends on, but the log itself."""

    log: str  # name of the file
    engine: str
    seed: int  # of the run, for the payloads
    before: Contents
    entries: Entries
    opening: Opened | None
    overwrites: bool
    closed: bool
    sightings: Sequence[tuple[int, int]]  # by readers, during the life


def judge(case: Case, directory: Path, payloads: Payloads) -> tuple[Look, Expectation, Contents]:
    """What is there, the expectation that it meets, and the new contents; ``Violation`` if it meets none."""
    expectations = expect(case.before, case.entries, case.opening, overwrites=case.overwrites)
    look = _read(directory / case.log, closed=case.closed)
    expected, contents = compare(expectations, look, payloads)
    shown(case.sightings, expected, contents)
    return look, expected, contents


def _read(path: Path, *, closed: bool) -> Look:
    """The log as a reader sees it, which is what recovery would keep."""
    try:
        with pmwal.open(path, "r") as log:
            assert isinstance(log, pmwal.Reader)
            report = log.recovery
            look = Look(log.first_seq, log.committed_seq + 1, list(log), log.stats().used, log.capacity, report.case)
    except (pmwal.PmwalError, OSError) as error:
        raise Violation(f"{type(error).__name__}: {error}", "corrupt-log") from error
    if closed and report.case != "R1":
        raise Violation(f"the log was closed, but a reader finds {report.case}: {report.reason}", "unclean")
    return look
