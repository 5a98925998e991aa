"""Servers that fork workers log into one directory: every line that a logging call returned for is there, in few files."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from processes import PATIENCE

pytestmark = pytest.mark.slow

CONFIGURE = """
    import logging, logging.config, os

    logging.config.dictConfig({
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(message)s"}},
        "handlers": {"wal": {"class": "pmwal.LogHandler", "directory": os.environ["LOGS"], "size": "1MiB", "formatter": "line"}},
        "loggers": {"shop": {"handlers": ["wal"], "level": "INFO", "propagate": False}},
    })
    log = logging.getLogger("shop")
"""

WSGI = """
    def app(environ, start_response):
        line = environ["QUERY_STRING"]
        log.info("%s", line)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % os.getpid()]
"""

ASGI = """
    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        log.info("%s", scope["query_string"].decode())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"%d" % os.getpid()})
"""

TASKS = """
    from celery import Celery

    tasks = Celery("shop", broker="filesystem://", backend=None)
    tasks.conf.update(
        broker_transport_options={"data_folder_in": os.environ["BROKER"], "data_folder_out": os.environ["BROKER"]},
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=False,
        task_ignore_result=True,
    )

    @tasks.task
    def pay(line):
        log.info("%s", line)
"""


@contextlib.contextmanager
def server(directory: Path, source: str, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a directory with the module ``shop``; its whole session is killed at the end."""
    (directory / "shop.py").write_text(textwrap.dedent(CONFIGURE) + textwrap.dedent(source))
    environment = (
        os.environ | {"LOGS": str(directory / "logs"), "PYTHONPATH": str(directory), "PYTHONWARNINGS": "default"} | variables
    )
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


def free_port() -> int:
    """A port of the loopback address that nobody has."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def ask(port: int, line: str) -> int | None:
    """Have a line logged; the worker that did, None if there was no answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/?{line}", timeout=10) as answer:
            return int(answer.read())
    except (OSError, http.client.HTTPException):  # the worker was killed
        return None


def wait_for(condition: Callable[[], Any]) -> None:
    """Until it is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def logged(directory: Path) -> list[str]:
    """The lines of the set."""
    with pmwal.LogSet(directory / "logs") as logs:
        return [record.data.decode() for record in logs]


def answered_lines(port: int, count: int, kill_every: int = 0) -> list[str]:
    """Ask in four threads; the lines whose logging call has returned. Now and then the worker that has answered is killed."""
    answered: list[str] = []

    def work(name: int) -> None:
        for number in range(count // 4):
            line = f"line-{name}-{number}"
            pid = ask(port, line)
            if pid is not None:
                answered.append(line)
                if kill_every and number % kill_every == kill_every - 1:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answered


@pytest.mark.parametrize("preload", [["--preload"], []], ids=["preload", "each worker loads"])
def test_gunicorn_keeps_every_line(preload: list[str], shm_dir: Path) -> None:
    """Workers are replaced after five requests, and some are killed."""
    pytest.importorskip("gunicorn")
    port = free_port()
    arguments = ["-m", "gunicorn", "shop:app", "-b", f"127.0.0.1:{port}", "-w", "3", "--max-requests", "5", "--log-level", "error"]
    with server(shm_dir, WSGI, *arguments, *preload) as process:
        wait_for(lambda: ask(port, "ready") is not None)
        answered = answered_lines(port, 40, kill_every=7)
        end(process)
        assert len(answered) > 20
        found = [line for line in logged(shm_dir) if line != "ready"]
        assert set(answered) <= set(found)
        assert len(found) == len(set(found))
        assert len(os.listdir(shm_dir / "logs")) <= 4  # the master and three workers
        assert b"Logging error" not in (shm_dir / "err").read_bytes()


def test_uvicorn_keeps_every_line(shm_dir: Path) -> None:
    """Its workers are spawned, and run the configuration again."""
    pytest.importorskip("uvicorn")
    port = free_port()
    arguments = ["-m", "uvicorn", "shop:app", "--port", str(port), "--workers", "2", "--log-level", "error"]
    with server(shm_dir, ASGI, *arguments) as process:
        wait_for(lambda: ask(port, "ready") is not None)
        answered = answered_lines(port, 60)
        end(process)
        assert len(answered) == 60
        found = [line for line in logged(shm_dir) if line != "ready"]
        assert sorted(answered) == sorted(found)
        assert len(os.listdir(shm_dir / "logs")) <= 3


def test_celery_keeps_every_line(shm_dir: Path) -> None:
    """Its pool forks after the application was loaded, and replaces a child after three tasks."""
    pytest.importorskip("celery")
    broker = shm_dir / "broker"
    broker.mkdir()
    variables = {"BROKER": str(broker)}
    arguments = [
        "-m",
        "celery",
        "-A",
        "shop:tasks",
        "worker",
        "-c",
        "2",
        "--max-tasks-per-child",
        "3",
        "-l",
        "error",
        "-P",
        "prefork",
    ]
    lines = [f"job-{number}" for number in range(12)]
    with server(shm_dir, TASKS, *arguments, **variables) as process:
        script = "import sys, shop\nfor line in sys.argv[1:]: shop.pay.delay(line)"
        sent = subprocess.run(
            [sys.executable, "-c", script, *lines],
            cwd=shm_dir,
            env=os.environ | variables | {"LOGS": str(shm_dir / "other"), "PYTHONPATH": str(shm_dir)},
            capture_output=True,
            check=False,
        )
        assert sent.returncode == 0, sent.stderr.decode()
        wait_for(lambda: (shm_dir / "logs").exists() and len(logged(shm_dir)) >= len(lines))
        end(process)
    assert sorted(logged(shm_dir)) == sorted(lines)
    assert len(os.listdir(shm_dir / "logs")) <= 5
    assert b"Logging error" not in (shm_dir / "err").read_bytes()
