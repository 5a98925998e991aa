"""The command line: what each command prints, its exit status, and what it says of files that are damaged or no logs."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import pmwal
from commands import COMMANDS, Cli, Ran
from pmwal.cli import common, truncate, walk
from pmwal.cli.times import parse_time
from pmwal.format.layout import PAGE
from pmwal.writing.engine import Engine
from support import (
    BarrierRecorder,
    file_offset,
    flip,
    kill,
    look,
    open_small,
    overwrite,
    payloads,
    place_of,
    superblock,
    whole_records,
)

MINUTE = 60 * 10**9


class PastSeam(BarrierRecorder):
    """The writer's process is gone, and the clock stands."""

    def pid(self) -> int:
        return (1 << 22) + 1  # past PID_MAX_LIMIT: no process has it

    def now_ns(self) -> int:
        return self.time_ns


def make(path: Path, count: int = 10, *, close: bool = True, **options: Any) -> Path:
    """A log of this many lines, a minute apart, closed, or left as SIGKILL leaves it."""
    seam = PastSeam()
    wal = open_small(path, seam=seam, **options)
    for number in range(1, count + 1):
        seam.time_ns += MINUTE
        wal.append(f"line {number}".encode())
    if close:
        wal.close()
    else:
        kill(wal)
    return path


def damage_record(path: Path, *numbers: int) -> Path:
    """Flip a bit in the payload of each of these records."""
    block, records = superblock(path), whole_records(path)
    for number in numbers:
        flip(path, file_offset(block, records[number].position) + 50)
    return path


def make_torn(path: Path) -> Path:
    """Ten records, the last of them torn."""
    return damage_record(make(path, close=False, ordering="pipelined"), 10)


def make_slotless(path: Path) -> Path:
    """No slot is whole."""
    overwrite(make(path), 2 * PAGE, bytes(2 * PAGE))
    return path


def make_torn_slot(path: Path) -> Path:
    """The newest slot is torn."""
    newest = look(make(path, close=False)).control.newest
    assert newest is not None
    flip(path, place_of(path, newest.generation))
    return path


def make_one_superblock(path: Path) -> Path:
    """Superblock copy 0 is damaged."""
    flip(make(path), 50)
    return path


def make_no_superblock(path: Path) -> Path:
    """Both superblocks are damaged, the log has the usual control region."""
    pmwal.open(path, size="64KiB").close()
    copy = superblock(path).copy_offset
    flip(path, 50)
    flip(path, copy + 50)
    return path


def make_foreign(path: Path) -> Path:
    """Someone else's file."""
    path.write_bytes(b"hello, world\n" * 1000)
    return path


def make_short(path: Path) -> Path:
    """A shortened log."""
    os.truncate(make(path), 3 * PAGE)
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "clean": make,
    "killed": lambda path: make(path, close=False),
    "torn": make_torn,
    "torn-slot": make_torn_slot,
    "one-superblock": make_one_superblock,
    "corrupt": lambda path: damage_record(make(path), 4, 7, 10),
    "slotless": make_slotless,
    "no-superblock": make_no_superblock,
    "foreign": make_foreign,
    "short": make_short,
    "missing": lambda path: path,
}
VERIFY_STATUS = {"clean": 0, "killed": 0, "torn": 1, "torn-slot": 1, "one-superblock": 1, "corrupt": 2, "slotless": 2}


# -- create, write, truncate


def test_created_log_has_the_label_and_geometry_asked_for(cli: Cli, shm_dir: Path) -> None:
    """``create`` writes label, size and alignment into the superblock, and says what a record there survives."""
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
    """``create`` on an existing file ends with status 3 and names the file."""
    path = make_foreign(shm_dir / "a.wal")
    before = path.read_bytes()
    ran = cli("create", path)
    assert (ran.status, ran.out) == (3, b"")
    assert ran.err == f"pmwal: {path}: File exists\n"
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
    """``write`` takes lines as bytes without their newline, and ``cat -o raw`` gives them back."""
    path = shm_dir / "a.wal"
    assert cli("write", path, "--size", "64KiB", stdin=stdin).status == 0
    with pmwal.open(path, "r") as reader:
        assert payloads(reader) == expected
    assert cli("cat", path, "-o", "raw").out == b"".join(line + b"\n" for line in expected)


