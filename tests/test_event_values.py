"""Arguments of events that are not what they seem: each is stored as what it is, or refused by name, alike by both engines."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
from pmwal import events

pytestmark = pytest.mark.both_engines


class Text(str):
    """A str whose methods do not work."""

    def encode(self, *_: Any) -> bytes:
        raise RuntimeError

    __str__ = __repr__ = encode  # type: ignore[assignment]


class Bytes(bytes):
    """Bytes that lie about their length."""

    def __len__(self) -> int:
        return 3

    def __bytes__(self) -> bytes:
        raise RuntimeError


class Number(int):
    """An int whose methods do not work."""

    def bit_length(self) -> int:
        raise RuntimeError

    def to_bytes(self, *_: Any, **__: Any) -> bytes:
        raise RuntimeError

    def __index__(self) -> int:
        return 99

    __repr__ = bit_length  # type: ignore[assignment]


class Real(float):
    """A float that cannot be converted."""

    def __float__(self) -> float:
        raise RuntimeError


class Pretender:
    """An object that says that it is of another class, or raises when it is asked."""

    def __init__(self, kind: type | None) -> None:
        self.kind = kind

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        if self.kind is None:
            raise ZeroDivisionError
        return self.kind


class Index:
    """An object that is an integer, or raises."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __index__(self) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Zone(datetime.tzinfo):
    """A time zone that raises."""

    def utcoffset(self, _: Any) -> Any:
        raise ZeroDivisionError


STORED: dict[str, tuple[Any, Any]] = {
    "text": (Text("é"), "é"),
    "bytes": (Bytes(b"abcdef"), b"abcdef"),
    "number": (Number(7), 7),
    "large number": (Number(2**70), 2**70),
    "huge": (10**5000, 10**5000),
    "least": (-(2**63), -(2**63)),
    "less": (-(2**63) - 1, -(2**63) - 1),
    "float": (Real(1.5), 1.5),
    "infinite": (-math.inf, -math.inf),
    "half a pair": ("\ud800", "\ud800"),
    "numpy": (np.uint64(2**64 - 1), 2**64 - 1),
    "numpy text": (np.str_("hé"), "hé"),
    "numpy bytes": (np.bytes_(b"x"), b"x"),
    "no dimension": (np.array(3), 3),
    "index": (Index(7), 7),
}

REFUSED: dict[str, Callable[[], Any]] = {
    "list": list,
    "dict": dict,
    "decimal": lambda: decimal.Decimal(1),
    "complex": lambda: 1j,
    "date": lambda: datetime.date(2026, 1, 1),
    "bytearray": lambda: bytearray(b"x"),
    "array": lambda: np.arange(3),
    "float32": lambda: np.float32(1),
    "generator": lambda: (number for number in ()),
    "index": lambda: Index("x"),
    "says str": lambda: Pretender(str),
    "says bytes": lambda: Pretender(bytes),
    "says int": lambda: Pretender(int),
    "says float": lambda: Pretender(float),
    "says bool": lambda: Pretender(bool),
    "says datetime": lambda: Pretender(datetime.datetime),
    "says nothing": lambda: Pretender(None),
}


@pytest.mark.parametrize("name", STORED)
def test_argument_comes_back_as_what_it_is(name: str, shm_dir: Path) -> None:
    """Not as what the methods of its subclass say; the event can be read."""
    given, expected = STORED[name]
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        call = events.Logger(wal).event("{} and {x}")
        call(given, x=1)
        call(1, x=given)
        assert [event.values for event in events.read(wal)] == [(expected, 1), (1, expected)]


@pytest.mark.parametrize("name", REFUSED)
def test_other_arguments_are_refused_by_name_and_store_nothing(name: str, shm_dir: Path) -> None:
    """The message names event, parameter and type."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        call = events.Logger(wal).event("{} and {x}")
        value = REFUSED[name]()
        for attempt in (lambda: call(value, x=1), lambda: call(1, x=value)):
            with pytest.raises(TypeError, match=rf"and \{{x\}}'.*is of type {type(value).__name__}"):
                attempt()
        assert list(events.read(wal)) == []


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt(), SystemExit()], ids=repr)
def test_exception_of_an_argument_is_raised_and_nothing_is_stored(error: BaseException, shm_dir: Path) -> None:
    """The caller sees the very same one, and the next event is stored."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        call = events.Logger(wal).event("{}")
        with pytest.raises(type(error)) as raised:
            call(Index(error))
        assert raised.value is error
        with pytest.raises(ZeroDivisionError):
            call(datetime.datetime(2026, 1, 1, tzinfo=Zone()))
        call(1)
        assert [event.values for event in events.read(wal)] == [(1,)]
