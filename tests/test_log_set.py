"""Log sets: several logs read as one, in the order of time, whole, each record once, while processes come and go."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import pickle
import random
import re
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pmwal
from loggers import SIZE
from pmwal.logs import merge as merging
from pmwal.logs import sources as finding
from pmwal.records import SetRecord
from processes import PATIENCE, child
from support import few_descriptors, flip, open_small
from test_selection import store

pytestmark = pytest.mark.both_engines


@pytest.fixture
def directory(shm_dir: Path) -> Path:
    """The set's directory."""
    directory = shm_dir / "logs"
    directory.mkdir()
    return directory


def names(records: Iterator[Any]) -> list[tuple[str, int]]:
    """The slot and the number of each record."""
    return [(Path(record.log).stem, record.seq) for record in records]


# -- reading


def test_records_of_all_logs_come_in_the_order_of_time(directory: Path) -> None:
    """Whatever the logs are called; equal times in the order of their paths."""
    store(directory / "00.wal", [[10, 40, 50, 70]], size=SIZE)
    store(directory / "01.wal", [[20, 40, 60]], size=SIZE)
    store(directory / "app-7.wal", [[5, 80]], size=SIZE)
    with pmwal.LogSet(directory) as logs:
        records = list(logs)
        assert [record.time_ns for record in records] == [5, 10, 20, 40, 40, 50, 60, 70, 80]
        assert names(iter(records))[3:5] == [("00", 2), ("01", 2)]
        assert [record.data for record in records if record.log.endswith("01.wal")] == [b"1", b"2", b"3"]
        assert list(logs.logs) == [str(directory / name) for name in ("00.wal", "01.wal", "app-7.wal")]
        assert (logs.late, logs.missed, dict(logs.problems)) == (0, 0, {})


