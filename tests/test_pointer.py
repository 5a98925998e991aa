"""Commit pointer, slots and tail (scenarios 8 to 14)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import pmwal
from conftest import Place
from images import Trace, brief, state_of, sweep
from marks import first_fast
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
    Slot,
    Superblock,
    decode_header,
    decode_slot,
    encode_slot,
    slot_index,
    slot_offset,
)
from pmwal.repair import repair
from pmwal.testing import PowerCutModel
from pmwal.testing._simulator.model import Found
from support import (
    SMALL_CONTROL,
    BarrierRecorder,
    Step,
    file_offset,
    flip,
    kill,
    open_small,
    overwrite,
    payloads,
    place_of,
    superblock,
    whole_records,
    write_slot,
)
from surgery import STRICT, killed, newest_slot, three

pytestmark = pytest.mark.both_engines

DAX: dict[str, Any] = {"medium": "emulated-dax", "ordering": "strict"}
PIPELINED: dict[str, Any] = {"medium": "file", "ordering": "pipelined"}
CRASH_MEDIA = pytest.mark.parametrize("options", [DAX, STRICT, PIPELINED], ids=["lines", "pages", "pipelined"])


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
    """Scenario 9: the newest slot has new words up to any word, or from any word on, and old ones elsewhere."""
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
                continue  # both have the same last words
            shm_place.path.write_bytes(new[:place] + torn + new[place + LINE :])
            report = pmwal.verify(shm_place.path)
            assert (report.case, report.outcome, report.slots_lost, report.records) == ("R7", "recovered", 1, 4), cut
            wal = open_small(shm_place.path, **shm_place.options)
            assert expected == state_of(wal)
            wal.close()


@pytest.mark.parametrize("word", range(8))
def test_both_newest_slots_torn_is_corrupt_and_repair_rebuilds(shm_dir: Path, word: int) -> None:
    """Scenario 9: no guess is made, the file stays as it is, and both salvage and ``repair`` find all records."""
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
    """Scenario 10: the clock runs backwards, and either of the two slots may come first in the file."""
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
    """Scenario 11: also where tail and epoch change; each slot is flushed before the next one is stored."""
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
    """The tail that must be durable before this store into the ring: everything it overwrites lies before that tail."""
    header = decode_header(event.data)
    offset = event.offset - block.ring_offset
    position = header.durable + (offset - header.durable) % block.capacity
    return position + len(event.data) - block.capacity


def check_reuse(trace: Trace, block: Superblock) -> int:
    """Each store into used space follows two completed slots that free it; return the number of such stores."""
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
    """Fill a ring of 4 KiB, free some of it and reuse it, twice past the ring's end."""

    def append(wal: pmwal.Wal) -> int:
        return wal.append(b"%04d" % wal.next_seq * 80)

    def free(wal: pmwal.Wal) -> int:
        return wal.truncate(before=wal.first_seq + 3)

    return [append] * 10, [free, append, append, free, append, append, append, free, append]


def overwriting() -> tuple[list[Any], list[Any]]:
    """Append to a full ring of 4 KiB that frees its oldest records itself."""

    def append(wal: pmwal.Wal) -> int:
        return wal.append(b"%04d" % wal.next_seq * 80)

    def extend(wal: pmwal.Wal) -> object:
        return wal.extend(b"%04d" % (wal.next_seq + item) * 50 for item in range(3))

    return [append] * 14, [append, append, extend, append, extend, append, append]


@CRASH_MEDIA
@pytest.mark.parametrize("shape", first_fast([truncating, overwriting]))
def test_tail_is_durable_twice_before_its_space_is_reused(shm_dir: Path, options: dict[str, Any], shape: Any) -> None:
    """Scenario 12: checked in the order of the steps, and in every image of every crash point."""
    if shape is overwriting:
        options = {**options, "on_full": "overwrite"}
    before, operations = shape()
    path = shm_dir / "test.wal"
    trace = Trace.run(path, {**options, "size": 4096}, operations, before=before)
    assert check_reuse(trace, superblock(path)) > 3
    assert sweep(trace, shm_dir / "image.wal", options, seed=12, extra=6) > 100


@CRASH_MEDIA
@pytest.mark.parametrize("shape", [truncating, overwriting])
def test_either_of_the_two_newest_slots_may_be_lost_at_any_time(shm_dir: Path, options: dict[str, Any], shape: Any) -> None:
    """Scenario 12: after each acknowledgement the power fails and the medium loses one slot; no record is lost with it."""
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
                # Without the lost slot its newer tail may be unknown, so truncated records may count again.
                assert marks[steps].items == found.items[-len(marks[steps].items) :], (steps, brief(found))
                assert found.first_seq <= marks[steps].first_seq
                assert wal.recovery.slots_lost == 1
                checked += 1
    assert 2 * len(marks) < checked


def test_tail_of_an_emptied_log_is_durable_before_the_ring_is_filled_again(shm_place: Place) -> None:
    """Scenario 12 for an emptied log: truncate(before=next_seq), then a whole ring of new records."""

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
def test_slot_that_contradicts_itself_is_corrupt_wherever_it_is(shm_dir: Path, change: Callable[[Slot], Slot]) -> None:
    """Scenario 13: a slot with a right checksum and wrong numbers is never ignored in favour of an older one."""
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
    """Scenario 13: a slot must be at the index of its generation."""
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
    """Scenario 14: with or without good records after it, including the very last one."""
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
    """Scenario 14: after an unclean end, damage to the last commit is a torn tail, and the report says what that may mean."""
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
    """The model that the sweeps use rejects a hole, a lost record and a ghost."""
    one, two = (1, b"a"), (2, b"b")
    trace = Trace(b"", [], [(0, Found(1, (one,)), True), (4, Found(1, (one, two)), True)])
    assert {Found(1, (one,)), Found(1, (one, two))} == trace.allowed(2)
    assert {Found(1, (one, two))} == trace.allowed(4)
    disk = PowerCutModel("page", bytes(2 * PAGE))
    disk.take(Step("store", 0, 8, b"12345678"))
    assert bytes(2 * PAGE) == bytes(disk.held) != bytes(disk.cache)
    disk.take(Step("flush", 0, PAGE))
    assert bytes(disk.held) == bytes(disk.cache)
