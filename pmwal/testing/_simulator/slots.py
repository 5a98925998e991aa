"""The slots of a directory: a process takes one over from a dead one, and slots that no process has are pruned.

Invariants
----------
- A handler that takes a slot which a crash left keeps its records, and stores after them.
- A slot is removed only while no process has it, and only if nothing was stored in it since it was looked at.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from pmwal.logs import slots
from pmwal.logs.handler import LogHandler
from pmwal.logs.options import Limits
from pmwal.testing._simulator.explore import History, start_of
from pmwal.testing._simulator.model import brief
from pmwal.testing._simulator.operations import perform
from pmwal.testing._simulator.oracles import Examiner
from pmwal.testing._simulator.session import Session
from pmwal.testing.images import build, sampled
from pmwal.testing.power_cut import PowerCutModel
from pmwal.testing.violation import Violation

retention = importlib.import_module("pmwal.logs.retention")

_SAMPLES = 8
_NOTHING = Limits(None, 0)  # no slot fits in


def explore_slots(directory: Path, history: History) -> None:
    """Take over what crashes leave in a slot, then prune beside processes. ``Violation`` of oracle "slots"."""
    examiner = Examiner()
    slot = directory / slots.slot_name(0)
    trace = perform(Session(history.setting, directory / "origin.wal", start_of(history.setting), history.seed), history.names)
    medium, random = PowerCutModel(history.setting.medium, trace.base), Random(history.seed)
    for step in trace.events:
        medium.take(step)
    for _ in range(_SAMPLES):
        for leftover in directory.iterdir():
            leftover.unlink()
        slot.write_bytes(build(medium, sampled(medium, random)).data)
        found = examiner.examine(slot.read_bytes()).found
        _log(directory, history, "taken over")
        after = examiner.examine(slot.read_bytes()).found
        kept = tuple(item for item in found.items if item[0] >= after.first_seq)  # the handler may have overwritten others
        if _names(directory) != [slot.name] or after.items != (*kept, (found.next_seq, b"taken over")):
            raise Violation("slots", f"a process took over {brief(found.items)}, and left {brief(after.items)}")
    _prune_beside(directory, history)


def _prune_beside(directory: Path, history: History) -> None:
    """Prune while a process has the slot, then while one takes it, logs and ends, then when none has it."""
    slot = directory / slots.slot_name(0)
    with contextlib.closing(LogHandler(directory=directory, size=history.setting.size)):
        removed = retention.prune(str(directory), _NOTHING)
        if removed or not slot.exists():
            raise Violation("slots", "the slot of a living process was removed")
    lock_existing = retention.lock_existing

    def after_another(path: str, seam: Any, *, follow: bool) -> Any:
        _log(directory, history, "in between")
        return lock_existing(path, seam, follow=follow)

    with patch.object(retention, "lock_existing", after_another):
        removed = retention.prune(str(directory), _NOTHING)
    if removed or not slot.exists():
        raise Violation("slots", "a slot was removed with a record that was stored after the look at it")
    if [Path(one.path) for one in retention.prune(str(directory), _NOTHING)] != [slot] or _names(directory):
        raise Violation("slots", f"a slot that no process has was not removed: {_names(directory)}")


def _log(directory: Path, history: History, text: str) -> None:
    handler = LogHandler(directory=directory, size=history.setting.size)
    handler.emit(logging.LogRecord("pmwal", logging.INFO, __file__, 0, text, None, None))
    handler.close()


def _names(directory: Path) -> list[str]:
    return sorted(child.name for child in directory.iterdir())
