"""Framing and geometry (scenarios 15 to 20): lengths, sizes, the ring's end, flush ranges, limits."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import pmwal
from conftest import Place
from images import Trace, bury, state_of, sweep
from pmwal.format.layout import (
    CONTROL_OFFSET,
    EPOCH_MAX,
    GENERATION_MAX,
    HEADER,
    LENGTH_MAX,
    LINE,
    LIVE_OFFSET,
    PAGE,
    POSITION_MAX,
    SEQ_MAX,
    SLOT_CLEAN,
    Header,
    Slot,
    Superblock,
    encode_header,
    encode_slot,
    place_record,
    record_size,
    slot_index,
    slot_offset,
)
from pmwal.storage.mapping import Mapping
from pmwal.storage.medium import Medium
from pmwal.writing.wal import Wal
from support import (
    SMALL_CONTROL,
    SMALL_RING,
    BarrierRecorder,
    Step,
    contents,
    file_offset,
    kill,
    look,
    open_small,
    overwrite,
    payloads,
    superblock,
    whole_records,
    write_slot,
)

DAX: dict[str, Any] = {"medium": "emulated-dax", "ordering": "strict"}
STRICT: dict[str, Any] = {"medium": "file", "ordering": "strict"}
PIPELINED: dict[str, Any] = {"medium": "file", "ordering": "pipelined"}
CRASH_MEDIA = pytest.mark.parametrize("options", [DAX, STRICT, PIPELINED], ids=["lines", "pages", "pipelined"])


# -- 15


def forge_length(path: Path, seq: int, length: int) -> None:
    """Give a record another length and a checksum that is right for as many of the bytes as there are."""
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
    """Scenario 15: a length is checked before it is used, and nothing is allocated for it."""
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
    # A record that now ends inside the third is whole for itself: the damage shows where the third is missing.
    assert (report.case, report.lost_first_seq in (2, 3)) == ("R4", True)
    with pytest.raises(pmwal.CorruptWal):
        open_small(path, **STRICT)


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())
def test_forged_length_past_the_pointer_ends_the_log_there(shm_dir: Path, length: int) -> None:
    """Scenario 15 in a torn tail: what cannot be a record is dropped, whatever its length says."""
    path = shm_dir / "test.wal"
    wal = open_small(path, **STRICT)
    wal.append(b"1" * 100)
    for number in (2, 3):
        wal.append(b"%d" % number * 100, commit=False)
    kill(wal)
    forge_length(path, 2, length)
    wal = open_small(path, **STRICT)
    # The checksum was forged as well: where the record fits, it is as whole as any that the program stored.
    assert wal.next_seq in (2, 3)
    assert [seq for seq, _ in contents(wal)][:1] == [1]
    if HEADER + length > SMALL_RING // 2:
        assert (wal.next_seq, wal.recovery.case) == (2, "R3")
    wal.append(b"next")
    wal.close()
    assert pmwal.verify(path).case == "R1"


def test_length_past_the_ring_near_its_end_is_not_believed(shm_dir: Path) -> None:
    """Scenario 15: a record's room ends at the ring's end, not a lap later."""
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
    """Scenario 16: empty, zeros, ones, and the largest; after a kill and after a close."""
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
    """Scenario 16: what an empty or erased medium looks like is a payload like any other."""
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
    """Scenario 16: by append, extend, reserve and inside a batch; nothing of it is stored."""
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
    """Scenario 16: more than the ring holds is too large at once, also for a log that may overwrite or wait."""
    wal = open_small(shm_place.path, on_full="overwrite", **shm_place.options)
    wal.append(b"before")
    data = bytes(superblock(shm_place.path).payload_max)
    with pytest.raises(pmwal.RecordTooLarge):
        wal.extend([data, data, b""])
    assert payloads(wal) == [b"before"]
    wal.close()


# -- 17


def fill_to(wal: Wal, position: int) -> None:
    """Append records until the log ends at this position, and empty it, so that nothing else is in the way."""
    block = wal._engine.block
    while wal._engine.state.head.position < position:
        left = position - wal._engine.state.head.position
        size = left if left <= block.capacity // 2 else min(left - record_size(0, block.alignment), block.capacity // 4)
        assert size >= HEADER, "no record can end there"
        wal.append(bytes(size // block.alignment * block.alignment - HEADER))
        wal.truncate(before=wal.next_seq)
    assert position == wal._engine.state.head.position


ROOMS = [
    *((STRICT, room) for room in (0, 8, HEADER - 8, HEADER, HEADER + 8, 64, 96, 104, 112, 128, 152, 160, 192)),
    *((PIPELINED, room) for room in (0, HEADER - 8, HEADER, HEADER + 8, 104)),
    *((DAX, room) for room in (0, 64, 128, 192)),
]


@pytest.mark.parametrize(("options", "room"), ROOMS, ids=lambda value: str(value) if isinstance(value, int) else value["ordering"])
def test_record_before_the_rings_end_fits_or_wraps(shm_dir: Path, options: dict[str, Any], room: int) -> None:
    """Scenario 17: no room, exactly a header, a byte more and less than needed; each is read back and recovered."""
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
    """Scenario 17: records that fill the ring to its last byte, from any place in it."""
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
    """Scenario 17: a record that would wrap needs the gap and itself; a byte too little is WalFull and stores nothing."""
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
    """Scenario 18: the gap before the ring's end means the same to writer, reader and recovery at every crash point."""

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
    """One payload, read from the file by the place that recovery found it in."""
    found, block = whole_records(path)[seq], superblock(path)
    start = file_offset(block, found.position) + HEADER
    return path.read_bytes()[start : start + found.header.length]


