"""The recorder: a seam that notes every step of a log's writer, with everything around it fixed.

Invariants
----------
- A step is in ``events`` before it is taken. If ``before`` raises, the step is neither noted nor taken.
- Clock, uuid, process and boot are the same in every run, so equal histories leave equal bytes.
- It waits for no device: ``PowerCutModel`` decides from the steps what a barrier is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pmwal.format.layout import CONTROL_SIZE_MIN
from pmwal.storage.seam import Seam

TIME_NS = 1_700_000_000_000_000_000
UUID = bytes(range(16))


class Step(NamedTuple):
    """One step: its name, and the bytes of the file that it concerns.

    The engine takes "store", "stream", "write_back", "fence", "flush", "allocate", "write", "sync", "link", "rename", "replace"
    and "unlink". The surroundings add "failed", an msync that failed; "lied", one that failed and returned 0; "evict", a clean page
    that left the page cache and shows ``data`` when it is read again; and "cut", a power cut that left ``data``.
    """

    name: str
    offset: int = 0
    length: int = 0
    data: bytes = b""


Event = Step  # the name in pickles of 0.1


class Crash(BaseException):
    """Raise it in ``Recorder.before`` or ``after``: the process ends here."""


class Recorder(Seam):
    """Notes each ``Step`` in ``events``.

    ``before`` and ``after`` are called around each step and may raise, to refuse it or to end the process there. The wall clock
    shows ``time_ns`` and then moves by ``tick_ns``; ``on_clock`` is called at each look at it. ``stores`` is "stream" or
    "write-back".

    >>> import pmwal
    >>> from pmwal.testing import Recorder
    >>> pmwal.open(path, size="16KiB").close()
    >>> recorder = Recorder()
    >>> report = pmwal.copy(path, f"{path}.copy", seam=recorder)
    >>> recorder.events[0].name, recorder.events[-1].name      # the space for the copy, and its name made durable
    ('allocate', 'sync')
    """

    control_size = CONTROL_SIZE_MIN

    def __init__(
        self, uuid: bytes = UUID, *, before: Callable[[Step], None] | None = None, tick_ns: int = 0, stores: str = ""
    ) -> None:
        self.events: list[Step] = []
        self.before = before
        self.after: Callable[[Step], None] | None = None
        self.on_clock: Callable[[], None] | None = None
        self.uuid = uuid
        self.time_ns = TIME_NS
        self.tick_ns = tick_ns
        self._stores = stores

    def note(self, step: Step) -> None:
        """Take a step of which nothing but the note remains."""
        self._begin(step)
        self._end(step)

    def _begin(self, step: Step) -> None:
        if self.before is not None:
            self.before(step)
        self.events.append(step)

    def _end(self, step: Step) -> None:
        if self.after is not None:
            self.after(step)

    def now_ns(self) -> int:
        """``time_ns``, moved by ``tick_ns`` first."""
        if self.on_clock is not None:
            self.on_clock()
        self.time_ns += self.tick_ns
        return self.time_ns

    def new_uuid(self) -> bytes:
        """The uuid of this recorder."""
        return self.uuid

    def pid(self) -> int:
        """No process has this id, so the recorded writer never counts as alive."""
        return 0

    def boot_id(self) -> bytes:
        """A boot of no machine."""
        return b"pmwal.testing..."

    def stores(self) -> str:
        """The way to store to cache lines that was demanded here, else by PMWAL_STORES, else "write-back": it is never measured."""
        return self._stores or super().stores() or "write-back"

    def store(self, mapping: Any, offset: int, data: bytes) -> None:
        """Store, and note it."""
        self._store(Step("store", offset, len(data), bytes(data)), mapping)

    def stream(self, mapping: Any, offset: int, data: bytes) -> None:
        """Store through the cache, and note that it went past it."""
        self._store(Step("stream", offset, len(data), bytes(data)), mapping)

    def _store(self, step: Step, mapping: Any) -> None:
        self._begin(step)
        super().store(mapping, step.offset, step.data)
        self._end(step)

    def flush(self, mapping: Any, offset: int, length: int) -> None:
        """Note an msync."""
        self.note(Step("flush", offset, length))

    def write_back(self, mapping: Any, offset: int, length: int) -> None:
        """Note that the write-back of these bytes begins."""
        self.note(Step("write_back", offset, length))

    def fence(self) -> None:
        """Note a fence."""
        self.note(Step("fence"))

    def allocate(self, fd: int, size: int) -> None:
        """Give the file its size, and note it."""
        self.note(Step("allocate", 0, size))
        super().allocate(fd, size)

    def zero(self, fd: int, size: int) -> bool:
        """The device cannot: so the steps are the same on every disk."""
        return False

    def begin_writing(self, fd: int, offset: int, length: int) -> None:
        """Not a step: what was written may reach the disk at any time."""

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Write to the file, and note it."""
        self.note(Step("write", offset, len(data), bytes(data)))
        super().write(fd, data, offset)

    def sync_file(self, fd: int) -> None:
        """Note an fsync of the file or of a directory."""
        self.note(Step("sync"))

    def sync_data(self, fd: int) -> None:
        """Note an fdatasync of a consumer's position, which is no step of the log's file."""
        self.note(Step("sync position"))

    def link(self, source: str, target: str, directory_fd: int) -> None:
        """Give the file a name, and note it."""
        self.note(Step("link"))
        super().link(source, target, directory_fd)

    def rename_new(self, source: str, target: str, directory_fd: int) -> None:
        """Give the file its name by a rename, and note it."""
        self.note(Step("rename"))
        super().rename_new(source, target, directory_fd)

    def replace(self, source: str, target: str, directory_fd: int) -> None:
        """Rename, and note it."""
        self.note(Step("replace"))
        super().replace(source, target, directory_fd)

    def unlink(self, name: str, directory_fd: int) -> None:
        """Remove a name, and note it."""
        self.note(Step("unlink"))
        super().unlink(name, directory_fd)
