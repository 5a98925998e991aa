"""Whether pmwal can run here at all. This module and ``pmwal.errors`` can be imported on every platform."""

from __future__ import annotations

import os
import sys

from pmwal.errors import UnsupportedMedium
from pmwal.format.layout import PAGE


def check_platform() -> None:
    """``UnsupportedMedium`` if pmwal cannot run on this platform. The engine was imported before."""
    if not sys.platform.startswith("linux") or sys.byteorder != "little":
        raise UnsupportedMedium(f"pmwal runs on little-endian Linux, not on {sys.platform} ({sys.byteorder}-endian)")
    size = os.sysconf("SC_PAGESIZE")
    if size != PAGE:  # the format relies on msync covering exactly its pages
        raise UnsupportedMedium(f"pmwal needs memory pages of {PAGE} bytes; this kernel has {size}")
    # A free-threaded interpreter has taken its lock back for the extension module, unless it was told not to.
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise UnsupportedMedium("pmwal needs the interpreter's lock (GIL), which is off in this process: set PYTHON_GIL=1")
