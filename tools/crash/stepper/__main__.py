"""Single-steps calls of the native engine and checks every state in which persistent memory may be at each instruction.

    python -m tools stepper [--states N] [--seed N] [--ordering strict|pipelined]
    python -m tools stepper --control NAME | --controls

A child process uses a log with medium="emulated-dax" on tmpfs. ptrace(2) stops it after each instruction of each call; its
stores, streaming stores, write-backs of cache lines and fences are followed by the rules of x86. Nothing stands between engine
and memory, so a flush or fence that is missing shows here and in no test behind a seam. At each step every line that is not yet
durable is lost or kept at each of its stores: all combinations where they are few, else each alone, none, all and samples. Each
state is judged on its bytes, one in a hundred also opened: what was acknowledged is there, nothing that was not issued is, and
the verdict is not corrupt.

Without --ordering half of the states are strict, half pipelined. A control is a copy of the engine with a mistake, which has to
be noticed: --control shows the first violation, and --controls tries all and looks that each is noticed for its own reason.

Exit status: 0; 1 a violation, or with --controls one that was not noticed; 2 usage, or the rig itself failed; 3 something that
it needs is missing here.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a file: Python put this directory first, but the imports start at tools/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from crash.needs import missing
from crash.stepper.controls import CONTROLS, ROOT, build
from crash.stepper.run import Counts, Run
from crash.stepper.trace import CannotRun, Lost, compiled
from violation import Violation

NEEDS = ("linux-x86_64", "cc")
ORDERINGS = ("strict", "pipelined")
VIOLATED, FAILED, CANNOT_RUN = 1, 2, 3
SHM = Path("/dev/shm")


def run(tracer: Path, work: Path, ordering: str, seed: int, states: int, package: Path) -> Counts:
    """Step until so many distinct states were checked; ``Violation``."""
    one = Run(work, ordering, seed, package)
    try:
        one.until(tracer, states)
    finally:
        print(f"{ordering}, seed {seed}: {one.counts}", flush=True)
    return one.counts


def run_control(tracer: Path, name: str, orderings: Sequence[str], seed: int, states: int, work: Path) -> dict[str, str]:
    """The first violation of a control in each ordering; none where it was not noticed."""
    control = CONTROLS[name]
    package = work / name
    package.mkdir()
    build(control, package)
    found = {}
    for ordering in orderings:
        if ordering not in control.orderings:
            continue
        directory = work / f"{name}-{ordering}"
        directory.mkdir()
        try:
            run(tracer, directory, ordering, seed, states, package)
        except Violation as violation:
            found[ordering] = str(violation)
    return found


def run_controls(tracer: Path, orderings: Sequence[str], seed: int, states: int, work: Path) -> int:
    """All of them; how many were not noticed, or for another reason than their own."""
    missed = 0
    for name, control in CONTROLS.items():
        found = run_control(tracer, name, orderings, seed, states, work)
        for ordering in orderings:
            if ordering not in control.orderings:
                continue
            said = found.get(ordering)
            right = said is not None and control.says_why(said)
            missed += not right
            state = "noticed" if right else "NOT NOTICED" if said is None else "NOTICED FOR ANOTHER REASON"
            print(f"{name:<14} {ordering:<10} {state}" + (f": {said}" if said is not None else ""), flush=True)
    return missed


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=10_000, help="distinct states to check in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the calls and the samples (default: another one each time)")
    parser.add_argument("--ordering", choices=ORDERINGS, help="default: both")
    parser.add_argument("--control", choices=sorted(CONTROLS), help="with this mistake in a copy of the engine: it must be noticed")
    parser.add_argument("--controls", action="store_true", help="all of them, one after the other")
    options = parser.parse_args(arguments)
    if options.control and options.ordering and options.ordering not in CONTROLS[options.control].orderings:
        parser.error(f"{options.control} is a mistake in {', '.join(CONTROLS[options.control].orderings)} logs only")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, step, judge, say what was found."""
    options = parse(arguments)
    wanting = missing(*NEEDS)
    if wanting:
        print("needs " + "; ".join(wanting), file=sys.stderr)
        return CANNOT_RUN
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(3), "big")
    orderings = (options.ordering,) if options.ordering else ORDERINGS
    each = -(-options.states // len(orderings))
    command = f"python -m tools stepper --seed {seed} --states {options.states}"
    command += f" --ordering {options.ordering}" if options.ordering else ""
    command += f" --control {options.control}" if options.control else ""
    with tempfile.TemporaryDirectory(prefix="pmwal-stepper-", dir=SHM) as name:
        work = Path(name)
        try:
            tracer = compiled(work)
            if options.controls:
                return VIOLATED if run_controls(tracer, orderings, seed, each, work) else 0
            if options.control:
                found = run_control(tracer, options.control, orderings, seed, each, work)
                for ordering, said in found.items():
                    print(f"{ordering}: {said}", file=sys.stderr)
                return VIOLATED if found else 0
            for ordering in orderings:
                directory = work / ordering
                directory.mkdir()
                run(tracer, directory, ordering, seed, each, ROOT)
        except Violation as violation:
            print(f"{violation}\nagain with: {command}", file=sys.stderr)
            return VIOLATED
        except (CannotRun, Lost) as error:
            print(error, file=sys.stderr)
            return CANNOT_RUN if isinstance(error, CannotRun) else FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
