"""``--cursor-file``: where the next run continues.

Invariants
----------
- A cursor is stored only after everything up to its record was written to standard output. A crash leaves the old or the new one.
"""

from __future__ import annotations

import json
from pathlib import Path

from pmwal.cli.atomic_file import replacing
from pmwal.cursor import parse_cursor

_SIZE_MAX = 1 << 20


class Bookmark:
    """A file with a cursor for each log, by its uuid, as JSON. One that ``pmwal tail`` wrote has a single cursor."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._loaded: dict[str, str] = {}
        self._saved: dict[str, str] = {}  # what the file has, in the form that is stored here

    def load(self, uuids: list[str]) -> dict[str, str]:
        """The cursors; none if the file is empty or missing. ``uuids`` are those of the logs that are read now."""
        try:
            with Path(self._path).open(errors="backslashreplace") as file:
                text = file.read(_SIZE_MAX + 1).strip()  # no more: it may be a device without an end
        except FileNotFoundError:
            return {}
        if text:
            self._loaded = self._cursors(text, uuids)
            self._saved = self._loaded if text.startswith("{") else {}
        return dict(self._loaded)

    def _cursors(self, text: str, uuids: list[str]) -> dict[str, str]:
        if not text.startswith("{") and len(uuids) == 1:
            found: object = {uuids[0]: text}
        else:
            try:
                found = json.loads(text[: _SIZE_MAX + 1])
            except (ValueError, RecursionError):
                found = None
        try:
            if not isinstance(found, dict):
                raise ValueError("it has no cursors of these logs")
            return {str(uuid): str(parse_cursor(str(cursor))) for uuid, cursor in found.items()}
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}; name another file, or remove this one to begin anew") from None

    def save(self, cursors: dict[str, str]) -> None:
        """Store the cursors; those of logs that were not read stay."""
        merged = self._loaded | self._saved | cursors
        if merged != self._saved:
            with replacing(self._path) as file:
                file.write(json.dumps(merged).encode() + b"\n")
            self._saved = merged
