"""Calls that free, discard and read: truncate, rollback, read and indexing, their ranges, and records that go meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from callers import bounds
from pmwal.format.layout import HEADER
from pmwal.records import Record
from support import file_offset, flip, open_small
from support import superblock as superblock_of

pytestmark = pytest.mark.both_engines

# -- what goes during a read


def test_read_returns_what_is_truncated_meanwhile_and_still_in_place(path: Path) -> None:
    """The end is fixed at the call; a truncate does not change the bytes."""
    with open_small(path) as wal:
        wal.extend([b"x" * 100] * 20)
        records = wal.read()
        assert next(records).seq == 1
        wal.truncate(before=20)
        assert [record.seq for record in records] == list(range(2, 21))
        with pytest.raises(pmwal.Overrun):
            wal.read(19)


def test_reader_returns_what_is_rolled_back_meanwhile_and_then_says_so(path: Path) -> None:
    """The writer's own read notices at once, because it looks at its epoch for each record."""
    with open_small(path) as wal, pmwal.open(path, "r") as reader:
        wal.extend([b"x"] * 6)
        own, others = wal.read(), reader.read()
        assert (next(own).seq, next(others).seq) == (1, 1)
        wal.rollback(after=3)
        with pytest.raises(pmwal.Overrun, match="rolled back"):
            list(own)
        assert [record.seq for record in others] == [2, 3, 4, 5, 6]
        wal.extend([b"other"] * 6)
        with pytest.raises(pmwal.Overrun, match="rolled back"):
            list(reader.read(7))


# -- truncate and rollback


@pytest.mark.parametrize("before", range(3, 9))
def test_truncate_keeps_what_it_is_given(path: Path, before: int) -> None:
    """truncate(before) keeps ``before`` and all later ones, and returns the new first number."""
    with open_small(path) as wal:
        wal.extend([b"x"] * 7)
        wal.truncate(before=3)
        assert wal.truncate(before=before) == before
        assert [record.seq for record in wal] == list(range(before, 8))
        assert bounds(wal) == (before, 8, 7)


@pytest.mark.parametrize("before", [0, 2, 9, -1, 1 << 70])
def test_truncate_out_of_range_changes_nothing(path: Path, before: int) -> None:
    """A number outside first_seq to next_seq is a ValueError that names the range."""
    with open_small(path) as wal:
        wal.extend([b"x"] * 7)
        wal.truncate(before=3)
        with pytest.raises(ValueError, match=f"before={before} is outside 3 to 8"):
            wal.truncate(before=before)
        assert bounds(wal) == (3, 8, 7)


@pytest.mark.parametrize("after", range(2, 8))
def test_rollback_keeps_what_it_is_given(path: Path, after: int) -> None:
    """rollback(after) keeps ``after`` and all older ones, and returns the new next number."""
    with open_small(path) as wal:
        wal.extend([b"x"] * 7)
        wal.truncate(before=3)
        assert wal.rollback(after=after) == after + 1
        assert [record.seq for record in wal] == list(range(3, after + 1))
        assert bounds(wal) == (3, after + 1, after)
        assert wal.append(b"new") == after + 1


@pytest.mark.parametrize("after", [1, 8, 0, -1, 1 << 70])
def test_rollback_out_of_range_changes_nothing(path: Path, after: int) -> None:
    """A number outside first_seq - 1 to next_seq - 1 is a ValueError that names the range."""
    with open_small(path) as wal:
        wal.extend([b"x"] * 7)
        wal.truncate(before=3)
        with pytest.raises(ValueError, match=f"after={after} is outside 2 to 7"):
            wal.rollback(after=after)
        assert bounds(wal) == (3, 8, 7)


def test_truncate_and_rollback_commit_what_they_pass(path: Path) -> None:
    """Bounds are durable on return, and so is every record they keep."""
    with open_small(path, commit="manual") as wal:
        wal.extend([b"x"] * 5)
        wal.truncate(before=2)
        assert wal.committed_seq == 5
        wal.extend([b"y"] * 5)
        wal.rollback(after=8)
        assert wal.committed_seq == 8


