"""``pmwal logs``: show the entries of logs as people read them, of several logs as one.

Invariants
----------
- Nothing is left out silently: logs that cannot be read and records that are gone are reported on standard error, and the status
  says so. The other logs are shown.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from pmwal.cli.filters import LEVEL_HELP, add_entry_filters, add_times
from pmwal.cli.parser import Commands, Parser, add_command, number_option
from pmwal.cli.times import TIME_HELP
from pmwal.cli.viewing.view import FORMS, Lines, View

_LINES_OF_END = 1000

_EPILOG = f"""\
LOG is a file, DIR a directory that processes log into, GLOB a quoted pattern.
Several logs are merged by time, and each line names its log. Entries come from
text, from JSON as LogHandler(structured=True), structlog and loguru store it,
and from events of pmwal.events.

{LEVEL_HELP}
-g ignores case unless REGEX has a capital, and searches messages and
tracebacks; '(?-i:...)' minds case all the same. Values of one --field are
alternatives; all other conditions must hold.

{TIME_HELP}

On a terminal the output goes through the program in PMWAL_PAGER or PAGER, else
less; an empty PMWAL_PAGER means none. Levels and logs are coloured there unless
NO_COLOR is set, and very long and binary messages are shown cut unless -a is
given. Control characters are always escaped.

Output: short; short-iso and short-iso-precise (ISO 8601), short-precise (with
microseconds), verbose (all parts), json, json-pretty, logfmt, cat (messages).

With --cursor-file the first run shows what it would without it; each later run
continues after the last entry that was read.

Exit status: 0; 1 if records were gone before they were shown; 2 if a log is
corrupt, 3 if one cannot be read; 130 if interrupted.

Examples:
  pmwal logs app.wal
  pmwal logs -f /var/log/shop
  pmwal logs -p err -S today /var/log/shop
  pmwal logs -n 50 --logger 'shop.*' --field user=17 app.wal
  pmwal logs -o json -S -1h app.wal | jq .fields.order
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "logs",
        run,
        "read logs: by level, logger, field, time",
        "Show the entries of logs, merged by time, filtered and in colour.",
        _EPILOG,
    )
    parser.add_argument("places", nargs="+", action=_Places, metavar="LOG|DIR|GLOB", help="the logs")
    _add_extent(parser)
    add_times(parser)
    add_entry_filters(parser)
    _add_look(parser)


class _Places(argparse.Action):
    """The places; a single one that is a file is the ``path``, of which errors are."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        namespace.places = values
        namespace.path = values[0] if len(values) == 1 and os.path.isfile(values[0]) else None


def _add_extent(parser: Parser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="show the last 10 entries, and new ones as they come")
    parser.add_argument(
        "-n", "--lines", type=lines_option, metavar="N", help="show the last N entries, the oldest N (+N), or all (all)"
    )
    parser.add_argument("--no-tail", action="store_true", help="show all entries, also with -f")
    parser.add_argument("-e", "--pager-end", action="store_true", help=f"begin at the end of the last {_LINES_OF_END} entries")
    parser.add_argument("-r", "--reverse", action="store_true", help="show the newest first")
    parser.add_argument("--cursor-file", metavar="FILE", help="continue after the cursor in FILE, and save the new one there")


def _add_look(parser: Parser) -> None:
    parser.add_argument("-o", "--output", choices=tuple(FORMS), default="short", metavar="FORM", help="see below; default: short")
    parser.add_argument("-a", "--all", action="store_true", help="show long and binary messages in full")
    parser.add_argument("-q", "--quiet", action="store_true", help="no remarks, such as that there are no entries")
    parser.add_argument("--utc", action="store_true", help="times in UTC")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="default: auto, on a terminal")
    parser.add_argument("--no-pager", action="store_true", help="print to the terminal itself")


def lines_option(text: str) -> Lines:
    """How many entries, for argparse."""
    if text == "all":
        return Lines(None)
    try:
        return Lines(number_option(0)(text.removeprefix("+")), oldest=text.startswith("+"))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0, +N for the oldest N, or all") from None


def run(args: argparse.Namespace) -> int:
    """Show the entries, and follow."""
    if args.follow and args.reverse:
        args.parser.error("-f shows new entries last; leave -r out")
    if args.follow and args.until is not None:
        args.parser.error("-f has no end; leave --until out")
    if args.follow and args.lines is not None and args.lines.oldest:
        args.parser.error("-f shows the last entries first; use -n without +, or --no-tail")
    if args.no_tail and args.lines is not None:
        args.parser.error("--no-tail shows all entries; leave -n out")
    if args.lines is None and args.pager_end and not args.no_tail:
        args.lines = Lines(_LINES_OF_END)
    return View(args).run()
