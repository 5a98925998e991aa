"""One run of a program on a log, step by step: what it stored, from where in its code, and what it acknowledged.

Invariants
----------
- Every store, flush and fence of the run is in ``steps`` in the order in which it was taken, with the frames of the program that
  led to it. Stores to the live page are left out: no recovery reads them.
- An acknowledgement is a step, too, so it is known which of them a crash at any step came after; and so is each call that renames
  or syncs a file beside the log.
- What cannot be followed (a second log, another thread, a log created twice) ends in ``NotSimulated``, never in a verdict.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from pmwal.format.layout import LIVE_OFFSET, PAGE
from pmwal.opening import writer as opening_writer
from pmwal.opening.options import Options
from pmwal.storage.seam import Seam
from pmwal.testing.power_cut import UNITS
from pmwal.testing.process import kill
from pmwal.testing.programs.files import Beside, NotAFile, Observer, watched
from pmwal.testing.recorder import Recorder, Step
from pmwal.writing.wal import Wal

SIZE = "64KiB"
"""The size of a log for which the program names none: each image is as large as the log."""
FILE_SIZE_MAX = 4 * 1024 * 1024

PACKAGE = str(Path(__file__).parents[2]) + os.sep
_ONE_THREAD = 'only one thread can be followed: use the log in the thread of run(path), with commit="each" or "manual"'
_NAMING = ("link", "rename", "replace", "unlink")

Run = Callable[[Path], object]
Check = Callable[[Path, list[Any]], object]


class NotSimulated(ValueError):
    """The program does what the simulator cannot follow. The message says what to change."""


class Frame(NamedTuple):
    """A place in the program."""

    file: str
    line: int
    function: str


class Recording(NamedTuple):
    """What a program did to its log after it had created it."""

    medium: str
    existed: bool
    """Whether the log was there before the program opened it, so that no crash leaves none."""
    base: bytes
    steps: tuple[Step, ...]
    stacks: tuple[tuple[Frame, ...], ...]
    """For each step, the frames of the program, the innermost first."""
    beside: tuple[Beside, ...]
    """The files beside the log, before each step and at the end."""
    values: tuple[Any, ...]
    counts: tuple[int, ...]
    """For each number of steps before a crash, how many values were acknowledged by then."""

    def done(self, step: int) -> list[Any]:
        """What was acknowledged when this many steps had been taken; with -1, before there was a log."""
        return list(self.values[: self.counts[max(step, 0)]])


def stack_of(frame: FrameType | None) -> tuple[Frame, ...]:
    """The frames of the program, the innermost first: those of pmwal are left out, and all above the call of ``run``."""
    found = []
    while frame is not None and frame.f_code is not _call.__code__:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            found.append(Frame(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(found)


def _call(run: Run, path: Path) -> None:
    """Where the frames of a program end."""
    try:
        returned = run(path)
    except SystemExit as error:
        raise NotSimulated(f"run(path) called sys.exit({error.code!r}): let it return when its work is done") from error
    if inspect.isgenerator(returned) or inspect.isawaitable(returned):
        raise NotSimulated(f"run(path) returned a {type(returned).__name__}, so none of it has run: make it a plain function")


class _ProgramRecorder(Recorder):
    """A recorder that notes the frames of the program with each step, and leaves out the live page."""

    def __init__(self, log: Path) -> None:
        super().__init__(before=self._look, tick_ns=1000)
        self.files = Observer(log)
        self.beside: list[Beside] = []
        self.stacks: list[tuple[Frame, ...]] = []
        self.values: list[Any] = []
        self.refused = ""
        self._thread = threading.get_ident()

    def _look(self, step: Step) -> None:
        if threading.get_ident() != self._thread:
            self.refuse(f"thread {threading.current_thread().name!r} used the log, and {_ONE_THREAD}")
        self.stacks.append(stack_of(sys._getframe()))
        self.beside.append(self.look_beside())

    def look_beside(self) -> Beside:
        """The files beside the log."""
        try:
            return self.files.look()
        except NotAFile as found:
            raise self.refuse(
                f"run(path) made {found} beside its log: plain files can be followed, but no directories (such as that of named "
                "consumers), links or devices"
            ) from None

    def sync_file(self, fd: int) -> None:
        """Note an fsync by pmwal: of its file, or of the directory with every name in it."""
        super().sync_file(fd)
        self.files.synced(fd)

    def is_caller(self, frame: FrameType) -> bool:
        """Whether this frame is of a method of this recorder, so of a call on the log. Snapshots of a store use another seam."""
        return frame.f_locals.get("self") is self

    def note_call(self, name: str) -> None:
        """Note a call of the program that changes or syncs a file. Other threads may do so elsewhere."""
        if threading.get_ident() == self._thread:
            self.note(Step("file", data=name.encode()))

    def note_synced(self, fd: int) -> None:
        """An fsync by the program has returned."""
        if threading.get_ident() == self._thread:
            self.files.synced(fd)

    def _store(self, step: Step, mapping: Any) -> None:
        if LIVE_OFFSET <= step.offset < LIVE_OFFSET + PAGE:
            Seam.store(self, mapping, step.offset, step.data)
        else:
            super()._store(step, mapping)

    def acknowledge(self, value: object) -> None:
        """Note a value, as it is now."""
        self.note(Step("acknowledged"))
        self.values.append(copy.deepcopy(value))

    def refuse(self, reason: str) -> NotSimulated:
        """Keep the first reason: the program may catch the exception, or raise another one because of it."""
        self.refused = self.refused or reason
        return NotSimulated(self.refused)


@dataclass(frozen=True)
class Settings:
    """How the log of a program is opened, in the run and in every check."""

    path: Path
    medium: str
    size: int | str | None = None

    def options(self, options: Options) -> Options:
        """The program's options, on the medium that is simulated."""
        size = options.size if self.size is None else self.size
        if size is None and not self.path.exists():
            size = SIZE
        return replace(options, size=size, medium="emulated-dax" if self.medium == "pmem" else "file")

    def is_log(self, name: str) -> bool:
        """Whether this is the path that the program was given."""
        return os.path.abspath(name) == str(self.path)


