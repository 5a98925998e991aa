"""``pmwal cat`` and ``pmwal tail`` of several logs: which logs are meant, what is printed of them, and what is reported."""

from __future__ import annotations

import json
import logging
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from commands import Cli, PastSeam, Ran, damage_record, make_foreign, make_torn
from pmwal import events
from pmwal.cli.places import ShortNames
from pmwal.cli.reading import spans
from support import few_descriptors, kill, open_small

Start = Callable[..., subprocess.Popen[bytes]]
SECOND = 10**9


def make_log(path: Path, *stamps: int, kinds: tuple[int, ...] = (0,), **options: Any) -> Path:
    """A closed log with a record for each stamp, in seconds after a fixed time; its payload is "NAME STAMP"."""
    seam = PastSeam(uuid=path.name.encode().ljust(16, b"-")[:16])
    start = seam.time_ns
    with open_small(path, seam=seam, **options) as wal:
        for number, stamp in enumerate(stamps):
            seam.time_ns = start + stamp * SECOND
            wal.append(f"{path.name} {stamp}".encode(), kind=kinds[number % len(kinds)])
    return path


@pytest.fixture
def logs(shm_dir: Path) -> Path:
    """A directory of three logs, whose records are seconds apart."""
    directory = shm_dir / "logs"
    directory.mkdir()
    make_log(directory / "00.wal", 1, 4, 7, 10, kinds=(logging.INFO, logging.ERROR))
    make_log(directory / "01.wal", 2, 5, 8)
    make_log(directory / "02.wal", 3, 6, 9, kinds=(logging.WARNING, 7))
    return directory


def stamps(ran: Ran) -> list[int]:
    """The stamps of the records that were printed, from their payloads."""
    return [int(line.split()[-1]) for line in ran.lines]


def at(stamp: int) -> str:
    """A time as an option takes it."""
    return f"@{PastSeam().time_ns // SECOND + stamp}"


def hear(process: subprocess.Popen[bytes]) -> bytes:
    """The next line of the process's output."""
    assert process.stdout is not None
    return process.stdout.readline()


def complaint(process: subprocess.Popen[bytes]) -> str:
    """The next line of the process's standard error."""
    assert process.stderr is not None
    return process.stderr.readline().decode()


# -- what is printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), range(1, 11)),
        (("-n", 3), (8, 9, 10)),
        (("-n", 0), ()),
        (("-n", 99), range(1, 11)),
        (("-r",), range(10, 0, -1)),
        (("-r", "-n", 4), (10, 9, 8, 7)),
        (("--since", at(4), "--until", at(8)), range(4, 9)),
        (("--since", at(4), "--until", at(8), "-r", "-n", 2), (8, 7)),
        (("--since", at(4), "--exact"), range(4, 11)),
        (("--since", at(11)), ()),
        (("--level", "info"), (1, 3, 4, 7, 9, 10)),
        (("-p", "warning", "-n", 2), (9, 10)),
        (("-p", "info..warning"), (1, 3, 7, 9)),
        (("-p", "3"), (4, 10)),
        (("--kind", 7), (6,)),
        (("--kind", 7, "--kind", "20..29"), (1, 6, 7)),
        (("--kind", "0..39", "-p", "info"), (1, 3, 7, 9)),
        (("-g", "01.wal"), (2, 5, 8)),
        (("-g", "01.wal", "-r", "-n", 1), (8,)),
        (("-g", "0[12].wal", "--since", at(6), "--kind", 0), (8,)),
    ],
)
@pytest.mark.parametrize("place", ["directory", "pattern", "files"])
def test_cat_of_several_is_one_log(cli: Cli, logs: Path, place: str, arguments: tuple[Any, ...], expected: Any) -> None:
    """Records of all logs are merged by time, and every option that selects works over all of them."""
    named = {"directory": [logs], "pattern": [logs / "0?.wal"], "files": sorted(logs.iterdir())}[place]
    ran = cli("cat", *named, *arguments)
    assert (ran.status, ran.err, stamps(ran)) == (0, "", list(expected))


