"""The recipes: their files, written to a directory as they are in the documents, and their commands, with the real servers."""

from __future__ import annotations

import errno
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

import pmwal
from documents import ROOT, read_blocks, read_section
from loggers import logger_of
from pmwal.logs.slots import is_taken
from processes import PATIENCE, elsewhere, on_tmpfs
from servers import ask, end, end_celery, free_port, logged, server, spares_of_session, wait_for

pytestmark = pytest.mark.slow

BROKER = """
jobs.conf.update(
    broker_url="filesystem://",
    broker_transport_options={"data_folder_in": "broker", "data_folder_out": "broker"},
    broker_connection_retry_on_startup=False,
)
"""
"""In place of the Redis of the recipe."""
UNSHARE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]


class Recipe:
    """One section of a page of recipes, in a directory of its own."""

    def __init__(self, directory: Path, title: str, page: str = "recipes.md") -> None:
        self.directory = directory
        self.port = free_port()
        self.files: list[str] = []
        section = read_section(page, title)
        for source in (read_section("recipes.md", "The configuration"), section):
            for _, block in read_blocks(source, "python"):
                name = re.match(r"# (\S+\.py)\n", block)
                assert name is not None
                (directory / name[1]).write_text(self._here(block))
                self.files.append(name[1])
        lines = [line for _, block in read_blocks(section, "console") for line in block.splitlines()]
        self.commands = [shlex.split(self._here(line.removeprefix("$ python "))) for line in lines]

    def _here(self, text: str) -> str:
        return text.replace("/var/log/shop", str(self.directory / "logs")).replace("8000", str(self.port))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.directory, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    @property
    def slots(self) -> list[str]:
        """The files in the directory of the logs."""
        return sorted(os.listdir(self.directory / "logs"))


def serve(recipe: Recipe, *more: str, spares: int = 5) -> list[str]:
    """Run its server, ask thirty times, and end it; the lines. In the end it has no more than these spares.

    A log that a worker is creating is a file without a name, too, for a moment.
    """
    (command,) = recipe.commands
    with server(recipe.directory, *command, *more) as process:
        wait_for(lambda: ask(recipe.port, "order=ready") is not None, process)
        for number in range(30):
            assert ask(recipe.port, f"order={number}") == b"done"
        wait_for(lambda: spares_of_session(process, recipe.directory) <= spares, process)
        end(process)
    assert b"Logging error" not in (recipe.directory / "err").read_bytes()
    return logged(recipe.directory)


def asked(lines: list[str]) -> list[str]:
    """What the application has logged, without the first tries."""
    return sorted(line for line in lines if line.startswith("INFO shop: asked for ") and not line.endswith("ready"))


def expected(text: str) -> list[str]:
    """The same, if nothing is lost."""
    return sorted(f"INFO shop: asked for {text.format(number)}" for number in range(30))


@pytest.mark.parametrize("more", [[], ["--preload"]], ids=["each worker loads", "preload"])
def test_gunicorn(more: list[str], shm_dir: Path) -> None:
    """Lines of the application, of gunicorn and of the access log, in as many files as there are processes."""
    pytest.importorskip("gunicorn")
    recipe = Recipe(shm_dir, "gunicorn")
    lines = serve(recipe, *more)
    assert asked(lines) == expected("order={}")
    assert [line for line in lines if line.startswith("INFO gunicorn.error: Booting worker")] != []
    assert [line for line in lines if line.startswith("INFO gunicorn.access: ") and "order=7 " in line] != []
    assert len(recipe.slots) <= 5
    shown = recipe.run("show.py")
    assert (shown.stderr, len(shown.stdout.splitlines())) == ("", len(lines))


def test_gunicorn_without_its_own_lines(shm_dir: Path) -> None:
    """The configuration file is optional."""
    pytest.importorskip("gunicorn")
    recipe = Recipe(shm_dir, "gunicorn")
    (shm_dir / "gunicorn.conf.py").unlink()
    assert asked(serve(recipe)) == expected("order={}")
    assert len(recipe.slots) <= 4


def test_uvicorn(shm_dir: Path) -> None:
    """The same of uvicorn, whose supervisor has no log."""
    pytest.importorskip("uvicorn")
    recipe = Recipe(shm_dir, "uvicorn")
    lines = serve(recipe, spares=0)  # its workers are not forked, and fork nothing
    assert asked(lines) == expected("order={}")
    assert [line for line in lines if line.startswith("INFO uvicorn.access: ") and "order=7 " in line] != []
    assert len(recipe.slots) <= 4


