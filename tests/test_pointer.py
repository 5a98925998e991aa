"""Pointer, slots and tail (scenarios 8 to 14), and every row of the recovery table built as a real file."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

import pmwal
from conftest import Place
from images import Trace, brief, bury, state_of, sweep
from pmwal.format.control import read_control
from pmwal.format.layout import (
    CONTROL_OFFSET,
    EPOCH_MAX,
    GENERATION_MAX,
    HEADER,
    LINE,
    PAGE,
    POSITION_MAX,
    RECORD,
    SEQ_MAX,
    SLOT,
    SUPERBLOCK,
    Header,
    Slot,
    Superblock,
    decode_header,
    decode_slot,
    encode_header,
    encode_slot,
    encode_superblock,
    record_size,
    slot_index,
    slot_offset,
)
from pmwal.recovery.verdict import TABLE
from pmwal.repair import repair
from pmwal.testing import PowerCutModel
from pmwal.testing._simulator.model import Found
from support import (
    SMALL_CONTROL,
    BarrierRecorder,
    Step,
    contents,
    file_offset,
    flip,
    kill,
    look,
    open_small,
    overwrite,
    payloads,
    place_of,
    superblock,
    whole_records,
    write_slot,
)

DAX: dict[str, Any] = {"medium": "emulated-dax", "ordering": "strict"}
STRICT: dict[str, Any] = {"medium": "file", "ordering": "strict"}
PIPELINED: dict[str, Any] = {"medium": "file", "ordering": "pipelined"}
CRASH_MEDIA = pytest.mark.parametrize("options", [DAX, STRICT, PIPELINED], ids=["lines", "pages", "pipelined"])


# -- surgery


def newest_slot(path: Path) -> Slot:
    """The commit pointer of a file."""
    slot = look(path).control.newest
    assert slot is not None
    return slot


def craft_record(path: Path, position: int, payload: bytes = b"crafted", **fields: int) -> None:
    """Put a whole record at a position; by default the next one of the log's epoch."""
    judgement = look(path)
    values = {"seq": judgement.end.next_seq, "durable": 0, "epoch": judgement.report.epoch, "batch_count": 1, **fields}
    header = Header(0, len(payload), values["seq"], values["durable"], 0, values["epoch"], 0, 0, 0, values["batch_count"])
    block = judgement.identity.block
    raw = encode_header(header, payload, block.uuid, position) + payload
    raw += bytes(record_size(len(payload), block.alignment) - len(raw))
    overwrite(path, file_offset(block, position), raw)


def damage_record(path: Path, seq: int, at: int = HEADER) -> None:
    """Flip a bit of a record that is whole now."""
    flip(path, file_offset(superblock(path), whole_records(path)[seq].position) + at)


def change_record(path: Path, seq: int, **fields: int) -> None:
    """Change header fields of a record that is whole now, and its checksum with them."""
    block, found = superblock(path), whole_records(path)[seq]
    start = file_offset(block, found.position)
    payload = path.read_bytes()[start + HEADER : start + HEADER + found.header.length]
    overwrite(path, start, encode_header(found.header._replace(**fields), payload, block.uuid, found.position))


def damage_slot(path: Path, generation: int) -> None:
    """Flip a bit of a slot."""
    flip(path, place_of(path, generation) + 17)


def damage_superblock(path: Path, copy: int) -> None:
    """Flip a bit of a superblock copy."""
    flip(path, (0 if copy == 0 else superblock(path).copy_offset) + SUPERBLOCK.offsets["created_ns"])


def rewrite_superblocks(path: Path, block: Superblock) -> None:
    """Replace both copies."""
    overwrite(path, 0, encode_superblock(block, 0))
    overwrite(path, block.copy_offset, encode_superblock(block, 1))


# -- the recovery table


def three(path: Path, options: dict[str, Any] = STRICT) -> pmwal.Wal:
    """An open log with three acknowledged records."""
    wal = open_small(path, **options)
    for number in (1, 2, 3):
        wal.append(b"record %d" % number)
    return wal


def closed(path: Path) -> None:
    """Three records, closed cleanly."""
    three(path).close()


def killed(path: Path) -> None:
    """Three acknowledged records, killed."""
    kill(three(path))


def killed_pipelined(path: Path) -> None:
    """Three acknowledged records of a pipelined log, killed; the last two are past the slot."""
    kill(three(path, PIPELINED))


