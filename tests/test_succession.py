"""A follow continues when its log is put into a new file under its name, and only then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

import pmwal
from pmwal.reading import succession
from pmwal.reading.reader import Reader
from processes import PATIENCE
from support import kill, open_small

pytestmark = pytest.mark.both_engines


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is looked at with each poll that finds no writer, and not once a second."""
    monkeypatch.setattr(succession, "_LOOK_SECONDS", 0.0)


def take(follower: Iterator[pmwal.Record], count: int) -> list[bytes]:
    """The payloads of the next records."""
    return [record.data for record in islice(follower, count)]


def store(path: Path, *payloads: bytes) -> None:
    """Append records with a writer that closes the log."""
    with pmwal.open(path, "r+") as wal:
        for payload in payloads:
            wal.append(payload)


def begun(path: Path, end: str) -> tuple[Reader, Iterator[pmwal.Record]]:
    """A reader, and its follow that has delivered both records of a log; whose writer it met, unless ``end`` is "unmet"."""
    wal = open_small(path, medium="file")
    wal.extend([b"one", b"two"])
    if end == "unmet":
        wal.close()
    reader = pmwal.open(path, "r")
    follower = reader.follow(timeout=PATIENCE)
    assert take(follower, 2) == [b"one", b"two"]
    if end == "closed":
        wal.close()
    elif end == "killed":
        kill(wal)
    return reader, follower


@pytest.mark.parametrize("end", ["closed", "killed", "unmet"])
@pytest.mark.parametrize("size", ["8KiB", "1MiB"])
def test_follow_continues_in_the_resized_log(path: Path, end: str, size: str) -> None:
    """With the very next record, and again after a second resize."""
    reader, follower = begun(path, end)
    with reader:
        pmwal.resize(path, size)
        store(path, b"three", b"four")
        assert take(follower, 2) == [b"three", b"four"]
        pmwal.resize(path, "128KiB")
        with pmwal.open(path, "r+") as wal:
            wal.append(b"five")
            assert take(follower, 1) == [b"five"]
        assert take(follower, 1) == []
        assert [record.data for record in reader] == [b"one", b"two", b"three", b"four", b"five"]
        assert (reader.capacity, reader.stats().unlinked) == (131072, False)


def test_reader_of_an_older_version_ends_with_the_old_file(path: Path) -> None:
    """It does not look at the path, and finds that the log whose writer was killed is closed by now."""
    reader, follower = begun(path, "killed")
    with reader:
        reader._succession._open_again = None
        pmwal.resize(path, "64KiB")
        assert take(follower, 1) == []
        assert reader.stats().unlinked


@pytest.mark.parametrize("end", ["killed", "unmet"])
def test_follow_goes_on_without_a_writer_of_the_new_file(path: Path, end: str) -> None:
    """It waits for one there, as it did in the old file."""
    reader, _ = begun(path, end)
    with reader:
        follower = reader.follow(3, timeout=0.2)
        pmwal.resize(path, "64KiB")
        assert take(follower, 1) == []
        assert reader.capacity == 65536
        store(path, b"three")
        assert take(reader.follow(3, timeout=0), 1) == [b"three"]


def test_follow_does_not_continue_in_another_log(path: Path) -> None:
    """A new log with the name is none of this one's files."""
    reader, follower = begun(path, "closed")
    with reader:
        path.unlink()
        with open_small(path) as wal:
            wal.extend([b"other"] * 5)
        os.rename(path, path.with_name("other.wal"))
        pmwal.open(path, size="64KiB").close()
        store(path, *[b"other"] * 5)
        assert take(follower, 1) == []


@pytest.mark.parametrize("older", ["shorter", "longer"])
def test_older_copy_with_the_name_is_an_overrun(path: Path, older: str) -> None:
    """It has the uuid, but not the record that was delivered last, whether it is shorter or has another one."""
    with open_small(path, medium="file") as wal:
        wal.append(b"one")
    backup = path.with_name("backup.wal")
    backup.write_bytes(path.read_bytes())
    if older == "longer":
        store(backup, b"2", b"3", b"4")
    store(path, b"two")
    with pmwal.open(path, "r") as reader:
        follower = reader.follow(timeout=PATIENCE)
        assert take(follower, 2) == [b"one", b"two"]
        os.replace(backup, path)
        with pytest.raises(pmwal.Overrun, match="record 2"):
            next(follower)


def test_records_that_were_truncated_after_a_resize_are_an_overrun(path: Path) -> None:
    """As they would be in the old file."""
    reader, follower = begun(path, "killed")
    with reader:
        pmwal.resize(path, "64KiB")
        store(path, b"three", b"four", b"five")
        with pmwal.open(path, "r+") as wal:
            wal.truncate(before=5)
        with pytest.raises(pmwal.Overrun) as caught:
            next(follower)
        assert caught.value.missed == 2


def test_follows_of_one_reader_continue_each_from_its_own_record(path: Path) -> None:
    """Also one that has not begun, and one that was not finished with the old file, in which the records are elsewhere."""
    wal = open_small(path, medium="file")
    wal.extend([b"zero", b"one", b"two"])
    wal.truncate(before=2)
    with pmwal.open(path, "r") as reader:
        first, second, third = (reader.follow(seq, timeout=PATIENCE) for seq in (2, 2, 3))
        assert take(first, 2) == [b"one", b"two"]
        assert take(second, 1) == [b"one"]
        kill(wal)
        reading = reader.read()
        assert next(reading).data == b"one"
        pmwal.resize(path, "64KiB")
        store(path, b"three")
        assert take(first, 1) == [b"three"]
        assert take(second, 2) == [b"two", b"three"]
        assert take(third, 2) == [b"two", b"three"]
        assert [record.data for record in reading] == [b"two"]


def test_log_set_continues_in_the_resized_log(path: Path) -> None:
    """It finds by the uuid that the new file is the log that it was reading."""
    with open_small(path, medium="file") as wal:
        wal.extend([b"one", b"two"])
    with pmwal.LogSet(path) as logs:
        follower = logs.follow(timeout=PATIENCE)
        assert [next(follower).data for _ in range(2)] == [b"one", b"two"]
        pmwal.resize(path, "64KiB")
        store(path, b"three", b"four")
        assert [next(follower).data for _ in range(2)] == [b"three", b"four"]
        cursor = logs.cursor
    pmwal.resize(path, "32KiB")
    store(path, b"five")
    with pmwal.LogSet(path) as logs:
        assert [record.data for record in logs.read(start=cursor)] == [b"five"]


def test_path_is_looked_at_once_a_second_at_most(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follow that waits for a writer polls ten times a second."""
    monkeypatch.setattr(succession, "_LOOK_SECONDS", 3600.0)
    reader, _ = begun(path, "unmet")
    with reader:
        pmwal.resize(path, "64KiB")
        assert take(reader.follow(3, timeout=0.3), 1) == []
        assert reader.capacity == 16384
        assert reader.stats().unlinked


def test_file_that_took_the_name_is_closed_with_the_reader(path: Path) -> None:
    """And so is the old one."""
    before = len(os.listdir("/proc/self/fd"))
    reader, follower = begun(path, "killed")
    with reader:
        pmwal.resize(path, "64KiB")
        store(path, b"three")
        assert take(follower, 1) == [b"three"]
    del follower
    assert len(os.listdir("/proc/self/fd")) == before
