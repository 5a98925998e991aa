"""Every row of the recovery table, built as a real file."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

import pmwal
from images import bury
from pmwal.format.layout import (
    CONTROL_OFFSET,
    HEADER,
    PAGE,
)
from pmwal.recovery.verdict import TABLE
from support import (
    SMALL_CONTROL,
    contents,
    file_offset,
    flip,
    kill,
    look,
    open_small,
    overwrite,
    superblock,
    whole_records,
    write_slot,
)
from surgery import (
    STRICT,
    change_record,
    closed,
    craft_record,
    damage_record,
    damage_slot,
    damage_superblock,
    killed,
    newest_slot,
    rewrite_superblocks,
    three,
)

pytestmark = pytest.mark.both_engines

PIPELINED: dict[str, Any] = {"medium": "file", "ordering": "pipelined"}


def killed_pipelined(path: Path) -> None:
    """Three acknowledged records of a pipelined log, killed; the last two are past the slot."""
    kill(three(path, PIPELINED))


def killed_with_one_more(path: Path) -> None:
    """A fourth record was stored but not committed."""
    wal = three(path)
    wal.append(b"record 4", commit=False)
    kill(wal)


def unfinished_batch(path: Path) -> None:
    """A batch of three whose last record is torn."""
    wal = three(path)
    engine = wal._engine
    with engine.writing, engine.guard:
        engine.store([b"batch 4", b"batch 5", b"batch 6"], [0, 0, 0])
    kill(wal)
    damage_record(path, 6)


def torn_tail(path: Path) -> None:
    """The fourth record was not committed and is torn."""
    killed_with_one_more(path)
    damage_record(path, 4)


def old_epoch_past_the_end(path: Path) -> None:
    """Two whole records of an older epoch, discarded by a rollback, lie past the end."""
    wal = open_small(path, **STRICT)
    for number in range(1, 6):
        wal.append(b"record %d" % number)
    wal.rollback(after=3)
    kill(wal)


def damaged_before_pointer(path: Path) -> None:
    """A committed record has a flipped bit."""
    killed(path)
    damage_record(path, 2)


def damaged_last_before_pointer(path: Path) -> None:
    """The last committed record has a flipped bit."""
    killed(path)
    damage_record(path, 3)


def damaged_after_close(path: Path) -> None:
    """The last record of a cleanly closed log is zeroed."""
    closed(path)
    found = whole_records(path)[3]
    overwrite(path, file_offset(superblock(path), found.position), bytes(found.end - found.position))


def discarded_record_in_place_of_a_committed_one(path: Path) -> None:
    """The medium lost the last write: in place of the committed 3, the 3 that a rollback discarded is whole again."""
    wal = three(path)
    found = whole_records(path)[3]
    start, old = file_offset(superblock(path), found.position), path.read_bytes()
    wal.rollback(after=2)
    wal.append(b"record three"[:8])
    kill(wal)
    overwrite(path, start, old[start : start + found.end - found.position])


def three_epochs(path: Path) -> None:
    """Each of three records was stored by another writer, in epochs 1 to 3."""
    for number in (1, 2, 3):
        wal = open_small(path, **STRICT)
        wal.append(b"record %d" % number)
        kill(wal)


def epoch_too_new_for_its_number(path: Path) -> None:
    """Record 2 claims the epoch that began with record 3."""
    three_epochs(path)
    change_record(path, 2, epoch=3)


def epoch_too_old_for_its_number(path: Path) -> None:
    """Record 3 claims the epoch before its own."""
    three_epochs(path)
    change_record(path, 3, epoch=2)


def epochs_in_the_wrong_order(path: Path) -> None:
    """Records 1 and 2 claim epochs 2 and 1."""
    three_epochs(path)
    change_record(path, 2, epoch=1)
    change_record(path, 1, epoch=2)


def damaged_though_marked_durable(path: Path) -> None:
    """A later record of the epoch says that the damaged one was durable."""
    killed_pipelined(path)
    damage_record(path, 2)


def marked_past_a_torn_batch(path: Path) -> None:
    """The scan stops at an unfinished batch, but a later record has a mark past it."""
    unfinished_batch(path)
    slot = newest_slot(path)
    craft_record(path, slot.commit_position + 1024, seq=8, durable=slot.commit_position + 512)


def both_newer_slots_lost(path: Path) -> None:
    """The control region is as it was before the last open, but that epoch's records are still there."""
    killed(path)
    control = path.read_bytes()[CONTROL_OFFSET : CONTROL_OFFSET + SMALL_CONTROL]
    wal = open_small(path, **STRICT)
    wal.append(b"record 4")
    wal.append(b"record 5")
    kill(wal)
    overwrite(path, CONTROL_OFFSET, control)


