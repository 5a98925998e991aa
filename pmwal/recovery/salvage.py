"""Salvage: every whole record of a damaged log."""

from __future__ import annotations

from collections.abc import Iterator

from pmwal.format.layout import SEQ_MAX
from pmwal.format.ring import Found, Load, RingReader
from pmwal.format.scan import scan_for
from pmwal.records import Bound
from pmwal.recovery.evidence import rebuilt, resync
from pmwal.recovery.judge import Judgement


def salvage(load: Load, judgement: Judgement) -> Iterator[Found]:
    """Every whole record around the damage, in order of the numbers."""
    block = judgement.identity.block
    slot = judgement.control.newest
    if slot is None or judgement.row.label in ("R8", "R9", "R9b"):
        yield from rebuilt(block, load)
        return
    reader = RingReader(block, load)
    at = judgement.tail
    while at.next_seq < judgement.end.next_seq:
        found = reader.numbered(*at)
        if found is None:
            break
        yield found
        at = Bound(found.end, found.header.seq + 1)
    if judgement.row.outcome == "corrupt":
        limit = Bound(judgement.tail.position + block.capacity, SEQ_MAX)
        yield from resync(block, load, at, limit, slot, scan_for(block))
