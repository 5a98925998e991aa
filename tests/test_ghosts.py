"""Ghosts and generations (scenarios 1 to 7): a record dropped by a recovery or a rollback never comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pmwal
from conftest import Place
from images import Trace, state_of, sweep
from pmwal.format.layout import HEADER, LINE, RECORD, SLOT, slot_index, slot_offset
from pmwal.format.ring import Found, RingReader
from pmwal.opening.files import inspect
from pmwal.storage.seam import SYSTEM
from support import (
    BarrierRecorder,
    Crash,
    Step,
    contents,
    file_offset,
    flip,
    kill,
    look,
    open_small,
    overwrite,
    payloads,
    superblock,
    whole_records,
)

pytestmark = pytest.mark.both_engines

DAX: dict[str, Any] = {"medium": "emulated-dax", "ordering": "strict"}
PAGES_STRICT: dict[str, Any] = {"medium": "file", "ordering": "strict"}
PAGES_PIPELINED: dict[str, Any] = {"medium": "file", "ordering": "pipelined"}
CRASH_MEDIA = pytest.mark.parametrize("options", [DAX, PAGES_STRICT, PAGES_PIPELINED], ids=["lines", "pages", "pipelined"])


def body(text: str, size: int = 56) -> bytes:
    """A payload of a fixed size that names its record."""
    return text.encode().ljust(size, b".")


def leave_torn_tail(place: Place) -> tuple[bytes, dict[int, Found]]:
    """Kill a log with records 1 to 3 acknowledged, 4 torn and 5 whole; return the file before the tear, and the records."""
    wal = open_small(place.path, **place.options)
    for number in (1, 2, 3):
        wal.append(body(f"acknowledged {number}"))
    wal.append(body("torn 4"), commit=False)
    wal.append(body("ghost 5"), commit=False)
    kill(wal)
    whole = place.path.read_bytes()
    found = whole_records(place.path)
    flip(place.path, file_offset(superblock(place.path), found[4].position) + HEADER + 3)
    return whole, found


def record_at(path: Path, position: int) -> Found | None:
    """The whole record at a position, even if it is no longer part of the log."""
    with inspect(str(path), SYSTEM) as (mapping, judgement):
        return RingReader(judgement.identity.block, mapping.load).whole(position)


def test_ghost_after_a_torn_record_does_not_follow_its_replacement(place: Place) -> None:
    """Scenario 1: the old 5 is still whole, with the right number at the right position, after the new 4."""
    _, found = leave_torn_tail(place)
    wal = open_small(place.path, **place.options)
    assert [seq for seq, _ in contents(wal)] == [1, 2, 3]
    assert wal.append(body("new 4")) == 4
    kill(wal)

    ghost = record_at(place.path, found[5].position)
    assert ghost is not None, "the test shows nothing unless the ghost is there"
    assert ghost.header.seq == 5
    wal = open_small(place.path, **place.options)
    assert (4, body("new 4")) == contents(wal)[-1]
    assert wal.next_seq == 5
    wal.close()


def test_dropped_record_stays_dropped_when_the_medium_reads_it_again(place: Place) -> None:
    """Scenario 2: the first recovery drops 4 and is killed; the torn bytes heal; the second recovery must not return it."""
    whole, found = leave_torn_tail(place)
    wal = open_small(place.path, **place.options)
    assert (wal.recovery.case, wal.recovery.dropped_records) == ("R3", 2)
    kill(wal)

    block = superblock(place.path)
    start = file_offset(block, found[4].position)
    overwrite(place.path, start, whole[start : start + found[4].end - found[4].position])
    assert record_at(place.path, found[4].position) is not None
    wal = open_small(place.path, **place.options)
    assert [seq for seq, _ in contents(wal)] == [1, 2, 3]
    assert wal.append(body("new 4")) == 4
    wal.close()


def test_recovery_killed_at_any_step_is_as_if_it_never_ran(shm_place: Place) -> None:
    """Scenario 3: until ``open`` returns, the next recovery finds the same records and drops the same ones."""
    leave_torn_tail(shm_place)
    torn = shm_place.path.read_bytes()
    steps = BarrierRecorder()
    wal = open_small(shm_place.path, seam=steps, **shm_place.options)
    expected = state_of(wal)
    kill(wal)
    assert len(steps.events) > 4
    for k in range(len(steps.events)):
        shm_place.path.write_bytes(torn)
        with pytest.raises(Crash):
            open_small(shm_place.path, seam=BarrierRecorder(crash_at(k)), **shm_place.options)
        wal = open_small(shm_place.path, **shm_place.options)
        assert expected == state_of(wal), f"killed at step {k}"
        assert wal.append(body("new 4")) == 4
        wal.close()
        assert (look(shm_place.path).row.label, look(shm_place.path).report.records) == ("R1", 4)


@pytest.mark.parametrize("words", range(1, 8))
@pytest.mark.parametrize("which", [0, 1], ids=["first slot", "second slot"])
def test_new_epochs_slot_torn_at_any_word_leaves_the_old_epoch(shm_place: Place, words: int, which: int) -> None:
    """Scenario 3: the power fails inside the store of a new epoch's slot; the next recovery finds what the first one did."""
    leave_torn_tail(shm_place)
    torn = shm_place.path.read_bytes()
    seam = BarrierRecorder()
    kill(open_small(shm_place.path, seam=seam, **shm_place.options))
    slots = [event for event in seam.events if event.name == "store" and event.length == SLOT.size]
    slots = [event for event in slots if event.offset >= slot_offset(0)][-2:]
    image = bytearray(torn)
    for event in slots[:which]:
        image[event.offset : event.offset + LINE] = event.data
    image[slots[which].offset : slots[which].offset + 8 * words] = slots[which].data[: 8 * words]
    shm_place.path.write_bytes(image)
    wal = open_small(shm_place.path, **shm_place.options)
    assert [seq for seq, _ in contents(wal)] == [1, 2, 3]
    assert (wal.recovery.case, wal.recovery.slots_lost) == ("R7", 1)
    wal.close()


