"""Every error that pmwal raises on its own account.

    PmwalError
    ├── WalClosed            the handle was closed: open the log again
    ├── ReentrantCall        a call from inside another call on the same handle (signal handler, batch)
    ├── WalFull              no room: truncate, or open with on_full="wait" or "overwrite"
    ├── WalLocked            another writer has the log
    ├── RecordTooLarge       (ValueError) the record can never fit
    ├── CorruptWal           the medium lost or changed acknowledged data: nothing was touched
    ├── FormatError          not a pmwal file, a shortened one, or one of a newer version
    ├── PersistError         (OSError) the medium refused to make data durable: the handle is finished
    ├── ForkedWal            a forked child used its parent's handle
    ├── Overrun              a reader asked for records that were overwritten, truncated or rolled back
    └── UnsupportedMedium    this file system cannot be what was asked of it

Errors of the operating system at open (no such file, permission, no space) stay the ``OSError`` that they are.
"""

from __future__ import annotations


class PmwalError(Exception):
    """Root of all errors that pmwal raises on its own account.

    >>> import pmwal
    >>> issubclass(pmwal.WalFull, pmwal.PmwalError)
    True
    """


class WalClosed(PmwalError):
    """The handle was closed. The caller's fault: open the log again.

    >>> import pmwal
    >>> wal = pmwal.open(path, size="64KiB")
    >>> wal.close()
    >>> wal.append(b"late")
    Traceback (most recent call last):
    pmwal.errors.WalClosed: this handle is closed; open the log again with pmwal.open()
    """


class ReentrantCall(PmwalError):
    """A call came from inside another call on the same handle and thread; it would have to wait for itself.

    It comes from a signal handler, a ``__del__``, or the body of ``batch()`` or ``reserve()``. Nothing was stored.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal, wal.batch() as batch:
    ...     wal.append(b"inside")
    Traceback (most recent call last):
    pmwal.errors.ReentrantCall: this thread is already inside a call on this log; finish that one first
    """


class WalFull(PmwalError):
    """No room for the record, and the policy says not to make any (or the time-out passed). Nothing was stored.

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
    """Another handle, here or in another process, is the log's writer.

    ``pid`` is its process id, or None when the live page does not name a living process.

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
    """The record, or the batch, cannot fit into this log however empty it is. Nothing was stored.

    >>> import pmwal
    >>> with pmwal.open(path, size="4KiB") as wal:
    ...     wal.append(bytes(4096))
    Traceback (most recent call last):
    pmwal.errors.RecordTooLarge: a record of 4096 bytes cannot fit; the largest payload of this log is 2000 bytes
    """


class CorruptWal(PmwalError):
    """The log holds less, or other, than what it acknowledged. Nothing was changed.

    ``first_seq`` to ``last_seq`` are the numbers that are lost (None where they cannot be told), ``start`` and ``end``
    the byte range of the file in which the damage stands, ``reason`` says what was found.
    ``pmwal.open(path, "r", recover="salvage")`` reads what is whole; ``pmwal repair`` makes the log usable again.

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
    """The file is no pmwal log, is shorter than its own superblock says, or was written by a newer version.

    >>> import pmwal
    >>> _ = path.write_bytes(b"something else")
    >>> pmwal.open(path)
    Traceback (most recent call last):
    pmwal.errors.FormatError: ...: not a pmwal log: 14 bytes are less than a superblock
    """


class PersistError(PmwalError, OSError):
    """The medium refused to make data durable, or shrank under the mapping. The handle is finished for good.

    The kernel reports a write-back error once and then calls the pages clean, so a second try would succeed and mean
    nothing. ``committed_seq`` is the last number known to be durable; open the log again to find what the medium holds.

    >>> import errno, pmwal
    >>> error = pmwal.PersistError(errno.EIO, "msync failed", committed_seq=41)
    >>> error.errno == errno.EIO, error.committed_seq
    (True, 41)
    """

    def __init__(self, errno: int | None = None, message: str = "", *, committed_seq: int | None = None) -> None:
        super().__init__(errno, message)
        self.committed_seq = committed_seq


class ForkedWal(PmwalError):
    """A forked child used its parent's handle. The child must open its own reader, or a log of its own.

    >>> import pmwal
    >>> issubclass(pmwal.ForkedWal, pmwal.PmwalError)
    True
    """


class Overrun(PmwalError):
    """The records asked for are gone: overwritten, truncated, or rolled back after they had been read.

    ``missed`` counts the records between the one asked for and the oldest that is still there.

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


class UnsupportedMedium(PmwalError):
    """The file system cannot be the medium that was asked for, or the platform is not one that pmwal runs on.

    >>> import pmwal
    >>> pmwal.open(path, medium="dax")
    Traceback (most recent call last):
    pmwal.errors.UnsupportedMedium: ...: medium="dax" needs a file system mounted with -o dax...
    """
