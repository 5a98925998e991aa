"""Stored payloads never decide a verdict, unless they were forged with the log's uuid for their very place."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import pmwal
from dense_lookalikes import PATTERNS, lookalikes
from pmwal.errors import CorruptWal, FormatError, PmwalError
from pmwal.format.layout import (
    CAPACITY_MAX,
    CRC_SIZE,
    HEADER,
    PAGE,
    POSITION_MAX,
    RECORD,
    SEQ_MAX,
    Header,
    Slot,
    Superblock,
    encode_header,
    encode_slot,
    encode_superblock,
    slot_index,
    slot_offset,
)
from pmwal.format.linear import crc_after_zeros
from pmwal.format.ring import LARGE_RECORD
from pmwal.repair import repair
from pmwal.storage.mapping import Mapping
from pmwal.writing.wal import Wal
from support import file_offset, flip, kill, look, open_small, overwrite, payloads, superblock, whole_records, write_slot
from surgery import fill_to

pytestmark = pytest.mark.both_engines

RING = 65536
FILE: dict[str, Any] = {"medium": "file"}
U64 = (1 << 64) - 1


def header(**fields: int) -> Header:
    """A header with these fields."""
    return Header(0, 0, 1, 0, 0, 1, 0, 0, 0, 1)._replace(**fields)


def fake(count: int, **fields: int) -> bytes:
    """This many adjacent headers, with a checksum of 0."""
    return RECORD.struct.pack(*header(**fields)) * count


def store_then_lap(path: Path, payload: bytes, align: int = 8, before: int = 20) -> Wal:
    """A log in its second lap, of which the rest contains the first one's bytes, with this payload among them."""
    wal = open_small(path, size=RING, align=align, **FILE)
    for _ in range(before):
        wal.append(b"ordinary" * 8)
    wal.append(payload)
    fill_to(wal, RING)
    wal.append(b"acknowledged")
    return wal


