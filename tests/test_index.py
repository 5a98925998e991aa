"""The sparse index: the one in Python and the one in C answer alike."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.format.index import INDEX_STEP, SparseIndex
from pmwal.format.layout import SEQ_MAX
from pmwal.native import native
from pmwal.records import Bound
from support import kill

CAPACITY = 1 << 20
TAIL = Bound(0, 1)


def bounds(count: int, seed: int = 1, first: int = 1) -> list[Bound]:
    """Entries in order, at least a step apart."""
    rng, found, position, seq = random.Random(seed), [], 0, first
    for _ in range(count):
        found.append(Bound(position, seq))
        position, seq = position + INDEX_STEP + 8 * rng.randrange(100), seq + rng.randrange(1, 50)
    return found


def both(entries: list[Bound]) -> list[Any]:
    """An index of each kind."""
    if native is None:
        pytest.skip("the native engine was not built")
    return [SparseIndex(entries), native.Index(entries, CAPACITY, Bound)]


@pytest.mark.parametrize("count", [0, 1, 2, 30])
@pytest.mark.parametrize("first", [1, SEQ_MAX - 2000])
def test_both_indexes_find_the_same_start(count: int, first: int) -> None:
    """For every kind of number, also one that no record can have, and for every tail."""
    entries = bounds(count, first=first)
    python, c = both(entries)
    numbers = [
        *(entry.next_seq + near for entry in entries for near in (-1, 0, 1)),
        first,
        -1,
        -(1 << 70),
        0,
        SEQ_MAX,
        1 << 64,
        1 << 70,
    ]
    for tail in (TAIL, *entries[:3], Bound(1 << 40, SEQ_MAX)):
        assert [python.floor(number, tail) for number in numbers] == [c.floor(number, tail) for number in numbers]
    assert all(type(c.floor(number, TAIL)) is Bound for number in numbers)
    assert c.entries == entries == python.entries


def test_both_indexes_drop_the_same_entries() -> None:
    """From either end, by numbers in any order, and by ones that no record can have."""
    for seed in range(200):
        rng, entries = random.Random(seed), bounds(30, seed)
        python, c = both(entries)
        for _ in range(6):
            call = rng.choice(("drop_before", "drop_from"))
            number = rng.choice((-1, 0, 1 << 65, *range(entries[0].next_seq - 2, entries[-1].next_seq + 2)))
            getattr(python, call)(number)
            getattr(c, call)(number)
            assert c.entries == python.entries


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ([Bound(0, 1), Bound(INDEX_STEP - 8, 2)], ValueError),
        ([Bound(0, 5), Bound(INDEX_STEP, 5)], ValueError),
        ([Bound(INDEX_STEP, 1), Bound(0, 2)], ValueError),
        ([Bound(INDEX_STEP * place, 1 + place) for place in range(100)], ValueError),
        ([(1, 2, 3)], TypeError),
        ([5], TypeError),
        (5, TypeError),
    ],
)
def test_index_of_no_log_is_refused(entries: Any, error: type[Exception]) -> None:
    """Out of order, closer than a step, more than the ring has room for, or no bounds."""
    both([])
    with pytest.raises(error):
        native.Index(entries, CAPACITY, Bound)  # type: ignore[union-attr]


@pytest.mark.both_engines
@pytest.mark.parametrize("count", [1, 7])
def test_index_of_a_log_names_its_records_a_step_apart(path: Path, count: int) -> None:
    """Over several laps, after truncates, rollbacks and a reopen: each entry is where that record starts, and they are dense."""
    wal = pmwal.open(path, "x", size=CAPACITY, medium="memory", on_full="overwrite", ordering="strict")
    for turn in range(600):
        wal.extend([bytes(777)] * count) if count > 1 else wal.append(bytes(6000))
        if turn % 97 == 96:
            wal.rollback(after=wal.next_seq - 1 - 3 * count)
        if turn == 300:
            wal.truncate(before=wal.next_seq - 40)
        if turn == 450:
            kill(wal)
            wal = pmwal.open(path, medium="memory", on_full="overwrite")
    engine = wal._engine
    state, entries = engine.state, engine.index.entries
    assert len(entries) >= (state.head.position - state.tail.position) // (INDEX_STEP + 8192) - 1 > 5
    for entry in entries:
        assert state.tail.position <= entry.position < state.head.position
        assert engine.find(entry.next_seq).position == entry.position
    assert all(b.position - a.position >= INDEX_STEP for a, b in pairwise(entries))
    wal.close()
