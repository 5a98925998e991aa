"""Interrupts (scenario 24): an exception at any step or any call leaves no lock held, no half record, and a usable log."""

from __future__ import annotations

import contextlib
import dis
import gc
import os
import random
import sys
import warnings
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import pmwal
from images import Interrupter, Reopener, between, brief, images, state_of
from marks import first_fast
from operations import CRASH_MEDIA, DAX, OPERATIONS, PIPELINED, STRICT, Operation, appended, prepare, steps_of
from pmwal.storage import lock
from pmwal.testing import PowerCutModel
from pmwal.testing._simulator.model import Found
from pmwal.writing.access import owned
from support import BarrierRecorder, Crash, kill, open_small

pytestmark = pytest.mark.both_engines
PACKAGE = str(Path(pmwal.__file__).parent)

# -- at every step of the seam


@CRASH_MEDIA
@pytest.mark.parametrize("name", first_fast(OPERATIONS))
def test_interrupted_operation_leaves_the_log_usable_and_the_model_true(shm_dir: Path, options: dict[str, Any], name: str) -> None:
    """Scenarios 24 and 28f: an exception before and after every step; then an append; crashes right away and after it.

    What the interrupt left on the medium may have been written early, or lost, in any combination.
    """
    operation = OPERATIONS[name]
    path = shm_dir / "test.wal"
    steps = steps_of(path, options, operation)
    assert steps > 0
    rng = random.Random(24)
    image_path = shm_dir / "image.wal"
    reopened = Reopener(image_path, options)
    for step, after in [(step, after) for step in range(steps) for after in (False, True)]:
        error = MemoryError if step % 3 == 1 else KeyboardInterrupt
        seam = Interrupter()
        path.unlink(missing_ok=True)
        wal, trace = prepare(path, options, seam, operation.size)
        old = state_of(wal)
        intended = operation.model(old)
        seam.arm(step, after=after, error=error)
        with pytest.raises(error):
            operation.run(wal)
        where = f"{error.__name__} {'after' if after else 'before'} step {step}"
        interrupted_at = len(seam.events)
        shown = state_of(wal)
        assert shown in between(old, intended), where
        follow = rng.choice(["append", "commit", "extend"])
        if follow == "extend":
            wal.extend([b"after" * 9, b"after"])
        elif follow == "append":
            wal.append(b"after" * 9)
        else:
            wal.commit()
        final = state_of(wal)
        added = {"extend": (b"after" * 9, b"after"), "append": (b"after" * 9,), "commit": ()}[follow]
        assert appended(*added)(shown) == final, where
        assert wal.next_seq - 1 == wal.committed_seq
        kill(wal)
        if not after:
            continue  # the medium is as it was after the step before
        disk = PowerCutModel("pmem" if options is DAX else "page", trace.base)
        acknowledged = trace.marks[0][1]
        half = Found(1, old.items[:-1])
        undecided = {half} | between(acknowledged, old) | between(acknowledged, intended) | between(old, intended)
        for taken, event in enumerate(seam.events, 1):
            disk.take(event)
            if taken < interrupted_at:
                continue
            allowed = {final} if taken == len(seam.events) else undecided | between(shown, final) | between(acknowledged, final)
            for image in images(disk, rng, 3, most=3):
                found = reopened(image)
                assert found in allowed, f"{where}, crash at {taken}: {brief(found)} not in {[*map(brief, allowed)]}"


@pytest.mark.parametrize("name", first_fast(OPERATIONS))
@pytest.mark.parametrize("options", [STRICT, PIPELINED], ids=["strict", "pipelined"])
def test_killed_right_after_an_interrupt_nothing_half_made_is_there(shm_dir: Path, options: dict[str, Any], name: str) -> None:
    """Scenario 24: the interrupt, and then SIGKILL before the handle could clean up; next a recovery, an append, a kill."""
    operation = OPERATIONS[name]
    path = shm_dir / "test.wal"
    places = [(0, False), *((step, True) for step in range(steps_of(path, options, operation)))]
    for step, after in places:
        seam = Interrupter()
        path.unlink(missing_ok=True)
        wal, _ = prepare(path, options, seam, operation.size)
        old = state_of(wal)
        seam.arm(step, after=after, error=Crash)
        with pytest.raises(Crash):
            operation.run(wal)
        kill(wal)
        wal = open_small(path, **options)
        found = state_of(wal)
        assert found in between(old, operation.model(old)), f"{'after' if after else 'before'} step {step}"
        wal.append(b"after")
        kill(wal)
        wal = open_small(path, **options)
        assert appended(b"after")(found) == state_of(wal)
        wal.close()


# -- at every place where CPython looks for signals


