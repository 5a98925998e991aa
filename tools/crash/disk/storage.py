"""A disk that logs its writes and flushes, and what is built on it: its server, loop devices, mounts.

Each block releases what it acquired, also after an exception. If the process is killed, the kernel does so: the mounts are in a
namespace of their own, a loop device disappears with its last user, and the server gets SIGKILL when its parent dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from crash.process import die_with_parent

SERVER = Path(__file__).with_name("logdisk.py")
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


def set_apart(mountpoint: Path) -> None:
    """For ``preexec_fn`` of the server: it sees neither its own file nor what is mounted on that later.

    A file system writes to its disk when it is unmounted. If the exit of the server did that, it would wait for itself forever.
    """
    die_with_parent()
    own_mounts()
    unmount(mountpoint)


@contextlib.contextmanager
def logged(image: Path, log: Path, mountpoint: Path) -> Iterator[None]:
    """Serve the image as a file at ``mountpoint``, and log every write and flush of it."""
    for path in (log, mountpoint):
        path.touch()
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    server: subprocess.Popen[bytes] | None = None
    status = 0
    try:
        options = f"fd={fuse},rootmode={stat.S_IFREG:o},user_id=0,group_id=0,max_read={1 << 20}"
        mount("pmwal-logdisk", mountpoint, "fuse", options)
        command = [sys.executable, str(SERVER), str(fuse), str(image), str(log)]
        server = subprocess.Popen(  # its own session: Ctrl-C must not end it before the file is unmounted
            command,
            pass_fds=[fuse],
            start_new_session=True,
            preexec_fn=partial(set_apart, mountpoint),  # noqa: PLW1509 (one thread)
        )
        os.close(fuse)
        fuse = -1
        yield
    finally:
        if fuse >= 0:
            os.close(fuse)
        unmount(mountpoint)
        if server is not None:
            try:
                status = server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                server.kill()
                status = server.wait()
    if status:
        raise StorageError(f"{SERVER.name} ended with {status}")


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
