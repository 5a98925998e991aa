"""Operations: what the simulator does to a log, each telling the model before it begins what a crash may leave meanwhile.

Invariants
----------
- A session is determined by its setting, its seed and the names of its operations.
- After each operation the handle shows what the model says (oracle "live").
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from pmwal.errors import PersistError, RecordTooLarge, WalFull
from pmwal.layout import HEADER, LIVE_OFFSET, PAGE
from pmwal.opening import open_log
from pmwal.testing.failures import PERSONALITIES, FailingMsync
from pmwal.testing.images import build, sampled
from pmwal.testing.media import UNITS, Medium
from pmwal.testing.model import Expectation, Found, Items, Model, brief
from pmwal.testing.oracles import Violation
from pmwal.testing.recorder import Crash, Event, Recorder
from pmwal.wal import Wal

SMALL, LARGE = 20, 1300


class Setting(NamedTuple):
    """What a history runs on."""

    medium: str = "page"
    ordering: str = "pipelined"
    base: str = "fresh"
    size: int = 8192
    align: int = 8

    @property
    def mapped(self) -> str:
        """The medium that the log is opened with."""
        return "emulated-dax" if self.medium == "pmem" else "file"


class Start(NamedTuple):
    """A file of which every byte is durable, and what it holds."""

    image: bytes
    found: Found
    issued: int = 0


class Trace(NamedTuple):
    """A recorded history: the durable file before it, its steps, and from which step on what may be found."""

    base: bytes
    events: list[Event]
    expectations: list[tuple[int, Expectation]]
    begin: int  # steps before the last operation

    def expected(self, steps: int) -> Expectation:
        """What a crash after so many steps may leave."""
        latest = self.expectations[0][1]
        for begin, expectation in self.expectations:
            if begin > steps:
                break
            latest = expectation
        return latest


def payload(issue: int, size: int) -> bytes:
    """Bytes that no other record of the history has."""
    text = b"%d." % issue
    return (text * (size // len(text) + 1))[: max(size, len(text))]


class Session:
    """A log under operations. It must be ended by ``end``."""

    def __init__(self, setting: Setting, path: Path, start: Start, seed: int) -> None:
        path.write_bytes(start.image)
        self.setting = setting
        self.path = path
        self.random = Random(seed)
        self.recorder = Recorder()
        self.model = Model(start.found.items, first_seq=start.found.first_seq)
        self.issued = start.issued
        self.wal: Wal | None = None
        self.over = False  # an msync lied: the promises end here
        self.base = start.image
        self.expectations: list[tuple[int, Expectation]] = [(0, self.model.expectation())]
        self.begin = 0

    def run(self, names: tuple[str, ...]) -> Trace:
        """Open the log, do these operations, and kill the writer."""
        try:
            self._reopen()
            for name in names:
                if self.over:
                    break
                self.begin = len(self.recorder.events)
                OPERATIONS[name](self)
            return Trace(self.base, self.recorder.events, self.expectations, self.begin)
        finally:
            self.end()

    def end(self) -> None:
        """End the writer as SIGKILL would: nothing more is stored, the page cache stays, the lock goes."""
        wal, self.wal = self.wal, None
        if wal is not None and not wal.closed:
            wal._closed = True
            wal._engine.halt()
            wal._engine.mapping.close()
            wal._ownership.release()

    # -- what the operations share

    @property
    def log(self) -> Wal:
        """The open log."""
        assert self.wal is not None
        return self.wal

    def expect(self, *, adding: Items | None = None, first_max: int | None = None, cut_after: int | None = None) -> None:
        """From here on a crash may leave this."""
        expectation = self.model.expectation(adding=adding, first_max=first_max, cut_after=cut_after)
        self.expectations.append((len(self.recorder.events), expectation))

    def done(self) -> None:
        """The call has returned: take what the handle calls durable for acknowledged, and compare what it shows."""
        wal, model = self.log, self.model
        model.advance(wal.first_seq, wal.committed_seq)
        shown = Found(wal.first_seq, tuple((record.seq, record.data) for record in wal.read()))
        if (shown.items, wal.next_seq) != (model.stored, model.next_seq):
            raise Violation("live", f"shows {brief(shown.items)} and then {wal.next_seq}; stored {brief(model.stored)}")
        self.expect()

    def make(self, *sizes: int) -> Items:
        """New records of these sizes."""
        first = self.model.next_seq
        self.issued += len(sizes)
        start = self.issued - len(sizes)
        return tuple((first + place, payload(start + place, size)) for place, size in enumerate(sizes))

    def store(self, group: Items, call: Callable[[], object]) -> None:
        """A call that stores this group, unless there is no room for it."""
        self.expect(adding=group, first_max=self._first_after(group))
        try:
            call()
        except (WalFull, RecordTooLarge):
            self.done()
            return
        self.model.strays = []
        self.model.pending.append(group)
        self.done()

    def _first_after(self, group: Items) -> int:
        """The first number after room was made for this group."""
        engine = self.log._engine
        end = engine.end_after([len(data) for _, data in group])
        capacity = engine.block.capacity
        if end - engine.state.tail.position <= capacity or end - engine.state.head.position > capacity:
            return self.model.first_seq
        return engine.free_ahead(end).next_seq

    def _reopen(self) -> None:
        """Open the log. What is found is durable from then on."""
        wal = open_log(
            self.path, "r+", medium=self.setting.mapped, ordering=self.setting.ordering, on_full="overwrite", seam=self.recorder
        )
        assert isinstance(wal, Wal)
        self.wal = wal
        found = Found(wal.first_seq, tuple((record.seq, record.data) for record in wal.read()))
        expected = self.expectations[-1][1]
        if not expected.allows(found):
            oracle = "issued" if expected.holds_acknowledged(found) else "acknowledged"
            raise Violation(oracle, f"reopened: found from {found.first_seq} {brief(found.items)}; expected {expected}")
        self.model.settle(found)
        self.expect()

    def medium_now(self) -> Medium:
        """What the medium may hold now."""
        medium = Medium(self.setting.medium, self.base)
        for event in self.recorder.events:
            medium.take(event)
        return medium

    def reopen_after_kill(self) -> None:
        """The process dies, and the page cache stays."""
        self.end()
        self._reopen()

    def reopen_after_cut(self) -> None:
        """The power fails, and the log is opened on what the medium holds then."""
        self.end()
        medium = self.medium_now()
        image = build(medium, sampled(medium, self.random)).data
        self.path.write_bytes(image)
        self.recorder.events.append(Event("cut", 0, len(image), image))
        self._reopen()


Operation = Callable[[Session], None]


def _append(size: int, *, commit: bool = True) -> Operation:
    def append(session: Session) -> None:
        group = session.make(size)
        session.store(group, lambda: session.log.append(group[0][1], commit=commit))

    return append


def append_to_end(session: Session) -> None:
    """A record that ends exactly at the ring's end, or as near to it as the largest one comes."""
    engine = session.log._engine
    room = engine.block.capacity - engine.state.head.position % engine.block.capacity
    size = min(max(room - HEADER, 0), engine.block.payload_max)
    _append(size)(session)


