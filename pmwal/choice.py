"""Which engine a log is opened with: the native one where it is there, or what the environment says.

``PMWAL_ENGINE=python`` or ``native`` forces one. ``PMWAL_REQUIRE_NATIVE=1`` makes a missing native engine an error instead of a
warning.
"""

from __future__ import annotations

import os
import warnings

from pmwal.extension import native
from pmwal.layout import Superblock, uuid_crc
from pmwal.records import Bound
from pmwal.ring import Scan

ENGINES = ("native", "python")
_HOW = "it was built without a C compiler; install one (gcc or clang) and install pmwal again"


def chosen_engine() -> str:
    """ "native" or "python". ``ImportError`` when the native engine is demanded and missing, ``ValueError`` for another name."""
    name = os.environ.get("PMWAL_ENGINE", "")
    if name not in ("", *ENGINES):
        raise ValueError(f"PMWAL_ENGINE must be one of {', '.join(ENGINES)}, not {name!r}")
    if native is not None:
        return name or "native"
    if name == "native" or os.environ.get("PMWAL_REQUIRE_NATIVE") == "1":
        raise ImportError(f"pmwal's native engine is missing: {_HOW}")
    if not name:
        warnings.warn(
            f"pmwal's native engine is missing, so the slower one in Python is used: {_HOW}, or set PMWAL_ENGINE=python",
            RuntimeWarning,
            stacklevel=2,
        )
    return "python"


def scan_for(block: Superblock, window: memoryview | None = None) -> Scan | None:
    """What lets a scan of this log run in C; None with the Python engine. ``window`` is the whole file, mapped and still."""
    if native is None or os.environ.get("PMWAL_ENGINE") == "python":
        return None
    scanner = native.Scanner(block.capacity, block.alignment, block.payload_max, uuid_crc(block.uuid), Bound)
    return Scan(scanner, window)