@pytest.mark.parametrize("command", ["cat", "tail", "logs"])
def test_options_may_stand_between_paths(cli: Cli, logs: Path, command: str) -> None:
    """``cat a.wal -n 2 b.wal`` names two logs; what looks like an option is still wrong usage."""
    ran = cli(command, logs / "00.wal", "-n", 2, logs / "01.wal")
    assert (ran.status, stamps(ran)) == (0, [8, 10])
    assert cli(command, logs / "00.wal", "-n", 2, logs / "01.wal", "--what").status == 64


@pytest.mark.parametrize("command", [("stat", "--json"), ("info", "--json"), ("verify", "--json"), ("export", "--format", "jsonl")])
def test_paths_may_follow_options_of_commands_for_all_records(cli: Cli, logs: Path, command: tuple[str, ...]) -> None:
    """The same of commands that have no number of lines."""
    name, *options = command
    ran = cli(name, logs / "00.wal", *options, logs / "01.wal")
    assert (ran.status, ran.err) == (0, "")
    assert len(ran.lines) == {"export": 7}.get(name, 2)


@pytest.mark.both_engines
def test_newest_first_is_the_reverse_of_oldest_first(cli: Cli, shm_dir: Path) -> None:
    """Over many pieces of each log the whole is reversed exactly."""
    count = 3 * spans.PIECE
    for number in range(3):
        make_log(shm_dir / f"{number}.wal", *range(number, 3 * count, 3), size="64KiB")
    lines = cli("cat", shm_dir).lines
    assert len(lines) == 3 * count
    assert cli("cat", "-r", shm_dir).lines == lines[::-1]
    assert cli("cat", "-n", 200, shm_dir).lines == lines[-200:]