def test_celery(shm_dir: Path) -> None:
    """Lines of the jobs and of Celery itself."""
    pytest.importorskip("celery")
    recipe = Recipe(shm_dir, "Celery")
    (shm_dir / "broker").mkdir()
    with (shm_dir / "jobs.py").open("a") as file:
        file.write(BROKER)
    sent = recipe.run("-c", "import jobs\nfor number in range(30): jobs.pay.delay(number)")
    assert sent.returncode == 0, sent.stderr
    (command,) = recipe.commands

    def paid() -> list[str]:
        return sorted(line for line in logged(shm_dir) if line.startswith("INFO shop.jobs: paid order "))

    with server(shm_dir, *command) as process:
        wait_for(lambda: (shm_dir / "logs").exists() and len(paid()) >= 30, process)
        end_celery(process)
    assert paid() == sorted(f"INFO shop.jobs: paid order {number}" for number in range(30))
    assert [line for line in logged(shm_dir) if line.startswith("INFO celery.")] != []
    assert len(recipe.slots) <= 5
    assert b"Logging error" not in (shm_dir / "err").read_bytes()


@pytest.mark.parametrize("preload", [True, False], ids=["preload", "each worker loads"])
def test_django(preload: bool, shm_dir: Path) -> None:
    """Lines of a view and of Django itself."""
    pytest.importorskip("gunicorn")
    pytest.importorskip("django")
    recipe = Recipe(shm_dir, "Django")
    if not preload:
        recipe.commands[0].remove("--preload")
    lines = serve(recipe)
    assert asked(lines) == expected("{}")
    assert len(recipe.slots) <= 5


def test_django_logs_what_is_not_found(shm_dir: Path) -> None:
    """Through its own loggers, and so does a management command, as a process of its own."""
    pytest.importorskip("django")
    recipe = Recipe(shm_dir, "Django")
    client = (
        "from wsgi import application\nfrom django.test import Client\n"
        "assert Client(SERVER_NAME='127.0.0.1').get('/none').status_code == 404"
    )
    assert recipe.run("-c", client).returncode == 0
    done = recipe.run("-m", "django", "check", "--settings", "settings")
    assert done.returncode == 0, done.stderr
    assert "WARNING django.request: Not Found: /none" in logged(shm_dir)
    assert recipe.slots == ["00.wal"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, shm_dir: Path) -> None:
    """Every job's line, whichever way the pool starts its processes."""
    recipe = Recipe(shm_dir, "multiprocessing")
    ((program, _),) = recipe.commands
    done = recipe.run(program, method)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(logged(shm_dir)) == sorted([f"INFO shop: job {number}" for number in range(100)] + ["INFO shop: all done"])
    assert len(recipe.slots) <= 5


def test_cron(shm_dir: Path) -> None:
    """One file for runs after each other; the crontab names the same command."""
    recipe = Recipe(shm_dir, "cron")
    (command,) = recipe.commands
    ((_, crontab),) = read_blocks(read_section("recipes.md", "cron"), "text")
    assert crontab.endswith(f"python {shlex.join(command)}\n")
    for _ in range(3):
        done = recipe.run(*command)
        assert (done.returncode, done.stderr) == (0, "")
    assert logged(shm_dir) == ["INFO shop.nightly: began", "INFO shop.nightly: closed 17 orders"] * 3
    assert recipe.slots == ["00.wal"]


def test_every_recipe_has_a_test() -> None:
    """A section with a command is one of those above."""
    pages = [(page, re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)) for page in sorted(ROOT.glob("docs/recipes*.md"))]
    with_command = [
        title for page, titles in pages for title in titles if [*read_blocks(read_section(page.name, title), "console")]
    ]
    source = Path(__file__).read_text()
    assert [title for title in with_command if f'Recipe(shm_dir, "{title}"' not in source] == []
    assert len(with_command) == 6


# -- coming from another log


