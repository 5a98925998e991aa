"""Servers that fork workers log into one directory: every line that a logging call returned for is there, in few files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from processes import PATIENCE, run_script
from servers import answered_lines, ask, end, end_celery, free_port, logged, server, wait_for, wrong_lines

pytestmark = pytest.mark.slow

CONFIGURE = """
    import json, logging, logging.config, os

    def configure():
        logging.config.dictConfig({
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(message)s"}},
            "handlers": {
                "wal": {"class": "pmwal.LogHandler", "size": "1MiB", "formatter": "line", **json.loads(os.environ["WHERE"])},
            },
            "loggers": {"shop": {"handlers": ["wal"], "level": "INFO", "propagate": False}},
        })

    log = logging.getLogger("shop")
"""

WSGI = """
    configure()

    def app(environ, start_response):
        line = environ["QUERY_STRING"]
        log.info("%s", line)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % os.getpid()]
"""

ASGI = """
    configure()

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        log.info("%s", scope["query_string"].decode())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"%d" % os.getpid()})
"""

TASKS = """
    from celery import Celery

    configure()
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

PROCESSES = """
    import itertools, multiprocessing, random, signal, sys

    def work(pipe, name):
        if multiprocessing.get_start_method() != "fork":
            configure()
        for number in range(1, 301):
            log.info("line-%s-%d", name, number)
            pipe.send(number)
        signal.pause()

    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        configure()
        rng, count, running, acknowledged = random.Random(7), itertools.count(), [], {}

        def start():
            here, there = multiprocessing.Pipe(duplex=False)
            name = str(next(count))
            process = multiprocessing.Process(target=work, args=(there, name), daemon=True)
            process.start()
            there.close()
            acknowledged[name] = 0
            running.append((process, here, name))

        def hear(process, here, name, at_least):
            while here.poll(300 if acknowledged[name] < at_least else 0):
                try:
                    acknowledged[name] = here.recv()
                except EOFError:
                    break

        for _ in range(8):
            start()
        for _ in range(8):
            log.info("main")
            for one in running:
                hear(*one, at_least=1)
            victim = running.pop(rng.randrange(8))
            victim[0].kill()
            victim[0].join()
            hear(*victim, at_least=0)
            start()
        for one in running:
            hear(*one, at_least=20)
            one[0].kill()
            one[0].join()
            hear(*one, at_least=0)
        print(json.dumps(acknowledged))
"""


def lay(directory: Path, source: str, **where: str) -> dict[str, str]:
    """Write the module ``shop``, which logs there, or into the directory ``logs``; the environment that it needs."""
    (directory / "shop.py").write_text(textwrap.dedent(CONFIGURE) + textwrap.dedent(source))
    return {"WHERE": json.dumps(where or {"directory": str(directory / "logs")}), "BROKER": str(directory / "broker")}


def lines_of(directory: Path) -> list[str]:
    """What was logged, but for the first tries whether the server is there."""
    return [line for line in logged(directory) if line.startswith("line-")]


def gunicorn(port: int, *arguments: str) -> list[str]:
    """Its command, with eight workers that are replaced after five requests."""
    command = f"-m gunicorn shop:app -b 127.0.0.1:{port} -w 8 --max-requests 5 --timeout {PATIENCE:.0f} --log-level error"
    return [*command.split(), *arguments]


@pytest.mark.parametrize(("preload", "processes"), [(["--preload"], 9), ([], 8)], ids=["preload", "each worker loads"])
def test_gunicorn_keeps_every_line(preload: list[str], processes: int, shm_dir: Path) -> None:
    """Of eight workers, which are replaced after five requests and of which some are killed. With preload the master logs, too."""
    pytest.importorskip("gunicorn")
    port, variables = free_port(), lay(shm_dir, WSGI)
    with server(shm_dir, *gunicorn(port, *preload), **variables) as process:
        wait_for(lambda: ask(port, "ready") is not None, process)
        answered = answered_lines(port, 100, kills=8)
        end(process)
        assert wrong_lines(answered, lines_of(shm_dir)) == []
        assert len(os.listdir(shm_dir / "logs")) <= processes
        assert b"Logging error" not in (shm_dir / "err").read_bytes()


