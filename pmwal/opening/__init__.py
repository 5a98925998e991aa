"""Opening a log: create it, or take it over and recover it, or read it.

Invariants of a recovery
------------------------
- It believes nothing volatile. What it reads may be in the page cache only (the writer was killed, or its msync failed),
  so it syncs once, ignoring an error that the dead writer never saw; judges; then stores again, from a private copy that it
  validated, the slot it recovered from and every record it keeps past that slot's pointer; that barrier must succeed.
- Two slots of a new epoch follow before it returns, so what it dropped never validates again.
- It can be killed anywhere and run again: until those slots are durable the log reads as before, and after them it reads
  as recovered. A corrupt verdict changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, TypedDict, Unpack, overload

from pmwal.errors import FormatError, PersistError
from pmwal.format.control import due_generations
from pmwal.format.layout import (
    CAPACITY_DEFAULT,
    CAPACITY_MAX,
    CAPACITY_MIN,
    LARGE_RING,
    PAGE,
    Slot,
    Superblock,
    encode_slot,
    initial_slot,
    slot_index,
    slot_offset,
)
from pmwal.format.ring import RingReader, overlay
from pmwal.native import native
from pmwal.native.choice import chosen_engine, scan_for
from pmwal.reading.reader import Reader, judge_beside
from pmwal.records import Bound, Progress, RecoveryReport
from pmwal.recovery.judge import Judgement, judge
from pmwal.recovery.superblock import Identity, identify, writable_problem
from pmwal.storage.create import create_file
from pmwal.storage.lock import Ownership, close_locked, open_to_lock
from pmwal.storage.medium import MEDIUMS, Mapping, Medium, check_platform, detect, drop_cache, flush_instruction
from pmwal.storage.readahead import read_ahead
from pmwal.storage.seam import SYSTEM, Seam
from pmwal.units import parse_size
from pmwal.writing.committer import check_commit
from pmwal.writing.engine import Engine, State
from pmwal.writing.space import FULL_POLICIES
from pmwal.writing.wal import Wal

if native is not None:
    from pmwal.writing.native_engine import NativeEngine, NativeWal

MODES = ("a", "x", "r+", "r")
ORDERINGS = ("auto", "strict", "pipelined")
RECOVERIES = ("strict", "salvage")

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_WRITE_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_TRIES = 16  # a file that is created, replaced or removed between two steps is looked for again


class _Options(TypedDict, total=False):
    """The keywords of ``open``."""

    size: int | str | None
    align: int | None
    medium: str
    ordering: str
    commit: str | float
    on_full: str
    timeout: float | None
    recover: str


@overload
def open(path: str | os.PathLike[str], mode: Literal["r"], **options: Unpack[_Options]) -> Reader: ...
@overload
def open(path: str | os.PathLike[str], mode: Literal["a", "x", "r+"] = "a", **options: Unpack[_Options]) -> Wal: ...
@overload
def open(path: str | os.PathLike[str], mode: str, **options: Unpack[_Options]) -> Wal | Reader: ...
def open(
    path: str | os.PathLike[str],
    mode: str = "a",
    *,
    size: int | str | None = None,
    align: int | None = None,
    medium: str = "auto",
    ordering: str = "auto",
    commit: str | float = "each",
    on_full: str = "raise",
    timeout: float | None = None,
    recover: str = "strict",
) -> Wal | Reader:
    """Open a log: a ``Wal`` to write (modes "a", "x", "r+"), or a ``Reader`` (mode "r").

    - ``mode``: "a" creates the log or recovers it, "x" creates it and fails if it exists, "r+" needs it to exist.
    - ``size``: capacity of the ring at creation in bytes or as text with units, 64 MiB when None, rounded up to whole pages;
      ``align``: of the records, a power of two from 8 to 4096, by the medium when None. For a log that exists, another
      value than its own is a ``ValueError``.
    - ``medium``: "auto", "dax" (refused without MAP_SYNC), "file", "memory" or "emulated-dax" (tmpfs, ramfs or memfd only).
    - ``ordering``: "strict" writes the pointer with every commit; "pipelined" lets it lag and costs one barrier; "auto" is
      strict where a barrier is a fence and pipelined where it is a device flush.
    - ``commit``: "each" makes ``append`` return durable, "manual" leaves it to ``commit()``, and a number leaves it to a thread in
      the background, which begins a commit at most so many seconds after the oldest append that is not durable.
    - ``on_full``: "raise" ``WalFull``, "wait" for another thread's truncate (``timeout`` seconds at most), or "overwrite" the
      oldest records.
    - ``recover="salvage"``, with mode "r" only, yields every whole record around damage.

    Raises ``CorruptWal``, ``FormatError``, ``WalLocked``, ``UnsupportedMedium``, ``PersistError``, ``ValueError``, or the
    ``OSError`` of the system call that failed.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = wal.append(b"payload")
    >>> with pmwal.open(path, "r") as reader:
    ...     reader[seq].data
    b'payload'
    """
    return open_log(
        path,
        mode,
        size=size,
        align=align,
        medium=medium,
        ordering=ordering,
        commit=commit,
        on_full=on_full,
        timeout=timeout,
        recover=recover,
        seam=SYSTEM,
    )


def open_log(
    path: str | os.PathLike[str],
    mode: str = "a",
    *,
    size: int | str | None = None,
    align: int | None = None,
    medium: str = "auto",
    ordering: str = "auto",
    commit: str | float = "each",
    on_full: str = "raise",
    timeout: float | None = None,
    recover: str = "strict",
    seam: Seam = SYSTEM,
    application: bytes = b"",
    progress: Progress | None = None,
) -> Wal | Reader:
    """``open`` with what only the command line and tests say: seam, application bytes, progress."""
    name = os.fspath(path)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    for value, allowed, what in (
        (mode, MODES, "mode"),
        (medium, MEDIUMS, "medium"),
        (ordering, ORDERINGS, "ordering"),
        (on_full, FULL_POLICIES, "on_full"),
        (recover, RECOVERIES, "recover"),
    ):
        if value not in allowed:
            raise ValueError(f"{what} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    check_commit(commit)
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout must not be negative, not {timeout}")
    if recover == "salvage" and mode != "r":
        raise ValueError('recover="salvage" reads around damage and needs mode="r"; to write again, use pmwal repair')
    if not name:
        raise FileNotFoundError(errno.ENOENT, "no path was given", name)
    capacity = None if size is None else _capacity(size)
    check_platform()
    is_native = chosen_engine() == "native"
    engine_type: type[Engine] = NativeEngine if is_native else Engine
    wal_type: Callable[..., Wal] = NativeWal if is_native else Wal
    if mode == "r":
        return _open_reader(name, capacity, align, medium, seam, salvaging=recover == "salvage")
    ownership, created = _own(name, mode, capacity, align, medium, application, seam, progress)
    try:
        lines = flush_instruction() if is_native else None
        mapping, identity = _map_for_writing(ownership, name, capacity, align, medium, seam, lines)
        try:
            pipelined = mapping.medium.pipelined if ordering == "auto" else ordering == "pipelined"
            engine, report = _take_over(mapping, identity, name, seam, pipelined, progress, engine_type)
        except BaseException:
            mapping.close()
            raise
    except BaseException:
        ownership.release()
        raise
    if created:
        report = replace(report, outcome="created")
    return wal_type(name, engine, ownership, report, commit=commit, on_full=on_full, timeout=timeout)


def verify(path: str | os.PathLike[str], *, progress: Progress | None = None) -> RecoveryReport:
    """Judge a log as recovery would, without writing and without raising for damage.

    ``progress`` is called now and then with (bytes done, bytes in all). Raises ``FormatError`` or ``OSError`` when there is
    no log to judge.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = wal.append(b"payload")
    >>> pmwal.verify(path).outcome
    'clean'
    """
    with inspect(os.fspath(path), SYSTEM, progress) as (_, judgement):
        return judgement.report


@contextlib.contextmanager
def inspect(path: str, seam: Seam, progress: Progress | None = None) -> Iterator[tuple[Mapping, Judgement]]:
    """A log mapped for reading and the verdict on it."""
    mapping, identity = map_for_reading(path, "auto", seam)
    try:
        yield mapping, judge_beside(mapping, identity, seam, progress)
    finally:
        mapping.close()


def map_for_reading(path: str, medium: str, seam: Seam) -> tuple[Mapping, Identity]:
    """The file mapped read-only and its superblock; ``FormatError`` when it is no log."""
    fd = os.open(path, _READ_FLAGS)
    try:
        identity = _identify(fd, path)
        mapping = Mapping(fd, identity.block.file_size, detect(fd, medium, path), seam, writable=False)
    except BaseException:
        os.close(fd)
        raise
    return mapping, identity


def _open_reader(path: str, capacity: int | None, align: int | None, medium: str, seam: Seam, *, salvaging: bool) -> Reader:
    mapping, identity = map_for_reading(path, medium, seam)
    try:
        _check_geometry(path, identity.block, capacity, align)
        return Reader(path, mapping, identity, seam, salvaging=salvaging)
    except BaseException:
        mapping.close()
        raise


def _capacity(size: int | str) -> int:
    capacity = -(-parse_size(size) // PAGE) * PAGE
    if not CAPACITY_MIN <= capacity <= CAPACITY_MAX:
        raise ValueError(f"size must be from {CAPACITY_MIN} to {CAPACITY_MAX} bytes, not {size!r}")
    return capacity


def _own(
    path: str,
    mode: str,
    capacity: int | None,
    align: int | None,
    medium: str,
    application: bytes,
    seam: Seam,
    progress: Progress | None,
) -> tuple[Ownership, bool]:
    """The right to write the log at ``path``, and whether it was created for that."""
    for _ in range(_TRIES):
        if mode != "x":
            try:
                ownership = own_existing(path, seam)
            except FileNotFoundError:
                if mode == "r+":
                    raise
            else:
                if ownership is None:
                    continue
                return ownership, False
        try:
            return create_file(
                path if mode == "x" else os.path.realpath(path),
                capacity=CAPACITY_DEFAULT if capacity is None else capacity,
                alignment=align,
                medium=medium,
                application=application,
                seam=seam,
                progress=progress,
            ), True
        except FileExistsError:
            if mode == "x":
                raise
    raise FileNotFoundError(f"{path}: it is created and removed again and again by somebody else")


def own_existing(path: str, seam: Seam) -> Ownership | None:
    """Own the log at ``path``; None when another file took the name meanwhile."""
    fd = open_to_lock(path, _WRITE_FLAGS)
    try:
        _identify(fd, path)
        ownership = Ownership(fd, path, seam)
    except BaseException:
        close_locked(fd)
        raise
    try:
        same = os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        same = False
    if not same:
        ownership.release()
        return None
    return ownership


def _identify(fd: int, path: str) -> Identity:
    """The superblock, read without a mapping, so that nothing of a wrong file is ever mapped."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "regular file"
        raise FormatError(f"{path}: not a pmwal log: {'a directory' if kind == 'directory' else 'not a regular file'}")
    return identify(lambda offset, length: os.pread(fd, length, offset), status.st_size, path)


