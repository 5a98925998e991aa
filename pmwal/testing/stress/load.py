"""Background load: threads that keep processors and the file system busy, so that others are preempted at unusual points."""

from __future__ import annotations

import os
import random
import threading
import time
import zlib
from pathlib import Path

_PIECE = 256 << 10
_FILE = 16 << 20


def _compute() -> None:
    data = random.Random(0).randbytes(_PIECE)
    while True:
        zlib.compress(data)  # releases the GIL meanwhile
        time.sleep(0.001)


def _write(path: Path) -> None:
    data = random.Random(0).randbytes(_PIECE)
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, _FILE)  # before a life fills the disk
        while True:
            for offset in range(0, _FILE, _PIECE):
                os.pwrite(file.fileno(), data, offset)
                os.fsync(file.fileno())
                time.sleep(0.005)


def burden(directory: Path, computing: int, writing: int) -> None:
    """The body of the process: this many threads of each kind."""
    threads = [threading.Thread(target=_compute, daemon=True) for _ in range(computing)]
    threads += [threading.Thread(target=_write, args=(directory / f"load-{number}",), daemon=True) for number in range(writing)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
