"""Consumers of logs that are copied or resized: a resize keeps their positions, and a copy has none."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

import pmwal
import pmwal.aio
from pmwal.errors import ConsumerHeld, Overrun, PositionError, WalFull
from pmwal.format.layout import PAGE
from pmwal.format.position import POSITION, Position, encode_position, newest_position
from pmwal.reading import consumer as consumer_module
from pmwal.reading import succession
from pmwal.storage.positions import remove_position
from processes import PATIENCE
from support import BarrierRecorder, Crash, Step, contents, kill, look, open_small, overwrite, whole_records

pytestmark = pytest.mark.both_engines


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follow looks for a new file with each poll that finds no writer, and not once a second."""
    monkeypatch.setattr(succession, "_LOOK_SECONDS", 0.0)


def made(path: Path, ends: str = "closed", first: int = 1) -> list[pmwal.Record]:
    """The records of a new log, which begins with this number; numbers and positions have no simple relation in it."""
    wal = open_small(path, medium="file", on_full="overwrite")
    for number in range(40):
        wal.append(b"%d" % number * (number % 7))
    wal.truncate(before=first)
    records = list(wal)
    wal.close() if ends == "closed" else kill(wal)
    return records


def acknowledge(path: Path, seq: int, name: str = "nats", released: int | None = None) -> None:
    """Let a consumer acknowledge the records up to this one."""
    with pmwal.open(path, "r") as reader, reader.consumer(name) as consumer:
        consumer.ack(seq, released=released, application=b"app", durable=True)


def rest(path: Path, name: str = "nats") -> list[pmwal.Record]:
    """What a consumer gets now."""
    with pmwal.open(path, "r") as reader, reader.consumer(name) as consumer:
        return list(consumer.follow(timeout=0))


def fill(wal: pmwal.Wal) -> None:
    for _ in range(wal.capacity):
        wal.append(b"more")


def position_file(path: Path, name: str = "nats") -> Path:
    return Path(f"{path}.consumers", name)


def stored(path: Path, name: str = "nats") -> Position:
    found = newest_position(position_file(path, name).read_bytes())
    assert found is not None
    return found.position


def is_right(path: Path, position: Position) -> bool:
    """Whether the hints of a position say where its record is."""
    found = whole_records(path)[position.seq]
    return (position.start, position.end) == (found.position, found.end)


# -- what a resize keeps


@pytest.mark.parametrize("ends", ["closed", "killed"])
@pytest.mark.parametrize("size", ["8KiB", "1MiB"])
def test_consumer_continues_in_the_resized_log(path: Path, ends: str, size: str) -> None:
    """After its last acknowledgement, as if nothing had happened; and the writer frees the same records."""
    records = made(path, ends, first=3)
    acknowledge(path, 20)
    pmwal.resize(path, size)
    assert rest(path) == records[18:]
    with open_small(path) as wal:
        assert wal.truncate(consumed=True) == 21
        acknowledge(path, 30)
        assert wal.truncate(consumed=True) == 31
    pmwal.resize(path, "64KiB")
    assert rest(path) == records[28:]


@pytest.mark.parametrize("ends", ["closed", "killed"])
def test_positions_are_laid_anew(path: Path, ends: str) -> None:
    """Where the record is, and the epoch of the log; all else is what the consumer has acknowledged."""
    made(path, ends, first=3)
    for name, seq, released in (("one", 3, 3), ("two", 20, 7), ("three", 40, 40)):
        acknowledge(path, seq, name, released)
    before = {name: stored(path, name) for name in ("one", "two", "three")}
    assert all(is_right(path, position) for position in before.values())
    pmwal.resize(path, "64KiB")
    slot = look(path).control.newest
    assert slot is not None
    for name, old in before.items():
        new = stored(path, name)
        assert new.start != old.start
        assert is_right(path, new)
        assert (new.epoch, new.epoch_first_seq) == (slot.epoch, slot.epoch_first_seq)
        same = {"epoch": 0, "epoch_first_seq": 0, "start": 0, "end": 0, "generation": 0}
        assert new._replace(**same) == old._replace(**same)


