"""A program and its check against every crash: the run, the states, the first that fails, and its reduction."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmwal.testing.process import scratch
from pmwal.testing.programs.judging import Failure, Judge, clear, reduced
from pmwal.testing.programs.recording import Check, Recording, Run, Settings, record
from pmwal.testing.programs.report import Account, account
from pmwal.testing.programs.states import Crash, chosen, count

LIMIT = 10_000
SAMPLES = 8
LOG = "program.wal"


@dataclass(frozen=True)
class Outcome:
    """What the crashes of one run came to."""

    recording: Recording
    total: int
    """How many states there are."""
    looked_at: int
    found: Failure | None = None
    """The first state that failed."""
    least: Failure | None = None
    """The one that it was reduced to."""
    account: Account | None = None
    """What it is made of."""

    @property
    def notes(self) -> list[str]:
        """What weakens the test."""
        steps = self.recording.steps
        notes = []
        if not self.recording.values:
            notes.append("nothing was acknowledged, so done was always empty; call pmwal.testing.acknowledged(x) in run(path)")
        if not any(step.name in ("fence", "flush", "sync") for step in steps):
            notes.append("run(path) made nothing durable: it never committed and never closed its log")
        return notes


class CrashFailure(AssertionError):
    """A check failed after a crash. The message describes the least such crash; ``outcome`` has all that is known."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


def check_crashes(
    run: Run,
    check: Check,
    *,
    medium: str = "page",
    size: int | str | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    limit: int = LIMIT,
) -> int:
    """Run a program once, and check what every crash during or after the run may leave; the number of states that were checked.

    ``run(path)`` opens a log at ``path``, uses it, and calls ``acknowledged(x)`` when it has promised something. ``check(path,
    done)`` opens what a crash left there (perhaps nothing) and raises if anything in the list ``done`` was not kept, or anything
    else is wrong. The first failure is reduced and raised as ``CrashFailure``. ``medium`` and ``samples`` are those of
    ``crash_images``; ``size`` replaces the size that the program gives its log; of more than ``limit`` states (0: no limit) as many
    are chosen by ``seed``. ``ValueError`` if the program cannot be followed: one log, files beside it, one thread.

    >>> import pmwal
    >>> from pmwal.testing import acknowledged, check_crashes
    >>> def run(path):
    ...     with pmwal.open(path, size="8KiB") as wal:
    ...         for data in (b"a", b"b"):
    ...             _ = wal.append(data)
    ...             acknowledged(data)
    >>> def check(path, done):
    ...     with pmwal.open(path, size="8KiB") as wal:
    ...         assert [record.data for record in wal][: len(done)] == done
    >>> check_crashes(run, check) > 10
    True
    """
    with tempfile.TemporaryDirectory(prefix="pmwal-program-", dir=scratch()) as name:
        settings = Settings(Path(name) / LOG, medium, size)
        outcome = explore(run, check, settings, samples=samples, seed=seed, limit=limit, failures=_failures())
    if outcome.account is not None:
        raise CrashFailure("\n".join(outcome.account.lines()), outcome)
    return outcome.looked_at


def _failures() -> tuple[type[BaseException], ...]:
    """What a check raises when it fails; the failures of pytest are no ``Exception``."""
    pytest: Any = sys.modules.get("pytest")
    return (Exception,) if pytest is None else (Exception, pytest.fail.Exception)


def explore(
    run: Run,
    check: Check,
    settings: Settings,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    limit: int = LIMIT,
    failures: tuple[type[BaseException], ...] = (Exception,),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Run a program, and check the states that a crash may leave up to the first failure, which is reduced."""
    recording = record(run, settings)
    clear(settings)
    judge = Judge(check, settings, failures)
    total = count(recording, samples, seed)
    to_check = total if limit == 0 else min(total, limit)
    looked_at = 0
    for crash in chosen(recording, samples, seed, total, limit):
        progress(looked_at, to_check)
        looked_at += 1
        raised = judge(crash, recording.done(crash.step))
        if raised is not None:
            found = Failure(crash, *raised)
            if to_check < total:
                found = _first(judge, recording, found, chosen(recording, samples, seed, total, 0))
            least = reduced(judge, recording, found)
            return Outcome(recording, total, looked_at, found, least, account(recording, found, least))
    progress(looked_at, to_check)
    return Outcome(recording, total, looked_at)


def _first(judge: Judge, recording: Recording, found: Failure, states: Iterator[Crash]) -> Failure:
    """The earliest kill that fails, where only a share of the states was looked at: it cannot be reduced in any other way."""
    for crash in states:
        if found.crash.kind != "kill" or crash.step >= found.crash.step:
            break
        raised = judge(crash, recording.done(crash.step)) if crash.kind == "kill" else None
        if raised is not None:
            return Failure(crash, *raised)
    return found
