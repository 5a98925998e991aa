"""Structured records: which fields a record has, exceptions as data, and the context that structlog has bound."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import pmwal
from loggers import logger_of
from pmwal.logs.encoder import LIBRARIES, encoder
from pmwal.logs.exceptions import DEPTH_MAX, EXCEPTIONS_MAX, FRAMES_MAX
from pmwal.logs.fields import stamp
from processes import run_script

SIZE = "1MiB"
LIBRARY_SETS = [(), *((library,) for library in LIBRARIES)]

Make = Callable[..., pmwal.LogHandler]


@pytest.fixture
def make(shm_dir: Path) -> Iterator[Make]:
    """Makes a structured handler with these options."""
    made: list[pmwal.LogHandler] = []

    def handler(**options: Any) -> pmwal.LogHandler:
        path = shm_dir / f"{len(made)}.wal"
        made.append(pmwal.LogHandler(path, size=SIZE, commit="manual", structured=True, **options))
        return made[-1]

    yield handler
    for each in made:
        each.close()


def documents(handler: pmwal.LogHandler) -> list[dict[str, Any]]:
    """What was stored."""
    assert handler.stats().errors == 0
    return [json.loads(record.data) for record in handler.wal]


def last(handler: pmwal.LogHandler) -> dict[str, Any]:
    """The newest record."""
    return documents(handler)[-1]


def raised(error: BaseException, **options: Any) -> BaseException:
    """This exception, with a traceback."""
    try:
        if "cause" in options:
            raise error from options["cause"]
        raise error
    except BaseException as caught:
        return caught


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


# -- exceptions


def test_exception_is_a_list_from_the_outermost_to_the_root_cause(make: Make) -> None:
    """Each with type, text, notes and frames; is_cause says whether the program named it or it was handled at the time."""
    handler = make()

    def lookup() -> None:
        secret = "hunter2"  # noqa: F841 - must not be stored
        {}["key"]

    try:
        try:
            try:
                lookup()
            except KeyError as error:
                error.add_note("a note")
                raise ValueError("no key") from error
        except ValueError:
            raise pmwal.WalFull("full")  # noqa: B904 - the context is tested
    except pmwal.WalFull:
        logger_of(handler).exception("failed")
    document = last(handler)
    outer, middle, root = document["exception"]
    assert [(each["exc_type"], each["exc_value"], each["is_cause"]) for each in (outer, middle, root)] == [
        ("WalFull", "full", False),
        ("ValueError", "no key", False),
        ("KeyError", "'key'", True),
    ]
    assert outer["exc_module"] == "pmwal.errors"
    assert "exc_module" not in root
    assert root["exc_notes"] == ["a note"]
    assert [frame["name"] for frame in root["frames"]][-1] == "lookup"
    assert root["frames"][-1] == {
        "filename": __file__,
        "lineno": lookup.__code__.co_firstlineno + 2,
        "name": "lookup",
        "code": '{}["key"]',
    }
    assert "WalFull: full" in document["exc"]
    assert "hunter2" not in {line for each in document["exception"] for frame in each["frames"] for line in frame}


def test_no_value_of_a_local_variable_is_stored(make: Make) -> None:
    """Passwords are in such values."""
    handler = make()

    def login(password: str) -> None:
        raise ValueError("refused")

    try:
        login("-".join(["hunter", "2"]))
    except ValueError:
        logger_of(handler).exception("failed")
    assert "hunter-2" not in json.dumps(last(handler))


def test_suppressed_context_is_left_out(make: Make) -> None:
    """As in the text."""
    handler = make()
    try:
        try:
            raise KeyError
        except KeyError:
            raise ValueError from None
    except ValueError:
        logger_of(handler).exception("failed")
    assert [each["exc_type"] for each in last(handler)["exception"]] == ["ValueError"]


def test_form_is_that_of_structlog(make: Make) -> None:
    """What both have has the same name and value, for causes, contexts, notes and groups."""
    tracebacks = pytest.importorskip("structlog.tracebacks")
    inner = raised(ValueError("inner"), cause=raised(KeyError("root")))
    inner.add_note("note")
    error = raised(ExceptionGroup("all", [inner, raised(TypeError("other"))]))
    handler = make()
    logger_of(handler).error("failed", exc_info=error)
    theirs = tracebacks.ExceptionDictTransformer(show_locals=False)((type(error), error, error.__traceback__))

    if "exceptions" not in theirs[0]:
        pytest.skip("a version of structlog that knows no groups")

    def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> int:
        compared = 0
        for one, other in zip(ours, theirs, strict=True):
            for name in ("exc_type", "exc_value", "is_cause"):
                assert one[name] == other[name]
            for name in ("exc_notes", "is_group"):
                assert one.get(name, type(other[name])()) == other[name]
            frames = [{name: value for name, value in frame.items() if name != "code"} for frame in one["frames"]]
            assert frames == other["frames"]
            compared += 1
            for mine, them in zip(one.get("exceptions", []), other["exceptions"], strict=True):
                compared += compare(mine, them)
        return compared

    assert compare(last(handler)["exception"], theirs) == 4


def test_chain_frames_and_groups_are_limited_with_a_mark(make: Make) -> None:
    """A retry that never ends, recursion, and groups in groups."""
    handler = make()
    logger = logger_of(handler)
    chain = raised(ValueError("0"))
    for number in range(1, 100):
        chain = raised(ValueError(str(number)), cause=chain)

    def recurse(left: int) -> None:
        if not left:
            raise ValueError("deep")
        recurse(left - 1)

    try:
        recurse(200)
    except ValueError as error:
        deep = error
    group: Exception = ValueError("innermost")
    for _ in range(20):
        group = ExceptionGroup("outer", [group])
    wide = ExceptionGroup("wide", [ValueError(str(number)) for number in range(1000)])
    for error in (chain, deep, group, wide):
        logger.error("failed", exc_info=error)
    found = [each["exception"] for each in documents(handler)]
    assert len(found[0]) == EXCEPTIONS_MAX + 1
    assert found[0][-1] == {"exc_type": "", "exc_value": "[cut: size]", "is_cause": True, "frames": []}
    frames = found[1][0]["frames"]
    assert (len(frames), frames[FRAMES_MAX // 2]["name"]) == (FRAMES_MAX + 1, f"Skipped frames: {202 - FRAMES_MAX}")
    assert frames[-1]["code"] == 'raise ValueError("deep")'
    depth, inner = 0, found[2]
    while "exceptions" in inner[0]:
        (inner,) = inner[0]["exceptions"]
        depth += 1
    assert (depth, inner[0]["exc_value"]) == (DEPTH_MAX, "[cut: depth]")
    assert len(found[3][0]["exceptions"]) == EXCEPTIONS_MAX
    assert found[3][0]["exceptions"][-1][0]["exc_value"] == "[cut: size]"


def test_exceptions_in_a_circle_end(make: Make) -> None:
    """Each of them is there once."""
    handler = make()
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    logger_of(handler).error("failed", exc_info=one)
    assert [each["exc_value"] for each in last(handler)["exception"]] == ["one", "other"]


class Silent(Exception):
    """It raises when it is asked for its text."""

    def __str__(self) -> str:
        raise ZeroDivisionError


class Hostile(ExceptionGroup[Exception]):
    """It raises when it is asked for anything."""

    @property
    def __notes__(self) -> Any:
        raise ZeroDivisionError

    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise ZeroDivisionError

    @property
    def exceptions(self) -> Any:  # type: ignore[override]
        raise ZeroDivisionError


class Interrupting(Exception):
    """Somebody types Ctrl-C while its text is made."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


