"""Named consumers over a reader: where they begin and resume, what they acknowledge, and how they recognise another history."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import pmwal
from callers import Call
from conftest import Place
from consuming import consume, position_file
from pmwal.errors import CorruptWal, ForkedWal, Overrun, PersistError, PositionError, WalClosed
from pmwal.format.layout import PAGE, POSITION_MAX
from pmwal.format.position import encode_position, newest_position
from processes import PATIENCE
from support import contents, kill, open_small, overwrite, payloads

pytestmark = pytest.mark.both_engines


@pytest.fixture
def wal(path: Path) -> Iterator[pmwal.Wal]:
    """A log with the records a to e."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c", b"d", b"e"])
        yield wal
    # closed by the block


@pytest.fixture
def reader(path: Path, wal: pmwal.Wal) -> Iterator[pmwal.Reader]:
    """A reader beside the writer."""
    with pmwal.open(path, "r") as reader:
        yield reader


def test_earlier_record_of_a_follow_beside_its_writer_can_be_acknowledged(path: Path) -> None:
    """Not only the last one that was handed out: each was there when it was."""
    with open_small(path) as wal, pmwal.open(path, "r") as reader, reader.consumer("nats") as consumer:
        records, got = consumer.follow(timeout=PATIENCE), []
        for _ in range(10):
            wal.append(b"x")
            got.append(next(records).seq)
        for seq in got[:-1]:
            consumer.ack(seq)
            assert consumer.position == seq
        with pytest.raises(ValueError, match="there is no record 11 to acknowledge"):
            consumer.ack(11)


# -- where it begins and resumes


def test_unacknowledged_records_are_delivered_again(place: Place) -> None:
    """At least once, on every medium."""
    with open_small(place.path, **place.options) as wal:
        wal.extend([b"a", b"b", b"c"])
        assert consume(place.path, 1) == [b"a", b"b", b"c"]
        assert consume(place.path, 2) == [b"b", b"c"]
        assert consume(place.path) == []
        wal.append(b"d")
        assert consume(place.path) == [b"d"]
    assert consume(place.path) == []


def test_each_name_has_a_position_of_its_own(path: Path, wal: pmwal.Wal) -> None:
    """They do not hold each other up."""
    consume(path, 4, "one")
    assert consume(path, name="two") == payloads(wal)
    assert consume(path, name="one") == [b"e"]


@pytest.mark.parametrize(
    ("start", "expected"),
    [("oldest", [b"b", b"c", b"d", b"e"]), ("newest", []), (3, [b"c", b"d", b"e"]), (6, []), ("cursor", [b"d", b"e"])],
)
def test_new_consumer_begins_where_it_is_told(path: Path, wal: pmwal.Wal, start: int | str, expected: list[bytes]) -> None:
    """An existing one continues, whatever ``start`` says."""
    cursor = wal[3].cursor
    wal.truncate(before=2)
    start = cursor if start == "cursor" else start
    with pmwal.open(path, "r") as reader, reader.consumer("nats", start) as consumer:
        assert consumer.lag.records == len(expected)
    assert consume(path, start="oldest") == expected


@pytest.mark.parametrize(("start", "error"), [(1, Overrun), (7, ValueError), ("9-00000000", Overrun), ("nonsense", ValueError)])
def test_start_that_is_not_there_makes_no_consumer(path: Path, wal: pmwal.Wal, start: int | str, error: type[Exception]) -> None:
    """Nothing is left of it."""
    wal.truncate(before=2)
    with pmwal.open(path, "r") as reader, pytest.raises(error):
        reader.consumer("nats", start)
    assert not position_file(path).exists()


def test_consumer_of_an_empty_log_begins_with_its_first_record(path: Path) -> None:
    """Whether it starts with the oldest or the newest."""
    with open_small(path) as wal:
        for name, start in (("one", "oldest"), ("two", "newest")):
            with pmwal.open(path, "r") as reader, reader.consumer(name, start) as consumer:
                assert (consumer.position, consumer.cursor, consumer.lag) == (0, "", (0, 0, 0.0))
        wal.append(b"a")
        assert consume(path, name="one") == consume(path, name="two") == [b"a"]


