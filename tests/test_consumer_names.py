"""Where the positions of consumers are: beside the log, by its name, which is moved, linked, lost, or leads to a new file of it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import pmwal
import pmwal.aio
from callers import PATIENCE, Call
from consuming import consume, position_file
from pmwal.aio import consumers as aio_consumers
from pmwal.errors import ConsumerHeld, WalUnlinked
from pmwal.opening import open_with
from support import open_small, payloads

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


def test_positions_move_with_the_log_if_their_directory_does(path: Path) -> None:
    """Renamed alone, the log has no consumers under its new name."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
        consume(path, 1)
    new = path.with_name("new.wal")
    os.rename(path, new)
    assert consume(new, 1, name="other") == [b"a", b"b"]
    shutil.rmtree(f"{new}.consumers")
    os.rename(f"{path}.consumers", f"{new}.consumers")
    assert consume(new) == [b"b"]


def test_copy_takes_no_positions_along(path: Path, wal: pmwal.Wal) -> None:
    """Its consumers begin anew."""
    consume(path, 4)
    copy = path.with_name("copy.wal")
    shutil.copy(path, copy)
    assert consume(copy) == payloads(wal)


def test_symbolic_link_leads_to_the_same_positions(path: Path, wal: pmwal.Wal) -> None:
    """They lie beside the real path."""
    (path.parent / "sub").mkdir()
    link = path.parent / "sub" / "link.wal"
    link.symlink_to(path)
    consume(link, 4)
    assert sorted(os.listdir(link.parent)) == ["link.wal"]
    assert consume(path) == [b"e"]


def test_positions_stay_where_they_are_when_the_process_changes_its_directory(
    path: Path, wal: pmwal.Wal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path means what it meant at open."""
    (path.parent / "sub").mkdir()
    monkeypatch.chdir(path.parent)
    with pmwal.open(path.name, "r") as reader:
        monkeypatch.chdir("sub")
        with reader.consumer("nats") as consumer:
            consumer.ack(4)
    assert os.listdir(".") == []
    monkeypatch.chdir(path.parent)
    with open_small("other.wal", consumers=["nats"]) as other:
        monkeypatch.chdir("sub")
        other.append(b"a")
        consume(path.parent / "other.wal", 1)
        assert other.truncate(consumed=True) == 2
    assert consume(path) == [b"e"]


def test_log_with_several_hard_links_is_refused(path: Path, wal: pmwal.Wal) -> None:
    """Consumers under one name would not be seen under the other."""
    os.link(path, path.with_name("second.wal"))
    with pytest.raises(ValueError, match=r"2 names \(hard links\).*use symbolic links"):
        consume(path)
    assert not position_file(path).parent.exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_log_that_lost_its_name_has_no_consumers(path: Path, wal: pmwal.Wal, reader: pmwal.Reader, replaced: bool) -> None:
    """The position would lie beside nothing, or beside another log, and hold that back."""
    path.unlink()
    if replaced:
        pmwal.open(path, size="64KiB").close()
    with pytest.raises(WalUnlinked, match="open the path again"):
        reader.consumer("nats")
    assert not position_file(path).parent.exists()
    with pytest.warns(pmwal.UnlinkedWarning):
        wal.close()


# -- a new file of the same log


def give_ring(path: Path, how: str, size: str = "64KiB") -> None:
    """Resize a log that is closed or, as its writer, open."""
    if how == "open":
        with open_small(path) as wal:
            wal.resize(size)
    else:
        pmwal.resize(path, size, backup=path.with_suffix(".old") if how == "backup" else None)


@pytest.fixture
def closed(path: Path) -> Path:
    """A log with the records a to e, whose writer is gone."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c", b"d", b"e"])
    return path


@pytest.mark.parametrize("how", ["closed", "backup", "open"])
@pytest.mark.parametrize(("acknowledged", "start", "expected"), [(0, "oldest", 1), (3, "oldest", 4), (0, "newest", 6), (0, 2, 2)])
def test_consumer_begins_in_the_new_file(closed: Path, how: str, acknowledged: int, start: int | str, expected: int) -> None:
    """Its reader turns to that, whether the consumer is a new one or continues."""
    if acknowledged:
        consume(closed, acknowledged)
    with pmwal.open(closed, "r") as reader:
        give_ring(closed, how)
        give_ring(closed, how if how != "backup" else "closed", "32KiB")
        with reader.consumer("nats", start) as consumer:
            assert reader.capacity == 32768
            assert reader.stats().unlinked is False
            assert [record.seq for record in consumer.follow(timeout=0)] == list(range(expected, 6))
            consumer.ack(5)
    with open_small(closed) as wal:
        assert wal.truncate(consumed=True) == 6