def killed_with_one_more(path: Path) -> None:
    """A fourth record was stored and not committed."""
    wal = three(path)
    wal.append(b"record 4", commit=False)
    kill(wal)


def unfinished_batch(path: Path) -> None:
    """A batch of three of which the last is torn."""
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


def old_epoch_behind(path: Path) -> None:
    """Past the end stand two whole records of an older epoch, which a rollback discarded."""
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
    """The very last committed record has a flipped bit."""
    killed(path)
    damage_record(path, 3)


def damaged_after_close(path: Path) -> None:
    """The last record of a cleanly closed log is zeroed."""
    closed(path)
    found = whole_records(path)[3]
    overwrite(path, file_offset(superblock(path), found.position), bytes(found.end - found.position))


def discarded_record_in_place_of_a_committed_one(path: Path) -> None:
    """The medium forgot the last write: where the committed 3 stood, the 3 that a rollback discarded is whole again."""
    wal = three(path)
    found = whole_records(path)[3]
    start, old = file_offset(superblock(path), found.position), path.read_bytes()
    wal.rollback(after=2)
    wal.append(b"record three"[:8])
    kill(wal)
    overwrite(path, start, old[start : start + found.end - found.position])


def three_epochs(path: Path) -> None:
    """Each record was stored by another writer, in epochs 1 to 3."""
    for number in (1, 2, 3):
        wal = open_small(path, **STRICT)
        wal.append(b"record %d" % number)
        kill(wal)


def epoch_before_its_number(path: Path) -> None:
    """Record 2 says that it was stored in the epoch that began with record 3."""
    three_epochs(path)
    change_record(path, 2, epoch=3)


def epoch_behind_its_number(path: Path) -> None:
    """Record 3 says that it was stored in the epoch before its own."""
    three_epochs(path)
    change_record(path, 3, epoch=2)


def epochs_in_the_wrong_order(path: Path) -> None:
    """Records 1 and 2 say that they were stored in epochs 2 and 1."""
    three_epochs(path)
    change_record(path, 2, epoch=1)
    change_record(path, 1, epoch=2)


def damaged_behind_a_mark(path: Path) -> None:
    """A later record of the epoch says that the damaged one was durable."""
    killed_pipelined(path)
    damage_record(path, 2)


def marked_past_a_torn_batch(path: Path) -> None:
    """The scan stops at an unfinished batch, but further on a record has a mark past it."""
    unfinished_batch(path)
    slot = newest_slot(path)
    craft_record(path, slot.commit_position + 1024, seq=8, durable=slot.commit_position + 512)


def both_newer_slots_lost(path: Path) -> None:
    """The control region is as it was before the last open; that epoch's records are still there."""
    killed(path)
    control = path.read_bytes()[CONTROL_OFFSET : CONTROL_OFFSET + SMALL_CONTROL]
    wal = open_small(path, **STRICT)
    wal.append(b"record 4")
    wal.append(b"record 5")
    kill(wal)
    overwrite(path, CONTROL_OFFSET, control)


def newer_epoch_further_on(path: Path) -> None:
    """As before, and the newer epoch's first record is torn, so that only one further on tells."""
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
    """Record 3 is the only one kept; it ends so near to the ring's end that the next one is at the next lap's start."""
    wal = open_small(path, **STRICT)
    for _ in range(3):
        wal.append(bytes(5400))
    wal.truncate(before=3)
    kill(wal)


def newer_epoch_at_the_next_lap(path: Path) -> None:
    """The next record, at the next lap's start, is of an epoch that no slot tells of."""
    at_the_rings_end(path)
    craft_record(path, 16384, epoch=7)


def wrong_number_at_the_next_lap(path: Path) -> None:
    """At the next lap's start another number only means that the next record is not there."""
    at_the_rings_end(path)
    craft_record(path, 16384, seq=9)


def wrong_number_in_the_right_place(path: Path) -> None:
    """Exactly where the last record ends stands one of this epoch with another number."""
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
    """Two places that were never used since creation are torn; the newest slot is whole."""
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
    """A whole file that a later major version wrote."""
    closed(path)
    rewrite_superblocks(path, replace(superblock(path), version_major=2))


def unknown_incompatible_flag(path: Path) -> None:
    """A whole file with an incompatible flag that this version does not know."""
    closed(path)
    rewrite_superblocks(path, replace(superblock(path), incompatible=1 << 40))


