"""Short names of the logs that are read together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

from pmwal.cli.viewing.style import safe
from pmwal.logs.sources import SUFFIX
from pmwal.records import Record, SetRecord

_WIDTH_MAX = 24


class Labels:
    """The name of a record's log: that of its file, with the directory where several logs have it; padded to one width."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._labels: dict[str, str] = {}
        paths = list(paths)
        self._stems = Counter(map(_stem, paths))
        self._width = 0
        for path in paths:
            self._label(path)
        self._width = min(_WIDTH_MAX, max(map(len, self._labels.values()), default=0))

    def __call__(self, record: Record) -> str:
        """The label; empty for a record of no set."""
        return safe(self._label(record.log)).ljust(self._width) if isinstance(record, SetRecord) else ""

    def _label(self, path: str) -> str:
        label = self._labels.get(path)
        if label is None:
            stem = _stem(path)
            several = self._stems[stem] > 1 or stem in self._labels.values()
            label = self._labels[path] = (
                os.path.join(os.path.basename(os.path.dirname(os.path.abspath(path))), stem) if several else stem
            )
            if list(self._labels.values()).count(label) > 1:
                label = self._labels[path] = path
        return label


def _stem(path: str) -> str:
    return os.path.basename(path).removesuffix(SUFFIX)
