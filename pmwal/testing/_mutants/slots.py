"""Broken log sets: a slot begun anew, one removed under its process, and one removed with what was stored since.

Patches ``open_for_lines`` in ``pmwal.logs.slots``, and ``is_taken``, ``lock_existing`` and ``_newest`` in ``pmwal.logs.retention``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pmwal.testing._mutants.seam import Patch, shipped

slots = importlib.import_module("pmwal.logs.slots")
retention = importlib.import_module("pmwal.logs.retention")


def slot_begun_anew() -> list[Patch]:
    """Take a dead process's slot without recovering what is in it."""
    original = shipped(slots, "open_for_lines")

    def begin(path: str, options: Any, *made: Any) -> Any:
        if not made:
            Path(path).unlink(missing_ok=True)
        return original(path, options, *made)

    return [Patch(slots, "open_for_lines", begin)]


def pruned_without_lock() -> list[Patch]:
    """Remove a slot without its lock, whoever has it."""
    unlocked = SimpleNamespace(release=lambda: None)
    return [
        Patch(retention, "is_taken", lambda path: False),
        Patch(retention, "lock_existing", lambda path, seam, *, follow: unlocked),
    ]


def pruned_as_seen() -> list[Patch]:
    """Remove a slot under its lock, but by what was seen before."""
    original = shipped(retention, "_newest")
    seen: dict[str, int | None] = {}

    def newest(path: str, now: int) -> int | None:
        if path not in seen:
            seen[path] = original(path, now)
        return seen[path]

    return [Patch(retention, "_newest", newest)]
