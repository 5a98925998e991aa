"""``pmwal tail`` and ``pmwal stat``: what is new in a log, and what its writer is doing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from commands import Cli, Ran, between_looks
from pmwal import events
from pmwal.cli.commands import tail
from pmwal.format.layout import LIVE_OFFSET, LIVE_WRITER_OFFSET
from pmwal.storage.seam import SYSTEM
from support import kill, open_small, overwrite

Start = Callable[..., subprocess.Popen[bytes]]


def make(path: Path, count: int = 20) -> Path:
    """A closed log of this many lines."""
    with open_small(path) as wal:
        wal.extend(b"line %d" % number for number in range(1, count + 1))
    return path


def append(path: Path, *lines: bytes) -> None:
    """Further records."""
    with open_small(path) as wal:
        wal.extend(lines)


def numbers(ran: Ran) -> list[int]:
    """Which records were shown as text."""
    return [int(line.split()[0]) for line in ran.lines]


def hear(process: subprocess.Popen[bytes]) -> bytes:
    """The next line of its output."""
    assert process.stdout is not None
    return process.stdout.readline()


def complaints(process: subprocess.Popen[bytes]) -> str:
    """All that it says on standard error until it ends."""
    assert process.stderr is not None
    return process.stderr.read().decode()


# -- tail


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), range(11, 21)),
        (("-n", 3), (18, 19, 20)),
        (("-n", 0), ()),
        (("-n", 99), range(1, 21)),
        (("-g", "5$"), (5, 15)),
        (("-g", "1", "-n", 2), (18, 19)),
    ],
)
def test_tail_shows_the_last_that_match(cli: Cli, shm_dir: Path, arguments: tuple[Any, ...], expected: Any) -> None:
    """Ten when it is not told how many, as tail(1) and journalctl do."""
    ran = cli("tail", make(shm_dir / "log"), *arguments)
    assert (ran.status, ran.err, numbers(ran)) == (0, "", list(expected))


@pytest.mark.parametrize("form", [(), ("-o", "json"), ("--json",), ("-o", "hex"), ("-o", "raw"), ("--length-prefixed",)])
def test_tail_has_the_forms_of_cat(cli: Cli, shm_dir: Path, form: tuple[str, ...]) -> None:
    """The same bytes."""
    path = make(shm_dir / "log")
    assert cli("tail", path, "-n", 3, *form).out == cli("cat", path, "-n", 3, *form).out


def test_each_run_goes_on_where_the_last_one_stopped(cli: Cli, shm_dir: Path) -> None:
    """All that is new, and only that; -n limits it; what does not match is passed over for good."""
    path, cursor = make(shm_dir / "log"), shm_dir / "cursor"
    for lines, arguments, expected in (
        ((), (), list(range(11, 21))),
        ((), (), []),
        ([b"x"] * 15, (), list(range(21, 36))),
        ([b"y"] * 3, ("-g", "x"), []),
        ((), (), []),
        ([b"z"] * 5, ("-n", 2), [42, 43]),
        ([b"z"] * 5, ("-n", 0), []),
        ([b"end"], (), [49]),
    ):
        append(path, *lines)
        ran = cli("tail", path, "--cursor-file", cursor, *arguments)
        assert (ran.status, ran.err, numbers(ran)) == (0, "", expected)
        with pmwal.open(path, "r") as reader:
            assert cursor.read_text() == reader[reader.committed_seq].cursor + "\n"


def test_empty_log_saves_no_cursor(cli: Cli, shm_dir: Path) -> None:
    """And an empty file is as good as none."""
    open_small(shm_dir / "log").close()
    for _ in range(2):
        assert cli("tail", shm_dir / "log", "--cursor-file", shm_dir / "cursor") == Ran(0, b"", "")
        assert not (shm_dir / "cursor").exists() or (shm_dir / "cursor").read_text() == ""
        (shm_dir / "cursor").touch()


@pytest.mark.parametrize(
    ("change", "words", "expected"),
    [
        (lambda wal: wal.truncate(before=25), "record 21 is gone: the log now begins at 25", [25]),
        (lambda wal: wal.rollback(after=3), "there is no record 20, which the cursor names", [1, 2, 3]),
        (lambda wal: (wal.rollback(after=18), wal.extend([b"x"] * 2)), "record 20 is not the one that the cursor names", None),
    ],
)
def test_cursor_whose_record_is_gone_is_said_and_the_oldest_shown(
    cli: Cli, shm_dir: Path, change: Callable[[pmwal.Wal], Any], words: str, expected: list[int] | None
) -> None:
    """Status 1, one line on standard error, and the next run is in order again."""
    path, cursor = make(shm_dir / "log"), shm_dir / "cursor"
    cli("tail", path, "--cursor-file", cursor)
    append(path, *[b"x"] * 5)
    with open_small(path) as wal:
        change(wal)
    ran = cli("tail", path, "--cursor-file", cursor)
    assert (ran.status, numbers(ran)) == (1, list(range(1, 21)) if expected is None else expected)
    assert words in ran.err
    assert f"continuing with record {numbers(ran)[0]}" in ran.err
    assert cli("tail", path, "--cursor-file", cursor) == Ran(0, b"", "")


def test_file_that_holds_no_cursor_is_named_and_left_alone(cli: Cli, shm_dir: Path) -> None:
    """It may be somebody's file."""
    path, cursor = make(shm_dir / "log"), shm_dir / "notes"
    cursor.write_text("my notes\n")
    ran = cli("tail", path, "--cursor-file", cursor)
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err.startswith(f"pmwal: {cursor}: 'my notes' is no cursor; a cursor is")
    assert cursor.read_text() == "my notes\n"


