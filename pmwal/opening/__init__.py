"""Opening a log: create it, or take it over and recover it, or read it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypedDict, Unpack, overload

from pmwal.native import native
from pmwal.native.choice import chosen_engine
from pmwal.opening.files import capacity_of, check_geometry, inspect, map_for_reading, map_for_writing, own
from pmwal.opening.takeover import take_over
from pmwal.reading.reader import Reader
from pmwal.records import Progress, RecoveryReport
from pmwal.storage.medium import MEDIUMS, check_platform, flush_instruction
from pmwal.storage.seam import SYSTEM, Seam
from pmwal.writing.checks import checked
from pmwal.writing.committer import check_commit
from pmwal.writing.engine import Engine
from pmwal.writing.space import FULL_POLICIES
from pmwal.writing.wal import Wal

if native is not None:
    from pmwal.writing.native_engine import NativeEngine, NativeWal

MODES = ("a", "x", "r+", "r")
ORDERINGS = ("auto", "strict", "pipelined")
RECOVERIES = ("strict", "salvage")


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
    capacity = None if size is None else capacity_of(size)
    check_platform()
    is_native = chosen_engine() == "native"
    engine_type: type[Engine] = checked(NativeEngine if is_native else Engine)
    wal_type: Callable[..., Wal] = NativeWal if is_native else Wal
    if mode == "r":
        return _open_reader(name, capacity, align, medium, seam, salvaging=recover == "salvage")
    ownership, created = own(name, mode, capacity, align, medium, application, seam, progress)
    try:
        lines = flush_instruction() if is_native else None
        mapping, identity = map_for_writing(ownership, name, capacity, align, medium, seam, lines)
        try:
            pipelined = mapping.medium.pipelined if ordering == "auto" else ordering == "pipelined"
            engine, report = take_over(mapping, identity, name, seam, pipelined, progress, engine_type)
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


def _open_reader(path: str, capacity: int | None, align: int | None, medium: str, seam: Seam, *, salvaging: bool) -> Reader:
    mapping, identity = map_for_reading(path, medium, seam)
    try:
        check_geometry(path, identity.block, capacity, align)
        return Reader(path, mapping, identity, seam, salvaging=salvaging)
    except BaseException:
        mapping.close()
        raise
