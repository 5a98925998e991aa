"""Names of archive files, and which of several files has a record.

Invariants
----------
- A file has all numbers from its first to its last. Files of one branch do not overlap, unless they were brought back.
- A branch begins where a rollback, or a restored copy, made the log differ from what was archived. From its first number on it
  replaces what earlier branches have, also where its own files are damaged or removed: each file says where the branches began.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pmwal.logs.paths import ArchiveName

_LOG_MAX = 64  # characters of the log's own name
_OTHER = re.compile(r"[^A-Za-z0-9_.+@-]")


def name_for(path: str) -> str:
    """How files of the log at this path begin.

    >>> name_for("/var/log/my shop.wal")
    'my_shop'
    """
    stem = os.path.basename(path).removesuffix(".wal").lstrip(".")
    return _OTHER.sub("_", stem)[:_LOG_MAX] or "log"


def order_of(name: ArchiveName) -> tuple[int, int, int]:
    """Sorts the archives of a log: the last one says where the log continues. A restored one may be a part of another."""
    return name.branch, name.last, name.first


def newest_of(names: Iterable[ArchiveName]) -> ArchiveName | None:
    """The archive with which those of a log end."""
    return max(names, key=order_of, default=None)


class Piece(NamedTuple):
    """The records from ``first`` up to, not including, ``stop`` are in the file of this number."""

    first: int
    stop: int
    file: int


def pieces_of(names: Iterable[tuple[int, int, int]]) -> list[Piece]:
    """Where the records of a log are, from the branch, the first and the last number of each file; by number.

    A name whose last number is before its first has no records: a branch begins there.

    Where files of a branch overlap, as when one is restored beside another, the one that begins first has the records.

    >>> pieces_of([(0, 1, 9), (0, 10, 19), (1, 13, 14)])
    [Piece(first=1, stop=10, file=0), Piece(first=10, stop=13, file=1), Piece(first=13, stop=15, file=2)]
    >>> pieces_of([(0, 4, 5), (0, 1, 9), (0, 8, 12)])
    [Piece(first=1, stop=10, file=1), Piece(first=10, stop=13, file=2)]
    """
    branches: dict[int, list[tuple[int, int, int]]] = {}
    for index, (branch, first, last) in enumerate(names):
        branches.setdefault(branch, []).append((first, -last, index))
    pieces: list[Piece] = []
    limit = None
    for _, files in sorted(branches.items(), reverse=True):
        own: list[Piece] = []
        at, begin = 0, min(files)[0]
        for first, negated, index in sorted(files):
            stop = 1 - negated if limit is None else min(1 - negated, limit)
            at = max(at, first)
            if at < stop:
                own.append(Piece(at, stop, index))
                at = stop
        pieces = own + pieces
        limit = begin if limit is None else min(limit, begin)
    return pieces


def divergence(epochs: Mapping[int, int], epoch: int, last: int) -> int | None:
    """The first archived number that the log discarded since, by the first numbers of its epochs; None if they tell of none.

    ``epoch`` and ``last``: of the newest archived record.

    >>> divergence({1: 1, 2: 3, 3: 9}, 1, 5)
    3
    """
    return min((first for later, first in epochs.items() if later > epoch and first <= last), default=None)
