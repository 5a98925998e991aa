"""Arguments of an event as bytes: a tag and a value each. ``pmwal/native/emitter.c`` packs the same bytes.

Invariants
----------
- Each value carries its own type and length, so arguments can be read without their definition.
- A length is checked against the payload before it is used: any bytes unpack, or raise ``ValueError``.
"""

from __future__ import annotations

import operator
import struct
from datetime import UTC, datetime, timedelta, timezone

Value = int | float | str | bytes | datetime | None
"""What an event stores. ``bool`` is an ``int`` that comes back as ``bool``."""

NONE, FALSE, TRUE, INT, LARGE_INT, FLOAT, STR, BYTES, DATETIME, DATETIME_ZONE = range(10)

_INT = struct.Struct("<q")
_FLOAT = struct.Struct("<d")
_LENGTH = struct.Struct("<I")
_ZONED = struct.Struct("<qq")
_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
_FIXED: dict[int, Value] = {NONE: None, FALSE: False, TRUE: True}


def pack(value: object) -> bytes:
    """One argument as bytes. ``TypeError`` when events do not store values of its type.

    >>> pack(7).hex(), pack("é").hex()
    ('030700000000000000', '0602000000c3a9')
    """
    if value is None:
        return bytes((NONE,))
    # By its type, not by its __class__; by the methods of the type, not by those of a subclass, which may not fit its data.
    kind = type(value)
    if kind is bool:
        return bytes((TRUE if value else FALSE,))
    if issubclass(kind, float):
        return bytes((FLOAT,)) + _FLOAT.pack(float.__float__(value))  # type: ignore[arg-type]
    if issubclass(kind, str):
        return _run(STR, str.encode(value, "utf-8", "surrogatepass"))  # type: ignore[arg-type]
    if issubclass(kind, bytes):
        return _run(BYTES, bytes(memoryview(value)))  # type: ignore[arg-type]
    if issubclass(kind, datetime):
        return _pack_datetime(value)  # type: ignore[arg-type]
    number = operator.index(value)  # type: ignore[arg-type]  # TypeError is what it raises for all other types
    if -(1 << 63) <= number < 1 << 63:
        return bytes((INT,)) + _INT.pack(number)
    return _run(LARGE_INT, number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True))


def _run(tag: int, data: bytes) -> bytes:
    return bytes((tag,)) + _LENGTH.pack(len(data)) + data


def _pack_datetime(value: datetime) -> bytes:
    microseconds = (value.replace(tzinfo=None) - _EPOCH) // _MICROSECOND
    offset = value.utcoffset()
    if offset is None:
        return bytes((DATETIME,)) + _INT.pack(microseconds)
    return bytes((DATETIME_ZONE,)) + _ZONED.pack(microseconds, offset // _MICROSECOND)


def unpack(data: bytes) -> tuple[Value, ...]:
    """All arguments. ``ValueError`` when the bytes are not arguments.

    >>> unpack(pack(7) + pack(None) + pack(b"raw"))
    (7, None, b'raw')
    """
    values: list[Value] = []
    at = 0
    try:
        while at < len(data):
            value, at = _take(data, at)
            values.append(value)
    except (struct.error, OverflowError, IndexError) as error:
        raise ValueError(f"no arguments of an event: {error}") from None
    return tuple(values)


def _take(data: bytes, at: int) -> tuple[Value, int]:
    tag, at = data[at], at + 1
    if tag in _FIXED:
        return _FIXED[tag], at
    if tag == INT:
        return _INT.unpack_from(data, at)[0], at + _INT.size
    if tag == FLOAT:
        return _FLOAT.unpack_from(data, at)[0], at + _FLOAT.size
    if tag == DATETIME:
        return _EPOCH + _INT.unpack_from(data, at)[0] * _MICROSECOND, at + _INT.size
    if tag == DATETIME_ZONE:
        microseconds, offset = _ZONED.unpack_from(data, at)
        zone = timezone(offset * _MICROSECOND) if offset else UTC
        return (_EPOCH + microseconds * _MICROSECOND).replace(tzinfo=zone), at + _ZONED.size
    if tag not in (LARGE_INT, STR, BYTES):
        raise ValueError(f"no arguments of an event: tag {tag}")
    (length,) = _LENGTH.unpack_from(data, at)
    at += _LENGTH.size
    run = data[at : at + length]
    if len(run) < length:
        raise ValueError("no arguments of an event: cut off")
    at += length
    if tag == STR:
        return run.decode("utf-8", "surrogatepass"), at
    return (run if tag == BYTES else int.from_bytes(run, "little", signed=True)), at
