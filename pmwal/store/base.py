"""The base of stores: log a change, apply it, save the whole state before the log is full.

Invariants
----------
- A change is applied when it is durable, and what is applied is what a replay would decode. So the state after a crash is one that
  was there, at least as new as the last change that was acknowledged.
- Only what a durable checkpoint includes is freed. A crash between the two makes the next replay longer, no more.
- After an exception that may have left a change in the log and not in the state, the store refuses every call: the log is right.
- A replay begins with the snapshot, a checkpoint, or the first record that the log ever had; else the state would have a hole.
- A log is created only where there is no snapshot: one that is missing beside its snapshot had the changes after it.
"""

from __future__ import annotations

import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, Unpack

from pmwal.errors import CorruptWal, Overrun, RecordTooLarge, ReentrantCall, StaleStore
from pmwal.format.layout import record_size
from pmwal.opening import open as open_wal
from pmwal.opening.options import Keywords
from pmwal.storage.seam import SYSTEM
from pmwal.store.snapshot import Snapshot, SnapshotFile
from pmwal.writing.internals import overwrites
from pmwal.writing.wal import Wal

CHANGE, CHECKPOINT = 1, 2
"""Kinds of records."""


def _to_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def as_bytes(encoded: Any) -> bytes:
    """A copy of what ``encode`` returned, which may be a buffer that it uses again; ``TypeError`` for text and all else."""
    return encoded if type(encoded) is bytes else bytes(memoryview(encoded))


def _opened(log: str | os.PathLike[str], snapshot: SnapshotFile | None, options: Keywords) -> Wal:
    """The log at a path. It is created only where there is no snapshot."""
    if snapshot is None or not snapshot.exists():
        return open_wal(log, "a", **options)
    try:
        return open_wal(log, "r+", **options)
    except FileNotFoundError as error:
        raise CorruptWal(
            f"{os.fsdecode(log)}: the log is missing, and its snapshot {snapshot.path} is there; restore both from a backup of the "
            "same moment, or remove the snapshot to begin with an empty store",
            reason="the log is missing",
        ) from error


