"""Finding a record by its number in a live log: fast by the hints of the writer, and right whatever the hints say."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import pmwal
from onlookers import Onlookers
from pmwal.format.control import commit_bounds, read_slots
from pmwal.format.layout import (
    CONTROL_SIZE_DEFAULT,
    LIVE_OFFSET,
    LIVE_OPEN,
    LIVE_OPEN_OFFSET,
    LIVE_SEEK_OFFSET,
    LIVE_SEEK_POINT,
    PAGE,
    SEEK_POINTS,
    decode_seek_point,
    encode_seek_point,
    seek_point_offset,
    seek_step,
)
from pmwal.format.ring import CHUNK
from pmwal.storage.mapping import Mapping
from pmwal.testing import Step
from support import BarrierRecorder, contents, kill, open_small, overwrite, superblock, whole_records

pytestmark = pytest.mark.both_engines

SEED = random.randrange(1 << 32)
KIB, MIB = 1 << 10, 1 << 20


@contextlib.contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of all loads of log files in the block."""
    sizes: list[int] = []
    load = Mapping.load

    def counting(self: Mapping, offset: int, length: int) -> bytes:
        sizes.append(length)
        return load(self, offset, length)

    with monkeypatch.context() as patch:
        patch.setattr(Mapping, "load", counting)
        yield sizes


def seek_points(path: Path) -> dict[int, tuple[int, int]]:
    """The seek points that count, by their index: position and number."""
    page, block = path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + PAGE], superblock(path)
    at = LIVE_OPEN_OFFSET - LIVE_OFFSET
    open_id = page[at : at + LIVE_OPEN.field_size("id")]
    found = {}
    for index in range(SEEK_POINTS):
        at = seek_point_offset(index) - LIVE_OFFSET
        point = decode_seek_point(page[at : at + LIVE_SEEK_POINT.size], block.uuid, open_id, index)
        if point is not None:
            found[index] = point
    return found


# -- fast


def _filled(path: Path, ordering: str) -> pmwal.Wal:
    """15 of 16 MiB in records of about 8 KiB, the second half in commits of their own."""
    wal = pmwal.open(path, size="16MiB", ordering=ordering, commit="manual")
    for number in range(120):
        wal.extend([b"%d" % (1000 + 16 * number + place) * 2000 for place in range(16)])
        if number >= 60:
            wal.commit()
    wal.commit()
    return wal


def _rolled_back(wal: pmwal.Wal) -> pmwal.Wal:
    for _ in range(3):
        wal.rollback(after=wal.next_seq - 80)
        wal.extend([b"new" * 2000] * 70)
        wal.commit()
    return wal


def _reopened(wal: pmwal.Wal) -> pmwal.Wal:
    wal.close()
    return pmwal.open(wal.path, commit="manual")


def _on_a_later_lap(wal: pmwal.Wal) -> pmwal.Wal:
    for number in range(12):
        wal.truncate(before=wal.first_seq + 160)
        wal.extend([b"%d" % number * 7000] * 100)
    wal.commit()
    return wal


