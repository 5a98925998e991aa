"""Which epoch a record can have, by its number. Pure.

Invariants
----------
- An epoch begins at a number: the records from that number on that an earlier epoch stored were discarded, by a rollback or a
  recovery. So a whole record of that number or a later one, but of an older epoch, is no part of the log.
- That stays true for as long as the log exists. To know fewer starts only means to recognise fewer discarded records.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Mapping

STARTS_MAX = 512  # starts that a handle remembers: each change of epoch copies them

_START = struct.Struct("<QQ")


def pack_starts(firsts: Mapping[int, int]) -> bytes:
    """The starts of these epochs, given as {epoch: first sequence number}, as (first number, epoch) pairs of two words each.

    Both ascend. An epoch that a later one discarded from its first number on is left out: the later one says more.
    """
    kept: list[tuple[int, int]] = []
    for epoch in sorted(firsts, reverse=True):
        if not kept or firsts[epoch] < kept[-1][0]:
            kept.append((firsts[epoch], epoch))
    return b"".join(_START.pack(*start) for start in reversed(kept[:STARTS_MAX]))


def add_start(starts: bytes, epoch: int, first_seq: int) -> bytes:
    """These starts and that of a new epoch."""
    return pack_starts({old: first for first, old in _START.iter_unpack(starts)} | {epoch: first_seq})


def starts_through(starts: bytes, epoch: int) -> bytes:
    """The starts of the epochs up to this one: a slot may name a later one that has not begun."""
    return b"".join(_START.pack(first, old) for first, old in _START.iter_unpack(starts) if old <= epoch)


def least_epoch(starts: bytes, seq: int) -> int:
    """The least epoch that a record of this number can have."""
    words = memoryview(starts).cast("Q")
    known = bisect_right(words[::2], seq)
    return words[2 * known - 1] if known else 0


def has_expected_epoch(seq: int, epoch: int, newest: int, newest_first_seq: int, starts: bytes = b"") -> bool:
    """Whether record ``seq`` of an epoch can be part of a log whose newest epoch begins with ``newest_first_seq``."""
    if seq >= newest_first_seq:
        return epoch == newest
    return epoch < newest and (not starts or epoch >= least_epoch(starts, seq))
