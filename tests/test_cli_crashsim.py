"""``pmwal crashsim PROGRAM``: verdicts, exit statuses, JSON, kept crashes, and files that are no program."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest

import pmwal
from commands import Cli, cli
from pmwal.cli.exit_status import FAILED, OK, UNREADABLE, USAGE

__all__ = ["cli"]

RIGHT = """\
import pmwal
from pmwal.testing import acknowledged

def run(path):
    with pmwal.open(path, size="8KiB") as wal:
        for word in ("one", "two"):
            wal.append(word.encode())
            acknowledged(word)

def check(path, done):
    with pmwal.open(path, size="8KiB") as wal:
        found = [bytes(record.data).decode() for record in wal]
    assert found[: len(done)] == done, f"found {found}"
"""
EARLY = RIGHT.replace("wal.append(word.encode())", "wal.append(word.encode(), commit=False)")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A right program, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # undone with what the command adds
    path = tmp_path / "program.py"
    path.write_text(RIGHT)
    return path


@pytest.mark.usefixtures("program")
def test_right_program_is_sound_on_both_media(cli: Cli) -> None:
    """One line for each medium, and the verdict."""
    ran = cli("crashsim", "program.py")
    assert (ran.status, ran.err) == (OK, "")
    assert [line.split(":")[0] for line in ran.lines] == ["medium page", "medium pmem", "SOUND"]
    assert cli("crashsim", "program.py").out == ran.out


@pytest.mark.parametrize("engine", ["native", "python", "both"])
def test_wrong_program_is_a_violation_with_either_engine(program: Path, engine: str, cli: Cli) -> None:
    """Status 1, the account, and the command that shows it again."""
    program.write_text(EARLY)
    ran = cli("crashsim", "program.py", "--engine", engine, "--medium", "pmem")
    assert ran.status == FAILED
    assert ran.lines[-1] == "VIOLATION on medium pmem: check raised AssertionError: found []"
    assert ran.lines[-2].startswith("again with: pmwal crashsim program.py --medium pmem --engine")
    assert "  lost      record 1" in ran.lines
    again = cli(*ran.lines[-2].removeprefix("again with: pmwal ").split())
    assert again.text.splitlines()[-1] == ran.lines[-1]


def test_kept_crash_is_judged_again(program: Path, cli: Cli) -> None:
    """The log is a log, the account JSON; a mended check passes; a directory in use is refused."""
    program.write_text(EARLY)
    ran = cli("crashsim", "program.py", "--keep", "kept")
    assert (ran.status, ran.lines[-2]) == (FAILED, "again with: pmwal crashsim program.py --replay kept")
    assert pmwal.verify("kept/program.wal").outcome in ("clean", "recovered")
    assert json.loads(Path("kept/crash.json").read_text())["acknowledged"] == ["'one'"]
    again = cli("crashsim", "program.py", "--replay", "kept")
    assert (again.status, again.lines[-1]) == (FAILED, ran.lines[-1])
    program.write_text(EARLY.replace("assert found", "return\n    assert found"))
    assert cli("crashsim", "program.py", "--replay", "kept").status == OK
    refused = cli("crashsim", "program.py", "--keep", "kept")
    assert (refused.status, refused.out) == (USAGE, b"")
    assert "kept is not empty" in refused.err
    assert "has no crash that was kept" in cli("crashsim", "program.py", "--replay", ".").err


def test_crash_with_values_that_are_no_literals_cannot_be_replayed(program: Path, cli: Cli) -> None:
    """The message says what to acknowledge instead."""
    program.write_text(EARLY.replace("acknowledged(word)", "acknowledged(object())").replace("== done", "== len(done) * [0]"))
    assert cli("crashsim", "program.py", "--keep", "kept").status == FAILED
    ran = cli("crashsim", "program.py", "--replay", "kept")
    assert ran.status == USAGE
    assert "only if it consists of literals" in ran.err


def test_json_has_every_store_with_its_frames(program: Path, cli: Cli) -> None:
    """To standard output alone, or to a file beside the text."""
    program.write_text(EARLY)
    ran = cli("crashsim", "program.py", "--json")
    assert ran.status == FAILED
    (run,) = ran.json["runs"]
    assert ran.json["verdict"].startswith("VIOLATION")
    assert (run["medium"], run["acknowledged"], run["crash"]["kind"]) == ("page", 2, "cut")
    frame = {"file": "program.py", "line": 7, "function": "run"}
    assert [(store["what"], store["frames"]) for store in run["crash"]["stores"]] == [("record 1", [frame])]
    program.write_text(RIGHT)
    ran = cli("crashsim", "program.py", "--json", "result.json")
    assert ran.lines[-1] == json.loads(Path("result.json").read_text())["verdict"]
    assert ran.lines[-1].startswith("SOUND")


@pytest.mark.usefixtures("program")
def test_share_of_the_states_is_said_to_be_one(cli: Cli) -> None:
    """Nobody takes a limited look for a full one."""
    ran = cli("crashsim", "program.py", "--medium", "page", "--limit", "7", "--seed", "2")
    assert ran.status == OK
    assert "; 7 of them chosen by seed 2" in ran.lines[0]
    assert "no violation in 7 states" in ran.lines[1]


CLOSES = '    with pmwal.open(path, size="8KiB") as wal:\n        for'
KEEPS = '    wal = pmwal.open(path, size="8KiB", commit="manual")\n    if True:\n        for'


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [("acknowledged(word)", "pass", "nothing was acknowledged"), (CLOSES, KEEPS, "made nothing durable")],
)
def test_weak_program_is_warned_of(program: Path, old: str, new: str, note: str, cli: Cli) -> None:
    """It acknowledges nothing, or never commits."""
    assert RIGHT.count(old) == 1
    program.write_text(RIGHT.replace(old, new, 1))
    assert note in cli("crashsim", "program.py", "--medium", "page").err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "No such file"),
        ("def run(path)", "program.py:1: "),
        ("import nowhere_at_all", "failed before run(path) was called: ModuleNotFoundError"),
        ("raise SystemExit(3)", "failed before run(path) was called: SystemExit"),
        ("def check(path, done): pass", "does not define run(path)"),
        ("def run(path): pass", "does not define check(path, done)"),
        ("def run(): pass\ndef check(path, done): pass", "run must take path"),
        ("def run(path): pass\ndef check(path): pass", "check must take path and done"),
        ("async def run(path): pass\ndef check(path, done): pass", "must be a plain function"),
        ("def run(path): pass\ndef check(path, done): pass", "opened no log"),
        ("def run(path): 1 / 0\ndef check(path, done): pass", "without a crash"),
    ],
)
def test_file_that_is_no_program_is_refused(program: Path, source: str | None, message: str, cli: Cli) -> None:
    """Status 64, and what is wrong, with the line where there is one."""
    program.unlink() if source is None else program.write_text(source)
    ran = cli("crashsim", "program.py")
    assert (ran.status, ran.out) == (USAGE, b"")
    assert message in ran.err
    assert "unexpected" not in ran.err


@pytest.mark.parametrize(("is_log", "what"), [(True, "a pmwal log"), (False, "no Python source: it contains null bytes")])
def test_log_in_place_of_a_program_is_refused(program: Path, is_log: bool, what: str, cli: Cli) -> None:
    """It says what the file is, and what is wanted; it stays as it is."""
    pmwal.open("app.wal", size="64KiB").close() if is_log else program.with_name("app.wal").write_bytes(bytes(100))
    before = Path("app.wal").read_bytes()
    ran = cli("crashsim", "app.wal")
    assert (ran.status, ran.out) == (USAGE, b"")
    assert ran.err == f"pmwal: app.wal is {what}; name the Python file that defines run(path) and check(path, done)\n"
    assert Path("app.wal").read_bytes() == before


def test_program_that_raises_is_shown_with_its_lines(program: Path, cli: Cli) -> None:
    """The innermost first."""
    program.write_text(dedent(RIGHT).replace("acknowledged(word)", "int(word)"))
    ran = cli("crashsim", "program.py")
    assert ran.err.splitlines()[1:] == ["    program.py:8 in run: int(word)"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["program.py", "--full"], "--full is not for a PROGRAM"),
        (["program.py", "--control", "early-ack"], "--control is not for a PROGRAM"),
        (["--keep", "kept"], "--keep is for a PROGRAM"),
        (["--json"], "--json is for a PROGRAM"),
        (["program.py", "--replay", "kept", "--json"], "only repeats a check"),
        (["program.py", "--medium", "tape"], "invalid choice"),
        (["program.py", "--size", "much"], "size"),
    ],
)
@pytest.mark.usefixtures("program")
def test_options_that_do_not_go_together_are_refused(arguments: list[str], message: str, cli: Cli) -> None:
    """Nothing runs."""
    ran = cli("crashsim", *arguments)
    assert (ran.status, ran.out) == (USAGE, b"")
    assert message in ran.err


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("command", [("crashsim", "program.py"), ("stress", ".", "--seconds", "60"), ("bench", ".")])
@pytest.mark.parametrize(
    ("path", "reason"), [("none/report", "No such file or directory"), (".", "Is a directory")], ids=["none", "directory"]
)
def test_report_that_cannot_be_written_is_refused_before_the_run(
    command: tuple[str, ...], path: str, reason: str, cli: Cli
) -> None:
    """A long run would end without its verdict."""
    ran = cli(*command, "--json", path)
    assert (ran.status, ran.out) == (UNREADABLE, b"")
    assert f"{path}: {reason}" in ran.err
