"""What the rigs need of the machine, and what to install if it is missing.

A test calls ``require``, which skips it if something is missing, or fails it if ``PMWAL_REQUIRE_RIGS=1`` is set (CI).
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
    """A requirement: a check whether it is met, and what to do if it is not."""

    met: Callable[[], bool]
    remedy: str


def _command(name: str, package: str) -> Need:
    return Need(lambda: shutil.which(name) is not None, f"{name}: apt-get install {package}")


def _device(path: str) -> bool:
    return os.access(path, os.R_OK | os.W_OK)


def _filesystem(name: str) -> Need:
    """A file system of the running kernel, built in or a module, which a mount loads."""

    def met() -> bool:
        names = [line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()]
        modules = Path("/lib/modules", os.uname().release)
        return name in names or any(modules.glob(f"kernel/fs/{name}/{name}.ko*"))

    return Need(met, f"{name}: a kernel with this file system (modprobe {name})")


NEEDS = {
    "linux-x86_64": Need(
        lambda: sys.platform == "linux" and os.uname().machine == "x86_64", "linux-x86_64: an x86-64 machine with Linux"
    ),
    "root": Need(lambda: os.geteuid() == 0, "root: run as root (sudo), in a container with the right to mount"),
    "fuse": Need(
        lambda: _device("/dev/fuse"), "fuse: modprobe fuse, and allow access to /dev/fuse (docker run --device /dev/fuse)"
    ),
    "loop": Need(
        lambda: _device("/dev/loop-control"), "loop: modprobe loop, and allow access to /dev/loop* (docker run --privileged)"
    ),
    "ext4": _filesystem("ext4"),
    "xfs": _filesystem("xfs"),
    "btrfs": _filesystem("btrfs"),
    "overlay": _filesystem("overlay"),
    "cc": Need(lambda: any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc"))), "cc: apt-get install gcc"),
    "qemu-system-x86_64": _command("qemu-system-x86_64", "qemu-system-x86"),
    "chromium": _command("chromium", "chromium"),
    "aarch64-linux-gnu-gcc": _command("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"),
    "qemu-aarch64": _command("qemu-aarch64", "qemu-user"),
    "musl-gcc": _command("musl-gcc", "musl-tools"),
    "mkfs.ext4": _command("mkfs.ext4", "e2fsprogs"),
    "mkfs.xfs": _command("mkfs.xfs", "xfsprogs"),
    "mkfs.btrfs": _command("mkfs.btrfs", "btrfs-progs"),
}


def missing(*names: str) -> list[str]:
    """For each unmet need, what to install or do. ``KeyError`` for an unknown name."""
    return [need.remedy for need in map(NEEDS.__getitem__, names) if not need.met()]


def require(*names: str) -> None:
    """Skip the calling test if something is missing; with ``PMWAL_REQUIRE_RIGS=1``, fail it."""
    import pytest  # noqa: PLC0415 (the rigs run without pytest)

    wanting = missing(*names)
    if not wanting:
        return
    message = "needs " + "; ".join(wanting)
    if os.environ.get(ALL_REQUIRED) == "1":
        pytest.fail(f"{message} ({ALL_REQUIRED}=1)")
    pytest.skip(message)
