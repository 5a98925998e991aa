"""Payloads that imitate the log's structures: what the generator promises, and what forgeries made with the uuid lead to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import pmwal
from images import bury
from pmwal.format.layout import (
    HEADER,
    MAGIC,
    PAGE,
    SLOT,
    Header,
    decode_slot,
    decode_superblock,
    encode_header,
    slot_index,
)
from pmwal.format.ring import RingReader
from pmwal.repair import repair
from pmwal.testing.lookalikes import any_place, lookalike, place_in, tagged
from pmwal.writing.wal import Wal
from support import kill, look, open_small, payloads, whole_records

PAYLOADS = 300


def test_payload_follows_from_the_random_source_and_the_place(path: Path) -> None:
    """So a seed repeats a history."""
    with open_small(path) as wal:
        wal.extend([b"a" * 100, b"b" * 100])
        one, two = ([lookalike(Random(seed), place_in(wal), 500) for seed in range(50)] for _ in range(2))
    assert one == two
    assert len(set(one)) >= 40


@pytest.mark.parametrize("size", [0, 1, 7, 8, 47, 48, 1000, 9000])
def test_payload_has_the_size_that_was_asked_for(size: int) -> None:
    """And begins with its tag, where it has one; a tag is never cut."""
    for seed in range(30):
        place = any_place(Random(seed), 1 << 20)
        assert len(lookalike(Random(seed), place, size)) == size
        found = tagged(Random(seed), place, size, b"17.")
        assert found[:3] == b"17."
        assert len(found) == max(size, 3)


def _stored(path: Path, align: int) -> tuple[RingReader, dict[int, int], Wal]:
    wal = open_small(path, size="64KiB", align=align, on_full="overwrite")
    random, place_of_each = Random(align), {}
    for _ in range(PAYLOADS):
        at = wal._engine.state.head.position
        place_of_each[wal.append(lookalike(random, place_in(wal), random.choice((random.randrange(2000), 6000))))] = at
    engine = wal._engine
    return RingReader(engine.block, engine.mapping.load, chunk=HEADER), place_of_each, wal


@pytest.mark.parametrize("align", [8, 64])
def test_lookalikes_pass_for_headers_and_none_is_a_whole_record(path: Path, align: int) -> None:
    """At every position of a lap: thousands of possible headers, and only the log's own records have the right checksum."""
    reader, _, wal = _stored(path, align)
    tail, head, capacity = wal._engine.state.tail.position, wal._engine.state.head.position, wal.capacity
    possible, whole = 0, []
    for lap in (0, capacity):  # the lap of the log, and the one that a search past its end looks for
        for position in range(tail + lap, head + lap, align):
            possible += reader.peek(position) is not None
            if reader.whole(position) is not None:
                whole.append(position)
    wal.close()
    assert whole == [found.position for found in whole_records(path).values()]
    assert possible > len(whole) + 1000 * 8 // align


def test_superblocks_and_slots_are_imitated_with_right_checksums_and_wrong_ones(path: Path) -> None:
    """Those of the log itself, and others."""
    _, _, wal = _stored(path, 8)
    block = wal._engine.block
    stored = [lookalike(Random(seed), place_in(wal), 6000) for seed in range(200)]
    wal.close()
    whole, damaged, slots = 0, 0, set()
    for raw in stored:
        at = raw.find(MAGIC)
        if 0 <= at <= len(raw) - PAGE:
            is_whole = any(decode_superblock(raw[at : at + PAGE], copy) for copy in (0, 1))
            whole, damaged = whole + is_whole, damaged + (not is_whole)
        for at in range(0, len(raw) - SLOT.size + 1, 8):
            generation = SLOT.struct.unpack_from(raw, at)[2]
            index = slot_index(generation, block.control_pages)
            if decode_slot(raw[at : at + SLOT.size], block.uuid, index) is not None:
                slots.add(raw[at : at + SLOT.size])
    assert min(whole, damaged) >= 3
    assert len(slots) > 10


def test_records_of_the_log_are_copied(path: Path) -> None:
    """Byte for byte as they are stored, padding included."""
    with open_small(path) as wal:
        wal.append(b"the only record here " * 3)
        copies = [lookalike(Random(seed), place_in(wal), 1500).count(b"the only record here ") for seed in range(200)]
    assert sum(copies) > 50


# -- forgeries


def _far(wal: Wal, position: int) -> Header:
    return Header(0, 40, wal.next_seq + 100, position, 0, wal._engine.state.epoch, 0, 0, 0, 1)


def _acknowledged(wal: Wal, position: int) -> Header:
    """A record of this epoch that says that the log was durable past its end."""
    return _far(wal, position)


def _newer(wal: Wal, position: int) -> Header:
    """A record of a later epoch."""
    return _far(wal, position)._replace(epoch=wal._engine.state.epoch + 5, durable=0, seq=1)


@pytest.mark.both_engines
@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
@pytest.mark.parametrize(("forge", "row"), [(_acknowledged, "R5"), (_newer, "R6")])
def test_record_forged_with_the_uuid_for_its_exact_place_is_evidence_and_repair_works(
    forge: Callable[[Wal, int], Header], row: str, ordering: str, path: Path
) -> None:
    """Who knows the uuid can make a log be refused: by a documented error, and a repair keeps what was live."""
    wal = open_small(path, "x", ordering=ordering, align=8)
    capacity, uuid = wal.capacity, wal._engine.block.uuid
    offset = 4000
    position = wal._engine.state.head.position + HEADER + offset + capacity  # where its bytes lie when the next lap comes
    forged = encode_header(forge(wal, position), b"x" * 40, uuid, position) + b"x" * 40
    wal.append(bytes(offset) + forged + bytes(500))
    while wal._engine.state.head.position < capacity - 2000:
        wal.append(b"ordinary" * 100)
    wal.truncate(before=wal.next_seq)
    wal.extend([b"live 1", b"live 2"])
    kill(wal)
    bury(path)
    assert look(path).row.label == row
    assert pmwal.verify(path).case == row
    before = path.read_bytes()
    for mode in ("r", "r+"):
        with pytest.raises(pmwal.CorruptWal, match=row):
            pmwal.open(path, mode)
    assert path.read_bytes() == before
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert {b"live 1", b"live 2"} <= {record.data for record in reader}
    repair(path)
    with open_small(path, "r+") as wal:
        assert payloads(wal) == [b"live 1", b"live 2"]
        assert wal.append(b"next") == wal.next_seq - 1
