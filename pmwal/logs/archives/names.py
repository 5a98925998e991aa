"""Names of archive files, and which of several files has a record.

Invariants
----------
- A file has all numbers from its first to its last. Files of one branch do not overlap.
- A branch begins where a rollback, or a restored copy, made the log differ from what was archived. From its first number on it
  replaces what earlier branches have, also where its own files are damaged or removed: each file says where the branches began.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_LOG_MAX = 64  # characters of the log's own name
_OTHER = re.compile(r"[^A-Za-z0-9_.+@-]")


def name_for(path: str) -> str:
    """How files of the log at this path begin.

    >>> name_for("/var/log/my shop.wal")
    'my_shop'
    """
    stem = os.path.basename(path).removesuffix(".wal").lstrip(".")
    return _OTHER.sub("_", stem)[:_LOG_MAX] or "log"


class Piece(NamedTuple):
    """The records from ``first`` up to, not including, ``stop`` are in the file of this number."""

    first: int
    stop: int
    file: int


def pieces_of(names: Iterable[tuple[int, int, int]]) -> list[Piece]:
    """Where the records of a log are, from the branch, the first and the last number of each file; by number.

    A name whose last number is before its first has no records: a branch begins there.

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


def divergence(epochs: Mapping[int, int], epoch: int, last: int) -> int | None:
    """The first archived number that the log discarded since, by the first numbers of its epochs; None if they tell of none.

    ``epoch`` and ``last``: of the newest archived record.

    >>> divergence({1: 1, 2: 3, 3: 9}, 1, 5)
    3
    """
    return min((first for later, first in epochs.items() if later > epoch and first <= last), default=None)