@pytest.mark.parametrize(
    "call",
    [
        lambda wal, number: wal.truncate(before=number),
        lambda wal, number: wal.rollback(after=number),
        lambda wal, number: list(wal.read(start=number)),
        lambda wal, number: list(wal.read(stop=number)),
        lambda wal, number: wal.wait_durable(number, timeout=0),
        lambda wal, number: wal[number],
    ],
    ids=["truncate", "rollback", "read-start", "read-stop", "wait_durable", "index"],
)
@pytest.mark.parametrize("number", [2.5, b"2"])
def test_number_that_is_no_number_is_a_type_error(path: Path, call: Callable[[Any, Any], Any], number: Any) -> None:
    """A float or bytes in place of a sequence number are the caller's mistake and never look like damage; text is a cursor."""
    with open_small(path) as wal:
        wal.extend([b"x"] * 3)
        with pytest.raises(TypeError):
            call(wal, number)
        assert bounds(wal) == (1, 4, 3)


# -- read and []


@pytest.mark.parametrize("start", [None, 3, 5, 7, 8, 100])
@pytest.mark.parametrize("stop", [None, 0, 3, 5, 7, 8, 100])
@pytest.mark.parametrize("handle", ["wal", "reader"])
def test_read_takes_start_and_stop(path: Path, handle: str, start: int | None, stop: int | None) -> None:
    """stop is exclusive; bounds past the end are cut to it; the same on Wal and Reader."""
    with open_small(path) as wal:
        wal.extend([b"x"] * 7)
        wal.truncate(before=3)
        expected = [seq for seq in range(3, 8) if (start is None or seq >= start) and (stop is None or seq < stop)]
        with pmwal.open(path, "r") as reader:
            log: pmwal.Wal | pmwal.Reader = wal if handle == "wal" else reader
            assert [record.seq for record in log.read(start, stop)] == expected


@pytest.mark.parametrize("handle", ["wal", "reader"])
def test_start_before_the_first_is_an_overrun_at_the_call(path: Path, handle: str) -> None:
    """It is raised at once and not at the first record, with the count of what is missing."""
    with open_small(path) as wal:
        wal.extend([b"x"] * 7)
        wal.truncate(before=5)
        with pmwal.open(path, "r") as reader:
            log: pmwal.Wal | pmwal.Reader = wal if handle == "wal" else reader
            with pytest.raises(pmwal.Overrun, match="record 2 is gone: the log now begins at 5") as caught:
                log.read(start=2)
        assert caught.value.missed == 3


@pytest.mark.parametrize("handle", ["wal", "reader"])
def test_end_of_a_read_is_fixed_at_the_call(path: Path, handle: str) -> None:
    """What is appended while it runs does not appear in it."""
    with open_small(path) as wal, pmwal.open(path, "r") as reader:
        wal.extend([b"x"] * 3)
        log: pmwal.Wal | pmwal.Reader = wal if handle == "wal" else reader
        seen = []
        for record in log.read():
            seen.append(record.seq)
            wal.append(b"y")
        assert seen == [1, 2, 3]
        assert len(log) == 6


def test_record_that_a_rollback_takes_while_it_is_looked_up_is_not_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the stress runs: a StopIteration came out, which would end a calling generator."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
        read = wal.read

        def rolled_back_first(*bounds: int) -> Iterator[Record]:
            wal.rollback(after=1)
            return read(*bounds)

        monkeypatch.setattr(wal, "read", rolled_back_first)
        with pytest.raises(IndexError):
            wal[2]


