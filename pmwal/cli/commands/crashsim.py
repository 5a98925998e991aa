"""``pmwal crashsim``: every file that a power cut or a kill may leave of a log, each judged, many of them recovered."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

from pmwal.cli.exit_status import FAILED, OK, USAGE
from pmwal.cli.parser import Commands, add_command, length_option, number_option
from pmwal.cli.terminal import say

if TYPE_CHECKING:
    from pmwal.testing._simulator.campaign import Plan, Result
    from pmwal.testing._simulator.explore import Effort, Failure

_QUICK, _FULL = 50_000, 1_000_000
_WITH_PROGRAM = ("medium", "size", "limit", "keep", "json")
_WITHOUT_PROGRAM = ("quick", "full", "control", "controls", "mutant", "mutants", "images", "length", "seconds", "processes")
_MEDIA = ("page", "pmem", "folio-64k", "folio-2m")
_EPILOG = """\
The simulator runs short histories of calls on both engines, notes every store,
flush, fence and sync on the way to the medium, and builds from that each file
that a crash at any moment may leave: on a disk pages and sectors, old, new and
mixed; on persistent memory lines and parts of them, in any order that the
fences permit. What a recovery makes of each is compared with what was
acknowledged. It needs no device, no root and no directory.

Files with the same bytes (without the live page, which means nothing after a
crash) and the same expectation count once.

--control NAME plants a mistake that it must notice; --controls plants each, and
an unknown NAME lists them. A violation is printed with the shortest history
that shows it, and the command that replays it.

With PROGRAM, a Python file, it does the same for a program of your own:

  import pmwal
  from pmwal.testing import acknowledged

  def run(path):                # works with a new log at path
      with pmwal.open(path, size="16KiB") as wal:
          wal.append(b"order 7")
          acknowledged(b"order 7")

  def check(path, done):        # opens what a crash left there, perhaps nothing
      with pmwal.open(path, size="16KiB") as wal:
          found = [record.data for record in wal]
      assert found[:len(done)] == done

run is called once, and check for each crash that may have ended it, with what
was acknowledged by then. The first crash for which check raises is reduced to
the shortest run and the fewest surviving stores, and told with the lines of the
program that made each store. Followed are one log, files beside it, and one
thread. The medium is simulated, and a log without a size has 64 KiB.

Exit status: 0 no violation; 1 a violation (with --control: the mistake was
noticed; with --controls: one was not); 64 wrong usage, too few images, or a
PROGRAM that cannot be followed.