@pytest.mark.parametrize("size", ["8KiB", "64KiB"])
def test_consumer_begins_while_the_writer_continues(path: Path, wal: pmwal.Wal, reader: pmwal.Reader, size: str) -> None:
    """What is stored in the new file is delivered, and what is acknowledged freed there."""
    wal.resize(size)
    wal.append(b"f")
    with reader.consumer("nats") as consumer:
        followed = consumer.follow(timeout=PATIENCE)
        assert [record.data for record in islice(followed, 6)] == [b"a", b"b", b"c", b"d", b"e", b"f"]
        wal.append(b"g")
        assert next(followed).data == b"g"
        consumer.ack(6)
        assert wal.truncate(consumed=True) == 7


def test_reads_that_began_in_the_old_file_continue(wal: pmwal.Wal, reader: pmwal.Reader) -> None:
    """They deliver each record once, in whichever file it is."""
    followed, read = reader.follow(1, timeout=PATIENCE), reader.read()
    assert [record.seq for record in islice(followed, 2)] == [1, 2]
    assert next(read).seq == 1
    wal.resize("64KiB")
    with reader.consumer("nats") as consumer:
        wal.extend([b"f", b"g"])
        assert [record.seq for record in islice(followed, 5)] == [3, 4, 5, 6, 7]
        assert [record.seq for record in read] == [2, 3, 4, 5]
        assert [record.seq for record in consumer.follow(timeout=0)] == [1, 2, 3, 4, 5, 6, 7]


def test_thread_that_follows_continues_when_another_one_begins_a_consumer(wal: pmwal.Wal, reader: pmwal.Reader) -> None:
    """Whichever of the two finds the new file."""
    followed = reader.follow(1, timeout=PATIENCE)
    assert len(list(islice(followed, 5))) == 5
    for size in ("64KiB", "32KiB", "64KiB"):
        call = Call(lambda: next(followed).seq)
        wal.resize(size)
        reader.consumer("nats").close()
        assert wal.append(b"next") == call.result()


def test_threads_begin_consumers_at_once(wal: pmwal.Wal, reader: pmwal.Reader) -> None:
    """Each is of the new file, and no file stays open after the reader."""
    with pmwal.open(reader.path, "r") as other:
        descriptors = len(os.listdir("/proc/self/fd"))
        wal.resize("64KiB")
        calls = [Call(partial(other.consumer, f"n{number}")) for number in range(4)]
        for call in calls:
            with call.result() as consumer:
                assert consumer.lag.records == 5
        assert other.capacity == 65536
    assert len(os.listdir("/proc/self/fd")) < descriptors


def test_consumer_of_a_set_begins_in_the_new_file(path: Path, wal: pmwal.Wal) -> None:
    """And acknowledges what the set hands out of it; a log that is gone has no position, but is still read."""
    with pmwal.open(path.with_name("gone.wal"), size="64KiB") as gone:
        gone.append(b"of a log that is gone")
    with pmwal.LogSet(path.parent) as logs:
        assert len(logs.logs) == 2
        Path(gone.path).unlink()
        wal.resize("64KiB")
        with logs.consumer("nats") as consumer:
            assert consumer.lag.records == 5
            assert [record.data for record in islice(consumer.follow(timeout=0), 4)] != []
            with pmwal.open(path, "r") as reader, pytest.raises(ConsumerHeld):
                reader.consumer("nats")
            assert {record.data for record in consumer.follow(timeout=0)} == {b"of a log that is gone", *payloads(wal)}
            consumer.ack()
            assert wal.truncate(consumed=True) == 6
            wal.append(b"f")
            assert [record.data for record in consumer.follow(timeout=0)] == [b"f"]
    assert not position_file(Path(gone.path)).parent.exists()


def test_consumer_of_an_event_loop_begins_in_the_new_file(path: Path, wal: pmwal.Wal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is resized right after it was opened."""
    real = open_with

    def opened(*args: Any) -> Any:
        reader = real(*args)
        wal.resize("64KiB")
        return reader

    monkeypatch.setattr(aio_consumers, "open_with", opened)

    async def main() -> list[bytes]:
        async with pmwal.aio.consumer(path, "nats") as consumer:
            got = [record.data async for record in consumer.follow(timeout=0)]
            await consumer.ack(4)
            return got

    assert asyncio.run(main()) == [b"a", b"b", b"c", b"d", b"e"]
    assert wal.truncate(consumed=True) == 5
