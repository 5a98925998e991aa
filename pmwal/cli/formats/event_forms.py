"""Events of ``pmwal.events`` as text and JSON, for the commands that print records."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from pmwal.cli.formats.printing import Form, as_json, as_text, decoded, printable
from pmwal.cli.times import local_text, utc_text
from pmwal.events import Decoder, Event
from pmwal.events.definition import plain
from pmwal.reading.reader import Reader
from pmwal.records import Record


class EventForms:
    """Formats the events of a log in text and JSON, and makes them searchable; other records and forms are unchanged."""

    def __init__(self, reader: Reader) -> None:
        self._decoder = Decoder(reader)
        self._last: tuple[Record | None, Event | None] = None, None  # one entry: a record is searched first, then printed

    def form(self, plain_form: Form) -> Form:
        """The form, extended to events."""
        for_event = _FORMS.get(plain_form)
        if for_event is None:
            return plain_form

        def shown(record: Record) -> bytes:
            event = self._event(record)
            return plain_form(record) if event is None else for_event(record, event)

        return shown

    def searched(self, record: Record) -> str:
        """The text that ``--grep`` searches."""
        event = self._event(record)
        return decoded(record.data) if event is None else _headed(event)

    def _event(self, record: Record) -> Event | None:
        if self._last[0] is not record:
            self._last = record, self._decoder.decode(record)
        return self._last[1]


def _headed(event: Event) -> str:
    name = f"{event.name}: " if event.name else ""
    return f"{logging.getLevelName(event.level)}  {name}{event.text}"


def _as_text(record: Record, event: Event) -> bytes:
    """``SEQ  TIME  LEVEL  name: text`` on one line."""
    line = f"{record.seq}  {local_text(record.time_ns)}  {printable(_headed(event))}\n"
    return line.encode(errors="backslashreplace")


def _as_json(record: Record, event: Event) -> bytes:
    """A JSON object on one line, with the event's parts."""
    value = {
        "seq": record.seq,
        "kind": record.kind,
        "time_ns": record.time_ns,
        "time": utc_text(record.time_ns),
        "level": event.level,
        "name": event.name,
        "format": event.format,
        "arguments": {name: _plain_json(argument) for name, argument in event.arguments.items()},
        "text": event.text,
    }
    # Surrogates, which UTF-8 lacks, are escaped as \udcNN, which JSON reads as the same character.
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _plain_json(value: Any) -> Any:
    """A value for JSON: bytes as ``{"base64": ...}``, times as ISO 8601, numbers that JSON lacks as text."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and value - value != 0:  # infinite or NaN
        return str(value)
    if isinstance(value, int) and value.bit_length() > 64:
        return plain(value)
    return value


_FORMS: dict[Form, Callable[[Record, Event], bytes]] = {as_text: _as_text, as_json: _as_json}
