"""Records that are logged from inside a call on the log: they wait for its end, in order, and none is lost."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pmwal
from loggers import SIZE, logger_of
from pmwal.integrations.loguru import Sink as LoguruSink
from pmwal.integrations.structlog import LoggerFactory
from pmwal.logs import sink, targets
from pmwal.opening import open_with
from processes import PATIENCE, elsewhere
from support import BarrierRecorder

pytestmark = pytest.mark.both_engines


class Inside:
    """A seam that runs a function once, at a step of the call that is under way: inside the log, with its locks held."""

    def __init__(self) -> None:
        self.seam = BarrierRecorder()

    def once(self, step: str, function: Callable[[], object]) -> None:
        """Run the function at the next step of this name."""

        def hook(event: Any) -> None:
            if event.name == step:
                self.seam.before = None
                function()

        self.seam.before = hook


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Inside:
    """The seam of every log that the test opens for logging."""
    inside = Inside()
    monkeypatch.setattr(
        targets, "open_with", lambda path, options, made: open_with(path, replace(options, medium="file"), seam=inside.seam)
    )
    return inside


@pytest.fixture
def handler(inside: Inside, handler: pmwal.LogHandler) -> pmwal.LogHandler:
    """A handler with commit="manual" that was opened with that seam."""
    return handler


def stored(handler: Any) -> list[str]:
    """The text of all records, durable or not."""
    return [record.data.decode() for record in handler.wal]


def by_signal(log: Callable[[str], object]) -> None:
    """Log from a signal handler."""
    before = signal.signal(signal.SIGUSR1, lambda *_: log("inner"))
    signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def by_destructor(log: Callable[[str], object]) -> None:
    """Log from the __del__ of an object that the collector finds."""

    class Dies:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            log("inner")

    Dies()
    gc.collect()


def by_weakref(log: Callable[[str], object]) -> None:
    """Log from the callback of a weak reference."""

    class Dies:
        pass

    dying = Dies()
    reference = weakref.ref(dying, lambda _: log("inner"))
    del dying
    assert reference() is None


def by_warning(log: Callable[[str], object]) -> None:
    """Log because something warns, with logging.captureWarnings."""
    before = warnings.showwarning
    warnings.showwarning = lambda *_, **__: log("inner")  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda *_, **__: log("inner")  # type: ignore[assignment]
            warnings.warn("inner", stacklevel=1)
    finally:
        warnings.showwarning = before


WAYS = [by_signal, by_destructor, by_weakref, by_warning]


@pytest.mark.parametrize("way", WAYS)
def test_record_from_inside_an_append_is_stored_right_after_it(
    way: Callable[..., None], inside: Inside, handler: pmwal.LogHandler, logger: logging.Logger
) -> None:
    """The call that was interrupted stores it before it returns."""
    logger.info("first")
    inside.once("store", lambda: way(logger.info))
    logger.info("outer")
    assert stored(handler) == ["first", "outer", "inner"]
    assert (handler.stats().queued, handler.stats().errors) == (1, 0)


@pytest.mark.parametrize("way", WAYS)
def test_record_from_inside_a_flush_is_stored_right_after_it(
    way: Callable[..., None], inside: Inside, handler: pmwal.LogHandler, logger: logging.Logger
) -> None:
    """So it is after a commit that the handler makes."""
    logger.info("outer")
    inside.once("flush", lambda: way(logger.info))
    handler.flush()
    wait_until(lambda: stored(handler) == ["outer", "inner"])
    assert handler.stats().queued == 1


def test_several_records_keep_their_order_and_their_durability(
    inside: Inside, handler: pmwal.LogHandler, logger: logging.Logger
) -> None:
    """Those from inside come in their order after the outer one, those of sync_level are durable then."""

    def several() -> None:
        for number in range(5):
            logger.log(50 if number == 3 else 20, "%d", number)

    inside.once("store", several)
    logger.info("outer")
    assert handler.wal.committed_seq == 5
    logger.info("next")
    assert stored(handler) == ["outer", "0", "1", "2", "3", "4", "next"]
    assert [record.kind for record in handler.wal] == [20, 20, 20, 20, 50, 20, 20]


def test_record_from_inside_the_storing_of_one_that_waited_comes_after_it(
    inside: Inside, handler: pmwal.LogHandler, logger: logging.Logger
) -> None:
    """However deep it goes."""

    def deeper(level: int) -> None:
        logger.info("%d", level)
        if level < 5:
            inside.once("store", lambda: deeper(level + 1))

    inside.once("store", lambda: deeper(1))
    logger.info("outer")
    wait_until(lambda: stored(handler) == ["outer", "1", "2", "3", "4", "5"])
    assert handler.stats().queued == 5


def test_record_of_an_object_that_is_being_formatted_is_stored_before(handler: pmwal.LogHandler, logger: logging.Logger) -> None:
    """Formatting is not inside the log: nothing has to wait."""

    class Logs:
        def __str__(self) -> str:
            logger.info("while it is formatted")
            return "formatted"

    logger.info(Logs())
    assert stored(handler) == ["while it is formatted", "formatted"]
    assert handler.stats().queued == 0


def test_record_from_the_committing_thread_is_stored(inside: Inside, shm_dir: Path) -> None:
    """No call of the program is there to do it: a thread does."""
    handler = pmwal.LogHandler(shm_dir / "app.wal", size=SIZE, commit=0.001)
    logger = logger_of(handler)
    threads: list[int] = []

    def from_inside() -> None:
        threads.append(threading.get_ident())
        logger.info("inner")

    inside.once("flush", from_inside)
    logger.info("outer")
    wait_until(lambda: stored(handler) == ["outer", "inner"])
    assert threads != [threading.get_ident()]
    assert handler.stats().queued == 1
    handler.close()


def test_records_of_a_batch_come_after_it_and_before_the_next_one(handler: pmwal.LogHandler, logger: logging.Logger) -> None:
    """The program's own batch on the handler's log."""
    with handler.wal.batch() as batch:
        logger.info("one")
        batch.append(b"batch")
        logger.info("two")
    logger.info("three")
    assert stored(handler) == ["batch", "one", "two", "three"]


def test_record_of_a_batch_is_stored_without_any_further_call(handler: pmwal.LogHandler, logger: logging.Logger) -> None:
    """And so it survives the process."""
    with handler.wal.batch():
        logger.info("one")
    wait_until(lambda: stored(handler) == ["one"])


def test_no_more_than_a_fixed_number_waits_and_the_rest_is_reported(
    handler: pmwal.LogHandler, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an error that says what to do."""
    with handler.wal.batch():
        for number in range(sink.WAITING_MAX + 3):
            logger.info("%d", number)
    logger.info("after")
    assert stored(handler) == [*map(str, range(sink.WAITING_MAX)), "after"]
    stats = handler.stats()
    assert (stats.queued, stats.errors, stats.reasons) == (sink.WAITING_MAX, 3, {"ReentrantCall": 3})
    assert capsys.readouterr().err.count("log less in signal handlers") == 3


