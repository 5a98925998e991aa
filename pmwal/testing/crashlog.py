"""A log that crashes on command. The test chooses which of the unflushed pieces the crash loses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from pmwal.opening import open_log
from pmwal.testing.images import EXHAUSTIVE_MAX, Choice, build
from pmwal.testing.power_cut import UNITS, PowerCutModel
from pmwal.testing.recorder import Recorder
from pmwal.writing.wal import Wal


class Piece(NamedTuple):
    """A line or page of the medium with unflushed bytes: its place in the file."""

    offset: int
    length: int


class CrashLog:
    """A new log, in ``wal``, and what a crash between two calls on it may leave.

    ``medium``: "pmem" (pieces of 64 bytes; needs a path on tmpfs), "page" (4 KiB), "folio-64k" or "folio-2m". The other options are
    those of ``pmwal.open``. A lost piece reverts to what was last flushed of it. For crashes inside a call and torn pieces, see
    ``crash_images``.

    >>> from pmwal.testing import CrashLog
    >>> with CrashLog(path, size="16KiB", commit="manual") as log:
    ...     _ = log.wal.append(b"flushed")
    ...     _ = log.wal.commit()
    ...     _ = log.wal.append(b"pending")
    ...     for lost in ((), log.unflushed):
    ...         with log.reopen(lost) as wal:
    ...             [record.data for record in wal]
    [b'flushed', b'pending']
    [b'flushed']
    """

    def __init__(self, path: str | Path, *, medium: str = "page", size: int | str = "64KiB", **options: Any) -> None:
        if medium not in UNITS:
            raise ValueError(f"medium must be one of {', '.join(map(repr, UNITS))}, not {medium!r}")
        self._path = Path(path)
        self._recorder = Recorder()
        mapped = "emulated-dax" if medium == "pmem" else "file"
        wal = open_log(self._path, "x", size=size, medium=mapped, seam=self._recorder, **options)
        assert isinstance(wal, Wal)
        self.wal = wal
        """The log under test."""
        self._ordering = wal.stats().ordering
        self._recorder.events.clear()  # what creation stored is durable when it returns
        self._medium = PowerCutModel(medium, self._path.read_bytes())
        self._reopened = 0

    @property
    def unflushed(self) -> tuple[Piece, ...]:
        """The pieces that a power cut now may lose, in the order of their first stores."""
        return tuple(self._newest())

    def _newest(self) -> dict[Piece, Choice]:
        """Each piece with unflushed stores, and the choice that keeps it."""
        events = self._recorder.events
        while events:
            self._medium.take(events.pop(0))
        size, newest = self._medium.size, self._medium.newest()
        return {Piece(unit * size, len(version.data)): {unit: version} for unit, version in newest.items()}

    def subsets(self) -> Iterator[tuple[Piece, ...]]:
        """What a power cut now may lose: every subset of up to 6 pieces; of more, none, all, each alone, all but each."""
        pieces = self.unflushed
        count = len(pieces)
        counts = range(count + 1) if count <= EXHAUSTIVE_MAX else (0, 1, count - 1, count)
        for lost in counts:
            yield from combinations(pieces, lost)

    @contextlib.contextmanager
    def reopen(self, lose: Iterable[Piece] | None = None) -> Iterator[Wal]:
        """The log that recovery makes of the file after a crash now, in a file of its own; ``wal`` stays open.

        ``lose``: some of ``unflushed``; None for all of them, the worst power cut; ``()`` for none, as after SIGKILL.
        ``ValueError`` for a piece without unflushed bytes; raises ``CorruptWal`` when recovery refuses the file.
        """
        pieces = self._newest()
        lost = set(pieces) if lose is None else set(lose)
        if not lost <= set(pieces):
            raise ValueError(f"{sorted(lost - set(pieces))} hold nothing unflushed; choose from {list(pieces)}")
        kept: Choice = {}
        for piece in set(pieces) - lost:
            kept |= pieces[piece]
        self._reopened += 1
        path = self._path.with_name(f"{self._path.name}.crash-{self._reopened}")
        path.write_bytes(build(self._medium, kept).data)
        try:
            wal = open_log(path, "r+", medium="file", ordering=self._ordering)
            assert isinstance(wal, Wal)
            with wal:
                yield wal
        finally:
            path.unlink()

    def close(self) -> None:
        """Close the log under test. Idempotent."""
        self.wal.close()

    def __enter__(self) -> CrashLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
