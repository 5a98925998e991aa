"""Records that are freed while another one is looked for: what is still there is found, and what is missing is counted from it.

A search begins at an earlier record than the one that is asked for. A writer may free that one meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
from archived import archive, as_rows, kept, rules
from pmwal.format.ring import Found
from pmwal.reading.walk import View, Walker
from pmwal.records import Bound, Record

DATA = np.dtype("S1000")
ASKED = 50

Log = pmwal.Wal | pmwal.Reader
Call = Callable[[Log, str], int]


def first_of(log: Any, cursor: str) -> int:
    """The number of the record that comes first."""
    del cursor
    return next(iter(log.read(ASKED))).seq  # type: ignore[no-any-return]


CALLS: dict[str, Call] = {
    "read": first_of,
    "read after a cursor": lambda log, cursor: next(iter(log.read(cursor))).seq,
    "read one kind": lambda log, cursor: next(iter(log.read(ASKED, kind=0))).seq,
    "read since": lambda log, cursor: next(iter(log.read(ASKED, since=1))).seq,
    "index": lambda log, cursor: log[ASKED].seq,
    "follow": lambda log, cursor: next(iter(log.follow(ASKED, timeout=0))).seq,
    "follow after a cursor": lambda log, cursor: next(iter(log.follow(cursor, timeout=0))).seq,
    "read_array": lambda log, cursor: ASKED if len(log.read_array(DATA, ASKED, ASKED + 5)) == 5 else 0,
}


def first_of_frame(log: Log, start: int | str) -> int:
    """The first number in a frame."""
    assert isinstance(log, pmwal.Reader)
    frame = log.frame(start, size_max=4096)
    assert frame is not None
    return frame.first


def first_of_consumer(log: Log, start: int | str) -> int:
    """The first number that a consumer gets that was moved there."""
    assert isinstance(log, pmwal.Reader)
    with log.consumer("mail") as consumer:
        consumer.seek(start)
        return next(iter(consumer.follow(timeout=0))).seq


OF_READERS: dict[str, Call] = {
    "frame": lambda log, cursor: first_of_frame(log, ASKED),
    "frame after a cursor": first_of_frame,
    "consumer": lambda log, cursor: first_of_consumer(log, ASKED),
    "consumer after a cursor": first_of_consumer,
}


class Meanwhile:
    """Lets something happen each time that a search begins, until all of these things have happened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *things: Callable[[], object]) -> None:
        self.left = list(things)
        search, happening = Walker._locate, False

        def interrupted(walker: Walker, view: View, near: Bound, seq: int, passed: list[Bound]) -> Found:
            nonlocal happening
            if self.left and not happening:
                happening = True  # what happens may search as well
                self.left.pop(0)()
                happening = False
            return search(walker, view, near, seq, passed)

        monkeypatch.setattr(Walker, "_locate", interrupted)


def fill(wal: pmwal.Wal) -> None:
    """Fill the ring."""
    wal.extend([b"%1000d" % seq for seq in range(1, 63)])


def freeing(wal: pmwal.Wal, before: int) -> Callable[[], None]:
    """Free what comes before this number, and use the space again."""

    def free() -> None:
        freed = before - wal.first_seq
        wal.truncate(before=before)
        wal.extend([b"x" * 1000] * (freed - 1))

    return free


def asked(path: Path, wal: pmwal.Wal, name: str, who: str, monkeypatch: pytest.MonkeyPatch, *things: Callable[[], object]) -> int:
    """Make the call while these things happen."""
    fill(wal)
    with pmwal.open(path, "r") as other:
        cursor = other[ASKED - 1].cursor
    with pmwal.open(path, "r") as reader:
        meanwhile = Meanwhile(monkeypatch, *things)
        found = ({**CALLS, **OF_READERS}[name])(reader if who == "reader" else wal, cursor)
        assert not meanwhile.left, "the call searched"
    return found


EACH_CALL = pytest.mark.parametrize(
    ("who", "name"), [("wal", name) for name in CALLS] + [("reader", name) for name in (*CALLS, *OF_READERS)]
)


@EACH_CALL
@pytest.mark.both_engines
def test_record_that_is_still_there_is_found(path: Path, who: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the record from which the search began is gone, twice."""
    with pmwal.open(path, size="64KiB") as wal:
        assert asked(path, wal, name, who, monkeypatch, freeing(wal, 40), freeing(wal, 48)) == ASKED


@EACH_CALL
@pytest.mark.both_engines
def test_what_is_missing_is_counted_from_the_record_that_was_asked_for(
    path: Path, who: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So who continues that many later leaves out nothing that the log has."""
    with pmwal.open(path, size="64KiB") as wal:
        with pytest.raises(pmwal.Overrun, match="the log now begins at 55") as caught:
            asked(path, wal, name, who, monkeypatch, freeing(wal, 55))
        asked_for = ASKED - 1 if "cursor" in name and f"record {ASKED - 1} " in str(caught.value) else ASKED
        assert asked_for + caught.value.missed == 55


@pytest.mark.both_engines
@pytest.mark.parametrize("who", ["wal", "reader"])
def test_record_that_was_rolled_back_meanwhile_is_not_found(path: Path, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one that has its number by then is not taken for it."""

    def replace() -> None:
        freeing(wal, 40)()
        wal.rollback(after=ASKED - 5)
        wal.extend([b"other" * 200] * 10)

    with pmwal.open(path, size="64KiB") as wal:
        with pytest.raises(pmwal.Overrun, match="is gone: it was rolled back") as caught:
            asked(path, wal, "read", who, monkeypatch, replace)
        assert caught.value.missed == 0


@pytest.mark.both_engines
def test_search_in_a_file_that_was_replaced_meanwhile_counts_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tail says nothing about the record, which the log may have in its file by now."""
    monkeypatch.setattr(pmwal.Reader, "_now", lambda *_: None)
    with pmwal.open(path, size="64KiB") as wal:
        with pytest.raises(pmwal.Overrun, match="before it was resized; read again") as caught:
            asked(path, wal, "read", "reader", monkeypatch, freeing(wal, 40))
        assert caught.value.missed == 0


@pytest.mark.both_engines
def test_lag_of_a_consumer_whose_position_is_far_ahead_of_the_tail(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that are freed meanwhile are none that it waits for."""
    with pmwal.open(path, size="64KiB") as wal:
        fill(wal)
        with pmwal.open(path, "r") as reader, reader.consumer("mail", ASKED) as consumer:
            Meanwhile(monkeypatch, freeing(wal, 45))
            assert consumer.lag.records == wal.next_seq - ASKED


@pytest.mark.both_engines
def test_archiver_leaves_out_nothing_that_the_log_has(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer frees what is archived while a new archiver looks where to continue: the record that ended the archives goes."""
    to = tmp_path / "to"
    with pmwal.open(path, size="64KiB", on_full="consumed", consumers=["archive"]) as wal:
        fill(wal)
        expected: list[Record] = list(wal)
        (written,) = archive(path, to=to, how=rules("jsonl.zst", size=50_000), flush=False)
        assert 40 < written.summary.last < 60

        def free() -> None:
            wal.truncate(consumed=True)
            expected.extend(wal[seq] for seq in range(*_added(wal, 45)))

        Meanwhile(monkeypatch, free)
        archive(path, to=to, how=rules("jsonl.zst"))
        assert kept(to) == as_rows(expected)


def _added(wal: pmwal.Wal, count: int) -> tuple[int, int]:
    first, last = wal.extend([b"y" * 1000] * count)
    return first, last + 1