def old_record_before_the_end(wal: Wal) -> None:
    """Scenario 18a up to the rollback: 3 is kept; an old 4 stands just before the ring's end, a gap of 56 bytes after it."""
    wal.append(bytes(1200))
    wal.append(bytes(1200))
    wal.append(b"3" * (4096 - 2 * record_size(1200, 8) - 256 - HEADER))
    wal.truncate(before=3)
    wal.append(b"old 4".ljust(200 - HEADER, b"."))
    assert wal._engine.state.head.position == 4096 - 56


@pytest.mark.parametrize("size", [250, 600, 1000])
def test_discarded_record_before_the_rings_end_does_not_hide_the_one_that_wrapped(place: Place, size: int) -> None:
    """Scenario 18a: the old 4, whole and with the right number in the right place, neither wins nor ends the scan."""
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
    """Scenario 18a at every crash point, and once more in the other direction: wrapped and discarded, then short and here."""
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
    """An old 4 of this size at the next lap's start, discarded; a short new 4 before the ring's end instead."""
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
    """Scenario 18a with damage: the new 4 is damaged, the old 4 at the next lap's start whole; no read may hand out the old."""
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
    """Scenario 18a with damage: a slot must not name the old 4's place, which is past the end of the log."""
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
    """Scenario 18a: it would have fitted before the ring's end, so whatever its number and epoch it is not the next one."""
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
    """Scenario 18b: the second stands whole at the next lap's start; that is no corruption, and none of the batch is kept."""
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
    """Scenario 18b at every crash point."""

    def before(wal: Wal) -> None:
        fill_to(wal, 4096 - 256)
        wal.append(b"kept")

    operations: list[Any] = [
        lambda wal: wal.extend([b"1" * 60, b"2" * 200, b"3" * 100]),
        lambda wal: wal.append(b"after"),
    ]
    trace = Trace.run(shm_dir / "test.wal", {**options, "size": 4096}, operations, before=[before])
    assert sweep(trace, shm_dir / "image.wal", options, seed=18, extra=8) > 20


# -- 19


def test_barrier_covers_every_byte_for_every_start_and_length(shm_dir: Path) -> None:
    """Scenario 19: ranges that begin anywhere in a line, near and over the ends of pages, of every length to three lines."""
    path = shm_dir / "plain"
    path.write_bytes(bytes(4 * PAGE))
    seam = BarrierRecorder()
    fd = os.open(path, os.O_RDWR)
    mapping = Mapping(fd, 4 * PAGE, Medium("file", "tmpfs"), seam, writable=True)
    try:
        for base in (0, PAGE - 2 * LINE, PAGE - LINE, PAGE, 3 * PAGE - LINE):
            for start in range(base, base + LINE):
                for length in (*range(1, 70), 127, 128, 129, 191, 192, 193, PAGE - 1, PAGE, PAGE + 1):
                    stop = min(start + length, 4 * PAGE)
                    seam.events.clear()
                    mapping.barrier((start, stop))
                    (flush,) = seam.events
                    assert flush.offset <= start, (start, length)
                    assert flush.offset + flush.length >= stop, (start, length)
                    assert (flush.offset % PAGE, flush.length % PAGE) == (0, 0)
                    assert flush.length < stop - start + 2 * PAGE, "not more pages than were touched"
    finally:
        mapping.close()


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_flushes_cover_every_stored_byte_before_the_acknowledgement(shm_dir: Path, ordering: str) -> None:
    """Scenario 19 through append: every start mod 64 that there is, every length to two lines, twice over the ring's end."""
    seam = BarrierRecorder()
    path = shm_dir / "test.wal"
    wal = open_small(path, seam=seam, medium="file", ordering=ordering, on_full="overwrite", align=8)
    starts = set()
    stored = 0
    for length in [*range(130), *range(130, 0, -1), *range(0, 130, 3), *range(1, 130, 7), 1000, 2000, *range(1000, 1060)]:
        seam.events.clear()
        wal.append(b"\x5a" * length)
        pending: list[Step] = []
        for event in seam.events:
            if event.name == "store" and not LIVE_OFFSET <= event.offset < LIVE_OFFSET + PAGE:
                pending.append(event)
                starts.add(event.offset % LINE)
                stored += event.length
            elif event.name == "flush":
                stop = event.offset + event.length
                pending = [one for one in pending if not (event.offset <= one.offset and one.offset + one.length <= stop)]
        assert pending == [], f"acknowledged a record of {length} bytes of which not all were flushed"
    assert {0, 8, 16, 24, 32, 40, 48, 56} == starts
    assert stored > 2 * SMALL_RING
    wal.close()


