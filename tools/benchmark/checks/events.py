"""Check of an event that is stored as a record of 128 bytes, with an append of as many bytes for comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import Any

import pmwal
from benchmark.context import Context
from benchmark.gate import BARS, Row, absolute
from pmwal import events
from pmwal.testing.bench.stats import median
from pmwal.testing.bench.workloads import PAYLOAD

_BATCH = 100  # records that fill the ring at a time
_PIECE = 100  # calls of one kind before the turn of the other: few of such short loops are interrupted


def event_calls(context: Context) -> Iterator[Row]:
    """The call of an event with one argument, as a loop, on memory."""
    path = context.memory_dir / "events.wal"
    with pmwal.open(path, "x", size=context.scale.small_ring, commit="manual", on_full="overwrite") as wal:
        event = events.Logger(wal).event("{}")
        text = "x" * (len(PAYLOAD) - len(_stored(wal, event, "")))
        text = text[: len(text) - (len(_stored(wal, event, text)) - len(PAYLOAD))]
        assert len(_stored(wal, event, text)) == len(PAYLOAD)
        loops = max(1, context.scale.memory_calls // _PIECE)
        first = _in_turns(wal, event, text, loops)
        for _ in range(wal.capacity // (_BATCH * len(PAYLOAD)) + 1):
            wal.extend([PAYLOAD] * _BATCH)
        append, call = _in_turns(wal, event, text, loops)
    path.unlink()
    what = f"event(text), a record of {len(PAYLOAD)} B, tmpfs, median of {loops} loops"
    note = (
        f"an append of {len(PAYLOAD)} B, in turns: {append:.0f} ns; "
        f"on the first lap, cold, which touches each page first: event {first[1]:.0f} ns, append {first[0]:.0f} ns"
    )
    yield absolute("event calls", what, call, "ns", "at most", BARS["event call ns"], note)


def _stored(wal: pmwal.Wal, event: Callable[[str], int], text: str) -> bytes:
    return wal[event(text)].data


def _in_turns(wal: pmwal.Wal, event: Callable[[str], int], text: str, loops: int) -> tuple[float, float]:
    """Nanoseconds of an append and of an event: medians of loops in turns."""
    times = [(_mean(wal.append, PAYLOAD), _mean(event, text)) for _ in range(loops)]
    return median([time[0] for time in times]), median([time[1] for time in times])


def _mean(call: Callable[[Any], object], argument: object) -> float:
    """Nanoseconds for each call of a loop."""
    begin = perf_counter_ns()
    for _ in range(_PIECE):
        call(argument)
    return (perf_counter_ns() - begin) / _PIECE
