"""``pmwal copy``: copy a log into a new file."""

from __future__ import annotations

import argparse

from pmwal.cli.exit_status import OK
from pmwal.cli.options import size_option
from pmwal.cli.parser import Commands, add_command, add_json
from pmwal.cli.terminal import print_json, progress_bar
from pmwal.cli.wording import records_in_words
from pmwal.opening.copying import copy
from pmwal.opening.units import format_size

_EPILOG = """\
The copy is a log of its own, with another uuid. Its records have the numbers,
kinds and times of the log. It may be made beside a running writer: it is the
log as it was, durably, at one moment. A log whose writer was killed is copied
as an open would recover it; a corrupt one is refused. SIZE is like 64MiB or
1GiB, or a number of bytes.

Examples:
  pmwal copy app.wal /backup/app.wal
  pmwal copy app.wal larger.wal --size 1GiB
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "copy", run, "copy a log into a new file", "Copy a log into a new file.", _EPILOG)
    parser.add_argument("path", metavar="PATH", help="the log file")
    parser.add_argument("target", metavar="NEW", help="the file to create")
    parser.add_argument("--size", type=size_option, metavar="SIZE", help="capacity of the new ring (default: that of the log)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Copy the log, and report what was copied."""
    with progress_bar("copy") as progress:
        report = copy(args.path, args.target, size=args.size, progress=progress)
    if args.json:
        print_json(report.as_dict())
    else:
        records = records_in_words(report.first_seq, report.last_seq)
        print(f"copied {args.path} to {report.path}: {records}, in a ring of {format_size(report.capacity)}")
    return OK
