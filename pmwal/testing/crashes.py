"""Crash images of a program's own run: what users of pmwal test their replay with."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

from pmwal.opening import open_log
from pmwal.reading.walk import View, Walker, damaged
from pmwal.records import Record
from pmwal.testing.images import build, choices, half_stored, points
from pmwal.testing.power_cut import UNITS, PowerCutModel
from pmwal.testing.process import kill, scratch
from pmwal.testing.recorder import Recorder, Step
from pmwal.writing.engine import State
from pmwal.writing.wal import Wal


@dataclass(frozen=True)
class CrashImage:
    """One file that a crash may leave. ``kind`` is "cut" (power) or "kill" (process), ``step`` the number of steps before it.

    ``acknowledged`` are the records that were durable then and that no truncate or rollback under way may remove: the log that
    ``open`` recovers has each of them.
    """

    data: bytes
    kind: str
    step: int
    acknowledged: tuple[Record, ...]
    ordering: str

    @contextlib.contextmanager
    def open(self) -> Iterator[Wal]:
        """The log that recovery makes of this image, in a file of its own."""
        with tempfile.TemporaryDirectory(prefix="pmwal-image-", dir=scratch()) as name:
            path = Path(name) / "image.wal"
            self.save(path)
            wal = open_log(path, "r+", medium="file", ordering=self.ordering)
            assert isinstance(wal, Wal)
            with wal:
                yield wal

    def save(self, path: str | Path) -> None:
        """Write the image to a file."""
        Path(path).write_bytes(self.data)


class _Moment(NamedTuple):
    """The bounds that the writer's handle reports from this step on."""

    step: int
    state: State


def crash_images(
    run: Callable[[Wal], object],
    *,
    size: int | str = "16KiB",
    align: int | None = None,
    medium: str = "page",
    ordering: str = "auto",
    samples: int = 8,
    seed: int = 0,
) -> Iterator[CrashImage]:
    """Run a function on a new, empty log, and yield every distinct file that a crash during or after it may leave.

    ``medium``: "pmem" (64-byte lines, words of 8 bytes), "page" (a disk, pages of 4 KiB, sectors of 512 bytes), "folio-64k" or
    "folio-2m". ``samples``: images drawn by ``seed`` at each point, besides those that are always built. The others are those of
    ``pmwal.open``, which creates the log; the creation is not part of the run. An exception of the function is raised here.

    >>> from pmwal.testing import crash_images
    >>> def run(wal):
    ...     _ = wal.append(b"first")
    ...     _ = wal.extend([b"second", b"third"])
    >>> for image in crash_images(run, size="8KiB"):
    ...     with image.open() as wal:
    ...         records = list(wal)
    ...     assert records[: len(image.acknowledged)] == list(image.acknowledged)
    ...     assert len(records) in (0, 1, 3)
    """
    if medium not in UNITS:
        raise ValueError(f"medium must be one of {', '.join(map(repr, UNITS))}, not {medium!r}")
    recorder, moments = Recorder(), list[_Moment]()
    with tempfile.TemporaryDirectory(prefix="pmwal-run-", dir=scratch()) as name:
        path = Path(name) / "run.wal"
        mapped = "emulated-dax" if medium == "pmem" else "file"
        wal = open_log(path, "x", size=size, align=align, medium=mapped, ordering=ordering, seam=recorder)
        assert isinstance(wal, Wal)

        def note(_: Step | None) -> None:
            state = wal._engine.state
            if not moments or moments[-1].state != state:
                moments.append(_Moment(len(recorder.events), state))

        base = path.read_bytes()
        recorder.events.clear()
        recorder.before = note
        try:
            run(wal)
            if not wal.closed:
                note(None)
        finally:
            recorder.before = None
            kill(wal)
    moments = moments or [_Moment(0, wal._engine.state)]
    random, seen = Random(seed), set[tuple[int, int]]()
    actual = wal.stats().ordering
    for step, now, killed_in in points(PowerCutModel(medium, base), recorder.events):
        place = max((index for index, moment in enumerate(moments) if moment.step <= step), default=0)
        kind = "cut" if killed_in is None else "kill"
        drawn = (build(now, choice) for choice in choices(now, random, samples))
        for image in drawn if killed_in is None else half_stored(now, killed_in):
            if (image.digest, place) not in seen:
                seen.add((image.digest, place))
                yield CrashImage(image.data, kind, step, _acknowledged(wal, now, moments[place : place + 2]), actual)


def _acknowledged(wal: Wal, medium: PowerCutModel, moments: list[_Moment]) -> tuple[Record, ...]:
    """The records that are durable at this moment and still there at the next."""
    state, block = moments[0].state, wal._engine.block
    view = View(state.tail, state.durable, state.epoch, state.epoch_first_seq)
    first = max(moment.state.tail.next_seq for moment in moments)
    end = min(moment.state.durable.next_seq for moment in moments)
    cache = medium.cache
    walker = Walker(block, lambda offset, length: bytes(cache[offset : offset + length]), lambda at, _: damaged(block, at))
    return tuple(record for record in walker.walk(view, view.tail, end) if record.seq >= first)