@pytest.mark.both_engines
@pytest.mark.parametrize("command", [("cat", "-o", "json"), ("logs", "-o", "json")], ids=str)
def test_records_of_one_time_have_one_order_from_either_end(cli: Cli, shm_dir: Path, command: tuple[str, ...]) -> None:
    """That of the logs' paths, over many pieces of each, and of a stamp of the future too; however the logs are named."""
    rng = random.Random(7)
    for name in ("b", "a", "c"):
        times = [*sorted(rng.choices([1, 2, 3], k=3 * spans.PIECE)), *[1 << 31] * 2 * spans.PIECE]
        make_log(shm_dir / f"{name}.wal", *times, size="64KiB")
    printed = [json.loads(line) for line in cli(*command, shm_dir).lines]
    keys = [(min(record["time_ns"], time.time_ns()) // SECOND, record["log"], record["seq"]) for record in printed]
    assert len(keys) == 15 * spans.PIECE
    assert [key[1:] for key in keys] == [key[1:] for key in sorted(keys)]
    assert [json.loads(line) for line in cli(*command, "-r", shm_dir).lines] == printed[::-1]
    assert [json.loads(line) for line in cli(*command, "-n", 300, shm_dir).lines] == printed[-300:]
    named = cli(*command, shm_dir / "c.wal", shm_dir / "b.wal", shm_dir / "a.wal")
    assert [json.loads(line) for line in named.lines] == printed


def test_text_has_the_name_of_the_log_and_the_level(cli: Cli, logs: Path) -> None:
    """A level is shown for the kinds that ``logging`` names; no other kind is shown."""
    lines = cli("cat", logs).lines
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d"
    for line, expected in zip(
        lines,
        ("00  1  TIME  INFO  00.wal 1", "01  1  TIME  01.wal 2", "02  1  TIME  WARNING  02.wal 3", "00  2  TIME  ERROR  00.wal 4"),
        strict=False,
    ):
        assert re.sub(time, "TIME", line) == expected
    assert re.fullmatch(rf"02  2  {time}  02.wal 6", lines[5])  # its kind is 7


def test_one_log_is_printed_without_a_name(cli: Cli, logs: Path) -> None:
    """A file alone begins with the number as ever; the same file in a directory has a name, however many there are."""
    single = cli("cat", logs / "00.wal").lines
    (logs / "01.wal").unlink()
    (logs / "02.wal").unlink()
    assert cli("cat", logs).lines == [f"00  {line}" for line in single]
    assert cli("cat", logs / "*.wal").lines == [f"00  {line}" for line in single]
    assert "log" not in json.loads(cli("cat", "--json", logs / "00.wal").lines[0])
    assert json.loads(cli("cat", "--json", logs).lines[0])["log"] == str(logs / "00.wal")


@pytest.mark.parametrize("form", ["raw", "length-prefixed"])
def test_payloads_of_several_are_as_exact_as_those_of_one(cli: Cli, logs: Path, shm_dir: Path, form: str) -> None:
    """What ``cat`` prints raw, ``write`` stores: no name of a log is in it."""
    out = cli("cat", *(("-o", "raw") if form == "raw" else ("--length-prefixed",)), logs).out
    cli("write", shm_dir / "copy", *(() if form == "raw" else ("--length-prefixed",)), "--size", "64KiB", stdin=out)
    with pmwal.LogSet(logs) as merged, pmwal.open(shm_dir / "copy", "r") as copy:
        assert [record.data for record in copy] == [record.data for record in merged]


def test_hex_names_the_log_in_the_heading(cli: Cli, logs: Path) -> None:
    """The dump itself is as wide as ever."""
    heading, dump = cli("cat", "-o", "hex", "-n", 1, logs).lines
    assert re.fullmatch(r"00  4  \S+  kind 40  9 bytes", heading)
    assert dump.startswith("  00000000  30 30")


def test_events_of_each_log_are_explained_by_their_own_definitions(cli: Cli, shm_dir: Path) -> None:
    """Text, level and pattern are those of the event, whichever log it is in."""
    for name, level in (("a", 30), ("b", 40)):
        with open_small(shm_dir / f"{name}.wal", seam=PastSeam(uuid=name.encode() * 16)) as wal:
            events.Logger(wal, name=name).event(f"{name} {{}}", level=level)(17)
            wal.append(b"plain", kind=20)
    assert [line.split("  ", 3)[3] for line in cli("cat", "-g", " 17", shm_dir).lines] == [
        "WARNING  a: a 17",
        "ERROR  b: b 17",
    ]
    assert [line.split("  ")[0] for line in cli("cat", "-p", "error", shm_dir).lines] == ["b"]
    assert [line.split("  ")[0] for line in cli("tail", "-p", "warning", "-n", 1, shm_dir).lines] == ["b"]
    assert cli("cat", "-p", "warning", shm_dir / "a.wal").lines[0].endswith("  WARNING  a: a 17")


def test_names_are_short_and_never_the_same(shm_dir: Path) -> None:
    """As many parts of the paths are shown as tell the logs apart; a new log never takes a name that was given."""
    names = ShortNames(["/a/x/00.wal", "/a/x/01.wal"])
    assert [names["/a/x/00.wal"], names["/a/x/01.wal"], names["/b/00.wal"]] == ["00", "01", "b/00"]
    assert names["/a/x/00.wal"] == "00"
    two = ShortNames(["/a/x/00.wal", "/b/x/00.wal", "/b/x/01.wal"])
    assert [two["/a/x/00.wal"], two["/b/x/00.wal"], two["/b/x/01.wal"]] == ["a/x/00", "b/x/00", "b/x/01"]
    alike = ShortNames(["/a/log.wal", "/a/log"])
    assert {alike["/a/log.wal"], alike["/a/log"]} == {"/a/log.wal", "/a/log"}


def test_name_of_a_log_sends_nothing_to_the_terminal(cli: Cli, shm_dir: Path) -> None:
    """Control characters in names are escaped like those in payloads."""
    make_log(shm_dir / "\x1b[31m\n.wal", 1)
    (line,) = cli("cat", shm_dir).lines
    assert line.startswith("\\x1b[31m\\x0a  1  ")


# -- what is wrong


@pytest.mark.parametrize("option", [("--from", 2), ("--to", 2), ("--salvage",)])
def test_options_of_one_log_are_wrong_usage_for_several(cli: Cli, logs: Path, option: tuple[Any, ...]) -> None:
    """Numbers mean something within a log only."""
    ran = cli("cat", logs, *option)
    assert (ran.status, ran.out) == (64, b"")
    assert "name one file" in ran.err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--kind", "x"), "'x' is no kind: use a number from 0 to 65535, or FROM..TO"),
        (("--kind", "9..2"), "'9..2' is no kind"),
        (("--kind", "65536"), "'65536' is no kind"),
        (("--level", "loud"), "'loud' is no level: use debug, info"),
        (("-g", "("), "is not a regular expression"),
    ],
)
@pytest.mark.parametrize("command", ["cat", "tail"])
def test_wrong_selection_is_wrong_usage(cli: Cli, logs: Path, command: str, option: tuple[str, ...], words: str) -> None:
    """The message says what can be given."""
    ran = cli(command, logs, *option)
    assert (ran.status, ran.out) == (64, b"")
    assert words in ran.err


