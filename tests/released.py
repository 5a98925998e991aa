"""A released pmwal in an environment of its own, and processes that use either version."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest

from processes import PATIENCE

ROOT = Path(__file__).parent.parent
RELEASE = "b09639812302c5b734f1b0969ce23eb9adb6d266"
"""The last commit of version 0.1."""
SOURCES = ("pmwal", "pytest_pmwal.py", "setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


def unavailable(reason: str) -> None:
    """Skip the test, or fail it where all rigs are required."""
    message = f"pmwal 0.1 cannot be installed: {reason}"
    if os.environ.get("PMWAL_REQUIRE_RIGS") == "1":
        pytest.fail(f"{message} (PMWAL_REQUIRE_RIGS=1)")
    pytest.skip(message)


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def _install(directory: Path) -> str | None:
    """Make the environment; why that failed, if it did."""
    if shutil.which("git") is None:
        return "git is missing: apt-get install git"
    if _run("git", "-C", ROOT, "cat-file", "-e", f"{RELEASE}^{{commit}}").returncode:
        return f"this clone has no commit {RELEASE[:9]}: git fetch --unshallow"
    shutil.rmtree(directory, ignore_errors=True)
    source = directory / "source"
    source.mkdir(parents=True)
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", RELEASE, *SOURCES], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    made = _run(sys.executable, "-m", "venv", "--without-pip", directory / "venv")
    if made.returncode:
        return f"python -m venv: {made.stderr.strip()[-300:]}"
    python = directory / "venv" / "bin" / "python"
    pip = _run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", source)
    if pip.returncode:
        return f"pip install: {pip.stderr.strip()[-300:]}"
    (site,) = (directory / "venv" / "lib").glob("python*/site-packages")
    # Its dependencies are those of this environment. Its own pmwal comes first: site-packages precedes what a .pth file adds.
    places = {str(Path(module.__file__ or "").parent.parent) for module in (np, crc32c)}
    (site / "dependencies.pth").write_text("".join(f"{place}\n" for place in sorted(places)))
    return None


def install(config: pytest.Config, fallback: Path) -> Path:
    """The interpreter of an environment with pmwal 0.1, made once and kept in pytest's cache."""
    cache = getattr(config, "cache", None)
    name = f"pmwal-{RELEASE[:9]}-{sys.implementation.cache_tag}"
    directory = Path(cache.mkdir(name)) if cache is not None else fallback / name
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w") as lock:  # several workers may come at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        environment, done = directory / "environment", directory / "installed-for"
        python = environment / "venv" / "bin" / "python"
        if not (done.exists() and done.read_text() == sys.executable and python.exists()):
            reason = _install(environment)
            if reason is not None:
                unavailable(reason)
            done.write_text(sys.executable)
    return python


class PeerError(Exception):
    """The process answered with an exception: its class and its text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class Peer:
    """A process of ``peer.py``."""

    def __init__(self, python: str | Path, engine: str) -> None:
        environment = {**os.environ, "PMWAL_ENGINE": engine}
        if str(python) != sys.executable:
            environment.pop("PYTHONPATH", None)  # it may lead to another pmwal than the one in that environment
        pipe = subprocess.PIPE
        script = str(Path(__file__).with_name("peer.py"))
        # -P: the directory of the script is not on the path, nor is the working directory, where a pmwal may lie.
        self._process = subprocess.Popen([str(python), "-P", script], stdin=pipe, stdout=pipe, text=True, env=environment)
        self.file, self.version = self.call("hello")

    def say(self, method: str, *arguments: Any) -> None:
        """Ask, without waiting for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, arguments]) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """The answer to the oldest question."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        assert line, f"the process ended with status {self._process.wait(PATIENCE)}, without an answer"
        kind, *answer = json.loads(line)
        if kind == "error":
            raise PeerError(*answer)
        return answer[0]

    def call(self, method: str, *arguments: Any) -> Any:
        """Ask, and wait for the answer."""
        self.say(method, *arguments)
        return self.hear()

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@contextlib.contextmanager
def peers(pythons: Sequence[str | Path], engine: str) -> Iterator[list[Peer]]:
    """A process for each of these interpreters; they are killed when the block ends."""
    started: list[Peer] = []
    try:
        for python in pythons:
            started.append(Peer(python, engine))
        yield started
    finally:
        for peer in started:
            peer.kill()


def packed(payload: bytes) -> str:
    """A payload for a question."""
    return base64.b64encode(payload).decode()


def unpacked(records: Sequence[Sequence[Any]]) -> list[tuple[int, bytes]]:
    """Records of an answer."""
    return [(seq, base64.b64decode(payload)) for seq, payload in records]