def commit(session: Session) -> None:
    """Make everything durable; with nothing pending, write the pointer."""
    session.expect()
    session.log.commit()
    session.model.strays = []
    session.done()


def extend(session: Session) -> None:
    """Three records in one call."""
    group = session.make(SMALL, 300, SMALL)
    session.store(group, lambda: session.log.extend([data for _, data in group]))


def batch(session: Session) -> None:
    """Two records in a block."""
    group = session.make(300, SMALL)

    def call() -> None:
        with session.log.batch() as staged:
            for _, data in group:
                staged.append(data)

    session.store(group, call)


def reserve(session: Session) -> None:
    """One record filled in place."""
    group = session.make(100)

    def call() -> None:
        with session.log.reserve(100) as view:
            view[:] = group[0][1]

    session.store(group, call)


class _Discard(Exception):
    """Ends a block from inside."""


def batch_aborted(session: Session) -> None:
    """An exception in a block: nothing was stored."""
    group = session.make(SMALL, SMALL)
    session.expect()
    with contextlib.suppress(_Discard), session.log.batch() as staged:
        staged.append(group[0][1])
        raise _Discard
    session.done()


def reserve_aborted(session: Session) -> None:
    """The same in a reservation."""
    session.expect()
    with contextlib.suppress(_Discard), session.log.reserve(50) as view:
        view[:3] = b"abc"
        raise _Discard
    session.done()


def _extend_aborted(stores: int, *, late: bool = False) -> Operation:
    """An interrupt before, or when late after, so many stores of records."""

    def extend_aborted(session: Session) -> None:
        group = session.make(300, SMALL)
        ring = session.log._engine.block.ring_offset
        left = stores

        def interrupt(event: Event) -> None:
            nonlocal left
            if event.name in ("store", "stream") and event.offset >= ring:
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
                if left == 0 and late:
                    raise KeyboardInterrupt

        session.expect(adding=group, first_max=session._first_after(group))
        recorder = session.recorder
        recorder.before, recorder.after = (None, interrupt) if late else (interrupt, None)
        try:
            session.log.extend([data for _, data in group])
        except KeyboardInterrupt:
            session.model.strays = [group]
        except (WalFull, RecordTooLarge):
            pass
        finally:
            recorder.before = recorder.after = None
        session.done()

    return extend_aborted


def truncate(session: Session) -> None:
    """Free the older half."""
    wal = session.log
    before = (wal.first_seq + wal.next_seq + 1) // 2
    moves = before > wal.first_seq
    session.expect(first_max=before)
    wal.truncate(before=before)
    if moves:
        session.model.strays = []
    session.done()


