"""Creating a log: a crash leaves no file under the log's name, or a complete one.

Invariants
----------
- The file gets its name by link(2), which fails if the name is taken, and only when all its bytes are durable and its lock is held.
  With O_TMPFILE a crash leaves nothing at all.
- Where link(2) is refused (vfat, cifs, some FUSE servers), a file with a hidden name is renamed with RENAME_NOREPLACE, which is as
  atomic and fails as well if the name is taken. Where that is refused too, nothing is created: a plain rename would overwrite
  the log of another process.
- A file that is replaced (an empty one by a new log, a damaged log by a repaired one) is locked by whoever replaces it, and the new
  one takes the name in one rename, with mode and owner where that is allowed. If the old one is kept, it gets its other name first.
- The new file is locked until its name is durable: a record that a writer stored into it before would be lost with the name.
- Blocks are allocated and, on a disk, zeros written first: an unwritten extent would cost a journal transaction at its first
  commit. The device writes them, where device, file system and kernel can do that. Else they are written in single pages, because
  a large folio would cost 2048 sectors at every commit; or, for a large ring and a copy, in pieces that are dropped from the cache
  afterwards.
  The disk begins on them while the next are written. The last fsync makes them durable with all else.
- Every place of the control region holds a whole slot of generation 0, so a slot that is lost later is noticed.
- A spare is such a file that has no name yet. It gets one while its lock is held and only if it has none, so of all processes that
  know it one uses it, and a crash leaves nothing of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from pmwal.errors import UnsupportedMedium, WalLocked
from pmwal.format.control import Begun, read_control, whole_structures
from pmwal.format.layout import (
    ALIGN_DEFAULT,
    APPLICATION_SIZE,
    PAGE,
    TIME_MAX,
    TIME_MIN,
    Slot,
    Superblock,
    geometry_problem,
    initial_slot,
)
from pmwal.native.checksum import crc32c
from pmwal.records import Progress
from pmwal.storage.checks import CHECKING, check
from pmwal.storage.descriptors import FILE_MODE, duplicate, open_descriptor
from pmwal.storage.lock import WriterLock, close_locked, duplicate_locked, open_to_lock
from pmwal.storage.mapping import drop_cache
from pmwal.storage.medium import check_mappable, detect
from pmwal.storage.seam import Seam

_HIDDEN = ".pmwal-new-"
_PIECE = 1 << 20  # bytes of zeros on which the disk starts while the next are written
_SINGLE_MAX = 96 << 20  # bytes of a file that is written in single pages
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
_NO_LINK = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NO_RENAME = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class _CannotLink(Exception):
    """A file without a name cannot get one here; one with a hidden name may."""


def create_file(
    path: str,
    *,
    capacity: int,
    alignment: int | None,
    medium: str,
    application: bytes,
    seam: Seam,
    progress: Progress | None = None,
    over: int | None = None,
    mode: int = FILE_MODE,
) -> WriterLock:
    """Create an empty log under ``path`` and lock it for writing. ``FileExistsError`` if the name is taken.

    ``over`` is a descriptor of the file at ``path`` that it replaces, whose lock the caller holds, and whose mode it gets.
    """
    if over is None and os.path.lexists(path):  # link(2) decides; this only saves work
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    return make_file(path, _filling(path, capacity, alignment, medium, application, seam, progress), seam, over=over, mode=mode)


def make_file(
    path: str,
    fill: Callable[[int], None],
    seam: Seam,
    *,
    over: int | None = None,
    keep: str | None = None,
    mode: int = FILE_MODE,
    locked: Callable[[WriterLock], None] | None = None,
) -> WriterLock:
    """A file that ``fill`` writes and syncs, given its name and locked for writing. ``over``, ``mode``: as in ``create_file``.

    ``keep``: the name, in the same directory, that the file which is replaced has from then on. It may have it already.
    ``locked`` is called once the file is locked, before it has a name. Where the first way to name a file is refused, another file
    is filled and locked.
    """
    directory, name = os.path.split(os.path.abspath(path))

    def write(fd: int) -> None:
        if over is not None:
            inherit(fd, os.fstat(over))
        else:
            _set_mode(fd, mode)
        fill(fd)

    directory_fd = open_descriptor(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        take = _give_name if over is None else partial(_take_name, keep)
        try:
            if over is not None:
                remove_orphans(directory, directory_fd, name, seam)
            return _create(path, directory, directory_fd, name, write, take, seam, locked)
        except _CannotLink:
            return _create(path, directory, directory_fd, name, write, take, seam, locked, always_hidden=True)
    except OSError as error:
        if not isinstance(error.filename, str) or not error.filename.startswith((_HIDDEN, "/proc/self/fd/")):
            raise
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(directory_fd)


def create_locked(path: str, data: bytes, mode: int, seam: Seam) -> WriterLock:
    """Create a small file, complete and durable before it has its name, and lock it. ``FileExistsError`` if the name is taken."""

    def fill(fd: int) -> None:
        seam.write(fd, data, 0)
        seam.sync_file(fd)

    return make_file(path, fill, seam, mode=mode)


def create_spare(directory: str, *, capacity: int, alignment: int | None, medium: str, mode: int, seam: Seam) -> int | None:
    """An empty log without a name, for ``name_spare``, in this process or a forked child; None where no file can be without one.

    The descriptor is the caller's. The file is gone with the last one, unless it got a name.
    """
    fd = _tmpfile(directory)
    if fd is None:
        return None
    try:
        _set_mode(fd, mode)
        _filling(directory, capacity, alignment, medium, b"", seam, None)(fd)
        return duplicate(fd)  # which a forked child does not close
    finally:
        close_locked(fd)


def name_spare(fd: int, path: str, seam: Seam) -> WriterLock | None:
    """Lock a spare and give it this name; None if another process uses it. ``FileExistsError`` if the name is taken."""
    directory, name = os.path.split(os.path.abspath(path))
    lock_fd = open_to_lock(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        lock = WriterLock(lock_fd, path, seam)
    except WalLocked:
        close_locked(lock_fd)
        return None
    except BaseException:
        close_locked(lock_fd)
        raise
    try:
        directory_fd = open_descriptor(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_nlink or not _link_spare(lock_fd, name, directory_fd, seam):
                lock.release()
                return None
            seam.sync_file(directory_fd)
        finally:
            os.close(directory_fd)
        return lock
    except BaseException:
        lock.release()
        raise


def _link_spare(fd: int, name: str, directory_fd: int, seam: Seam) -> bool:
    """Give a spare this name; False if it had one that was removed: the kernel names a nameless file once only."""
    try:
        seam.link(f"/proc/self/fd/{fd}", name, directory_fd)
    except FileNotFoundError:
        return False
    return True


def is_fresh(fd: int, made_ns: int) -> bool:
    """Whether a spare, whose inode had changed last at this time when it was made, was never given a name."""
    status = os.fstat(fd)
    return status.st_nlink == 0 and status.st_ctime_ns == made_ns


def _filling(
    path: str,
    capacity: int,
    alignment: int | None,
    medium: str,
    application: bytes,
    seam: Seam,
    progress: Progress | None,
) -> Callable[[int], None]:
    """Writes an empty log into a new file. ``ValueError`` for a log that cannot be."""
    block = Superblock(
        uuid=seam.new_uuid(),
        control_size=seam.control_size,
        capacity=capacity,
        alignment=ALIGN_DEFAULT if alignment is None else alignment,
        created_ns=min(max(seam.now_ns(), TIME_MIN), TIME_MAX),
        application=application.ljust(APPLICATION_SIZE, b"\0"),
    )
    problem = geometry_problem(block)
    if problem is not None:
        raise ValueError(f"{path}: a log cannot have {problem}; use another size or align")

    def fill(fd: int) -> None:
        seam.allocate(fd, block.file_size)  # in one call, so that it can be one extent
        found = detect(fd, medium, path)
        check_mappable(fd, path)
        aligned = replace(block, alignment=found.alignment) if alignment is None else block
        zeroed = found.allocates_zeros or seam.zero(fd, block.file_size)
        single = block.file_size <= _SINGLE_MAX
        write_ring(fd, aligned, (), zeroed=zeroed, single=single, seam=seam, progress=progress)
        write_structures(fd, aligned, initial_slot(), single=single, seam=seam)

    return fill


def _set_mode(fd: int, mode: int) -> None:
    """Give a new file its mode, also against the umask, before anything is in it."""
    if mode != FILE_MODE:
        os.fchmod(fd, mode)


def _create(
    path: str,
    directory: str,
    directory_fd: int,
    name: str,
    write: Callable[[int], None],
    take: Callable[[str, str, str, int, Seam], None],
    seam: Seam,
    locked: Callable[[WriterLock], None] | None,
    *,
    always_hidden: bool = False,
) -> WriterLock:
    """Write a file, make it durable, lock it, and only then give it its name."""
    lock: WriterLock | None = None
    try:
        with unnamed_file(directory, directory_fd, name, seam, always_hidden=always_hidden) as (fd, source):
            write(fd)
            lock_fd = duplicate_locked(fd)
            try:
                lock = WriterLock(lock_fd, path, seam)
            except BaseException:
                close_locked(lock_fd)
                raise
            if locked is not None:
                locked(lock)
            take(path, source, name, directory_fd, seam)
            seam.sync_file(directory_fd)
        return lock
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _give_name(path: str, source: str, name: str, directory_fd: int, seam: Seam) -> None:
    """Give the file of ``unnamed_file`` its name, unless that is taken."""
    try:
        seam.link(source, name, directory_fd)
        return
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        if os.path.isabs(source):
            raise _CannotLink from error
    try:
        seam.rename_new(source, name, directory_fd)
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
        raise UnsupportedMedium(
            f"{path}: this file system has neither link(2) nor renameat2(2) with RENAME_NOREPLACE, and any other way to name a new "
            "log could overwrite an existing one; create the log on another file system, close it, and copy it here"
        ) from error


def _take_name(keep: str | None, path: str, source: str, name: str, directory_fd: int, seam: Seam) -> None:
    """Give the file of ``unnamed_file`` the name of another file, which loses it, or has the name ``keep`` from then on."""
    if keep is not None:
        _keep(path, name, keep, directory_fd, seam)
    hidden = source
    if os.path.isabs(source):
        hidden = hidden_name(name)
        try:
            seam.link(source, hidden, directory_fd)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            raise _CannotLink from error
    try:
        seam.replace(hidden, name, directory_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            seam.unlink(hidden, directory_fd)
        raise


def _keep(path: str, name: str, keep: str, directory_fd: int, seam: Seam) -> None:
    """Give a file a second name, durably, unless it has that already, since a replacement that was killed."""
    if not os.path.lexists(os.path.join(os.path.dirname(path), keep)):
        try:
            seam.link(name, keep, directory_fd)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            message = (
                f"{os.strerror(error.errno)}: there are no hard links here, so the file could not be kept as {keep}. Nothing was "
                "changed; copy the log to another file system, do it there, and move the result back"
            )
            raise OSError(error.errno, message, path) from error
    seam.sync_file(directory_fd)


def inherit(fd: int, status: os.stat_result) -> None:
    """Give a file the mode of the one that it replaces, and its owner if this process may."""
    with contextlib.suppress(PermissionError):
        os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, status.st_mode & 0o7777)


def remove_file(path: str, lock: WriterLock, seam: Seam) -> None:
    """Remove a log that was just created, because it could not be opened. Its lock is held: nobody has written to it."""
    directory, name = os.path.split(os.path.realpath(path))
    with contextlib.suppress(OSError):
        directory_fd = open_descriptor(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            if os.path.samestat(found, os.fstat(lock.fd)):
                seam.unlink(name, directory_fd)
        finally:
            os.close(directory_fd)


def write_ring(
    fd: int, block: Superblock, pages: Iterable[bytes], *, zeroed: bool, single: bool, seam: Seam, progress: Progress | None
) -> None:
    """Write a ring that begins with these bytes, whole pages of them. ``write_structures`` must follow.

    ``zeroed``: the whole file was written already, as zeros. Otherwise all of it is written here, once, from its start on.
    ``single``: in single pages, because they stay in the cache; without it they are dropped before somebody commits to them.
    """
    step = PAGE if single else _PIECE
    at = 0
    for data in filter(None, pages):
        if not at:
            at = block.ring_offset
            if not zeroed:
                _write_zeros(fd, 0, at, block.file_size, step, seam, progress)
        write_pages(fd, data, at, block.file_size, step, seam, progress)
        at += len(data)
    if not zeroed:
        _write_zeros(fd, at, block.file_size, block.file_size, step, seam, progress)
    elif progress is not None:
        progress(block.file_size, block.file_size)


@contextlib.contextmanager
def needing_room(path: str, size: int) -> Iterator[None]:
    """A full disk is an error that says for what there was no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        reason = f"{os.strerror(error.errno)}: no room for a new file of {size} bytes; nothing was changed"
        raise OSError(error.errno, reason, path) from error


