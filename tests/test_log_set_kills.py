"""Log sets of processes that are killed and begun anew, while a follower merges what they log."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections import defaultdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import pmwal
from loggers import SIZE, logger_of
from processes import PATIENCE, child

pytestmark = pytest.mark.both_engines

DIRECTORIES = pytest.mark.parametrize("where", ["tmpfs", "disk"])

RECORDS = 100_000


def worker(pipe: Connection, directory: Path, name: str) -> None:
    """Log until killed; tell from time to time how many lines were logged."""
    handler = pmwal.LogHandler(directory=directory, size="16MiB", commit=0.05)
    logger = logger_of(handler)
    for number in itertools.count(1):
        logger.info("%s %d", name, number)
        if number % 50 == 0:
            pipe.send(number)
            time.sleep(0.002)


def check_merge(directory: Path, logs: pmwal.LogSet, got: list[Any], acknowledged: dict[str, int]) -> None:
    """Every line that was logged is there once and in order, in as many files as processes, and what came late was counted."""
    lines: dict[str, list[int]] = defaultdict(list)
    for record in got:
        name, number = record.data.decode().split()
        lines[name].append(int(number))
    assert {name: numbers for name, numbers in lines.items() if numbers != list(range(1, len(numbers) + 1))} == {}
    assert {name: count for name, count in acknowledged.items() if len(lines[name]) < count} == {}
    assert len([name for name in os.listdir(directory) if name != "end.wal"]) <= 8
    assert len(got) > RECORDS
    inversions = sum(after.time_ns < before.time_ns for before, after in itertools.pairwise(got))
    assert inversions <= logs.late
    assert logs.missed == 0
    assert sorted((Path(record.log).stem, record.seq) for record in logs) == sorted(
        {(Path(record.log).stem, record.seq) for record in got}
    )


@pytest.mark.slow
@DIRECTORIES
def test_set_of_processes_that_are_killed_has_no_hole_no_duplicate_and_counts_what_is_late(
    where: str, shm_dir: Path, tmp_path: Path
) -> None:
    """Eight processes at a time, twenty of them killed, while a follower merges: every line that was logged, once, in order."""
    directory = (shm_dir if where == "tmpfs" else tmp_path) / "logs"
    directory.mkdir()
    acknowledged: dict[str, int] = {}
    got: list[Any] = []
    with pmwal.LogSet(directory) as logs:

        def follow() -> None:
            records = logs.follow(wait=PATIENCE, timeout=PATIENCE)
            for record in records:
                got.append(record)
                if record.data == b"end 1":
                    break
            start = logs.cursor
            got.extend(logs.follow(start=start, timeout=0))

        thread = threading.Thread(target=follow)
        thread.start()
        rng, started = random.Random(5), itertools.count()
        running: list[Any] = []

        def start() -> None:
            name = f"w{next(started):02d}"
            context = child(worker, directory, name)
            running.append((name, context, context.__enter__()))

        def collect() -> None:
            for name, _, one in running:
                while one.heard():
                    try:
                        acknowledged[name] = one.hear()
                    except Exception:
                        break

        for _ in range(8):
            start()
        deadline = time.monotonic() + PATIENCE
        kills = 0
        while kills < 20 or sum(acknowledged.values()) < RECORDS:
            assert time.monotonic() < deadline
            time.sleep(rng.uniform(0.05, 0.2))
            collect()
            if sum(acknowledged.values()) < RECORDS * kills // 20:
                continue
            kills += 1
            _name, context, one = running.pop(rng.randrange(8))
            one.kill()
            context.__exit__(None, None, None)
            start()
        collect()
        for _, context, one in running:
            one.kill()
            context.__exit__(None, None, None)
        with pmwal.open(directory / "end.wal", size=SIZE) as wal:
            wal.append(b"end 1")
        thread.join()
        check_merge(directory, logs, got, acknowledged)
