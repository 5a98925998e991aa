"""``pmwal stat``, ``info`` and ``verify`` of several logs: a line for each, what is counted, and the status."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import pmwal
from commands import MAKERS, VERIFY_STATUS, Cli, between_looks, make_log, make_torn
from support import open_small

KINDS = ("clean", "corrupt", "foreign", "torn")


@pytest.fixture
def logs(shm_dir: Path) -> Path:
    """A directory with a log in each of four states."""
    directory = shm_dir / "logs"
    directory.mkdir()
    for kind in KINDS:
        MAKERS[kind](directory / f"{kind}.wal")
    return directory


def test_verify_of_a_directory_has_a_verdict_for_each_log_and_counts_them(cli: Cli, logs: Path) -> None:
    """Sorted by name; the status is the worst."""
    ran = cli("verify", logs)
    assert (ran.status, ran.err) == (3, "")
    assert [line.partition(": ")[0] for line in ran.lines[:-1]] == [str(logs / f"{kind}.wal") for kind in KINDS]
    assert ran.lines[-1] == "4 logs: 1 sound, 1 torn, 1 corrupt, 1 cannot be opened"
    assert cli("verify", logs / "c*.wal").lines[-1] == "2 logs: 1 sound, 1 corrupt"
    assert cli("verify", logs / "c*.wal").status == 2
    assert cli("verify", "-q", logs).text == ""
    values = [json.loads(line) for line in cli("verify", "--json", logs).lines]
    assert [(value["path"], value["status"]) for value in values] == [
        (str(logs / f"{kind}.wal"), VERIFY_STATUS.get(kind, 3)) for kind in KINDS
    ]


def test_info_of_a_directory_is_a_table(cli: Cli, logs: Path) -> None:
    """Name, size, records, fill, writer and verdict, then the sums; in JSON each log is as if it were alone."""
    ran = cli("info", logs)
    assert (ran.status, ran.err) == (3, "")
    heading, *rows, sums = ran.lines
    assert heading.split() == ["log", "size", "records", "fill", "writer", "verdict"]
    assert [row.split()[0] for row in rows] == list(KINDS)
    assert [row.split("  ")[-1].split(":")[0] for row in rows] == [
        "clean (R1)",
        "CORRUPT (R4)",
        "CANNOT BE OPENED",
        "recovered (R3)",
    ]
    assert sums.startswith("4 logs, ")
    assert sums.endswith(", 22 records")
    several = [json.loads(line) for line in cli("info", "--json", logs).lines]
    for value in several:
        alone = cli("info", "--json", value["path"]).json
        for facts in (value, alone):
            facts.get("verdict", {}).pop("seconds", None)
        assert value == alone


def test_info_of_a_missing_file_among_others_is_a_row(cli: Cli, logs: Path) -> None:
    """The others are shown, and the status is 3; alone it is an error as ever."""
    ran = cli("info", logs / "missing.wal", logs / "clean.wal")
    assert (ran.status, ran.err, len(ran.lines)) == (3, "", 4)
    assert ran.lines[1].endswith("CANNOT BE OPENED: No such file or directory")
    assert cli("info", logs / "missing.wal").err == f"pmwal: {logs / 'missing.wal'}: No such file or directory\n"


def test_info_names_the_writer(cli: Cli, shm_dir: Path) -> None:
    """The process of a log that is open, and its heartbeat also as text."""
    with open_small(shm_dir / "a.wal") as wal:
        wal.append(b"x")
        ran = cli("info", shm_dir)
        assert ran.lines[1].split()[5] == str(os.getpid())
        writer = cli("info", "--json", shm_dir / "a.wal").json["writer"]
    assert writer["heartbeat"].endswith(f".{writer['heartbeat_ns'] % 10**9:09d}Z")


def test_stat_of_a_directory_is_a_table(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of each log that is written to, and the sums of all."""
    make_log(shm_dir / "00.wal", 3)
    with open_small(shm_dir / "01.wal", commit="manual") as wal:
        wal.append(b"x")
        wal.commit()

        def work() -> None:
            wal.extend([b"x"] * 4)
            wal.commit()

        between_looks(monkeypatch, work)
        facts = [json.loads(line) for line in cli("stat", "--json", shm_dir).lines]
        assert [each["path"] for each in facts] == [str(shm_dir / "00.wal"), str(shm_dir / "01.wal")]
        assert [each["bounds"]["last_seq"] for each in facts] == [3, 5]
        assert facts[0]["rates"] is None
        assert round(facts[1]["rates"]["records"] * facts[1]["rates"]["seconds"]) == 4
        assert facts[0]["time"].endswith(f".{facts[0]['time_ns'] % 10**9:09d}Z")
        between_looks(monkeypatch, work)
        ran = cli("stat", shm_dir)
        assert (ran.status, ran.err) == (0, "")
        heading, closed, running, sums = ran.lines
        assert heading.split()[:4] == ["log", "records", "fill", "records/s"]
        assert closed.split() == ["00", "3", closed.split()[2], "-", "-", "-", "-", "-", "none"]
        assert running.endswith(f"process {os.getpid()}, running")
        assert sums.startswith("2 logs, 12 records, 1 written to: ")


