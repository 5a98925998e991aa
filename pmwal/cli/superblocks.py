"""What can be read of a file's superblocks and slots, however damaged; for ``pmwal info``."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pmwal.format.layout import (
    CONTROL_OFFSET,
    CONTROL_SIZE_DEFAULT,
    CONTROL_SIZE_MAX,
    CONTROL_SIZE_MIN,
    MAGIC,
    PAGE,
    SLOT,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    Slot,
    Superblock,
    decode_slot,
    decode_superblock,
)


@dataclass(frozen=True, slots=True)
class Superblocks:
    """The superblock in use, the state of both copies in a word or two, and a clue if neither is whole."""

    block: Superblock | None
    state: tuple[str, str]
    clue: str = ""


def read_superblocks(fd: int, size: int) -> Superblocks:
    """Look for both copies; nothing is trusted that a valid checksum does not cover."""
    first_page = _page(fd, SUPERBLOCK_OFFSET)
    first = decode_superblock(first_page, 0)
    if first is not None:
        second = decode_superblock(_page(fd, first.copy_offset), 1)
        return Superblocks(first, ("whole", _state_of_second(first, second, size)))
    for offset in range(CONTROL_OFFSET + CONTROL_SIZE_MIN, CONTROL_OFFSET + CONTROL_SIZE_MAX + 1, PAGE):
        if offset + PAGE > size:
            break
        second = decode_superblock(_page(fd, offset), 1)
        if second is not None and second.copy_offset == offset:
            return Superblocks(second, (_state_of_page(first_page), "whole"))
    page = _page(fd, CONTROL_OFFSET + CONTROL_SIZE_DEFAULT)
    return Superblocks(None, (_state_of_page(first_page), _state_of_page(page)), _clue(fd, first_page, page))


def _page(fd: int, offset: int) -> bytes:
    try:
        return os.pread(fd, PAGE, offset)
    except OSError:  # a directory, a FIFO, a page that is lost: no superblock there
        return b""


def _state_of_page(page: bytes) -> str:
    return "damaged" if page.startswith(MAGIC) else "not found"


def _state_of_second(first: Superblock, second: Superblock | None, size: int) -> str:
    if second is None:
        return "not found" if first.copy_offset + PAGE > size else "damaged"
    return "whole" if second == first else "of another log"


def _clue(fd: int, *pages: bytes) -> str:
    """If commit slots validate with the uuid in a damaged superblock, the file was a log, and that log."""
    for page in pages:
        if len(page) < PAGE or not page.startswith(MAGIC):
            continue
        start = SUPERBLOCK.offsets["uuid"]
        uuid = page[start : start + SUPERBLOCK.field_size("uuid")]
        region = b"".join(_page(fd, CONTROL_OFFSET + at).ljust(PAGE, b"\0") for at in range(0, CONTROL_SIZE_DEFAULT, PAGE))
        whole = [slot for slot in _slots(region, uuid) if slot is not None]
        if whole:
            newest = max(whole, key=lambda slot: slot.generation)
            return (
                f"uuid {uuid.hex()}, by {len(whole)} whole commit slots; the newest names "
                f"records {newest.tail_seq} to {newest.commit_seq}, epoch {newest.epoch}"
            )
    return ""


def _slots(region: bytes, uuid: bytes) -> list[Slot | None]:
    """The slot at each index, None where there is no whole slot of this log."""
    count = len(region) // SLOT.size
    return [decode_slot(region[at * SLOT.size : (at + 1) * SLOT.size], uuid, at) for at in range(count)]
