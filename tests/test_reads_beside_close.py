"""A log that another thread closes while a call reads from it: the call says so, and nothing is said about the medium."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from conftest import Place
from pmwal.storage.mapping import Mapping

pytestmark = pytest.mark.both_engines

READS: dict[str, Callable[[Any], object]] = {
    "a record": lambda log: log[3],
    "all records": lambda log: list(log.read()),
    "some records": lambda log: list(log.read(start=4)),
}


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("mode", ["r+", "r"])
def test_read_that_meets_a_close_raises_wal_closed(place: Place, mode: str, reads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The close comes at each of its looks at the file, in turn."""
    with pmwal.open(place.path, size="64KiB", **place.options) as wal:
        wal.extend([bytes(2000)] * 10)
    check_size, looks = Mapping.check_size, 0
    for close_at in range(1, 100):
        log: Any = pmwal.open(place.path, mode)
        looks = 0

        def look(self: Mapping, log: Any = log, close_at: int = close_at) -> None:
            nonlocal looks
            looks += 1
            if looks == close_at:
                log.close()
            check_size(self)

        with monkeypatch.context() as patch:
            patch.setattr(Mapping, "check_size", look)
            try:
                READS[reads](log)
            except pmwal.WalClosed:
                assert looks >= close_at
            else:
                assert looks < close_at or log.closed
        log.close()
        if looks < close_at:
            break
    assert looks < 99


def test_log_beside_which_a_read_was_closed_is_sound(tmp_path: Path) -> None:
    """The close was a clean one."""
    path = tmp_path / "log"
    wal = pmwal.open(path, size="64KiB")
    wal.append(b"kept")
    fd = wal._engine.mapping.fd
    iterator = wal.read()
    wal.close()
    with pytest.raises(pmwal.WalClosed):
        next(iterator)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert pmwal.verify(path).case == "R1"
