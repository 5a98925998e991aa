"""structlog and loguru: a rendered event becomes a record, and errors go where users of these libraries look for them."""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.integrations.loguru import Sink
from pmwal.integrations.structlog import LoggerFactory
from processes import Died, child, elsewhere, run_script

SIZE = "64KiB"


def records(wal: pmwal.Wal | pmwal.Reader) -> list[tuple[int, str]]:
    """Level and text of all records."""
    return [(record.kind, record.data.decode()) for record in wal]


# -- structlog


def bound(factory: LoggerFactory, *names: str) -> Any:
    """A structlog logger that renders JSON."""
    structlog = pytest.importorskip("structlog")
    return structlog.wrap_logger(
        factory(*names),
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )


@pytest.fixture
def factory(log: Path) -> Iterator[LoggerFactory]:
    """A factory with commit="manual"."""
    factory = LoggerFactory(log, size=SIZE, commit="manual")
    yield factory
    factory.close()


def test_structlog_event_is_a_record_of_its_level(factory: LoggerFactory) -> None:
    """The last processor renders the event, structlog filters it, and from CRITICAL on it is durable."""
    logger = bound(factory).bind(shop=7)
    logger.debug("below")
    logger.info("order", id=1)
    logger.warning("late")
    assert factory.wal.committed_seq == 0
    logger.critical("lost")
    assert factory.wal.committed_seq == 3
    found = [(kind, json.loads(text)) for kind, text in records(factory.wal)]
    assert found == [
        (20, {"shop": 7, "id": 1, "event": "order", "level": "info"}),
        (30, {"shop": 7, "event": "late", "level": "warning"}),
        (50, {"shop": 7, "event": "lost", "level": "critical"}),
    ]


def test_structlog_method_names_are_those_of_its_own_loggers(factory: LoggerFactory) -> None:
    """Every method of structlog's loggers exists, with the number that logging gives to it; bytes and a name work, too."""
    structlog = pytest.importorskip("structlog")
    theirs = {name for name in dir(structlog.BytesLogger) if not name.startswith("_")} - {"name"}
    levels = {"debug": 10, "info": 20, "msg": 20, "log": 20, "warn": 30, "warning": 30, "fatal": 50, "critical": 50}
    logger = factory("orders")
    assert logger.name == "orders"
    for name in sorted(theirs):
        getattr(logger, name)(name.encode())
    assert records(factory.wal) == [(levels.get(name, 40), name) for name in sorted(theirs)]


def test_structlog_configured_by_the_factory_logs_into_it(factory: LoggerFactory) -> None:
    """The configuration is the one in the module's documentation."""
    structlog = pytest.importorskip("structlog")
    try:
        structlog.configure(processors=[structlog.processors.JSONRenderer()], logger_factory=factory)
        structlog.get_logger("orders").info("order", id=1)
    finally:
        structlog.reset_defaults()
    assert records(factory.wal) == [(20, '{"id": 1, "event": "order"}')]


def test_structlog_call_does_not_raise_what_the_log_does(factory: LoggerFactory, capsys: pytest.CaptureFixture[str]) -> None:
    """An error is printed and counted, in a forked child as well; logging's settings can silence it."""
    logger = bound(factory)

    def misuse() -> tuple[str, int]:
        logger.info("child")
        return capsys.readouterr().err, factory.stats().errors

    printed, errors = elsewhere(misuse)
    assert ("after the fork" in printed, errors) == (True, 1)
    factory.close()
    logger.info("late")
    assert "WalClosed" in capsys.readouterr().err
    logging.raiseExceptions = False
    try:
        logger.info("later")
    finally:
        logging.raiseExceptions = True
    assert capsys.readouterr().err == ""
    assert factory.stats().errors == 2


def test_structlog_factory_lives_as_long_as_its_loggers(log: Path) -> None:
    """After that the log is closed, not just dropped; on request it is flushed."""
    logger = LoggerFactory(log, size=SIZE, commit="manual")()
    gc.collect()
    logger.info("still open")
    logger._factory.flush()
    assert logger._factory.wal.committed_seq == 1
    del logger
    gc.collect()
    assert pmwal.verify(log).outcome == "clean"