@pytest.mark.parametrize("command", ["cat", "tail", "logs", "export"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", "no log (*.wal) is in this directory"),
        ("*.log", "no log matches this pattern"),
        ("missing.wal", "No such file or directory"),
    ],
)
def test_place_without_logs_is_named(cli: Cli, shm_dir: Path, command: str, name: str, words: str) -> None:
    """The status is 3; the logs of other places are printed."""
    (shm_dir / "empty").mkdir()
    log = make_log(shm_dir / "a.wal", 1)
    place = shm_dir / name
    ran = cli(command, place)
    assert (ran.status, ran.out, ran.err) == (3, b"", f"pmwal: {place}: {words}\n")
    ran = cli(command, place, log)
    assert (ran.status, ran.err, ran.text.count("a.wal 1")) == (3, f"pmwal: {place}: {words}\n", 1)
    ran = cli(command, shm_dir / "gone.wal", place)
    assert (ran.status, ran.out, ran.err.count("\n")) == (3, b"", 2)
    assert f"pmwal: {place}: {words}\n" in ran.err


@pytest.mark.parametrize("command", ["cat", "tail", "logs", "export"])
def test_more_logs_than_descriptors_have_one_message(cli: Cli, shm_dir: Path, command: str) -> None:
    """What can be opened is shown, the status is 3, and the message says what to do."""
    for number in range(40):
        make_log(shm_dir / f"{number:02d}.wal", number)
    with few_descriptors(40):
        ran = cli(command, shm_dir)
    assert ran.status == 3
    assert re.fullmatch(rf"pmwal: warning: \d+ of 40 logs are left out, {shm_dir}/\d\d.wal the first: .* ulimit -n\n", ran.err)
    assert len(ran.lines) == (10 if command == "tail" else 40 - int(ran.err.split()[2]))


@pytest.mark.parametrize("command", ["cat", "tail"])
@pytest.mark.parametrize(
    ("spoil", "status", "words"),
    [
        (lambda path: damage_record(path, 2), 2, "01.wal: "),
        (make_foreign, 3, "01.wal: not a pmwal log"),
        (lambda path: path.write_bytes((path.parent / "00.wal").read_bytes()), 1, "01.wal is a copy of"),
    ],
    ids=["damaged", "foreign", "copy"],
)
@pytest.mark.parametrize("options", [(), ("-n", 10)])
def test_log_that_cannot_be_read_leaves_the_others(
    cli: Cli, logs: Path, command: str, spoil: Callable[[Path], Any], status: int, words: str, options: tuple[Any, ...]
) -> None:
    """It is named on standard error, and the status is that of it alone."""
    spoil(logs / "01.wal")
    ran = cli(command, logs, *options)
    assert ran.status == status
    assert words in ran.err
    assert [stamp for stamp in stamps(ran) if stamp not in (2, 5, 8)] == [1, 3, 4, 6, 7, 9, 10]


def test_torn_end_of_each_log_is_reported(cli: Cli, shm_dir: Path) -> None:
    """A torn tail among several is a note with the path, as for one."""
    make_torn(shm_dir / "a.wal")
    make_log(shm_dir / "b.wal", 1)
    ran = cli("cat", shm_dir)
    assert (ran.status, len(ran.lines)) == (0, 10)
    assert ran.err.startswith(f"pmwal: {shm_dir / 'a.wal'}: 1 unfinished record (56 B) dropped from number 10 on")


def test_closed_output_ends_cat_of_several_silently(logs: Path, started: Start) -> None:
    """``pmwal cat DIR | head -1`` ends with the status of a broken pipe."""
    make_log(logs / "03.wal", *range(2000), size="1MiB")
    process = started("cat", logs)
    assert process.stdout is not None
    assert process.stdout.readline().endswith(b"03.wal 0\n")
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait()) == (b"", 141)