@pytest.mark.parametrize("piece", [1, 1024])
def test_merge_of_random_logs_is_that_of_the_definition(directory: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As heapq.merge by effective time, over clocks that were set back and epochs that begin anew. No two logs share a time."""
    import heapq  # noqa: PLC0415

    monkeypatch.setattr(merging, "_PIECE_MAX", piece)
    rng, expected = random.Random(piece), []
    for number in range(5):
        epochs = []
        for _ in range(3):
            clock = rng.randrange(1000)
            epochs.append([(clock := clock + rng.choice([0, 1, 3, -2])) * 5 + number for _ in range(rng.choice([0, 5, 120]))])
        store(directory / f"{number:02d}.wal", epochs, size=SIZE)
        keys = [key for stamps in epochs for key in itertools.accumulate(stamps, max)]
        expected.append([(key, f"{number:02d}", seq) for seq, key in enumerate(keys, 1)])
    with pmwal.LogSet(directory) as logs:
        assert names(logs.read()) == [(log, seq) for _, log, seq in heapq.merge(*expected, key=lambda item: item[0])]


@pytest.mark.parametrize("piece", [1, 2, 7, 1024])
def test_records_of_one_time_come_in_the_order_of_paths(directory: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then of numbers: however much is read at once, whichever log was found first, and also of a stamp of the future."""
    rng, real, expected = random.Random(piece), merging.runs_of, []
    monkeypatch.setattr(merging, "runs_of", lambda *args: real(*args[:-1], min(args[-1], args[-2] + rng.randint(1, piece))))
    monkeypatch.setattr(merging, "time", SimpleNamespace(time_ns=itertools.count(50).__next__))
    with pmwal.LogSet(directory) as logs:
        for path in (str(directory / f"{number}.wal") for number in reversed(range(5))):
            stamps = [*sorted(rng.choices([1, 2, 3, 10**18], k=60)), 2, 3, 10**18]
            store(Path(path), [stamps], size=SIZE)
            assert path in logs.logs
            effective = itertools.accumulate((min(stamp, 10**9) for stamp in stamps), max)
            expected += [(time, path, seq, stamp % 3) for seq, (time, stamp) in enumerate(zip(effective, stamps, strict=True), 1)]
        for kinds in (range(3), [2]):
            ordered = [(path, seq) for _, path, seq, kind in sorted(expected) if kind in kinds]
            assert [(record.log, record.seq) for record in logs.read(kind=kinds)] == ordered


def test_one_wrong_clock_holds_nothing_up(directory: Path) -> None:
    """A stamp of the future counts as now, and the next open begins anew."""
    now = time.time_ns()
    store(directory / "00.wal", [[now + 10**18, now + 10**18 + 1], [now - 500, now - 400]], size=SIZE)
    store(directory / "01.wal", [[now - 900, now - 300]], size=SIZE)
    with pmwal.LogSet(directory) as logs:
        assert names(logs.read()) == [("01", 1), ("01", 2), ("00", 1), ("00", 2), ("00", 3), ("00", 4)]


def test_merge_takes_effective_times_that_begin_anew_with_each_open(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest stamp so far of the open; a stamp past the reader's now counts as now, also where a later one is right."""
    monkeypatch.setattr(merging, "time", SimpleNamespace(time_ns=lambda: 100))
    store(directory / "00.wal", [[50, 60, 55], [20, 30, 25], [], [170, 40, 180], [90]], size=SIZE)
    with pmwal.LogSet(directory) as logs:
        merge = logs._begin(None, None, None, None, False)
        merge.refresh()
        times = [time for batch in merge.batches() for time in batch.times]
    assert times == [50, 60, 60, 20, 30, 30, 100, 100, 100, 90]


def test_open_with_a_wrong_clock_spoils_no_selection_of_others(directory: Path) -> None:
    """Before and after it records are selected by their own opens' stamps; what lies between two that are selected is, too."""
    now, ahead = time.time_ns(), time.time_ns() + 10**18
    store(directory / "00.wal", [[now - 900, now - 800, now - 700], [ahead, ahead], [now - 600, now - 500]], size=SIZE)
    store(directory / "01.wal", [[now - 850, now - 750]], size=SIZE)
    with pmwal.LogSet(directory) as logs:
        assert names(logs.read(since=now - 800, until=now - 750)) == [("00", 2), ("01", 2)]
        assert names(logs.read(since=now - 650, until=now - 600)) == [("00", 4), ("00", 5), ("00", 6)]
        assert names(logs.read(since=now - 650)) == [("00", 4), ("00", 5), ("00", 6), ("00", 7)]


def test_selection_is_made_in_each_log(directory: Path) -> None:
    """By time and by kind, as Reader.read does."""
    store(directory / "00.wal", [[10, 40, 50, 70]], size=SIZE)
    store(directory / "01.wal", [[20, 41, 60]], size=SIZE)
    with pmwal.LogSet(directory) as logs:
        assert [record.time_ns for record in logs.read(since=40, until=60)] == [40, 41, 50, 60]
        assert [record.time_ns for record in logs.read(kind=[2])] == [20, 41, 50]
        assert [record.time_ns for record in logs.read(since=41, kind=range(3), exact=True)] == [41, 50, 60, 70]
        with pytest.raises(ValueError, match="exchange"):
            logs.read(since=2, until=1)


def test_end_is_fixed_at_the_call(directory: Path) -> None:
    """What is stored later comes with the next read."""
    with pmwal.open(directory / "00.wal", size=SIZE) as wal, pmwal.LogSet(directory) as logs:
        wal.append(b"one")
        records = logs.read()
        wal.append(b"two")
        assert [record.data for record in records] == [b"one"]
        assert [record.data for record in logs] == [b"one", b"two"]


# -- records


def test_record_of_a_set_is_a_record_with_its_log(directory: Path) -> None:
    """Equal by value, to be hashed, printed and pickled."""
    store(directory / "00.wal", [[10]], size=SIZE)
    shutil.copy(directory / "00.wal", directory.parent / "copy.wal")
    with pmwal.LogSet(directory) as logs, pmwal.LogSet(directory.parent / "copy.wal") as others:
        (record,), (other,) = logs, others
    plain = pmwal.Record(1, 1, 10, b"1")
    assert (record.log, record.cursor) == (str(directory / "00.wal"), plain.cursor)
    assert isinstance(record, pmwal.Record)
    assert record == plain
    assert record != other
    assert record != pmwal.Record(1, 1, 10, b"2")
    assert len({record, plain}) == 1
    again = pickle.loads(pickle.dumps(record))
    assert (again, again.log, again.uuid, type(again)) == (record, record.log, record.uuid, type(record))
    assert (len(record.uuid), record.uuid) == (32, other.uuid)
    assert isinstance(again, SetRecord)


# -- which logs


def test_places_are_directories_files_patterns_and_lists(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths, too; a log that is named twice is read once."""
    for name in ("00.wal", "01.wal", "other.log"):
        store(directory / name, [[10]], size=SIZE)
    monkeypatch.chdir(directory)
    cases: list[tuple[Any, list[str]]] = [
        (".", ["00", "01"]),
        (directory, ["00", "01"]),
        (b"00.wal", ["00"]),
        ("other.log", ["other"]),
        ("0*.wal", ["00", "01"]),
        ("../lo*", ["00", "01"]),
        (["01.wal", Path("00.wal")], ["00", "01"]),
        ([directory, "other.log", "00.wal"], ["00", "01", "other"]),
        ("none-*.wal", []),
        ([], []),
    ]
    for places, expected in cases:
        with pmwal.LogSet(places) as logs:
            assert sorted(Path(record.log).stem for record in logs) == expected, places


@pytest.mark.parametrize("place", ["none", "none/00.wal"])
def test_place_that_is_not_there_is_an_error(directory: Path, place: str) -> None:
    """A pattern may match nothing yet, a name may not."""
    with pytest.raises(FileNotFoundError, match=place):
        pmwal.LogSet(directory / place)


def test_what_cannot_be_read_is_a_problem_and_the_others_are_read(directory: Path) -> None:
    """A file that is no log, a corrupt one, a copy: each with a warning that names it, once."""
    store(directory / "00.wal", [[10, 20]], size=SIZE)
    (directory / "01.wal").write_bytes(b"no log")
    store(directory / "02.wal", [[10, 20, 30]], size=SIZE)
    os.truncate(directory / "02.wal", (directory / "02.wal").stat().st_size - 4096)
    shutil.copy(directory / "00.wal", directory / "03.wal")
    with pmwal.LogSet(directory) as logs:
        with pytest.warns(RuntimeWarning) as caught:
            assert names(logs.read()) == [("00", 1), ("00", 2)]
        assert [Path(path).stem for path in logs.problems] == ["01", "02", "03"]
        assert sorted(next(name for name in ("01", "02", "03") if f"{name}.wal" in str(one.message)) for one in caught) == [
            "01",
            "02",
            "03",
        ]
        assert {one.filename for one in caught} == {__file__}
        assert names(logs.read()) == [("00", 1), ("00", 2)]


def test_why_the_system_does_not_open_a_log_is_said_without_its_number(directory: Path) -> None:
    """The path and the reason."""
    store(directory / "00.wal", [[10]], size=SIZE)
    path = directory / "01.wal"
    path.symlink_to(path.name)
    with pytest.warns(RuntimeWarning, match=f"^{path}: {os.strerror(errno.ELOOP)}$"), pmwal.LogSet(directory) as logs:
        assert names(logs.read()) == [("00", 1)]


def test_logs_for_which_there_are_no_descriptors_are_left_out_together(directory: Path) -> None:
    """One warning says how to raise the limit; the others are read, some descriptors stay free, and with room all are read."""
    for number in range(40):
        store(directory / f"{number:02d}.wal", [[number + 1]], size=SIZE)
    with pmwal.LogSet(directory) as logs:
        with few_descriptors(40):
            with pytest.warns(RuntimeWarning, match="logs are left out, .* raise its limit with ulimit -n") as caught:
                opened = [name for name, _ in names(logs.read())]
            assert 1 <= len(opened) < 40
            assert opened == [f"{number:02d}" for number in range(len(opened))]
            assert len(caught) == 1
            assert f"{40 - len(opened)} of 40 logs" in str(caught[0].message)
            assert [Path(path).stem for path in logs.problems] == [f"{number:02d}" for number in range(len(opened), 40)]
            assert {error.errno for error in logs.problems.values() if isinstance(error, OSError)} == {errno.EMFILE}
            with contextlib.ExitStack() as stack:
                for _ in range(16):
                    stack.callback(os.close, os.open("/", os.O_PATH))
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # not again
                assert [name for name, _ in names(logs.read())] == opened
        assert len(names(logs.read())) == 40
        assert logs.problems == {}


def test_log_that_was_left_out_and_is_removed_is_no_problem_any_more(directory: Path) -> None:
    """And the next shortage has a warning of its own."""
    for number in range(40):
        store(directory / f"{number:02d}.wal", [[number + 1]], size=SIZE)
    with few_descriptors(40), pmwal.LogSet(str(directory)) as logs:
        with pytest.warns(RuntimeWarning, match="left out"):
            opened = names(logs.read())
        left_out = {path: Path(path).read_bytes() for path in logs.problems}
        for path in left_out:
            os.unlink(path)
        logs._sources._looked_at = None  # as a second later
        assert names(logs.read()) == opened
        assert logs.problems == {}
        for path, content in left_out.items():
            Path(path).write_bytes(content)
        with pytest.warns(RuntimeWarning, match="left out"):
            assert names(logs.read()) == opened


def test_damage_that_shows_while_a_log_is_read_leaves_the_others_readable(directory: Path) -> None:
    """What comes before it is handed out."""
    with open_small(directory / "00.wal", commit="manual") as wal, pmwal.LogSet(directory) as logs:
        wal.extend([b"before", b"rotten", b"after"])
        wal.commit()
        store(directory / "01.wal", [[10]], size=SIZE)
        raw = (directory / "00.wal").read_bytes()
        flip(directory / "00.wal", raw.rindex(b"rotten"))
        with pytest.warns(RuntimeWarning, match="damaged"):
            assert [record.data for record in logs] == [b"1", b"before"]
        assert isinstance(logs.problems[str(directory / "00.wal")], pmwal.CorruptWal)


# -- cursors


def test_cursor_continues_after_every_record(directory: Path) -> None:
    """In another LogSet, through JSON, and with logs that were not there before."""
    store(directory / "00.wal", [[10, 40, 50, 70]], size=SIZE)
    store(directory / "01.wal", [[20, 41, 60]], size=SIZE)
    for count in range(8):
        with pmwal.LogSet(directory) as logs:
            first = names(itertools.islice(logs.read(), count))
            text = json.dumps(logs.cursor)
        with pmwal.LogSet(directory) as logs:
            rest = names(logs.read(start=json.loads(text)))
            assert len(first) == count
            assert sorted(first + rest) == sorted([("00", seq) for seq in range(1, 5)] + [("01", seq) for seq in range(1, 4)])
            assert names(logs.read(start=logs.cursor)) == []
    cursor = json.loads(text)
    store(directory / "02.wal", [[5]], size=SIZE)
    with pmwal.LogSet(directory) as logs:
        assert names(logs.read(start=cursor)) == [("02", 1)]


def test_cursor_keeps_what_a_selection_left_out(directory: Path) -> None:
    """A log of which nothing was handed out continues where it began."""
    store(directory / "00.wal", [[10, 40]], size=SIZE)
    store(directory / "01.wal", [[20, 30]], size=SIZE)
    with pmwal.LogSet(directory) as logs:
        assert names(logs.read(since=35)) == [("00", 2)]
        assert names(logs.read(start=logs.cursor)) == []


def test_cursor_of_overwritten_records_counts_what_is_missed(directory: Path) -> None:
    """One of another history is an error."""
    with pmwal.open(directory / "00.wal", size=SIZE, on_full="overwrite") as wal, pmwal.LogSet(directory) as logs:
        wal.append(b"one")
        list(logs)
        cursor = logs.cursor
        for _ in range(1000):
            wal.append(bytes(200))
        assert next(logs.read(start=cursor)).seq == wal.first_seq
        assert logs.missed == wal.first_seq - 2
        other = dict.fromkeys(cursor, wal[wal.first_seq].cursor[:-8] + "00000000")
        with pytest.raises(pmwal.Overrun, match=re.escape(f"{directory / '00.wal'}: record ")):
            logs.read(start=other)
        with pytest.raises(TypeError, match="a dict"):
            logs.read(start="1-00000000")  # type: ignore[arg-type]


@pytest.mark.parametrize("again", [False, True])
def test_what_was_missed_after_a_cursor_is_counted_once(directory: Path, again: bool) -> None:
    """However often it is followed from there, as long as nothing was handed out after it; what is missed then counts, too."""
    with pmwal.open(directory / "a.wal", size="64KiB", on_full="overwrite") as wal, pmwal.LogSet(directory) as logs:
        wal.append(b"first")
        next(logs.read())
        cursor = logs.cursor
        for _ in range(2):
            for _ in range(100):
                wal.append(bytes(1000))
            for _ in range(2):
                assert not list(logs.follow(cursor, kind=9, timeout=0))
                if not again:
                    cursor = logs.cursor
            assert logs.missed == wal.first_seq - 2
        wal.append(b"last", kind=9)
        assert [record.data for record in logs.follow(cursor, kind=9, timeout=0)] == [b"last"]
        assert logs.missed == wal.first_seq - 2
        assert not list(logs.follow(logs.cursor, kind=9, timeout=0))
        assert logs.missed == wal.first_seq - 2


def test_closed_set_refuses(directory: Path) -> None:
    """Also an iteration that was begun before."""
    store(directory / "00.wal", [[10, 20]], size=SIZE)
    logs = pmwal.LogSet(directory)
    running = logs.follow()
    next(running)
    logs.close()
    logs.close()
    for use in (logs.read, logs.follow, lambda: list(logs), lambda: list(running), logs.__enter__, lambda: logs.logs):
        with pytest.raises(pmwal.WalClosed):
            use()
    assert logs.closed


# -- following


def test_follow_hands_out_what_is_there_and_what_comes(directory: Path) -> None:
    """Of logs that are there, and of one that appears; a log that is closed does not end it."""
    with pmwal.LogSet(directory) as logs, pmwal.open(directory / "00.wal", size=SIZE) as first:
        first.append(b"one")
        records = logs.follow(timeout=PATIENCE)
        assert next(records).data == b"one"
        with pmwal.open(directory / "01.wal", size=SIZE) as second:
            second.append(b"two")
            assert next(records).data == b"two"
        first.append(b"three")
        assert next(records).data == b"three"
        assert (logs.late, logs.missed) == (0, 0)


def test_follow_ends_after_its_time_with_all_that_is_durable(directory: Path) -> None:
    """A record that waits for another log's is handed out, too."""
    with pmwal.open(directory / "00.wal", size=SIZE, commit="manual") as slow, pmwal.open(directory / "01.wal", size=SIZE) as quick:
        slow.append(b"not durable")
        quick.append(b"durable")
        with pmwal.LogSet(directory) as logs:
            assert [record.data for record in logs.follow(timeout=0, wait=PATIENCE)] == [b"durable"]
            slow.commit()
            assert [record.data for record in logs.follow(timeout=0)] == [b"not durable", b"durable"]


def test_log_holds_the_others_up_while_it_has_what_is_not_durable(directory: Path) -> None:
    """So the order is right when it commits; after ``wait`` seconds the others continue, and what comes then is late."""
    with pmwal.open(directory / "00.wal", size=SIZE, commit="manual") as slow, pmwal.open(directory / "01.wal", size=SIZE) as quick:
        with pmwal.LogSet(directory) as logs:
            records = logs.follow(wait=PATIENCE)
            slow.append(b"1")
            quick.append(b"2")
            threading.Timer(0.2, slow.commit).start()
            assert [next(records).data, next(records).data] == [b"1", b"2"]
            assert logs.late == 0
            records.close()
        with pmwal.LogSet(directory) as logs:
            records = logs.follow(start={quick.uuid: quick[1].cursor, slow.uuid: slow[1].cursor}, wait=0.1)
            slow.append(b"3")
            quick.append(b"4")
            assert next(records).data == b"4"
            slow.commit()
            assert next(records).data == b"3"
            assert logs.late == 1


@pytest.mark.parametrize(
    ("others", "late"),
    [([], 0), ([[[80]]], 1), ([[[100]]], 2), ([[[40]], [[95]]], 2), ([[[40]], [[45]]], 0), ([[[110]]], 2)],
    ids=str,
)
def test_clock_set_back_makes_no_record_late_unless_another_log_has_a_later_one(
    directory: Path, others: list[list[list[int]]], late: int
) -> None:
    """A log's own records are in its order."""
    store(directory / "00.wal", [[100], [50, 90]], size=SIZE)
    for number, epochs in enumerate(others, 1):
        store(directory / f"{number:02d}.wal", epochs, size=SIZE)
    with pmwal.LogSet(directory) as logs:
        assert len(list(logs.follow(timeout=0))) == 3 + len(others)
        assert logs.late == late


def test_killed_writer_holds_nothing_up_and_loses_nothing(directory: Path) -> None:
    """What it had stored and not committed is handed out, in order."""

    def work(pipe: Connection) -> None:
        wal = pmwal.open(directory / "00.wal", size=SIZE, commit="manual")
        wal.append(b"1")
        pipe.send(None)
        pipe.recv()

    with child(work) as one:
        one.hear()
        with pmwal.open(directory / "01.wal", size=SIZE) as wal, pmwal.LogSet(directory) as logs:
            wal.append(b"2")
            records = logs.follow(wait=PATIENCE)
            one.kill()
            assert [next(records).data, next(records).data] == [b"1", b"2"]
            assert logs.late == 0


def test_removed_log_is_followed_to_its_end_and_a_new_one_of_its_name_from_its_beginning(directory: Path) -> None:
    """As when a slot is pruned, and the next process makes it again."""
    with pmwal.LogSet(directory) as logs:
        for round_ in range(3):
            store(directory / "00.wal", [[10 + round_, 20 + round_]], size=SIZE)
            cursor = logs.cursor
            assert [record.time_ns for record in logs.follow(start=cursor, timeout=0)] == [10 + round_, 20 + round_]
            (directory / "00.wal").unlink()
        assert list(logs.logs) in ([], [str(directory / "00.wal")])


def test_renamed_log_is_still_the_same(directory: Path) -> None:
    """Its records are not handed out again."""
    store(directory / "00.wal", [[10, 20]], size=SIZE)
    with pmwal.LogSet(directory) as logs:
        records = logs.follow(timeout=0.3)
        assert next(records).time_ns == 10
        (directory / "00.wal").rename(directory / "old.wal")
        assert [record.time_ns for record in records] == [20]
        assert list(logs.logs) == [str(directory / "old.wal")]


def test_follower_that_is_slower_than_a_ring_counts_what_it_missed(directory: Path) -> None:
    """It continues with the oldest record that is there."""
    with pmwal.open(directory / "00.wal", size=SIZE, on_full="overwrite") as wal, pmwal.LogSet(directory) as logs:
        wal.append(b"first")
        records = logs.follow(timeout=0)
        next(records)
        for _ in range(1000):
            wal.append(bytes(200))
        rest = [record.seq for record in records]
        assert rest == list(range(rest[0], 1002))
        assert logs.missed == rest[0] - 2


def test_rollback_under_a_follower_is_followed(directory: Path) -> None:
    """The records that take the numbers of the discarded ones are handed out."""
    with pmwal.open(directory / "00.wal", size=SIZE) as wal, pmwal.LogSet(directory) as logs:
        wal.extend([b"1", b"2", b"3"])
        records = logs.follow(timeout=PATIENCE)
        assert [next(records).data for _ in range(3)] == [b"1", b"2", b"3"]
        wal.rollback(after=1)
        wal.append(b"new 2")
        assert next(records).data == b"new 2"


@pytest.mark.parametrize(("name", "value"), [("wait", -1), ("timeout", "1"), ("wait", float("nan"))])
def test_times_to_wait_are_checked_at_the_call(directory: Path, name: str, value: Any) -> None:
    """As those of every other call."""
    with pmwal.LogSet(directory) as logs, pytest.raises((ValueError, TypeError), match=name):
        logs.follow(**{name: value})


def test_record_that_is_stored_just_before_it_is_read_keeps_its_time(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stamp past now counts as now, and now is not before the end to which a log is read."""
    taken, bounds_of, batches = merging._taken, merging.bounds_of, []

    def note(*arguments: Any, **options: Any) -> merging.Batch:
        batches.append(taken(*arguments, **options))
        return batches[-1]

    with pmwal.open(directory / "00.wal", size=SIZE) as wal, pmwal.LogSet(directory) as logs:
        monkeypatch.setattr(merging, "_taken", note)
        monkeypatch.setattr(merging, "bounds_of", lambda reader: wal.append(b"new") and bounds_of(reader))
        assert len(list(itertools.islice(logs.follow(), 3))) == 3
    assert [time for batch in batches for time in batch.times] == [each.time_ns for batch in batches for each in batch.records]


def test_look_at_the_live_page_comes_before_the_pull(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a writer that is killed in between would seem to have nothing to come, and its last records would be late."""
    order = []
    look, pull = merging.look, merging.Member.pull
    monkeypatch.setattr(merging, "look", lambda reader: order.append("look") or look(reader))
    monkeypatch.setattr(merging.Member, "pull", lambda self, *arguments: order.append("pull") or pull(self, *arguments))
    store(directory / "00.wal", [[10]], size=SIZE)
    with pmwal.LogSet(directory) as logs:
        assert len(list(logs.follow(timeout=0))) == 1
    assert order[:4] == ["look", "pull", "look", "pull"]
    assert set(zip(order[::2], order[1::2], strict=True)) == {("look", "pull")}


def test_no_file_is_looked_up_by_its_times(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After such a look the next commit of its writer writes the inode, too."""
    store(directory / "00.wal", [[10]], size=SIZE)
    looked = []
    stat = os.stat
    with pmwal.LogSet(directory) as logs:
        list(logs)
        monkeypatch.setattr(os, "stat", lambda path, **options: looked.append(str(path)) or stat(path, **options))
        monkeypatch.setattr(finding, "_LOOK_SECONDS", 0.0)
        list(logs)
        list(logs.follow(timeout=0))
    assert [path for path in looked if path.endswith(".wal")] == []
