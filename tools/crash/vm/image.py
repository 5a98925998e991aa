"""Images of the guest's device: created with a file system, and copied while nothing writes to them.

An NVDIMM gets an info block (struct nd_pfn_sb of drivers/nvdimm/pfn.h, at offset 4096) that makes Linux keep a struct page for each
of its pages ("fsdax"), which DAX requires. The file system starts at its ``dataoff``.
"""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

MiB = 1 << 20
DATA_OFFSET = 2 * MiB
_INFO_OFFSET = 4096
_INFO = struct.Struct("<16s16s16sIHHQQIIIIIH3994xQ")
_MODE_RAM = 1  # the struct pages are in ordinary memory and take no space on the device
_PIECE = MiB
_SIZES = {"ext4": 62 * MiB, "xfs": 318 * MiB}  # mkfs.xfs refuses less than 300 MB
_MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=0"],  # DAX and shared blocks exclude each other
}
FILESYSTEMS = tuple(_MAKE)


def info_block(size: int) -> bytes:
    """The info block of an fsdax namespace without labels, of this size in bytes."""

    def packed(checksum: int) -> bytes:
        pages = (size - DATA_OFFSET) // 4096
        head = (b"NVDIMM_PFN_INFO", uuid.UUID(int=size).bytes, bytes(16), 0, 1, 4)  # the parent has no uuid; version 1.4
        return _INFO.pack(*head, DATA_OFFSET, pages, _MODE_RAM, 0, 0, DATA_OFFSET, 4096, 64, checksum)

    return packed(fletcher64(packed(0)))


def fletcher64(data: bytes) -> int:
    """nd_fletcher64 of drivers/nvdimm/core.c."""
    low = high = 0
    for (word,) in struct.iter_unpack("<I", data):
        low = (low + word) & 0xFFFFFFFF
        high += low
    return (high << 32 | low) & 0xFFFFFFFFFFFFFFFF


def make_image(path: Path, filesystem: str, *, nvdimm: bool) -> None:
    """Create a sparse image with an empty file system."""
    size = _SIZES[filesystem]
    inner = path.with_suffix(".fs")
    with inner.open("wb") as file:
        file.truncate(size)
    subprocess.run([*_MAKE[filesystem], inner], check=True, capture_output=True, text=True)
    if not nvdimm:
        inner.rename(path)
        return
    with path.open("wb") as file:
        file.truncate(size + DATA_OFFSET)
        file.seek(_INFO_OFFSET)
        file.write(info_block(size + DATA_OFFSET))
    copy_image(inner, path, to=DATA_OFFSET)
    inner.unlink()


def copy_image(source: Path, target: Path, *, to: int = 0) -> int:
    """Make the target equal to the source from offset ``to`` on, skipping what is a hole in both; the bytes copied."""
    copied = 0
    reading, writing = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        size = os.fstat(reading).st_size
        if os.fstat(writing).st_size < to + size:
            os.truncate(writing, to + size)
        pieces = {*_pieces(reading, 0, size), *(at - to for at in _pieces(writing, to, to + size))}
        for at in sorted(pieces):
            copied += os.pwrite(writing, os.pread(reading, min(_PIECE, size - at), at), to + at)
    finally:
        os.close(reading)
        os.close(writing)
    return copied


def _pieces(fd: int, start: int, end: int) -> Iterator[int]:
    """Offsets of the pieces with data, relative to ``start`` and aligned to pieces."""
    at = start
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        if data >= end:
            return
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        first = start + (data - start) // _PIECE * _PIECE
        yield from range(first, hole, _PIECE)
        at = hole
