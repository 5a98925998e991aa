"""Limits of the format (scenario 20): sequence numbers, positions, epochs and generations near their ends."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from conftest import Place
from images import bury
from pmwal.format.layout import (
    EPOCH_MAX,
    GENERATION_MAX,
    HEADER,
    POSITION_MAX,
    SEQ_MAX,
    SLOT_CLEAN,
    Header,
    Slot,
    Superblock,
    encode_header,
    encode_slot,
    slot_index,
    slot_offset,
)
from pmwal.writing.wal import Wal
from support import (
    SMALL_RING,
    contents,
    file_offset,
    kill,
    look,
    open_small,
    overwrite,
    payloads,
    superblock,
    write_slot,
)
from surgery import STRICT

pytestmark = pytest.mark.both_engines


def jump(path: Path, **fields: int) -> None:
    """Make an empty, cleanly closed log continue from other numbers, as if it had reached them."""
    slot = look(path).control.newest
    assert slot is not None
    block = superblock(path)
    seq, position = fields.get("seq", slot.commit_seq), fields.get("position", slot.commit_position)
    jumped = slot._replace(
        epoch=fields.get("epoch", slot.epoch),
        epoch_first_seq=seq + 1,
        commit_seq=seq,
        tail_seq=seq + 1,
        commit_position=position,
        tail_position=position,
        flags=SLOT_CLEAN,
    )
    generation = fields.get("generation", slot.generation + 1)
    for age in range(block.turn - 1, -1, -1) if "generation" in fields else (0,):
        put_slot(path, block, jumped._replace(generation=generation - age))


def put_slot(path: Path, block: Superblock, slot: Slot) -> None:
    """Write a slot at its index without opening the log, which is not valid until a whole turn is written."""
    index = slot_index(slot.generation, block.control_pages)
    overwrite(path, slot_offset(index), encode_slot(slot, block.uuid, index))


def jumped_log(path: Path, options: dict[str, Any], **fields: int) -> Wal:
    """An empty log that has reached the numbers in ``fields``."""
    open_small(path, **options).close()
    jump(path, **fields)
    return open_small(path, **options)


@pytest.mark.parametrize("seq", [(1 << 31) - 2, (1 << 32) - 2, (1 << 53) - 2, (1 << 63) - 2])
def test_numbers_pass_powers_of_two(place: Place, seq: int) -> None:
    """Scenario 20: 2^31, 2^32, 2^53 and 2^63 are numbers like any other."""
    wal = jumped_log(place.path, place.options, seq=seq)
    expected = [(seq + number, b"%d" % number) for number in range(1, 5)]
    for number, data in expected:
        assert number == wal.append(data)
    assert expected == contents(wal)
    kill(wal)
    wal = open_small(place.path, **place.options)
    assert expected == contents(wal)
    assert seq + 4 == wal.truncate(before=seq + 4)
    assert seq + 4 == wal.append(b"new") - 1
    assert seq + 5 == wal.rollback(after=seq + 4)
    wal.close()
    wal = open_small(place.path, **place.options)
    assert [(seq + 4, b"4")] == contents(wal)
    wal.close()


def append_until_full(wal: Wal, items: Iterable[bytes]) -> list[tuple[int, bytes]]:
    """Append until the log is full, which must happen before the items run out."""
    stored = []
    for data in items:
        try:
            stored.append((wal.append(data), data))
        except pmwal.WalFull:
            return stored
    raise AssertionError("never full")


def test_last_number_is_refused_before_it_wraps(place: Place) -> None:
    """Scenario 20: near 2^64 append, extend and reserve raise WalFull; the log can still be read, closed and opened."""
    wal = jumped_log(place.path, place.options, seq=SEQ_MAX - 4)
    with pytest.raises(pmwal.WalFull):
        wal.extend([b"x"] * 8)
    stored = append_until_full(wal, (b"%d" % number for number in range(8)))
    with pytest.raises(pmwal.WalFull), wal.reserve(1):
        pass
    assert len(stored) > 2
    assert stored[-1][0] == SEQ_MAX
    assert stored == contents(wal)
    kill(wal)
    for _ in range(2):
        wal = open_small(place.path, **place.options)
        assert stored == contents(wal)
        with pytest.raises(pmwal.WalFull):
            wal.append(b"one more")
        wal.close()
    assert pmwal.verify(place.path).case == "R1"
    wal = open_small(place.path, **place.options)
    wal.truncate(before=wal.next_seq)
    kill(wal)
    with open_small(place.path, **place.options) as wal:
        assert (wal.first_seq, len(wal)) == (SEQ_MAX + 1, 0)
        assert wal.rollback(after=SEQ_MAX) == SEQ_MAX + 1


@pytest.mark.parametrize("size", [0, 100, 1000])
def test_last_position_is_refused_before_it_wraps(place: Place, size: int) -> None:
    """Scenario 20: near 2^63 append raises WalFull; no position in the file is past the limit."""
    start = (POSITION_MAX - 3000) // SMALL_RING * SMALL_RING + SMALL_RING - 3072  # a multiple of every alignment
    wal = jumped_log(place.path, {**place.options, "on_full": "overwrite"}, position=start)
    stored = append_until_full(wal, (b"%03d" % number + bytes(size) for number in range(100)))
    assert (True, stored) == (len(stored) > 1, contents(wal))
    assert wal._engine.state.head.position <= POSITION_MAX
    kill(wal)
    for _ in range(2):
        wal = open_small(place.path, **place.options)
        assert stored == contents(wal)
        wal.close()
    assert pmwal.verify(place.path).case == "R1"


@pytest.mark.parametrize("position", [1 << 31, 1 << 32, 1 << 53, 1 << 62], ids=["2^31", "2^32", "2^53", "2^62"])
def test_positions_pass_powers_of_two(shm_place: Place, position: int) -> None:
    """Scenario 20: a log that crosses 2^31, 2^32, 2^53 or 2^62 bytes is killed on the way and continues."""
    wal = jumped_log(shm_place.path, {**shm_place.options}, position=position - 512)
    for number in range(8):
        wal.append(b"%d" % number * 100)
        kill(wal)
        wal = open_small(shm_place.path, **shm_place.options)
        assert [b"%d" % before * 100 for before in range(number + 1)] == payloads(wal)
    assert position < wal._engine.state.head.position
    wal.close()


def test_last_epoch_is_refused_before_it_wraps(shm_place: Place) -> None:
    """Scenario 20: opens use up the last epochs; then open says so, and the log stays readable."""
    wal = jumped_log(shm_place.path, dict(shm_place.options), epoch=EPOCH_MAX - 2)
    assert (wal.stats().epoch, wal.append(b"1")) == (EPOCH_MAX - 1, 1)
    kill(wal)
    wal = open_small(shm_place.path, **shm_place.options)
    assert (wal.stats().epoch, wal.append(b"2")) == (EPOCH_MAX, 2)
    with pytest.raises(pmwal.WalFull):
        wal.rollback(after=1)
    assert payloads(wal) == [b"1", b"2"]
    wal.close()
    before = shm_place.path.read_bytes()
    with pytest.raises(pmwal.WalFull):
        open_small(shm_place.path, **shm_place.options)
    assert before == shm_place.path.read_bytes()
    with pmwal.open(shm_place.path, "r") as reader:
        assert payloads(reader) == [b"1", b"2"]


@pytest.mark.parametrize("left", range(8))
def test_last_generation_is_refused_before_it_wraps(shm_place: Place, left: int) -> None:
    """Scenario 20: when no generation is left the call says so, and the log stays as it was."""
    open_small(shm_place.path, **shm_place.options).close()
    jump(shm_place.path, generation=GENERATION_MAX - left)
    acknowledged: list[tuple[int, bytes]] = []

    def use_up() -> None:
        with open_small(shm_place.path, **shm_place.options) as wal:
            for number in range(1, 12):
                acknowledged.append((wal.append(b"%d" % number), b"%d" % number))
                wal.commit()

    with pytest.raises(pmwal.WalFull):
        use_up()
    report = pmwal.verify(shm_place.path)
    assert report.outcome in ("clean", "recovered"), report
    bury(shm_place.path)
    with pmwal.open(shm_place.path, "r") as reader:
        assert acknowledged == contents(reader)[: len(acknowledged)]


def test_numbers_that_wrap_in_a_file_are_refused(shm_dir: Path) -> None:
    """Scenario 20: a record or slot past the limits, as a bug or an attacker would write it, never makes numbers decrease."""
    path = shm_dir / "test.wal"
    wal = jumped_log(path, STRICT, seq=SEQ_MAX - 1)
    kill(wal)
    block, end = superblock(path), look(path).end
    for step, seq in enumerate((SEQ_MAX, SEQ_MAX + 1, 0)):
        header = Header(0, 0, seq, 0, 0, look(path).report.epoch, 0, 0, 0, 1)
        position = end.position + step * HEADER
        overwrite(path, file_offset(block, position), encode_header(header, b"", block.uuid, position))
    report = pmwal.verify(path)
    assert report.last_seq <= SEQ_MAX
    slot = look(path).control.newest
    assert slot is not None
    write_slot(path, slot._replace(generation=slot.generation + 1, commit_seq=SEQ_MAX + 1, tail_seq=SEQ_MAX + 1))
    assert pmwal.verify(path).case == "R8"
