"""Values that users log: no field of ``extra`` keeps a record from being stored, and what is cut leaves a mark."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import io
import json
import logging
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
from pmwal.integrations.structlog import LoggerFactory
from pmwal.logs.encoder import LIBRARIES, Interrupted, encoder
from pmwal.logs.plain import DEPTH_MAX, ITEMS_MAX, Plain, shortened

SIZE = "256KiB"
LIBRARY_SETS = [(), *((library,) for library in LIBRARIES)]


def nested(depth: int, make: Callable[[Any], Any]) -> Any:
    """A value nested this deep in containers."""
    value: Any = 7
    for _ in range(depth):
        value = make(value)
    return value


def loop(make: Callable[[], Any], put: Callable[[Any, Any], None], length: int) -> Any:
    """Containers in a circle of this length."""
    first = last = make()
    for _ in range(length - 1):
        following = make()
        put(last, following)
        last = following
    put(last, first)
    return first


def clique(members: int) -> Any:
    """Dicts each of which contains all: the number of paths is that of all permutations."""
    found: list[dict[str, Any]] = [{} for _ in range(members)]
    for one in found:
        one.update({str(number): other for number, other in enumerate(found)})
    return found[0]


@dataclasses.dataclass
class Node:
    """A dataclass, which orjson and msgspec encode as an object."""

    next: Any = None


class Raises:
    """An object whose methods all raise."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error

    __str__ = __repr__

    def __getattr__(self, name: str) -> Any:
        raise self.error

    def __format__(self, spec: str) -> str:
        raise self.error


class Recurses:
    """An object whose text is its own text."""

    def __str__(self) -> str:
        return f"<{self}>"


class Wrong:
    """An object whose __str__ returns no text."""

    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307


class Pretends:
    """An object that raises when it is asked for its class."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise ZeroDivisionError


class Endless(list[int]):
    """A list that never ends."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 1


