"""``pmwal write``: append standard input, one record per line or length-prefixed item.

Invariants
----------
- Input is read as it arrives: a line of a slow producer is appended before waiting for the next.
"""

from __future__ import annotations

import argparse
import sys
from typing import cast

from pmwal.cli.appending import Items, add_target, append_to
from pmwal.cli.formats.framing import read_items, read_lines
from pmwal.cli.parser import Commands, add_command
from pmwal.opening.options import COMMIT_POLICIES, Commit, check_commit

_EPILOG = """\
The log is created if it does not exist, and recovered if it does. Newlines are
not stored; a last line without a newline is a record too, and an empty line is
an empty record. Input that pauses is waited for.

If the command fails, the records before the error are kept; a new log without
any record is removed.

Examples:
  tail -F app.log | pmwal write app.wal
  pmwal write --ack app.wal < lines.txt
  pmwal write --commit manual app.wal < lines.txt       one commit for all
  tail -F app.log | pmwal write --commit 0.05 app.wal   a commit every 50 ms
  pmwal cat --length-prefixed old.wal | pmwal write --length-prefixed new.wal
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "write",
        run,
        "append lines of standard input",
        "Append each line of standard input as one record.",
        _EPILOG,
    )
    add_target(parser, "kind of the records (default: 0)", "report what was appended as JSON, for scripts (not with --ack)")
    parser.add_argument(
        "--length-prefixed",
        action="store_true",
        help="read items instead of lines: 4 bytes of length (little-endian), then the payload",
    )
    parser.add_argument("--ack", action="store_true", help="print each sequence number as soon as its record is durable")
    parser.add_argument(
        "--commit",
        type=_commit_option,
        default="each",
        metavar="{each,manual,SECONDS}",
        help="commit each record, all at the end, or in the background within SECONDS (default: each)",
    )


def _commit_option(text: str) -> Commit:
    """A commit policy, for argparse."""
    try:
        return check_commit(cast(Commit, text) if text in COMMIT_POLICIES else float(text))
    except ValueError:
        policies = ", ".join(COMMIT_POLICIES)
        raise argparse.ArgumentTypeError(f"{text!r} is not {policies} or a number of seconds above 0") from None


def run(args: argparse.Namespace) -> int:
    """Append all of standard input."""
    if args.json and args.ack:
        args.parser.error("--ack prints one number per line; leave --json out")
    read = read_items if args.length_prefixed else read_lines

    def items(limit: int) -> Items:
        return ((args.kind, item) for item in read(sys.stdin.buffer, limit))

    return append_to(args, items, "item" if args.length_prefixed else "line", commit=args.commit, ack=args.ack)