@pytest.mark.parametrize("handle", ["wal", "reader"])
def test_index_is_a_sequence_number(path: Path, handle: str) -> None:
    """wal[seq] is that record; what is not there is an IndexError that names the range; a slice says what to use."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c"])
        wal.truncate(before=2)
        with pmwal.open(path, "r") as reader:
            log: pmwal.Wal | pmwal.Reader = wal if handle == "wal" else reader
            assert (log[2].data, log[3].data, len(log)) == (b"b", b"c", 2)
            for seq in (1, 4, 0, -1, 1 << 64):
                with pytest.raises(IndexError, match=f"no record {seq}; the log holds 2 to 3"):
                    _ = log[seq]
            with pytest.raises(TypeError, match=r"use read\(start, stop\)"):
                _ = log[2:3]  # type: ignore[index]
            wal.truncate(before=4)
            with pytest.raises(IndexError, match="no record 3; the log is empty"):
                _ = log[3]


@pytest.mark.parametrize("handle", ["wal", "reader"])
def test_damage_under_a_running_handle_is_corruption(path: Path, handle: str) -> None:
    """read and [] check every record's checksum, and say where the damage is."""
    with open_small(path) as wal:
        wal.extend([b"a" * 100, b"b" * 100, b"c" * 100])
        with pmwal.open(path, "r") as reader:
            log: pmwal.Wal | pmwal.Reader = wal if handle == "wal" else reader
            place = file_offset(superblock_of(path), 152)
            flip(path, place + HEADER + 7)
            assert log[1].data == b"a" * 100
            for look in (lambda: log[2], lambda: list(log)):
                with pytest.raises(pmwal.CorruptWal, match=f"record 2 at file offset {place} is damaged") as caught:
                    look()
                assert (caught.value.first_seq, caught.value.last_seq, caught.value.start) == (2, 2, place)


# -- records that go while they are read


@pytest.mark.parametrize("change", ["truncate", "rollback", "overwrite"])
def test_records_that_go_while_they_are_read_are_an_overrun(path: Path, change: str) -> None:
    """An iteration that its own process overtakes ends with Overrun and never with other bytes."""
    with open_small(path, size="1MiB", on_full="overwrite") as wal:
        for number in range(1, 301):
            wal.append(number.to_bytes(2) * 1000)
        running = wal.read()
        assert next(running).seq == 1
        if change == "truncate":
            wal.truncate(before=290)
        elif change == "rollback":
            wal.rollback(after=1)
        for _ in range(700):
            wal.append(b"other" * 401)
        shown: list[pmwal.Record] = []
        with pytest.raises(pmwal.Overrun):
            shown += running
        assert [record for record in shown if record.data != record.seq.to_bytes(2) * 1000] == []


def test_iteration_that_begins_behind_a_truncate_is_an_overrun(path: Path) -> None:
    """Found by the stress runs: an iterator made before the truncate and begun after it called the log corrupt."""
    with open_small(path) as wal:
        wal.extend([b"%d" % number for number in range(10)])
        late = wal.read(5)
        wal.truncate(before=8)
        with pytest.raises(pmwal.Overrun, match="record 5 is gone: the log now begins at 8") as caught:
            next(late)
        assert caught.value.missed == 3


@pytest.mark.parametrize("start", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("after", ["nothing", "short ones", "two rollbacks"])
def test_records_rolled_back_under_an_iteration_are_not_shown(path: Path, start: int, after: str) -> None:
    """Found by the stress runs: it called the log corrupt, or returned what was stored in their place."""
    with open_small(path) as wal:
        wal.extend([b"old %d" % number * 40 for number in range(1, 11)])
        early, late = wal.read(start), wal.read(start)
        shown = [next(early)]
        wal.rollback(after=3)
        if after != "nothing":
            wal.extend([b"new %d" % number for number in range(4, 9)])
        if after == "two rollbacks":
            wal.rollback(after=8)
        for iterator in (early, late):
            with pytest.raises(pmwal.Overrun):
                shown += iterator
        assert {record.seq for record in shown} == {*range(start, 4), start}
        assert all(record.data == b"old %d" % record.seq * 40 for record in shown)


def test_length_is_of_one_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another thread stores and truncates, it is never a difference between two moments, which can be negative."""
    with open_small(path) as wal:
        wal.extend([b"a"] * 10)
        state, looks = wal._state, []

        def look(_: object) -> Any:
            looks.append(len(looks))
            if len(looks) > 1:  # ten more were stored, and all truncated
                return state._replace(head=state.head._replace(next_seq=21), tail=state.head._replace(next_seq=21))
            return state

        with monkeypatch.context() as patch:
            patch.setattr(type(wal), "_state", property(look))
            assert len(wal) == 10
