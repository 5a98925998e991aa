"""``pmwal truncate``: free the space of old records."""

from __future__ import annotations

import argparse

from pmwal.cli.exit_status import OK
from pmwal.cli.parser import Commands, add_command, add_json, add_path, number_option
from pmwal.cli.terminal import print_json, say
from pmwal.cli.wording import records_in_words
from pmwal.format.layout import SEQ_MAX
from pmwal.opening import open
from pmwal.opening.units import format_size
from pmwal.writing.internals import held_by

_EPILOG = """\
The log is opened for writing: it is recovered first, and no other process may
have it open for writing.

Examples:
  pmwal truncate app.wal --before 1000   record 1000 is the oldest afterwards
  pmwal truncate app.wal --all           the log is empty; numbering continues
  pmwal truncate app.wal --consumed      only what all named consumers had;
                                         it says who holds them if none was
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands, "truncate", run, "free the space of old records", "Free the space of old records, durably.", _EPILOG
    )
    add_path(parser)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--before", type=number_option(1, SEQ_MAX), metavar="SEQ", help="free all records before this one")
    how.add_argument("--all", action="store_true", help="free all records")
    how.add_argument("--consumed", action="store_true", help="free the records that all named consumers have acknowledged")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Truncate the log, and report what is left."""
    with open(args.path, "r+") as wal:
        before = None if args.consumed else wal.next_seq if args.all else max(args.before, wal.first_seq)
        if before is not None and before > wal.next_seq:
            raise ValueError(
                f"{args.path}: --before {before} is past the end; the next record will be {wal.next_seq}; to free all, use --all"
            )
        freed_first = wal.first_seq
        first_seq, next_seq = wal.truncate(before=before, consumed=args.consumed), wal.next_seq
        free = wal.free
        held = held_by(wal) if args.consumed and first_seq == freed_first else []
    if args.json:
        freed = first_seq - freed_first
        print_json({"path": args.path, "freed": freed, "first_seq": first_seq, "next_seq": next_seq, "free_bytes": free})
    else:
        print(
            f"{args.path}: freed {records_in_words(freed_first, first_seq - 1)}; "
            f"{records_in_words(first_seq, next_seq - 1)} left, {format_size(free)} free"
        )
    if held:
        say(f"{args.path}: nothing was freed: {'; '.join(held)}")
    return OK
