"""Events in a log set: each process stores them in a slot of its own, in which every definition is that an event needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pmwal
from loggers import SIZE, logger_of
from pmwal import events
from processes import elsewhere
from test_log_rotation import due

pytestmark = pytest.mark.both_engines

FORMAT = "order {id} filled {qty}"


@pytest.fixture
def directory(shm_dir: Path) -> Path:
    """The set's directory."""
    return shm_dir / "logs"


def texts(path: str | Path) -> list[str]:
    """The events of a log as text; each is explained by the log itself."""
    with pmwal.open(path, "r") as reader:
        found = list(events.read(reader))
    assert [event.seq for event in found if event.definition is None] == []
    return [event.text for event in found]


def test_events_go_into_the_slot_of_the_process(directory: Path) -> None:
    """They share it with a handler, and the log is closed with the last of them."""
    log = events.Logger(directory=directory, size=SIZE, commit="manual", name="shop")
    handler = pmwal.LogHandler(directory=directory, size=SIZE, commit="manual")
    fill = log.event(FORMAT)
    assert [fill(1, 2), fill(id=3, qty=4)] == [2, 3]
    logger_of(handler).info("line")
    assert log.wal is handler.wal
    log.close()
    log.close()
    assert fill(5, 6) == 5
    handler.close()
    with pytest.raises(pmwal.WalClosed):
        fill(7, 8)
    assert os.listdir(directory) == ["00.wal"]
    assert texts(directory / "00.wal") == ["order 1 filled 2", "order 3 filled 4", "order 5 filled 6"]


def test_first_event_of_a_forked_child_opens_a_slot(directory: Path) -> None:
    """With a call that was made before the fork, and with one that is made after it."""
    log = events.Logger(directory=directory, size=SIZE, commit="manual")
    fill = log.event(FORMAT)
    fill(1, 1)

    def early() -> str:
        fill(2, 2)
        fill(3, 3)
        log.event("done")()
        log.close()
        return log.wal.path

    def late() -> str:
        events.Logger(directory=directory, size=SIZE, commit="manual").event("started")()
        fill(4, 4)
        return log.wal.path

    for run, expected in ((early, ["order 2 filled 2", "order 3 filled 3", "done"]), (late, ["started", "order 4 filled 4"])):
        path = Path(elsewhere(run))
        assert path.name == "01.wal"
        assert texts(path)[-len(expected) :] == expected
    fill(5, 5)
    log.close()
    assert texts(directory / "00.wal") == ["order 1 filled 1", "order 5 filled 5"]


def test_call_continues_in_the_log_that_was_opened_anew(directory: Path) -> None:
    """The slot was renamed; whoever notices first opens another one for all."""
    log = events.Logger(directory=directory, size=SIZE, commit="manual")
    fill = log.event(FORMAT)
    fill(1, 1)
    (directory / "00.wal").rename(directory / "old.wal")
    due(log)
    fill(2, 2)
    log.close()
    assert texts(directory / "old.wal") + texts(directory / "00.wal") == ["order 1 filled 1", "order 2 filled 2"]


def test_logger_that_is_dropped_with_its_calls_closes_its_slot(directory: Path) -> None:
    """A call keeps it open."""
    fill = events.Logger(directory=directory, size=SIZE, commit="manual").event(FORMAT)
    fill(1, 1)
    del fill
    assert pmwal.verify(directory / "00.wal").outcome == "clean"


def test_logger_takes_a_log_or_a_directory(directory: Path) -> None:
    """Not both, and not none."""
    with pmwal.open(directory.parent / "a.wal", size=SIZE) as wal, pytest.raises(TypeError, match="either a log or a directory"):
        events.Logger(wal, directory=directory)
    with pytest.raises(TypeError, match="not in a NoneType"):
        events.Logger()
