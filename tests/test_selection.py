"""Reads that select by time and by kind: one run of records by effective time, and with ``exact`` each record by its own stamp."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.format.layout import HEADER, Header
from pmwal.format.ring import Clock
from pmwal.opening import open_log
from pmwal.reading import selection as selecting
from pmwal.records import Record
from support import BarrierRecorder, file_offset, flip, open_small, superblock, whole_records

pytestmark = pytest.mark.both_engines

SECOND = 10**9
LATE = 1 << 62
Stamps = list[int]


def store(path: Path, epochs: list[Stamps], size: str = "1MiB", **options: Any) -> None:
    """A log in which each open stores records with these stamps; the payload is the number."""
    numbers = itertools.count(1)
    for stamps in epochs:
        seam = BarrierRecorder()
        seam.new_uuid = lambda: os.urandom(16)  # type: ignore[method-assign]
        with open_small(path, seam=seam, size=None if path.exists() else size, commit="manual", **options) as wal:
            for stamp in stamps:
                seam.now_ns = lambda stamp=stamp: stamp  # type: ignore[method-assign, misc]
                wal.append(b"%d" % next(numbers), kind=stamp % 3)


def opened(path: Path, who: str, now: int = LATE) -> Any:
    """The log, to read at this time."""
    seam = BarrierRecorder()
    seam.now_ns = lambda: now  # type: ignore[method-assign]
    return open_log(path, "r", seam=seam) if who == "reader" else open_small(path, seam=seam, size=None)


def numbers(records: Iterator[Record]) -> list[int]:
    """Their numbers."""
    return [record.seq for record in records]


def expected(epochs: list[Stamps], since: int | None, until: int | None, now: int = LATE) -> list[int]:
    """The run by the definition: from the first whose effective time is not before, to the last whose one is not after."""
    times = [time for stamps in epochs for time in itertools.accumulate((min(stamp, now) for stamp in stamps), max)]
    first = next((at for at, time in enumerate(times) if since is None or time >= since), len(times))
    last = next((at for at in reversed(range(len(times))) if until is None or times[at] <= until), -1)
    return list(range(first + 1, last + 2))


WHO = pytest.mark.parametrize("who", ["reader", "wal"])


@pytest.fixture
def path(shm_dir: Path) -> Path:
    """The log's path."""
    return shm_dir / "a.wal"


HISTORIES: dict[str, list[Stamps]] = {
    "growing": [[10, 20, 30, 40, 50]],
    "equal stamps": [[10, 10, 20, 20, 20, 30]],
    "set back": [[10, 30, 20, 20, 20, 40]],
    "set back at the end": [[10, 40, 20]],
    "several opens": [[10, 20], [30], [], [40, 50, 60]],
    "a clock that was ahead for one open": [[10, 20], [70, 80], [30, 40, 50]],
    "a clock that was ahead, then two more opens": [[70, 80], [30, 40], [50, 60]],
    "before 1970": [[-20, -10, 0, 10]],
    "one": [[20]],
    "none": [[]],
}


@WHO
@pytest.mark.parametrize("epochs", HISTORIES.values(), ids=HISTORIES)
def test_run_is_the_one_of_the_definition(path: Path, epochs: list[Stamps], who: str) -> None:
    """For every pair of bounds around the stamps, both included."""
    store(path, epochs)
    bounds = [None, *sorted({stamp + step for stamps in epochs for stamp in stamps for step in (-1, 0, 1)})]
    with opened(path, who) as log:
        for since, until in itertools.product(bounds, bounds):
            if since is None or until is None or since <= until:
                assert numbers(log.read(since=since, until=until)) == expected(epochs, since, until), (since, until)


@WHO
def test_stamp_past_now_counts_as_now(path: Path, who: str) -> None:
    """So nothing of the future is selected, and what was stored by a clock that is ahead is selected as new."""
    epochs = [[10, 90, 20], [30, 40]]
    store(path, epochs)
    with opened(path, who, now=50) as log:
        for since, until in [(45, None), (50, None), (51, None), (60, 100), (None, 49), (None, 50), (35, 45), (90, 90)]:
            assert numbers(log.read(since=since, until=until)) == expected(epochs, since, until, now=50), (since, until)
        assert numbers(log.read(since=51)) == []
        assert numbers(log.read(since=45)) == [2, 3, 4, 5]


