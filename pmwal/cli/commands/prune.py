"""``pmwal prune``: remove slots of a log set that no process has."""

from __future__ import annotations

import argparse
import os

from pmwal.cli.exit_status import OK
from pmwal.cli.options import duration_option, size_option
from pmwal.cli.parser import Commands, add_command, add_json
from pmwal.cli.terminal import print_json
from pmwal.cli.times import utc_text
from pmwal.logs.options import Limits
from pmwal.logs.retention import prune
from pmwal.opening.units import format_size

_EPILOG = """\
The slots of a directory are 00.wal, 01.wal, ..., which processes take that log
there. One that a process has is not removed, nor one that is corrupt or that
this user may not write. Each slot is locked before it is removed, so a process
that starts meanwhile takes another one.

AGE is like "7 days", 12h or "30 min". SIZE is of all slots together; those with
the oldest newest record go first.

Examples:
  pmwal prune --keep '7 days' /var/log/shop
  pmwal prune --max-total 2GiB -n /var/log/shop    only print what would go
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "prune",
        run,
        "remove old logs of a directory",
        "Remove logs of processes that have ended, by age and total size.",
        _EPILOG,
    )
    parser.add_argument("path", metavar="DIR", help="the directory that the processes log into")
    parser.add_argument("--keep", type=duration_option, metavar="AGE", help="remove slots whose newest record is older")
    parser.add_argument("--max-total", type=size_option, metavar="SIZE", help="remove slots until all together are no larger")
    parser.add_argument("-n", "--dry-run", action="store_true", help="remove nothing, print what would be removed")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Remove the slots, and report them."""
    if args.keep is None and args.max_total is None:
        args.parser.error("give --keep, --max-total, or both")
    limits = Limits(None if args.keep is None else int(args.keep * 1e9), args.max_total)
    removed = prune(os.fsdecode(args.path), limits, dry=args.dry_run)
    if args.json:
        slots = [{"path": slot.path, "bytes": slot.size, "newest": utc_text(slot.newest_ns)} for slot in removed]
        print_json({"path": args.path, "removed": slots, "dry_run": args.dry_run})
        return OK
    for slot in removed:
        what = "would be removed" if args.dry_run else "removed"
        print(f"{slot.path}: {what}, {format_size(slot.size)}, newest record {utc_text(slot.newest_ns)}")
    if not removed:
        print(f"{args.path}: nothing to remove")
    return OK
