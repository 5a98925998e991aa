"""Records as entries: what each way to log stores, read back, and the object that it is in JSON."""

from __future__ import annotations

import argparse
import json
import logging
import traceback
from pathlib import Path
from typing import Any

import loguru
import pytest
import structlog

import pmwal
from pmwal import events
from pmwal.cli import main
from pmwal.cli.entries import json_object, json_text
from pmwal.cli.levels import Levels, levels_option, priority_of
from pmwal.events.entries import Entries, Entry, level_name, traceback_of
from pmwal.integrations.loguru import Sink
from pmwal.integrations.structlog import LoggerFactory

DAY = 1_700_000_000_000_000_001


def entries_of(path: Path) -> list[Entry]:
    with pmwal.open(path, "r") as reader:
        entries = Entries(reader)
        return [entries.entry(record) for record in reader]


def entry_of(path: Path, data: bytes, kind: int = 0) -> Entry:
    with pmwal.open(path, size="64KiB") as wal:
        wal.append(data, kind=kind)
    return entries_of(path)[-1]


def failing() -> None:
    try:
        raise KeyError("order")
    except KeyError as error:
        raise ValueError("no order") from error


def test_text_is_the_message_and_its_kind_the_level(tmp_path: Path) -> None:
    """A line of a handler without structure."""
    entry = entry_of(tmp_path / "a.wal", b"late", 30)
    assert (entry.level, entry.level_name, entry.logger, entry.message) == (30, "WARNING", "", "late")
    assert not entry.fields
    assert not entry.traceback


@pytest.mark.parametrize("kind", [0, 0xFFE0, 0xFFE1, 0xFFFF])
def test_a_kind_that_is_no_level_gives_none(tmp_path: Path, kind: int) -> None:
    """Kind 0 and those above the applications' ones; also where the payload is no event although the kind says so."""
    entry = entry_of(tmp_path / "a.wal", b"x", kind)
    assert (entry.level, entry.level_name, entry.message) == (0, "", "x")


def test_a_structured_record_of_the_handler_has_its_parts(tmp_path: Path) -> None:
    """Extra values are the fields; the traceback is not one of them."""
    handler = pmwal.LogHandler(tmp_path / "a.wal", size="64KiB", structured=True)
    logger = logging.Logger("shop.orders")
    logger.addHandler(handler)
    try:
        failing()
    except ValueError:
        logger.exception("refused", extra={"order": 7, "seq": "own"})
    handler.close()
    (entry,) = entries_of(tmp_path / "a.wal")
    assert (entry.level_name, entry.logger, entry.message) == ("ERROR", "shop.orders", "refused")
    assert entry.fields == {"order": 7, "seq": "own"}
    assert entry.traceback.startswith("Traceback (most recent call last):")
    assert entry.traceback.endswith("ValueError: no order")


def test_a_record_of_structlog_has_its_parts(tmp_path: Path) -> None:
    """The fields stay beside the event's name, and a structured traceback is printed as the interpreter does."""
    factory = LoggerFactory(tmp_path / "a.wal", size="64KiB")
    processors: list[Any] = [structlog.processors.add_log_level, structlog.processors.dict_tracebacks]
    logger = structlog.wrap_logger(factory(), processors=[*processors, structlog.processors.JSONRenderer()])
    try:
        failing()
    except ValueError as error:
        shown = "".join(traceback.format_exception(error))
        logger.exception("refused", order=7, line=3)
    factory.close()
    (entry,) = entries_of(tmp_path / "a.wal")
    assert (entry.level, entry.level_name, entry.message) == (40, "ERROR", "refused")
    assert entry.fields == {"order": 7, "line": 3}
    source = [line for line in shown.splitlines() if not line.startswith("    ")]
    assert [line for line in entry.traceback.splitlines() if not line.startswith("    ")] == source


def test_a_record_of_loguru_has_its_parts(tmp_path: Path) -> None:
    """The document of ``serialize=True``: what is bound are the fields, and the rest is where it came from."""
    logger = loguru.logger
    logger.remove()
    logger.add(Sink(tmp_path / "a.wal", size="64KiB"), serialize=True)
    try:
        failing()
    except ValueError:
        logger.bind(order=7).exception("refused {}", 3)
    logger.remove()
    (entry,) = entries_of(tmp_path / "a.wal")
    assert (entry.level, entry.level_name, entry.logger, entry.message) == (40, "ERROR", __name__, "refused 3")
    assert entry.fields == {"order": 7}
    assert entry.origin["function"] == "test_a_record_of_loguru_has_its_parts"
    assert "ValueError: no order" in entry.traceback


