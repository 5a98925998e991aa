"""``pmwal create``, ``write`` and ``truncate``: what lands in the log, and when a record is acknowledged."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from commands import Cli, make_foreign, make_log, make_torn
from pmwal.cli import appending
from pmwal.cli.formats import interchange
from pmwal.opening import writer as opening_writer
from pmwal.writing.engine import Engine
from support import payloads


def test_created_log_has_the_label_and_geometry_asked_for(cli: Cli, shm_dir: Path) -> None:
    """``create`` stores label, size and alignment in the superblock, and says what a record survives."""
    path = shm_dir / "a.wal"
    ran = cli("create", path, "--size", "1MiB", "--align", 64, "--label", "größe 3")
    assert (ran.status, ran.err) == (0, "")
    assert "1 MiB" in ran.text
    assert "not a power cut" in ran.text
    info = cli("info", path, "--json").json
    assert info["label"] == "größe 3"
    assert (info["geometry"]["capacity"], info["geometry"]["alignment"]) == (1 << 20, 64)
    assert info["medium"] == {"kind": "memory", "filesystem": "tmpfs", "durability": "process", "flush": "none", "assumptions": []}


def test_create_never_touches_a_file_that_exists(cli: Cli, shm_dir: Path) -> None:
    """``create`` on an existing file has status 3, names the file and leaves it alone."""
    path = make_foreign(shm_dir / "a.wal")
    before = path.read_bytes()
    ran = cli("create", path)
    assert (ran.status, ran.out) == (3, b"")
    assert ran.err == f"pmwal: {path}: it exists; choose another name, or remove it first\n"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("stdin", "expected"),
    [
        (b"", []),
        (b"one\ntwo\n", [b"one", b"two"]),
        (b"one\ntwo", [b"one", b"two"]),
        (b"\n\n", [b"", b""]),
        (b"\r\n\xff\x00\n", [b"\r", b"\xff\x00"]),
    ],
)
def test_each_line_becomes_one_record(cli: Cli, shm_dir: Path, stdin: bytes, expected: list[bytes]) -> None:
    """``write`` stores lines as bytes without their newline, and ``cat -o raw`` is its inverse."""
    path = shm_dir / "a.wal"
    assert cli("write", path, "--size", "64KiB", stdin=stdin).status == 0
    with pmwal.open(path, "r") as reader:
        assert payloads(reader) == expected
    assert cli("cat", path, "-o", "raw").out == b"".join(line + b"\n" for line in expected)


def test_length_prefixed_items_come_back_as_they_went_in(cli: Cli, shm_dir: Path) -> None:
    """``cat --length-prefixed`` is the inverse of ``write --length-prefixed``, even for newlines and empty items."""
    stream = b"".join(len(item).to_bytes(4, "little") + item for item in (b"a\nb", b"", b"\xff" * 300))
    path = shm_dir / "a.wal"
    assert cli("write", path, "--size", "64KiB", "--length-prefixed", "--json", stdin=stream).json == {
        "path": str(path),
        "first_seq": 1,
        "last_seq": 3,
        "records": 3,
    }
    assert cli("cat", path, "--length-prefixed").out == stream


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (b"\x02\0\0\0ok\x05\0", "ends inside the length of item 2"),
        (b"\x02\0\0\0ok\x05\0\0\0abc", "ends inside item 2: only 3 of its 5 bytes"),
        (b"\x02\0\0\0ok\xff\xff\xff\xff", "item 2 of the input: 4294967295 bytes cannot fit"),
    ],
)
def test_broken_length_prefix_is_an_error_and_keeps_what_came_before(cli: Cli, shm_dir: Path, stdin: bytes, words: str) -> None:
    """A length is checked before it is used; the items before it remain appended and acknowledged."""
    path = shm_dir / "a.wal"
    ran = cli("write", path, "--size", "64KiB", "--length-prefixed", "--ack", stdin=stdin)
    assert (ran.status, ran.out) == (1, b"1\n")
    assert words in ran.err
    assert payloads(pmwal.open(path, "r")) == [b"ok"]


@pytest.mark.parametrize("commit", ["each", "manual"])
def test_line_that_cannot_fit_is_named_and_earlier_ones_are_acknowledged(cli: Cli, shm_dir: Path, commit: str) -> None:
    """Records before a failure are durable and their numbers printed, under both commit policies."""
    path = shm_dir / "a.wal"
    ran = cli("write", path, "--size", "4KiB", "--ack", "--commit", commit, stdin=b"a\nb\n" + b"x" * 10000 + b"\nc\n")
    assert (ran.status, ran.out) == (1, b"1\n2\n")
    assert "line 3 of the input" in ran.err
    assert payloads(pmwal.open(path, "r")) == [b"a", b"b"]


@pytest.mark.parametrize("commit", ["each", "manual"])
def test_number_is_never_printed_when_its_commit_fails(
    cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, commit: str
) -> None:
    """Acknowledgement follows the barrier: if it fails, no number is printed and the status is that of an OSError."""
    path = shm_dir / "a.wal"
    pmwal.open(path, size="64KiB").close()

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setenv("PMWAL_ENGINE", "python")
    monkeypatch.setattr(Engine, "commit", fail)
    ran = cli("write", path, "--ack", "--commit", commit, stdin=b"a\nb\n")
    assert (ran.status, ran.out) == (3, b"")
    assert "not known to be durable" in ran.err


def test_full_log_ends_the_command_or_loses_its_oldest_records(cli: Cli, shm_dir: Path) -> None:
    """``--on-full raise`` has status 1 with advice; ``overwrite`` reports that records were overwritten."""
    lines = b"".join(b"%0500d\n" % number for number in range(20))
    ran = cli("write", shm_dir / "a.wal", "--size", "4KiB", stdin=lines)
    assert ran.status == 1
    assert "; free the space of old records with pmwal truncate, or use --on-full overwrite\n" in ran.err
    ran = cli("write", shm_dir / "b.wal", "--size", "4KiB", "--on-full", "overwrite", stdin=lines)
    assert ran.status == 0
    assert "old ones overwritten" in ran.text
    assert cli("cat", shm_dir / "b.wal", "-n", 1, "-o", "raw").out == b"%0500d\n" % 19


@pytest.mark.parametrize("command", [("write",), ("import",), ("truncate", "--all"), ("repair",)])
def test_writing_to_a_log_in_use_is_status_4_and_names_the_process(cli: Cli, shm_dir: Path, command: tuple[str, ...]) -> None:
    """A log in use has status 4; the message names its process, and the command that reads it."""
    path = shm_dir / "a.wal"
    with locked_elsewhere(path) as pid:
        ran = cli(*command, path, stdin=b"")
    assert ran.status == 4
    assert ran.err == f"pmwal: {path}: process {pid} has it open for writing; wait for it, or read it with pmwal cat\n"
    with pmwal.open(path):
        assert "; to read it meanwhile, use pmwal cat\n" in cli(*command, path, stdin=b"").err


@contextlib.contextmanager
def locked_elsewhere(path: Path) -> Iterator[int]:
    """Another process has this log open for writing; its id."""
    script = "import pmwal, sys; wal = pmwal.open(sys.argv[1], size='64KiB'); print(flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("write", "a.wal", "--size", "128KiB"), "bytes, not 131072; leave --size out"),
        (("import", "a.wal", "--size", "128KiB"), "bytes, not 131072; leave --size out"),
        (("write", "a.wal", "--medium", "dax"), "--medium dax needs a file system mounted with -o dax"),
        (("create", "b.wal", "--medium", "dax"), "use --medium auto"),
        (("truncate", "a.wal", "--before", "99"), "to free all, use --all"),
    ],
)
def test_errors_advise_what_can_be_typed(cli: Cli, shm_dir: Path, arguments: tuple[str, ...], words: str) -> None:
    """Messages of the library that name arguments of its functions name options and commands here."""
    make_log(shm_dir / "a.wal")
    command, name, *rest = arguments
    ran = cli(command, shm_dir / name, *rest)
    assert ran.status == 1
    assert words in ran.err
    assert not re.search(r"\w=|mode=|\(before", ran.err)


def test_write_reports_what_recovery_dropped(cli: Cli, shm_dir: Path) -> None:
    """Opening a torn log for writing drops the torn record, and reports it."""
    path = make_torn(shm_dir / "a.wal")
    ran = cli("write", path, stdin=b"next\n")
    assert ran.status == 0
    assert "1 unfinished record" in ran.err
    assert ran.text == f"{path}: appended 1 record, 10\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--before", 4), {"freed": 3, "first_seq": 4, "next_seq": 11}),
        (("--before", 11), {"freed": 10, "first_seq": 11, "next_seq": 11}),
        (("--all",), {"freed": 10, "first_seq": 11, "next_seq": 11}),
        (("--before", 1), {"freed": 0, "first_seq": 1, "next_seq": 11}),
    ],
)
def test_truncate_frees_what_it_is_told(cli: Cli, shm_dir: Path, arguments: tuple[Any, ...], expected: dict[str, int]) -> None:
    """``truncate`` frees the oldest records and reports what is left."""
    value = cli("truncate", make_log(shm_dir / "a.wal"), *arguments, "--json").json
    assert {key: value[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("acknowledged", "text"),
    [
        ({}, "freed no records; 10 records, 1 to 10 left"),
        ({"fast": 7, "slow": 3}, "freed 3 records, 1 to 3; 7 records, 4 to 10 left"),
        ({"fast": 10}, "freed 10 records, 1 to 10; no records left"),
    ],
)
def test_truncate_frees_what_is_consumed(cli: Cli, shm_dir: Path, acknowledged: dict[str, int], text: str) -> None:
    """By all named consumers; without one nothing."""
    path = make_log(shm_dir / "a.wal")
    with pmwal.open(path, "r") as reader:
        for name, seq in acknowledged.items():
            with reader.consumer(name) as consumer:
                consumer.ack(seq)
    ran = cli("truncate", path, "--consumed")
    assert ran.text.startswith(f"{path}: {text}, ")
    assert cli("truncate", path, "--consumed", "--json").json["freed"] == 0
    assert cli("truncate", path, "--consumed", "--all").status == 64


def damage_position(path: Path) -> None:
    (path.with_name("a.wal.consumers") / "mail").write_bytes(bytes(4096))


def link(path: Path) -> None:
    path.with_name("b.wal").hardlink_to(path)


@pytest.mark.parametrize(
    ("happens", "why"),
    [
        (damage_position, "consumer 'mail': its position is damaged"),
        (link, "the file has several hard links, and who reads under another name is not known"),
        (None, "consumer 'mail' has acknowledged record 4"),
    ],
)
def test_truncate_says_why_nothing_was_freed(cli: Cli, shm_dir: Path, happens: Callable[[Path], None] | None, why: str) -> None:
    """On standard error; not when something was freed."""
    path = make_log(shm_dir / "a.wal")
    with pmwal.open(path, "r") as reader, reader.consumer("mail") as consumer:
        consumer.ack(4)
    if happens is not None:
        happens(path)
    else:
        assert cli("truncate", path, "--consumed").err == ""
    for arguments in ((), ("--json",)):
        assert cli("truncate", path, "--consumed", *arguments).err == f"pmwal: {path}: nothing was freed: {why}\n"


def test_truncate_past_the_end_is_refused(cli: Cli, shm_dir: Path) -> None:
    """``--before`` a number never issued fails and frees nothing."""
    path = make_log(shm_dir / "a.wal")
    ran = cli("truncate", path, "--before", 12)
    assert ran.status == 1
    assert "the next record will be 11" in ran.err
    assert len(cli("cat", path).lines) == 10


# -- commands that fail


@pytest.mark.both_engines
@pytest.mark.parametrize("command", ["write", "import"])
def test_failed_command_leaves_no_new_log(cli: Cli, shm_dir: Path, command: str) -> None:
    """A log that was created for a record that cannot be stored is removed, with any name that led to it."""
    (shm_dir / "link").symlink_to("real.wal")
    stdin = b"x" * 5000 if command == "write" else b'{"data": "fits"}\n{"data": "' + b"x" * 5000 + b'"}'
    for name in ("new.wal", "link"):
        ran = cli(command, shm_dir / name, "--size", "4KiB", stdin=stdin)
        assert (ran.status, ran.out) == (1, b"")
        assert "cannot fit" in ran.err
        assert os.listdir(shm_dir) == ["link"]


@pytest.mark.parametrize("mode", ["a", "x"])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, OSError])
def test_open_that_fails_after_the_creation_leaves_no_file(
    shm_dir: Path, monkeypatch: pytest.MonkeyPatch, mode: str, error: type[BaseException]
) -> None:
    """The mapping of a large log may fail, for example under a limit on memory; the name is free again, and so is the lock."""
    path = shm_dir / "a.wal"

    def fail(*_: object, **__: object) -> None:
        raise error("no memory")

    real = opening_writer.take_over
    monkeypatch.setattr(opening_writer, "take_over", fail)
    with pytest.raises(error):
        pmwal.open(path, mode, size="64KiB")
    assert os.listdir(shm_dir) == []
    monkeypatch.setattr(opening_writer, "take_over", real)
    pmwal.open(path, mode, size="64KiB").close()
    monkeypatch.setattr(opening_writer, "take_over", fail)
    with pytest.raises(error):
        pmwal.open(path)
    assert os.listdir(shm_dir) == ["a.wal"]


def test_log_that_took_the_name_of_the_new_one_is_not_removed(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the file that the command created is."""
    path, other = shm_dir / "a.wal", make_log(shm_dir / "other")

    def replaced(*_: object, **__: object) -> None:
        other.rename(path)
        raise ValueError("stop")

    monkeypatch.setattr(appending, "_append_whole", replaced)
    assert cli("import", path, "--size", "64KiB").status == 1
    assert len(cli("cat", path).lines) == 10