def test_consumer_follows_a_writer(path: Path, wal: pmwal.Wal, reader: pmwal.Reader) -> None:
    """Records that come while it waits, and the end when the writer closes the log."""
    with reader.consumer("nats", "newest") as consumer:
        wal.append(b"0")
        records = consumer.follow(timeout=60)
        got = [next(records).data]  # so it has met the writer, and notices its end
        writer = Call(lambda: [wal.append(b"%d" % number) for number in range(1, 100)] and wal.close())
        for record in records:
            got.append(record.data)
            consumer.ack(record.seq)
        writer.result()
        assert got == [b"%d" % number for number in range(100)]
        assert (consumer.position, consumer.lag.records) == (105, 0)


def test_position_survives_the_end_of_the_writer(path: Path) -> None:
    """A killed one, and the recovery of the next."""
    wal = open_small(path)
    wal.extend([b"a", b"b", b"c"])
    consume(path, 2)
    kill(wal)
    assert consume(path, 1) == [b"c"]
    with open_small(path) as wal:
        wal.append(b"d")
        assert consume(path) == [b"d"]


def test_resume_reads_little_however_long_the_log_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint in the position leads to the record; with a wrong one it is found all the same."""
    with pmwal.open(path, size="16MiB") as wal:
        for _ in range(10):
            wal.extend([bytes(1000)] * 1000)
        with pmwal.open(path, "r") as reader, reader.consumer("nats", 9000) as consumer:
            consumer.ack(9500)
        assert bytes_loaded_to_resume(path, monkeypatch) < 1 << 20
        spoil(path, start=64, end=128)
        bytes_loaded_to_resume(path, monkeypatch)


def bytes_loaded_to_resume(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How much a consumer reads of the log until it has the record after its position."""
    sizes = []
    with pmwal.open(path, "r") as reader:
        original = reader._mapping.load

        def load(offset: int, length: int) -> bytes:
            sizes.append(length)
            return original(offset, length)

        monkeypatch.setattr(reader._mapping, "load", load)
        with reader.consumer("nats") as consumer:
            assert next(iter(consumer.follow())).seq == 9501
    return sum(sizes)


def spoil(path: Path, **fields: int) -> None:
    """Store other values in both slots of a position."""
    file = position_file(path)
    stored = newest_position(file.read_bytes())
    assert stored is not None
    for page in range(2):
        overwrite(file, page * PAGE, encode_position(stored.position._replace(**fields), page))


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 1), (7, 9), (0, POSITION_MAX), (POSITION_MAX, POSITION_MAX), (64, 100_000), (16384, 16448), (1 << 61, 1 << 62)],
)
def test_wrong_hint_changes_nothing(path: Path, wal: pmwal.Wal, start: int, end: int) -> None:
    """What is delivered, what is freed and what the next acknowledgement says do not depend on it."""
    consume(path, 2)
    spoil(path, start=start, end=end)
    with pmwal.open(path, "r") as reader, reader.consumer("nats") as consumer:
        assert consumer.lag.records == 3
        assert consumer.lag.seconds > 0
        consumer.ack(4)
        assert consumer.cursor == wal[4].cursor
    consume(path, 1)
    spoil(path, start=start, end=end)
    assert wal.truncate(consumed=True) == 6
    assert consume(path) == []


# -- acknowledging


def test_acknowledgement_is_cumulative_and_never_goes_back(path: Path, reader: pmwal.Reader) -> None:
    """An older number changes nothing."""
    with reader.consumer("nats") as consumer:
        for record in consumer.follow(timeout=0):
            if record.seq == 4:
                consumer.ack(4)
                consumer.ack(2)
        assert (consumer.position, consumer.cursor) == (4, reader[4].cursor)
        consumer.ack(5)
        consumer.ack(5, durable=True)
        assert consumer.position == 5


@pytest.mark.parametrize("seq", [1, 3, 5])
def test_any_record_can_be_acknowledged(path: Path, wal: pmwal.Wal, reader: pmwal.Reader, seq: int) -> None:
    """Delivered or not, the last one or an earlier one: the position is that of the record."""
    with reader.consumer("one") as one, reader.consumer("two") as two:
        assert [record.seq for record in one.follow(timeout=0)] == [1, 2, 3, 4, 5]
        one.ack(seq)
        two.ack(seq)
        assert one.cursor == two.cursor == wal[seq].cursor
    assert consume(path, name="one") == consume(path, name="two") == payloads(wal)[seq:]


