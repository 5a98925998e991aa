"""``pmwal import``: append records from a file that ``pmwal export`` or another program wrote."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import io
import sys
from collections.abc import Iterator
from typing import BinaryIO

from pmwal.cli.appending import Items, add_target, append_to
from pmwal.cli.formats.interchange import IMPORTED, INTERCHANGES, Interchange, Read, form_for
from pmwal.cli.parser import Commands, Parser, add_command
from pmwal.cli.streams import Descriptor

_EPILOG = """\
The log is created if it does not exist; otherwise the records are appended.
Kinds and payloads are kept; sequence numbers and times are assigned anew. All
records are durable when the command ends. If it fails or is interrupted
(Ctrl-C, SIGTERM), the log is as it was before, and not there if it was new;
only what --on-full overwrite had overwritten by then is gone. After SIGKILL or
a power cut the log may have the first part of the input.

If the input does not fit, the command says which --size it needs.

Formats:
  jsonl            one JSON object per line: data (text) or data_base64, and
                   optionally kind
  length-prefixed  each payload after its length (4 bytes, little-endian)
  parquet, arrow   a column data, and optionally kind; from a file, not a pipe;
                   requires pyarrow: pip install 'pmwal[arrow]'. A file that
                   pmwal export wrote as columns needs all payloads (--payloads)

The default format follows from the suffix of FILE (.jsonl, .ndjson, .json,
.parquet, .arrow, .feather); without one it is jsonl.

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
        "append records from an exported file",
        "Append records from JSON lines, length-prefixed items, Parquet or Arrow.",
        _EPILOG,
    )
    add_target(parser, "kind of records that have none (default: 0)", "report what was appended as JSON, for scripts")
    parser.add_argument("--format", choices=IMPORTED, help="format to read (default: from the suffix of FILE; without one jsonl)")
    parser.add_argument("-i", "--input", dest="file", metavar="FILE", help="read from FILE (default: standard input)")


def run(args: argparse.Namespace) -> int:
    """Append the whole input with one commit."""
    form, opened = _form(args)
    with _source(args.file) as stream:
        read = opened(stream)  # before the log is opened, and possibly created

        def items(limit: int) -> Items:
            return read(limit, args.kind)

        return append_to(args, items, form.noun, whole=True)


def _form(args: argparse.Namespace) -> tuple[Interchange, Read]:
    """The format, and how it is read; a usage error if there is none."""
    parser: Parser = args.parser
    try:
        name = form_for(args.format, args.file)
    except ValueError as error:
        parser.error(str(error))
    form = INTERCHANGES[name]
    if form.read is None:
        parser.error(f"{name} cannot be imported; export as {', '.join(IMPORTED)}")
    return form, form.read


@contextlib.contextmanager
def _source(path: str | None) -> Iterator[BinaryIO]:
    """The input; errors name it."""
    if path is None:
        yield sys.stdin.buffer
        return
    with builtins.open(path, "rb", buffering=0) as file:
        yield io.BufferedReader(Descriptor(file.fileno(), path, is_input=True))
