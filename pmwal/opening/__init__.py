"""Opening a log: create it, or take it over and recover it, or read it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from pmwal.native.choice import chosen_engine, chosen_stores
from pmwal.opening.files import inspect
from pmwal.opening.options import Commit, FullPolicy, Keywords, Mode, Options, Ordering, Recovery, UnlinkedPolicy
from pmwal.records import Progress, RecoveryReport
from pmwal.storage.medium import MediumName
from pmwal.storage.platform import check_platform
from pmwal.storage.seam import SYSTEM, Seam

if TYPE_CHECKING:
    from pmwal.opening.files import Made
    from pmwal.reading.reader import Reader
    from pmwal.writing.wal import Wal


@overload
def open(path: str | os.PathLike[str], mode: Literal["r"], **options: Unpack[Keywords]) -> Reader: ...
@overload
def open(path: str | os.PathLike[str], mode: Literal["a", "x", "r+"] = "a", **options: Unpack[Keywords]) -> Wal: ...
@overload
def open(path: str | os.PathLike[str], mode: Mode, **options: Unpack[Keywords]) -> Wal | Reader: ...
def open(
    path: str | os.PathLike[str],
    mode: Mode = "a",
    *,
    size: int | str | None = None,
    align: int | None = None,
    medium: MediumName = "auto",
    ordering: Ordering = "auto",
    commit: Commit = "each",
    on_full: FullPolicy = "raise",
    timeout: float | None = None,
    recover: Recovery = "strict",
    on_unlinked: UnlinkedPolicy = "warn",
    file_mode: int | str = 0o600,
    label: str | None = None,
    consumers: Iterable[str] = (),
) -> Wal | Reader:
    """Open a log: a ``Wal`` to write (modes "a", "x", "r+"), or a ``Reader`` (mode "r").

    - ``mode``: "a" creates the log or recovers it, "x" creates it and fails if it exists, "r+" requires that it exists.
    - ``size``: capacity of the ring at creation, in bytes or as text with a unit, rounded up to whole pages; None means 64 MiB.
      ``align``: alignment of the records, a power of two from 8 to 4096; None means what suits the medium. ``label``: a name for
      people, at most 64 bytes in UTF-8, which the log keeps. For an existing log, a value other than its own is a ``ValueError``.
    - ``medium``: "auto", "dax" (refused without MAP_SYNC), "file", "memory" or "emulated-dax" (both on tmpfs, ramfs or a memfd
      only).
    - ``ordering``: "strict" writes the commit pointer with every commit; "pipelined" lets it lag, which saves a barrier; "auto" is
      strict where a barrier is a fence and pipelined where it is a device flush.
    - ``commit``: "each" makes ``append`` return durable, "manual" leaves it to ``commit()``. With a number of seconds a background
      thread commits: it starts at most that long after the oldest append that is not yet durable.
    - ``on_full``: "raise" ``WalFull``, "wait" for another thread to truncate (at most ``timeout`` seconds; None or infinity: no
      limit), "overwrite" the oldest records, or free those that are "consumed": what all named consumers have acknowledged. If
      that is nothing, it waits for them as "wait" does.
    - ``recover="salvage"``, with mode "r" only, yields the log's whole records around damage.
    - ``on_unlinked``: what a handle does when its file was removed, renamed or replaced. It notices within a second of the next
      call that stores or commits: "warn" once (``UnlinkedWarning``) and continue, or "raise" ``WalUnlinked``.
    - ``file_mode``: of the file at creation, a number or octal text, not changed by the umask: 0o640 lets a group read the log.
    - ``consumers``: names of consumers for whom records are kept from the start, also before each of them has begun; see
      docs/guide-consumers.md. ``ValueError`` for a log with several hard links.

    Raises ``CorruptWal``, ``FormatError``, ``WalLocked``, ``UnsupportedMedium``, ``PersistError``, ``ValueError``, or the
    ``OSError`` of the system call that failed.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = wal.append(b"payload")
    >>> with pmwal.open(path, "r") as reader:
    ...     reader[seq].data
    b'payload'
    """
    options = Options(
        mode,
        size=size,
        align=align,
        medium=medium,
        ordering=ordering,
        commit=commit,
        on_full=on_full,
        timeout=timeout,
        recover=recover,
        on_unlinked=on_unlinked,
        file_mode=file_mode,
        label=label,
        consumers=consumers,
    )
    return open_with(path, options)


def open_log(
    path: str | os.PathLike[str],
    mode: Any = "a",
    *,
    seam: Seam = SYSTEM,
    progress: Progress | None = None,
    **options: Any,
) -> Wal | Reader:
    """Internal, for tests and the command line: ``open`` with a seam and progress.

    The options come as text, which ``Options`` checks; type checkers do not.
    """
    return open_with(path, Options(mode, **options), seam=seam, progress=progress)


def open_with(
    path: str | os.PathLike[str],
    options: Options,
    *,
    seam: Seam = SYSTEM,
    progress: Progress | None = None,
    made: Made | None = None,
) -> Wal | Reader:
    """Internal: open a log with these options; everything else that opens one ends here. ``made``: it was just created, locked."""
    name = os.fspath(path)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not name:
        raise FileNotFoundError(errno.ENOENT, "no path was given", name)
    check_platform()
    is_native = chosen_engine() == "native"
    chosen_stores()  # refuses an unknown one before anything is created
    # Commands that only inspect a log need neither.
    if options.mode == "r":
        from pmwal.opening.reader import open_reader  # noqa: PLC0415

        return open_reader(name, options, seam)
    from pmwal.opening.writer import open_writer  # noqa: PLC0415

    return open_writer(name, options, seam, progress, is_native=is_native, made=made)


def verify(path: str | os.PathLike[str], *, progress: Progress | None = None) -> RecoveryReport:
    """Judge a log as recovery would, without writing and without raising for damage.

    ``progress`` is called from time to time with (bytes done, bytes in total). Raises ``FormatError`` or ``OSError`` when there
    is no log to judge.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = wal.append(b"payload")
    >>> pmwal.verify(path).outcome
    'clean'
    """
    with inspect(os.fspath(path), SYSTEM, progress) as (_, judgement):
        return judgement.report
