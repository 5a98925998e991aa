"""The verdict on a log that another process may write meanwhile: judged in place, and if that says corrupt, on private copies.

Invariants
----------
- A verdict other than corrupt needs no copy: the judge checks every record in a private copy of its bytes.
- A corrupt verdict is final if no writer lives and the slots have not changed since it was begun: every open for writing writes
  slots before it stores a record, so no writer has come and gone. Beside a living writer it is repeated on a copy, and final
  after ``_TRIES`` copies.
- A copy is safe against a writer that appends, truncates, rolls back or overwrites: the slots are copied first, so the ring
  contains all that they name, and the copy is repeated if tail or epoch changed meanwhile. It is not safe against a writer that
  laps every copy for ``_STEADY_SECONDS``: the last copy is judged as it is, and its verdict is one of the tries.
"""

from __future__ import annotations

import time

from pmwal.format.layout import LIVE_BOUNDS, LIVE_OFFSET, Superblock
from pmwal.format.ring import Load, overlay
from pmwal.format.scan import scan_for
from pmwal.records import Progress
from pmwal.recovery.judge import Judgement, judge
from pmwal.recovery.superblock import Identity
from pmwal.storage.live_page import living_writer
from pmwal.storage.mapping import Mapping
from pmwal.storage.seam import Seam

_TRIES = 8  # verdicts on copies beside a living writer
_STEADY_SECONDS = 0.1  # how long a copy is repeated because tail or epoch changed during it


def snapshot(load: Load, block: Superblock) -> Load:
    """A private copy of the slots and the ring, in an order that a running writer does not overtake.

    The slots come first, so the ring contains all that they name; then the ring from the tail on, because an overwriting writer
    stores there next, and copying a large ring is faster than writing it. In a small ring the writer may overtake the copy all the
    same. But it shows the new tail, and the epoch of a rollback, before it stores anything in the freed space: so the copy is
    repeated if either has changed when it is done.
    """
    deadline = time.monotonic() + _STEADY_SECONDS
    while True:
        before = _tail_and_epoch(load)
        slots = load(block.control_offset, block.control_size)
        split = before[0] % block.capacity
        upper = load(block.ring_offset + split, block.capacity - split)
        lower = load(block.ring_offset, split)
        if _tail_and_epoch(load) == before or time.monotonic() >= deadline:
            break
    return overlay(load, [(block.control_offset, slots), (block.ring_offset + split, upper), (block.ring_offset, lower)])


def _tail_and_epoch(load: Load) -> tuple[int, int, int]:
    """From the live page, which may be nonsense without a writer. Each word on its own is as it was stored."""
    _, tail_position, tail_seq, _, _, epoch, _, _ = LIVE_BOUNDS.struct.unpack(load(LIVE_OFFSET, LIVE_BOUNDS.size))
    return tail_position, tail_seq, epoch


def judge_beside(mapping: Mapping, identity: Identity, seam: Seam, progress: Progress | None = None) -> Judgement:
    """The verdict on a log that may be written meanwhile; see the invariants above."""
    block = identity.block
    scan = scan_for(block)
    copied, tries = False, 0
    while True:
        slots = mapping.load(block.control_offset, block.control_size)
        judgement = judge(snapshot(mapping.load, block) if copied else mapping.load, identity, progress, scan)
        if judgement.row.outcome != "corrupt":
            return judgement
        if living_writer(mapping.load, mapping.inode, seam) is not None:
            tries += 1
            if tries > _TRIES:
                return judgement
        elif mapping.load(block.control_offset, block.control_size) == slots:
            return judgement
        copied = True