def test_failed_write_reports_what_it_appended(cli: Cli, shm_dir: Path) -> None:
    """Records before the error are kept, and without --ack the message says which."""
    path = shm_dir / "a.wal"
    ran = cli("write", path, "--size", "4KiB", stdin=b"a\nb\n" + b"x" * 10000)
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err.splitlines()[0] == f"pmwal: {path}: appended 2 records, 1 to 2, before the error"
    assert payloads(pmwal.open(path, "r")) == [b"a", b"b"]


SIZES = [0, 1, 100, 3000, 7, 40_000, 12]
"""Payloads that need more than they have bytes: headers, alignment, and half a ring for the largest."""


@pytest.mark.both_engines
@pytest.mark.parametrize("sizes", [SIZES, [10] * 500, [30_000], [9000, 9000, 9000]])
@pytest.mark.parametrize("form", ["jsonl", "length-prefixed", "parquet", "arrow"])
def test_import_that_does_not_fit_says_how_much_would(cli: Cli, shm_dir: Path, sizes: list[int], form: str) -> None:
    """The size that the message names is enough, and a page less is not; nothing is left of the attempt."""
    source, file, path = shm_dir / "source", shm_dir / f"file.{form}", shm_dir / "a.wal"
    with pmwal.open(source, size="1MiB") as wal:
        wal.extend([b"x" * size for size in sizes])
    cli("export", source, "-o", file, "--format", form)
    ran = cli("import", path, "-i", file, "--format", form, "--size", "4KiB")
    assert (ran.status, ran.out, path.exists()) == (1, b"", False)
    match = re.search(
        rf"Nothing was imported; the whole input \({len(sizes)} records\) fits into a new log of --size (\d+)KiB", ran.err
    )
    assert match
    enough = int(match[1])
    assert cli("import", path, "-i", file, "--format", form, "--size", f"{enough - 4}KiB").status == 1
    assert not path.exists()
    assert cli("import", path, "-i", file, "--format", form, "--size", f"{enough}KiB").status == 0
    with pmwal.open(path, "r") as reader:
        assert [len(record.data) for record in reader] == sizes


