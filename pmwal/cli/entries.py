"""Entries as JSON and as text: the object that each is, for all commands, and its fields with dotted names."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pmwal.cli.times import utc_text
from pmwal.cli.wording import HIGH_CONTROL
from pmwal.events.definition import plain
from pmwal.records import Record, SetRecord

if TYPE_CHECKING:
    from pmwal.events.entries import Entry

_CONTROL = re.compile(f"[{HIGH_CONTROL}]")  # JSON escapes the others

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode  # json.dumps would make one for each call


def record_object(record: Record) -> dict[str, Any]:
    """What a record's object in JSON begins with; ``log`` if it is of a set."""
    of_set = {"log": record.log} if isinstance(record, SetRecord) else {}
    return {"seq": record.seq, **of_set, "kind": record.kind, "time_ns": record.time_ns, "time": utc_text(record.time_ns)}


def json_object(entry: Entry) -> dict[str, Any]:
    """The object that an entry is in JSON: the one definition of its names, for all commands.

    Names of the record, then of the entry; those that would be empty are left out. What the program named is in ``fields``, so
    none of its names can be taken for one of these. ``data_base64`` is there if the payload is text that is not UTF-8.
    """
    record = entry.record
    value = record_object(record)
    if entry.level_name:
        value["level"] = entry.level_name
    if entry.logger:
        value["logger"] = entry.logger
    value["message"] = entry.message
    if entry.event is not None:
        value["format"] = entry.event.format
    value |= entry.origin
    if entry.fields:
        event = entry.event is not None
        value["fields"] = {name: plain_json(each) for name, each in entry.fields.items()} if event else dict(entry.fields)
    if entry.traceback:
        value["traceback"] = entry.traceback
    if entry.event is None and entry.document is None and not _is_utf8(record.data):
        value["data_base64"] = base64.b64encode(record.data).decode()
    return value


def json_text(value: Any, indent: int | None = None) -> bytes:
    """A JSON value in UTF-8, on one line unless there is an indent, without control characters; numbers that JSON lacks as text.

    >>> json_text({"name": "\\x9b\\udc80", "size": float("inf")})
    b'{"name": "\\\\u009b\\\\udc80", "size": "Infinity"}'
    """
    try:
        text = _text_of(value, indent)
    except ValueError:  # a payload's 1e999 is infinite here
        text = _text_of(json.loads(json.dumps(value), parse_constant=str), indent)
    if not text.isascii():
        text = _CONTROL.sub(_escaped, text)
    elif "\x7f" in text:
        text = text.replace("\x7f", "\\u007f")
    # Surrogates, which UTF-8 lacks, are escaped as \udcNN, which JSON reads as the same character.
    return text.encode(errors="backslashreplace")


def flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values as text; the fields of an object inside have dotted names, as ``--field`` takes them.

    >>> list(flat({"user": {"id": 7, "tags": ["new"]}}))
    [('user.id', '7'), ('user.tags', '["new"]')]
    """
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", text_of(value)


def text_of(value: Any) -> str:
    """A field's value as text: objects, lists, true, false and null as in JSON."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | dict | list):
        return json.dumps(value, ensure_ascii=False)
    return plain(value)


def _text_of(value: Any, indent: int | None) -> str:
    return _encode(value) if indent is None else json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)


def plain_json(value: Any) -> Any:
    """A value of an event for JSON: bytes as ``{"base64": ...}``, times as ISO 8601, numbers that JSON lacks as text."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and value - value != 0:  # infinite or NaN
        return str(value)
    if isinstance(value, int) and value.bit_length() > 64:
        return plain(value)
    return value


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
