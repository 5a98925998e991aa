"""Consumers of sets: what was freed after a position is counted, and nothing is handed out twice when a log loses its path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pmwal


def follow(consumer: pmwal.SetConsumer) -> list[bytes]:
    """What the consumer gets now."""
    return [record.data for record in consumer.follow(timeout=0)]


def truncate(wal: pmwal.Wal, path: Path) -> None:
    """Free all records but the last two, which are new."""
    wal.extend([b"x", b"y", b"z"])
    wal.truncate(wal.next_seq - 2)


def truncate_and_resize(wal: pmwal.Wal, path: Path) -> None:
    """The same, and go on in another file."""
    truncate(wal, path)
    wal.resize("128KiB")


def overwrite_ring(wal: pmwal.Wal, path: Path) -> None:
    """Let new records take the place of all that were there."""
    before = wal.next_seq
    while wal.first_seq <= before:
        wal.append(bytes(1000))


FREE = [truncate, truncate_and_resize, overwrite_ring]


@pytest.fixture
def wal(path: Path) -> pmwal.Wal:
    """A log that overwrites, with three records."""
    wal = pmwal.open(path, size="64KiB", on_full="overwrite")
    wal.extend([b"1", b"2", b"3"])
    return wal


@pytest.mark.parametrize("free", FREE)
def test_what_is_freed_before_anything_is_acknowledged_is_missed(
    path: Path, wal: pmwal.Wal, free: Callable[[pmwal.Wal, Path], None]
) -> None:
    """The position before the first record has no cursor."""
    with wal, pmwal.LogSet(path) as logs, logs.consumer("mail") as consumer:
        free(wal, path)
        assert [record.seq for record in consumer.follow(timeout=0)] == list(range(wal.first_seq, wal.next_seq))
        assert logs.missed == wal.first_seq - 1 > 0


def test_what_is_missed_is_counted_once(path: Path, wal: pmwal.Wal) -> None:
    """However often it is followed from there; what is missed then counts, too."""
    with wal, pmwal.LogSet(path) as logs, logs.consumer("mail") as consumer:
        for _ in range(2):
            wal.extend([b"x", b"y"])
            wal.truncate(wal.next_seq)
            for _ in range(2):
                assert follow(consumer) == []
                consumer.ack()
            assert logs.missed == wal.next_seq - 1


@pytest.mark.parametrize("free", FREE)
@pytest.mark.parametrize("anew", [False, True])
def test_what_is_freed_after_an_acknowledged_record_that_was_freed_is_missed(
    path: Path, wal: pmwal.Wal, free: Callable[[pmwal.Wal, Path], None], anew: bool
) -> None:
    """The position has no cursor: its record was gone when it was acknowledged. The next process counts the same."""
    with wal:
        with pmwal.LogSet(path) as logs, logs.consumer("mail") as consumer:
            assert follow(consumer) == [b"1", b"2", b"3"]
            wal.extend([b"4", b"5"])
            wal.truncate(5)
            consumer.ack()
            if not anew:
                free(wal, path)
                assert next(consumer.follow(timeout=0)).seq == wal.first_seq
                assert logs.missed == wal.first_seq - 4 > 0
                return
        free(wal, path)
        with pmwal.LogSet(path) as logs, logs.consumer("mail") as consumer:
            assert next(consumer.follow(timeout=0)).seq == wal.first_seq
            assert logs.missed == wal.first_seq - 4 > 0
            consumer.ack()
            assert logs.missed == wal.first_seq - 4
            assert len(follow(consumer)) == wal.next_seq - wal.first_seq - 1
            assert logs.missed == wal.first_seq - 4


def test_position_that_was_rolled_back_is_told_when_the_tail_has_passed_it(path: Path, wal: pmwal.Wal) -> None:
    """Else records of the new history would go without a word."""
    with wal, pmwal.LogSet(path) as logs, logs.consumer("mail") as consumer:
        records = consumer.follow(timeout=0)
        assert [next(records).seq for _ in range(3)] == [1, 2, 3]
        consumer.ack()
        wal.rollback(after=1)
        wal.extend([b"new"] * 5)
        wal.truncate(wal.next_seq - 1)
        with pytest.raises(pmwal.Overrun, match=r"consumer 'mail': record 3, which it acknowledged, .*continue with seek\(\)"):
            consumer.follow(timeout=0)
        consumer.seek("oldest")
        assert follow(consumer) == [b"new"]


def replaced(path: Path) -> pmwal.Wal:
    """Another log at this path."""
    path.rename(path.with_name("elsewhere"))
    wal = pmwal.open(path, size="64KiB")
    wal.append(b"new")
    return wal


@pytest.mark.parametrize("ack", [0, 2, 3])
def test_log_whose_path_another_one_has_continues_where_it_was_acknowledged(path: Path, wal: pmwal.Wal, ack: int) -> None:
    """Its position went with its path."""
    everything = [b"1", b"2", b"3", b"last", b"new"]
    with wal, pmwal.LogSet(path.parent) as logs, logs.consumer("mail") as consumer:
        records = consumer.follow(timeout=0)
        for _ in range(ack):
            next(records)
        consumer.ack()
        wal.append(b"last")
        wal.close()
        with replaced(path) as new:
            assert follow(consumer) == everything[ack:]
            consumer.ack()
            assert follow(consumer) == []
            assert new.truncate(consumed=True) == 2
            assert logs.missed == 0


@pytest.mark.parametrize("durable", [False, True])
def test_part_of_a_log_whose_path_another_one_has_is_acknowledged(path: Path, wal: pmwal.Wal, durable: bool) -> None:
    """Before the second follow begins, and while it is open; never backwards."""
    with pmwal.LogSet(path.parent) as logs, logs.consumer("mail") as consumer:
        records = consumer.follow(timeout=0)
        next(records)
        first = consumer.cursor
        next(records)
        with replaced(path):
            consumer.ack(durable=durable)
            records = consumer.follow(timeout=0)
            assert next(records).data == b"3"
            consumer.ack(first)
            assert follow(consumer) == [b"3", b"new"]
            consumer.seek("newest")
            assert follow(consumer) == []
            wal.append(b"4")
            assert follow(consumer) == [b"4"]
            consumer.seek("oldest")
            assert follow(consumer) == [b"1", b"2", b"3", b"new", b"4"]
    with pytest.warns(pmwal.UnlinkedWarning):
        wal.close()


def test_log_that_was_renamed_lets_another_one_have_its_position(path: Path, wal: pmwal.Wal) -> None:
    """Both belong to the set."""
    with wal, pmwal.LogSet(path.parent) as logs, logs.consumer("mail") as consumer:
        assert follow(consumer) == [b"1", b"2", b"3"]
        consumer.ack()
        wal.close()
        path.rename(path.with_name("renamed.wal"))
        with pmwal.open(path, size="64KiB") as new:
            new.append(b"new")
            assert follow(consumer) == [b"new"]
            consumer.ack()
            assert follow(consumer) == []
            assert new.truncate(consumed=True) == 2


@pytest.mark.parametrize("new", [1, 2, 3, 4])
def test_what_took_the_place_of_acknowledged_records_can_be_acknowledged(path: Path, wal: pmwal.Wal, new: int) -> None:
    """The position goes back with the set, which hands out what is there after a rollback, and is not left at what is gone."""
    with wal:
        with pmwal.LogSet(path) as logs, logs.consumer("mail") as consumer:
            records = consumer.follow(wait=0, timeout=60)
            wal.extend([b"4", b"5", b"6"])
            assert [next(records).data for _ in range(6)] == [b"1", b"2", b"3", b"4", b"5", b"6"]
            consumer.ack()
            wal.rollback(after=3)
            wal.extend([b"new"] * new)
            assert [next(records).seq for _ in range(new)] == list(range(4, 4 + new))
            consumer.ack()
        wal.append(b"last")
        with pmwal.LogSet(path) as logs, logs.consumer("mail") as consumer:
            assert follow(consumer) == [b"last"]


def test_earlier_cursor_of_the_same_history_changes_nothing(path: Path, wal: pmwal.Wal) -> None:
    """Only a rollback takes a position back."""
    with wal, pmwal.LogSet(path) as logs, logs.consumer("mail") as consumer:
        records = consumer.follow(timeout=0)
        next(records)
        earlier = consumer.cursor
        assert len(list(records)) == 2
        consumer.ack()
        consumer.ack(earlier)
        assert follow(consumer) == []
