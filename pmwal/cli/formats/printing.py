"""The formats in which ``cat`` and ``tail`` print records: text, JSON, hex dumps, raw and length-prefixed payloads.

Invariants
----------
- What the formats of one line print has no control characters but tabs, so that no record can change a terminal or begin a line.
- JSON, raw and length-prefixed output has every payload exactly: what was printed can be imported or written again.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from pmwal.cli.entries import json_text, record_object
from pmwal.cli.formats.framing import as_item
from pmwal.cli.parser import Parser
from pmwal.cli.places import ShortNames
from pmwal.cli.times import local_text
from pmwal.cli.wording import decoded, is_printable, printable
from pmwal.events.entries import level_name
from pmwal.records import Record, SetRecord

Form: TypeAlias = Callable[[Record], bytes]
"""The bytes printed for a record."""

_WIDTH = 16
_NESTED = 100  # levels of a JSON payload that is printed as an object; jq refuses more than 256 in a line


def level_of_kind(kind: int) -> str:
    """The name of the level that a record of this kind has; empty if the kind is no level of ``logging``.

    >>> level_of_kind(30), level_of_kind(31), level_of_kind(0)
    ('WARNING', '', '')
    """
    name = level_name(kind)
    return "" if name.isdigit() else name


def as_text(record: Record) -> bytes:
    """``SEQ  TIME  LEVEL  payload`` on one line; without a level if the kind is none."""
    level = level_of_kind(record.kind)
    head = f"{record.seq}  {local_text(record.time_ns)}  {level}  " if level else f"{record.seq}  {local_text(record.time_ns)}  "
    return f"{head}{printable(decoded(record.data))}\n".encode()


def as_json(record: Record) -> bytes:
    """A JSON object on one line; its last member is the payload.

    ``data`` is the payload as it is, if that is a JSON object on one line, else a string if it is UTF-8; else there is
    ``data_base64``. The object is not encoded anew: ``payload_in`` (``pmwal/logs/archives/lines.py``) gives the same bytes.
    """
    value, data = record_object(record), record.data
    if data[:1] == b"{" and _is_object(data):
        return json_text(value)[:-1] + b', "data": ' + data + b"}\n"
    try:
        value["data"] = data.decode()
    except UnicodeDecodeError:
        value["data_base64"] = base64.b64encode(data).decode()
    return json_text(value) + b"\n"


def _is_object(data: bytes) -> bool:
    """Whether a payload is a JSON object that can be a part of a line, and that every reader of JSON accepts."""
    if data[-1:] != b"}":
        return False
    try:
        text = data.decode()
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    deep = data.count(b"{") + data.count(b"[") > _NESTED and _is_deeper(value, _NESTED)
    return not deep and is_printable(text)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inner)


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


def with_names(plain_form: Form, form: Form, names: ShortNames) -> Form:
    """A form for records of several logs: each line of text, and each heading of a dump, begins with the log's name.

    ``plain_form`` is what ``form`` is made of.
    """
    if plain_form not in (as_text, as_hex):
        return form

    def named(record: Record) -> bytes:
        assert isinstance(record, SetRecord)
        return f"{printable(names[record.log]):<{names.width}}  ".encode(errors="backslashreplace") + form(record)

    return named


def print_records(records: Iterable[Record], form: Form) -> None:
    """Print records to standard output, and flush it."""
    output = sys.stdout.buffer
    for record in records:
        output.write(form(record))
    output.flush()
