"""The recovery table: every combination of facts has exactly one row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

import pytest

from pmwal.recovery.verdict import TABLE, Facts, Row, classify

LABELS = ["R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "R9", "R9b", "R10", "R11"]
YES_NO = (False, True)


def all_facts() -> Iterator[Facts]:
    """Every combination, the unreachable ones too: testing them costs nothing."""
    for values in product((0, 1, 2), YES_NO, YES_NO, (0, 1, 2, 3, 128), *(YES_NO,) * 5):
        yield Facts(*values)


def reachable(facts: Facts) -> bool:
    """Whether recovery can establish these facts: later ones only if the earlier ones allow it."""
    if facts.superblocks == 0:
        return not (facts.slot_impossible or facts.clean)
    looked = facts.slots and not facts.slot_impossible and facts.slots_lost < 2
    if not looked:
        return not (facts.clean or facts.acknowledged_past_stop or facts.newer_past_stop or facts.dropped)
    if not facts.slots:
        return facts.slots_lost == 128
    if not facts.reaches_pointer:
        return not (facts.clean or facts.acknowledged_past_stop or facts.newer_past_stop or facts.dropped)
    if facts.clean:
        return facts.slots_lost == 0 and not facts.acknowledged_past_stop and not facts.dropped
    return True


def expected_label(facts: Facts) -> str:
    """The table once more as a ladder: the first step that applies. Damage comes before good news."""
    if facts.superblocks == 0:
        return "R11"
    if facts.slot_impossible:
        return "R8"
    if not facts.slots:
        return "R9"
    if facts.slots_lost > 1:
        return "R9b"
    if not facts.reaches_pointer:
        return "R4"
    if facts.acknowledged_past_stop:
        return "R5"
    if facts.newer_past_stop:
        return "R6"
    if facts.superblocks == 1:
        return "R10"
    if facts.slots_lost == 1:
        return "R7"
    if facts.clean:
        return "R1"
    return "R3" if facts.dropped else "R2"


def test_every_combination_of_facts_matches_exactly_one_row() -> None:
    """There is no gap and no overlap, and the row is the one that the ladder gives."""
    counted: Counter[str] = Counter()
    for facts in all_facts():
        matching = [row.label for row in TABLE if row.applies(facts)]
        assert [expected_label(facts)] == matching, facts
        assert matching == [classify(facts).label]
        counted[matching[0]] += reachable(facts)
    assert set(LABELS) == {label for label, count in counted.items() if count}, "each row is reached"


def test_labels_are_complete_and_in_order() -> None:
    """Documents, errors and test ids use the labels, so none is added or removed unnoticed."""
    assert [row.label for row in TABLE] == LABELS
    assert len(set(LABELS)) == len(TABLE)


@pytest.mark.parametrize("row", TABLE, ids=LABELS)
def test_row_says_what_it_means_and_how_it_ends(row: Row) -> None:
    """The outcome of each label is part of the contract; the meaning is a sentence without a full stop."""
    corrupt = {"R4", "R5", "R6", "R8", "R9", "R9b"}
    outcome = {"R1": "clean", "R11": "unreadable"}.get(row.label, "corrupt" if row.label in corrupt else "recovered")
    assert outcome == row.outcome
    assert row.meaning
    assert not row.meaning.endswith(".")


def test_more_damage_never_makes_a_verdict_better() -> None:
    """Losing one more slot or superblock, or finding more evidence of damage, never turns a loud verdict into a quiet one."""
    rank = {"clean": 0, "recovered": 1, "corrupt": 2, "unreadable": 3}
    for facts in filter(reachable, all_facts()):
        here = rank[classify(facts).outcome]
        for worse in (
            Facts(max(0, facts.superblocks - 1), *tuple_of(facts)[1:]),
            Facts(*tuple_of(facts)[:3], facts.slots_lost + 1, *tuple_of(facts)[4:]),
            Facts(*tuple_of(facts)[:6], True, *tuple_of(facts)[7:]),
            Facts(*tuple_of(facts)[:7], True, *tuple_of(facts)[8:]),
        ):
            assert here <= rank[classify(worse).outcome], (facts, worse)


def tuple_of(facts: Facts) -> tuple[int, bool, bool, int, bool, bool, bool, bool, bool]:
    """The fields in order."""
    return (
        facts.superblocks,
        facts.slot_impossible,
        facts.slots,
        facts.slots_lost,
        facts.clean,
        facts.reaches_pointer,
        facts.acknowledged_past_stop,
        facts.newer_past_stop,
        facts.dropped,
    )
