"""``pmwal export``: a log's records in a form that other programs read."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from pmwal.cli.atomic_file import replacing
from pmwal.cli.common import FAILED, OK, Commands, add_command, records_in_words, say
from pmwal.cli.formats.interchange import INTERCHANGES, form_for
from pmwal.cli.range_reader import RangeReader, mention_torn_end
from pmwal.opening import open
from pmwal.records import Record

_EPILOG = """\
jsonl            one JSON object a line: seq, kind, time_ns, time, and data when
                 the payload is UTF-8, data_base64 when it is not
length-prefixed  payloads behind 4 bytes of length, little-endian; no kinds
parquet, arrow   columns seq, kind, time, data; need: pip install 'pmwal[arrow]'

Without --format the ending of FILE decides, else it is jsonl. FILE appears
whole or not at all. What is whole in a damaged log: pmwal cat --salvage.

Exit status: 0; 1 when a writer overwrote records before they could be read.

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
        "write records for other programs",
        "Write all records as JSON lines, length-prefixed, Parquet or Arrow.",
        _EPILOG,
    )
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--format", choices=tuple(INTERCHANGES), help="default: by the ending of FILE, else jsonl")
    parser.add_argument("-o", "--output", dest="file", metavar="FILE", help="default: standard output")


def run(args: argparse.Namespace) -> int:
    """Write all that is there now."""
    name = form_for(args.format, args.file)
    form = INTERCHANGES[name]
    if args.file is None and not form.is_text and sys.stdout.isatty():
        args.parser.error(f"{name} is not for a terminal; write -o FILE")
    with open(args.path, "r") as reader:
        if args.file is not None and os.path.exists(args.file) and os.path.samefile(args.path, args.file):
            args.parser.error("-o names the log itself")
        first, last = reader.first_seq, reader.committed_seq
        walk, kinds = RangeReader(reader, args.path), _Kinds()
        with _target(args.file) as stream:
            form.write(kinds.watch(walk.oldest_first(first, last)), stream)
            stream.flush()
        if kinds.count and not form.has_kinds:
            say(f"{args.path}: {kinds.count} records have a kind, which {name} cannot carry; jsonl, parquet and arrow can")
        if args.file is not None:
            print(f"{args.path}: exported {records_in_words(first, last)}")
        mention_torn_end(args.path, reader)
    return FAILED if walk.missed else OK


@contextlib.contextmanager
def _target(path: str | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
    else:
        with replacing(path) as file:
            yield file


class _Kinds:
    """Counts the records that pass and have a kind."""

    def __init__(self) -> None:
        self.count = 0

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            self.count += record.kind != 0
            yield record
