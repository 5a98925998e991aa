"""Running commands, in this process and in others, and making logs in every state for them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pmwal
from pmwal.cli import main
from pmwal.cli.commands import stat
from pmwal.format.layout import PAGE
from processes import limit_time
from support import BarrierRecorder, file_offset, flip, kill, look, open_small, overwrite, place_of, superblock, whole_records

COMMANDS = (
    "demo", "create", "write", "logs", "cat", "tail", "stat", "info", "verify", "repair", "truncate", "prune", "copy", "resize",
    "consumers", "archive", "ship", "restore", "export", "import", "serve", "stress", "crashsim", "bench", "completion",
)  # fmt: skip


class Ran(NamedTuple):
    """How a command ended."""

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()


Cli = Callable[..., Ran]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Cli:
    """Run a command in this process."""

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        capsysbinary.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Ran(status, out, err.decode())

    return run


def between_looks(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], Any]) -> None:
    """Replace each sleep of ``pmwal stat`` with one of these steps; then the command is interrupted."""
    todo = iter(steps)

    def sleep(seconds: float) -> None:
        step = next(todo, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(stat, "time", type("Clock", (), {"sleep": sleep, "monotonic": time.monotonic}))


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start ``python -m pmwal`` as a separate process; it is killed after the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pmwal", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=limit_time,  # noqa: PLW1509
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


# -- logs in every state

MINUTE = 60 * 10**9


class PastSeam(BarrierRecorder):
    """A seam whose process no longer exists, and whose clock stops."""

    def pid(self) -> int:
        return (1 << 22) + 1  # past PID_MAX_LIMIT: no process can have it

    def now_ns(self) -> int:
        return self.time_ns


def make_log(path: Path, count: int = 10, *, close: bool = True, **options: Any) -> Path:
    """A log of ``count`` lines, a minute apart, closed or else left as by SIGKILL."""
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
    """A log of ten records, the last of them torn."""
    return damage_record(make_log(path, close=False, ordering="pipelined"), 10)


def make_slotless(path: Path) -> Path:
    """A log without a whole slot."""
    overwrite(make_log(path), 2 * PAGE, bytes(2 * PAGE))
    return path


def make_torn_slot(path: Path) -> Path:
    """A log whose newest slot is torn."""
    newest = look(make_log(path, close=False)).control.newest
    assert newest is not None
    flip(path, place_of(path, newest.generation))
    return path


def make_one_superblock(path: Path) -> Path:
    """A log whose superblock copy 0 is damaged."""
    flip(make_log(path), 50)
    return path


def make_no_superblock(path: Path) -> Path:
    """A log with both superblocks damaged and a control region of the usual size."""
    pmwal.open(path, size="64KiB").close()
    copy = superblock(path).copy_offset
    flip(path, 50)
    flip(path, copy + 50)
    return path


def make_foreign(path: Path) -> Path:
    """A file of another program."""
    path.write_bytes(b"hello, world\n" * 1000)
    return path


def make_short(path: Path) -> Path:
    """A log that was shortened."""
    os.truncate(make_log(path), 3 * PAGE)
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "clean": make_log,
    "killed": lambda path: make_log(path, close=False),
    "torn": make_torn,
    "torn-slot": make_torn_slot,
    "one-superblock": make_one_superblock,
    "corrupt": lambda path: damage_record(make_log(path), 4, 7, 10),
    "slotless": make_slotless,
    "no-superblock": make_no_superblock,
    "foreign": make_foreign,
    "short": make_short,
    "missing": lambda path: path,
}
VERIFY_STATUS = {"clean": 0, "killed": 0, "torn": 1, "torn-slot": 1, "one-superblock": 1, "corrupt": 2, "slotless": 2}
