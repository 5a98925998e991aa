"""Entries of logs as the log records of OTLP: the data model of OpenTelemetry, its semantic conventions, and protobuf.

Invariants
----------
- Records are in a request in the order in which they were given. A run of one log is one ``ResourceLogs``, a run of one logger in
  it one ``ScopeLogs``; so one that comes back begins another.
- Every entry has a form. What protobuf or the data model has no value for becomes text: characters that are not Unicode, integers
  of more than 64 bits, and what is nested deeper than parsers of protobuf accept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from pmwal.events.definition import plain
from pmwal.events.entries import Entry
from pmwal.ship.otlp.modules import messages

TRACE, FATAL, FATAL4 = 1, 21, 24  # severity numbers of the data model
_DEPTH_MAX = 16  # each level takes three of the 100 that parsers of protobuf accept
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
_TIME_MAX = (1 << 64) - 1

_ORIGIN = {
    "function": "code.function.name",
    "func_name": "code.function.name",
    "funcName": "code.function.name",
    "pathname": "code.file.path",
    "line": "code.line.number",
    "lineno": "code.line.number",
    "process": "process.pid",
    "thread": "thread.name",
    "thread_name": "thread.name",
    "threadName": "thread.name",
}
"""Where a record came from: the names of logging libraries -> those of the semantic conventions. Others stay as they are."""

_TRACE_ID = ("trace_id", "otelTraceID")
_SPAN_ID = ("span_id", "otelSpanID")
_FLAGS = ("trace_flags", "otelTraceSampled")
_HEADER = "Traceback (most recent call last):\n"
_RAISED = re.compile(r"([\w.<>]+)(?:: (.*))?", re.DOTALL)


class LogId(NamedTuple):
    """The log that a record is of: its uuid, and the name of the service that writes it unless another is given."""

    uuid: str
    service: str


class Item(NamedTuple):
    """An entry to send, and its log."""

    log: LogId
    entry: Entry


def severity_of(level: int) -> int:
    """The severity number for a level of ``logging``; 0, unspecified, for a record without one.

    >>> [severity_of(level) for level in (0, 5, 10, 20, 25, 30, 40, 50, 70)]
    [0, 1, 5, 9, 12, 13, 17, 21, 24]
    """
    if level < 10:
        return TRACE if level > 0 else 0
    if level >= 50:
        return min(FATAL + level - 50, FATAL4)
    return 1 + 4 * (level // 10) + min(level % 10, 3)


def request_of(items: Iterable[Item], resource: Mapping[str, Any], observed_ns: int) -> bytes:
    """The body of an export request. ``resource`` is what is known of it beside the name of the service."""
    wire = messages()
    request = wire.service.ExportLogsServiceRequest()
    log, logger, of_log, of_logger = None, None, None, None
    for item in items:
        if of_log is None or item.log != log:
            log, of_logger = item.log, None
            attributes = _attributes({"service.name": log.service} | dict(resource))
            of_log = request.resource_logs.add(resource=wire.resource.Resource(attributes=attributes))
        if of_logger is None or item.entry.logger != logger:
            logger = item.entry.logger
            of_logger = of_log.scope_logs.add(scope=wire.common.InstrumentationScope(name=_clean(logger)))
        of_logger.log_records.append(_record_of(item, observed_ns))
    body: bytes = request.SerializeToString()
    return body


def _record_of(item: Item, observed_ns: int) -> Any:
    entry = item.entry
    fields = dict(entry.fields)
    trace = _trace_of(fields)
    fields |= _origin_of(entry) | {"pmwal.seq": entry.record.seq, "pmwal.log.uuid": item.log.uuid}
    return messages().logs.LogRecord(
        time_unix_nano=min(max(entry.record.time_ns, 0), _TIME_MAX),
        observed_time_unix_nano=observed_ns,
        severity_number=severity_of(entry.level),
        severity_text=_clean(entry.level_name),
        body=_body_of(entry),
        attributes=_attributes(fields),
        **trace,
    )


def _body_of(entry: Entry) -> Any:
    if entry.event is None and entry.document is None:
        data = entry.record.data
        try:
            return messages().common.AnyValue(string_value=data.decode())
        except UnicodeDecodeError:
            return messages().common.AnyValue(bytes_value=data)
    return _value(entry.message)


# -- attributes


def _origin_of(entry: Entry) -> dict[str, Any]:
    """Where it came from, and the exception, by their semantic conventions."""
    found = {_ORIGIN.get(name, name): value for name, value in entry.origin.items() if name != "exception"}
    if entry.event is not None and entry.event.format is not None:
        found["pmwal.event.format"] = entry.event.format
    raised = _raised_of(entry)
    if raised is not None:
        kind, message = raised
        found |= {"exception.type": kind} | ({"exception.message": message} if message else {})
    if entry.traceback:
        found["code.stacktrace" if raised is None else "exception.stacktrace"] = entry.traceback
    return found


def _raised_of(entry: Entry) -> tuple[str, str] | None:
    """Type and message of the exception that was logged; None if there is none, or only a stack."""
    chain = entry.origin.get("exception")
    first = chain[0] if isinstance(chain, list) and chain else None
    if isinstance(first, dict) and isinstance(first.get("exc_type"), str):
        module, value = first.get("exc_module"), first.get("exc_value")
        kind = f"{module}.{first['exc_type']}" if isinstance(module, str) and module else first["exc_type"]
        return kind, value if isinstance(value, str) else ""
    if _HEADER not in entry.traceback:
        return None
    lines = entry.traceback.rpartition(_HEADER)[2].partition("\nStack (most recent call last):")[0].split("\n")
    at = next((at for at, line in enumerate(lines) if line[:1].strip()), len(lines))  # after the frames, which are indented
    match = _RAISED.fullmatch("\n".join(lines[at:]))
    return (match[1], match[2] or "") if match is not None else ("", "")


def _trace_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The ids of trace and span, under the names that tracing libraries bind; what is valid is taken out of the fields."""
    trace, span = _first(fields, _TRACE_ID, 16), _first(fields, _SPAN_ID, 8)
    if trace is None:
        return {}
    found: dict[str, Any] = {"trace_id": trace[1]}
    del fields[trace[0]]
    if span is not None:
        found["span_id"] = span[1]
        del fields[span[0]]
    flags = next((name for name in _FLAGS if _flags(fields.get(name)) is not None), None)
    if flags is not None:
        found["flags"] = _flags(fields.pop(flags))
    return found


