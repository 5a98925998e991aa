"""``pmwal write``: standard input into a log, one record for each line or length-prefixed item.

Invariants
----------
- A number is printed only after the call that made its record durable has returned, and it is flushed at once.
- Input is read as it comes: a slow producer's line is appended before its next one is waited for.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pmwal.cli.common import (
    OK,
    Commands,
    add_command,
    add_json,
    add_medium,
    add_ordering,
    number_option,
    print_json,
    progress_bar,
    records_in_words,
    say,
    size_option,
    torn_in_words,
)
from pmwal.committer import COMMIT_POLICIES
from pmwal.errors import RecordTooLarge
from pmwal.layout import KIND_MAX
from pmwal.opening import open_log
from pmwal.wal import Wal

LENGTH = struct.Struct("<I")

_PIECE = 1 << 20
_EPILOG = """\
The log is created when it does not exist, and recovered when it does. A line is
a record without its newline; a last line without one counts; an empty line is
an empty record.

Examples:
  tail -F app.log | pmwal write app.wal
  pmwal write --ack app.wal < lines.txt
  pmwal write --commit manual app.wal < lines.txt     one commit for all of it
  pmwal cat --length-prefixed old.wal | pmwal write --length-prefixed new.wal
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "write",
        run,
        "append the lines of standard input",
        "Append each line of standard input as one record.",
        _EPILOG,
    )
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--size", type=size_option, metavar="SIZE", help="capacity when the log is created (default: 64MiB)")
    parser.add_argument(
        "--length-prefixed", action="store_true", help="an item is 4 bytes, its length (little-endian), and so many bytes"
    )
    parser.add_argument("--ack", action="store_true", help="print each sequence number once its record is durable")
    parser.add_argument(
        "--kind", type=number_option(0, KIND_MAX), default=0, metavar="N", help="kind of the records (default: 0)"
    )
    parser.add_argument(
        "--commit", choices=COMMIT_POLICIES, default="each", help="each record durable by itself, or all at the end (default: each)"
    )
    parser.add_argument(
        "--on-full",
        choices=("raise", "overwrite"),
        default="raise",
        help="a full log ends the command, or loses its oldest records (default: raise)",
    )
    add_medium(parser)
    add_ordering(parser)
    add_json(parser, "print what was appended as JSON, for scripts (not with --ack)")


def run(args: argparse.Namespace) -> int:
    """Append standard input to its end."""
    if args.json and args.ack:
        args.parser.error("--ack prints one number a line; leave --json out")
    with progress_bar("open") as progress:
        wal = open_log(
            args.path,
            size=args.size,
            medium=args.medium,
            ordering=args.ordering,
            commit=args.commit,
            on_full=args.on_full,
            progress=progress,
        )
    assert isinstance(wal, Wal)
    with wal:
        for phrase in torn_in_words(wal.recovery):
            say(f"{args.path}: recovered: {phrase}")
        read = read_items if args.length_prefixed else read_lines
        first, last = _append_all(wal, read(sys.stdin.buffer, wal.capacity), args)
        overwritten = wal.stats().overwritten
    if args.json:
        print_json({"path": args.path, "first_seq": first, "last_seq": last, "records": last - first + 1})
    elif not args.ack:
        lost = f"; {overwritten} old ones overwritten" if overwritten else ""
        print(f"{args.path}: appended {records_in_words(first, last)}{lost}")
    return OK


def _append_all(wal: Wal, items: Iterator[bytes], args: argparse.Namespace) -> tuple[int, int]:
    """The first and last number; what was appended before an error is committed and acknowledged."""
    acknowledge: Callable[[int, int], None] = _print_numbers if args.ack else _print_nothing
    each = args.commit == "each"
    first, last = wal.next_seq, wal.next_seq - 1
    try:
        for item in items:
            try:
                last = wal.append(item, kind=args.kind)
            except RecordTooLarge as error:
                what = "item" if args.length_prefixed else "line"
                raise RecordTooLarge(f"{what} {last - first + 2} of the input: {error}") from None
            if each:
                acknowledge(last, last)
    finally:
        if not each and last >= first:
            wal.commit()
            acknowledge(first, last)
    return first, last


def _print_numbers(first: int, last: int) -> None:
    sys.stdout.write("".join(f"{seq}\n" for seq in range(first, last + 1)))
    sys.stdout.flush()


def _print_nothing(first: int, last: int) -> None:
    pass


def read_lines(stream: BinaryIO, limit: int) -> Iterator[bytes]:
    """Each line without its newline; one that is longer than ``limit`` comes cut, too long for any log of that capacity."""
    while line := stream.readline(limit + 1):
        yield line[:-1] if line.endswith(b"\n") else line


def read_items(stream: BinaryIO, limit: int) -> Iterator[bytes]:
    """Each length-prefixed item; the length is checked before it is believed."""
    count = 0
    while prefix := _read_up_to(stream, LENGTH.size):
        count += 1
        if len(prefix) < LENGTH.size:
            raise ValueError(f"the input ends inside the length of item {count}")
        (length,) = LENGTH.unpack(prefix)
        if length > limit:
            raise RecordTooLarge(f"item {count} of the input: {length} bytes cannot fit into a ring of {limit} bytes")
        item = _read_up_to(stream, length)
        if len(item) < length:
            raise ValueError(f"the input ends inside item {count}: {len(item)} of its {length} bytes came")
        yield item


def _read_up_to(stream: BinaryIO, length: int) -> bytes:
    """This many bytes, fewer only at the end of the input."""
    pieces = []
    while length:
        piece = stream.read(min(length, _PIECE))
        if not piece:
            break
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)