@WHO
def test_exact_selects_each_record_by_its_own_stamp(path: Path, who: str) -> None:
    """Also among records that are out of order."""
    store(path, [[10, 30, 20, 20, 40], [15, 25, 99]])
    with opened(path, who, now=50) as log:
        assert numbers(log.read(since=20, until=30, exact=True)) == [2, 3, 4, 7]
        assert numbers(log.read(since=90, exact=True)) == [8]
        assert numbers(log.read(until=14, exact=True)) == [1]
        assert numbers(log.read(exact=True)) == list(range(1, 9))


@WHO
@pytest.mark.parametrize("linear", [1, 3, 1024])
def test_search_agrees_with_the_definition_on_random_logs(
    path: Path, who: str, linear: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On random logs, whose clocks grow within an epoch and jump anywhere between epochs."""
    monkeypatch.setattr(selecting, "_LINEAR", linear)
    rng = random.Random(linear)
    epochs = []
    for _ in range(8):
        clock, stamps = rng.randrange(2000), []
        for _ in range(rng.choice([0, 1, 7, 60])):
            clock += rng.choice([0, 1, 5])
            stamps.append(clock)
        epochs.append(stamps)
    store(path, epochs)
    with opened(path, who) as log:
        for _ in range(20):
            since, until = sorted(rng.sample(range(2300), 2))
            assert numbers(log.read(since=since, until=until)) == expected(epochs, since, until)


@WHO
def test_bounds_of_number_and_time_are_both_kept(path: Path, who: str) -> None:
    """A start before the log begins is an error, as without times; a cursor is a start."""
    store(path, [[10, 20, 30, 40, 50]])
    with opened(path, who) as log:
        assert numbers(log.read(2, 5, since=25)) == [3, 4]
        assert numbers(log.read(4, since=15)) == [4, 5]
        assert numbers(log.read(log[2].cursor, until=40)) == [3, 4]
        assert numbers(log.read(5, 2, since=10)) == []
        with pytest.raises(pmwal.Overrun):
            log.read(0, since=10)


@WHO
@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        (0, [3]),
        (1, [1, 4]),
        (range(1, 3), [1, 2, 4, 5]),
        ({0, 2}, [2, 3, 5]),
        ([0], [3]),
        ((), []),
        (range(10, 50000), []),
    ],
    ids=str,
)
def test_kind_is_a_number_or_several(path: Path, who: str, kind: Any, taken: list[int]) -> None:
    """Levels of logging are a range."""
    store(path, [[10, 20, 30, 40, 50]])
    with opened(path, who) as log:
        assert numbers(log.read(kind=kind)) == taken
        assert numbers(log.read(kind=kind, since=15)) == [seq for seq in taken if seq > 1]


@WHO
def test_datetime_is_a_time_with_its_whole_microsecond(path: Path, who: str) -> None:
    """So a record's own time includes it, as either bound."""
    stamps = [1_700_000_000 * SECOND + extra for extra in (999, 1000, 1999, 2000)]
    store(path, [stamps])
    with opened(path, who) as log:
        time = log[3].time
        assert time == datetime(2023, 11, 14, 22, 13, 20, 1, UTC)
        assert numbers(log.read(since=time, until=time)) == [2, 3]
        assert numbers(log.read(since=time.astimezone(timezone(timedelta(hours=5))))) == [2, 3, 4]


@WHO
def test_arguments_that_mean_nothing_are_refused(path: Path, who: str) -> None:
    """At the call, with what to do."""
    store(path, [[10]])
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"since": datetime(2026, 1, 1)}, ValueError, "no time zone"),
        ({"since": "yesterday"}, TypeError, "since is a datetime"),
        ({"until": 1.5}, TypeError, "until is a datetime"),
        ({"until": True}, TypeError, "until is a datetime"),
        ({"since": 5, "until": 4}, ValueError, "exchange"),
        ({"kind": -1}, ValueError, "kind must be"),
        ({"kind": [1, 70000]}, ValueError, "kind must be"),
        ({"kind": "INFO"}, TypeError, "kind is a number"),
        ({"kind": True}, ValueError, "kind must be"),
    ]
    with opened(path, who) as log:
        for arguments, error, match in cases:
            with pytest.raises(error, match=match):
                log.read(**arguments)


