"""Exceptions as data: what was raised where, and because of what, in the form of structlog's ``ExceptionDictTransformer``.

Invariants
----------
- No value of a local variable is looked at: such values are where passwords are.
- The number of exceptions and of the frames of each is bounded, and a mark is where some are missing.
- Texts of exceptions and notes are made when the document is encoded, so an object whose code raises becomes a mark there. So does
  an attribute whose code raises here. What else classes may replace is read as ``BaseException`` has it.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator
from itertools import islice
from types import TracebackType
from typing import Any

from pmwal.logs.plain import shown

EXCEPTIONS_MAX = 32
FRAMES_MAX = 50
NOTES_MAX = 32
DEPTH_MAX = 8
"""Groups in groups."""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Text:
    """The text of an object, made when the document is encoded."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return shown(self._value)


class Cut:
    """In the place of something whose code raised: encoding it raises the same, and so makes a mark of it."""

    __slots__ = ("_error",)

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __str__(self) -> str:
        raise self._error


def made(make: Callable[..., Any], *arguments: object) -> Any:
    """What this function returns; ``Cut`` if it raises."""
    try:
        return make(*arguments)
    except BaseException as error:
        return Cut(error)


def structure(error: BaseException, trace: TracebackType | None) -> list[dict[str, Any]]:
    """An exception and those that led to it, from the one that was logged to the root cause.

    >>> try:
    ...     try:
    ...         {}["k"]
    ...     except KeyError as missing:
    ...         raise ValueError("no k") from missing
    ... except ValueError as error:
    ...     found = structure(error, error.__traceback__)
    >>> [(each["exc_type"], str(each["exc_value"]), each["is_cause"]) for each in found]
    [('ValueError', 'no k', False), ('KeyError', "'k'", True)]
    """
    return list(_Exceptions().chain(error, trace, DEPTH_MAX))


class _Exceptions:
    """One conversion, with the limits for all of its exceptions together."""

    def __init__(self) -> None:
        self._left = EXCEPTIONS_MAX
        self._seen: set[int] = set()

    def chain(self, error: BaseException | None, trace: TracebackType | None, depth: int) -> Iterator[dict[str, Any]]:
        is_cause = False
        while error is not None and id(error) not in self._seen:
            if not self._left:
                yield _described("", "[cut: size]", is_cause=is_cause)
                return
            self._left -= 1
            self._seen.add(id(error))
            yield self._one(error, trace, depth, is_cause=is_cause)
            origin, is_cause = _origin(error)
            if isinstance(origin, Cut):
                yield _described("", origin, is_cause=is_cause)
                return
            error, trace = origin, None if origin is None else _traceback(origin)

    def _one(self, error: BaseException, trace: TracebackType | None, depth: int, *, is_cause: bool) -> dict[str, Any]:
        kind = type(error)
        found = _described(_text(_asked(kind, "__name__")), Text(error), is_cause=is_cause)
        module = _text(_asked(kind, "__module__"))
        if module != "builtins":
            found["exc_module"] = module
        notes = _asked(error, "__notes__")
        if issubclass(type(notes), (list, tuple)):  # isinstance would ask the object for its class
            notes = made(lambda: [Text(note) for note in islice(notes, NOTES_MAX)])
            found["exc_notes"] = [notes] if type(notes) is Cut else notes
        elif type(notes) is Cut:
            found["exc_notes"] = [notes]
        found["frames"] = list(_frames(trace))
        if isinstance(error, BaseExceptionGroup):
            found["is_group"] = True
            found["exceptions"] = list(self._members(error, depth - 1))
        return found

    def _members(self, group: BaseExceptionGroup[BaseException], depth: int) -> Iterator[list[dict[str, Any]]]:
        for member in BaseExceptionGroup.exceptions.__get__(group):  # a subclass may have its own
            if not depth or not self._left:
                yield [_described("", f"[cut: {'size' if depth else 'depth'}]", is_cause=False)]
                return
            yield list(self.chain(member, _traceback(member), depth))


def _described(kind: str | Text | Cut, value: str | Text | Cut, *, is_cause: bool) -> dict[str, Any]:
    return {"exc_type": kind, "exc_value": value, "is_cause": is_cause, "frames": []}


def _origin(error: BaseException) -> tuple[BaseException | Cut | None, bool]:
    """What led to an exception, and whether the program says that it is the cause; else it was handled at the time."""
    cause = _asked(error, "__cause__")
    if issubclass(type(cause), (BaseException, Cut)):
        return cause, True
    context = _asked(error, "__context__")
    if issubclass(type(context), (BaseException, Cut)) and not _ATTRIBUTES["__suppress_context__"].__get__(error):
        return context, False
    return None, False


def _asked(thing: object, name: str) -> Any:
    """An attribute that a class may have replaced by code of its own; ``Cut`` if that raises."""
    return made(getattr, thing, name, None)


def _text(name: Any) -> str | Text | Cut:
    """A name, which should be text."""
    return name if type(name) in (str, Cut) else Text(name)


_ATTRIBUTES: Any = vars(BaseException)


def _traceback(error: BaseException) -> TracebackType | None:
    found: TracebackType | None = _ATTRIBUTES["__traceback__"].__get__(error)
    return found


def _frames(trace: TracebackType | None) -> Iterator[dict[str, Any]]:
    """The frames from the one that caught the exception to the one that raised it. Of too many the middle is left out."""
    found = []
    while trace is not None:
        found.append(trace)
        trace = trace.tb_next
    skipped = len(found) - FRAMES_MAX
    if skipped <= 0:
        yield from map(_frame, found)
        return
    half = FRAMES_MAX // 2
    yield from map(_frame, islice(found, half))
    yield {"filename": "", "lineno": -1, "name": f"Skipped frames: {skipped}"}
    yield from map(_frame, found[-half:])


def _frame(trace: TracebackType) -> dict[str, Any]:
    code, line = trace.tb_frame.f_code, trace.tb_lineno
    frame: dict[str, Any] = {"filename": code.co_filename, "lineno": line, "name": code.co_name}
    try:
        source = linecache.getline(code.co_filename, line, trace.tb_frame.f_globals).strip()
    except Exception:  # a loader of the program's own
        source = ""
    if source:
        frame["code"] = source
    return frame
