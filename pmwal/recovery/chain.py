"""A walk that found every number of a log, but ended at another place than the log does. Pure.

Invariant: at every record up to ``certain_end`` a walk has no choice, so up to there it took the log's own.
"""

from __future__ import annotations

from pmwal.format.layout import Superblock, record_size
from pmwal.records import Bound


def certain_end(block: Superblock, tail: Bound, end: Bound) -> int:
    """The position up to which a walk from ``tail`` has no choice between the gap before the ring's end and the next lap."""
    lap = (tail.position // block.capacity + 1) * block.capacity
    return min(end.position, max(tail.position, lap - record_size(block.payload_max, block.alignment)))


def another_chain(certain: Bound, stop: Bound, end: Bound) -> str:
    """What is wrong with a walk that found every number up to ``end``, but ended elsewhere. It had no choice up to ``certain``."""
    return (
        f"one of the numbers {certain.next_seq} to {end.next_seq - 1} is not whole, and a discarded record has its number: "
        f"the last one ends at position {stop.position}, not at {end.position}"
    )