def test_structlog_log_is_closed_at_exit(log: Path) -> None:
    """It is closed without a word on stderr, although the program did nothing for it."""
    source = """
        import sys
        from pmwal.integrations.structlog import LoggerFactory
        logger = LoggerFactory(sys.argv[1], size="64KiB")()
        logger.info("last words")
    """
    done = run_script(source, log)
    assert (done.returncode, done.stderr) == (0, "")
    assert pmwal.verify(log).outcome == "clean"
    with pmwal.open(log, "r") as reader:
        assert records(reader) == [(20, "last words")]


# -- loguru


@pytest.fixture
def loguru(shm_dir: Path) -> Iterator[Any]:
    """loguru's logger without its own sink on stderr; the logs are closed before their directory goes."""
    logger = pytest.importorskip("loguru").logger
    logger.remove()
    yield logger
    logger.remove()


def test_loguru_message_is_a_record_of_its_level(loguru: Any, log: Path) -> None:
    """loguru's newline is removed; messages are durable from sync_level on; remove() closes the log."""
    sink = Sink(log, size=SIZE, commit="manual", sync_level="ERROR")
    number = loguru.add(sink, format="{level} {message}")
    loguru.info("order {number}", number=7)
    loguru.success("größer")
    assert (sink.wal.committed_seq, sink.stats().written) == (0, 2)
    sink.commit()
    assert sink.wal.committed_seq == 2
    loguru.error("failed")
    assert sink.wal.committed_seq == 3
    loguru.remove(number)
    assert pmwal.verify(log).outcome == "clean"
    with pmwal.open(log, "r") as reader:
        assert records(reader) == [(20, "INFO order 7"), (25, "SUCCESS größer"), (40, "ERROR failed")]


def test_loguru_serialized_message_is_json(loguru: Any, log: Path) -> None:
    """loguru's own serializer writes the JSON, with the bound fields."""
    sink = Sink(log, size=SIZE)
    loguru.add(sink, serialize=True)
    loguru.bind(order=7).warning("late")
    (kind, text) = records(sink.wal)[0]
    found = json.loads(text)["record"]
    assert (kind, found["message"], found["extra"]) == (30, "late", {"order": 7})