def newer_epoch_further_on(path: Path) -> None:
    """As before, and the newer epoch's first record is torn, so that only a later one shows the epoch."""
    both_newer_slots_lost(path)
    block, end = superblock(path), look(path).end
    flip(path, file_offset(block, end.position) + HEADER)


def newer_slots_lost_after_close(path: Path) -> None:
    """As before, with a clean close before the lost slots."""
    closed(path)
    control = path.read_bytes()[CONTROL_OFFSET : CONTROL_OFFSET + SMALL_CONTROL]
    wal = open_small(path, **STRICT)
    wal.append(b"record 4")
    kill(wal)
    overwrite(path, CONTROL_OFFSET, control)


def at_the_rings_end(path: Path) -> None:
    """Only record 3 is kept; it ends so near the ring's end that the next record is at the next lap's start."""
    wal = open_small(path, **STRICT)
    for _ in range(3):
        wal.append(bytes(5400))
    wal.truncate(before=3)
    kill(wal)


def newer_epoch_at_the_next_lap(path: Path) -> None:
    """The next record, at the next lap's start, is of an epoch that no slot names."""
    at_the_rings_end(path)
    craft_record(path, 16384, epoch=7)


def wrong_number_at_the_next_lap(path: Path) -> None:
    """At the next lap's start, another number only means that there is no next record."""
    at_the_rings_end(path)
    craft_record(path, 16384, seq=9)


def wrong_number_in_the_right_place(path: Path) -> None:
    """Exactly where the last record ends lies one of this epoch with another number."""
    killed(path)
    craft_record(path, newest_slot(path).commit_position, seq=9)


def newest_slot_torn(path: Path) -> None:
    """A flipped bit in the newest slot."""
    killed(path)
    damage_slot(path, newest_slot(path).generation)


def slot_before_the_newest_torn(path: Path) -> None:
    """A flipped bit in the slot before the newest."""
    killed(path)
    damage_slot(path, newest_slot(path).generation - 1)


def clean_slot_torn(path: Path) -> None:
    """A flipped bit in the slot of a clean close."""
    closed(path)
    damage_slot(path, newest_slot(path).generation)


def impossible_slot(path: Path) -> None:
    """A slot with a right checksum whose tail is past its commit."""
    killed(path)
    slot = newest_slot(path)
    write_slot(path, slot._replace(generation=slot.generation + 1, tail_position=slot.commit_position + 8))


def no_slot_valid(path: Path) -> None:
    """All slots are zeros."""
    killed(path)
    overwrite(path, CONTROL_OFFSET, bytes(SMALL_CONTROL))


def two_slots_torn(path: Path) -> None:
    """The newest slot and the one before it are torn."""
    killed(path)
    generation = newest_slot(path).generation
    damage_slot(path, generation)
    damage_slot(path, generation - 1)


def two_places_lost(path: Path) -> None:
    """Two slots that were not used since creation are torn; the newest slot is whole."""
    killed(path)
    generation = newest_slot(path).generation
    damage_slot(path, generation + 20)
    damage_slot(path, generation + 30)


