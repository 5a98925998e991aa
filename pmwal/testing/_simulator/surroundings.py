"""The surroundings of the file: its name, the file system that gives it one, and a handler that sets damaged logs aside.

Invariants
----------
- A handle whose file lost its name says so by its first call a second later, once; a handle whose file has its name says nothing.
- A file system may refuse link(2). The name then comes by a rename, as durably, and never takes the place of another file.
- A log that a crash left is never set aside, and a handler that starts on it keeps its records.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from errno import EPERM
from os import strerror
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from pmwal.errors import UnlinkedWarning, WalUnlinked
from pmwal.logs.handler import LogHandler
from pmwal.logs.set_aside import set_aside
from pmwal.opening import open_log
from pmwal.testing._simulator.creation import explore_creation
from pmwal.testing._simulator.explore import History, start_of
from pmwal.testing._simulator.model import brief
from pmwal.testing._simulator.operations import perform
from pmwal.testing._simulator.oracles import Examiner
from pmwal.testing._simulator.session import Session
from pmwal.testing.images import build, sampled
from pmwal.testing.power_cut import PowerCutModel
from pmwal.testing.recorder import Recorder
from pmwal.testing.violation import Violation
from pmwal.writing import upkeep
from pmwal.writing.wal import Wal

_SECOND_NS = 1_000_000_000
_SAMPLES = 20


def _kept(path: Path) -> None:
    pass


def _removed(path: Path) -> None:
    path.unlink()


def _renamed(path: Path) -> None:
    path.rename(path.with_suffix(".old"))


def _replaced(path: Path) -> None:
    content = path.read_bytes()
    _renamed(path)
    path.write_bytes(content)


def explore_names(directory: Path, history: History) -> None:
    """Take the name of an open log away in each way. ``Violation`` of oracle "named"."""
    clock = SimpleNamespace(monotonic_ns=lambda: 0)
    with patch.object(upkeep, "time", clock):
        for loss in (_kept, _removed, _renamed, _replaced):
            for policy in ("warn", "raise"):
                clock.monotonic_ns = lambda: 0
                for leftover in directory.iterdir():
                    leftover.unlink()
                said = _said(directory / "named.wal", history, loss, policy, clock)
                expected = [] if loss is _kept else [policy]
                if said != expected:
                    raise Violation("named", f"{loss.__name__[1:]}: on_unlinked={policy!r} did {said}, not {expected}")


def _said(path: Path, history: History, loss: Callable[[Path], None], policy: str, clock: Any) -> list[str]:
    """How the handle said that its name was lost, in two appends a second apart."""
    path.write_bytes(start_of(history.setting).image)
    wal = open_log(path, "r+", medium=history.setting.mapped, on_full="overwrite", on_unlinked=policy, seam=Recorder())
    assert isinstance(wal, Wal)
    said: list[str] = []
    with wal, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wal.append(b"before")
        loss(path)
        for seconds in (2, 4):
            clock.monotonic_ns = lambda seconds=seconds: seconds * _SECOND_NS
            try:
                wal.append(b"after")
            except WalUnlinked:
                said.append("raise")
                break
        unlinked = wal.stats().unlinked
    said += ["warn" for warning in caught if issubclass(warning.category, UnlinkedWarning)]
    if unlinked != (loss is not _kept):
        raise Violation("named", f"{loss.__name__[1:]}: stats().unlinked is {unlinked}")
    return said


class _WithoutLink(Recorder):
    """A file system without link(2). ``beside``, if there is one, is done before the rename."""

    beside: Callable[[], None] | None = None

    def link(self, source: str, target: str, directory_fd: int) -> None:
        """Refuse it."""
        raise OSError(EPERM, strerror(EPERM))

    def rename_new(self, source: str, target: str, directory_fd: int) -> None:
        """Rename, after what another process does."""
        if self.beside is not None:
            self.beside()
        super().rename_new(source, target, directory_fd)


def explore_unlinkable(directory: Path, history: History) -> None:
    """Create a log where link(2) is refused, alone and beside another creation. ``Violation`` of oracle "creation"."""
    explore_creation(directory, history.setting, _WithoutLink())
    path, seam = directory / "contested.wal", _WithoutLink()

    def other() -> None:
        path.write_bytes(b"of another process")

    seam.beside = other
    try:
        open_log(path, "x", size=history.setting.size, medium=history.setting.mapped, seam=seam).close()
    except FileExistsError:
        pass
    else:
        raise Violation("creation", "a creation took a name that another process had given")
    if path.read_bytes() != b"of another process":
        raise Violation("creation", "a creation took the place of another file")


def explore_handlers(directory: Path, history: History) -> None:
    """Start a handler on what crashes leave. ``Violation`` of oracle "aside"."""
    path = directory / "handled.wal"
    trace = perform(Session(history.setting, path, start_of(history.setting), history.seed), history.names)
    medium, random, examiner = PowerCutModel(history.setting.medium, trace.base), Random(history.seed), Examiner()
    for step in trace.events:
        medium.take(step)
    for _ in range(_SAMPLES):
        for leftover in directory.iterdir():
            leftover.unlink()
        path.write_bytes(build(medium, sampled(medium, random)).data)
        found = examiner.examine(path.read_bytes()).found
        if (target := set_aside(str(path))) is not None:
            raise Violation("aside", f"a healthy log was set aside as {target}")
        handler = LogHandler(path)
        handler.emit(logging.LogRecord("pmwal", logging.INFO, __file__, 0, "started", None, None))
        handler.close()
        after = examiner.examine(path.read_bytes()).found
        kept = tuple(item for item in found.items if item[0] >= after.first_seq)  # the handler may have overwritten others
        if [child.name for child in directory.iterdir()] != [path.name] or after.items != (*kept, (found.next_seq, b"started")):
            raise Violation("aside", f"a handler started on {brief(found.items)}, and left {brief(after.items)}")