def test_an_event_has_its_arguments_as_fields(tmp_path: Path) -> None:
    """An event of ``pmwal.events``, with the level and the name of its definition."""
    with pmwal.open(tmp_path / "a.wal", size="64KiB") as wal:
        events.Logger(wal, name="shop").event("order {id} of {user}", level=30)(7, "ada")
    entry = entries_of(tmp_path / "a.wal")[-1]
    assert (entry.level_name, entry.logger, entry.message) == ("WARNING", "shop", "order 7 of ada")
    assert entry.fields == {"id": 7, "user": "ada"}
    value = json_object(entry)
    assert (value["format"], value["fields"]) == ("order {id} of {user}", {"id": 7, "user": "ada"})


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"{}",
        b"[1]",
        b'{"a": 1}',
        b'{"message": 7}',
        b'{"message": "x"} and more',
        b'{"message": "\xff"}',
        b"{" + b'"a":{' * 5000,
    ],
)
def test_what_is_no_document_with_a_message_is_text(tmp_path: Path, data: bytes) -> None:
    """Nothing that begins like a document ends a command."""
    entry = entry_of(tmp_path / "a.wal", data)
    assert entry.message == data.decode(errors="backslashreplace")
    assert entry.document is None


@pytest.mark.parametrize(
    ("document", "level", "logger", "fields"),
    [
        ({"message": "m", "level": "error", "logger": "a"}, (40, "ERROR"), "a", {}),
        ({"msg": "m", "severity": "NOTICE", "name": "a"}, (0, "NOTICE"), "a", {}),
        ({"event": "m", "level": 30}, (0, ""), "", {"level": 30}),
        ({"message": "m", "event": "e"}, (0, ""), "", {"event": "e"}),
        ({"message": "m", "extra": {"a": {"b": 1}}, "time": "now"}, (0, ""), "", {"a": {"b": 1}}),
        ({"message": "m", "extra": "text"}, (0, ""), "", {"extra": "text"}),
        ({"event": "m", "task": "mail", "lineno": 3}, (0, ""), "", {"task": "mail"}),
        ({"message": "m", "task": "mail", "lineno": 3, "thread": "T"}, (0, ""), "", {}),
    ],
)
def test_documents_by_the_names_that_libraries_use(
    tmp_path: Path, document: dict[str, Any], level: tuple[int, str], logger: str, fields: dict[str, Any]
) -> None:
    """The first name of each part that is a text counts; what is left is a field."""
    entry = entry_of(tmp_path / "a.wal", json.dumps(document).encode())
    assert ((entry.level, entry.level_name), entry.logger, entry.message) == (level, logger, "m")
    assert entry.fields == fields


def test_the_object_in_json_has_the_names_of_the_record_and_of_the_entry(tmp_path: Path) -> None:
    """What the program named cannot be taken for one of these; what is empty is left out."""
    entry = entry_of(tmp_path / "a.wal", b'{"message": "m", "logger": "a", "extra": {"seq": 3, "x": NaN}, "module": "shop"}', 30)
    value = json_object(entry)
    assert list(value) == ["seq", "kind", "time_ns", "time", "level", "logger", "message", "module", "fields"]
    assert value["seq"] == 1
    assert value["fields"] == {"seq": 3, "x": "NaN"}
    assert list(json_object(entry_of(tmp_path / "b.wal", b"x"))) == ["seq", "kind", "time_ns", "time", "message"]


def test_the_time_in_json_has_all_its_digits(tmp_path: Path) -> None:
    """As text: jq rounds numbers."""
    entry = Entry(pmwal.Record(1, 0, DAY, b"x"), 0, "", "", "x", {})
    assert json_object(entry)["time"] == "2023-11-14T22:13:20.000000001Z"


def test_records_of_a_set_name_their_log(tmp_path: Path) -> None:
    """Events too: each log has its definitions."""
    for name in ("a", "b"):
        with pmwal.open(tmp_path / f"{name}.wal", size="64KiB") as wal:
            events.Logger(wal, name=name).event("{0} by " + name)(7)
    with pmwal.LogSet(tmp_path) as logs:
        entries = Entries(logs)
        values = [json_object(entries.entry(record)) for record in logs if record.kind == events.EVENT_KIND]
    assert [(value["log"], value["message"]) for value in values] == [
        (f"{tmp_path}/a.wal", "7 by a"),
        (f"{tmp_path}/b.wal", "7 by b"),
    ]


def test_bytes_that_are_no_text_are_there_whole(tmp_path: Path) -> None:
    """In ``data_base64``, beside the escaped text."""
    value = json_object(entry_of(tmp_path / "a.wal", b"\xff\x00"))
    assert (value["message"], value["data_base64"]) == ("\\xff\x00", "/wA=")


