"""``pmwal export``, ``pmwal import`` and ``pmwal completion``: what other programs get, and give back."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import pmwal
from commands import Cli, Ran
from pmwal.cli.formats import interchange, tables
from support import open_small

PAYLOADS = [
    b"", b"plain", "größe \u2028 \U0001f600".encode(), b"two\nlines\r\n", b"\xff\xfe\x00", b'{"data": "nested"}', b"\x00" * 3000,
]  # fmt: skip
FORMS = ("jsonl", "length-prefixed", "parquet", "arrow")
COLUMNAR = ("parquet", "arrow")


def make(path: Path, *, kinds: bool = True) -> Path:
    """A closed log of ``PAYLOADS``, with kinds up to the largest."""
    with open_small(path) as wal:
        for number, data in enumerate(PAYLOADS):
            wal.append(data, kind=(0, 7, 65535)[number % 3] if kinds else 0)
    return path


def contents(path: Path) -> list[tuple[int, bytes]]:
    """Kinds and payloads."""
    with pmwal.open(path, "r") as reader:
        return [(record.kind, record.data) for record in reader]


@pytest.mark.parametrize("rows", [2, 8192])
@pytest.mark.parametrize("form", FORMS)
def test_exported_records_can_be_imported(cli: Cli, shm_dir: Path, form: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads, and kinds where the format has them, survive a round trip, into a new log and after existing records."""
    monkeypatch.setattr(tables, "_ROWS", rows)
    path, copy, file = make(shm_dir / "log", kinds=form != "length-prefixed"), shm_dir / "copy", shm_dir / "file"
    assert cli("export", path, "--format", form, "-o", file) == Ran(0, f"{path}: exported 7 records, 1 to 7\n".encode(), "")
    assert cli("import", copy, "--format", form, "-i", file, "--size", "64KiB").text == f"{copy}: appended 7 records, 1 to 7\n"
    assert contents(copy) == contents(path)
    assert cli("import", copy, "--format", form, "-i", file, "--json").json["first_seq"] == 8
    assert contents(copy) == contents(path) * 2
    assert pmwal.verify(copy).case == "R1"


@pytest.mark.parametrize("form", FORMS)
def test_export_to_a_pipe_is_the_same_file(cli: Cli, shm_dir: Path, form: str) -> None:
    """A pipe gets the same bytes, even in formats that ask for the position."""
    path, file = make(shm_dir / "log"), shm_dir / "file"
    cli("export", path, "--format", form, "-o", file)
    command = [sys.executable, "-m", "pmwal", "export", str(path), "--format", form]
    assert subprocess.run(command, capture_output=True, check=True).stdout == file.read_bytes()


@pytest.mark.parametrize("form", ["jsonl", "length-prefixed"])
def test_import_reads_a_pipe(cli: Cli, shm_dir: Path, form: str) -> None:
    """Without ``-i`` the input is standard input."""
    path = make(shm_dir / "log", kinds=False)
    stream = cli("export", path, "--format", form).out
    cli("import", shm_dir / "copy", "--format", form, stdin=stream)
    assert contents(shm_dir / "copy") == contents(path)


@pytest.mark.parametrize("form", FORMS)
def test_empty_log_is_exported_and_imported(cli: Cli, shm_dir: Path, form: str) -> None:
    """A table without rows is valid."""
    open_small(shm_dir / "log").close()
    assert cli("export", shm_dir / "log", "--format", form, "-o", shm_dir / "file").status == 0
    assert cli("import", shm_dir / "copy", "--format", form, "-i", shm_dir / "file").text.endswith("appended no records\n")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.PARQUET", "parquet"),
        ("a.arrow", "arrow"),
        ("a.feather", "arrow"),
        ("a", "jsonl"),
    ],
)
def test_suffix_of_the_file_selects_the_format(cli: Cli, shm_dir: Path, name: str, form: str) -> None:
    """Export and import choose the format by suffix; an unknown suffix means JSON lines."""
    path = make(shm_dir / "log")
    cli("export", path, "-o", shm_dir / name)
    cli("export", path, "--format", form, "-o", shm_dir / "named")
    assert (shm_dir / name).read_bytes() == (shm_dir / "named").read_bytes()
    assert cli("import", shm_dir / "copy", "-i", shm_dir / name).status == 0
    assert contents(shm_dir / "copy") == contents(path)


