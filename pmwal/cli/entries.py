"""Records as entries of a log that people read: level, logger, message, fields and traceback, whoever wrote them.

An entry comes from an event of ``pmwal.events``, from a JSON object such as ``LogHandler(structured=True)``, structlog and loguru
store, or from text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from pmwal.cli.levels import level_name
from pmwal.events import DEFINITION_KIND, EVENT_KIND, Decoder, Event
from pmwal.logs.log_set import LogSet
from pmwal.reading.reader import Reader
from pmwal.records import Record, SetRecord

_MESSAGE = ("message", "event", "msg")
_LEVEL = ("level", "levelname", "severity")
_LOGGER = ("logger", "name")
_TRACEBACK = ("exc", "exc_info", "exc_text", "traceback")


class Entry(NamedTuple):
    """A record as a person reads it.

    ``level`` is a number as in ``logging``, 0 if unknown. ``fields`` are what it has beside the other attributes. ``event`` is what
    the message was made of, and ``document`` the object of a record in JSON.
    """

    record: Record
    level: int
    level_name: str
    logger: str
    message: str
    fields: Mapping[str, Any]
    traceback: str = ""
    event: Event | None = None
    document: dict[str, Any] | None = None


class Entries:
    """Makes entries of the records of a log, or of all logs of a set."""

    def __init__(self, source: Reader | LogSet) -> None:
        self._source = source
        self._decoders: dict[str, Decoder] = {}
        self._levels = {name.upper(): number for name, number in logging.getLevelNamesMapping().items()}

    def entry(self, record: Record) -> Entry:
        """The entry; every record has one."""
        if record.kind in (EVENT_KIND, DEFINITION_KIND):
            event = self._decoder(record).decode(record)
            if event is not None:
                return Entry(record, event.level, level_name(event.level), event.name, event.text, event.arguments, event=event)
        elif record.data[:1] == b"{":
            entry = self._of_document(record)
            if entry is not None:
                return entry
        level = record.kind if record.kind < EVENT_KIND else 0
        return Entry(record, level, level_name(level), "", record.data.decode(errors="backslashreplace"), {})

    def _of_document(self, record: Record) -> Entry | None:
        try:
            document = json.loads(record.data)
        except (ValueError, RecursionError):
            return None
        rest = dict(document)
        message = _taken(rest, _MESSAGE)
        if message is None:
            return None
        name, logger, traceback = _taken(rest, _LEVEL), _taken(rest, _LOGGER), _taken(rest, _TRACEBACK)
        extra = rest.pop("extra", None)
        rest.pop("time", None)
        rest.update(extra if isinstance(extra, dict) else {} if extra is None else {"extra": extra})
        level = record.kind or self._levels.get((name or "").upper(), 0)
        shown = name.upper() if name else level_name(level)
        return Entry(record, level, shown, logger or "", message, rest, traceback or "", document=document)

    def _decoder(self, record: Record) -> Decoder:
        log = record.log if isinstance(record, SetRecord) else ""
        if log not in self._decoders:
            source = self._source
            self._decoders[log] = Decoder(source.logs[log] if isinstance(source, LogSet) else source)
        return self._decoders[log]


def _taken(document: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of these that is a text; it is removed."""
    for name in names:
        if isinstance(document.get(name), str):
            text: str = document.pop(name)
            return text
    return None
