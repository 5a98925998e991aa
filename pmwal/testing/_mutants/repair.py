"""Broken repairs: the wrong run is kept, or what was lost stays lost.

Patches ``rebuild`` and ``_Plan.__init__`` in ``pmwal.repair``, ``find_pointer`` in ``pmwal.recovery.rebuild``, and
``_newest_agreed`` in ``pmwal.format.control``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pmwal.format import control
from pmwal.format.ring import Found
from pmwal.records import Bound
from pmwal.recovery import rebuild as rebuild_module
from pmwal.recovery.evidence import everything
from pmwal.recovery.rebuild import Rebuilt
from pmwal.testing._mutants.seam import Patch

repair_module = importlib.import_module("pmwal.repair")


def _choosing(choose: Callable[[Rebuilt, list[Found]], tuple[Bound, Bound]]) -> list[Patch]:
    """Keep what ``choose`` makes of the right choice and of all whole records, in order of their numbers."""
    original = repair_module.rebuild

    def rebuild(load: Any, judgement: Any, scan: Any = None) -> Rebuilt:
        right: Rebuilt = original(load, judgement, scan)
        whole = sorted(everything(judgement.identity.block, load, scan), key=lambda found: (found.header.seq, found.position))
        tail, end = choose(right, whole)
        return replace(right, tail=tail, end=end)

    return [Patch(repair_module, "rebuild", rebuild)]


def longest_run_kept() -> list[Patch]:
    """Keep the longest unbroken run, whatever was discarded."""

    def longest(right: Rebuilt, whole: list[Found]) -> tuple[Bound, Bound]:
        runs: list[list[Found]] = []
        for found in whole:
            follows = runs and (runs[-1][-1].header.seq + 1, runs[-1][-1].end) == (found.header.seq, found.position)
            runs = [*runs[:-1], [*runs[-1], found]] if follows else [*runs, [found]]
        run = max(runs, key=len)
        return Bound(run[0].position, run[0].header.seq), Bound(run[-1].end, run[-1].header.seq + 1)

    return _choosing(longest)


def truncated_kept() -> list[Patch]:
    """Let records before the tail come back."""

    def longer(right: Rebuilt, whole: list[Found]) -> tuple[Bound, Bound]:
        tail = right.tail
        for found in reversed(whole):
            if (found.end, found.header.seq + 1) == tail:
                tail = Bound(found.position, found.header.seq)
        return tail, right.end

    return _choosing(longer)


def discarded_kept() -> list[Patch]:
    """Let records past the end come back."""

    def longer(right: Rebuilt, whole: list[Found]) -> tuple[Bound, Bound]:
        end = right.end
        for found in whole:
            if (found.position, found.header.seq) == end:
                end = Bound(found.end, found.header.seq + 1)
        return right.tail, end

    return _choosing(longer)


def last_record_dropped() -> list[Patch]:
    """Leave the last record out, as one whose batch is not whole."""

    def shorter(right: Rebuilt, whole: list[Found]) -> tuple[Bound, Bound]:
        for found in whole:
            if (found.end, found.header.seq + 1) == right.end and found.header.seq >= right.tail.next_seq:
                return right.tail, Bound(found.position, found.header.seq)
        return right.tail, right.end

    return _choosing(shorter)


def slots_forgotten() -> list[Patch]:
    """Believe no slot, as if all were lost."""
    return [Patch(rebuild_module, "find_pointer", lambda raw, block: None)]


def oldest_slot_believed() -> list[Patch]:
    """Believe the oldest slot that is whole."""
    return [Patch(control, "_newest_agreed", lambda generations, block: min(generations))]


def superblock_left() -> list[Patch]:
    """Find nothing to repair where one superblock is lost."""
    original = repair_module._Plan.__init__

    def plan(self: Any, judgement: Any, *args: Any) -> None:
        identity = replace(judgement.identity, copies=2)
        original(self, replace(judgement, identity=identity), *args)

    return [Patch(repair_module._Plan, "__init__", plan)]
