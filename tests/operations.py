"""Operations to interrupt at every step, with a model of what each makes of a log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from images import Trace, state_of
from pmwal.testing._simulator.model import Found
from pmwal.writing.wal import Wal
from support import BarrierRecorder, kill, open_small

DAX: dict[str, Any] = {"medium": "emulated-dax", "ordering": "strict"}
STRICT: dict[str, Any] = {"medium": "file", "ordering": "strict"}
PIPELINED: dict[str, Any] = {"medium": "file", "ordering": "pipelined"}
CRASH_MEDIA = pytest.mark.parametrize("options", [DAX, STRICT, PIPELINED], ids=["lines", "pages", "pipelined"])


class Operation(NamedTuple):
    """Something to interrupt: what it does, what it makes of a state, and the size of the records that are there before."""

    run: Callable[[Wal], object]
    model: Callable[[Found], Found]
    size: int = 30


def appended(*items: bytes) -> Callable[[Found], Found]:
    """The state after these records."""

    def model(state: Found) -> Found:
        next_seq = state.first_seq + len(state.items)
        return state._replace(items=state.items + tuple((next_seq + at, item) for at, item in enumerate(items)))

    return model


def batch_of(items: list[bytes]) -> Callable[[Wal], None]:
    """Store the items through ``batch()``."""

    def run(wal: Wal) -> None:
        with wal.batch() as batch:
            for item in items:
                batch.append(item)

    return run


def reserved(wal: Wal) -> None:
    """Store a record through ``reserve``."""
    with wal.reserve(70) as view:
        view[:] = b"r" * 70


def cut(first: int, last: int) -> Callable[[Found], Found]:
    """The state after all but records ``first`` to ``last`` are gone."""
    return lambda state: Found(first, tuple(item for item in state.items if first <= item[0] <= last))


ITEMS = [b"1" * 70, b"2" * 20, b"3" * 70]

OPERATIONS = {
    "append": Operation(lambda wal: wal.append(ITEMS[0]), appended(ITEMS[0])),
    "append uncommitted": Operation(lambda wal: wal.append(ITEMS[0], commit=False), appended(ITEMS[0])),
    "extend": Operation(lambda wal: wal.extend(ITEMS), appended(*ITEMS)),
    "batch": Operation(batch_of(ITEMS), appended(*ITEMS)),
    "reserve": Operation(reserved, appended(b"r" * 70)),
    "commit": Operation(lambda wal: wal.commit(), lambda state: state),
    "catch up": Operation(lambda wal: (wal.commit(), wal.commit()), lambda state: state),
    "truncate": Operation(lambda wal: wal.truncate(before=3), cut(3, 1 << 60)),
    "truncate all": Operation(lambda wal: wal.truncate(before=wal.next_seq), lambda state: Found(7, ())),
    "rollback": Operation(lambda wal: wal.rollback(after=2), cut(1, 2)),
    "rollback all": Operation(lambda wal: wal.rollback(after=0), cut(1, 0)),
    "overwrite": Operation(lambda wal: wal.append(b"o" * 700), lambda state: cut(3, 6)(appended(b"o" * 700)(state)), 700),
}


def prepare(path: Path, options: dict[str, Any], seam: BarrierRecorder, size: int = 30) -> tuple[Wal, Trace]:
    """A log with acknowledged records and some that are only stored: four and two, or as many of 700 bytes as there is room."""
    wal = open_small(path, seam=seam, size=4096, on_full="overwrite", **options)
    acknowledged, stored = (range(1, 5), (5, 6)) if size == 30 else (range(1, 4), (4, 5))
    for number in acknowledged:
        wal.append(b"%d" % number * size)
    trace = Trace.start(wal)
    for number in stored:
        wal.append(b"%d" % number * size, commit=False)
    trace.mark(wal)
    return wal, trace


def steps_of(path: Path, options: dict[str, Any], operation: Operation) -> int:
    """How many steps through the seam an operation takes."""
    seam = BarrierRecorder()
    wal, _ = prepare(path, options, seam, operation.size)
    before, old = len(seam.events), state_of(wal)
    operation.run(wal)
    assert operation.model(old) == state_of(wal)
    kill(wal)
    path.unlink()
    return len(seam.events) - before
