"""Explore the crash images of a log: every file that a power cut or a kill may leave, each judged, many of them recovered.

    python tools/crashsim.py --quick                 at least 50,000 distinct images, over both engines
    python tools/crashsim.py --full                  at least 1,000,000
    python tools/crashsim.py --mutants               every deliberate bug must be noticed, by the oracle that its table names
    python tools/crashsim.py --mutant NAME           one of them
    python tools/crashsim.py --replay HISTORY        the history that a failure names

Images with the same bytes (without the live page, which means nothing after a crash) and the same expectation count once. Exit
status: 0; 1 an oracle was violated, or a mutant survived; 2 it could not be run, or ended with too few images.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from pmwal.native import native
from pmwal.testing._mutants.table import MUTANTS, noticed_by
from pmwal.testing._simulator.campaign import SETTINGS, Plan, Result, explore_chunk, minimal, read_history, run, spell
from pmwal.testing._simulator.explore import Effort, Failure

QUICK, FULL = 50_000, 1_000_000


def show(result: Result, distinct: int) -> None:
    """Print one line about what was explored so far."""
    counts = result.counts
    print(
        f"{counts['histories']:>7} histories, {counts['operations']:>8} operations, {counts['images']:>9} images, "
        f"{distinct:>9} distinct, {counts['opened']:>7} opened, {counts['interrupted']:>6} recovered under crashes, "
        f"{counts['continued']:>5} appended to, {counts['damaged']:>7} damaged, {result.seconds:>6.1f} s",
        flush=True,
    )


def tell(engine: str, failure: Failure, effort: Effort) -> None:
    """A violation, the shortest history that shows it, and how to see it again."""
    least = minimal(engine, failure, effort)
    print(f"{failure.oracle} is violated: {failure.detail}", file=sys.stderr)
    print(f"minimal history: {' '.join(least.history.names) or 'an open'}", file=sys.stderr)
    print(f"there: {least.detail}", file=sys.stderr)
    print(f"again with: python tools/crashsim.py --replay {spell(engine, least.history)}", file=sys.stderr)


def explore(plan: Plan, processes: int) -> int:
    """Run a campaign and print the result."""
    result = run(plan, processes, show)
    distinct = result.images_distinct()
    show(result, distinct)
    cases = ", ".join(f"{case}: {number}" for case, number in sorted(result.cases.items()))
    print(f"seed {plan.seed}, engines {' and '.join(plan.engines)}, {len(SETTINGS)} settings; verdicts {cases}")
    if result.failure:
        tell(*result.failure, plan.effort)
        return 1
    if distinct < plan.target:
        print(f"only {distinct} of {plan.target} distinct images in {result.seconds:.0f} s", file=sys.stderr)
        return 2
    return 0


def replay(text: str, effort: Effort) -> int:
    """Explore one history, every image of it opened and recovered under crashes."""
    engine, history = read_history(text)
    histories = [history._replace(names=history.names[:length]) for length in range(len(history.names) + 1)]
    result = explore_chunk(effort, (engine, tuple(histories)))
    if result.failure:
        tell(*result.failure, effort)
        return 1
    print(f"{spell(engine, history)}: {result.counts['judged']} distinct images, no violation")
    return 0


def hunt(names: list[str]) -> int:
    """Try mutants; the exit status."""
    survivors = 0
    for name in names:
        mutant, started = MUTANTS[name], time.monotonic()
        noticed = noticed_by(mutant)
        right = noticed is not None and noticed[0] == mutant.oracle
        what = "SURVIVED" if noticed is None else f"noticed by {noticed[0]}" + ("" if right else f", NOT BY {mutant.oracle}")
        print(f"{name:<32} {what:<40} {time.monotonic() - started:6.2f} s  {mutant.what}", flush=True)
        if not right:
            survivors += 1
            where = "the creation of a log" if mutant.operations is None else spell(mutant.engine, mutant.history)
            print(f"  in {where}{'' if noticed is None else ': ' + noticed[1]}", file=sys.stderr)
    print(f"{len(names) - survivors} of {len(names)} mutants noticed by the oracle of the table")
    return 1 if survivors else 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--quick", action="store_true", help=f"every single operation, then sequences by seed up to {QUICK} images")
    what.add_argument("--full", action="store_true", help=f"every sequence of two, of three on two settings, then up to {FULL}")
    what.add_argument("--mutants", action="store_true", help="all deliberate bugs, one after the other")
    what.add_argument("--mutant", choices=sorted(MUTANTS), help="one deliberate bug")
    what.add_argument("--replay", metavar="HISTORY", help="engine:medium:ordering:base:size:align:seed:operation,operation,...")
    parser.add_argument("--engine", choices=("native", "python", "both"), default="both")
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--images", type=int, help="distinct images to reach")
    parser.add_argument("--length", type=int, help="explore every sequence of up to this many operations")
    parser.add_argument("--seconds", type=float, help="stop after this time; too few images then are exit status 2")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: one for each CPU")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Explore, or hunt mutants, or replay."""
    options = parse(arguments)
    engines = ("native", "python") if options.engine == "both" else (options.engine,)
    if native is None and "native" in engines:
        print("the native engine was not built; use --engine python", file=sys.stderr)
        return 2
    if options.mutants or options.mutant:
        return hunt([options.mutant] if options.mutant else list(MUTANTS))
    if options.replay is not None:
        try:
            return replay(options.replay, Effort(open_one_in=1, interrupt_one_in=4, continue_one_in=64, lose_one_in=4))
        except ValueError as error:
            print(f"--replay {options.replay}: {error}", file=sys.stderr)
            return 2
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(3), "big")
    target = options.images or (FULL if options.full else QUICK)
    lengths = options.length if options.length is not None else (3 if options.full else 1)
    return explore(Plan(seed, engines, target, lengths, Effort(), options.seconds), options.processes)


if __name__ == "__main__":
    sys.exit(main())