@pytest.mark.both_engines
@pytest.mark.parametrize("libraries", LIBRARY_SETS, ids=["json", *LIBRARIES])
def test_exception_whose_code_raises_is_stored_with_a_mark(libraries: tuple[str, ...], make: Make) -> None:
    """The rest of the record is whole."""
    for library in libraries:
        pytest.importorskip(library)
    handler = make()
    handler._encode = encoder(libraries, handler._sink.count_cut)
    logger = logger_of(handler)
    logger.error("one", exc_info=raised(Silent()))
    assert last(handler)["exception"][0]["exc_value"] == "[cut: ZeroDivisionError]"
    logger.error("two", exc_info=Hostile("group", [ValueError("in")]))
    assert last(handler)["exception"][0]["exceptions"][0][0]["exc_value"] == "in"
    assert last(handler)["exc"] == "[cut: ZeroDivisionError]"
    odd = ValueError("odd")
    odd.__notes__ = 7  # type: ignore[assignment]
    logger.error("three", exc_info=odd)
    assert "exc_notes" not in last(handler)["exception"][0]
    assert handler.stats().cut == 2
    with pytest.raises(KeyboardInterrupt):
        logger.error("four", exc_info=raised(Interrupting()))
    assert last(handler)["exception"][0]["exc_value"] == "[cut: KeyboardInterrupt]"


class Unnamed(type):
    """A metaclass without names."""

    @property
    def __name__(cls) -> Any:  # type: ignore[override]
        raise ZeroDivisionError

    @property
    def __module__(cls) -> Any:  # type: ignore[override]
        raise ZeroDivisionError


class Notes(list[str]):
    """A list that raises."""

    def __iter__(self) -> Any:
        raise ZeroDivisionError

    def __getitem__(self, index: Any) -> Any:
        raise ZeroDivisionError