def test_only_the_thread_that_is_inside_waits(handler: pmwal.LogHandler, logger: logging.Logger) -> None:
    """Another thread's record is stored by its own call, in which it waits for the log as always."""
    other = threading.Thread(target=logger.info, args=("other",))
    with handler.wal.batch():
        logger.info("one")
        other.start()
    logger.info("two")
    other.join()
    found = stored(handler)
    assert sorted(found) == ["one", "other", "two"]
    assert found.index("one") < found.index("two")
    assert handler.stats().queued == 1


@pytest.mark.parametrize("end", ["flush", "close"])
def test_end_of_the_handler_stores_what_waits(
    end: str, inside: Inside, handler: pmwal.LogHandler, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no thread can be started."""
    monkeypatch.setattr(sink._thread, "start_new_thread", no_thread)
    with handler.wal.batch():
        logger.critical("one")
    getattr(handler, end)()
    with pmwal.open(handler.wal.path, "r") as reader:
        assert [record.data for record in reader] == [b"one"]


def test_next_record_of_the_thread_stores_what_waits_where_no_thread_can_be_started(
    handler: pmwal.LogHandler, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of the interpreter."""
    monkeypatch.setattr(sink._thread, "start_new_thread", no_thread)
    with handler.wal.batch():
        logger.info("one")
    logger.info("two")
    assert stored(handler) == ["one", "two"]


def no_thread(*args: object) -> int:
    """What ``start_new_thread`` does when there are too many."""
    raise RuntimeError("can't start new thread")


def test_interrupt_of_the_outer_call_loses_no_record_from_inside(
    inside: Inside, handler: pmwal.LogHandler, logger: logging.Logger
) -> None:
    """The outer one is the caller's, who sees the exception."""

    def interrupt() -> None:
        logger.info("inner")
        raise KeyboardInterrupt

    inside.once("store", interrupt)
    with pytest.raises(KeyboardInterrupt):
        logger.info("outer")
    wait_until(lambda: stored(handler) == ["inner"])


def test_error_of_a_record_that_waited_is_counted_and_printed(
    inside: Inside, shm_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It can be too large, or find the log full; those after it are stored."""
    handler = pmwal.LogHandler(shm_dir / "app.wal", size="64KiB", commit="manual", on_full="raise")
    logger = logger_of(handler)

    def several() -> None:
        for text in ("x" * 50_000, "y" * 30_000, "z" * 25_000, "last"):
            logger.info(text)

    inside.once("store", several)
    logger.info("outer")
    assert [text[:4] for text in stored(handler)] == ["oute", "xxxx", "yyyy", "last"]
    assert handler.stats().reasons == {"RecordTooLarge": 1, "WalFull": 1}
    printed = capsys.readouterr().err
    assert printed.count("\n") == 2
    assert "WalFull" in printed
    assert "Message: 'zzzz" in printed
    handler.close()


def test_fork_while_records_wait_stores_them_once(
    handler: pmwal.LogHandler, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the parent; its child does not, and reports only its own record."""
    monkeypatch.setattr(sink._thread, "start_new_thread", no_thread)

    def end() -> dict[str, int]:
        logger.info("child")
        handler.flush()
        handler.close()
        return handler.stats().reasons

    with handler.wal.batch():
        logger.info("one")
        inside = elsewhere(end)
    after = elsewhere(end)
    logger.info("two")
    assert inside == after == {"ForkedWal": 1}
    assert stored(handler) == ["one", "two"]


def test_structured_and_other_libraries_wait_alike(inside: Inside, shm_dir: Path) -> None:
    """They share the sink."""
    structured = pmwal.LogHandler(shm_dir / "a.wal", size=SIZE, commit="manual", structured=True)
    logger = logger_of(structured)
    inside.once("store", lambda: logger.info("inner", extra={"a": 1}))
    logger.info("outer")
    assert [json.loads(text)["message"] for text in stored(structured)] == ["outer", "inner"]
    structured.close()

    factory = LoggerFactory(shm_dir / "b.wal", size=SIZE, commit="manual")
    inside.once("store", lambda: factory().warning("inner"))
    factory().info("outer")
    assert stored(factory) == ["outer", "inner"]
    factory.close()

    loguru = LoguruSink(shm_dir / "c.wal", size=SIZE, commit="manual")
    inside.once("store", lambda: loguru.write("inner\n"))
    loguru.write("outer\n")
    assert stored(loguru) == ["outer", "inner"]
    loguru.stop()


def test_signals_at_any_moment_lose_no_record(shm_dir: Path) -> None:
    """A timer interrupts the logging thread many times, and its handler logs; each of the two orders is kept."""

    def interrupted() -> tuple[list[str], int, int]:
        handler = pmwal.LogHandler(shm_dir / "app.wal", size="4MiB", commit="manual")
        logger = logger_of(handler)
        ticks = lines = 0

        def tick(*_: object) -> None:
            nonlocal ticks
            logger.info("tick %d", ticks)
            ticks += 1
            if ticks < 300:
                signal.setitimer(signal.ITIMER_REAL, 0.0001)

        signal.signal(signal.SIGALRM, tick)
        signal.setitimer(signal.ITIMER_REAL, 0.0001)
        while ticks < 300:
            logger.info("line %d", lines)
            lines += 1
        handler.flush()
        found, stats = stored(handler), handler.stats()
        handler.close()
        assert (stats.errors, stats.written) == (0, lines + ticks)
        return found, lines, ticks

    found, lines, ticks = elsewhere(interrupted)
    assert [text for text in found if text.startswith("line")] == [f"line {number}" for number in range(lines)]
    assert [text for text in found if text.startswith("tick")] == [f"tick {number}" for number in range(ticks)]


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert true(), os.getpid()
