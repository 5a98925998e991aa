"""Frames of a log: the records that ``read`` returns, in pieces of a bounded size, and none that it would not return."""

from __future__ import annotations

import itertools
import mmap
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pmwal
from callers import until
from conftest import Place
from pmwal.format.frame import ENTRY, pack, unpack
from pmwal.format.layout import HEADER
from pmwal.format.ring import Rules, Window
from pmwal.format.scan import scan_for
from pmwal.native import native
from pmwal.reading.walk import Delivered, Walker
from pmwal.records import START
from pmwal.storage.mapping import Mapping
from processes import Child, child
from support import file_offset, flip, kill, open_small, superblock, whole_records
from test_reader import checked, write_fast

pytestmark = pytest.mark.both_engines

MIB = 1 << 20
SIZES = (1, 14, 200, 5000, MIB)


@pytest.fixture
def path(shm_dir: Path) -> Path:
    """The log's path."""
    return shm_dir / "a.wal"


def packed_size(record: pmwal.Record) -> int:
    """Bytes of a body that a record takes."""
    return ENTRY.size + len(record.data)


def expected_frames(records: list[pmwal.Record], size_max: int, count_max: int | None) -> list[pmwal.Frame]:
    """The longest frames, one after another, of records that ``read`` returned."""
    frames, at = [], 0
    while at < len(records):
        end, size = at + 1, packed_size(records[at])
        while end < len(records) and end - at != count_max and size + packed_size(records[end]) <= size_max:
            size += packed_size(records[end])
            end += 1
        run = records[at:end]
        frames.append(pmwal.Frame(run[0].seq, run[-1].seq, run[-1].cursor, pack(run)))
        at = end
    return frames


def frames_of(reader: pmwal.Reader, start: int | str, size_max: int, count_max: int | None = None) -> Iterator[pmwal.Frame]:
    """The frames from ``start`` on, until there is none."""
    while (frame := reader.frame(start, size_max=size_max, count_max=count_max)) is not None:
        yield frame
        start = frame.last + 1


def fill(path: Path, seed: int, **options: Any) -> None:
    """Several opens of a flight recorder, some of which end by a kill: laps, epochs, rollbacks, batches, kinds, long records."""
    rng = random.Random(seed)
    align = rng.choice([8, 64])
    for _ in range(3):
        if path.exists():
            wal = open_small(path, size=None, on_full="overwrite", **options)
        else:
            wal = open_small(path, size=rng.choice(["16KiB", "64KiB"]), align=align, on_full="overwrite", **options)
        for number in range(rng.choice([0, 5, 200])):
            long = wal.capacity // 8 if number == 20 else rng.choice([0, 1, 50, 90])
            if rng.random() < 0.1:
                wal.extend(
                    [rng.randbytes(rng.randrange(long + 1)) for _ in range(rng.randrange(1, 6))], kind=rng.randrange(1 << 16)
                )
            else:
                wal.append(rng.randbytes(rng.randrange(long + 1)), kind=rng.randrange(1 << 16))
            if rng.random() < 0.02 and len(wal) > 3:
                wal.rollback(after=wal.next_seq - rng.randrange(1, 4))
        (kill if rng.random() < 0.3 else pmwal.Wal.close)(wal)


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
@pytest.mark.parametrize("seed", range(8))
def test_frames_are_the_records_that_read_returns(path: Path, seed: int, ordering: str) -> None:
    """Each as long as it can be, over gaps, laps, epochs, batches, kinds and any length; the cursor is that of the last one."""
    fill(path, seed, ordering=ordering)
    with pmwal.open(path, "r") as reader:
        records = list(reader)
        for size_max, count_max in ((1, None), (200, None), (MIB, 1), (1000, 7), (5000, None), (MIB, None)):
            expected = expected_frames(records, size_max, count_max)
            assert list(frames_of(reader, reader.first_seq, size_max, count_max)) == expected
            bodies = [unpack(frame.body) for frame in expected]
            assert list(itertools.chain(*bodies)) == [(each.kind, each.time_ns, each.data) for each in records]


@pytest.mark.skipif(native is None, reason="it compares the two")
@pytest.mark.native_engine
@pytest.mark.parametrize("seed", range(8, 14))
def test_frame_in_c_is_that_of_python(path: Path, seed: int) -> None:
    """From every record on: the same bytes, and the same record counts as the last that was delivered."""
    fill(path, seed)
    with pmwal.open(path, "r") as reader:
        view, block = reader._view(), superblock(path)
        for seq in range(view.tail.next_seq, view.end.next_seq):
            start, size_max = reader._start_of(view, seq, reader._place), random.Random(seq).choice(SIZES)
            found = []
            for scan in (scan_for(block), None):
                delivered: list[Delivered] = []
                walker = Walker(block, reader._mapping.load, lambda at, view: AssertionError(at), delivered.append, scan)
                found.append((walker.frame(view, start, view.end.next_seq, size_max), delivered))
            assert found[0] == found[1]
            assert [each.seq for each in found[0][1]] == [found[0][0].last]