@pytest.mark.parametrize("step", ["write", "sync_file", "replace"])
def test_cursor_file_is_replaced_whole_or_not_at_all(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """When a step fails the old cursor stands, and nothing lies about; a file behind a symbolic link is that file."""
    path, real, link = make(shm_dir / "log"), shm_dir / "cursor", shm_dir / "link"
    link.symlink_to(real)
    cli("tail", path, "--cursor-file", link)
    before = real.read_text()
    append(path, b"x")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(tail.Cursor, "__str__", fail)
        else:
            patch.setattr(type(SYSTEM), step, fail)
        ran = cli("tail", path, "--cursor-file", link)
        assert (ran.status, real.read_text(), sorted(os.listdir(shm_dir))) == (3, before, ["cursor", "link", "log"])
    assert numbers(cli("tail", path, "--cursor-file", link)) == [21]
    assert link.is_symlink()
    assert real.read_text() != before


def test_cursor_waits_until_the_output_has_everything(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be printed is shown again."""
    path, cursor = make(shm_dir / "log"), shm_dir / "cursor"
    cli("tail", path, "--cursor-file", cursor)
    append(path, b"x", b"y")
    with monkeypatch.context() as patch:
        patch.setattr(tail, "print_records", lambda records, form: (list(records), os.kill(os.getpid(), signal.SIGINT)))
        assert cli("tail", path, "--cursor-file", cursor).status == 130
    assert numbers(cli("tail", path, "--cursor-file", cursor)) == [21, 22]


def test_follow_goes_on_over_closes_and_kills_until_interrupted(shm_dir: Path, started: Start) -> None:
    """Status 130, not a word on standard error, and the cursor is saved."""
    path, cursor = make(shm_dir / "log"), shm_dir / "cursor"
    process = started("tail", "-f", "-n", 1, "-o", "raw", "--cursor-file", cursor, path)
    assert hear(process) == b"line 20\n"
    append(path, b"second")
    assert hear(process) == b"second\n"
    wal = open_small(path)
    wal.append(b"third")
    assert hear(process) == b"third\n"
    kill(wal)
    with open_small(path) as wal:
        wal.append(b"fourth")
        assert hear(process) == b"fourth\n"
        expected = wal[wal.next_seq - 1].cursor
    process.send_signal(signal.SIGINT)
    assert (complaints(process), process.wait()) == ("", 130)
    assert cursor.read_text() == f"{expected}\n"


def test_follow_shows_events_filled_in_also_of_the_log_that_took_the_name(shm_dir: Path, started: Start) -> None:
    """The definitions of the one explain nothing of the other; ``--grep`` looks at the text."""
    path, other = shm_dir / "log", shm_dir / "other"
    with open_small(path) as wal:
        events.Logger(wal).event("order {id} filled")(7)
        process = started("tail", "-f", "-g", "(filled|left)$", path)
        assert hear(process).endswith(b"order 7 filled\n")
    with open_small(other) as wal:
        events.Logger(wal).event("user {name} left")("ada")
        other.rename(path)
        assert hear(process).endswith(b"user ada left\n")
    process.send_signal(signal.SIGINT)
    assert "another log has this name now" in complaints(process)


def test_follow_says_what_a_faster_writer_overwrote(shm_dir: Path, started: Start) -> None:
    """Then it goes on with the oldest."""
    path = shm_dir / "log"
    with open_small(path, on_full="overwrite") as wal:
        wal.append(b"first")
        process = started("tail", "-f", "-o", "json", path)
        assert json.loads(hear(process))["seq"] == 1
        process.send_signal(signal.SIGSTOP)
        for _ in range(100):
            wal.append(bytes(1000))
        oldest, newest = wal.first_seq, wal.next_seq - 1
        process.send_signal(signal.SIGCONT)
        assert [json.loads(hear(process))["seq"] for _ in range(oldest, newest + 1)] == list(range(oldest, newest + 1))
    process.send_signal(signal.SIGINT)
    assert complaints(process) == f"pmwal: {path}: records 2 to {oldest - 1} gone before they were printed\n"


def test_follow_goes_on_behind_a_rollback(shm_dir: Path, started: Start) -> None:
    """With the first record that is new, not with the whole log."""
    path = shm_dir / "log"
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c", b"d"])
        process = started("tail", "-f", "-o", "raw", path)
        assert [hear(process) for _ in range(4)] == [b"a\n", b"b\n", b"c\n", b"d\n"]
        process.send_signal(signal.SIGSTOP)
        wal.rollback(after=2)
        wal.extend([b"C", b"D"])
        wal.rollback(after=3)
        wal.append(b"DD")
        process.send_signal(signal.SIGCONT)
        assert [hear(process) for _ in range(2)] == [b"C\n", b"DD\n"]
    process.send_signal(signal.SIGINT)
    said = complaints(process)
    assert "rolled back" in said
    assert "continuing with record 3" in said


def test_follow_finds_the_log_that_took_the_name(shm_dir: Path, started: Start) -> None:
    """As ``tail -F`` does, and says so."""
    path, other = make(shm_dir / "log"), shm_dir / "other"
    process = started("tail", "-f", "-n", 1, "-o", "raw", path)
    assert hear(process) == b"line 20\n"
    time.sleep(0.001)
    append(other, b"new 1", b"new 2")
    os.replace(other, path)
    assert [hear(process) for _ in range(2)] == [b"new 1\n", b"new 2\n"]
    process.send_signal(signal.SIGINT)
    said = complaints(process)
    assert "another log has this name now" in said
    assert "continuing with record 1" in said


def test_idle_follow_ends_when_nobody_reads_it(shm_dir: Path, started: Start) -> None:
    """Without a new record, and quietly."""
    process = started("tail", "-f", "-n", 1, make(shm_dir / "log"))
    assert hear(process).endswith(b"line 20\n")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(20) == 141
    assert complaints(process) == ""


# -- stat


def test_stat_shows_what_a_writer_did_between_two_looks(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of records, of bytes of the ring, and of commits, for the time that it says."""
    path = shm_dir / "log"
    with open_small(path, commit="manual") as wal:
        wal.extend([b"x"] * 3)
        wal.commit()

        def work() -> None:
            for _ in range(2):
                wal.extend([bytes(100)] * 4)
                wal.commit()
            wal.append(b"pending")

        between_looks(monkeypatch, work)
        facts = cli("stat", path, "--json").json
        assert facts["writer"] == {"pid": os.getpid(), "alive": True, "of_this_file": True}
        rates, bounds = facts["rates"], facts["bounds"]
        assert [round(rates[name] * rates["seconds"]) for name in ("records", "bytes", "commits")] == [8, 8 * 152, 2]
        assert (bounds["first_seq"], bounds["last_seq"], bounds["durable_seq"]) == (1, 12, 11)
        assert bounds["used_bytes"] == wal.stats().used
        assert facts["newest_store_seconds"] >= 0
        between_looks(monkeypatch, lambda: None)
        text = cli("stat", path).text
        assert f"process {os.getpid()}, running" in text
        assert "1 to 12, 12 in all; 1 not durable yet" in text
        assert "0 records/s" in text


@pytest.mark.parametrize("command", [("stat",), ("stat", "--json")])
def test_stat_writes_nothing_and_takes_no_lock(cli: Cli, shm_dir: Path, command: tuple[str, ...]) -> None:
    """Not even the word that says that a reader waits."""
    path = make(shm_dir / "log")
    before = path.read_bytes()
    with open_small(path):
        during = path.read_bytes()
        assert cli(*command, path).status == 0
        assert path.read_bytes() == during
    assert before != during


def test_writer_that_is_gone_has_no_rates(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed, killed, or the writer of the file that this is a copy of: each in words."""
    path, copy = shm_dir / "log", shm_dir / "copy"
    with open_small(path) as wal:
        wal.append(b"x")
        shutil.copyfile(path, copy)
        assert "of the file that this is a copy of" in cli("stat", copy).text
        wal.append(b"y")
    assert cli("stat", path).lines[0].split() == ["writer", "none"]
    facts = cli("stat", path, "--json").json
    assert (facts["writer"], facts["rates"], facts["bounds"]["last_seq"]) == (None, None, 2)
    script = "import pmwal, os, sys; wal = pmwal.open(sys.argv[1]); wal.append(b'z'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    between_looks(monkeypatch)
    assert "gone without closing the log" in cli("stat", path).text


def test_new_writer_between_two_looks_makes_no_rates(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another epoch counts from elsewhere."""
    path = make(shm_dir / "log")
    wals = [open_small(path)]

    def again() -> None:
        wals[0].close()
        wals[0] = open_small(path)
        wals[0].append(b"x")

    between_looks(monkeypatch, again)
    facts = cli("stat", path, "--json").json
    wals[0].close()
    assert (facts["rates"], facts["bounds"]["last_seq"]) == (None, 21)


@pytest.mark.parametrize("page", [bytes(64), b"\xff" * 64, bytes(range(64))], ids=["zeros", "ones", "noise"])
def test_live_page_that_makes_no_sense_is_not_believed(cli: Cli, shm_dir: Path, page: bytes) -> None:
    """After a power cut it may hold anything."""
    path = make(shm_dir / "log")
    overwrite(path, LIVE_OFFSET, page)
    overwrite(path, LIVE_WRITER_OFFSET, page)
    ran = cli("stat", path)
    assert (ran.status, ran.err) == (0, "")
    assert "the live page is not valid; see pmwal info" in ran.text
    assert cli("stat", "--json", path).json["bounds"] is None


def test_stat_of_another_file_is_status_3(cli: Cli, shm_dir: Path) -> None:
    """As every command that opens a log."""
    (shm_dir / "foreign").write_bytes(bytes(10000))
    assert cli("stat", shm_dir / "foreign").status == 3


def test_watch_on_a_pipe_is_a_line_each_time(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text or an object; Ctrl-C is status 130."""
    path = shm_dir / "log"
    with open_small(path) as wal:
        for arguments in ((), ("--json",)):
            between_looks(monkeypatch, *[lambda: wal.append(b"x")] * 3)
            ran = cli("stat", path, "--watch", *arguments)
            assert (ran.status, ran.err, len(ran.lines)) == (130, "", 3)
            if arguments:
                assert [json.loads(line)["bounds"]["last_seq"] for line in ran.lines] == [4, 5, 6]
            else:
                assert all("records/s" in line for line in ran.lines)


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_watch_on_a_terminal_stays_in_place(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    """The first page is drawn at once; each other one goes up as many lines as the last one had. A dumb one gets lines."""
    path = shm_dir / "log"
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "40")
    with open_small(path) as wal:
        between_looks(monkeypatch, *[lambda: wal.append(b"x")] * 2)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        ran = cli("stat", path, "--watch")
    assert ran.status == 130
    if term == "dumb":
        assert (ran.out.count(b"\x1b"), len(ran.lines)) == (0, 2)
        return
    first, second, third = ran.text.split("\x1b[J")
    assert first.endswith("\x1b[6F")
    assert second.endswith("\x1b[8F")
    assert [page.count("\n") for page in (first, second, third)] == [6, 8, 8]
    assert max(map(len, third.splitlines())) <= 39
