"""``pmwal resize``: give a log a ring of another size."""

from __future__ import annotations

import argparse

from pmwal.cli.exit_status import OK
from pmwal.cli.options import size_option
from pmwal.cli.parser import Commands, add_command, add_json, add_path
from pmwal.cli.terminal import print_json, progress_bar
from pmwal.cli.wording import records_in_words
from pmwal.opening.copying import resize
from pmwal.opening.units import format_size

_EPILOG = """\
All records stay, and it is the same log, in a new file that takes the place of
the old one when it is complete: a crash leaves one or the other. There must be
room for both. No process may have the log open for writing: one that has can
call wal.resize(size). Consumers, and readers that follow it, continue in the
new file. SIZE is like 64MiB or 1GiB, or a number of bytes.

Examples:
  pmwal resize app.wal 1GiB
  pmwal resize app.wal 16MiB --backup app.wal.old
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands, "resize", run, "make the ring of a log larger or smaller", "Make the ring of a log larger or smaller.", _EPILOG
    )
    add_path(parser)
    parser.add_argument("size", type=size_option, metavar="SIZE", help="capacity of the new ring")
    parser.add_argument("--backup", metavar="FILE", help="keep the old file under this name, in the same directory")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Resize the log, and report what it has now."""
    with progress_bar("resize") as progress:
        report = resize(args.path, args.size, backup=args.backup, progress=progress)
    if args.json:
        print_json(report.as_dict())
        return OK
    records = records_in_words(report.first_seq, report.last_seq)
    kept = f"; the old file is {report.backup}" if report.backup else ""
    print(f"{args.path}: a ring of {format_size(report.capacity)}, {format_size(report.used)} used: {records}{kept}")
    return OK
