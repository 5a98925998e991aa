"""Batches, threads, interrupts and re-entry (scenarios 21, 22, 24 to 24c): all or nothing, and never something else's."""

from __future__ import annotations

import contextlib
import dis
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest

import pmwal
from conftest import Place
from images import Interrupter, Reopener, Trace, between, brief, images, state_of, sweep
from pmwal.format.layout import HEADER, LINE
from pmwal.testing import PowerCutModel
from pmwal.testing._simulator.model import Found
from pmwal.writing.access import owned
from pmwal.writing.wal import Wal
from support import BarrierRecorder, Crash, Step, contents, kill, open_small, payloads, superblock

DAX: dict[str, Any] = {"medium": "emulated-dax", "ordering": "strict"}
STRICT: dict[str, Any] = {"medium": "file", "ordering": "strict"}
PIPELINED: dict[str, Any] = {"medium": "file", "ordering": "pipelined"}
CRASH_MEDIA = pytest.mark.parametrize("options", [DAX, STRICT, PIPELINED], ids=["lines", "pages", "pipelined"])
PACKAGE = str(Path(pmwal.__file__).parent)


# -- 21


def to_position(wal: Wal, position: int) -> None:
    """Let the log end at a position of the first lap of a 4 KiB ring, and be empty."""
    left = position - wal._engine.state.head.position
    for size in (left // 2 // LINE * LINE, left - left // 2 // LINE * LINE):
        if size:
            wal.append(bytes(size - HEADER))
    wal.truncate(before=wal.next_seq)
    assert position == wal._engine.state.head.position


def batch_of(items: list[bytes]) -> Callable[[Wal], None]:
    """Store the items through ``batch()``."""

    def run(wal: Wal) -> None:
        with wal.batch() as batch:
            for item in items:
                batch.append(item)

    return run


@CRASH_MEDIA
@pytest.mark.parametrize("start", [64, 4096 - 448, 4096 - 128, 4096 - 64])
def test_batch_is_there_as_a_whole_or_not_at_all_at_every_crash(shm_dir: Path, options: dict[str, Any], start: int) -> None:
    """Scenario 21: in the middle of the ring, and over its end after each of the batch's records."""
    items = [b"%d" % number * 50 for number in range(5)]
    operations: list[Any] = [lambda wal: wal.extend(items), lambda wal: wal.append(b"after"), batch_of(items)]
    before = [lambda wal: to_position(wal, start), lambda wal: wal.append(b"before") if start == 64 else None]
    trace = Trace.run(shm_dir / "test.wal", {**options, "size": 4096}, operations, before=before)
    assert sweep(trace, shm_dir / "image.wal", options, seed=21, extra=8) > 30


@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize("start", [0, 4096 - 320])
def test_batch_killed_after_any_number_of_its_stores_is_gone(shm_place: Place, count: int, start: int) -> None:
    """Scenario 21 with the page cache kept: only the whole batch counts, and a half stored record counts for nothing."""
    seam = BarrierRecorder()
    wal = open_small(shm_place.path, seam=seam, size=4096, align=8, **shm_place.options)
    if start:
        to_position(wal, start)
    wal.append(b"before")
    seam.events.clear()
    base = shm_place.path.read_bytes()
    with wal.batch() as batch:
        for number in range(count):
            batch.append(b"%d" % number * 60)
    kill(wal)
    stores = [event for event in seam.events if event.name == "store" and event.offset >= superblock(shm_place.path).ring_offset]
    assert count == len(stores)
    image = bytearray(base)
    for index, event in enumerate(stores):
        for cut in (0, 8, HEADER, HEADER + 8, event.length - 8):
            image[event.offset : event.offset + cut] = event.data[:cut]
            shm_place.path.write_bytes(image)
            wal = open_small(shm_place.path, **shm_place.options)
            # Nothing but padding may be missing from a record that counts.
            whole = index == count - 1 and event.data[cut:] == bytes(event.length - cut)
            assert [b"before", *(b"%d" % number * 60 for number in range(count if whole else 0))] == payloads(wal), (index, cut)
            kill(wal)
        image[event.offset : event.offset + event.length] = event.data
    shm_place.path.write_bytes(image)
    wal = open_small(shm_place.path, **shm_place.options)
    assert count + 1 == len(wal)
    wal.close()


def test_tail_inside_a_batch_is_no_unfinished_batch(shm_place: Place) -> None:
    """Scenario 21: truncate and rollback may cut a batch; what is left of it stays."""
    wal = open_small(shm_place.path, **shm_place.options)
    wal.extend([b"%d" % number for number in range(1, 7)])
    wal.truncate(before=3)
    wal.rollback(after=5)
    kill(wal)
    for _ in range(2):
        wal = open_small(shm_place.path, **shm_place.options)
        assert contents(wal) == [(3, b"3"), (4, b"4"), (5, b"5")]
        kill(wal)


# -- 22


class Stall:
    """A hook that holds the first step of a kind until it is let go."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached = threading.Event()
        self.go = threading.Event()

    def __call__(self, event: Step) -> None:
        if event.name == self.name and not self.reached.is_set():
            self.reached.set()
            assert self.go.wait(30)


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
@pytest.mark.parametrize("step", ["store", "flush"])
def test_acknowledged_record_implies_the_unfinished_one_before_it(shm_dir: Path, ordering: str, step: str) -> None:
    """Scenario 22: B's record follows A's, whose store or flush hangs; B waits, or A's record is durable when B returns."""
    path = shm_dir / "test.wal"
    seam = BarrierRecorder()
    wal = open_small(path, seam=seam, medium="file", ordering=ordering)
    trace = Trace.start(wal)
    stall = Stall(step)
    seam.before = stall
    acknowledged: list[int] = []
    first = threading.Thread(target=wal.append, args=(b"A",))
    first.start()
    assert stall.reached.wait(30)
    second = threading.Thread(target=lambda: acknowledged.append(wal.append(b"B")))
    second.start()
    second.join(0.05)
    if acknowledged:
        disk = PowerCutModel("page", trace.base)
        for event in list(seam.events):
            disk.take(event)
        assert b"A" in bytes(disk.held)
    stall.go.set()
    first.join(30)
    second.join(30)
    assert contents(wal) == [(1, b"A"), (2, b"B")]
    kill(wal)


def test_threads_see_every_acknowledged_record_after_a_power_cut(shm_dir: Path) -> None:
    """Scenario 22 in bulk: at each acknowledgement the worst power cut keeps that record and all before it."""
    path = shm_dir / "test.wal"
    seam = BarrierRecorder()
    wal = open_small(path, seam=seam, size=65536, **PIPELINED)
    trace = Trace.start(wal)
    acknowledged: list[tuple[int, int]] = []

    def work(name: int) -> None:
        for number in range(12):
            seq = wal.append(b"%d.%d" % (name, number), commit=number % 3 > 0)
            if number % 3:
                acknowledged.append((len(seam.events), seq))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    wal.commit()
    everything = contents(wal)
    assert list(range(1, 49)) == [seq for seq, _ in everything]
    kill(wal)
    reopened = Reopener(path, PIPELINED)
    disk = PowerCutModel("page", trace.base)
    done = 0
    for steps, seq in sorted(acknowledged):
        for event in seam.events[done:steps]:
            disk.take(event)
        done = steps
        found = reopened(bytes(disk.held))
        assert tuple(everything[: len(found.items)]) == found.items
        assert seq <= len(found.items)


# -- 24: exceptions at every step and at every call


class Operation(NamedTuple):
    """Something to interrupt: what it does, what it makes of a state, and the size of the records that are there before."""

    run: Callable[[Wal], object]
    model: Callable[[Found], Found]
    size: int = 30


def appended(*items: bytes) -> Callable[[Found], Found]:
    """The state after these records."""

    def model(state: Found) -> Found:
        next_seq = state.first_seq + len(state.items)
        return state._replace(items=state.items + tuple((next_seq + at, item) for at, item in enumerate(items)))

    return model


def reserved(wal: Wal) -> None:
    """Store a record through ``reserve``."""
    with wal.reserve(70) as view:
        view[:] = b"r" * 70


def cut(first: int, last: int) -> Callable[[Found], Found]:
    """The state after all but records ``first`` to ``last`` are gone."""
    return lambda state: Found(first, tuple(item for item in state.items if first <= item[0] <= last))


ITEMS = [b"1" * 70, b"2" * 20, b"3" * 70]
OPERATIONS = {
    "append": Operation(lambda wal: wal.append(ITEMS[0]), appended(ITEMS[0])),
    "append uncommitted": Operation(lambda wal: wal.append(ITEMS[0], commit=False), appended(ITEMS[0])),
    "extend": Operation(lambda wal: wal.extend(ITEMS), appended(*ITEMS)),
    "batch": Operation(batch_of(ITEMS), appended(*ITEMS)),
    "reserve": Operation(reserved, appended(b"r" * 70)),
    "commit": Operation(lambda wal: wal.commit(), lambda state: state),
    "catch up": Operation(lambda wal: (wal.commit(), wal.commit()), lambda state: state),
    "truncate": Operation(lambda wal: wal.truncate(before=3), cut(3, 1 << 60)),
    "truncate all": Operation(lambda wal: wal.truncate(before=wal.next_seq), lambda state: Found(7, ())),
    "rollback": Operation(lambda wal: wal.rollback(after=2), cut(1, 2)),
    "rollback all": Operation(lambda wal: wal.rollback(after=0), cut(1, 0)),
    "overwrite": Operation(lambda wal: wal.append(b"o" * 700), lambda state: cut(3, 6)(appended(b"o" * 700)(state)), 700),
}


def prepare(path: Path, options: dict[str, Any], seam: BarrierRecorder, size: int = 30) -> tuple[Wal, Trace]:
    """A log with acknowledged records and some that are only stored: four and two, or as many of 700 bytes as there is room."""
    wal = open_small(path, seam=seam, size=4096, on_full="overwrite", **options)
    acknowledged, stored = (range(1, 5), (5, 6)) if size == 30 else (range(1, 4), (4, 5))
    for number in acknowledged:
        wal.append(b"%d" % number * size)
    trace = Trace.start(wal)
    for number in stored:
        wal.append(b"%d" % number * size, commit=False)
    trace.mark(wal)
    return wal, trace


def steps_of(path: Path, options: dict[str, Any], operation: Operation) -> int:
    """How many steps through the seam an operation takes."""
    seam = BarrierRecorder()
    wal, _ = prepare(path, options, seam, operation.size)
    before, old = len(seam.events), state_of(wal)
    operation.run(wal)
    assert operation.model(old) == state_of(wal)
    kill(wal)
    path.unlink()
    return len(seam.events) - before


@CRASH_MEDIA
@pytest.mark.parametrize("name", OPERATIONS)
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


@pytest.mark.parametrize("name", OPERATIONS)
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
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

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


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("catch up", "truncate all", "rollback all")])
def test_keyboard_interrupt_anywhere_leaves_no_lock_held_and_no_half_record(shm_dir: Path, name: str) -> None:
    """Scenario 24: at every place in pmwal's code where CPython looks for signals, not only at the steps of the seam."""
    operation = OPERATIONS[name]
    path = shm_dir / "test.wal"
    number = 0
    stride = 1 if name in ("append", "reserve") else 3  # the others go through much of the same code
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


