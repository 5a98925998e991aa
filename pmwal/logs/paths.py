"""Which files are meant by a directory, a file or a pattern: the one definition, for log sets and the command line."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from collections.abc import Iterator

SUFFIX = ".wal"


def logs_at(place: str) -> Iterator[tuple[str, int | None]]:
    """The logs of a directory, sorted by name, the file of this name, or what a pattern matches.

    Each with its inode as its directory says, None if that does not name it. A pattern's directories give their logs. No file's
    times are looked up: each look at those of a log would let its next commit write more.
    """
    if os.path.isdir(place):
        yield from logs_in(place)
        return
    for match in [place] if os.path.lexists(place) else sorted(glob.glob(place)):
        if os.path.isdir(match):
            yield from logs_in(match)
        else:
            directory, name = os.path.split(match)
            yield match, next((inode for entry, inode in _entries(directory or ".") if entry == name), None)


def logs_in(directory: str) -> list[tuple[str, int]]:
    """The logs of a directory: every ``*.wal`` that is not hidden."""
    found = [(name, inode) for name, inode in _entries(directory) if name.endswith(SUFFIX) and not name.startswith(".")]
    return [(os.path.join(directory, name), inode) for name, inode in sorted(found)]


def is_pattern(place: str) -> bool:
    """Whether it is a pattern, as the shell leaves one that matches nothing, and no file has that name."""
    return glob.has_magic(place) and not os.path.lexists(place)


def is_missing(place: str) -> bool:
    """Whether it is not there; a pattern may match nothing yet."""
    return not os.path.lexists(place) and not is_pattern(place)


def check_place(place: str) -> None:
    """``FileNotFoundError`` if it is not there."""
    if is_missing(place):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)


def _entries(directory: str) -> list[tuple[str, int]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:  # removed meanwhile
        return [(entry.name, entry.inode()) for entry in entries]
    return []