def test_from_journald_before_and_after(shm_dir: Path) -> None:
    """What the journal's socket gets, and the same line in a log."""
    recipe = Recipe(shm_dir, "Before and after", "from-journald.md")
    before = shm_dir / "before.py"
    before.write_text(before.read_text().replace("/dev/log", str(shm_dir / "socket")))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(shm_dir / "socket"))
        journal.settimeout(PATIENCE)
        assert recipe.run("before.py").returncode == 0
        assert journal.recv(1000) == b"<11>shop: order 7 is late\0"
    assert recipe.run("after.py").returncode == 0
    with pmwal.LogSet(shm_dir / "logs") as logs:
        assert [(record.kind, record.data) for record in logs] == [(logging.ERROR, b"order 7 is late")]
    assert (shm_dir / "logs" / "00.wal").stat().st_mode & 0o777 == 0o640


# -- containers


def test_worker_ends_at_the_stop_signal_with_its_last_line(shm_dir: Path) -> None:
    """As process 1 of a container, where SIGTERM without a handler would be ignored."""
    recipe = Recipe(shm_dir, "The stop signal", "recipes-containers.md")
    with server(shm_dir, "worker.py") as process:
        wait_for(lambda: (shm_dir / "logs").exists() and logged(shm_dir), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert logged(shm_dir) == [f"INFO shop.worker: ready as process {process.pid}", "INFO shop.worker: stopped"]
    assert recipe.slots == ["00.wal"]


def replica(directory: Path) -> subprocess.Popen[bytes]:
    """The worker of the recipe as process 1 of a PID namespace, which ends with the process that is returned."""
    return subprocess.Popen([*UNSHARE, sys.executable, "worker.py"], cwd=directory, stderr=subprocess.PIPE)


def test_replicas_share_a_volume_although_each_has_a_process_1(shm_dir: Path) -> None:
    """Each has a file of its own; that of one that is killed is taken over with its lines."""
    if not shutil.which(UNSHARE[0]) or subprocess.run([*UNSHARE, "true"], check=False).returncode:
        pytest.skip("namespaces are not permitted here")
    recipe = Recipe(shm_dir, "The stop signal", "recipes-containers.md")
    with ExitStack() as stack:
        running = []
        for count in (1, 2, 3):
            running.append(stack.enter_context(replica(shm_dir)))
            stack.callback(running[-1].kill)
            wait_for(lambda: (shm_dir / "logs").exists() and len(logged(shm_dir)) >= count, running[-1])  # noqa: B023 - used at once
            if count == 2:
                assert recipe.slots == ["00.wal", "01.wal"]
                running[0].kill()
                running[0].wait()
                wait_for(lambda: not is_taken(str(shm_dir / "logs" / "00.wal")))
        assert logged(shm_dir) == ["INFO shop.worker: ready as process 1"] * 3
        assert recipe.slots == ["00.wal", "01.wal"]


def test_shared_memory_of_a_container_has_room_for_small_logs_only(shm_dir: Path) -> None:
    """Its 64 MB are less than a log of the default size, with its control region."""

    def run() -> tuple[int | None, list[str]]:
        with pytest.raises(OSError, match="space") as error:
            pmwal.LogHandler(directory=shm_dir / "logs")
        pmwal.LogHandler(directory=shm_dir / "logs", size="16MiB").close()
        return error.value.errno, os.listdir(shm_dir / "logs")

    assert on_tmpfs(shm_dir, "size=64m", run) == (errno.ENOSPC, ["00.wal"])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be several users")
def test_group_reads_what_a_service_writes_and_two_users_share_a_directory(shm_dir: Path) -> None:
    """With the modes of the recipe; nobody else can read."""
    logs = shm_dir / "logs"
    logs.mkdir()
    os.chown(logs, 10001, 10001)
    logs.chmod(0o2750)
    shm_dir.chmod(0o755)

    def write() -> list[str]:
        handler = pmwal.LogHandler(directory=logs, size="64KiB", file_mode="640")
        logger_of(handler).info("from %d", os.getuid())
        handler.close()
        return sorted(os.listdir(logs))

    def become(uid: int, gid: int, function: Callable[[], list[str]]) -> list[str]:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        return function()

    assert elsewhere(become, 10001, 10001, write) == ["00.wal"]
    assert elsewhere(become, 10002, 10001, lambda: logged(shm_dir)) == ["from 10001"]
    with pytest.raises(PermissionError):
        elsewhere(become, 10003, 10003, lambda: logged(shm_dir))
    logs.chmod(0o2770)
    assert elsewhere(become, 10002, 10001, write) == ["00.wal", "01.wal"]
    assert sorted(logged(shm_dir)) == ["from 10001", "from 10002"]