STATES: dict[str, Callable[[pmwal.Wal], pmwal.Wal]] = {
    "written": lambda wal: wal,
    "rolled-back": _rolled_back,
    "reopened": _reopened,
    "on-a-later-lap": _on_a_later_lap,
    "rolled-back-and-reopened": lambda wal: _reopened(_rolled_back(wal)),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_record_is_found_in_a_small_part_of_the_log(path: Path, monkeypatch: pytest.MonkeyPatch, ordering: str, state: str) -> None:
    """A new reader loads the slots, the page, and not much more than one step of the ring, wherever the record is."""
    wal = STATES[state](_filled(path, ordering))
    least = CONTROL_SIZE_DEFAULT + seek_step(16 * MIB) + 4 * CHUNK
    assert least < 1500 * KIB
    for part in (0.01, 0.1, 0.5, 0.9, 0.999):
        seq = wal.first_seq + int(part * len(wal))
        for find in (
            lambda reader, seq=seq: reader[seq],
            lambda reader, seq=seq: next(reader.read(start=seq)),
            lambda reader, seq=seq: next(reader.follow(seq, timeout=0)),
            lambda reader, cursor=wal[seq - 1].cursor: next(reader.read(cursor)),
        ):
            with pmwal.open(path, "r") as reader, counted(monkeypatch) as loaded:
                assert find(reader) == wal[seq]
            assert sum(loaded) < 2 * least
    wal.close()


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_writer_finds_a_record_after_it_has_reopened_the_log(path: Path, monkeypatch: pytest.MonkeyPatch, ordering: str) -> None:
    """Recovery has passed every record, so the writer's index is as dense as before."""
    wal = _reopened(_filled(path, ordering))
    for part in (0.01, 0.1, 0.5, 0.9, 0.999):
        seq = wal.first_seq + int(part * len(wal))
        with counted(monkeypatch) as loaded:
            assert wal[seq].seq == seq
        assert sum(loaded) < 2 * CHUNK
    wal.close()


def test_reader_keeps_its_place_when_the_writer_reopens_the_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next record follows the last one read: nothing is looked for. The slots are loaded once, for the epochs they name."""
    wal = _filled(path, "strict")
    with pmwal.open(path, "r") as reader:
        seq = len(wal) // 2
        assert reader[seq].seq == seq
        wal = _reopened(wal)
        with counted(monkeypatch) as loaded:
            assert next(reader.read(start=seq + 1)).seq == seq + 1
        assert sum(loaded) < CONTROL_SIZE_DEFAULT + CONTROL_SIZE_DEFAULT // 2 + CHUNK
    wal.close()


def test_reader_remembers_what_it_has_walked_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look-up nearby needs no hints, whether it is before or after the first."""
    wal = _filled(path, "pipelined")
    with pmwal.open(path, "r") as reader:
        assert reader[1500].seq == 1500
        assert reader[500].seq == 500
        for seq in (500, 499, 1500, 1495):
            with counted(monkeypatch) as loaded:
                assert reader[seq].seq == seq
            assert sum(loaded) < CHUNK + 128 * KIB
    wal.close()


# -- which records have points


def _steps_of(path: Path) -> dict[int, tuple[int, int]]:
    """The points that the records of a log without a gap call for: the first of the lap, and each that reaches another step."""
    block, expected = superblock(path), {}
    step = seek_step(block.capacity)
    for seq, found in whole_records(path).items():
        start, end = found.position % block.capacity, found.position % block.capacity + found.end - found.position
        if start == 0:
            expected[0] = found.position, seq
        elif end // step > start // step:
            expected[end // step] = found.position, seq
    return expected


@pytest.mark.parametrize("size", [64 * KIB, 700 * KIB, 4 * MIB])
def test_points_are_spread_over_the_ring(path: Path, size: int) -> None:
    """Each step has one, whichever call stores the record that reaches it."""
    with pmwal.open(path, size=size, commit="manual") as wal:
        seed = random.Random(7)
        while wal.next_seq < 3 or wal.free > size // 10:
            payload = seed.randbytes(seed.randrange(1, size // 200))
            call = seed.randrange(4)
            if call == 0:
                wal.append(payload)
            elif call == 1:
                wal.extend([payload] * 3)
            elif call == 2:
                with wal.batch() as batch:
                    batch.append(payload)
                    batch.append(b"")
            else:
                with wal.reserve(len(payload)) as view:
                    view[:] = payload
        wal.commit()
        expected = _steps_of(path)
        assert seek_points(path) == expected
        assert len(expected) > 0.8 * size // seek_step(size)
        steps = sorted(position for position, _ in expected.values())
        assert max(after - before for before, after in pairwise(steps)) < 2 * seek_step(size)


@pytest.mark.native_engine
def test_both_engines_store_the_same_points(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls leave the same points, over laps, rollbacks, truncates and opens; without a seam, as programs run."""
    kept = []
    for engine in ("native", "python"):
        monkeypatch.setenv("PMWAL_ENGINE", engine)
        log, points = path.with_name(f"{engine}.wal"), []
        rng = random.Random(SEED)
        wal = pmwal.open(log, size="128KiB", on_full="overwrite")
        for _ in range(150):
            _change(wal, rng)
            points.append(seek_points(log))
            if rng.randrange(30) == 0:
                wal.close()
                wal = pmwal.open(log, on_full="overwrite")
                points.append(seek_points(log))
        wal.close()
        kept.append(points)
    assert kept[0] == kept[1], f"seed {SEED}"
    assert max(len(points) for points in kept[0]) > 5


def _change(wal: pmwal.Wal, rng: random.Random) -> None:
    """Some call that changes the log."""
    call, size = rng.randrange(10), rng.choice((0, 30, 300, 3000, 9000))
    if call < 4:
        wal.append(rng.randbytes(size), commit=rng.choice((None, False)))
    elif call < 7:
        wal.extend([rng.randbytes(rng.randrange(size + 1)) for _ in range(rng.randrange(1, 5))])
    elif call == 7:
        with wal.batch() as batch:
            for _ in range(3):
                batch.append(rng.randbytes(size))
    elif call == 8:
        wal.rollback(after=wal.next_seq - 1 - min(len(wal), rng.choice((0, 1, 5, 50))))
    else:
        wal.truncate(before=wal.first_seq + min(len(wal), rng.choice((1, 10, 100))))


def test_points_of_discarded_records_are_erased_before_the_slots(path: Path) -> None:
    """A rollback erases them before anything says that it took place."""
    seam = BarrierRecorder()
    with open_small(path, seam=seam, size=64 * KIB) as wal:
        wal.extend([b"%d" % number * 100 for number in range(100)])
        assert max(seq for _, seq in seek_points(path).values()) > 60
        before_slots: list[int] = []

        def note(step: Step) -> None:
            if step.name == "store" and step.offset >= LIVE_OFFSET + PAGE:
                before_slots.append(max(seq for _, seq in seek_points(path).values()))

        seam.before = note
        wal.rollback(after=60)
        seam.before = None
        assert before_slots
        assert max(before_slots) <= 60


# -- right


def check_by_number(path: Path, expected: dict[int, bytes]) -> None:
    """A new reader finds each record by its number, in any order, and no other."""
    numbers = list(expected)
    random.Random(SEED).shuffle(numbers)
    with pmwal.open(path, "r") as reader:
        for seq in numbers:
            assert reader[seq].data == expected[seq], f"record {seq}, seed {SEED}"
    for seq in numbers[:8]:
        with pmwal.open(path, "r") as reader:
            assert next(reader.read(start=seq)).data == expected[seq], f"record {seq}, seed {SEED}"
    if expected:
        with pmwal.open(path, "r") as reader, pytest.raises(IndexError):
            reader[max(expected) + 1]


@pytest.mark.usefixtures("hints_first")
@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_each_number_is_found_through_a_random_history(path: Path, ordering: str) -> None:
    """Laps, rollbacks, truncates, clean and unclean ends, and each engine in turn: what a walk finds, and nothing else."""
    rng = random.Random(SEED)
    wal = open_small(path, size=128 * KIB, ordering=ordering, on_full="overwrite")
    for turn in range(80):
        _change(wal, rng)
        if turn % 4 == 0:
            wal.commit()
            check_by_number(path, dict(contents(wal)))
        if rng.randrange(20) == 0:
            wal.commit()
            wal.close() if rng.randrange(2) else kill(wal)
            os.environ["PMWAL_ENGINE"] = rng.choice(("native", "python"))  # the fixture puts it back
            wal = open_small(path, size=None, ordering=ordering, on_full="overwrite")
    wal.close()


def test_commit_that_an_epoch_before_the_last_has_discarded_is_no_hint(path: Path) -> None:
    """Its number is below the last epoch's first: only the epoch between tells that it is gone."""
    with pmwal.open(path, size="64KiB", ordering="strict") as wal:
        for number in range(1, 61):
            wal.append(b"discarded %d" % number + bytes(700))  # a slot names each
        wal.rollback(after=20)
        wal.extend([b"live %d" % number for number in range(21, 62)])
        wal.rollback(after=60)
        engine = wal._engine
        bounds = list(commit_bounds(read_slots(engine.mapping.load, engine.block, None), 1, 100))
        ends = {(found.end, seq + 1) for seq, found in whole_records_beside(path).items()}
        assert {bound.next_seq for bound in bounds} == {*range(2, 22), 61}
        assert set(bounds) <= ends


@pytest.fixture
def discarding(path: Path) -> Iterator[tuple[pmwal.Wal, dict[int, bytes], dict[int, tuple[int, int]]]]:
    """A writer after rollbacks, whose ring has whole records that were discarded; the live ones, and all points it ever stored."""
    wal = pmwal.open(path, size="64KiB", ordering="strict")
    stored: dict[int, tuple[int, int]] = {}
    for turn in range(5):
        wal.extend([b"%d.%d" % (turn, number) * 60 for number in range(80 - 10 * turn)])
        stored |= {len(stored) + index: point for index, point in seek_points(path).items()}
        wal.rollback(after=20 + turn)
        wal.append(b"other" * turn)
    wal.extend([b"last%d" % number for number in range(40)])
    page = path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + PAGE]
    yield wal, dict(contents(wal)), stored
    overwrite(path, LIVE_OFFSET, page)
    wal.close()


Discarding = tuple[pmwal.Wal, dict[int, bytes], dict[int, tuple[int, int]]]


@pytest.mark.usefixtures("hints_first")
def test_each_byte_of_the_points_may_be_wrong(path: Path, discarding: Discarding) -> None:
    """A flipped byte costs time and nothing else."""
    _, expected, _ = discarding
    whole = path.read_bytes()[LIVE_SEEK_OFFSET : LIVE_OFFSET + PAGE]
    last = max(expected)
    rng = random.Random(SEED)
    for index in seek_points(path):
        for byte in range(rng.randrange(2), LIVE_SEEK_POINT.size, 2):
            at = seek_point_offset(index) - LIVE_SEEK_OFFSET + byte
            overwrite(path, LIVE_SEEK_OFFSET + at, bytes([whole[at] ^ rng.randrange(1, 256)]))
            with pmwal.open(path, "r") as reader:
                assert reader[last].data == expected[last]
            overwrite(path, LIVE_SEEK_OFFSET + at, whole[at : at + 1])
    for _ in range(8):
        overwrite(path, LIVE_SEEK_OFFSET, rng.randbytes(len(whole)))
        check_by_number(path, expected)


@pytest.mark.usefixtures("hints_first")
def test_forged_points_do_not_mislead(path: Path, discarding: Discarding) -> None:
    """With a right checksum, a point may name a discarded record, bytes inside of one, or no position at all."""
    _, expected, stored = discarding
    block, rng = superblock(path), random.Random(SEED)
    at = LIVE_OPEN_OFFSET
    open_id = path.read_bytes()[at : at + LIVE_OPEN.field_size("id")]
    places = [*stored.values(), *((record.position, seq) for seq, record in whole_records_beside(path).items())]
    assert {seq for _, seq in stored.values()} & expected.keys()
    for _ in range(15):
        for index in range(SEEK_POINTS):
            position, seq = rng.choice(places)
            kind = rng.randrange(6)
            if kind == 0:
                seq = rng.choice(list(expected))
            elif kind == 1:
                position += rng.choice((-8, 8, 1, 64 * KIB, 1 << 62))
            elif kind == 2:
                position = rng.choice((0, (1 << 64) - 1, 1 << 63, (1 << 63) - 8))
            point = encode_seek_point(position % (1 << 64), seq, block.uuid, open_id, index)
            overwrite(path, seek_point_offset(index), point)
        check_by_number(path, expected)


def whole_records_beside(path: Path) -> dict[int, Any]:
    """Every whole record of a log that is open for writing, as in a copy of it."""
    copy = path.with_name("copy.wal")
    copy.write_bytes(path.read_bytes())
    return dict(whole_records(copy))


@pytest.mark.usefixtures("hints_first")
def test_damage_before_and_after_a_point_is_reported_once_and_truly(path: Path) -> None:
    """A record that is damaged is an error when it is read; those past it are found by the points all the same."""
    with open_small(path, size=64 * KIB) as wal:
        wal.extend([b"%d" % number * 80 for number in range(200)])
        expected, records = dict(contents(wal)), whole_records_beside(path)
        block = superblock(path)
        points = sorted(seq for _, seq in seek_points(path).values())
        for seq in (points[3], points[3] + 5):
            at = block.ring_offset + records[seq].position % block.capacity + 50
            byte = path.read_bytes()[at : at + 1]
            overwrite(path, at, bytes([byte[0] ^ 1]))
            with pmwal.open(path, "r") as reader:
                assert reader[points[4] + 1].data == expected[points[4] + 1]
                with pytest.raises(pmwal.CorruptWal) as caught:
                    reader[seq]
                assert (caught.value.first_seq, caught.value.last_seq) == (seq, seq)
            overwrite(path, at, byte)
        check_by_number(path, expected)


# -- a writer that is stopped


@pytest.mark.usefixtures("hints_first")
@pytest.mark.parametrize("operation", ["extend", "rollback-extend", "truncate", "reopen"])
@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_each_number_is_found_wherever_the_writer_is_stopped(path: Path, ordering: str, operation: str) -> None:
    """Before and after each store and flush, a look-up by number finds what a walk finds."""
    seam = BarrierRecorder()
    wal = open_small(path, seam=seam, medium="file", ordering=ordering, size=64 * KIB, on_full="overwrite")
    for turn in range(4):
        wal.extend([b"%d.%d" % (turn, number) * (100 + 10 * turn) for number in range(30)])
        wal.rollback(after=wal.next_seq - 10)
    stops = 0

    def look(_: Step) -> None:
        nonlocal stops
        stops += 1
        onlookers.look()

    with Onlookers(path) as onlookers:
        seam.before = seam.after = look
        if operation == "rollback-extend":
            wal.rollback(after=wal.next_seq - 30)
            wal.extend([b"other%d" % number * 70 for number in range(12)])
        elif operation == "extend":
            wal.extend([b"new%d" % number * 150 for number in range(12)])
            wal.append(b"longer" * 2000)
        elif operation == "truncate":
            wal.truncate(before=wal.next_seq - 20)
        else:
            seam.before = seam.after = None
            kill(wal)
            seam.before = seam.after = look
            wal = open_small(path, seam=seam, medium="file", ordering=ordering, size=None, on_full="overwrite")
        seam.before = seam.after = None
    assert stops > 4
    kill(wal)
