"""Arguments of calls: payloads, numbers, durations and sizes, checked before anything is stored or waited for.

A number is anything with ``__index__`` (so numpy's integers, too), a duration any real number; a bool is neither.
"""

from __future__ import annotations

import operator
import re
from numbers import Real
from typing import Any

from pmwal.errors import RecordTooLarge
from pmwal.format.layout import CAPACITY_MAX, CAPACITY_MIN, KIND_MAX, PAGE, Superblock

SECONDS_MAX = 9e9
"""The longest time limit: a little less than ``threading.TIMEOUT_MAX`` on systems with 64 bits."""

_FIELD_NAME = re.compile(":[^:]*:")  # in the format of a buffer (PEP 3118)

_BINARY = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)\s*", re.IGNORECASE)


def as_payload(data: Any, block: Superblock) -> bytes:
    """A private copy of any contiguous buffer, so that the bytes checksummed are the bytes stored."""
    if isinstance(data, str):
        raise TypeError("a record is bytes, not str; encode it first: text.encode()")
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"a record is bytes or another contiguous buffer, not {type(data).__name__}") from None
    with view:
        if "O" in _FIELD_NAME.sub("", view.format):
            raise TypeError("the buffer contains Python objects, which have no bytes to store; use a dtype of plain values")
        if view.nbytes and not view.c_contiguous:
            raise ValueError("the buffer is not contiguous; copy it first, for example with numpy.ascontiguousarray()")
        check_length(view.nbytes, block)
        return view.tobytes()


def check_items(items: Any) -> None:
    """``TypeError`` for one record in place of several: it would be taken apart into characters or numbers."""
    if isinstance(items, str | bytes | bytearray):
        raise TypeError(f"extend takes a list of records, not {type(items).__name__}; store one record with append")


def check_length(length: int, block: Superblock) -> int:
    """The length; ``RecordTooLarge`` if no record of this length fits into this log."""
    if length > block.payload_max:
        raise RecordTooLarge(f"a record of {length} bytes cannot fit; the largest payload of this log is {block.payload_max} bytes")
    return length


def as_integer(name: str, value: Any) -> int:
    """The value of an argument as an int; ``TypeError`` if it is none."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, not {value!r}") from None


def as_number(seq: Any) -> int:
    """A sequence number from any integer; ``TypeError`` for everything else."""
    return as_integer("a sequence number", seq)


def as_index(seq: Any) -> int:
    """A sequence number in brackets."""
    try:
        return as_number(seq)
    except TypeError:
        raise TypeError(f"a log is indexed by sequence number, not {type(seq).__name__}; use read(start, stop)") from None


def as_seconds(name: str, value: Any) -> float | None:
    """A time limit in seconds, from 0; None, for no limit, also where it is longer than a thread can wait."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
    number: Any = value
    if not number >= 0:  # NaN is neither
        raise ValueError(f"{name} must be None or a number of seconds from 0, not {value!r}")
    return float(number) if number <= SECONDS_MAX else None


def check_kind(kind: Any) -> int:
    """The kind as an int; ``ValueError`` if it does not fit its field."""
    try:
        number = as_integer("kind", kind)
    except TypeError:
        number = -1
    if not 0 <= number <= KIND_MAX:
        raise ValueError(f"kind must be an int from 0 to {KIND_MAX}, not {kind!r}")
    return number


def parse_size(size: int | str) -> int:
    """A size in bytes from an int or from text: ``"64MiB"`` and ``"64M"`` are binary, ``"64MB"`` is decimal.

    >>> parse_size("64MiB"), parse_size("64M"), parse_size("1.5kB"), parse_size(4096)
    (67108864, 67108864, 1500, 4096)
    """
    if not isinstance(size, str):
        try:
            size = as_integer("a size", size)
        except TypeError:
            raise TypeError(f"a size is an int or text like '64MiB', not {type(size).__name__}") from None
    else:
        match = _SIZE.fullmatch(size)
        if match is None or (match[3] and not match[2]):
            raise ValueError(f"cannot read the size {size!r}; write bytes, or a number with KiB, MiB, GiB, kB, MB or GB")
        unit = match[2].lower()
        factor = _DECIMAL[unit] if unit and match[4] and not match[3] else _BINARY[unit]
        size = round(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor
    if size <= 0:
        raise ValueError(f"a size must be positive, not {size}")
    return size


def as_capacity(size: int | str) -> int:
    """The capacity of a ring of this size, which is rounded up to whole pages."""
    capacity = -(-parse_size(size) // PAGE) * PAGE
    if not CAPACITY_MIN <= capacity <= CAPACITY_MAX:
        raise ValueError(f"size must be from {CAPACITY_MIN} to {CAPACITY_MAX} bytes, not {size!r}")
    return capacity
