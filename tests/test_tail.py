"""``pmwal tail`` and ``pmwal stat``: what is new in a log, and what its writer is doing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from commands import Cli, Ran
from pmwal import events
from pmwal.cli.commands import tail
from pmwal.storage.seam import SYSTEM
from support import BarrierRecorder, kill, open_small

Start = Callable[..., subprocess.Popen[bytes]]


def make(path: Path, count: int = 20) -> Path:
    """A closed log of this many lines."""
    with open_small(path) as wal:
        wal.extend(b"line %d" % number for number in range(1, count + 1))
    return path


def append(path: Path, *lines: bytes) -> None:
    """Append further records."""
    with open_small(path) as wal:
        wal.extend(lines)


def another_log(path: Path) -> pmwal.Wal:
    """A new log with a uuid of its own."""
    return open_small(path, seam=BarrierRecorder(uuid=b"another log's id"))


def numbers(ran: Ran) -> list[int]:
    """The numbers of the records printed as text."""
    return [int(line.split()[0]) for line in ran.lines]


def hear(process: subprocess.Popen[bytes]) -> bytes:
    """The next line of the process's output."""
    assert process.stdout is not None
    return process.stdout.readline()


def complaints(process: subprocess.Popen[bytes]) -> str:
    """All of the process's standard error, until it ends."""
    assert process.stderr is not None
    return process.stderr.read().decode()


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
    """Without ``-n`` the last ten are printed, as by tail(1) and journalctl."""
    ran = cli("tail", make(shm_dir / "log"), *arguments)
    assert (ran.status, ran.err, numbers(ran)) == (0, "", list(expected))


@pytest.mark.parametrize("form", [(), ("-o", "json"), ("--json",), ("-o", "hex"), ("-o", "raw"), ("--length-prefixed",)])
def test_tail_has_the_forms_of_cat(cli: Cli, shm_dir: Path, form: tuple[str, ...]) -> None:
    """``tail`` prints the same bytes as ``cat`` in every format."""
    path = make(shm_dir / "log")
    assert cli("tail", path, "-n", 3, *form).out == cli("cat", path, "-n", 3, *form).out


def test_each_run_resumes_where_the_last_one_stopped(cli: Cli, shm_dir: Path) -> None:
    """Each run prints exactly what is new; ``-n`` limits it; records that do not match are not printed later."""
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
    """An empty cursor file is treated as missing."""
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
def test_cursor_whose_record_is_gone_is_reported_and_the_oldest_printed(
    cli: Cli, shm_dir: Path, change: Callable[[pmwal.Wal], Any], words: str, expected: list[int] | None
) -> None:
    """The status is 1 with a line on standard error, and the next run is normal again."""
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


def test_file_without_a_cursor_is_named_and_left_alone(cli: Cli, shm_dir: Path) -> None:
    """The file may belong to something else."""
    path, cursor = make(shm_dir / "log"), shm_dir / "notes"
    cursor.write_text("my notes\n")
    ran = cli("tail", path, "--cursor-file", cursor)
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err.startswith(f"pmwal: {cursor}: 'my notes' is no cursor; a cursor is")
    assert cursor.read_text() == "my notes\n"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/urandom"])
def test_device_without_an_end_is_no_cursor_file(cli: Cli, shm_dir: Path, device: str) -> None:
    """It is not read until the memory is full."""
    ran = cli("tail", make(shm_dir / "log"), "--cursor-file", device)
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err.startswith(f"pmwal: {device}: ")


