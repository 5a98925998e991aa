"""docs/durability.md: the code takes the steps described there, and damage leads to the verdicts named there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from documents import DOCUMENTS, read_section, read_table
from pmwal.format import layout
from pmwal.format.layout import HEADER, LIVE_OFFSET, Superblock
from pmwal.repair import repair
from pmwal.storage import medium
from pmwal.writing.wal import Wal
from support import (
    SMALL_RING,
    BarrierRecorder,
    Step,
    file_offset,
    flip,
    kill,
    open_small,
    payloads,
    superblock,
    whole_records,
)

pytestmark = pytest.mark.both_engines


# -- the order of steps


def step_of(event: Step, block: Superblock) -> str | None:
    """The name of this step in docs/durability.md; None for the live page."""
    if event.name not in ("store", "flush"):
        return event.name
    if LIVE_OFFSET <= event.offset < LIVE_OFFSET + layout.PAGE:
        return None
    what = "slot" if event.offset < block.ring_offset else "records"
    return f"{'store' if event.name == 'store' else 'barrier'} {what}"


def steps_of(events: list[Step], block: Superblock) -> str:
    """The steps in order; a repeated step counts once, except syncs, which may be of different files."""
    steps = [step for event in events if (step := step_of(event, block)) is not None]
    kept = [step for before, step in zip(["", *steps], steps, strict=False) if step != before or step == "sync"]
    return ", ".join(kept) or "nothing"


def _append(wal: Wal) -> None:
    wal.append(b"payload")


def _append_pending(wal: Wal) -> None:
    wal.append(b"pending", commit=False)


def _extend(wal: Wal) -> None:
    wal.extend([b"a", b"b"])


def _batch(wal: Wal) -> None:
    with wal.batch() as batch:
        batch.append(b"a")
        batch.append(b"b")


def _reserve(wal: Wal) -> None:
    with wal.reserve(8) as view:
        view[0] = 1


def _commit(wal: Wal) -> None:
    wal.commit()


def _pass_lag(wal: Wal) -> None:
    for _ in range(3):
        wal.append(bytes(400_000), commit=False)


def _truncate(wal: Wal) -> None:
    wal.truncate(before=2)


def _consume(wal: Wal) -> None:
    with pmwal.open(wal.path, "r") as reader, reader.consumer("mail") as consumer:
        consumer.ack(1)


def _truncate_consumed(wal: Wal) -> None:
    wal.truncate(consumed=True)


def _rollback(wal: Wal) -> None:
    wal.rollback(after=1)


def _fill(wal: Wal) -> None:
    while wal.free >= 4096:
        wal.append(bytes(4000))


def _append_large(wal: Wal) -> None:
    wal.append(bytes(5000))


def _close(wal: Wal) -> None:
    wal.close()


def _nothing(wal: Wal) -> None:
    pass


OPERATIONS: dict[str, list[tuple[Callable[[Wal], None], Callable[[Wal], None]]]] = {
    "`append`, `extend`, `batch`, `reserve`": [
        (_nothing, _append),
        (_nothing, _extend),
        (_nothing, _batch),
        (_nothing, _reserve),
    ],
    "append(commit=False)": [(_nothing, _append_pending)],
    "`commit()`, records pending": [(_append_pending, _commit)],
    "`commit()`, nothing pending": [(_nothing, _commit)],
    "a commit that ends more than 1 MiB past the newest slot": [(_pass_lag, _commit)],
    "`truncate`, nothing pending": [(_nothing, _truncate)],
    "`truncate`, records pending": [(_append_pending, _truncate)],
    "`truncate(consumed=True)`, nothing pending": [(_consume, _truncate_consumed)],
    "`rollback`, nothing pending": [(_nothing, _rollback)],
    "`rollback`, records pending": [(_append_pending, _rollback)],
    '`append`, ring full, `on_full="overwrite"`': [(_fill, _append_large)],
    "`close`, nothing pending": [(_nothing, _close)],
    "`close`, records pending": [(_append_pending, _close)],
}
"""What prepares each row of the table, and what is watched; two records were appended and committed before both."""

OPENS: dict[str, Callable[[Wal], None]] = {
    "create, and open": _nothing,
    "open, cleanly closed": _close,
    "open, records past the newest slot": _append_pending,
}
"""The rows that are observed from outside a handle."""


def order_table(ordering: str) -> dict[str, str]:
    """Operation -> steps, as in docs/durability.md."""
    column = ("strict", "pipelined").index(ordering) + 1
    return {row[0]: row[column] for row in read_table(read_section("durability.md", "Order of steps"), "operation")}


def open_watched(path: Path, ordering: str, **options: Any) -> tuple[Wal, BarrierRecorder]:
    """A log opened as a file, and its recording seam."""
    seam = BarrierRecorder()
    return open_small(path, seam=seam, medium="file", ordering=ordering, **options), seam


def prepared(path: Path, ordering: str, size: int = SMALL_RING) -> tuple[Wal, BarrierRecorder]:
    """A log with two records, made durable."""
    wal, seam = open_watched(path, ordering, size=size, on_full="overwrite" if size == SMALL_RING else "raise")
    wal.append(b"first")
    wal.append(b"second")
    return wal, seam


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_durability_table_has_the_steps_of_the_code(operation: str, ordering: str, shm_dir: Path) -> None:
    """Each operation stores, flushes and syncs in the order that docs/durability.md gives."""
    for number, (prepare, act) in enumerate(OPERATIONS[operation]):
        path = shm_dir / f"{number}.wal"
        wal, seam = prepared(path, ordering, 1 << 21 if prepare is _pass_lag else SMALL_RING)
        block = superblock(path)
        prepare(wal)
        before = len(seam.events)
        act(wal)
        steps = steps_of(seam.events[before:], block)
        wal.close()
        assert order_table(ordering)[operation] == steps, act.__name__


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
@pytest.mark.parametrize("operation", [name for name in OPENS if name.startswith("open")])
def test_durability_table_has_the_steps_of_an_open(operation: str, ordering: str, shm_dir: Path) -> None:
    """An open for writing syncs, stores again and begins an epoch in the order that docs/durability.md gives."""
    path = shm_dir / "test.wal"
    wal, _ = prepared(path, ordering)
    OPENS[operation](wal)
    if not wal.closed:
        kill(wal)
    block = superblock(path)
    wal, seam = open_watched(path, ordering)
    steps = steps_of(seam.events, block)
    wal.close()
    assert order_table(ordering)[operation] == steps


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_durability_table_has_the_steps_of_a_creation(ordering: str, shm_dir: Path) -> None:
    """A creation ends with the sync of the directory after the link; an epoch begins as in any open. Nothing is synced again."""
    path = shm_dir / "test.wal"
    wal, seam = open_watched(path, ordering)
    steps = steps_of(seam.events, superblock(path))
    wal.close()
    assert order_table(ordering)["create, and open"] == steps


def test_durability_table_has_no_row_that_is_not_tested() -> None:
    """Each row of the table of steps is one of those above."""
    assert sorted([*OPERATIONS, *OPENS]) == sorted(order_table("strict"))


def test_durability_names_the_file_systems_that_weaken_assumptions() -> None:
    """docs/durability.md lists the same weakened assumptions as ``stats().assumptions``."""
    table = read_table(read_section("durability.md", "Network and copy-on-write file systems"), "file system")
    written = {name: weakened for names, weakened in table for name in names.split(", ")}
    expected = {
        name: "; ".join(medium.Medium("file", name).assumptions)
        for name in sorted(set(medium._FILESYSTEMS.values()))
        if medium.Medium("file", name).assumptions
    }
    assert expected == written


def test_durability_assumptions_are_numbered_without_a_gap() -> None:
    """They are A1, A2 and so on, and no document names one that does not exist."""
    text = "\n".join(read_section("durability.md", "Assumptions about the medium").lines)
    numbers = [int(number) for number in re.findall(r"^- \*\*A(\d+)\.", text, re.MULTILINE)]
    assert list(range(1, len(numbers) + 1)) == numbers
    named = {int(number) for path in DOCUMENTS for number in re.findall(r"\bA(\d+)\b", path.read_text())}
    assert named <= set(numbers)


# -- the window of maybe_acknowledged

GROUPS, EACH = 6, 3

WINDOW = {
    "the newest slot's pointer": ("strict", [GROUPS * EACH], "R4", False),
    "an earlier group": ("pipelined", [2], "R5", False),
    "the last group but one": ("pipelined", [(GROUPS - 1) * EACH], "R5", False),
    "the last group": ("pipelined", [GROUPS * EACH - 1], "R3", True),
    "the last group but one, and all of the last": ("pipelined", [*range((GROUPS - 1) * EACH, GROUPS * EACH + 1)], "R3", True),
    "a group and all after it": ("pipelined", [*range(EACH, GROUPS * EACH + 1)], "R3", True),
}


@pytest.mark.parametrize("damaged", WINDOW)
def test_window_of_maybe_acknowledged_is_as_described(damaged: str, shm_dir: Path) -> None:
    """Damage past the last slot is told from a torn tail exactly when something stored after its barrier is whole."""
    ordering, numbers, case, maybe = WINDOW[damaged]
    path = shm_dir / "test.wal"
    wal, _ = open_watched(path, ordering, commit="manual")
    for group in range(GROUPS):
        for place in range(EACH):
            wal.append(f"record {place} of group {group}".encode())
        wal.commit()
    kill(wal)
    records, block = whole_records(path), superblock(path)
    for number in numbers:
        flip(path, file_offset(block, records[number].position) + HEADER)
    report = pmwal.verify(path)
    assert (case, maybe, numbers[0] - 1) == (report.case, report.maybe_acknowledged, report.last_seq)


def test_commit_with_nothing_pending_closes_the_window(shm_dir: Path) -> None:
    """The advice in docs/durability.md helps: damage to the last record is then reported."""
    path = shm_dir / "test.wal"
    wal, _ = open_watched(path, "pipelined")
    wal.append(b"first")
    last = wal.append(b"last")
    wal.commit()
    kill(wal)
    flip(path, file_offset(superblock(path), whole_records(path)[last].position) + HEADER)
    assert pmwal.verify(path).case == "R4"


# -- salvage, repair and the report, as in docs/recovery.md


def damaged_after_a_rollback(path: Path, *later: bytes) -> None:
    """Record 4 was rolled back, is still whole in the gap before the ring's end; its longer replacement is damaged."""
    wal, _ = open_watched(path, "strict")
    wal.extend([bytes(7000), bytes(7000), b"keep"])
    wal.truncate(before=3)
    wal.extend([b"old 4", b"old 5"])
    wal.rollback(after=3)
    wal.append(bytes(3000))
    wal.extend(later)
    wal.close()
    flip(path, file_offset(superblock(path), whole_records(path)[4].position) + HEADER)