class Breaks(Mapping[str, int]):
    """A mapping that breaks after its first item."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[str]:
        yield "first"
        raise RuntimeError("changed during iteration")


class Grows(dict[str, Any]):
    """A dict that one of its own values changes while it is encoded."""

    def __init__(self) -> None:
        outer = self

        class Changes:
            def __str__(self) -> str:
                outer[str(len(outer))] = 1
                return "changed"

        super().__init__(first=Changes(), second=Changes())


HOSTILE: dict[str, Callable[[], Any]] = {
    "a dict in itself": lambda: loop(dict, lambda a, b: a.update(next=b), 1),
    "a circle of three dicts": lambda: loop(dict, lambda a, b: a.update(next=b), 3),
    "a list in itself": lambda: loop(list, lambda a, b: a.append(b), 1),
    "a circle of many lists": lambda: loop(list, lambda a, b: a.append(b), 500),
    "a circle of two dicts and a tuple": lambda: loop(dict, lambda a, b: a.update(next={"inner": (b,)}), 1),
    "a circle of a list and tuples": lambda: loop(list, lambda a, b: a.append(((((b,),),),)), 1),
    "a circle of dataclasses and tuples": lambda: loop(Node, lambda a, b: setattr(a, "next", [(b,)]), 3),
    "a clique": lambda: clique(12),
    "2000 dicts": lambda: nested(2000, lambda value: {"d": value}),
    "10000 dicts": lambda: nested(10_000, lambda value: {"d": value}),
    "10000 lists": lambda: nested(10_000, lambda value: [value]),
    "10000 tuples": lambda: nested(10_000, lambda value: (value,)),
    "10000 of all": lambda: nested(2500, lambda value: ({"d": [Node(value)]},)),
    "ValueError": lambda: Raises(ValueError("no text")),
    "MemoryError": lambda: Raises(MemoryError()),
    "RecursionError": lambda: Raises(RecursionError()),
    "StopIteration": lambda: Raises(StopIteration()),
    "in a list": lambda: [1, Raises(ValueError("no text")), 3],
    "as a key": lambda: {Raises(KeyError()): 1},
    "recursion": Recurses,
    "no text": Wrong,
    "no class": Pretends,
    "breaks": Breaks,
    "grows": Grows,
    "huge": lambda: 10**5000,
    "huge in a list": lambda: [-(10**5000), 2**70, math.inf],
    "half a pair": lambda: {"\ud800": "\udc80", "b": ["\ud800"]},
    "keys": lambda: {1: 2, None: 3, (1, 2): 4, 1.5: 5, b"x": 6, False: 7},
    "keys that collide": lambda: {1: "a", "1": "b", "loop": loop(list, lambda a, b: a.append(b), 1)},
    "numbers": lambda: [math.nan, -math.inf, decimal.Decimal("1.10"), 1j, np.int64(3), np.float32(1.5), np.bool_(True)],
    "arrays": lambda: [np.arange(3), np.zeros((2, 2)), np.array(["a"]), np.datetime64("2026-11-29")],
    "times": lambda: [datetime.datetime(2026, 1, 1), datetime.date(2026, 1, 1), datetime.timedelta(1)],
    "others": lambda: [{1, 2}, frozenset("a"), b"\xff", bytearray(b"x"), memoryview(b"x"), uuid.UUID(int=1), int, Path("/x"), ...],
    "a generator": lambda: (number for number in range(3)),
}


def logged(handler: pmwal.LogHandler, extra: dict[Any, Any]) -> Any:
    """Log one record; its document. Nothing is printed."""
    logger = logging.Logger("app")
    logger.addHandler(handler)
    printed = io.StringIO()
    with redirect_stderr(printed):
        logger.info("order %d", 7, extra=extra)
    assert printed.getvalue() == ""
    return json.loads(handler.wal[handler.wal.next_seq - 1].data)


@pytest.fixture(params=LIBRARY_SETS, ids=["json", *LIBRARIES])
def handler(request: pytest.FixtureRequest, shm_dir: Path) -> Iterator[pmwal.LogHandler]:
    """A structured handler with each library."""
    for library in request.param:
        pytest.importorskip(library)
    handler = pmwal.LogHandler(shm_dir / "app.wal", size=SIZE, structured=True, commit="manual")
    handler._encode = encoder(request.param, handler._sink.count_cut)
    yield handler
    handler.close()


@pytest.mark.both_engines
@pytest.mark.parametrize("name", HOSTILE)
def test_no_value_of_extra_drops_a_record(name: str, handler: pmwal.LogHandler) -> None:
    """The message and the other fields are there; what could not be encoded is a text or a mark."""
    document = logged(handler, {"id": 17, "value": HOSTILE[name](), "last": "x"})
    assert document["message"] == "order 7"
    assert (document["extra"]["id"], document["extra"]["last"]) == (17, "x")
    assert "value" in document["extra"]
    assert handler.stats().errors == 0


def test_cut_is_marked_where_it_is_and_counted(handler: pmwal.LogHandler) -> None:
    """A cycle, too much depth, an object that raises: each has a mark with the reason, and the rest stays."""
    cycle: dict[str, Any] = {"a": 1, "list": []}
    cycle["list"].append(cycle)
    assert logged(handler, {"cycle": cycle})["extra"]["cycle"] == {"a": 1, "list": ["[cut: cycle]"]}
    found = logged(handler, {"bad": [1, Raises(ValueError()), 3]})["extra"]["bad"]
    assert found == [1, "[cut: ValueError]", 3]
    inner = logged(handler, {"deep": nested(10_000, lambda value: [value])})["extra"]["deep"]
    depth = 0
    while isinstance(inner, list):
        (inner,), depth = inner, depth + 1
    assert (inner, depth) == ("[cut: depth]", DEPTH_MAX - 2)  # the document and extra are the first two
    assert handler.stats().cut == 3


def test_numbers_that_json_does_not_have_are_null(handler: pmwal.LogHandler) -> None:
    """With each library, and also where something else is cut."""
    odd = [math.nan, math.inf, {"a": -math.inf}]
    assert logged(handler, {"odd": odd})["extra"]["odd"] == [None, None, {"a": None}]
    assert handler.stats().cut == 0
    assert logged(handler, {"odd": odd, "bad": Raises(ValueError())})["extra"]["odd"] == [None, None, {"a": None}]


def test_value_twice_in_a_record_is_no_cycle(handler: pmwal.LogHandler) -> None:
    """Only what contains itself is cut."""
    shared = [1, {"x": 2}]
    document = logged(handler, {"a": shared, "b": {"c": shared}, "odd": {"\udc80"}})
    assert (document["extra"]["a"], document["extra"]["b"]) == (shared, {"c": shared})
    assert handler.stats().cut == 0


def test_keys_that_are_one_in_json_stay_apart_where_something_is_cut(handler: pmwal.LogHandler) -> None:
    """The second one gets its type as a mark."""
    keys: dict[Any, Any] = {1: "a", "1": "b", 1.0j: "c", "1 (str)": "d", "bad": Raises(ValueError())}
    found = logged(handler, {"keys": keys})["extra"]["keys"]
    assert found == {"1": "a", "1 (str)": "b", "1j": "c", "1 (str) (str)": "d", "bad": "[cut: ValueError]"}


def test_items_without_an_end_are_cut() -> None:
    """At a fixed number, with a mark as the last one."""
    plain = Plain()
    found = plain.value(Endless([1]))
    assert ITEMS_MAX / 2 < len(found) < ITEMS_MAX
    assert (found[-1], plain.cuts) == ("[cut: size]", 1)


@pytest.mark.both_engines
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("place", ["value", "list", "key"])
def test_interrupt_in_an_object_is_raised_after_the_record_was_stored(
    error: BaseException, place: str, handler: pmwal.LogHandler
) -> None:
    """Ctrl-C is not swallowed by any library, and the record is not lost either."""
    bad = Raises(error)
    value = {"value": bad, "list": [1, bad], "key": {bad: 1}}[place]
    with pytest.raises(type(error)) as raised:
        logged(handler, {"id": 17, "value": value})
    assert raised.value is error
    (record,) = handler.wal
    document = json.loads(record.data)
    assert document["extra"]["id"] == 17
    assert f"[cut: {type(error).__name__}]" in json.dumps(document["extra"]["value"])
    assert handler.stats().errors == 0


@pytest.mark.both_engines
def test_interrupt_that_comes_once_is_raised_although_a_library_hides_it(handler: pmwal.LogHandler) -> None:
    """A Ctrl-C that arrives in an object's method: orjson makes a TypeError of it, and the object is fine the next time."""

    class Slow:
        times = 0

        def __str__(self) -> str:
            self.times += 1
            if self.times == 1:
                raise KeyboardInterrupt
            return "slow"

    with pytest.raises(KeyboardInterrupt):
        logged(handler, {"id": 17, "value": Slow()})
    (record,) = handler.wal
    assert json.loads(record.data)["extra"] == {"id": 17, "value": "slow"}
    assert handler.stats().errors == 0