def test_no_record_of_a_frame_is_made_in_python(path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor packed there, also over several pieces of the ring that are read; but with the Python engine each one is."""
    with pmwal.open(path, size="1MiB") as wal, pmwal.open(path, "r") as reader:
        wal.extend([b"x" * 128] * 5000)
        made: list[int] = []

        def noting(records: list[pmwal.Record]) -> bytes:
            made.extend(record.seq for record in records)
            return pack(records)

        monkeypatch.setattr("pmwal.reading.walk.pack", noting)
        frame = reader.frame(1, size_max=MIB)
        assert frame is not None
        assert (frame.last, made) == (5000, list(range(1, 5001)) if engine == "python" else [])


def test_record_that_is_too_long_comes_alone(path: Path) -> None:
    """Whole, in a frame that is longer than asked for; those before and after it come in frames of their own."""
    payload = random.Random(1).randbytes(16 * MIB)
    with pmwal.open(path, size="64MiB") as wal, pmwal.open(path, "r") as reader:
        wal.extend([b"a", b"b", payload, b"c", b"d"])
        frames = list(frames_of(reader, 1, 64))
        assert [(frame.first, frame.last) for frame in frames] == [(1, 2), (3, 3), (4, 5)]
        assert unpack(frames[1].body)[0][2] == payload
        assert frames[1].cursor == wal[3].cursor
        (all_of_them,) = frames_of(reader, 1, 20 * MIB)
        assert [data for _, _, data in unpack(all_of_them.body)] == [b"a", b"b", payload, b"c", b"d"]


def test_there_is_no_frame_of_what_is_not_durable(place: Place) -> None:
    """None at the end of the log, and for what is stored and not committed; a frame as soon as it is committed."""
    with open_small(place.path, **place.options | {"commit": "manual"}) as wal, pmwal.open(place.path, "r") as reader:
        assert reader.frame(1, size_max=100) is None
        wal.append(b"a")
        assert reader.frame(1, size_max=100) is None
        wal.commit()
        frame = reader.frame(1, size_max=100)
        assert frame == pmwal.Frame(1, 1, wal[1].cursor, pack([wal[1]]))
        assert reader.frame(frame.cursor, size_max=100) is None
        assert reader.frame(9, size_max=100) is None


def test_frames_of_a_writer_in_another_process_have_all_it_stores(path: Path) -> None:
    """In order, each record once, while it stores them and after it was killed."""
    found: list[bytes] = []
    with child(write_fast, path, {"size": "64MiB"}) as process, opened_beside(process, path) as reader:
        while len(found) < 3000:
            until(partial(_reaches, reader, len(found) + 1))
            for frame in frames_of(reader, len(found) + 1, 4096):
                assert frame.first == len(found) + 1
                found += [data for _, _, data in unpack(frame.body)]
        process.kill()
        for frame in frames_of(reader, len(found) + 1, 4096):
            found += [data for _, _, data in unpack(frame.body)]
        assert len(found) == reader.committed_seq
    assert found == [checked(seq) for seq in range(1, len(found) + 1)]


def opened_beside(process: Child, path: Path) -> pmwal.Reader:
    """A reader, once the writer has opened the log."""
    assert process.hear() == 1
    return pmwal.open(path, "r")


def _reaches(reader: pmwal.Reader, seq: int) -> bool:
    return reader.committed_seq >= seq


def _begins_past(reader: pmwal.Reader, seq: int) -> bool:
    return reader.first_seq > seq


def test_writer_that_overtakes_never_tears_a_frame(path: Path) -> None:
    """With a fast flight recorder of another process each frame has whole records, or the call says how many are missing."""
    missed = seen = 0
    with child(write_fast, path, {"size": "128KiB", "on_full": "overwrite"}) as process, opened_beside(process, path) as reader:
        start = 1
        while seen < 1000 or missed < 5:
            try:
                frame = reader.frame(start, size_max=64 << 10)
            except pmwal.Overrun as error:
                missed += max(1, error.missed)
                start += error.missed
                assert start <= reader.first_seq, "records that are there would be left out"
                continue
            if frame is not None:
                assert frame.first == start
                assert [data for _, _, data in unpack(frame.body)] == [checked(seq) for seq in range(start, frame.last + 1)]
                seen += frame.last + 1 - start
                start = frame.last + 1
            else:
                until(partial(_reaches, reader, start))
            if seen >= 1000:  # slow enough to be overtaken, whoever of the two is faster
                until(partial(_begins_past, reader, start))
        process.say("stop")
        assert process.wait() == 0


@pytest.mark.parametrize("at", [1, 2], ids=["before the first load", "between two loads"])
def test_records_that_go_while_a_frame_is_built(path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """What was copied before is a frame; where nothing was, the call says how many records are missing."""
    load, left = Mapping.load, 0
    with pmwal.open(path, size="4MiB", on_full="overwrite") as wal, pmwal.open(path, "r") as reader:
        first, last = wal.extend([b"x" * 4000] * 900)
        reader.frame(1, size_max=100)

        def overtaking(self: Mapping, offset: int, length: int) -> bytes:
            nonlocal left
            if self is reader._mapping and length > 100_000:
                left -= 1
                if left == 0:
                    for _ in range(3):
                        wal.extend([b"y" * 4000] * 900)
            return load(self, offset, length)

        monkeypatch.setattr(Mapping, "load", overtaking)
        left = at
        if at == 1:
            with pytest.raises(pmwal.Overrun, match="the log now begins at"):
                reader.frame(first, size_max=4 * MIB)
        else:
            frame = reader.frame(first, size_max=4 * MIB)
            assert frame is not None
            assert first < frame.last < last
            assert {data for _, _, data in unpack(frame.body)} == {b"x" * 4000}
            with pytest.raises(pmwal.Overrun, match="the log now begins at"):
                reader.frame(frame.last + 1, size_max=4 * MIB)


def test_frame_is_copied_in_one_piece(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is copied that is not in it, as long as the records are about as long as the others."""
    with pmwal.open(path, size="1MiB", commit="manual") as wal:
        _, last = wal.extend([b"x" * 128] * 4096)
        wal.commit()
        load, lengths, ring = Mapping.load, list[int](), superblock(path).ring_offset

        def counting(self: Mapping, offset: int, length: int) -> bytes:
            if offset >= ring and length > 64 * 1024:  # a look-up loads less
                lengths.append(length)
            return load(self, offset, length)

        with pmwal.open(path, "r") as reader:
            seq, ring_bytes = 1, 1024 * (HEADER + 128)
            monkeypatch.setattr(Mapping, "load", counting)
            while seq <= last:
                lengths.clear()
                frame = reader.frame(seq, size_max=1024 * (ENTRY.size + 128))
                assert frame is not None
                assert (frame.first, frame.last) == (seq, seq + 1023)
                assert len(lengths) == 1
                assert ring_bytes <= lengths[0] <= 1.25 * ring_bytes
                seq = frame.last + 1


@pytest.mark.parametrize("offset", [0, 5, 24, HEADER, HEADER + 99])
def test_damage_ends_a_frame_before_it(path: Path, offset: int) -> None:
    """The next frame would begin with the damaged record: an error, and none of the records after it come."""
    with pmwal.open(path, size="64KiB") as wal, pmwal.open(path, "r") as reader:
        for _ in range(9):
            wal.append(b"x" * 100)
        flip(path, file_offset(superblock(path), whole_records(path)[5].position) + offset)
        frame = reader.frame(1, size_max=MIB)
        assert frame is not None
        assert (frame.first, frame.last, len(frame.body)) == (1, 4, 4 * 114)
        for start in (5, frame.cursor):
            for _ in range(2):
                with pytest.raises(pmwal.CorruptWal, match="record 5 "):
                    reader.frame(start, size_max=MIB)


@pytest.mark.parametrize("closed", [False, True])
def test_end_of_the_log_that_is_elsewhere_is_no_frame(path: Path, closed: bool) -> None:
    """All numbers are found, but the last record does not end where the log does: one of them was discarded before."""
    with pmwal.open(path, size="64KiB") as wal, pmwal.open(path, "r") as reader:
        wal.extend([b"a", b"b"])
        view = reader._view()
        moved = view._replace(end=view.end._replace(position=view.end.position + 64))
        walker = replace(reader._walker(view, reader._place), now=None if closed else lambda: moved)
        with pytest.raises(pmwal.PmwalError):
            walker.frame(moved, view.tail, view.end.next_seq, MIB)
        assert walker.frame(moved, view.tail, view.end.next_seq - 1, MIB).last == 1


def test_rollback_of_what_was_shipped_is_an_overrun(path: Path) -> None:
    """Told once: the reader then starts wherever it is asked to. A cursor of a record that was rolled back stays an error."""
    with pmwal.open(path, size="64KiB") as wal, pmwal.open(path, "r") as reader:
        wal.extend([b"a", b"b", b"c", b"d"])
        frame = reader.frame(1, size_max=MIB)
        assert frame is not None
        wal.rollback(after=2)
        with pytest.raises(pmwal.Overrun, match="record 4, read before, was rolled back"):
            reader.frame(5, size_max=MIB)
        wal.extend([b"C", b"D", b"E"])
        with pytest.raises(pmwal.Overrun, match="is not the one that the cursor names"):
            reader.frame(frame.cursor, size_max=MIB)
        after = reader.frame(3, size_max=MIB)
        assert after is not None
        assert [data for _, _, data in unpack(after.body)] == [b"C", b"D", b"E"]


def test_rollback_of_what_was_not_shipped_concerns_nobody(path: Path) -> None:
    """The next frame has what the log has by now."""
    with pmwal.open(path, size="64KiB") as wal, pmwal.open(path, "r") as reader:
        wal.extend([b"a", b"b", b"c", b"d"])
        frame = reader.frame(1, size_max=MIB, count_max=2)
        assert frame is not None
        wal.rollback(after=2)
        wal.append(b"C")
        after = reader.frame(frame.last + 1, size_max=MIB)
        assert after is not None
        assert unpack(after.body)[0][2] == b"C"


def test_start_before_the_first_is_an_overrun(path: Path) -> None:
    """With the number of records that are gone."""
    with pmwal.open(path, size="64KiB") as wal, pmwal.open(path, "r") as reader:
        wal.extend([b"a", b"b", b"c", b"d"])
        wal.truncate(before=4)
        with pytest.raises(pmwal.Overrun, match="record 2 is gone: the log now begins at 4") as caught:
            reader.frame(2, size_max=MIB)
        assert caught.value.missed == 2


def test_file_that_was_shortened_is_an_error(path: Path) -> None:
    """Nothing comes of a ring whose bytes are gone."""
    with pmwal.open(path, size="1MiB") as wal:
        wal.extend([b"x" * 1000] * 900)
    with pmwal.open(path, "r") as reader:
        os.truncate(path, superblock(path).ring_offset + 400_000)
        with pytest.raises(pmwal.PmwalError, match="shortened"):
            reader.frame(1, size_max=MIB)


WRONG: dict[str, tuple[Callable[[pmwal.Reader], Any], type[Exception], str]] = {
    "no size": (lambda reader: reader.frame(1, size_max=0), ValueError, "size_max must be at least 1, not 0"),
    "text": (lambda reader: reader.frame(1, size_max="1KiB"), TypeError, "size_max must be an int"),  # type: ignore[arg-type]
    "no records": (lambda reader: reader.frame(1, size_max=9, count_max=0), ValueError, "count_max must be at least 1, not 0"),
    "no number": (lambda reader: reader.frame(1.5, size_max=9), TypeError, "a sequence number"),  # type: ignore[arg-type]
    "no cursor": (lambda reader: reader.frame("x", size_max=9), ValueError, "is no cursor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_argument_that_makes_no_sense_is_an_error(path: Path, name: str) -> None:
    """Before anything is read."""
    call, error, text = WRONG[name]
    pmwal.open(path, size="64KiB").close()
    with pmwal.open(path, "r") as reader, pytest.raises(error, match=text):
        call(reader)


def test_reader_that_salvages_has_no_frames(path: Path) -> None:
    """Numbers may be missing, and a frame has none missing."""
    pmwal.open(path, size="64KiB").close()
    with (
        pmwal.open(path, "r", recover="salvage") as reader,
        pytest.raises(ValueError, match=r'frame\(\) needs consecutive records; open the log without recover="salvage"'),
    ):
        reader.frame(1, size_max=9)


@pytest.mark.skipif(native is None, reason="it is what the C engine does")
@pytest.mark.native_engine
def test_fault_in_the_window_is_an_error(path: Path) -> None:
    """A file that is shortened while it is read in place raises, and does not end the process."""
    with pmwal.open(path, size="64KiB") as wal:
        wal.extend([b"x" * 100] * 300)
    block = superblock(path)
    scan = scan_for(block)
    assert scan is not None
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        with memoryview(mapped)[block.ring_offset : block.file_size] as ring:
            window, rules = Window(ring, 0, 1 << 63), Rules(1 << 62, MIB, whole_records(path)[1].header.epoch, 1)
            body, *_, seq, full = scan.scanner.frame(window, START, rules, MIB)
            os.truncate(path, block.ring_offset + 4096)
            with pytest.raises(OSError, match="the file was shortened while it was mapped"):
                scan.scanner.frame(window, START, rules, MIB)
        assert (len(body), seq, full) == (300 * 114, 301, False)
