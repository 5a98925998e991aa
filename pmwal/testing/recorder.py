"""The recorder: a seam that notes every step of a log's writer, with everything around it fixed.

Invariants
----------
- A step is in ``events`` before it is taken, and an exception of ``before`` means that it was neither noted nor taken.
- Clock, uuid, process and boot are the same in every run, so equal histories leave equal bytes.
- It waits for no device: what a barrier is worth is decided by ``media``, from the events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pmwal.format.layout import CONTROL_SIZE_MIN
from pmwal.storage.seam import Seam

TIME_NS = 1_700_000_000_000_000_000
UUID = bytes(range(16))


class Event(NamedTuple):
    """One step: its name, and the bytes of the file that it concerns.

    Of the engine: "store", "stream", "write_back", "fence", "flush", "allocate", "write", "sync", "link", "replace",
    "unlink". Of the surroundings: "failed" is an msync that failed, "lied" one that failed and returned 0, "evict" a clean
    page that left the page cache and shows ``data`` when it is read again, "cut" a power cut that left ``data``.
    """

    name: str
    offset: int = 0
    length: int = 0
    data: bytes = b""


class Crash(BaseException):
    """The process ends here."""


class Recorder(Seam):
    """Notes each step in ``events``. ``before`` and ``after`` are called around it and may raise; ``on_clock`` at each look at
    the clock.

    >>> from pmwal.opening import open_log
    >>> recorder = Recorder()
    >>> wal = open_log(path, size="16KiB", medium="file", seam=recorder)
    >>> recorder.events.clear()
    >>> seq = wal.append(b"payload")
    >>> [event.name for event in recorder.events if event.offset >= 8192]
    ['store', 'flush']
    >>> wal.close()
    """

    control_size = CONTROL_SIZE_MIN

    def __init__(self, uuid: bytes = UUID) -> None:
        self.events: list[Event] = []
        self.before: Callable[[Event], None] | None = None
        self.after: Callable[[Event], None] | None = None
        self.on_clock: Callable[[], None] | None = None
        self._uuid = uuid

    def note(self, event: Event) -> None:
        """Take a step that changes nothing but the record."""
        if self.before is not None:
            self.before(event)
        self.events.append(event)
        if self.after is not None:
            self.after(event)

    def now_ns(self) -> int:
        """Always the same time."""
        if self.on_clock is not None:
            self.on_clock()
        return TIME_NS

    def new_uuid(self) -> bytes:
        """The uuid of this recorder."""
        return self._uuid

    def pid(self) -> int:
        """The id of no process: nobody takes the recorded writer for alive."""
        return 0

    def boot_id(self) -> bytes:
        """A boot of no machine."""
        return b"pmwal.testing..."

    def store(self, mapping: Any, offset: int, data: bytes) -> None:
        """Store, and note it."""
        event = Event("store", offset, len(data), bytes(data))
        if self.before is not None:
            self.before(event)
        self.events.append(event)
        super().store(mapping, offset, data)
        if self.after is not None:
            self.after(event)

    def stream(self, mapping: Any, offset: int, data: bytes) -> None:
        """Store by way of the cache, and note that it went past it."""
        event = Event("stream", offset, len(data), bytes(data))
        if self.before is not None:
            self.before(event)
        self.events.append(event)
        super().store(mapping, offset, data)
        if self.after is not None:
            self.after(event)

    def flush(self, mapping: Any, offset: int, length: int) -> None:
        """Note an msync."""
        self.note(Event("flush", offset, length))

    def write_back(self, mapping: Any, offset: int, length: int) -> None:
        """Note that these bytes are being written back."""
        self.note(Event("write_back", offset, length))

    def fence(self) -> None:
        """Note a fence."""
        self.note(Event("fence"))

    def allocate(self, fd: int, size: int) -> None:
        """Give the file its size, and note it."""
        self.note(Event("allocate", 0, size))
        super().allocate(fd, size)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Write to the file, and note it."""
        self.note(Event("write", offset, len(data), bytes(data)))
        super().write(fd, data, offset)

    def sync_file(self, fd: int) -> None:
        """Note an fsync of the file or of a directory."""
        self.note(Event("sync"))

    def link(self, source: str, target: str, directory_fd: int) -> None:
        """Give the file a name, and note it."""
        self.note(Event("link"))
        super().link(source, target, directory_fd)

    def replace(self, source: str, target: str, directory_fd: int) -> None:
        """Rename, and note it."""
        self.note(Event("replace"))
        super().replace(source, target, directory_fd)

    def unlink(self, name: str, directory_fd: int) -> None:
        """Remove a name, and note it."""
        self.note(Event("unlink"))
        super().unlink(name, directory_fd)