@pytest.mark.parametrize("libraries", LIBRARY_SETS, ids=["json", *LIBRARIES])
def test_encoder_raises_nothing_else(libraries: tuple[str, ...]) -> None:
    """Every value gives a line, or a line and an interrupt."""
    for library in libraries:
        pytest.importorskip(library)
    encode = encoder(libraries)
    for make in HOSTILE.values():
        json.loads(encode({"extra": {"a": make()}}))
    with pytest.raises(Interrupted) as interrupted:
        encode({"a": Raises(KeyboardInterrupt())})
    assert json.loads(interrupted.value.line) == {"a": "[cut: KeyboardInterrupt]"}
    assert isinstance(interrupted.value.__cause__, KeyboardInterrupt)


# -- records that are too large


@pytest.mark.both_engines
@pytest.mark.parametrize("field", ["message", "extra", "exc"])
def test_record_too_large_is_stored_shortened_and_reported(field: str, shm_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A structured one stays JSON; the fields that are short stay whole."""
    handler = pmwal.LogHandler(shm_dir / "app.wal", size=SIZE, structured=True, commit="manual")
    logger = logging.Logger("app")
    logger.addHandler(handler)
    large = "ä\x00\udc80" * 200_000
    try:
        raise ValueError(large if field == "exc" else "small")
    except ValueError:
        logger.exception(
            large if field == "message" else "small", extra={"id": 17, "list": [large] * 3} if field == "extra" else {"id": 17}
        )
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    for part in ("RecordTooLarge", "stored shortened", handler.wal.path, f"{__file__}:"):
        assert part in printed
    assert len(printed) < 1000
    (record,) = handler.wal
    document = json.loads(record.data)
    assert (document["level"], document["logger"], document["extra"]["id"]) == ("ERROR", "app", 17)
    assert " characters]" in json.dumps(document[field])
    stats = handler.stats()
    assert (stats.written, stats.errors, stats.cut, stats.reasons) == (1, 1, 1, {"RecordTooLarge": 1})
    handler.close()


@pytest.mark.parametrize("size", [1000, 4096, 1 << 20])
@pytest.mark.parametrize(
    "document",
    [
        {"message": "x" * 3_000_000},
        {"message": "\x00" * 3_000_000, "exc": "\x01" * 3_000_000},
        {"extra": {str(number): "\x00" * 20 for number in range(30_000)}},
        {"extra": {"k" * 100_000 + str(number): number for number in range(30)}},
        {"extra": [10**400] * 10_000},
        {"extra": [[[[[[[[[[1]]]]]]]]] * 100_000]},
        [[1] * 2_000_000],
    ],
    ids=range(7),
)
def test_shortened_line_has_about_the_size_that_was_asked_for(document: Any, size: int) -> None:
    """Never more than twice as much, so that it fits into the log; an object stays JSON."""
    line = json.dumps(document).encode()
    found = shortened(line, size)
    assert len(found) < 2 * size
    if line.startswith(b"{"):
        assert "cut" in json.dumps(json.loads(found))


@pytest.mark.parametrize(("text", "kept"), [("ééé", "é"), ("aéé", "aé"), ("€€", "€"), ("😀x", ""), ("abcd", "abc")])
def test_text_is_not_cut_inside_a_character(text: str, kept: str) -> None:
    """The mark counts bytes."""
    left = len(text.encode()) - len(kept.encode())
    assert shortened(text.encode(), 3).decode() == f"{kept}[cut: {left} bytes]"


@pytest.mark.both_engines
def test_structlog_bytes_that_are_too_large_are_stored_shortened(shm_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the last processor returned."""
    factory = LoggerFactory(shm_dir / "app.wal", size="64KiB", commit="manual")
    factory().info(b"\xff" * (1 << 16))
    factory().info(bytearray(b"whole"))
    assert [record.data[:3] for record in factory.wal] == [b"\xff\xff\xff", b"who"]
    assert "RecordTooLarge" in capsys.readouterr().err
    assert factory.stats().cut == 1
    factory.close()
