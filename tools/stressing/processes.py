"""Forked processes that report a violation before they exit, and die with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from stressing import isolation
from stressing.interrupt import SIGNALS
from violation import Violation

FAILED = 70  # exit status of a process that left a report
PATIENCE = 600.0  # seconds after which a process that should have ended counts as hanging

_FORK = multiprocessing.get_context("fork")
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
        self._process: BaseProcess = _FORK.Process(target=self._run, args=(body, *args), name=name, daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork while numpy has threads
            with isolation.namespace() if isolated else contextlib.nullcontext():
                self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def _run(self, body: Callable[..., None], *args: Any) -> None:
        if self._isolated:
            isolation.enter()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the supervisor handles them and ends all processes
        try:
            body(*args)
        except BaseException as error:
            kind = error.kind if isinstance(error, Violation) else "unexpected-error"
            message = str(error) if isinstance(error, Violation) else traceback.format_exc()
            self._report.write_text(json.dumps({"kind": kind, "message": message}))
            sys.stdout.flush()
            os._exit(FAILED)

    @property
    def running(self) -> bool:
        """Whether it is running."""
        return self._process.is_alive()

    def wait(self) -> None:
        """Wait until it exits."""
        self._process.join(PATIENCE)
        if self.running:
            raise Violation(f"{self.name} is still running {PATIENCE:g} s after it should have ended", "hanging")

    def kill(self) -> bool:
        """Send SIGKILL; whether it died of that."""
        self._process.kill()
        self._process.join()
        return self._process.exitcode == -signal.SIGKILL

    def suspend(self) -> None:
        """Stop it (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Continue it (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def check(self) -> None:
        """``Violation`` if it ended with anything but success or the supervisor's SIGKILL."""
        code = self._process.exitcode
        if code in (None, 0, -signal.SIGKILL):
            return
        if code == FAILED:
            with contextlib.suppress(OSError, ValueError):
                report = json.loads(self._report.read_text())
                raise Violation(f"{self.name}: {report['message']}", report["kind"])
        assert code is not None
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        raise Violation(f"{self.name} ended by {how} and left no report", "unexpected-end")
