"""Small logs for experiments, and changes to their records, slots and superblocks with right or wrong checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pmwal
from pmwal.format.layout import (
    HEADER,
    SUPERBLOCK,
    Header,
    Slot,
    Superblock,
    encode_header,
    encode_superblock,
    record_size,
)
from pmwal.writing.wal import Wal
from support import (
    file_offset,
    flip,
    kill,
    look,
    open_small,
    overwrite,
    place_of,
    superblock,
    whole_records,
)

STRICT: dict[str, Any] = {"medium": "file", "ordering": "strict"}


def three(path: Path, options: dict[str, Any] = STRICT) -> pmwal.Wal:
    """An open log with three acknowledged records."""
    wal = open_small(path, **options)
    for number in (1, 2, 3):
        wal.append(b"record %d" % number)
    return wal


def closed(path: Path) -> None:
    """Three records, closed cleanly."""
    three(path).close()


def killed(path: Path) -> None:
    """Three acknowledged records, killed."""
    kill(three(path))


def fill_to(wal: Wal, position: int) -> None:
    """Append records until the log ends at this position, and empty it, so that no other record interferes."""
    block = wal._engine.block
    while wal._engine.state.head.position < position:
        left = position - wal._engine.state.head.position
        size = left if left <= block.capacity // 2 else min(left - record_size(0, block.alignment), block.capacity // 4)
        assert size >= HEADER, "no record can end there"
        wal.append(bytes(size // block.alignment * block.alignment - HEADER))
        wal.truncate(before=wal.next_seq)
    assert position == wal._engine.state.head.position


def newest_slot(path: Path) -> Slot:
    """The commit pointer of a file."""
    slot = look(path).control.newest
    assert slot is not None
    return slot


def craft_record(path: Path, position: int, payload: bytes = b"crafted", **fields: int) -> None:
    """Write a whole record at a position; by default the next record of the log's epoch."""
    judgement = look(path)
    values = {"seq": judgement.end.next_seq, "durable": 0, "epoch": judgement.report.epoch, "batch_count": 1, **fields}
    header = Header(0, len(payload), values["seq"], values["durable"], 0, values["epoch"], 0, 0, 0, values["batch_count"])
    block = judgement.identity.block
    raw = encode_header(header, payload, block.uuid, position) + payload
    raw += bytes(record_size(len(payload), block.alignment) - len(raw))
    overwrite(path, file_offset(block, position), raw)


def damage_record(path: Path, seq: int, at: int = HEADER) -> None:
    """Flip a bit of a record that is still whole."""
    flip(path, file_offset(superblock(path), whole_records(path)[seq].position) + at)


def change_record(path: Path, seq: int, **fields: int) -> None:
    """Change header fields of a record that is still whole, and its checksum to match."""
    block, found = superblock(path), whole_records(path)[seq]
    start = file_offset(block, found.position)
    payload = path.read_bytes()[start + HEADER : start + HEADER + found.header.length]
    overwrite(path, start, encode_header(found.header._replace(**fields), payload, block.uuid, found.position))


def damage_slot(path: Path, generation: int) -> None:
    """Flip a bit of a slot."""
    flip(path, place_of(path, generation) + 17)


def damage_superblock(path: Path, copy: int) -> None:
    """Flip a bit of a superblock copy."""
    flip(path, (0 if copy == 0 else superblock(path).copy_offset) + SUPERBLOCK.offsets["created_ns"])


def rewrite_superblocks(path: Path, block: Superblock) -> None:
    """Replace both superblock copies."""
    overwrite(path, 0, encode_superblock(block, 0))
    overwrite(path, block.copy_offset, encode_superblock(block, 1))
