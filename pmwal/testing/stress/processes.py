"""Forked processes that report a violation before they exit, and die with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pmwal.testing.stress import isolation
from pmwal.testing.stress.interrupt import SIGNALS
from pmwal.testing.stress.violation import Violation

FAILED = 70  # exit status of a process that left a report
PATIENCE = 600.0  # seconds after which a process that should have ended counts as hanging

_POLL_SECONDS = 0.002
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Child:
    """A process that runs one function; ``isolated`` as the module of that name says."""

    def __init__(self, name: str, reports: Path, body: Callable[..., None], *args: Any, isolated: bool = False) -> None:
        self.name = name
        self._isolated = isolated
        self._report = reports / f"{name}.json"
        if isolated:
            self._report.touch()
            os.chown(self._report, isolation.USER, isolation.USER)
        self._code: int | None = None  # exit status, or the negative number of the signal that ended it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork while numpy has threads
            with isolation.namespace() if isolated else contextlib.nullcontext():
                self.pid = os.fork()
                if self.pid == 0:
                    self._run(body, *args)

    def _run(self, body: Callable[..., None], *args: Any) -> NoReturn:
        """The life of the process. It ends without the exit of an interpreter, whose buffers and handlers are the parent's."""
        try:
            if self._isolated:
                isolation.enter()
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # the supervisor handles them and ends all processes
            body(*args)
        except BaseException as error:
            kind = error.kind if isinstance(error, Violation) else "unexpected-error"
            message = str(error) if isinstance(error, Violation) else traceback.format_exc()
            with contextlib.suppress(OSError):
                self._report.write_text(json.dumps({"kind": kind, "message": message}))
            os._exit(FAILED)
        os._exit(0)

    def _collect(self, options: int) -> int | None:
        """How it ended; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    @property
    def running(self) -> bool:
        """Whether it is running."""
        return self._collect(os.WNOHANG) is None

    def wait(self) -> None:
        """Wait until it exits."""
        end = time.monotonic() + PATIENCE
        while self.running:
            if time.monotonic() > end:
                raise Violation(f"{self.name} is still running {PATIENCE:g} s after it should have ended", "hanging")
            time.sleep(_POLL_SECONDS)

    def kill(self) -> bool:
        """Send SIGKILL; whether it died of that."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
        return self._collect(0) == -signal.SIGKILL

    def suspend(self) -> None:
        """Stop it (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Continue it (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def check(self) -> None:
        """``Violation`` if it ended with anything but success or the supervisor's SIGKILL."""
        code = self._collect(os.WNOHANG)
        if code in (None, 0, -signal.SIGKILL):
            return
        if code == FAILED:
            with contextlib.suppress(OSError, ValueError):
                report = json.loads(self._report.read_text())
                raise Violation(f"{self.name}: {report['message']}", report["kind"])
        assert code is not None
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        raise Violation(f"{self.name} ended by {how} and left no report", "unexpected-end")
