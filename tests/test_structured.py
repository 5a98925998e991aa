"""Structured records: which fields a record has, exceptions as data, and the context that structlog has bound."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import os
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import pmwal
from loggers import logger_of
from pmwal.logs.encoder import LIBRARIES, encoder
from pmwal.logs.fields import stamp
from processes import run_script
from structured import LIBRARY_SETS, SIZE, Make, documents, handlers, last, raised


@pytest.fixture
def make(shm_dir: Path) -> Iterator[Make]:
    """Makes a structured handler with these options."""
    with handlers(shm_dir) as made:
        yield made


# -- the usual fields


def test_record_says_where_it_was_logged(make: Make) -> None:
    """Module, function, line, process and thread, in this order, before what is there only sometimes."""
    handler = make()
    logger_of(handler).warning("late", extra={"order": 7})
    line = sys._getframe().f_lineno - 1
    document = last(handler)
    document.pop("process_name", None)
    names = ["time", "level", "logger", "message", "module", "function", "line", "process", "thread", "extra"]
    assert names == list(document)
    assert document["line"] == line
    assert (document["module"], document["function"]) == ("test_structured", "test_record_says_where_it_was_logged")
    assert (document["process"], document["thread"]) == (os.getpid(), threading.current_thread().name)


def test_thread_and_task_have_their_names(make: Make) -> None:
    """The task is there in a coroutine only, and each has its own."""
    handler = make()
    logger = logger_of(handler)
    thread = threading.Thread(target=logger.info, args=("from a thread",), name="worker-7")
    thread.start()
    thread.join()

    async def log(name: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name(name)
        await asyncio.sleep(0)
        logger.info(name)

    async def main() -> None:
        await asyncio.gather(log("first"), log("second"))

    asyncio.run(main())
    logger.info("after")
    found = [(each["message"], each["thread"], each.get("task")) for each in documents(handler)]
    main_thread = threading.current_thread().name
    assert found[0] == ("from a thread", "worker-7", None)
    assert sorted(found[1:3]) == [("first", main_thread, "first"), ("second", main_thread, "second")]
    assert found[3] == ("after", main_thread, None)


@pytest.mark.parametrize("name", ["MainProcess", "Process-3", None])
def test_process_has_a_name_unless_it_is_the_main_one(name: str | None, make: Make) -> None:
    """As multiprocessing names it."""
    handler = make()
    handler.handle(logging.makeLogRecord({"msg": "x", "processName": name}))
    assert last(handler).get("process_name") == (name if name == "Process-3" else None)


def test_attribute_that_a_filter_removed_is_null(make: Make) -> None:
    """The others stay."""
    handler = make()
    record = logging.makeLogRecord({"msg": "x", "name": "shop"})
    del record.threadName, record.processName
    handler.handle(record)
    assert (last(handler)["logger"], last(handler)["thread"]) == ("shop", None)


@pytest.mark.parametrize(
    "seconds", [0, 0.5, 1.9999996, 1.9999994, -0.25, -1.5, 1e9, 1764490000.123456, 1764490000.9999998, 253402300790.0]
)
def test_stamp_is_what_datetime_gives(seconds: float) -> None:
    """Also where it rounds up to the next second, and again from the same second."""
    expected = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    assert [stamp(seconds), stamp(seconds), stamp(seconds + 3), stamp(seconds)][::3] == [expected, expected]


# -- fmt


@pytest.mark.parametrize(
    "fmt",
    [
        "%(asctime)s %(levelname)-8s [%(name)s:%(lineno)d] %(message)s",
        "{asctime} {levelname:<8} [{name}:{lineno:d}] {message}",
        ["asctime", "levelname", "name", "lineno", "message"],
        ("asctime", "levelname", "name", "lineno", "message", "name"),
    ],
    ids=str,
)
def test_fmt_chooses_the_fields_in_its_order(fmt: Any, make: Make) -> None:
    """As a format of either style or a list of names; exceptions and extra fields follow."""
    handler = make(fmt=fmt)
    logger = logger_of(handler)
    logger.info("paid", extra={"order": 7})
    assert list(last(handler)) == ["asctime", "levelname", "name", "lineno", "message", "extra"]
    assert (last(handler)["levelname"], last(handler)["message"]) == ("INFO", "paid")
    datetime.fromisoformat(last(handler)["asctime"])
    logger.error("failed", exc_info=raised(ValueError("bad")))
    assert list(last(handler)) == ["asctime", "levelname", "name", "lineno", "message", "exc", "exception"]


def test_every_attribute_of_a_log_record_can_be_chosen(make: Make) -> None:
    """With the value that logging gives it."""
    names = [
        *("asctime", "created", "filename", "funcName", "levelname", "levelno", "lineno", "message", "module", "msecs", "name"),
        *("pathname", "process", "processName", "relativeCreated", "taskName", "thread", "threadName"),
    ]
    handler = make(fmt=names)
    record = logging.LogRecord("shop", 20, "/app/x.py", 17, "order %d", (7,), None, "pay")
    handler.handle(record)
    document = last(handler)
    assert list(document) == names
    assert document.pop("taskName") is None
    assert document.pop("asctime") == stamp(record.created)
    assert document.pop("message") == "order 7"
    assert document == {name: getattr(record, name) for name in document}


def test_asctime_is_the_formatters_if_there_is_one(make: Make) -> None:
    """With its datefmt. The usual field time stays as it is."""
    formatter = logging.Formatter(datefmt="%Y")
    for options, name, expected in (({"fmt": ["asctime"]}, "asctime", "1970"), ({}, "time", stamp(10**6))):
        handler = make(**options)
        handler.setFormatter(formatter)
        handler.handle(logging.makeLogRecord({"msg": "x", "created": 10**6}))
        assert last(handler)[name] == expected


def test_fields_are_renamed_fixed_and_lifted_out_of_extra(make: Make) -> None:
    """rename_fields, static_fields and defaults, with fmt and without."""
    rename = {"level": "severity", "extra": "labels", "service": "svc", "order": "order_id"}
    handler = make(rename_fields=rename, static_fields={"service": "shop", "tags": {"a": (1,)}}, defaults={"order": None})
    logger = logger_of(handler)
    logger.info("one")
    logger.info("two", extra={"order": 7, "user": "eve"})
    first, second = documents(handler)
    assert (first["severity"], first["svc"], first["tags"], first["order_id"]) == ("INFO", "shop", {"a": [1]}, None)
    assert "labels" not in first
    assert (second["order_id"], second["labels"]) == (7, {"user": "eve"})
    handler = make(fmt="%(message)s %(order)s", defaults={"order": 0, "late": True})
    logger_of(handler).info("three", extra={"order": 8})
    assert last(handler) == {"message": "three", "order": 8, "late": True}


@pytest.mark.parametrize("libraries", LIBRARY_SETS, ids=["json", *LIBRARIES])
def test_lifted_field_may_have_any_value(libraries: tuple[str, ...], make: Make) -> None:
    """Depth, also of tuples, is cut as in extra."""
    for library in libraries:
        pytest.importorskip(library)
    handler = make(defaults={"deep": None})
    handler._encode = encoder(libraries, handler._sink.count_cut, handler._fields.open_fields)
    deep: Any = 7
    for _ in range(10_000):
        deep = (deep,)
    logger_of(handler).info("x", extra={"deep": deep})
    assert "[cut: depth]" in json.dumps(last(handler)["deep"])
    assert handler.stats().cut == 1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"fmt": "%(levelnme)s"}, "did you mean 'levelname'"),
    "ours": ({"fmt": ["level"]}, "use 'levelname', with rename_fields={'levelname': 'level'}"),
    "exc_info": ({"fmt": "{exc_info}"}, "follow in any case"),
    "unknown": ({"fmt": ["request_id"]}, "defaults={'request_id': None}"),
    "no field": ({"fmt": "levelname"}, "a list of names"),
    "rename of none": ({"rename_fields": {"levl": "x"}}, "did you mean 'level'"),
    "rename of another": ({"fmt": ["message"], "rename_fields": {"zzz": "x"}}, "the fields are message"),
    "twice": ({"rename_fields": {"level": "message"}}, "two fields would have the name 'message'"),
    "static twice": ({"static_fields": {"extra": 1}}, "two fields would have the name 'extra'"),
    "default twice": ({"defaults": {"level": 1}}, "two fields would have the name 'level'"),
    "default of logging's": ({"defaults": {"lineno": 1}}, "attribute of every log record"),
    "not JSON": ({"static_fields": {"a": {"b": [float("nan"), type("Bad", (), {"__str__": lambda self: 1 / 0})()]}}}, "as JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_field_is_refused_with_a_hint_and_no_log_is_made(name: str, shm_dir: Path) -> None:
    """At construction, so that a program does not start with it."""
    options, hint = WRONG[name]
    with pytest.raises(ValueError) as refused:
        pmwal.LogHandler(shm_dir / "app.wal", size=SIZE, structured=True, **options)
    assert hint in str(refused.value)
    assert not (shm_dir / "app.wal").exists()


@pytest.mark.parametrize("options", [{"fmt": [7]}, {"rename_fields": {"level": 7}}], ids=str)
def test_name_that_is_no_text_is_a_type_error(options: dict[str, Any], shm_dir: Path) -> None:
    """The message says what it is."""
    with pytest.raises(TypeError, match="not int"):
        pmwal.LogHandler(shm_dir / "app.wal", size=SIZE, structured=True, **options)


@pytest.mark.parametrize("name", ["fmt", "rename_fields", "static_fields", "defaults"])
def test_fields_need_structured_records(name: str, shm_dir: Path) -> None:
    """Text is what a Formatter makes."""
    value: Any = ["message"] if name == "fmt" else {}
    with pytest.raises(ValueError, match="setFormatter"):
        pmwal.LogHandler(shm_dir / "app.wal", size=SIZE, **{name: value})


def test_dictconfig_takes_the_fields(shm_dir: Path) -> None:
    """Its own lists and dicts are as good as others."""
    wal = {
        **{"class": "pmwal.LogHandler", "path": str(shm_dir / "app.wal"), "size": SIZE, "structured": True},
        **{"fmt": ["levelname", "message"], "rename_fields": {"levelname": "severity"}, "static_fields": {"service": "shop"}},
    }
    loggers = {"pmwal-fields": {"handlers": ["wal"], "level": "INFO", "propagate": False}}
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "handlers": {"wal": wal}, "loggers": loggers})
    logger = logging.getLogger("pmwal-fields")
    (handler,) = logger.handlers
    try:
        logger.info("paid")
        assert isinstance(handler, pmwal.LogHandler)
        assert last(handler) == {"severity": "INFO", "message": "paid", "service": "shop"}
    finally:
        logger.handlers.clear()
        handler.close()


# -- the context of structlog


def test_context_bound_by_structlog_is_in_extra(make: Make) -> None:
    """What the record itself has wins."""
    contextvars = pytest.importorskip("structlog.contextvars")
    handler = make()
    logger = logger_of(handler)
    with contextvars.bound_contextvars(request="r1", user="eve"):
        logger.info("one")
        logger.info("two", extra={"user": "bob", "order": 7})
    logger.info("three")
    found = [each.get("extra") for each in documents(handler)]
    assert found == [{"request": "r1", "user": "eve"}, {"request": "r1", "user": "bob", "order": 7}, None]


def test_structlog_is_not_imported(shm_dir: Path) -> None:
    """A program without it does not load it, nor asyncio."""
    source = """
        import json, logging, sys, pmwal
        handler = pmwal.LogHandler(sys.argv[1], size="64KiB", structured=True)
        handler.handle(logging.makeLogRecord({"msg": "x"}))
        print(json.dumps([name for name in ("structlog", "asyncio") if name in sys.modules]))
        handler.close()
    """
    assert json.loads(run_script(source, shm_dir / "app.wal").stdout) == []
