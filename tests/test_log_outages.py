"""A path that becomes an empty file, a shortened log, or something that is no log, while a program logs to it.

Logging continues as soon as it can, every record that is not stored is counted, and each change of state is one line on stderr.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.integrations.structlog import LoggerFactory
from pmwal.logs import sink
from processes import child, elsewhere
from test_log_rotation import due, logger_of, removed, renamed, stored

pytestmark = pytest.mark.both_engines

SIZE = "64KiB"


@pytest.fixture
def log(shm_dir: Path) -> Path:
    """The log's path."""
    return shm_dir / "app.wal"


@pytest.fixture(params=["file", "memory"])
def handler(log: Path, request: pytest.FixtureRequest) -> Iterator[pmwal.LogHandler]:
    """A handler with commit="manual"."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handler = pmwal.LogHandler(log, size=SIZE, commit="manual", medium=request.param)
    yield handler
    handler.close()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr since the last look."""
    return capsys.readouterr().err.splitlines()


def found(directory: Path) -> list[int]:
    """The numbers that all logs of a directory have, damaged or not."""
    numbers: list[int] = []
    for path in directory.iterdir():
        if path.is_file():
            with pmwal.open(path, "r", recover="salvage") as reader:
                numbers += [int(record.data) for record in reader]
    return sorted(numbers)


def log_numbers(handler: Any, first: int, last: int) -> None:
    """Log these numbers, and let the handler look at its file."""
    logger = logger_of(handler)
    for number in range(first, last):
        logger.info("%d", number)
    due(handler)


# -- an empty file