def test_cursor_of_another_record_acknowledges_nothing(wal: pmwal.Wal, reader: pmwal.Reader) -> None:
    """Its number may be that of a record that nobody has had."""
    cursor = wal[4].cursor
    wal.rollback(after=3)
    wal.extend([b"D", b"E"])
    with reader.consumer("nats") as consumer:
        consumer.ack(reader[3].cursor)
        with pytest.raises(Overrun, match="not the one that the cursor names"):
            consumer.ack(cursor)
        assert consumer.position == 3
        consumer.ack(wal[4].cursor)
        assert consumer.cursor == wal[4].cursor


def test_record_past_the_end_cannot_be_acknowledged(reader: pmwal.Reader) -> None:
    """It would be skipped once it is stored."""
    with reader.consumer("nats") as consumer:
        with pytest.raises(ValueError, match="there is no record 6 to acknowledge; the log holds 1 to 5"):
            consumer.ack(6)
        assert consumer.position == 0


def test_record_that_was_truncated_meanwhile_can_be_acknowledged(path: Path, wal: pmwal.Wal, reader: pmwal.Reader) -> None:
    """It was delivered, so the consumer has had it."""
    with reader.consumer("nats") as consumer:
        assert len(list(consumer.follow(timeout=0))) == 5
        wal.truncate(before=4)
        consumer.ack(3)
        assert consumer.position == 3
    assert consume(path) == [b"d", b"e"]


def test_other_threads_acknowledge_while_one_follows(path: Path, wal: pmwal.Wal, reader: pmwal.Reader) -> None:
    """Workers finish in any order."""
    with reader.consumer("nats") as consumer:
        records = consumer.follow(timeout=60)
        assert [next(records).seq for _ in range(5)] == [1, 2, 3, 4, 5]
        waiting = Call(partial(next, records, None))
        workers = [Call(partial(consumer.ack, seq)) for seq in (3, 1, 4)]
        for worker in workers:
            worker.result()
        assert consumer.position == 4
        wal.append(b"f")
        waiting.result()


@pytest.mark.parametrize(("kind", "syncs"), [("memory", 0), ("dax", 2)])
def test_acknowledgements_on_dax_are_durable(reader: pmwal.Reader, monkeypatch: pytest.MonkeyPatch, kind: str, syncs: int) -> None:
    """Persistent memory may tear a slot that the writer has relied on."""
    monkeypatch.setattr(reader._mapping, "medium", replace(reader._mapping.medium, kind=kind))
    with reader.consumer("nats") as consumer:
        synced: list[int] = []
        monkeypatch.setattr(os, "fdatasync", synced.append)
        consumer.ack(1)
        consumer.ack(2)
        assert len(synced) == syncs


def test_released_and_application_are_kept_with_the_position(path: Path, reader: pmwal.Reader) -> None:
    """They change only where they are given, ``released`` only forwards, and neither with a number before the position."""
    with reader.consumer("nats") as consumer:
        consumer.ack(4, released=2, application=b"state")
        consumer.ack(4, released=1)
        assert consumer.application == b"state".ljust(64, b"\0")
    with reader.consumer("nats") as consumer:
        consumer.ack(3, released=3, application=b"older")
        assert consumer.application == b"state".ljust(64, b"\0")
        consumer.ack(4, application=b"other")
        assert consumer.application == b"other".ljust(64, b"\0")
        assert (consumer.position, stored(path).released) == (4, 2)
        consumer.ack(5)
        assert stored(path).released == 5
        with pytest.raises(ValueError, match="released=6 is past the position, 5"):
            consumer.ack(5, released=6)
        with pytest.raises(ValueError, match="released=-1 is no record; released=0 lets none be freed"):
            consumer.ack(5, released=-1)
        with pytest.raises(ValueError, match="65 bytes; there is room for 64"):
            consumer.ack(5, application=bytes(65))


def stored(path: Path) -> pmwal.format.position.Position:
    found = newest_position(position_file(path).read_bytes())
    assert found is not None
    return found.position


def test_lag_counts_records_bytes_and_seconds(path: Path) -> None:
    """From the position to the end; the seconds are the age of the oldest record."""
    with open_small(path) as wal, pmwal.open(path, "r") as reader, reader.consumer("nats") as consumer:
        wal.extend([bytes(16)] * 4)
        consumer.ack(1)
        assert consumer.lag[:2] == (3, 3 * 64)
        assert consumer.lag.seconds > 0
        wal.truncate(before=3)
        assert consumer.lag[:2] == (2, 2 * 64)
        consumer.ack(4)
        assert consumer.lag == (0, 0, 0.0)


