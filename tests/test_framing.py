"""Framing and geometry (scenarios 15 to 18): lengths, sizes and the ring's end."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import pmwal
from conftest import Place
from images import Trace, bury, state_of, sweep
from pmwal.format.layout import (
    CONTROL_OFFSET,
    HEADER,
    LENGTH_MAX,
    LIVE_OFFSET,
    PAGE,
    Header,
    encode_header,
    place_record,
    record_size,
)
from pmwal.writing.wal import Wal
from support import (
    SMALL_CONTROL,
    SMALL_RING,
    contents,
    file_offset,
    kill,
    look,
    open_small,
    overwrite,
    payloads,
    superblock,
    whole_records,
)
from surgery import STRICT, fill_to

pytestmark = pytest.mark.both_engines

DAX: dict[str, Any] = {"medium": "emulated-dax", "ordering": "strict"}
PIPELINED: dict[str, Any] = {"medium": "file", "ordering": "pipelined"}
CRASH_MEDIA = pytest.mark.parametrize("options", [DAX, STRICT, PIPELINED], ids=["lines", "pages", "pipelined"])


# -- 15


def forge_length(path: Path, seq: int, length: int) -> None:
    """Give a record another length, and a checksum that is right for those bytes that exist."""
    judgement, found = look(path), whole_records(path)[seq]
    block = judgement.identity.block
    start = file_offset(block, found.position)
    room = min(length, block.ring_offset + block.capacity - start - HEADER)
    payload = path.read_bytes()[start + HEADER : start + HEADER + room]
    header = found.header._replace(length=length)
    overwrite(path, start, encode_header(header, payload, block.uuid, found.position))


LENGTHS = {
    "all ones": LENGTH_MAX,
    "highest bit": 1 << 31,
    "larger than the ring": SMALL_RING + 1,
    "the whole ring": SMALL_RING,
    "past the ring's end": SMALL_RING - 1024,
    "one more than the largest": SMALL_RING // 2 - HEADER + 1,
    "the largest, over the records that follow": SMALL_RING // 2 - HEADER,
    "into the middle of the next record": 100 + HEADER + 30,
    "over the whole next record": 104 + HEADER + 100,
    "shorter than it was": 20,
    "nothing": 0,
}


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())
def test_forged_length_of_a_committed_record_is_corruption(shm_dir: Path, length: int) -> None:
    """Scenario 15: a length is checked before it is used, and no memory is allocated for it."""
    path = shm_dir / "test.wal"
    wal = open_small(path, **STRICT)
    for number in range(1, 6):
        wal.append(b"%d" % number * 100)
    kill(wal)
    forge_length(path, 2, length)
    tracemalloc.start()
    try:
        report = pmwal.verify(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * os.path.getsize(path) + (1 << 20)
    finally:
        tracemalloc.stop()
    # A record that now ends inside the third is whole on its own; the damage shows where the third should start.
    assert (report.case, report.lost_first_seq in (2, 3)) == ("R4", True)
    with pytest.raises(pmwal.CorruptWal):
        open_small(path, **STRICT)


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())
def test_forged_length_past_the_pointer_ends_the_log_there(shm_dir: Path, length: int) -> None:
    """Scenario 15 in a torn tail: an impossible record is dropped, regardless of its length field."""
    path = shm_dir / "test.wal"
    wal = open_small(path, **STRICT)
    wal.append(b"1" * 100)
    for number in (2, 3):
        wal.append(b"%d" % number * 100, commit=False)
    kill(wal)
    forge_length(path, 2, length)
    wal = open_small(path, **STRICT)
    # The checksum was forged as well: where the record fits, it is as valid as any other.
    assert wal.next_seq in (2, 3)
    assert [seq for seq, _ in contents(wal)][:1] == [1]
    if HEADER + length > SMALL_RING // 2:
        assert (wal.next_seq, wal.recovery.case) == (2, "R3")
    wal.append(b"next")
    wal.close()
    assert pmwal.verify(path).case == "R1"


def test_length_past_the_ring_near_its_end_is_not_believed(shm_dir: Path) -> None:
    """Scenario 15: a record must end at the ring's end, not a lap later."""
    path = shm_dir / "test.wal"
    wal = open_small(path, size=4096, **STRICT)
    fill_to(wal, 4096 - 200)
    wal.append(b"x" * 100)
    kill(wal)
    seq = max(whole_records(path))
    forge_length(path, seq, 200)
    assert ("R4", seq) == (pmwal.verify(path).case, pmwal.verify(path).lost_first_seq)


# -- 16


