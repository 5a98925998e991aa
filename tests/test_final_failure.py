"""A failed barrier is final, whatever interrupts the call that met it; what a caller throws into an iterator is no failure."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from marks import first_fast
from pmwal.writing.access import Access
from support import BarrierRecorder, Step, fail_flush, kill, open_small
from test_interrupts import SignalAt

pytestmark = pytest.mark.both_engines

CALLS: dict[str, Callable[[pmwal.Wal], object]] = {
    "append": lambda wal: wal.append(b"x"),
    "extend": lambda wal: wal.extend([b"x", b"y"]),
    "commit": lambda wal: wal.commit(),
    "truncate": lambda wal: wal.truncate(before=3),
    "rollback": lambda wal: wal.rollback(after=3),
    "close": lambda wal: wal.close(),
}


def refuse_flushes(seam: BarrierRecorder) -> list[Step]:
    """Let every flush fail from now on; the list of those that did."""
    failed: list[Step] = []
    fail = fail_flush()

    def refuse(step: Step) -> None:
        if step.name == "flush":
            failed.append(step)
        fail(step)

    seam.before = refuse
    return failed


def prepared(path: Path, ordering: str, seam: BarrierRecorder) -> pmwal.Wal:
    """A log with some durable records and one that is not."""
    wal = open_small(path, seam=seam, medium="file", ordering=ordering)
    wal.extend([b"a", b"b", b"c", b"d"])
    wal.append(b"pending", commit=False)
    return wal


@pytest.mark.parametrize("name", first_fast(CALLS))
def test_interrupt_anywhere_after_a_failed_barrier_leaves_it_final(path: Path, ordering: str, name: str) -> None:
    """At every place where CPython looks for signals: once msync has failed nothing more is acknowledged, by any later call."""
    number, interrupted, failures = 0, True, 0
    while interrupted:
        path.unlink(missing_ok=True)
        seam = BarrierRecorder()
        wal = prepared(path, ordering, seam)
        failed = refuse_flushes(seam)
        durable = wal.committed_seq
        with SignalAt(number) as at, contextlib.suppress(KeyboardInterrupt, pmwal.PersistError):
            CALLS[name](wal)
        number += 1
        interrupted = bool(at.raised_in)
        if failed:
            failures += 1
            seam.before = None  # the medium would work again, and must not be asked
            assert wal.committed_seq == durable, at.raised_in
            if not wal.closed:
                for call in (lambda wal: wal.append(b"after"), lambda wal: wal.commit(), lambda wal: wal.wait_durable(1)):
                    with pytest.raises(pmwal.PersistError) as caught:
                        call(wal)
                    assert caught.value.errno == errno.EIO
                assert [record.seq for record in wal] == list(range(1, durable + 1)), at.raised_in
        kill(wal)
    assert failures > (3 if sys.version_info < (3, 12) else 1)  # newer CPythons look for signals at fewer places


def test_interrupt_in_place_of_the_failure_still_poisons(path: Path, ordering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst place: on entry to what would have poisoned the handle."""
    seam = BarrierRecorder()
    wal = prepared(path, ordering, seam)
    fail, interrupts = Access.fail, [KeyboardInterrupt()]

    def interrupted(self: Access, error: OSError) -> pmwal.PersistError:
        if interrupts:
            raise interrupts.pop()
        return fail(self, error)

    monkeypatch.setattr(Access, "fail", interrupted)
    seam.before = fail_flush()
    with pytest.raises(KeyboardInterrupt):
        wal.append(b"x")
    seam.before = None
    assert wal.committed_seq == 4
    with pytest.raises(pmwal.PersistError):
        wal.append(b"after")
    assert wal.stats().errors == 1
    wal.close()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "mine"), FileNotFoundError("mine"), pmwal.PersistError(5, "of another log")])
@pytest.mark.parametrize(
    "iterate", [lambda wal: wal.read(), iter, lambda wal: wal.follow(timeout=0)], ids=["read", "iter", "follow"]
)
def test_error_that_is_thrown_into_an_iterator_comes_back(path: Path, error: OSError, iterate: Callable[[Any], Any]) -> None:
    """It says nothing about the medium, so the log stays usable."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c"])
        records = iterate(wal)
        assert next(records).seq == 1
        if hasattr(records, "throw"):  # the native iterator of read is no generator
            with pytest.raises(OSError) as caught:
                records.throw(error)
            assert caught.value is error
        assert wal.append(b"d") == 4
        assert wal.stats().errors == 0
