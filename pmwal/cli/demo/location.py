"""Where the demo keeps its log, and what is removed at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator

from pmwal.logs.paths import SUFFIX
from pmwal.storage.medium import filesystem

_DISK_DIRECTORIES = ("/var/tmp", ".", "~")


@contextlib.contextmanager
def scratch_directory() -> Iterator[str]:
    """A temporary directory for what is not under test."""
    directory = tempfile.mkdtemp(prefix="pmwal-demo-input-")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Location:
    """The path of the log, whether it was created, and whether to keep it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.created = False
        self.keep = False


@contextlib.contextmanager
def log_location(requested: str | None) -> Iterator[Location]:
    """A path for the log; at the end the log is removed unless it is to be kept."""
    directory: str | None = None
    if requested is not None and not os.path.lexists(requested) and not requested.endswith(SUFFIX):
        raise FileNotFoundError(
            errno.ENOENT, f"no such directory; create it first, or give the name of a new file that ends in {SUFFIX}", requested
        )
    if requested is None or os.path.isdir(requested):
        directory = tempfile.mkdtemp(prefix="pmwal-demo-", dir=requested if requested is not None else _disk_directory())
        location = Location(os.path.join(directory, "demo.wal"))
    else:
        location = Location(requested)
    try:
        yield location
    finally:
        if not (location.created and location.keep):
            if location.created:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(location.path)
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)


def _disk_directory() -> str:
    """The first writable directory that is not in memory, or else the temporary directory."""
    usual = tempfile.gettempdir()
    for directory in (usual, *map(os.path.expanduser, _DISK_DIRECTORIES)):
        with contextlib.suppress(OSError):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if filesystem(fd) not in ("tmpfs", "ramfs") and os.access(directory, os.W_OK):
                    return os.path.abspath(directory)
            finally:
                os.close(fd)
    return usual
