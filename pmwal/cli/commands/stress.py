"""``pmwal stress``: kill writers and readers at random moments, and check the log after each kill against the acknowledgements."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from pmwal.cli.atomic_file import check_directory, check_place, replacing
from pmwal.cli.exit_status import FAILED, OK, USAGE
from pmwal.cli.hints import for_command_line
from pmwal.cli.parser import Commands, add_command, add_path, length_option, number_option
from pmwal.cli.terminal import print_json, say

if TYPE_CHECKING:
    from pmwal.testing.stress.results import Results
    from pmwal.testing.stress.run import Request

_SECONDS, _CONTROL_SECONDS = 60.0, 20.0
_LONGEST = 1e7
_TOLD_SECONDS = 1.0  # between two lines of progress
_EPILOG = """\
Each call of a writer is noted outside the log, in memory that survives the
writer: the intent before the call, the result after it. So the check after a
kill is exact: every record whose call returned is there, byte for byte and in
order; all others belong to calls under way, and those are whole; nothing that
was refused, truncated or rolled back is there. Threads, readers, all policies,
full rings, limits on the size of files and a background load are part of a run.
Another process opens, uses and closes a log during the whole run: if its
memory, descriptors or threads grow, that is a leak.

First the command says what PATH lies on, and what a run there can and cannot
prove. A kill leaves the page cache intact, so no run replaces a power cut. The
last line is the verdict. A seed repeats the plan (policies, calls, sizes,
payloads), but not the scheduling of threads; after a violation the directory
with log and journal is kept, and --replay judges it again.

--control NAME plants a mistake, which the run must notice:
  early-ack, lost-record, changed-byte, resurrected-record, swapped-records,
  damaged-file, split-batch, kept-batch, ignored-truncate, ignored-rollback,
  repeated-rollback, reader-changed-byte, reader-ghost, unlocked-writer,
  leak-descriptors, leak-memory

Requires psutil: pip install 'pmwal[stress]'

Exit status: 0 no violation; 1 a violation (with --control: the mistake was
noticed; with --controls: one was not noticed); 3 PATH cannot be used; 64 wrong
usage, or something is missing here; 130 or 143 ended by Ctrl-C or SIGTERM,
after one more check and a report. A second signal ends it at once.

Examples:
  pmwal stress /mnt/pmem0 --minutes 10 --html report.html
  pmwal stress /dev/shm --seconds 30 --medium any
  pmwal stress /var/tmp --json > report.json
  pmwal stress /dev/shm --control early-ack; echo "must be 1: $?"
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "stress",
        run,
        "kill writers and readers, check every record",
        "Kill the writers and readers of a log at random moments, and check it after each\nkill against what was acknowledged.",
        _EPILOG,
    )
    add_path(parser, "directory for the logs, on what is to be tested")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=length_option(_LONGEST), metavar="N", help="length of the run")
    default = f"the same in seconds (default: {_SECONDS:g}; with a planted mistake {_CONTROL_SECONDS:g})"
    length.add_argument("--seconds", type=length_option(_LONGEST), metavar="N", help=default)
    parser.add_argument("--html", metavar="FILE", help="write a report with charts, one HTML file")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write all figures as JSON (default: to standard output)"
    )
    parser.add_argument("--seed", type=number_option(0), metavar="N", help="of the plan (default: random)")
    parser.add_argument(
        "--medium",
        choices=("auto", "any", "memory", "emulated-dax", "file", "dax"),
        default="auto",
        help="as for pmwal create; any: a random one for each life, of those possible (default: auto)",
    )
    parser.add_argument(
        "--engine", choices=("both", "native", "python"), default="both", help="both: a random one for each life (default: both)"
    )
    parser.add_argument(
        "--writers-threads", type=number_option(1, 31), default=4, metavar="N", help="threads of a writer, at most (default: 4)"
    )
    parser.add_argument("--readers", type=number_option(1, 64), default=2, metavar="N", help="reading processes (default: 2)")
    parser.add_argument(
        "--isolated-readers", action="store_true", help="readers are another user in a pid namespace of their own (needs root)"
    )
    parser.add_argument(
        "--cpu-load", type=number_option(0, 256), default=1, metavar="N", help="background threads that compute (default: 1)"
    )
    parser.add_argument(
        "--io-load", type=number_option(0, 256), default=1, metavar="N", help="background threads that write (default: 1)"
    )
    parser.add_argument(
        "--fill-disk", action="store_true", help="fill the file system of PATH in some lives, so that it is full for others, too"
    )
    parser.add_argument("--control", metavar="NAME", help="plant this mistake, which must be noticed")
    parser.add_argument("--controls", action="store_true", help="run with each mistake, one after another")
    parser.add_argument("--replay", action="store_true", help="PATH is a directory that a violation has left: judge it again")
    for old in ("mutant", "mutants"):  # their names until 0.1
        parser.add_argument(f"--{old}", help=argparse.SUPPRESS, **({"action": "store_true"} if old == "mutants" else {}))  # type: ignore[arg-type]