def _map_for_writing(
    ownership: Ownership,
    path: str,
    capacity: int | None,
    align: int | None,
    medium: str,
    seam: Seam,
    lines: str | None,
) -> tuple[Mapping, Identity]:
    fd = os.open(f"/proc/self/fd/{ownership.fd}", _WRITE_FLAGS)  # the same file, an open description of its own
    try:
        identity = _identify(fd, path)
        block = identity.block
        _check_geometry(path, block, capacity, align)
        problem = writable_problem(block)
        if problem is not None:
            raise FormatError(f"{path}: {problem}")
        status = os.fstat(fd)
        if status.st_size > block.file_size:
            warnings.warn(
                f"{path}: {status.st_size - block.file_size} bytes follow the log; they are left alone",
                RuntimeWarning,
                stacklevel=4,
            )
        kind = replace(detect(fd, medium, path), lines=lines)
        _prepare(fd, status, block, kind, seam)
        return Mapping(fd, block.file_size, kind, seam, writable=True), identity
    except BaseException:
        os.close(fd)
        raise


def _check_geometry(path: str, block: Superblock, capacity: int | None, align: int | None) -> None:
    """``ValueError`` when a size or an alignment was asked for that is not the log's own."""
    if capacity is not None and capacity != block.capacity:
        raise ValueError(f"{path}: it exists with a size of {block.capacity} bytes, not {capacity}; leave size out")
    if align is not None and align != block.alignment:
        raise ValueError(f"{path}: it exists with an alignment of {block.alignment}, not {align}; leave align out")


