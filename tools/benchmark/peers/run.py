"""One peer, one workload, one round, in a process of its own.

Each peer has a new interpreter and environment: libpmemlog reads its environment once, threads and caches of one peer must not
affect the next, and a peer that crashes is reported while the run continues. pmwal is measured in exactly the same way.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmark import child
from benchmark.peers import PEERS
from benchmark.peers.base import DURABLE_EXTEND, FRAME, READ, payload_of
from pmwal.testing.bench.stats import Times

BATCH = 1000
_TIMEOUT = 3600
_WARM_UP = 0.1  # untimed calls, as a share of the timed ones


class Round(NamedTuple):
    """Nanoseconds in total and of each call, and the number of records."""

    total: int
    records: int
    each: Times


class PeerFailed(Exception):
    """The child failed; the message is its last line."""


def measure(name: str, workload: str, directory: Path, count: int, size: int = 128) -> Round:
    """Run a child for ``count`` calls (records, for ``read``) with payloads of ``size`` bytes."""
    peer = PEERS[name]
    with tempfile.TemporaryDirectory(prefix="pmwal-peer-", dir=directory) as inner:
        task = {"name": name, "workload": workload, "directory": inner, "count": count, "size": size}
        command, environment = child.command("peers.run", json.dumps(task)), child.environment(peer.environment.get(workload))
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise PeerFailed(f"{name}, {workload}: not done after {_TIMEOUT} s") from error
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise PeerFailed(f"{name}, {workload}: {lines[-1]}")
        total, records = json.loads(done.stdout.strip().splitlines()[-1])
        return Round(total, records, np.load(Path(inner) / "each.npy"))


def run(name: str, workload: str, directory: Path, count: int, size: int) -> Round:
    """The child: open the peer, warm up, time its calls."""
    payload = payload_of(size)
    warm = max(1, int(count * _WARM_UP))
    records = (count + warm) * (BATCH if workload == DURABLE_EXTEND else 1) + BATCH
    session = PEERS[name].open(directory, workload, records * (size + FRAME))
    try:
        if workload == READ:
            for start in range(0, count, BATCH):
                session.extend([payload] * min(BATCH, count - start))
            return _read(session.read, count)
        if workload == DURABLE_EXTEND:
            items = [payload] * BATCH
            for _ in range(warm):
                session.extend(items)
            return _time(session.extend, items, count, BATCH)
        for _ in range(warm):
            session.append(payload)
        return _time(session.append, payload, count, 1)
    finally:
        session.close()


def _time(call: object, argument: object, count: int, records: int) -> Round:
    assert callable(call)
    clock = time.perf_counter_ns
    each = [0] * count
    begin = clock()
    for number in range(count):
        start = clock()
        call(argument)
        each[number] = clock() - start
    total = clock() - begin
    return Round(total, count * records, np.array(each, dtype=np.int64))


def _read(read: object, count: int) -> Round:
    """One pass to warm up, then a timed one."""
    assert callable(read)
    for timed in (False, True):
        found = 0
        begin = time.perf_counter_ns()
        for _ in read():
            found += 1
        total = time.perf_counter_ns() - begin
        if found != count:
            raise RuntimeError(f"{found} records came back instead of {count}")
        if timed:
            break
    return Round(total, count, np.array([total], dtype=np.int64))


def main(arguments: Sequence[str]) -> None:
    """The child's entry: takes a task as JSON; prints one line and writes each.npy in its directory."""
    task = json.loads(arguments[0])
    directory = Path(task["directory"])
    work = directory / "work"
    work.mkdir()
    result = run(task["name"], task["workload"], work, task["count"], task["size"])
    np.save(directory / "each.npy", result.each)
    print(json.dumps([result.total, result.records]))


if __name__ == "__main__":
    main(sys.argv[1:])
