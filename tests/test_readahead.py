"""Read-ahead returns the same bytes as a plain read for every range and after every failure, and leaves nothing in the cache."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.storage import readahead
from pmwal.storage.readahead import read_ahead
from support import contents, kill, resident_pages

SIZE = 9 * 1024 * 1024 + 4096  # nine pieces and a part of one


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of random bytes on the disk of the temporary directory, written back."""
    path = tmp_path / "bytes"
    with path.open("wb") as out:
        out.write(random.Random(1).randbytes(SIZE))
        out.flush()
        os.fsync(out.fileno())
    return path


def ranges(rng: random.Random) -> list[tuple[int, int]]:
    """Large and small ranges, in order, backwards, across the borders of pieces, and up to the end."""
    forward = [(offset, 256 * 1024) for offset in range(0, SIZE - 256 * 1024, 256 * 1024)]
    skipping = [(offset, 70_000) for offset in range(0, SIZE - 70_000, 2 * 1024 * 1024)]
    border = [(4 * 1024 * 1024 - 100_000, 200_000), (8 * 1024 * 1024 - 1, 70_000), (1, SIZE - 1), (SIZE - 70_000, 70_000)]
    anywhere = [(offset, rng.randrange(1, SIZE - offset)) for offset in rng.sample(range(SIZE - 1), 10)]
    near = [(offset, rng.randrange(64 * 1024, 256 * 1024)) for offset in rng.choices(range(0, SIZE // 8, 4096), k=100)]
    return [*forward, *skipping, *border, *reversed(forward), *anywhere, *near, (100, 48)]


@pytest.mark.parametrize("piece", [readahead._PIECE, 128 * 1024])
def test_every_range_is_what_the_file_holds(file: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """A load equals pread for ranges in any order, some of them random, without ever falling back."""
    monkeypatch.setattr(readahead, "_PIECE", piece)
    fd = os.open(file, os.O_RDONLY)

    def otherwise(offset: int, length: int) -> bytes:
        raise AssertionError((offset, length))

    try:
        with read_ahead(fd, otherwise) as load:
            for offset, length in ranges(random.Random(2)):
                assert os.pread(fd, length, offset) == load(offset, length), (offset, length)
    finally:
        os.close(fd)


def test_range_past_the_end_is_left_to_the_usual_way(file: Path) -> None:
    """A file that is shorter than the range is not padded."""
    fd = os.open(file, os.O_RDONLY)
    asked: list[tuple[int, int]] = []

    def otherwise(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return b"the usual way"

    try:
        with read_ahead(fd, otherwise) as load:
            assert load(SIZE - 70_000, 140_000)[70_000:] == b"the usual way"
    finally:
        os.close(fd)
    assert asked == [(SIZE, 70_000)]


def test_nothing_stays_in_the_page_cache(file: Path) -> None:
    """Otherwise the kernel's large read-ahead folios would make the writer's next commits write megabytes."""
    fd = os.open(file, os.O_RDONLY)
    try:
        assert resident_pages(fd, 0, SIZE) > 0  # otherwise the test could not fail: the file was just written
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        before = resident_pages(fd, 0, SIZE)  # a busy kernel keeps a page to which another processor holds a reference
        with read_ahead(fd, lambda offset, length: os.pread(fd, length, offset)) as load:
            for offset in range(0, SIZE - 300_000, 300_000):
                load(offset, 300_000)
                load(SIZE - 48, 48)
        assert resident_pages(fd, 0, SIZE) <= before
    finally:
        os.close(fd)


@pytest.mark.parametrize("refused", ["open", "preadv"])
def test_where_it_cannot_read_everything_goes_the_usual_way(file: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """There may be no /proc, or the disk may fail at the first read."""
    fd = os.open(file, os.O_RDONLY)

    def refuse(*_: Any) -> Any:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(readahead.os, refused, refuse)
    try:
        with read_ahead(fd, lambda offset, length: os.pread(fd, length, offset)) as load:
            for offset, length in ranges(random.Random(3)):
                assert os.pread(fd, length, offset) == load(offset, length), (offset, length)
    finally:
        monkeypatch.undo()
        os.close(fd)


def settled_view(load: Any, offset: int) -> memoryview | None:
    """The view from this byte on, once no piece is being read any more."""
    reader = load.__self__
    view: memoryview | None = reader.view_at(offset)
    for reading in tuple(reader._reading.values()):
        reading.exception()
    return view


def test_view_is_what_the_file_holds_and_stays_while_the_next_pieces_are_read(file: Path) -> None:
    """At any offset, in order and after jumps; past the end there is none."""
    fd = os.open(file, os.O_RDONLY)
    border = readahead._PIECE
    try:
        with read_ahead(fd, lambda offset, length: os.pread(fd, length, offset)) as load:
            places = [0, border - 70_000, border, 2 * border, 4 * border + 48, 5 * border, 9 * border, 48, 7 * border, SIZE - 1]
            for offset in places:
                view = settled_view(load, offset)
                assert view is not None
                assert os.pread(fd, len(view), offset) == view
                assert len(view) == min(SIZE, (offset // border + 1) * border) - offset
            assert settled_view(load, SIZE) is None
            assert settled_view(load, SIZE + 8 * border) is None
    finally:
        os.close(fd)


def test_view_of_the_end_of_a_piece_continues_in_the_next(file: Path) -> None:
    """So a scan of short records stops once in a piece; also where the areas wrap, before the last piece, and after a jump back."""
    fd = os.open(file, os.O_RDONLY)
    border, small = readahead._PIECE, readahead._SMALL
    try:
        with read_ahead(fd, lambda offset, length: os.pread(fd, length, offset)) as load:
            for number in (*range(1, 10), 3, 4, 7):
                for before in (small - 1, 1000, 48, 1):
                    view = settled_view(load, number * border - before)
                    assert view is not None
                    assert len(view) == before + min(border, SIZE - number * border)
                    assert os.pread(fd, len(view), number * border - before) == view
                assert load(number * border - small, 2 * small) == os.pread(fd, 2 * small, number * border - small)
            last = settled_view(load, SIZE - 100)
            assert last == os.pread(fd, 100, SIZE - 100)
    finally:
        os.close(fd)


@pytest.mark.parametrize("after", [0, 1])
def test_view_ends_with_its_piece_where_the_next_cannot_be_read(file: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The bytes that were read are still told, and the failing piece is left to the fallback."""
    fd = os.open(file, os.O_RDONLY)
    preadv, border = os.preadv, readahead._PIECE

    def failing(direct: int, buffers: Any, offset: int) -> int:
        if offset > after * border:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(direct, buffers, offset)

    monkeypatch.setattr(readahead.os, "preadv", failing)
    try:
        with read_ahead(fd, lambda offset, length: os.pread(fd, length, offset)) as load:
            offset = (after + 1) * border - 1000
            assert settled_view(load, offset) == os.pread(fd, 1000, offset)
            assert load(offset, 100_000) == os.pread(fd, 100_000, offset)
            assert settled_view(load, (after + 1) * border) is None
    finally:
        os.close(fd)


def test_pieces_are_read_past_the_page_cache(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the cache, a gigabyte takes a gigabyte of new pages, and the kernel's read-ahead makes them large folios."""
    fd = os.open(file, os.O_RDONLY)
    monkeypatch.setattr(readahead, "drop_cache", lambda fd: None)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        before = resident_pages(fd, 0, SIZE)
        with read_ahead(fd, lambda offset, length: os.pread(fd, length, offset)) as load:
            for offset in range(0, SIZE - 300_000, 300_000):
                load(offset, 300_000)
        assert resident_pages(fd, 0, SIZE) <= before
    finally:
        os.close(fd)


def test_a_child_forked_meanwhile_has_none_of_the_pages_that_are_read_into(file: Path) -> None:
    """If it had, the pages that both share would be copied, and the disk would write into the wrong ones: see open(2)."""
    fd = os.open(file, os.O_RDONLY)
    try:
        with read_ahead(fd, lambda offset, length: os.pread(fd, length, offset)) as load:
            for offset in range(0, SIZE - readahead._PIECE, readahead._PIECE):
                view = settled_view(load, offset)
                assert view is not None
                child = os.fork()
                if not child:
                    os._exit(any(view[:4096]))
                assert os.waitpid(child, 0)[1] == 0
                assert os.pread(fd, len(view), offset) == view
    finally:
        os.close(fd)


def killed_log(path: Path, length: int) -> dict[int, bytes]:
    """A killed log of several pieces, wrapped, with records of this length and of less; what it contains."""
    wal = pmwal.open(path, size="17MiB", commit="manual", on_full="overwrite")
    for number in range(21_000_000 // length):
        wal.append((b"%06d" % number * (length // 6 + 1))[: length - number % 5 * length // 7])
    wal.commit()
    expected = dict(contents(wal))
    kill(wal)
    return expected


@pytest.mark.both_engines
@pytest.mark.parametrize("length", [3000, 70_000, 300_000, 3_000_000])
def test_records_across_pieces_are_recovered(tmp_path: Path, length: int) -> None:
    """They begin in one piece and end in the next one, or cover some; also where a piece is exactly used up."""
    path = tmp_path / "large.wal"
    expected = killed_log(path, length)
    with pmwal.open(path) as wal:
        assert wal.recovery.outcome == "recovered"
        assert expected == dict(contents(wal))


@pytest.mark.parametrize("threads", range(9))
def test_recovery_where_threads_are_limited_reads_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """As in a container with a small limit of processes, or while the interpreter ends."""
    path = tmp_path / "large.wal"
    expected = killed_log(path, 3000)
    start, started = threading.Thread.start, iter(range(threads))

    def limited(thread: threading.Thread) -> None:
        if next(started, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pmwal.open(path) as wal:
        assert wal.recovery.outcome == "recovered"
        assert expected == dict(contents(wal))


def test_log_of_a_few_records_is_opened_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that a server forks takes over such a log before its first record."""
    with pmwal.open(tmp_path / "log", size="64MiB") as wal:
        wal.extend([b"some", b"records"])
    preadv, reads = os.preadv, []

    def counted(fd: int, buffers: Any, offset: int) -> int:
        reads.append(offset)
        return preadv(fd, buffers, offset)

    def refused(thread: threading.Thread) -> None:
        raise AssertionError(thread)

    monkeypatch.setattr(readahead.os, "preadv", counted)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pmwal.open(tmp_path / "log") as wal:
        assert wal.recovery.outcome == "clean"
        assert [data for _, data in contents(wal)] == [b"some", b"records"]
    assert len(reads) <= 1


def test_recovery_without_memory_for_reads_ahead_goes_the_usual_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address space may be limited."""
    path = tmp_path / "large.wal"
    expected = killed_log(path, 3000)

    def refuse(size: int) -> memoryview:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(readahead, "private_memory", refuse)
    with pmwal.open(path) as wal:
        assert expected == dict(contents(wal))


@pytest.mark.both_engines
@pytest.mark.parametrize("reads", [1, 3, 6])
def test_recovery_whose_reads_fail_goes_the_usual_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: int) -> None:
    """After some pieces a large read fails each time, as near a bad sector; single loads through the mapping find all records."""
    path = tmp_path / "large.wal"
    expected = killed_log(path, 3000)
    preadv, done = os.preadv, iter(range(reads))

    def failing(fd: int, buffers: Any, offset: int) -> int:
        if next(done, None) is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(readahead.os, "preadv", failing)
    with pmwal.open(path) as wal:
        assert wal.recovery.outcome == "recovered"
        assert expected == dict(contents(wal))


def test_large_log_on_a_disk_is_recovered_whole(tmp_path: Path) -> None:
    """A killed log of several pieces, wrapped, comes back with every record."""
    path = tmp_path / "large.wal"
    wal = pmwal.open(path, size="17MiB", commit="manual", on_full="overwrite")
    for number in range(7000):
        wal.append(b"%06d" % number * 500)
    wal.commit()
    expected = contents(wal)
    kill(wal)
    with pmwal.open(path) as wal:
        assert wal.stats().medium == "file"
        assert expected == contents(wal)
        assert wal.recovery.outcome == "recovered"
