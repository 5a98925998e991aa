"""Archiving logs in tests, and reading the archives back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path

import pmwal
from pmwal.cli.archiving.archiver import Archiver, Rules, Written
from pmwal.storage.seam import SYSTEM, Seam

FORMATS = ("parquet", "jsonl.zst")

AWKWARD = [
    b"",
    b"plain",
    b"\xff\xfe\x00",
    b'{"level":"INFO","message":"paid","order":7,"price":1.50}',
    b'{"a":1,"a":2}',
    b'{ "data": "x" }',
    b"two\nlines",
    "\u2028 \x85 \x1b[31m".encode(),
    b"{",
    bytes(range(256)),
    b'{"event":"seq","seq":"taken","kind":null,"time":1e999}',
]
"""Payloads that a careless format would change."""


def rules(form: str = "parquet", size: int = 1 << 20, seconds: float = 1e12, **more: object) -> Rules:
    """What to archive and when."""
    return Rules(form, "archive", size, seconds, **more)  # type: ignore[arg-type]


def archive(*places: Path, to: Path, how: Rules | None = None, seam: Seam = SYSTEM, flush: bool = True) -> list[Written]:
    """Archive these logs once; the files that were written. An error of a log is raised."""
    with contextlib.closing(Archiver([str(place) for place in places], str(to), how or rules(), seam)) as archiver:
        done = [each for each in archiver.look(flush=flush) if isinstance(each, Written)]
        for error in archiver.problems.values():
            raise error
    return done


def as_rows(records: object) -> list[tuple[int, int, int, bytes]]:
    """What an archive must keep of records."""
    return [(record.seq, record.kind, record.time_ns, record.data) for record in records]  # type: ignore[attr-defined]


def kept(*places: Path) -> list[tuple[int, int, int, bytes]]:
    """All records of these places as one log; a problem or a gap fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pmwal.LogSet(places) as logs:
            rows = as_rows(logs)
            assert (logs.missed, dict(logs.problems)) == (0, {})
    return rows


def names(directory: Path) -> list[str]:
    """The archives in a directory, without those of other suffixes; and no unfinished file is left."""
    found = sorted(path.name for path in directory.iterdir())
    assert not [name for name in found if name.endswith(".part")]
    return [name for name in found if not name.startswith(".")]


def reader_of(*places: Path, use: Callable[[pmwal.Reader], object]) -> object:
    """What ``use`` makes of the reader of the one log that these places have."""
    with pmwal.LogSet(places) as logs:
        (reader,) = logs.logs.values()
        return use(reader)
