"""Log sets over rollbacks of their logs: what is lost meanwhile is missed once."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

import pmwal
from archived import archive
from pmwal.reading.internals import epochs_of
from processes import PATIENCE
from support import open_small

pytestmark = pytest.mark.both_engines


def texts(letter: str, first: int, last: int) -> list[bytes]:
    return [b"%s%d" % (letter.encode(), number) for number in range(first, last + 1)]


@pytest.mark.parametrize("archives", [False, True])
@pytest.mark.parametrize("cut", [0, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("after", [2, 4])
def test_records_lost_after_a_rollback_are_missed_once(path: Path, tmp_path: Path, after: int, cut: int, archives: bool) -> None:
    """A follow that goes on, and new reads, deliver what is there and count each number that is gone once."""
    with open_small(path) as wal, pmwal.LogSet([tmp_path, path] if archives else path) as logs:
        wal.extend(texts("a", 1, 5))
        follow = logs.follow(timeout=PATIENCE)
        assert [record.data for record in islice(follow, 5)] == texts("a", 1, 5)
        wal.rollback(after=after)
        wal.extend(texts("b", after + 1, 10))
        if cut:
            wal.truncate(before=cut)
        first = max(cut, after + 1)
        assert [record.data for record in islice(follow, 10 - first + 1)] == texts("b", first, 10)
        assert logs.missed == first - after - 1


def test_second_rollback_counts_what_is_lost_anew(path: Path) -> None:
    """Only numbers that were counted, and not delivered since, are not counted again."""
    with open_small(path) as wal, pmwal.LogSet(path) as logs:
        wal.extend(texts("a", 1, 3))
        follow = logs.follow(timeout=PATIENCE)
        assert len(list(islice(follow, 3))) == 3
        wal.extend(texts("a", 4, 8))
        wal.truncate(before=8)
        assert next(follow).data == b"a8"
        assert logs.missed == 4  # 4 to 7
        wal.append(b"a9")
        assert next(follow).data == b"a9"
        wal.rollback(after=7)
        wal.extend(texts("b", 8, 11))
        wal.truncate(before=10)
        assert [record.data for record in islice(follow, 2)] == texts("b", 10, 11)
        assert logs.missed == 6  # 8 and 9 as well
        wal.rollback(after=9)
        wal.extend(texts("c", 10, 13))
        wal.truncate(before=13)
        assert next(follow).data == b"c13"
        assert logs.missed == 9  # and 10 to 12


def test_read_of_archives_counts_what_the_log_lost_once(path: Path, tmp_path: Path) -> None:
    """As where the log was rolled back between two reads of a set, and its new records were freed before they were archived."""
    with open_small(path) as wal, pmwal.LogSet([tmp_path, path]) as logs:
        wal.extend(texts("a", 1, 5))
        archive(path, to=tmp_path)
        assert len(list(logs)) == 5
        wal.rollback(after=2)
        wal.extend(texts("c", 3, 8))
        wal.truncate(before=6)
        assert [record.data for record in logs] == [*texts("a", 1, 2), *texts("c", 6, 8)]
        assert logs.missed == 3


@pytest.mark.parametrize("later", ["rollback", "open", "resize"])
def test_rollback_is_seen_past_an_epoch_that_began_after_it(path: Path, later: str) -> None:
    """Between two looks of a set: it goes back to the first number that was rolled back, not to where the newest epoch began."""
    wal = open_small(path)
    with pmwal.LogSet(path) as logs:
        wal.extend(texts("a", 1, 10))
        follow = logs.follow(timeout=PATIENCE)
        assert len(list(islice(follow, 10))) == 10
        wal.rollback(after=3)
        wal.extend(texts("b", 4, 12))
        if later == "rollback":
            wal.append(b"gone")
            wal.rollback(after=12)
        elif later == "resize":
            wal.resize("64KiB")
        else:
            wal.close()
            wal = pmwal.open(path)
        assert [record.data for record in islice(follow, 9)] == texts("b", 4, 12)
        assert logs.missed == 0
    wal.close()


def test_rollback_is_not_overlooked_after_more_epochs_than_the_log_names(path: Path) -> None:
    """It begins again with the oldest record."""
    with open_small(path) as wal, pmwal.LogSet(path) as logs:
        wal.extend(texts("a", 1, 5))
        follow = logs.follow(timeout=PATIENCE)
        assert len(list(islice(follow, 5))) == 5
        wal.rollback(after=3)
        wal.extend(texts("b", 4, 6))
        with pmwal.open(path, "r") as reader:
            while min(epochs_of(reader)) <= 2:
                wal.append(b"gone")
                wal.rollback(after=6)
        assert [record.data for record in islice(follow, 6)] == [*texts("a", 1, 3), *texts("b", 4, 6)]


def test_read_after_a_resize_has_what_was_stored_since(tmp_path: Path) -> None:
    """Also at once, and when records were freed meanwhile."""
    with open_small(tmp_path / "a.wal") as wal, pmwal.LogSet(tmp_path) as logs:
        wal.extend(texts("a", 1, 5))
        assert len(list(logs)) == 5
        wal.truncate(before=3)
        wal.resize("64KiB")
        wal.append(b"a6")
        assert [record.data for record in logs.read(logs.cursor)] == [b"a6"]
        assert [record.data for record in logs] == texts("a", 3, 6)
        assert logs.missed == 0
