"""The format: round trips, what never validates, relations between constants, and the golden files of version 1."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pmwal
from pmwal.format import layout
from pmwal.format.layout import (
    ALIGN_MAX,
    APPLICATION_SIZE,
    CAPACITY_MAX,
    CONTROL_OFFSET,
    CONTROL_SIZE_DEFAULT,
    CONTROL_SIZE_MAX,
    HEADER,
    HUGE_PAGE,
    KIND_MAX,
    LARGE_RING,
    LENGTH_MAX,
    LINE,
    LIVE_OFFSET,
    PAGE,
    POSITION_MAX,
    RECORD,
    SEQ_MAX,
    SLOT,
    SLOTS_PER_PAGE,
    STRUCTURES,
    SUPERBLOCK,
    Header,
    Slot,
    Superblock,
    decode_header,
    decode_slot,
    decode_superblock,
    encode_header,
    encode_slot,
    encode_superblock,
    geometry_problem,
    header_problem,
    initial_slot,
    place_record,
    record_crc,
    record_size,
    seed_crc,
    slot_index,
    slot_offset,
)
from pmwal.writing.wal import Wal
from support import contents, file_offset, kill, look, open_small, superblock, whole_records

DATA = Path(__file__).parent / "data"
# A fixed seed, so that a failure is the same everywhere; hypothesis prints the example.
FAST = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
s64 = st.integers(-(1 << 63), (1 << 63) - 1)
uuids = st.binary(min_size=16, max_size=16)
alignments = st.sampled_from([8, 16, 32, 64, 128, 512, 1024])
capacities = st.integers(1, 1 << 20).map(lambda pages: pages * PAGE)
superblocks = st.builds(
    Superblock,
    uuid=uuids,
    control_size=st.integers(2, CONTROL_SIZE_MAX // PAGE).map(lambda pages: pages * PAGE),
    capacity=capacities,
    alignment=alignments,
    created_ns=s64,
    application=st.binary(min_size=APPLICATION_SIZE, max_size=APPLICATION_SIZE),
    compatible=u64,
    incompatible=u64,
    version_major=u16,
    version_minor=u16,
)
slots = st.builds(
    Slot,
    epoch=u32,
    generation=u64,
    epoch_first_seq=u64,
    commit_position=u64,
    commit_seq=u64,
    tail_position=u64,
    tail_seq=st.integers(1, (1 << 64) - 1),
    flags=u32,
)
headers = st.builds(
    Header,
    crc=st.just(0),
    length=u32,
    seq=u64,
    durable=u64,
    time_ns=s64,
    epoch=u32,
    kind=u16,
    flags=u16,
    batch_index=u32,
    batch_count=u32,
)
payload_bytes = st.binary(max_size=200)


# -- round trips


@FAST
@given(block=superblocks, copy=st.integers(0, 1))
def test_superblock_round_trip(block: Superblock, copy: int) -> None:
    """A structure encoded for one copy decodes from that copy and from no other."""
    page = encode_superblock(block, copy)
    assert len(page) == PAGE
    assert block == decode_superblock(page, copy)
    assert decode_superblock(page, 1 - copy) is None


@FAST
@given(slot=slots, uuid=uuids, index=st.integers(0, 1 << 14))
def test_slot_round_trip(slot: Slot, uuid: bytes, index: int) -> None:
    """A slot encoded for a location decodes from it."""
    raw = encode_slot(slot, uuid, index)
    assert len(raw) == LINE
    assert slot == decode_slot(raw, uuid, index)


@FAST
@given(header=headers, payload=payload_bytes, uuid=uuids, position=u64)
def test_record_round_trip(header: Header, payload: bytes, uuid: bytes, position: int) -> None:
    """All fields come back, and the checksum is the right one for the bytes."""
    raw = encode_header(header, payload, uuid, position)
    assert len(raw) == HEADER
    found = decode_header(b"pad" + raw, 3)
    assert header == found._replace(crc=0)
    assert found.crc == record_crc(raw + payload, uuid, position)


@FAST
@given(data=st.data())
def test_every_structure_keeps_the_fields_that_it_names(data: st.DataObject) -> None:
    """Packing each field at its offset gives the same bytes as packing the structure."""
    for structure in STRUCTURES:
        values: list[tuple[Any, ...]] = []
        for field in structure.fields:
            size = structure.field_size(field.name)
            if field.code.endswith("s"):
                values.append((data.draw(st.binary(min_size=size, max_size=size)) if size <= 64 else bytes(size),))
            elif len(field.code) > 1:
                values.append(tuple(range(int(field.code[:-1]))))
            else:
                values.append((data.draw(s64 if field.code == "q" else st.integers(0, (1 << 8 * size) - 1)),))
        raw = structure.struct.pack(*chain.from_iterable(values))
        for field, value in zip(structure.fields, values, strict=True):
            assert value == struct.unpack_from("<" + field.code, raw, structure.offsets[field.name])


# -- what never validates


@pytest.mark.parametrize("fill", [0, 255], ids=["zeros", "ones"])
@FAST
@given(uuid=uuids | st.sampled_from([bytes(16), b"\xff" * 16]), location=st.integers(0, (1 << 64) - 1))
def test_zeros_and_ones_are_never_a_valid_structure(fill: int, uuid: bytes, location: int) -> None:
    """Whatever the uuid and location, the content rules them out before any checksum is verified."""
    for copy in (0, 1):
        assert decode_superblock(bytes([fill]) * PAGE, copy) is None
    line = bytes([fill]) * LINE
    assert decode_slot(line, uuid, location) is None
    assert header_problem(decode_header(line), location, 1 << 40, 8, LENGTH_MAX) is not None


def test_zeros_and_ones_are_ruled_out_even_with_a_checksum_that_fits() -> None:
    """The rules for fields do not rely on the checksum, which is right here."""
    uuid = bytes(range(16))
    for fill in (0, 255):
        body = bytes([fill]) * (LINE - 4)
        raw = struct.pack("<I", crc32c(body, seed_crc(uuid, 5))) + body
        assert decode_slot(raw, uuid, 5) is None
        page = bytes([fill]) * (PAGE - 4)
        assert decode_superblock(page + struct.pack("<I", crc32c(page, seed_crc(page[:16], 0))), 0) is None


def test_no_single_flipped_bit_of_a_slot_validates() -> None:
    """The test flips each of the 512 bits."""
    uuid = bytes(range(16))
    raw = encode_slot(Slot(3, 77, 12, 4096, 20, 1024, 5, 2), uuid, 9)
    for bit in range(8 * LINE):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decode_slot(bytes(flipped), uuid, 9) is None, bit


@pytest.mark.parametrize("payload", [b"", b"x", bytes(70), b"\xff" * 30], ids=["empty", "one byte", "zeros", "ones"])
def test_no_single_flipped_bit_of_a_record_validates(payload: bytes) -> None:
    """The test flips every bit of header and payload; padding is not part of the record."""
    uuid = bytes(range(16))
    header = Header(0, len(payload), 7, 64, 1, 2, 3, 0, 0, 1)
    raw = encode_header(header, payload, uuid, 128) + payload
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        found = decode_header(bytes(flipped))
        possible = header_problem(found, 128, 4096, 8, 2000) is None
        # A reader computes the checksum over the length that the header names.
        stored = (bytes(flipped) + bytes(4096))[: HEADER + found.length] if possible else b""
        assert not possible or record_crc(stored, uuid, 128) != found.crc, bit


def test_no_single_flipped_bit_of_a_superblock_validates() -> None:
    """The test flips every bit of the fields and of the checksum, and one in each later byte."""
    page = encode_superblock(Superblock(bytes(range(16)), 8192, 4096, 8, 5, b"label".ljust(64, b"\0")), 0)
    used = SUPERBLOCK.offsets["reserved"]
    bits = [*range(8 * used), *range(8 * (PAGE - 4), 8 * PAGE), *(8 * byte + byte % 8 for byte in range(used, PAGE - 4, 3))]
    for bit in bits:
        flipped = bytearray(page)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decode_superblock(bytes(flipped), 0) is None, bit


def test_slot_validates_in_its_own_place_only() -> None:
    """Copied to any other slot index, it is not valid."""
    uuid = bytes(range(16))
    for index in (0, 1, 63, 64, 2047):
        raw = encode_slot(initial_slot(), uuid, index)
        assert [index] == [other for other in range(2048) if decode_slot(raw, uuid, other) is not None]


@FAST
@given(uuid=uuids, other=uuids, position=st.integers(0, POSITION_MAX), shift=st.integers(1, 1 << 40), payload=payload_bytes)
def test_wrong_log_or_wrong_position_never_validates(uuid: bytes, other: bytes, position: int, shift: int, payload: bytes) -> None:
    """A record of another log, of another position, or of the same ring offset a lap later has another checksum."""
    raw = encode_header(Header(0, len(payload), 7, 0, 1, 2, 3, 0, 0, 1), payload, uuid, position)
    crc = decode_header(raw).crc
    for elsewhere in (shift, 4096, 1 << 32, 1 << 62):
        assert crc != record_crc(raw + payload, uuid, position + elsewhere)
    if other != uuid:
        assert crc != record_crc(raw + payload, other, position)
        slot = encode_slot(initial_slot(), uuid, position % 2048)
        assert decode_slot(slot, other, position % 2048) is None


def test_superblock_of_another_format_or_with_an_impossible_geometry_is_none() -> None:
    """A right checksum does not make an impossible geometry valid."""
    block = Superblock(bytes(16), 8192, 4096, 8, 0)
    assert decode_superblock(encode_superblock(block, 0)[:-1], 0) is None
    changes: list[dict[str, Any]] = [
        {"control_size": PAGE},
        {"control_size": 8192 + 64},
        {"control_size": CONTROL_SIZE_MAX + PAGE},
        {"capacity": 0},
        {"capacity": 4096 + 512},
        {"capacity": CAPACITY_MAX + PAGE},
        {"capacity": (1 << 64) - PAGE},
        {"alignment": 0},
        {"alignment": 4},
        {"alignment": 24},
        {"alignment": 2 * ALIGN_MAX},
        {"alignment": ALIGN_MAX},  # with a ring of one page, no record would fit into half of it
    ]
    for change in changes:
        impossible = replace(block, **change)
        assert geometry_problem(impossible) is not None
        assert decode_superblock(encode_superblock(impossible, 0), 0) is None, change


HEADER_PROBLEMS = {
    "number 0": {"seq": 0},
    "number past the limit": {"seq": SEQ_MAX + 1},
    "epoch 0": {"epoch": 0},
    "flags": {"flags": 1},
    "index at its count": {"batch_index": 2, "batch_count": 2},
    "no count": {"batch_count": 0},
    "mark past itself": {"durable": 1025},
    "longer than the largest": {"length": 2001},
    "longer than the room": {"length": 500},
}


@pytest.mark.parametrize("change", HEADER_PROBLEMS.values(), ids=HEADER_PROBLEMS.keys())
def test_impossible_header_is_refused_before_its_checksum(change: dict[str, int]) -> None:
    """Each limit is violated on its own; the unchanged header is possible."""
    good = Header(0, 10, 7, 1024, 0, 1, 0, 0, 1, 2)
    assert header_problem(good, 1024, 512, 8, 2000) is None
    assert header_problem(good._replace(**change), 1024, 512 if change != {"length": 2001} else 1 << 20, 8, 2000) is not None


# -- relations between constants


def test_fields_follow_one_another_without_gaps() -> None:
    """There is no compiler's padding and no overlap; C may use the same offsets in a packed structure."""
    for structure in STRUCTURES:
        ends = [structure.offsets[field.name] + structure.field_size(field.name) for field in structure.fields]
        starts = [structure.offsets[field.name] for field in structure.fields]
        assert [0, *ends[:-1]] == starts
        assert structure.size == ends[-1]


