"""Counters that never go back: what is logged is the result ("visits is 3"), so that a replay may repeat it."""

from __future__ import annotations

from typing import Any

import pmwal


class Counters(pmwal.Store):
    """Numbers by names.

    >>> with Counters(path, size="64KiB") as counters:
    ...     counters.add("visits"), counters.add("visits", 2)
    (1, 3)
    >>> with Counters(path) as counters:
    ...     counters.counts
    {'visits': 3}
    """

    def __init__(self, log: Any, **options: Any) -> None:
        """``log`` and ``options``: those of ``pmwal.Store``."""
        self.counts: dict[str, int] = {}
        super().__init__(log, **options)

    def add(self, name: str, amount: int = 1) -> int:
        """Add to a counter; its new value, which is durable."""
        with self.lock:  # nobody else adds between the look and the change
            count = self.counts.get(name, 0) + amount
            self.log([name, count])
        return count

    def apply(self, change: Any) -> None:
        name, count = change
        self.counts[name] = count

    def save(self) -> dict[str, int]:
        return self.counts

    def load(self, state: dict[str, int]) -> None:
        self.counts = state