class Store(ABC):
    """A state in memory that survives kills and power cuts. Derive from it, and say what the state is.

    ``apply`` makes one change to the state, ``save`` returns the whole state, and ``load`` puts one back that ``save`` returned.
    ``log`` makes changes durable and then applies them. ``Store`` replays the log when it is made, so have an empty state ready
    before ``super().__init__``. It saves the state before the log is full, and frees what that includes.

    >>> import pmwal
    >>> class Counters(pmwal.Store):
    ...     def __init__(self, log, **options):
    ...         self.counts = {}
    ...         super().__init__(log, **options)
    ...     def apply(self, change):
    ...         name, count = change
    ...         self.counts[name] = count
    ...     def save(self):
    ...         return self.counts
    ...     def load(self, state):
    ...         self.counts = state
    >>> with Counters(path, size="64KiB") as counters:
    ...     counters.log(["visits", 1], ["users", 1])     # both or none
    >>> with Counters(path) as counters:
    ...     counters.counts
    {'visits': 1, 'users': 1}
    """

    def __init__(
        self,
        log: str | os.PathLike[str] | Wal,
        *,
        snapshot: str | os.PathLike[str] | None = None,
        encode: Callable[[Any], bytes] = _to_json,
        decode: Callable[[bytes], Any] = json.loads,
        **options: Unpack[Keywords],
    ) -> None:
        """Open the log and replay it.

        - ``log``: its path, opened with ``options`` as by ``pmwal.open``; or a ``Wal``, which this store alone uses and does not
          close.
        - ``snapshot``: a file for the whole state. Without one a checkpoint is a record of the log, and the state may take a
          quarter of it.
        - ``encode``, ``decode``: how changes and states become bytes; JSON by default. ``msgspec.msgpack.encode`` and ``.decode``,
          or ``pickle.dumps`` and ``pickle.loads`` (of files that nobody else can write), do as well.

        Raises what ``pmwal.open`` and ``decode`` raise; ``CorruptWal`` if changes are missing between the snapshot and the log, or
        the snapshot has no log; ``FormatError`` for a damaged snapshot; ``ValueError`` for options with which the log could lose
        a change.
        """
        self.lock = threading.RLock()
        """Held while a change is logged and applied: take it to read several things of one state."""
        self._encode, self._decode = encode, decode
        self._sound = True
        self._applies = True  # while changes are applied, the log is replayed, or the state is saved
        self._owned = not isinstance(log, Wal)
        self._snapshot = None if snapshot is None else SnapshotFile(snapshot, SYSTEM)
        if isinstance(log, Wal):
            if options:
                raise ValueError(f"{', '.join(options)}: give options of the log where it is opened")
            self._wal = log
        else:
            self._wal = _opened(log, self._snapshot, options)
        try:
            if overwrites(self._wal):
                raise ValueError('a store must not lose a change: open its log without on_full="overwrite"')
            self._alignment = self._wal.stats().alignment
            self._replay()
            self._applies = False
        except BaseException:
            if self._owned:
                self._wal.close()
            raise

    # -- what a store is

    @abstractmethod
    def apply(self, change: Any) -> None:
        """Make one change, which was encoded and decoded. It must not refuse what ``log`` was given: check that before."""

    @abstractmethod
    def save(self) -> Any:
        """The whole state, for ``encode``."""

    @abstractmethod
    def load(self, state: Any) -> None:
        """Replace the whole state by one that ``save`` returned."""

    # -- what it does

    @property
    def wal(self) -> Wal:
        """The log, for its statistics and its recovery report. Only this store may store in it."""
        return self._wal

    def log(self, *changes: Any) -> None:
        """Make these changes durable, all or none, and apply them in this order.

        An exception before they are stored leaves log and state as they were. Raises what ``encode`` and ``Wal.extend`` raise,
        ``RecordTooLarge`` if the state no longer fits into the log, ``StaleStore`` after an earlier failure, ``ReentrantCall`` when
        ``apply`` or ``save`` calls it.
        """
        encoded = [as_bytes(self._encode(change)) for change in changes]
        decoded = [self._decode(data) for data in encoded]  # before they are stored: what cannot be decoded is refused
        with self.lock:
            self._check_sound()
            self._make_room(sum(record_size(len(data), self._alignment) for data in encoded))
            with self._changing():
                _, last = self._wal.extend(encoded, kind=CHANGE)
                self._wal.wait_durable(last)
                self._applies = True
                for change in decoded:
                    self.apply(change)

    def checkpoint(self) -> None:
        """Save the whole state, and free what it includes. ``log`` does so in time; before a backup the log gets short."""
        with self.lock:
            self._check_sound()
            self._applies = True  # a change that save() or encode() logs would be in neither the state nor the log
            try:
                state = as_bytes(self._encode(self.save()))
            finally:
                self._applies = False
            if self._snapshot is None:
                if record_size(len(state), self._alignment) > self._wal.capacity // 4:
                    raise RecordTooLarge(
                        f"the state takes {len(state)} bytes and no longer fits into a quarter of the log, which has "
                        f"{self._wal.capacity} bytes; give the store a snapshot= file, or the log a larger ring with wal.resize"
                    )
                seq = self._wal.append(state, kind=CHECKPOINT)
                self._wal.wait_durable(seq)
                self._wal.truncate(before=seq)
                return
            last = self._wal.next_seq - 1
            if last >= self._wal.first_seq:
                self._snapshot.write(Snapshot(state, self._wal[last].cursor))
                self._wal.truncate(before=last)  # which stays, so that the next replay can see that the two belong together

    def close(self) -> None:
        """Close the log, unless it was given as one. Idempotent."""
        if self._owned:
            self._wal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _replay(self) -> None:
        wal, start = self._wal, None
        saved = None if self._snapshot is None else self._snapshot.read()
        if saved is not None:
            self.load(self._decode(saved.state))
            start = saved.cursor
        whole = saved is not None or wal.first_seq == 1
        try:
            for record in wal.read(start):
                if record.kind == CHECKPOINT:
                    self.load(self._decode(record.data))
                    whole = True
                elif record.kind != CHANGE:
                    raise ValueError(f"{wal.path}: record {record.seq} is of kind {record.kind}, so this is no log of a store")
                elif whole:
                    self.apply(self._decode(record.data))
                else:
                    break
        except Overrun as error:
            assert self._snapshot is not None
            raise CorruptWal(
                f"{wal.path}: it does not continue {self._snapshot.path}, so changes between the two are missing or it is another "
                f"log; restore both from a backup of the same moment ({error})",
                reason="log and snapshot do not belong together",
            ) from error
        if not whole and wal.next_seq > 1:
            raise CorruptWal(
                f"{wal.path}: changes before record {wal.first_seq} are missing; a snapshot has them: give its path as snapshot=",
                reason="the beginning is missing",
            )

    def _make_room(self, size: int) -> None:
        """Before the log is too full for a checkpoint, or has no room for these bytes."""
        reserve = self._wal.capacity // (2 if self._snapshot is None else 8)
        if self._wal.free - size < reserve and len(self._wal) > 1:
            self.checkpoint()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """While log and state may differ. If they do after an exception, this store is of no more use."""
        before, done = self._wal.next_seq, False
        self._sound = False
        try:
            yield
            done = True
        finally:
            self._applies = False
            self._sound = done or self._wal.next_seq == before

    def _check_sound(self) -> None:
        if self._applies:
            raise ReentrantCall(
                f"{self._wal.path}: log() or checkpoint() inside apply(), load(), save() or encode(), which a replay or a "
                "checkpoint calls; log all that belongs together in one call"
            )
        if not self._sound:
            raise StaleStore(
                f"{self._wal.path}: an earlier call failed between the log and the state, so the state may lack a change that is "
                "durable; close this store and open it again, which replays the log"
            )
