"""Giving a log that is open for writing a ring of another size: a new file, which the handle continues in.

Invariants
----------
- Records keep their number, kind, time, epoch and place in a batch, as in a resize of a closed log (``pmwal/opening/copying.py``).
- They are laid beside the writer, without a lock, and checked as they are read. ``guard`` is taken for the rest: the records stored
  meanwhile, the last sync, the name. So what has the name contains all that was stored, and all of it is durable.
- Until the new file has the name, nothing of the log was changed, and an exception leaves it as it was. From then on the handle
  continues in the new file, or not at all: an exception before it has moved there ends it.
- An epoch that begins while records are laid may discard some of them. Then the file is given up, and another one filled with
  ``guard`` held.
- Records that were truncated meanwhile may lie before the tail of the new file. Nothing reads them.
- The new file ends the epoch of the old one, and the handle begins the next one there, as an open would. Its slots name the earlier
  epochs as the old ones do: see ``pmwal/opening/copying.py``.
- Batches keep the numbers that they were told: ``writing`` is not taken, so whoever waits for room waits with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from pmwal.errors import Overrun, WalClosed
from pmwal.format.control import Begun, closing_slot, read_history, read_slots
from pmwal.format.index import SparseIndex
from pmwal.format.layout import CAPACITY_MIN, HEADER, PAGE, VERSION_MINOR, Slot, Superblock, geometry_problem, record_size
from pmwal.format.relocation import PIECE, Relocation
from pmwal.format.scan import scan_for
from pmwal.reading.walk import View, Walker, damaged
from pmwal.records import Bound, CopyReport
from pmwal.storage.create import make_file, needing_room, write_pages, write_ring, write_structures
from pmwal.storage.descriptors import open_descriptor
from pmwal.storage.lock import WriterLock
from pmwal.storage.mapping import Mapping
from pmwal.storage.medium import check_mappable
from pmwal.writing.access import Access
from pmwal.writing.engine import Engine, State

_ROUNDS = 8  # in which what was stored during the one before is laid, before the rest is laid with the log stopped


class _BeginAgain(Exception):
    """What was laid is not what the log has any more."""


class Resizing:
    """One resize of the log at ``path``, a path without symbolic links, that ``engine`` has open."""

    def __init__(self, path: str, engine: Engine, access: Access, capacity: int) -> None:
        self._path = path
        self._engine = engine
        self._access = access
        self._ring, _ = engine.look()
        self._block = replace(self._ring.block, capacity=capacity, version_minor=VERSION_MINOR)
        self._walker = Walker(self._ring.block, self._ring.mapping.load, engine.explain, scan=scan_for(self._ring.block))
        self._new: Engine | None = None

    def run(self, move: Callable[[Engine, WriterLock], None]) -> CopyReport:
        """Make the new file. ``move`` lets the handle continue there, with this engine and this lock; ``guard`` is held then."""
        engine, block = self._engine, self._ring.block
        if self._block.capacity != block.capacity:
            check_links(self._path, self._ring.mapping.fd)
            try:
                check_fit(self._path, self._walker, engine.view, self._block, engine.headroom)
                self._make(move, beside=True)
            except (_BeginAgain, Overrun):
                self._make(move, beside=False)
        ring, view = engine.look()
        first, after = view.tail.next_seq, view.end.next_seq
        used = view.end.position - view.tail.position
        return CopyReport(self._path, ring.block.capacity, used, first, after - 1, after - first)

    def _make(self, move: Callable[[Engine, WriterLock], None], *, beside: bool) -> None:
        """Make the file, the most part of it ``beside`` the writer, and let the handle move there."""
        with contextlib.ExitStack() as stop:
            fill, over = partial(self._fill, stop, beside), self._ring.mapping.fd
            try:
                lock = make_file(self._path, fill, self._engine.seam, over=over, locked=self._open)
                assert self._new is not None
                move(self._new, lock)
            except BaseException as error:
                self._give_up(error)
                raise

    def _give_up(self, error: BaseException) -> None:
        """Let go of the new file. If it has the name already, the handle has lost it."""
        new, self._new = self._new, None
        if new is None or self._engine.ring is new.ring:
            return
        named = self._is_named(new.mapping.fd)
        new.mapping.close()
        if named and isinstance(error, OSError):
            raise self._access.fail(error) from error
        if named:
            self._access.fail(OSError(errno.EINTR, "a resize was interrupted when the log had its new file"))

    def _is_named(self, fd: int) -> bool:
        """Whether the path leads to this file."""
        try:
            return os.path.samestat(os.fstat(fd), os.lstat(self._path))
        except OSError:
            return False

    # -- filling the new file

    def _fill(self, stop: contextlib.ExitStack, beside: bool, fd: int) -> None:
        """Write the new file and sync it. From the end of the part that is written ``beside`` the writer on the log is stopped."""
        engine, block, mapping = self._engine, self._block, self._ring.mapping
        if not beside:
            stop.enter_context(engine.guard)
        self._prepare()
        if not beside:
            self._check()
            check_fit(self._path, self._walker, engine.view, block, engine.headroom)
        with needing_room(self._path, block.file_size):
            engine.seam.allocate(fd, block.file_size)
            check_mappable(fd, self._path)
            zeroed = mapping.medium.allocates_zeros or engine.seam.zero(fd, block.file_size)
            write_ring(fd, block, self._pages(), zeroed=zeroed, single=False, seam=engine.seam, progress=None)
            if beside:
                engine.seam.sync_file(fd)
                self._follow_up(fd)
                stop.enter_context(engine.guard)  # from here on nothing is stored or freed until the handle has moved
                self._check()
            self._write(fd, self._pages())
            self._write(fd, iter([self._laying.take(rest=True)]))
            history = read_history(read_slots(mapping.load, self._ring.block, self._walker.scan))
            self._state, self._slot = self._end(fd, history)
            write_structures(fd, block, self._slot, history, single=False, seam=engine.seam)

    def _prepare(self) -> None:
        """Nothing is laid yet, also after a file that could not get the name."""
        if self._new is not None:
            self._new.mapping.close()
            self._new = None
        self._laying = Relocation(self._block, scan_for(self._block))
        self._index = SparseIndex()
        self._epoch = self._engine.state.epoch
        self._at: Bound | None = None  # in the old ring: how far it is laid
        self._first = Bound(0, 0)  # in the new one: where the oldest record lies that was not truncated when it was laid

    def _follow_up(self, fd: int) -> None:
        """Write what was stored meanwhile, until that is little."""
        for _ in range(_ROUNDS):
            before = self._laying.end
            self._write(fd, self._pages())
            if self._laying.end - before <= PIECE:
                return

    def _check(self) -> None:
        """Raise if the handle, or what is laid, is not what it was. The caller holds ``guard``."""
        self._access.check()
        if self._access.closing:
            raise WalClosed("this handle was closed while its log was resized; nothing was changed")
        if self._engine.state.epoch != self._epoch:
            raise _BeginAgain
        if not self._is_named(self._ring.mapping.fd):
            raise FileNotFoundError(
                f"{self._path}: the log's file was removed, renamed or replaced; close the handle and open the path again"
            )

    def _pages(self) -> Iterator[bytes]:
        """What the log has that is not laid yet, as whole pages; the rest is pending."""
        while True:
            view = self._engine.view
            if view.epoch != self._epoch:
                raise _BeginAgain
            if self._at is None or self._at.next_seq < view.tail.next_seq:
                self._laying.begin_again()
                self._at, self._first = view.tail, Bound(self._laying.end, view.tail.next_seq)
            try:
                for page in self._walker.laid(view, self._laying, self._at, self._index):
                    self._check_room()
                    yield page
            except Overrun:  # truncated before it was read: the log begins later by now
                continue
            self._at = view.end
            self._check_room()
            yield self._laying.take()
            return

    def _check_room(self) -> None:
        """Nothing is laid past the new ring's end: more was stored meanwhile, or truncated records take the room."""
        capacity, headroom = self._block.capacity, self._engine.headroom
        if self._laying.end > capacity - headroom or self._laying.longest > self._block.payload_max or headroom > capacity // 4:
            raise _BeginAgain

    def _write(self, fd: int, pages: Iterator[bytes]) -> None:
        block, seam = self._block, self._engine.seam
        for data in filter(None, pages):
            start = self._laying.end - self._laying.pending
            start = block.ring_offset + -(-start // PAGE) * PAGE - len(data)
            write_pages(fd, data, start, block.file_size, PIECE, seam, None)

    def _end(self, fd: int, history: Sequence[Begun]) -> tuple[State, Slot]:
        """What the log is in the new file, durable once it is synced, and the slot that says so."""
        old = self._engine.state
        end = Bound(self._laying.end, old.head.next_seq)
        state = State(self._tail(fd, end), end, end, old.epoch, old.epoch_first_seq)
        slot = closing_slot(state.tail, end, old.epoch - 1, self._block, history)
        return state, slot._replace(epoch_first_seq=old.epoch_first_seq)

    def _tail(self, fd: int, end: Bound) -> Bound:
        """Where the log begins in the new file."""
        seq, first, old, block = self._engine.state.tail.next_seq, self._first, self._engine.view, self._block
        if seq in (first.next_seq, end.next_seq):
            return first if seq == first.next_seq else end
        view = View(first, end, old.epoch, old.epoch_first_seq, starts=old.starts)
        walker = Walker(block, lambda at, size: os.pread(fd, size, at), lambda at, _: damaged(block, at), scan=scan_for(block))
        return Bound(walker.locate(view, self._index.floor(seq, first), seq).position, seq)

    # -- the handle's next engine

    def _open(self, lock: WriterLock) -> None:
        """Open the new file, which is complete, durable and locked, and has no name yet."""
        engine, state, old = self._engine, self._state, self._ring.mapping
        fd = open_descriptor(f"/proc/self/fd/{lock.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            mapping = Mapping(fd, self._block.file_size, old.medium, engine.seam, writable=True)
        except BaseException:
            os.close(fd)
            raise
        self._index.drop_before(state.tail.next_seq)
        self._new = engine.moving(mapping, self._block, state, self._slot, self._index.entries)
        self._new.start_first_epoch(state.head, lock.announce)


def check_fit(path: str, walker: Walker, view: View, block: Superblock, reserved: int = 0) -> None:
    """``ValueError`` if no log can have the new geometry, or the records of the view and ``reserved`` bytes do not fit."""
    problem = geometry_problem(block)
    if problem is not None:
        raise ValueError(f"{path}: a log cannot have {problem}; use another size or align")
    old, used, room = walker.block, view.end.position - view.tail.position, block.capacity - reserved
    reserves = reserved <= block.capacity // 4  # as of any log: see pmwal/writing/retained.py
    if reserves and block.alignment == old.alignment and block.payload_max >= old.payload_max and room >= used:
        return  # no gap makes records shorter
    measured = Relocation(block, scan_for(block))
    for _ in walker.relocated(view, measured):
        pass
    if reserves and measured.end <= room and measured.longest <= block.payload_max:
        return
    least = max(measured.end + reserved, 2 * record_size(measured.longest, block.alignment), 4 * reserved, CAPACITY_MIN)
    raise ValueError(
        f"{path}: the records take {measured.end} bytes, the longest one {measured.longest + HEADER}, and do not fit "
        f"into a ring of {block.capacity}; use a size of at least {-(-least // PAGE) * PAGE}, or truncate the log first"
    )


def check_links(path: str, fd: int, kept: str = "") -> None:
    """``OSError`` if the file has other names than this one and the one under which it is kept: they would lead to the old file."""
    links = os.fstat(fd).st_nlink
    others = links - 1 - (bool(kept) and os.path.lexists(kept))
    if others > 0:
        message = (
            f"the log has {links} hard links, and only one would lead to the new file. Nothing was changed; remove the others, "
            f"also one that a resize with a backup left when it was killed; to find them: find / -xdev -samefile {path}"
        )
        raise OSError(errno.EMLINK, message, path)
