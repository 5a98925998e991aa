"""``pmwal logs`` on a terminal: colours, the pager, and what is cut because a person reads it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from commands import damage_record, make_log
from processes import PATIENCE
from support import open_small

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Seen(NamedTuple):
    """How a command ended on a terminal, and the lines on it."""

    status: int
    lines: list[str]


def on_terminal(*arguments: object, pager: str | None = "", **environment: str | None) -> Seen:
    """Run ``pmwal logs`` with standard output and error on a terminal."""
    master, terminal = pty.openpty()
    wanted = {"NO_COLOR": None, "TERM": "xterm", "PAGER": None, "LESS": None, "PMWAL_PAGER": pager} | environment
    inherited = {name: value for name, value in os.environ.items() if name not in wanted}
    process = subprocess.Popen(
        [sys.executable, "-m", "pmwal", "logs", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        env=inherited | {name: value for name, value in wanted.items() if value is not None},
    )
    os.close(terminal)
    pieces = []
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the last user of the terminal has closed it
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(master)
    return Seen(process.wait(PATIENCE), b"".join(pieces).decode().splitlines())


def program(path: Path, script: str) -> Path:
    """A program that can be a pager."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return path


@pytest.fixture
def log(shm_dir: Path) -> Path:
    """A log of ten lines of level 0 and an error."""
    with open_small(make_log(shm_dir / "a.wal")) as wal:
        wal.append(b"failed", kind=40)
    return shm_dir / "a.wal"


@pytest.mark.parametrize(
    ("options", "environment", "coloured"),
    [
        ((), {}, True),
        ((), {"NO_COLOR": "1"}, False),
        ((), {"NO_COLOR": ""}, True),
        ((), {"TERM": "dumb"}, False),
        (("--color", "never"), {}, False),
        (("--color", "always"), {"NO_COLOR": "1"}, True),
    ],
)
def test_colours_are_for_terminals_that_show_them(
    log: Path, options: tuple[str, ...], environment: dict[str, str], coloured: bool
) -> None:
    """Unless the person or the program that runs it says otherwise."""
    seen = on_terminal(*options, log, **environment)
    assert seen.status == 0
    assert any(map(COLOUR.search, seen.lines)) == coloured
    assert COLOUR.sub("", seen.lines[-1]).endswith(" ERROR    failed")


@pytest.mark.parametrize(
    ("pager", "environment", "options", "paged"),
    [
        ("sed s/^/P:/", {}, (), True),
        (None, {"PAGER": "sed s/^/P:/"}, (), True),
        ("sed 's/^/P:/'", {"PAGER": "false"}, (), True),
        ("", {"PAGER": "sed s/^/P:/"}, (), False),
        ("cat", {}, (), False),
        (None, {"PAGER": ""}, (), False),
        ("sed s/^/P:/", {}, ("--no-pager",), False),
        ("sed s/^/P:/", {}, ("-r", "-n", "99"), True),
    ],
)
def test_a_pager_is_the_one_that_was_chosen(
    log: Path, pager: str | None, environment: dict[str, str], options: tuple[str, ...], paged: bool
) -> None:
    """PMWAL_PAGER before PAGER; an empty one and cat are none."""
    seen = on_terminal("--color", "never", *options, log, pager=pager, **environment)
    assert seen.status == 0
    assert len(seen.lines) == 11
    assert {line[:2] for line in seen.lines} == ({"P:"} if paged else {"Nov"[:2]})


@pytest.mark.parametrize("pager", [None, "/nowhere/pager", "'no end"])
def test_without_a_pager_of_ones_own_the_usual_ones_are_tried(log: Path, pager: str | None) -> None:
    """``pager``, then ``less`` with options that keep colours and quit if one screen is enough."""
    bin_directory = log.parent / "bin"
    program(bin_directory / "less", 'echo "$LESS $LESSCHARSET"; exec /bin/cat')
    path = f"{bin_directory}"
    assert on_terminal(log, pager=pager, PATH=path).lines[0] == "FRSXMK utf-8"
    assert on_terminal("-e", log, pager=pager, PATH=path).lines[0] == "FRSXMK +G utf-8"
    assert on_terminal(log, pager=pager, PATH=path, LESS="R").lines[0] == "R utf-8"
    program(bin_directory / "pager", "echo first; exec /bin/cat")
    assert on_terminal(log, pager=pager, PATH=path).lines[0] == "first"
    assert len(on_terminal(log, pager=pager, PATH=str(log)).lines) == 11


def test_a_pager_that_is_left_early_ends_the_command(shm_dir: Path) -> None:
    """In silence and with status 0, however much there is; no cursor is saved."""
    with open_small(shm_dir / "a.wal", size="4MiB") as wal:
        wal.extend([b"x" * 100] * 20000)
    seen = on_terminal("--cursor-file", shm_dir / "cursor", shm_dir / "a.wal", pager="head -n 1")
    assert (seen.status, len(seen.lines)) == (0, 1)
    assert not (shm_dir / "cursor").exists()


