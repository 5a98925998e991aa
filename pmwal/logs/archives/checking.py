"""Checks archives: every byte of each file that somebody reads, and that the files of a log follow each other. It never writes.

Invariants
----------
- Numbers that no file has are missing, unless the summary of a later file says that they were gone from the log before they were
  archived. Before the first file nothing is missing: old archives are removed.
- A file that is damaged has the numbers of its name: they are damaged, and not missing as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from pmwal.errors import CorruptWal
from pmwal.logs.archives.file import ArchiveFile
from pmwal.logs.archives.names import Piece, newest_of, pieces_of
from pmwal.logs.archives.summary import Summary
from pmwal.logs.paths import ArchiveName

Numbers = tuple[int, int]
"""The first and the last of several numbers."""


class Checked(NamedTuple):
    """A file: what its name, or else its summary, claims, its summary, and what is wrong with it. Without an error it is sound."""

    path: str
    claim: ArchiveName | None
    summary: Summary | None
    error: CorruptWal | OSError | None


class Chain(NamedTuple):
    """The files of a log.

    ``missing``: numbers that no file has. ``gone``: those of which a file says that they were gone before they were archived.
    ``twice``: numbers in two files of one branch, with the paths. ``replaced``: how many records were rolled back later.
    """

    claim: ArchiveName
    files: int
    first: int
    last: int
    missing: tuple[Numbers, ...]
    gone: tuple[Numbers, ...]
    twice: tuple[tuple[int, int, str, str], ...]
    replaced: int


def check_file(path: str) -> Checked:
    """Read all of this file, one group at a time. ``FileNotFoundError`` if it was removed meanwhile."""
    claim = summary = None
    with contextlib.closing(ArchiveFile(path)) as file:
        claim = file.name
        try:
            summary = file.summary
            claim = file.claim
            file.check()
        except FileNotFoundError:
            raise
        except (CorruptWal, OSError) as error:
            return Checked(path, claim, summary, error)
    return Checked(path, claim, summary, None)


def check_chains(files: Iterable[Checked]) -> list[Chain]:
    """How the files of each log follow each other, by the log's name and uuid."""
    by_log: dict[str, list[tuple[ArchiveName, Checked]]] = {}
    for each in files:
        if each.claim is not None and not isinstance(each.error, OSError):
            by_log.setdefault(each.claim.uuid, []).append((each.claim, each))
    chains = [_chain(found) for found in by_log.values()]
    return sorted(chains, key=lambda chain: (chain.claim.log, chain.claim.uuid))


def holes(names: Sequence[ArchiveName], summary_of: Callable[[ArchiveName], Summary | None]) -> list[Numbers]:
    """The numbers between these files of a log that none has, though they were archived. It costs a look at the names.

    ``summary_of`` is asked for the summary of the newest file, and of those before which numbers are missing.
    """
    newest = newest_of(names)
    if newest is None:
        return []
    summary = summary_of(newest)
    begun = () if summary is None else summary.branches
    pieces = pieces_of(
        [*((name.branch, name.first, name.last) for name in names), *((branch, first, first - 1) for branch, first in begun)]
    )
    after = {last + 1 for _, last in _missing(pieces, ())}
    summaries = [summary_of(name) for name in names if name.first in after]
    return _missing(pieces, sorted(summary.gap for summary in summaries if summary is not None and summary.gap is not None))


def _chain(files: Sequence[tuple[ArchiveName, Checked]]) -> Chain:
    files = sorted(files, key=lambda pair: (pair[0].branch, pair[0].first, pair[0].last, pair[1].path))
    names = [(claim.branch, claim.first, claim.last) for claim, _ in files]
    summaries = [file.summary for _, file in files if file.summary is not None]
    begun = {pair for summary in summaries for pair in summary.branches}
    pieces = pieces_of([*names, *((branch, first, first - 1) for branch, first in sorted(begun))])
    gone = sorted({summary.gap for summary in summaries if summary.gap is not None})
    archived = sum(claim.last - claim.first + 1 for claim, _ in files)
    twice = [
        (later.first, min(earlier.last, later.last), one.path, two.path)
        for (earlier, one), (later, two) in pairwise(files)
        if earlier.branch == later.branch and later.first <= earlier.last
    ]
    return Chain(
        files[-1][0],
        len(files),
        *((pieces[0].first, pieces[-1].stop - 1) if pieces else (1, 0)),
        tuple(_missing(pieces, gone)),
        tuple(gone),
        tuple(twice),
        max(0, archived - sum(piece.stop - piece.first for piece in pieces) - sum(stop - first + 1 for first, stop, _, _ in twice)),
    )


def _missing(pieces: Sequence[Piece], gone: Sequence[Numbers]) -> list[Numbers]:
    """The numbers between the pieces, without those that are known to be gone."""
    missing: list[Numbers] = []
    for before, after in pairwise(pieces):
        at = before.stop
        for first, last in gone:
            if first <= at <= last or at < first < after.first:
                if at < first:
                    missing.append((at, first - 1))
                at = max(at, last + 1)
        if at < after.first:
            missing.append((at, after.first - 1))
    return missing