def _prepare(fd: int, status: os.stat_result, block: Superblock, medium: Medium, seam: Seam) -> None:
    """Before mapping: no holes, nothing unsynced, and on a disk no large folios in the cache."""
    if status.st_blocks * 512 < block.file_size:  # copied sparsely; a store into a hole of a full disk is a SIGBUS
        seam.allocate(fd, block.file_size)
    with contextlib.suppress(OSError):
        seam.sync_file(fd)
    if medium.kind == "file":
        drop_cache(fd)


def _take_over(
    mapping: Mapping,
    identity: Identity,
    path: str,
    seam: Seam,
    pipelined: bool,
    progress: Progress | None,
    engine_type: type[Engine],
) -> tuple[Engine, RecoveryReport]:
    """Recover: judge, make durable what is kept, begin a new epoch."""
    for _ in range(_TRIES):
        judgement = _judge(mapping, identity, progress)
        if judgement.row.outcome == "corrupt":
            raise judgement.error(path)
        copies = _copy_kept(mapping, judgement)
        if copies is not None:
            break
    else:
        raise PersistError(errno.EIO, f"{path}: the medium gives another answer at every read; nothing was changed")
    slot = judgement.control.newest
    assert slot is not None  # every verdict without one is corrupt
    tail, end = judgement.tail, judgement.end
    state = State(tail, end, end, judgement.epoch_max, slot.epoch_first_seq)
    try:
        _store_again(mapping, judgement, slot, copies)
        engine = engine_type(mapping, identity.block, seam, pipelined=pipelined, state=state, slot=slot, index=judgement.index)
        with engine.guard:
            engine.start_first_epoch(end)
    except OSError as error:
        raise PersistError(error.errno, f"{path}: recovery could not make the log durable: {error.strerror}") from error
    return engine, judgement.report


