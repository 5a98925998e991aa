"""A writer that frees records, and uses their space again, at each single load of a reader: whoever continues ``missed`` records
later gets all that is there, each record once, and in order.

Each way to read is run once for each load of the file that it makes: the writer acts at that load, and at some after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
from pmwal.cli.reading.spans import Span
from pmwal.errors import Overrun
from pmwal.format.frame import unpack
from pmwal.format.ring import Found
from pmwal.reading.selection import selection
from pmwal.reading.walk import View, Walker
from pmwal.records import Bound
from pmwal.ship.otlp.sources import ManyLogs, OneLog
from pmwal.ship.source import ShippedLog
from pmwal.storage.mapping import Mapping

pytestmark = pytest.mark.both_engines

SIZE = 1000
DATA = np.dtype(f"S{SIZE}")
ASKED = 40

Item = tuple[int, bytes] | range
"""A record, or the numbers that are said to be gone."""

Way = Callable[["Scene"], Iterator[Item]]


class Scene:
    """A full log, and a writer that acts at chosen loads."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, how: str, at: set[int]) -> None:
        self.path, self.at = path, at
        self.loads, self.acts = 0, 0
        self.watching = False
        self.wal = pmwal.open(path, size="64KiB", on_full="overwrite" if how == "overwrite" else "raise")
        self.cursor = ""
        self.step = {"truncate": self._truncate, "overwrite": self._overwrite}[how]
        self.wal.extend([payload(seq) for seq in range(1, 63)])
        load = Mapping.load

        def counted(mapping: Mapping, offset: int, length: int) -> bytes:
            if self.watching:
                self.loads += 1
                if self.loads in self.at:
                    self.watching = False  # what the writer loads does not count
                    self.acts += 1
                    self.step()
                    self.watching = True
            return load(mapping, offset, length)

        monkeypatch.setattr(Mapping, "load", counted)

    def _truncate(self) -> None:
        count = 17
        self.wal.truncate(before=self.wal.first_seq + count)
        self._store(count)

    def _overwrite(self) -> None:
        self._store(17)

    def _store(self, count: int) -> None:
        self.wal.extend([payload(seq) for seq in range(self.wal.next_seq, self.wal.next_seq + count)])

    def gap(self, first: int, count: int) -> range:
        """Records that are said to be gone."""
        assert count > 0, f"record {first} was not rolled back"
        assert first + count <= self.wal.first_seq, (
            f"{first} to {first + count - 1} are said to be gone; {self.wal.first_seq} is there"
        )
        return range(first, first + count)

    def check(self, way: Way, start: int) -> None:
        """Run it: all numbers from ``start`` on come once, in order, as records or as gone."""
        goal, at = self.wal.next_seq, start
        self.watching = True
        try:
            for item in way(self):
                if isinstance(item, range):
                    assert item.start == at, f"gone from {item.start} on instead of {at}"
                    at = item.stop
                else:
                    assert item == (at, payload(at)), f"record {item[0]} instead of {at}"
                    at += 1
                if at >= goal + 4 * 17:
                    break
        finally:
            self.watching = False
        assert at >= goal, f"ended at {at}"


def payload(seq: int) -> bytes:
    """What a record of this number has."""
    return b"%1000d" % seq


def going_on(read: Callable[[Any, int], Iterator[tuple[int, bytes]]], *, writer: bool = False) -> Way:
    """Read from number ``ASKED`` on; after an ``Overrun`` continue as many later as it says."""

    def way(scene: Scene) -> Iterator[Item]:
        log: Any = scene.wal if writer else pmwal.open(scene.path, "r")
        at, goal = ASKED, scene.wal.next_seq
        while at < goal:
            try:
                for seq, data in read(log, at):
                    at = seq + 1
                    yield seq, data
            except Overrun as error:
                yield scene.gap(at, error.missed)
                at += error.missed
        if not writer:
            log.close()

    return way


def _pairs(records: Any) -> Iterator[tuple[int, bytes]]:
    return ((record.seq, record.data) for record in records)


def _by_number(log: Any, at: int) -> Iterator[tuple[int, bytes]]:
    try:
        yield at, log[at].data
    except IndexError:
        assert at < log.first_seq, "it is there"
        raise Overrun("", log.first_seq - at) from None


