"""Where a reader may start to look for a record, when all that it knows lies far before it: hints of a writer, which may be wrong.

Invariants
----------
- A hint names no record that an epoch has discarded since: see seek_points.py, and ``commit_bounds`` for those of the slots. What
  is loaded is no older than the view, so this is true of every epoch that the view knows.
- The caller walks from a hint as from any other start. Where that fails, or finds a record that an epoch has discarded, it takes
  another hint, and in the end none.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from pmwal.errors import Overrun
from pmwal.format.control import commit_bounds, first_seqs, read_slots
from pmwal.format.index import INDEX_STEP
from pmwal.format.layout import Superblock
from pmwal.format.ring import Found, Load, Scan
from pmwal.reading.walk import View, rolled_back
from pmwal.records import Bound
from pmwal.storage.seek_points import read_seek_points

_HINTS_MAX = 3  # that are tried: each may cost a walk

_WALKED = 4 * INDEX_STEP  # bytes of the ring that are walked sooner than hints are looked for


def seems_far(near: Bound, next_known: Bound, seq: int) -> bool:
    """Whether hints are worth their loads on the way to record ``seq``, if those between the two are of about one length."""
    records, size = next_known.next_seq - near.next_seq, next_known.position - near.position
    return size * (seq - near.next_seq) > _WALKED * records


def wrong_hint(at: Bound, view: View) -> Overrun:
    """What a walk from a hint raises where it finds no record. It says nothing about the log, so the view is not doubted for it."""
    del view
    return rolled_back(at.next_seq)


class Hints(NamedTuple):
    """Starts nearer to a record, the nearest first, and the epochs that the slots name, each with its first number."""

    starts: list[Bound]
    firsts: dict[int, int]

    def contradict(self, found: Found) -> bool:
        """Whether a record that a walk from a hint has found was discarded: a later epoch began at or before it."""
        return any(epoch > found.header.epoch and first <= found.header.seq for epoch, first in self.firsts.items())


def find_hints(block: Superblock, load: Load, scan: Scan | None, view: View, near: Bound, seq: int) -> Hints:
    """Hints for the way to record ``seq``, which begin past ``near``: seek points of the living writer, and ends of commits."""
    slots = read_slots(load, block, scan)
    starts = [*islice(commit_bounds(slots, near.next_seq, seq), _HINTS_MAX)]
    if view.open_id:
        starts += read_seek_points(load, block, view.open_id, near.next_seq, seq)
    return Hints(sorted(starts, reverse=True, key=lambda start: start.next_seq)[:_HINTS_MAX], first_seqs(slots))
