"""A key-value store in memory whose changes survive kills and power cuts: what such a program needs to say, and no more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pmwal


class Table(pmwal.Store, Mapping[str, str]):
    """Strings by strings. When a call that changes something has returned, the change is durable.

    >>> with Table(path, size="64KiB") as table:
    ...     table.put("name", "Ada")
    ...     table.change([("name", "Grace"), ("born", "1906")])
    >>> with Table(path) as table:
    ...     dict(table)
    {'name': 'Grace', 'born': '1906'}
    """

    def __init__(self, log: Any, **options: Any) -> None:
        """``log`` and ``options``: those of ``pmwal.Store``."""
        self._table: dict[str, str] = {}
        super().__init__(log, **options)

    def put(self, key: str, value: str) -> None:
        """Set a key."""
        self.log([key, value])

    def delete(self, key: str) -> None:
        """Remove a key, if it is there."""
        self.log([key, None])

    def change(self, changes: list[tuple[str, str | None]]) -> None:
        """Make all these changes or none of them; None deletes a key."""
        self.log(*changes)

    def apply(self, change: Any) -> None:
        key, value = change
        if value is None:
            self._table.pop(key, None)
        else:
            self._table[key] = value

    def save(self) -> dict[str, str]:
        return self._table

    def load(self, state: dict[str, str]) -> None:
        self._table = state

    def __getitem__(self, key: str) -> str:
        return self._table[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