def run(args: argparse.Namespace) -> int:
    """Run, report, and return 1 for a violation."""
    _rename(args)
    for module, extra in (("psutil", "stress"),):
        if find_spec(module) is None:
            say(f"stress requires {module}, which is not installed: pip install 'pmwal[{extra}]'")
            return USAGE
    check_directory(args.path, written=not args.replay)
    if args.replay:
        return _replay(args)
    for report in (args.html, args.json):
        if report not in (None, "-"):
            check_place(report)
    from pmwal.testing.stress import run as stress  # noqa: PLC0415 - heavy, and not for the help of all commands
    from pmwal.testing.stress.interrupt import Interruption  # noqa: PLC0415

    request = _request(args)
    interruption = Interruption()
    try:
        request.check()
        with interruption.watched():
            if args.controls:
                wrong = stress.perform_controls(request, interruption, _Teller(args), lambda line: print(line, flush=True)) > 0
            else:
                results = stress.perform(request, interruption, _Teller(args), lambda results: _begin(args, results))
                _report(args, results)
                wrong = results.violation is not None
    except stress.NotPossible as problem:
        cause = problem.__cause__
        say(for_command_line(cause if isinstance(cause, Exception) else problem, str(problem)))
        return USAGE
    if wrong:
        return FAILED
    return OK if interruption.signal is None else 128 + interruption.signal


def _rename(args: argparse.Namespace) -> None:
    """The old names of two options."""
    if args.mutant is None and not args.mutants:
        return
    say("warning: --mutant and --mutants are now --control and --controls; the old names work until 0.3")
    args.control, args.controls = args.mutant or args.control, args.mutants or args.controls


def _request(args: argparse.Namespace) -> Request:
    """What the options ask for."""
    from pmwal.native import native  # noqa: PLC0415
    from pmwal.testing.stress.controls import CONTROLS, RENAMED  # noqa: PLC0415
    from pmwal.testing.stress.run import Request  # noqa: PLC0415

    control = RENAMED.get(args.control, args.control)
    if control is not None and control not in CONTROLS:
        args.parser.no_mistake(control, CONTROLS)
    if control is not None and args.controls:
        args.parser.error("--control plants one mistake, --controls each in turn; give one of them")
    if args.controls and (args.json or args.html):
        args.parser.error("--controls prints a line for each mistake; --json and --html describe one run")
    engines = ("native", "python") if args.engine == "both" else (args.engine,)
    if native is None and "native" in engines:
        if args.engine == "native":
            args.parser.error("the native engine was not built; use --engine python")
        say("the native engine was not built: this run tests the Python engine only")
        engines = ("python",)
    default = _CONTROL_SECONDS if control or args.controls else _SECONDS
    seconds = 60 * args.minutes if args.minutes is not None else args.seconds if args.seconds is not None else default
    seed = int.from_bytes(os.urandom(3), "big") if args.seed is None else args.seed
    return Request(
        path=Path(args.path),
        seconds=seconds,
        seed=seed,
        medium=args.medium,
        engines=engines,
        threads=args.writers_threads,
        readers=args.readers,
        cpu_load=args.cpu_load,
        io_load=args.io_load,
        isolated=args.isolated_readers,
        fill_disk=args.fill_disk,
        control=control,
    )


class _Teller:
    """A line on a terminal that says how far a run is."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._shown = sys.stderr.isatty()
        self._next = 0.0

    def __call__(self, now: float, results: Results) -> None:
        if self._shown and monotonic() >= self._next:
            self._next = monotonic() + _TOLD_SECONDS
            print(
                f"\r{now:6.0f} s: {len(results.kills)} kills, {results.records_checked} records compared ", end="", file=sys.stderr
            )
            sys.stderr.flush()


def _begin(args: argparse.Namespace, results: Results) -> None:
    """Say what the place is, and what a run there proves."""
    if args.json == "-":
        return
    width = max(map(len, results.environment)) + 2
    for name, value in results.environment.items():
        print(f"{name:<{width}}{value}")
    print(*(f"- {sentence}" for sentence in results.scope), sep="\n")
    print(f"the same plan again: {results.command}", flush=True)


def _report(args: argparse.Namespace, results: Results) -> None:
    """Write the files, and print the results; the last line is the verdict."""
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if args.html is not None:
        from pmwal.testing.stress import page  # noqa: PLC0415

        with replacing(args.html) as file:
            file.write(page.render(results.as_dict()).encode())
    if args.json == "-":
        print_json(results.as_dict())
        return
    if args.json is not None:
        with replacing(args.json) as file:
            file.write(json.dumps(results.as_dict(), indent=1).encode() + b"\n")
    print(results.summary())
    if results.violation is not None:
        kind, message = results.violation
        print(f"{kind}: {message}\n{results.again}")
    print(results.verdict)


def _replay(args: argparse.Namespace) -> int:
    """Judge a log that a violation has left."""
    from pmwal.testing.stress import kept  # noqa: PLC0415

    try:
        violation = kept.again(Path(args.path))
    except ValueError as error:
        args.parser.error(str(error))
    if violation is None:
        print("SOUND: the log that was kept is what its journal allows; the violation came from something else")
        return OK
    print(f"VIOLATION {violation.kind}: {violation}")
    return FAILED
