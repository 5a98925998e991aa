"""Broken steps: barriers that are missing, too early, or too short.

Patches ``Recorder`` (flush, stream, write_back, fence, sync_file) and ``Mapping._flush``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pmwal.format.layout import CONTROL_OFFSET, CONTROL_SIZE_MIN, PAGE
from pmwal.storage.mapping import Mapping
from pmwal.testing.recorder import Recorder

RING_OFFSET = CONTROL_OFFSET + CONTROL_SIZE_MIN + PAGE


class Patch(NamedTuple):
    """One attribute of the code that ships, and its replacement."""

    target: Any
    name: str
    value: Any


def shipped(target: Any, name: str) -> Any:
    """The attribute of the code that ships."""
    return vars(target)[name]


def of_records(offset: int) -> bool:
    """Whether a step concerns the ring."""
    return offset >= RING_OFFSET


def of_slots(offset: int) -> bool:
    """Whether a step concerns the control region."""
    return CONTROL_OFFSET <= offset < CONTROL_OFFSET + CONTROL_SIZE_MIN


def drop(step: str, where: Callable[[int], bool]) -> list[Patch]:
    """Leave out this step where it concerns these bytes."""
    original = shipped(Recorder, step)

    def dropped(self: Recorder, mapping: Any, offset: int, length: int) -> None:
        if not where(offset):
            original(self, mapping, offset, length)

    return [Patch(Recorder, step, dropped)]


def cache_streams(where: Callable[[int], bool]) -> list[Patch]:
    """Store into the cache what concerns these bytes and ought to go past it."""
    original = shipped(Recorder, "stream")

    def stream(self: Recorder, mapping: Any, offset: int, data: bytes) -> None:
        (self.store if where(offset) else original.__get__(self))(mapping, offset, data)

    return [Patch(Recorder, "stream", stream)]


def drop_fences(*, second: bool = False) -> list[Patch]:
    """Leave out every fence, or every second one."""
    original, count = Recorder.fence, 0

    def fence(self: Recorder) -> None:
        nonlocal count
        count += 1
        if second and count % 2:
            original(self)

    return [Patch(Recorder, "fence", fence)]


def write_back_after_fence() -> list[Patch]:
    """Begin to write lines back only after the fence."""
    late: list[tuple[Any, int, int]] = []
    fence, write_back = Recorder.fence, Recorder.write_back

    def fence_first(self: Recorder) -> None:
        fence(self)
        for mapping, offset, length in late:
            write_back(self, mapping, offset, length)
        late.clear()

    return [
        Patch(Recorder, "fence", fence_first),
        Patch(Recorder, "write_back", lambda self, mapping, offset, length: late.append((mapping, offset, length))),
    ]


def round_down(step: str, unit: int) -> list[Patch]:
    """Leave out the last unit of a range."""
    original = shipped(Recorder, step)

    def rounded(self: Recorder, mapping: Any, offset: int, length: int) -> None:
        end = (offset + length - 1) // unit * unit
        if end > offset:
            original(self, mapping, offset, end - offset)

    return [Patch(Recorder, step, rounded)]


def drop_sync(which: int) -> list[Patch]:
    """Leave out one sync of a creation: 0 of the file, 1 of the directory."""
    original, count = Recorder.sync_file, -1

    def sync_file(self: Recorder, fd: int) -> None:
        nonlocal count
        count += 1
        if count != which and count < 2:
            original(self, fd)

    return [Patch(Recorder, "sync_file", sync_file)]


def ignore_failed_flush() -> list[Patch]:
    """Treat a failed msync as a good one."""
    original = Mapping._flush

    def swallow(self: Mapping, offset: int, length: int) -> None:
        try:
            original(self, offset, length)
        except OSError:
            return

    return [Patch(Mapping, "_flush", swallow)]
