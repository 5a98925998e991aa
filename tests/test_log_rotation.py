"""A log that is removed, renamed or replaced while a program logs to it: the path is opened anew, and no record is lost."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from loggers import SIZE, logger_of, stored
from pmwal.integrations.loguru import Sink
from pmwal.integrations.structlog import LoggerFactory
from pmwal.logs import targets
from processes import PATIENCE, elsewhere
from support import file_offset, flip, superblock, whole_records

pytestmark = pytest.mark.both_engines


def due(thing: Any) -> None:
    """Let the look at the name be due at the next call, as if a second had passed."""
    upkeep = thing.wal._upkeep
    upkeep._ran_ns -= 2_000_000_000
    if thing.wal.stats().engine == "native":
        thing.wal._engine.core.upkept_ns -= 2_000_000_000


def removed(log: Path) -> None:
    """By rm."""
    log.unlink()


def renamed(log: Path) -> None:
    """By logrotate."""
    log.rename(log.with_name("app.wal.1"))


def replaced(log: Path) -> None:
    """By a new log that was renamed over it."""
    new = log.with_name("new.wal")
    pmwal.open(new, size=SIZE).close()
    new.rename(log)


def moved_and_replaced(log: Path) -> None:
    """By logrotate, and another program that created a log."""
    renamed(log)
    pmwal.open(log, size=SIZE).close()


WAYS = [removed, renamed, replaced, moved_and_replaced]


def all_stored(log: Path) -> list[str]:
    """The records of the log and of the one it was renamed to."""
    older = log.with_name("app.wal.1")
    return [text for path in (older, log) if path.exists() for text in stored(path)]


@pytest.mark.parametrize("lose", WAYS)
def test_records_after_the_loss_are_found_under_the_path(
    lose: Callable[[Path], None], handler: pmwal.LogHandler, logger: logging.Logger, log: Path
) -> None:
    """Those between the loss and the call that notices it, too; each is there once."""
    logger.info("before")
    due(handler)
    logger.info("seen")
    lose(log)
    logger.info("between")
    logger.critical("between, durable")
    due(handler)
    logger.info("after")
    logger.info("last")
    stats = handler.stats()
    handler.close()
    expected = ["between", "between, durable", "after", "last"]
    assert all_stored(log)[-4:] == expected
    assert all_stored(log)[:-4] in (["before", "seen"], ["seen"], [])
    assert lose in (removed, replaced) or all_stored(log) == ["before", "seen", *expected]
    assert (stats.reopened, stats.errors, stats.written) == (1, 0, 6)
    assert handler.stats().written == 6


@pytest.mark.parametrize("lose", WAYS)
@pytest.mark.parametrize("end", ["flush", "close"])
def test_flush_and_close_notice_it(
    end: str, lose: Callable[[Path], None], handler: pmwal.LogHandler, logger: logging.Logger, log: Path
) -> None:
    """No record has to follow."""
    logger.info("before")
    due(handler)
    logger.info("seen")
    lose(log)
    logger.info("between")
    due(handler)
    getattr(handler, end)()
    assert all_stored(log)[-1:] == ["between"]


def test_log_that_was_removed_with_nothing_new_in_it_is_not_created_at_close(handler: pmwal.LogHandler, log: Path) -> None:
    """What is removed at the end stays removed."""
    logger_of(handler).info("before")
    due(handler)
    handler.flush()
    log.unlink()
    handler.close()
    assert not log.exists()


def test_several_rotations_in_a_row_lose_nothing(handler: pmwal.LogHandler, logger: logging.Logger, log: Path) -> None:
    """And the counters run on."""
    for number in range(5):
        logger.info("%d", number)
        log.rename(log.with_name(f"{number}.wal"))
        due(handler)
    handler.flush()
    logger.info("5")
    handler.flush()
    stats = handler.stats()
    assert (stats.written, stats.reopened) == (6, 5)
    found = [text for number in range(5) for text in stored(log.with_name(f"{number}.wal"))] + stored(log)
    assert found == ["0", "1", "2", "3", "4", "5"]


def test_threads_lose_no_record_while_the_log_is_removed_and_renamed(shm_dir: Path) -> None:
    """Each record is in one of the logs, those of each thread in order."""
    log = shm_dir / "app.wal"
    handler = pmwal.LogHandler(log, size="4MiB", commit="manual")
    logger = logger_of(handler)

    def work(name: int) -> None:
        for number in range(300):
            logger.info("%d %d", name, number)
            if number % 50 == 25:
                time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    rotated = []
    while any(thread.is_alive() for thread in threads) and len(rotated) < 20:
        rotated.append(log.with_name(f"{len(rotated)}.wal"))
        if log.exists():
            log.rename(rotated[-1])
        due(handler)
        time.sleep(0.002)
    for thread in threads:
        thread.join()
    handler.close()
    found = [text for path in (*rotated, log) if path.exists() for text in stored(path)]
    assert sorted(found) == sorted(f"{name} {number}" for name in range(4) for number in range(300))
    assert handler.stats().errors == 0


def test_path_that_cannot_be_opened_anew_is_reported_and_tried_again(
    handler: pmwal.LogHandler, logger: logging.Logger, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was stored meanwhile is stored again then."""
    due(handler)
    logger.info("seen")
    log.unlink()
    logger.info("between")
    other = pmwal.open(log, size=SIZE)
    due(handler)
    logger.info("refused")
    assert "WalLocked" in capsys.readouterr().err
    other.close()
    logger.info("after")
    handler.close()
    assert [text for text in stored(log) if text != "seen"] == ["between", "after"]
    assert handler.stats().reasons == {"WalLocked": 1}