def test_every_record_is_found_after_an_interrupted_rollback(shm_dir: Path) -> None:
    """Found by the run-time checks: an index entry of a discarded record misled look-ups, which called whole records damaged."""
    path = shm_dir / "test.wal"
    raised_in, number = "?", 0
    while raised_in:
        wal = open_small(path, size="256KiB")
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


def test_exception_in_the_iterable_of_extend_stores_nothing(place: Place) -> None:
    """Scenario 24: the items are taken before the first is stored."""
    seam = BarrierRecorder()
    wal = open_small(place.path, seam=seam, **place.options)
    wal.append(b"before")
    seam.events.clear()

    def items(error: type[BaseException]) -> Iterator[bytes]:
        yield b"one"
        yield b"two"
        raise error

    for error in (ValueError, KeyboardInterrupt, MemoryError, GeneratorExit):
        with pytest.raises(error):
            wal.extend(items(error))
    for wrong in (["text"], [b"fine", 5], [b"fine", None]):
        with pytest.raises(TypeError):
            wal.extend(wrong)
    assert seam.events == []
    assert wal.append(b"after") == 2
    assert payloads(wal) == [b"before", b"after"]
    wal.close()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError, SystemExit])
def test_exception_inside_reserve_or_batch_commits_nothing(place: Place, error: type[BaseException]) -> None:
    """Scenario 24: the next append takes the number, and nothing half-made is there after a kill either."""
    wal = open_small(place.path, **place.options)
    wal.append(b"before")

    def fill_and_fail(view: memoryview) -> None:
        view[:50] = b"x" * 50
        raise error

    def stage_and_fail(batch: pmwal.Batch) -> None:
        assert batch.append(b"y" * 100) == 2
        raise error

    with pytest.raises(error), wal.reserve(100) as view:
        fill_and_fail(view)
    with pytest.raises(error), wal.batch() as batch:
        stage_and_fail(batch)
    with pytest.raises(ValueError, match="not open"):
        batch.append(b"late")
    assert wal.append(b"after") == 2
    kill(wal)
    wal = open_small(place.path, **place.options)
    assert payloads(wal) == [b"before", b"after"]
    wal.close()