def test_payloads_of_every_kind_come_back_as_they_were(place: Place) -> None:
    """Scenario 16: empty, zeros, ones, and the largest, after a kill and after a close."""
    wal = open_small(place.path, **place.options)
    largest = superblock(place.path).payload_max
    stored = [b"", bytes(1), bytes(100), b"\xff" * 100, b"", bytes(64), b"\xff" * 48, b"\xa5" * largest, b""]
    for data in stored:
        wal.append(data)
    kill(wal)
    wal = open_small(place.path, **place.options)
    assert stored == payloads(wal)
    wal.close()
    wal = open_small(place.path, **place.options)
    assert (stored, "R1") == (payloads(wal), wal.recovery.case)
    wal.close()


@pytest.mark.parametrize("fill", [0, 255], ids=["zeros", "ones"])
def test_largest_payload_of_zeros_or_ones_is_whole(shm_place: Place, fill: int) -> None:
    """Scenario 16: a payload that looks like an empty or erased medium is a payload like any other."""
    wal = open_small(shm_place.path, **shm_place.options)
    data = bytes([fill]) * superblock(shm_place.path).payload_max
    wal.append(data)
    wal.append(data)
    assert wal.free == 0
    kill(wal)
    wal = open_small(shm_place.path, **shm_place.options)
    assert [data, data] == payloads(wal)
    wal.close()


def test_one_byte_more_than_the_largest_is_refused_and_leaves_the_log_alone(place: Place) -> None:
    """Scenario 16: append, extend, reserve and batches refuse it and store nothing."""
    wal = open_small(place.path, **place.options)
    wal.append(b"before")
    data = bytes(superblock(place.path).payload_max + 1)
    batch = wal.batch()
    for action in (
        lambda: wal.append(data),
        lambda: wal.extend([b"fits", data]),
        lambda: wal.reserve(len(data)),
        lambda: batch.__enter__().append(data),
    ):
        with pytest.raises(pmwal.RecordTooLarge):
            action()
    batch.__exit__(pmwal.RecordTooLarge, pmwal.RecordTooLarge(), None)
    assert wal.append(b"after") == 2
    assert payloads(wal) == [b"before", b"after"]
    wal.close()


def test_batch_that_fits_record_by_record_but_not_together_is_refused(shm_place: Place) -> None:
    """Scenario 16: a batch larger than the ring is refused at once, even if the log may overwrite or wait."""
    wal = open_small(shm_place.path, on_full="overwrite", **shm_place.options)
    wal.append(b"before")
    data = bytes(superblock(shm_place.path).payload_max)
    with pytest.raises(pmwal.RecordTooLarge):
        wal.extend([data, data, b""])
    assert payloads(wal) == [b"before"]
    wal.close()


# -- 17


ROOMS = [
    *((STRICT, room) for room in (0, 8, HEADER - 8, HEADER, HEADER + 8, 64, 96, 104, 112, 128, 152, 160, 192)),
    *((PIPELINED, room) for room in (0, HEADER - 8, HEADER, HEADER + 8, 104)),
    *((DAX, room) for room in (0, 64, 128, 192)),
]


@pytest.mark.parametrize(("options", "room"), ROOMS, ids=lambda value: str(value) if isinstance(value, int) else value["ordering"])
def test_record_before_the_rings_end_fits_or_wraps(shm_dir: Path, options: dict[str, Any], room: int) -> None:
    """Scenario 17: no room, exactly a header, a byte more and less than needed; each record is read back and recovered."""
    align = 64 if options is DAX else 8
    base = None
    sizes = sorted({0, 1, *(size for delta in (-align - 1, -align, -1, 0, 1, align) if (size := room - HEADER + delta) > 0), 300})
    for size in sizes:
        path = shm_dir / f"{size}.wal"
        if base is None:
            wal = open_small(path, size=4096, **options)
            fill_to(wal, 4096 - room)
            kill(wal)
            base = path.read_bytes()
        path.write_bytes(base)
        wal = open_small(path, "r+", **options)
        first = wal.next_seq
        expected = [b"\xee" * size, b"second", b""]
        for data in expected:
            wal.append(data)
        head = wal._engine.state.head.position
        needed = record_size(size, align)
        start = place_record(4096 - room, needed, 4096)
        assert (4096 if needed > room else 4096 - room) == start
        assert expected == payloads(wal)
        bury(path)
        kill(wal)
        with pmwal.open(path, "r") as reader:
            assert expected == payloads(reader)
        wal = open_small(path, "r+", **options)
        assert [(first + index, data) for index, data in enumerate(expected)] == contents(wal)
        assert head == wal._engine.state.head.position
        wal.close()


