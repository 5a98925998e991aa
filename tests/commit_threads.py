"""Threads that commit together over a preloaded msync(2), and what tests of them share."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from typing import Any

import pmwal
from callers import Call

THREADS = 8
ROUNDS = int(os.environ.get("PMWAL_TEST_ROUNDS", "1"))
DELAY = 0.002
PAYLOAD = struct.Struct("<QQ")  # thread, number: a record of 64 bytes, so that all lie end to end
RECORD = 64


def create(path: str, ordering: str = "strict", size: str = "1MiB", **options: Any) -> pmwal.Wal:
    """A log that is flushed by msync, wherever it lies."""
    wal = pmwal.open(path, size=size, medium="file", ordering=ordering, align=RECORD, **options)
    assert wal.stats().flush == "msync"
    return wal


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """Run each in a thread of its own, begun together; what they returned."""
    barrier = threading.Barrier(len(functions))

    def begin(function: Callable[[], Any]) -> Any:
        barrier.wait()
        return function()

    calls = [Call(lambda function=function: begin(function)) for function in functions]
    return [call.result() for call in calls]


def expected_fault(wal: pmwal.Wal, call: Callable[[], Any]) -> tuple[int | None, int] | None:
    """Errno and number of the PersistError that the call raises; None when it raises none."""
    try:
        call()
    except pmwal.PersistError as error:
        return error.errno, error.committed_seq
    return None


def batch_of(wal: pmwal.Wal, items: list[bytes]) -> tuple[int, int]:
    """Append in one batch."""
    with wal.batch() as batch:
        for item in items:
            batch.append(item)
    return batch.first, batch.last
