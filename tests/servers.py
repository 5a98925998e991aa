"""Servers under test: started in a directory, asked for lines, their workers killed at random, and what they have logged."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pmwal
from processes import PATIENCE

_ASKING = 4  # threads
_CELERY_PATIENCE = 30.0  # seconds


@contextlib.contextmanager
def server(directory: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server of Python in a directory, from which it imports; its whole session is killed at the end."""
    environment = os.environ | {"PYTHONPATH": str(directory), "PYTHONWARNINGS": "default"} | variables
    with (directory / "err").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=directory, env=environment, stdout=errors, stderr=errors, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and wait."""
    process.terminate()
    process.wait(PATIENCE)


def end_celery(process: subprocess.Popen[bytes]) -> None:
    """Ask a worker of Celery to end, and kill it if it does not: its pool may wait for a lock of a child that it ended.

    It does so with any handler of ``logging`` (docs/recipes.md). Every line was stored when its call returned.
    """
    process.terminate()
    try:
        process.wait(_CELERY_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A port of the loopback address that nobody has."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def ask(port: int, query: str) -> bytes | None:
    """The answer to a request; None if there was none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/?{query}", timeout=PATIENCE) as answer:
            body: bytes = answer.read()
            return body
    except (OSError, http.client.HTTPException):  # the worker was killed, or there is none yet
        return None


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> None:
    """Until it is true, while the process runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.05)


def logged(directory: Path) -> list[str]:
    """The lines of the set in ``logs``."""
    with pmwal.LogSet(directory / "logs") as logs:
        return [record.data.decode() for record in logs]


def answered_lines(port: int, count: int, kills: int = 0) -> list[str]:
    """Have lines logged, from several threads; those whose logging call has returned, at least ``count``.

    The application answers with the id of its process. Some of those that have just answered are killed, until ``kills`` were.
    """
    answered: list[str] = []
    killed: list[int] = []
    deadline = time.monotonic() + PATIENCE

    def work(name: int) -> None:
        rng, number = random.Random(name), 0
        while (len(answered) < count or len(killed) < kills) and time.monotonic() < deadline:
            number += 1
            line = f"line-{name}-{number}"
            pid = ask(port, line)
            if pid is None:
                continue
            answered.append(line)
            if len(killed) < kills and rng.random() < kills / count:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
                    killed.append(int(pid))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(_ASKING)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answered) >= count
    assert len(killed) >= kills
    return answered


def spares_of_session(process: subprocess.Popen[bytes], directory: Path) -> int:
    """How many files without a name the processes of a server have open in the directory of its logs."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(entry.name)) != process.pid:
                continue
            for fd in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if Path(os.readlink(fd)).parent == directory / "logs" and not fd.stat().st_nlink:
                        found.add(fd.stat().st_ino)
    return len(found)


def wrong_lines(answered: list[str], found: list[str]) -> list[str]:
    """Lines that are not there although their logging call has returned, and those that are there twice."""
    lost = [f"{line} is lost" for line in sorted(set(answered) - set(found))]
    return lost + [f"{line} is there {times} times" for line, times in Counter(found).items() if times > 1]
