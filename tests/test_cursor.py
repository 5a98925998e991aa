"""Cursors: reading resumes after the last record read, or says that it is gone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from conftest import Place
from pmwal.cursor import cursor_of, parse_cursor
from support import BarrierRecorder, kill, open_small

pytestmark = pytest.mark.both_engines

Handle = pmwal.Wal | pmwal.Reader


def follow_now(handle: Handle, start: str) -> Iterator[pmwal.Record]:
    """The records that follow() returns without waiting."""
    return handle.follow(start, timeout=0)


def read_now(handle: Handle, start: str) -> Iterator[pmwal.Record]:
    """The records that read() returns."""
    return handle.read(start)


WAYS = pytest.mark.parametrize("way", [read_now, follow_now])
Way = Callable[[Handle, str], Iterator[pmwal.Record]]


def numbers(records: Iterator[pmwal.Record]) -> list[int]:
    """The sequence numbers of some records."""
    return [record.seq for record in records]


@WAYS
def test_cursor_means_after_that_record(place: Place, way: Way) -> None:
    """A cursor works on writer and reader; after the newest record there is nothing yet, which is no error."""
    with open_small(place.path, **place.options) as wal, pmwal.open(place.path, "r") as reader:
        wal.extend([b"a", b"b", b"c"])
        cursors = [record.cursor for record in wal]
        assert cursors == [record.cursor for record in reader]
        for handle in (wal, reader):
            assert [numbers(way(handle, cursor)) for cursor in cursors] == [[2, 3], [3], []]
        assert numbers(wal.read(cursors[0], 3)) == numbers(reader.read(cursors[0], 3)) == [2]


def test_follow_with_a_cursor_continues_with_later_records(shm_dir: Path) -> None:
    """Started at the newest record's cursor, follow() returns the next one."""
    with open_small(shm_dir / "log") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        cursor = wal[wal.append(b"a")].cursor
        threading.Timer(0.05, lambda: wal.append(b"b")).start()
        assert [record.data for record in itertools.islice(reader.follow(cursor), 1)] == [b"b"]


@WAYS
def test_cursor_outlives_handles_processes_and_recoveries(place: Place, way: Way) -> None:
    """Neither a kill nor a close of the writer changes the cursor of a retained record."""
    wal = open_small(place.path, **place.options)
    wal.extend([b"a", b"b", b"c"])
    cursor = wal[2].cursor
    kill(wal)
    with pmwal.open(place.path, "r") as reader:
        assert numbers(way(reader, cursor)) == [3]
    with open_small(place.path, **place.options) as wal:
        wal.append(b"d")
        assert numbers(way(wal, cursor)) == [3, 4]


@WAYS
@pytest.mark.parametrize("again", [[], [b"B"], [b"B", b"C", b"D"], [b"b", b"c"]])
def test_rolled_back_record_is_told_from_what_took_its_number(shm_dir: Path, way: Way, again: list[bytes]) -> None:
    """The cursor tells them apart even if the replacement has the same bytes: the times differ."""
    with open_small(shm_dir / "log") as wal:
        wal.extend([b"a", b"b", b"c"])
        kept, gone = wal[1].cursor, wal[3].cursor
        wal.rollback(after=1)
        wal.extend(again)
        with pmwal.open(shm_dir / "log", "r") as reader:
            for handle in (wal, reader):
                assert numbers(way(handle, kept)) == list(range(2, 2 + len(again)))
                with pytest.raises(pmwal.Overrun, match="rolled back, or the log is a new one") as caught:
                    list(way(handle, gone))
                assert caught.value.missed == 0


@WAYS
def test_cursor_of_another_log_is_refused(shm_dir: Path, way: Way) -> None:
    """A new log under the old name has other records under the same numbers, or none yet."""
    with open_small(shm_dir / "old") as wal:
        wal.extend([b"a", b"b"])
        cursor = wal[2].cursor
    seam = BarrierRecorder(uuid=bytes(16))
    seam.time_ns += 10**9
    with open_small(shm_dir / "new", seam=seam) as wal:
        for data in (b"a", b"b"):
            with pytest.raises(pmwal.Overrun, match="new one"):
                list(way(wal, cursor))
            wal.append(data)
        with pytest.raises(pmwal.Overrun, match="record 2 is not the one"):
            list(way(wal, cursor))


