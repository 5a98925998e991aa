"""The formats in which ``cat`` and ``tail`` print records: text, JSON, hex dumps, raw and length-prefixed payloads."""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from pmwal.cli.formats.framing import as_item
from pmwal.cli.parser import Parser
from pmwal.cli.times import local_text, utc_text
from pmwal.records import Record

Form: TypeAlias = Callable[[Record], bytes]
"""The bytes printed for a record."""

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_WIDTH = 16


def decoded(data: bytes) -> str:
    """Bytes as UTF-8 text, with invalid bytes as ``\\xNN``."""
    return data.decode(errors="backslashreplace")


def printable(text: str) -> str:
    """Text safe for one line of a terminal: control characters except tabs become ``\\xNN``.

    >>> printable("two\\nlines \\x1b[31m")
    'two\\\\x0alines \\\\x1b[31m'
    """
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def as_text(record: Record) -> bytes:
    """``SEQ  TIME  payload`` on one line."""
    return f"{record.seq}  {local_text(record.time_ns)}  {printable(decoded(record.data))}\n".encode()


def as_json(record: Record) -> bytes:
    """A JSON object on one line; ``data`` if the payload is UTF-8, else ``data_base64``."""
    value: dict[str, Any] = {
        "seq": record.seq,
        "kind": record.kind,
        "time_ns": record.time_ns,
        "time": utc_text(record.time_ns),
    }
    try:
        value["data"] = record.data.decode()
    except UnicodeDecodeError:
        value["data_base64"] = base64.b64encode(record.data).decode()
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def as_hex(record: Record) -> bytes:
    """A line about the record, then a dump of its payload."""
    lines = [f"{record.seq}  {local_text(record.time_ns)}  kind {record.kind}  {len(record.data)} bytes"]
    for offset in range(0, len(record.data), _WIDTH):
        piece = record.data[offset : offset + _WIDTH]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"  {offset:08x}  {piece[:8].hex(' '):<23}  {piece[8:].hex(' '):<23}  |{text}|")
    return ("\n".join(lines) + "\n").encode()


def as_raw(record: Record) -> bytes:
    """The payload and a newline."""
    return record.data + b"\n"


def as_length_prefixed(record: Record) -> bytes:
    """The payload after its length, as ``pmwal write --length-prefixed`` reads it."""
    return as_item(record.data)


FORMATS: dict[str, Form] = {"text": as_text, "json": as_json, "hex": as_hex, "raw": as_raw}


def add_output(parser: Parser) -> None:
    """The options that ``form_of`` reads."""
    parser.add_argument(
        "-o",
        "--output",
        choices=tuple(FORMATS),
        help="text, json (one object per line), hex, or raw (payload and newline); default: text",
    )
    parser.add_argument("--json", action="store_const", const="json", dest="output", help="same as -o json")
    parser.add_argument("--length-prefixed", action="store_true", help="print payloads after 4 bytes of length, little-endian")


def form_of(args: argparse.Namespace) -> Form:
    """The form that the options select."""
    if args.length_prefixed and args.output not in (None, "raw"):
        args.parser.error("--length-prefixed prints raw payloads; leave -o out")
    return as_length_prefixed if args.length_prefixed else FORMATS[args.output or "text"]


def print_records(records: Iterable[Record], form: Form) -> None:
    """Print records to standard output, and flush it."""
    output = sys.stdout.buffer
    for record in records:
        output.write(form(record))
    output.flush()
