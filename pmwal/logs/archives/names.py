"""Names of archive files, and which of several files has a record.

A name is ``LOG-UUID-FIRST-LAST.parquet``, or ``LOG-UUID-FIRST-LAST-BRANCH.parquet`` once archived records were rolled back. A
directory may contain anything else: only these names count there. A file that is named itself may have another name.

Invariants
----------
- A file has all numbers from its first to its last. Files of one branch do not overlap.
- A branch begins where a rollback, or a restored copy, made the log differ from what was archived. From its first number on it
  replaces what earlier branches have.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pmwal.logs.paths import is_pattern

SUFFIXES = (".parquet", ".jsonl.zst")

_NAME = re.compile(
    r"(?P<log>.+)-(?P<uuid>[0-9a-f]{32})-(?P<first>[0-9]{20})-(?P<last>[0-9]{20})(?:-(?P<branch>[0-9]{1,9}))?"
    r"(?P<suffix>\.parquet|\.jsonl\.zst)",
    re.DOTALL,
)
_LOG_MAX = 64  # characters of the log's own name
_OTHER = re.compile(r"[^A-Za-z0-9_.+@-]")


class ArchiveName(NamedTuple):
    """What the name of an archive file says."""

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


def name_for(path: str) -> str:
    """How files of the log at this path begin.

    >>> name_for("/var/log/my shop.wal")
    'my_shop'
    """
    stem = os.path.basename(path).removesuffix(".wal").lstrip(".")
    return _OTHER.sub("_", stem)[:_LOG_MAX] or "log"


def is_archive(path: str) -> bool:
    """Whether a file that the user names is taken for an archive: by its suffix."""
    return path.endswith(SUFFIXES) and not os.path.isdir(path)


def archives_at(place: str) -> Iterator[str]:
    """The archive files of a directory, the file of this name, or what a pattern matches."""
    for match in sorted(glob.glob(place)) if is_pattern(place) else [place]:
        if os.path.isdir(match):
            yield from archives_in(match)
        elif is_archive(match) and os.path.lexists(match):
            yield match


def archives_in(directory: str) -> list[str]:
    """The archive files of a directory, by name."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:  # removed meanwhile
        return []
    return [os.path.join(directory, name) for name in sorted(names) if name.endswith(SUFFIXES) and parse_name(name) is not None]


class Piece(NamedTuple):
    """The records from ``first`` up to, not including, ``stop`` are in the file of this number."""

    first: int
    stop: int
    file: int


def pieces_of(names: Iterable[tuple[int, int, int]]) -> list[Piece]:
    """Where the records of a log are, from the branch, the first and the last number of each file; by number.

    >>> pieces_of([(0, 1, 9), (0, 10, 19), (1, 13, 14)])
    [Piece(first=1, stop=10, file=0), Piece(first=10, stop=13, file=1), Piece(first=13, stop=15, file=2)]
    """
    pieces: list[Piece] = []
    limit = None
    for (_, first, last), index in sorted(((name, index) for index, name in enumerate(names)), reverse=True):
        stop = last + 1 if limit is None else min(last + 1, limit)
        if first < stop:
            pieces.append(Piece(first, stop, index))
        limit = first if limit is None else min(limit, first)
    return pieces[::-1]