@pytest.mark.both_engines
def test_import_that_does_not_fit_leaves_the_log_as_it_was(cli: Cli, shm_dir: Path) -> None:
    """Of an existing log the records, their numbers and the next number stay."""
    path = make_log(shm_dir / "a.wal")
    before = cli("cat", path, "-o", "json").out
    ran = cli("import", path, stdin=b'{"data": "some"}\n' * 1000)
    assert (ran.status, ran.out) == (1, b"")
    assert "the whole input (1000 records) fits into a new log of --size" in ran.err
    assert (cli("cat", path, "-o", "json").out, pmwal.verify(path).case) == (before, "R1")
    assert cli("import", path, "--json", stdin=b'{"data": "next"}').json["first_seq"] == 11


@pytest.mark.both_engines
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_import_leaves_the_log_as_it_was(
    cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, existing: bool, number: int
) -> None:
    """Ctrl-C and the usual signals discard what was appended; a new log is not there."""
    path = shm_dir / "a.wal"
    before = cli("cat", make_log(path), "-o", "json").out if existing else b""
    read = interchange.read_lines

    def interrupted(stream: Any, limit: int) -> Iterator[bytes]:
        yield from read(stream, limit)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(interchange, "read_lines", interrupted)
    ran = cli("import", path, stdin=b'{"data": "one"}\n' * 10)
    assert (ran.status, ran.out, ran.err) == (128 + number, b"", "")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert path.exists() == existing
    if existing:
        assert cli("cat", path, "-o", "json").out == before
        assert pmwal.verify(path).case == "R1"


