"""``pmwal import``: what ``pmwal export`` wrote, or another program, into a log."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import sys
from typing import BinaryIO

from pmwal.cli.appending import Items, add_target, append_to
from pmwal.cli.common import Commands, add_command
from pmwal.cli.formats.interchange import INTERCHANGES, form_for

_EPILOG = """\
The log is created when it does not exist; else the records follow those that
are there. Kinds and payloads come back as they were exported; numbers and times
are the log's own. All of it is durable when the command ends.

jsonl            an object a line with data (text) or data_base64, and kind
length-prefixed  payloads behind 4 bytes of length, little-endian
parquet, arrow   a column data, and kind if it is there; from a file, not a
                 pipe; need: pip install 'pmwal[arrow]'

Without --format the ending of FILE decides, else it is jsonl.

Examples:
  pmwal import app.wal -i app.parquet --size 1GiB
  jq -c '{data: .message, kind: 3}' events.json | pmwal import app.wal
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "import",
        run,
        "append records that were exported",
        "Append records from JSON lines, length-prefixed, Parquet or Arrow.",
        _EPILOG,
    )
    add_target(parser, "kind of the records that come without one (default: 0)", "print what was appended as JSON, for scripts")
    parser.add_argument("--format", choices=tuple(INTERCHANGES), help="default: by the ending of FILE, else jsonl")
    parser.add_argument("-i", "--input", dest="file", metavar="FILE", help="default: standard input")


def run(args: argparse.Namespace) -> int:
    """Append the input to its end, with one commit."""
    form = INTERCHANGES[form_for(args.format, args.file)]
    with _source(args.file) as stream:
        read = form.read(stream)  # before the log is opened, and perhaps created

        def items(capacity: int) -> Items:
            return read(capacity, args.kind)

        return append_to(args, items, form.noun)


def _source(path: str | None) -> contextlib.AbstractContextManager[BinaryIO]:
    return contextlib.nullcontext(sys.stdin.buffer) if path is None else builtins.open(path, "rb")
