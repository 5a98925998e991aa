"""``pmwal export`` as columns: what pandas, Polars and DuckDB get of events, JSON objects and other records."""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
import math
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import pmwal
from commands import Cli
from pmwal import events
from pmwal.cli.formats import columns, tables
from support import open_small

ENTRY = ["level", "level_name", "logger", "message", "format", "traceback"]
EVERY = ["seq", "kind", "time", *ENTRY]
TABULAR = ("parquet", "arrow")
NOON = datetime(2026, 11, 29, 12, 0, 0, 250, tzinfo=UTC)


def store(path: Path, *documents: Any, kind: int = 20) -> Path:
    """A closed log of these documents: dicts as JSON, bytes as they are."""
    with open_small(path) as wal:
        for each in documents:
            wal.append(each if isinstance(each, bytes) else json.dumps(each).encode(), kind=kind)
    return path


def said(**fields: Any) -> dict[str, Any]:
    """A document with a message and these fields."""
    return {"level": "INFO", "logger": "shop", "message": "paid", **fields}


def make_mixed(path: Path) -> Path:
    """A log of an event with each type of argument, documents, a traceback, text and bytes."""
    with open_small(path) as wal:
        paid = events.Logger(wal, name="shop.orders").event("{user} paid {amount}", level=logging.WARNING)
        paid("ada", 1.5)
        seen = events.Logger(wal).event("{at} {raw} {ok} {count}")
        seen(NOON, b"\xff\0", True, 7)
        wal.append(
            json.dumps(said(user="bob", amount=2, tags=["a", "b"], time="2026-11-29T12:00:00.000250+00:00")).encode(), kind=20
        )
        wal.append(json.dumps({**said(), "exc": "Traceback ...\nOops", "extra": {"user": "eve", "count": 8}}).encode(), kind=40)
        wal.append("größe".encode(), kind=30)
        wal.append(b"\xff\xfe\0")
    return path


def table_of(cli: Cli, path: Path, *options: object, form: str = "parquet") -> pyarrow.Table:
    """The table that a log is exported to."""
    file = path.with_suffix(f".{form}")
    ran = cli("export", path, "-o", file, *options)
    assert ran.status == 0, ran.err
    return read_table(file)


def read_table(file: Path) -> pyarrow.Table:
    return pyarrow.parquet.read_table(file) if file.suffix == ".parquet" else pyarrow.ipc.open_file(file).read_all()


def field(table: pyarrow.Table, name: str) -> list[Any]:
    return list(table.column(name).to_pylist())


def rest(table: pyarrow.Table) -> list[Any]:
    return [None if text is None else json.loads(text) for text in field(table, "rest")]


# -- events, documents, and everything else


