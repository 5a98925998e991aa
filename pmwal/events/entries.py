"""Records as entries of a log that people read: level, logger, message, fields and traceback, whoever wrote them.

An entry comes from an event of ``pmwal.events``, from a JSON object such as ``LogHandler(structured=True)``, structlog and loguru
store, or from text. Every record has one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pmwal.events import DEFINITION_KIND, EVENT_KIND, Decoder, Event
from pmwal.reading.reader import Reader
from pmwal.records import Record, SetRecord

if TYPE_CHECKING:
    from pmwal.logs.log_set import LogSet

_MESSAGE = ("message", "event", "msg")
_LEVEL = ("level", "levelname", "severity")
_LOGGER = ("logger", "name")
_TIME = ("time", "timestamp", "asctime")
_TRACEBACK = ("exc", "exc_info", "exc_text", "traceback", "exception", "stack", "stack_info")
_ORIGIN = frozenset(
    (
        *("module", "filename", "pathname", "func_name", "funcName", "lineno", "exception"),
        *("process_name", "processName", "thread_name", "threadName", "task_name", "taskName"),
    )
)
_ORIGIN_OF_HANDLER = frozenset(("function", "line", "process", "thread", "task"))  # in other documents these may be anything
_NONE: Mapping[str, Any] = MappingProxyType({})
_DIGITS_MAX = 640  # the least that the interpreter can be told to read; 4,300 unless it was told otherwise
_DEPTH_MAX = 256  # of objects and lists in a document; what shows it takes a few frames of the stack for each


class Entry(NamedTuple):
    """A record as a person reads it.

    ``level`` is a number as in ``logging``, 0 if unknown. ``fields`` are what the program gave beside the message, and ``origin``
    where it came from: module, line, thread and the like. ``event`` is what the message was made of, and ``document`` the object of
    a record in JSON.
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
    origin: Mapping[str, Any] = _NONE


class Entries:
    """Makes entries of the records of a log, or of all logs of a set."""

    def __init__(self, source: Reader | LogSet) -> None:
        self._source = source
        self._decoders: dict[str, Decoder] = {}
        self._levels = {name.upper(): number for name, number in logging.getLevelNamesMapping().items()}
        self._decode = json.JSONDecoder(parse_constant=str).decode  # NaN and the infinities as text: JSON has no such numbers
        self._decode_long = json.JSONDecoder(parse_constant=str, parse_int=_number_or_text).decode

    def entry(self, record: Record) -> Entry:
        """The entry; every record has one."""
        if record.kind in (EVENT_KIND, DEFINITION_KIND):
            decoder = self._decoder(record)
            event = None if decoder is None else decoder.decode(record)
            if event is not None:
                return Entry(record, event.level, level_name(event.level), event.name, event.text, event.arguments, event=event)
        elif record.data[:1] == b"{":
            entry = self._of_document(record)
            if entry is not None:
                return entry
        level = record.kind if record.kind < DEFINITION_KIND else 0
        return Entry(record, level, level_name(level), "", record.data.decode(errors="backslashreplace"), _NONE)

    def is_structured(self, record: Record) -> bool:
        """Whether a record is an event, or a JSON object with a message."""
        if record.kind not in (DEFINITION_KIND, EVENT_KIND) and record.data[:1] != b"{":
            return False  # no entry is needed
        entry = self.entry(record)
        return entry.event is not None or entry.document is not None

    def _of_document(self, record: Record) -> Entry | None:
        try:
            document = self._decoded(record.data)
        except (ValueError, RecursionError):
            return None
        if record.data.count(b"[") + record.data.count(b"{") > _DEPTH_MAX and _is_deep(document):
            return None
        rest = _of_loguru(document)
        own = isinstance(rest.get("message"), str)
        message = _taken(rest, _MESSAGE)
        if message is None:
            return None
        name, logger = _taken(rest, _LEVEL), _taken(rest, _LOGGER)
        _taken(rest, _TIME)
        traceback = "\n".join(rest.pop(key).rstrip("\n") for key in _TRACEBACK if isinstance(rest.get(key), str))
        extra = rest.pop("extra", None)
        names = rest.keys() & (_ORIGIN | _ORIGIN_OF_HANDLER if own else _ORIGIN)
        origin = {key: rest.pop(key) for key in [key for key in rest if key in names]} if names else _NONE
        rest.update(extra if isinstance(extra, dict) else {} if extra is None else {"extra": extra})
        traceback = traceback or traceback_of(origin.get("exception"))
        level = record.kind or self._levels.get((name or "").upper(), 0)
        shown = name.upper() if name else level_name(level)
        return Entry(record, level, shown, logger or "", message, rest, traceback, document=document, origin=origin)

    def _decoded(self, data: bytes) -> Any:
        try:
            return self._decode(data.decode())
        except ValueError:
            if len(data) <= _DIGITS_MAX:
                raise
            return self._decode_long(data.decode())  # perhaps a number with more digits than the interpreter reads

    def _decoder(self, record: Record) -> Decoder | None:
        """None if the log is no longer in the set."""
        log = record.log if isinstance(record, SetRecord) else ""
        if log not in self._decoders:
            reader = self._source if isinstance(self._source, Reader) else self._source.logs.get(log)
            if reader is None:
                return None
            self._decoders[log] = Decoder(reader)
        return self._decoders[log]


