"""Exceptions in structured records: as data and as text, whatever their code does."""

from __future__ import annotations

import json
import logging
import logging.config
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from loggers import logger_of
from pmwal.logs.encoder import LIBRARIES, encoder
from pmwal.logs.exceptions import DEPTH_MAX, EXCEPTIONS_MAX, FRAMES_MAX
from structured import LIBRARY_SETS, Make, documents, handlers, last, raised


@pytest.fixture
def make(shm_dir: Path) -> Iterator[Make]:
    """Makes a structured handler with these options."""
    with handlers(shm_dir) as made:
        yield made


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
