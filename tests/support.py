"""What the tests share: a recorder that fails on command, small logs, a look at files, and damage to them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pmwal.format.layout import (
    LIVE_LATENCY,
    LIVE_LATENCY_OFFSET,
    LIVE_WRITER,
    LIVE_WRITER_OFFSET,
    Slot,
    Superblock,
    encode_slot,
    slot_index,
    slot_offset,
)
from pmwal.format.ring import Found, RingReader
from pmwal.opening import open_log
from pmwal.opening.files import inspect
from pmwal.recovery.judge import Judgement
from pmwal.storage.seam import SYSTEM, Seam
from pmwal.testing import Crash, Recorder, Step  # noqa: F401 - shared
from pmwal.testing.process import kill  # noqa: F401 - shared
from pmwal.testing.recorder import UUID
from pmwal.writing.wal import Wal

SMALL_CONTROL = Recorder.control_size
SMALL_RING = 16384


class BarrierRecorder(Recorder):
    """The recorder as most tests want it: this process writes, the clock ticks, and a barrier looks alike on every medium.

    A store past the cache is noted as a "store", and a fence as a "flush" of the lines that were streamed or written back before
    it, so that one test of an order reads for cache lines and for pages.
    """

    def __init__(self, before: Callable[[Step], None] | None = None, uuid: bytes = UUID) -> None:
        super().__init__(uuid, before=before, tick_ns=1)
        self._before_fence: list[tuple[int, int]] = []  # (start, end) of what the next fence makes durable

    def pid(self) -> int:
        return Seam.pid(self)

    def boot_id(self) -> bytes:
        return Seam.boot_id(self)

    def stream(self, mapping: mmap.mmap, offset: int, data: bytes) -> None:
        self.store(mapping, offset, data)
        self.write_back(mapping, offset, len(data))

    def write_back(self, mapping: mmap.mmap, offset: int, length: int) -> None:
        adjoins = self._before_fence and self._before_fence[-1][1] == offset
        start = self._before_fence.pop()[0] if adjoins else offset
        self._before_fence.append((start, offset + length))
        self._mapping = mapping

    def fence(self) -> None:
        for start, end in self._before_fence:
            self.flush(self._mapping, start, end - start)
        self._before_fence.clear()


def fail_flush(number: int = errno.EIO, after: int = 0) -> Callable[[Step], None]:
    """A hook that lets ``after`` flushes pass and fails every later one."""
    left = after

    def hook(event: Step) -> None:
        nonlocal left
        if event.name == "flush":
            if left == 0:
                raise OSError(number, os.strerror(number))
            left -= 1

    return hook


def open_small(path: str | os.PathLike[str], mode: str = "a", *, seam: Seam | None = None, **options: Any) -> Wal:
    """A small log: two control pages, and a ring of 16 KiB unless ``size`` says otherwise. ``size=None`` for an existing one."""
    if mode in ("a", "x") and "size" not in options and not os.path.exists(path):
        options["size"] = SMALL_RING
    wal = open_log(path, mode, seam=BarrierRecorder() if seam is None else seam, **options)
    assert isinstance(wal, Wal)
    return wal


def contents(wal: Any) -> list[tuple[int, bytes]]:
    """All records as (number, payload)."""
    return [(record.seq, record.data) for record in wal.read()]


def payloads(wal: Any) -> list[bytes]:
    """All payloads."""
    return [record.data for record in wal.read()]


def overwrite(path: str | os.PathLike[str], offset: int, data: bytes) -> None:
    """Change bytes of a file, as damage would."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: str | os.PathLike[str], offset: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    raw = Path(path).read_bytes()
    overwrite(path, offset, bytes([raw[offset] ^ (1 << bit)]))


def image(path: Path) -> bytes:
    """The bytes of the file, but for its inode, and how long its commits took: what two logs with one history share."""
    data = bytearray(path.read_bytes())
    inode = LIVE_WRITER_OFFSET + LIVE_WRITER.offsets["inode"]
    data[inode : inode + 8] = bytes(8)
    data[LIVE_LATENCY_OFFSET : LIVE_LATENCY_OFFSET + LIVE_LATENCY.size] = bytes(LIVE_LATENCY.size)
    return bytes(data)


@contextlib.contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """Within the block this process can open that many files more."""
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    limit = 0
    while free > 0:
        free -= limit not in taken
        limit += 1
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def look(path: str | os.PathLike[str]) -> Judgement:
    """The verdict on a file with everything that it rests on."""
    with inspect(os.fspath(path), SYSTEM) as (_, judgement):
        return judgement


def superblock(path: str | os.PathLike[str]) -> Superblock:
    """The superblock in use."""
    return look(path).identity.block


def whole_records(path: str | os.PathLike[str]) -> dict[int, Found]:
    """Every record between tail and end by its number: position, end, header."""
    found: dict[int, Found] = {}
    with inspect(os.fspath(path), SYSTEM) as (mapping, judgement):
        reader = RingReader(judgement.identity.block, mapping.load)
        at = judgement.tail
        while at.next_seq < judgement.end.next_seq:
            record = reader.numbered(*at)
            assert record is not None
            found[record.header.seq] = record
            at = at._replace(position=record.end, next_seq=record.header.seq + 1)
    return found


def file_offset(block: Superblock, position: int) -> int:
    """Where in the file a logical position of the ring lies."""
    return block.ring_offset + position % block.capacity


def write_slot(path: str | os.PathLike[str], slot: Slot) -> None:
    """Put a valid slot into its place."""
    block = superblock(path)
    index = slot_index(slot.generation, block.control_pages)
    overwrite(path, slot_offset(index), encode_slot(slot, block.uuid, index))


def place_of(path: str | os.PathLike[str], generation: int) -> int:
    """File offset of the place of this generation's slot."""
    return slot_offset(slot_index(generation, superblock(path).control_pages))


def resident_pages(fd: int, start: int, length: int) -> int:
    """How many pages of this part of a file are in the page cache, by mincore(2): to read them would bring them in.

    ``start``: a multiple of the page size.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(fd, length, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE, offset=start) as mapping:
        bits = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapping)
        failed = libc.mincore(ctypes.byref(first), ctypes.c_size_t(length), bits)
        del first  # or the mapping could not be closed
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
    return sum(bit & 1 for bit in bits)