def test_one_commit_flushes_all_that_was_stored_since_the_last_over_the_rings_end(shm_dir: Path) -> None:
    """Scenario 19 for many appends under one commit: pages before the ring's end and at its start."""
    for fill in (SMALL_RING - 5 * PAGE // 2, SMALL_RING - 3000, SMALL_RING - 104, SMALL_RING - 8):
        seam = BarrierRecorder()
        path = shm_dir / f"{fill}.wal"
        wal = open_small(path, seam=seam, commit="manual", **STRICT)
        fill_to(wal, fill)
        seam.events.clear()
        for _ in range(60):
            wal.append(b"x" * 100)
        assert "flush" not in [event.name for event in seam.events]
        ring = superblock(path).ring_offset
        wal.commit()
        touched = {
            page
            for event in seam.events
            if event.name == "store" and event.offset >= ring
            for page in range(event.offset // PAGE, (event.offset + event.length - 1) // PAGE + 1)
        }
        flushed = {
            page
            for event in seam.events
            if event.name == "flush"
            for page in range(event.offset // PAGE, (event.offset + event.length) // PAGE)
        }
        assert touched <= flushed
        assert len(flushed - touched - {CONTROL_OFFSET // PAGE, CONTROL_OFFSET // PAGE + 1}) <= 1, "only the gap may add a page"
        wal.close()


# -- 20


def jump(path: Path, **fields: int) -> None:
    """Let an empty, cleanly closed log go on from other numbers, as if it had come that far."""
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
    """Put a slot into its place without looking at the log, which is not whole until a whole turn is there."""
    index = slot_index(slot.generation, block.control_pages)
    overwrite(path, slot_offset(index), encode_slot(slot, block.uuid, index))


def jumped_log(path: Path, options: dict[str, Any], **fields: int) -> Wal:
    """An empty log that has come as far as ``fields`` say."""
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
    """Append until the log says that it is full, which it must before the items end."""
    stored = []
    for data in items:
        try:
            stored.append((wal.append(data), data))
        except pmwal.WalFull:
            return stored
    raise AssertionError("never full")


def test_last_number_is_refused_before_it_wraps(place: Place) -> None:
    """Scenario 20: near 2^64 append, extend and reserve say WalFull; what is there stays readable, closes and opens."""
    wal = jumped_log(place.path, place.options, seq=SEQ_MAX - 4)
    with pytest.raises(pmwal.WalFull):
        wal.extend([b"x"] * 8)
    stored = append_until_full(wal, (b"%d" % number for number in range(8)))
    with pytest.raises(pmwal.WalFull), wal.reserve(1):
        pass
    assert len(stored) > 2
    assert stored[-1][0] <= SEQ_MAX
    assert stored == contents(wal)
    kill(wal)
    for _ in range(2):
        wal = open_small(place.path, **place.options)
        assert stored == contents(wal)
        with pytest.raises(pmwal.WalFull):
            wal.append(b"one more")
        wal.close()
    assert pmwal.verify(place.path).case == "R1"


@pytest.mark.parametrize("size", [0, 100, 1000])
def test_last_position_is_refused_before_it_wraps(place: Place, size: int) -> None:
    """Scenario 20: near 2^63 append says WalFull; no position in the file is past the limit."""
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
    """Scenario 20: a log that crosses 2^31, 2^32, 2^53 or 2^62 bytes is killed on the way and goes on."""
    wal = jumped_log(shm_place.path, {**shm_place.options}, position=position - 512)
    for number in range(8):
        wal.append(b"%d" % number * 100)
        kill(wal)
        wal = open_small(shm_place.path, **shm_place.options)
        assert [b"%d" % before * 100 for before in range(number + 1)] == payloads(wal)
    assert position < wal._engine.state.head.position
    wal.close()


def test_last_epoch_is_refused_before_it_wraps(shm_place: Place) -> None:
    """Scenario 20: the last epochs are used up by opens; then open says so, and the log stays readable."""
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
    """Scenario 20: when the slots' numbers are used up a call says so, and the log stays what it was."""
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
    """Scenario 20: a record or slot past the limits, as a bug or an enemy would write it, never makes numbers go backwards."""
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


def test_small_log_has_the_geometry_that_the_tests_rely_on(shm_dir: Path) -> None:
    """Two control pages, a ring of 16 KiB, and consecutive offsets."""
    path = shm_dir / "test.wal"
    open_small(path, **STRICT).close()
    block = superblock(path)
    offsets = [0, LIVE_OFFSET, CONTROL_OFFSET, block.copy_offset, block.ring_offset, block.file_size]
    assert [high - low for low, high in pairwise(offsets)] == [PAGE, PAGE, SMALL_CONTROL, PAGE, SMALL_RING]
    wal = open_small(path, **STRICT)
    assert state_of(wal).first_seq == 1
    wal.close()
