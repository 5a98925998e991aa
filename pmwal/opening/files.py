"""The file of a log: lock it, identify it, and map it for reading or writing."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from pmwal.errors import FormatError, ShortenedWal
from pmwal.format.layout import CAPACITY_DEFAULT, Superblock
from pmwal.format.scan import scan_for
from pmwal.opening.options import Options
from pmwal.records import Progress
from pmwal.recovery.judge import Judgement, judge
from pmwal.recovery.snapshot import judge_beside
from pmwal.recovery.superblock import Identity, identify, writable_problem
from pmwal.storage.around import AroundMapping, ReadAround
from pmwal.storage.create import create_file
from pmwal.storage.descriptors import NO_REGULAR_FILE, open_descriptor
from pmwal.storage.lock import WriterLock, close_locked, open_to_lock
from pmwal.storage.mapping import Mapping, drop_cache
from pmwal.storage.medium import Medium, check_mappable, detect, flush_method
from pmwal.storage.seam import Seam

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_WRITE_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_TRIES = 16  # a file that was created, replaced or removed between two steps is looked for again


class Made(NamedTuple):
    """A log that was just created, and in which nobody has stored since: its lock, and the verdict on it."""

    lock: WriterLock
    judgement: Judgement


def judge_made(fd: int, path: str) -> Judgement:
    """The verdict on a log that was just created, for ``Made``."""
    identity = _identify(fd, path)
    return judge(lambda offset, length: os.pread(fd, length, offset), identity, None, scan_for(identity.block))


@contextlib.contextmanager
def inspect(
    path: str, seam: Seam, progress: Progress | None = None, *, around: bool = False
) -> Iterator[tuple[Mapping, Judgement]]:
    """Map a log for reading and judge it, also beside a running writer; yields both. ``around``: see ``map_for_reading``."""
    mapping, identity = map_for_reading(path, "auto", seam, around=around)
    try:
        yield mapping, judge_beside(mapping, identity, seam, progress)
    finally:
        mapping.close()


def map_for_reading(path: str, medium: str, seam: Seam, *, around: bool = False) -> tuple[Mapping, Identity]:
    """The file mapped for reading, and its superblock; ``FormatError`` if it is not a log.

    ``around``: what the medium cannot give, or was cut off, is read as zeros, and listed in ``Mapping.unreadable``.
    """
    fd = open_descriptor(path, _READ_FLAGS)
    try:
        unreadable: set[int] = set()
        identity = _identify(fd, path, unreadable, shortened=around)
        size, found = identity.block.file_size, detect(fd, medium, path)
        if around:
            return AroundMapping(fd, size, found, seam, unreadable), identity
        return Mapping(fd, size, found, seam, writable=False), identity
    except BaseException:
        os.close(fd)
        raise


def _identify(fd: int, path: str, unreadable: set[int] | None = None, *, shortened: bool = False) -> Identity:
    """The superblock, read without a mapping, so that no byte of a wrong file is ever mapped.

    A copy that cannot be read is a damaged copy. ``unreadable`` gets the numbers of the pages.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(f"{path}: not a pmwal log: {'a directory' if stat.S_ISDIR(status.st_mode) else 'not a regular file'}")
    pages: set[int] = set() if unreadable is None else unreadable
    reader = ReadAround(lambda offset, length: os.pread(fd, length, offset), pages)
    try:
        return identify(reader.load, status.st_size, path, shortened=shortened)
    except ShortenedWal:
        raise
    except FormatError:
        if pages:
            raise OSError(errno.EIO, f"{os.strerror(errno.EIO)}: no superblock can be read", path) from None
        raise


def lock_log(
    path: str,
    options: Options,
    seam: Seam,
    progress: Progress | None,
) -> tuple[WriterLock, bool]:
    """Lock the log at ``path`` for writing, or create it, as the mode says; the lock, and whether the log was created."""
    for _ in range(_TRIES):
        if options.mode != "x":
            try:
                lock = lock_existing(path, seam, follow=options.follows_links)
            except FileNotFoundError:
                if options.mode == "r+":
                    raise
            else:
                if lock is None:
                    continue
                return lock, False
        try:
            return create_file(
                os.path.realpath(path) if options.mode != "x" and options.follows_links else path,
                capacity=CAPACITY_DEFAULT if options.capacity is None else options.capacity,
                alignment=options.align,
                medium=options.medium,
                application=options.application,
                seam=seam,
                progress=progress,
                mode=options.mode_of_file,
            ), True
        except FileExistsError:
            if options.mode == "x":
                raise
    raise FileNotFoundError(f"{path}: another process keeps creating and removing it; stop that process and try again")


