"""``pmwal logs -f``: new entries of a log or a set, through closes, kills, rotation and removal."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer

import pytest

import pmwal
from commands import Cli, damage_record, make_log
from processes import PATIENCE
from support import BarrierRecorder, kill, open_small

Start = Callable[..., subprocess.Popen[bytes]]


def opened(path: Path) -> pmwal.Wal:
    """A log with a uuid of its own."""
    return open_small(path, seam=BarrierRecorder(uuid=os.urandom(16)))


def append(path: Path, *lines: bytes, kind: int = 20) -> Path:
    """Append records."""
    with opened(path) as wal:
        wal.extend(lines, kind=kind)
    return path


def hear(process: subprocess.Popen[bytes]) -> str:
    """The next line of the output."""
    assert process.stdout is not None
    watchdog = Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        return process.stdout.readline().decode().removesuffix("\n")
    finally:
        watchdog.cancel()


def end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Interrupt it; its status and what it said."""
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    return process.wait(), said


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ((), 10),
        (("-n", "2"), 2),
        (("-n", "all"), 20),
        (("--no-tail",), 20),
        (("-e",), 20),
        (("-g", "line 1"), 10),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_the_last_entries_come_first_and_then_each_new_one(
    shm_dir: Path, started: Start, options: tuple[str, ...], first: int, several: bool
) -> None:
    """Ten unless another number was asked for, as journalctl does; a pattern holds for both."""
    path = append(shm_dir / "a.wal", *(b"line %d" % number for number in range(1, 21)))
    process = started("logs", "-f", "-o", "cat", *options, shm_dir if several else path)
    expected = [f"line {number}" for number in range(1, 21) if "-g" not in options or "line 1" in f"line {number}"]
    assert [hear(process) for _ in range(first)] == expected[len(expected) - first :]
    append(path, b"other", b"line 1 more")
    heard = hear(process)
    while heard != "line 1 more":
        assert heard in ("other", "begun", *expected)
        heard = hear(process)
    assert end(process) == (130, "")


def test_none_of_the_old_ones_is_shown_if_none_is_asked_for(shm_dir: Path, started: Start) -> None:
    """``-n 0``: only what comes after the beginning."""
    path = append(shm_dir / "a.wal", b"old")
    process = started("logs", "-f", "-n", "0", "-o", "cat", path)
    assert process.stdout is not None
    while not select.select([process.stdout], [], [], 0.1)[0]:
        append(path, b"new")
    assert hear(process) == "new"
    assert end(process) == (130, "")


def test_it_continues_across_closes_and_kills_and_saves_the_cursor(cli: Cli, shm_dir: Path, started: Start) -> None:
    """The next run continues after the last entry that was shown."""
    path, cursor = append(shm_dir / "a.wal", b"first"), shm_dir / "cursor"
    process = started("logs", "-f", "-o", "cat", "--cursor-file", cursor, path)
    assert hear(process) == "first"
    wal = open_small(path)
    wal.append(b"second")
    assert hear(process) == "second"
    kill(wal)
    append(path, b"third")
    assert hear(process) == "third"
    append(path, b"fourth")
    assert hear(process) == "fourth"
    assert end(process) == (130, "")
    append(path, b"fifth")
    # The signal may arrive after the last entry was written and before that is noted; then the next run repeats it.
    assert cli("logs", "-o", "cat", "--cursor-file", cursor, path).lines in (["fifth"], ["fourth", "fifth"])


def test_logs_that_appear_disappear_and_are_renamed(shm_dir: Path, started: Start) -> None:
    """The others continue, and nothing is shown twice or left out."""
    append(shm_dir / "a.wal", b"a 1")
    append(shm_dir / "b.wal", b"b 1")
    process = started("logs", "-f", "-o", "cat", "-p", "info", shm_dir)
    assert [hear(process), hear(process)] == ["a 1", "b 1"]
    append(shm_dir / "c.wal", b"c 1")
    assert hear(process) == "c 1"
    (shm_dir / "a.wal").unlink()
    append(shm_dir / "c.wal", b"c 2")
    assert hear(process) == "c 2"
    os.rename(shm_dir / "b.wal", shm_dir / "d.wal")
    append(shm_dir / "d.wal", b"b 2")
    assert hear(process) == "b 2"
    append(shm_dir / "a.wal", b"a anew")
    assert hear(process) == "a anew"
    assert end(process) == (130, "")


def test_a_log_that_takes_the_name_is_followed(shm_dir: Path, started: Start) -> None:
    """As when the log is rotated: what the old one still gets comes too."""
    path = append(shm_dir / "a.wal", b"old 1")
    process = started("logs", "-f", "-o", "cat", path)
    assert hear(process) == "old 1"
    append(shm_dir / "other", b"new 1")
    os.replace(shm_dir / "other", path)
    assert hear(process) == "new 1"
    append(path, b"new 2")
    assert hear(process) == "new 2"
    assert end(process) == (130, "")