def test_check_of_lines_finds_what_workers_lose_in_the_log_of_their_parent(shm_dir: Path) -> None:
    """Negative control of the tests here: a path without a process id is a log of the master only."""
    pytest.importorskip("gunicorn")
    (shm_dir / "logs").mkdir()
    port, variables = free_port(), lay(shm_dir, WSGI, path=str(shm_dir / "logs" / "shop.wal"))
    with server(shm_dir, *gunicorn(port, "--preload"), **variables) as process:
        wait_for(lambda: ask(port, "ready") is not None, process)
        answered = answered_lines(port, 8)
        end(process)
    with pytest.raises(AssertionError, match="line-"):
        assert wrong_lines(answered, lines_of(shm_dir)) == []


def test_uvicorn_keeps_every_line(shm_dir: Path) -> None:
    """Its workers are spawned, and run the configuration again; one that is killed is replaced."""
    pytest.importorskip("uvicorn")
    port, variables = free_port(), lay(shm_dir, ASGI)
    command = f"-m uvicorn shop:app --port {port} --workers 4 --log-level error"
    with server(shm_dir, *command.split(), **variables) as process:
        wait_for(lambda: ask(port, "ready") is not None, process)
        answered = answered_lines(port, 200, kills=2)
        end(process)
        assert wrong_lines(answered, lines_of(shm_dir)) == []
        assert len(os.listdir(shm_dir / "logs")) <= 4
        assert b"Logging error" not in (shm_dir / "err").read_bytes()


def test_celery_keeps_every_line(shm_dir: Path) -> None:
    """Its pool forks after the application was loaded, and replaces a child after three tasks."""
    pytest.importorskip("celery")
    variables = lay(shm_dir, TASKS)
    (shm_dir / "broker").mkdir()
    command = "-m celery -A shop:tasks worker -c 4 --max-tasks-per-child 3 -l error -P prefork"
    lines = [f"line-job-{number}" for number in range(40)]
    with server(shm_dir, *command.split(), **variables) as process:
        script = "import sys, shop\nfor line in sys.argv[1:]: shop.pay.delay(line)"
        sent = subprocess.run(
            [sys.executable, "-c", script, *lines],
            cwd=shm_dir,
            env=os.environ | variables | {"WHERE": json.dumps({"directory": str(shm_dir / "other")}), "PYTHONPATH": str(shm_dir)},
            capture_output=True,
            check=False,
        )
        assert sent.returncode == 0, sent.stderr.decode()
        wait_for(lambda: (shm_dir / "logs").exists() and len(logged(shm_dir)) >= len(lines), process)
        end_celery(process)
    assert wrong_lines(lines, lines_of(shm_dir)) == []
    assert len(os.listdir(shm_dir / "logs")) <= 5  # four children, and the process that forks them
    assert b"Logging error" not in (shm_dir / "err").read_bytes()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_keeps_every_line(method: str, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight processes at a time, and the one that starts and kills them."""
    for name, value in lay(shm_dir, PROCESSES).items():
        monkeypatch.setenv(name, value)
    program = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = run_script(program, shm_dir / "shop.py", method)
    assert done.stderr == ""
    acknowledged = json.loads(done.stdout)
    found = logged(shm_dir)
    returned = [f"line-{name}-{number}" for name, last in acknowledged.items() for number in range(1, last + 1)]
    assert wrong_lines(returned, lines_of(shm_dir)) == []
    assert len(acknowledged) == 16
    assert found.count("main") == 8
    assert [line for line in found if not re.fullmatch(r"main|line-\d+-\d+", line)] == []
    assert len(os.listdir(shm_dir / "logs")) <= 9