def _judge(mapping: Mapping, identity: Identity, progress: Progress | None) -> Judgement:
    """The verdict on a log that nobody else writes, so that it can be looked at in place."""
    if mapping.on_disk and identity.block.capacity >= LARGE_RING:
        with read_ahead(mapping.fd, mapping.load) as load:
            return judge(load, identity, progress, scan_for(identity.block))
    window = mapping.window()
    try:
        return judge(mapping.load, identity, progress, scan_for(identity.block, window))
    finally:
        if window is not None:
            window.release()


def _copy_kept(mapping: Mapping, judgement: Judgement) -> list[tuple[int, bytes]] | None:
    """The records past the slot's pointer in private copies, as (file offset, bytes), validated once more.

    None when they are no longer what was judged: a page that an msync has failed on counts as clean, so it may have been
    dropped from the cache since, and what comes from the disk then may be older records of the same numbers.
    """
    block, slot = judgement.identity.block, judgement.control.newest
    assert slot is not None
    pieces = _pieces(block, slot.commit_position, judgement.end.position)
    copies = [(offset, mapping.load(offset, length)) for offset, length in pieces]
    reader = RingReader(block, overlay(lambda _, length: bytes(length), copies))
    at = Bound(slot.commit_position, slot.commit_seq + 1)
    while at.next_seq < judgement.end.next_seq:
        found = reader.numbered(*at)
        if found is None or found.header.epoch != slot.epoch:
            return None
        at = Bound(found.end, found.header.seq + 1)
    return copies if at == judgement.end else None


def _store_again(mapping: Mapping, judgement: Judgement, slot: Slot, copies: list[tuple[int, bytes]]) -> None:
    """Make durable what the recovery rests on and may be in the cache only: the slot, and what is kept past its pointer.

    A lost slot is filled up with what its place is due, so that the next crash, which may tear another, is not one too many.
    """
    block = judgement.identity.block
    stores = []
    generations = due_generations(slot.generation, block)
    for index in (slot_index(slot.generation, block.control_pages), *judgement.control.lost_places):
        generation = int(generations[index])
        due = slot._replace(generation=generation) if generation else initial_slot()
        stores.append((slot_offset(index), encode_slot(due, block.uuid, index)))
    stores += copies
    for offset, data in stores:
        mapping.store(offset, data)
    mapping.barrier(*((offset, offset + len(data)) for offset, data in stores))


def _pieces(block: Superblock, start: int, end: int) -> list[tuple[int, int]]:
    """The file ranges (offset, length) of the ring from one position to another."""
    offset, length = start % block.capacity, end - start
    first = min(length, block.capacity - offset)
    pieces = [(block.ring_offset + offset, first), (block.ring_offset, length - first)]
    return [piece for piece in pieces if piece[1]]