# -- 24a


@CRASH_MEDIA
@pytest.mark.parametrize("stored", [1, 2, 3])
def test_rest_of_a_discarded_batch_does_not_follow_a_new_record(shm_dir: Path, options: dict[str, Any], stored: int) -> None:
    """Scenario 24a: a batch of three is interrupted after some stores; a new record takes the first one's place; SIGKILL."""
    path = shm_dir / "test.wal"
    seam = Interrupter()
    wal = open_small(path, seam=seam, **options)
    wal.append(b"before")
    items = [b"old %d" % number * 10 for number in range(3)]
    seam.arm(stored - 1, after=True, error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        wal.extend(items)
    assert payloads(wal) == [b"before"]
    assert wal.append(b"new 0" * 10) == 2
    assert payloads(wal) == [b"before", b"new 0" * 10]
    kill(wal)
    raw = path.read_bytes()
    assert [number < stored for number in (1, 2)] == [items[number] in raw for number in (1, 2)], "the old ones are still there"
    for _ in range(2):
        wal = open_small(path, **options)
        assert contents(wal) == [(1, b"before"), (2, b"new 0" * 10)]
        kill(wal)


# -- 24b


def calls_inside(wal: Wal) -> list[Callable[[], object]]:
    """What a signal handler might do, an append first."""
    return [lambda: wal.append(b"inner"), wal.commit, lambda: wal.truncate(before=2), lambda: len(list(wal))]


def attempt(call: Callable[[], object]) -> object:
    """What a call returns, or the error that refuses it."""
    try:
        return call()
    except pmwal.ReentrantCall as error:
        return error


@pytest.mark.parametrize("name", OPERATIONS)
def test_call_from_inside_a_call_works_or_raises_at_every_step(shm_place: Place, name: str) -> None:
    """Scenario 24b: what a signal handler or ``__del__`` may do at any step: no deadlock, no hole, the outer call is whole."""
    operation = OPERATIONS[name]
    path = shm_place.path
    for step in range(steps_of(path, dict(shm_place.options), operation)):
        seam = BarrierRecorder()
        path.unlink(missing_ok=True)
        wal, _ = prepare(path, dict(shm_place.options), seam, operation.size)
        old = state_of(wal)
        left = step
        inner: list[object] = []

        def reenter(event: Step) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                inner.extend(attempt(call) for call in calls_inside(wal))  # noqa: B023

        seam.before = reenter
        operation.run(wal)
        assert len(inner) == 4
        assert isinstance(inner[0], pmwal.ReentrantCall)
        assert operation.model(old) == state_of(wal), f"at step {step}"
        wal.append(b"after")
        final = state_of(wal)
        kill(wal)
        wal = open_small(path, **shm_place.options)
        assert final == state_of(wal)
        wal.close()


def test_append_from_a_signal_handler_never_deadlocks(place: Place) -> None:
    """Scenario 24b with a real signal, delivered while the outer append stores and while it flushes."""
    seam = BarrierRecorder()
    wal = open_small(place.path, seam=seam, **place.options)
    outcomes: list[str] = []

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            wal.append(b"handler")
            outcomes.append("stored")
        except pmwal.ReentrantCall:
            outcomes.append("refused")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        seam.before = lambda event: signal.raise_signal(signal.SIGUSR1)
        wal.append(b"outer")
        seam.before = None
        assert {"refused"} == set(outcomes)
        signal.raise_signal(signal.SIGUSR1)
        assert outcomes[-1] == "stored"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert contents(wal) == [(1, b"outer"), (2, b"handler")]
    wal.close()


def test_append_from_the_iterable_of_extend_takes_its_own_number_first(place: Place) -> None:
    """Scenario 24b: the iterable runs before the batch has numbers, so its append works and leaves no hole."""
    wal = open_small(place.path, **place.options)

    def items() -> Iterator[bytes]:
        yield b"item 1"
        assert wal.append(b"from the iterable") == 1
        yield b"item 2"

    assert wal.extend(items()) == (2, 3)
    assert payloads(wal) == [b"from the iterable", b"item 1", b"item 2"]
    wal.close()


def test_append_from_del_inside_a_call_is_refused_and_outside_works(shm_place: Place) -> None:
    """Scenario 24b: an object that appends when it dies, dropped in the middle of an append, and between two."""
    seam = BarrierRecorder()
    wal = open_small(shm_place.path, seam=seam, **shm_place.options)
    outcomes: list[str] = []

    class Dying:
        def __del__(self) -> None:
            try:
                wal.append(b"last words")
                outcomes.append("stored")
            except pmwal.ReentrantCall:
                outcomes.append("refused")

    held = [Dying()]

    def drop(event: Step) -> None:
        held.clear()

    seam.before = drop
    wal.append(b"outer")
    seam.before = None
    held.append(Dying())
    held.clear()
    assert outcomes == ["refused", "stored"]
    assert contents(wal) == [(1, b"outer"), (2, b"last words")]
    wal.close()


def test_calls_inside_an_open_batch_or_reserve_are_refused_on_its_thread_and_wait_on_others(place: Place) -> None:
    """Scenario 24b: the holder's own thread gets ReentrantCall; another thread's append follows without a hole."""
    wal = open_small(place.path, **place.options)
    numbers: list[int] = []
    with wal.batch() as batch:
        batch.append(b"1")
        other = threading.Thread(target=lambda: numbers.append(wal.append(b"3")))
        other.start()
        calls = [lambda: wal.append(b"x"), lambda: wal.extend([b"x"]), lambda: wal.reserve(1), wal.batch, lambda: wal.rollback(0)]
        for call in calls:
            with pytest.raises(pmwal.ReentrantCall):
                call()  # type: ignore[no-untyped-call]
        batch.append(b"2")
    other.join(30)
    assert (numbers, payloads(wal)) == ([3], [b"1", b"2", b"3"])
    with wal.reserve(1) as view:
        view[:] = b"4"
        other = threading.Thread(target=lambda: numbers.append(wal.append(b"5")))
        other.start()
        with pytest.raises(pmwal.ReentrantCall):
            wal.append(b"x")
    other.join(30)
    assert (numbers, b"".join(payloads(wal))) == ([3, 5], b"12345")
    wal.close()


# -- 24c


KEEPERS: dict[str, Callable[[memoryview], Any]] = {
    "slice": lambda view: view[3:9],
    "array": lambda view: np.frombuffer(view, np.uint8),
    "view": memoryview,
}


@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS.keys())
def test_view_that_outlives_its_reserve_is_not_committed(place: Place, keep: Callable[[memoryview], Any]) -> None:
    """Scenario 24c: whoever still holds the bytes could change them after their checksum was taken."""
    wal = open_small(place.path, **place.options)
    reservation = wal.reserve(100)
    kept: list[Any] = []
    with pytest.raises(BufferError), reservation as view:
        kept.append(keep(view))
    with pytest.raises(ValueError, match="no number"):
        assert reservation.seq
    assert wal.append(b"next") == 1
    kept[0][0] = 9  # harmless now
    kept.clear()
    assert payloads(wal) == [b"next"]
    kill(wal)
    wal = open_small(place.path, **place.options)
    assert payloads(wal) == [b"next"]
    wal.close()


