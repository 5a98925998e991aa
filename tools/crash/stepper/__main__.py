"""Single-step the C engine and check every state that persistent memory may have at each instruction.

    python -m tools stepper [--states N] [--seed N] [--ordering strict|pipelined] [--stores stream|write-back]
    python -m tools stepper --control NAME | --controls

A child process uses a log with medium="emulated-dax" on tmpfs. ptrace(2) stops it after each instruction of each call, and the rig
applies its stores, streaming stores, write-backs of cache lines and fences to a model of x86 persistent memory. The engine stores
directly to memory, so a missing flush or fence shows here, and in no test that replaces the seam. At each step, each line that is
not durable yet may have any of its versions: all combinations if they are few, else none, all, each alone, and samples. Each state
is judged on its bytes, and one in a hundred is also opened: every acknowledged record is there, no other than the issued ones is,
and the verdict is not "corrupt".

Without --ordering and --stores the states are divided among strict and pipelined logs, each once with stores past the cache and
once with lines that are written back (PMWAL_STORES). A control is a copy of the engine with a mistake, which must be noticed:
--control prints the first violation, --controls tries all and checks the reason of each.

Exit status: 0 no violation; 1 a violation, or with --controls a mistake that was not noticed; 2 usage, or the rig itself failed;
3 something that it needs is missing here.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # run as a file: Python put this directory first, but the imports start at tools/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from crash.needs import missing
from crash.stepper.controls import CONTROLS, ROOT, Control, build
from crash.stepper.run import Counts, Run
from crash.stepper.trace import CannotRun, Lost, compiled
from pmwal.native.choice import STORES
from pmwal.testing.stress.violation import Violation

NEEDS = ("linux-x86_64", "cc")
ORDERINGS = ("strict", "pipelined")
VIOLATED, FAILED, CANNOT_RUN = 1, 2, 3
SHM = Path("/dev/shm")


class Way(NamedTuple):
    """How the log of a run is opened."""

    ordering: str
    stores: str

    def __str__(self) -> str:
        return f"{self.ordering}, {self.stores}"

    def shows(self, control: Control) -> bool:
        """Whether a mistake must be noticed in such a log."""
        return self.ordering in control.orderings and self.stores in control.stores


def run(tracer: Path, work: Path, way: Way, seed: int, states: int, package: Path) -> Counts:
    """Step until this many distinct states were checked, or until a ``Violation``."""
    one = Run(work, way.ordering, way.stores, seed, package)
    try:
        one.until(tracer, states)
    finally:
        print(f"{way}, seed {seed}: {one.counts}", flush=True)
    return one.counts


def run_control(tracer: Path, name: str, ways: Sequence[Way], seed: int, states: int, work: Path) -> dict[Way, str]:
    """The first violation of a control, by the way in which the log is opened; one in which it was not noticed is absent."""
    control = CONTROLS[name]
    package = work / name
    package.mkdir()
    build(control, package)
    found = {}
    for way in ways:
        if not way.shows(control):
            continue
        directory = work / f"{name}-{way.ordering}-{way.stores}"
        directory.mkdir()
        try:
            run(tracer, directory, way, seed, states, package)
        except Violation as violation:
            found[way] = str(violation)
    return found


def run_controls(tracer: Path, ways: Sequence[Way], seed: int, states: int, work: Path) -> int:
    """Run all controls; how many were not noticed, or were noticed for another reason."""
    missed = 0
    for name, control in CONTROLS.items():
        found = run_control(tracer, name, ways, seed, states, work)
        for way in ways:
            if not way.shows(control):
                continue
            said = found.get(way)
            right = said is not None and control.says_why(said)
            missed += not right
            state = "noticed" if right else "NOT NOTICED" if said is None else "NOTICED FOR ANOTHER REASON"
            print(f"{name:<14} {way!s:<22} {state}" + (f": {said}" if said is not None else ""), flush=True)
    return missed


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=10_000, help="distinct states to check in total (default: %(default)s)")
    seed_help = "of the calls and the samples; an even one overwrites a full ring, an odd one truncates it (default: random)"
    parser.add_argument("--seed", type=int, help=seed_help)
    parser.add_argument("--ordering", choices=ORDERINGS, help="default: both")
    parser.add_argument("--stores", choices=STORES, help="default: both")
    control_help = "run a copy of the engine with this mistake, which must be noticed"
    parser.add_argument("--control", choices=sorted(CONTROLS), help=control_help)
    parser.add_argument("--controls", action="store_true", help="run every control, one after another")
    options = parser.parse_args(arguments)
    if options.control and options.ordering and options.ordering not in CONTROLS[options.control].orderings:
        parser.error(f"{options.control} shows only in {', '.join(CONTROLS[options.control].orderings)} logs")
    if options.control and options.stores and options.stores not in CONTROLS[options.control].stores:
        parser.error(f"{options.control} shows only with PMWAL_STORES={', '.join(CONTROLS[options.control].stores)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile the tracer, step, report; the exit status."""
    options = parse(arguments)
    wanting = missing(*NEEDS)
    if wanting:
        print("stepper needs " + "; ".join(wanting), file=sys.stderr)
        return CANNOT_RUN
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(3), "big")
    orderings = (options.ordering,) if options.ordering else ORDERINGS
    ways = [Way(*way) for way in product(orderings, (options.stores,) if options.stores else STORES)]
    each = -(-options.states // len(ways))
    command = f"python -m tools stepper --seed {seed} --states {options.states}"
    command += f" --ordering {options.ordering}" if options.ordering else ""
    command += f" --stores {options.stores}" if options.stores else ""
    command += f" --control {options.control}" if options.control else ""
    with tempfile.TemporaryDirectory(prefix="pmwal-stepper-", dir=SHM) as name:
        work = Path(name)
        try:
            tracer = compiled(work)
            if options.controls:
                return VIOLATED if run_controls(tracer, ways, seed, each, work) else 0
            if options.control:
                found = run_control(tracer, options.control, ways, seed, each, work)
                for way, said in found.items():
                    print(f"{way}: {said}", file=sys.stderr)
                return VIOLATED if found else 0
            for way in ways:
                directory = work / f"{way.ordering}-{way.stores}"
                directory.mkdir()
                run(tracer, directory, way, seed, each, ROOT)
        except Violation as violation:
            print(f"{violation}\nrun it again: {command}", file=sys.stderr)
            return VIOLATED
        except (CannotRun, Lost) as error:
            print(error, file=sys.stderr)
            return CANNOT_RUN if isinstance(error, CannotRun) else FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