def test_records_that_are_lost_at_close_are_said(
    handler: pmwal.LogHandler, logger: logging.Logger, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the whole directory."""
    due(handler)
    logger.info("seen")
    shutil.rmtree(log.parent)
    logger.info("one")
    logger.info("two")
    handler.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert "records could not be stored again: [Errno 2] No such file or directory" in line
    assert handler.stats().reasons == {"FileNotFoundError": 1}


def test_corrupt_log_that_took_the_place_is_set_aside(handler: pmwal.LogHandler, logger: logging.Logger, log: Path) -> None:
    """As at the start."""
    with pmwal.open(log.with_name("new.wal"), size=SIZE) as wal:
        wal.extend([b"record"] * 5)
    new = log.with_name("new.wal")
    flip(new, file_offset(superblock(new), whole_records(new)[3].position) + 50)
    new.rename(log)
    due(handler)
    with pytest.warns(RuntimeWarning, match="was set aside"):
        logger.info("after")
    handler.close()
    assert stored(log) == ["after"]


def test_batch_on_the_lost_log_is_stored_again(handler: pmwal.LogHandler, logger: logging.Logger, log: Path) -> None:
    """With what is logged in it, while another thread notices the loss."""
    due(handler)
    logger.info("seen")
    log.unlink()
    other = threading.Thread(target=logger.info, args=("other",))
    with handler.wal.batch() as batch:
        batch.append(b"batch")
        due(handler)
        other.start()
        while not handler.wal._upkeep._said.locked():
            time.sleep(0.001)
        logger.info("inside")
    logger.info("after")
    other.join()
    handler.close()
    found = [text for text in stored(log) if text != "seen"]
    assert found[0] == "batch"
    assert found.index("inside") < found.index("after")
    assert sorted(found) == ["after", "batch", "inside", "other"]
    assert handler.stats().errors == 0


def test_program_that_logs_all_the_time_notices_it_by_itself(log: Path) -> None:
    """With the default policy, after about a second; no record is lost."""
    handler = pmwal.LogHandler(log, size="4MiB")
    logger = logger_of(handler)
    logger.info("0")
    log.rename(log.with_name("app.wal.1"))
    number, deadline = 0, time.monotonic() + PATIENCE
    while not handler.stats().reopened and time.monotonic() < deadline:
        number += 1
        logger.info("%d", number)
        time.sleep(0.01)
    handler.close()
    assert stored(log.with_name("app.wal.1")) + stored(log) == [str(one) for one in range(number + 1)]


def test_signal_handler_that_logs_while_the_path_is_opened_anew_waits(
    handler: pmwal.LogHandler, logger: logging.Logger, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is stored when the path is open: once, before or after the one that noticed the loss."""
    opened = targets.open_with

    def interrupted(path: Any, options: Any, made: Any) -> Any:
        logger.info("inner")
        return opened(path, options, made=made)

    monkeypatch.setattr(targets, "open_with", interrupted)
    log.rename(log.with_name("app.wal.1"))
    due(handler)
    logger.info("outer")
    handler.flush()
    assert sorted(stored(log)) == ["inner", "outer"]  # another thread stores what waits


def test_forked_child_opens_nothing(handler: pmwal.LogHandler, logger: logging.Logger, log: Path) -> None:
    """The path is its parent's."""
    log.unlink()
    due(handler)

    def misuse() -> dict[str, int]:
        logger.info("child")
        handler.flush()
        handler.close()
        return handler.stats().reasons

    assert elsewhere(misuse) == {"ForkedWal": 1}
    assert not log.exists()
    logger.critical("parent")
    assert stored(log) == ["parent"]


def test_other_libraries_open_anew_alike(log: Path) -> None:
    """They share the sink."""
    factory = LoggerFactory(log, size=SIZE, commit="manual")
    log.unlink()
    due(factory)
    factory().info("structlog")
    factory.close()
    assert stored(log) == ["structlog"]
    loguru = Sink(log, size=SIZE, commit="manual")
    os.rename(log, log.with_name("app.wal.1"))
    due(loguru)
    loguru.write("loguru\n")
    loguru.stop()
    assert stored(log) == ["loguru"]