def interruptible(code: CodeType) -> set[int]:
    """Offsets of the instructions at which CPython 3.11 and newer may raise what a signal handler raised.

    That is after a call into C and at the entry of a function, not between any two instructions; and only where the next
    one is guarded by the same ``try`` or ``with`` as the call, since a pending signal is raised from within the call.
    """
    # The entry of a context manager's __exit__ is left out: no Python code can guard against an interrupt there.
    offsets: set[int] = set()
    guards = dis._parse_exception_table(code)  # type: ignore[attr-defined]

    def guard(offset: int) -> list[int]:
        return [entry.target for entry in guards if entry.start <= offset < entry.end]

    previous = None
    for instruction in dis.get_instructions(code):
        if previous is not None:
            called = previous.opname.startswith("CALL")
            entered = previous.opname == "RESUME" and code.co_name != "__exit__"
            if (called or entered) and guard(previous.offset) == guard(instruction.offset):
                offsets.add(instruction.offset)
        if instruction.opname != "CACHE":
            previous = instruction
    return offsets


class SignalAt:
    """Raises KeyboardInterrupt at the n-th place in pmwal's own code at which a signal could be noticed."""

    _known: dict[CodeType, set[int]] = {}  # noqa: RUF012 - a cache

    def __init__(self, number: int) -> None:
        self.left = number
        self.raised_in = ""
        self._called_python: set[int] = set()  # frames that are about to return from a call of a Python function

    def __enter__(self) -> SignalAt:
        gc.disable()  # or the finalizer of a handle dropped earlier could take the interrupt, and Python would swallow it
        self._before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # Python 3.12 sends events of instructions only if one asked before settrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        gc.enable()

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        self._called_python.add(id(frame.f_back))
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if frame.f_code not in self._known:
            self._known[frame.f_code] = interruptible(frame.f_code)
        return self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event != "opcode":
            return self._step
        returned = id(frame) in self._called_python
        self._called_python.discard(id(frame))
        if not returned and frame.f_lasti in self._known[frame.f_code]:
            self.left -= 1
            if self.left < 0 and not self.raised_in:
                self.raised_in = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                raise KeyboardInterrupt
        return self._step


EVERYWHERE = ("append", "reserve")
ELSEWHERE = [name for name in OPERATIONS if name not in (*EVERYWHERE, "catch up", "truncate all", "rollback all")]
"""These go through much of the same code, so they are interrupted at every third place."""


@pytest.mark.parametrize(
    "places",
    first_fast([*((name, first, 5) for name in EVERYWHERE for first in range(5)), *((name, 0, 3) for name in ELSEWHERE)]),
    ids=lambda places: "{}-{}-by-{}".format(*places),
)
def test_keyboard_interrupt_anywhere_leaves_no_lock_held_and_no_half_record(shm_dir: Path, places: tuple[str, int, int]) -> None:
    """Scenario 24: at every place in pmwal's code where CPython looks for signals, not only at the steps of the seam."""
    name, number, stride = places
    operation = OPERATIONS[name]
    path = shm_dir / "test.wal"
    while interrupt_once(path, STRICT if number % 2 else PIPELINED, operation, number):
        path.unlink()
        number += stride
    # Newer CPythons look for signals at fewer places, so only on 3.11 can the count say that nothing was passed over.
    assert number > (20 if sys.version_info < (3, 12) else 5)


def interrupt_once(path: Path, options: dict[str, Any], operation: Operation, number: int) -> bool:
    """Interrupt an operation at one place, and check what is left; False when it has fewer places."""
    wal, _ = prepare(path, options, BarrierRecorder(), operation.size)
    try:
        old = state_of(wal)
        signal_at = SignalAt(number)
        with contextlib.suppress(KeyboardInterrupt), signal_at:
            operation.run(wal)
        where = f"interrupted at place {number} in {signal_at.raised_in}"
        engine = wal._engine
        assert (owned(engine.writing), owned(engine.guard)) == (False, False), where
        shown = state_of(wal)
        assert shown in between(old, operation.model(old)), where
        wal.append(b"after")
        assert appended(b"after")(shown) == state_of(wal), where
    finally:
        kill(wal)
    wal = open_small(path, **STRICT)
    try:
        assert appended(b"after")(shown) == state_of(wal), where
    finally:
        kill(wal)
    return bool(signal_at.raised_in)


@pytest.mark.slow
@pytest.mark.parametrize("commit", ["each", "manual"])
def test_every_record_is_found_after_an_interrupted_rollback(shm_dir: Path, commit: str) -> None:
    """Found by the run-time checks: an index entry of a discarded record misled look-ups, which called whole records damaged.

    With "manual" records are pending, and the slot of a change that was interrupted is ahead of the state.
    """
    path = shm_dir / "test.wal"
    raised_in, number = "?", 0
    while raised_in:
        wal = open_small(path, size="256KiB", commit=commit)
        wal.extend([b"old" * 1000] * 40)
        assert len(wal._engine.index.entries) > 2
        with contextlib.suppress(KeyboardInterrupt), SignalAt(number) as signal_at:
            wal.rollback(after=5)
        raised_in = signal_at.raised_in
        first, last = wal.extend([b"new" * 800] * 40)
        assert {wal[seq].data for seq in range(first, last + 1, 5)} == {b"new" * 800}, raised_in
        kill(wal)
        path.unlink()
        number += 1
    assert number > 5