def first_superblock_damaged(path: Path) -> None:
    """A flipped bit in superblock copy 0 of a killed log."""
    killed(path)
    damage_superblock(path, 0)


def second_superblock_damaged(path: Path) -> None:
    """A flipped bit in superblock copy 1 of a killed log."""
    killed(path)
    damage_superblock(path, 1)


def first_superblock_zeroed_after_close(path: Path) -> None:
    """Superblock copy 0 of a cleanly closed log is zeros."""
    closed(path)
    overwrite(path, 0, bytes(PAGE))


def both_superblocks_damaged(path: Path) -> None:
    """A flipped bit in each superblock."""
    closed(path)
    damage_superblock(path, 1)
    damage_superblock(path, 0)


def shortened(path: Path) -> None:
    """The last page of the ring is cut off."""
    closed(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - PAGE)


def newer_version(path: Path) -> None:
    """A whole file written by a later major version."""
    closed(path)
    rewrite_superblocks(path, replace(superblock(path), version_major=2))


def unknown_incompatible_flag(path: Path) -> None:
    """A whole file with an incompatible flag unknown to this version."""
    closed(path)
    rewrite_superblocks(path, replace(superblock(path), incompatible=1 << 40))


class Case(NamedTuple):
    """A way to build a file, and the verdict that recovery must reach."""

    label: str
    build: Callable[[Path], None]
    kept: int  # number of records, from 1 unless ``facts`` name another first_seq
    outcome: str = "recovered"
    facts: dict[str, Any] = {}  # noqa: RUF012 - fields of the report; never changed


CASES = [
    Case("R1", closed, 3, "clean", {"kept_past_pointer": 0, "maybe_acknowledged": False}),
    Case("R2", killed, 3, facts={"kept_past_pointer": 0, "dropped_records": 0, "maybe_acknowledged": False}),
    Case("R2", killed_with_one_more, 4, facts={"kept_past_pointer": 1, "dropped_records": 0}),
    Case("R2", killed_pipelined, 3, facts={"kept_past_pointer": 1, "maybe_acknowledged": True}),
    Case("R2", old_epoch_past_the_end, 3, facts={"dropped_records": 0, "dropped_bytes": 0}),
    Case("R3", torn_tail, 3, facts={"dropped_records": 1, "dropped_bytes": 56, "maybe_acknowledged": False}),
    Case("R3", unfinished_batch, 3, facts={"dropped_records": 2, "dropped_bytes": 2 * 56}),
    Case("R3", wrong_number_at_the_next_lap, 1, facts={"first_seq": 3, "last_seq": 3, "dropped_records": 1}),
    Case("R4", damaged_before_pointer, 1, "corrupt", {"lost_first_seq": 2, "lost_last_seq": 2}),
    Case("R4", damaged_last_before_pointer, 2, "corrupt", {"lost_first_seq": 3, "lost_last_seq": 3}),
    Case("R4", damaged_after_close, 2, "corrupt", {"lost_first_seq": 3, "lost_last_seq": 3}),
    Case("R4", discarded_record_in_place_of_a_committed_one, 2, "corrupt", {"lost_first_seq": 3, "lost_last_seq": 3}),
    Case("R4", epoch_too_new_for_its_number, 1, "corrupt", {"lost_first_seq": 2, "lost_last_seq": 2}),
    Case("R4", epoch_too_old_for_its_number, 2, "corrupt", {"lost_first_seq": 3, "lost_last_seq": 3}),
    Case("R4", epochs_in_the_wrong_order, 1, "corrupt", {"lost_first_seq": 2, "lost_last_seq": 2}),
    Case("R5", damaged_though_marked_durable, 1, "corrupt", {"lost_first_seq": 2, "lost_last_seq": 2}),
    Case("R5", marked_past_a_torn_batch, 3, "corrupt", {"lost_first_seq": 4, "lost_last_seq": 7}),
    Case("R6", both_newer_slots_lost, 3, "corrupt"),
    Case("R6", newer_epoch_further_on, 3, "corrupt"),
    Case("R6", newer_slots_lost_after_close, 3, "corrupt"),
    Case("R6", wrong_number_in_the_right_place, 3, "corrupt"),
    Case("R6", newer_epoch_at_the_next_lap, 1, "corrupt", {"first_seq": 3, "last_seq": 3}),
    Case("R7", newest_slot_torn, 3, facts={"slots_lost": 1, "kept_past_pointer": 1}),
    Case("R7", slot_before_the_newest_torn, 3, facts={"slots_lost": 1, "kept_past_pointer": 0}),
    Case("R7", clean_slot_torn, 3, facts={"slots_lost": 1}),
    Case("R8", impossible_slot, 0, "corrupt"),
    Case("R9", no_slot_valid, 0, "corrupt"),
    Case("R9b", two_slots_torn, 0, "corrupt", {"slots_lost": 2}),
    Case("R9b", two_places_lost, 0, "corrupt", {"slots_lost": 2}),
    Case("R10", first_superblock_damaged, 3, facts={"superblocks_lost": 1}),
    Case("R10", second_superblock_damaged, 3, facts={"superblocks_lost": 1}),
    Case("R10", first_superblock_zeroed_after_close, 3, "clean", {"superblocks_lost": 1}),
    Case("R11", both_superblocks_damaged, 0, "unreadable"),
    Case("R11", shortened, 0, "unreadable"),
    Case("R11", newer_version, 0, "unreadable"),
    Case("R11", unknown_incompatible_flag, 0, "unreadable"),
]


