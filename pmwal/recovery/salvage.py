"""Salvage: the whole records of a damaged log that were its own when it was damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from pmwal.format.layout import PAGE, Superblock
from pmwal.format.ring import Found, Load, RingReader, Scan
from pmwal.records import Bound
from pmwal.recovery.judge import Judgement


def salvage(load: Load, judgement: Judgement, scan: Scan | None = None) -> Iterator[Found]:
    """Every whole record around the damage, in order of the numbers."""
    block = judgement.identity.block
    if judgement.row.outcome != "corrupt":
        yield from _kept(block, load, judgement.tail, judgement.end)
        return
    from pmwal.recovery.rebuild import rebuild  # noqa: PLC0415 - loads numpy, which only damage needs

    rebuilt = rebuild(load, judgement, scan)
    yield from _each(block, load, rebuilt.before)
    yield from _kept(block, load, rebuilt.tail, rebuilt.end)
    yield from _each(block, load, rebuilt.after)


def salvaged(
    load: Load, judge: Callable[[], Judgement], scan: Scan | None, start: int | None, stop: int | None
) -> Iterator[tuple[RingReader, Found]]:
    """Every whole record around the damage, from number ``start`` to before ``stop``, each with the reader that found it again.

    Beside a writer that overwrites them meanwhile it continues where the log begins by then, up to where it ended at the call.
    """
    judgement = judge()
    after, end = 0, judgement.end.next_seq
    while True:
        reader = RingReader(judgement.identity.block, load)
        for found in salvage(load, judgement, scan):
            seq = found.header.seq
            if seq > after and (start is None or seq >= start) and (stop is None or seq < stop):
                again = reader.whole(found.position)
                if again is not None and again.header == found.header:
                    yield reader, again
            after = max(after, seq)
        if not judgement.report.live or after + 1 >= end or judgement.row.outcome == "corrupt":
            return
        judgement = judge()
        if judgement.tail.next_seq <= after + 1 or judgement.tail.next_seq >= end:
            return


def _kept(block: Superblock, load: Load, tail: Bound, end: Bound) -> Iterator[Found]:
    reader, at = RingReader(block, load), tail
    while at.next_seq < end.next_seq:
        found = reader.numbered(*at)
        if found is None:
            return  # it changed since it was judged
        yield found
        at = Bound(found.end, found.header.seq + 1)


def _each(block: Superblock, load: Load, positions: Iterable[int]) -> Iterator[Found]:
    reader = RingReader(block, load, chunk=PAGE)
    for position in positions:
        found = reader.whole(position)
        if found is not None:
            yield found