@pytest.mark.parametrize("first", first_fast([0, 3, 6]))
def test_interrupted_truncate_of_a_log_of_events_holds_no_lock(shm_dir: Path, first: int) -> None:
    """Copies of definitions may have to be stored, so a truncate takes ``writing`` if it is free, and lets it go again."""
    path = shm_dir / "test.wal"
    raised_in, number = "?", first
    while raised_in:
        wal = open_small(path)
        event = pmwal.events.Logger(wal).event("{} of {}")
        for part in range(4):
            event(part, 4)
        with contextlib.suppress(KeyboardInterrupt), SignalAt(number) as signal_at:
            wal.truncate(before=wal.next_seq - 1)
        raised_in = signal_at.raised_in
        assert (owned(wal._engine.writing), owned(wal._engine.guard)) == (False, False), raised_in
        event(5, 5)
        kill(wal)
        path.unlink()
        number += 9
    assert number > 10


@pytest.mark.parametrize("commit", ["each", 60.0])
def test_interrupted_close_can_be_called_again(shm_dir: Path, commit: Any) -> None:
    """Wherever the interrupt came, also in the last steps: the second call lets the log go, with its descriptors."""
    path = shm_dir / "test.wal"
    raised_in, number, times = "?", 0, 1
    stride = 2 if commit == "each" else 7
    while raised_in:
        before = set(os.listdir("/proc/self/fd"))
        wal = open_small(path, commit=commit, on_full="overwrite")
        wal.append(b"x")
        with contextlib.suppress(KeyboardInterrupt), SignalAt(number) as signal_at:
            wal.close()
        raised_in = signal_at.raised_in
        wal.close()
        where = f"interrupted at place {number} in {raised_in}"
        assert wal.closed, where
        assert set(os.listdir("/proc/self/fd")) <= before, where
        with open_small(path) as again:
            assert again.committed_seq == times, where
        times, number = times + 1, number + stride
    assert number > (10 if sys.version_info < (3, 12) else 5)


@pytest.mark.parametrize("first", first_fast([0, 1, 2]))
def test_interrupted_resize_leaves_the_log_in_use_or_ends_the_handle(shm_dir: Path, first: int) -> None:
    """In its old file or in its new one, with every record, and no lock held."""
    path, outcomes = shm_dir / "test.wal", set[tuple[int, bool]]()
    raised_in, number = "?", first
    while raised_in:
        path.unlink(missing_ok=True)
        wal = open_small(path, medium="file")
        wal.extend([b"one", b"two"])
        with warnings.catch_warnings(), contextlib.suppress(KeyboardInterrupt), SignalAt(number) as signal_at:
            warnings.simplefilter("ignore", ResourceWarning)  # of a file between open() and the block that closes it
            wal.resize("64KiB")
        raised_in = signal_at.raised_in
        where = f"interrupted at place {number} in {raised_in}"
        engine = wal._engine
        assert (owned(engine.writing), owned(engine.guard), owned(wal._resizing)) == (False, False, False), where
        failed = wal._access.poisoned
        if not failed:
            assert wal.append(b"after") == 3, where
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pmwal.UnlinkedWarning)
            wal.close()
        with open_small(path, medium="file") as again:
            assert [record.data for record in again] == [b"one", b"two", b"after"][: 2 if failed else 3], where
            outcomes.add((again.capacity, failed))
        number += 7 if first else 61
    assert {(16384, False), (65536, False)} <= outcomes


def test_handle_dropped_after_an_interrupted_close_lets_the_log_go(shm_dir: Path) -> None:
    """As a ``with`` block does that Ctrl-C ends twice: nobody calls close again."""
    path = shm_dir / "test.wal"
    raised_in, number = "?", 0
    while raised_in:
        wal: pmwal.Wal | None = open_small(path)
        assert wal is not None
        with warnings.catch_warnings(), contextlib.suppress(KeyboardInterrupt):
            warnings.simplefilter("ignore", ResourceWarning)
            with SignalAt(number) as signal_at:
                wal.close()
        raised_in = signal_at.raised_in
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            wal = None
            gc.collect()
        open_small(path).close()
        number += 5


@pytest.mark.parametrize("exists", [True, False], ids=["existing", "new"])
def test_interrupted_open_leaves_no_lock(shm_dir: Path, exists: bool) -> None:
    """Wherever it came, before the caller had a handle: the log can be opened again."""
    path = shm_dir / "test.wal"
    raised_in, number = "?", 0
    while raised_in:
        if exists:
            open_small(path).close()
        else:
            path.unlink(missing_ok=True)
        handles = []
        with warnings.catch_warnings(), contextlib.suppress(KeyboardInterrupt):
            warnings.simplefilter("ignore", ResourceWarning)
            with SignalAt(number) as signal_at:
                handles.append(open_small(path))
        raised_in = signal_at.raised_in
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            handles.clear()
            gc.collect()
        open_small(path).close()
        assert lock._locked == set()
        number += 31
    assert number > 60
