"""Numbers and durations as arguments: one rule for every call, the same with both engines."""

from __future__ import annotations

import asyncio
import enum
import threading
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
import pmwal.aio
from pmwal.format.payload import SECONDS_MAX, as_seconds
from support import open_small

pytestmark = pytest.mark.both_engines


class Two(enum.IntEnum):
    """A kind of int."""

    TWO = 2


class Index:
    """Something with ``__index__``."""

    def __index__(self) -> int:
        return 2


TWOS = [np.int64(2), np.uint8(2), np.array(2), Two.TWO, Index()]
NO_NUMBERS = [True, False, np.True_, 2.0, np.float64(2), Decimal(2), Fraction(2), b"2", [2], Ellipsis]


def stage(wal: pmwal.Wal, kind: Any) -> None:
    """Append in a batch."""
    with wal.batch() as batch:
        batch.append(b"x", kind=kind)


def reserve(wal: pmwal.Wal, n: Any, kind: Any) -> None:
    """Reserve, and fill nothing."""
    with wal.reserve(n, kind=kind):
        pass


def with_reader(call: Callable[[pmwal.Reader], Any]) -> Callable[[pmwal.Wal, Any], Any]:
    """The same of a reader."""

    def read(wal: pmwal.Wal, number: Any) -> Any:
        with pmwal.open(wal.path, "r") as reader:
            return call(reader)

    return read


KINDS: dict[str, Callable[[pmwal.Wal, Any], Any]] = {
    "append": lambda wal, number: wal.append(b"x", kind=number),
    "append without commit": lambda wal, number: wal.append(b"x", kind=number, commit=False),
    "extend": lambda wal, number: wal.extend([b"x", b"y"], kind=number),
    "extend of nothing": lambda wal, number: wal.extend([], kind=number),
    "extend_array": lambda wal, number: wal.extend_array(np.zeros((2, 3)), kind=number),
    "batch": stage,
    "reserve": lambda wal, number: reserve(wal, 5, number),
}
NUMBERS: dict[str, Callable[[pmwal.Wal, Any], Any]] = {
    "reserve": lambda wal, number: reserve(wal, number, 0),
    "wait_durable": lambda wal, number: wal.wait_durable(number),
    "truncate": lambda wal, number: wal.truncate(number),
    "rollback": lambda wal, number: wal.rollback(number),
    "index": lambda wal, number: wal[number].data,
    "start": lambda wal, number: list(wal.read(number)),
    "stop": lambda wal, number: list(wal.read(1, number)),
    "follow": lambda wal, number: list(wal.follow(number, timeout=0)),
    "read_array": lambda wal, number: wal.read_array("S1", number, number).tolist(),
    "index of a reader": lambda wal, number: with_reader(lambda reader: reader[number].data)(wal, number),
    "start of a reader": lambda wal, number: with_reader(lambda reader: list(reader.read(number)))(wal, number),
    "stop of a reader": lambda wal, number: with_reader(lambda reader: list(reader.read(1, number)))(wal, number),
    "follow of a reader": lambda wal, number: with_reader(lambda reader: list(reader.follow(number, timeout=0)))(wal, number),
}


def outcome(path: Path, call: Callable[[pmwal.Wal, Any], Any], number: Any) -> Any:
    """What a call returns or raises on a log of three records, and what is in the log then."""
    with open_small(path) as wal:
        for data in (b"a", b"b", b"c"):
            wal.append(data)
        try:
            answer = call(wal, number)
        except (TypeError, ValueError) as error:
            answer = type(error), str(error).replace(repr(number), "IT")
        held = [(record.seq, record.kind, record.data) for record in wal]
    path.unlink()
    for record in answer if isinstance(answer, list) else []:
        assert not isinstance(record, pmwal.Record) or type(record.seq) is int
    return [(r.seq, r.data) for r in answer] if isinstance(answer, list) and answer and hasattr(answer[0], "seq") else answer, held


@pytest.mark.parametrize("name", [*KINDS, *NUMBERS])
def test_anything_with_index_is_an_int(path: Path, name: str) -> None:
    """numpy's integers, enumerations and others mean the same as the int."""
    for calls in (KINDS, NUMBERS):
        if name in calls:
            expected = outcome(path, calls[name], 2)
            assert [expected] * len(TWOS) == [outcome(path, calls[name], two) for two in TWOS]


