"""The sinks of this process: one for each directory, which all handlers that log there share; and what a fork does to them.

Invariants
----------
- A process has at most one slot of a directory, through however many handlers and adapters it logs there. The slot is released when
  the last of them is closed.
- A forked child begins with no lines that wait, no counts and no locks of its parent's. Where a child can have a log of its own,
  its first record opens one.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from dataclasses import fields
from typing import Any, NamedTuple, NoReturn, Self

from pmwal.logs.options import SinkOptions
from pmwal.logs.reports import warn
from pmwal.logs.sink import Sink
from pmwal.logs.slots import SlotTarget, make_directory
from pmwal.logs.targets import PathTarget
from pmwal.records import SinkStats
from pmwal.writing.wal import Wal

_Path = str | os.PathLike[str]
_OWN = ("sync_level",)  # options that each handler has for itself


class Share(NamedTuple):
    """The part of one handler in a sink."""

    sink: Sink
    options: SinkOptions
    token: object

    def release(self) -> None:
        """The handler is closed; with the last one the sink is. Idempotent."""
        with _lock.held:
            owners = self.sink.owners
            owners.discard(self.token)
            if owners:
                return
            if _shared.get(self.sink.key) is self.sink:
                del _shared[self.sink.key]
        self.sink.close()


def share(path: _Path | None, directory: _Path | None, options: SinkOptions) -> Share:
    """A sink for a handler with these arguments. Raises what ``pmwal.open`` raises."""
    if (path is None) == (directory is None):
        raise TypeError("give either path, one log, or directory, in which each process gets a log of its own")
    if directory is None:
        assert path is not None
        if options.max_total is not None:
            raise ValueError("max_total limits the slots of a directory; a log at a path has its size, which never grows")
        return _joined(Sink(PathTarget(path), options), options)
    if not os.fsdecode(directory):
        raise FileNotFoundError(errno.ENOENT, "no directory was given", "")
    where = os.path.realpath(os.fsdecode(directory))
    make_directory(where)
    status = os.stat(where)
    key = status.st_dev, status.st_ino
    with _lock.held:
        sink = _shared.get(key)
        if sink is None:
            sink = Sink(SlotTarget(where), options, key)
            _shared[key] = sink
        share = _joined(sink, options)
    given = [each.name for each in fields(options) if each.name not in _OWN]
    different = [name for name in given if getattr(options, name) != getattr(sink.options, name)]
    if different:
        try:
            warn(
                f"{where}: this process logs there already, and keeps the options that it began with, although other values of "
                f"{', '.join(different)} were given; use the same for all handlers of one directory"
            )
        except BaseException:  # the program made an error of it
            share.release()
            raise
    return share


def _joined(sink: Sink, options: SinkOptions) -> Share:
    _all.add(sink)
    token = object()
    sink.owners.add(token)
    return Share(sink, options, token)


class SinkOwner:
    """The common part of everything that stores log records through a sink."""

    _share: Share
    _sink: Sink
    _sync_level: int

    def _join(self, path: _Path | None, directory: _Path | None, options: SinkOptions) -> None:
        """Open the log, or take part in a sink that this process has. Raises what ``share`` raises."""
        self._share = share(path, directory, options)
        self._sink = self._share.sink
        self._sync_level = options.sync_number

    @property
    def wal(self) -> Wal:
        """The open log, to read or follow the records."""
        return self._sink.wal

    def stats(self) -> SinkStats:
        """What became of the records, as counters that continue when the path is opened anew.

        ``errors`` also counts records that were stored shortened or not made durable as asked: see ``pmwal.records.SinkStats``.

        >>> import pmwal
        >>> handler = pmwal.LogHandler(path, size="1MiB")
        >>> handler.stats()
        SinkStats(written=0, overwritten=0, dropped=0, errors=0, queued=0, cut=0, reasons={}, reopened=0, lost=0)
        >>> handler.close()
        """
        return self._sink.stats()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: a configuration or a logger that is copied with all it refers to logs into the same log."""
        return self

    def __reduce__(self) -> NoReturn:
        refuse_pickle(self)


def refuse_pickle(thing: Any) -> NoReturn:
    """The ``__reduce__`` of everything that has a sink."""
    name = type(thing).__name__
    raise TypeError(
        f"a {name} cannot be sent to another process: a log has only one writer. Open a {name} there, with a path of its own; "
        "or send the records to the process of this one, for example through logging.handlers.QueueHandler"
    )


class _Lock:
    """A lock that a forked child finds free."""

    def __init__(self) -> None:
        self.held = threading.RLock()


_lock = _Lock()
_shared: weakref.WeakValueDictionary[tuple[int, int] | None, Sink] = weakref.WeakValueDictionary()
_all: weakref.WeakSet[Sink] = weakref.WeakSet()


def _begin_in_child() -> None:
    _lock.held = threading.RLock()
    for sink in list(_all):
        sink.forked()


os.register_at_fork(after_in_child=_begin_in_child)
