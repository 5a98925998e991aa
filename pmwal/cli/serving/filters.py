"""Which entries a client wants.

Invariants
----------
- A pattern costs time in proportion to the text that it is matched against: RE2, never a backtracking engine. Patterns, and the
  memory that one may use, are limited.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Any

from pmwal.cli.entries import Entry
from pmwal.cli.levels import Levels
from pmwal.events.definition import DEFINITION_KIND

PATTERN_MAX = 500
"""Characters of a pattern."""

_MEMORY = 1 << 21  # bytes of a compiled pattern and its automata


def compile_pattern(text: str) -> Any:
    """A pattern of RE2; upper and lower case differ only if it has a capital. ``ValueError`` if it is none, or too large."""
    import re2  # noqa: PLC0415 - of the extra "web"

    if len(text) > PATTERN_MAX:
        raise ValueError(f"a pattern has at most {PATTERN_MAX} characters")
    options = re2.Options()
    options.max_mem = _MEMORY
    options.log_errors = False
    options.case_sensitive = text != text.lower()
    try:
        return re2.compile(text, options)
    except re2.error as error:
        said = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"that is no pattern: {said} (RE2 syntax: no look-around, no back references)") from None


class Filters:
    """What an entry must have. Loggers are patterns for names (shell). Values of one field are alternatives, None is any; the rest
    must hold together."""

    def __init__(
        self,
        levels: Levels | None = None,
        loggers: Collection[str] = (),
        fields: Iterable[tuple[str, str | None]] = (),
        pattern: Any = None,
    ) -> None:
        self._levels = levels
        self._loggers = tuple(loggers)
        self._pattern = pattern
        self._fields: dict[str, set[str | None]] = {}
        for name, value in fields:
            self._fields.setdefault(name, set()).add(value)

    @property
    def kinds(self) -> frozenset[int] | None:
        """The kinds of records that may match; None for all. One of kind 0 may have its level in its payload."""
        return None if self._levels is None else self._levels.kinds | {0}

    @property
    def needs_entry(self) -> bool:
        """Whether it takes more than a record's kind to tell."""
        return bool(self._levels or self._loggers or self._fields or self._pattern is not None)

    def takes(self, entry: Entry) -> bool:
        """Whether the entry matches."""
        if entry.record.kind == DEFINITION_KIND:
            return False  # what events mean is part of how they are stored
        if self._levels is not None and entry.level not in self._levels:
            return False
        if self._loggers and not any(fnmatchcase(entry.logger, logger) for logger in self._loggers):
            return False
        for name, values in self._fields.items():
            if name not in entry.fields or not (None in values or text_of(entry.fields[name]) in values):
                return False
        return self._pattern is None or any(map(self._pattern.search, (entry.message, entry.traceback)))


def text_of(value: Any) -> str:
    """A field's value as people write it: text as it is, else as in JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return ""
