"""The mode of new logs: what was asked for, whatever the umask is."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

import pmwal
from loggers import SIZE

pytestmark = pytest.mark.both_engines


@pytest.mark.parametrize(("mode", "expected"), [(0o600, 0o600), (0o640, 0o640), ("0644", 0o644), ("660", 0o660)])
def test_new_log_has_the_mode_that_was_asked_for(mode: int | str, expected: int, shm_dir: Path) -> None:
    """The umask takes nothing away."""
    path = shm_dir / "app.wal"
    before = os.umask(0o077)
    try:
        pmwal.open(path, size=SIZE, file_mode=mode).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == expected


@pytest.mark.parametrize("mode", [0o400, 0o1600, -1, "9", "rw", "0o1000", 0])
def test_mode_with_which_nobody_could_write_is_refused(mode: int | str, shm_dir: Path) -> None:
    """And one that is no mode."""
    with pytest.raises(ValueError, match="file_mode must be"):
        pmwal.open(shm_dir / "app.wal", size=SIZE, file_mode=mode)
    assert os.listdir(shm_dir) == []


@pytest.mark.parametrize("mode", [True, 6.0, None])
def test_mode_of_another_type_is_refused(mode: Any, shm_dir: Path) -> None:
    """A bool is no number here either."""
    with pytest.raises(TypeError, match="file_mode must be"):
        pmwal.open(shm_dir / "app.wal", file_mode=mode)
