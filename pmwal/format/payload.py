"""Arguments of the calls that store: payloads and kinds, checked before anything is stored."""

from __future__ import annotations

import operator
from typing import Any

from pmwal.errors import RecordTooLarge
from pmwal.format.layout import KIND_MAX, Superblock


def as_payload(data: Any, block: Superblock) -> bytes:
    """A private copy of any contiguous buffer, so that the bytes checksummed are the bytes stored."""
    if isinstance(data, str):
        raise TypeError("a record is bytes, not str; encode it first: text.encode()")
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"a record is bytes or another contiguous buffer, not {type(data).__name__}") from None
    with view:
        if not view.c_contiguous:
            raise ValueError("the buffer is not contiguous; copy it first, for example with numpy.ascontiguousarray()")
        check_length(view.nbytes, block)
        return view.tobytes()


def check_length(length: int, block: Superblock) -> int:
    """The length; ``RecordTooLarge`` if no record of this length fits into this log."""
    if length > block.payload_max:
        raise RecordTooLarge(f"a record of {length} bytes cannot fit; the largest payload of this log is {block.payload_max} bytes")
    return length


def as_number(seq: Any) -> int:
    """A sequence number from any integer; ``TypeError`` for everything else."""
    return operator.index(seq)


def check_kind(kind: int) -> int:
    """The kind; ``ValueError`` if it does not fit its field."""
    if not isinstance(kind, int) or not 0 <= kind <= KIND_MAX:
        raise ValueError(f"kind must be an int from 0 to {KIND_MAX}, not {kind!r}")
    return kind