@pytest.mark.parametrize("step", ["write", "sync_file", "replace"])
def test_cursor_file_is_replaced_whole_or_not_at_all(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """If a step fails the old cursor stays and no temporary file is left; a symbolic link is followed, not replaced."""
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


def test_cursor_is_saved_only_after_the_output_has_everything(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that could not be printed are printed by the next run."""
    path, cursor = make(shm_dir / "log"), shm_dir / "cursor"
    cli("tail", path, "--cursor-file", cursor)
    append(path, b"x", b"y")
    with monkeypatch.context() as patch:
        patch.setattr(tail, "print_records", lambda records, form: (list(records), os.kill(os.getpid(), signal.SIGINT)))
        assert cli("tail", path, "--cursor-file", cursor).status == 130
    assert numbers(cli("tail", path, "--cursor-file", cursor)) == [21, 22]


def test_follow_continues_across_closes_and_kills_until_interrupted(shm_dir: Path, started: Start) -> None:
    """``-f`` follows across writers; SIGINT has status 130, no message, and saves the cursor."""
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
        wal.append(b"fifth")
        assert hear(process) == b"fifth\n"
        # The signal may arrive after the last record was printed and before it is noted, so that the next run repeats it.
        expected = {wal[wal.next_seq - 2].cursor + "\n", wal[wal.next_seq - 1].cursor + "\n"}
    process.send_signal(signal.SIGINT)
    assert (complaints(process), process.wait()) == ("", 130)
    assert cursor.read_text() in expected


def test_follow_formats_events_even_of_the_log_that_took_the_name(shm_dir: Path, started: Start) -> None:
    """Each log's events use that log's definitions; ``--grep`` searches the text."""
    path, other = shm_dir / "log", shm_dir / "other"
    with open_small(path) as wal:
        events.Logger(wal).event("order {id} filled")(7)
        process = started("tail", "-f", "-g", "(filled|left)$", path)
        assert hear(process).endswith(b"order 7 filled\n")
    with another_log(other) as wal:
        events.Logger(wal).event("user {name} left")("ada")
    other.rename(path)
    assert hear(process).endswith(b"user ada left\n")
    process.send_signal(signal.SIGINT)
    assert "another log has this name now" in complaints(process)


def test_follow_reports_what_a_faster_writer_overwrote(shm_dir: Path, started: Start) -> None:
    """The gap is reported, and printing continues with the oldest record."""
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


def test_follow_continues_after_a_rollback(shm_dir: Path, started: Start) -> None:
    """Printing continues with the first new record, not with the whole log."""
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
    """A log that takes the name is followed, as by ``tail -F``, and this is reported."""
    path, other = make(shm_dir / "log"), shm_dir / "other"
    process = started("tail", "-f", "-n", 1, "-o", "raw", path)
    assert hear(process) == b"line 20\n"
    time.sleep(0.001)
    with another_log(other) as wal:
        wal.extend([b"new 1", b"new 2"])
    os.replace(other, path)
    assert [hear(process) for _ in range(2)] == [b"new 1\n", b"new 2\n"]
    process.send_signal(signal.SIGINT)
    assert complaints(process) == f"pmwal: {path}: another log has this name now; continuing with its record 1\n"


@pytest.mark.parametrize("again", ["replaced", "written over"])
def test_follow_of_a_truncated_file_waits_for_the_next_log(shm_dir: Path, started: Start, again: str) -> None:
    """The message has the path. A log that then has the name, in a new file or in this one, is followed."""
    path, other = make(shm_dir / "log"), shm_dir / "other"
    process = started("tail", "-f", "-n", 1, "-o", "raw", path)
    assert hear(process) == b"line 20\n"
    os.truncate(path, 0)
    assert process.stderr is not None
    said = process.stderr.readline().decode()
    assert said.startswith(f"pmwal: {path}: the file was shortened to 0 bytes")
    assert said.endswith("; waiting for another log with this name\n")
    with another_log(other) as wal:
        wal.extend([b"new 1", b"new 2"])
    if again == "replaced":
        os.replace(other, path)
    else:
        shutil.copyfile(other, path)
    assert [hear(process) for _ in range(2)] == [b"new 1\n", b"new 2\n"]
    process.send_signal(signal.SIGINT)
    assert complaints(process) == f"pmwal: {path}: another log has this name now; continuing with its record 1\n"
    assert process.wait() == 130


def test_follow_of_an_empty_log_that_took_the_name_waits_for_its_first_record(shm_dir: Path, started: Start) -> None:
    """What was printed of the log before is not looked for in the new one."""
    path, other, cursor = make(shm_dir / "log"), shm_dir / "other", shm_dir / "cursor"
    process = started("tail", "-f", "-n", 1, "-o", "raw", "--cursor-file", cursor, path)
    assert hear(process) == b"line 20\n"
    another_log(other).close()
    os.replace(other, path)
    append(path, b"first")
    assert hear(process) == b"first\n"
    process.send_signal(signal.SIGINT)
    assert complaints(process) == f"pmwal: {path}: another log has this name now; continuing with its record 1\n"


def test_follow_of_a_copy_that_took_the_name_continues_after_the_last_record(shm_dir: Path, started: Start) -> None:
    """A repaired or restored log has the same records: none is printed again, and the next one is not left out."""
    path, other = make(shm_dir / "log"), shm_dir / "other"
    process = started("tail", "-f", "-n", 1, "-o", "raw", path)
    assert hear(process) == b"line 20\n"
    shutil.copyfile(path, other)
    append(other, b"line 21")
    os.replace(other, path)
    assert hear(process) == b"line 21\n"
    process.send_signal(signal.SIGINT)
    assert complaints(process) == ""


def test_idle_follow_ends_when_its_output_is_closed(shm_dir: Path, started: Start) -> None:
    """Without any new record a closed output ends the command silently."""
    process = started("tail", "-f", "-n", 1, make(shm_dir / "log"))
    assert hear(process).endswith(b"line 20\n")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(20) == 141
    assert complaints(process) == ""