def _write_zeros(fd: int, start: int, end: int, size: int, step: int, seam: Seam, progress: Progress | None) -> None:
    zeros = bytes(_PIECE)
    for at in range(start, end, _PIECE):
        write_pages(fd, zeros[: end - at], at, size, step, seam, progress)


def write_pages(fd: int, data: bytes, start: int, size: int, step: int, seam: Seam, progress: Progress | None) -> None:
    """Write whole pages of a file of this size, and let the disk begin on them."""
    for at in range(0, len(data), step):
        seam.write(fd, data[at : at + step], start + at)
        if progress is not None:
            progress(start + min(at + step, len(data)), size)
    seam.begin_writing(fd, start, len(data))


def write_structures(fd: int, block: Superblock, slot: Slot, history: Sequence[Begun] = (), *, single: bool, seam: Seam) -> None:
    """Write all of a log but its ring, with ``slot`` as the newest, into a file that is zeros there, and sync it.

    ``history``: as for ``filled_region``. ``single``: as for ``write_ring``.
    """
    for start, data in whole_structures(slot, block, history):
        if CHECKING and start == block.control_offset:
            _check_slots(data, block, slot)
        if not any(data):
            continue
        for at in range(0, len(data), PAGE):
            seam.write(fd, data[at : at + PAGE], start + at)
    seam.sync_file(fd)
    if not single:
        drop_cache(fd)


