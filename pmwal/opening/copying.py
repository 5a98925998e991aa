"""Copying a log into a new file, and giving a log a ring of another size.

Invariants
----------
- Each record keeps its number, kind, time, epoch and place in its batch. The copy has one unbroken run of them, from position 0 on
  (``pmwal/format/relocation.py``), and is closed cleanly in a new epoch.
- The new file is written without a name and made durable. Only then it gets a name, while it is locked, so that nobody stores into
  it before the name is durable. A crash leaves nothing of a copy, or all of it; of a resized log the old file or the new one.
- A copy has another uuid than its source. A resized log has the same, and only one file of it stays: so it must have one name.
- Positions, archives and readers judge by the epochs that the slots name what became of records they have seen. So the slots of a
  resized log name all epochs that the old ones did. Those of a copy, which none of them has seen, name only its own.
- The source of a copy is only read, beside a writer as a ``Reader`` reads. A log that is resized is locked. When the new file has
  its name, the old one is ended as by an open and a close: who follows it then finds its end, and at the path the new file.
- A copy has no consumers. A position beside a resized log says of the new file what it said of the old one; only its hints, on
  which nothing relies, are corrected afterwards, by whoever holds it. So a crash before that changes nothing of what is free.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial

from pmwal.errors import FormatError, Overrun, PmwalError, WalLocked
from pmwal.format.control import Begun, closing_slot, read_history, read_slots
from pmwal.format.layout import (
    LARGE_RING,
    TIME_MAX,
    TIME_MIN,
    VERSION_MINOR,
    Superblock,
)
from pmwal.format.relocation import Relocation
from pmwal.format.scan import scan_for
from pmwal.opening import open_with
from pmwal.opening.files import backup_for, lock_existing, map_for_reading, map_for_writing, resolved
from pmwal.opening.options import Options
from pmwal.opening.takeover import take_over
from pmwal.reading.internals import lay_positions_anew, snapshot
from pmwal.reading.reader import Reader
from pmwal.reading.walk import View, Walker, damaged
from pmwal.records import Bound, CopyReport, Progress
from pmwal.recovery.judge import Judgement, judge
from pmwal.recovery.superblock import writable_problem
from pmwal.storage.create import make_file, needing_room, write_ring, write_structures
from pmwal.storage.live_page import read_writer
from pmwal.storage.lock import WriterLock
from pmwal.storage.mapping import Mapping
from pmwal.storage.medium import check_mappable, detect
from pmwal.storage.platform import check_platform
from pmwal.storage.positions import directory_of, names_in
from pmwal.storage.seam import SYSTEM, Seam
from pmwal.writing.checks import checked
from pmwal.writing.engine import Engine
from pmwal.writing.resizing import check_fit, check_links

_TRIES = 8  # copies that a writer overtakes before one is given up


def copy(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    size: int | str | None = None,
    align: int | None = None,
    file_mode: int | str = 0o600,
    seam: Seam = SYSTEM,
    progress: Progress | None = None,
) -> CopyReport:
    """Copy a log to a new file: a log of its own, with another uuid, and the same records with their numbers, kinds and times.

    ``size``: capacity of the new ring, the same when None. ``align``: alignment of its records; None keeps it, or takes that of the
    medium if it is larger. ``file_mode``: as for ``open``. The label is copied, and consumers' positions are not.

    It may run beside a writer. The copy is the log as it was, durably, at one moment of the call: at its start, unless the writer
    overwrote records before they were read. ``Overrun`` if it does so again and again. A log whose writer was killed is copied as
    an open would recover it.

    Raises ``FileExistsError`` if there is something at ``dst``, ``ValueError`` if the records do not fit, ``CorruptWal`` if
    recovery would refuse the log, ``FormatError``, ``OSError``. Then nothing is left at ``dst``.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     first, last = wal.extend([b"a", b"b"])
    ...     report = pmwal.copy(path, f"{path}.copy", size="1MiB")
    >>> report.capacity, report.first_seq, report.last_seq
    (1048576, 1, 2)
    """
    source, target = _as_text(src), _as_text(dst)
    options = Options("x", size=size, align=align, file_mode=file_mode)
    check_platform()
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    for _ in range(_TRIES):
        reader = open_with(source, Options("r"), seam=seam)
        assert isinstance(reader, Reader)
        with reader, contextlib.suppress(Overrun):
            block, view, walker = snapshot(reader)
            _check_known(source, block)
            new = replace(
                block,
                uuid=seam.new_uuid(),
                capacity=options.capacity or block.capacity,
                alignment=options.align or block.alignment,
                created_ns=min(max(seam.now_ns(), TIME_MIN), TIME_MAX),
                version_minor=VERSION_MINOR,
            )
            copying = _Copying(target, walker, view, new, view.epoch, seam, progress)
            copying.check_fit()
            make_file(target, partial(copying.fill, realign=align is None), seam, mode=options.mode_of_file).release()
            return copying.report()
    raise Overrun(
        f"{source}: {_TRIES} times its writer used the space of records before they were copied; copy it to a faster medium, or "
        "when less is written"
    )


def resize(
    path: str | os.PathLike[str],
    size: int | str,
    *,
    backup: str | os.PathLike[str] | None = None,
    seam: Seam = SYSTEM,
    progress: Progress | None = None,
) -> CopyReport:
    """Give a log that nobody writes a ring of another size, larger or smaller. It stays the same log, in a new file.

    A writer gives its own log one with ``Wal.resize``.

    ``backup``: a name in the same directory, under which the old file is kept; None removes it. Mode, and owner where that is
    allowed, stay. A log whose writer was killed is recovered as by an open.

    Until the new file has the log's name, the old one has it, at every crash. Readers that have the old file open see its end; a
    ``follow`` continues in the new file, and so do consumers, whose positions stay.

    Raises ``ValueError`` if the records do not fit, with the least size, ``WalLocked`` if a writer has the log open, ``OSError`` if
    it has several hard links or there is no room, ``CorruptWal``, ``FormatError``, ``PersistError``. Then the log is as it was.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = wal.append(b"payload")
    >>> pmwal.resize(path, "1MiB").capacity
    1048576
    >>> with pmwal.open(path) as wal:
    ...     wal.capacity, wal.append(b"next")
    (1048576, 2)
    """
    check_platform()
    name = resolved(_as_text(path))
    capacity = Options("r+", size=size).capacity
    if capacity is None:
        raise TypeError("a size is an int or text like '64MiB', not None")
    kept = "" if backup is None else backup_for(name, backup)
    try:
        lock = lock_existing(name, seam)
    except WalLocked as error:
        who = "another process" if error.pid is None else f"process {error.pid}"
        raise WalLocked(
            f"{name}: {who} has it open for writing, and can resize it with wal.resize(size); or close it first", error.pid
        ) from None
    if lock is None:
        raise FileNotFoundError(f"{name}: another file took its name while it was opened; try again")
    try:
        check_links(name, lock.fd, kept)
        mapping, identity = map_for_reading(name, "auto", seam)
        try:
            _check_known(name, identity.block)
            judgement = judge(mapping.load, identity, None, scan_for(identity.block))
            if judgement.row.outcome == "corrupt":
                raise judgement.error(name)
            return _resize(name, lock, mapping, judgement, capacity, kept, seam, progress)
        finally:
            mapping.close()
    finally:
        lock.release()


def _resize(
    name: str,
    lock: WriterLock,
    mapping: Mapping,
    judgement: Judgement,
    capacity: int,
    kept: str,
    seam: Seam,
    progress: Progress | None,
) -> CopyReport:
    block, slot = judgement.identity.block, judgement.control.newest
    assert slot is not None  # every verdict without one is corrupt
    view = View(judgement.tail, judgement.end, slot.epoch, slot.epoch_first_seq, starts=judgement.control.starts)
    walker = Walker(block, mapping.load, lambda at, _: damaged(block, at), scan=scan_for(block))
    ended = judgement.report.outcome == "clean" and not read_writer(mapping.load).named
    new = replace(block, capacity=capacity, version_minor=VERSION_MINOR)
    history = read_history(read_slots(mapping.load, block, walker.scan))
    copying = _Copying(name, walker, view, new, judgement.epoch_max + (not ended), seam, progress, history)
    if capacity == block.capacity:
        return copying.report()
    copying.check_fit()

    def fill(fd: int) -> None:
        copying.fill(fd, realign=False)
        if not os.path.samestat(os.fstat(lock.fd), os.lstat(name)):
            raise FileNotFoundError(f"{name}: another file took its name meanwhile; nothing was changed; try again")

    new_lock = make_file(name, fill, seam, over=lock.fd, keep=os.path.basename(kept) or None)
    try:
        if not ended:
            with contextlib.suppress(OSError, PmwalError):  # the log is in the new file already, whatever becomes of the old one
                _end(name, lock, seam)
    finally:
        new_lock.release()
    with contextlib.suppress(OSError, PmwalError):  # they are good as they are, only slower to use
        _lay_positions_anew(name, seam)
    return replace(copying.report(), backup=kept)


def _lay_positions_anew(name: str, seam: Seam) -> None:
    """Let the positions of consumers say where their records are in the new file. To find them the whole log is judged."""
    if not names_in(directory_of(name)):
        return
    reader = open_with(name, Options("r"), seam=seam)
    assert isinstance(reader, Reader)
    with reader:
        lay_positions_anew(reader)


def _end(name: str, lock: WriterLock, seam: Seam) -> None:
    """Recover a log whose lock is held and close it, as by an open and a close."""
    options = Options("r+")
    mapping, identity = map_for_writing(lock, name, options, seam, by_lines=False, created=False)
    try:
        pipelined = options.pipelined_on(mapping.medium)
        engine, _ = take_over(mapping, identity, name, seam, pipelined, None, checked(Engine), lock.announce, created=False)
        with engine.guard:
            engine.close()
            engine.retire()
    finally:
        mapping.close()


class _Copying:
    """The records of a view, on their way into a new file at ``path``. ``epoch`` is the greatest that the log had.

    ``history``: what the slots of a log that stays the same one name.
    """

    def __init__(
        self,
        path: str,
        walker: Walker,
        view: View,
        block: Superblock,
        epoch: int,
        seam: Seam,
        progress: Progress | None,
        history: Sequence[Begun] = (),
    ) -> None:
        self._path = path
        self._walker = walker
        self._view = view
        self._block = block
        self._epoch = epoch
        self._seam = seam
        self._progress = progress
        self._history = history
        self._used = view.end.position - view.tail.position

    def check_fit(self) -> None:
        """``ValueError`` if no log can have the new geometry, or the records do not fit into it."""
        check_fit(self._path, self._walker, self._view, self._block)

    def fill(self, fd: int, *, realign: bool) -> None:
        """Write the new file and sync it. With ``realign`` its records have at least the alignment that suits the medium."""
        with needing_room(self._path, self._block.file_size):
            self._seam.allocate(fd, self._block.file_size)
            found = detect(fd, "auto", self._path)
            check_mappable(fd, self._path)
            if realign and found.alignment > self._block.alignment:
                self._block = replace(self._block, alignment=found.alignment)
                self.check_fit()
            relocation = self._relocation()
            zeroed = found.allocates_zeros or self._seam.zero(fd, self._block.file_size)
            with contextlib.closing(self._pages(relocation)) as pages:
                write_ring(fd, self._block, pages, zeroed=zeroed, single=False, seam=self._seam, progress=self._progress)
            tail, end = Bound(0, self._view.tail.next_seq), Bound(relocation.end, self._view.end.next_seq)
            slot = closing_slot(tail, end, self._epoch, self._block, self._history)
            write_structures(fd, self._block, slot, self._history, single=False, seam=self._seam)
        self._used = relocation.end

    def _pages(self, relocation: Relocation) -> Generator[bytes, None, None]:
        """The new ring. Of a large log the next pages are made by a thread while these are written."""
        pages = self._walker.relocated(self._view, relocation)
        if self._used < LARGE_RING:
            yield from pages
            return
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - loads logging, for large logs only

        with ThreadPoolExecutor(1, "pmwal-copy") as pool:  # at the end it waits for the thread, which reads the source
            try:
                coming = pool.submit(next, pages, None)
            except RuntimeError:  # a limit of threads: the first submit starts the only one
                yield from pages
                return
            while (data := coming.result()) is not None:
                coming = pool.submit(next, pages, None)
                yield data

    def _relocation(self) -> Relocation:
        return Relocation(self._block, scan_for(self._block))

    def report(self) -> CopyReport:
        """What was written, or is there already."""
        first, after = self._view.tail.next_seq, self._view.end.next_seq
        return CopyReport(self._path, self._block.capacity, self._used, first, after - 1, after - first)


def _check_known(path: str, block: Superblock) -> None:
    """``FormatError`` for a log of a newer version, in which something may depend on where records are."""
    problem = writable_problem(block)
    if problem is not None:
        raise FormatError(f"{path}: {problem}")


def _as_text(path: str | os.PathLike[str]) -> str:
    name = os.fsdecode(path)
    if not name:
        raise FileNotFoundError(errno.ENOENT, "no path was given", name)
    return name