def test_resume_after_a_resize_reads_little(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the log from its beginning: its position says where the record is now."""
    with pmwal.open(path, size="8MiB") as wal:
        for _ in range(5):
            wal.extend([bytes(1000)] * 1000)
    acknowledge(path, 4500)
    pmwal.resize(path, "16MiB")
    sizes = []
    with pmwal.open(path, "r") as reader:
        original = reader._mapping.load

        def load(offset: int, length: int) -> bytes:
            sizes.append(length)
            return original(offset, length)

        monkeypatch.setattr(reader._mapping, "load", load)
        with reader.consumer("nats") as consumer:
            assert next(iter(consumer.follow())).seq == 4501
    assert sum(sizes) < 1 << 20


@pytest.mark.parametrize("first", [1, 20, 21, 30])
def test_position_before_the_tail_stays_what_it_was(path: Path, first: int) -> None:
    """There may be no record to compare it with, and records after it may be gone."""
    made(path)
    acknowledge(path, 19)
    with open_small(path) as wal:
        wal.truncate(before=first)
        records = list(wal)
    before = position_file(path).read_bytes()
    pmwal.resize(path, "64KiB")
    if first < 20:
        assert rest(path) == [record for record in records if record.seq >= 20]
        return
    assert stored(path)._replace(generation=0) == newest_of(before)._replace(generation=0)
    if first == 20:
        assert rest(path) == records
    else:
        with pytest.raises(Overrun) as caught:
            rest(path)
        assert caught.value.missed == first - 20


def newest_of(raw: bytes) -> Position:
    found = newest_position(raw)
    assert found is not None
    return found.position


def test_resize_through_a_symbolic_link_or_from_the_directory_keeps_positions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie beside the real path."""
    records = made(path)
    acknowledge(path, 5)
    link = path.parent / "sub" / "link.wal"
    link.parent.mkdir()
    link.symlink_to(path)
    pmwal.resize(link, "64KiB")
    assert is_right(path, stored(path))
    monkeypatch.chdir(path.parent)
    assert pmwal.resize(path.name, "32KiB").path == path.name
    assert is_right(path, stored(path))
    assert (rest(link), os.listdir(link.parent)) == (records[5:], ["link.wal"])


def test_backup_of_a_resize_has_no_consumers(path: Path) -> None:
    """Its name is another one, and the log has one name only."""
    records = made(path)
    acknowledge(path, 5)
    backup = path.with_name("old.wal")
    pmwal.resize(path, "64KiB", backup=backup)
    assert rest(path) == records[5:]
    assert not Path(f"{backup}.consumers").exists()
    assert rest(backup) == records


# -- what a resize leaves alone


@pytest.mark.parametrize("how", ["damaged", "of another log", "rolled back", "past the end", "named pipe", "directory"])
def test_position_with_a_problem_is_left_alone_and_holds_everything_back(path: Path, how: str) -> None:
    """A resize cannot know better than its consumer."""
    made(path)
    file = position_file(path)
    acknowledge(path, 20)
    position = stored(path)
    if how == "damaged":
        file.write_bytes(bytes(2 * PAGE))
    elif how == "of another log":
        wrong = position._replace(uuid=bytes(16))
        file.write_bytes(encode_position(wrong, 0).ljust(PAGE, b"\0") + encode_position(wrong, 1).ljust(PAGE, b"\0"))
    elif how in ("rolled back", "past the end"):
        with open_small(path) as wal:
            wal.rollback(after=10)
            if how == "rolled back":
                wal.extend([b"other"] * 20)
    else:
        file.unlink()
        os.mkfifo(file) if how == "named pipe" else file.mkdir()
    before = file.read_bytes() if file.is_file() else None
    pmwal.resize(path, "64KiB")
    assert (file.read_bytes() if file.is_file() else None) == before
    with open_small(path) as wal:
        assert wal.truncate(consumed=True) == 1
        with pmwal.open(path, "r") as reader, pytest.raises((Overrun, PositionError, OSError)):
            list(reader.consumer("nats").follow(timeout=0))


def test_only_what_was_released_is_freed_after_a_resize(path: Path) -> None:
    """Not what was acknowledged beyond it, and nothing that a consumer has not begun with."""
    made(path)
    acknowledge(path, 20, released=7)
    acknowledge(path, 30, "other")
    pmwal.resize(path, "64KiB")
    with open_small(path) as wal:
        assert wal.truncate(consumed=True) == 8
    with open_small(path, consumers=["nats", "new"]) as wal:
        assert wal.truncate(consumed=True) == 8


def test_full_log_keeps_what_is_not_consumed_after_a_resize(path: Path) -> None:
    """Its writer waits for the consumer, as before."""
    records = made(path)
    acknowledge(path, 20)
    pmwal.resize(path, "4KiB")
    with pmwal.open(path, on_full="consumed", timeout=0) as wal:
        with pytest.raises(WalFull, match="consumer 'nats' has acknowledged record 20"):
            fill(wal)
        assert rest(path)[:20] == records[20:]
        assert wal.first_seq == 21


def test_consumer_that_is_forgotten_meanwhile_does_not_come_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold back everything, and nobody would know of it."""
    made(path)
    acknowledge(path, 20)
    original = consumer_module.standings

    def standings(log: pmwal.Reader) -> list[consumer_module.Standing]:
        found = original(log)
        remove_position(f"{path}.consumers", "nats", log._seam)
        return found

    monkeypatch.setattr(consumer_module, "standings", standings)
    pmwal.resize(path, "64KiB")
    assert os.listdir(f"{path}.consumers") == []


def test_positions_that_cannot_be_laid_anew_do_not_matter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is in its new file. Who begins the consumer finds its record, and corrects the position."""
    records = made(path)
    acknowledge(path, 20)
    before = position_file(path).read_bytes()

    def refuse(step: Step) -> None:
        if step.name in ("write", "sync position") and step.length == POSITION.size:
            raise OSError(5, os.strerror(5))

    pmwal.resize(path, "64KiB", seam=BarrierRecorder(refuse))
    assert newest_of(position_file(path).read_bytes()) == newest_of(before)
    assert rest(path) == records[20:]
    assert is_right(path, stored(path))


# -- crashes


@pytest.mark.parametrize("ends", ["closed", "killed"])
def test_crash_at_any_step_of_a_resize_keeps_the_positions(path: Path, ends: str) -> None:
    """In the old file as in the new one, laid anew or not, or torn: each names the record that its consumer has acknowledged."""
    records = made(path, ends, first=5)
    acknowledge(path, 20, released=10)
    acknowledge(path, 30, "other")
    log, positions = path.read_bytes(), {name: position_file(path, name).read_bytes() for name in ("nats", "other")}
    states, count, finished = set[tuple[int, bool, bool]](), 0, False
    while not finished:
        for left in path.parent.glob(".pmwal-new-*"):
            left.unlink()
        path.unlink()
        path.write_bytes(log)
        for name, raw in positions.items():
            position_file(path, name).write_bytes(raw)
        finished = resized_up_to(path, count)
        count += 1
        states.add(check_positions(path, records, None))
        check_positions(path, records, positions)
    assert states == {(16384, True, True), (65536, False, False), (65536, True, False), (65536, True, True)}


def resized_up_to(path: Path, count: int) -> bool:
    """Resize a log, and crash before the step after so many; whether it came to its end."""

    def hook(step: Step) -> None:
        nonlocal count
        del step
        if count == 0:
            raise Crash
        count -= 1

    try:
        pmwal.resize(path, "64KiB", seam=BarrierRecorder(hook))
    except Crash:
        return False
    return True


def check_positions(path: Path, records: list[pmwal.Record], before: dict[str, bytes] | None) -> tuple[int, bool, bool]:
    """What consumers and writer find there, on a copy; the capacity, and which positions have right hints.

    ``before``: what the positions were; a slot that was stored since is torn.
    """
    directory = path.parent / "after"
    directory.mkdir()
    copy = directory / path.name
    shutil.copy(path, copy)
    shutil.copytree(f"{path}.consumers", f"{copy}.consumers")
    for name, raw in ({} if before is None else before).items():
        now = position_file(copy, name).read_bytes()
        for at in (0, PAGE):
            if now[at : at + POSITION.size] != raw[at : at + POSITION.size]:
                overwrite(position_file(copy, name), at + 20, b"torn")
    right = is_right(copy, stored(copy)), is_right(copy, stored(copy, "other"))
    with open_small(copy) as wal:
        capacity = wal.capacity
        assert wal.truncate(consumed=True) == 11
        assert (rest(copy), rest(copy, "other")) == (records[16:], records[26:])
        acknowledge(copy, 25, released=25)
        assert wal.truncate(consumed=True) == 26
    shutil.rmtree(directory)
    return capacity, *right


# -- consumers that run meanwhile


def test_consumer_that_runs_continues(path: Path) -> None:
    """With the next record; its acknowledgements say where records are in the new file, and free them there."""
    records = made(path, "killed")
    with pmwal.open(path, "r") as reader, reader.consumer("nats") as consumer:
        followed = consumer.follow(timeout=PATIENCE)
        assert list(islice(followed, 40)) == records
        consumer.ack(20)
        before = position_file(path).read_bytes()
        pmwal.resize(path, "64KiB")
        assert position_file(path).read_bytes() == before
        consumer.ack(21)  # the reader has the old file
        with open_small(path) as wal:
            assert wal.truncate(consumed=True) == 22
            wal.extend([b"41", b"42", b"43"])
            assert [next(followed).data for _ in range(2)] == [b"41", b"42"]
            for seq in (30, 42):  # of the old file, and the last one
                consumer.ack(seq)
                assert is_right(path, stored(path))
                assert wal.truncate(consumed=True) == seq + 1
            assert consumer.lag.records == 1
            assert [record.data for record in consumer.follow(timeout=0)] == [b"43"]
        assert reader.capacity == 65536


def test_last_record_of_the_new_file_is_acknowledged_without_a_search(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``follow`` has noted where it is, as in the old file."""
    made(path, "killed")
    with pmwal.open(path, "r") as reader, reader.consumer("nats", 40) as consumer:
        followed = consumer.follow(timeout=PATIENCE)
        assert next(followed).seq == 40
        pmwal.resize(path, "64KiB")
        with open_small(path) as wal:
            wal.append(b"41")
            assert next(followed).seq == 41
            monkeypatch.setattr(consumer, "_sought", None)
            consumer.ack(41)
        assert is_right(path, stored(path))


def test_record_of_the_old_file_is_acknowledged_when_the_reader_has_the_new_one(path: Path) -> None:
    """It is looked for where it is by now, and not where it was when it was handed out."""
    records = made(path, "killed", first=11)
    with pmwal.open(path, "r") as reader, reader.consumer("nats") as consumer:
        followed = consumer.follow(timeout=PATIENCE)
        assert list(islice(followed, 30)) == records
        pmwal.resize(path, "64KiB")
        assert list(reader.follow(41, timeout=0.1)) == []  # which has found the new file
        assert reader.capacity == 65536
        for seq in (20, 40):
            consumer.ack(seq)
            assert (stored(path).seq, consumer.cursor) == (seq, records[seq - 11].cursor)
        with open_small(path) as wal:
            assert wal.truncate(consumed=True) == 41


def test_other_threads_acknowledge_while_the_log_is_resized(path: Path) -> None:
    """Whichever file the reader has by then."""
    made(path, "killed")
    failed: list[BaseException] = []
    with pmwal.open(path, "r") as reader, reader.consumer("nats") as consumer:
        followed = consumer.follow(timeout=PATIENCE)
        seen = [next(followed) for _ in range(40)]
        stop = threading.Event()

        def acknowledge_all() -> None:
            try:
                for seq in range(1, 43):
                    while seq > seen[-1].seq and not stop.is_set():
                        stop.wait(0.001)
                    if not stop.is_set():
                        consumer.ack(seq)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=acknowledge_all)
        thread.start()
        try:
            pmwal.resize(path, "64KiB")
            with open_small(path) as wal:
                wal.extend([b"41", b"42"])
                seen += [next(followed), next(followed)]
                thread.join(PATIENCE)
        finally:
            stop.set()
            thread.join()
        assert failed == []
        assert stored(path).seq == 42


def test_consumer_of_a_set_continues_in_the_resized_log(shm_dir: Path) -> None:
    """Its position is of the log, and the log is the same one."""
    paths = [shm_dir / "00.wal", shm_dir / "01.wal"]
    for number, path in enumerate(paths):
        with pmwal.open(path, size="16KiB") as wal:
            wal.extend([b"%d" % number, b"%d again" % number])
    with pmwal.LogSet(shm_dir) as logs, logs.consumer("nats") as consumer:
        followed = consumer.follow(timeout=PATIENCE)
        assert len(list(islice(followed, 4))) == 4
        consumer.ack()
        pmwal.resize(paths[0], "64KiB")
        with open_small(paths[0]) as wal:
            wal.extend([b"new", b"newer"])
            assert next(followed).data == b"new"
            assert consumer.lag.records == 2
            consumer.ack()
            assert consumer.lag.records == 1
            assert wal.truncate(consumed=True) == 4
        with pmwal.LogSet(shm_dir) as others, pytest.raises(ConsumerHeld):
            others.consumer("nats")
    with pmwal.LogSet(shm_dir) as logs, logs.consumer("nats") as consumer:
        assert [record.data for record in consumer.follow(timeout=0)] == [b"newer"]


def test_consumer_of_an_event_loop_continues(path: Path) -> None:
    """It reads in advance, so it acknowledges records of the old file when it has the new one."""
    made(path, "killed")

    async def consume() -> list[int]:
        seen = []
        async with pmwal.aio.consumer(path, "nats") as consumer:
            async for record in consumer.follow(timeout=PATIENCE):
                seen.append(record.seq)
                await consumer.ack(record.seq)
                if record.seq == 40:
                    pmwal.resize(path, "64KiB")
                    with open_small(path) as wal:
                        wal.extend([b"41", b"42"])
                if record.seq == 42:
                    return seen
        return seen

    assert asyncio.run(consume()) == [*range(1, 43)]
    assert stored(path).seq == 42
    assert is_right(path, stored(path))


# -- copies, and labels


def test_copy_has_no_consumers(path: Path) -> None:
    """Whoever begins one there gets everything, and nothing of the log's own is freed."""
    records = made(path)
    acknowledge(path, 20)
    before, copy = position_file(path).read_bytes(), path.with_name("copy.wal")
    pmwal.copy(path, copy)
    assert not Path(f"{copy}.consumers").exists()
    assert position_file(path).read_bytes() == before
    with open_small(copy) as wal:
        assert wal.truncate(consumed=True) == 1
        assert rest(copy) == records
    assert rest(path) == records[20:]


def test_copy_to_a_path_with_positions_of_an_older_log_frees_nothing(path: Path) -> None:
    """Also if that was the source of the copy: a copy is another log."""
    made(path)
    acknowledge(path, 20)
    copy = path.with_name("copy.wal")
    shutil.copytree(f"{path}.consumers", f"{copy}.consumers")
    pmwal.copy(path, copy)
    with open_small(copy) as wal:
        assert wal.truncate(consumed=True) == 1
        with pytest.raises(PositionError, match="another log"):
            rest(copy)


@pytest.fixture
def labelled(path: Path) -> Path:
    with closing(pmwal.open(path, size="64KiB", label="orders of shop 7")) as wal:
        wal.append(b"record")
    return path


def test_label_is_kept(labelled: Path) -> None:
    """It is the log's name for people, and a copy is for the same ones."""
    copy = labelled.with_name("copy.wal")
    pmwal.copy(labelled, copy, size="128KiB")
    pmwal.resize(labelled, "1MiB")
    for path in (labelled, copy):
        with pmwal.open(path, label="orders of shop 7") as wal:
            assert (wal.label, contents(wal)) == ("orders of shop 7", [(1, b"record")])