@WAYS
def test_truncated_record_is_passed_over_as_long_as_the_next_one_is_there(shm_dir: Path, way: Way) -> None:
    """As long as the next record exists nothing was missed; after that the error counts the loss and names the log's beginning."""
    with open_small(shm_dir / "log") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        wal.extend([b"a", b"b", b"c", b"d"])
        cursor = wal[1].cursor
        last = wal[4].cursor
        for before, expected in ((2, [2, 3, 4]), (4, None)):
            wal.truncate(before=before)
            for handle in (wal, reader):
                if expected is not None:
                    assert numbers(way(handle, cursor)) == expected
                    continue
                with pytest.raises(pmwal.Overrun, match="begins at 4") as caught:
                    list(way(handle, cursor))
                assert caught.value.missed == 2
        wal.truncate(before=5)
        for handle in (wal, reader):
            assert numbers(way(handle, last)) == []


@pytest.mark.parametrize(("before", "missed"), [(2, 0), (4, 2)])
def test_truncation_while_the_record_is_looked_at_is_the_same(
    shm_dir: Path, monkeypatch: pytest.MonkeyPatch, before: int, missed: int
) -> None:
    """With a view older than the tail that passed the record, the next record is read or the missed ones are counted."""
    with open_small(shm_dir / "log") as wal:
        wal.extend([b"a", b"b", b"c", b"d"])
        cursor, read = wal[1].cursor, pmwal.Wal.read

        def read_late(self: pmwal.Wal, start: Any = None, stop: Any = None) -> Iterator[pmwal.Record]:
            if stop == 2:  # the read of the record that the cursor names
                self.truncate(before=before)
            return read(self, start, stop)

        monkeypatch.setattr(pmwal.Wal, "read", read_late)
        if not missed:
            assert numbers(wal.read(cursor)) == [2, 3, 4]
            return
        with pytest.raises(pmwal.Overrun) as caught:
            wal.read(cursor)
        assert caught.value.missed == missed


@pytest.mark.parametrize(
    "text", ["", "7", "7-", "7-0badcafe ", "7-0BADCAFE", "-7-0badcafe", "0-0badcafe", "\u0667-0badcafe", "7-0"]
)
@WAYS
def test_text_that_is_no_cursor_is_a_value_error_that_shows_one(shm_dir: Path, way: Way, text: str) -> None:
    """The message shows what a cursor looks like."""
    with open_small(shm_dir / "log") as wal, pmwal.open(shm_dir / "log", "r") as reader:
        for handle in (wal, reader):
            with pytest.raises(ValueError, match="like '17-0badcafe'"):
                way(handle, text)


def test_cursor_covers_everything_of_a_record() -> None:
    """A different kind, time, payload or number gives a different cursor, and its text round-trips."""
    facts = (7, 1, 10**18, b"payload")
    cursor = cursor_of(*facts)
    assert parse_cursor(str(cursor)) == cursor
    assert pmwal.Record(*facts).cursor == str(cursor)
    for other in ((8, *facts[1:]), (7, 2, *facts[2:]), (7, 1, 10**18 + 1, b"payload"), (7, 1, 10**18, b"payloae")):
        assert cursor_of(*other) != cursor


def test_salvage_takes_no_cursor(shm_dir: Path) -> None:
    """Damage may hide the very record that the cursor names."""
    with open_small(shm_dir / "log") as wal:
        cursor = wal[wal.append(b"a")].cursor
    with pmwal.open(shm_dir / "log", "r", recover="salvage") as reader, pytest.raises(ValueError, match="start at a number"):
        reader.read(cursor)