# -- another history


def test_rollback_behind_a_position_is_recognised(path: Path, wal: pmwal.Wal) -> None:
    """Before and after other records have taken the numbers; seek() continues."""
    consume(path, 4)
    wal.rollback(after=2)
    for data in (b"C", b"D", b"E"):
        with pytest.raises(Overrun, match=r"consumer 'nats': .* rolled back.*; continue with seek\(\)"):
            consume(path)
        wal.append(data)
    with pmwal.open(path, "r") as reader, reader.consumer("nats") as consumer:
        with pytest.raises(Overrun, match="another one than it acknowledged"):
            consumer.follow()
        consumer.seek(3)
        assert consumer.position == 2
    assert consume(path) == [b"C", b"D", b"E"]


@pytest.mark.parametrize("move", ["ack", "seek"])
def test_rollback_before_a_move_is_no_damage(wal: pmwal.Wal, reader: pmwal.Reader, move: str) -> None:
    """The reader has not noticed it yet: where its last record ended, nothing begins any more."""
    with reader.consumer("nats") as consumer:
        consumer.ack(4)
        list(reader)
        wal.rollback(after=2)
        wal.extend([bytes(100 + 16 * length) for length in range(10)])
        getattr(consumer, move)(9)
        assert consumer.position == {"ack": 9, "seek": 8}[move]
        assert [record.seq for record in consumer.follow(timeout=0)] == [9, 10, 11, 12][consumer.position - 8 :]


def test_rollback_after_a_position_changes_nothing(path: Path, wal: pmwal.Wal) -> None:
    """The records before it are those that were acknowledged."""
    consume(path, 2)
    wal.rollback(after=2)
    wal.append(b"C")
    assert consume(path) == [b"C"]


@pytest.mark.parametrize("begun", [False, True])
def test_rollback_is_recognised_when_the_tail_has_passed_it(path: Path, wal: pmwal.Wal, begun: bool) -> None:
    """The slots name the epoch that began at or before the record. ``begun``: the consumer began while another one was there."""
    consume(path, 4)
    wal.rollback(after=2)
    wal.extend([b"C", b"D", b"E"])
    if begun:
        with pytest.raises(Overrun, match="record 4 is another one than it acknowledged"):
            consume(path)
    wal.truncate(before=5)
    with pytest.raises(Overrun, match="record 4, which it acknowledged, was rolled back"):
        consume(path)


def test_position_right_before_the_tail_stays_good_over_many_opens(path: Path) -> None:
    """Although the slots do not reach back to the epoch in which it was stored."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
        consume(path)
        wal.append(b"c")
        wal.truncate(before=3)
    for _ in range(80):  # two control pages have 128 slots, and an open takes three
        open_small(path).close()
    assert consume(path) == [b"c"]


def test_acknowledging_a_record_that_was_rolled_back_skips_nothing(path: Path, wal: pmwal.Wal, reader: pmwal.Reader) -> None:
    """The position names the record that was delivered, and so the next follow notices."""
    with reader.consumer("nats") as consumer:
        assert len(list(consumer.follow(timeout=0))) == 5
        wal.rollback(after=3)
        wal.extend([b"D", b"E"])
        consumer.ack(5)
        with pytest.raises(Overrun, match="record 5 is another one"):
            consumer.follow()
        consumer.seek(4)
        assert [record.data for record in consumer.follow(timeout=0)] == [b"D", b"E"]


def test_truncated_records_are_missed_and_counted(path: Path, wal: pmwal.Wal) -> None:
    """Nobody has held them back."""
    consume(path, 1)
    wal.truncate(before=4)
    with pytest.raises(Overrun, match="record 2 is gone: the log now begins at 4") as caught:
        consume(path)
    assert caught.value.missed == 2
    with pmwal.open(path, "r") as reader, reader.consumer("nats") as consumer:
        consumer.seek("oldest")
        assert [record.data for record in consumer.follow(timeout=0)] == [b"d", b"e"]


def test_older_copy_of_the_log_is_recognised(path: Path) -> None:
    """Restored beside the positions: before and after it has records of the same numbers."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    with open_small(path) as wal:
        wal.extend([b"c", b"d"])
        consume(path, 4)
    os.replace(copy, path)
    with pytest.raises(Overrun, match=r"there is no record 4.*the log was restored"):
        consume(path)
    with open_small(path) as wal:
        wal.extend([b"C", b"D", b"E"])
        with pytest.raises(Overrun, match="record 4 is another one"):
            consume(path)