def _number_or_text(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:
        return digits


def traceback_of(exceptions: Any) -> str:
    """A traceback as the interpreter prints it, from the list that structlog's ``dict_tracebacks`` makes; empty for others."""
    if not isinstance(exceptions, list) or not all(isinstance(each, dict) for each in exceptions):
        return ""
    parts = []
    for at, each in enumerate(exceptions):
        if at:
            cause = exceptions[at - 1]
            why = "The above exception was the direct cause of the following exception:"
            during = "During handling of the above exception, another exception occurred:"
            parts.append(f"\n{why if each.get('is_cause') or 'cause' in cause else during}\n")
        frames = each.get("frames")
        lines = ["Traceback (most recent call last):"] if frames else []
        for frame in frames if isinstance(frames, list) else ():
            if isinstance(frame, dict):
                file, line = frame.get("filename", frame.get("file")), frame.get("lineno", frame.get("line"))
                lines.append(f'  File "{file}", line {line}, in {frame.get("name", frame.get("function"))}')
                lines += [f"    {frame[key]}" for key in ("line", "code") if isinstance(frame.get(key), str) and frame[key]]
        value = each.get("exc_value", each.get("message"))
        lines.append(f"{each.get('exc_type', each.get('type'))}" + (f": {value}" if value else ""))
        parts.append("\n".join(lines))
    return "\n".join(reversed(parts))


def _of_loguru(document: dict[str, Any]) -> dict[str, Any]:
    """A document with the names of ``logging`` from what loguru stores with ``serialize=True``; a copy of any other one."""
    record = document.get("record")
    if not (isinstance(record, dict) and isinstance(record.get("message"), str) and isinstance(record.get("level"), dict)):
        return dict(document)
    rest = {key: record[key] for key in ("message", "name", "extra", "function", "module", "line") if record.get(key) is not None}
    rest["level"] = record["level"].get("name")
    for key, part in (("process", "id"), ("process_name", "name"), ("thread", "name"), ("pathname", "path")):
        inner = record.get({"process_name": "process", "pathname": "file"}.get(key, key))
        if isinstance(inner, dict) and part in inner:
            rest[key] = inner[part]
    text = document.get("text")
    if record.get("exception") and isinstance(text, str):
        # The text is the line as loguru formatted it, and the traceback after it.
        rest["exc"] = text.partition(record["message"])[2].strip("\n") or str(record["exception"])
    return rest


def _taken(document: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of these that is a text; it is removed."""
    for name in names:
        if isinstance(document.get(name), str):
            text: str = document.pop(name)
            return text
    return None


def _is_deep(value: Any) -> bool:
    """Whether objects and lists are in each other to more than ``_DEPTH_MAX``."""
    level = [value]
    for _ in range(_DEPTH_MAX):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for values in inner for each in values if isinstance(each, (dict, list))]
        if not level:
            return False
    return True


@lru_cache(maxsize=1024)
def level_name(level: int) -> str:
    """The name of a level in capitals; an unnamed one has its number, and 0 has no name.

    >>> level_name(30), level_name(35), level_name(0)
    ('WARNING', '35', '')
    """
    name = logging.getLevelName(level) if level else ""
    return name if isinstance(name, str) and not name.startswith("Level ") else str(level)
