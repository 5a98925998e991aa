"""What a rig needs of the machine, and what to install where it is missing.

A test calls ``require``: it is skipped where something is missing, and fails instead where ``PMWAL_REQUIRE_RIGS=1`` says that
all of it must be there (CI).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ALL_REQUIRED = "PMWAL_REQUIRE_RIGS"


class Need(NamedTuple):
    """Something that a rig uses, how to find out whether it is there, and what to do where it is not."""

    met: Callable[[], bool]
    remedy: str


def _command(name: str, package: str) -> Need:
    return Need(lambda: shutil.which(name) is not None, f"{name}: apt-get install {package}")


def _device(path: str) -> bool:
    return os.access(path, os.R_OK | os.W_OK)


def _filesystem(name: str) -> Need:
    """A file system of the running kernel; mounting one that is a module loads it."""

    def met() -> bool:
        names = [line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()]
        modules = Path("/lib/modules", os.uname().release)
        return name in names or any(modules.glob(f"kernel/fs/{name}/{name}.ko*"))

    return Need(met, f"{name}: a kernel with this file system (modprobe {name})")


NEEDS = {
    "linux-x86_64": Need(
        lambda: sys.platform == "linux" and os.uname().machine == "x86_64", "linux-x86_64: an x86-64 machine with Linux"
    ),
    "root": Need(lambda: os.geteuid() == 0, "root: run it as root (sudo), or in a container that may mount"),
    "fuse": Need(lambda: _device("/dev/fuse"), "fuse: modprobe fuse, and let /dev/fuse be used (docker run --device /dev/fuse)"),
    "loop": Need(lambda: _device("/dev/loop-control"), "loop: modprobe loop, and let /dev/loop* be used (docker run --privileged)"),
    "ext4": _filesystem("ext4"),
    "xfs": _filesystem("xfs"),
    "cc": Need(lambda: any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc"))), "cc: apt-get install gcc"),
    "qemu-system-x86_64": _command("qemu-system-x86_64", "qemu-system-x86"),
    "mkfs.ext4": _command("mkfs.ext4", "e2fsprogs"),
    "mkfs.xfs": _command("mkfs.xfs", "xfsprogs"),
}


def missing(*names: str) -> list[str]:
    """What of these is not here: for each a line that says what to install or to do. ``KeyError`` for an unknown name."""
    return [need.remedy for need in map(NEEDS.__getitem__, names) if not need.met()]


def require(*names: str) -> None:
    """Skip the test that calls this where something is missing; with ``PMWAL_REQUIRE_RIGS=1`` it fails."""
    import pytest  # noqa: PLC0415 (the rigs themselves run without it)

    wanting = missing(*names)
    if not wanting:
        return
    message = "needs " + "; ".join(wanting)
    if os.environ.get(ALL_REQUIRED) == "1":
        pytest.fail(f"{message} ({ALL_REQUIRED}=1)")
    pytest.skip(message)