def _frame(log: Any, at: int) -> Iterator[tuple[int, bytes]]:
    frame = log.frame(at, size_max=9000)
    if frame is not None:
        assert frame.first == at
        yield from ((seq, data) for seq, (_, _, data) in enumerate(unpack(frame.body), at))


def _array(log: Any, at: int) -> Iterator[tuple[int, bytes]]:
    found = log.read_array(DATA, at, at + 10)
    return iter([(seq, bytes(data)) for seq, data in enumerate(found, at)])


EITHER: dict[str, Callable[[Any, int], Iterator[tuple[int, bytes]]]] = {
    "read": lambda log, at: _pairs(log.read(at)),
    "read kind": lambda log, at: _pairs(log.read(at, kind=0)),
    "read since": lambda log, at: _pairs(log.read(at, since=1)),
    "read exact": lambda log, at: _pairs(log.read(at, since=1, exact=True)),
    "index": _by_number,
    "follow": lambda log, at: _pairs(log.follow(at, timeout=0)),
    "array": _array,
}


def _consumer(scene: Scene) -> Iterator[Item]:
    """It acknowledges each record, and continues as many later as it is told."""
    with pmwal.open(scene.path, "r") as reader, reader.consumer("mail") as consumer:
        at, goal, lost = consumer.position + 1, scene.wal.next_seq, False
        if at > 1:
            yield scene.gap(1, at - 1)
        while at < goal:
            try:
                if lost:
                    consumer.seek(at)
                lost = False
                for record in consumer.follow(timeout=0):
                    at = record.seq + 1
                    yield record.seq, record.data
                    consumer.ack(record.seq)
            except Overrun as error:
                yield scene.gap(at, error.missed)
                at, lost = at + error.missed, True


def _lagging(scene: Scene) -> Iterator[Item]:
    """It looks at its lag, which is never more than what comes after its position."""
    with pmwal.open(scene.path, "r") as reader, reader.consumer("mail") as consumer:
        for _ in range(3):
            lag = consumer.lag
            assert 0 < lag.records < scene.wal.next_seq - consumer.position
        yield range(1, scene.wal.next_seq)


def _shipped(scene: Scene) -> Iterator[Item]:
    log = ShippedLog(pmwal.open(scene.path, "r"), "ship")
    at, goal = ASKED, scene.wal.next_seq
    while at < goal:
        taken = log.take(at, 9000)
        if taken.frame is not None:
            yield from ((seq, data) for seq, (_, _, data) in enumerate(unpack(taken.frame.body), at))
            at = taken.frame.last + 1
        elif taken.missed:
            yield scene.gap(at, taken.missed)
            at += taken.missed
    log.close()


def _with_count(scene: Scene, source: OneLog | ManyLogs, start: int = 1) -> Iterator[Item]:
    """What is missed before a record is the difference to the last one; the count must be the sum."""
    at, missed, goal = start, 0, scene.wal.next_seq
    try:
        while at < goal:
            for record in source.follow(once=True):
                if record.seq > at:
                    missed += record.seq - at
                    yield scene.gap(at, record.seq - at)
                at = record.seq + 1
                yield record.seq, record.data
            source.ack()
        assert source.missed == missed, f"{source.missed} are said to be missed, and {missed} were"
    finally:
        source.close()


def _set(how: str, **chosen: Any) -> Way:
    def way(scene: Scene) -> Iterator[Item]:
        with pmwal.LogSet([scene.path]) as logs:
            at, missed, goal = ASKED, 0, scene.wal.next_seq
            with pmwal.open(scene.path, "r") as reader:
                cursor = {reader.uuid: scene.cursor}
            while at < goal:
                records = logs.read(cursor, **chosen) if how == "read" else logs.follow(cursor, timeout=0)
                for record in records:
                    if record.seq > at:
                        missed += record.seq - at
                        yield scene.gap(at, record.seq - at)
                    at = record.seq + 1
                    yield record.seq, record.data
                cursor = logs.cursor
            assert logs.missed == missed, f"{logs.missed} are said to be missed, and {missed} were"

    return way


