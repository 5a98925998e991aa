"""Frames: what it costs a process to make one of its log, or to take one apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pmwal
from benchmark.context import Context
from benchmark.report import Table
from pmwal.format.frame import pack, unpack, unpack_in_python
from pmwal.testing.bench import workloads
from pmwal.testing.bench.stats import median, time_text
from pmwal.testing.bench.workloads import PAYLOAD

_RECORDS = 1024  # of a frame
_SIZE = 1 << 20  # bytes that a frame may have
_FRAMES = 16  # measured in one round


def table(context: Context) -> Table:
    """The processor time of each way, for a record."""
    with workloads.new_log(context.memory_dir, size=context.scale.ring, medium="memory", warmed=False) as wal:
        count = min(_RECORDS, workloads.room(wal, len(PAYLOAD)))
        wal.extend([PAYLOAD] * count)
        with pmwal.open(Path(wal.path), "r") as reader:
            frame = _frame(reader, count)
            if frame.body != pack(reader.read(1, count + 1)):
                raise RuntimeError("a frame has other bytes than its records")
            ways: dict[str, Callable[[], object]] = {
                "Reader.frame": lambda: _frame(reader, count),
                "read, and pack in Python": lambda: pack(reader.read(1, count + 1)),
                "unpack": lambda: unpack(frame.body),
                "unpack in Python": lambda: unpack_in_python(frame.body),
                "copy the body": lambda: bytearray(frame.body),
            }
            times: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(context.scale.rounds + 1):
                for name, way in ways.items():
                    begun = time.process_time_ns()
                    for _ in range(_FRAMES):
                        way()
                    if turn:
                        times[name].append(max(1, time.process_time_ns() - begun) / _FRAMES / count)
    rows = [[name, time_text(median(each)), f"{median(each) / median(times['Reader.frame']):.2f}"] for name, each in times.items()]
    title = f"Frames: processor time for a record, frames of {count} x 128 B"
    return Table(title, ["what", "a record", "/ Reader.frame"], rows, context.memory.note)


def _frame(reader: pmwal.Reader, count: int) -> pmwal.Frame:
    frame = reader.frame(1, size_max=_SIZE, count_max=count)
    if frame is None or frame.last != count:
        raise RuntimeError(f"a frame of {count} records ended at {frame and frame.last}")
    return frame
