"""Processes that see nothing of their parent: another user, in a pid namespace and with a /proc of their own.

So do readers in a container, or under hidepid: the writer's process id says nothing there, and its files can only be read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

USER = 65534
"""The user and group of these processes, by tradition nobody and nogroup."""

_CLONE_NEWNS, _CLONE_NEWPID = 0x20000, 0x20000000  # linux/sched.h
_MS_NODEV, _MS_NOEXEC, _MS_NOSUID, _MS_REC, _MS_PRIVATE = 4, 8, 2, 16384, 1 << 18  # linux/mount.h


def _system(call: str, *args: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*args):
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


@contextlib.contextmanager
def namespace() -> Iterator[None]:
    """What is forked inside the block is the first process of a new pid namespace; its parent knows it by its own id of it."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _system("unshare", _CLONE_NEWPID)
        try:
            yield
        finally:
            _system("setns", own, _CLONE_NEWPID)
    finally:
        os.close(own)


def enter() -> None:
    """Called by the forked process: mount a /proc of its own namespace, and become another user."""
    _system("unshare", _CLONE_NEWNS)
    _system("mount", b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    flags = ctypes.c_ulong(_MS_NODEV | _MS_NOEXEC | _MS_NOSUID)
    _system("mount", b"proc", b"/proc", b"proc", flags, None)
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)


def problem() -> str | None:
    """Why this machine does not permit it; None if it does."""
    try:
        with namespace():
            child = os.fork()
            if child == 0:
                try:
                    enter()
                except OSError as error:
                    os._exit(error.errno or 1)
                os._exit(0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code:
            raise OSError(code, os.strerror(code))
    except OSError as error:
        return f"--isolated-readers needs root, and the right to unshare and to mount /proc: {error.strerror}"
    return None


def unreachable(directory: str) -> str | None:
    """Why these processes could not reach the logs in this directory; None if they can."""
    closed = [path for path in _and_parents(os.path.realpath(directory)) if not os.stat(path).st_mode & 0o001]
    if not closed:
        return None
    return f"--isolated-readers are another user, who may not enter {closed[-1]}: chmod o+x it, or use another --path"


def _and_parents(path: str) -> Iterator[str]:
    while True:
        yield path
        if path == (parent := os.path.dirname(path)):
            return
        path = parent
