"""The traced program: opens a log through the C engine and makes the calls of a seed, each between two markers.

    child.py LOG BASE MAPS PACKAGE ORDERING SEED

Before the first call it fills the log and copies it to BASE, and /proc/self/maps to MAPS. The engine must come from the directory
PACKAGE. The program runs until it is killed, and only under the tracer: its markers are signals that would otherwise end it.
"""

from __future__ import annotations

import gc
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # started with -P: this directory is not on the path

import pmwal
from crash.stepper.plan import CAPACITY, CONTROL_SIZE, Call, calls, filling, overwrites
from pmwal.native import native
from pmwal.opening.options import FullPolicy, Ordering
from pmwal.storage.seam import SYSTEM


def prepared(wal: pmwal.Wal, call: Call) -> tuple[Callable[[], Any], Any]:
    """A call with its arguments, and what it must return."""
    payloads = [data for _, _, data in call.records]
    kind = call.records[0][1] if call.records else 0
    if call.name == "append":
        return partial(wal.append, payloads[0], kind=kind), call.seq
    if call.name == "store":
        return partial(wal.append, payloads[0], kind=kind, commit=False), call.seq
    last = call.seq + len(payloads) - 1
    if call.name == "extend":
        return partial(wal.extend, payloads, kind=kind), (call.seq, last)
    if call.name == "batch":
        return partial(batch, wal, payloads, kind), (call.seq, last)
    if call.name == "reserve":
        return partial(reserve, wal, payloads[0], kind), call.seq
    if call.name == "commit":
        return wal.commit, call.seq
    if call.name == "rollback":
        return partial(wal.rollback, after=call.seq - 1), call.seq
    return partial(wal.truncate, before=call.seq), call.seq


def batch(wal: pmwal.Wal, payloads: list[bytes], kind: int) -> tuple[int, int]:
    """``extend``, through a batch."""
    with wal.batch() as staged:
        for payload in payloads:
            staged.append(payload, kind=kind)
    return staged.first, staged.last


def reserve(wal: pmwal.Wal, payload: bytes, kind: int) -> int:
    """``append``, through a reservation."""
    reservation = wal.reserve(len(payload), kind=kind)
    with reservation as view:
        view[:] = payload
    return reservation.seq


def warm_up(path: Path, ordering: Ordering) -> None:
    """Make a call of each kind on another log, so that nothing is imported or prepared for the first time under the tracer."""
    with pmwal.open(path, "x", size=CAPACITY, medium="emulated-dax", ordering=ordering) as wal:
        wal.append(b"a")
        wal.append(b"b", commit=False)
        wal.commit()
        wal.extend([b"c", b"d"])
        batch(wal, [b"e", b"f"], 0)
        reserve(wal, b"g", 0)
        wal.rollback(after=wal.next_seq - 2)
        wal.truncate(before=wal.first_seq + 1)
    path.unlink()


def main() -> None:
    """Open the log, then make each call between its markers and check its result."""
    log, base, maps, package, given, seed = sys.argv[1:]
    ordering = cast(Ordering, given)
    SYSTEM.control_size = CONTROL_SIZE  # not a new seam: only with SYSTEM does the C engine store directly
    on_full: FullPolicy = "overwrite" if overwrites(int(seed)) else "raise"
    wal = pmwal.open(log, "x", size=CAPACITY, medium="emulated-dax", ordering=ordering, on_full=on_full)
    if native is None or not Path(native.__file__).is_relative_to(package):
        sys.exit(f"the native engine is not that of {package}")
    prepared(wal, filling())[0]()
    warm_up(Path(log).with_name("warm.wal"), ordering)
    gc.disable()  # stepping through a collection would only cost time
    mark = signal.raise_signal
    shutil.copyfile("/proc/self/maps", maps)
    shutil.copyfile(log, base)
    for call in calls(int(seed)):
        function, expected = prepared(wal, call)
        mark(signal.SIGUSR1)
        answer = function()
        mark(signal.SIGUSR2)
        if answer != expected:
            sys.exit(f"{call}: it returned {answer!r}, not {expected!r}")


if __name__ == "__main__":
    main()
