"""Ships one log on its subject, each record once.

Invariants
----------
- One message, or one atomic batch, is in flight. It names the message before it, so the server stores it right after that one, or
  not at all.
- Whenever it is not known what the stream has (at the start, after a failure, a reconnection, a refusal), the stream is asked for
  its last message on the subject, and the record that ends it is compared with the log.
- The position of the consumer is moved only after the stream has acknowledged, and what it has is released only when the stream was
  seen to have it still, ``hold`` seconds later. Who waits for a record is told before the position is stored, which the log does
  when it is read next, ``_STORE`` seconds later at most. So it is stored, too, before the stream is asked, and when a relay ends.
- Frames that follow each other are read together, as many as fit into ``ahead`` bytes. What was rolled back since is found by the
  next read, as if the frames had been shipped at once.
- A log that was rolled back, or is a copy of an older state, does not have the record that the stream ends with. Then nothing is
  shipped, unless the stream is to be told.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal, NamedTuple, Protocol, TypeVar

from pmwal.errors import Overrun, ShipError
from pmwal.format.frame import ENTRY
from pmwal.native.checksum import crc32c
from pmwal.records import Frame
from pmwal.ship.chain import Entry, Source, entry_of, headers_for, subject_of
from pmwal.ship.checks import problems_of
from pmwal.ship.folding import unpacked
from pmwal.ship.forms import FORMS, Form
from pmwal.ship.holding import Holding
from pmwal.ship.link import Link, NoStream, Stored, StreamState, Unavailable, WrongLast, room_in
from pmwal.ship.source import Note, ShippedLog, Taken

RollbackPolicy = Literal["stop", "mark"]
SizePolicy = Literal["split", "stop"]

_STORE = 0.1  # seconds after which a position is stored while frames are there that were read before
_PAUSE_MIN, _PAUSE_MAX = 0.05, 2.0  # seconds between two attempts
_CONSUMED = ("workqueue", "interest")  # retention that removes what a consumer has taken
_PATIENCE = 30.0  # seconds without an answer after which one that ships once gives up

T = TypeVar("T")


class Call(Protocol):
    """Does something in the thread that reads the log."""

    async def __call__(self, action: Callable[[], T]) -> T: ...


class Rules(NamedTuple):
    """What is asked of a shipper; ``frame`` in bytes, ``linger`` and ``hold`` in seconds."""

    stream: str
    prefix: str
    form: Form
    frame: int
    linger: float
    hold: float
    on_rollback: RollbackPolicy
    too_large: SizePolicy


class Progress(NamedTuple):
    """How far a log is shipped.

    ``next_seq``: the first record that is not shipped; ``acknowledged``: the last one that the stream has acknowledged. Since the
    start: ``records``, their ``bytes`` with 14 bytes before each, ``frames`` (messages), ``retries``, ``gaps`` (records that were
    gone before they were shipped) and ``rollbacks`` that the stream was told. ``lag_records`` and ``lag_seconds``: what is not
    acknowledged, and the age of the oldest.
    """

    next_seq: int
    acknowledged: int
    records: int = 0
    bytes: int = 0
    frames: int = 0
    retries: int = 0
    gaps: int = 0
    rollbacks: int = 0
    lag_records: int = 0
    lag_seconds: float = 0.0


class _Point(NamedTuple):
    """Where to go on: the stream's last message on the subject, the next record, and how much of its body is there."""

    expected: int
    first: int
    offset: int = 0