def test_logrotate_with_create_loses_no_record(handler: pmwal.LogHandler, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The new log has the mode of the empty file, and nothing is said."""
    log_numbers(handler, 0, 10)
    renamed(log)
    log.touch()
    log.chmod(0o640)
    log_numbers(handler, 10, 20)
    log_numbers(handler, 20, 30)
    handler.close()
    assert found(log.parent) == list(range(30))
    assert stored(log)[-1] == "29"
    assert stat.S_IMODE(log.stat().st_mode) == 0o640
    assert (handler.stats().errors, handler.stats().reopened, lines(capsys)) == (0, 1, [])
    assert len(os.listdir(log.parent)) == 2


@pytest.mark.parametrize("make", [pmwal.LogHandler, LoggerFactory])
@pytest.mark.parametrize("through", ["path", "symlink"])
def test_program_starts_with_an_empty_file(make: Any, through: str, log: Path) -> None:
    """Which becomes a log of the size that was asked for, without a word; a link to it stays one."""
    log.touch(mode=0o604)
    path = log
    if through == "symlink":
        path = log.with_name("link.wal")
        path.symlink_to(log)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thing = make(path, size="128KiB")
    assert thing.wal.capacity == 128 << 10
    thing.close()
    assert (path.is_symlink(), log.is_symlink()) == (through == "symlink", False)
    assert stat.S_IMODE(log.stat().st_mode) == 0o604


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_new_log_belongs_to_the_owner_of_the_empty_file(log: Path) -> None:
    """As logrotate was told to create it."""
    log.touch()
    os.chown(log, 1234, 2345)
    pmwal.LogHandler(log, size=SIZE).close()
    assert (log.stat().st_uid, log.stat().st_gid) == (1234, 2345)


def test_empty_file_that_another_process_is_replacing_is_locked(log: Path) -> None:
    """So of two that start one gets the log."""
    log.touch()
    with log.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(pmwal.WalLocked):
            pmwal.LogHandler(log, size=SIZE)
    assert log.stat().st_size == 0
    pmwal.LogHandler(log, size=SIZE).close()


def test_empty_file_stays_if_no_log_can_be_created(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mode is for the next attempt; nothing else is left."""
    log.touch(mode=0o604)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        pmwal.LogHandler(log, size=SIZE)
    assert os.listdir(log.parent) == [log.name]
    assert stat.S_IMODE(log.stat().st_mode) == 0o604


def test_open_refuses_an_empty_file(log: Path) -> None:
    """Only a handler takes it for no file; the message says what to do."""
    log.touch()
    with pytest.raises(pmwal.FormatError, match="remove the empty file"):
        pmwal.open(log, size=SIZE)
    assert log.stat().st_size == 0


# -- a shortened file


@pytest.mark.parametrize("copied", [True, False])
def test_logrotate_with_copytruncate_is_noticed_once(
    copied: bool, handler: pmwal.LogHandler, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new log has all that follows, one line says so, and what may be lost is counted."""
    log_numbers(handler, 0, 10)
    log_numbers(handler, 10, 20)
    if copied:
        shutil.copy(log, log.with_name("app.wal.1"))
    os.truncate(log, 0)
    log_numbers(handler, 20, 30)
    log_numbers(handler, 30, 40)
    handler.flush()
    stats = handler.stats()
    handler.close()
    numbers = found(log.parent)
    assert numbers == list(range(0 if copied else 20, 40))
    (line,) = lines(capsys)
    assert "the log was opened anew: its file was shortened" in line
    assert (stats.errors, stats.reopened) == (0, 1)
    assert stats.lost >= 10  # stored since the last look
    assert handler.stats().lost == stats.lost
    assert stored(log)[-1] == "39"


@pytest.mark.parametrize("length", [-1, -30000, 20000, 4096])
def test_shortened_log_is_set_aside_and_logging_continues(
    length: int, handler: pmwal.LogHandler, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left of it can be salvaged; one line, one warning."""
    log_numbers(handler, 0, 20)
    os.truncate(log, length % log.stat().st_size)
    logger = logger_of(handler)
    due(handler)
    with pytest.warns(RuntimeWarning, match=r"shortened: .* it was set aside") as caught:
        logger.info("20")
    log_numbers(handler, 21, 30)
    log_numbers(handler, 30, 40)
    handler.close()
    assert len(caught) == 1
    assert len(lines(capsys)) == 1
    assert set(found(log.parent)) >= set(range(0 if length < 0 else 20, 40))
    stats = handler.stats()
    assert (stats.errors, stats.reopened) == (0, 1)
    assert stats.lost + len(found(log.parent)) >= 40


def test_file_shorter_than_a_superblock_is_no_log(handler: pmwal.LogHandler, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It could be anything, so it is not touched; the records are counted until it is gone."""
    log_numbers(handler, 0, 10)
    os.truncate(log, 100)
    log_numbers(handler, 10, 30)
    assert handler.stats().reasons == {"FormatError": 20}
    assert len(lines(capsys)) == 1
    assert log.stat().st_size == 100
    log.unlink()
    log_numbers(handler, 30, 40)
    handler.close()
    (line,) = lines(capsys)
    assert "20 records could not be stored meanwhile" in line
    assert stored(log) == [str(number) for number in range(30, 40)]


@pytest.mark.parametrize("end", ["flush", "close", "both"])
def test_end_of_the_program_notices_it(end: str, handler: pmwal.LogHandler, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """logging.shutdown() passes over errors of flush and close, so it is said."""
    log_numbers(handler, 0, 10)
    log_numbers(handler, 10, 20)
    os.truncate(log, 0)
    for name in ["flush", "close"] if end == "both" else [end]:
        getattr(handler, name)()
    (line,) = lines(capsys)
    assert "up to 10 records" in line
    assert (handler.stats().lost, handler.stats().reopened) == (10, 1)


def test_shortened_log_is_raised_on_request(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Then nothing is renamed, and the records are counted."""
    handler = pmwal.LogHandler(log, size=SIZE, commit="manual", on_corrupt="raise")
    log_numbers(handler, 0, 10)
    os.truncate(log, 20000)
    log_numbers(handler, 10, 20)
    log_numbers(handler, 20, 30)
    assert len(lines(capsys)) == 1
    assert set(handler.stats().reasons) == {"ShortenedWal"}
    handler.close()
    assert os.listdir(log.parent) == [log.name]


def test_truncations_in_a_row_are_noticed_each(handler: pmwal.LogHandler, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No wait is needed between them: a shortened file is no medium that fails."""
    for number in range(5):
        log_numbers(handler, number, number + 1)
        os.truncate(log, 0)
    log_numbers(handler, 5, 6)
    handler.close()
    assert handler.stats().reopened >= 5
    assert len(lines(capsys)) == handler.stats().reopened
    assert handler.stats().errors == 0
    assert stored(log) == ["5"]


# -- a medium that fails


def test_failed_medium_is_tried_again_and_the_log_continued(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was stored is still there; once a second at most, and each change is one line."""
    handler = pmwal.LogHandler(log, size=SIZE, commit="manual", medium="file")
    log_numbers(handler, 0, 10)
    access = handler.wal._access
    access.fail(OSError(errno.EIO, "Input/output error"))
    log_numbers(handler, 10, 20)
    stats = handler.stats()
    assert (stats.errors, stats.lost, stats.reopened) == (0, 0, 1)
    (line,) = lines(capsys)
    assert "the medium failed" in line
    handler.wal._access.fail(OSError(errno.EIO, "Input/output error"))
    monkeypatch.setattr(sink, "_REOPEN_SECONDS", 1e9)
    log_numbers(handler, 20, 30)
    assert handler.stats().reasons == {"PersistError": 10}
    assert len(lines(capsys)) == 1
    monkeypatch.setattr(sink, "_REOPEN_SECONDS", 0)
    log_numbers(handler, 30, 40)
    (line,) = lines(capsys)
    assert "10 records could not be stored meanwhile" in line
    handler.close()
    assert found(log.parent) == [*range(20), *range(30, 40)]


# -- what is no log, or not this handler's


def directory(log: Path) -> None:
    """A directory took the name."""
    renamed(log)
    log.mkdir()


def foreign(log: Path) -> None:
    """A file of another program took the name."""
    renamed(log)
    log.write_text("text\n" * 1000)


def nowhere(log: Path) -> None:
    """The whole directory got another name."""
    log.parent.rename(log.parent.with_name(log.parent.name + "-moved"))


def back(log: Path) -> None:
    """Undo it."""
    moved = log.parent.with_name(log.parent.name + "-moved")
    if moved.exists():
        moved.rename(log.parent)
    elif log.is_dir():
        log.rmdir()
    else:
        log.unlink()


@pytest.mark.parametrize("lose", [directory, foreign, nowhere])
def test_path_that_cannot_be_opened_is_said_once_and_once_more_when_it_can(
    lose: Callable[[Path], None], handler: pmwal.LogHandler, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The records in between are counted, by reason."""
    log_numbers(handler, 0, 10)
    lose(log)
    log_numbers(handler, 10, 30)
    log_numbers(handler, 30, 40)
    assert len(lines(capsys)) == 1
    errors = handler.stats().errors
    assert errors == sum(handler.stats().reasons.values())
    back(log)
    log_numbers(handler, 40, 50)
    (line,) = lines(capsys)
    assert f"{errors} records could not be stored meanwhile" in line
    handler.close()
    numbers = found(log.parent)
    assert len(numbers) + errors == 50
    assert numbers[-10:] == list(range(40, 50))


def test_another_reason_is_another_line(handler: pmwal.LogHandler, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only a change of state is said."""
    foreign(log)
    log_numbers(handler, 0, 1)
    log_numbers(handler, 1, 10)
    log.unlink()
    log.mkdir()
    log_numbers(handler, 10, 20)
    assert [line.split(":")[0] for line in lines(capsys)] == [
        "--- Logging error --- pmwal.errors.FormatError",
        "--- Logging error --- builtins.IsADirectoryError",
    ]
    log.rmdir()


def write_there(pipe: Any, log: Path) -> None:
    """Write a log of its own until told to end."""
    wal = pmwal.open(log, size=SIZE)
    wal.append(b"1000")
    pipe.send("open")
    pipe.recv()
    wal.close()
    pipe.send("closed")


@pytest.mark.parametrize("emptied", [False, True])
def test_log_of_another_writer_is_waited_for(
    emptied: bool, handler: pmwal.LogHandler, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is continued when its writer is gone. Emptied under that writer it is not touched either."""
    log_numbers(handler, 0, 10)
    renamed(log)
    with child(write_there, log) as other:
        assert other.hear() == "open"
        if emptied:
            os.truncate(log, 0)
        log_numbers(handler, 10, 20)
        log_numbers(handler, 20, 30)
        (line,) = lines(capsys)
        assert "WalLocked" in line
        errors = handler.stats().errors
        assert handler.stats().reasons == {"WalLocked": errors}
        other.say("end")
        other.wait()
    log_numbers(handler, 30, 40)
    (line,) = lines(capsys)
    assert f"{errors} records could not be stored meanwhile" in line
    handler.close()
    numbers = found(log.parent)
    assert numbers == [*range(40 - errors - 10), *range(30, 40)] + [1000] * (not emptied)


def test_threads_log_on_while_the_file_is_emptied_and_replaced(shm_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each record is stored or counted, and a change of state is a line or two."""
    log = shm_dir / "app.wal"
    handler = pmwal.LogHandler(log, size="4MiB", commit="manual")
    logger = logger_of(handler)

    logged = [0] * 4
    enough = threading.Event()

    def work(name: int) -> None:
        while not enough.is_set():
            logger.info("%d", logged[name])
            logged[name] += 1
            if logged[name] % 50 == 25:
                time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for step in range(20):
        if log.exists():
            if step % 2:
                os.truncate(log, 0)
            else:
                log.rename(log.with_name(f"{step}.wal"))
                log.touch()
        due(handler)
        before = list(logged)
        while any(now < then + 2 for now, then in zip(logged, before, strict=True)):  # one of two calls began after the change
            time.sleep(0.001)
    enough.set()
    for thread in threads:
        thread.join()
    due(handler)
    logger.info("last")
    handler.close()
    assert stored(log)[-1] == "last"
    stats = handler.stats()
    assert stats.written + stats.errors >= sum(logged) + 1
    assert stats.reopened > 1
    assert len(lines(capsys)) <= 2 * stats.reopened + 2


def test_records_that_wait_are_stored_in_the_new_log(handler: pmwal.LogHandler, log: Path) -> None:
    """They were logged inside a batch on the log that was emptied."""
    logger = logger_of(handler)
    with handler.wal.batch():
        os.truncate(log, 0)
        for number in range(10):
            logger.info("%d", number)
    logger.info("10")
    handler.close()
    assert found(log.parent) == list(range(11))
    assert (handler.stats().queued, handler.stats().errors) == (10, 0)


def test_forked_child_opens_nothing_anew(handler: pmwal.LogHandler, log: Path) -> None:
    """The path is its parent's."""
    log_numbers(handler, 0, 10)
    os.truncate(log, 0)

    def misuse() -> dict[str, int]:
        log_in_child = logger_of(handler)
        log_in_child.info("child")
        handler.flush()
        handler.close()
        return handler.stats().reasons

    assert elsewhere(misuse) == {"ForkedWal": 1}
    assert log.stat().st_size == 0
    log_numbers(handler, 10, 20)
    assert handler.stats().reopened == 1


def test_removed_and_emptied_file_is_counted(handler: pmwal.LogHandler, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be stored again is lost, and said."""
    log_numbers(handler, 0, 10)
    log_numbers(handler, 10, 20)
    with log.open("r+b") as file:
        removed(log)
        file.truncate(0)
    log_numbers(handler, 20, 30)
    handler.close()
    assert found(log.parent)[-9:] == list(range(21, 30))
    assert handler.stats().lost >= 10
    assert len(lines(capsys)) == 1


def test_record_without_a_level_is_stored(handler: pmwal.LogHandler, capsys: pytest.CaptureFixture[str]) -> None:
    """makeLogRecord gives None, unless it is told."""
    handler.handle(logging.makeLogRecord({"msg": "text"}))
    (record,) = handler.wal
    assert (record.kind, record.data) == (0, b"text")
    assert lines(capsys) == []


@pytest.mark.parametrize("make", [pmwal.LogHandler, pmwal.open])
def test_error_at_creation_names_the_log(make: Any) -> None:
    """Not a temporary file that the user never heard of; the errno stays."""
    with pytest.raises(FileNotFoundError) as caught:
        make("/proc/x.wal", size=SIZE)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/proc/x.wal")
