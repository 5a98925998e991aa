"""Where a sink stores: in the log at a path, or in a slot of a directory. It opens the log, at first and anew.

Invariants
----------
- What a program's start or a logging call opens here is a log that can be written to, where that is possible: a corrupt one is set
  aside, an empty file replaced, and one of another size is taken as it is.
- A target that is ``renewable`` gives each process a log of its own, so a forked child can open one.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Protocol

from pmwal.errors import CorruptWal, FormatError, WalLocked
from pmwal.logs.options import SinkOptions
from pmwal.logs.reports import warn
from pmwal.logs.set_aside import is_empty, make_way, replace_empty
from pmwal.opening import open_with
from pmwal.opening.files import Made, map_for_reading
from pmwal.storage.seam import SYSTEM
from pmwal.writing.wal import Wal

PID_FIELD = "{pid}"

_TRIES = 4  # opens of a log that is corrupt, empty or of another size, again


class Target(Protocol):
    """Opens logs for one sink."""

    @property
    def renewable(self) -> bool:
        """Whether a forked child can have a log of its own."""

    @property
    def directory(self) -> str | None:
        """The directory whose slots this takes; None for a path."""

    def open(self, options: SinkOptions) -> Wal:
        """The log of this process. Raises what ``pmwal.open`` raises."""

    def forked(self) -> None:
        """In a forked child, which has no log yet."""

    def close(self) -> None:
        """The sink has closed its log. Idempotent."""


class PathTarget:
    """One path, in which ``{pid}`` becomes the process id."""

    directory = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fsdecode(path)

    @property
    def renewable(self) -> bool:
        """Whether a forked child can have a log of its own."""
        return PID_FIELD in self._path

    def open(self, options: SinkOptions) -> Wal:
        """The log at the path. Raises what ``pmwal.open`` raises."""
        pid = os.getpid()
        path = self._path.replace(PID_FIELD, str(pid))
        try:
            return open_for_lines(path, options)
        except WalLocked as error:
            who = "another process" if error.pid is None else "this process" if error.pid == pid else f"process {error.pid}"
            raise WalLocked(f"{path}: {who} has it open, and a log has only one writer; {advice(path)}", error.pid) from None

    def forked(self) -> None:
        """Nothing was inherited."""

    def close(self) -> None:
        """Nothing else is open."""


def open_for_lines(path: str, options: SinkOptions, made: Made | None = None) -> Wal:
    """Open a log; with the size that it has, or after a corrupt one was set aside: an application must be able to start.

    ``made``: see ``open_with``.
    """
    asked = options
    for last in (False,) * (_TRIES - 1) + (True,):
        first, made = made, None
        try:
            wal = open_with(path, asked, made=first)
        except CorruptWal as error:
            if last or options.on_corrupt == "raise":
                raise
            make_way(path, error, follow=options.follows_links)
            asked = options
        except FormatError:
            if last or not is_empty(path):
                raise
            replace_empty(path, options)
            asked = options
        except ValueError:
            if last or not _has_other_size(path, asked):
                raise
            asked = replace(options, size=None)
        else:
            break
    assert isinstance(wal, Wal)
    if options.capacity not in (None, wal.capacity):
        try:
            warn(
                f"{path}: it exists with a size of {wal.capacity} bytes and keeps it, although size={options.size!r} was given; "
                "leave size out, or give the log a new name"
            )
        except BaseException:  # the program made an error of it
            wal.close()
            raise
    return wal


def _has_other_size(path: str, options: SinkOptions) -> bool:
    if options.size is None:
        return False
    mapping, identity = map_for_reading(path, "auto", SYSTEM)
    mapping.close()
    return identity.block.capacity != options.capacity


def advice(path: str) -> str:
    """What to do when two processes want one log."""
    stem, suffix = os.path.splitext(path)
    return f'give each process a path of its own, for example "{stem}-{PID_FIELD}{suffix}": {PID_FIELD} becomes the process id'
