"""Setting a corrupt log aside, so that a program that logs can start with a new one.

Invariants
----------
- A file is renamed only while its writer's lock is held and after it was judged corrupt under that lock: no writer has it open, and
  of several processes that start at the same time one renames it, and none renames the new log of another.
- The rename changes no byte of the file, so salvage and repair work on it as before.
- Nothing is removed but logs that were set aside earlier, have no writer, and are not among the newest ``KEPT``.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from datetime import UTC, datetime

from pmwal.errors import CorruptWal, PmwalError
from pmwal.format.scan import scan_for
from pmwal.opening.files import lock_existing, map_for_reading
from pmwal.recovery.judge import judge
from pmwal.storage.descriptors import open_descriptor
from pmwal.storage.seam import SYSTEM, Seam

KEPT = 3
"""How many logs stay set aside for one path."""


def set_aside(path: str, seam: Seam = SYSTEM) -> str | None:
    """Rename the corrupt log at ``path``; its new path, or None if no corrupt log is there any more.

    Raises ``WalLocked`` if a writer has it, ``FormatError``, ``OSError``.
    """
    name = os.path.realpath(path)
    try:
        lock = lock_existing(name, seam, shortened=True)
    except FileNotFoundError:
        return None
    if lock is None:  # another process has just renamed it
        return None
    try:
        return _rename(name, seam) if _is_corrupt(name, seam) else None
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
