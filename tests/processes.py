"""Other processes for tests: forked ones that run a function, and new interpreters that run a script."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 300.0
"""Seconds after which a silent process counts as stuck: far more than a busy machine needs, since only a hang waits that long."""

_FORK = multiprocessing.get_context("fork")


def limit_time() -> None:
    """For ``preexec_fn``: the program ends after ``PATIENCE``, and with it the output that a test may be reading."""
    signal.alarm(int(PATIENCE))


class Died(Exception):
    """The process ended without an answer. ``code`` is its exit status, negative for a signal."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"the process ended with status {code}, without an answer")
        self.code = code


class Child:
    """A running process and the pipe to it."""

    def __init__(self, process: Any, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe
        self.pid: int = process.pid

    def say(self, message: Any) -> None:
        """Send a message to the process."""
        self._pipe.send(message)

    def heard(self, timeout: float = 0) -> bool:
        """Whether the process has sent a message, or ended."""
        return self._pipe.poll(timeout)

    def hear(self) -> Any:
        """The next message from the process; ``Died`` if it ended first."""
        if not self._pipe.poll(PATIENCE):
            raise TimeoutError(f"process {self.pid} has been silent for {PATIENCE} s")
        try:
            return self._pipe.recv()
        except EOFError:
            raise Died(self.wait()) from None

    def wait(self) -> int | None:
        """Wait until the process ends; return its exit status."""
        # Not join(timeout): it also waits for the process's own forked children, which hold its pipe open.
        deadline = time.monotonic() + PATIENCE
        while self._process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.001)
        code: int | None = self._process.exitcode
        return code

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process is gone."""
        self._process.kill()
        self._process.join()


@contextlib.contextmanager
def child(body: Callable[..., None], *args: Any) -> Iterator[Child]:
    """A forked process that runs ``body(pipe, *args)``; it is killed when the block ends."""
    here, there = _FORK.Pipe()

    def run() -> None:
        here.close()
        body(there, *args)

    process = _FORK.Process(target=run, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn about forking while the test runner has threads
        process.start()
    there.close()
    running = Child(process, here)
    try:
        yield running
    finally:
        running.kill()
        here.close()


def _answer(pipe: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        answer = True, function(*args)
    except Exception as error:
        answer = False, error
    pipe.send(answer)


def elsewhere(function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in a forked process; return its result or raise its exception, ``Died`` if the process dies."""
    with child(_answer, function, args) as running:
        fine, value = running.hear()
        running.wait()
    if not fine:
        raise value
    return value


def run_script(
    source: str, *args: object, timeout: float = PATIENCE, pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter, which imports installed modules and nothing from the working directory."""
    command = [sys.executable, "-P", "-c", textwrap.dedent(source), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, pass_fds=pass_fds)


# -- a small file system for one process

_CLONE_NEWNS = 0x20000  # linux/sched.h
_CLONE_NEWUSER = 0x10000000
_MS_RDONLY, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 1, 32, 16384, 1 << 18  # linux/mount.h


class CannotMount(Exception):
    """This machine does not permit tests to mount anything."""


def _system(call: str, *args: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*args):
        raise CannotMount(f"{call}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: Path, flags: int, options: str = "") -> None:
    _system("mount", source.encode(), os.fsencode(target), source.encode(), ctypes.c_ulong(flags), options.encode())


def _mounted(directory: Path, options: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    user, group = os.getuid(), os.getgid()
    _system("unshare", _CLONE_NEWNS | (0 if user == 0 else _CLONE_NEWUSER))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("none", Path("/"), _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", directory, 0, options)
    return function(*args)


def on_tmpfs(directory: Path, options: str, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in a process of its own with a tmpfs mounted at ``directory``; the mount ends with the process.

    The test is skipped if the machine does not permit that.
    """
    try:
        return elsewhere(_mounted, directory, options, function, args)
    except CannotMount as error:
        pytest.skip(f"mounting a tmpfs in a namespace is not permitted here: {error}")


def make_read_only(directory: Path) -> None:
    """Remount the tmpfs of ``on_tmpfs`` read-only, from inside."""
    _mount("tmpfs", directory, _MS_REMOUNT | _MS_RDONLY)
