"""The examiner: opens every log that a power cut left and reports its contents, which the host judges."""

from __future__ import annotations

import mmap
import os
import traceback
from pathlib import Path
from typing import Any

import pmwal
from crash.vm.guest.workload import digest

MAP_SHARED_VALIDATE, MAP_SYNC = 0x3, 0x80000  # include/uapi/asm-generic/mman-common.h, mman.h
_MORE = (b"after", b"", b"the crash" * 100)


def maps_sync(directory: Path) -> bool:
    """Whether a file here can be mapped with MAP_SYNC, without asking pmwal."""
    path = directory / "probe"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.posix_fallocate(fd, 0, mmap.PAGESIZE)
        mmap.mmap(fd, mmap.PAGESIZE, flags=MAP_SHARED_VALIDATE | MAP_SYNC).close()
    except OSError:
        return False
    finally:
        os.close(fd)
        path.unlink()
    return True


def look(directory: Path) -> dict[str, Any]:
    """What pmwal detects about the file system."""
    path = directory / "probe.wal"
    with pmwal.open(path, "x", size="64KiB") as wal:
        stats = wal.stats()
    try:
        pmwal.open(path, medium="dax").close()
        dax = True
    except pmwal.UnsupportedMedium:
        dax = False
    path.unlink()
    return {
        "map_sync": maps_sync(directory),
        "opens_as_dax": dax,
        "medium": stats.medium,
        "flush": stats.flush,
        "durability": stats.durability,
        "filesystem": stats.filesystem,
        "engine": stats.engine,
    }


def examine_log(path: Path) -> dict[str, Any]:
    """Verify, recover, read, append, close, read again."""
    before = pmwal.verify(path)
    with pmwal.open(path, "r+") as wal:
        report = wal.recovery
        found = [(record.seq, digest(record.data)) for record in wal]
        first_seq, medium = wal.first_seq, wal.stats().medium
        wal.extend(_MORE)
    with pmwal.open(path, "r") as reader:
        again = [(record.seq, digest(record.data)) for record in reader]
    next_seq = first_seq + len(found)
    expected = found + [(next_seq + index, digest(item)) for index, item in enumerate(_MORE)]
    return {
        "case": report.case,
        "verified_case": before.case,
        "first_seq": first_seq,
        "numbers": [seq for seq, _ in found],
        "digests": [mark for _, mark in found],
        "medium": medium,
        "takes_more": again == expected,
    }


def examine(directory: Path) -> dict[str, dict[str, Any]]:
    """The report on every log in a directory; an exception is reported in place of the contents."""
    answers = {}
    for path in sorted(directory.glob("*.wal")):
        try:
            answers[path.name] = examine_log(path)
        except Exception:
            answers[path.name] = {"error": traceback.format_exc()}
    return answers
