"""Logging at the end of things: a closed log, a forked child, the interpreter's exit, hooks, copies. One line says it, once."""

from __future__ import annotations

import asyncio
import copy
import io
import logging
import logging.handlers
import pickle
import queue
import sys
import threading
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

import pmwal
from loggers import SIZE, stored
from pmwal.integrations.loguru import Sink
from pmwal.integrations.structlog import LoggerFactory
from processes import elsewhere, run_script

pytestmark = pytest.mark.both_engines


# -- after close


def test_closed_handler_says_so_in_one_line(
    handler: pmwal.LogHandler, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in a traceback for each record: the others are counted."""
    handler.close()
    for number in range(28):
        logger.info("late %d", number, extra={"a": 1})
    (line,) = capsys.readouterr().err.splitlines()
    for part in ("Logging error", "pmwal.errors.WalClosed", handler._sink.path, "logging.shutdown()", "'late %d'", "stats()"):
        assert part in line
    assert handler.stats().reasons == {"WalClosed": 28}


def test_threads_that_log_to_a_closed_handler_say_it_once(
    handler: pmwal.LogHandler, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many they are."""
    handler.close()
    threads = [threading.Thread(target=logger.info, args=("late",)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert handler.stats().errors == 20


@pytest.mark.parametrize("way", ["raiseExceptions", "no stderr", "closed stderr"])
def test_closed_handler_is_silent_where_it_must_be_and_counts(
    way: str, handler: pmwal.LogHandler, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is raised either."""
    stream = io.StringIO()
    if way == "closed stderr":
        stream.close()
    monkeypatch.setattr(sys, "stderr", None if way == "no stderr" else stream)
    monkeypatch.setattr(logging, "raiseExceptions", way != "raiseExceptions")
    handler.close()
    for _ in range(3):
        logger.info("late")
    assert way != "raiseExceptions" or stream.getvalue() == ""
    assert handler.stats().errors == 3


def test_message_that_cannot_be_shown_is_no_obstacle(
    handler: pmwal.LogHandler, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only its repr is missing."""

    class Bad:
        def __repr__(self) -> str:
            raise ValueError

        def __str__(self) -> str:
            return "fine"

    handler.close()
    logger.info(Bad())
    assert "<ValueError in repr()>" in capsys.readouterr().err


def test_structlog_says_it_once(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All loggers of the factory together."""
    factory = LoggerFactory(log, size=SIZE)
    factory.close()
    for number in range(28):
        factory(str(number)).info("late")
    (line,) = capsys.readouterr().err.splitlines()
    assert "WalClosed" in line
    assert factory.stats().errors == 28


def test_flush_and_close_may_come_twice_and_in_any_order(handler: pmwal.LogHandler, logger: logging.Logger, log: Path) -> None:
    """As logging.shutdown does it after a program did."""
    logger.info("one")
    handler.flush()
    handler.flush()
    handler.close()
    handler.flush()
    handler.close()
    handler.createLock()
    handler.acquire()
    handler.release()
    assert (handler.lock, stored(log)) == (None, ["one"])


# -- forks


def test_forked_child_says_once_that_its_records_are_not_stored(
    handler: pmwal.LogHandler, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each child does, and closing the handler that it inherited changes nothing."""

    def misuse() -> tuple[str, int]:
        for number in range(28):
            logger.info("child")
            if number == 14:
                handler.close()
        return capsys.readouterr().err, handler.stats().reasons["ForkedWal"]

    for _ in range(2):
        said, errors = elsewhere(misuse)
        assert (len(said.splitlines()), errors) == (1, 28)
        assert "pmwal.errors.ForkedWal" in said
        assert "after the fork" in said
    logger.info("parent")
    assert handler.stats().errors == 0
    assert capsys.readouterr().err == ""


# -- the end of the interpreter


def ended(source: str, log: Path) -> list[str]:
    """Run a script that logs to the end; what it printed on stderr. It ends in order, and so does its log."""
    done = run_script(source, log)
    assert done.returncode == 0, done.stderr
    assert pmwal.verify(log).outcome == "clean"
    return done.stderr.splitlines()


def test_daemon_threads_that_log_past_the_end_print_one_line_at_most(log: Path) -> None:
    """They run until the interpreter is gone, long after logging.shutdown."""
    source = """
        import logging, sys, threading, pmwal
        logging.basicConfig(handlers=[pmwal.LogHandler(sys.argv[1], size="4MiB")], level="INFO", format="%(message)s")
        ready = threading.Semaphore(0)
        def work():
            ready.release()
            while True:
                logging.info("working")
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        for _ in range(4):
            ready.acquire()
        logging.info("last words")
    """
    printed = ended(source, log)
    assert len(printed) <= 1
    assert "last words" in stored(log)


def test_function_at_exit_that_logs_is_stored_before_and_said_after_logging_ends(log: Path) -> None:
    """atexit runs the latest first: what was registered before logging was imported comes after its shutdown."""
    source = """
        import atexit
        late = lambda: [logging.info("late %d", number) for number in range(28)]
        atexit.register(lambda: late())
        import logging, sys, pmwal
        logging.basicConfig(handlers=[pmwal.LogHandler(sys.argv[1], size="64KiB")], level="INFO", format="%(message)s")
        atexit.register(logging.info, "early")
    """
    (line,) = ended(source, log)
    assert "WalClosed" in line
    assert stored(log) == ["early"]


def test_objects_that_log_while_modules_are_torn_down_raise_nothing(log: Path) -> None:
    """Their __del__ runs when globals are gone."""
    source = """
        import builtins, logging, sys, pmwal
        handler = pmwal.LogHandler(sys.argv[1], size="64KiB")
        class Dies:
            def __init__(self, log):
                self.log = log
                self.itself = self
            def __del__(self):
                self.log("dying")
        logger = logging.Logger("app")
        logger.addHandler(handler)
        builtins.last = Dies(logger.info)
        sys.modules["last"] = Dies(logger.info)
        logging.last = Dies(logger.info)
        pmwal.last = Dies(logger.info)
        sys.modules["pmwal.logs.handler"].last = Dies(logger.info)
        sys.modules["pmwal.logs.sink"].last = Dies(logger.info)
        module_level = Dies(logger.info)
        logger.info("one")
    """
    assert len(ended(source, log)) <= 1
    assert stored(log)[0] == "one"


@pytest.mark.parametrize("hook", ["sys.excepthook", "threading.excepthook", "sys.unraisablehook"])
def test_hooks_can_log(hook: str, log: Path) -> None:
    """The record is there, with its traceback."""
    source = f"""
        import logging, sys, threading, pmwal
        logging.basicConfig(handlers=[pmwal.LogHandler(sys.argv[1], size="64KiB")], level="INFO")
        def seen(*args):
            info = args if len(args) == 3 else (args[0].exc_type, args[0].exc_value, args[0].exc_traceback)
            logging.critical("seen", exc_info=info)
        {hook} = seen
        class Dies:
            def __del__(self):
                raise ZeroDivisionError
        def fail():
            raise ZeroDivisionError
        if "{hook}" == "threading.excepthook":
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
        elif "{hook}" == "sys.unraisablehook":
            Dies()
        else:
            fail()
    """
    done = run_script(source, log)
    assert (done.returncode, done.stderr) == (int(hook == "sys.excepthook"), "")
    (text,) = stored(log)
    assert text.endswith("ZeroDivisionError")


# -- what handlers must bear


def test_filters_and_formatters_that_raise_are_reported_and_counted(
    handler: pmwal.LogHandler, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next record is stored."""

    class Fails(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            raise LookupError

    class Answers(logging.Formatter):
        def format(self, record: logging.LogRecord) -> Any:
            return None

    def fails(record: logging.LogRecord) -> bool:
        raise ArithmeticError

    for formatter in (Fails(), Answers(), logging.Formatter("%(missing)s"), logging.Formatter("%(levelno)q", validate=False)):
        handler.setFormatter(formatter)
        logger.info("not stored")
    handler.setFormatter(None)
    handler.addFilter(fails)
    logger.info("not stored")
    handler.removeFilter(fails)
    logger.info("stored")
    assert [record.data for record in handler.wal] == [b"stored"]
    assert handler.stats().errors == 5
    assert capsys.readouterr().err.count("--- Logging error ---") == 5


def test_arguments_too_deep_to_be_formatted_are_reported(
    handler: pmwal.LogHandler, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although they cannot be shown, nothing is raised."""
    deep: Any = 1
    for _ in range(10_000):
        deep = [deep]
    logger.info("%s", deep)
    assert "RecursionError" in capsys.readouterr().err
    assert handler.stats().reasons == {"RecursionError": 1}


def test_report_that_stderr_cannot_encode_is_said_in_short(handler: pmwal.LogHandler, logger: logging.Logger) -> None:
    """logging itself would raise it into the program."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    with redirect_stderr(stream):
        logger.info("%d", "ünäusprechlich\udc80")
    stream.flush()
    assert b"Logging error" in stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert handler.stats().reasons == {"TypeError": 1}


def test_keyboard_interrupt_while_a_record_is_formatted_is_raised(handler: pmwal.LogHandler, logger: logging.Logger) -> None:
    """It is no error of logging; the log stays usable."""

    class Stops:
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        logger.info(Stops())
    logger.info("next")
    assert [record.data for record in handler.wal] == [b"next"]


def test_queue_listener_stores_what_is_left_when_it_stops(handler: pmwal.LogHandler, log: Path) -> None:
    """Also at the handler's level, and with two handlers on one queue."""
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    logger = logging.Logger("app")
    logger.addHandler(logging.handlers.QueueHandler(records))
    second = pmwal.LogHandler(log.with_name("second.wal"), size=SIZE, structured=True, level="WARNING")
    listener = logging.handlers.QueueListener(records, handler, second, respect_handler_level=True)
    for number in range(100):
        logger.log(30 if number % 2 else 20, "%d", number, extra={"number": number})
    listener.start()
    listener.stop()
    assert [record.data.decode() for record in handler.wal] == [str(number) for number in range(100)]
    assert len(second.wal) == 50
    second.close()


def test_tasks_log_beside_each_other_and_while_they_are_cancelled(handler: pmwal.LogHandler, logger: logging.Logger) -> None:
    """A call does not wait, so no other task runs in it."""

    async def task(name: int) -> None:
        try:
            for number in range(20):
                logger.info("%d %d", name, number)
                await asyncio.sleep(0)
            await asyncio.sleep(3600)
        finally:
            logger.info("%d cancelled", name)

    async def run() -> None:
        tasks = [asyncio.create_task(task(name)) for name in range(10)]
        while len(handler.wal) < 200:
            await asyncio.sleep(0)
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    found = [record.data.decode() for record in handler.wal]
    assert sorted(found) == sorted(f"{name} {what}" for name in range(10) for what in (*range(20), "cancelled"))


# -- copies


def test_deep_copy_logs_into_the_same_log(handler: pmwal.LogHandler, log: Path) -> None:
    """Of a configuration, a factory, a sink or a logger, alone or in a structure."""
    factory = LoggerFactory(log.with_name("structlog.wal"), size=SIZE)
    sink = Sink(log.with_name("loguru.wal"), size=SIZE)
    wal_logger = factory("orders")
    configuration = {"handlers": [handler, factory, sink, wal_logger]}
    copied = copy.deepcopy(configuration)["handlers"]
    assert [one is other for one, other in zip(copied, configuration["handlers"], strict=True)] == [True] * 4
    assert copy.copy(wal_logger) is wal_logger
    for thing in (handler, factory, sink, wal_logger):
        with pytest.raises(TypeError, match="path of its own"):
            pickle.dumps(thing)
    factory.close()
    sink.stop()


def test_deep_copy_of_a_bound_structlog_logger_works(log: Path) -> None:
    """Its context is a copy, its log the same."""
    structlog = pytest.importorskip("structlog")
    factory = LoggerFactory(log, size=SIZE, commit="manual")
    bound = structlog.wrap_logger(
        factory("orders"),
        processors=[structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    ).bind(shop={"id": 7})
    other = copy.deepcopy(bound)
    other._context["shop"]["id"] = 8
    shallow = copy.copy(bound).bind(shallow=True)
    for each in (bound, other, shallow):
        each.info("paid")
    assert [record.data for record in factory.wal] == [
        b'{"shop": {"id": 7}, "event": "paid"}',
        b'{"shop": {"id": 8}, "event": "paid"}',
        b'{"shop": {"id": 7}, "shallow": true, "event": "paid"}',
    ]
    factory.close()


def test_deep_copy_of_a_loguru_logger_works(log: Path) -> None:
    """loguru's documentation copies its logger to have two with different handlers."""
    logger = pytest.importorskip("loguru").logger
    logger.remove()
    sink = Sink(log, size=SIZE, commit="manual")
    logger.add(sink, format="{message}")
    try:
        copied = copy.deepcopy(logger)
        logger.info("one")
        copied.info("two")
        assert [record.data for record in sink.wal] == [b"one", b"two"]
    finally:
        logger.remove()
