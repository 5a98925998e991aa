"""Disks without space: a limit on the size of files, which the kernel enforces like a full disk, and a disk that is really full."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pmwal
from pmwal.testing.stress.violation import Violation

LIMIT = 16 << 10  # bytes: less than any log has
_PIECE_MIN = 4096
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def filled(directory: Path) -> Iterator[None]:
    """Fill the file system of a directory while the block runs."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            status = os.statvfs(directory)
            piece, end = max(_PIECE_MIN, status.f_bavail * status.f_frsize), 0
            while piece >= _PIECE_MIN:
                try:
                    os.posix_fallocate(file.fileno(), end, piece)
                    end += piece
                except OSError as error:
                    if error.errno not in _REFUSALS:
                        raise
                    piece //= 2
            yield
        finally:
            filler.unlink()


def limit_files() -> None:
    """From now on this process cannot write to a file beyond ``LIMIT``. Python ignores SIGXFSZ, so the calls fail."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def unlimit_files() -> None:
    """As before ``limit_files``."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def refuse_creation(path: Path) -> None:
    """A new log finds no space: it must be refused by the operating system's error, and nothing may be left."""
    try:
        pmwal.open(path, "x", size="1MiB").close()
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
    else:
        raise Violation("a log was created although there was no space for it", "space-from-nowhere")
    if path.exists():
        raise Violation("a creation that was refused for lack of space has left a file", "orphan")