def _check_slots(slots: bytes, block: Superblock, newest: Slot) -> None:
    check(len(slots) == block.control_size, f"{len(slots)} bytes of slots in a control region of {block.control_size}")
    control = read_control(slots, block)
    check(control.newest is not None and not control.lost, "a slot of a new log is not whole")
    check(control.newest == newest, "a slot of a new log is newer than the newest one")
    check(control.impossible is None, f"a new log is contradictory: {control.impossible}")


@contextlib.contextmanager
def unnamed_file(
    directory: str, directory_fd: int, name: str, seam: Seam, *, always_hidden: bool = False
) -> Iterator[tuple[int, str]]:
    """A new file in ``directory`` without a name, as (descriptor, source for ``seam.link``).

    If the file system has no O_TMPFILE, or with ``always_hidden``, the file has a hidden name meanwhile; the next creation removes
    what a crash leaves of it.
    """
    hidden: str | None = None
    fd = None if always_hidden else _tmpfile(directory)
    if fd is None:
        remove_orphans(directory, directory_fd, name, seam)
        fd, hidden = _hidden_file(directory_fd, name)
    source = f"/proc/self/fd/{fd}" if hidden is None else hidden
    try:
        yield fd, source
    finally:
        close_locked(fd)
        if hidden is not None:
            with contextlib.suppress(OSError):
                seam.unlink(hidden, directory_fd)


