"""Ctrl-C and SIGTERM end a run between two steps of it, so that nothing is left half done; a second one ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether the run shall end, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take the signals while the block runs. Nothing is raised in it: it looks at the object when it can end."""
        before = [(number, signal.signal(number, self._take)) for number in SIGNALS]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for each in SIGNALS:  # the kernel ends us at the next one, and our children with us
            signal.signal(each, signal.SIG_DFL)