def test_import_that_overwrites_and_fails_keeps_none_of_its_records(cli: Cli, shm_dir: Path) -> None:
    """With --on-full overwrite old records may be gone by then, but no part of the input stays."""
    path = make_log(shm_dir / "a.wal", size="4KiB")
    ran = cli("import", path, "--on-full", "overwrite", stdin=b'{"data": "%s"}\n' % (b"x" * 500) * 20 + b"stop")
    assert ran.status == 1
    assert cli("cat", path).out == b""


# -- write in a process of its own


def test_every_acknowledged_line_survives_sigkill(shm_dir: Path, started: Callable[..., subprocess.Popen[bytes]]) -> None:
    """``write --ack`` prints a number once its record is durable: after a kill at any time all of them are there, in order."""
    path = shm_dir / "a.wal"
    process = started("write", "--ack", "--size", "1MiB", path)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"".join(b"line %d\n" % number for number in range(1, 5001)))
    process.stdin.flush()
    acknowledged = [int(process.stdout.readline()) for _ in range(50)]
    process.kill()
    acknowledged += map(int, process.stdout.read().split())
    process.wait()
    assert acknowledged == list(range(1, len(acknowledged) + 1))
    with pmwal.open(path, "r+") as wal:
        found = payloads(wal)
    assert found == [b"line %d" % number for number in range(1, len(found) + 1)]
    assert 0 <= len(found) - len(acknowledged) <= 1