def test_a_log_that_was_shortened_is_reported_once_and_the_next_one_followed(shm_dir: Path, started: Start) -> None:
    """Of a set the others continue meanwhile."""
    path, sound = append(shm_dir / "a.wal", b"a 1"), append(shm_dir / "b.wal", b"b 1")
    process = started("logs", "-f", "-o", "cat", shm_dir)
    assert [hear(process), hear(process)] == ["a 1", "b 1"]
    os.truncate(path, 0)
    for number in range(5):
        append(sound, b"b %d" % number)
        assert hear(process) == f"b {number}"
        if number == 2:
            append(shm_dir / "new", b"a anew")
            os.replace(shm_dir / "new", path)
            assert hear(process) == "a anew"
    status, said = end(process)
    assert status == 130
    assert said.count("a.wal") == said.count("\n") > 0
    assert len(set(said.splitlines())) == len(said.splitlines())


def test_a_damaged_log_of_a_set_is_reported_once(shm_dir: Path, started: Start) -> None:
    """However often the set is looked at."""
    sound = append(shm_dir / "a.wal", b"a 1")
    damage_record(make_log(shm_dir / "bad.wal"), 1)
    process = started("logs", "-f", "-n", "1", "-o", "cat", shm_dir)
    hear(process)
    for number in range(3):
        append(sound, b"a %d" % number)
        assert hear(process) == f"a {number}"
        time.sleep(1.1)  # more than the time after which it begins to follow anew
    status, said = end(process)
    assert (status, said.count("\n"), "bad.wal" in said) == (130, 1, True)


def test_what_a_faster_writer_overwrote_is_reported(shm_dir: Path, started: Start) -> None:
    """By number of records, and what is left is shown."""
    with open_small(shm_dir / "a.wal", on_full="overwrite") as wal:
        wal.append(b"first")
        process = started("logs", "-f", "-o", "json", shm_dir / "a.wal")
        assert json.loads(hear(process))["seq"] == 1
        process.send_signal(signal.SIGSTOP)
        for _ in range(100):
            wal.append(bytes(1000))
        oldest, newest = wal.first_seq, wal.next_seq - 1
        process.send_signal(signal.SIGCONT)
        assert [json.loads(hear(process))["seq"] for _ in range(oldest, newest + 1)] == list(range(oldest, newest + 1))
        assert process.stderr is not None
        said = f"pmwal: {oldest - 2} records were overwritten before they could be shown\n"
        assert process.stderr.readline().decode() == said
    # The signal may arrive as the line was written and before that is noted; then it is written again at the end.
    assert end(process) in ((130, ""), (130, said))


def test_new_records_after_a_rollback_are_shown(shm_dir: Path, started: Start) -> None:
    """None of them is left out."""
    with open_small(shm_dir / "a.wal") as wal:
        wal.extend([b"a", b"b"])
        process = started("logs", "-f", "-o", "cat", shm_dir / "a.wal")
        assert [hear(process), hear(process)] == ["a", "b"]
        wal.rollback(after=1)
        wal.append(b"B")
        heard = hear(process)
        while heard != "B":  # the log may be shown again from its beginning, which is then said
            assert heard == "a"
            heard = hear(process)
    assert end(process)[0] == 130


def test_structured_records_and_events_are_decoded_as_they_come(shm_dir: Path, started: Start) -> None:
    """Each log by its own definitions; the level selects, whatever the kind is."""
    from pmwal import events  # noqa: PLC0415

    append(shm_dir / "z.wal", b"begin", kind=50)
    process = started("logs", "-f", "-p", "err", "--utc", shm_dir)
    assert hear(process).endswith(" CRITICAL begin")
    handler = pmwal.LogHandler(shm_dir / "a.wal", size="64KiB", structured=True, commit="each")
    logger = logging.Logger("shop")
    logger.addHandler(handler)
    logger.info("fine")
    logger.error("late", extra={"order": 7})
    handler.close()
    assert hear(process).endswith(" a ERROR    shop: late  order=7")
    with opened(shm_dir / "b.wal") as wal:
        log = events.Logger(wal, name="trades")
        log.event("fine {0}")(1)
        log.event("order {id} lost", level=40)(7)
    assert hear(process).endswith(" b ERROR    trades: order 7 lost")
    assert end(process) == (130, "")


def test_it_ends_when_nobody_reads_the_output(shm_dir: Path, started: Start) -> None:
    """Also without a new record; in silence."""
    process = started("logs", "-f", append(shm_dir / "a.wal", b"line"))
    assert hear(process).endswith("line")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_a_pattern_may_match_nothing_yet(shm_dir: Path, started: Start) -> None:
    """It waits for the first log."""
    process = started("logs", "-f", "-o", "cat", f"{shm_dir}/*.wal")
    append(shm_dir / "a.wal", b"first")
    assert hear(process) == "first"
    assert end(process) == (130, "")
