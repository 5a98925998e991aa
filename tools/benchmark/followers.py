"""Following across processes: one process appends, another runs ``for rec in reader.follow()``.

Both read CLOCK_MONOTONIC, which all processes of a machine share. The writer pauses between two appends until the follower sleeps
again. A record can be delivered before ``append`` has returned; that time is negative.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

import pmwal
from benchmark import child
from pmwal.testing.bench.stats import Times

PAUSE = 0.004
"""Seconds between two appends."""
_TIMEOUT = 600


class Deliveries(NamedTuple):
    """Nanoseconds from the call of ``append``, and from its return, until the follower had the record.

    ``idle_share``: the share of a processor that the follower used while nothing was appended.
    """

    from_call: Times
    from_return: Times
    idle_share: float


def measure(
    wal: pmwal.Wal, payload: bytes, *, rounds: int, each_round: int, idle: float, before_round: Callable[[], None]
) -> Deliveries:
    """Append records and collect when the follower had each; then append nothing for ``idle`` seconds. Closes the log."""
    stamps: list[tuple[int, int]] = []
    with _follower(wal.path) as process:
        assert process.stdout is not None
        wal.append(payload)
        if not process.stdout.readline():
            raise RuntimeError("the follower ended before the first record")
        for _ in range(rounds):
            before_round()
            for _ in range(each_round):
                time.sleep(PAUSE)
                called = time.perf_counter_ns()
                wal.append(payload)
                stamps.append((called, time.perf_counter_ns()))
        share = _idle_share(process.pid, idle)
        wal.close()  # ends the follower
        delivered = np.array(json.loads(process.communicate(timeout=_TIMEOUT)[0]), dtype=np.int64)
    called, returned = np.array(stamps, dtype=np.int64).T
    return Deliveries(delivered - called, delivered - returned, share)


@contextlib.contextmanager
def _follower(path: str) -> Iterator[subprocess.Popen[str]]:
    command, environment = child.command("followers", os.path.abspath(path)), child.environment()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _idle_share(pid: int, seconds: float) -> float:
    before, begin = _processor_ns(pid), time.perf_counter_ns()
    time.sleep(seconds)
    return (_processor_ns(pid) - before) / (time.perf_counter_ns() - begin)


def _processor_ns(pid: int) -> int:
    """Processor time of a process, to the nanosecond (/proc/PID/stat counts ticks of 10 ms)."""
    clock = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise OSError(error, os.strerror(error))
    return time.clock_gettime_ns(clock.value)


def main(arguments: Sequence[str]) -> None:
    """The child: report the first record, and at the end the times of all others, as JSON."""
    (path,) = arguments
    with pmwal.open(path, "r") as reader:
        records = reader.follow()
        next(records)
        print("following", flush=True)
        print(json.dumps([time.perf_counter_ns() for _ in records]))


if __name__ == "__main__":
    main(sys.argv[1:])
