"""The checks of the gate: each measures pmwal in turns with its floor, and yields rows.

A check is given a ``Context``. What it cannot measure here it yields as a skipped row with the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from benchmark.checks.delivery import follow
from benchmark.checks.disk import beside_computing, disk_append, disk_extend, tasks, threads
from benchmark.checks.events import event_calls
from benchmark.checks.memory import append_memory, arrays, dax, extend_memory, flat_append
from benchmark.checks.recovery import recovery_cold, recovery_large, recovery_small
from benchmark.checks.rivals import log_calls, peers, read
from benchmark.checks.startup import command_line, import_package
from benchmark.context import Context
from benchmark.floors import FloorsUnavailable
from benchmark.gate import Row, broken, skipped

Check = Callable[[Context], Iterator[Row]]

CHECKS: dict[str, Check] = {
    "append memory": append_memory,
    "dax strict": functools.partial(dax, ordering="strict"),
    "dax pipelined": functools.partial(dax, ordering="pipelined"),
    "extend memory": extend_memory,
    "arrays": arrays,
    "disk append fresh": functools.partial(disk_append, situation="fresh"),
    "disk append reopened": functools.partial(disk_append, situation="reopened"),
    "disk append wrapped": functools.partial(disk_append, situation="wrapped"),
    "disk extend": disk_extend,
    "threads": threads,
    "tasks": tasks,
    "beside computing": beside_computing,
    "recovery small": recovery_small,
    "recovery large": recovery_large,
    "recovery cold": recovery_cold,
    "read": read,
    "peers": peers,
    "flat append": flat_append,
    "follow": follow,
    "log calls": log_calls,
    "event calls": event_calls,
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
