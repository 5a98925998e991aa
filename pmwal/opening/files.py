"""The file of a log: owned, identified, and mapped to be read or written."""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import replace

from pmwal.errors import FormatError
from pmwal.format.layout import CAPACITY_DEFAULT, CAPACITY_MAX, CAPACITY_MIN, PAGE, Superblock
from pmwal.records import Progress
from pmwal.recovery.judge import Judgement
from pmwal.recovery.snapshot import judge_beside
from pmwal.recovery.superblock import Identity, identify, writable_problem
from pmwal.storage.create import create_file
from pmwal.storage.lock import Ownership, close_locked, open_to_lock
from pmwal.storage.mapping import Mapping, drop_cache
from pmwal.storage.medium import Medium, detect
from pmwal.storage.seam import Seam
from pmwal.units import parse_size

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_WRITE_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_TRIES = 16  # a file that is created, replaced or removed between two steps is looked for again


@contextlib.contextmanager
def inspect(path: str, seam: Seam, progress: Progress | None = None) -> Iterator[tuple[Mapping, Judgement]]:
    """A log mapped for reading and the verdict on it."""
    mapping, identity = map_for_reading(path, "auto", seam)
    try:
        yield mapping, judge_beside(mapping, identity, seam, progress)
    finally:
        mapping.close()


def map_for_reading(path: str, medium: str, seam: Seam) -> tuple[Mapping, Identity]:
    """The file mapped read-only and its superblock; ``FormatError`` when it is no log."""
    fd = os.open(path, _READ_FLAGS)
    try:
        identity = _identify(fd, path)
        mapping = Mapping(fd, identity.block.file_size, detect(fd, medium, path), seam, writable=False)
    except BaseException:
        os.close(fd)
        raise
    return mapping, identity


def own(
    path: str,
    mode: str,
    capacity: int | None,
    align: int | None,
    medium: str,
    application: bytes,
    seam: Seam,
    progress: Progress | None,
) -> tuple[Ownership, bool]:
    """The right to write the log at ``path``, and whether it was created for that."""
    for _ in range(_TRIES):
        if mode != "x":
            try:
                ownership = own_existing(path, seam)
            except FileNotFoundError:
                if mode == "r+":
                    raise
            else:
                if ownership is None:
                    continue
                return ownership, False
        try:
            return create_file(
                path if mode == "x" else os.path.realpath(path),
                capacity=CAPACITY_DEFAULT if capacity is None else capacity,
                alignment=align,
                medium=medium,
                application=application,
                seam=seam,
                progress=progress,
            ), True
        except FileExistsError:
            if mode == "x":
                raise
    raise FileNotFoundError(f"{path}: it is created and removed again and again by somebody else")


def own_existing(path: str, seam: Seam) -> Ownership | None:
    """Own the log at ``path``; None when another file took the name meanwhile."""
    fd = open_to_lock(path, _WRITE_FLAGS)
    try:
        _identify(fd, path)
        ownership = Ownership(fd, path, seam)
    except BaseException:
        close_locked(fd)
        raise
    try:
        same = os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        same = False
    if not same:
        ownership.release()
        return None
    return ownership


def _identify(fd: int, path: str) -> Identity:
    """The superblock, read without a mapping, so that nothing of a wrong file is ever mapped."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "regular file"
        raise FormatError(f"{path}: not a pmwal log: {'a directory' if kind == 'directory' else 'not a regular file'}")
    return identify(lambda offset, length: os.pread(fd, length, offset), status.st_size, path)


def map_for_writing(
    ownership: Ownership,
    path: str,
    capacity: int | None,
    align: int | None,
    medium: str,
    seam: Seam,
    lines: str | None,
) -> tuple[Mapping, Identity]:
    fd = os.open(f"/proc/self/fd/{ownership.fd}", _WRITE_FLAGS)  # the same file, an open description of its own
    try:
        identity = _identify(fd, path)
        block = identity.block
        check_geometry(path, block, capacity, align)
        problem = writable_problem(block)
        if problem is not None:
            raise FormatError(f"{path}: {problem}")
        status = os.fstat(fd)
        if status.st_size > block.file_size:
            warnings.warn(
                f"{path}: {status.st_size - block.file_size} bytes follow the log; they are left alone",
                RuntimeWarning,
                stacklevel=4,
            )
        kind = replace(detect(fd, medium, path), lines=lines)
        _prepare(fd, status, block, kind, seam)
        return Mapping(fd, block.file_size, kind, seam, writable=True), identity
    except BaseException:
        os.close(fd)
        raise


def check_geometry(path: str, block: Superblock, capacity: int | None, align: int | None) -> None:
    """``ValueError`` when a size or an alignment was asked for that is not the log's own."""
    if capacity is not None and capacity != block.capacity:
        raise ValueError(f"{path}: it exists with a size of {block.capacity} bytes, not {capacity}; leave size out")
    if align is not None and align != block.alignment:
        raise ValueError(f"{path}: it exists with an alignment of {block.alignment}, not {align}; leave align out")


def _prepare(fd: int, status: os.stat_result, block: Superblock, medium: Medium, seam: Seam) -> None:
    """Before mapping: no holes, nothing unsynced, and on a disk no large folios in the cache."""
    if status.st_blocks * 512 < block.file_size:  # copied sparsely; a store into a hole of a full disk is a SIGBUS
        seam.allocate(fd, block.file_size)
    with contextlib.suppress(OSError):
        seam.sync_file(fd)
    if medium.kind == "file":
        drop_cache(fd)


def capacity_of(size: int | str) -> int:
    capacity = -(-parse_size(size) // PAGE) * PAGE
    if not CAPACITY_MIN <= capacity <= CAPACITY_MAX:
        raise ValueError(f"size must be from {CAPACITY_MIN} to {CAPACITY_MAX} bytes, not {size!r}")
    return capacity
