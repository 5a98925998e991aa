"""The fields of a structured log record: which ones, in which order, and what they are called."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from operator import attrgetter
from typing import Any

from pmwal.logs.exceptions import Cut, ExcInfo, made, structure
from pmwal.logs.plain import Plain

USUAL = {
    "time": "asctime",
    "level": "levelname",
    "logger": "name",
    "message": "message",
    "module": "module",
    "function": "funcName",
    "line": "lineno",
    "process": "process",
    "thread": "threadName",
}
"""The fields without ``fmt``, each with the attribute of a ``LogRecord`` that it has the value of."""

SOMETIMES = {"process_name": "processName", "task": "taskName"}
"""More of them, in records of another process than the main one, and of an asyncio task."""

LAST = ("exc", "exception", "stack", "extra")
"""Fields that follow in records that have them, whatever ``fmt`` says."""

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""Attributes of every ``LogRecord``; all others came with ``extra=`` or from a filter."""

_ATTRIBUTES = (_OWN | {"taskName"}) - {"args", "msg", "exc_info", "exc_text", "stack_info"}
_PLACEHOLDER = re.compile(r"%\((.+?)\)|\{(\w+)[^{}]*\}")
MAIN_PROCESS = ("MainProcess", None)
"""Names of a process that say nothing."""

_PLAIN = logging.Formatter()

Formatter = logging.Formatter | None


class Fields:
    """Makes the document of a log record. ``ValueError`` or ``TypeError`` for arguments that cannot be meant.

    >>> record = logging.makeLogRecord({"levelname": "INFO", "msg": "paid"})
    >>> Fields("%(levelname)s %(message)s", rename={"levelname": "severity"}).document(record, None)
    {'severity': 'INFO', 'message': 'paid'}
    """

    def __init__(
        self,
        fmt: str | Sequence[str] | None = None,
        *,
        rename: Mapping[str, str] | None = None,
        static: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        rename, static, defaults = dict(rename or {}), dict(static or {}), dict(defaults or {})
        for name in defaults:
            if name in _OWN:
                raise ValueError(f"defaults: {name!r} is an attribute of every log record; defaults are for fields of extra=")
        chosen = USUAL if fmt is None else {name: name for name in _names_in(fmt, defaults)}
        sometimes = SOMETIMES if fmt is None else {}
        added = [name for name in defaults if fmt is None or name not in chosen]
        _check_names([*chosen, *added, *sometimes, *static, *LAST], rename)
        self._template: dict[str, Any] = {rename.get(name, name): None for name in (*chosen, *added)}
        for name, value in (_plain("defaults", defaults) | _plain("static_fields", static)).items():
            self._template[rename.get(name, name)] = value
        self._made: list[tuple[str, Callable[[logging.LogRecord, Formatter], Any]]] = []
        plain = {}
        for name, attribute in chosen.items():
            field = rename.get(name, name)
            if attribute in _MADE:
                self._made.append((field, _MADE[attribute] if fmt is None or attribute != "asctime" else _formatted_time))
            elif attribute not in defaults:
                plain[field] = attribute
        self._names, self._attributes = tuple(plain), tuple(plain.values())
        # Two more, so that there is a tuple in any case.
        self._values = attrgetter("name", "msg", *self._attributes)
        self._sometimes = {attribute: rename.get(name, name) for name, attribute in sometimes.items()}
        self._lifted = {name: rename.get(name, name) for name in defaults}
        self._known = _OWN | frozenset(defaults)
        self._exc, self._exception, self._stack, self._extra = (rename.get(name, name) for name in LAST)

    @property
    def open_fields(self) -> tuple[str, ...]:
        """The fields with values of the program's own, of any type."""
        return (self._extra, *self._lifted.values())

    def document(self, record: logging.LogRecord, formatter: Formatter) -> dict[str, Any]:
        """The record as a dict for JSON."""
        document = self._template.copy()
        try:
            document.update(zip(self._names, self._values(record)[2:], strict=False))
        except AttributeError:  # a filter has removed one
            document.update((name, getattr(record, of, None)) for name, of in zip(self._names, self._attributes, strict=True))
        for name, make in self._made:
            document[name] = make(record, formatter)
        if self._sometimes:
            process = getattr(record, "processName", None)
            if process not in MAIN_PROCESS:
                document[self._sometimes["processName"]] = process
            task = task_of(record)
            if task is not None:
                document[self._sometimes["taskName"]] = task
        if record.exc_info or record.exc_text:
            self._add_exception(document, record, formatter)
        if record.stack_info:
            document[self._stack] = record.stack_info
        attributes, known = vars(record), self._known
        if not attributes.keys() <= known:
            document[self._extra] = {name: value for name, value in attributes.items() if name not in known}
        for name, field in self._lifted.items():
            if name in attributes:
                document[field] = attributes[name]
        context = context_of_structlog()
        if context:
            document[self._extra] = context | document.get(self._extra, {})
        return document

    def _add_exception(self, document: dict[str, Any], record: logging.LogRecord, formatter: Formatter) -> None:
        text = record.exc_text
        if record.exc_info and not text:
            text = text_of(record.exc_info, formatter)
            if type(text) is not Cut:
                record.exc_text = text  # for other handlers
        if text:
            document[self._exc] = text
        if record.exc_info and record.exc_info[1] is not None:
            document[self._exception] = structure(record.exc_info[1], record.exc_info[2])


def _names_in(fmt: str | Sequence[str], defaults: Iterable[str]) -> list[str]:
    """The names of attributes in a format, in the order of their first appearance."""
    names = [found[1] or found[2] for found in _PLACEHOLDER.finditer(fmt)] if isinstance(fmt, str) else list(fmt)
    if not names:
        raise ValueError(
            f"fmt={fmt!r} names no field: write it as '%(asctime)s %(message)s', '{{asctime}} {{message}}', or a list of names"
        )
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"fmt is a format or a list of names, which are text, not {type(name).__name__}")
        if name not in _ATTRIBUTES and name not in defaults:
            raise ValueError(f"fmt: {name!r} is no attribute of a log record; {_hint(name)}")
    return list(dict.fromkeys(names))