def test_eight_byte_fields_are_aligned_so_that_each_is_stored_atomically() -> None:
    """Assumption 1 of the durability model: aligned 8-byte stores are not torn. Lines are aligned in the file."""
    for structure in STRUCTURES:
        for field in structure.fields:
            if structure.field_size(field.name) == 8:
                assert structure.offsets[field.name] % 8 == 0, f"{structure.title}.{field.name}"
    assert SLOT.size == LINE
    assert 0 == CONTROL_OFFSET % PAGE == LIVE_OFFSET % PAGE
    assert HEADER == RECORD.size == 48


@pytest.mark.parametrize("pages", [2, 3, 5, 32, CONTROL_SIZE_MAX // PAGE])
def test_generations_take_every_place_once_in_a_turn_and_never_the_same_page_twice_running(pages: int) -> None:
    """A slot is overwritten only a whole turn later."""
    turn = pages * SLOTS_PER_PAGE
    indexes = [slot_index(generation, pages) for generation in range(2 * turn)]
    assert sorted(indexes[:turn]) == list(range(turn))
    assert indexes[:turn] == indexes[turn:]
    assert all(one // SLOTS_PER_PAGE != two // SLOTS_PER_PAGE for one, two in pairwise(indexes))
    assert slot_offset(turn - 1) + SLOT.size == CONTROL_OFFSET + pages * PAGE


@FAST
@given(block=superblocks)
def test_regions_of_a_file_follow_one_another(block: Superblock) -> None:
    """The order is superblock, live page, control region, superblock, ring; a large ring begins on a huge page."""
    assert (CONTROL_OFFSET, LIVE_OFFSET) == (2 * PAGE, PAGE)
    assert block.control_offset + block.control_size == block.copy_offset
    assert block.ring_offset >= block.copy_offset + PAGE
    assert block.ring_offset % (HUGE_PAGE if block.capacity >= LARGE_RING else PAGE) == 0
    assert block.ring_offset - block.copy_offset - PAGE < HUGE_PAGE
    assert block.file_size == block.ring_offset + block.capacity
    assert block.turn * SLOT.size == block.control_size
    assert 0 < record_size(block.payload_max, block.alignment) <= max(block.capacity // 2, LENGTH_MAX)
    assert record_size(block.payload_max + 1, block.alignment) > block.capacity // 2 or block.payload_max == LENGTH_MAX


@FAST
@given(length=st.integers(0, LENGTH_MAX), alignment=alignments)
def test_record_size_is_the_least_multiple_that_holds_it(length: int, alignment: int) -> None:
    """Header and payload fit, and less than one alignment unit is wasted."""
    size = record_size(length, alignment)
    assert size % alignment == 0
    assert 0 <= size - HEADER - length < alignment


@FAST
@given(position=st.integers(0, POSITION_MAX), size=st.integers(48, 8192), pages=st.integers(2, 100))
def test_record_never_crosses_the_rings_end(position: int, size: int, pages: int) -> None:
    """It starts here if it fits, and at the next lap's start if it does not."""
    capacity = 2 * pages * PAGE
    start = place_record(position, size, capacity)
    assert start % capacity + size <= capacity
    assert start in (position, (position // capacity + 1) * capacity)
    assert (start == position) == (capacity - position % capacity >= size)


def test_defaults_and_limits_are_what_the_contract_says() -> None:
    """Files and users rely on these numbers."""
    assert (CONTROL_SIZE_DEFAULT, layout.CAPACITY_DEFAULT) == (128 * 1024, 64 * 1024 * 1024)
    assert (layout.VERSION_MAJOR, KIND_MAX, LENGTH_MAX) == (1, 0xFFFF, (1 << 32) - 1)
    assert (layout.ALIGN_DAX, layout.ALIGN_DEFAULT) == (64, 8)
    assert layout.POINTER_LAG_MAX == 1 << 20
    assert layout.MAGIC == b"\x89PMWAL\r\n"


# -- golden files


def golden_maker() -> Any:
    """The script that made the golden files."""
    path = Path(__file__).parent.parent / "tools" / "make_golden.py"
    spec = importlib.util.spec_from_file_location("make_golden", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


T0 = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
GOLDEN: dict[str, tuple[tuple[Any, ...], list[tuple[int, int, int, bytes]]]] = {
    "v1-clean.bin": (
        ("R1", "clean", 1, 0, 0, False),
        [
            (1, 0, T0, b""),
            (2, 7, T0 + SECOND, b"hello"),
            (3, 65535, T0 + 2 * SECOND, b"first of two"),
            (4, 65535, T0 + 2 * SECOND, b"second of two"),
            (5, 0, T0 + 3 * SECOND, bytes(20)),
            (6, 0, T0 + 3 * SECOND, b"\xff" * 20),
        ],
    ),
    "v1-killed.bin": (
        ("R3", "recovered", 1, 2, 1, True),
        [
            (1, 0, T0 + SECOND, b"acknowledged 1"),
            (2, 0, T0 + 2 * SECOND, b"acknowledged 2"),
            (3, 0, T0 + 3 * SECOND, b"acknowledged 3"),
            (4, 0, T0 + 4 * SECOND, b"acknowledged 4"),
            (5, 0, T0 + 4 * SECOND, b"batched 5"),
            (6, 0, T0 + 4 * SECOND, b"batched 6"),
        ],
    ),
    "v1-wrapped.bin": (
        ("R2", "recovered", 2, 0, 0, False),
        [
            (8, 0, T0 + 8 * SECOND, b"0008" * 150),
            (9, 0, T0 + 9 * SECOND, b"0009" * 150),
            (10, 13, T0 + 9 * SECOND, b"after the rollback"),
            (11, 0, T0 + 9 * SECOND, b"over the end" * 93),
        ],
    ),
}
GOLDEN_FILES = pytest.mark.parametrize("name", GOLDEN)


@GOLDEN_FILES
def test_golden_file_is_read_with_its_literal_contents(name: str) -> None:
    """Every later version reads it in place, with verify and with a reader."""
    facts, records = GOLDEN[name]
    report = pmwal.verify(DATA / name)
    found = (report.case, report.outcome, report.epoch, report.kept_past_pointer, report.dropped_records)
    assert facts == (*found, report.maybe_acknowledged)
    with pmwal.open(DATA / name, "r") as reader:
        assert records == [(record.seq, record.kind, record.time_ns, record.data) for record in reader]


@GOLDEN_FILES
def test_golden_file_is_opened_for_writing_and_continues(shm_dir: Path, name: str) -> None:
    """Every later version recovers it, appends, is killed, closes and opens it again, in each ordering."""
    _, records = GOLDEN[name]
    for ordering in ("strict", "pipelined"):
        path = shm_dir / f"{ordering}.wal"
        path.write_bytes((DATA / name).read_bytes())
        expected = [(seq, data) for seq, _, _, data in records]
        for step, end in enumerate((kill, Wal.close, kill)):
            wal = open_small(path, medium="file", ordering=ordering)
            assert expected == contents(wal)
            expected.append((wal.append(b"new %d" % step), b"new %d" % step))
            end(wal)
        assert records[-1][0] + 3 == look(path).report.last_seq


@GOLDEN_FILES
def test_golden_script_still_makes_the_same_bytes(shm_dir: Path, name: str) -> None:
    """All bytes but the volatile live page are the same: today's writer writes format 1 as the first one did."""
    make: Callable[[Path], bytes] = golden_maker().GOLDEN[name]
    made, kept = make(shm_dir / "golden.wal"), (DATA / name).read_bytes()
    assert len(kept) == len(made)
    pages = [
        offset
        for offset in range(0, len(kept), PAGE)
        if offset != LIVE_OFFSET and kept[offset : offset + PAGE] != made[offset : offset + PAGE]
    ]
    assert pages == [], "file offsets of the pages that differ"


def test_golden_scripts_and_tests_name_the_same_files() -> None:
    """Every golden file has a test, and every test its file."""
    assert set(GOLDEN) == set(golden_maker().GOLDEN) == {path.name for path in DATA.glob("v1-*.bin")}


def test_bytes_of_version_1_are_these() -> None:
    """A superblock, a slot and a record in hexadecimal pin the format independently of the code that wrote it."""
    path = DATA / "v1-clean.bin"
    raw = path.read_bytes()
    assert raw[:160] == bytes.fromhex(
        "89504d57414c0d0a 0100 0000 08000000 0000000000000000 0000000000000000"
        "000102030405060708090a0b0c0d0e0f 0020000000000000 0020000000000000 0050000000000000 0010000000000000"
        "00002a36fe9c9717 676f6c64656e" + 66 * "00"
    )
    assert raw[PAGE - 4 : PAGE] == bytes.fromhex("b9b123ea")
    slot = look(path).control.newest
    assert slot == Slot(1, 8, 1, 376, 6, 0, 1, 1)
    offset = slot_offset(slot_index(8, 2))
    assert raw[offset : offset + LINE] == bytes.fromhex(
        "a92cb994 01000000 0800000000000000 0100000000000000 7801000000000000"
        "0600000000000000 0000000000000000 0100000000000000 01000000 00000000"
    )
    second = file_offset(superblock(path), whole_records(path)[2].position)
    assert raw[second : second + 56] == bytes.fromhex(
        "134c14c9 05000000 0200000000000000 3000000000000000 00cac471fe9c9717 01000000 0700 0000 00000000 01000000 68656c6c6f000000"
    )


def test_golden_files_cover_a_wrap_a_rollback_and_a_truncation() -> None:
    """The third file is on its third lap, its epoch began in the middle, and its bytes still hold discarded records."""
    path = DATA / "v1-wrapped.bin"
    found = whole_records(path)
    assert [record.header.epoch for record in found.values()] == [1, 1, 2, 2]
    assert (4096 < found[8].position < 8192, 8192) == (True, found[11].position)
    assert b"discarded " * 10 in path.read_bytes()
