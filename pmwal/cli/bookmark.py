"""A place in a log, or in several, that is kept in a file from one run to the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from pmwal.cli.atomic_file import replacing

_Cursor = TypeVar("_Cursor")


class Bookmark(Generic[_Cursor]):
    """A cursor in a file, as text. ``parse`` raises ``ValueError`` for text that is none."""

    def __init__(self, path: str, parse: Callable[[str], _Cursor], text: Callable[[_Cursor], str], longest: int) -> None:
        """``longest``: more characters than this are no cursor."""
        self._path = path
        self._parse = parse
        self._text = text
        self._longest = longest
        self._saved: _Cursor | None = None

    def load(self) -> _Cursor | None:
        """The cursor; None if the file is empty or missing."""
        try:
            with Path(self._path).open(errors="backslashreplace") as file:
                text = file.read(self._longest + 1).strip()  # no more: it may be a device without an end
        except FileNotFoundError:
            return None
        if len(text) > self._longest:
            raise ValueError(f"{self._path}: more than {self._longest} characters are no cursor; name another file")
        if text:
            try:
                self._saved = self._parse(text)
            except ValueError as error:
                raise ValueError(f"{self._path}: {error}") from None
        return self._saved

    def save(self, cursor: _Cursor) -> None:
        """Store the cursor; a crash leaves the old one or the new one."""
        if cursor != self._saved:
            with replacing(self._path) as file:
                file.write(f"{self._text(cursor)}\n".encode())
            self._saved = cursor
