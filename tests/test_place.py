"""Which reader is told that its last record was rolled back: every one, and no other, wherever the tail is by then."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
import pmwal.aio
from pmwal.format.control import first_seqs, read_slots
from pmwal.format.layout import CONTROL_OFFSET, encode_slot, slot_index, slot_offset
from pmwal.reading.place import fate_of
from pmwal.reading.walk import View, Walker
from pmwal.records import Bound
from support import kill, look, open_small, overwrite, write_slot

pytestmark = pytest.mark.both_engines

GONE = "record 10, read before, was rolled back; read again from an earlier one"


def ten(path: Path, **options: Any) -> pmwal.Wal:
    """A log of ten records."""
    wal = pmwal.open(path, size="64KiB", **options)
    for number in range(1, 11):
        wal.append(b"old %d" % number)
    return wal


def follow_on(reader: pmwal.Reader) -> Callable[[], list[bytes]]:
    """A follower that has had all records so far; each call gives what is new."""
    follower: Iterator[pmwal.Record] | None = None
    following: list[int] = [record.seq for record in reader.follow(timeout=0)]

    def more() -> list[bytes]:
        nonlocal follower
        follower = reader.follow(following[-1] + 1, timeout=0) if follower is None else follower
        found = []
        for record in follower:
            found.append(record.data)
            following.append(record.seq)
        follower = None
        return found

    return more


def read_on(reader: pmwal.Reader) -> Callable[[], list[bytes]]:
    """A reader that asks for what comes after its last record."""
    last = max(record.seq for record in reader)

    def more() -> list[bytes]:
        nonlocal last
        found = list(reader.read(start=last + 1))
        last += len(found)
        return [record.data for record in found]

    return more


def consume_on(reader: pmwal.Reader) -> Callable[[], list[bytes]]:
    """One follower that waits all the time."""
    follower = reader.follow(timeout=0.2)
    list(itertools.islice(follower, reader.committed_seq))

    def more() -> list[bytes]:
        return list(itertools.islice((record.data for record in follower), 1))

    return more


WAYS = {"follow": follow_on, "read": read_on, "waiting": consume_on}


# -- rolled back, and the tail has passed it


def splice(wal: pmwal.Wal) -> None:
    """Roll back five of ten, append six others, truncate up to the last."""
    wal.rollback(after=5)
    for number in range(6, 12):
        wal.append(b"new %d" % number)
    wal.truncate(before=11)


def splice_in_steps(wal: pmwal.Wal) -> None:
    """Several rollbacks, the last of which leaves the reader's number alone."""
    wal.rollback(after=9)
    wal.extend([b"new"] * 5)
    wal.rollback(after=12)
    wal.append(b"newer 13")
    wal.truncate(before=11)


def splice_empty(wal: pmwal.Wal) -> None:
    """Roll back everything, append past the reader's number, truncate all."""
    wal.rollback(after=0)
    wal.extend([b"other"] * 10)
    wal.truncate(before=11)


SPLICES = {"splice": splice, "steps": splice_in_steps, "all": splice_empty}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SPLICES)
def test_rollback_that_the_tail_has_passed_is_an_overrun(path: Path, name: str, way: str) -> None:
    """The record after the last one exists, and is of another history."""
    with ten(path) as wal, pmwal.open(path, "r") as reader:
        more = WAYS[way](reader)
        SPLICES[name](wal)
        with pytest.raises(pmwal.Overrun, match=GONE):
            more()
        assert next(reader.read()).seq == wal.first_seq if len(wal) else list(reader) == []


@pytest.mark.parametrize("way", ["follow", "read"])
@pytest.mark.parametrize("name", SPLICES)
@pytest.mark.parametrize("end", ["close", "kill"])
def test_rollback_is_an_overrun_also_after_the_next_writer_came(path: Path, end: str, name: str, way: str) -> None:
    """The reader looks again when the writer that rolled back is gone, and another one has opened the log."""
    wal = ten(path)
    with pmwal.open(path, "r") as reader:
        more = WAYS[way](reader)
        SPLICES[name](wal)
        if end == "close":
            wal.close()
        else:
            kill(wal)
        with open_small(path, size=None):
            pass
        with pmwal.open(path) as wal:
            wal.append(b"by the next")
            with pytest.raises(pmwal.Overrun, match=GONE):
                more()


# -- not rolled back


def truncate_all(wal: pmwal.Wal) -> None:
    """Free everything that was read."""
    wal.truncate(before=11)
    wal.append(b"11")


def truncate_and_roll_back_later(wal: pmwal.Wal) -> None:
    """A rollback of records that the reader has not seen."""
    wal.extend([b"x"] * 5)
    wal.rollback(after=10)
    wal.append(b"11")
    wal.truncate(before=11)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("act", [truncate_all, truncate_and_roll_back_later])
def test_truncated_record_is_no_overrun(path: Path, act: Callable[[pmwal.Wal], None], way: str) -> None:
    """A consumer's records are truncated as it takes them; it continues."""
    with ten(path) as wal, pmwal.open(path, "r") as reader:
        more = WAYS[way](reader)
        act(wal)
        assert more() == [b"11"]


