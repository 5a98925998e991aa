"""``pmwal bench``: what a place can do: floors, the modes of a log, threads that commit together, and what limits them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pmwal.cli.atomic_file import check_directory, check_place, replacing
from pmwal.cli.exit_status import OK, USAGE
from pmwal.cli.hints import for_command_line
from pmwal.cli.options import add_medium
from pmwal.cli.parser import Commands, Parser, add_command, add_path, length_option
from pmwal.cli.terminal import print_json, say
from pmwal.errors import UnsupportedMedium

if TYPE_CHECKING:
    from pmwal.testing.bench.results import Results

_SECONDS = 45.0
_ABOUT = """\
Measure in about a minute what a disk, a file system or memory can do: without a
log, with each mode of one, and with threads that share commits."""
_EPILOG = """\
Floors are loops in C that do the same work without a log: on a disk a durable
write of a page, in memory a copy with a checksum. Floors and modes take turns,
so that they share the fast and slow phases of the machine. "call" is the median
of the rounds, "ratio" what pmwal takes beside its floor in the same round. The
last line says what limits a durable append here.

Nothing else should use the machine or the device meanwhile. Records have 128
bytes, if nothing else is said. --compare marks what changed by more than the
rounds of either run differ: two kernels, two devices, two versions.

Exit status: 0; 3 PATH cannot be used; 64 wrong usage, also a medium that is not
possible there.

Examples:
  pmwal bench /mnt/pmem0
  pmwal bench /var/tmp --json old.json
  pmwal bench /var/tmp --compare old.json
  pmwal bench /dev/shm --medium emulated-dax --seconds 20
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "bench",
        run,
        "measure what a disk or memory can do",
        _ABOUT,
        _EPILOG,
    )
    add_path(parser, "directory to measure in")
    parser.add_argument(
        "--seconds", type=length_option(86400), default=_SECONDS, metavar="N", help=f"length of the run (default: {_SECONDS:g})"
    )
    add_medium(parser)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write all figures as JSON (default: print them)")
    parser.add_argument("--compare", metavar="FILE", help="compare with the figures that an earlier run wrote with --json")


def run(args: argparse.Namespace) -> int:
    """Measure, print, and compare."""
    check_directory(args.path)
    if args.json not in (None, "-"):
        check_place(args.json)
    from pmwal.testing.bench import measure, results  # noqa: PLC0415 - heavy, and not for the help of all commands

    old = _earlier(args)
    try:
        found = measure.run(Path(args.path), args.medium, args.seconds, _tell)
    except UnsupportedMedium as problem:
        say(for_command_line(problem, str(problem)))
        return USAGE
    finally:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    if args.json == "-":
        print_json(found.as_dict())
        return OK
    if args.json is not None:
        with replacing(args.json) as file:
            file.write(json.dumps(found.as_dict(), indent=1).encode() + b"\n")
    print(*results.lines(found), sep="\n")
    if old is not None:
        print(f"\ncompared with {args.compare}")
        print(*results.compare(old, found), sep="\n")
    return OK


def _earlier(args: argparse.Namespace) -> Results | None:
    """The results to compare with, before anything is measured."""
    from pmwal.testing.bench.results import Results  # noqa: PLC0415

    parser: Parser = args.parser
    if args.compare is None:
        return None
    if args.json == "-":
        parser.error("--compare prints a table, --json alone prints JSON; give --json a FILE")
    try:
        with open(args.compare, encoding="utf-8") as file:
            return Results.from_dict(json.load(file))
    except ValueError as error:
        parser.error(f"--compare {args.compare}: {error}")


def _tell(what: str, share: float) -> None:
    """On a terminal, what is measured now."""
    if sys.stderr.isatty():
        print(f"\r\033[K{100 * share:3.0f} %  {what}", end="", file=sys.stderr, flush=True)