class Relay:
    """Ships one log.

    ``wait`` returns once there may be a record of that number, or after some seconds; it may have looked for a frame of that size.
    ``ahead``: bytes of frames that are in memory at most, if it is more than one.
    """

    def __init__(
        self,
        log: ShippedLog,
        link: Link,
        rules: Rules,
        source: Source,
        call: Call,
        wait: Callable[[int, int], Awaitable[Taken | None]],
        notify: Callable[[str], None],
        ahead: int,
    ) -> None:
        self.log = log
        self.path = log.reader.path
        self.uuid = log.reader.uuid
        self.subject = subject_of(rules.prefix, self.uuid)
        self._link = link
        self._rules = rules
        self._batches = FORMS[rules.form]
        self._source = source
        self._call = call
        self._wait = wait
        self._notify = notify
        self._ahead = ahead
        self._holding = Holding(rules.hold)
        self._note = Note(0, 0)
        self._room = 0
        self._located = False
        self._turn = 0
        self._sent_at = 0.0
        self._read_at = 0.0
        self._oldest_ns: int | None = None
        self._end = 0
        self._counts = Progress(0, 0)
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._problem = ""

    # -- what others see

    @property
    def problem(self) -> str:
        """Why nothing is shipped at the moment."""
        return self._problem or self._link.problem

    @property
    def progress(self) -> Progress:
        """How far it is."""
        counts = self._counts
        behind = max(0, self._end - 1 - counts.acknowledged) if self._located else 0
        age = 0.0 if self._oldest_ns is None or not behind else max(0.0, time.time() - self._oldest_ns / 1e9)
        return counts._replace(lag_records=behind, lag_seconds=age)

    async def acked(self, seq: int) -> None:
        """Return once the stream has acknowledged this record."""
        if self._located and self._counts.acknowledged >= seq:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append((seq, waiter))
        await waiter

    def fail(self, error: BaseException) -> None:
        """Nothing more is shipped: tell those who wait."""
        waiting, self._waiting = self._waiting, []
        for _, waiter in waiting:
            if not waiter.done():
                waiter.set_exception(error)

    def _reach(self, first: int) -> bool:
        """The stream has all before this record. Whether somebody has waited for that."""
        self._counts = self._counts._replace(next_seq=first, acknowledged=first - 1)
        left = []
        for seq, waiter in self._waiting:
            if seq >= first:
                left.append((seq, waiter))
            elif not waiter.done():
                waiter.set_result(None)
        told = len(left) < len(self._waiting)
        self._waiting = left
        return told

    def _count(self, **more: int) -> None:
        counts = self._counts
        self._counts = counts._replace(**{name: getattr(counts, name) + number for name, number in more.items()})

    # -- running

    async def run(self, *, once: bool, ended: Callable[[], bool] = lambda: False) -> None:
        """Ship; with ``once`` what the log has now, until that is acknowledged. Without, until the log has ``ended`` and all is."""
        target = await self._call(lambda: self.log.next_seq) if once else None
        pause, answered = _PAUSE_MIN, time.monotonic()
        while True:
            shipped = self._counts.frames
            try:
                if await self._ship(await self._locate(), target, ended):
                    await self._call(self.log.store)
                    return
                pause, answered = _PAUSE_MIN, time.monotonic()
                continue
            except Overrun as error:  # what the position was to be moved to is gone meanwhile
                self._problem = str(error)
            except WrongLast as error:
                self._problem = f"another one ships this log, too: {error}"
            except Unavailable as error:
                if isinstance(error, NoStream) and not self._located:
                    raise ShipError(f"{error}; create it first, for example: nats stream add {self._link.stream}") from error
                self._problem = str(error)
            if self._counts.frames > shipped:
                answered, pause = time.monotonic(), _PAUSE_MIN
            self._count(retries=1)
            if once and time.monotonic() - answered > _PATIENCE:
                raise ShipError(f"{self.path}: given up after {_PATIENCE:.0f} seconds: {self._problem}")
            await self._measure()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _PAUSE_MAX)

    async def _measure(self) -> None:
        """See how much there is, while none of it can be shipped."""
        if self._located:
            try:
                self._note_taken(await self._call(partial(self.log.take, self._counts.next_seq, 1)))
            except Overrun:
                return

    def _note_taken(self, taken: Taken) -> None:
        self._end = taken.next_seq
        self._oldest_ns = None if taken.frame is None else int(ENTRY.struct.unpack_from(taken.frame.body)[2])

    # -- where the stream is

    async def _locate(self) -> _Point:
        """Ask the stream what it has, and compare it with the log."""
        self._turn = self._link.turns
        await self._call(self.log.store)
        state = await self._link.state()
        problems = [
            problem for problem in problems_of(state, self._link.version, self.subject, self._rules.form) if problem.refused
        ]
        if problems:
            raise ShipError(f"stream {self._link.stream!r}: " + "; ".join(problem.text for problem in problems))
        self._room = room_in(self._link, state)
        last = await self._link.last(self.subject)
        point, number = await (self._after_position(state) if last is None else self._after(last, state))
        self._note = Note(state.created_us, max(number, point.expected))
        await self._settle(point.first - 1)
        self._located = True
        return point

    async def _settle(self, seq: int) -> None:
        now, holding = time.monotonic(), self._holding
        holding.forget_after(seq)
        if not self._located:  # an earlier shipper has held these
            position, age = await self._call(self.log.acknowledged)
            if position <= seq:
                holding.add(position, now - age)
        if seq > holding.released:
            holding.add(seq, now)
        await self._call(partial(self.log.settle, seq, holding.release(now), self._note))
        self._reach(seq + 1)

    async def _after(self, last: Stored, state: StreamState) -> tuple[_Point, int]:
        """Where to continue after this message, and the stream's number of the last one that it has had."""
        try:
            entry = entry_of(last.headers)
        except ValueError as error:
            raise ShipError(
                f"message {last.seq} on {self.subject}: {error}; only the log of this uuid may use the subject"
            ) from error
        first = entry.last + 1
        there = entry.offset + len(last.data) if entry.size else 0
        partly = there < entry.size
        if not await self._call(partial(self._fits, entry)):
            differs = entry.last
        elif not await self._has_taken(last, entry, state):
            return (_Point(last.seq, entry.first, there) if partly else _Point(last.seq, first)), last.seq
        else:
            note, differs, problem = await self._call(lambda: (self.log.note, self.log.position, self.log.problem))
            if note is not None and problem is None:
                return _Point(last.seq, differs + 1), note.number
        if self._rules.on_rollback == "stop":
            raise ShipError(
                f"{self.path}: the log does not have record {differs} as it was shipped: it was rolled back, or this is a copy "
                'of it, or an older state. If this log is to continue, ship it with on_rollback="mark", which tells the stream; a '
                "copy needs a uuid of its own: pmwal copy"
            )
        return await self._mark_rollback(last), last.seq

    async def _has_taken(self, last: Stored, entry: Entry, state: StreamState) -> bool:
        """Whether consumers, who need not take messages in order, have those after this one. Says if a stream has lost them."""
        note = await self._call(lambda: self.log.note)
        if note is None or note.created_us != state.created_us or note.number <= last.seq:
            return False
        if state.config.get("retention") in _CONSUMED and await self._was_removed(note, state):
            return True
        self._notify(
            f"{self.path}: stream {self._link.stream!r} has lost what it had acknowledged after record {entry.last}; what the log "
            "still has of it is shipped again"
        )
        return False

    def _fits(self, entry: Entry) -> bool:
        """In the thread: whether the log continues what ends with this message."""
        if entry.last >= self.log.next_seq:
            return False
        if entry.cursor:
            return self.log.has(entry.cursor) and (self.log.position != entry.last or self.log.problem is None)
        return True

    async def _after_position(self, state: StreamState) -> tuple[_Point, int]:
        """There is no message on the subject: nothing was shipped, or it was consumed or purged, or it is another stream.

        Where to continue, and the stream's number of the last message that was there, 0 if none counts.
        """
        note, position = await self._call(lambda: (self.log.note, self.log.position))
        first = await self._call(lambda: self.log.first_seq)
        if note is None or not position:
            return _Point(0, first), 0
        if await self._was_removed(note, state):
            problem = await self._call(lambda: self.log.problem)
            if problem is None:
                return _Point(0, position + 1), note.number
            if self._rules.on_rollback == "stop":
                raise ShipError(f'{self.path}: {problem}. If this log is to continue, ship it with on_rollback="mark"')
            return await self._tell_rollback(0, 0), 0
        self._notify(
            f"{self.path}: stream {self._link.stream!r} was created anew, or has lost what it had acknowledged; all that the log "
            "still has is shipped again"
        )
        return _Point(0, first), 0

    async def _was_removed(self, note: Note, state: StreamState) -> bool:
        """Whether the stream has had this message and removed it. One that went back to an older state gives its number again."""
        if note.created_us != state.created_us or state.last_seq < note.number:
            return False
        return not note.number or await self._link.get(note.number) is None

    # -- rollbacks

    async def _mark_rollback(self, last: Stored) -> _Point:
        """Find the newest shipped record that the log has; say in the stream that those after it are void."""
        seq, limit = last.seq, 1 << 64
        keep = 0
        while seq:
            message = await self._link.get(seq)
            if message is None:
                break
            entry = entry_of(message.headers)
            if entry.rollback:
                limit = min(limit, entry.last)
            elif not entry.gap and entry.first <= limit:
                keep = await self._call(partial(self._common, entry, message.data, limit))
                if keep:
                    break
            seq = entry.before(seq)
        return await self._tell_rollback(last.seq, keep)

    def _common(self, entry: Entry, body: bytes, limit: int) -> int:
        """In the thread: the newest record of this message that the log has; 0 if it has none of them."""
        first = self.log.first_seq
        # What the log has freed cannot be compared: it is assumed to be the same.
        low = first - 1 if entry.first < first <= limit else 0
        if entry.size:
            return max(low, entry.last if self.log.has(entry.cursor) and entry.last < self.log.next_seq else 0)
        shipped = unpacked(entry, body)
        for seq in range(min(entry.last, limit), max(entry.first, first) - 1, -1):
            if self.log.record(seq) == shipped[seq - entry.first]:
                return seq
        return low

    async def _tell_rollback(self, expected: int, keep: int) -> _Point:
        found = await self._call(partial(self.log.record, keep)) if keep else None
        cursor = "" if found is None else found.cursor
        stored = await self._publish((Entry(keep + 1, keep, expected, cursor, rollback=True), b""))
        self._count(rollbacks=1)
        self._notify(f"{self.path}: the log was rolled back; the stream was told that what it has after record {keep} is void")
        return _Point(stored, keep + 1)

    # -- shipping

    async def _ship(self, point: _Point, target: int | None, ended: Callable[[], bool]) -> bool:
        """Ship from here on. True when that is all; False to ask the stream again."""
        ahead = deque[Taken]()
        while self._turn == self._link.turns:
            size_max = 1 if point.offset else min(self._rules.frame, self._room)
            try:
                taken = await self._next(ahead, point, size_max)
                self._note_taken(taken)
                if taken.frame is None and not taken.missed:
                    self._problem = ""
                    if target is not None or ended():
                        return True
                    if self._holding.due(time.monotonic()):
                        return False  # so that what the stream has is seen before it is released
                    found = await self._wait(point.first, size_max)
                    if found is not None:
                        ahead.append(found)
                    continue
            except Overrun:  # rolled back
                return False
            if taken.missed:
                point = await self._ship_gap(point, taken.missed)
            elif taken.frame is not None and self._lingers(taken.frame, taken.next_seq):
                await asyncio.sleep(self._sent_at + self._rules.linger - time.monotonic())
            elif taken.frame is not None:
                point = await self._ship_frame(point, taken.frame)
            if target is not None and point.first >= target:
                return True
        return False

    async def _next(self, ahead: deque[Taken], point: _Point, size_max: int) -> Taken:
        """What comes next: of what was read already, or of what is there now."""
        if not ahead:
            total = 0 if point.offset else self._ahead
            ahead.extend(await self._call(partial(self.log.take_several, point.first, size_max, total)))
            self._read_at = time.monotonic()
        elif time.monotonic() > self._read_at + _STORE:
            await self._call(self.log.store)
            self._read_at = time.monotonic()
        return ahead.popleft()

    def _lingers(self, frame: Frame, next_seq: int) -> bool:
        """Whether more records are to be waited for: these are all, and the last message is not long ago."""
        return frame.last + 1 >= next_seq and time.monotonic() < self._sent_at + self._rules.linger

    async def _ship_frame(self, point: _Point, frame: Frame) -> _Point:
        if point.offset or len(frame.body) > self._room:
            expected = await self._ship_parts(point, frame)
        else:
            expected = point.expected
            for (entry, body), *others in self._batches(frame):
                expected = await self._publish((entry._replace(prev=expected), body), *others)
        self._count(records=frame.last - frame.first + 1, bytes=len(frame.body))
        return await self._acknowledge(expected, frame.last)

    async def _ship_parts(self, point: _Point, frame: Frame) -> int:
        """One record that is larger than a message may be."""
        if self._rules.too_large == "stop":
            raise ShipError(
                f"{self.path}: record {frame.first} has {len(frame.body) - ENTRY.size} bytes, and the stream takes messages of "
                f'{self._room}; ship it with too_large="split", or raise max_payload of the server and max_msg_size of the stream'
            )
        expected, size = point.expected, len(frame.body)
        for offset in range(point.offset, size, self._room):
            part = frame.body[offset : offset + self._room]
            entry = Entry(frame.first, frame.last, expected, frame.cursor, crc32c(part), offset=offset, size=size)
            expected = await self._publish((entry, part))
        return expected

    async def _ship_gap(self, point: _Point, missed: int) -> _Point:
        last = point.first + missed - 1
        stored = await self._publish((Entry(point.first, last, point.expected, gap=True), b""))
        self._count(gaps=missed)
        self._notify(f"{self.path}: the records {point.first} to {last} were gone before they were shipped; the stream was told")
        return await self._acknowledge(stored, last)

    async def _publish(self, *messages: tuple[Entry, bytes]) -> int:
        """Store a message, or several as an atomic batch; the number of the last one."""
        self._sent_at = time.monotonic()
        ready = [(body, headers_for(entry, self._source, self._rules.stream)) for entry, body in messages]
        if len(ready) == 1:
            stored = await self._link.publish(self.subject, *ready[0])
        else:
            stored = await self._link.publish_batch(self.subject, ready)
        self._count(frames=len(ready))
        self._problem = ""
        return stored

    async def _acknowledge(self, expected: int, last: int) -> _Point:
        now = time.monotonic()
        self._note = self._note._replace(number=expected)
        self._holding.add(last, now)
        released = self._holding.release(now)  # the server has just said that the chain is as it was
        self.log.acknowledge(last, released, self._note)
        if self._reach(last + 1):
            await asyncio.sleep(0)  # whoever has waited goes on before the log is read
        return _Point(expected, last + 1)
