"""Every error that pmwal raises itself.

    PmwalError
    ├── WalClosed            the handle is closed: open the log again
    ├── ReentrantCall        a call from inside another call on the same handle (signal handler, batch)
    ├── WalFull              no space left: truncate, or open with on_full="wait", "overwrite" or "consumed"
    ├── WalLocked            another writer has the log open
    ├── RecordTooLarge       (ValueError) the record can never fit
    ├── CorruptWal           the medium lost or changed acknowledged data; nothing was changed
    ├── FormatError          not a pmwal log, or one of a newer version
    │   └── ShortenedWal     (CorruptWal) the end of the file was cut off: nothing was changed
    ├── PersistError         (OSError) the medium failed to make data durable: the handle stores nothing more
    ├── WalUnlinked          the log's file was removed, renamed or replaced: open the path again
    ├── ConsumerHeld         another process, or handle, is the consumer of this name
    ├── PositionError        the position of a consumer is damaged, or of another log
    ├── ForkedWal            a forked child used its parent's handle
    ├── Overrun              the records to be read were overwritten, truncated or rolled back
    ├── ShipError            a log and the stream to which it is shipped do not fit together
    └── UnsupportedMedium    this file system cannot be the requested medium

Errors of the operating system at open (no such file, permission denied, no space) are raised as the ``OSError`` that they are.
``UnlinkedWarning`` is the one warning with a class of its own.
"""

from __future__ import annotations


class PmwalError(Exception):
    """Base class of all errors that pmwal raises itself.

    >>> import pmwal
    >>> issubclass(pmwal.WalFull, pmwal.PmwalError)
    True
    """


class WalClosed(PmwalError):
    """The handle is closed, which is the caller's mistake. Open the log again.

    >>> import pmwal
    >>> wal = pmwal.open(path, size="64KiB")
    >>> wal.close()
    >>> wal.append(b"late")
    Traceback (most recent call last):
    pmwal.errors.WalClosed: this handle is closed; open the log again with pmwal.open()
    """


class ReentrantCall(PmwalError):
    """A call from inside another call on the same handle and thread, which would have waited for itself.

    It was made in a signal handler, a ``__del__``, or the body of ``batch()`` or ``reserve()``. Nothing was stored; make it when
    the outer call has returned.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal, wal.batch() as batch:
    ...     wal.append(b"inside")
    Traceback (most recent call last):
    pmwal.errors.ReentrantCall: this thread is already inside a call on this log; finish that one first
    """


class WalFull(PmwalError):
    """No space for the record, and ``on_full`` does not make any, or the time-out passed. Nothing was stored.

    ``truncate`` what was processed, or open the log with ``on_full="wait"``, ``"overwrite"`` or ``"consumed"``.

    >>> import pmwal
    >>> with pmwal.open(path, size="4KiB") as wal:
    ...     try:
    ...         while True:
    ...             last = wal.append(bytes(500))
    ...     except pmwal.WalFull:
    ...         first = wal.truncate(before=last)
    ...         last = wal.append(bytes(500))
    """


class WalLocked(PmwalError):
    """Another handle, in this process or another one, has the log open for writing. Wait for it, or read with ``mode="r"``.

    ``pid`` is the process id of that writer, None if it is unknown.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     try:
    ...         pmwal.open(path)
    ...     except pmwal.WalLocked as error:
    ...         error.pid == __import__("os").getpid()
    True
    """

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class RecordTooLarge(PmwalError, ValueError):
    """The record or batch does not fit into this log even when it is empty. Nothing was stored.

    Use smaller records, or a log with a larger ring.

    >>> import pmwal
    >>> with pmwal.open(path, size="4KiB") as wal:
    ...     wal.append(bytes(4096))
    Traceback (most recent call last):
    pmwal.errors.RecordTooLarge: a record of 4096 bytes cannot fit; the largest payload of this log is 2000 bytes
    """


