"""``--cursor-file``: a place in a log, or in several, that is kept in a file from one run to the next."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from pmwal.cli.atomic_file import replacing
from pmwal.cli.terminal import say
from pmwal.cursor import Cursor, parse_cursor
from pmwal.errors import CorruptWal, Overrun, PersistError
from pmwal.reading.reader import Reader

_Cursor = TypeVar("_Cursor")

_LOG_MAX, _SET_MAX = 1000, 1 << 20  # characters of a file: of one log, of several


class Bookmark(Generic[_Cursor]):
    """A cursor in a file, as text. ``parse`` raises ``ValueError`` for text that is none."""

    def __init__(self, path: str, parse: Callable[[str], _Cursor], text: Callable[[_Cursor], str], longest: int) -> None:
        """``longest``: more characters than this are no cursor."""
        self._path = path
        self._parse = parse
        self._text = text
        self._longest = longest
        self._saved = ""  # what the file has

    def load(self) -> _Cursor | None:
        """The cursor; None if the file is empty or missing."""
        try:
            with Path(self._path).open(errors="backslashreplace") as file:
                text = file.read(self._longest + 1).strip()  # no more: it may be a device without an end
        except FileNotFoundError:
            return None
        if len(text) > self._longest:
            raise ValueError(f"{self._path}: more than {self._longest} characters are no cursor; name another file")
        self._saved = text
        try:
            return self._parse(text) if text else None
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from None

    def save(self, cursor: _Cursor) -> None:
        """Store the cursor; a crash leaves the old one or the new one."""
        text = self._text(cursor)
        if text != self._saved:
            with replacing(self._path) as file:
                file.write(f"{text}\n".encode())
            self._saved = text


def log_bookmark(path: str) -> Bookmark[Cursor]:
    """The place in one log: its cursor."""
    return Bookmark(path, parse_cursor, str, _LOG_MAX)


def set_bookmark(path: str, alone: str | None = None) -> Bookmark[dict[str, str]]:
    """The place in several: a cursor for each, by its uuid, as JSON.

    ``alone`` is the uuid of a log that is read alone: its file may also be one of ``log_bookmark``.
    """

    def parse(text: str) -> dict[str, str]:
        return {alone: str(parse_cursor(text))} if alone is not None and not text.startswith("{") else _parse_cursors(text)

    return Bookmark(path, parse, json.dumps, _SET_MAX)


def _parse_cursors(text: str) -> dict[str, str]:
    """The cursors of a set, from JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    try:
        if isinstance(value, dict):
            return {uuid: str(parse_cursor(str(cursor))) for uuid, cursor in value.items()}
    except ValueError:
        pass
    raise ValueError(f"{text[:40]!r} is no cursor of several logs; name another file, or remove this one to begin anew")


def usable_cursors(starts: Mapping[str, str], readers: Mapping[str, Reader], *, alone: bool = False) -> tuple[dict[str, str], bool]:
    """Those cursors whose records are still there, and whether any is gone, which is reported.

    A log that cannot be read ends it only if it is ``alone``: among others it is reported when it is read.
    """
    usable, gone = dict(starts), False
    for path, reader in readers.items():
        try:
            if reader.uuid in usable:
                reader.read(usable[reader.uuid])
        except (CorruptWal, PersistError):
            if alone:
                raise
        except Overrun as error:
            gone = True
            say(f"{path}: {error}; continuing with the oldest record")
            del usable[reader.uuid]
    return usable, gone
