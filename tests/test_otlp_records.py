"""What becomes of a record on its way to a collector: the data model of OpenTelemetry, as opentelemetry-proto decodes it."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import pmwal
from collectors import Received, decoded
from pmwal import events
from pmwal.events.entries import Entries
from pmwal.ship.otlp import encoding, is_otlp
from pmwal.ship.otlp.encoding import Item, LogId, request_of, severity_of
from pmwal.ship.otlp.endpoint import endpoint_of, headers_of_environment
from pmwal.ship.otlp.sources import source_of

LOG = LogId("0" * 32, "shop")
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def sent(path: Path, resource: Mapping[str, Any] | None = None) -> list[Received]:
    """The records of a log, as a collector gets them."""
    with pmwal.open(path, "r") as reader:
        entries = Entries(reader)
        body = request_of([Item(LOG, entries.entry(record)) for record in reader], resource or {}, 5)
    return decoded(body)


def sent_json(path: Path, document: dict[str, Any], kind: int = 20) -> Received:
    """A document that was stored, as a collector gets it."""
    with pmwal.open(path, size="1MiB") as wal:
        wal.append(json.dumps(document).encode(), kind=kind)
    return sent(path)[0]


def test_record_of_logging_has_all_its_parts(path: Path) -> None:
    """Time, severity, message, logger, fields, place and exception, each where the data model has it."""
    with contextlib.closing(pmwal.LogHandler(path, size="1MiB", structured=True)) as handler:
        logger = logging.Logger("shop.orders")
        logger.addHandler(handler)
        logger.warning("paid %d", 5, extra={"user": 17, "cart": {"items": [1, None, 2.5, True, "x"]}})
        try:
            raise json.JSONDecodeError("no", "x", 0)
        except ValueError:
            logger.exception("refused")
    with pmwal.open(path, "r") as reader:
        times = [record.time_ns for record in reader]
    paid, refused = sent(path, {"host.name": "a"})
    assert (paid.record.time_unix_nano, paid.record.observed_time_unix_nano) == (times[0], 5)
    assert (paid.record.severity_number, paid.record.severity_text, paid.body, paid.scope) == (
        13,
        "WARNING",
        "paid 5",
        "shop.orders",
    )
    assert paid.resource == {"service.name": {"stringValue": "shop"}, "host.name": {"stringValue": "a"}}
    items = [{"intValue": "1"}, {}, {"doubleValue": 2.5}, {"boolValue": True}, {"stringValue": "x"}]
    found = paid.attributes
    assert found["user"] == {"intValue": "17"}
    assert found["cart"] == {"kvlistValue": {"values": [{"key": "items", "value": {"arrayValue": {"values": items}}}]}}
    assert found["code.function.name"] == {"stringValue": "test_record_of_logging_has_all_its_parts"}
    assert set(found) >= {"module", "code.line.number", "process.pid", "thread.name"}
    assert (found["pmwal.seq"], found["pmwal.log.uuid"]) == ({"intValue": "1"}, {"stringValue": "0" * 32})
    found = refused.attributes
    assert found["exception.type"] == {"stringValue": "json.decoder.JSONDecodeError"}
    assert found["exception.message"] == {"stringValue": "no: line 1 column 1 (char 0)"}
    assert found["exception.stacktrace"]["stringValue"].startswith("Traceback (most recent call last):\n  File ")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ('Traceback (most recent call last):\n  File "a", line 1\nshop.Full: no room\nfor it', "shop.Full", "no room\nfor it"),
        ('Traceback (most recent call last):\n  File "a", line 1\nKeyboardInterrupt', "KeyboardInterrupt", None),
        ("Traceback (most recent call last):\n  a\nE: 1\n\nDuring\n\nTraceback (most recent call last):\n  b\nF: 2", "F", "2"),
    ],
)
def test_exception_that_is_only_text_has_type_and_message(path: Path, text: str, kind: str, message: str | None) -> None:
    """They are in the line after the frames; of a chain those of the last one, which was logged."""
    found = sent_json(path, {"message": "x", "exc": text}).attributes
    assert found["exception.type"] == {"stringValue": kind}
    assert found.get("exception.message") == (None if message is None else {"stringValue": message})
    assert found["exception.stacktrace"] == {"stringValue": text}


def test_stack_without_an_exception_is_no_exception(path: Path) -> None:
    """``stack_info`` says where the program was."""
    found = sent_json(path, {"message": "x", "stack": "Stack (most recent call last):\n  File a"}).attributes
    assert found["code.stacktrace"] == {"stringValue": "Stack (most recent call last):\n  File a"}
    assert [name for name in found if name.startswith("exception.")] == []


@pytest.mark.parametrize(
    ("fields", "trace", "span", "flags"),
    [
        ({"trace_id": TRACE, "span_id": SPAN, "trace_flags": "01"}, TRACE, SPAN, 1),
        ({"otelTraceID": TRACE.upper(), "otelSpanID": SPAN, "otelTraceSampled": True}, TRACE, SPAN, 1),
        ({"trace_id": int(TRACE, 16), "span_id": int(SPAN, 16)}, TRACE, SPAN, 0),
        ({"trace_id": TRACE}, TRACE, "", 0),
        ({"trace_id": "0" * 32, "span_id": "0" * 16}, "", "", 0),
        ({"trace_id": "order 5", "span_id": SPAN}, "", "", 0),
        ({"trace_id": True}, "", "", 0),
    ],
)
def test_ids_of_a_trace_are_where_they_belong(path: Path, fields: dict[str, Any], trace: str, span: str, flags: int) -> None:
    """A valid id is in the record's field and no attribute; what is no id stays an attribute. No span without its trace."""
    got = sent_json(path, {"message": "x", "extra": fields})
    assert (got.record.trace_id.hex(), got.record.span_id.hex(), got.record.flags) == (trace, span, flags)
    assert set(got.attributes) & set(fields) == (set() if trace else set(fields))