def test_loguru_reports_what_the_sink_raises(loguru: Any, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Afterwards it continues; with catch=False the error is raised into the program."""
    sink = Sink(log, size=SIZE)
    number = loguru.add(sink)
    loguru.info("x" * (1 << 16))
    assert "RecordTooLarge" in capsys.readouterr().err
    loguru.remove(number)
    loguru.add(sink, catch=False)
    with pytest.raises(pmwal.WalClosed):
        loguru.info("late")
    assert sink.stats().errors == 2


def test_loguru_in_a_forked_child_is_told_to_open_its_own(loguru: Any, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """loguru prints the error."""
    sink = Sink(log, size=SIZE)
    loguru.add(sink)

    def misuse() -> str:
        loguru.info("child")
        return capsys.readouterr().err

    assert "after the fork" in elsewhere(misuse)
    loguru.info("parent")
    assert len(sink.wal) == 1


# -- both


def by_structlog(path: Path) -> Callable[[str], object]:
    """A function that logs a line through structlog."""
    structlog = pytest.importorskip("structlog")
    logger = LoggerFactory(path, size=SIZE, commit="manual")()
    bound: Callable[[str], object] = structlog.wrap_logger(logger, processors=[lambda _, name, event: event["event"]]).info
    return bound


def by_loguru(path: Path) -> Callable[[str], object]:
    """A function that logs a line through loguru."""
    logger = pytest.importorskip("loguru").logger
    logger.remove()
    logger.add(Sink(path, size=SIZE, commit="manual"), format="{message}")
    info: Callable[[str], object] = logger.info
    return info


@pytest.mark.parametrize("logging_by", [by_structlog, by_loguru])
def test_line_survives_sigkill_once_the_call_returned(log: Path, logging_by: Callable[[Path], Callable[[str], object]]) -> None:
    """Not even a commit is needed."""
    pytest.importorskip(logging_by.__name__.removeprefix("by_"))

    def body(pipe: Any) -> None:
        info = logging_by(log)
        for number in range(100):
            info(f"line {number}")
        os.kill(os.getpid(), signal.SIGKILL)

    with child(body) as running, pytest.raises(Died) as died:
        running.hear()
    assert died.value.code == -signal.SIGKILL
    with pmwal.open(log, "r") as reader:
        assert records(reader) == [(20, f"line {number}") for number in range(100)]


@pytest.mark.parametrize("make", [Sink, LoggerFactory])
def test_what_holds_a_log_is_not_sent_to_another_process(make: Any, log: Path) -> None:
    """The message says what to do instead."""
    thing = make(log, size=SIZE)
    for attempt in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="path of its own"):
            attempt(thing)
    (thing.stop if make is Sink else thing.close)()


# -- the fields of LogHandler(structured=True)

FIELDS = ("time", "level", "logger", "message", "process", "thread")


def documents(wal: pmwal.Wal) -> list[dict[str, Any]]:
    """What was stored, without the name of a process that tests may run in."""
    found = [json.loads(record.data) for record in wal]
    for document in found:
        document.pop("process_name", None)
    return found


def unrendered(factory: LoggerFactory, *processors: str, **options: Any) -> Any:
    """A structlog logger without a renderer."""
    structlog = pytest.importorskip("structlog")
    made = [getattr(structlog.processors, name) for name in processors]
    chain = [structlog.processors.add_log_level, *(each(**options) if isinstance(each, type) else each for each in made)]
    return structlog.wrap_logger(factory("shop"), processors=[*chain, lambda _, name, event: event])


def test_structlog_event_without_a_renderer_is_a_structured_record(factory: LoggerFactory) -> None:
    """Bound values are in extra; the names are those of LogHandler."""
    logger = unrendered(factory).bind(order=7)
    logger.warning("late", message="theirs", module=5)
    (document,) = documents(factory.wal)
    assert tuple(document) == (*FIELDS, "extra")
    assert (document["level"], document["logger"], document["message"]) == ("WARNING", "shop", "late")
    assert (document["process"], document["extra"]) == (os.getpid(), {"order": 7, "message": "theirs", "module": 5})
    factory("shop").info(**{"event": "x", "self": 1})
    assert documents(factory.wal)[1]["extra"] == {"self": 1}
    assert [record.kind for record in factory.wal] == [30, 20]


def test_structlog_context_is_in_the_record(factory: LoggerFactory) -> None:
    """Although no merge_contextvars is configured; the event's own value wins."""
    contextvars = pytest.importorskip("structlog.contextvars")
    logger = unrendered(factory)
    with contextvars.bound_contextvars(request="r1", user="eve"):
        logger.info("one", user="bob")
    assert documents(factory.wal)[0]["extra"] == {"request": "r1", "user": "bob"}


def test_structlog_processors_fill_the_fields(factory: LoggerFactory) -> None:
    """Its time stamp and call site are where LogHandler has them."""
    unrendered(factory, "TimeStamper", fmt="iso").info("one")
    unrendered(factory, "CallsiteParameterAdder").info("two")
    one, two = documents(factory.wal)
    assert one["time"].endswith("Z")
    assert (two["module"], two["function"]) == ("test_integrations", "test_structlog_processors_fill_the_fields")
    assert type(two["line"]) is int
    assert {"func_name", "lineno", "thread_name"} & two["extra"].keys() == set()


@pytest.mark.parametrize("how", ["exception", "exc_info", "tuple", "dict_tracebacks", "format_exc_info"])
def test_structlog_exception_is_text_and_data(how: str, factory: LoggerFactory) -> None:
    """Whichever of structlog's processors has seen it."""
    logger = unrendered(factory, *([how] if how in ("dict_tracebacks", "format_exc_info") else []))
    try:
        raise KeyError("missing")
    except KeyError as error:
        if how == "exc_info":
            logger.error("failed", exc_info=error)
        elif how == "tuple":
            logger.error("failed", exc_info=(KeyError, error, error.__traceback__))
        else:
            logger.exception("failed")
    (document,) = documents(factory.wal)
    assert document["level"] == "ERROR"
    if how != "dict_tracebacks":
        assert document["exc"].endswith("KeyError: 'missing'")
    if how != "format_exc_info":
        assert [(each["exc_type"], each["exc_value"]) for each in document["exception"]] == [("KeyError", "'missing'")]
    assert "extra" not in document


def test_structlog_event_that_cannot_be_encoded_is_cut(factory: LoggerFactory) -> None:
    """The record is stored with a mark, also if it is the event itself, and an interrupt is raised after that."""

    class Bad:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def __str__(self) -> str:
            raise self.error

    logger = unrendered(factory)
    logger.info(Bad(ValueError()), exc_info=(1, 2, 3))
    with pytest.raises(KeyboardInterrupt):
        logger.info("interrupted", value=Bad(KeyboardInterrupt()))
    factory().info("with", order=7)
    found = documents(factory.wal)
    assert found[0]["message"] == "[cut: ValueError]"
    assert found[1]["extra"] == {"value": "[cut: KeyboardInterrupt]"}
    assert (found[2]["message"], found[2]["logger"], found[2]["extra"]) == ("with", "", {"order": 7})
    assert (factory.stats().cut, factory.stats().errors) == (2, 0)


def test_loguru_structured_record_has_the_fields_of_the_handler(loguru: Any, log: Path) -> None:
    """With what bind, contextualize and the call gave in extra; no values of local variables, which loguru would print."""
    sink = Sink(log, size=SIZE, commit="manual", structured=True)
    loguru.add(sink, format="{message}", diagnose=True)
    secret = "hunter" + str(2)
    with loguru.contextualize(request="r1"):
        loguru.bind(user="eve").success("order {number}", number=7)
    try:
        raise KeyError(len(secret))
    except KeyError:
        loguru.exception("failed")
    sink.write("a line\n")
    wal = list(sink.wal)
    first, second = (json.loads(record.data) for record in wal[:2])
    assert [record.kind for record in wal] == [25, 40, 0]
    assert wal[2].data == b"a line"
    names = ["time", "level", "logger", "message", "module", "function", "line", "process", "thread"]
    assert [name for name in first if name != "process_name"] == [*names, "extra"]
    assert (first["level"], first["message"], first["function"]) == (
        "SUCCESS", "order 7", "test_loguru_structured_record_has_the_fields_of_the_handler",
    )  # fmt: skip
    assert first["extra"] == {"request": "r1", "user": "eve", "number": 7}
    assert second["exc"].startswith("Traceback")
    assert second["exception"][0]["exc_type"] == "KeyError"
    assert "hunter2" not in wal[1].data.decode()


def test_loguru_interrupt_is_raised_after_the_record_was_stored(loguru: Any, log: Path) -> None:
    """A mark is in the place of the object."""

    class Bad:
        def __str__(self) -> str:
            raise KeyboardInterrupt

    sink = Sink(log, size=SIZE, commit="manual", structured=True)
    loguru.add(sink, format="{message}", catch=False)
    with pytest.raises(KeyboardInterrupt):
        loguru.bind(bad=Bad()).info("x")
    assert documents(sink.wal)[0]["extra"] == {"bad": "[cut: KeyboardInterrupt]"}


def test_loguru_exception_from_another_process_may_be_gone(loguru: Any, log: Path) -> None:
    """With enqueue=True an exception that cannot be pickled comes as None."""
    sink = Sink(log, size=SIZE, commit="manual", structured=True)
    loguru.add(sink, format="{message}")
    loguru.opt(exception=True).info("no exception at hand")
    assert "exception" not in documents(sink.wal)[0]