@pytest.mark.both_engines
@pytest.mark.parametrize("rows", [2, 8192])
@pytest.mark.parametrize("form", TABULAR)
def test_fields_of_events_and_documents_become_columns(
    cli: Cli, shm_dir: Path, form: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each field has a column of its type; a definition has no row, because its events say the same."""
    monkeypatch.setattr(tables, "_ROWS", rows)
    path = make_mixed(shm_dir / "log")
    table = table_of(cli, path, form=form)
    assert table.schema.names == [*EVERY, "user", "amount", "at", "raw", "ok", "count", "time_", "rest", "data"]
    types = {each.name: each.type for each in table.schema}
    assert types["amount"] == pyarrow.float64()
    assert types["at"] == types["time_"] == pyarrow.timestamp("us", tz="UTC")
    assert (types["raw"], types["ok"], types["count"]) == (pyarrow.large_binary(), pyarrow.bool_(), pyarrow.int64())
    assert field(table, "seq") == [2, 4, 5, 6, 7, 8]
    assert field(table, "level") == [30, 20, 20, 40, 30, None]
    assert field(table, "level_name") == ["WARNING", "INFO", "INFO", "INFO", "WARNING", None]
    assert field(table, "logger") == ["shop.orders", None, "shop", "shop", None, None]
    assert field(table, "message") == ["ada paid 1.5", f"{NOON} b'\\xff\\x00' True 7", "paid", "paid", "größe", None]
    assert field(table, "format") == ["{user} paid {amount}", "{at} {raw} {ok} {count}", None, None, None, None]
    assert field(table, "traceback") == [None, None, None, "Traceback ...\nOops", None, None]
    assert field(table, "user") == ["ada", None, "bob", "eve", None, None]
    assert field(table, "amount") == [1.5, None, 2.0, None, None, None]
    assert field(table, "at") == [None, NOON, None, None, None, None]
    assert field(table, "time_") == [None, None, NOON, None, None, None]
    assert field(table, "raw") == [None, b"\xff\0", None, None, None, None]
    assert field(table, "count") == [None, 7, None, 8, None, None]
    assert rest(table) == [None, None, {"tags": ["a", "b"]}, None, None, None]
    assert field(table, "data") == [None, None, None, None, "größe".encode(), b"\xff\xfe\0"]


@pytest.mark.parametrize(
    ("payload", "structured"),
    [(b"text", False), (b'{"message": "x"}', True), (b'{"user": 1}', False), (b"{broken", False), (b"[1]", False), (b"{}", False)],
)
def test_layout_follows_from_the_records(cli: Cli, shm_dir: Path, payload: bytes, structured: bool) -> None:
    """A log of neither events nor documents with a message is exported as payloads, as before; both can be asked for."""
    path = store(shm_dir / "log", payload)
    payloads = ["seq", "kind", "time", "data"]
    assert (table_of(cli, path).schema.names == payloads) != structured
    assert table_of(cli, path, "--raw").schema.names == payloads
    assert table_of(cli, path, "--columns").schema.names[: len(EVERY)] == EVERY


def test_layout_is_decided_by_the_first_records(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a log of payloads is read once; nothing is lost, and --columns is there for the others."""
    monkeypatch.setattr("pmwal.cli.commands.export._SAMPLE", 2)
    assert "user" not in table_of(cli, store(shm_dir / "late", b"a", b"b", said(user=1))).schema.names
    assert "user" in table_of(cli, store(shm_dir / "early", b"a", said(user=1))).schema.names


# -- types


LARGE = 1 << 53
COLUMNS_OF = {
    "ints": ([1, -5, 1 << 62], pyarrow.int64(), [1, -5, 1 << 62], []),
    "beyond": ([1, 1 << 63], pyarrow.int64(), [1, None], [None, 1 << 63]),
    "floats": ([1.5, 2, -LARGE], pyarrow.float64(), [1.5, 2.0, float(-LARGE)], []),
    "inexact": ([1.5, 2, LARGE + 1], pyarrow.float64(), [1.5, 2.0, None], [None, None, LARGE + 1]),
    "even": ([1.5, 2, LARGE + 2], pyarrow.float64(), [1.5, 2.0, float(LARGE + 2)], []),
    "numbers": ([LARGE + 1, LARGE + 3, 1.5], pyarrow.int64(), [LARGE + 1, LARGE + 3, None], [None, None, 1.5]),
    "bools": ([True, False, 1], pyarrow.bool_(), [True, False, None], [None, None, 1]),
    "texts": (["a", "", "é\0", 3], pyarrow.large_utf8(), ["a", "", "é\0", None], [None, None, None, 3]),
    "surrogate": (["a", "\ud800"], pyarrow.large_utf8(), ["a", None], [None, "\ud800"]),
    "times": (
        ["2026-11-29T12:00:00.000250Z", "2026-11-29T12:00:00+00:00"],
        pyarrow.timestamp("us", tz="UTC"), [NOON, NOON.replace(microsecond=0)], [],
    ),
    "not all times": (["2026-11-29T12:00:00Z", "soon"], pyarrow.large_utf8(), ["2026-11-29T12:00:00Z", "soon"], []),
    "no such time": (["2026-13-29T12:00:00Z"], pyarrow.large_utf8(), ["2026-13-29T12:00:00Z"], []),
    "other zone": (["2026-11-29T12:00:00+02:00"], pyarrow.large_utf8(), ["2026-11-29T12:00:00+02:00"], []),
    "nanoseconds": (["2026-11-29T12:00:00.123456789Z"], pyarrow.large_utf8(), ["2026-11-29T12:00:00.123456789Z"], []),
    "mostly text": (["a", "b", 1], pyarrow.large_utf8(), ["a", "b", None], [None, None, 1]),
    "mostly numbers": (["a", 2, 1], pyarrow.int64(), [None, 2, 1], ["a", None, None]),
    "nulls": ([None, 1], pyarrow.int64(), [None, 1], []),
    "nested": ([1, [2], {"a": 3.5}], pyarrow.int64(), [1, None, None], [None, [2], {"a": 3.5}]),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS_OF)
@pytest.mark.parametrize("form", TABULAR)
def test_type_of_a_column_is_that_of_most_values_and_the_others_are_in_rest(cli: Cli, shm_dir: Path, form: str, name: str) -> None:
    """No value is changed, and none is lost."""
    values, kind, kept, others = COLUMNS_OF[name]
    table = table_of(cli, store(shm_dir / "log", *(said(value=value) for value in values)), form=form)
    assert table.schema.field("value").type == kind
    assert field(table, "value") == kept
    assert rest(table) == [None if other is None else {"value": other} for other in others or [None] * len(values)]
    assert field(table, "data") == [None] * len(values)


@pytest.mark.parametrize(
    ("values", "kind", "kept", "others"),
    [
        ([NOON.astimezone(timezone(timedelta(hours=2))), NOON], pyarrow.timestamp("us", tz="UTC"), [NOON, NOON], [None, None]),
        ([NOON.replace(tzinfo=None)], pyarrow.timestamp("us"), [NOON.replace(tzinfo=None)], [None]),
        ([NOON, NOON, NOON.replace(tzinfo=None)], pyarrow.timestamp("us", tz="UTC"), [NOON, NOON, None],
         [None, None, {"value": "2026-11-29T12:00:00.000250"}]),
        ([1, 2, b"\xff"], pyarrow.int64(), [1, 2, None], [None, None, {"value": {"base64": "/w=="}}]),
        ([1, 2, 10**30], pyarrow.int64(), [1, 2, None], [None, None, {"value": 10**30}]),
        ([1, 2, 10**5000], pyarrow.int64(), [1, 2, None], [None, None, {"value": hex(10**5000)}]),
        ([1, 2, math.inf], pyarrow.float64(), [1.0, 2.0, math.inf], [None, None, None]),
        ([True, True, math.nan], pyarrow.bool_(), [True, True, None], [None, None, {"value": "nan"}]),
    ],
)  # fmt: skip
def test_arguments_of_events_keep_their_types(
    cli: Cli, shm_dir: Path, values: list[Any], kind: Any, kept: list[Any], others: list[Any]
) -> None:
    """Times with a zone are the same instant in UTC; what is in rest is JSON that every parser takes."""
    path = shm_dir / "log"
    with pmwal.open(path, size="256KiB") as wal:
        emit = events.Logger(wal).event("{value!r:.20}")
        for value in values:
            emit(value)
    table = table_of(cli, path)
    assert (table.schema.field("value").type, field(table, "value"), rest(table)) == (kind, kept, others)


# -- names


def test_names_of_columns_and_fields_do_not_clash(cli: Cli, shm_dir: Path) -> None:
    """A field with the name of a column gets an underscore more, also one that is called so already."""
    fields = {"seq": 1, "seq_": 2, "seq__": 3, "data": "x", "rest": 5, "format": "%s", "log": 7, "user_": 8, "data_base64": 9}
    table = table_of(cli, store(shm_dir / "log", fields), "--columns")
    names = ["seq_", "seq__", "seq___", "data_", "rest_", "format_", "log_", "user_", "data_base64_"]
    assert table.schema.names == [*EVERY, *names, "rest", "data"]
    assert [field(table, name)[0] for name in names] == list(fields.values())


def test_names_that_no_table_can_have_are_in_rest(cli: Cli, shm_dir: Path) -> None:
    """Such as empty and very long ones."""
    odd = {"": 1, "\ud800": 2, "a\0b": 3, "n" * 300: 4, "two\nlines": 5}
    table = table_of(cli, store(shm_dir / "log", said(**odd, user=6)))
    assert (table.schema.names, rest(table)) == ([*EVERY, "user", "rest", "data"], [odd])


@pytest.mark.parametrize("limit", [0, 1, 2, 5])
def test_fields_beyond_the_limit_are_in_rest(cli: Cli, shm_dir: Path, limit: int) -> None:
    """The fields with the most values get the columns, and a message says how many did not."""
    path = store(shm_dir / "log", said(rare=1, often=2), said(often=3, usual=4), said(often=5, usual=6))
    file = shm_dir / "file.parquet"
    ran = cli("export", path, "-o", file, "--max-columns", limit)
    table = read_table(file)
    kept = [
        name
        for name in ("rare", "often", "usual")
        if name in {0: (), 1: ("often",), 2: ("often", "usual")}.get(limit, table.schema.names)
    ]
    assert table.schema.names == [*EVERY, *kept, "rest", "data"]
    assert (f"{3 - len(kept)} fields are in the column rest" in ran.err) == (len(kept) < 3)
    assert (rest(table)[0] or {}) == {name: value for name, value in {"rare": 1, "often": 2}.items() if name not in kept}


def test_memory_for_names_is_bounded(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log with ever new names gets columns for the first ones only."""
    monkeypatch.setattr(columns, "_NAMES_MAX", 3)
    path = store(shm_dir / "log", *({f"n{number}": number} for number in range(6)))
    table = table_of(cli, path, "--columns")
    assert table.schema.names == [*EVERY, "n0", "n1", "n2", "rest", "data"]
    assert rest(table) == [None, None, None, {"n3": 3}, {"n4": 4}, {"n5": 5}]


# -- nothing is lost


def test_payload_is_there_where_columns_cannot_say_everything(cli: Cli, shm_dir: Path) -> None:
    """A message with surrogates is shown escaped; an event without a definition, and what two fields of one name hide, too."""
    path = shm_dir / "log"
    hidden = json.dumps({"message": "m", "user": 1, "extra": {"user": 2}}).encode()
    surrogate = json.dumps({"message": "\ud800"}).encode()
    with open_small(path) as wal:
        wal.append(surrogate)
        wal.append(hidden)
        unknown = bytes(8) + b"\x00"
        wal.append(unknown, kind=events.EVENT_KIND)
        wal.append(b'{"message": "plain"}')
    table = table_of(cli, path)
    assert field(table, "data") == [surrogate, hidden, unknown, None]
    assert field(table, "message")[0] == "\\ud800"


def test_parts_of_a_document_that_an_entry_leaves_out_are_columns(cli: Cli, shm_dir: Path) -> None:
    """Whatever is shown of a document, each of its members is in a column or in rest."""
    document = {"event": "m", "msg": "second", "level": "info", "levelname": "X", "name": "n", "timestamp": "t", "time": 5,
                "exc": "e", "exc_info": "f", "stack": "s", "extra": "no dict", "taskName": "w"}  # fmt: skip
    table = table_of(cli, store(shm_dir / "log", document))
    (row,) = table.to_pylist()
    cells = {value for value in row.values() if isinstance(value, str | int)} | {str(row["level_name"]).lower()}
    lines = {line for value in cells if isinstance(value, str) for line in value.splitlines()}
    missing = {
        name: value
        for name, value in document.items()
        if value not in cells | lines and value not in (rest(table)[0] or {}).values()
    }
    assert missing == {}


def test_objects_that_repeat_fields_or_are_empty_are_kept(cli: Cli, shm_dir: Path) -> None:
    """Only what ``extra`` has becomes fields of the record; other objects are in rest, whatever they have."""
    table = table_of(cli, store(shm_dir / "log", {"message": "m", "extra": {"user": 1}, "copy": {"user": 1}, "none": {}}))
    assert (field(table, "user"), rest(table)) == ([1], [{"copy": {"user": 1}, "none": {}}])


@pytest.mark.parametrize("form", TABULAR)
def test_table_with_all_payloads_is_imported_exactly_and_one_without_is_refused(cli: Cli, shm_dir: Path, form: str) -> None:
    """--payloads keeps the definitions of events, too; the refusal comes before a log is made, and says what to do."""
    path, copy, file = make_mixed(shm_dir / "log"), shm_dir / "copy", shm_dir / f"file.{form}"
    for option in ("--payloads", "--raw"):
        assert cli("export", path, option, "-o", file).status == 0
        assert cli("import", copy, "-i", file, "--size", "64KiB").status == 0
        with pmwal.open(path, "r") as old, pmwal.open(copy, "r") as new:
            assert [(record.kind, record.data) for record in new] == [(record.kind, record.data) for record in old]
            assert [event.text for event in events.read(new)] == [event.text for event in events.read(old)]
        copy.unlink()
    assert cli("export", path, "-o", file).status == 0
    ran = cli("import", copy, "-i", file)
    assert (ran.status, "export the log with --payloads or --raw" in ran.err, copy.exists()) == (1, True, False)


# -- several logs


@pytest.mark.parametrize("form", TABULAR)
@pytest.mark.parametrize("layout", ["--raw", "--columns"])
def test_several_logs_are_merged_with_a_column_for_the_log(cli: Cli, shm_dir: Path, form: str, layout: str) -> None:
    """A directory, a pattern and a list give the same table."""
    (shm_dir / "logs").mkdir()
    paths = [shm_dir / "logs" / f"{number}.wal" for number in range(3)]
    wals = [pmwal.open(path, size="64KiB") for path in paths]
    for number in range(9):
        wals[number % 3].append(json.dumps(said(number=number)).encode())
    for wal in wals:
        wal.close()
    for at, places in enumerate(([shm_dir / "logs"], [shm_dir / "logs" / "*.wal"], paths)):
        file = shm_dir / f"file{at}.{form}"
        ran = cli("export", *places, layout, "-o", file)
        assert (ran.status, ran.err, "3 logs: exported 9 records" in ran.text) == (0, "", True)
        table = read_table(file)
        assert table.schema.names[:4] == ["seq", "log", "kind", "time"]
        assert field(table, "log") == [str(path) for path in paths] * 3
        assert field(table, "seq") == [1] * 3 + [2] * 3 + [3] * 3
        if layout == "--columns":
            assert field(table, "number") == list(range(9))


# -- filters


FILTERED = {
    "level": (["-p", "warning"], [2, 6, 7]),
    "levels": (["-p", "info..warning"], [2, 4, 5, 7]),
    "logger": (["--logger", "shop*"], [2, 5, 6]),
    "field": (["--field", "user=ada"], [2]),
    "any field": (["--field", "count"], [4, 6]),
    "pattern": (["-g", "PAID"], []),
    "pattern in any case": (["-g", "paid"], [2, 5, 6]),
    "kind": (["--kind", 30, "--kind", 0], [7, 8]),
    "kind and level": (["--kind", 20, "--kind", 30, "-p", "warning"], [7]),
    "since": (["--since", "tomorrow"], []),
    "until": (["--until", "tomorrow"], [2, 4, 5, 6, 7, 8]),
}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("name", FILTERED)
def test_filters_are_those_of_logs(cli: Cli, shm_dir: Path, name: str, form: str, several: bool) -> None:
    """Each format has the selected records only, and the message says how many these are."""
    options, expected = FILTERED[name]
    path, file = make_mixed(shm_dir / "log.wal"), shm_dir / f"file.{form}"
    ran = cli("export", shm_dir if several else path, "-o", file, *options)
    assert ran.status == 0, ran.err
    if form == "parquet":
        found = field(read_table(file), "seq")
    elif form == "csv":
        found = [int(row["seq"]) for row in csv.DictReader(io.StringIO(file.read_text(), newline=""))]
    else:
        found = [json.loads(line)["seq"] for line in file.read_text().splitlines()]
        found = [seq for seq in found if seq not in (1, 3)]  # definitions, which JSON lines have
    assert found == expected
    assert re.search(rf"exported (no records|{len(expected) + 2 * (form == 'jsonl' and name == 'until')} record)", ran.text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-p", "loud"], "'loud' is no level"),
        (["-g", "("], "is not a regular expression"),
        (["--kind", "65536"], "from 0 to 65535"),
        (["--field", "=1"], "names no field"),
        (["--since", "today", "--until", "yesterday"], "--until"),
    ],
)
def test_wrong_filters_are_refused(cli: Cli, shm_dir: Path, options: list[str], words: str) -> None:
    """As usage errors."""
    ran = cli("export", store(shm_dir / "log", b"x"), *options)
    assert (ran.status, words in ran.err, ran.out) == (64, True, b"")


# -- CSV


def test_csv_is_the_same_table(cli: Cli, shm_dir: Path) -> None:
    """RFC 4180: CRLF, quotes doubled; bytes in base64, times as RFC 3339, missing values empty."""
    path = make_mixed(shm_dir / "log")
    out = cli("export", path, "--format", "csv").out
    assert out.count(b"\r\n") == 7
    rows = list(csv.DictReader(io.StringIO(out.decode(), newline="")))
    assert list(rows[0]) == [*EVERY, "user", "amount", "at", "raw", "ok", "count", "time_", "rest", "data", "data_base64"]
    assert (rows[1]["at"], rows[1]["raw"], rows[1]["ok"]) == (
        "2026-11-29T12:00:00.000250Z",
        base64.b64encode(b"\xff\0").decode(),
        "true",
    )
    assert rows[3]["traceback"] == "Traceback ...\nOops"
    assert [(row["data"], row["data_base64"]) for row in rows[-2:]] == [
        ("größe", ""),
        ("", base64.b64encode(b"\xff\xfe\0").decode()),
    ]
    with pmwal.open(path, "r") as reader:
        assert rows[0]["time"] == f"{reader[2].time:%Y-%m-%dT%H:%M:%S}.{reader[2].time_ns % 10**9:09d}Z"


@pytest.mark.parametrize("text", ["", "a,b", 'say "x"', "two\nlines\r\n", " spaced ", "=1+1", "a\0b", "x" * 200_000])
def test_csv_gives_back_every_payload(cli: Cli, shm_dir: Path, text: str) -> None:
    """The csv module reads the text that was stored."""
    path = shm_dir / "log"
    with pmwal.open(path, size="1MiB") as wal:
        wal.append(text.encode())
    limit = csv.field_size_limit(1 << 20)
    try:
        (row,) = csv.DictReader(io.StringIO(cli("export", path, "--raw", "--format", "csv").out.decode(), newline=""))
    finally:
        csv.field_size_limit(limit)
    assert (row["seq"], row["data"], row["data_base64"]) == ("1", text, "")


# -- options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("-o", "file.txt"),
            "no format is known by the suffix .txt; use one of .jsonl, .ndjson, .json, .csv, .parquet, .arrow, .feather",
        ),
        (("-o", "file.parquet.gz"), "by the suffix .gz"),
        (("--columns",), "--columns is for tables, and jsonl is none; use --format csv, parquet, arrow"),
        (("--raw", "-o", "file.jsonl"), "--raw is for tables"),
        (("--max-columns", "5", "--format", "length-prefixed"), "--max-columns is for tables"),
        (("--raw", "--max-columns", "5", "--format", "csv"), "--raw has no columns of fields"),
        (("--raw", "--columns", "--format", "csv"), "not allowed with argument"),
        (("--max-columns", "-1", "--format", "csv"), "-1 is not a whole number from 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(cli: Cli, shm_dir: Path, arguments: tuple[str, ...], words: str) -> None:
    """With what to use instead, and no file."""
    path = store(shm_dir / "log", b"x")
    names = [shm_dir / each if "file." in each else each for each in arguments]
    ran = cli("export", path, *names)
    assert (ran.status, words in ran.err, ran.out) == (64, True, b"")
    assert [each.name for each in shm_dir.iterdir()] == ["log"]


def test_format_overrides_the_suffix(cli: Cli, shm_dir: Path) -> None:
    """For export and import alike; an import does not guess either."""
    path, file = store(shm_dir / "log", b"x"), shm_dir / "file.txt"
    assert cli("export", path, "-o", file, "--format", "jsonl").status == 0
    ran = cli("import", shm_dir / "copy", "-i", file)
    assert (ran.status, "no format is known by the suffix .txt" in ran.err) == (64, True)
    assert cli("import", shm_dir / "copy", "-i", file, "--format", "jsonl").status == 0
    ran = cli("import", shm_dir / "copy", "-i", shm_dir / "file.csv")
    assert (ran.status, "csv cannot be imported; export as jsonl, length-prefixed, parquet, arrow" in ran.err) == (64, True)


# -- other programs


def _by_pandas(file: Path) -> list[Any]:
    pandas = import_module("pandas")
    read = {".parquet": pandas.read_parquet, ".arrow": pandas.read_feather, ".csv": pandas.read_csv}[file.suffix]
    frame = read(file)
    chosen = frame[frame.level >= 30].sort_values("seq")
    return [list(chosen.message), [float(each) for each in chosen.amount.dropna()], int(frame.shape[0])]


def _by_polars(file: Path) -> list[Any]:
    polars = import_module("polars")
    frame = {".parquet": polars.read_parquet, ".arrow": polars.read_ipc, ".csv": polars.read_csv}[file.suffix](file)
    chosen = frame.filter(polars.col("level") >= 30).sort("seq")
    return [chosen["message"].to_list(), chosen["amount"].drop_nulls().to_list(), frame.height]


def _by_duckdb(file: Path) -> list[Any]:
    duckdb = import_module("duckdb")
    source = f"'{file}'"
    if file.suffix == ".arrow":
        table = read_table(file)  # noqa: F841 - DuckDB finds it by its name
        source = '"table"'
    query = f"SELECT message, amount FROM {source} WHERE level >= 30 ORDER BY seq"
    rows = duckdb.sql(query).fetchall()
    ((count,),) = duckdb.sql(f"SELECT count(*) FROM {source}").fetchall()
    return [[row[0] for row in rows], [row[1] for row in rows if row[1] is not None], count]


PROGRAMS: dict[str, Callable[[Path], list[Any]]] = {"pandas": _by_pandas, "polars": _by_polars, "duckdb": _by_duckdb}


@pytest.mark.parametrize("form", [*TABULAR, "csv"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_other_programs_read_the_columns(cli: Cli, shm_dir: Path, program: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels and amounts are numbers to them, and texts are what was logged."""
    monkeypatch.setenv("_RJEM_MALLOC_CONF", "")  # which Polars sets when it is imported
    pytest.importorskip(program)
    path, file = make_mixed(shm_dir / "log"), shm_dir / f"file.{form}"
    assert cli("export", path, "-o", file).status == 0
    assert PROGRAMS[program](file) == [["ada paid 1.5", "paid", "größe"], [1.5], 6]


def test_iterables_are_read_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory use is bounded by a batch, in rows and in bytes of payloads."""
    monkeypatch.setattr(tables, "_ROWS", 3)
    monkeypatch.setattr(tables, "_BYTES", 100)
    layout = columns.PayloadLayout(several=False)

    def cut(sizes: Iterable[int]) -> list[int]:
        return [len(batch) for batch in tables._batches(layout, (pmwal.Record(1, 0, 0, bytes(size)) for size in sizes))]

    assert cut([1] * 7) == [3, 3, 1]
    assert cut([150, 1, 99, 1]) == [1, 2, 1]
