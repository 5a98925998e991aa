"""JSON of ``pmwal cat``: one object per record, what is in it, and that an import restores every payload."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest

import pmwal
from commands import Cli, PastSeam
from pmwal import events
from pmwal.cli.formats.printing import as_json, level_of_kind
from pmwal.logs.archives.lines import payload_in
from support import open_small

AS_OBJECT = [
    b"{}",
    b'{"level":"INFO","message":"paid","extra":{"order":7}}',
    b'{ "price" : 1.50, "id":18446744073709551616,\t"list":[1, 2] }',
    b'{"seq": 9, "data": "x", "data_base64": 3, "kind": {"data": 4}}',
    b'{"a":1,"a":2}',
    '{"größe":"\U0001f600 \u200f"}'.encode(),
    b'{"surrogate":"\\ud800"}',
    b'{"line":"one\\ntwo", "escape":"\\u001b[31m"}',
    b'{"a":' + b"[" * 90 + b"]" * 90 + b"}",
    b'{"flat":[' + b"[]," * 500 + b"[]]}",
]
"""Payloads that are a JSON object."""

AS_STRING = [
    b'{"a":\n1}',
    b'{"a":1}\n',
    b' {"a":1}',
    b'{"a":1} ',
    b'{"n":NaN}',
    b'{"n":-Infinity}',
    b'{"a":1',
    b'{"a":1}}',
    b"{'a':1}",
    b"{",
    b'{"a":"\x7f"}',
    '{"a":"\x9b31m"}'.encode(),
    '{"a":"\u202e"}'.encode(),
    '{"a":"\u2028"}'.encode(),
    b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
    b'{"a":' * 100_000,
    '{"a":1}'.encode("utf-32-le"),
    b"[1]",
    b"17",
    b'"text"',
    b"",
]
"""Payloads that are text for one of many reasons."""

AS_BASE64 = [b"\xff", b'{"a":"\xff"}', '{"a":1}'.encode("utf-16"), b'\xef\xbb\xbf{"a":"\xff"}']


def refuse(constant: str) -> NoReturn:
    """NaN and the infinities are not JSON."""
    raise AssertionError(constant)


def strictly(line: bytes) -> Any:
    """The value of a line of JSON as a strict reader takes it."""
    assert line.endswith(b"\n")
    text = line[:-1].decode()
    assert not any((ord(letter) < 32 and letter != "\t") or 0x7F <= ord(letter) < 0xA0 for letter in text)
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("data", AS_OBJECT, ids=range(len(AS_OBJECT)))
def test_payload_that_is_an_object_is_one(data: bytes) -> None:
    """It is a part of the line as it is: no number or space in it changes, and nothing of it takes a name of the record."""
    line = as_json(pmwal.Record(1, 20, 5, data))
    value = strictly(line)
    assert value["data"] == json.loads(data)
    assert (value["seq"], value["kind"], list(value)[-1]) == (1, 20, "data")
    assert line.endswith(b', "data": ' + data + b"}\n")
    assert payload_in(line) == data


@pytest.mark.parametrize("data", AS_STRING + AS_BASE64, ids=range(len(AS_STRING + AS_BASE64)))
def test_other_payload_is_a_string(data: bytes) -> None:
    """What is not UTF-8 is in base64; so is no line broken, and none is more than a reader of JSON takes."""
    value = strictly(as_json(pmwal.Record(1, 0, 5, data)))
    assert ("data" in value, isinstance(value.get("data"), str)) == (data in AS_STRING, data in AS_STRING)
    assert value.get("data", "").encode() == (data if data in AS_STRING else b"")


def test_import_restores_every_payload(cli: Cli, shm_dir: Path) -> None:
    """JSON lines of ``cat``, ``tail`` and ``export`` give the same kinds and bytes, events and their definitions included."""
    path = shm_dir / "log"
    with open_small(path, size="4MiB") as wal:
        for number, data in enumerate(AS_OBJECT + AS_STRING + AS_BASE64):
            wal.append(data, kind=number)
        events.Logger(wal, name="shop").event("order {id}", level=30)(17)
    with pmwal.open(path, "r") as reader:
        expected = [(record.kind, record.data) for record in reader]
    for command in (("cat", "--json"), ("tail", "-n", 99, "--json"), ("export",)):
        copy = shm_dir / f"copy-{command[0]}"
        assert cli("import", copy, "--size", "4MiB", stdin=cli(*command, path).out).status == 0
        with pmwal.open(copy, "r") as reader:
            assert [(record.kind, record.data) for record in reader] == expected
    assert cli("cat", "-n", 1, shm_dir / "copy-cat").text.endswith("  WARNING  shop: order 17\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"data":{"a":1}}', b'{"a":1}'),
        (b' { "kind" : 3 ,\t"data" :  {"a" : [1,{"data":2}]} , "x":"}" } ', b'{"a" : [1,{"data":2}]}'),
        (b'{"data": "x", "data": {"b": 2}}', b'{"b": 2}'),
        (b'{"x": "\\"data\\": {", "data": {"c": "\\u007b"}}', b'{"c": "\\u007b"}'),
    ],
)
def test_import_stores_an_object_as_it_is_written(cli: Cli, shm_dir: Path, line: bytes, expected: bytes) -> None:
    """The text of the object is the payload, whoever wrote the line."""
    assert cli("import", shm_dir / "log", "--size", "64KiB", stdin=line).status == 0
    with pmwal.open(shm_dir / "log", "r") as reader:
        assert [record.data for record in reader] == [expected]


def test_event_is_an_object_with_its_parts_and_its_payload(cli: Cli, shm_dir: Path) -> None:
    """Parts for people and jq; ``data_base64`` for an import."""
    with open_small(shm_dir / "log", seam=PastSeam()) as wal:
        seq = events.Logger(wal, name="\x9b").event("order {id}", level=30)("\udc80")
        payload = wal[seq].data
    line = cli("cat", "--json", "-n", 1, shm_dir / "log").out
    value = strictly(line)
    assert (value["level"], value["name"], value["text"], value["arguments"]) == (30, "\x9b", "order \udc80", {"id": "\udc80"})
    with pmwal.open(shm_dir / "log", "r") as reader:
        assert reader[seq].data == payload
    assert cli("import", shm_dir / "copy", "--size", "64KiB", stdin=line).status == 0
    with pmwal.open(shm_dir / "copy", "r") as reader:
        assert [record.data for record in reader] == [payload]


@pytest.mark.skipif(shutil.which("jq") is None, reason="Debian package missing: jq")
def test_jq_selects_parts_and_keeps_every_digit_of_the_time(cli: Cli, shm_dir: Path) -> None:
    """A structured record is an object to jq, and ``time`` has the nanoseconds that a number loses there."""
    seam = PastSeam()
    seam.time_ns = 1_700_000_000_123_456_789
    with open_small(shm_dir / "log", seam=seam) as wal:
        wal.append(b'{"message":"paid","extra":{"order":7}}', kind=20)
        stamp = wal[1].time_ns
    out = cli("cat", "--json", shm_dir / "log").out
    program = "select(.data.extra.order == 7) | .data.message, .time"
    lines = subprocess.run(["jq", "-r", program], input=out, capture_output=True, check=True).stdout.decode().split()
    assert lines == ["paid", f"2023-11-14T22:13:20.{stamp % 10**9:09d}Z"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [(0, ""), (7, ""), (10, "DEBUG"), (20, "INFO"), (25, ""), (30, "WARNING"), (40, "ERROR"), (50, "CRITICAL"), (65535, "")],
)
def test_kinds_that_logging_names_are_levels(kind: int, name: str) -> None:
    """Other kinds are the application's, and mean no level."""
    assert level_of_kind(kind) == name