class CorruptWal(PmwalError):
    """Acknowledged records are missing or damaged. The file was not changed.

    ``first_seq`` to ``last_seq`` are the sequence numbers of the lost records, at least (None if unknown), ``start`` and ``end``
    the byte range of the damage in the file, ``reason`` what was found. ``pmwal.open(path, "r", recover="salvage")`` reads every
    whole record; ``pmwal repair`` makes the log usable again.

    >>> import pmwal
    >>> error = pmwal.CorruptWal("damaged", first_seq=7, last_seq=7, start=139264, end=139328, reason="checksum")
    >>> error.first_seq, error.reason
    (7, 'checksum')
    """

    def __init__(
        self,
        message: str,
        *,
        first_seq: int | None = None,
        last_seq: int | None = None,
        start: int | None = None,
        end: int | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.first_seq = first_seq
        self.last_seq = last_seq
        self.start = start
        self.end = end
        self.reason = reason


class FormatError(PmwalError):
    """The file is not a pmwal log, is shorter than its superblock says, or was written by a newer version.

    >>> import pmwal
    >>> _ = path.write_bytes(b"something else")
    >>> pmwal.open(path)
    Traceback (most recent call last):
    pmwal.errors.FormatError: ...: not a pmwal log: 14 bytes are less than a superblock
    """


class ShortenedWal(CorruptWal, FormatError):
    """The end of the log's file was cut off: it is shorter than its superblock says. The file was not changed.

    It is a ``FormatError``, because nothing of it can be mapped, and a ``CorruptWal``, because salvage and repair work on what is
    left.

    >>> import os, pmwal
    >>> pmwal.open(path, size="64KiB").close()
    >>> os.truncate(path, 150_000)
    >>> pmwal.open(path)
    Traceback (most recent call last):
    pmwal.errors.ShortenedWal: ...: shortened: 150000 bytes, its superblock says ...
    """


class PersistError(PmwalError, OSError):
    """The medium failed: to make data durable, or at an access to the mapping. The handle stores nothing more.

    So does a file that was shortened while it was mapped, and a full copy-on-write file system.

    There is no retry: the kernel reports a write-back error once and then calls the pages clean, so a second attempt would succeed
    and prove nothing. ``committed_seq`` is the last sequence number known to be durable. Open the log again to learn what the
    medium has.

    >>> import errno, pmwal
    >>> error = pmwal.PersistError(errno.EIO, "msync failed", committed_seq=41)
    >>> error.errno == errno.EIO, error.committed_seq
    (True, 41)
    """

    def __init__(self, errno: int | None = None, message: str = "", *, committed_seq: int | None = None) -> None:
        super().__init__(errno, message)
        self.committed_seq = committed_seq


class WalUnlinked(PmwalError):
    """The path no longer leads to the log: its file was removed, renamed or replaced. The call stored nothing.

    Raised by a handle opened with ``on_unlinked="raise"``, from the first call that notices it. What the handle stored after the
    loss cannot be found under the path. Close the handle and open the path again.

    >>> import pmwal
    >>> wal = pmwal.open(path, size="64KiB", on_unlinked="raise")
    >>> path.unlink()
    >>> wal.close()
    Traceback (most recent call last):
    pmwal.errors.WalUnlinked: ...: the file was removed while the log was open...
    """


class UnlinkedWarning(RuntimeWarning):
    """The path no longer leads to an open log: its file was removed, renamed or replaced. Given once by each handle.

    The handle continues to store into that file. Close it and open the path again, or turn the warning into an error with
    ``on_unlinked="raise"``.

    >>> import pmwal, warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     with pmwal.open(path, size="64KiB") as wal:
    ...         path.unlink()
    >>> [warning.category.__name__ for warning in caught]
    ['UnlinkedWarning']
    """


class ConsumerHeld(PmwalError):
    """Another handle, in this process or another one, is the consumer of this name. End it first, or use another name.

    ``pid`` is the process id of the holder, None if it is unknown.

    >>> import pmwal
    >>> pmwal.open(path, size="64KiB").close()
    >>> with pmwal.open(path, "r") as reader, reader.consumer("mail"):
    ...     reader.consumer("mail")
    Traceback (most recent call last):
    pmwal.errors.ConsumerHeld: ...: this process has consumer 'mail'; only one at a time can be it: end that one first
    """

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class PositionError(PmwalError):
    """The stored position of a consumer says nothing about this log: it is damaged, or of another log that had the path before.

    ``pmwal consumers`` shows it, sets it anew (``--set``) or removes it (``--forget``). Until then it holds back
    ``truncate(consumed=True)``.

    >>> import pmwal
    >>> issubclass(pmwal.PositionError, pmwal.PmwalError)
    True
    """


class ForkedWal(PmwalError):
    """A forked child used its parent's handle. The child can open a reader, or a log of its own.

    >>> import pmwal
    >>> issubclass(pmwal.ForkedWal, pmwal.PmwalError)
    True
    """


class Overrun(PmwalError):
    """The requested records are gone: overwritten or truncated, or rolled back after they were read.

    ``missed`` is the number of records between the requested one and the oldest that is left.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     first, last = wal.extend([b"a", b"b", b"c"])
    ...     _ = wal.truncate(before=last)
    ...     try:
    ...         list(wal.read(start=first))
    ...     except pmwal.Overrun as error:
    ...         error.missed
    2
    """

    def __init__(self, message: str, missed: int = 0) -> None:
        super().__init__(message)
        self.missed = missed


class ShipError(PmwalError):
    """A log and the stream to which it is shipped do not fit together, so nothing more is shipped, or restored.

    The log was rolled back, or is a copy of another one; or the stream is missing, or set so that it would lose records. The
    message says which, and what to do. Or an OpenTelemetry collector refuses the records.

    >>> import pmwal
    >>> issubclass(pmwal.ShipError, pmwal.PmwalError)
    True
    """


class StaleStore(PmwalError):
    """The state of a ``Store`` may lack a change that is in its log, because an earlier call failed between the two. Open it again.

    >>> import pmwal
    >>> class Names(pmwal.Store):
    ...     names: set[str] = set()
    ...     def apply(self, change):
    ...         self.names.add(change["name"])            # a bug: log() below takes what this does not
    ...     def save(self):
    ...         return sorted(self.names)
    ...     def load(self, state):
    ...         self.names = set(state)
    >>> store = Names(path, size="64KiB")
    >>> for change in {}, {"name": "Ada"}:
    ...     try:
    ...         store.log(change)
    ...     except (KeyError, pmwal.StaleStore) as error:
    ...         print(type(error).__name__)
    KeyError
    StaleStore
    >>> store.close()
    """


class UnsupportedMedium(PmwalError):
    """The file system cannot be the requested medium, or pmwal does not run on this platform.

    >>> import pmwal
    >>> pmwal.open(path, medium="dax")
    Traceback (most recent call last):
    pmwal.errors.UnsupportedMedium: ...: medium="dax" needs a file system mounted with -o dax...
    """