def test_event_has_its_arguments_and_its_format(path: Path) -> None:
    """Values have their types; a definition is part of the events that it explains, and is not sent."""
    when = datetime(2026, 11, 30, tzinfo=UTC)
    with pmwal.open(path, size="1MiB") as wal:
        event = events.Logger(wal, name="shop").event("{user} paid {amount} at {when}: {raw}", level=30)
        event("ada", 1 << 70, when, b"\xff")
    source = source_of(path, "otlp")
    items = [source.item(record) for record in source.follow(once=True)]
    source.close()
    assert [item is None for item in items] == [True, False]
    (got,) = decoded(request_of([item for item in items if item is not None], {}, 1))
    assert got.body == f"ada paid {1 << 70} at {when}: b'\\xff'"
    assert (got.record.severity_text, got.scope) == ("WARNING", "shop")
    found = got.attributes
    assert found["pmwal.event.format"] == {"stringValue": "{user} paid {amount} at {when}: {raw}"}
    assert found["amount"] == {"stringValue": str(1 << 70)}
    assert found["when"] == {"stringValue": when.isoformat()}
    assert found["raw"] == {"bytesValue": "/w=="}


def test_bytes_that_are_no_text_are_sent_as_they_are(path: Path) -> None:
    """The body is text where the payload is UTF-8, else bytes."""
    with pmwal.open(path, size="64KiB") as wal:
        wal.append("grüße".encode(), kind=40)
        wal.append(b"\x80\x00")
    text, raw = sent(path)
    assert (text.body, text.record.severity_number, text.record.severity_text) == ("grüße", 17, "ERROR")
    assert (raw.record.body.bytes_value, raw.record.severity_number, raw.record.severity_text) == (b"\x80\x00", 0, "")


def test_every_value_of_json_can_be_sent(path: Path) -> None:
    """Lone surrogates, large and infinite numbers, and nesting that parsers of protobuf refuse become text."""
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    got = sent_json(path, {"message": "\ud800", "extra": {"\udfff": "\ud800", "big": 1 << 64, "inf": float("inf"), "deep": deep}})
    assert got.body == "\\ud800"
    found = got.attributes
    assert found["\\udfff"] == {"stringValue": "\\ud800"}
    assert found["big"] == {"stringValue": str(1 << 64)}
    assert found["inf"] == {"stringValue": "Infinity"}
    assert "[[[[" in json.dumps(found["deep"])


def test_names_of_pmwal_win_over_those_of_the_program(path: Path) -> None:
    """An attribute occurs once, and what identifies the record can be relied on."""
    found = sent_json(path, {"message": "x", "extra": {"pmwal.seq": 99}}).attributes
    assert found["pmwal.seq"] == {"intValue": "1"}