def _first(fields: Mapping[str, Any], names: tuple[str, ...], size: int) -> tuple[str, bytes] | None:
    for name in names:
        value = fields.get(name)
        if type(value) is int and 0 < value < 1 << 8 * size:
            return name, value.to_bytes(size, "big")
        if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]*", value) and len(value) == 2 * size and value.strip("0"):
            return name, bytes.fromhex(value)
    return None


def _flags(value: Any) -> int | None:
    """Flags as a number, two digits of hexadecimal, or whether the trace is sampled."""
    if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{2}", value):
        return int(value, 16)
    return int(value) if isinstance(value, int) and 0 <= value <= 0xFF else None


def _attributes(values: Mapping[str, Any]) -> list[Any]:
    pair = messages().common.KeyValue
    return [pair(key=_clean(name), value=_value(value)) for name, value in values.items()]


def _value(value: Any, depth: int = _DEPTH_MAX) -> Any:
    common = messages().common
    if isinstance(value, str):
        return common.AnyValue(string_value=_clean(value))
    if value is None:
        return common.AnyValue()
    if isinstance(value, bool):
        return common.AnyValue(bool_value=value)
    if isinstance(value, int) and _INT_MIN <= value <= _INT_MAX:
        return common.AnyValue(int_value=value)
    if isinstance(value, float):
        return common.AnyValue(double_value=value)
    if isinstance(value, bytes):
        return common.AnyValue(bytes_value=value)
    if depth and isinstance(value, dict):
        pairs = [common.KeyValue(key=_clean(name), value=_value(inner, depth - 1)) for name, inner in value.items()]
        return common.AnyValue(kvlist_value=common.KeyValueList(values=pairs))
    if depth and isinstance(value, list):
        return common.AnyValue(array_value=common.ArrayValue(values=[_value(inner, depth - 1) for inner in value]))
    if isinstance(value, (dict, list)):
        return common.AnyValue(string_value=_clean(json.dumps(value, ensure_ascii=False)))
    return common.AnyValue(string_value=_clean(value.isoformat() if isinstance(value, datetime) else plain(value)))


def _clean(text: str) -> str:
    """The text without lone surrogates, which UTF-8 lacks."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