def test_json_lines_are_those_of_cat(cli: Cli, shm_dir: Path) -> None:
    """JSON lines that ``cat`` and ``tail`` print can be imported."""
    path = make(shm_dir / "log")
    assert cli("export", path).out == cli("cat", path, "-o", "json").out


def test_length_prefixed_is_that_of_cat_and_write_and_reports_dropped_kinds(cli: Cli, shm_dir: Path) -> None:
    """The length-prefixed format drops kinds, and reports it if there are any."""
    path = make(shm_dir / "log")
    ran = cli("export", path, "--format", "length-prefixed")
    assert (ran.status, ran.out) == (0, cli("cat", path, "--length-prefixed").out)
    assert "4 records have a kind, which length-prefixed leaves out" in ran.err
    assert cli("export", make(shm_dir / "plain", kinds=False), "--format", "length-prefixed").err == ""
    cli("import", shm_dir / "copy", "--format", "length-prefixed", "--kind", 9, stdin=ran.out)
    assert contents(shm_dir / "copy") == [(9, data) for data in PAYLOADS]


@pytest.mark.parametrize("form", COLUMNAR)
def test_table_has_number_kind_time_and_payload(cli: Cli, shm_dir: Path, form: str) -> None:
    """pyarrow reads these columns, and so do pandas, Polars and DuckDB."""
    path, file = make(shm_dir / "log"), shm_dir / f"file.{form}"
    cli("export", path, "-o", file)
    table = pyarrow.parquet.read_table(file) if form == "parquet" else pyarrow.ipc.open_file(file).read_all()
    assert table.schema.names == ["seq", "kind", "time", "data"]
    assert table.schema.field("time").type == pyarrow.timestamp("ns", tz="UTC")
    with pmwal.open(path, "r") as reader:
        records = list(reader)
    assert table.column("seq").to_pylist() == [record.seq for record in records]
    assert table.column("time").cast(pyarrow.int64()).to_pylist() == [record.time_ns for record in records]
    assert table.column("data").to_pylist() == PAYLOADS


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"data": ["text", "ü"]}, [(5, b"text"), (5, "ü".encode())]),
        ({"data": [b"x"], "kind": [3], "more": [1.5]}, [(3, b"x")]),
        ({"data": [b"x", b"y"], "kind": [None, 4]}, [(5, b"x"), (4, b"y")]),
        ({"other": [1]}, 'no column "data", only other'),
        ({"data": [b"x", None]}, "row 2 of the input has no data"),
        ({"data": [b"x"], "kind": [70000]}, "70000"),
    ],
)
@pytest.mark.parametrize("form", COLUMNAR)
def test_tables_of_other_programs_can_be_imported(cli: Cli, shm_dir: Path, form: str, table: Any, expected: Any) -> None:
    """Payloads may be bytes or text and kinds are optional; rows that cannot be records are refused with a message."""
    file, path = shm_dir / f"file.{form}", shm_dir / "log"
    made = pyarrow.table(table)
    if form == "parquet":
        pyarrow.parquet.write_table(made, file)
    else:
        with pyarrow.ipc.new_file(file, made.schema) as writer:
            writer.write_table(made)
    ran = cli("import", path, "-i", file, "--kind", 5)
    if isinstance(expected, str):
        assert (ran.status, expected in ran.err) == (1, True)
    else:
        assert (ran.status, contents(path)) == (0, expected)