def test_order_is_kept_across_loggers_and_logs(path: Path) -> None:
    """A logger or a log that comes back begins another group, rather than moving its records forwards."""
    with pmwal.open(path, size="64KiB") as wal:
        for number, name in enumerate("aabab"):
            wal.append(json.dumps({"message": str(number), "logger": name}).encode())
    with pmwal.open(path, "r") as reader:
        entries = Entries(reader)
        logs = [LogId(name * 32, name) for name in "xxyxx"]
        body = request_of([Item(log, entries.entry(each)) for log, each in zip(logs, reader, strict=True)], {}, 1)
    got = decoded(body)
    assert [(each.body, each.scope, each.resource["service.name"]["stringValue"]) for each in got] == [
        *(("0", "a", "x"), ("1", "a", "x"), ("2", "b", "y"), ("3", "a", "x"), ("4", "b", "x")),
    ]


def test_levels_have_the_severities_of_the_data_model() -> None:
    """Those of logging are the first of their range; higher levels have higher severities."""
    names = {"DEBUG": 5, "INFO": 9, "WARNING": 13, "ERROR": 17, "CRITICAL": 21}
    assert {name: severity_of(getattr(logging, name)) for name in names} == names
    found = [severity_of(level) for level in range(200)]
    assert found == sorted(found)
    assert set(found) <= set(range(25))


@pytest.mark.parametrize(
    ("label", "name", "service"), [("pay", "a.wal", "pay"), (None, "a.wal", "a"), (None, "00.wal", "shop"), (None, "a", "a")]
)
def test_service_is_named_after_the_log(shm_dir: Path, label: str | None, name: str, service: str) -> None:
    """After its label, else its file; a slot after its directory."""
    directory = shm_dir / "shop"
    directory.mkdir()
    with pmwal.open(directory / name, size="64KiB", label=label) as wal:
        wal.append(b"x")
    source = source_of(directory / name, "otlp")
    item = source.item(next(source.follow(once=True)))
    source.close()
    assert item is not None
    assert item.log.service == service


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("otlp+http://h", "otlp+http://h:4318/v1/logs"),
        ("otlp+http://[::1]:80/", "otlp+http://[::1]:80/v1/logs"),
        ("OTLP+HTTPS://h/otlp/", "otlp+https://h:4318/otlp/v1/logs"),
        ("otlp+https://h:443/x/v1/logs?key=a", "otlp+https://h:443/x/v1/logs"),
    ],
)
def test_url_names_a_collector(url: str, shown: str) -> None:
    """Port and path are those of OTLP over HTTP where none is given. What is shown has no query, which may be a secret."""
    assert is_otlp(url)
    assert str(endpoint_of(url)) == shown


@pytest.mark.parametrize(
    "url", ["http://h", "otlp://h", "otlp+http://", "otlp+http://h:0", "otlp+http://h:x", "otlp+http://h/a b", ""]
)
def test_url_of_something_else_is_refused(url: str) -> None:
    """The message says what to write."""
    with pytest.raises(ValueError, match=r"write otlp\+http://HOST\[:PORT\]"):
        endpoint_of(url)


def test_password_in_the_url_is_refused() -> None:
    """It would be in lists of processes and in error messages."""
    with pytest.raises(ValueError, match="use headers="):
        endpoint_of("otlp+https://ada:secret@h")


def test_headers_of_the_environment_are_read_as_specified() -> None:
    """Percent-encoded pairs; those for logs win; what is no pair is left out, and not shown in the warning: it may be a key."""
    variables = {"OTEL_EXPORTER_OTLP_HEADERS": "a=1, b=x%2Cy,secret", "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "a=2,"}
    with pytest.warns(RuntimeWarning, match="OTEL_EXPORTER_OTLP_HEADERS: its part 3 is left out; write NAME=VALUE") as warned:
        found = headers_of_environment(variables)
    assert found == {"a": "2", "b": "x,y"}
    assert len(warned) == 1
    assert "secret" not in str(warned[0].message)


def test_missing_extra_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the shipper is made, and not in the background."""
    from pmwal.ship.otlp import OtlpShipper, modules  # noqa: PLC0415 - as a program that imports it later

    modules.messages.cache_clear()
    monkeypatch.setitem(sys.modules, "opentelemetry.proto.common.v1.common_pb2", None)
    with pytest.raises(ImportError, match=r"pip install 'pmwal\[otlp\]'"):
        OtlpShipper(path, to="otlp+http://h")


def test_guide_names_every_attribute() -> None:
    """Its table has each name that pmwal gives, so a query can be written from it."""
    guide = (Path(__file__).parent.parent / "docs" / "guide-otlp.md").read_text()
    source = Path(encoding.__file__).read_text()
    names = set(re.findall(r"\"((?:pmwal|exception|code|process|thread|service)\.[a-z_.]+)\"", source))
    assert len(names) >= 11
    assert [name for name in sorted(names) if f"`{name}`" not in guide] == []