@contextlib.contextmanager
def opening(open_writer: Callable[..., Wal]) -> Iterator[None]:
    """Every log that is opened for writing meanwhile is opened by this function."""
    original = opening_writer.open_writer
    opening_writer.open_writer = open_writer
    try:
        yield
    finally:
        opening_writer.open_writer = original


_current: _ProgramRecorder | None = None


def acknowledged(value: object) -> None:
    """Say in ``run(path)`` what the program has just promised, such as a key or a table: ``check`` gets it in ``done``.

    The value is copied. Outside of a simulation the call does nothing.

    >>> from pmwal.testing import acknowledged
    >>> acknowledged("order 7")
    """
    if _current is not None:
        _current.acknowledge(value)


def record(run: Run, settings: Settings) -> Recording:
    """Run a program once and note what it does; ``NotSimulated`` if that cannot be followed. Its exceptions are raised here."""
    global _current  # noqa: PLW0603 - acknowledged() has no other way to the run that calls it
    if settings.medium not in UNITS:
        raise ValueError(f"medium must be one of {', '.join(map(repr, UNITS))}, not {settings.medium!r}")
    recorder, wals = _ProgramRecorder(settings.path), list[Wal]()
    bases: list[tuple[bytes, int, bool]] = []  # of the log when it was first opened; steps by then; whether it existed
    original = opening_writer.open_writer

    def open_writer(name: str, options: Options, seam: Seam, *rest: Any, made: Any, **more: Any) -> Wal:
        if made is not None or not settings.is_log(name):
            raise recorder.refuse(f"run(path) opened {name}: only one log can be followed, the one at the path that run was given")
        if isinstance(options.commit, float):
            raise recorder.refuse(f"commit={options.commit:g} commits in a thread of its own, and {_ONE_THREAD}")
        existed = settings.path.exists()
        if not bases and existed:
            bases.append((settings.path.read_bytes(), len(recorder.events), True))
        wal = original(name, settings.options(options), recorder, *rest, made=made, **more)
        wals.append(wal)
        if not bases:
            bases.append((settings.path.read_bytes(), len(recorder.events), False))
        return wal

    _current = recorder
    try:
        with opening(open_writer), watched(recorder.note_call, recorder.note_synced, recorder.is_caller):
            _call(run, settings.path)
        recorder.beside.append(recorder.look_beside())
    except Exception as error:
        if recorder.refused and not isinstance(error, NotSimulated):
            raise NotSimulated(recorder.refused) from error
        raise
    finally:
        _current = recorder.before = None
        for wal in wals:
            kill(wal)
    return _recorded(recorder, bases, settings)


def _recorded(recorder: _ProgramRecorder, bases: list[tuple[bytes, int, bool]], settings: Settings) -> Recording:
    """The recording of a run that has ended."""
    if recorder.refused:
        raise NotSimulated(recorder.refused)
    if not bases:
        raise NotSimulated("run(path) opened no log for writing: open the one to test with pmwal.open(path)")
    base, start, existed = bases[0]
    if len(base) > FILE_SIZE_MAX:
        limit = FILE_SIZE_MAX >> 20
        raise NotSimulated(f"the log has {len(base)} bytes, and one of at most {limit} MiB can be simulated; give size={SIZE!r}")
    steps = recorder.events[start:]
    if any(step.name in _NAMING for step in steps):
        raise NotSimulated("run(path) created or renamed its log a second time: let it use one file")
    if not any(step.name in ("store", "stream") for step in steps):
        raise NotSimulated("run(path) stored nothing in its log after it was created")
    before = sum(step.name == "acknowledged" for step in recorder.events[:start])
    counts = accumulate((step.name == "acknowledged" for step in steps), initial=before)
    stacks = tuple(recorder.stacks[start:])
    beside = tuple(recorder.beside[start:])
    return Recording(settings.medium, existed, base, tuple(steps), stacks, beside, tuple(recorder.values), tuple(counts))