def test_search_reads_a_few_records_of_a_large_log(path: Path) -> None:
    """However large it is: no more than its logarithm, and one block."""
    store(path, [list(range(0, 4_000, 2)), list(range(60_000, 64_000, 2))], size="2MiB")
    asked = []
    with opened(path, "reader") as log:
        run = selecting.Selection.run

        def counted(self: Any, first: int, end: int, header: Callable[[int], Any], records: Any, now: int) -> Any:
            def count(seq: int) -> Any:
                asked.append(seq)
                return header(seq)

            return run(self, first, end, count, records, now)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selecting, "_LINEAR", 32)
            patch.setattr(selecting.Selection, "run", counted)
            assert numbers(log.read(since=62_000, until=62_100)) == list(range(3_001, 3_052))
    assert len(asked) < 100


def test_read_beside_a_writer_selects_what_is_durable(path: Path) -> None:
    """And the writer's own read all that it has stored."""
    seam = BarrierRecorder()
    with open_small(path, seam=seam, commit="manual") as wal, opened(path, "reader") as reader:
        for stamp in (10, 20, 30):
            seam.now_ns = lambda stamp=stamp: stamp  # type: ignore[method-assign, misc]
            wal.append(b"x")
            if stamp == 20:
                wal.commit()
        assert numbers(wal.read(since=15)) == [2, 3]
        assert numbers(reader.read(since=15)) == [2]


def test_search_begins_again_where_the_log_begins_by_then(path: Path) -> None:
    """The writer overwrites the oldest records while a reader searches among them."""
    with ExitStack() as stack:
        seam = BarrierRecorder()
        clock = itertools.count(1)
        seam.now_ns = lambda: next(clock)  # type: ignore[method-assign]
        wal = stack.enter_context(open_small(path, seam=seam, on_full="overwrite"))
        for _ in range(50):
            wal.append(b"x" * 100)
        reader = stack.enter_context(opened(path, "reader"))
        run = selecting.Selection.run
        calls = []

        def late(self: Any, *arguments: Any) -> Any:
            if not calls:
                for _ in range(300):
                    wal.append(b"x" * 100)
            calls.append(arguments[:2])
            return run(self, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selecting.Selection, "run", late)
            found = numbers(reader.read(since=1))
        assert len(calls) == 2
        assert found == list(range(wal.first_seq, wal.next_seq))


def test_salvage_selects_by_each_stamp(path: Path) -> None:
    """Records are missing there, so there is no run to search for."""
    store(path, [[10, 20, 30, 40]])
    flip(path, file_offset(superblock(path), whole_records(path)[3].position) + HEADER)
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert numbers(reader.read(since=20)) == [2, 4]
        assert numbers(reader.read(until=39, kind=[1, 2])) == [1, 2]


@pytest.mark.parametrize("stamps", [[], [5], [5, 3, 9, 100, 7]])
@pytest.mark.parametrize("latest", [None, 0, 6, 60])
def test_effective_times_never_go_back_within_an_epoch(stamps: Stamps, latest: int | None) -> None:
    """Nor past now, unless the record before was. With another epoch they begin anew."""
    clock, found = Clock(50) if latest is None else Clock(50, 2, latest), []
    for stamp in stamps:
        clock = clock.after(Header(0, 0, 1, 0, stamp, 2, 0, 0, 0, 1))
        found.append(clock.latest)
    start = [] if latest is None else [latest]
    assert found == list(itertools.accumulate(start + [min(stamp, 50) for stamp in stamps], max))[len(start) :]
