"""``pmwal logs``: show the entries of logs as people read them, of several logs as one.

Invariants
----------
- Nothing is left out silently: logs that cannot be read and records that are gone are reported on standard error, and the status
  says so. The other logs are shown.
"""

from __future__ import annotations

import argparse

from pmwal.cli.filters import add_entry_filters, add_times
from pmwal.cli.parser import Commands, add_command, number_option
from pmwal.cli.places import add_paths, one_log
from pmwal.cli.times import TIME_HELP
from pmwal.cli.viewing.view import FORMS, Lines, View

_LINES_OF_END = 1000

_EPILOG = f"""\
PATH is a log file, a directory (all *.wal in it), or a pattern in quotes.
Several logs are merged by time, and each line names its log.

LEVEL is a name (debug, info, notice, warning, err, crit, alert, emerg), a
priority from 7 (debug) to 0 (emerg), or a number as in Python's logging.

Only structured records (LogHandler(structured=True), structlog, loguru) and
events have a logger and fields; plain text has neither. --logger shop does not
match shop.orders; --logger 'shop*' matches both. VALUE is compared exactly:
text as it is, other values as JSON writes them (true, null, 1.5). Several
--field of one name are alternatives; all other conditions must hold. -g
searches messages and tracebacks, and ignores case unless REGEX has a capital;
'(?-i:...)' always minds case.

{TIME_HELP}

On a terminal the output goes through the program in PMWAL_PAGER or PAGER, else
less; an empty PMWAL_PAGER means none. Levels and logs are coloured there unless
NO_COLOR is set, and very long and binary messages are shown cut unless -a is
given. Control characters are always escaped.

FORM is one of:
  short              time, level, logger, message, fields; tracebacks below
  short-precise      the same with microseconds
  short-iso          the same with times as in ISO 8601
  short-iso-precise  both
  verbose            every part on a line of its own
  json, json-pretty  one object for each entry, on one line or indented
  logfmt             name=value pairs
  cat                the messages alone

With --cursor-file the first run shows what it would without it; each later run
continues after the last entry that was read.

Exit status: 0; 1 if records were gone before they were shown, or the pager
failed; 2 if a log is corrupt, 3 if one cannot be read; 130 if interrupted.

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
    add_paths(parser)
    _add_extent(parser.add_argument_group("how many, and in which order"))
    which = parser.add_argument_group("which entries")
    add_times(which)
    add_entry_filters(which)
    _add_look(parser.add_argument_group("how they look"))


def _add_extent(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="show the last 10 entries, and new ones as they come")
    parser.add_argument(
        "-n", "--lines", type=lines_option, metavar="N", help="show the last N entries, the oldest N (+N), or all (all)"
    )
    parser.add_argument("--no-tail", action="store_true", help="show all entries, also with -f")
    parser.add_argument("-e", "--pager-end", action="store_true", help=f"begin at the end of the last {_LINES_OF_END} entries")
    parser.add_argument("-r", "--reverse", action="store_true", help="show the newest first")
    parser.add_argument("--cursor-file", metavar="FILE", help="continue after the cursor in FILE, and save the new one there")


def _add_look(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "-o",
        "--output",
        choices=tuple(FORMS),
        default="short",
        metavar="FORM",
        help="how an entry is printed; see below (default: short)",
    )
    parser.add_argument("-a", "--all", action="store_true", help="show long and binary messages in full")
    parser.add_argument("-q", "--quiet", action="store_true", help='leave out remarks such as "no entries"')
    parser.add_argument("--utc", action="store_true", help="show times in UTC")
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="colour the output (default: auto, on a terminal)"
    )
    parser.add_argument("--no-pager", action="store_true", help="do not start a pager")


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
    args.path = one_log(args.paths)  # of which errors are
    return View(args).run()