def test_slow_producer_gets_each_acknowledgement_at_once(shm_dir: Path, started: Callable[..., subprocess.Popen[bytes]]) -> None:
    """A line is acknowledged before the next one arrives; SIGINT then closes the log, with status 130."""
    path = shm_dir / "a.wal"
    process = started("write", "--ack", "--size", "64KiB", path)
    assert process.stdin is not None
    assert process.stdout is not None
    for number in (b"1\n", b"2\n"):
        process.stdin.write(b"line " + number)
        process.stdin.flush()
        assert process.stdout.readline() == number
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert pmwal.verify(path).case == "R1"


def test_committing_in_the_background_acknowledges_without_the_next_line(
    shm_dir: Path, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """``--commit SECONDS --ack`` prints a number when the committer has made it durable, and the rest at the end."""
    path = shm_dir / "a.wal"
    process = started("write", "--ack", "--commit", "0.05", "--size", "64KiB", path)
    assert process.stdin is not None
    assert process.stdout is not None
    for number in range(1, 4):
        process.stdin.write(b"line\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"%d\n" % number
        assert pmwal.verify(path).last_seq >= number
    out, err = process.communicate(b"line\n" * 100)
    assert (process.returncode, err) == (0, b"")
    assert out == b"".join(b"%d\n" % number for number in range(4, 104))
    assert len(pmwal.open(path, "r")) == 103


def test_background_commit_acknowledges_what_was_overwritten(cli: Cli, shm_dir: Path) -> None:
    """A ring smaller than its input loses old records, but every number is printed once."""
    lines = b"".join(b"%0500d\n" % number for number in range(200))
    ran = cli("write", "--ack", "--commit", "0.001", "--on-full", "overwrite", "--size", "4KiB", shm_dir / "a.wal", stdin=lines)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == b"".join(b"%d\n" % number for number in range(1, 201))