def test_stat_of_a_directory_reports_what_is_no_log(cli: Cli, logs: Path) -> None:
    """A row says why, and the status is 3."""
    ran = cli("stat", logs)
    assert ran.status == 3
    assert "no log: not a pmwal log" in ran.lines[3]
    assert len(ran.lines) == 6


def test_watch_of_a_directory_shows_logs_that_come_and_go(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a pipe each log has a line each time, with its name; in JSON an object."""
    make_log(shm_dir / "00.wal", 3)
    steps = [lambda: None, lambda: make_log(shm_dir / "01.wal", 2), (shm_dir / "00.wal").unlink]
    between_looks(monkeypatch, *steps)
    ran = cli("stat", shm_dir, "--watch")
    assert (ran.status, ran.err) == (130, "")
    assert [line.split("  ")[0] for line in ran.lines] == ["00", "00", "01", "01"]
    assert "records 1 to 3, durable up to 3" in ran.lines[0]
    make_log(shm_dir / "00.wal", 3)
    between_looks(monkeypatch, lambda: None)
    values = [json.loads(line) for line in cli("stat", shm_dir, "--watch", "--json").lines]
    assert [Path(value["path"]).name for value in values] == ["00.wal", "01.wal"]


@pytest.mark.parametrize("command", ["stat", "info", "verify"])
def test_place_without_logs_is_named(cli: Cli, shm_dir: Path, command: str) -> None:
    """The status is 3, also if other places have logs, which are shown."""
    (shm_dir / "empty").mkdir()
    ran = cli(command, shm_dir / "empty")
    assert (ran.status, ran.out, ran.err) == (3, b"", f"pmwal: {shm_dir / 'empty'}: no log (*.wal) is in this directory\n")
    ran = cli(command, shm_dir / "*.log")
    assert (ran.status, ran.err) == (3, f"pmwal: {shm_dir / '*.log'}: no log matches this pattern\n")
    make_log(shm_dir / "a.wal")
    ran = cli(command, shm_dir / "empty", shm_dir / "a.wal")
    assert ran.status == 3
    assert f"{shm_dir / 'empty'}: no log" in ran.err
    assert any(line.startswith(("a ", f"{shm_dir / 'a.wal'}: ")) for line in ran.lines)


@pytest.mark.parametrize("command", ["stat", "info", "verify"])
def test_tables_write_nothing(cli: Cli, shm_dir: Path, command: str) -> None:
    """Looking at a directory changes none of its logs."""
    paths = [make_log(shm_dir / "a.wal"), make_torn(shm_dir / "b.wal")]
    before = [path.read_bytes() for path in paths]
    cli(command, shm_dir)
    assert [path.read_bytes() for path in paths] == before
    assert pmwal.verify(paths[0]).case == "R1"


def test_verify_prints_one_line_for_a_log_of_any_name(cli: Cli, shm_dir: Path) -> None:
    """A name cannot move the cursor of a terminal, or add a verdict on another log."""
    open_small(shm_dir / "a\x1b[31m: clean\nb.wal").close()
    (shm_dir / "\n.wal").write_bytes(b"no log")
    ran = cli("verify", shm_dir)
    assert (ran.status, len(ran.lines)) == (3, 3)
    assert not any(char < " " for line in ran.lines for char in line)
    assert any("a\\x1b[31m: clean\\x0ab.wal: clean" in line for line in ran.lines)
