"""A table of jobs for one process with several threads: each job is done, or it is there again after a crash."""

from __future__ import annotations

from typing import Any

import pmwal


class Jobs(pmwal.Store):
    """Jobs by number. A job that was taken and not finished before a crash is open again.

    >>> with Jobs(path, size="64KiB") as jobs:
    ...     first, second = jobs.add("resize a.png"), jobs.add("resize b.png")
    ...     jobs.take()
    ...     jobs.finish(first)
    (1, 'resize a.png')
    >>> with Jobs(path) as jobs:
    ...     jobs.take()
    (2, 'resize b.png')
    """

    def __init__(self, log: Any, **options: Any) -> None:
        """``log`` and ``options``: those of ``pmwal.Store``."""
        self._last = 0
        self._jobs: dict[int, str] = {}
        self._taken: set[int] = set()  # by this process, so not in the log
        super().__init__(log, **options)

    def add(self, job: str) -> int:
        """Add a job; its number. It is durable."""
        with self.lock:
            number = self._last + 1
            self.log([number, job])
        return number

    def take(self) -> tuple[int, str] | None:
        """The oldest job that no thread has taken, and its number; None if there is none."""
        with self.lock:
            number = min(self._jobs.keys() - self._taken, default=None)
            if number is None:
                return None
            self._taken.add(number)
            return number, self._jobs[number]

    def finish(self, number: int) -> None:
        """The job is done. Durable on return: it will not come again."""
        self.log([number, None])
        self._taken.discard(number)

    def apply(self, change: Any) -> None:
        number, job = change
        self._last = max(self._last, number)
        if job is None:
            self._jobs.pop(number, None)
        else:
            self._jobs[number] = job

    def save(self) -> list[Any]:
        return [self._last, sorted(self._jobs.items())]

    def load(self, state: list[Any]) -> None:
        self._last, jobs = state
        self._jobs = dict(jobs)
