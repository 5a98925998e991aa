"""The verdict on a log that may be written meanwhile: judged in place, and if that says "corrupt", on private copies."""

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

_TRIES = 8  # verdicts beside a writer that changes what is judged
_STEADY_SECONDS = 0.1  # so long a copy is taken again during which the tail moved


def snapshot(load: Load, block: Superblock) -> Load:
    """A private copy of the slots and the ring, taken in the order in which a running writer changes them.

    The slots come first, so the ring holds all that they name; then the ring from the tail on, because that is where an
    overwriting writer is next, and a copy of a large ring is faster than it. In a small one it may come round all the same. It
    shows the tail that it frees, and the epoch of a rollback, before it stores anything there: a copy is taken again when these
    are others behind it.
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
    """Of the live page, which may be nonsense where no writer is; each word by itself is as it was stored."""
    _, tail_position, tail_seq, _, _, epoch, _, _ = LIVE_BOUNDS.struct.unpack(load(LIVE_OFFSET, LIVE_BOUNDS.size))
    return tail_position, tail_seq, epoch


def judge_beside(mapping: Mapping, identity: Identity, seam: Seam, progress: Progress | None = None) -> Judgement:
    """The verdict on a log that may be written meanwhile.

    A corrupt one counts when nobody can have written while it was made: no writer lives, and none has come and gone, which
    would have left other slots. Otherwise it is given again, on a copy, ``_TRIES`` times while a writer lives.
    """
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