def refuse_to_map(*_: object, **__: object) -> NoReturn:
    """Replaces mmap where nothing may be mapped."""
    raise AssertionError("mapped")


def test_every_row_of_the_recovery_table_is_built_as_a_file() -> None:
    """The cases below cover every row."""
    assert [row.label for row in TABLE] == list(dict.fromkeys(case.label for case in CASES))


@pytest.mark.parametrize("case", CASES, ids=[f"{case.label}-{case.build.__name__}" for case in CASES])
def test_recovery_table(shm_dir: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """Each file gets its label from ``verify`` and its verdict from ``open``; a refused file is not changed."""
    path = shm_dir / "test.wal"
    case.build(path)
    bury(path)
    before = path.read_bytes()
    if case.outcome == "unreadable":
        monkeypatch.setattr(mmap, "mmap", refuse_to_map)
        for action in (lambda: pmwal.verify(path), lambda: open_small(path, **STRICT), lambda: pmwal.open(path, "r")):
            with pytest.raises(pmwal.FormatError):
                action()
        assert before == path.read_bytes()
        return

    report = pmwal.verify(path)
    assert before == path.read_bytes(), "verify stores nothing"
    assert (case.label, case.outcome) == (report.case, report.outcome)
    assert case.facts == {name: value for name, value in report.as_dict().items() if name in case.facts}
    if case.outcome == "corrupt":
        with pytest.raises(pmwal.CorruptWal, match=case.label) as raised:
            open_small(path, **STRICT)
        assert before == path.read_bytes(), "a corrupt log is left as it is"
        assert (report.lost_first_seq, report.lost_last_seq) == (raised.value.first_seq, raised.value.last_seq)
        assert case.kept == report.records
        with pytest.raises(pmwal.CorruptWal):
            pmwal.open(path, "r")
        return

    first = case.facts.get("first_seq", 1)
    kept = list(range(first, first + case.kept))
    with pmwal.open(path, "r") as reader:
        assert kept == [record.seq for record in reader]
    wal = open_small(path, **STRICT)
    assert replace(report, seconds=0.0) == replace(wal.recovery, seconds=0.0)
    assert kept == [seq for seq, _ in contents(wal)]
    assert kept[-1] + 1 == wal.append(b"next")
    wal.close()
    assert case.kept + 1 == pmwal.verify(path).records