def test_length_prefixed_items_come_back_as_they_went_in(cli: Cli, shm_dir: Path) -> None:
    """``cat --length-prefixed`` is the inverse of ``write --length-prefixed``, newlines and empty items included."""
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
        (b"\x02\0\0\0ok\x05\0\0\0abc", "ends inside item 2: 3 of its 5 bytes"),
        (b"\x02\0\0\0ok\xff\xff\xff\xff", "item 2 of the input: 4294967295 bytes cannot fit"),
    ],
)
def test_broken_length_prefix_is_an_error_and_keeps_what_came_before(cli: Cli, shm_dir: Path, stdin: bytes, words: str) -> None:
    """A length is checked before it is believed; the items before it stay appended and acknowledged."""
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
    """An acknowledgement comes after the barrier: when that fails, there is none, and the status is that of an OSError."""
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
    """``--on-full raise`` is status 1 with advice; ``overwrite`` says how many were overwritten."""
    lines = b"".join(b"%0500d\n" % number for number in range(20))
    ran = cli("write", shm_dir / "a.wal", "--size", "4KiB", stdin=lines)
    assert ran.status == 1
    assert "truncate" in ran.err
    ran = cli("write", shm_dir / "b.wal", "--size", "4KiB", "--on-full", "overwrite", stdin=lines)
    assert ran.status == 0
    assert "old ones overwritten" in ran.text
    assert cli("cat", shm_dir / "b.wal", "-n", 1, "-o", "raw").out == b"%0500d\n" % 19


def test_writing_to_a_log_in_use_is_status_4_and_names_the_process(cli: Cli, shm_dir: Path) -> None:
    """The command says who has the log."""
    path = shm_dir / "a.wal"
    with pmwal.open(path, size="64KiB"):
        ran = cli("write", path, stdin=b"x\n")
    assert ran.status == 4
    assert "has it open for writing" in ran.err


def test_write_says_what_recovery_dropped(cli: Cli, shm_dir: Path) -> None:
    """Opening a torn log for writing drops the torn record, and that is said."""
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
    """``truncate`` frees records at the front and says what is left."""
    value = cli("truncate", make(shm_dir / "a.wal"), *arguments, "--json").json
    assert {key: value[key] for key in expected} == expected


def test_truncate_past_the_end_is_refused(cli: Cli, shm_dir: Path) -> None:
    """A number that was never issued frees nothing."""
    path = make(shm_dir / "a.wal")
    ran = cli("truncate", path, "--before", 12)
    assert ran.status == 1
    assert "the next record will be 11" in ran.err
    assert len(cli("cat", path).lines) == 10


# -- cat


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), range(1, 11)),
        (("-n", 3), (8, 9, 10)),
        (("-n", 0), ()),
        (("-n", 99), range(1, 11)),
        (("-r",), range(10, 0, -1)),
        (("-r", "-n", 2), (10, 9)),
        (("--from", 4, "--to", 6), (4, 5, 6)),
        (("--from", 9), (9, 10)),
        (("--from", 11), ()),
        (("--to", 2, "-r"), (2, 1)),
        (("--to", 5, "-n", 2), (4, 5)),
        (("-g", "line [135]$"), (1, 3, 5)),
        (("-g", "line [135]$", "-n", 2), (3, 5)),
        (("-g", "1", "-r"), (10, 1)),
        (("--since", "@1700000540"), (9, 10)),
        (("--until", "@1700000120"), (1, 2)),
        (("--since", "2023-11-14T22:22:20Z", "--until", "2023-11-14T22:23:20Z"), (9, 10)),
        (("--since", "-10min"), ()),
    ],
)
@pytest.mark.parametrize("salvage", [False, True])
def test_cat_selects(cli: Cli, shm_dir: Path, arguments: tuple[Any, ...], expected: Any, salvage: bool) -> None:
    """Numbers, times and patterns select; ``-n`` takes the last of them and ``-r`` turns them round; salvage is no other."""
    path = make(shm_dir / "a.wal")
    ran = cli("cat", path, *arguments, *(["--salvage"] if salvage else []))
    assert (ran.status, ran.err) == (0, "")
    assert [int(line.split()[0]) for line in ran.lines] == list(expected)


