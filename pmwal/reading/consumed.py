"""Whether a consumer's position says something about a log as it is now. What readers and the writer share.

Invariants
----------
- A position names the last acknowledged record by number, checksum, and an epoch in which the log contained it. While the log still
  has a record of that number, the checksum decides: a rollback, a recovery or an older copy of the log may have put another one
  in its place.
- Of a record that the tail has passed, the slots say which epochs began since. One that began at or before it discarded it.
- In doubt a position holds everything back: nothing is freed that a consumer may not have had.
"""

from __future__ import annotations

from collections.abc import Callable

from pmwal.cursor import cursor_of
from pmwal.errors import CorruptWal, Overrun
from pmwal.format.position import Position
from pmwal.reading.place import Epochs, was_discarded
from pmwal.reading.walk import View, extent
from pmwal.records import Record

Find = Callable[[int, View], Record]
"""Reads the record with this number; raises what ``read`` raises."""


def problem_of(position: Position, uuid: bytes, view: View, find: Find, epochs: Epochs) -> str | None:
    """Why a position says nothing about the log, in words; None if it does."""
    seq, first_seq, next_seq = position.seq, view.tail.next_seq, view.end.next_seq
    if position.uuid != uuid:
        return "its position is of another log, which had this path before"
    if seq >= next_seq:
        held = extent(first_seq, next_seq)
        return f"there is no record {seq}, which it acknowledged: it was rolled back, or the log was restored; {held}"
    if seq >= first_seq:
        try:
            record = find(seq, view)
        except Overrun as error:
            if not error.missed:
                return f"record {seq}, which it acknowledged, was rolled back"
        except CorruptWal as error:
            return str(error)
        else:
            same = cursor_of(seq, record.kind, record.time_ns, record.data).check == position.check
            return (
                None if same else f"record {seq} is another one than it acknowledged: that was rolled back, or the log was restored"
            )
    if seq and was_discarded(seq, (position.epoch, position.epoch_first_seq), view, epochs()):
        return f"record {seq}, which it acknowledged, was rolled back, or the log was restored"
    return None
