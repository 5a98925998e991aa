"""Entries as JSON for clients: what they show a person, with nothing that names a path or a uuid.

Invariants
----------
- Each is one line of ASCII that every JSON parser takes, whatever a record contains: no NaN, no line break, no number that a
  parser of doubles would round.
- Text that is cut says so (``cut``).
"""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

from pmwal.cli.times import utc_text
from pmwal.errors import PmwalError
from pmwal.events.entries import Entry

_EXACT = 2**53
_DEPTH_MAX = 32


class _Plain:
    """Makes plain values of others, with texts of at most ``longest`` characters in all parts together."""

    def __init__(self, longest: int | None) -> None:
        self._left = longest
        self.cut = False

    def text(self, text: str) -> str:
        """The text, or its beginning."""
        if self._left is None:
            return text
        shown = text[: max(self._left, 0)]
        self._left -= len(text)
        if len(shown) < len(text):
            self.cut = True
            return shown + "…"
        return shown

    def value(self, value: Any, depth: int = 0) -> Any:
        """A value as JSON has it; what JSON lacks, or is nested too deeply, as text."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int):
            return self._number(value)
        if isinstance(value, float):
            return value if value - value == 0 else str(value)
        if isinstance(value, datetime):
            return value.isoformat()
        if isinstance(value, bytes):
            return {"base64": self.text(base64.b64encode(value).decode())}
        if isinstance(value, dict | list | tuple) and depth < _DEPTH_MAX:
            return self._container(value, depth)
        return self.text(f"<{type(value).__name__}>")

    def _number(self, value: int) -> int | str:
        if -_EXACT <= value <= _EXACT:
            return value
        return str(value) if value.bit_length() <= 1024 else hex(value)

    def _container(self, value: Any, depth: int) -> Any:
        made: Any = {} if isinstance(value, dict) else []
        for each in value:
            if self._left is not None and self._left <= 0:
                self.cut = True
                break
            if isinstance(value, dict):
                made[self.text(str(each))] = self.value(value[each], depth + 1)
            else:
                made.append(self.value(each, depth + 1))
            if self._left is not None:
                self._left -= 1
        return made


def document_of(entry: Entry, log: str, cursor: str, longest: int | None = None) -> bytes:
    """The entry as one line of JSON, without a line break. Names that would be empty are left out."""
    record, plain = entry.record, _Plain(longest)
    document: dict[str, Any] = {
        "cursor": cursor,
        "log": log,
        "seq": record.seq,
        "kind": record.kind,
        "time": utc_text(record.time_ns),
        "levelno": entry.level,
        "message": plain.text(entry.message),
    }
    for name, text in (("level", entry.level_name), ("logger", entry.logger)):
        if text:
            document[name] = plain.text(text)
    document |= plain.value(dict(entry.origin))
    if entry.fields:
        document["fields"] = plain.value(dict(entry.fields))
    if entry.traceback:
        document["traceback"] = plain.text(entry.traceback)
    if plain.cut:
        document["cut"] = True
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def without_paths(error: Exception) -> str:
    """An error for a client. Texts of pmwal and of the system name paths, so they stay here."""
    return "the log cannot be read" if isinstance(error, PmwalError | OSError) else str(error)