@pytest.mark.parametrize("bit", range(32))
def test_flipped_bit_in_a_committed_records_epoch_is_corruption(shm_dir: Path, bit: int) -> None:
    """Scenario 4: a wrong epoch before the pointer is damage, never "an old record, so the log ends here"."""
    path = shm_dir / "test.wal"
    wal = open_small(path, **PAGES_STRICT)
    for number in range(1, 6):
        wal.append(body(f"record {number}"))
    kill(wal)
    number = bit % 5 + 1  # covers the first record, the last, and those between
    found = whole_records(path)[number]
    flip(path, file_offset(superblock(path), found.position) + RECORD.offsets["epoch"] + bit // 8, bit % 8)
    with pytest.raises(pmwal.CorruptWal) as raised:
        open_small(path, **PAGES_STRICT)
    assert (number, number) == (raised.value.first_seq, raised.value.last_seq)
    assert pmwal.verify(path).case == "R4"


def test_flipped_epoch_is_corruption_on_every_medium(place: Place) -> None:
    """Scenario 4 on each medium and ordering, in a record that a later one proves to be acknowledged."""
    wal = open_small(place.path, **place.options)
    for number in range(1, 6):
        wal.append(body(f"record {number}"))
    kill(wal)
    block = superblock(place.path)
    flip(place.path, file_offset(block, whole_records(place.path)[2].position) + RECORD.offsets["epoch"])
    with pytest.raises(pmwal.CorruptWal) as raised:
        open_small(place.path, **place.options)
    assert raised.value.first_seq == 2


@CRASH_MEDIA
@pytest.mark.parametrize("size", [80, 200])
def test_numbers_of_an_old_lap_never_come_back(shm_dir: Path, options: dict[str, Any], size: int) -> None:
    """Scenario 5: records of equal size for several laps of a full ring; any subset of the unflushed bytes is lost."""
    options = {**options, "on_full": "overwrite"}
    per_lap = 4096 // (-(-(HEADER + size) // LINE) * LINE)

    def append(number: int) -> Any:
        return lambda wal: wal.append(body(f"record {number}", size))

    def append_unflushed(number: int) -> Any:
        return lambda wal: wal.append(body(f"record {number}", size), commit=False)

    filled = 3 * per_lap + 1
    before = [append(number) for number in range(1, filled + 1)]
    operations = [append(filled + 1)]
    operations += [append_unflushed(filled + 2 + number) for number in range(3)]
    operations += [append(filled + 5), append(filled + 6)]
    trace = Trace.run(shm_dir / "test.wal", {**options, "size": 4096}, operations, before=before)
    assert sweep(trace, shm_dir / "image.wal", options, seed=5, extra=4) > 40


def test_records_appended_after_a_dropped_tail_are_found(place: Place) -> None:
    """Scenario 6: append after a recovery that dropped a torn tail, crash, recover: the new records are there."""
    leave_torn_tail(place)
    wal = open_small(place.path, **place.options)
    for number in range(4, 8):
        assert number == wal.append(body(f"new {number}"))
    kill(wal)
    wal = open_small(place.path, **place.options)
    assert [body(f"new {number}") for number in range(4, 8)] == payloads(wal)[3:]
    assert (wal.recovery.dropped_records, wal.recovery.records) == (0, 7)
    wal.close()


def test_append_after_recovery_survives_a_power_cut_at_every_step(shm_place: Place) -> None:
    """Scenario 6 with the cache lost: the torn tail of the first crash lies under the new records all the time."""
    leave_torn_tail(shm_place)
    seam = BarrierRecorder()
    wal = open_small(shm_place.path, seam=seam, **shm_place.options)
    seam.events.clear()
    trace = Trace(shm_place.path.read_bytes(), seam.events, [(0, state_of(wal), True)])
    for number in (4, 5):
        wal.append(body(f"new {number}"))
        trace.marks.append((len(seam.events), state_of(wal), True))
    kill(wal)
    assert sweep(trace, shm_place.path, dict(shm_place.options), seed=6) > 10


@pytest.mark.parametrize(
    "sizes",
    [(120,), (120, 120), (0, 24), (24, 0), (36, 36), (8, 8, 8), (0,), (120, 24, 48), (300,)],
    ids=lambda sizes: "-".join(map(str, sizes)),
)
def test_rolled_back_records_never_return_after_shorter_ones(place: Place, sizes: tuple[int, ...]) -> None:
    """Scenario 7: records 2 to 5 are discarded; new ones end inside them, at their boundaries, or where they ended."""
    wal = open_small(place.path, **place.options)
    wal.append(body("kept"))
    for number in range(2, 6):
        wal.append(body(f"discarded {number}", 120))
    assert wal.rollback(after=1) == 2
    new = [body(f"new {number}", size)[:size] for number, size in enumerate(sizes)]
    for data in new:
        wal.append(data)
        assert [body("kept"), *new[: wal.next_seq - 2]] == payloads(wal)
    kill(wal)
    for _ in range(2):
        wal = open_small(place.path, **place.options)
        assert [body("kept"), *new] == payloads(wal)
        kill(wal)


@CRASH_MEDIA
def test_rollback_and_shorter_appends_survive_every_crash(shm_dir: Path, options: dict[str, Any]) -> None:
    """Scenario 7 at every crash point: until the rollback takes effect all records are there, afterwards none of the discarded."""
    before = [lambda wal, number=number: wal.append(body(f"discarded {number}", 120)) for number in range(1, 5)]
    operations: list[Any] = [
        lambda wal: wal.rollback(after=1),
        lambda wal: wal.append(body("new 2", 40)),
        lambda wal: wal.append(body("new 3", 32)),  # these two fill exactly the space of the old 2
        lambda wal: wal.rollback(after=2),
        lambda wal: wal.append(body("newest 3", 32)),
    ]
    trace = Trace.run(shm_dir / "test.wal", options, operations, before=before)
    assert sweep(trace, shm_dir / "image.wal", options, seed=7) > 50


def crash_at(step: int) -> Any:
    """A hook that ends the process before the step with this index."""
    left = step

    def hook(event: Step) -> None:
        nonlocal left
        if left == 0:
            raise Crash
        left -= 1

    return hook


def test_epoch_is_new_for_each_open_and_each_rollback(shm_place: Place) -> None:
    """No crash leads to the reuse of an epoch: a new one is greater than any in a slot or a record."""
    epochs = []
    for _ in range(3):
        wal = open_small(shm_place.path, **shm_place.options)
        epochs.append(wal.stats().epoch)
        wal.append(b"kept")
        wal.append(b"discarded")
        wal.rollback(after=wal.next_seq - 2)
        epochs.append(wal.stats().epoch)
        kill(wal)
    assert sorted(set(epochs)) == epochs
    slot = look(shm_place.path).control.newest
    assert slot is not None
    assert slot_index(slot.generation, 2) != slot_index(slot.generation - 1, 2)
