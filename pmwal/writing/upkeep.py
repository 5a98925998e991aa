"""What a handle does besides its calls, once a second while it is used: look at the log's name and size, move its file's time.

Invariants
----------
- It runs before a call that stores or commits, and holds no lock of the log. So an error that it raises means that the call did
  nothing.
- A call pays for it only when a second has passed since the last time. The native engine compares the time stamp of the record.
- The modification time is moved only where the kernel does not do it: on a disk msync(2) does, but a store into the mapping of a
  tmpfs or of persistent memory leaves it alone. Tools that copy files compare it to find what has changed.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import warnings

from pmwal.errors import UnlinkedWarning, WalUnlinked
from pmwal.storage.name import LogName
from pmwal.writing.engine import Engine

_SECOND_NS = 1_000_000_000
_TOUCH_NS = 60 * _SECOND_NS


class Upkeep:
    """The upkeep of one handle. ``on_unlinked``: "warn" once, or "raise" and refuse all later calls that store."""

    def __init__(self, path: str, engine: Engine, *, on_unlinked: str) -> None:
        self._path = path
        self._engine = engine
        self._raises = on_unlinked == "raise"
        self._named = engine.ring, LogName(engine.mapping.fd, path)  # with the ring, whose file stays open meanwhile
        self._named_seq = engine.state.head.next_seq
        self._said = threading.Lock()  # taken by whoever tells that the name was lost, and never released
        self._lost: str | None = None  # why no call stores any more
        self._ran_ns = self._touched_ns = time.monotonic_ns()
        self._touched_at = self._stored()
        self.touch()
        engine.note_upkeep()

    def run_if_due(self) -> None:
        """Do what is due. Raises ``WalUnlinked`` if the handle was opened to, and ``PersistError`` if the file was shortened."""
        if self._lost is not None:
            raise WalUnlinked(self._lost)
        now = time.monotonic_ns()
        if not self._engine.upkeep_due and now - self._ran_ns < _SECOND_NS:
            return
        self._ran_ns = now
        self._engine.note_upkeep()
        if now - self._touched_ns >= _TOUCH_NS and self._stored() != self._touched_at:
            self._touched_ns, self._touched_at = now, self._stored()
            self.touch()
        stored = self._engine.state.head.next_seq
        lost = self.lost()
        ring, _name = self._named
        ring.mapping.check_size()  # on memory no barrier does it
        if lost is None:
            self._named_seq = stored
        self.tell(lost)

    def moved(self) -> None:
        """The log's name leads to another file now, which the engine has."""
        _ring, name = self._named
        self._named = self._engine.ring, LogName(self._engine.mapping.fd, name.path)

    @property
    def path(self) -> str | None:
        """The log's path as it was at open, absolute and without symbolic links; None for a log that was opened without a name."""
        _ring, name = self._named
        return name.path if name.watched else None

    def lost(self) -> str | None:
        """What became of the log's name; None while the path leads to the log."""
        _ring, name = self._named
        return name.lost()

    def tell(self, lost: str | None) -> None:
        """Say once that the name is lost."""
        if lost is None or not self._said.acquire(blocking=False):
            return
        message = (
            f"{self._path}: {lost} while the log was open, so what this handle stores cannot be found there; "
            "close the handle and open the log again"
        )
        if not self._raises:
            warnings.warn(message, UnlinkedWarning, stacklevel=_frames_of_pmwal())
            return
        self._lost = message
        self._engine.halt()
        raise WalUnlinked(message)

    @property
    def seen_to(self) -> int:
        """The next record at the time when the file was last seen whole and under its name."""
        return self._named_seq

    @property
    def nameless_from(self) -> int | None:
        """If no name leads to the file any more, the first record that was stored after it was last seen to have one."""
        _ring, name = self._named
        return self._named_seq if name.removed else None

    @property
    def unlinked(self) -> bool:
        """Whether the path, looked up now, does not lead to the log any more."""
        return self._lost is not None or self.lost() is not None

    def touch(self) -> None:
        """Move the modification time, where stores do not."""
        ring, _name = self._named
        if not ring.mapping.on_disk:
            with contextlib.suppress(OSError):  # a read-only mount or an immutable file; the log itself needs no time
                self._engine.seam.touch(ring.mapping.fd)

    def _stored(self) -> tuple[int, int]:
        return self._engine.appends, self._engine.generation


def _frames_of_pmwal() -> int:
    """The level, for a warning of the caller, of the first frame that is not of this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "pmwal":
        level, frame = level + 1, frame.f_back
    return level
