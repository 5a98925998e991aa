"""What the rigs put their logs on: loop devices and mounts.

Each block releases what it acquired, also after an exception. If the process is killed, the kernel does so: the mounts are in a
namespace of their own, and a loop device disappears with its last user.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 600.0
"""Seconds after which a step counts as hanging."""

_CLONE_NEWNS = 0x20000  # linux/sched.h
_MS_REC, _MS_PRIVATE, _MNT_DETACH = 16384, 1 << 18, 2  # linux/mount.h
_LOOP_CONFIGURE, _LOOP_GET_FREE = 0x4C0A, 0x4C82  # linux/loop.h
_LO_AUTOCLEAR, _LO_DIRECT_IO = 4, 16
_LOOP_CONFIG = struct.Struct("<II 52x I 64x 64x 32x 16x 64x")  # fd, block size; flags; sizes as in linux/loop.h
_BLKFLSBUF = 0x1261  # linux/fs.h
_libc = ctypes.CDLL(None, use_errno=True)


class StorageError(Exception):
    """The machine has what the rig needs, but a system call or the program failed."""


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str, target: Path, filesystem: str, options: str) -> None:
    """mount(2)."""
    _call("mount", source.encode(), os.fsencode(target), filesystem.encode(), ctypes.c_ulong(0), options.encode())


def unmount(target: Path, flags: int = _MNT_DETACH) -> None:
    """Unmount it if it is mounted: an interrupt may come before or after the mount."""
    try:
        _call("umount2", os.fsencode(target), flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def own_mounts() -> None:
    """Give this process a mount namespace: only it and its children see its mounts, which end with them."""
    _call("unshare", _CLONE_NEWNS)
    _call("mount", b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)


@contextlib.contextmanager
def loop_device(path: Path, *, direct: bool = False) -> Iterator[str]:
    """A block device over a file. ``direct``: with O_DIRECT, bypassing the page cache of that file."""
    with contextlib.ExitStack() as stack:

        def opened(name: str | Path, flags: int) -> int:
            fd = os.open(name, flags | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        control = opened("/dev/loop-control", os.O_RDWR)
        backing = opened(path, os.O_RDWR | (os.O_DIRECT if direct else 0))
        settings = _LOOP_CONFIG.pack(backing, 0, _LO_AUTOCLEAR | (_LO_DIRECT_IO if direct else 0))
        deadline = time.monotonic() + PATIENCE
        while True:
            name = f"/dev/loop{fcntl.ioctl(control, _LOOP_GET_FREE)}"
            device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, settings)
                break
            except OSError as error:  # EBUSY: another process took it first
                os.close(device)
                if time.monotonic() > deadline:
                    raise StorageError(f"{name}: {error.strerror}") from error
        stack.callback(os.close, device)  # autoclear: the device releases the file when its last user closes it
        yield name


def forget_blocks(device: str) -> None:
    """Drop the cache of a block device whose backing file was changed."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _BLKFLSBUF, 0)
    finally:
        os.close(fd)


@contextlib.contextmanager
def mounted(device: str, directory: Path, filesystem: str, options: str = "") -> Iterator[None]:
    """Mount a file system while the block runs."""
    try:
        mount(device, directory, filesystem, options)
        yield
    finally:
        unmount(directory, 0)