# -- positions that cannot be used


def test_position_of_another_log_is_an_error_that_says_what_to_do(path: Path) -> None:
    """A new log at the path of an old one: what was consumed of that says nothing about this."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
        consume(path)
    path.unlink()
    with pmwal.open(path, size="64KiB") as wal:
        wal.extend([b"A", b"B", b"C"])
        with pytest.raises(PositionError, match=r"another log, which had this path before.*--forget nats"):
            consume(path)
    position_file(path).unlink()
    assert consume(path) == [b"A", b"B", b"C"]


def test_damaged_position_is_an_error_that_says_what_to_do(path: Path, wal: pmwal.Wal) -> None:
    """One damaged slot leaves the other, which may deliver more again."""
    consume(path, 2)
    consume(path, 1)
    file = position_file(path)
    newest = newest_position(file.read_bytes())
    assert newest is not None
    overwrite(file, newest.page * PAGE + 40, b"damage")
    assert consume(path, 1) in ([b"c", b"d", b"e"], [b"d", b"e"])
    for page in range(2):
        overwrite(file, page * PAGE + 40, b"damage")
    with pytest.raises(PositionError, match="neither of its two slots is whole"):
        consume(path)


# -- the handle


def test_closed_consumer_does_nothing(reader: pmwal.Reader) -> None:
    """Neither does one of a closed reader."""
    consumer = reader.consumer("nats")
    consumer.close()
    consumer.close()
    calls: list[Callable[[], object]] = [
        lambda: consumer.ack(1),
        consumer.follow,
        lambda: consumer.seek(1),
        consumer.__enter__,
    ]
    for call in calls:
        with pytest.raises(WalClosed, match="this consumer is closed"):
            call()
    assert consumer.closed
    assert repr(consumer).endswith("closed>")
    with reader.consumer("nats") as other:
        reader.close()
        with pytest.raises(WalClosed):
            other.ack(1)


def test_forked_child_is_not_the_consumer(reader: pmwal.Reader) -> None:
    """Two processes would move one position."""
    with reader.consumer("nats") as consumer:
        child = os.fork()
        if not child:
            try:
                consumer.ack(1)
            except ForkedWal:
                consumer.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        consumer.ack(2)
        assert consumer.position == 2


def test_salvage_has_no_consumers(path: Path, wal: pmwal.Wal) -> None:
    """Numbers may be missing."""
    with pmwal.open(path, "r", recover="salvage") as reader, pytest.raises(ValueError, match="without recover"):
        reader.consumer("nats")


def test_damaged_record_ends_a_consumer_as_it_ends_a_reader(path: Path, wal: pmwal.Wal) -> None:
    """It is not passed over."""
    consume(path, 2)
    state = wal._engine.state
    at = wal._engine.find(3).position
    overwrite(path, wal._engine.block.ring_offset + at + 48, b"x")
    assert state.head.next_seq == 6
    with pytest.raises(CorruptWal):
        consume(path)


def test_failed_store_is_final(reader: pmwal.Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer begins again with what is durable."""
    with reader.consumer("nats") as consumer:
        consumer.ack(2, durable=True)
        consumer.ack(3)
        monkeypatch.setattr(os, "fdatasync", _fail)
        with pytest.raises(PersistError):
            consumer.ack(4, durable=True)
        monkeypatch.undo()
        with pytest.raises(PersistError):
            consumer.ack(5)
    with reader.consumer("nats") as consumer:
        assert consumer.position == 2


def _fail(fd: int) -> None:
    raise OSError(5, "Input/output error")


def test_contents_are_not_changed_by_consumers(path: Path, wal: pmwal.Wal) -> None:
    """Their positions are not in the log."""
    before = path.read_bytes()[2 * PAGE :]
    consume(path, 3)
    assert path.read_bytes()[2 * PAGE :] == before
    assert contents(wal)[0] == (1, b"a")