def _tmpfile(directory: str) -> int | None:
    """A file without a name; None if the file system has none."""
    try:
        return open_to_lock(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
        return None


def hidden_name(name: str) -> str:
    """A new hidden name for a file that is to become ``name``, of fixed length: ``name`` may be as long as file names can be."""
    return f"{_hidden_prefix(name)}{os.urandom(8).hex()}"


def _hidden_prefix(name: str) -> str:
    return f"{_HIDDEN}{crc32c(os.fsencode(name)):08x}-"


def _hidden_file(directory_fd: int, name: str) -> tuple[int, str]:
    """A file with a hidden name, locked to show that it is no orphan."""
    while True:
        hidden = hidden_name(name)
        fd = open_to_lock(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE, dir_fd=directory_fd)
        fcntl.flock(fd, fcntl.LOCK_SH)
        # Before it was locked, another creation may have removed it as an orphan.
        if os.fstat(fd).st_nlink:
            return fd, hidden
        close_locked(fd)


def remove_orphans(directory: str, directory_fd: int, name: str, seam: Seam) -> None:
    """Remove the hidden files of creations of ``name`` that crashed: those that are not locked."""
    for orphan in os.listdir(directory):
        if not orphan.startswith(_hidden_prefix(name)):
            continue
        with contextlib.suppress(OSError):
            fd = open_to_lock(orphan, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory_fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                seam.unlink(orphan, directory_fd)
            finally:
                close_locked(fd)
