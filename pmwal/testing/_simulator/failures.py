"""Failing msyncs: what becomes of the pages whose writing failed, and when the caller is told.

The kernel reports a failed write once and counts the pages as clean. What they show then differs by file system, and what the
disk holds of them is any version of before (A6 of docs/durability.md).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pmwal.testing.power_cut import PowerCutModel
from pmwal.testing.recorder import Recorder, Step

PERSONALITIES = ("kept", "reverted", "dropped", "restoring", "late")
"""What a failed msync leaves: the page as it was stored, for good; the old page, at once; the page as it was stored until the
writer's end, or until the next recovery stores it again; or an msync that returns 0, and an error from the next one."""


_OVERTAKEN_SECONDS = 0.05  # how long a barrier waits for another one that must not come


def _io_error() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


@contextmanager
def failing_sync(recorder: Recorder, size: int) -> Iterator[None]:
    """The next sync of the file fails: the kernel reports to it, once, what it could not write for the dead writer."""

    def fail(step: Step) -> None:
        if step.name == "sync":
            recorder.before = None
            recorder.events.append(Step("failed", 0, size))
            raise _io_error()

    recorder.before = fail
    try:
        yield
    finally:
        recorder.before = None


class OvertakenMsync:
    """Fails the next msync of this thread, while another thread makes a call that needs one, too.

    The kernel's cursor of errors belongs to the open file: when both are in flight, the first to end takes the error, and the
    other returns 0 although its page was not written.
    """

    def __init__(self, recorder: Recorder, other: Callable[[], object]) -> None:
        self.is_overtaken = False
        self.other_error: BaseException | None = None
        self._recorder = recorder
        self._other = threading.Thread(target=self._run, args=(other,))
        self._other_flushes = threading.Event()
        self._first: Step | None = None
        recorder.before, recorder.after = self._before, self._after

    def join(self) -> None:
        """Wait for the other thread's call; later barriers work again."""
        if self._first is not None:
            self._other.join()
        self._recorder.before = self._recorder.after = None

    def _run(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            self.other_error = error

    def _before(self, step: Step) -> None:
        if step.name != "flush":
            return
        if threading.current_thread() is self._other:
            self._other_flushes.set()
        elif self._first is None:
            self._first = step
            self._other.start()
            self.is_overtaken = self._other_flushes.wait(_OVERTAKEN_SECONDS)
            if self.is_overtaken:
                self._other.join()
                return
        self._recorder.events.append(step._replace(name="failed"))
        raise _io_error()

    def _after(self, step: Step) -> None:
        if step is self._first:
            self._recorder.events[-1] = step._replace(name="lied")


class FailingMsync:
    """Makes the next msync of a recorder fail."""

    def __init__(self, personality: str, recorder: Recorder, path: Path, medium: Callable[[], PowerCutModel]) -> None:
        self._personality = personality
        self._recorder = recorder
        self._path = path
        self._medium = medium  # what the medium may hold at the time
        self._range = (0, 0)
        self._lies = personality == "late"
        self._failed = False
        recorder.before = self._before

    def writer_ended(self) -> None:
        """The writer is gone, and so is what kept its pages in the cache."""
        if self._personality == "dropped":
            self._evict()
        elif self._personality == "restoring":
            self._recorder.before = self._before_restore

    def _before(self, step: Step) -> None:
        if step.name != "flush" or self._failed:
            return
        if self._lies:
            self._lies = False
            self._recorder.before = self._swallow
            return
        self._failed = True
        self._range = step.offset, step.offset + step.length
        self._recorder.events.append(step._replace(name="failed"))
        if self._personality == "reverted":
            self._evict()
        raise _io_error()

    def _swallow(self, step: Step) -> None:
        """The step after the msync that lied: that one is noted as such now."""
        events = self._recorder.events
        events[-1] = events[-1]._replace(name="lied")
        self._recorder.before = self._before
        self._before(step)

    def _before_restore(self, step: Step) -> None:
        if step.name == "store":
            self._recorder.before = None
            self._evict()

    def _evict(self) -> None:
        """Clean pages leave the cache: what comes back is the oldest that the disk may hold."""
        with self._path.open("r+b") as file:
            for offset, data in self._medium().clean(*self._range):
                self._recorder.events.append(Step("evict", offset, len(data), data))
                file.seek(offset)
                file.write(data)