@pytest.mark.parametrize(
    ("pager", "how"),
    [
        ("false", "false failed (exit status 1)"),
        ("sh -c 'no-such-pager 2>/dev/null'", "sh -c 'no-such-pager 2>/dev/null' failed (exit status 127)"),
        ("sh -c 'kill -9 $$'", "failed (signal 9)"),
        ("sh -c 'exec <&-; sleep 0.2; exit 3'", "failed (exit status 3)"),
    ],
)
@pytest.mark.parametrize("count", [11, 20000], ids=["fits-the-pipe", "much"])
def test_a_pager_that_fails_hides_nothing(shm_dir: Path, pager: str, how: str, count: int) -> None:
    """It is named, everything is printed from the beginning, and the status is 1."""
    with open_small(shm_dir / "a.wal", size="4MiB") as wal:
        wal.extend([b"%d" % number for number in range(count)])
    seen = on_terminal(shm_dir / "a.wal", pager=pager)
    assert seen.status == 1
    assert how in seen.lines[0]
    assert seen.lines[0].startswith("pmwal: the pager ")
    assert [int(COLOUR.sub("", line).split()[-1]) for line in seen.lines[1:]] == list(range(count))


def test_a_pager_that_fails_over_a_message_shows_it(log: Path) -> None:
    """A message that comes before any entry starts the pager, too."""
    damage_record(make_log(log.parent / "bad.wal"), 1)
    seen = on_terminal(log.parent, pager="false")
    assert seen.status == 2
    assert seen.lines[0].startswith("pmwal: the pager false failed")
    assert len(seen.lines) == len(on_terminal(log.parent).lines) + 1


@pytest.mark.parametrize("pager", ["sh -c 'cat; exit 2'", "sh -c 'head -c 1 >/dev/null; exit 2'", "true"])
def test_a_pager_that_has_read_may_end_as_it_likes(log: Path, pager: str) -> None:
    """less ends with status 2 on Ctrl-C: nothing is printed a second time."""
    seen = on_terminal(log, pager=pager)
    assert (seen.status, len(seen.lines)) == (0, 11 if "cat" in pager else 0)


def test_messages_go_to_the_pager_in_their_place(log: Path) -> None:
    """They would be drawn over otherwise; the status is the same."""
    damage_record(make_log(log.parent / "bad.wal"), 1)
    seen = on_terminal(log.parent, pager="sed s/^/P:/")
    assert seen.status == 2
    assert all(line.startswith("P:") for line in seen.lines)
    assert any(line.startswith("P:pmwal: warning: ") and "bad.wal" in line for line in seen.lines)


def test_an_error_is_reported_after_the_pager_has_ended(log: Path) -> None:
    """A single log that is damaged."""
    damage_record(log, 5)
    seen = on_terminal(log, pager="sed s/^/P:/")
    assert seen.status == 2
    assert [line[:7] for line in seen.lines if not line.startswith("P:")] == ["pmwal: ", "       "]


def test_a_pipe_has_no_pager_and_no_colours(log: Path) -> None:
    """Whatever the environment says."""
    command = [sys.executable, "-m", "pmwal", "logs", log]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PMWAL_PAGER": "sed s/^/P:/"})
    assert [line[:3] for line in ran.stdout.splitlines()] == ["Nov"] * 11
    assert "\x1b" not in ran.stdout


def test_long_and_binary_messages_are_cut_on_a_terminal_only(shm_dir: Path) -> None:
    """With a hint how to see them; ``-a`` and a pipe show everything, escaped."""
    path = shm_dir / "a.wal"
    with open_small(path, size="64KiB") as wal:
        wal.append(b"x" * 5000)
        wal.append(b"\x00\xff")
        wal.append(b"\n".join(b"%d" % number for number in range(300)))
        wal.append(b"last")
    lines = [COLOUR.sub("", line) for line in on_terminal(path).lines]
    assert lines[0].endswith("x... [904 more characters; -a shows them]")
    assert lines[1].endswith("[2 bytes that are no text; -a shows them]")
    assert "    [100 more lines; -a shows them]" in lines
    assert lines[-2].strip() == "299"
    for shown in (
        [COLOUR.sub("", line) for line in on_terminal("-a", path).lines],
        subprocess.run(
            [sys.executable, "-m", "pmwal", "logs", path], capture_output=True, text=True, check=True
        ).stdout.splitlines(),
    ):
        assert len(shown) == 303
        assert shown[0].endswith(" " + "x" * 5000)
        assert shown[1].endswith(" \\x00\\xff")
