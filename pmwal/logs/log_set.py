"""``LogSet``: the logs of many processes, read as one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType, TracebackType

from pmwal.errors import WalClosed
from pmwal.format.payload import as_seconds
from pmwal.logs.archives.reader import ArchivedReader
from pmwal.logs.merge import Merge
from pmwal.logs.set_consumer import SetConsumer
from pmwal.logs.sources import Place, Sources
from pmwal.reading.reader import Reader
from pmwal.reading.selection import Kinds, Time, selection
from pmwal.records import SetRecord

_PAUSE_MIN, _PAUSE_MAX = 0.01, 0.1  # seconds between two looks at the logs


class LogSet:
    """Several logs, read as one in the order of time: those of a directory that processes log into
    (``LogHandler(directory=...)``), a file, a pattern for paths, or a list of these. In a directory every ``*.wal`` belongs to the
    set. So do archives (``pmwal archive``): those of a log and its ring are one log.

    Records are ``pmwal.Record`` with ``log``, the path of their log, and ``uuid``, its identity. They are merged by effective time:
    within a log the latest stamp so far since it was opened, and a stamp past now counts as now. So each log keeps its own order,
    and one wrong clock holds nothing up. Records of the same time come in the order of their logs' paths.

    A log that cannot be read is left out with a ``RuntimeWarning``, and is in ``problems``.

    >>> import logging, pmwal
    >>> handler = pmwal.LogHandler(directory=path, size="64KiB")
    >>> _ = handler.handle(logging.makeLogRecord({"levelno": logging.INFO, "msg": "paid"}))
    >>> handler.flush()
    >>> with pmwal.LogSet(path) as logs:
    ...     [(record.kind, record.data) for record in logs]
    [(20, b'paid')]
    >>> handler.close()
    """

    def __init__(self, places: Place | Iterable[Place]) -> None:
        """Raises ``FileNotFoundError`` for a directory or a file that is not there."""
        self._sources = Sources(places)
        self._closed = False
        self._merge: Merge | None = None
        self._late = self._missed = 0

    # -- reading

    def read(
        self,
        start: Mapping[str, str] | None = None,
        *,
        since: Time | None = None,
        until: Time | None = None,
        kind: Kinds | None = None,
        exact: bool = False,
    ) -> Iterator[SetRecord]:
        """The records of all logs, as they are at the call, in order.

        ``start`` is a ``cursor`` of this or an earlier ``LogSet``: it continues after what had been handed out then. The other
        arguments select in each log as in ``Reader.read``. Records that are overwritten before they are read are counted in
        ``missed``. Raises ``Overrun`` for a cursor whose record was rolled back or replaced.

        >>> import pmwal
        >>> for number in (2, 1):
        ...     with pmwal.open(path.with_suffix(f".{number}.wal"), size="64KiB") as wal:
        ...         seq = wal.append(b"of log %d" % number)
        >>> with pmwal.LogSet(path.with_suffix(".*.wal")) as logs:
        ...     records = logs.read()
        ...     first = next(records).data
        ...     first, [record.data for record in logs.read(start=logs.cursor)]
        (b'of log 2', [b'of log 1'])
        """
        merge = self._begin(start, since, until, kind, exact)
        merge.refresh(turn=True)
        return self._merged(merge)

    def _merged(self, merge: Merge) -> Iterator[SetRecord]:
        for batch in merge.batches():
            yield from merge.hand_out(batch)
            self._check_open()

    def follow(
        self,
        start: Mapping[str, str] | None = None,
        *,
        since: Time | None = None,
        kind: Kinds | None = None,
        wait: float = 1.5,
        timeout: float | None = None,
    ) -> Iterator[SetRecord]:
        """The records of all logs from the oldest, or from ``start`` or ``since`` on, then each new one once it is durable.

        Logs that are new in the set follow as they appear. A log holds the others up only while it has records that are not durable
        yet, and for at most ``wait`` seconds: use more than the ``commit`` of the writers. What comes later than that is handed out
        and counted in ``late``. It ends after ``timeout`` seconds without a record.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b"])
        ...     with pmwal.LogSet(path) as logs:
        ...         [record.data for record in logs.follow(timeout=0)]
        [b'a', b'b']
        """
        return self._follow_from(start, since, kind, wait, timeout)

    def _follow_from(
        self, start: Mapping[str, str | int] | None, since: Time | None, kind: Kinds | None, wait: float, timeout: float | None
    ) -> Iterator[SetRecord]:
        """``follow``; it may begin with the record of a number."""
        pause = as_seconds("wait", wait)
        limit = as_seconds("timeout", timeout)
        merge = self._begin(start, since, None, kind, False)
        return self._followed(merge, None if pause is None else int(pause * 1e9), limit)

    def consumer(self, name: str, start: str = "oldest") -> SetConsumer:
        """The named consumer of all these logs: it continues where it, in any process, has acknowledged.

        A new one begins with the ``"oldest"`` records or after the ends (``"newest"``); a log that joins the set later, with its
        oldest. Its positions are in files beside the logs. Raises what ``Reader.consumer`` raises, but begins anew where a position
        is damaged or of another log.
        """
        self._check_open()
        if any(isinstance(reader, ArchivedReader) for reader in self.logs.values()):
            raise ValueError("a consumer follows logs, and archives are among these; make a pmwal.LogSet of the logs alone")
        return SetConsumer(self, name, start)

    def _followed(self, merge: Merge, wait_ns: int | None, timeout: float | None) -> Iterator[SetRecord]:
        # Without a limit a log may hold the others up as long as it likes.
        longest = (1 << 62) if wait_ns is None else wait_ns
        pause, since = _PAUSE_MIN, time.monotonic()
        while True:
            self._check_open()
            batch = merge.poll(longest)
            over = timeout is not None and not batch.records and not merge.behind and time.monotonic() - since >= timeout
            if over:
                batch = merge.poll(None)
            yield from merge.hand_out(batch)
            if batch.records:
                pause, since = _PAUSE_MIN, time.monotonic()
            elif over and not merge.behind:
                return
            if over or merge.behind:
                continue
            left = pause if timeout is None else min(pause, max(0.0, since + timeout - time.monotonic()))
            time.sleep(left)
            pause = _PAUSE_MIN if merge.waiting else min(2 * pause, _PAUSE_MAX)

    def _begin(
        self, start: Mapping[str, str | int] | None, since: Time | None, until: Time | None, kind: Kinds | None, exact: bool
    ) -> Merge:
        self._check_open()
        if start is not None and not isinstance(start, Mapping):
            raise TypeError(f"start is the cursor of a LogSet, a dict, not {type(start).__name__}")
        chosen = selection(since, until, kind, exact)
        if self._merge is not None:
            self._late += self._merge.late
            self._missed += self._merge.missed
        self._merge = Merge(self._sources, chosen, dict(start or {}), self._merge)
        return self._merge

    def __iter__(self) -> Iterator[SetRecord]:
        return self.read()

    @property
    def cursor(self) -> dict[str, str]:
        """After the last record that the newest ``read`` or ``follow`` has handed out: pass it as ``start`` to continue there.

        A dict of texts that JSON can store: for each log, by its uuid, a ``Record.cursor``.
        """
        return {} if self._merge is None else self._merge.cursors()

    # -- about the set

    @property
    def late(self) -> int:
        """Records that ``follow`` has handed out after later ones of other logs. Those of one log are in its order."""
        return self._late + (0 if self._merge is None else self._merge.late)

    @property
    def missed(self) -> int:
        """Records that were overwritten before they were read."""
        return self._missed + (0 if self._merge is None else self._merge.missed)

    @property
    def logs(self) -> Mapping[str, Reader]:
        """A reader for each log of the set, by its path, as ``record.log`` has it. They are looked up anew."""
        self._check_open()
        self._sources.refresh()
        return MappingProxyType({log.path: log.reader for log in self._sources.logs.values()})

    @property
    def problems(self) -> Mapping[str, Exception]:
        """Why logs of the set could not be read, by path, as far as they were looked at."""
        return MappingProxyType(self._sources.problems)

    @property
    def closed(self) -> bool:
        """Whether the set was closed."""
        return self._closed

    def close(self) -> None:
        """Close all logs. Idempotent."""
        self._closed = True
        self._sources.close()

    def __enter__(self) -> LogSet:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<pmwal.LogSet {', '.join(map(repr, self._sources.places))}{' closed' if self._closed else ''}>"

    def _check_open(self) -> None:
        if self._closed:
            raise WalClosed("this set is closed; make another pmwal.LogSet")


def note_problem(logs: LogSet, path: str, error: Exception) -> None:
    """One of the readers in ``logs.logs`` failed: a problem of the set as if it had read the log itself."""
    logs._sources.note(path, error)


def drop_log(logs: LogSet, uuid: str) -> None:
    """A log of ``logs.logs`` that is gone was read to its end by other means than ``read`` and ``follow``."""
    log = logs._sources.logs.get(uuid)
    if log is not None and log.gone:
        logs._sources.drop(log)
