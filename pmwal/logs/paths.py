"""Which files are meant by a directory, a file or a pattern: the one definition, for log sets and the command line."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

SUFFIX = ".wal"
ARCHIVE_SUFFIXES = (".parquet", ".jsonl.zst")
ARCHIVE_LOCK = ".pmwal-archive.lock"
"""The file in a directory of archives that whoever writes there locks. It stays."""

_NAME = re.compile(
    r"(?P<log>.+)-(?P<uuid>[0-9a-f]{32})-(?P<first>[0-9]{20})-(?P<last>[0-9]{20})(?:-(?P<branch>[0-9]{1,9}))?"
    r"(?P<suffix>\.parquet|\.jsonl\.zst)",
    re.DOTALL,
)


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


# -- archives


class ArchiveName(NamedTuple):
    """What the name of an archive says: ``LOG-UUID-FIRST-LAST.parquet``, or ``LOG-UUID-FIRST-LAST-BRANCH.parquet``.

    A directory may contain anything else: only these names count there. A file that is named itself may have another name.
    """

    log: str
    uuid: str
    first: int
    last: int
    branch: int
    suffix: str

    def __str__(self) -> str:
        branch = f"-{self.branch}" if self.branch else ""
        return f"{self.log}-{self.uuid}-{self.first:020d}-{self.last:020d}{branch}{self.suffix}"


def parse_name(name: str) -> ArchiveName | None:
    """What a file name says; None if it is not that of an archive.

    >>> parse_name("00-" + 32 * "a" + "-00000000000000000001-00000000000000000009.parquet").last
    9
    >>> parse_name("sales.parquet") is None
    True
    """
    found = None if name.startswith(".") else _NAME.fullmatch(name)
    if found is None:
        return None
    first, last = int(found["first"]), int(found["last"])
    if not 0 < first <= last:
        return None
    return ArchiveName(found["log"], found["uuid"], first, last, int(found["branch"] or 0), found["suffix"])


def is_archive(path: str) -> bool:
    """Whether a file that the user names is taken for an archive: by its suffix."""
    return path.endswith(ARCHIVE_SUFFIXES) and not os.path.isdir(path)


def archives_at(place: str) -> Iterator[str]:
    """The archive files of a directory, the file of this name, or what a pattern matches."""
    for match in sorted(glob.glob(place)) if is_pattern(place) else [place]:
        if os.path.isdir(match):
            yield from archives_in(match)
        elif is_archive(match) and os.path.lexists(match):
            yield match


def gets_archives(place: str) -> bool:
    """Whether it is a directory of archives, also while there are none: the first file is not written yet, or all were removed."""
    return os.path.lexists(os.path.join(place, ARCHIVE_LOCK))


def archives_in(directory: str) -> list[str]:
    """The archive files of a directory, by name."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:  # removed meanwhile
        return []
    return [os.path.join(directory, name) for name in sorted(names) if parse_name(name) is not None]
