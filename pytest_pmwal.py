"""The pytest plugin of pmwal: fixtures for tests of programs that keep their data in a log.

pytest loads it in every run where pmwal is installed. So it lies outside the package, which would be imported with it, and imports
pmwal only when a fixture is used.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pmwal.testing import CrashLog

_SHM = "/dev/shm"


@pytest.fixture
def pmwal_path(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A path for a new log, on tmpfs where there is one (``/dev/shm``), else in ``tmp_path``; removed after the test."""
    if not os.access(_SHM, os.W_OK | os.X_OK):
        yield request.getfixturevalue("tmp_path") / "test.wal"
        return
    directory = Path(tempfile.mkdtemp(prefix="pmwal-", dir=_SHM))
    yield directory / "test.wal"
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def pmwal_crash(pmwal_path: Path) -> Iterator[Callable[..., CrashLog]]:
    """Makes logs that crash on command: ``pmwal_crash(size="16KiB", commit="manual")`` is a ``pmwal.testing.CrashLog``.

    Its ``wal`` is the log; ``unflushed`` what a power cut may lose now; ``reopen(lose=...)`` the log that is found afterwards. It
    takes the options of ``pmwal.open``, and as ``medium`` "page" (the default), "pmem", "folio-64k" or "folio-2m".
    """
    from pmwal.testing import CrashLog  # noqa: PLC0415  (see above)

    logs: list[CrashLog] = []

    def make(**options: object) -> CrashLog:
        logs.append(CrashLog(pmwal_path.with_name(f"crash-{len(logs)}.wal"), **options))  # type: ignore[arg-type]
        return logs[-1]

    yield make
    for log in logs:
        log.close()
