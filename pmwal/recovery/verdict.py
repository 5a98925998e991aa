"""The recovery table: facts in, one row out. Pure.

Invariants
----------
- Every combination of facts matches exactly one row; ``tests/test_verdict.py`` walks them all.
- No crash leads to a row that says "corrupt", on a medium that meets the assumptions in docs/durability.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found, as far as the verdict depends on it.

    Later facts are only established if the earlier ones allow it: no walk without a slot, and no search for evidence if the walk
    stopped before the pointer.
    """

    superblocks: int  # whole copies, 0 to 2; 0 also for a short file or a newer version
    slot_impossible: bool = False  # a slot with a right checksum contradicts itself or the geometry
    slots: bool = True  # there is a valid slot
    slots_lost: int = 0
    clean: bool = False  # the newest slot was written by a clean close
    reaches_pointer: bool = True  # whole records, with the right numbers and epochs, from the tail to the newest slot's pointer
    acknowledged_past_stop: bool = False  # past the stop: a record of this epoch whose durable mark is past the stop
    newer_past_stop: bool = False  # past the stop: a greater epoch; or at the stop: this epoch, another number
    dropped: bool = False  # an unfinished record of this epoch is at or past the stop


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: label, outcome, meaning, when it applies, and whether the records were judged by a commit pointer."""

    label: str
    outcome: str
    meaning: str
    applies: Callable[[Facts], bool]
    by_pointer: bool = True


def _readable(facts: Facts) -> bool:
    return facts.superblocks > 0


def _judged_slots(facts: Facts) -> bool:
    return _readable(facts) and not facts.slot_impossible and facts.slots


def _scanned(facts: Facts) -> bool:
    return _judged_slots(facts) and facts.slots_lost < 2


def _sound(facts: Facts) -> bool:
    evidence = facts.acknowledged_past_stop or facts.newer_past_stop
    return _scanned(facts) and facts.reaches_pointer and not evidence


def _undamaged(facts: Facts) -> bool:
    return _sound(facts) and facts.superblocks == 2 and facts.slots_lost == 0


TABLE: tuple[Row, ...] = (
    Row("R1", "clean", "closed cleanly, every record whole", lambda f: _undamaged(f) and f.clean),
    Row(
        "R2",
        "recovered",
        "ended without a close; every record found is whole and kept",
        lambda f: _undamaged(f) and not f.clean and not f.dropped,
    ),
    Row(
        "R3",
        "recovered",
        "torn tail: what a crash left unfinished is dropped",
        lambda f: _undamaged(f) and not f.clean and f.dropped,
    ),
    Row(
        "R4",
        "corrupt",
        "a record at or before the commit pointer is damaged or missing",
        lambda f: _scanned(f) and not f.reaches_pointer,
    ),
    Row(
        "R5",
        "corrupt",
        "a later record says that this position was durable",
        lambda f: _scanned(f) and f.reaches_pointer and f.acknowledged_past_stop,
    ),
    Row(
        "R6",
        "corrupt",
        "records of a newer epoch, or with other numbers, past the pointer: newer slots were lost",
        lambda f: _scanned(f) and f.reaches_pointer and f.newer_past_stop and not f.acknowledged_past_stop,
    ),
    Row(
        "R7",
        "recovered",
        "one commit slot is torn or lost; the others suffice",
        lambda f: _sound(f) and f.superblocks == 2 and f.slots_lost == 1,
    ),
    Row(
        "R8",
        "corrupt",
        "a commit slot with a right checksum contradicts itself or the geometry",
        lambda f: _readable(f) and f.slot_impossible,
        by_pointer=False,
    ),
    Row(
        "R9",
        "corrupt",
        "no commit slot is valid",
        lambda f: _readable(f) and not f.slot_impossible and not f.slots,
        by_pointer=False,
    ),
    Row(
        "R9b",
        "corrupt",
        "more commit slots are lost than a crash can tear",
        lambda f: _judged_slots(f) and f.slots_lost >= 2,
        by_pointer=False,
    ),
    Row(
        "R10",
        "recovered",
        "one superblock copy is damaged; the other is used",
        lambda f: _sound(f) and f.superblocks == 1,
    ),
    Row("R11", "unreadable", "no superblock can be used", lambda f: not _readable(f), by_pointer=False),
)


def classify(facts: Facts) -> Row:
    """The one row that applies."""
    (row,) = (row for row in TABLE if row.applies(facts))
    return row
