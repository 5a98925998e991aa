"""``pmwal cat``: which records are printed, in which form, and what it reports of damage and of a faster writer."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import pmwal
from commands import Cli, PastSeam, damage_record, make_log, make_slotless, make_torn
from pmwal.cli.reading import spans
from pmwal.reading.selection import Selection
from support import file_offset, open_small, superblock


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
    """Numbers, times and patterns select records; ``-n`` keeps the last, ``-r`` reverses them; so does ``--salvage``."""
    path = make_log(shm_dir / "a.wal")
    ran = cli("cat", path, *arguments, *(["--salvage"] if salvage else []))
    assert (ran.status, ran.err) == (0, "")
    assert [int(line.split()[0]) for line in ran.lines] == list(expected)


@pytest.mark.parametrize("salvage", [False, True])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--from", 5, "--to", 2), "--to 2 is before --from 5"),
        (("--from", 1, "--to", 0), "--to 0 is before --from 1"),
        (("--since", "tomorrow", "--until", "yesterday"), "before --since"),
        (("--since", "@2", "--until", "@1"), "before --since"),
    ],
)
def test_range_that_ends_before_it_begins_is_wrong_usage(
    cli: Cli, shm_dir: Path, arguments: tuple[Any, ...], words: str, salvage: bool
) -> None:
    """No record can be in it, so that to print nothing would hide a mistake."""
    ran = cli("cat", make_log(shm_dir / "log"), *arguments, *(("--salvage",) if salvage else ()))
    assert (ran.status, ran.out) == (64, b"")
    assert words in ran.err


def test_newest_first_reads_every_piece_once(cli: Cli, shm_dir: Path) -> None:
    """A log longer than one piece is printed completely in reverse."""
    count = 3 * spans.PIECE + 7
    path = make_log(shm_dir / "a.wal", count, size="64KiB")
    assert [int(line.split()[0]) for line in cli("cat", "-r", path).lines] == list(range(count, 0, -1))


def test_text_stays_on_one_line_and_sends_nothing_to_the_terminal(cli: Cli, shm_dir: Path) -> None:
    """Control characters and bytes that are not UTF-8 are escaped; tabs and letters are not."""
    path = shm_dir / "a.wal"
    with pmwal.open(path, size="64KiB") as wal:
        wal.append("tab\tü\n\x1b[31m\u202e\u2028".encode() + b"\xff")
    (line,) = cli("cat", path).lines
    assert line.split("  ", 2)[2] == "tab\tü\\x0a\\x1b[31m\\u202e\\u2028\\xff"


def test_json_keeps_text_and_encodes_bytes(cli: Cli, shm_dir: Path) -> None:
    """Each line is an object with number, kind, time, and the payload as text or base64."""
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
    """The dump has sixteen bytes per line."""
    path = shm_dir / "a.wal"
    with pmwal.open(path, size="64KiB") as wal:
        wal.append(b"0123456789abcdef\n\xff", kind=3)
    heading, first, second = cli("cat", "-o", "hex", path).lines
    assert heading.endswith("kind 3  18 bytes")
    assert first == "  00000000  30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|"
    assert second == "  00000010  0a ff" + " " * 45 + "|..|"


def test_cat_reports_truncated_records(cli: Cli, shm_dir: Path) -> None:
    """A start before the log's first record is reported, not moved silently."""
    path = make_log(shm_dir / "a.wal")
    cli("truncate", path, "--before", 8)
    ran = cli("cat", path, "--from", 3)
    assert (ran.status, len(ran.lines)) == (0, 3)
    assert "records 3 to 7 no longer in the log" in ran.err
    ran = cli("cat", path, "--from", 1, "--to", 3)
    assert (ran.status, ran.lines) == (0, [])
    assert ": records 1 to 3 no longer in the log" in ran.err


def test_cat_refuses_a_corrupt_log_with_advice(cli: Cli, shm_dir: Path) -> None:
    """Damage is status 2, with number, file offsets and both remedies."""
    path = damage_record(make_log(shm_dir / "a.wal"), 4)
    offset = file_offset(superblock(path), 3 * 56)
    ran = cli("cat", path)
    assert (ran.status, ran.out) == (2, b"")
    assert f"record 4 lost; file offsets {offset} to {offset + 56}" in ran.err
    assert f"pmwal cat --salvage {path}" in ran.err
    assert f"pmwal repair {path}" in ran.err


def test_salvage_prints_whole_records_and_names_every_gap(cli: Cli, shm_dir: Path) -> None:
    """Gaps in the middle and at the end are reported even if not selected; the status stays 2."""
    path = damage_record(make_log(shm_dir / "a.wal"), 4, 7, 10)
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
    """If no slot is whole, it is unknown where the log begins, and this is reported."""
    ran = cli("cat", "--salvage", make_slotless(shm_dir / "a.wal"))
    assert (ran.status, len(ran.lines)) == (2, 10)
    assert "truncated records may be among" in ran.err


def test_cat_of_a_torn_log_prints_the_rest_and_reports_it(cli: Cli, shm_dir: Path) -> None:
    """A torn tail is not corruption: the records before it are printed, with a note."""
    ran = cli("cat", make_torn(shm_dir / "a.wal"))
    assert (ran.status, len(ran.lines)) == (0, 9)
    assert "1 unfinished record (56 B) dropped from number 10 on; it may have been acknowledged" in ran.err


def test_records_overwritten_under_cat_are_counted(shm_dir: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Records that a faster writer overwrote are reported, and reading continues after the gap."""
    path = shm_dir / "a.wal"
    with open_small(path, on_full="overwrite") as wal, pmwal.open(path, "r") as reader:
        for _ in range(4):
            wal.append(bytes(3000))
        span = spans.Span(str(path), reader, Selection())
        for _ in range(3):
            wal.append(bytes(3000))
        assert (wal.first_seq, [record.seq for batch in span.oldest_first() for record in batch]) == (3, [3, 4])
    assert span.missed
    assert b"records 1 to 2 overwritten or truncated before they were read" in capsysbinary.readouterr().err


def test_closed_output_ends_cat_silently(shm_dir: Path, started: Callable[..., subprocess.Popen[bytes]]) -> None:
    """``pmwal cat | head -1`` ends silently, with the status of a broken pipe."""
    process = started("cat", make_log(shm_dir / "a.wal", 3000, size="1MiB"))
    assert process.stdout is not None
    assert process.stdout.readline().endswith(b"line 1\n")
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait()) == (b"", 141)
