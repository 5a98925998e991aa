"""``pmwal prune``: remove slots of a log set that no process has."""

from __future__ import annotations

import argparse
import errno
import os

from pmwal.cli.exit_status import FAILED, OK
from pmwal.cli.options import age_limit_option, size_limit_option
from pmwal.cli.parser import Commands, add_command, add_json
from pmwal.cli.terminal import print_json, say
from pmwal.cli.times import utc_text
from pmwal.logs.options import Limits
from pmwal.logs.retention import prune
from pmwal.opening.units import format_size

_EPILOG = """\
The slots of a directory are 00.wal, 01.wal, ..., which processes take that log
there. One that a process has is not removed, nor one that is corrupt or that
this user may not read. Each slot is locked before it is removed, so a process
that starts meanwhile takes another one.

AGE is like "7 days", 12h or "30 min", SIZE like 2GiB; a number without a unit
is refused. SIZE is of all slots together; those with the oldest newest record
go first. --consumed keeps slots that have no named
consumer, and those of which one has not acknowledged every record; a consumer
that has not begun to read a slot is not known.

Exit status: 0; 1 if a slot could not be removed, which is reported; 3 if the
directory cannot be read.

Examples:
  pmwal prune --keep '7 days' /var/log/shop
  pmwal prune --max-total 2GiB -n /var/log/shop    only print what would go
  pmwal prune --consumed /var/log/shop             what all consumers have had
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
    parser.add_argument("--keep", type=age_limit_option, metavar="AGE", help="remove slots whose newest record is older")
    parser.add_argument("--max-total", type=size_limit_option, metavar="SIZE", help="remove slots until all together are no larger")
    parser.add_argument(
        "--consumed", action="store_true", help="remove only slots of which all named consumers have acknowledged every record"
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="remove nothing, print what would be removed")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Remove the slots, and report them."""
    if args.keep is None and args.max_total is None and not args.consumed:
        args.parser.error("give --keep, --max-total, --consumed, or several of them")
    if os.path.exists(args.path) and not os.path.isdir(args.path):
        above = os.path.dirname(args.path) or "."
        raise NotADirectoryError(
            errno.ENOTDIR, f"not a directory; give the one that the processes log into, such as {above}", args.path
        )
    limits = Limits(None if args.keep is None else int(args.keep * 1e9), args.max_total)
    refused: dict[str, OSError] = {}
    removed = prune(os.fsdecode(args.path), limits, consumed=args.consumed, dry=args.dry_run, refused=refused)
    reasons = {path: error.strerror or str(error) for path, error in refused.items()}
    for path, reason in reasons.items():
        say(f"{path}: cannot be removed: {reason}")
    status = FAILED if refused else OK
    if args.json:
        slots = [{"path": slot.path, "bytes": slot.size, "newest": utc_text(slot.newest_ns)} for slot in removed]
        kept = [{"path": path, "error": reason} for path, reason in reasons.items()]
        print_json({"path": args.path, "removed": slots, "dry_run": args.dry_run, "refused": kept})
        return status
    for slot in removed:
        what = "would be removed" if args.dry_run else "removed"
        print(f"{slot.path}: {what}, {format_size(slot.size)}, newest record {utc_text(slot.newest_ns)}")
    if not removed and not refused:
        print(f"{args.path}: nothing to remove")
    return status