def test_salvage_with_a_slot_hands_out_nothing_that_was_rolled_back(shm_dir: Path) -> None:
    """A discarded record in the gap before the ring's end neither comes back nor hides its replacement."""
    path = shm_dir / "test.wal"
    damaged_after_a_rollback(path, b"new 5", b"new 6")
    with pmwal.open(path, "r", recover="salvage") as reader:
        salvaged = [(record.seq, record.data) for record in reader]
    assert salvaged == [(3, b"keep"), (5, b"new 5"), (6, b"new 6")]


def test_repair_with_a_slot_keeps_nothing_that_was_rolled_back(shm_dir: Path) -> None:
    """The repaired log ends where the damage begins, even if a discarded record with the right number is there."""
    path = shm_dir / "test.wal"
    damaged_after_a_rollback(path)
    repair(path)
    with pmwal.open(path, "r") as reader:
        assert payloads(reader) == [b"keep"]


@pytest.mark.parametrize("lost", [1, 2, 128])
def test_damage_is_a_range_of_the_ring_only_for_damaged_records(lost: int, shm_dir: Path) -> None:
    """When slots are damaged and no record was read, the report does not point into the ring."""
    path = shm_dir / "test.wal"
    wal, _ = prepared(path, "strict")
    wal.close()
    block = superblock(path)
    for index in range(lost):
        flip(path, layout.slot_offset(layout.slot_index(index, block.control_pages)) + 8)
    report = pmwal.verify(path)
    assert report.slots_lost == lost
    assert report.damage is None or report.damage[1] <= block.copy_offset
