"""Run thousands of random histories of a log under kills and power cuts, with payloads that imitate its structures.

    python -m tools histories --histories 10000 --processes 2       each history once with each engine
    python -m tools histories --replay native:4711                  one history, as a failure names it

The history of a number is the same in every run: geometry, ordering, policy, calls, payloads, crashes. Runs cover the numbers from
--seed on, so one that was interrupted is continued with --seed and --histories as it prints. After each crash the log must open
and hold what the model allows, by one of the verdicts R1, R2, R3 and R7. Exit status: 0; 1 a history failed; 2 wrong usage; 130
interrupted.
"""

from __future__ import annotations

import os

os.environ.setdefault("PMWAL_CHECK", "1")  # before pmwal is imported: see pmwal/writing/checks.py

import argparse
import multiprocessing
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pmwal
from history import History
from pmwal.native import native
from pmwal.testing.process import scratch, using_engine

ROUNDS = 25
TOLD_EACH = 500  # histories
_ORDERINGS = ("strict", "pipelined")
_POLICIES = ("raise", "overwrite", "wait")


class Outcome(NamedTuple):
    """How one history ended: its verdicts by label, and what was wrong, if anything was."""

    engine: str
    number: int
    cases: Counter[str]
    crashes: int
    operations: int
    failure: str | None


def history_of(number: int, path: Path) -> History:
    """The history with this number."""
    return History(path, number, ordering=_ORDERINGS[number % 2], on_full=_POLICIES[number // 2 % 3])


def run_one(task: tuple[str, int]) -> Outcome:
    """Run a history with an engine."""
    engine, number = task
    with using_engine(engine), tempfile.TemporaryDirectory(prefix="pmwal-history-", dir=scratch()) as name:
        history = history_of(number, Path(name) / "test.wal")
        failure = None
        try:
            history.run(ROUNDS)
        except (AssertionError, pmwal.PmwalError, OSError) as error:
            failure = f"{type(error).__name__}: {error}"
        return Outcome(engine, number, history.cases, history.crashes, history.operations, failure)


class Tally:
    """What was run so far."""

    def __init__(self) -> None:
        self.done = self.crashes = self.operations = self.failures = 0
        self.cases = Counter[str]()
        self.started = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Count a history; tell of one that failed."""
        self.done += 1
        self.crashes += outcome.crashes
        self.operations += outcome.operations
        self.cases += outcome.cases
        if outcome.failure is not None:
            self.failures += 1
            print(f"history {outcome.number}, {outcome.engine}: {outcome.failure}", file=sys.stderr)
            print(f"again with: python -m tools histories --replay {outcome.engine}:{outcome.number}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        verdicts = ", ".join(f"{case} {count}" for case, count in sorted(self.cases.items()))
        took = time.monotonic() - self.started
        return (
            f"{self.done} histories, {self.operations} operations, {self.crashes} crashes; verdicts {verdicts}; "
            f"{self.failures} failed; {took:.0f} s"
        )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=1000, metavar="N", help="how many numbers (default: %(default)s)")
    parser.add_argument("--seed", type=int, metavar="N", help="the first number (default: random)")
    parser.add_argument("--engine", choices=("both", "native", "python"), default="both")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes at a time; 0: one for each CPU (default: %(default)s)"
    )
    parser.add_argument("--replay", metavar="ENGINE:NUMBER", help="run this history alone")
    options = parser.parse_args(arguments)
    if options.histories < 1 or options.processes < 0:
        parser.error("--histories must be at least 1, --processes at least 0")
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(3), "big")
    options.processes = options.processes or len(os.sched_getaffinity(0))
    options.engines = ("native", "python") if options.engine == "both" else (options.engine,)
    options.numbers = range(options.seed, options.seed + options.histories)
    if options.replay is not None:
        engine, _, number = options.replay.partition(":")
        if engine not in ("native", "python") or not number.isdecimal():
            parser.error(f"--replay {options.replay}: it is ENGINE:NUMBER, for example native:4711")
        options.engines, options.numbers = (engine,), range(int(number), int(number) + 1)
    if native is None and "native" in options.engines:
        parser.error("the native engine was not built; use --engine python")
    return options


def outcomes(options: argparse.Namespace) -> Iterator[Outcome]:
    """Every history with every engine, in order."""
    tasks = ((engine, number) for number in options.numbers for engine in options.engines)
    if options.processes == 1:
        yield from map(run_one, tasks)
        return
    ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends this process, and with it the pool
    with multiprocessing.get_context("fork").Pool(options.processes, signal.signal, ignore) as pool:
        yield from pool.imap(run_one, tasks, chunksize=8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the histories; the exit status."""
    options = parse(arguments)
    numbers, tally = options.numbers, Tally()
    print(f"seed {numbers.start}, {len(numbers)} histories with {' and '.join(options.engines)}", flush=True)
    try:
        for outcome in outcomes(options):
            tally.add(outcome)
            if tally.done % TOLD_EACH == 0:
                print(f"{tally}; up to number {outcome.number}", flush=True)
    except KeyboardInterrupt:
        done = tally.done // len(options.engines)
        words = ["--seed", str(numbers.start + done), "--histories", str(len(numbers) - done), "--engine", options.engine]
        print(f"{tally}\ncontinue with: python -m tools histories {shlex.join(words)}")
        return 130
    print(tally)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