@pytest.mark.parametrize("number", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_int_is_a_type_error(path: Path, name: str, number: Any) -> None:
    """A bool is none: True as a sequence number is a mistake. Nothing changes."""
    answer, held = outcome(path, NUMBERS[name], number)
    assert answer[0] is TypeError, answer
    assert [data for *_, data in held] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("number", [*NO_NUMBERS, -1, 1 << 16, np.int64(-1), 1 << 70], ids=repr)
@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_kind_is_a_value_error(path: Path, name: str, number: Any) -> None:
    """It names the range, and nothing is stored."""
    answer, held = outcome(path, KINDS[name], number)
    assert answer == (ValueError, "kind must be an int from 0 to 65535, not IT")
    assert [data for *_, data in held] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("size", [65536, np.int64(65536), "64KiB", np.str_("64KiB")], ids=repr)
def test_size_and_align_take_integers_of_numpy(path: Path, size: Any) -> None:
    """As every other number."""
    with pmwal.open(path, size=size, align=np.int32(64)) as wal:
        assert (wal.capacity, wal.stats().alignment) == (65536, 64)
        assert type(wal.capacity) is int


@pytest.mark.parametrize(
    "options", [{"size": True}, {"size": 65536.0}, {"align": True}, {"align": 8.0}, {"size": np.True_}], ids=repr
)
def test_size_and_align_refuse_what_is_no_int(path: Path, options: dict[str, Any]) -> None:
    """And nothing is created."""
    with pytest.raises(TypeError):
        pmwal.open(path, **options)
    assert not path.exists()


async def follow_asynchronously(path: Path, timeout: Any) -> list[Any]:
    """The records of the log at once, or what ``pmwal.aio`` raises."""
    async with pmwal.aio.open(path, size="16KiB") as wal:
        return [record async for record in wal.follow(timeout=timeout)]


async def open_asynchronously(path: Path, timeout: Any) -> None:
    """An open with this time limit."""
    async with pmwal.aio.open(path, size="16KiB", on_full="wait", timeout=timeout):
        pass


def opened(path: Path, call: Callable[[Any], Any]) -> Any:
    """A call on a log of one record."""
    with open_small(path) as wal:
        wal.append(b"x")
        return call(wal)


WAITS: dict[str, Callable[[Path, Any], Any]] = {
    "open": lambda path, limit: pmwal.open(path, size="16KiB", on_full="wait", timeout=limit).close(),
    "open to read": lambda path, limit: opened(path, lambda wal: pmwal.open(path, "r", timeout=limit).close()),
    "wait_durable": lambda path, limit: opened(path, lambda wal: wal.wait_durable(1, limit)),
    "follow": lambda path, limit: opened(path, lambda wal: next(wal.follow(timeout=limit)).seq),
    "follow of a reader": lambda path, limit: opened(path, lambda wal: next(pmwal.open(path, "r").follow(timeout=limit)).seq),
    "open of aio": lambda path, limit: asyncio.run(open_asynchronously(path, limit)),
}
WAITS_SHORTLY = WAITS | {
    "follow of aio": lambda path, limit: asyncio.run(follow_asynchronously(path, limit)),
    "commit": lambda path, limit: pmwal.open(path, size="16KiB", commit=limit).close(),
}


@pytest.mark.parametrize("limit", [0.5, 1, np.float64(0.5), np.float32(0.5), np.int64(1), Fraction(1, 2)], ids=repr)
@pytest.mark.parametrize("name", WAITS_SHORTLY)
def test_any_real_number_of_seconds_is_a_time_limit(path: Path, name: str, limit: Any) -> None:
    """Of Python or of numpy."""
    WAITS_SHORTLY[name](path, limit)


@pytest.mark.parametrize(
    "limit", [float("inf"), 1e300, 10**400, np.float64("inf"), threading.TIMEOUT_MAX * 2], ids=lambda n: repr(n)[:9]
)
@pytest.mark.parametrize("name", WAITS)
def test_limit_that_no_thread_can_wait_for_is_none(path: Path, name: str, limit: Any) -> None:
    """It is longer than 280 years; the locks of Python would raise OverflowError."""
    WAITS[name](path, limit)


@pytest.mark.parametrize("limit", [float("nan"), np.float64("nan"), -1, -0.5, -(10**400), float("-inf")], ids=lambda n: repr(n)[:9])
@pytest.mark.parametrize("name", WAITS_SHORTLY)
def test_negative_and_undefined_limits_are_refused(path: Path, name: str, limit: Any) -> None:
    """They are a ValueError in every call, before it waits for anything."""
    with pytest.raises(ValueError, match="seconds"):
        WAITS_SHORTLY[name](path, limit)


@pytest.mark.parametrize("limit", [True, False, np.True_, b"1", Decimal(1), [1], 1j, threading], ids=lambda n: repr(n)[:9])
@pytest.mark.parametrize("name", WAITS_SHORTLY)
def test_what_is_no_real_number_is_a_type_error(path: Path, name: str, limit: Any) -> None:
    """A bool is no duration, and text is not read as one."""
    with pytest.raises(TypeError, match="number of seconds"):
        WAITS_SHORTLY[name](path, limit)


@pytest.mark.parametrize("limit", [float("inf"), 10**400, 0, threading.TIMEOUT_MAX * 2], ids=lambda n: repr(n)[:9])
def test_interval_of_commits_is_finite_and_above_zero(path: Path, limit: Any) -> None:
    """A background committer that never commits is "manual"."""
    with pytest.raises(ValueError, match="commit must be"):
        pmwal.open(path, size="16KiB", commit=limit)
    assert not path.exists()


def test_longest_limit_can_be_waited_for() -> None:
    """What is not taken for no limit is one that a lock accepts."""
    assert SECONDS_MAX < threading.TIMEOUT_MAX
    assert as_seconds("timeout", SECONDS_MAX) == SECONDS_MAX
    assert as_seconds("timeout", SECONDS_MAX * 1.01) is None


def test_lock_of_the_engine_is_made_without_arguments(path: Path) -> None:
    """As a class attribute a factory in Python would become a method, and RLock takes no arguments from Python 3.15 on."""
    with open_small(path) as wal:
        assert getattr(wal._engine.lock_type, "__self__", None) is not wal._engine