def rollback(session: Session) -> None:
    """Discard the last two records."""
    wal = session.log
    after = max(wal.next_seq - 3, wal.first_seq - 1)
    session.expect(cut_after=after)
    discards = after < wal.next_seq - 1
    wal.rollback(after=after)
    if discards:
        session.model.discard(after)
    session.done()


def overwrite(session: Session) -> None:
    """Append until the oldest records have made room."""
    first = session.log.first_seq
    for _ in range(2 * session.setting.size // LARGE):
        _append(LARGE)(session)
        if session.log.first_seq > first:
            return


def append_changing(session: Session) -> None:
    """A buffer that is changed by somebody else while the call stores it."""
    group = session.make(200)
    buffer = bytearray(group[0][1])

    def change() -> None:
        buffer[:] = bytes(len(buffer))

    session.recorder.on_clock = change
    try:
        session.store(group, lambda: session.log.append(buffer))
    finally:
        session.recorder.on_clock = None


def close_reopen(session: Session) -> None:
    """Close the log, and open it again."""
    session.expect()
    session.log.close()
    session.model.acknowledged, session.model.pending, session.model.strays = session.model.stored, [], []
    session.expect()
    session._reopen()


def kill_reopen(session: Session) -> None:
    """SIGKILL and a restart: the page cache stays, and with it all that was stored."""
    stored = session.model.stored
    session.expect()
    session.reopen_after_kill()
    if session.model.stored[: len(stored)] != stored:
        raise Violation("kept", f"found {brief(session.model.stored)}; stored {brief(stored)}")


def cut_reopen(session: Session) -> None:
    """A power cut and a restart."""
    session.expect()
    session.reopen_after_cut()


def _crash_inside(reopen: Operation) -> Operation:
    """A crash at some step of some other operation."""

    def crash_inside(session: Session) -> None:
        name = session.random.choice(sorted(INNER))
        left = session.random.randrange(12)

        def crash(event: Event) -> None:
            nonlocal left
            if left == 0:
                raise Crash
            left -= not LIVE_OFFSET <= event.offset < LIVE_OFFSET + PAGE

        session.recorder.before = crash
        with contextlib.suppress(Crash):
            INNER[name](session)
        session.recorder.before = None
        reopen(session)

    return crash_inside


def _fail(personality: str) -> Operation:
    """A barrier fails under an append: the handle must refuse the next one, and the log opens again."""

    def fail_reopen(session: Session) -> None:
        group, lies = session.make(SMALL), personality == "late"
        session.expect(adding=group, first_max=session._first_after(group))
        failing = FailingMsync(personality, session.recorder, session.path, session.medium_now)
        try:
            session.log.append(group[0][1])
        except PersistError:
            pass
        else:
            if not lies:
                raise Violation("poisoned", "an append returned although its barrier had failed")
        model, refused = session.model, tuple((seq + 1, payload(session.issued, SMALL)) for seq, _ in group)
        model.strays += [group, group + refused]
        model.lied = lies
        session.expect()
        try:
            session.log.append(refused[0][1])
        except PersistError:
            pass
        else:
            raise Violation("poisoned", "the handle takes records after a failed barrier")
        session.end()
        if lies:
            session.over = True
        else:
            failing.writer_ended()
            session._reopen()
        session.recorder.before = None

    return fail_reopen


INNER: dict[str, Operation] = {
    "append_small": _append(SMALL),
    "append_large": _append(LARGE),
    "append_to_end": append_to_end,
    "append_pending": _append(SMALL, commit=False),
    "commit": commit,
    "extend": extend,
    "batch": batch,
    "reserve": reserve,
    "truncate": truncate,
    "rollback": rollback,
    "overwrite": overwrite,
}
"""Operations that a crash may end anywhere."""

OPERATIONS: dict[str, Operation] = {
    **INNER,
    "append_changing": append_changing,
    "batch_aborted": batch_aborted,
    "reserve_aborted": reserve_aborted,
    "extend_aborted": _extend_aborted(1),
    "extend_aborted_late": _extend_aborted(2, late=True),
    "close_reopen": close_reopen,
    "kill_reopen": kill_reopen,
    "cut_reopen": cut_reopen,
    "kill_inside": _crash_inside(Session.reopen_after_kill),
    "cut_inside": _crash_inside(Session.reopen_after_cut),
    **{f"fail_{personality}": _fail(personality) for personality in PERSONALITIES},
}
"""Every operation by its name."""


def operations_for(medium: str) -> tuple[str, ...]:
    """The operations of a medium: on cache lines no barrier fails."""
    assert medium in UNITS
    return tuple(name for name in OPERATIONS if medium != "pmem" or not name.startswith("fail_"))
