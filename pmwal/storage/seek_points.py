"""Seek points: where some records start, spread evenly over the ring. A writer keeps them on the live page, so that a reader finds
a record by its number without walking the whole log.

Invariants
----------
- They are as volatile as the rest of the page: recovery never reads them, and a reader uses only those of the living writer's open.
- Each is checked on its own: its checksum covers its index and the id of the open. So one that is torn, or of an earlier open, is
  none. A writer of version 0.1 has no open, so none counts beside it, and none that it left alone counts for the next one.
- A point of a discarded record is erased before the slots of the new epoch are stored. So wherever a writer is stopped, each point
  that counts names a record of the log, or one that is truncated, or one that is not durable yet.
- It is a hint all the same: a reader looks whether the record is there, and checks each one from there on.
- Which record a point names depends only on where it starts and ends, so both engines store the same points: the first of a lap,
  and each that reaches the start of another step of the ring. A point is replaced when the next lap reaches it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from pmwal.format.layout import (
    LIVE_SEEK_OFFSET,
    LIVE_SEEK_POINT,
    SEEK_POINTS,
    Superblock,
    decode_seek_point,
    encode_seek_point,
    seek_point_offset,
    seek_step,
)
from pmwal.format.ring import Load
from pmwal.records import Bound
from pmwal.storage.mapping import Mapping

_NONE = bytes(LIVE_SEEK_POINT.size)
_SIZE = SEEK_POINTS * LIVE_SEEK_POINT.size


class SeekPoints:
    """The writer's side."""

    def __init__(self, mapping: Mapping, block: Superblock, open_id: bytes) -> None:
        self._mapping = mapping
        self._block = block
        self._open_id = open_id
        self._step = seek_step(block.capacity)

    def fill(self, starts: Sequence[Bound]) -> None:
        """Store points for a log that has records at these starts, in order, before this open stores any."""
        if not starts:
            return
        block, step = self._block, self._step
        points = bytearray(_SIZE)
        position = starts[0].position
        while position <= starts[-1].position:
            start = starts[bisect_left(starts, position, key=_position)]
            index = start.position % block.capacity // step
            at = index * LIVE_SEEK_POINT.size
            points[at : at + LIVE_SEEK_POINT.size] = encode_seek_point(*start, block.uuid, self._open_id, index)
            position = start.position - start.position % block.capacity + min((index + 1) * step, block.capacity)
        self._mapping.store(LIVE_SEEK_OFFSET, bytes(points))

    def note(self, start: Bound, end: int) -> None:
        """Store a point for this record, which ends at ``end``, if it is to have one. The native engine: native/seek_points.c."""
        offset = start.position % self._block.capacity
        index = (offset + end - start.position) // self._step if offset else 0
        if offset and (index == offset // self._step or index >= SEEK_POINTS):
            return
        self._mapping.store(seek_point_offset(index), encode_seek_point(*start, self._block.uuid, self._open_id, index))

    def erase_from(self, seq: int) -> None:
        """Erase the points of the records from this number on."""
        points = self._mapping.load(LIVE_SEEK_OFFSET, _SIZE)
        for index, (_, _, _, found) in enumerate(LIVE_SEEK_POINT.struct.iter_unpack(points)):
            if found >= seq:
                self._mapping.store(seek_point_offset(index), _NONE)


def read_seek_points(load: Load, block: Superblock, open_id: bytes, after: int, seq: int) -> list[Bound]:
    """The starts of records with numbers past ``after`` and up to ``seq`` that this open has stored, newest first."""
    points, size = load(LIVE_SEEK_OFFSET, _SIZE), LIVE_SEEK_POINT.size
    named = ((found, index) for index, (_, _, _, found) in enumerate(LIVE_SEEK_POINT.struct.iter_unpack(points)))
    wanted = sorted(((found, index) for found, index in named if after < found <= seq), reverse=True)
    decoded = (decode_seek_point(points[index * size : (index + 1) * size], block.uuid, open_id, index) for _, index in wanted)
    return [Bound(*point) for point in decoded if point is not None]


def _position(start: Bound) -> int:
    return start.position