def _span(scene: Scene) -> Iterator[Item]:
    """As ``pmwal cat``; a gap is what it says."""
    with pmwal.open(scene.path, "r") as reader:
        span = Span(str(scene.path), reader, selection(None, None, None, False))
        said: list[range] = []
        span._miss = lambda first, last: said.append(scene.gap(first, last - first + 1))  # type: ignore[method-assign]
        span.narrow(ASKED, None)
        if span.first > ASKED:  # it begins with the oldest record
            yield scene.gap(ASKED, span.first - ASKED)
        for records in span.oldest_first():
            yield from said
            said.clear()
            yield from _pairs(records)
        yield from said


def _span_back(scene: Scene) -> Iterator[Item]:
    with pmwal.open(scene.path, "r") as reader:
        span = Span(str(scene.path), reader, selection(None, None, None, False))
        items: list[Item] = []
        span._miss = lambda first, last: items.append(scene.gap(first, last - first + 1))  # type: ignore[method-assign]
        first = span.first
        for records in span.newest_first():
            items += _pairs(records)
        items.sort(key=lambda item: item.start if isinstance(item, range) else item[0])
        if first > 1:
            yield scene.gap(1, first - 1)
        yield from items


WAYS: dict[str, tuple[Way, int]] = {
    **{f"reader {name}": (going_on(read), ASKED) for name, read in EITHER.items()},
    "reader frame": (going_on(_frame), ASKED),
    **{f"wal {name}": (going_on(read, writer=True), ASKED) for name, read in EITHER.items()},
    "consumer": (_consumer, 1),
    "lag": (_lagging, 1),
    "shipper": (_shipped, ASKED),
    "otlp": (lambda scene: _with_count(scene, OneLog(str(scene.path), "otlp")), 1),
    "otlp set": (lambda scene: _with_count(scene, ManyLogs([str(scene.path)], "otlp")), 1),
    "set read": (_set("read"), ASKED),
    "set read since": (_set("read", since=1), ASKED),
    "set follow": (_set("follow"), ASKED),
    "cat": (_span, ASKED),
    "cat backwards": (_span_back, 1),
}


def run_all(path: Path, way: str, how: str, more: tuple[int, ...], *, every: int = 1) -> list[str]:
    """Run it once for each load; what went wrong."""
    problems: list[str] = []
    read, start = WAYS[way]
    for number in itertools.count(1, every):
        log = path.with_name(f"{number}.wal")
        with pytest.MonkeyPatch.context() as patch:
            scene = Scene(log, patch, how, {number, *(number + each for each in more)})
            scene.cursor = scene.wal[ASKED - 1].cursor
            try:
                scene.check(read, start)
            except (AssertionError, pmwal.PmwalError, IndexError, ValueError) as error:
                problems.append(f"load {number}: {type(error).__name__}: {str(error)[:90]}")
            scene.wal.close()
        log.unlink()
        if not scene.acts:
            return problems
    return problems


FAST = [
    "reader read",
    "reader read since",
    "reader frame",
    "reader index",
    "wal read since",
    "set read",
    "shipper",
    "cat backwards",
]
WRITERS = [
    ("truncate", ()),
    ("overwrite", (3, 9, 27)),
    ("truncate", (1,)),
    ("overwrite", ()),
    ("truncate", (2, 4)),
    ("overwrite", (2, 4)),
]


@pytest.mark.parametrize("way", FAST)
def test_each_record_comes_once_or_is_said_to_be_gone(path: Path, way: str) -> None:
    """The writer acts at each fourth load, and three times after it."""
    assert run_all(path, way, "overwrite", (3, 9, 27), every=4) == []


@pytest.mark.nightly
@pytest.mark.parametrize(("how", "more"), WRITERS)
@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_read_beside_a_writer_at_each_load(path: Path, way: str, how: str, more: tuple[int, ...]) -> None:
    """Each way, each load, both kinds of writers."""
    assert run_all(path, way, how, more) == []


@pytest.mark.parametrize("way", ["reader read", "reader frame", "shipper"])
def test_rig_notices_a_count_from_where_the_search_began(path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The searches as they were before they began again where the log begins by then."""

    def once(walker: Walker, view: View, near: Bound, seq: int, passed: list[Bound] | None = None) -> Found:
        return walker._locate(view, near, seq, [] if passed is None else passed)

    monkeypatch.setattr(Walker, "locate", once)
    found = [problem for how, more in WRITERS[:3] for problem in run_all(path, way, how, more)]
    assert any("are said to be gone" in problem for problem in found), found
