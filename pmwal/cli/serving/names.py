"""What the outside sees of logs: names instead of paths, and cursors of a set instead of uuids.

Invariants
----------
- A log has one name and a name belongs to one log, for as long as the server runs. A name contains nothing of a path but the file's
  stem and, where several places are served, the name of its directory.
- A cursor is text for headers: names are percent-encoded, so none of its separators occurs in one.
"""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote, unquote

from pmwal.cursor import parse_cursor
from pmwal.reading.reader import Reader
from pmwal.records import SetRecord

CURSOR_MAX = 12_000
"""Characters of a cursor: more do not fit into a header, and are refused."""


class Names:
    """The names of the logs found at these places."""

    def __init__(self, places: Sequence[str]) -> None:
        self._several = len(places) > 1
        self._directories = {os.path.abspath(place) for place in places if os.path.isdir(place)}
        self._wild = any(glob.has_magic(os.path.dirname(place)) and not os.path.lexists(place) for place in places)
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()
        self._lock = threading.Lock()

    def of(self, path: str) -> str:
        """The name of the log at a path."""
        with self._lock:
            known = self._names.get(path)
            if known is not None:
                return known
            base = self._base(path)
            name, number = base, 1
            while name in self._taken:
                number += 1
                name = f"{base}~{number}"
            self._names[path] = name
            self._taken.add(name)
            return name

    def _base(self, path: str) -> str:
        directory, file = os.path.split(os.path.abspath(path))
        stem = os.path.splitext(file)[0]
        if self._wild or (self._several and directory in self._directories):
            stem = f"{os.path.basename(directory)}/{stem}"
        return os.fsencode(stem).decode(errors="backslashreplace")


class Position(NamedTuple):
    """A place in a set: for each log, by its name, the cursor of the last record passed.

    ``newest``: the log of the last of all.
    """

    cursors: Mapping[str, str]
    newest: str | None = None

    def __str__(self) -> str:
        first = [] if self.newest is None else [self.newest]
        names = first + [name for name in self.cursors if name != self.newest]
        return ",".join(f"{quote(name, safe='/')}@{self.cursors[name]}" for name in names)


def parse_position(text: str) -> Position:
    """A position from its text; ``ValueError`` if it is none.

    >>> str(parse_position("01@17-0badcafe,00@3-00000000"))
    '01@17-0badcafe,00@3-00000000'
    """
    if len(text) > CURSOR_MAX:
        raise ValueError(f"more than {CURSOR_MAX} characters are no cursor")
    cursors: dict[str, str] = {}
    for part in text.split(","):
        name, at, cursor = part.partition("@")
        if not at:
            raise ValueError("that is no cursor; a cursor is the text of an entry's cursor, like 'app@17-0badcafe'")
        cursors[unquote(name, errors="strict")] = str(parse_cursor(cursor))
    return Position(cursors, next(iter(cursors)))


class Track:
    """Where a walk through a set is."""

    def __init__(self, names: Names, cursors: Mapping[str, str], readers: Mapping[str, Reader]) -> None:
        """``cursors``: of the set, by uuid; ``readers``: of its logs, by path."""
        self._names = names
        paths = {reader.uuid: path for path, reader in readers.items()}
        self._cursors = {names.of(paths[uuid]): cursor for uuid, cursor in cursors.items() if uuid in paths}
        self._moved: dict[str, SetRecord] = {}

    def pass_record(self, record: SetRecord) -> None:
        """The walk has come to this record."""
        self._moved[record.log] = record

    def position_at(self, record: SetRecord) -> Position:
        """The position after a record, the last one passed."""
        name = self._names.of(record.log)
        self._note()
        return Position(self._cursors, name)

    @property
    def position(self) -> Position:
        """The position now."""
        self._note()
        return Position(self._cursors)

    def _note(self) -> None:
        for path, moved in self._moved.items():
            self._cursors[self._names.of(path)] = moved.cursor
        self._moved.clear()