def lock_existing(path: str, seam: Seam, *, shortened: bool = False, follow: bool = True) -> WriterLock | None:
    """Lock the log at ``path`` for writing; None if another file took its name meanwhile. ``shortened``: see ``identify``.

    Without ``follow`` a symbolic link is no log: ``FormatError``.
    """
    try:
        fd = open_to_lock(path, _WRITE_FLAGS if follow else _WRITE_FLAGS | os.O_NOFOLLOW)
    except OSError as error:
        if follow or error.errno not in NO_REGULAR_FILE:
            raise
        raise FormatError(f"{path}: not a pmwal log: not a regular file") from error
    try:
        _identify(fd, path, shortened=shortened)
        lock = WriterLock(fd, path, seam)
    except BaseException:
        close_locked(fd)
        raise
    try:
        same = os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=follow))
    except FileNotFoundError:
        same = False
    if not same:
        lock.release()
        return None
    return lock


def resolved(path: str) -> str:
    """The path of a file that is to be replaced: a new file and a backup go where it is, and not where a symbolic link to it is."""
    return os.path.realpath(path) if os.path.islink(path) else path


def backup_for(path: str, backup: str | os.PathLike[str]) -> str:
    """The name under which a file that is replaced is kept: free, or its own since a replacement that was killed."""
    beside, name = os.path.split(os.path.abspath(os.fspath(backup)))
    directory = os.path.dirname(path)
    where = os.path.realpath(directory)
    if os.path.realpath(beside) != where:
        raise ValueError(f"backup must lie in {where}, because the old file is kept by a hard link")
    kept = os.path.join(directory, name)
    if not is_free(kept, path):
        raise FileExistsError(f"{os.fspath(backup)}: it exists; name another backup")
    return kept


def is_free(name: str, path: str) -> bool:
    """Whether nothing has this name, or the file at ``path`` has it as a second one."""
    return not os.path.lexists(name) or (name != path and os.path.samestat(os.lstat(name), os.stat(path)))


def map_for_writing(
    lock: WriterLock, path: str, options: Options, seam: Seam, *, by_lines: bool, created: bool, identity: Identity | None = None
) -> tuple[Mapping, Identity]:
    """The locked file mapped for writing, and its superblock. ``by_lines``: the engine can flush cache lines.

    ``created``: nobody has written to it since it was created, so it has no holes, is synced, and its folios are small.
    ``identity``: that superblock, if it is known.
    """
    fd = open_descriptor(f"/proc/self/fd/{lock.fd}", _WRITE_FLAGS)  # the same file, but an open file description of its own
    try:
        if identity is None:
            identity = _identify(fd, path)
        block = identity.block
        check_geometry(path, block, options)
        problem = writable_problem(block)
        if problem is not None:
            raise FormatError(f"{path}: {problem}")
        extra = os.fstat(fd).st_size - block.file_size
        if extra < 0:  # since it was identified: what follows would extend it
            raise FormatError(f"{path}: the file was shortened while it was opened; it is {-extra} bytes too short")
        if extra > 0:
            warnings.warn(
                f"{path}: {extra} bytes follow the log; they are left alone",
                RuntimeWarning,
                stacklevel=5,  # the caller of pmwal.open
            )
        check_mappable(fd, path)
        medium = replace(detect(fd, options.medium, path), lines=flush_method(seam.stores()) if by_lines else None)
        if not created:
            _prepare(fd, block.file_size, medium, seam)
        return Mapping(fd, block.file_size, medium, seam, writable=True), identity
    except BaseException:
        os.close(fd)
        raise


def check_geometry(path: str, block: Superblock, options: Options) -> None:
    """``ValueError`` if the options give a size, an alignment or a label other than the log's own."""
    if options.capacity is not None and options.capacity != block.capacity:
        raise ValueError(
            f"{path}: it exists with a size of {block.capacity} bytes, not {options.capacity}; leave size out, or change it with "
            "pmwal resize"
        )
    if options.align is not None and options.align != block.alignment:
        raise ValueError(f"{path}: it exists with an alignment of {block.alignment}, not {options.align}; leave align out")
    if options.label is not None and options.label != block.label:
        named = "has no label" if block.label is None else f"has the label {block.label!r}"
        raise ValueError(f"{path}: it exists and {named}, not {options.label!r}, and keeps it; leave label out")


def _prepare(fd: int, size: int, medium: Medium, seam: Seam) -> None:
    """Prepare the file to be mapped for writing: no holes, nothing unsynced, and on a disk no large folios in the cache."""
    if os.fstat(fd).st_blocks * 512 < size:  # a sparse copy: on a full disk, a store into a hole would raise SIGBUS
        seam.allocate(fd, size)
    with contextlib.suppress(OSError):  # an error that the last writer did not see; recovery stores again what it keeps
        seam.sync_file(fd)
    if medium.kind == "file":
        drop_cache(fd)
