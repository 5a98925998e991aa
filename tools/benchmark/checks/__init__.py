"""The checks of the gate: each measures pmwal in turns with its floor, and yields rows.

A check is given a ``Context``. What it cannot measure here it yields as a skipped row with the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from benchmark.checks.consumers import consumers
from benchmark.checks.copies import copies
from benchmark.checks.creation import creation
from benchmark.checks.dax import dax, dax_kib
from benchmark.checks.delivery import follow
from benchmark.checks.disk import disk_append, disk_extend
from benchmark.checks.events import event_calls
from benchmark.checks.large import large_appends, large_record, small_after_large
from benchmark.checks.memory import append_memory, arrays, extend_memory, flat_append
from benchmark.checks.pauses import event_loop, pauses
from benchmark.checks.queues import queue
from benchmark.checks.recovery import recovery_cold, recovery_large, recovery_small
from benchmark.checks.rivals import log_calls, peers, read
from benchmark.checks.seeks import seeks
from benchmark.checks.sets import first_record, merged_read
from benchmark.checks.shipping import ship
from benchmark.checks.startup import command_line, import_package
from benchmark.checks.threads import beside_computing, lone_committer, tasks, threads
from benchmark.context import GIB, KIB, MIB, Context
from benchmark.gate import Row, broken, skipped
from pmwal.testing.bench.floors import FloorsUnavailable

Check = Callable[[Context], Iterator[Row]]

CHECKS: dict[str, Check] = {
    "append memory": append_memory,
    "dax strict": functools.partial(dax, ordering="strict"),
    "dax pipelined": functools.partial(dax, ordering="pipelined"),
    "dax 1 KiB": dax_kib,
    "extend memory": extend_memory,
    "arrays": arrays,
    "disk append fresh": functools.partial(disk_append, situation="fresh"),
    "disk append reopened": functools.partial(disk_append, situation="reopened"),
    "disk append wrapped": functools.partial(disk_append, situation="wrapped"),
    "large 4 KiB": functools.partial(large_appends, size="4 KiB", length=4 * KIB, ring=16 * MIB),
    "large 64 KiB": functools.partial(large_appends, size="64 KiB", length=64 * KIB, ring=64 * MIB),
    "large 256 KiB": functools.partial(large_appends, size="256 KiB", length=256 * KIB, ring=64 * MIB),
    "large 16 MiB": functools.partial(large_record, size="16 MiB", length=16 * MIB, ring=128 * MIB),
    "small after large": small_after_large,
    "disk extend": disk_extend,
    "creation": creation,
    "copy": copies,
    "threads": threads,
    "tasks": tasks,
    "beside computing": beside_computing,
    "lone committer": lone_committer,
    "pauses": pauses,
    "event loop": event_loop,
    "seek 64 MiB": functools.partial(seeks, size="64 MiB", ring=64 * MIB),
    "seek 4 GiB": functools.partial(seeks, size="4 GiB", ring=4 * GIB),
    "consumers": consumers,
    "queue": queue,
    "recovery small": recovery_small,
    "recovery large": recovery_large,
    "recovery cold": recovery_cold,
    "read": read,
    "peers": peers,
    "flat append": flat_append,
    "follow": follow,
    "log calls": log_calls,
    "event calls": event_calls,
    "first record": first_record,
    "merged read": merged_read,
    "ship": ship,
    "import": import_package,
    "command line": command_line,
}
"""Name -> check, in the order in which they run."""


def run_check(name: str, context: Context) -> list[Row]:
    """Run one check. Without floors it is a skipped row; an exception is a failed row, and the run continues."""
    rows: list[Row] = []
    try:
        rows.extend(CHECKS[name](context))
    except FloorsUnavailable as error:
        rows.append(skipped(name, str(error)))
    except Exception as error:
        rows.append(broken(name, f"{type(error).__name__}: {error}"))
    return rows
