"""Making way for a new log where a corrupt one or an empty file is, so that a program that logs can start and continue.

Invariants
----------
- A file is renamed only while its writer's lock is held and after it was judged corrupt under that lock: no writer has it open, and
  of several processes that start at the same time one renames it, and none renames the new log of another.
- The rename changes no byte of the file, so salvage and repair work on it as before.
- An empty file is replaced only under the same lock, in one rename: no other process creates a log there at the same time.
- Nothing is removed but logs that were set aside earlier, have no writer, and are not among the newest ``KEPT``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from datetime import UTC, datetime

from pmwal.errors import CorruptWal, PmwalError
from pmwal.format.layout import CAPACITY_DEFAULT
from pmwal.format.scan import scan_for
from pmwal.logs.reports import warn
from pmwal.opening.files import lock_existing, map_for_reading
from pmwal.opening.options import Options
from pmwal.recovery.judge import judge
from pmwal.storage.create import create_file
from pmwal.storage.descriptors import NO_REGULAR_FILE, open_descriptor
from pmwal.storage.lock import WriterLock, close_locked, open_to_lock
from pmwal.storage.seam import SYSTEM, Seam

KEPT = 3
"""How many logs stay set aside for one path."""


def set_aside(path: str, seam: Seam = SYSTEM, *, follow: bool = True) -> str | None:
    """Rename the corrupt log at ``path``; its new path, or None if no corrupt log is there any more.

    ``follow``: see ``lock_existing``. Raises ``WalLocked`` if a writer has it, ``FormatError``, ``OSError``.
    """
    name = os.path.realpath(path) if follow else path
    try:
        lock = lock_existing(name, seam, shortened=True, follow=follow)
    except FileNotFoundError:
        return None
    if lock is None:  # another process has just renamed it
        return None
    try:
        return _rename(name, seam) if _is_corrupt(name, seam) else None
    finally:
        lock.release()


def make_way(path: str, error: CorruptWal, *, follow: bool) -> None:
    """Set the log aside that this error is of, with a warning of the caller of ``LogHandler``; ``CorruptWal`` if that fails."""
    try:
        target = set_aside(path, follow=follow)
    except OSError as failure:
        raise CorruptWal(
            f"{error}. It could not be set aside for a new log either: {failure}; repair it, or log to another path",
            first_seq=error.first_seq,
            last_seq=error.last_seq,
            start=error.start,
            end=error.end,
            reason=f"{error.reason}; not set aside: {failure}",
        ) from failure
    if target is not None:
        warn(
            f"{path} is corrupt: {error.reason}; it was set aside as {target}, and a new log takes its place. "
            f"pmwal.open({target!r}, 'r', recover='salvage') reads every whole record of it, and pmwal repair makes it usable"
        )


def is_empty(path: str) -> bool:
    """Whether an empty file is there, as logrotate or touch(1) make it."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and not status.st_size


def replace_empty(path: str, options: Options, seam: Seam = SYSTEM) -> None:
    """Put a new log in the place of an empty file, with its mode and, if possible, its owner. Nothing if none is there any more.

    Raises ``WalLocked`` if another process does the same, and what creating a log raises.
    """
    name = os.path.realpath(path) if options.follows_links else path
    try:
        # Whatever became of the name meanwhile: it is resolved already, or must be no link.
        fd = open_to_lock(name, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.ENOENT, *NO_REGULAR_FILE):
            raise
        return
    try:
        lock = WriterLock(fd, path, seam)
    except BaseException:
        close_locked(fd)
        raise
    try:
        if is_empty(name) and os.path.samestat(os.stat(name), os.fstat(fd)):
            create_file(
                name,
                capacity=CAPACITY_DEFAULT if options.capacity is None else options.capacity,
                alignment=options.align,
                medium=options.medium,
                application=b"",
                seam=seam,
                over=fd,
            ).release()
    finally:
        lock.release()


def _is_corrupt(name: str, seam: Seam) -> bool:
    try:
        mapping, identity = map_for_reading(name, "auto", seam)
    except CorruptWal:  # shortened
        return True
    try:
        return judge(mapping.load, identity, scan=scan_for(identity.block)).row.outcome == "corrupt"
    finally:
        mapping.close()


def _rename(name: str, seam: Seam) -> str:
    directory, base = os.path.split(name)
    directory_fd = open_descriptor(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        when = datetime.fromtimestamp(seam.now_ns() // 1_000_000_000, UTC)
        stem = target = f"{base}.corrupt-{when:%Y%m%dT%H%M%SZ}"
        number = 1
        while os.path.lexists(os.path.join(directory, target)):
            number += 1
            target = f"{stem}-{number}"
        seam.replace(base, target, directory_fd)
        seam.sync_file(directory_fd)
        with contextlib.suppress(OSError):  # what cannot be removed stays
            for older in _set_aside_earlier(directory, base, target, seam)[: 1 - KEPT]:
                _remove(directory, older, directory_fd, seam)
        return os.path.join(directory, target)
    finally:
        os.close(directory_fd)


def _set_aside_earlier(directory: str, base: str, target: str, seam: Seam) -> list[str]:
    """The names of the logs that were set aside before ``target``, the oldest first. The clock may have gone back since."""
    pattern = re.compile(re.escape(base) + r"\.corrupt-([0-9]{8}T[0-9]{6}Z)(?:-([0-9]+))?")
    found = []
    for name in os.listdir(directory):
        match = pattern.fullmatch(name)
        if match and name != target and _is_log(os.path.join(directory, name), seam):
            found.append((match[1], int(match[2] or 1), name))
    return [name for _, _, name in sorted(found)]


def _is_log(path: str, seam: Seam) -> bool:
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        mapping, _ = map_for_reading(path, "auto", seam, around=True)
    except (OSError, PmwalError):
        return False
    mapping.close()
    return True


def _remove(directory: str, name: str, directory_fd: int, seam: Seam) -> None:
    """Remove a log that was set aside, unless a writer has it open."""
    with contextlib.suppress(OSError, PmwalError):
        lock = lock_existing(os.path.join(directory, name), seam, shortened=True)
        if lock is not None:
            try:
                seam.unlink(name, directory_fd)
            finally:
                lock.release()