FAKES = {
    "long ones of a far epoch": fake(24, length=RING // 4, epoch=0xFFFFFF),
    "longest of this epoch": fake(24, length=RING // 2 - HEADER, seq=1 << 40, epoch=1),
    "short ones": fake(90, seq=1 << 62),
    "short ones of this epoch with marks": fake(90, seq=1 << 62, durable=RING + 64),
    "all-ones lengths": fake(24, length=(1 << 32) - 1, epoch=2),
    "nine headers": fake(9, length=RING // 2 - HEADER, durable=RING + 128, seq=5000, epoch=9),
}


@pytest.mark.parametrize("align", [8, 64])
@pytest.mark.parametrize("name", FAKES)
def test_payload_of_lookalikes_does_not_change_the_verdict(shm_dir: Path, name: str, align: int) -> None:
    """After a kill the log opens with what it had, whatever lengths, epochs and marks its old payloads imitate."""
    path = shm_dir / "log"
    wal = store_then_lap(path, bytes(-HEADER % align) + FAKES[name], align)
    kill(wal)
    report = pmwal.verify(path)
    assert (report.outcome, report.case, report.dropped_records) == ("recovered", "R2", 0)
    with open_small(path, **FILE) as wal:
        assert payloads(wal)[-1] == b"acknowledged"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_densest_lookalikes_do_not_change_the_verdict(shm_dir: Path, pattern: str) -> None:
    """The whole free ring full of them, in a log that has written for long."""
    path = shm_dir / "log"
    open_small(path, size="1MiB", **FILE).close()
    block, slot = superblock(path), look(path).control.newest
    assert slot is not None
    position = PATTERNS[pattern].position_min or block.capacity
    ring = lookalikes(PATTERNS[pattern], block.capacity, position, slot.epoch, block.payload_max, np.random.default_rng(3))
    overwrite(path, block.ring_offset, ring)
    for generation in (slot.generation + 1, slot.generation + 2):
        at = {"commit_position": position, "commit_seq": 5, "tail_position": position, "tail_seq": 6, "epoch_first_seq": 1}
        write_slot(path, slot._replace(generation=generation, flags=0, **at))
    assert (pmwal.verify(path).case, pmwal.verify(path).records) == ("R2", 0)


def forged(path: Path, distance: int, **fields: int) -> None:
    """A log in its second lap with an old payload that is a record for its own place in this lap, or so far from it."""
    wal = open_small(path, size=RING, **FILE)
    for _ in range(20):
        wal.append(b"ordinary" * 8)
    block = superblock(path)
    position = wal._engine.state.head.position + HEADER + RING + distance
    body = b"forged payload"
    made = encode_header(header(length=len(body), **fields), body, block.uuid, position) + body
    wal.append(made)
    fill_to(wal, RING)
    wal.append(b"acknowledged")
    kill(wal)


@pytest.mark.parametrize(
    ("fields", "case"),
    [
        ({"seq": 5000, "durable": RING + 2000, "epoch": 1}, "R5"),
        ({"seq": SEQ_MAX, "durable": RING + 100, "epoch": 1}, "R5"),
        ({"seq": 1, "durable": 0, "epoch": 2}, "R6"),
        ({"seq": SEQ_MAX, "durable": 0, "epoch": 0xFFFFFFFF}, "R6"),
        ({"seq": 5000, "durable": RING, "epoch": 1}, "R3"),
        ({"seq": 2, "durable": RING + 2000, "epoch": 1}, "R2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_record_forged_with_the_uuid_for_its_place_is_evidence(shm_dir: Path, fields: dict[str, int], case: str) -> None:
    """Damage must never pass for a torn tail: such a payload is R5 or R6, salvage reads the log, and a repair makes it usable."""
    path = shm_dir / "log"
    forged(path, 0, **fields)
    report = pmwal.verify(path)
    assert case == report.case
    assert (report.outcome == "corrupt") == (case in ("R5", "R6"))
    if case in ("R5", "R6"):
        with pytest.raises(CorruptWal):
            open_small(path, **FILE)
        with pmwal.open(path, "r", recover="salvage") as reader:
            assert b"acknowledged" in [record.data for record in reader]
        if fields["epoch"] < 0xFFFFFFFF:
            repair(path)
    if fields["epoch"] < 0xFFFFFFFF:
        with open_small(path, **FILE) as wal:
            assert payloads(wal)[-1] == b"acknowledged"
            wal.append(b"after")


@pytest.mark.parametrize("distance", [-RING, RING, 8, -8])
def test_record_forged_for_another_place_is_nothing(shm_dir: Path, distance: int) -> None:
    """A checksum that is right for another position, another lap for example, is wrong here."""
    path = shm_dir / "log"
    forged(path, distance, seq=5000, durable=RING, epoch=7)
    assert pmwal.verify(path).case == "R2"


def test_overlapping_forged_records_are_weighed_in_one_pass(shm_dir: Path) -> None:
    """Whole records of greatest length that overlap: the verdict says R6, and salvage never gives more than the ring contains."""
    path = shm_dir / "log"
    open_small(path, size="1MiB", **FILE).close()
    block = superblock(path)
    ring = bytearray(block.capacity)
    for position in range(block.capacity - HEADER, HEADER, -40 * HEADER):
        length = min(block.payload_max, block.capacity - position - HEADER)
        made = header(length=length, seq=position, epoch=7)
        ring[position : position + HEADER] = encode_header(made, bytes(ring[position + HEADER :])[:length], block.uuid, position)
    overwrite(path, block.ring_offset, bytes(ring))
    newest = look(path).control.newest
    assert newest is not None
    write_slot(path, newest._replace(generation=newest.generation + 1, flags=0))
    assert pmwal.verify(path).case == "R6"
    salvaged_within(path, block.capacity)
    copy = shm_dir / "copy"
    copy.write_bytes(path.read_bytes())
    overwrite(copy, block.control_offset, bytes(block.control_size))
    assert pmwal.verify(copy).case == "R9"
    salvaged_within(copy, block.capacity)
    repair(path)
    open_small(path, **FILE).close()


def salvaged_within(path: Path, capacity: int) -> None:
    """Salvage finds something, and not more than fits into a ring."""
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert 0 < sum(HEADER + len(record.data) for record in reader) <= capacity


def test_salvage_finds_every_record_between_lookalikes(shm_dir: Path) -> None:
    """Each second record is damaged, and every payload imitates long records: the others are found."""
    path = shm_dir / "log"
    wal = open_small(path, size="1MiB", **FILE)
    for number in range(200):
        wal.append(b"%5d" % number + bytes(3) + fake(9, length=RING, seq=number + 2, epoch=wal._engine.state.epoch))
    wal.close()
    block = superblock(path)
    for seq, found in whole_records(path).items():
        if seq % 2 == 0:
            overwrite(path, file_offset(block, found.position) + HEADER, b"x")
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert [record.seq for record in reader] == list(range(1, 200, 2))
    for index in range(64):
        overwrite(path, slot_offset(index), bytes(64))
    assert pmwal.verify(path).case in ("R9", "R9b")
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert [record.seq for record in reader] == list(range(1, 200, 2))


EXTREMES = (0, 1, 8, (1 << 31) - 1, (1 << 32) - 2, (1 << 32) - 1, 1 << 62, POSITION_MAX - 7, POSITION_MAX, 1 << 63, SEQ_MAX, U64)


@pytest.mark.parametrize("field", [field.name for field in RECORD.fields if field.name != "crc"])
def test_extreme_number_in_a_record_ends_in_a_verdict(shm_dir: Path, field: str) -> None:
    """With a right checksum, at the end and further on: every way to read the log ends without an undocumented error."""
    path, copy = shm_dir / "log", shm_dir / "copy"
    kill(store_then_lap(path, b"old"))
    raw, block, end = path.read_bytes(), superblock(path), look(path).end.position
    size = dict(zip(RECORD.offsets, (field.code for field in RECORD.fields), strict=True))[field]
    for value in EXTREMES:
        for position in (end, end + 4096):
            fitted = value & ((1 << 8 * struct.calcsize(size)) - 1)
            fitted -= (1 << 64) * (size == "q" and fitted > POSITION_MAX)
            made = header(seq=look(path).end.next_seq, durable=position, epoch=1)._replace(**{field: fitted})
            image = bytearray(raw)
            offset = file_offset(block, position)
            image[offset : offset + HEADER] = encode_header(
                made, bytes(image[offset + HEADER :])[: made.length], block.uuid, position
            )
            copy.write_bytes(image)
            judged_everywhere(copy)


@pytest.mark.parametrize("field", Slot._fields)
def test_extreme_number_in_a_slot_ends_in_a_verdict(shm_dir: Path, field: str) -> None:
    """The same for the newest slot."""
    path, copy = shm_dir / "log", shm_dir / "copy"
    kill(store_then_lap(path, b"old"))
    raw, block, newest = path.read_bytes(), superblock(path), look(path).control.newest
    assert newest is not None
    index = slot_index(newest.generation, block.control_pages)
    for value in EXTREMES:
        fitted = value & 0xFFFFFFFF if field in ("epoch", "flags") else value
        for place in (index, (index + 64) % block.turn):
            image = bytearray(raw)
            slot = newest._replace(**{field: fitted})
            image[slot_offset(place) : slot_offset(place) + 64] = encode_slot(slot, block.uuid, place)
            copy.write_bytes(image)
            judged_everywhere(copy)


def judged_everywhere(path: Path) -> None:
    """Verify, read, salvage and write a log; each gives a result or one of the documented errors."""
    try:
        pmwal.verify(path)
    except FormatError:
        return
    for options in ({}, {"recover": "salvage"}):
        try:
            with pmwal.open(path, "r", **options) as reader:
                list(reader)
        except PmwalError:
            continue
    try:
        with open_small(path, **FILE) as wal:
            wal.append(b"after")
    except PmwalError:
        return


def sparse_log(path: Path, capacity: int) -> Superblock:
    """A log of three records in a file of a few pages that claims this capacity."""
    wal = open_small(path, **FILE)
    kill(wal)
    raw, small = path.read_bytes(), superblock(path)
    block = replace(small, capacity=capacity)
    with path.open("wb") as file:
        file.write(encode_superblock(block, 0) + bytes(PAGE) + raw[2 * PAGE : block.copy_offset] + encode_superblock(block, 1))
        file.truncate(block.file_size)
        for seq in (1, 2, 3):
            position = 64 * (seq - 1)
            file.seek(block.ring_offset + position)
            file.write(encode_header(header(length=16, seq=seq, durable=position), b"some payload 123", block.uuid, position))
            file.write(b"some payload 123")
        file.seek(block.ring_offset + capacity // 2)
        file.write(fake(50, length=1 << 30, epoch=9))
    return block


@pytest.mark.parametrize("capacity", [2 << 40, CAPACITY_MAX])
def test_file_of_a_few_pages_that_claims_terabytes_is_judged_by_its_data(shm_dir: Path, capacity: int) -> None:
    """Only its data is read, by every way to look at it; an open for writing needs the space, and says so."""
    path = shm_dir / "log"
    block = sparse_log(path, capacity)
    assert os.stat(path).st_blocks * 512 < 1 << 20
    assert (pmwal.verify(path).case, pmwal.verify(path).records) == ("R2", 3)
    for options in ({}, {"recover": "salvage"}):
        with pmwal.open(path, "r", **options) as reader:
            assert [record.seq for record in reader] == [1, 2, 3]
    assert repair(path, dry_run=True).kept_records == 3
    with pytest.raises(OSError, match="No space left"):
        open_small(path, **FILE)
    overwrite(path, slot_offset(1), bytes(128))
    overwrite(path, slot_offset(64), bytes(128))
    assert pmwal.verify(path).case == "R9b"
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert [record.seq for record in reader] == [1, 2, 3]
    assert os.stat(path).st_blocks * 512 < 1 << 20
    assert block == superblock(path)


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("length", [LARGE_RECORD + 1, 3 << 30])
def test_record_in_a_hole_costs_neither_time_nor_memory(
    shm_dir: Path, length: int, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header may declare gigabytes that are a hole of the file: it is checked without reading them, also if it is whole."""
    path, position, loads = shm_dir / "log", 192, []
    block = sparse_log(path, 2 << 40)
    large = header(length=length, seq=4, durable=position)
    raw = encode_header(large, b"", block.uuid, position)
    crc = crc_after_zeros(int.from_bytes(raw[:CRC_SIZE], "little"), length) if right else 1
    overwrite(path, block.ring_offset + position, crc.to_bytes(CRC_SIZE, "little") + raw[CRC_SIZE:])
    load = Mapping.load
    monkeypatch.setattr(Mapping, "load", lambda self, offset, size: loads.append(size) or load(self, offset, size))
    assert (pmwal.verify(path).case, pmwal.verify(path).records) == (("R2", 4) if right else ("R3", 3))
    with pmwal.open(path, "r") as reader:
        assert [record.seq for record in reader.read(stop=4)] == [1, 2, 3]
        assert reader.committed_seq == 3 + right
    assert repair(path, dry_run=True).kept_records == 3 + right
    assert max(loads) <= 1 << 20
    assert os.stat(path).st_blocks * 512 < 1 << 20


def test_large_record_is_read_as_any_other(shm_dir: Path) -> None:
    """One that is checked piece by piece, by the writer, a reader, recovery and salvage."""
    data = Random(5).randbytes(LARGE_RECORD + 5)
    path = shm_dir / "log"
    wal = open_small(path, size="160MiB")
    wal.append(b"a")
    wal.append(data)
    wal.append(b"b")
    assert [wal[2].data == data, wal[3].data] == [True, b"b"]
    kill(wal)
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert [record.data == data for record in reader] == [False, True, False]
    assert pmwal.verify(path).records == 3
    place = whole_records(path)[2].position + HEADER + LARGE_RECORD
    with open_small(path, size=None) as wal, pmwal.open(path, "r") as reader:
        assert [record.data == data for record in reader] == [False, True, False]
        flip(path, superblock(path).ring_offset + place)
        for log in (wal, reader):
            with pytest.raises(pmwal.CorruptWal, match="record 2 "):
                list(log.read())
    assert pmwal.verify(path).case == "R4"
