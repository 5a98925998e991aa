"""Whether scans of a log run in C: where the native engine is installed and not switched off."""

from __future__ import annotations

import os

from pmwal.format.layout import Superblock, uuid_crc
from pmwal.format.ring import Scan
from pmwal.native import native
from pmwal.records import Bound


def scan_for(block: Superblock, file: memoryview | None = None) -> Scan | None:
    """Lets scans of this log run in C; None with the Python engine. ``file`` is the whole file, mapped, if nobody writes it."""
    if native is None or os.environ.get("PMWAL_ENGINE") == "python":
        return None
    scanner = native.Scanner(block.capacity, block.alignment, block.payload_max, uuid_crc(block.uuid), Bound)
    return Scan(scanner, file)