# -- tail


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), range(1, 11)),
        (("-n", 3), (8, 9, 10)),
        (("-n", 0), ()),
        (("-g", "01.wal"), (2, 5, 8)),
        (("--kind", 7), (6,)),
        (("-p", "error"), (4, 10)),
        (("-p", "error", "-n", 1), (10,)),
    ],
)
def test_tail_of_several_shows_the_newest_of_all(cli: Cli, logs: Path, arguments: tuple[Any, ...], expected: Any) -> None:
    """The newest of all logs together, oldest first."""
    ran = cli("tail", logs, *arguments)
    assert (ran.status, ran.err, stamps(ran)) == (0, "", list(expected))


def test_tail_of_one_log_selects_by_kind_and_level(cli: Cli, logs: Path) -> None:
    """The last that match are shown, and the cursor is after those that do not."""
    path, cursor = logs / "00.wal", logs / "cursor"
    assert stamps(cli("tail", path, "-p", "error", "--cursor-file", cursor)) == [4, 10]
    assert stamps(cli("tail", path, "--kind", 20)) == [1, 7]
    assert stamps(cli("tail", path, "-p", "info..info", "--cursor-file", logs / "other")) == [1, 7]
    with pmwal.open(path, "r") as reader:
        assert (logs / "other").read_text() == cursor.read_text() == reader[4].cursor + "\n"
    assert cli("tail", path, "--cursor-file", cursor) == Ran(0, b"", "")


def test_each_run_resumes_where_the_last_one_stopped(cli: Cli, logs: Path, shm_dir: Path) -> None:
    """The cursor is one of all logs: nothing is printed twice or left out, of logs that are new either."""
    cursor = shm_dir / "cursor"
    assert stamps(cli("tail", logs, "-n", 2, "--cursor-file", cursor)) == [9, 10]
    assert cli("tail", logs, "--cursor-file", cursor) == Ran(0, b"", "")
    make_log(logs / "03.wal", 11, 12)
    make_log(logs / "01.wal", 13)
    for arguments, expected in ((("-g", "12"), [12]), ((), [])):
        ran = cli("tail", logs, "--cursor-file", cursor, *arguments)
        assert (ran.status, ran.err, stamps(ran)) == (0, "", expected)
    make_log(logs / "00.wal", 14, 15, 16)
    assert stamps(cli("tail", logs, "--cursor-file", cursor, "-n", 2)) == [15, 16]
    assert cli("tail", logs, "--cursor-file", cursor) == Ran(0, b"", "")
    assert len(json.loads(cursor.read_text())) == 4


@pytest.mark.parametrize(
    ("change", "words", "again"),
    [
        (lambda wal: wal.truncate(before=5), "record 4 is gone: the log now begins at 5", [11, 12]),
        (lambda wal: wal.rollback(after=1), "there is no record 3, which the cursor names", [2]),
    ],
    ids=["truncated", "rolled back"],
)
def test_cursor_whose_record_is_gone_is_reported(
    cli: Cli, logs: Path, shm_dir: Path, change: Callable[[pmwal.Wal], Any], words: str, again: list[int]
) -> None:
    """That log is read from its oldest record, the others from where they were; the status is 1."""
    cursor = shm_dir / "cursor"
    cli("tail", logs, "--cursor-file", cursor)
    make_log(logs / "01.wal", 10, 11, 12)
    with open_small(logs / "01.wal", seam=PastSeam()) as wal:
        change(wal)
    ran = cli("tail", logs, "--cursor-file", cursor)
    assert (ran.status, stamps(ran)) == (1, again)
    assert f"{logs / '01.wal'}: {words}" in ran.err
    assert cli("tail", logs, "--cursor-file", cursor) == Ran(0, b"", "")


