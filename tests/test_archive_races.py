"""``pmwal archive`` beside a writer that overwrites and rolls back at the worst moment: it reports what is lost, and goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pmwal
from archived import archive, as_rows, rules
from pmwal.cli.archiving.archiver import Archiver, Written, _Log
from pmwal.storage.seam import SYSTEM

pytestmark = pytest.mark.both_engines

Step = Callable[[pmwal.Wal], None]


def overwrite(wal: pmwal.Wal) -> None:
    """Take the whole ring."""
    for _ in range(30):
        wal.append(bytes(3000))


def roll_back(wal: pmwal.Wal) -> None:
    """To before what was compared."""
    wal.rollback(after=4)
    wal.extend([b"third %d" % number for number in range(12)])


def roll_back_to_nothing(wal: pmwal.Wal) -> None:
    """To before the position, which has no record then."""
    wal.rollback(after=2)


def both(wal: pmwal.Wal) -> None:
    """A rollback, and the ring taken."""
    roll_back(wal)
    overwrite(wal)


STEPS = [overwrite, roll_back, roll_back_to_nothing, both]


@contextlib.contextmanager
def stepping(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int, step: Callable[[], None]) -> Iterator[None]:
    """Make this step before the call of this number."""
    calls, real = 0, getattr(owner, name)

    def stepped(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            step()
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stepped)
        yield
    assert calls >= call


def looked(archiver: Archiver) -> list[Written]:
    done = [each for each in archiver.look(flush=True) if isinstance(each, Written)]
    assert archiver.problems == {}
    return done


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("owner", "name", "call"), [(_Log, "_is_same", 1), (_Log, "_is_same", 3), (_Log, "_seek_next", 1), (_Log, "_write", 1)]
)
def test_log_that_changes_while_it_is_compared(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int, step: Step
) -> None:
    """What the archives lack in the end was overwritten, and is reported."""
    with pmwal.open(path, size="64KiB", on_full="overwrite") as wal:
        wal.extend([b"first %d" % number for number in range(20)])
        archive(path, to=tmp_path)
        wal.rollback(after=10)
        wal.extend([b"second %d" % number for number in range(5)])
        with contextlib.closing(Archiver([str(path)], str(tmp_path), rules(), SYSTEM)) as archiver:
            with stepping(monkeypatch, owner, name, call, lambda: step(wal)):
                written = looked(archiver)
            wal.append(b"last")
            written += looked(archiver)
        assert written[-1].summary.last == wal.committed_seq
        gone = {seq for each in written if each.summary.gap for seq in range(each.summary.gap[0], each.summary.gap[1] + 1)}
        with pmwal.LogSet(tmp_path) as logs:
            found, log = as_rows(logs), as_rows(wal)
        assert [row for row in found if row[0] >= log[0][0]] == log
        assert {row[0] for row in found} | gone == set(range(1, wal.committed_seq + 1))
