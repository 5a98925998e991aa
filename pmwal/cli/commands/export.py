"""``pmwal export``: write the records of a log in a format that other programs read."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from pmwal.cli.atomic_file import descriptor_named, replacing
from pmwal.cli.exit_status import FAILED, OK
from pmwal.cli.formats.interchange import INTERCHANGES, form_for
from pmwal.cli.parser import Commands, add_command, add_path
from pmwal.cli.range_reader import RangeReader, mention_torn_end
from pmwal.cli.terminal import say
from pmwal.cli.wording import records_in_words
from pmwal.opening import open
from pmwal.records import Record

_EPILOG = """\
Formats:
  jsonl            one JSON object per line: seq, kind, time_ns, time, and data
                   if the payload is UTF-8, else data_base64
  length-prefixed  each payload after its length (4 bytes, little-endian);
                   without kinds, numbers and times
  parquet, arrow   columns seq, kind, time and data; requires pyarrow:
                   pip install 'pmwal[arrow]'

The default format follows from the suffix of FILE (.jsonl, .ndjson, .json,
.parquet, .arrow, .feather); otherwise it is jsonl. FILE appears complete or not
at all; a file that it replaces lends it mode, owner and attributes. One with
several names, or that cannot be replaced, is overwritten once the whole output
was made. To read a damaged log: pmwal cat --salvage.

Exit status: 0; 1 if a writer overwrote records before they could be read.

Examples:
  pmwal export app.wal | jq .kind
  pmwal export app.wal -o app.parquet
  pmwal export old.wal | pmwal import new.wal --size 1GiB
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "export",
        run,
        "write records to a file for other programs",
        "Write all records as JSON lines, length-prefixed items, Parquet or Arrow.",
        _EPILOG,
    )
    add_path(parser)
    parser.add_argument(
        "--format", choices=tuple(INTERCHANGES), help="format to write (default: from the suffix of FILE, else jsonl)"
    )
    parser.add_argument("-o", "--output", dest="file", metavar="FILE", help="write to FILE (default: standard output)")


def run(args: argparse.Namespace) -> int:
    """Write every record that the log now has."""
    name = form_for(args.format, args.file)
    form = INTERCHANGES[name]
    if args.file is not None and descriptor_named(args.file) == 1:
        args.file = None
    if args.file is None and not form.is_text and sys.stdout.isatty():
        args.parser.error(f"{name} is binary and cannot be written to a terminal; use -o FILE")
    with open(args.path, "r") as reader:
        if args.file is not None and os.path.exists(args.file) and os.path.samefile(args.path, args.file):
            args.parser.error("-o names the log itself; choose another file")
        first, last = reader.first_seq, reader.committed_seq
        ranges, kinds = RangeReader(reader, args.path), _Kinds()
        with _target(args.file) as stream:
            form.write(kinds.watch(ranges.oldest_first(first, last)), stream)
            stream.flush()
        if kinds.count and not form.has_kinds:
            say(f"{args.path}: {kinds.count} records have a kind, which {name} leaves out; jsonl, parquet and arrow keep it")
        if args.file is not None:
            print(f"{args.path}: exported {records_in_words(first, last)}")
        mention_torn_end(args.path, reader)
    return FAILED if ranges.missed else OK


@contextlib.contextmanager
def _target(path: str | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
    else:
        with replacing(path) as file:
            yield file


class _Kinds:
    """Counts the records that have a kind."""

    def __init__(self) -> None:
        self.count = 0

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            self.count += record.kind != 0
            yield record
