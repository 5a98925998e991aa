"""Checks of log sets: the first record of a forked child, and reading several logs as one."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pmwal
from benchmark.context import Context
from benchmark.gate import BARS, Row, absolute, compare
from pmwal.testing.bench.stats import median
from pmwal.testing.bench.workloads import PAYLOAD, record_size

_AT_ONCE = 8  # children, and logs of a set
_TURNS = 5  # in each round of the gate
_RUN_MAX = 20  # records that a process stores before another one does
_FILLED = 0.75  # of the ring of the one log


class _Took(NamedTuple):
    """What the first record of one child took, in milliseconds."""

    elapsed: float
    processor: float


def first_record(context: Context) -> Iterator[Row]:
    """The first record of a child, of one alone and of several that log at once, each with a spare."""
    check = "first record"
    for site in (context.memory, context.disk):
        for count in (1, _AT_ONCE):
            took = [each for _ in range(context.scale.rounds * _TURNS) for each in _log_in_children(site.directory, count, context)]
            elapsed = [each.elapsed for each in took]
            who = "alone" if count == 1 else f"of {count} at once"
            where = f"{context.scale.ring >> 20} MiB on {site.mount.filesystem}"
            what = f"logger.info() in a forked child, {who}, {where}, median of {len(took)}"
            bar = BARS[f"{check} ms"]
            note = (
                f"{sum(each <= bar for each in elapsed)} of {len(took)} within {bar:g} ms, the longest {max(elapsed):.1f}; "
                f"processor time {median([each.processor for each in took]):.1f} ms"
            )
            row = absolute(check, what, median(elapsed), "ms", "at most", bar, note)
            yield replace(row, judged=count == 1)  # several wait for a processor as well


def _log_in_children(directory: Path, count: int, context: Context) -> list[_Took]:
    """Fork, let all children log at the same moment, and hear what it took."""
    place = directory / "children"
    handler = pmwal.LogHandler(directory=place, size=context.scale.ring)
    logger = logging.Logger("benchmark")
    logger.addHandler(handler)
    logger.info("parent")
    starting, start = Pipe(duplex=False)
    answers, answer = Pipe(duplex=False)
    children = []
    try:
        for _ in range(count):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn if the caller has threads
                pid = os.fork()
            if not pid:
                _log(logger, starting, start, answer)
            children.append(pid)
        start.close()  # which all of them wait for
        return [answers.recv() for _ in children]
    finally:
        for end in (starting, start, answers, answer):
            end.close()
        for pid in children:
            os.waitpid(pid, 0)
        handler.close()
        shutil.rmtree(place)


def _log(logger: logging.Logger, starting: Connection, start: Connection, answer: Connection) -> None:
    """In a child: wait, log, and answer."""
    try:
        start.close()
        with contextlib.suppress(EOFError):
            starting.recv()
        elapsed, processor = time.perf_counter(), time.process_time()
        logger.info("child")
        took = time.perf_counter() - elapsed, time.process_time() - processor
        answer.send(_Took(1e3 * took[0], 1e3 * took[1]))  # short enough to be written at once
    finally:
        os._exit(0)


def merged_read(context: Context) -> Iterator[Row]:
    """Reading several logs as one, against a set of one log with the same records, which is faster than ``Reader.read``."""
    count = int(_FILLED * context.scale.ring / record_size(len(PAYLOAD), 8))
    place = context.memory_dir / "merged"
    one, several = place / "one.wal", place / "set"
    try:
        several.mkdir(parents=True)
        _store(one, several, count, context.scale.ring)
        times: dict[str, list[float]] = {"one": [], "set": []}
        for turn in range(1 + context.scale.rounds * _TURNS):
            for name in sorted(times, reverse=bool(turn % 2)):
                begun = time.perf_counter()
                with pmwal.LogSet(one if name == "one" else several) as reader:
                    found = sum(1 for _ in reader)
                if found != count:
                    raise RuntimeError(f"{found} records were read of {count}")
                if turn:
                    times[name].append((time.perf_counter() - begun) / count * 1e9)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    figures = median(times["one"]), median(times["set"])
    what = f"for rec in LogSet of {_AT_ONCE} logs, {count} records of 128 B, tmpfs"
    ratios = [set_ / log for set_, log in zip(times["set"], times["one"], strict=True)]
    note = f"median of the ratios of {len(ratios)} turns {median(ratios):.2f}"
    yield compare("merged read", what, "for rec in LogSet of one log", figures, "ns", "at most", BARS["merged read"], note)


def _store(one: Path, several: Path, count: int, ring: int) -> None:
    """The same records in one log, and in some, as processes that take turns at random would store them."""
    rng = random.Random(1)
    with contextlib.ExitStack() as stack:
        log, *logs = [
            stack.enter_context(pmwal.open(path, "x", size=ring, commit="manual"))
            for path in (one, *(several / f"{number:02d}.wal" for number in range(_AT_ONCE)))
        ]
        log.extend([PAYLOAD] * count)
        while count:
            run = min(count, rng.randint(1, _RUN_MAX))
            other = rng.choice(logs)
            for _ in range(run):
                other.append(PAYLOAD)
            count -= run