@pytest.mark.parametrize("form", COLUMNAR)
def test_table_from_a_pipe_or_without_pyarrow_is_refused_before_a_log_is_made(
    cli: Cli, shm_dir: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to do instead."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    path = shm_dir / "log"
    with monkeypatch.context() as patch:
        patch.setattr(io, "BytesIO", Pipe)
        ran = cli("import", path, "--format", form)
    assert (ran.status, "name the file with -i FILE" in ran.err) == (1, True)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for arguments in (("import", path, "--format", form), ("export", make(shm_dir / "other"), "--format", form)):
        ran = cli(*arguments)
        assert (ran.status, ran.out) == (1, b"")
        assert "pip install 'pmwal[arrow]'" in ran.err
    assert not path.exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"text", "line 3 of the input: Expecting value"),
        (b"[1]", "line 3 of the input: not a JSON object"),
        (b"{}", 'line 3 of the input: either "data" or "data_base64" is required'),
        (b'{"data": "x", "data_base64": ""}', 'either "data" or "data_base64" is required'),
        (b'{"data": 7}', "the payload is not a string"),
        (b'{"data_base64": "x"}', "line 3 of the input: "),
        (b'{"data_base64": "eA=*"}', "line 3 of the input: "),
        (b'{"data": "x", "kind": 65536}', '"kind" is not a whole number from 0 to 65535'),
        (b'{"data": "x", "kind": true}', '"kind" is not a whole number'),
        (b'{"data": "\\ud800"}', "line 3 of the input: "),
        (b"[" * 100_000, "line 3 of the input: "),
        (b'{"data": "' + b"x" * 5000 + b'"}', "line 2 of the input: a record of 5000 bytes cannot fit"),
        (b'{"data": "' + b"x" * 200_000, "line 3 of the input: "),
        (b'{"data": "' + b"x" * 200_000 + b'"}', "line 2 of the input: a record of 200000 bytes cannot fit"),
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_invalid_line_is_named_and_nothing_is_imported(cli: Cli, shm_dir: Path, line: bytes, words: str, existing: bool) -> None:
    """A new log is not there afterwards, an existing one as it was; an empty line is skipped, but counted."""
    path = shm_dir / "log"
    if existing:
        assert cli("import", path, "--size", "4KiB", stdin=b'{"data": "old", "kind": 3}').status == 0
    ran = cli("import", path, "--size", "4KiB", stdin=b'{"data": "good"}\n\n' + line + b'\n{"data": "later"}\n')
    assert (ran.status, words in ran.err, "Traceback" in ran.err, ran.out) == (1, True, False, b"")
    assert os.listdir(shm_dir) == (["log"] if existing else [])
    if existing:
        assert contents(path) == [(3, b"old")]
        assert pmwal.verify(path).case == "R1"


def test_export_over_the_log_itself_is_refused(cli: Cli, shm_dir: Path) -> None:
    """Exporting over the log is refused, even under another name."""
    path = make(shm_dir / "log")
    os.link(path, shm_dir / "name")
    for name in ("log", "name"):
        assert cli("export", path, "-o", shm_dir / name).status == 64
    assert contents(path)


def test_export_that_fails_leaves_the_old_file(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed export leaves the old file and no temporary one."""
    path, file = make(shm_dir / "log"), shm_dir / "file"
    assert cli("export", path, "-o", file).status == 0
    before = file.read_bytes()

    def fail(record: pmwal.Record) -> bytes:
        if record.seq == 3:
            raise OSError(28, "No space left on device")
        return b"new"

    monkeypatch.setattr(interchange, "as_json", fail)
    assert cli("export", path, "-o", file).status == 3
    assert (file.read_bytes(), sorted(os.listdir(shm_dir))) == (before, ["file", "log"])
    ran = cli("export", path, "-o", shm_dir / "missing" / "file")
    assert (ran.status, ran.err) == (3, f"pmwal: {shm_dir / 'missing'}: No such file or directory\n")


def test_export_to_a_fifo_writes_to_it(cli: Cli, shm_dir: Path) -> None:
    """A FIFO is written to, not replaced."""
    path, fifo = make(shm_dir / "log"), shm_dir / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE) as reader:
        assert cli("export", path, "-o", fifo).status == 0
        assert reader.stdout is not None
        assert reader.stdout.read() == cli("export", path).out
    assert fifo.is_fifo()


@pytest.mark.parametrize("form", FORMS[1:])
def test_binary_output_is_kept_off_a_terminal(cli: Cli, shm_dir: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Binary output to a terminal has status 64; output to a file is unaffected."""
    path = make(shm_dir / "log")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    ran = cli("export", path, "--format", form)
    assert (ran.status, ran.out) == (64, b"")
    assert cli("export", path, "--format", form, "-o", shm_dir / "file").status == 0