@pytest.mark.parametrize("text", ["\x9b31m", "\x7f", "a\x7f\x80é", "\x1b[0m", "\udc80", "\u202eé", "\u2028", "\u2066\u2069"])
def test_json_has_no_control_characters(text: str) -> None:
    """Not even those that JSON allows: a terminal would obey them. It reads back as the same text."""
    line = json_text({text: text})
    assert not any(char < " " or "\x7f" <= char <= "\x9f" or "\u2028" <= char <= "\u2069" for char in line.decode())
    assert json.loads(line) == {text: text}


@pytest.mark.parametrize("digits", [4300, 4301, 20_000])
def test_number_with_more_digits_than_the_interpreter_reads_is_text(tmp_path: Path, digits: int) -> None:
    """Level, message and the other fields are those of the document; orjson and other languages have no such limit."""
    number = "7" * digits
    entry = entry_of(tmp_path / "a.wal", f'{{"message": "m", "level": "error", "n": {number}, "k": [1]}}'.encode())
    assert (entry.message, entry.level_name, entry.fields["k"]) == ("m", "ERROR", [1])
    assert entry.fields["n"] == (int(number) if digits <= 4300 else number)
    assert str(json_object(entry)["fields"]["n"]) == number
    assert json.loads(json_text(json_object(entry)))["message"] == "m"


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("number", ["1e999", "-1e999", "Infinity", "NaN"])
def test_json_has_no_number_that_json_lacks(tmp_path: Path, number: str, indent: int | None) -> None:
    """Other programs would refuse the whole line. Text has them, at any depth; the other values stay."""
    depth = 200
    payload = f'{{"message": "m", "a": {"[" * depth}{number}{"]" * depth}, "b": [1.5, 20000000000000000000000, null]}}'
    text = json_text(json_object(entry_of(tmp_path / "a.wal", payload.encode())), indent)
    value = json.loads(text, parse_constant=pytest.fail)["fields"]
    assert value["b"] == [1.5, 20000000000000000000000, None]
    for _ in range(depth):
        (value["a"],) = value["a"]
    assert value["a"] == number.replace("1e999", "Infinity")


@pytest.mark.parametrize("form", ["short", "verbose", "json", "json-pretty", "logfmt"])
@pytest.mark.parametrize("member", ["x", "extra", "exception"])
def test_a_document_of_any_depth_is_shown(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], form: str, member: str
) -> None:
    """A deeper one than can be shown in parts is text; it does not keep the others from being shown."""
    with pmwal.open(tmp_path / "a.wal", size="4MiB", commit="manual") as wal:
        for depth in (100, *range(700, 1000), 20_000):
            opening, closing = ("[", "]") if depth % 2 else ('{"a":', "}")
            wal.append(f'{{"message": "m{depth}", "{member}": {opening * depth}1{closing * depth}}}'.encode())
        wal.append(b'{"message": "the last"}')
    assert main(["logs", "-o", form, str(tmp_path / "a.wal")]) == 0
    shown = capsysbinary.readouterr().out
    assert shown.count(b"m20000") == shown.count(b"the last") == 1


@pytest.mark.parametrize("value", [None, "text", [], [1], {"a": 1}, [{"frames": "x"}], [{"frames": [3]}]])
def test_an_exception_of_another_shape_ends_nothing(value: Any) -> None:
    """Anything may be named so."""
    assert isinstance(traceback_of(value), str)


def test_levels_are_those_of_syslog_and_of_logging() -> None:
    """One level and the more severe ones, or a range in either order."""
    assert levels_option("err") == levels_option("ERROR") == levels_option("3") == Levels(40, 0xFFDF)
    assert levels_option("info..err") == levels_option("err..info") == levels_option("6..3") == Levels(20, 49)
    assert levels_option("err..alert").high == 0xFFDF
    assert levels_option("35..35") == Levels(35, 35)
    assert 45 in levels_option("err")
    assert 30 not in levels_option("err")
    for text in ("", "loud", "..", "70000", "-1", "err..loud"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no level: use debug, info"):
            levels_option(text)


def test_levels_name_the_kinds_that_may_have_them() -> None:
    """Documents of kind 0 and events say their level themselves."""
    assert Levels(40, 41).kinds == {0, 40, 41, events.EVENT_KIND, events.DEFINITION_KIND}


def test_levels_have_names_and_priorities() -> None:
    """Those of logging, with the numbers between."""
    assert [level_name(level) for level in (10, 20, 30, 40, 50, 35, 0)] == [
        "DEBUG",
        "INFO",
        "WARNING",
        "ERROR",
        "CRITICAL",
        "35",
        "",
    ]
    assert [priority_of(level) for level in (1, 20, 25, 30, 49, 50, 51)] == [7, 6, 5, 4, 3, 2, 1]