class Pretending:
    """It raises when it is asked for its class."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise ZeroDivisionError


def hostile(name: str, error: type[BaseException] = ZeroDivisionError) -> BaseException:
    """An exception that raises when it is asked for this attribute."""

    def get(self: Any) -> Any:
        raise error

    return type("Odd", (ValueError,), {name: property(get)})("odd")  # type: ignore[no-any-return]


MARK, INTERRUPT = "[cut: ZeroDivisionError]", "[cut: KeyboardInterrupt]"
ODD: dict[str, tuple[Callable[[], BaseException], dict[str, Any]]] = {
    "cause": (lambda: hostile("__cause__"), {"exc_value": MARK, "is_cause": True}),
    "context": (lambda: hostile("__context__"), {"exc_value": MARK, "is_cause": False}),
    "cause of a cause": (lambda: raised(ValueError(), cause=hostile("__cause__")), {"exc_value": MARK, "is_cause": True}),
    "notes": (lambda: hostile("__notes__"), {"exc_notes": [MARK]}),
    "interrupted cause": (lambda: hostile("__cause__", KeyboardInterrupt), {"exc_value": INTERRUPT}),
    "interrupted notes": (lambda: hostile("__notes__", KeyboardInterrupt), {"exc_notes": [INTERRUPT]}),
    "list of notes": (lambda: type("Odd", (ValueError,), {"__notes__": Notes(["x"])})("odd"), {"exc_notes": [MARK]}),
    "names": (lambda: Unnamed("Odd", (ValueError,), {})("odd"), {"exc_type": MARK, "exc_module": MARK}),
    "traceback": (lambda: raised(ValueError("x"), cause=hostile("__traceback__")), {"exc_value": "odd", "frames": []}),
    "suppressed": (lambda: hostile("__suppress_context__"), {"exc_value": "odd"}),
    "notes without a class": (lambda: type("Odd", (ValueError,), {"__notes__": Pretending()})("odd"), {"exc_value": "odd"}),
    "cause without a class": (lambda: type("Odd", (ValueError,), {"__cause__": Pretending()})("odd"), {"exc_value": "odd"}),
}


@pytest.mark.parametrize("libraries", LIBRARY_SETS, ids=["json", *LIBRARIES])
@pytest.mark.parametrize("odd", ODD)
def test_attribute_of_an_exception_that_raises_is_a_mark(odd: str, libraries: tuple[str, ...], make: Make) -> None:
    """The record is stored and counted once as cut; an interrupt is raised afterwards."""
    for library in libraries:
        pytest.importorskip(library)
    handler = make()
    handler._encode = encoder(libraries, handler._sink.count_cut)
    error, expected = ODD[odd][0](), ODD[odd][1]
    record = logging.makeLogRecord({"msg": "failed", "exc_info": (type(error), error, None)})
    if odd.startswith("interrupted"):
        with pytest.raises(KeyboardInterrupt):
            handler.handle(record)
    else:
        handler.handle(record)
    document = last(handler)
    assert document["message"] == "failed"
    assert expected.items() <= document["exception"][-1].items()
    assert handler.stats().cut == ("[cut" in json.dumps(document))


@pytest.mark.parametrize("created", [float("nan"), float("inf"), -1e300, 1e300, "now"], ids=str)
@pytest.mark.parametrize("fmt", [None, ["asctime", "message"]], ids=["usual", "fmt"])
@pytest.mark.parametrize("formatter", [None, logging.Formatter()], ids=["none", "formatter"])
def test_time_that_is_none_is_a_mark(created: Any, fmt: Any, formatter: logging.Formatter | None, make: Make) -> None:
    """The rest of the record is stored."""
    handler = make(fmt=fmt)
    handler.setFormatter(formatter)
    handler.handle(logging.makeLogRecord({"msg": "x", "created": created}))
    assert last(handler)["message"] == "x"
    assert handler.stats().cut == 1
    mark = last(handler)["time" if fmt is None else "asctime"]
    assert mark.startswith("[cut: ")
    handler.handle(logging.makeLogRecord({"msg": "y", "created": 1.5}))
    assert last(handler)["time" if fmt is None else "asctime"].startswith("1970-01-01")


@pytest.mark.parametrize("fmt", ["", "no field", [], (), {}], ids=repr)
def test_format_without_a_field_is_refused(fmt: Any, make: Make) -> None:
    """A record would have no message."""
    with pytest.raises(ValueError, match="names no field"):
        make(fmt=fmt)


def test_formatter_with_a_text_of_its_own_is_used(make: Make) -> None:
    """exc is what its formatException returns; exception is there as well."""

    class Short(logging.Formatter):
        def formatException(self, ei: Any) -> str:
            return f"short: {ei[1]}"

    handler = make()
    handler.setFormatter(Short())
    logger_of(handler).error("failed", exc_info=raised(ValueError("bad")))
    assert last(handler)["exc"] == "short: bad"
    assert last(handler)["exception"][0]["exc_value"] == "bad"


def test_exception_that_is_only_text_or_none_is_stored_as_it_comes(make: Make) -> None:
    """From a queue comes the text alone; outside of an except block there is no exception."""
    handler = make()
    handler.handle(logging.makeLogRecord({"msg": "x", "exc_text": "Traceback ..."}))
    assert last(handler)["exc"] == "Traceback ..."
    logger_of(handler).error("x", exc_info=True)
    assert last(handler)["exc"] == "NoneType: None"
    assert not any("exception" in each for each in documents(handler))


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
