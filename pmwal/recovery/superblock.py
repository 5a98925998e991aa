"""Whether a file is a pmwal log, and its superblock.

Invariants
----------
- Nothing of a file is mapped or used before one of its two superblock copies was found whole, by checksum.
- If copy 0 is damaged, copy 1 is searched for wherever a control region may end, because only copy 0 says where it is.
- A file whose end was cut off is refused, but for those that read what is missing as zeros: salvage and repair.
"""

from __future__ import annotations

from dataclasses import dataclass

from pmwal.errors import FormatError, ShortenedWal
from pmwal.format.layout import (
    CONTROL_OFFSET,
    CONTROL_SIZE_MAX,
    CONTROL_SIZE_MIN,
    KNOWN_COMPATIBLE,
    KNOWN_INCOMPATIBLE,
    MAGIC,
    PAGE,
    SUPERBLOCK_OFFSET,
    VERSION_MAJOR,
    Superblock,
    decode_superblock,
)
from pmwal.format.ring import Load


@dataclass(frozen=True, slots=True)
class Identity:
    """The superblock in use, and how many of its copies are whole."""

    block: Superblock
    copies: int


def identify(load: Load, file_size: int, name: str, *, shortened: bool = False) -> Identity:
    """Find a whole superblock; ``FormatError`` if there is none, or if this version must not use the file.

    ``ShortenedWal`` if the file is shorter than its superblock says, unless ``shortened``.
    """
    if not file_size:
        raise FormatError(f"{name}: not a pmwal log: 0 bytes are less than a superblock; remove the empty file to create one")
    if file_size < PAGE:
        raise FormatError(f"{name}: not a pmwal log: {file_size} bytes are less than a superblock")
    first_page = load(SUPERBLOCK_OFFSET, PAGE)
    first = decode_superblock(first_page, 0)
    second: Superblock | None = None
    if first is not None:
        if first.copy_offset + PAGE <= file_size:
            second = decode_superblock(load(first.copy_offset, PAGE), 1)
    else:
        for offset in range(CONTROL_OFFSET + CONTROL_SIZE_MIN, CONTROL_OFFSET + CONTROL_SIZE_MAX + 1, PAGE):
            if offset + PAGE > file_size:
                break
            found = decode_superblock(load(offset, PAGE), 1)
            if found is not None and found.copy_offset == offset:
                second = found
                break
    block = first if first is not None else second
    if second != block:
        second = None  # whole, but of another log
    if block is None:
        raise FormatError(f"{name}: {_why_unreadable(first_page)}")
    if block.version_major > VERSION_MAJOR or block.incompatible & ~KNOWN_INCOMPATIBLE:
        raise FormatError(
            f"{name}: written by a newer pmwal (format {block.version_major}.{block.version_minor}, "
            f"incompatible flags {block.incompatible:#x}); this one reads format {VERSION_MAJOR}. Upgrade pmwal."
        )
    if file_size < block.file_size and not shortened:
        reason = f"shortened: {file_size} bytes, its superblock says {block.file_size}"
        raise ShortenedWal(
            f"{name}: {reason}. Nothing was changed. Restore it from a copy, or read what is left with "
            f'pmwal.open(path, "r", recover="salvage"), or run: pmwal repair {name}',
            start=file_size,
            end=block.file_size,
            reason=reason,
        )
    return Identity(block, (first is not None) + (second is not None))


def _why_unreadable(page: bytes) -> str:
    if page[: len(MAGIC)] != MAGIC:
        return "not a pmwal log: no magic in the first bytes, and no second superblock"
    version = int.from_bytes(page[8:10], "little")
    if version > VERSION_MAJOR:
        return f"written by a newer pmwal (format {version}); this one reads format {VERSION_MAJOR}. Upgrade pmwal."
    return "both superblocks are damaged. Restore the file from a copy."


def writable_problem(block: Superblock) -> str | None:
    """Why this version may read but not write the log, or None."""
    unknown = block.compatible & ~KNOWN_COMPATIBLE
    if unknown:
        return f'written by a newer pmwal (compatible flags {unknown:#x}): open it with mode="r", or upgrade pmwal'
    return None
