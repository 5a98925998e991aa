"""The zeros of a new log: by the device where it can, not at all where the file system allocates zeros, else by writes."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.format.layout import PAGE
from pmwal.opening import open_log
from pmwal.storage.medium import Medium, filesystem
from pmwal.storage.seam import SYSTEM
from support import SMALL_RING, BarrierRecorder, Step


def zeros_of(seam: BarrierRecorder) -> list[tuple[int, int]]:
    """Where zeros were written."""
    return sorted({(event.offset, event.length) for event in seam.events if event.name == "write" and not any(event.data)})


def system_of(path: Path) -> str:
    """The file system of a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return filesystem(fd)
    finally:
        os.close(fd)


class ZeroingSeam(BarrierRecorder):
    """A seam over a device that writes zeros on command."""

    def zero(self, fd: int, size: int) -> bool:
        """Note it, and write them."""
        self.note(Step("zero", 0, size))
        os.pwrite(fd, bytes(size), 0)
        return True


@pytest.mark.parametrize("where", ["tmpfs", "device"])
def test_zeros_are_written_once(shm_dir: Path, tmp_path: Path, where: str) -> None:
    """Not over the pages that tmpfs allocates, nor where the device does it; the log is the same, and progress comes to its end."""
    path, seam = (shm_dir / "log", BarrierRecorder()) if where == "tmpfs" else (tmp_path / "log", ZeroingSeam())
    told: list[tuple[int, int]] = []
    open_log(path, size=SMALL_RING, seam=seam, progress=lambda *of: told.append(of)).close()
    assert zeros_of(seam) == []
    assert ("zero" in [event.name for event in seam.events]) == (
        where == "device" and not Medium("file", system_of(path)).allocates_zeros
    )
    size = path.stat().st_size
    assert told[0] == (size, size)
    assert pmwal.verify(path).case == "R1"


class Libc:
    """A C library whose fallocate(2) fails with each of these errnos in turn, then works."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.calls: list[Any] = []

    def fallocate(self, fd: int, mode: int, offset: Any, length: Any) -> int:
        """Note the call."""
        self.calls.append((fd, mode, offset.value, length.value))
        if not self.numbers:
            return 0
        ctypes.set_errno(self.numbers.pop(0))
        return -1


@pytest.mark.parametrize(
    ("numbers", "done"),
    [
        ([], True),
        ([errno.EINTR, errno.EINTR], True),
        ([errno.EOPNOTSUPP], False),
        ([errno.EINTR, errno.EINVAL], False),
        ([errno.ENOSYS], False),
        ([errno.EPERM], False),
        ([errno.EIO], None),
        ([errno.ENOSPC], None),
    ],
)
def test_device_writes_zeros_where_it_can(monkeypatch: pytest.MonkeyPatch, numbers: list[int], done: bool | None) -> None:
    """FALLOC_FL_WRITE_ZEROES over the whole file, again after a signal; that it cannot be done is no error."""
    libc = Libc([*numbers])
    monkeypatch.setattr("pmwal.storage.seam._libc", lambda: libc)
    if done is None:
        with pytest.raises(OSError, match=os.strerror(numbers[-1])):
            SYSTEM.zero(7, 123 * PAGE)
    else:
        assert SYSTEM.zero(7, 123 * PAGE) is done
    assert set(libc.calls) == {(7, 0x80, 0, 123 * PAGE)}


def test_this_disk_writes_zeros_or_says_that_it_cannot(tmp_path: Path) -> None:
    """Over what was there, and no byte more."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3 * PAGE)
    fd = os.open(path, os.O_RDWR)
    try:
        done = SYSTEM.zero(fd, 2 * PAGE)
        SYSTEM.begin_writing(fd, 0, PAGE)
    finally:
        os.close(fd)
    assert path.read_bytes() == (bytes(2 * PAGE) if done else b"x" * 2 * PAGE) + b"x" * PAGE