def test_reserved_view_cannot_be_used_after_its_block(shm_place: Place) -> None:
    """Scenario 24c: the view is released before the record is stored, and it begins as zeros."""
    wal = open_small(shm_place.path, **shm_place.options)
    wal.append(b"\xff" * 300)
    wal.truncate(before=2)
    reservation = wal.reserve(64)
    with reservation as view:
        assert bytes(64) == bytes(view)
        view[:5] = b"hello"
    with pytest.raises(ValueError, match="released"):
        view[0] = 1
    assert b"hello".ljust(64, b"\0") == wal[reservation.seq].data
    wal.close()


@pytest.mark.parametrize("kind", ["append", "extend", "batch"])
def test_source_changed_while_it_is_stored_does_not_change_the_record(place: Place, kind: str) -> None:
    """Scenario 24c: at each step of the call the caller's bytearray gets other bytes; the record is what it was at the call."""
    seam = BarrierRecorder()
    wal = open_small(place.path, seam=seam, **place.options)
    source = bytearray(b"original" * 20)
    value = 0

    def change(event: Step) -> None:
        nonlocal value
        value += 1
        source[:] = bytes([value % 256]) * len(source)

    seam.before = change
    if kind == "append":
        wal.append(source)
    elif kind == "extend":
        wal.extend([source, memoryview(source)])
    else:
        with wal.batch() as batch:
            batch.append(source)
            source[:] = b"too late" * 20
    seam.before = None
    assert value > 0
    assert {b"original" * 20} == set(payloads(wal))
    kill(wal)
    wal = open_small(place.path, **place.options)
    assert {b"original" * 20} == set(payloads(wal))
    wal.close()


def test_source_changed_by_another_thread_never_breaks_a_checksum(shm_place: Place) -> None:
    """Scenario 24c with a thread that changes the bytearray all the time: every record reads back whole."""
    wal = open_small(shm_place.path, on_full="overwrite", **shm_place.options)
    source = bytearray(3000)
    stop = threading.Event()

    def change() -> None:
        value = 0
        while not stop.is_set():
            value = (value + 1) % 256
            source[:] = bytes([value]) * 3000

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(150):
            seq = wal.append(source)
            assert seq == wal[seq].seq
    finally:
        stop.set()
        thread.join(30)
    kill(wal)
    assert pmwal.verify(shm_place.path).outcome == "recovered"
