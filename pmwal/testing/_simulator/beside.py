"""Readers beside a living writer: what they show while it is stopped at any store, and what they make of changes while they read.

Invariants
----------
- The writer is this process, so it is alive; ``hidden`` gives it the id of no process, as if in another pid namespace.
- A stopped writer has made a store in part: its words from the front, or from the end. What a processor may reorder between two
  stores is not shown here.
- A reader is overtaken at each of its loads in turn, by whole calls of the writer.
- When the writer was killed, readers see it at once, and show what a recovery would keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pmwal
from pmwal.errors import CorruptWal, Overrun
from pmwal.format.layout import LINE, LIVE_OFFSET, PAGE
from pmwal.opening import open_log
from pmwal.storage.mapping import Mapping
from pmwal.storage.seam import Seam
from pmwal.testing._simulator.explore import History, start_of
from pmwal.testing._simulator.model import Found, Item, brief
from pmwal.testing._simulator.operations import OPERATIONS
from pmwal.testing._simulator.session import Session
from pmwal.testing.power_cut import WORD
from pmwal.testing.process import kill
from pmwal.testing.recorder import Recorder, Step
from pmwal.testing.violation import Violation
from pmwal.writing.wal import Wal

_PATIENCE = 60.0  # seconds for which a follower waits for a record that is there
_NOBODY = (1 << 22) + 1
"""No process has this id: it is more than the kernel gives."""


class _Living(Recorder):
    """The seam of a writer that readers may find alive."""

    def __init__(self, *, hidden: bool) -> None:
        super().__init__()
        self._hidden = hidden
        self._opens = count(1)

    def hide(self) -> None:
        """From now on it is another process."""
        self._hidden = True

    def new_uuid(self) -> bytes:
        """Another one each time: opens are told apart by theirs."""
        return next(self._opens).to_bytes(16, "big")

    def pid(self) -> int:
        """This process, or one that no reader can see."""
        return _NOBODY if self._hidden else Seam.pid(self)

    def boot_id(self) -> bytes:
        """That of this machine."""
        return Seam.boot_id(self)


def explore_beside(directory: Path, history: History, *, hidden: bool = False) -> int:
    """Look from beside while the history runs, and let the history overtake a reader; how many looks there were.

    ``Violation`` of oracle "beside". Operations that end the writer are none of these histories.
    """
    looks = 0
    with _running(directory, history, hidden=hidden) as session:
        looks += _stopped(session, history.names)
        session.end()
        _look_at_the_dead(session)
    for load in count():
        with _running(directory, history, hidden=hidden) as session:
            overtaken = _overtaken(session, history.names, load)
        looks += 1
        if not overtaken:
            return looks
    raise AssertionError("count() never ends")


@contextmanager
def _running(directory: Path, history: History, *, hidden: bool) -> Iterator[Session]:
    """A writer that has opened the log."""
    session = Session(history.setting, directory / "beside.wal", start_of(history.setting), history.seed)
    session.recorder = _Living(hidden=hidden)
    try:
        session.reopen()
        yield session
    finally:
        session.end()


def _items(reader: Any) -> tuple[Item, ...]:
    return tuple((record.seq, record.data) for record in reader)


def explore_spliced(directory: Path, history: History) -> None:
    """An older copy of a log is written back under a reader, and another writer continues it with the same numbers and epochs.

    ``Violation`` of oracle "beside" when the reader goes from one history into the other.
    """
    path, seam = directory / "spliced.wal", _Living(hidden=False)
    options: dict[str, Any] = {"medium": history.setting.mapped, "ordering": history.setting.ordering, "seam": seam}
    for text in (b"two history", b"another history"):  # as long as the other one's, and not
        path.write_bytes(start_of(history.setting).image)
        open_log(path, "r+", **options).close()
        older = path.read_bytes()
        wal = _written(path, options, b"one history", 3)
        last = wal.next_seq - 1
        with pmwal.open(path, "r") as reader:
            following = reader.follow(last, timeout=_PATIENCE)
            next(following)
            kill(wal)
            with path.open("r+b") as file:
                file.write(older)
            wal = _written(path, options, text, 5)
            try:
                spliced = next(following)
            except Overrun:
                continue
            except CorruptWal as error:
                raise Violation("beside", f"followed up to {last} of one history, then told {error.reason}") from error
            finally:
                kill(wal)
        raise Violation("beside", f"followed up to {last} of one history, then shown {spliced.data!r} of another")


def _written(path: Path, options: dict[str, Any], text: bytes, records: int) -> Wal:
    wal = open_log(path, "r+", **options)
    assert isinstance(wal, Wal)
    for place in range(records):
        wal.append(text + b" %d" % place)
    return wal


# -- a writer that is stopped


def _stopped(session: Session, names: tuple[str, ...]) -> int:
    """Do these operations, and look before every step and between the words of a store to the live page."""
    looks = 0

    def look(step: Step | None) -> None:
        nonlocal looks
        where = "between two calls" if step is None else f"before a {step.name} at {step.offset}"
        before = session.recorder.before
        session.recorder.before = None
        try:
            looks += 1
            _look(session, where)
            for start, end in _cuts(step):
                assert step is not None
                before_it = _exchange(session.path, step.offset + start, step.data[start:end])
                looks += 1
                _look(session, f"{where}, bytes {start} to {end} of it stored")
                _exchange(session.path, step.offset + start, before_it)
        finally:
            session.recorder.before = before

    session.recorder.before = look
    for name in names:
        OPERATIONS[name](session)
        look(None)
    session.recorder.before = None
    return looks


def _cuts(step: Step | None) -> list[tuple[int, int]]:
    """Which part of a store was made when the writer was stopped: of one to the live page words from the front, or from the end."""
    if step is None or step.name != "store" or not LIVE_OFFSET <= step.offset < LIVE_OFFSET + PAGE or step.length > 2 * LINE:
        return []
    inner = range(WORD, step.length, WORD)
    return [(0, cut) for cut in inner] + [(cut, step.length) for cut in inner]


def _exchange(path: Path, offset: int, data: bytes) -> bytes:
    """Write these bytes; what was there before."""
    with path.open("r+b") as file:
        file.seek(offset)
        before = file.read(len(data))
        file.seek(offset)
        file.write(data)
    return before


def _look(session: Session, where: str) -> None:
    """What a reader shows now is what a crash may leave, and no more than is durable; and nobody calls it damaged."""
    expected = session.expectations[-1][1]
    try:
        report = pmwal.verify(session.path)
        with pmwal.open(session.path, "r") as reader:
            found = Found(reader.first_seq, _items(reader))
    except (CorruptWal, Overrun) as error:
        raise Violation("beside", f"{where}: a reader is told: {error}") from error
    if report.outcome == "corrupt":
        raise Violation("beside", f"{where}: {report.case}: {report.reason}")
    if not report.live:
        raise Violation("beside", f"{where}: a verdict calls the writer dead")
    if not expected.allows(found):
        raise Violation("beside", f"{where}: shown {brief(found.items)} from {found.first_seq}; expected {expected}")
    durable = max(session.log._engine.state.durable.next_seq, session.model.next_seq if session.over else 0)
    stored = session.log._engine.state.head.next_seq
    if durable < found.next_seq <= stored and found.next_seq - 1 > _acknowledged(session):
        raise Violation("beside", f"{where}: shown up to {found.next_seq - 1}; durable up to {durable - 1}")


def _look_at_the_dead(session: Session) -> None:
    """A reader shows everything that the writer had stored, and knows that it is dead."""
    report = pmwal.verify(session.path)
    with pmwal.open(session.path, "r") as reader:
        found = Found(reader.first_seq, _items(reader))
    if found.items != session.model.stored:
        raise Violation("beside", f"after a kill: shown {brief(found.items)}; stored {brief(session.model.stored)}")
    if report.live:
        raise Violation("beside", "after a kill: a verdict calls the writer alive")


def _acknowledged(session: Session) -> int:
    acknowledged = session.model.acknowledged
    return acknowledged[-1][0] if acknowledged else session.model.first_seq - 1


# -- a reader that is overtaken


def _overtaken(session: Session, names: tuple[str, ...], load: int) -> bool:
    """Let the writer do these operations at this load of a reader, counted from 0; whether the reader came to it."""
    known = set(session.model.stored)

    def work() -> None:
        for name in names:
            OPERATIONS[name](session)
            known.update(session.model.stored)

    for what, read in (("read", _read), ("verify", _verify)):
        with _at_load(session, load, work) as state:
            try:
                items = read(session.path)
            except CorruptWal as error:
                raise Violation("beside", f"{what}, overtaken at load {load}: told {error.reason}") from error
        strange = [item for item in items if item not in known]
        if strange:
            raise Violation("beside", f"{what}, overtaken at load {load}: shown {brief(tuple(strange))}, which nobody stored")
        if not state["reached"]:
            return what != "read"
    return True


def _read(path: Path) -> list[Item]:
    """What a reader shows; it may say that it was overrun."""
    items: list[Item] = []
    with pmwal.open(path, "r") as reader:
        try:
            for record in reader:
                items.append((record.seq, record.data))
        except Overrun:
            pass
    if [seq for seq, _ in items] != list(range(items[0][0], items[0][0] + len(items)) if items else ()):
        raise Violation("beside", f"numbers do not follow one another: {brief(tuple(items))}")
    return items


def _verify(path: Path) -> list[Item]:
    """A verdict, which must not be loud."""
    report = pmwal.verify(path)
    if report.outcome == "corrupt":
        raise Violation("beside", f"{report.case}: {report.reason}")
    return []


@contextmanager
def _at_load(session: Session, number: int, work: Callable[[], None]) -> Iterator[dict[str, bool]]:
    """Do some work when a mapping that is not the writer's loads for this time."""
    load, writer = Mapping.load, session.log._engine.mapping
    left, state = number, {"reached": False}

    def counted(mapping: Mapping, offset: int, length: int) -> bytes:
        nonlocal left
        if mapping is not writer and not state["reached"]:
            if left == 0:
                state["reached"] = True
                work()
            left -= 1
        return load(mapping, offset, length)

    with patch.object(Mapping, "load", counted):
        yield state


def explore_hidden(directory: Path, history: History) -> int:
    """The same beside a writer whose process id means nothing to the reader."""
    return explore_beside(directory, history, hidden=True)