@pytest.mark.parametrize("way", ["follow", "read"])
@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize("writers", [1, 3])
def test_truncated_record_is_no_overrun_after_other_writers_came(path: Path, writers: int, end: str, way: str) -> None:
    """The tail is right after the reader's last record, and epochs have begun since, all of them after it."""
    wal = ten(path)
    with pmwal.open(path, "r") as reader:
        more = WAYS[way](reader)
        wal.truncate(before=11)
        for _ in range(writers):
            if end == "close":
                wal.close()
            else:
                kill(wal)
            wal = pmwal.open(path)
        wal.append(b"11")
        assert more() == [b"11"]
        wal.close()


def test_reader_keeps_its_place_when_another_writer_came(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last record was compared just now, so the next one is not searched for."""
    ten(path).close()
    with pmwal.open(path, "r") as reader:
        assert len(list(reader)) == 10
        with pmwal.open(path) as wal:
            wal.append(b"11")
            monkeypatch.setattr(Walker, "locate", lambda *_: pytest.fail("searched"))
            assert [record.data for record in reader.read(start=11)] == [b"11"]


def test_followers_of_one_reader_have_places_of_their_own(path: Path) -> None:
    """Only the one that was past the rollback is told."""
    with pmwal.open(path, size="64KiB") as wal, pmwal.open(path, "r") as reader:
        wal.extend([b"old"] * 3)
        ahead, late = reader.follow(timeout=0.2), reader.follow(timeout=0.2)
        for follower in (ahead, late):
            assert [record.seq for record in itertools.islice(follower, 3)] == [1, 2, 3]
        wal.extend([b"old"] * 7)
        assert [record.seq for record in itertools.islice(ahead, 7)] == list(range(4, 11))
        wal.rollback(after=5)
        wal.append(b"new")
        assert [record.data for record in itertools.islice(late, 3)] == [b"old", b"old", b"new"]
        with pytest.raises(pmwal.Overrun, match=GONE):
            next(ahead)


@pytest.mark.parametrize("name", SPLICES)
def test_follower_of_its_own_writer_is_told_too(path: Path, name: str) -> None:
    """``Wal.follow`` in the same process, whether or not the tail has passed the record."""
    with ten(path) as wal:
        follower = wal.follow(timeout=0.2)
        assert len(list(itertools.islice(follower, 10))) == 10
        SPLICES[name](wal)
        with pytest.raises(pmwal.Overrun, match="record 10 is gone: it was rolled back"):
            next(follower)
    with ten(path.with_name("other.wal")) as wal:
        follower = wal.follow(timeout=0.2)
        assert len(list(itertools.islice(follower, 10))) == 10
        wal.rollback(after=9)
        wal.append(b"another 10")
        wal.append(b"11")
        with pytest.raises(pmwal.Overrun, match="record 10 is gone: it was rolled back"):
            next(follower)


@pytest.mark.parametrize("act", [truncate_all, truncate_and_roll_back_later])
def test_follower_of_its_own_writer_is_not_told_of_what_it_had_not(path: Path, act: Callable[[pmwal.Wal], None]) -> None:
    """It continues, as a reader does."""
    with ten(path) as wal:
        follower = wal.follow(timeout=0.2)
        assert len(list(itertools.islice(follower, 10))) == 10
        act(wal)
        assert next(follower).data == b"11"


@pytest.mark.parametrize("name", SPLICES)
def test_follower_of_an_event_loop_is_told_too(path: Path, name: str) -> None:
    """``pmwal.aio`` follows the same way."""

    async def main() -> None:
        async with pmwal.aio.open(path, size="64KiB") as wal:
            await wal.extend([b"old"] * 10)
            follower = wal.follow(timeout=0.2)
            assert [(await anext(follower)).seq for _ in range(10)] == list(range(1, 11))
            SPLICES[name](wal._wal)
            with pytest.raises(pmwal.Overrun, match="record 10 is gone: it was rolled back"):
                await anext(follower)

    asyncio.run(main())


# -- another history in the same file


def two_opens(path: Path, payload: bytes) -> None:
    """Two more epochs, each with some records."""
    for _ in range(2):
        with pmwal.open(path) as wal:
            wal.extend([payload] * 5)


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("seen", ["live", "closed"])
def test_older_copy_that_was_written_back_is_an_overrun(path: Path, seen: str, truncated: bool) -> None:
    """The file has the same inode, epochs with the same numbers, and a record with the next number."""
    ten(path).close()
    older = path.read_bytes()
    with pmwal.open(path, "r") as reader:
        two_opens(path, b"first history")
        wal = pmwal.open(path)
        wal.extend([b"first history"] * 3)
        epoch = wal.stats().epoch
        if seen == "live":
            assert reader.committed_seq == 23
            assert len(list(reader)) == 23
            wal.close()
        else:
            wal.close()
            assert len(list(reader)) == 23
        overwrite(path, 0, older)
        two_opens(path, b"second history")
        with pmwal.open(path) as wal:
            wal.extend([b"second history"] * 4)
            assert wal.stats().epoch == epoch
            if truncated:
                wal.truncate(before=24)
            if truncated and seen == "closed":
                return  # nothing on the medium tells them apart
            with pytest.raises(pmwal.Overrun, match="record 23, read before"):
                list(reader.read(start=24))


def test_older_copy_with_other_first_numbers_is_an_overrun(path: Path) -> None:
    """Without a page that was seen live, the first numbers of the epochs tell."""
    ten(path).close()
    older = path.read_bytes()
    with pmwal.open(path, "r") as reader:
        two_opens(path, b"first history")
        assert len(list(reader)) == 20
        overwrite(path, 0, older)
        with pmwal.open(path) as wal:
            wal.extend([b"second history"] * 9)
        with pmwal.open(path) as wal:
            wal.extend([b"second history"] * 9)
            wal.truncate(before=21)
            with pytest.raises(pmwal.Overrun, match="record 20, read before"):
                list(reader.read(start=21))


# -- what the slots tell


def test_slots_tell_the_epochs_of_a_turn(path: Path) -> None:
    """Each epoch with its first number, from the newest slots back to the oldest that are still there."""
    wal = open_small(path, ordering="strict")
    firsts = {0: 1, 1: 1}
    for number in range(1, 6):
        wal.append(b"x")
        wal.rollback(after=number - 1)
        wal.append(b"y")
        firsts[number + 1] = number
    slots = read_slots(wal._engine.mapping.load, wal._engine.block, None)
    assert first_seqs(slots) == firsts
    for _ in range(200):
        wal.truncate(before=wal.append(b"x"))
    slots = read_slots(wal._engine.mapping.load, wal._engine.block, None)
    assert first_seqs(slots) == {6: 5}
    wal.close()


def test_epoch_that_was_given_up_does_not_count(path: Path) -> None:
    """A rollback that was interrupted after its first slot: the next slots are of the epoch before."""
    with open_small(path) as wal:
        wal.extend([b"x"] * 5)
        state = wal._engine.state
    newest = look(path).control.newest
    assert newest is not None
    stray = newest._replace(generation=newest.generation + 1, epoch=newest.epoch + 1, epoch_first_seq=2, flags=0)
    write_slot(path, stray._replace(commit_seq=1, commit_position=state.tail.position + 56))
    for after in (2, 3):
        write_slot(path, newest._replace(generation=newest.generation + after))
    with pmwal.open(path, "r") as reader:
        slots = read_slots(reader._mapping.load, reader._block, reader._scan)
        assert first_seqs(slots) == {0: 1, newest.epoch: newest.epoch_first_seq}


@pytest.mark.parametrize("epochs", [1, 2])
def test_unknown_fate_is_said_when_the_slots_do_not_reach_back(path: Path, epochs: int) -> None:
    """More than one epoch has begun, a whole turn of slots ago: nobody can tell any more. One epoch is always decided."""
    wal = open_small(path, ordering="strict")
    wal.extend([b"x"] * 10)
    with pmwal.open(path, "r") as reader:
        assert len(list(reader)) == 10
        wal.truncate(before=11)
        for _ in range(epochs):
            wal.close()
            wal = open_small(path, ordering="strict")
        for _ in range(wal._engine.block.turn + 1):
            wal.append(b"y")
        if epochs == 1:
            assert [record.seq for record in reader.read(start=11)] == list(range(11, wal.next_seq))
        else:
            with pytest.raises(pmwal.Overrun, match="record 10, read before, is gone: whether freed or rolled back is not known"):
                reader.read(start=11)
            assert next(reader.read(start=11)).seq == 11
    wal.close()


@pytest.mark.parametrize(("discards", "kept_slots"), [(True, False), (True, True), (False, True)])
def test_fate_is_known_if_an_epoch_that_is_known_decides(discards: bool, kept_slots: bool) -> None:
    """Also where some epochs since are not known. All since are known if the first of them is."""
    seen = View(Bound(0, 1), Bound(4096, 11), 1, 1)
    now = View(Bound(4096, 11), Bound(8192, 21), 4, 10 if discards else 11)
    known = {2: 11, 3: 11} if kept_slots else {3: 11}
    assert fate_of(10, seen, now, known) == ("discarded" if discards else "kept")
    assert fate_of(10, seen, now._replace(epoch_first_seq=11), {3: 11}) == "unknown"


def test_place_of_a_slot_is_that_of_its_generation(path: Path) -> None:
    """What ``write_slot`` above relies on."""
    open_small(path).close()
    judgement = look(path)
    newest, block = judgement.control.newest, judgement.identity.block
    assert newest is not None
    index = slot_index(newest.generation, block.control_pages)
    raw = path.read_bytes()[slot_offset(index) :][:64]
    assert (raw, block.control_offset) == (encode_slot(newest, block.uuid, index), CONTROL_OFFSET)
