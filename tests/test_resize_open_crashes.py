"""An open log that is resized while something happens to it: calls at chosen moments, failures, crashes, power cuts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from callers import Call
from pmwal.errors import PersistError
from pmwal.format.layout import LIVE_OFFSET, PAGE
from pmwal.testing import PowerCutModel
from pmwal.writing import resizing as resizing_module
from resizing import filled, resized
from support import BarrierRecorder, Crash, Step, kill, look, open_small, superblock

pytestmark = pytest.mark.both_engines


# -- what happens while records are copied, at a moment that the test chooses


@pytest.mark.parametrize("step", ["allocate", "write", "sync"])
def test_records_stored_meanwhile_are_in_the_new_file(path: Path, step: str) -> None:
    """Whenever they were stored."""
    expected: list[pmwal.Record] = []

    def act(wal: pmwal.Wal) -> None:
        wal.append(b"one")
        wal.extend([b"two", bytes(5000)])
        expected.extend(wal)

    with resized(path, step, act) as wal:
        assert list(wal) == expected
        assert wal.append(b"next") == expected[-1].seq + 1


def test_records_stored_while_the_rest_is_written_are_in_the_new_file(path: Path) -> None:
    """The last ones are copied when nobody can store any more."""
    done: list[str] = []

    def before(step: Step) -> None:
        if wal is not None and step.name == ("sync", "write", "")[len(done)]:
            done.append(step.name)
            wal.append(bytes(5000))

    wal: pmwal.Wal | None = None
    wal = filled(path, seam=BarrierRecorder(before))
    done.clear()
    wal.truncate(before=wal.next_seq - 3)
    wal.resize("64KiB")
    assert done == ["sync", "write"]
    assert [len(record.data) for record in wal][-2:] == [5000, 5000]
    wal.close()


@pytest.mark.parametrize("step", ["allocate", "write", "sync"])
@pytest.mark.parametrize("left", [0, 1, 30])
def test_records_truncated_meanwhile_are_not(path: Path, step: str, left: int) -> None:
    """The new log begins where the old one did by then."""
    expected: list[pmwal.Record] = []

    def act(wal: pmwal.Wal) -> None:
        wal.truncate(before=wal.next_seq - left)
        expected.extend(wal)

    with resized(path, step, act) as wal:
        assert list(wal) == expected
        assert wal.first_seq == wal.next_seq - left
        wal.append(b"next")
        expected = list(wal)
    with open_small(path) as wal:
        assert list(wal) == expected


@pytest.mark.parametrize("step", ["allocate", "write", "sync"])
@pytest.mark.parametrize("size", ["64KiB", "20KiB"])
def test_log_that_is_lapped_meanwhile(path: Path, step: str, size: str) -> None:
    """Records that were overwritten before they were read are left out; if they take too much room, all is laid again."""
    expected: list[pmwal.Record] = []

    def act(wal: pmwal.Wal) -> None:
        for number in range(100):
            wal.append(b"%d" % number * 100)
        expected.extend(wal)

    with resized(path, step, act, size) as wal:
        assert list(wal) == expected


def test_log_that_is_lapped_while_it_is_measured(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured again when nobody can store."""
    original, calls = resizing_module.check_fit, 0

    def check_fit(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise pmwal.Overrun("record 7 is gone")
        original(*arguments)

    with filled(path) as wal:
        expected = list(wal)
        monkeypatch.setattr(resizing_module, "check_fit", check_fit)
        wal.resize("64KiB")
        assert (list(wal), calls) == (expected, 2)


@pytest.mark.parametrize("step", ["allocate", "write", "sync"])
@pytest.mark.parametrize("replaced", [False, True], ids=["shorter", "replaced"])
def test_records_rolled_back_meanwhile_are_not_in_the_new_file(path: Path, step: str, replaced: bool) -> None:
    """Nothing of them validates there."""
    expected: list[pmwal.Record] = []

    def act(wal: pmwal.Wal) -> None:
        wal.rollback(after=wal.next_seq - 6)
        if replaced:
            wal.extend([b"other"] * 9)
        expected.extend(wal)

    with resized(path, step, act) as wal:
        assert list(wal) == expected
    assert look(path).report.case == "R1"
    with open_small(path) as wal:
        assert list(wal) == expected


# -- failures and crashes


def at_each_step(
    path: Path, failure: Callable[[], BaseException], check: Callable[[pmwal.Wal | None, list[Any], bool], None]
) -> int:
    """Resize, and fail before the first step, the second, and so on. ``check`` gets the handle, and whether all went well."""
    count, finished = 0, False
    while not finished:
        left: int | None = None

        def before(step: Step) -> None:
            nonlocal left
            del step
            if left is not None:
                if left == 0:
                    left = None
                    raise failure()
                left -= 1

        for name in path.parent.iterdir():
            name.unlink()
        wal = filled(path, seam=BarrierRecorder(before), medium="file")
        expected = list(wal)
        left = count
        try:
            wal.resize("64KiB")
            finished = left is not None
        except BaseException as error:
            if not isinstance(error, type(failure()) | PersistError):
                raise
        left = None
        check(wal, expected, finished)
        count += 1
    return count


def close(wal: pmwal.Wal) -> None:
    """Close a handle, also one that says that another file has its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pmwal.UnlinkedWarning)
        wal.close()


def test_failure_at_any_step_leaves_the_log_in_use(path: Path) -> None:
    """Or ends the handle, if the new file has the name already. All records are there in any case."""
    outcomes = set[tuple[int, bool]]()

    def check(wal: pmwal.Wal, expected: list[Any], finished: bool) -> None:
        failed = wal._access.poisoned
        if failed:
            with pytest.raises(PersistError, match="No space left"):
                wal.append(b"next")
        else:
            assert wal.append(b"next") == expected[-1].seq + 1
            assert wal.capacity == superblock(path).capacity
        assert not (finished and failed)
        outcomes.add((superblock(path).capacity, failed))
        close(wal)
        with open_small(path, medium="file") as again:
            assert list(again)[: len(expected)] == expected
            assert len(again) == len(expected) + (not failed)

    assert at_each_step(path, lambda: OSError(28, os.strerror(28)), check) > 20
    assert outcomes == {(16384, False), (65536, True), (65536, False)}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_interrupt_at_any_step_leaves_the_log_in_use(path: Path, kind: type[BaseException]) -> None:
    """The same."""
    outcomes = set[tuple[int, bool]]()

    def check(wal: pmwal.Wal, expected: list[Any], finished: bool) -> None:
        failed = wal._access.poisoned
        if not failed:
            assert wal.append(b"next") == expected[-1].seq + 1
        outcomes.add((superblock(path).capacity, failed))
        close(wal)
        with open_small(path, medium="file") as again:
            assert list(again)[: len(expected)] == expected
            assert len(again) == len(expected) + (not failed)

    at_each_step(path, kind, check)
    assert {(16384, False), (65536, False)} <= outcomes <= {(16384, False), (65536, True), (65536, False)}


def test_crash_at_any_step_leaves_the_old_file_or_the_new_one(path: Path) -> None:
    """Both with all records."""
    sizes = set[int]()

    def check(wal: pmwal.Wal, expected: list[Any], finished: bool) -> None:
        if not finished:
            kill(wal)
        else:
            wal.close()
        sizes.add(superblock(path).capacity)
        assert look(path).report.outcome in ("clean", "recovered")
        with open_small(path, medium="file") as again:
            assert list(again) == expected
            again.append(b"next")
            again.resize("128KiB")
        assert [name for name in os.listdir(path.parent) if not name.startswith(".pmwal-new-")] == [path.name]

    at_each_step(path, Crash, check)
    assert sizes == {16384, 65536}


def test_new_file_is_durable_before_it_has_a_name(path: Path) -> None:
    """A power cut at the moment of the link leaves every byte of it, but for the live page, which means nothing then."""
    seam = BarrierRecorder()
    with filled(path, seam=seam, medium="file") as wal:
        seam.events.clear()
        wal.resize("64KiB")
        steps = [step.name for step in seam.events]
        written = bytearray(path.read_bytes())
    medium = PowerCutModel("page", bytes(len(written)))
    for step in seam.events[: steps.index("link")]:
        medium.take(step)
    assert steps.index("link") < steps.index("replace")
    held, live = bytearray(medium.held), slice(LIVE_OFFSET, LIVE_OFFSET + PAGE)
    held[live] = written[live] = bytes(PAGE)
    assert held == written


def test_nothing_is_stored_between_the_last_copy_and_the_name(path: Path) -> None:
    """Other threads wait: what they stored in the old file would be lost with it."""
    calls: list[Call] = []
    seam = BarrierRecorder()
    with filled(path, seam=seam, medium="file") as wal:
        expected = list(wal)

        def before(step: Step) -> None:
            if step.name in ("link", "replace") or (step.name == "sync" and "replace" in [event.name for event in seam.events]):
                calls.append(Call(lambda: wal.append(b"other thread")))
                calls[-1].join(0.05)
                assert calls[-1].is_alive()

        seam.events.clear()
        seam.before = before
        wal.resize("64KiB")
        seam.before = None
        assert len(calls) == 3
        numbers = sorted(call.result() for call in calls)
        assert numbers == [expected[-1].seq + number for number in (1, 2, 3)]
        assert list(wal)[: len(expected)] == expected
    with open_small(path) as wal:
        assert wal.next_seq == numbers[-1] + 1