Examples:
  pmwal crashsim
  pmwal crashsim test_orders.py
  pmwal crashsim test_orders.py --medium pmem --keep /tmp/crash
  pmwal crashsim test_orders.py --replay /tmp/crash
  pmwal crashsim --full --engine native
  pmwal crashsim --control early-ack; echo "must be 1: $?"
  pmwal crashsim --replay native:page:strict:lapped:4096:8:write-back:1:extend
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "crashsim",
        run,
        "simulate power cuts and kills, every one",
        "Build every file that a power cut or a kill may leave of a log, and check what a\nrecovery makes of each.",
        _EPILOG,
    )
    parser.add_argument("program", nargs="?", metavar="PROGRAM", help="a Python file with run(path) and check(path, done)")
    size, what = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help=f"every single call, then sequences by seed, {_QUICK} images (default)")
    size.add_argument("--full", action="store_true", help=f"every sequence of two, of three on two settings, then up to {_FULL}")
    what.add_argument("--control", metavar="NAME", help="plant this mistake, which must be noticed")
    what.add_argument("--controls", action="store_true", help="plant each mistake, one after another")
    what.add_argument(
        "--replay",
        metavar="WHAT",
        help="engine:medium:ordering:base:size:align:stores:seed:call,call,... or with PROGRAM a DIR",
    )
    what.add_argument("--mutant", help=argparse.SUPPRESS)  # their names in 0.1
    what.add_argument("--mutants", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--engine", choices=("native", "python", "both"), help="(default: both; with PROGRAM as always)")
    parser.add_argument("--seed", type=number_option(0), metavar="N", help="of the sequences (default: random; with PROGRAM 0)")
    parser.add_argument("--images", type=number_option(1), metavar="N", help="distinct images to reach")
    parser.add_argument("--length", type=number_option(0), metavar="N", help="explore every sequence of up to this many calls")
    parser.add_argument("--seconds", type=length_option(1e7), metavar="N", help="stop then; too few images are status 64")
    parser.add_argument("--processes", type=number_option(1), metavar="N", help="(default: one a processor)")
    own = parser.add_argument_group("options with PROGRAM")
    own.add_argument("--medium", action="append", choices=_MEDIA, help="may be repeated (default: page, then pmem)")
    own.add_argument("--size", metavar="SIZE", help="of the log, instead of the size that the program gives it")
    own.add_argument("--limit", type=number_option(0), metavar="N", help="check at most this many states, chosen by --seed; 0: all")
    own.add_argument("--keep", metavar="DIR", help="write the failing log and an account of the crash to this directory")
    own.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write the result as JSON (default: to standard output)")


def run(args: argparse.Namespace) -> int:
    """Explore, or plant mistakes, or replay; or do so for a program of the user."""
    _refuse_mixed(args)
    if args.program is not None:
        from pmwal.cli.crashing import run as run_program  # noqa: PLC0415

        return run_program(args)
    from pmwal.native import native  # noqa: PLC0415 - heavy, and not for the help of all commands
    from pmwal.testing._simulator.campaign import Plan  # noqa: PLC0415
    from pmwal.testing._simulator.explore import Effort  # noqa: PLC0415

    if args.mutant or args.mutants:
        say("warning: --mutant and --mutants are now --control and --controls; the old names work until 0.3")
    engines = ("native", "python") if args.engine in (None, "both") else (args.engine,)
    if native is None and "native" in engines:
        say("the native engine was not built; use --engine python")
        return USAGE
    name = args.control or args.mutant
    if name is not None:
        return _plant(args, name)
    if args.controls or args.mutants:
        return _plant_all()
    if args.replay is not None:
        try:
            return _replay(args.replay, Effort(open_one_in=1, interrupt_one_in=4, continue_one_in=64, lose_one_in=4))
        except ValueError as error:
            args.parser.error(f"--replay {args.replay}: {error}")
    seed = args.seed if args.seed is not None else int.from_bytes(os.urandom(3), "big")
    target = args.images or (_FULL if args.full else _QUICK)
    lengths = args.length if args.length is not None else (3 if args.full else 1)
    return _explore(Plan(seed, engines, target, lengths, Effort(), args.seconds), args.processes or len(os.sched_getaffinity(0)))


def _refuse_mixed(args: argparse.Namespace) -> None:
    """Options of the simulator's own histories with a program, or the other way round."""
    names = _WITHOUT_PROGRAM if args.program is not None else _WITH_PROGRAM
    given = [f"--{name}" for name in names if getattr(args, name) not in (None, False)]
    if given:
        args.parser.error(f"{given[0]} is {'not ' if args.program is not None else ''}for a PROGRAM of your own")


def _explore(plan: Plan, processes: int) -> int:
    """Run a campaign and print the result."""
    from pmwal.testing._simulator.campaign import SETTINGS, run  # noqa: PLC0415

    sys.stdout.flush()  # a fork copies what is in the buffer
    result = run(plan, processes, _show)
    distinct = result.images_distinct()
    _show(result, distinct)
    cases = ", ".join(f"{case}: {number}" for case, number in sorted(result.cases.items()))
    print(f"seed {plan.seed}, engines {' and '.join(plan.engines)}, {len(SETTINGS)} settings; verdicts {cases}")
    if result.failure:
        _tell(*result.failure, plan.effort)
        return FAILED
    if distinct < plan.target:
        say(f"only {distinct} of {plan.target} distinct images in {result.seconds:.0f} s")
        return USAGE
    print(f"SOUND: no violation in {distinct} distinct images")
    return OK


def _show(result: Result, distinct: int) -> None:
    """Print one line about what was explored so far."""
    counts = result.counts
    print(
        f"{counts['histories']:>7} histories, {counts['operations']:>8} operations, {counts['images']:>9} images, "
        f"{distinct:>9} distinct, {counts['opened']:>7} opened, {counts['interrupted']:>6} recovered under crashes, "
        f"{counts['continued']:>5} appended to, {counts['damaged']:>7} damaged, {result.seconds:>6.1f} s",
        flush=True,
    )


def _tell(engine: str, failure: Failure, effort: Effort) -> None:
    """A violation, the shortest history that shows it, and how to see it again."""
    from pmwal.testing._simulator.campaign import minimal, spell  # noqa: PLC0415

    least = minimal(engine, failure, effort)
    print(f"minimal history: {' '.join(least.history.names) or 'an open'}")
    print(f"there: {least.detail}")
    print(f"again with: pmwal crashsim --replay {spell(engine, least.history)}")
    print(f"VIOLATION {failure.oracle}: {failure.detail}")


def _replay(text: str, effort: Effort) -> int:
    """Explore one history, every image of it opened and recovered under crashes."""
    from pmwal.testing._simulator.campaign import explore_chunk, read_history, spell  # noqa: PLC0415

    engine, history = read_history(text)
    histories = [history._replace(names=history.names[:length]) for length in range(len(history.names) + 1)]
    result = explore_chunk(effort, (engine, tuple(histories)))
    if result.failure:
        _tell(*result.failure, effort)
        return FAILED
    print(f"SOUND: no violation in {result.counts['judged']} distinct images of {spell(engine, history)}")
    return OK


def _plant(args: argparse.Namespace, name: str) -> int:
    """Plant one mistake; 1 if it was noticed."""
    from pmwal.testing._mutants.table import MUTANTS  # noqa: PLC0415

    known = {_shown(each): each for each in MUTANTS}
    if _shown(name) not in known:
        args.parser.no_mistake(_shown(name), known)
    noticed, _ = _noticed(known[_shown(name)])
    return FAILED if noticed else OK


def _plant_all() -> int:
    """Plant each mistake; 1 if one was not noticed by the oracle of the table."""
    from pmwal.testing._mutants.table import MUTANTS  # noqa: PLC0415

    right = sum(_noticed(name)[1] for name in MUTANTS)
    print(f"{right} of {len(MUTANTS)} mistakes noticed by the oracle of the table")
    return OK if right == len(MUTANTS) else FAILED


def _noticed(name: str) -> tuple[bool, bool]:
    """Plant a mistake and print a line; whether it was noticed, and by the oracle that the table names."""
    from pmwal.testing._mutants.table import MUTANTS, noticed_by  # noqa: PLC0415
    from pmwal.testing._simulator.campaign import spell  # noqa: PLC0415

    mutant, started = MUTANTS[name], time.monotonic()
    noticed = noticed_by(mutant)
    right = noticed is not None and noticed[0] == mutant.oracle
    what = "NOT NOTICED" if noticed is None else f"noticed by {noticed[0]}" + ("" if right else f", NOT BY {mutant.oracle}")
    print(f"{_shown(name):<32} {what:<40} {time.monotonic() - started:6.2f} s  {mutant.what}", flush=True)
    if not right:
        where = "the creation of a log" if mutant.operations is None else spell(mutant.engine, mutant.history)
        say(f"{_shown(name)}: in {where}{'' if noticed is None else ': ' + noticed[1]}")
    return noticed is not None, right


def _shown(name: str) -> str:
    """The name of a mistake as the command line shows it, and as it is in all rigs."""
    return name.replace("_", "-")
