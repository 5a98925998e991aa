"""Operations of the simulator on a log. Each tells the model, before it begins, what a crash in it may leave."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from pmwal.errors import PersistError, RecordTooLarge, WalFull
from pmwal.format.layout import HEADER, LIVE_OFFSET, PAGE
from pmwal.testing._simulator.failures import PERSONALITIES, FailingMsync, OvertakenMsync
from pmwal.testing._simulator.model import brief
from pmwal.testing._simulator.session import Session, Trace, payload
from pmwal.testing.power_cut import UNITS
from pmwal.testing.recorder import Crash, Step
from pmwal.testing.violation import Violation

SMALL, LARGE = 20, 1300

Operation = Callable[[Session], None]


def _append(size: int, *, commit: bool = True) -> Operation:
    def append(session: Session) -> None:
        group = session.make(size)

        def call() -> tuple[int, int]:
            seq = session.log.append(group[0][1], commit=None if commit else False)
            return seq, seq

        session.store(group, call, durably=commit)

    return append


def append_to_end(session: Session) -> None:
    """A record that ends exactly at the ring's end, or as near to it as the largest one comes."""
    engine = session.log._engine
    space = engine.block.capacity - engine.state.head.position % engine.block.capacity
    size = min(max(space - HEADER, 0), engine.block.payload_max)
    _append(size)(session)


def commit(session: Session) -> None:
    """Make everything durable; with nothing pending, write the pointer."""
    session.expect()
    durable_seq = session.log.commit()
    session.model.strays = []
    session.done()
    session.promised(max(durable_seq, session.model.next_seq - 1))


def extend(session: Session) -> None:
    """Three records in one call."""
    group = session.make(SMALL, 300, SMALL)
    session.store(group, lambda: session.log.extend([data for _, data in group]))


def batch(session: Session) -> None:
    """Two records in a block."""
    group = session.make(300, SMALL)

    def call() -> tuple[int | None, int | None]:
        with session.log.batch() as staged:
            for _, data in group:
                staged.append(data)
        return staged.first, staged.last

    session.store(group, call)


def reserve(session: Session) -> None:
    """One record filled in place."""
    group = session.make(100)

    def call() -> tuple[int | None, int | None]:
        reservation = session.log.reserve(100)
        with reservation as view:
            view[:] = group[0][1]
        return reservation.seq, reservation.seq

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
    """An interrupt after this many stores of records: right after the last one when ``late``, else before the next."""

    def extend_aborted(session: Session) -> None:
        group = session.make(300, SMALL)
        ring = session.log._engine.block.ring_offset
        left = stores

        def interrupt(step: Step) -> None:
            nonlocal left
            if step.name in ("store", "stream") and step.offset >= ring:
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
                if left == 0 and late:
                    raise KeyboardInterrupt

        session.expect(adding=group, first_max=session.first_after(group))
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
    if wal.first_seq != before:
        raise Violation("live", f"begins with {wal.first_seq} after truncate(before={before})")
    if moves:
        session.promised(session.model.next_seq - 1)


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
    if discards:
        session.promised(after)


