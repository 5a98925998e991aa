"""Looking at a ring in C, where the native engine is there and wanted."""

from __future__ import annotations

import os

from pmwal.format.layout import Superblock, uuid_crc
from pmwal.format.ring import Scan
from pmwal.native import native
from pmwal.records import Bound


def scan_for(block: Superblock, window: memoryview | None = None) -> Scan | None:
    """What lets a scan of this log run in C; None with the Python engine. ``window`` is the whole file, mapped and still."""
    if native is None or os.environ.get("PMWAL_ENGINE") == "python":
        return None
    scanner = native.Scanner(block.capacity, block.alignment, block.payload_max, uuid_crc(block.uuid), Bound)
    return Scan(scanner, window)
