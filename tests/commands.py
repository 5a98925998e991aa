"""Running commands: in this process, and in processes of their own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from pmwal.cli import main
from pmwal.cli.commands import stat

COMMANDS = (
    "demo", "create", "write", "cat", "tail", "stat", "info", "verify", "repair", "truncate", "export", "import", "completion",
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
    """Have ``pmwal stat`` do these instead of sleeping, one for each sleep; then the command is interrupted."""
    todo = iter(steps)

    def sleep(seconds: float) -> None:
        step = next(todo, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(stat, "time", type("Clock", (), {"sleep": sleep, "monotonic": time.monotonic}))


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start ``python -m pmwal`` as a process of its own; it is ended after the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pmwal", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()