@pytest.mark.parametrize("text", ["17-0badcafe\n", "[]", '{"a": 1}', '{"a": "x"}', "my notes"])
def test_file_without_cursors_is_named_and_left_alone(cli: Cli, logs: Path, shm_dir: Path, text: str) -> None:
    """A cursor of one log is none of several, nor the other way round."""
    notes = shm_dir / "notes"
    notes.write_text(text)
    ran = cli("tail", logs, "--cursor-file", notes)
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err.startswith(f"pmwal: {notes}: ")
    assert notes.read_text() == text
    cli("tail", logs, "--cursor-file", shm_dir / "cursor")
    ran = cli("tail", logs / "00.wal", "--cursor-file", shm_dir / "cursor")
    assert (ran.status, ran.out) == (1, b"")
    assert "is no cursor" in ran.err


def test_follow_of_a_directory_prints_new_logs_and_saves_one_cursor(logs: Path, shm_dir: Path, started: Start) -> None:
    """Logs that appear are followed, a killed writer's records come, and SIGINT saves what was printed."""
    cursor = shm_dir / "cursor"
    process = started("tail", "-f", "-n", 1, "-o", "raw", "--cursor-file", cursor, logs)
    assert hear(process) == b"00.wal 10\n"
    with open_small(logs / "01.wal", seam=PastSeam()) as wal:
        wal.append(b"of a known log")
        assert hear(process) == b"of a known log\n"
    wal = open_small(logs / "03.wal", seam=PastSeam(uuid=b"3" * 16))
    wal.append(b"of a new log")
    assert hear(process) == b"of a new log\n"
    wal.append(b"and its last")
    kill(wal)
    assert hear(process) == b"and its last\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait()) == (b"", 130)
    saved = json.loads(cursor.read_text())
    assert len(saved) == 4
    with pmwal.open(logs / "03.wal", "r") as reader:
        # The signal may arrive after the last record was printed and before it is noted, so that the next run repeats it.
        assert saved[reader.uuid] in (reader[1].cursor, reader[2].cursor)


@pytest.mark.parametrize("command", ["tail", "logs"])
@pytest.mark.parametrize("place", ["later", "later/*.wal"])
def test_follow_waits_for_the_first_log(shm_dir: Path, started: Start, command: str, place: str) -> None:
    """A directory or pattern without logs is no error with ``-f``: a server may start later."""
    (shm_dir / "later").mkdir()
    process = started(command, "-f", shm_dir / place)
    assert complaint(process).endswith(" yet; waiting for one\n")
    make_log(shm_dir / "later" / "00.wal", 1)
    assert hear(process).endswith(b"00.wal 1\n")


def test_follow_of_several_selects_and_names(logs: Path, started: Start) -> None:
    """``-f`` prints what matches only, each line with its log."""
    process = started("tail", "-f", "-n", 1, "-p", "warning", "-g", "kept|10", logs)
    assert re.fullmatch(rb"00  4  \S+  ERROR  00.wal 10\n", hear(process))
    with open_small(logs / "01.wal", seam=PastSeam()) as wal:
        wal.append(b"kept, but its kind is too low", kind=20)
        wal.append(b"no match", kind=50)
        wal.append(b"kept", kind=40)
        assert re.fullmatch(rb"01  6  \S+  ERROR  kept\n", hear(process))


def test_idle_follow_of_several_ends_when_its_output_is_closed(logs: Path, started: Start) -> None:
    """Without any new record a closed output ends the command silently."""
    process = started("tail", "-f", "-n", 1, logs)
    assert hear(process).endswith(b"00.wal 10\n")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_records_overwritten_before_they_are_printed_are_counted(cli: Cli, logs: Path, shm_dir: Path) -> None:
    """Records that a ring has overwritten since the last run are reported, and the status is 1."""
    cursor = shm_dir / "cursor"
    cli("tail", logs, "--cursor-file", cursor)
    with open_small(logs / "01.wal", seam=PastSeam(), on_full="overwrite") as wal:
        for _ in range(8):
            wal.append(bytes(4000))
    ran = cli("tail", logs, "--cursor-file", cursor, "-o", "raw")
    with pmwal.open(logs / "01.wal", "r") as reader:
        assert (ran.status, ran.out.count(b"\n")) == (1, len(reader))
        assert f"01.wal: record 4 is gone: the log now begins at {reader.first_seq}" in ran.err
    assert cli("tail", logs, "--cursor-file", cursor) == Ran(0, b"", "")