def _hint(name: str) -> str:
    if name in LAST or name in ("exc_info", "exc_text", "stack_info"):
        return f"the fields {', '.join(LAST)} follow in any case, and rename_fields= gives them other names"
    attribute = (USUAL | SOMETIMES).get(name)
    if attribute is not None:
        return f"use {attribute!r}, with rename_fields={{{attribute!r}: {name!r}}}"
    near = get_close_matches(name, sorted(_ATTRIBUTES), 1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"a field of extra= needs a value for records without it: defaults={{{name!r}: None}}"


def _check_names(names: Sequence[str], rename: Mapping[str, str]) -> None:
    """Whether each field has a name that no other one has."""
    for name in rename:
        if name not in names:
            near = get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(names)}"
            raise ValueError(f"rename_fields: there is no field {name!r}; {hint}")
    seen: set[str] = set()
    for name in (rename.get(name, name) for name in names):
        if not isinstance(name, str):
            raise TypeError(f"the name of a field is text, not {type(name).__name__}")
        if name in seen:
            raise ValueError(f"two fields would have the name {name!r}; rename_fields= gives one of them another name")
        seen.add(name)


def _plain(option: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """These fields in types that JSON has, once for all records."""
    plain = Plain()
    found: dict[str, Any] = plain.value(fields)
    if plain.cuts:
        raise ValueError(f"{option}: {fields!r} cannot be stored as JSON; use texts, numbers, lists and dicts of these")
    return found


def text_of(exc_info: ExcInfo, formatter: Formatter = None) -> Any:
    """A traceback as text; ``Cut`` if code of an exception or of the program's formatter raises."""
    return made((formatter or _PLAIN).formatException, exc_info)


def _message(record: logging.LogRecord, formatter: Formatter) -> str:
    return record.getMessage()


def _time(record: logging.LogRecord, formatter: Formatter) -> Any:
    try:
        return stamp(record.created)
    except Exception as error:  # no time, or one out of range
        return Cut(error)


def _formatted_time(record: logging.LogRecord, formatter: Formatter) -> Any:
    return _time(record, None) if formatter is None else made(formatter.formatTime, record, formatter.datefmt)


def _task(record: logging.LogRecord, formatter: Formatter) -> str | None:
    return task_of(record)


_MADE = {"asctime": _time, "message": _message, "taskName": _task}
"""Attributes that are not there until somebody makes them."""


class _Second:
    """A second, and its text: many records share one."""

    def __init__(self) -> None:
        self.known = -1, ""


_second = _Second()


def stamp(seconds: float) -> str:
    """A time as in RFC 3339, in UTC with microseconds: ``datetime.isoformat``, in a third of the time.

    >>> stamp(1.5)
    '1970-01-01T00:00:01.500000+00:00'
    """
    whole = int(seconds // 1)
    micros = round((seconds - whole) * 1e6)
    if micros == 1_000_000:
        whole, micros = whole + 1, 0
    known, text = _second.known  # one object, which another thread replaces as a whole
    if known != whole:
        text = datetime.fromtimestamp(whole, UTC).isoformat()[:19]
        _second.known = whole, text
    return f"{text}.{micros:06d}+00:00"


if sys.version_info >= (3, 12):

    def task_of(record: logging.LogRecord) -> str | None:
        """The name of the asyncio task that logged, if any."""
        return getattr(record, "taskName", None)

else:

    def task_of(record: logging.LogRecord) -> str | None:
        """The name of the asyncio task that logs, if any: in a listener of a queue there is none."""
        return current_task()


def current_task() -> str | None:
    """The name of the asyncio task that runs in this thread, if any."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    try:
        loop = asyncio._get_running_loop()
        task = None if loop is None else asyncio.current_task(loop)
        return None if task is None else str(task.get_name())
    except Exception:  # asyncio is just being imported, or a task of the program's own
        return None


def context_of_structlog() -> dict[str, Any] | None:
    """The fields that ``structlog.contextvars`` has bound in this context, if the program uses it."""
    module = sys.modules.get("structlog.contextvars")
    if module is None:
        return None
    try:
        found: dict[str, Any] = module.get_contextvars()
    except AttributeError:  # it is just being imported
        return None
    return found