def overwrite(session: Session) -> None:
    """Append until the oldest records are overwritten."""
    first = session.log.first_seq
    for _ in range(2 * session.setting.size // LARGE):
        _append(LARGE)(session)
        if session.log.first_seq > first:
            return


def append_changing(session: Session) -> None:
    """A buffer that another thread changes while the call stores it."""
    group = session.make(200)
    buffer = bytearray(group[0][1])

    def change() -> None:
        buffer[:] = bytes(len(buffer))

    session.recorder.on_clock = change
    try:
        session.store(group, lambda: (session.log.append(buffer), group[0][0]))
    finally:
        session.recorder.on_clock = None


def close_reopen(session: Session) -> None:
    """Close the log, and open it again."""
    session.expect()
    session.log.close()
    session.model.acknowledged, session.model.pending, session.model.strays = session.model.stored, [], []
    session.expect()
    session.reopen()


def _kill(reopen: Operation) -> Operation:
    """SIGKILL and a restart: the page cache stays, and with it all that was stored."""

    def kill_reopen(session: Session) -> None:
        stored = session.model.stored
        session.expect()
        reopen(session)
        if session.model.stored[: len(stored)] != stored:
            raise Violation("kept", f"found {brief(session.model.stored)}; stored {brief(stored)}")

    return kill_reopen


def cut_reopen(session: Session) -> None:
    """A power cut and a restart."""
    session.expect()
    session.reopen_after_cut()


def _crash_inside(operations: dict[str, Operation], reopen: Operation) -> Operation:
    """A crash at some step of one of these operations, or in the middle of a store."""

    def crash_inside(session: Session) -> None:
        name = session.random.choice(sorted(operations))
        left, share = session.random.randrange(12), session.random.choice((0.0, 0.0, 0.3, 0.7))

        def crash(step: Step) -> None:
            nonlocal left
            if left == 0:
                session.store_half(step, share)
                raise Crash
            left -= not LIVE_OFFSET <= step.offset < LIVE_OFFSET + PAGE

        session.recorder.before = crash
        with contextlib.suppress(Crash):
            operations[name](session)
        session.recorder.before = None
        reopen(session)

    return crash_inside


def fail_overtaken(session: Session) -> None:
    """A barrier fails under an append, while another thread appends: neither is acknowledged by the other's barrier."""
    group = session.make(SMALL)
    other = tuple((seq + 1, payload(session.issued, SMALL)) for seq, _ in group)
    session.issued += 1
    session.model.strays += [group, group + other]
    session.expect(first_max=session.first_after(group + other), jumps=False)
    log = session.log
    barrier = OvertakenMsync(session.recorder, lambda: log.append(other[0][1]))
    try:
        log.append(group[0][1])
    except PersistError:
        pass
    else:
        if not barrier.is_overtaken:
            raise Violation("poisoned", "an append returned although its barrier had failed")
        session.model.pending, session.model.strays = [*session.model.pending, group], [other]
        session.model.advance(log.first_seq, log.committed_seq)
    barrier.join()
    if not isinstance(barrier.other_error, PersistError):
        raise Violation("poisoned", f"an append in another thread ended with {barrier.other_error!r} after a failed barrier")
    session.expect(first_max=session.first_after(group + other), jumps=False)
    session.end()
    session.reopen()


def _fail(personality: str) -> Operation:
    """A barrier fails under an append: the handle must refuse the next one, and the log opens again."""

    def fail_reopen(session: Session) -> None:
        group, lies = session.make(SMALL), personality == "late"
        refused = tuple((seq + 1, payload(session.issued, SMALL)) for seq, _ in group)
        first_max_refused = session.first_after(group + refused)  # after a lie the second one may free space before it fails
        session.expect(adding=group, first_max=session.first_after(group))
        failing = FailingMsync(personality, session.recorder, session.path, session.medium_now)
        try:
            session.log.append(group[0][1])
        except PersistError:
            pass
        else:
            if not lies:
                raise Violation("poisoned", "an append returned although its barrier had failed")
        model = session.model
        model.strays += [group, group + refused]
        model.lied = lies
        session.expect(first_max=first_max_refused, jumps=False)
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
            session.reopen()
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

_REOPENING: dict[str, Operation] = {
    "close_reopen": close_reopen,
    "kill_reopen": _kill(Session.reopen_after_kill),
}
"""The same, with a recovery in them."""

OPERATIONS: dict[str, Operation] = {
    **INNER,
    "append_changing": append_changing,
    "batch_aborted": batch_aborted,
    "reserve_aborted": reserve_aborted,
    "extend_aborted": _extend_aborted(1),
    "extend_aborted_late": _extend_aborted(2, late=True),
    "close_reopen": close_reopen,
    "kill_reopen": _kill(Session.reopen_after_kill),
    "kill_reopen_unsynced": _kill(Session.reopen_unsynced),
    "cut_reopen": cut_reopen,
    "kill_inside": _crash_inside(INNER, Session.reopen_after_kill),
    "kill_inside_unsynced": _crash_inside(INNER, Session.reopen_unsynced),
    "cut_inside": _crash_inside(INNER, Session.reopen_after_cut),
    "kill_in_reopen": _crash_inside(_REOPENING, Session.reopen_unsynced),
    "cut_in_reopen": _crash_inside(_REOPENING, Session.reopen_after_cut),
    **{f"fail_{personality}": _fail(personality) for personality in PERSONALITIES},
    "fail_overtaken": fail_overtaken,
}
"""Every operation by its name."""


CORE = (
    *(name for name in INNER if name != "reserve"),
    *("batch_aborted", "extend_aborted", "reserve_aborted", "fail_kept", "kill_reopen", "close_reopen"),
)
"""One of each kind: the longest sequences that are explored completely are made of these."""


def operations_for(medium: str, names: Iterable[str] = OPERATIONS) -> tuple[str, ...]:
    """Those of these operations that a medium can do: on cache lines no barrier fails."""
    assert medium in UNITS
    return tuple(name for name in names if medium != "pmem" or not name.startswith("fail_"))


def perform(session: Session, names: tuple[str, ...]) -> Trace:
    """Open the log, do these operations, and kill the writer."""
    begin = 0
    try:
        session.reopen()
        for name in names:
            if session.over:
                break
            begin = len(session.recorder.events)
            OPERATIONS[name](session)
        return Trace(session.base, session.recorder.events, session.expectations, begin)
    finally:
        session.end()