@pytest.mark.parametrize("start", [0, 64, 2048, 4096 - 64])
def test_full_ring_is_never_read_as_empty(place: Place, start: int) -> None:
    """Scenario 17: records fill the ring to its last byte, from any ring offset."""
    wal = open_small(place.path, size=4096, align=64, **place.options)
    fill_to(wal, start)
    expected = []
    while wal.free:
        room = 4096 - wal._engine.state.head.position % 4096
        expected.append(b"%04d" % wal.next_seq * ((min(room, wal.free, 1024) - HEADER) // 4))
        wal.append(expected[-1])
    assert (0, expected) == (wal.free, payloads(wal))
    with pytest.raises(pmwal.WalFull):
        wal.append(b"")
    kill(wal)
    wal = open_small(place.path, **place.options)
    assert (0, expected) == (wal.free, payloads(wal))
    with pytest.raises(pmwal.WalFull):
        wal.append(b"")
    assert wal.next_seq == wal.truncate(before=wal.next_seq)
    assert (wal.free, payloads(wal)) == (4096, [])
    kill(wal)
    wal = open_small(place.path, **place.options)
    assert (wal.free, len(wal)) == (4096, 0)
    wal.append(b"again")
    assert payloads(wal) == [b"again"]
    wal.close()


def test_gap_at_the_rings_end_counts_as_used(shm_place: Place) -> None:
    """Scenario 17: a record that wraps needs room for the gap and itself; one byte too little is WalFull and stores nothing."""
    wal = open_small(shm_place.path, size=4096, **shm_place.options)
    fill_to(wal, 2048)
    wal.append(bytes(2048 - 200 - HEADER))
    assert wal.free == 2248
    wal.append(bytes(2000))
    assert wal.free == 0
    with pytest.raises(pmwal.WalFull):
        wal.append(b"")
    kill(wal)
    wal = open_small(shm_place.path, **shm_place.options)
    assert [len(data) for data in payloads(wal)] == [2048 - 200 - HEADER, 2000]
    assert wal.free == 0
    wal.close()


# -- 18


@CRASH_MEDIA
@pytest.mark.parametrize("room", [0, 64, 128, 448])
def test_crash_while_the_first_record_of_a_lap_is_stored(shm_dir: Path, options: dict[str, Any], room: int) -> None:
    """Scenario 18: writer, reader and recovery agree on the gap before the ring's end at every crash point."""

    def before(wal: Wal) -> None:
        fill_to(wal, 4096 - room - 512)
        wal.append(b"a" * (256 - HEADER))
        wal.append(b"b" * (256 - HEADER))

    operations: list[Any] = [
        lambda wal: wal.append(b"c" * 500),
        lambda wal: wal.append(b"d" * 20, commit=False),
        lambda wal: wal.append(b"e" * 30),
        lambda wal: wal.truncate(before=wal.next_seq - 2),
    ]
    trace = Trace.run(shm_dir / "test.wal", {**options, "size": 4096}, operations, before=[before])
    assert sweep(trace, shm_dir / "image.wal", options, seed=18, extra=6) > 30
    path = shm_dir / "test.wal"
    bury(path)
    with pmwal.open(path, "r") as reader:
        assert list(trace.marks[-1][1].items) == contents(reader)
    assert list(trace.marks[-1][1].items) == [(seq, reader_data(path, seq)) for seq in whole_records(path)]


def reader_data(path: Path, seq: int) -> bytes:
    """One payload, read from the file at the position that recovery found."""
    found, block = whole_records(path)[seq], superblock(path)
    start = file_offset(block, found.position) + HEADER
    return path.read_bytes()[start : start + found.header.length]


def old_record_before_the_end(wal: Wal) -> None:
    """Scenario 18a up to the rollback: 3 is kept; an old 4 lies just before the ring's end, with a gap of 56 bytes after it."""
    wal.append(bytes(1200))
    wal.append(bytes(1200))
    wal.append(b"3" * (4096 - 2 * record_size(1200, 8) - 256 - HEADER))
    wal.truncate(before=3)
    wal.append(b"old 4".ljust(200 - HEADER, b"."))
    assert wal._engine.state.head.position == 4096 - 56


@pytest.mark.parametrize("size", [250, 600, 1000])
def test_discarded_record_before_the_rings_end_does_not_hide_the_one_that_wrapped(place: Place, size: int) -> None:
    """Scenario 18a: the old 4, whole and with the right number at the right position, neither wins nor ends the scan."""
    wal = open_small(place.path, size=4096, align=8, **place.options)
    old_record_before_the_end(wal)
    wal.rollback(after=3)
    new = b"new 4".ljust(size, b"!")
    assert wal.append(new) == 4
    assert wal.append(b"new 5") == 5
    assert [new, b"new 5"] == payloads(wal)[1:]
    kill(wal)
    position = look(place.path).tail.position
    old = whole_records(place.path)[3].end
    raw = place.path.read_bytes()[file_offset(superblock(place.path), old) + HEADER :]
    assert raw.startswith(b"old 4"), "the test shows nothing unless the old record is still there"
    assert position < old
    for _ in range(2):
        wal = open_small(place.path, **place.options)
        assert [(4, new), (5, b"new 5")] == contents(wal)[1:]
        kill(wal)


@pytest.mark.parametrize("options", [STRICT, PIPELINED], ids=["strict", "pipelined"])
@pytest.mark.parametrize("size", [250, 1000])
def test_wrapped_replacement_of_a_discarded_record_survives_every_crash(shm_dir: Path, options: dict[str, Any], size: int) -> None:
    """Scenario 18a at every crash point, and in the other direction: first wrapped and discarded, then short and not wrapped."""
    operations: list[Any] = [
        lambda wal: wal.rollback(after=3),
        lambda wal: wal.append(b"new 4".ljust(size, b"!")),
        lambda wal: wal.append(b"new 5"),
        lambda wal: wal.rollback(after=3),
        lambda wal: wal.append(b"newest 4".ljust(100, b"!")),
        lambda wal: wal.append(b"newest 5".ljust(100, b"!")),
    ]
    settings = {**options, "size": 4096, "align": 8}
    trace = Trace.run(shm_dir / "test.wal", settings, operations, before=[old_record_before_the_end])
    assert sweep(trace, shm_dir / "image.wal", options, seed=18, extra=6) > 60


def old_record_that_wrapped(wal: Wal, size: int) -> None:
    """Discard an old 4 of this size at the next lap's start; a short new 4 before the ring's end replaces it."""
    wal.append(bytes(1200))
    wal.append(bytes(1200))
    wal.append(b"3" * (4096 - 2 * record_size(1200, 8) - 256 - HEADER))
    wal.truncate(before=3)
    wal.append(b"old 4".ljust(size, b"."))
    wal.rollback(after=3)
    wal.append(b"new 4")


@pytest.mark.parametrize("size", [250, 600])
@pytest.mark.parametrize("followed", [False, True], ids=["last", "followed"])
def test_damaged_record_is_never_replaced_by_a_discarded_one_that_wrapped(shm_dir: Path, size: int, followed: bool) -> None:
    """Scenario 18a with damage: the new 4 is damaged, the old 4 at the next lap's start whole; no read may return the old one."""
    path = shm_dir / "test.wal"
    wal = open_small(path, size=4096, align=8, **STRICT)
    old_record_that_wrapped(wal, size)
    if followed:
        wal.append(b"new 5")
    found = whole_records(path)
    assert found[4].position % 4096 == 4096 - 256
    assert b"old 4" in path.read_bytes()
    overwrite(path, file_offset(superblock(path), found[4].position) + HEADER, b"NEW")

    def read_by_number(log: Wal | pmwal.Reader) -> object:
        return log[4]

    def read_all(log: Wal | pmwal.Reader) -> object:
        return list(log)

    def read_on(log: Wal | pmwal.Reader) -> object:
        return list(log.read(start=4))

    with pmwal.open(path, "r") as reader:
        for log in (wal, reader):
            for read in (read_by_number, read_all, read_on):
                with pytest.raises(pmwal.CorruptWal):
                    read(log)
    kill(wal)
    report = pmwal.verify(path)
    assert (report.case, report.lost_first_seq) == ("R4", 4)


BOUNDS: dict[str, Callable[[Wal], object]] = {
    "truncate": lambda wal: wal.truncate(before=4),
    "rollback": lambda wal: wal.rollback(after=4),
}


@pytest.mark.parametrize("call", BOUNDS.values(), ids=BOUNDS.keys())
def test_bounds_are_never_set_at_a_discarded_record_that_wrapped(shm_dir: Path, call: Callable[[Wal], object]) -> None:
    """Scenario 18a with damage: a slot must not name the old 4's position, which is past the end of the log."""
    path = shm_dir / "test.wal"
    wal = open_small(path, size=4096, align=8, **STRICT)
    old_record_that_wrapped(wal, 600)
    wal.append(b"new 5")
    overwrite(path, file_offset(superblock(path), whole_records(path)[4].position) + HEADER, b"NEW")
    with pytest.raises(pmwal.CorruptWal):
        call(wal)
    assert (wal.first_seq, wal.next_seq) == (3, 6)
    kill(wal)
    assert pmwal.verify(path).case == "R4", "not R8: the pointer still says what can be"


def test_record_shorter_than_the_gap_at_the_next_laps_start_does_not_follow(shm_dir: Path) -> None:
    """Scenario 18a: it would have fitted before the ring's end, so it is not the next record, with any number or epoch."""
    path = shm_dir / "test.wal"
    wal = open_small(path, size=4096, align=8, **STRICT)
    fill_to(wal, 4096 - 256)
    wal.append(bytes(56 - HEADER))
    wal.append(b"after")
    kill(wal)
    block, end, epoch = superblock(path), look(path).end, look(path).report.epoch
    raw = path.read_bytes()
    assert 4096 - end.position == 144
    for size, follows in ((80, False), (144 - HEADER, False), (145 - HEADER, True)):
        path.write_bytes(raw)
        header = Header(0, size, end.next_seq, end.position, 0, epoch, 0, 0, 0, 1)
        overwrite(path, file_offset(block, 4096), encode_header(header, bytes(size), block.uuid, 4096) + bytes(size))
        assert follows == (look(path).end.next_seq == end.next_seq + 1), size


@CRASH_MEDIA
@pytest.mark.parametrize("room", [0, 64, 128])
def test_lost_first_of_a_batch_whose_second_wrapped_is_a_torn_tail(shm_dir: Path, options: dict[str, Any], room: int) -> None:
    """Scenario 18b: the second is whole at the next lap's start; that is no corruption, and nothing of the batch is kept."""
    path = shm_dir / "test.wal"
    wal = open_small(path, size=4096, **options)
    fill_to(wal, 4096 - room - 192)
    wal.append(b"kept".ljust(128 - HEADER))
    engine = wal._engine
    with engine.writing, engine.guard:
        engine.store([b"1" * (64 + room - HEADER), b"2" * 200, b"3" * 100], [0, 0, 0])
    batch = engine.state.head
    kill(wal)
    block, whole = superblock(path), path.read_bytes()
    found = whole_records(path)
    assert found[batch.next_seq - 2].position % 4096 == 0
    first = found[batch.next_seq - 3]
    for damaged in (bytes(first.end - first.position), b"\xff" * (first.end - first.position)):
        path.write_bytes(whole)
        overwrite(path, file_offset(block, first.position), damaged)
        wal = open_small(path, **options)
        assert (wal.recovery.case, wal.recovery.dropped_records) == ("R3", 2)
        assert batch.next_seq - 3 == wal.next_seq
        assert [b"kept".ljust(128 - HEADER)] == payloads(wal)
        wal.append(b"4" * (64 + room - HEADER))
        kill(wal)
        wal = open_small(path, **options)
        assert len(wal) == 2, "the second and third of the dropped batch must not follow a new record of the first one's size"
        wal.close()


@CRASH_MEDIA
def test_batch_over_the_rings_end_is_kept_or_dropped_whole_at_every_crash(shm_dir: Path, options: dict[str, Any]) -> None:
    """Scenario 18b: the same at every crash point."""

    def before(wal: Wal) -> None:
        fill_to(wal, 4096 - 256)
        wal.append(b"kept")

    operations: list[Any] = [
        lambda wal: wal.extend([b"1" * 60, b"2" * 200, b"3" * 100]),
        lambda wal: wal.append(b"after"),
    ]
    trace = Trace.run(shm_dir / "test.wal", {**options, "size": 4096}, operations, before=[before])
    assert sweep(trace, shm_dir / "image.wal", options, seed=18, extra=8) > 20


def test_small_log_has_the_geometry_that_the_tests_rely_on(shm_dir: Path) -> None:
    """The tests rely on two control pages, a ring of 16 KiB, and consecutive offsets."""
    path = shm_dir / "test.wal"
    open_small(path, **STRICT).close()
    block = superblock(path)
    offsets = [0, LIVE_OFFSET, CONTROL_OFFSET, block.copy_offset, block.ring_offset, block.file_size]
    assert [high - low for low, high in pairwise(offsets)] == [PAGE, PAGE, SMALL_CONTROL, PAGE, SMALL_RING]
    wal = open_small(path, **STRICT)
    assert state_of(wal).first_seq == 1
    wal.close()
