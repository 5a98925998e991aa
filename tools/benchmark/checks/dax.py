"""Checks of durable appends on emulated persistent memory, against raw stores and fences, with each method of storing.

The bar applies to the method that pmwal chooses on this processor. The same rows with the other method, which PMWAL_STORES selects,
are measured in the same rounds and decide nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import pmwal
from benchmark.context import CONTROL_SIZE, Context
from benchmark.gate import BARS, Row, beside, compare
from pmwal.native.choice import STORES
from pmwal.opening.options import Ordering
from pmwal.testing.bench import workloads
from pmwal.testing.bench.floors import Area
from pmwal.testing.bench.stats import median
from pmwal.testing.bench.workloads import PAYLOAD

_ORDERINGS: tuple[Ordering, ...] = ("strict", "pipelined")
_VARIABLE = "PMWAL_STORES"
_KIB = bytes(range(256)) * 4


class Method(NamedTuple):
    """A way to make cache lines durable: its value of PMWAL_STORES, empty for what pmwal chooses, and ``stats().flush``."""

    stores: str
    wal: pmwal.Wal
    flush: str


def dax(context: Context, *, ordering: Ordering) -> Iterator[Row]:
    """A durable append of 128 bytes, in one ordering."""
    yield from _dax(context, f"dax {ordering}", ordering, PAYLOAD)


def dax_kib(context: Context) -> Iterator[Row]:
    """A durable append of 1 KiB, in both orderings."""
    for ordering in _ORDERINGS:
        yield from _dax(context, "dax 1 KiB", ordering, _KIB)


def _dax(context: Context, name: str, ordering: Ordering, payload: bytes) -> Iterator[Row]:
    scale, strict = context.scale, ordering == "strict"
    floor, bests = [], []
    with contextlib.ExitStack() as stack:
        area = stack.enter_context(Area(context.memory_dir / "floor", scale.ring))
        control = stack.enter_context(Area(context.memory_dir / "control", CONTROL_SIZE))
        methods = _methods(context, stack, ordering)
        ours: list[list[float]] = [[] for _ in methods]
        turns, calls = context.short_turns
        for turn in turns:
            best_name, best = context.floors.best_dax(area, control, payload, calls, strict=strict)
            loops = [workloads.append_loop(method.wal, payload, calls, commit=True) for method in methods]
            if turn:  # the first is the warm-up
                bests.append(best_name)
                floor.append(best.mean)
                for times, loop in zip(ours, loops, strict=True):
                    times.append(loop.mean)
    against = "the best raw store + " + ("two fences" if strict else "CRC + one fence")
    for method, times in zip(methods, ours, strict=True):
        how = f"{_VARIABLE}={method.stores}" if method.stores else "as pmwal chooses"
        what = f"durable append {len(payload)} B, emulated-dax, {ordering}, {method.flush}, {how}"
        note = f"the best raw store was {max(set(bests), key=bests.count)}"
        row = compare(name, what, against, (median(floor), median(times)), "ns", "at most", BARS[name], note)
        yield beside(row) if method.stores else row


def _methods(context: Context, stack: contextlib.ExitStack, ordering: Ordering) -> list[Method]:
    """A log with the method that is chosen, and one with each other method."""
    found: list[Method] = []
    for stores in ("", *STORES):
        try:
            with selected(stores):
                wal = stack.enter_context(
                    workloads.new_log(context.memory_dir, size=context.scale.ring, medium="emulated-dax", ordering=ordering)
                )
        except ValueError:  # this processor cannot do it
            continue
        flush = wal.stats().flush
        if flush not in [method.flush for method in found]:
            found.append(Method(stores, wal, flush))
    return found


@contextlib.contextmanager
def selected(stores: str) -> Iterator[None]:
    """PMWAL_STORES with this value, or as it was for an empty one."""
    before = os.environ.get(_VARIABLE)
    if stores:
        os.environ[_VARIABLE] = stores
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before
