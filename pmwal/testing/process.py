"""Where logs under test lie, which engine opens them, and how their writers die."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pmwal.writing.wal import Wal


def kill(wal: Wal) -> None:
    """End a writer as SIGKILL would: nothing more is stored, the page cache stays, the lock is released."""
    if not wal.closed:
        wal._access.closed = True
        wal._engine.halt()
        wal._engine.mapping.close()
        wal._writer_lock.release()


@lru_cache(maxsize=1)
def scratch() -> Path:
    """A directory on tmpfs, where an open is cheap and cache lines can be flushed; else the temporary directory."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() else Path(os.environ.get("TMPDIR", "/tmp"))


@contextlib.contextmanager
def using_engine(name: str) -> Iterator[None]:
    """Every open while the block runs gets this engine, in child processes too."""
    before = os.environ.get("PMWAL_ENGINE")
    os.environ["PMWAL_ENGINE"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["PMWAL_ENGINE"]
        else:
            os.environ["PMWAL_ENGINE"] = before