def test_newest_first_reads_every_piece_once(cli: Cli, shm_dir: Path) -> None:
    """A log longer than one piece comes back whole in reverse."""
    count = 3 * walk._PIECE + 7
    path = make(shm_dir / "a.wal", count, size="64KiB")
    assert [int(line.split()[0]) for line in cli("cat", "-r", path).lines] == list(range(count, 0, -1))


def test_text_stays_on_one_line_and_sends_nothing_to_the_terminal(cli: Cli, shm_dir: Path) -> None:
    """Control characters and bytes that are not UTF-8 are escaped; tabs and letters are not."""
    path = shm_dir / "a.wal"
    with pmwal.open(path, size="64KiB") as wal:
        wal.append("tab\tü\n\x1b[31m".encode() + b"\xff")
    (line,) = cli("cat", path).lines
    assert line.split("  ", 2)[2] == "tab\tü\\x0a\\x1b[31m\\xff"


def test_json_keeps_text_and_encodes_bytes(cli: Cli, shm_dir: Path) -> None:
    """Each line is an object with number, kind, time and the payload as text or base64."""
    wal = open_small(shm_dir / "a.wal", seam=PastSeam())
    wal.append("ü".encode(), kind=7)
    wal.append(b"\xff\0")
    wal.close()
    first, second = map(json.loads, cli("cat", "--json", shm_dir / "a.wal").lines)
    assert first == {
        "seq": 1,
        "kind": 7,
        "time_ns": first["time_ns"],
        "time": datetime.fromtimestamp(first["time_ns"] // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S.000000000Z"),
        "data": "ü",
    }
    assert base64.b64decode(second["data_base64"]) == b"\xff\0"


def test_hex_shows_offsets_bytes_and_letters(cli: Cli, shm_dir: Path) -> None:
    """The dump has sixteen bytes a line."""
    path = shm_dir / "a.wal"
    with pmwal.open(path, size="64KiB") as wal:
        wal.append(b"0123456789abcdef\n\xff", kind=3)
    heading, first, second = cli("cat", "-o", "hex", path).lines
    assert heading.endswith("kind 3  18 bytes")
    assert first == "  00000000  30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|"
    assert second == "  00000010  0a ff" + " " * 45 + "|..|"


def test_cat_says_what_was_truncated(cli: Cli, shm_dir: Path) -> None:
    """An explicit start before the log's first record is not silently moved."""
    path = make(shm_dir / "a.wal")
    cli("truncate", path, "--before", 8)
    ran = cli("cat", path, "--from", 3)
    assert (ran.status, len(ran.lines)) == (0, 3)
    assert "records 3 to 7 not in the log any more" in ran.err


def test_cat_refuses_a_corrupt_log_and_says_what_to_do(cli: Cli, shm_dir: Path) -> None:
    """Damage is status 2 with number, file offsets and the two ways on."""
    path = damage_record(make(shm_dir / "a.wal"), 4)
    offset = file_offset(superblock(path), 3 * 56)
    ran = cli("cat", path)
    assert (ran.status, ran.out) == (2, b"")
    assert f"record 4 lost; file offsets {offset} to {offset + 56}" in ran.err
    assert f"pmwal cat --salvage {path}" in ran.err
    assert f"pmwal repair {path}" in ran.err


def test_salvage_shows_what_is_whole_and_names_every_gap(cli: Cli, shm_dir: Path) -> None:
    """Gaps in the middle and at the end are said, also when the selection leaves them out; the status stays 2."""
    path = damage_record(make(shm_dir / "a.wal"), 4, 7, 10)
    for arguments, expected in (((), [1, 2, 3, 5, 6, 8, 9]), (("-n", 2, "-r"), [9, 8]), (("--to", 3), [1, 2, 3])):
        ran = cli("cat", "--salvage", path, *arguments)
        assert ran.status == 2
        assert [int(line.split()[0]) for line in ran.lines] == expected
        assert [line.split(": ")[-1] for line in ran.err.splitlines()[1:]] == [
            "record 4 damaged or missing",
            "record 7 damaged or missing",
            "record 10 damaged or missing",
        ]


def test_salvage_without_a_pointer_warns_of_truncated_records(cli: Cli, shm_dir: Path) -> None:
    """When no slot is whole nobody knows where the log began."""
    ran = cli("cat", "--salvage", make_slotless(shm_dir / "a.wal"))
    assert (ran.status, len(ran.lines)) == (2, 10)
    assert "truncated records may be among" in ran.err


def test_cat_of_a_torn_log_shows_the_rest_and_says_so(cli: Cli, shm_dir: Path) -> None:
    """A torn tail is no corruption: the records before it are shown, with a note."""
    ran = cli("cat", make_torn(shm_dir / "a.wal"))
    assert (ran.status, len(ran.lines)) == (0, 9)
    assert "1 unfinished record (56 B) dropped from number 10 on; it may have been acknowledged" in ran.err


def test_records_overwritten_under_cat_are_counted(shm_dir: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A writer that is faster than the reader is said, and the walk goes on behind the gap."""
    path = shm_dir / "a.wal"
    with open_small(path, on_full="overwrite") as wal, pmwal.open(path, "r") as reader:
        for _ in range(4):
            wal.append(bytes(3000))
        walker = walk.Walk(reader, str(path))
        records = walker.oldest_first(1, 4)
        for _ in range(3):
            wal.append(bytes(3000))
        assert (wal.first_seq, [record.seq for record in records]) == (3, [3, 4])
    assert walker.missed
    assert b"records 1 to 2 gone before they could be read" in capsysbinary.readouterr().err


def test_reader_that_goes_away_is_no_error(shm_dir: Path, started: Callable[..., subprocess.Popen[bytes]]) -> None:
    """``pmwal cat | head -1`` ends quietly, with the status of a broken pipe."""
    process = started("cat", make(shm_dir / "a.wal", 3000, size="1MiB"))
    assert process.stdout is not None
    assert process.stdout.readline().endswith(b"line 1\n")
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait()) == (b"", 141)


# -- write in a process of its own


def test_every_acknowledged_line_survives_sigkill(shm_dir: Path, started: Callable[..., subprocess.Popen[bytes]]) -> None:
    """``write --ack`` prints a number after its record is durable: killed anywhere, all printed ones are there in order."""
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
    """A line is appended and acknowledged before the next one is waited for; SIGINT then closes the log and is status 130."""
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
    """``--commit SECONDS --ack``: each number is printed when the committer has made it durable, and the last ones at the end."""
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
    """A ring that is too small for its input loses old records, and every number is printed once."""
    lines = b"".join(b"%0500d\n" % number for number in range(200))
    ran = cli("write", "--ack", "--commit", "0.001", "--on-full", "overwrite", "--size", "4KiB", shm_dir / "a.wal", stdin=lines)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == b"".join(b"%d\n" % number for number in range(1, 201))


# -- info, verify, repair


@pytest.mark.parametrize("kind", MAKERS)
def test_verify_status_says_how_bad_it_is(cli: Cli, shm_dir: Path, kind: str) -> None:
    """Clean 0, torn 1, corrupt 2, no log 3; the same in JSON; ``-q`` prints nothing; nothing is ever written."""
    path = MAKERS[kind](shm_dir / "a.wal")
    before = path.read_bytes() if path.exists() else b""
    expected = VERIFY_STATUS.get(kind, 3)
    assert cli("verify", path).status == expected
    assert cli("verify", "-q", path) == Ran(expected, b"", "")
    value = cli("verify", "--json", path).json
    assert (value["status"], value["path"], "error" in value) == (expected, str(path), expected == 3)
    assert (path.read_bytes() if path.exists() else b"") == before


def test_verify_of_several_files_ends_with_the_worst_status(cli: Cli, shm_dir: Path) -> None:
    """Each file has its line, and the status is the worst of all."""
    paths = [MAKERS[kind](shm_dir / kind) for kind in ("clean", "corrupt", "torn")]
    ran = cli("verify", *paths)
    assert ran.status == 2
    for line, path in zip(ran.lines, paths, strict=True):
        assert line.startswith(f"{path}: ")
    assert [json.loads(line)["status"] for line in cli("verify", "--json", *paths).lines] == [0, 2, 1]


def test_verify_names_numbers_offsets_and_reason(cli: Cli, shm_dir: Path) -> None:
    """A person can find the damage in the file, for corruption and for a torn tail."""
    corrupt, torn = damage_record(make(shm_dir / "c.wal"), 4), make_torn(shm_dir / "t.wal")
    offset = file_offset(superblock(corrupt), 3 * 56)
    words = cli("verify", corrupt).text
    assert "CORRUPT: number 4 is not whole" in words
    assert f"record 4 lost; file offsets {offset} to {offset + 56}; 3 records, 1 to 3 whole before it [R4" in words
    offset = file_offset(superblock(torn), 9 * 56)
    assert f"1 unfinished record (56 B) dropped from number 10 on, file offset {offset}" in cli("verify", torn).text


def test_unfinished_end_beside_a_running_writer_is_not_torn(cli: Cli, shm_dir: Path) -> None:
    """A log in use is status 0 although its newest record is not committed yet."""
    path = shm_dir / "a.wal"
    with open_small(path, ordering="strict") as wal:
        wal.append(b"committed")
        wal.append(b"not yet", commit=False)
        block = wal._engine.block
        flip(path, file_offset(block, wal._engine.state.durable.position) + 50)
        ran = cli("verify", path)
        assert pmwal.verify(path).dropped_records == 1
        assert ran.status == 0
        assert f"in use by process {os.getpid()}" in ran.text
        info = cli("info", "--json", path).json
        assert info["writer"]["pid"] == os.getpid()
        assert info["writer"]["alive"]


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "missing"])
def test_info_works_on_any_file_and_never_writes(cli: Cli, shm_dir: Path, kind: str) -> None:
    """Every file gets a page of facts and a verdict; 2 when corrupt, 3 when it is no log that can be opened."""
    path = MAKERS[kind](shm_dir / "a.wal")
    before = path.read_bytes()
    expected = {2: 2, 3: 3}.get(VERIFY_STATUS.get(kind, 3), 0)
    ran = cli("info", path)
    assert (ran.status, ran.err) == (expected, "")
    assert ran.lines[0].startswith("file")
    assert ran.lines[-1].startswith("verdict")
    value = cli("info", "--json", path).json
    assert value["status"] == expected
    assert value["superblocks"][0] == {"one-superblock": "damaged", "no-superblock": "damaged", "foreign": "not found"}.get(
        kind, "whole"
    )
    assert path.read_bytes() == before


def test_info_tells_a_log_with_two_damaged_superblocks_by_its_slots(cli: Cli, shm_dir: Path) -> None:
    """Slots that validate with the uuid in a damaged superblock prove which log it was."""
    ran = cli("info", make_no_superblock(shm_dir / "a.wal"))
    assert ran.status == 3
    assert "copy 0 damaged, copy 1 damaged" in ran.text
    assert "by 2048 whole commit slots" in ran.text
    assert "CANNOT BE OPENED: both superblocks are damaged" in ran.text


def test_info_names_the_lost_slot_and_the_dead_writer(cli: Cli, shm_dir: Path) -> None:
    """Where the lost slot stands, and that the writer went without closing."""
    path = make_torn_slot(shm_dir / "a.wal")
    value = cli("info", "--json", path).json
    newest = value["slots"]["newest"]["generation"]
    assert value["slots"]["lost_offsets"] == [place_of(path, newest + 1)]
    text = cli("info", path).text
    assert "1 of 128 lost: slot" in text
    assert "gone without closing the log" in text


def test_copy_of_a_log_in_use_has_no_writer(cli: Cli, shm_dir: Path) -> None:
    """A copy names the process that wrote the original, and nobody writes to it."""
    path, copy = shm_dir / "a.wal", shm_dir / "copy.wal"
    with pmwal.open(path, size="64KiB") as wal:
        wal.append(b"x")
        shutil.copyfile(path, copy)
        assert cli("info", "--json", path).json["writer"]["alive"]
        assert not cli("info", "--json", copy).json["writer"]["alive"]
        assert "of the file that this is a copy of" in cli("info", copy).text
        assert cli("verify", copy).text.startswith(f"{copy}: not closed, nothing torn: 1 record, 1")


@pytest.mark.parametrize("command", ["info", "verify", "cat"])
def test_fifo_is_refused_and_not_waited_for(cli: Cli, shm_dir: Path, command: str) -> None:
    """A FIFO without a writer would block a careless open for ever."""
    os.mkfifo(shm_dir / "fifo")
    assert cli(command, shm_dir / "fifo").status == 3


def test_repair_rehearsed_changes_nothing_and_done_makes_the_log_usable(cli: Cli, shm_dir: Path) -> None:
    """``--dry-run`` says what would be lost; the repair keeps the original and the log is clean afterwards."""
    path = damage_record(make(shm_dir / "a.wal"), 4)
    before = path.read_bytes()
    rehearsed = cli("repair", "--dry-run", path)
    assert rehearsed.status == 1
    assert "lost: records 4 to 10" in rehearsed.text
    assert "nothing was changed" in rehearsed.text
    assert (path.read_bytes(), os.listdir(shm_dir)) == (before, ["a.wal"])
    value = cli("repair", "--json", path).json
    assert (value["kept_records"], value["lost_first_seq"], value["lost_last_seq"]) == (3, 4, 10)
    assert Path(value["backup"]).read_bytes() == before
    assert cli("verify", path).status == 0
    again = cli("repair", path)
    assert (again.status, "nothing to repair" in again.text) == (0, True)


@pytest.mark.parametrize(("kind", "status"), [("slotless", 0), ("one-superblock", 0), ("no-superblock", 3), ("foreign", 3)])
def test_repair_status_says_whether_anything_was_lost(cli: Cli, shm_dir: Path, kind: str, status: int) -> None:
    """0 when all records are kept, 3 when there is nothing to rebuild from."""
    path = MAKERS[kind](shm_dir / "a.wal")
    assert cli("repair", path).status == status
    assert cli("verify", path).status == (3 if status else 0)


# -- the frame: usage, errors, help, progress


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("create",),
        ("create", "x", "--size", "3 apples"),
        ("create", "x", "--size", "1000TiB"),
        ("create", "x", "--align", "100"),
        ("create", "x", "--label", "ü" * 33),
        ("write", "x", "--kind", "65536"),
        ("write", "x", "--ack", "--json"),
        ("write", "x", "--on-full", "wait"),
        ("cat", "x", "-g", "("),
        ("cat", "x", "--since", "whenever"),
        ("cat", "x", "--length-prefixed", "-o", "json"),
        ("cat", "x", "-n", "-1"),
        ("tail", "x", "-o", "xml"),
        ("tail", "x", "--length-prefixed", "-o", "hex"),
        ("write", "x", "--commit", "soon"),
        ("write", "x", "--commit", "0"),
        ("write", "x", "--commit", "nan"),
        ("stat", "x", "--watch", "0"),
        ("stat", "--watch", "x"),
        ("export", "x", "--format", "xml"),
        ("completion", "cmd"),
        ("verify",),
        ("truncate", "x"),
        ("truncate", "x", "--all", "--before", "3"),
        ("demo", "--cycles", "0"),
        ("demo", "--seconds", "nan"),
    ],
)
def test_wrong_usage_is_status_64(cli: Cli, arguments: tuple[str, ...]) -> None:
    """Usage errors have a status of their own, because 2 means corrupt, and nothing goes to standard output."""
    ran = cli(*arguments)
    assert (ran.status, ran.out) == (64, b"")
    assert "pmwal" in ran.err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_of_each_command_has_examples(cli: Cli, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--help`` shows lines that can be copied, and fits a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    ran = cli(*command.split(), "--help")
    assert (ran.status, ran.err) == (0, "")
    assert f"pmwal {command}" in ran.text.partition("Examples:\n")[2]
    assert max(map(len, ran.lines)) <= 80


def test_version_is_that_of_the_package(cli: Cli) -> None:
    """``--version`` names program and version."""
    assert cli("--version") == Ran(0, f"pmwal {pmwal.__version__}\n".encode(), "")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (RuntimeError("boom"), 1, "pmwal: unexpected RuntimeError: boom"),
        (OSError(28, "No space left on device"), 3, "pmwal: a.wal: No space left on device"),
        (pmwal.PersistError(5, "a.wal: msync failed", committed_seq=3), 3, "pmwal: a.wal: msync failed"),
        (pmwal.UnsupportedMedium("no DAX here"), 1, "pmwal: no DAX here"),
        (pmwal.CorruptWal("x", reason="torn", first_seq=3), 2, "pmwal: a.wal: corrupt: torn; records from 3 on lost"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_error_is_one_line_and_a_status(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, words: str
) -> None:
    """No error of any kind shows a traceback."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(truncate, "open", fail)
    ran = cli("truncate", "a.wal", "--all")
    assert (ran.status, ran.out) == (status, b"")
    assert ran.err.startswith(words)
    assert "Traceback" not in ran.err


def test_longer_file_is_a_one_line_warning(cli: Cli, shm_dir: Path) -> None:
    """What the library warns of is said like everything else, without a place in the source."""
    path = make(shm_dir / "a.wal")
    with path.open("ab") as file:
        file.write(b"tail")
    ran = cli("truncate", path, "--all")
    assert (ran.status, ran.err) == (0, f"pmwal: warning: {path}: 4 bytes follow the log; they are left alone\n")


def test_progress_needs_a_terminal_and_time(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """No bar into a file; without tqdm one hint, and only when the work is long."""
    with common.progress_bar("verify") as progress:
        assert progress is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    now = time.monotonic()
    monkeypatch.setattr(common, "monotonic", lambda: now)
    with common.progress_bar("verify") as progress:
        assert progress is not None
        progress(1, 100)
        assert capsysbinary.readouterr().err == b""
        now += 2
        progress(2, 100)
        progress(3, 100)
    assert capsysbinary.readouterr().err.count(b"pip install 'pmwal[cli]'") == 1


def test_progress_bar_goes_forth_and_back(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """The bar takes any order of calls, because a log beside a writer may be judged again from its start."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(common, "_BAR_DELAY", 0)
    with common.progress_bar("verify") as progress:
        assert progress is not None
        for done in (0, 50, 100, 10, 100):
            progress(done, 100)
    assert b"verify" in capsysbinary.readouterr().err


NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T11:50:00Z", "11:50"),
        ("2026-11-22T13:50:00+02:00", "11:50"),
        ("10 minutes ago", "11:50"),
        ("-10min", "11:50"),
        ("-600s", "11:50"),
        ("600000 ms ago", "11:50"),
        ("1h30m ago", "10:30"),
        ("2 hours 30 min ago", "09:30"),
        ("-0.5h", "11:30"),
        ("now", "12:00"),
        ("@1795348800", "12:00"),
    ],
)
def test_time_is_read_as_people_write_it(text: str, expected: str) -> None:
    """Absolute and relative times, against a fixed clock."""
    moment = datetime.fromisoformat(f"2026-11-22T{expected}:00+00:00")
    assert parse_time(text, NOON) == round(moment.timestamp()) * 10**9


def test_today_and_yesterday_are_local_midnights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Days and times without a zone are local, also where the clocks were changed in between."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        changed = datetime(2026, 3, 29, 12, tzinfo=UTC)  # summer time began that night
        assert parse_time("today", changed) == parse_time("2026-03-28T23:00Z")
        assert parse_time("yesterday", changed) == parse_time("2026-03-27T23:00Z")
        assert parse_time("13:00", changed) == parse_time("2026-03-29T11:00Z")
        assert parse_time("2026-03-29") == parse_time("today", changed)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "soon", "10 parsecs ago", "ago", "-", "@x", "2026-13-01"])
def test_time_that_cannot_be_read_is_refused(text: str) -> None:
    """What is no time is a ``ValueError``, never some other moment."""
    with pytest.raises(ValueError):
        parse_time(text)
