"""What a program's check makes of a crash, and the least crash of which it makes the same.

The reduction is deterministic. From the first failing state on, in turn, until nothing changes:

1. The shortest run: the state is looked at after fewer steps, as early as the medium can hold it.
2. The fewest surviving stores: after a power cut each line or page that was not yet flushed is reverted to what was last flushed
   of it, then to each version in between, and stays so while the check fails; and so are the files beside the log.

So the check passes without any one of what is left. A kill keeps everything that was stored, so there is nothing to take away.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from types import TracebackType
from typing import Any

from pmwal.format.layout import SECTOR
from pmwal.opening import writer as opening_writer
from pmwal.opening.options import Options
from pmwal.testing.images import Choice, build
from pmwal.testing.power_cut import WORD, PowerCutModel, Version
from pmwal.testing.process import kill
from pmwal.testing.programs.files import Files
from pmwal.testing.programs.recording import PACKAGE, Check, Frame, NotSimulated, Recording, Settings, opening
from pmwal.testing.programs.states import Crash
from pmwal.writing.wal import Wal


@dataclass(frozen=True)
class Failure:
    """A crash, and what the check raised for it."""

    crash: Crash
    error: BaseException
    frames: tuple[Frame, ...]
    """Where the check raised it, the innermost first."""

    @property
    def message(self) -> str:
        """The exception as one line."""
        return message_of(self.error)


def message_of(error: BaseException) -> str:
    """An exception as one line: the first of its text, because test frameworks add what they know below it."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Judge:
    """Runs the check of a program on the states that a crash left."""

    def __init__(self, check: Check, settings: Settings, failures: tuple[type[BaseException], ...] = (Exception,)) -> None:
        self._check = check
        self._settings = settings
        self._failures = failures

    def __call__(self, crash: Crash, done: list[Any]) -> tuple[BaseException, tuple[Frame, ...]] | None:
        """What the check raises after this crash for these acknowledgements, and where."""
        path = self._settings.path
        clear(self._settings)
        if crash.data is not None:
            path.write_bytes(crash.data)
        for name, content in crash.files.items():
            path.with_name(name).write_bytes(content)
        try:
            with self._opened():
                returned = self._check(path, done)
        except SystemExit as error:  # also with status 0: the command must not end with that
            return error, frames_of(error.__traceback__)
        except self._failures as error:
            return error, frames_of(error.__traceback__)
        finally:
            clear(self._settings)
        if returned is not None:  # a generator or coroutine has not run; True or False is no verdict
            raise NotSimulated(
                f"check(path, done) returned {type(returned).__name__}: let it return nothing, and raise an exception (assert) "
                "where something is wrong"
            )
        return None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        """The log is opened as in the run; what the check leaves open is let go."""
        wals, original = list[Wal](), opening_writer.open_writer

        def open_writer(name: str, options: Options, *rest: Any, **more: Any) -> Wal:
            wal = original(name, self._settings.options(options) if self._settings.is_log(name) else options, *rest, **more)
            wals.append(wal)
            return wal

        try:
            with opening(open_writer):
                yield
        finally:
            for wal in wals:
                kill(wal)


def clear(settings: Settings) -> None:
    """Remove what a run or a check left beside the log."""
    for path in settings.path.parent.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def frames_of(trace: TracebackType | None) -> tuple[Frame, ...]:
    """The frames of the program in a traceback, the innermost first."""
    found = []
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            found.append(Frame(code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    return tuple(reversed(found))


# -- reduction


def reduced(judge: Judge, recording: Recording, failure: Failure) -> Failure:
    """The least crash for which the check fails, as the head of this module says."""
    if failure.crash.kind == "kill" or failure.crash.data is None:
        return failure
    while True:
        smaller = _fewest(judge, recording, _shortest(judge, recording, failure))
        if smaller.crash == failure.crash:
            return smaller
        failure = smaller


def medium_at(recording: Recording, step: int) -> PowerCutModel:
    """The medium after this many steps."""
    medium = PowerCutModel(recording.medium, recording.base)
    for each in recording.steps[:step]:
        medium.take(each)
    return medium


def _shortest(judge: Judge, recording: Recording, failure: Failure) -> Failure:
    """The same state after as few steps as possible. Only what was acknowledged by then makes a difference to the check."""
    crash = failure.crash
    assert crash.data is not None
    medium = PowerCutModel(recording.medium, recording.base)
    first: dict[int, int] = {}  # by the number of acknowledgements, the first step at which this state is possible
    for step in range(crash.step + 1):
        if step:
            medium.take(recording.steps[step - 1])
        is_new = recording.counts[step] not in first and crash.files in recording.beside[step].alternatives()
        if is_new and choice_of(medium, crash.data) is not None:
            first[recording.counts[step]] = step
    for step in first.values():
        raised = judge(crash, recording.done(step))
        if raised is not None:
            return Failure(replace(crash, step=step), *raised)
    return failure  # a check that does not fail each time


def _fewest(judge: Judge, recording: Recording, failure: Failure) -> Failure:
    """The same step with as few surviving stores and files as possible."""
    step = failure.crash.step
    medium, files = medium_at(recording, step), recording.beside[step].alternatives()
    is_less = True
    while is_less:
        is_less = False
        for trial in _less_of(medium, files, failure.crash):
            raised = judge(trial, recording.done(step))
            if raised is not None:
                failure, is_less = Failure(trial, *raised), True
                break
    return failure


def _less_of(medium: PowerCutModel, files: list[Files], crash: Crash) -> Iterator[Crash]:
    """The same crash with less of one unit, or of the files."""
    assert crash.data is not None
    for other in files[: files.index(crash.files)]:
        yield replace(crash, files=other)
    for choice in _less(medium, choice_of(medium, crash.data) or {}):
        yield replace(crash, data=build(medium, choice).data)


def _less(medium: PowerCutModel, choice: Choice) -> Iterator[Choice]:
    """Each choice with less of one unit: nothing that was not flushed, an older version, or a whole one for one that is torn."""
    for unit in sorted(choice):
        rest = {kept: version for kept, version in choice.items() if kept != unit}
        yield rest
        for version in medium.open[unit][1:]:
            if version.data == choice[unit].data:
                break
            yield {**rest, unit: version}


# -- which versions an image is made of


def choice_of(medium: PowerCutModel, data: bytes) -> Choice | None:
    """The versions that this image has of the open units, the oldest ones left out; None if the medium cannot hold it."""
    choice: Choice = {}
    for unit, versions in medium.open.items():
        piece = data[unit * medium.size : unit * medium.size + len(versions[0].data)]
        place = next((place for place, version in enumerate(versions) if version.data == piece), None)
        if place is None and not _is_torn(medium.by_lines, versions, piece):
            return None
        if place != 0:
            choice[unit] = Version(piece, 0)
    return choice if build(medium, choice).data == data else None


def _is_torn(by_lines: bool, versions: list[Version], piece: bytes) -> bool:
    """Whether these bytes are versions in part: words of two that follow each other; on a disk sectors of any two."""
    if not by_lines and any(_is_mixed(one.data, other.data, piece, SECTOR) for one, other in combinations(versions, 2)):
        return True
    return any(_is_mixed(before.data, after.data, piece, WORD) for before, after in pairwise(versions))


def _is_mixed(before: bytes, after: bytes, piece: bytes, size: int) -> bool:
    """Whether each part of this size is one of either."""
    return all(piece[at : at + size] in (before[at : at + size], after[at : at + size]) for at in range(0, len(piece), size))
