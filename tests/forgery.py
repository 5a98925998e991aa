"""Logs in which one number is impossible, though every checksum is right: each field of each structure at each extreme."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from pmwal.format.layout import (
    LIVE_BOUNDS,
    LIVE_LATENCY,
    LIVE_LATENCY_OFFSET,
    LIVE_OFFSET,
    LIVE_WRITER,
    LIVE_WRITER_OFFSET,
    RECORD,
    SLOT,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    Slot,
    Structure,
    Superblock,
    encode_header,
    seed_crc,
    slot_index,
    slot_offset,
)
from pmwal.storage.live_page import process_start_time
from pmwal.storage.seam import SYSTEM
from support import file_offset, kill, look, open_small, whole_records

_SIZES = {"H": 2, "I": 4, "Q": 8, "q": 8}


class Forgery(NamedTuple):
    """A name for messages, and what changes the file."""

    name: str
    apply: Callable[[Path], None]


def extremes(code: str) -> list[int]:
    """The values of a field at which something may overflow."""
    bits = 8 * _SIZES[code]
    if code == "q":
        return [-(1 << 63), -1, 0, (1 << 63) - 1]
    below = [1 << 31, (1 << 32) - 2, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, 1 << 63]
    return [0, 1, *(value for value in below if value < (1 << bits) - 2), (1 << bits) - 2, (1 << bits) - 1]


def _each(structure: Structure, *without: str) -> Iterator[tuple[str, int]]:
    for field in structure.fields:
        if field.code in _SIZES and field.name not in without:
            yield from ((field.name, value) for value in extremes(field.code))


def sample(path: Path, *, end: str) -> None:
    """A log that has wrapped, was truncated and rolled back; ``end``: "closed" or "killed"."""
    wal = open_small(path, size=4096, medium="file", ordering="pipelined")
    for number in range(8):
        wal.extend([b"%d" % number * 100, b"%d" % number * 60])
        wal.truncate(before=max(1, wal.next_seq - 8))
    wal.rollback(after=wal.next_seq - 2)
    for number in range(3):
        wal.append(b"last %d" % number)
    if end == "closed":
        wal.close()
    else:
        kill(wal)


class Original:
    """The log before it is forged."""

    def __init__(self, path: Path) -> None:
        judgement = look(path)
        newest = judgement.control.newest
        assert newest is not None
        self.block: Superblock = judgement.identity.block
        self.slot: Slot = newest
        self.records = list(whole_records(path).values())
        self.raw = path.read_bytes()

    def forgeries(self) -> Iterator[Forgery]:
        """All of them."""
        yield from self._slots()
        yield from self._records()
        yield from self._superblocks()
        yield from self._live_pages()

    def _patched(self, *patches: tuple[int, bytes]) -> Callable[[Path], None]:
        data = bytearray(self.raw)
        for offset, raw in patches:
            data[offset : offset + len(raw)] = raw
        return lambda path: _write(path, data)

    def _slot(self, slot: Slot) -> tuple[int, bytes]:
        index = slot_index(slot.generation, self.block.control_pages)
        body = SLOT.struct.pack(0, *slot, 0)[4:]
        return slot_offset(index), struct.pack("<I", crc32c(body, seed_crc(self.block.uuid, index))) + body

    def _slots(self) -> Iterator[Forgery]:
        turn, limit = self.block.turn, 1 << 64
        for name, value in _each(SLOT, "crc", "reserved"):
            slot = self.slot._replace(**{name: value})
            yield Forgery(f"newest slot, {name} {value}", self._patched(self._slot(slot)))
            newer = slot if name == "generation" else slot._replace(generation=slot.generation + 1)
            yield Forgery(f"one more slot, {name} {value}", self._patched(self._slot(newer)))
            every = [slot._replace(generation=slot.generation - age) for age in range(turn) if 0 <= slot.generation - age < limit]
            yield Forgery(f"all slots, {name} {value}", self._patched(*(self._slot(each) for each in every)))

    def _records(self) -> Iterator[Forgery]:
        places = {"first": self.records[0], "middle": self.records[len(self.records) // 2], "last": self.records[-1]}
        for where, found in places.items():
            start = file_offset(self.block, found.position)
            payload = self.raw[start + RECORD.size : start + RECORD.size + found.header.length]
            for name, value in _each(RECORD, "crc"):
                header = found.header._replace(**{name: value})
                raw = encode_header(header, payload, self.block.uuid, found.position)
                yield Forgery(f"{where} record, {name} {value}", self._patched((start, raw)))
                beyond = header._replace(seq=header.seq + 1) if name != "seq" else header
                if where == "last" and found.end % self.block.capacity + RECORD.size + len(payload) <= self.block.capacity:
                    raw = encode_header(beyond, payload, self.block.uuid, found.end) + payload
                    yield Forgery(f"record past the end, {name} {value}", self._patched((file_offset(self.block, found.end), raw)))

    def _superblocks(self) -> Iterator[Forgery]:
        for name, value in _each(SUPERBLOCK, "crc"):
            pages = [self._superblock(copy, name, value) for copy in (0, 1)]
            yield Forgery(f"both superblocks, {name} {value}", self._patched(*pages))
            yield Forgery(f"first superblock, {name} {value}", self._patched(pages[0]))

    def _superblock(self, copy: int, name: str, value: int) -> tuple[int, bytes]:
        offset = self.block.copy_offset if copy else SUPERBLOCK_OFFSET
        page = _with(SUPERBLOCK, self.raw[offset : offset + SUPERBLOCK.size], name, value)[:-4]
        return offset, page + struct.pack("<I", crc32c(page, seed_crc(self.block.uuid, copy)))

    def _live_pages(self) -> Iterator[Forgery]:
        """The writer's line names this process, which lives."""
        for structure, offset in (
            (LIVE_BOUNDS, LIVE_OFFSET),
            (LIVE_WRITER, LIVE_WRITER_OFFSET),
            (LIVE_LATENCY, LIVE_LATENCY_OFFSET),
        ):
            for name, value in _each(structure):
                yield Forgery(f"{structure.title}, {name} {value}", self._alive(structure, offset, name, value))

    def _alive(self, structure: Structure, offset: int, name: str, value: int) -> Callable[[Path], None]:
        def apply(path: Path) -> None:
            slot, tail = self.slot, (self.slot.tail_position, self.slot.tail_seq)
            lines = {
                LIVE_OFFSET: LIVE_BOUNDS.struct.pack(
                    2, *tail, slot.commit_position, slot.commit_seq, slot.epoch, slot.epoch_first_seq, 2
                ),
                LIVE_WRITER_OFFSET: LIVE_WRITER.struct.pack(
                    os.getpid(),
                    process_start_time(os.getpid()) or 0,
                    SYSTEM.boot_id(),
                    0,
                    slot.commit_position,
                    slot.commit_seq,
                    path.stat().st_ino,
                ),
                LIVE_LATENCY_OFFSET: self.raw[LIVE_LATENCY_OFFSET : LIVE_LATENCY_OFFSET + LIVE_LATENCY.size],
            }
            lines[offset] = _with(structure, lines[offset], name, value)
            self._patched(*lines.items())(path)

        return apply


def _with(structure: Structure, raw: bytes, name: str, value: int) -> bytes:
    code = next(field.code for field in structure.fields if field.name == name)
    start = structure.offsets[name]
    packed = struct.pack("<" + code, value)
    return raw[:start] + packed + raw[start + len(packed) :]


def _write(path: Path, data: bytes) -> None:
    """Into the same inode, which the live page names."""
    with path.open("r+b") as file:
        file.write(data)
