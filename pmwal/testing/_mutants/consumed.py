"""Broken consumers: a log that frees what a position may still need after a power cut, and an acknowledgement that is not synced.

Patches ``Consumed._passed`` and ``PositionFile.sync``.
"""

from __future__ import annotations

from unittest.mock import patch

from pmwal.storage.positions import PositionFile
from pmwal.testing._mutants.seam import Patch
from pmwal.testing.recorder import Recorder
from pmwal.writing.consumed import Consumed


def freed_before_position() -> list[Patch]:
    """Free what is consumed before the position that says so is durable."""
    shipped = Consumed._passed

    def passed(self: Consumed, name: str) -> tuple[int, str]:
        with patch.object(Recorder, "sync_data", lambda seam, fd: None):
            return shipped(self, name)

    return [Patch(Consumed, "_passed", passed)]


def durable_ack_unsynced() -> list[Patch]:
    """Return from a durable acknowledgement without a sync."""
    return [Patch(PositionFile, "sync", lambda self: None)]
