"""Ctrl-C and SIGTERM end a run between two of its steps, so that it can check and report; a second signal ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether the run should end, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Handle the signals while the block runs. They raise nothing: the block tests this object where it can end."""
        before = [(number, signal.signal(number, self._take)) for number in SIGNALS]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for each in SIGNALS:  # the next one kills this process, and its children with it
            signal.signal(each, signal.SIG_DFL)
