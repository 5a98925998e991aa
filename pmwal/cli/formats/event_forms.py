"""Events of ``pmwal.events`` as text and JSON, for the commands that print records."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable

from pmwal.cli.entries import json_text, plain_json, record_object
from pmwal.cli.formats.printing import Form, as_json, as_text
from pmwal.cli.times import local_text
from pmwal.cli.wording import decoded, printable
from pmwal.events import Event
from pmwal.events.entries import Entries
from pmwal.format.layout import KIND_APPLICATION_MAX
from pmwal.logs.log_set import LogSet
from pmwal.reading.reader import Reader
from pmwal.records import Record


class EventForms:
    """Formats the events of logs in text and JSON, and makes them searchable; other records and forms are unchanged."""

    def __init__(self, source: Reader | LogSet) -> None:
        self._entries = Entries(source)
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

    def level(self, record: Record) -> int:
        """The level of an event; of another record its kind."""
        event = self._event(record)
        return record.kind if event is None else event.level

    def _event(self, record: Record) -> Event | None:
        if record.kind <= KIND_APPLICATION_MAX:
            return None
        if self._last[0] is not record:
            self._last = record, self._entries.entry(record).event
        return self._last[1]


def _headed(event: Event) -> str:
    name = f"{event.name}: " if event.name else ""
    return f"{logging.getLevelName(event.level)}  {name}{event.text}"


def _as_text(record: Record, event: Event) -> bytes:
    """``SEQ  TIME  LEVEL  name: text`` on one line."""
    line = f"{record.seq}  {local_text(record.time_ns)}  {printable(_headed(event))}\n"
    return line.encode(errors="backslashreplace")


def _as_json(record: Record, event: Event) -> bytes:
    """A JSON object on one line, with the event's parts, and the payload, which an import stores."""
    value = {
        **record_object(record),
        "level": event.level,
        "name": event.name,
        "format": event.format,
        "arguments": {name: plain_json(argument) for name, argument in event.arguments.items()},
        "text": event.text,
        "data_base64": base64.b64encode(record.data).decode(),
    }
    return json_text(value) + b"\n"


_FORMS: dict[Form, Callable[[Record, Event], bytes]] = {as_text: _as_text, as_json: _as_json}