class Case(NamedTuple):
    """A way to build a file, and what recovery must make of it."""

    label: str
    build: Callable[[Path], None]
    kept: int  # so many records, from 1 on where ``facts`` name no other first_seq
    outcome: str = "recovered"
    facts: dict[str, Any] = {}  # noqa: RUF012 - fields of the report; never changed


CASES = [
    Case("R1", closed, 3, "clean", {"kept_past_pointer": 0, "maybe_acknowledged": False}),
    Case("R2", killed, 3, facts={"kept_past_pointer": 0, "dropped_records": 0, "maybe_acknowledged": False}),
    Case("R2", killed_with_one_more, 4, facts={"kept_past_pointer": 1, "dropped_records": 0}),
    Case("R2", killed_pipelined, 3, facts={"kept_past_pointer": 1, "maybe_acknowledged": True}),
    Case("R2", old_epoch_behind, 3, facts={"dropped_records": 0, "dropped_bytes": 0}),
    Case("R3", torn_tail, 3, facts={"dropped_records": 1, "dropped_bytes": 56, "maybe_acknowledged": False}),
    Case("R3", unfinished_batch, 3, facts={"dropped_records": 2, "dropped_bytes": 2 * 56}),
    Case("R3", wrong_number_at_the_next_lap, 1, facts={"first_seq": 3, "last_seq": 3, "dropped_records": 1}),
    Case("R4", damaged_before_pointer, 1, "corrupt", {"lost_first_seq": 2, "lost_last_seq": 2}),
    Case("R4", damaged_last_before_pointer, 2, "corrupt", {"lost_first_seq": 3, "lost_last_seq": 3}),
    Case("R4", damaged_after_close, 2, "corrupt", {"lost_first_seq": 3, "lost_last_seq": 3}),
    Case("R4", discarded_record_in_place_of_a_committed_one, 2, "corrupt", {"lost_first_seq": 3, "lost_last_seq": 3}),
    Case("R4", epoch_before_its_number, 1, "corrupt", {"lost_first_seq": 2, "lost_last_seq": 2}),
    Case("R4", epoch_behind_its_number, 2, "corrupt", {"lost_first_seq": 3, "lost_last_seq": 3}),
    Case("R4", epochs_in_the_wrong_order, 1, "corrupt", {"lost_first_seq": 2, "lost_last_seq": 2}),
    Case("R5", damaged_behind_a_mark, 1, "corrupt", {"lost_first_seq": 2, "lost_last_seq": 2}),
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
    """Stands in for mmap where nothing may be mapped."""
    raise AssertionError("mapped")


def test_every_row_of_the_recovery_table_is_built_as_a_file() -> None:
    """The cases below leave no row out."""
    assert [row.label for row in TABLE] == list(dict.fromkeys(case.label for case in CASES))


@pytest.mark.parametrize("case", CASES, ids=[f"{case.label}-{case.build.__name__}" for case in CASES])
def test_recovery_table(shm_dir: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """A file of each kind gets its label from ``verify`` and its verdict from ``open``; a refused one is not changed."""
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


# -- 8 to 11


def test_slot_written_before_its_data_is_loud_and_good_records_stay_readable(shm_dir: Path) -> None:
    """Scenario 8: the medium broke its promise and kept the slot but not the records that it names."""
    path = shm_dir / "test.wal"
    seam = BarrierRecorder()
    wal = open_small(path, seam=seam, **STRICT)
    wal.append(b"good 1")
    wal.append(b"good 2")
    image = bytearray(path.read_bytes())
    seam.events.clear()
    wal.append(b"lost 3")
    wal.append(b"lost 4")
    kill(wal)
    for event in seam.events:
        if event.name == "store" and CONTROL_OFFSET <= event.offset < CONTROL_OFFSET + SMALL_CONTROL:
            image[event.offset : event.offset + event.length] = event.data
    path.write_bytes(image)
    with pytest.raises(pmwal.CorruptWal) as raised:
        open_small(path, **STRICT)
    assert (raised.value.first_seq, raised.value.last_seq) == (3, 4)
    assert bytes(image) == path.read_bytes()
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert payloads(reader) == [b"good 1", b"good 2"]


def test_slot_torn_at_any_word_leaves_the_slot_before_it(shm_place: Place) -> None:
    """Scenario 9: the newest slot holds new words up to any one of them, or from any one on, and old ones elsewhere."""
    wal = three(shm_place.path, dict(shm_place.options))
    old = shm_place.path.read_bytes()
    wal.append(b"record 4", commit=False)
    wal.commit()
    wal.commit()
    expected = state_of(wal)
    kill(wal)
    new = shm_place.path.read_bytes()
    place = place_of(shm_place.path, newest_slot(shm_place.path).generation)
    assert old[place : place + LINE] != new[place : place + LINE]
    for cut in range(8, LINE, 8):
        for low, high in ((new, old), (old, new)):
            torn = low[place : place + cut] + high[place + cut : place + LINE]
            if torn in (old[place : place + LINE], new[place : place + LINE]):
                continue  # the last words of both are the same
            shm_place.path.write_bytes(new[:place] + torn + new[place + LINE :])
            report = pmwal.verify(shm_place.path)
            assert (report.case, report.outcome, report.slots_lost, report.records) == ("R7", "recovered", 1, 4), cut
            wal = open_small(shm_place.path, **shm_place.options)
            assert expected == state_of(wal)
            wal.close()


@pytest.mark.parametrize("word", range(8))
def test_both_newest_slots_torn_is_corrupt_and_repair_rebuilds(shm_dir: Path, word: int) -> None:
    """Scenario 9: no guess is made, the file stays as it is, a salvaging reader finds all records, and so does ``repair``."""
    path = shm_dir / "test.wal"
    killed(path)
    generation = newest_slot(path).generation
    for lost in (generation, generation - 1):
        flip(path, slot_offset(slot_index(lost, 2)) + 8 * word, 5)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(pmwal.CorruptWal, match="R9b"):
            open_small(path, **STRICT)
    assert before == path.read_bytes()
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert payloads(reader) == [b"record 1", b"record 2", b"record 3"]
    report = repair(path)
    assert (report.before.case, report.kept_records, report.lost_records) == ("R9b", 3, 0)
    assert before == Path(report.backup).read_bytes(), "the damaged file is kept"
    wal = open_small(path, **STRICT)
    assert payloads(wal) == [b"record 1", b"record 2", b"record 3"]
    assert wal.append(b"record 4") == 4
    wal.close()


def test_newest_slot_is_found_by_generation_in_every_place_of_a_turn(shm_dir: Path) -> None:
    """Scenario 10: while the clock runs backwards, and whichever of two slots stands first in the file."""
    path = shm_dir / "test.wal"
    seam = BarrierRecorder()
    wal = open_small(path, seam=seam, **STRICT)
    seen = set()
    for step in range(SMALL_CONTROL // SLOT.size + 3):
        seam.time_ns = 10**18 - step * 10**15
        wal.append(b"%d" % step)
        if step % 60 == 59:
            wal.truncate(before=wal.next_seq)
        slot = newest_slot(path)
        assert (wal.stats().generation, wal.committed_seq) == (slot.generation, slot.commit_seq)
        seen.add(place_of(path, slot.generation))
    assert SMALL_CONTROL // SLOT.size - 8 < len(seen), "the two slots of a truncate take places of their own"
    kill(wal)
    wal = open_small(path, **STRICT)
    assert ("R2", step + 1) == (wal.recovery.case, wal.committed_seq)
    wal.close()


@pytest.mark.parametrize("control_size", [8192, 12288, 131072])
def test_consecutive_slots_never_share_a_page_and_each_has_its_own_flush(shm_dir: Path, control_size: int) -> None:
    """Scenario 11: also where tail and epoch change; and each slot is flushed before the next one is stored."""
    seam = BarrierRecorder()
    seam.control_size = control_size
    wal = open_small(shm_dir / "test.wal", seam=seam, **STRICT)
    seam.events.clear()
    for step in range(200):
        wal.append(b"%d" % step)
        if step % 20 == 19:
            wal.truncate(before=wal.next_seq - 1)
            wal.append(b"discarded")
            wal.rollback(after=wal.next_seq - 2)
    wal.close()
    stop = CONTROL_OFFSET + control_size
    steps = [event for event in seam.events if CONTROL_OFFSET <= event.offset < stop]
    assert ["store", "flush"] * (len(steps) // 2) == [event.name for event in steps]
    pages = [event.offset // PAGE for event in steps[::2]]
    assert pages == [event.offset // PAGE for event in steps[1::2]]
    assert all(one != two for one, two in pairwise(pages))
    assert len(pages) > 240


# -- 12


def required_tail(event: Step, block: Superblock) -> int:
    """The tail that must be durable before this store into the ring: what it overwrites lies before it."""
    header = decode_header(event.data)
    offset = event.offset - block.ring_offset
    position = header.durable + (offset - header.durable) % block.capacity
    return position + len(event.data) - block.capacity


def check_reuse(trace: Trace, block: Superblock) -> int:
    """Each store into used space follows two completed slots that free it; how many such stores there were."""
    control = trace.base[block.control_offset : block.control_offset + block.control_size]
    slots = (decode_slot(control[at : at + LINE], block.uuid, at // LINE) for at in range(0, block.control_size, LINE))
    tails = {slot.generation: slot.tail_position for slot in slots if slot is not None}
    stored: dict[int, Slot] = {}
    reused = 0
    for event in trace.events:
        if event.name == "store" and block.control_offset <= event.offset < block.copy_offset:
            slot = decode_slot(event.data, block.uuid, (event.offset - block.control_offset) // LINE)
            assert slot is not None
            stored[event.offset] = slot
        elif event.name == "flush":
            for offset in [at for at in stored if event.offset <= at < event.offset + event.length]:
                slot = stored.pop(offset)
                tails[slot.generation] = slot.tail_position
        elif event.name == "store" and event.offset >= block.ring_offset:
            needed = required_tail(event, block)
            if needed > 0:
                reused += 1
                newest = sorted(tails)[-2:]
                assert all(tails[generation] >= needed for generation in newest), (needed, tails)
    return reused


def truncating() -> tuple[list[Any], list[Any]]:
    """Fill a ring of 4 KiB, free some of it, use it again, twice over the ring's end."""

    def append(wal: pmwal.Wal) -> int:
        return wal.append(b"%04d" % wal.next_seq * 80)

    def free(wal: pmwal.Wal) -> int:
        return wal.truncate(before=wal.first_seq + 3)

    return [append] * 10, [free, append, append, free, append, append, append, free, append]


def overwriting() -> tuple[list[Any], list[Any]]:
    """Go on in a full ring of 4 KiB that frees its oldest records itself."""

    def append(wal: pmwal.Wal) -> int:
        return wal.append(b"%04d" % wal.next_seq * 80)

    def extend(wal: pmwal.Wal) -> object:
        return wal.extend(b"%04d" % (wal.next_seq + item) * 50 for item in range(3))

    return [append] * 14, [append, append, extend, append, extend, append, append]


SHAPES = pytest.mark.parametrize("shape", [truncating, overwriting], ids=["truncate", "overwrite"])


@CRASH_MEDIA
@SHAPES
def test_tail_is_durable_twice_before_its_space_is_reused(shm_dir: Path, options: dict[str, Any], shape: Any) -> None:
    """Scenario 12: by the order of the steps, and in every image of every crash point."""
    if shape is overwriting:
        options = {**options, "on_full": "overwrite"}
    before, operations = shape()
    path = shm_dir / "test.wal"
    trace = Trace.run(path, {**options, "size": 4096}, operations, before=before)
    assert check_reuse(trace, superblock(path)) > 3
    assert sweep(trace, shm_dir / "image.wal", options, seed=12, extra=6) > 100


@CRASH_MEDIA
@SHAPES
def test_either_of_the_two_newest_slots_may_be_lost_at_any_time(shm_dir: Path, options: dict[str, Any], shape: Any) -> None:
    """Scenario 12: a power cut after each acknowledgement, and then the medium loses one slot: no record is lost with it."""
    if shape is overwriting:
        options = {**options, "on_full": "overwrite"}
    before, operations = shape()
    path = shm_dir / "test.wal"
    trace = Trace.run(path, {**options, "size": 4096}, operations, before=before)
    block = superblock(path)
    marks = {steps: state for steps, state, _ in trace.marks}
    checked = 0
    for steps, disk in trace.crashes("pmem" if options["medium"] == DAX["medium"] else "page"):
        if steps not in marks:
            continue
        for image in (bytes(disk.cache), bytes(disk.held)):
            control = read_control(image[block.control_offset : block.copy_offset], block)
            assert control.newest is not None
            for generation in (control.newest.generation, control.newest.generation - 1):
                at = slot_offset(slot_index(generation, block.control_pages))
                path.write_bytes(image[:at] + bytes(LINE) + image[at + LINE :])
                wal = open_small(path, **options)
                found = state_of(wal)
                kill(wal)
                # A lost slot may have been the only one to name records that the tail of the other still counts.
                assert marks[steps].items == found.items[-len(marks[steps].items) :], (steps, brief(found))
                assert found.first_seq <= marks[steps].first_seq
                assert wal.recovery.slots_lost == 1
                checked += 1
    assert 2 * len(marks) < checked


def test_tail_of_an_emptied_log_is_durable_before_the_ring_is_filled_again(shm_place: Place) -> None:
    """Scenario 12 for a log that is emptied: truncate(before=next_seq), then a whole ring of new records."""

    def fill(wal: pmwal.Wal) -> object:
        return wal.extend([b"%04d" % wal.next_seq * 120] * 7)

    def empty(wal: pmwal.Wal) -> int:
        return wal.truncate(before=wal.next_seq)

    operations = [empty, fill, empty, fill]
    trace = Trace.run(shm_place.path, {**shm_place.options, "size": 4096}, operations, before=[fill])
    assert check_reuse(trace, superblock(shm_place.path)) > 10
    assert sweep(trace, shm_place.path, dict(shm_place.options), seed=12) > 20


# -- 13


IMPOSSIBLE: dict[str, Callable[[Slot], Slot]] = {
    "tail past the commit": lambda s: s._replace(tail_position=s.commit_position + 8),
    "tail number past the commit": lambda s: s._replace(tail_seq=s.commit_seq + 2),
    "commit past the positions": lambda s: s._replace(commit_position=POSITION_MAX + 1, tail_position=POSITION_MAX - 1023),
    "more in use than the ring holds": lambda s: s._replace(commit_position=s.tail_position + 16384 + 8),
    "commit between two records": lambda s: s._replace(commit_position=s.commit_position + 1),
    "tail between two records": lambda s: s._replace(tail_position=s.tail_position + 4),
    "records in no bytes": lambda s: s._replace(tail_position=s.commit_position),
    "bytes without records": lambda s: s._replace(tail_seq=s.commit_seq + 1),
    "more records than the bytes hold": lambda s: s._replace(commit_seq=s.commit_seq + 100),
    "number past the limit": lambda s: s._replace(commit_seq=SEQ_MAX + 1, tail_seq=SEQ_MAX),
    "epoch past the limit": lambda s: s._replace(epoch=EPOCH_MAX + 1),
    "generation past the limit": lambda s: s._replace(generation=GENERATION_MAX + 1),
    "epoch begins at number 0": lambda s: s._replace(epoch_first_seq=0),
    "epoch begins past the end": lambda s: s._replace(epoch_first_seq=s.commit_seq + 2),
    "no epoch": lambda s: s._replace(epoch=0),
    "unknown flag": lambda s: s._replace(flags=s.flags | 1 << 20),
}


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_slot_that_contradicts_itself_is_corrupt_wherever_it_stands(shm_dir: Path, change: Callable[[Slot], Slot]) -> None:
    """Scenario 13: a right checksum over wrong numbers is never passed over in silence for an older slot."""
    path = shm_dir / "test.wal"
    wal = three(path)
    for number in range(4, 60):
        wal.append(b"record %d" % number)
    kill(wal)
    raw, slot = path.read_bytes(), newest_slot(path)
    for age in (1, 0, -1, -40):
        path.write_bytes(raw)
        write_slot(path, change(slot._replace(generation=slot.generation + age)))
        with pytest.raises(pmwal.CorruptWal, match="R8"):
            open_small(path, **STRICT)
        report = pmwal.verify(path)
        assert (report.case, report.outcome) == ("R8", "corrupt"), age


def test_whole_slot_in_the_place_of_another_generation_is_corrupt(shm_dir: Path) -> None:
    """Scenario 13: a slot must stand where its generation belongs."""
    path = shm_dir / "test.wal"
    killed(path)
    slot, block = newest_slot(path), superblock(path)
    index = slot_index(slot.generation + 7, 2)
    overwrite(path, slot_offset(index), encode_slot(slot, block.uuid, index))
    with pytest.raises(pmwal.CorruptWal, match="R8"):
        open_small(path, **STRICT)


# -- 14


DAMAGE: dict[str, Callable[[bytearray], None]] = {
    "length bit": lambda raw: raw.__setitem__(RECORD.offsets["length"], raw[RECORD.offsets["length"]] ^ 1),
    "number bit": lambda raw: raw.__setitem__(RECORD.offsets["seq"], raw[RECORD.offsets["seq"]] ^ 4),
    "payload bit": lambda raw: raw.__setitem__(HEADER, raw[HEADER] ^ 128),
    "checksum bit": lambda raw: raw.__setitem__(0, raw[0] ^ 1),
    "zeros": lambda raw: raw.__setitem__(slice(None), bytes(len(raw))),
    "ones": lambda raw: raw.__setitem__(slice(None), b"\xff" * len(raw)),
}


def damage(path: Path, seq: int, how: Callable[[bytearray], None]) -> None:
    """Damage one record."""
    found, block = whole_records(path)[seq], superblock(path)
    raw = bytearray(path.read_bytes()[file_offset(block, found.position) :][: found.end - found.position])
    how(raw)
    overwrite(path, file_offset(block, found.position), bytes(raw))


@pytest.mark.parametrize("how", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("ending", ["strict killed", "strict closed", "pipelined closed", "pipelined caught up"])
@pytest.mark.parametrize("seq", [1, 3, 5])
def test_bad_record_at_or_before_the_pointer_is_corruption(
    shm_dir: Path, seq: int, ending: str, how: Callable[[bytearray], None]
) -> None:
    """Scenario 14: with or without good ones after it, the very last one too."""
    path = shm_dir / "test.wal"
    wal = open_small(path, **(PIPELINED if "pipelined" in ending else STRICT))
    for number in range(1, 6):
        wal.append(b"record %d" % number)
    if ending == "pipelined caught up":
        assert wal.commit() == 5
    if "closed" in ending:
        wal.close()
    else:
        kill(wal)
    damage(path, seq, how)
    with pytest.raises(pmwal.CorruptWal, match="R4") as raised:
        open_small(path, **STRICT)
    assert (seq, seq) == (raised.value.first_seq, raised.value.last_seq)
    assert seq - 1 == pmwal.verify(path).last_seq
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert [number for number in range(1, 6) if number != seq] == [record.seq for record in reader]


@pytest.mark.parametrize("how", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("seq", [1, 3, 4, 5])
def test_only_the_last_barriers_of_a_pipelined_log_may_pass_for_a_torn_tail(
    shm_dir: Path, seq: int, how: Callable[[bytearray], None]
) -> None:
    """Scenario 14: after an unclean end damage to the last commit is a torn tail, and the report says what that may mean."""
    path = shm_dir / "test.wal"
    wal = open_small(path, **PIPELINED)
    for number in range(1, 6):
        wal.append(b"record %d" % number)
    kill(wal)
    damage(path, seq, how)
    report = pmwal.verify(path)
    if seq == 5:
        assert (report.outcome, report.maybe_acknowledged, report.last_seq) == ("recovered", True, 4)
        assert report.case in ("R2", "R3")
    else:
        assert ("corrupt", "R5", seq) == (report.outcome, report.case, report.lost_first_seq)


@pytest.mark.parametrize("how", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_to_both_of_the_last_two_barriers_still_leaves_a_mark_for_all_before(
    shm_dir: Path, how: Callable[[bytearray], None]
) -> None:
    """Scenario 14: the window is two barriers wide and no wider."""
    path = shm_dir / "test.wal"
    for lost, outcome in (((4, 5), "recovered"), ((3, 4), "corrupt"), ((2, 3, 4), "corrupt")):
        path.unlink(missing_ok=True)
        wal = open_small(path, **PIPELINED)
        for number in range(1, 6):
            wal.append(b"record %d" % number)
        kill(wal)
        for seq in reversed(lost):
            damage(path, seq, how)
        report = pmwal.verify(path)
        assert (outcome, lost[0] - 1) == (report.outcome, report.last_seq)
        assert (outcome == "recovered") == report.maybe_acknowledged


def test_state_is_a_prefix_helper_has_teeth() -> None:
    """The model that the sweeps use refuses a hole, a lost record and a ghost."""
    one, two = (1, b"a"), (2, b"b")
    trace = Trace(b"", [], [(0, Found(1, (one,)), True), (4, Found(1, (one, two)), True)])
    assert {Found(1, (one,)), Found(1, (one, two))} == trace.allowed(2)
    assert {Found(1, (one, two))} == trace.allowed(4)
    disk = PowerCutModel("page", bytes(2 * PAGE))
    disk.take(Step("store", 0, 8, b"12345678"))
    assert bytes(2 * PAGE) == bytes(disk.held) != bytes(disk.cache)
    disk.take(Step("flush", 0, PAGE))
    assert bytes(disk.held) == bytes(disk.cache)
